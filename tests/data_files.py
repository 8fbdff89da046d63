"""Small data sets on disk, for the tests of training/data."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.index import Index
from tbac_uniimage.training.data.pictures import decode
from tbac_uniimage.training.data.refs import Ref
from tbac_uniimage.training.data.storage import Storage

RED, GREEN, BLUE = (200, 10, 20), (10, 200, 30), (20, 30, 200)


def picture(color=RED, size=(24, 16), kind: str = "PNG", mode: str = "RGB", **options) -> bytes:
    """A picture of one colour as a file."""
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind, **options)
    return file.getvalue()


def pack(files: Mapping[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> bytes:
    """A tar of files in their order."""
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode=mode) as tar:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return result.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Files below a folder, made in reverse order, so that nobody relies on it."""
    for name, data in reversed(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def index(source: Path | str, out: Path, **options):
    """The index of a data set, and the report."""
    report = build(str(source), out, name="set", **options)
    return Index(out / "set"), report


def pixel(ref: Ref, storage: Storage | None = None) -> tuple[int, int, int]:
    """The first pixel of a picture, read as training reads it."""
    return decode((storage or Storage()).read(ref)).getpixel((0, 0))


def samples(found: Index) -> dict[str, tuple]:
    """key → text, first pixel of the target, first pixels of the inputs; in the order of the index."""
    storage = Storage()
    entries = [found[i] for i in range(len(found))]
    return {
        e.key: (e.text, pixel(e.target, storage), *(pixel(ref, storage) for ref in e.inputs)) for e in entries
    }
