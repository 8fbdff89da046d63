"""What made the pictures of a folder. A folder holds those of one model, drawn in one way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any

from ..exits import DISK, Stop
from ..run.lock import NO_LOCKS, lock

MODEL_FILES = (".safetensors", ".json", ".txt")
LIBRARIES = ("torch", "transformers", "diffusers")  # whose versions decide the last bits of a picture
BLOCK = 1 << 20
PARTIALS = ".partial"  # folder of what is not whole yet


def model_digest(paths: Sequence[Path]) -> str:
    """SHA-256 over names and contents of a model's files; hidden folders are no part of it.

    Args:
        paths: folders or single files: the model, and the folders that it needs beside it.
    """
    total = sha256()
    for path in paths:
        for file in [path] if path.is_file() else files_of(path):
            content = sha256()
            with open(file, "rb") as opened:
                while block := opened.read(BLOCK):
                    content.update(block)
            name = "" if file == path else file.relative_to(path).as_posix()
            total.update(f"{name}\0{content.hexdigest()}\n".encode())
    return total.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Weights, configurations and vocabularies below a folder, in the order of their names."""
    found = [path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file()]
    shown = [path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    return sorted(shown, key=lambda path: path.relative_to(folder).as_posix())


def versions() -> dict[str, str]:
    """Versions of this package and of what draws."""
    return {name: metadata.version(name) for name in ("tbac-uniimage", *LIBRARIES)}


def digest_of(content: Any) -> str:
    """SHA-256 of a JSON value."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is no file. Raises ValueError: it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); put it back, or give another folder.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no manifest; put it back, or give another folder.")
    return content


def difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first of the wanted settings that is held otherwise, as "steps 30, not 20"; None: there is none."""
    for name, value in wanted.items():
        if held.get(name) != value:
            return f"{name} {short(held.get(name))}, not {short(value)}"
    return None


def short(value: Any) -> str:
    """A value within a sentence; of a hash, the beginning."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:12] if len(text) == 64 and text.isalnum() else text


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Say in one sentence that something cannot be written.

    Raises:
        Stop: the disk is full, or may not be written to.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise Stop(f"{what} cannot be written ({reason}); free some space and start again.", DISK) from error


def write_whole(path: Path, content: bytes, partials: Path) -> None:
    """Write a file whole or not at all.

    Args:
        path: its folder is made.
        content: of the file.
        partials: folder on the same disk for what is not whole yet.

    Raises:
        Stop: it cannot be written.
    """
    partial = partials / f"{os.getpid()}.partial"
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partials.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_changed(path: Path, content: bytes, partials: Path) -> None:
    """Write a file unless it has this content; another command may hold it. Raises Stop."""
    if not path.exists() or path.read_bytes() != content:
        write_whole(path, content, partials)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep a second command off a file's folder; where the file system knows no locks, do nothing.

    Raises:
        ValueError: another process holds it.
    """
    with FileIO(path, "r+") as file:
        try:
            lock(file)
        except BlockingIOError as error:
            raise ValueError(
                f"{path.parent} is in use by another command; wait for it to end, or give another --out."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
