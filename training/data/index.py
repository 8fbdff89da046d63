"""The index of one data set: a folder that says where every sample lies, read by row through a memory map.

``samples.arrow`` has a row for each sample, ``files.arrow`` for each file, and ``units.arrow`` for each
stretch of samples that was looked at as one. A data-loader worker holds none of it. ``manifest.json`` is
written last.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from .arrow_files import Rows
from .paths import is_url, join
from .refs import Changed, Ref, Stamp
from .storage import Storage

FORMAT = 4


@dataclass(frozen=True)
class Entry:
    """One sample.

    Attributes:
        key: its name, unique in the data set; globs of ``exclude`` are matched against it.
        texts: caption or instruction; several if the position in training chooses one.
        target: picture to learn.
        inputs: pictures to start from; none for text-to-image.
        width: of the target, pixels, after EXIF rotation.
        height: of the target, pixels, after EXIF rotation.
        mask: of the target, white where it counts in the loss, or None: all of it does.
        origin: fingerprint of the unit of the index that it is of; "" where contents name its pictures.
    """

    key: str
    texts: tuple[str, ...]
    target: Ref
    inputs: tuple[Ref, ...]
    width: int
    height: int
    mask: Ref | None = None
    origin: str = ""

    @property
    def pictures(self) -> tuple[Ref, ...]:
        """All of them, the target first, the mask last."""
        return (self.target, *self.inputs, *((self.mask,) if self.mask else ()))

    @property
    def text(self) -> str:
        """The first of its texts."""
        return self.texts[0]


class Index:
    """An index on disk. Pickled as its path only; files are mapped when first used.

    Args:
        folder: what ``tbac-uniimage data index`` wrote.
        masks: whether samples have their masks; without, all of every target counts.
        part: whether it may be a part of an index.

    Raises:
        ValueError: no index, a part of one, one of another format version, or a damaged one.
    """

    def __init__(self, folder: str | Path, masks: bool = True, part: bool = False) -> None:
        self.folder = Path(folder)
        self.masks = masks
        self.manifest = read_manifest(self.folder)
        if ("part" in self.manifest) != part:
            number, count = self.manifest.get("part", (1, 1))
            raise ValueError(
                f"{folder} is a whole index and no part of one; give the folders of `data index --part`."
                if part
                else f"{folder} is part {number} of {count} of an index; put all of them together with "
                "`tbac-uniimage data join`."
            )
        self.name: str = self.manifest["name"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.source: str = self.manifest["source"]
        self._rows: dict[str, Rows] = {}
        self._ends: np.ndarray | None = None  # of the units, in samples

    def __getstate__(self) -> dict:
        # with the manifest, so that a worker that meets another index in its place notices
        return {**self.__dict__, "_rows": {}, "_ends": None}

    def __len__(self) -> int:
        return self.manifest["samples"]

    def __getitem__(self, number: int) -> Entry:
        if not 0 <= number < len(self):
            raise IndexError(f"Index {self.name} has {len(self)} samples; there is no sample {number}.")
        sample = self.table("samples.arrow").row(number)
        columns = (sample[name] for name in ("file", "offset", "size", "row", "digest"))
        target, *inputs = (self._ref(*place) for place in zip(*columns, strict=True))
        origin = "" if all(ref.digest for ref in (target, *inputs)) else self._origin(number)
        mask = inputs.pop() if sample["mask"] else None
        texts, size = tuple(sample["text"]), (sample["width"], sample["height"])
        mask = mask if self.masks else None
        return Entry(sample["key"], texts, target, tuple(inputs), *size, mask, origin)

    def _origin(self, number: int) -> str:
        """The fingerprint of the unit of a sample."""
        units = self.table("units.arrow")
        if self._ends is None:
            self._ends = np.cumsum(units.column("samples"), dtype=np.int64)
        return units.row(int(np.searchsorted(self._ends, number, "right")))["fingerprint"].hex()

    def sizes(self) -> np.ndarray:
        """Width and height of every target, ``[n, 2]`` int32."""
        table = self.table("samples.arrow")
        return np.stack([table.column("width"), table.column("height")], axis=1)

    def input_counts(self) -> np.ndarray:
        """Number of input pictures of every sample, ``[n]`` int32."""
        batches = self.table("samples.arrow").batches()
        counts = [pc.list_value_length(batch.column("file")).to_numpy() - 1 for batch in batches]
        return np.concatenate([np.zeros(0, np.int32), *counts]).astype(np.int32) - self.masked()

    def masked(self) -> np.ndarray:
        """Which samples have a mask, ``[n]`` bool."""
        batches = self.table("samples.arrow").batches()
        masks = [batch.column("mask").to_numpy(zero_copy_only=False) for batch in batches]
        return np.concatenate([np.zeros(0, bool), *masks])

    def selected(self, exclude: Sequence[str] = (), lenient: bool = False) -> np.ndarray:
        """Row numbers ``[m]`` int64 of the samples whose key fits none of the globs (``*`` and ``?``).

        Raises:
            ValueError: a glob fits none, which is likely a slip that would train on what was to be left out.
        """
        return np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in self.scan(exclude, lenient))])

    def scan(self, exclude: Sequence[str], lenient: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same by batches: row numbers ``[m]`` int64, and (width, height) ``[m, 2]`` of the targets."""
        patterns, fitting, first = [glob_to_regex(glob) for glob in exclude], set(), 0
        for batch in self.table("samples.arrow").batches():
            kept = np.ones(len(batch), bool)
            for pattern in patterns:
                hits = pc.match_substring_regex(batch.column("key"), pattern).to_numpy(zero_copy_only=False)
                kept &= ~hits
                if hits.any():
                    fitting.add(pattern)
            sizes = np.stack([batch.column(name).to_numpy()[kept] for name in ("width", "height")], axis=1)
            yield first + np.flatnonzero(kept), sizes
            first += len(batch)
        for glob, pattern in zip(exclude, patterns, strict=True):
            if pattern not in fitting and not lenient:
                raise ValueError(
                    f"No sample of {self.name} fits the exclude glob {glob!r}; its keys are such as "
                    f"{self[0].key!r}. Where that may be, set `lenient: true` beside it."
                )

    def cache_name(self, entry: Entry) -> tuple[str, str]:
        """What names a sample's pictures in a cache: their contents where known, else unit and key.

        The mask is not in the name, since most of what is kept does not depend on it.
        """
        if entry.origin:
            return entry.origin, entry.key
        digests = (ref.digest.hex() for ref in (entry.target, *entry.inputs))
        # the size of the target decides which inputs are cut as it is
        return "contents", " ".join([f"{entry.width}x{entry.height}", *digests])

    def check_source(self) -> None:
        """Look whether the files that hold the pictures are those that were indexed.

        They are told by size and time, and where the time differs by their contents: of a file with one
        picture by all, of a tar or table by blocks that are spread over it. Behind a URL only tars and tables
        are asked, for their size.

        Raises:
            ValueError: one is gone or has changed.
        """
        storage, remote = Storage(), is_url(self.source)
        for batch in self.table("files.arrow").batches():
            for place in batch.to_pylist():
                if remote and place["alone"]:
                    continue
                archive = str(self.folder / place["archive"]) if place["archive"] else ""
                stamp = Stamp(place["bytes"], place["modified"], place["digest"])
                size = -1 if place["alone"] else 0
                ref = Ref(join(self.source, place["path"]), size=size, archive=archive, stamp=stamp)
                try:
                    storage.check(ref)
                except OSError as error:
                    why = f"cannot be used ({error})"
                    if isinstance(error, Changed) and not place["alone"]:
                        why = "has changed; index the data set again"
                    raise ValueError(f"{place['path']} of {self.source} {why}.") from error

    def _ref(self, file: int, offset: int, size: int, row: int, digest: bytes) -> Ref:
        place = self.table("files.arrow").row(file)
        archive = str(self.folder / place["archive"]) if place["archive"] else ""
        path = join(self.source, place["path"])
        if not place["alone"]:
            return Ref(path, offset, size, row, place["column"], archive, digest)
        stamp = Stamp(place["bytes"], place["modified"], place["digest"])
        return Ref(path, digest=stamp.digest, stamp=stamp)

    def table(self, name: str) -> Rows:
        """The rows of one of its files, mapped. Raises ValueError."""
        if name not in self._rows:
            self._rows[name] = Rows(self.folder / name, self.manifest.get("sums", {}).get(name))
        return self._rows[name]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index. Raises ValueError."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"There is no index at {folder}; make one with `tbac-uniimage data index`.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, sizes = manifest["format"], manifest["bytes"]
        if "sum" in manifest and manifest.pop("sum") != manifest_sum(manifest):
            raise ValueError("its sum is another")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); index the data set again.") from error
    if version != FORMAT:
        raise ValueError(f"{folder} is an index of format {version}, not {FORMAT}; index the data set again.")
    for name, size in sizes.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(f"{folder / name} is missing or damaged; index the data set again.")
    return manifest


def manifest_sum(manifest: dict[str, Any]) -> int:
    """CRC-32 of a manifest without its sum."""
    return zlib.crc32(json.dumps(manifest).encode())


def glob_to_regex(glob: str) -> str:
    """A glob of ``*`` and ``?`` as a regular expression for RE2, which lacks what fnmatch writes."""
    pieces = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in glob)
    return rf"(?s:\A{''.join(pieces)}\z)"
