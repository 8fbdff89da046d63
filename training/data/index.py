"""The index of one data set: a folder that says where every sample lies, read by row through a memory map.

``samples.arrow`` and ``files.arrow`` are Arrow IPC files of record batches of equal length, so row i is found
without a search and a data-loader worker holds none of it. ``manifest.json`` is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .paths import join
from .storage import Ref, Stamp, Storage

FORMAT = 3
BATCH = 8192  # rows of a record batch
SAMPLES = pa.schema(
    {
        "key": pa.string(),
        "text": pa.list_(pa.string()),  # its wordings, one but where the position in training chooses
        "width": pa.int32(),
        "height": pa.int32(),
        "mask": pa.bool_(),  # whether the last picture is the target's mask
        # one item per picture, the target first
        "file": pa.list_(pa.int32()),
        "offset": pa.list_(pa.int64()),
        "size": pa.list_(pa.int64()),
        "row": pa.list_(pa.int32()),
    }
)
FILES = pa.schema(
    {
        "path": pa.string(),
        "column": pa.string(),
        "archive": pa.string(),
        "bytes": pa.int64(),  # -1 of an archive that has a description
        # of a file that holds one picture, see storage.Stamp; else -1 and ""
        "modified": pa.int64(),
        "digest": pa.string(),
    }
)
ARROW_FILES = {"samples.arrow": SAMPLES, "files.arrow": FILES}


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
    """

    key: str
    texts: tuple[str, ...]
    target: Ref
    inputs: tuple[Ref, ...]
    width: int
    height: int
    mask: Ref | None = None

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

    Raises:
        ValueError: no index, one of another format version, or a damaged one.
    """

    def __init__(self, folder: str | Path, masks: bool = True) -> None:
        self.folder = Path(folder)
        self.masks = masks
        self.manifest = read_manifest(self.folder)
        self.name: str = self.manifest["name"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.source: str = self.manifest["source"]
        self._rows: dict[str, Rows] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_rows": {}}

    def __len__(self) -> int:
        return self.manifest["samples"]

    def __getitem__(self, number: int) -> Entry:
        if not 0 <= number < len(self):
            raise IndexError(f"Index {self.name} has {len(self)} samples; there is no sample {number}.")
        sample = self._table("samples.arrow").row(number)
        places = zip(sample["file"], sample["offset"], sample["size"], sample["row"], strict=True)
        target, *inputs = (self._ref(*place) for place in places)
        mask = inputs.pop() if sample["mask"] else None
        texts, size = tuple(sample["text"]), (sample["width"], sample["height"])
        return Entry(sample["key"], texts, target, tuple(inputs), *size, mask if self.masks else None)

    def sizes(self) -> np.ndarray:
        """Width and height of every target, ``[n, 2]`` int32."""
        table = self._table("samples.arrow")
        return np.stack([table.column("width"), table.column("height")], axis=1)

    def input_counts(self) -> np.ndarray:
        """Number of input pictures of every sample, ``[n]`` int32."""
        batches = self._table("samples.arrow").batches()
        counts = [pc.list_value_length(batch.column("file")).to_numpy() - 1 for batch in batches]
        return np.concatenate([np.zeros(0, np.int32), *counts]).astype(np.int32) - self.masked()

    def masked(self) -> np.ndarray:
        """Which samples have a mask, ``[n]`` bool."""
        batches = self._table("samples.arrow").batches()
        masks = [batch.column("mask").to_numpy(zero_copy_only=False) for batch in batches]
        return np.concatenate([np.zeros(0, bool), *masks])

    def selected(self, exclude: Sequence[str] = (), lenient: bool = False) -> np.ndarray:
        """Row numbers ``[m]`` int64 of the samples whose key fits none of the globs (``*`` and ``?``).

        Raises:
            ValueError: a glob fits none, which is likely a slip that would train on what was to be left out.
        """
        out = np.zeros(len(self), bool)
        for glob in exclude:
            pattern = glob_to_regex(glob)
            hits = [
                pc.match_substring_regex(batch.column("key"), pattern).to_numpy(zero_copy_only=False)
                for batch in self._table("samples.arrow").batches()
            ]
            found = np.concatenate([np.zeros(0, bool), *hits])
            if not found.any() and not lenient:
                raise ValueError(
                    f"No sample of {self.name} fits the exclude glob {glob!r}; its keys are such as "
                    f"{self[0].key!r}. Where that may be, set `lenient: true` beside it."
                )
            out |= found
        return np.flatnonzero(~out).astype(np.int64)

    def cache_name(self, entry: Entry) -> tuple[str, str]:
        """What names a sample's pictures in a cache: their contents where known, else index and key.

        The mask is not in the name, since most of what is kept does not depend on it.
        """
        stamps = [ref.stamp for ref in entry.pictures]
        if any(stamp is None or not stamp.digest for stamp in stamps):
            return self.fingerprint, entry.key
        # the size of the target decides which inputs are cut as it is
        seen = stamps[: 1 + len(entry.inputs)]
        return "contents", " ".join([f"{entry.width}x{entry.height}", *(stamp.digest for stamp in seen)])

    def check_source(self) -> None:
        """Look whether the files that hold the pictures are those that were indexed.

        Tars and tables are told by their size, a file with one picture by size and time, and where the time
        differs by its contents. Behind a URL such files are not asked.

        Raises:
            ValueError: one is gone or has changed.
        """
        storage, table = Storage(), self._table("files.arrow")
        for batch in table.batches():
            columns = (batch.column(name).to_pylist() for name in ("path", "bytes", "modified", "digest"))
            for path, size, modified, digest in zip(*columns, strict=True):
                place = join(self.source, path)
                try:
                    if modified >= 0:
                        storage.check(place, Stamp(size, modified, digest))
                    elif size >= 0 and not digest and storage.size(place) != size:
                        raise ValueError(f"{path} of {self.source} has changed; index the data set again.")
                except OSError as error:
                    raise ValueError(f"{path} of {self.source} cannot be used ({error}).") from error

    def _ref(self, file: int, offset: int, size: int, row: int) -> Ref:
        place = self._table("files.arrow").row(file)
        archive = str(self.folder / place["archive"]) if place["archive"] else ""
        alone = size < 0 and row < 0
        stamp = Stamp(place["bytes"], place["modified"], place["digest"]) if alone else None
        return Ref(join(self.source, place["path"]), offset, size, row, place["column"], archive, stamp)

    def _table(self, name: str) -> Rows:
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


class Rows:
    """Rows of an Arrow IPC file whose batches have :data:`BATCH` rows each (the last one fewer).

    Args:
        path: of the file.
        sums: of its batches, see :func:`batch_sum`; None of an index from before there were any.

    Raises:
        ValueError: bytes of it are not those that were written; here, or where they are first read.
    """

    def __init__(self, path: Path, sums: Sequence[int] | None = None) -> None:
        self._path, self._sums = path, sums
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise self._damaged() from error
        if not self._file.schema.equals(ARROW_FILES[path.name]):
            raise self._damaged()
        if sums is not None and self._file.num_record_batches != len(sums):
            raise self._damaged()
        self._batches: dict[int, pa.RecordBatch] = {}

    def batches(self) -> list[pa.RecordBatch]:
        """All of them, mapped, not read."""
        return [self._batch(i) for i in range(self._file.num_record_batches)]

    def row(self, number: int) -> dict[str, Any]:
        """Its values by column name."""
        batch = self._batch(number // BATCH)
        place = number % BATCH
        return {name: batch.column(i)[place].as_py() for i, name in enumerate(batch.schema.names)}

    def column(self, name: str) -> np.ndarray:
        """A column of int32 as an array ``[n]``."""
        parts = [batch.column(name).to_numpy() for batch in self.batches()]
        return np.concatenate([np.zeros(0, np.int32), *parts])

    def _batch(self, number: int) -> pa.RecordBatch:
        if number not in self._batches:
            try:
                batch = self._file.get_batch(number)
                batch.validate(full=self._sums is None)  # Arrow itself trusts offsets, and would crash
            except (pa.ArrowException, OSError) as error:
                raise self._damaged() from error
            if self._sums is not None and batch_sum(batch) != self._sums[number]:
                raise self._damaged()
            self._batches[number] = batch
        return self._batches[number]

    def _damaged(self) -> ValueError:
        return ValueError(f"{self._path} is damaged; index the data set again.")


def batch_sum(batch: pa.RecordBatch) -> int:
    """CRC-32 of what is in a batch and how it is laid out; 1 ms for 8,192 rows."""
    return zlib.crc32(batch.serialize())


class IndexWriter:
    """Writes the files of an index into an empty folder, row by row.

    Args:
        folder: exists; the caller renames it when all is done.
        source: root of the data set, to which paths are written relative.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.folder, self.source = folder, source
        self._samples = RowWriter(folder / "samples.arrow", SAMPLES)
        self._files = RowWriter(folder / "files.arrow", FILES)
        self._known: dict[tuple[str, str, str], int] = {}
        self._keys = array("Q")  # 8 bytes a sample
        self._hash = hashlib.blake2b(digest_size=16)
        self._storage = Storage()

    def add(self, entry: Entry) -> None:
        """Append a sample."""
        refs, masked = entry.pictures, entry.mask is not None
        numbers = [self._file_number(ref) for ref in refs]
        offsets, sizes, rows = zip(*((ref.offset, ref.size, ref.row) for ref in refs), strict=True)
        row = (entry.key, entry.texts, entry.width, entry.height, masked, numbers, offsets, sizes, rows)
        told = row if masked else (*row[:4], *row[5:])  # one without a mask is told as before there were any
        self._hash.update(repr(told).encode("utf-8"))
        self._keys.append(key_hash(entry.key))
        self._samples.add(row)

    def _file_number(self, ref: Ref) -> int:
        """Row of ``files.arrow``. Only what holds many pictures is looked up; a lone file is simply added."""
        prefix = self.source.rstrip("/") + "/"
        row = (ref.path.removeprefix(prefix), ref.column, os.path.basename(ref.archive))
        if ref.stamp:
            stamp = ref.stamp
            # time counts only where contents are unknown: a copy of a data set is the same data set
            known = stamp.digest or stamp.modified
            self._hash.update(repr((row, stamp.bytes, known)).encode("utf-8"))
            return self._files.add((*row, stamp.bytes, stamp.modified, stamp.digest))
        number = self._known.get(row)
        if number is None:
            size = -1 if ref.archive else self._storage.size(ref.path)
            number = self._known[row] = self._files.add((*row, size, -1, ""))
            self._hash.update(repr(row).encode("utf-8"))
        return number

    def close(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Finish the files and write the manifest, which holds ``facts``. Returns the manifest.

        Raises:
            ValueError: two samples have one key.
        """
        samples, _ = self._samples.close(), self._files.close()
        self._check_keys()
        # archive descriptions and seek points are guarded too: without them pictures cannot be read
        names = [*ARROW_FILES, *sorted(path.name for path in self.folder.glob("archive-*"))]
        manifest = {
            "format": FORMAT,
            **facts,
            "source": self.source,
            "samples": samples,
            "fingerprint": self._hash.hexdigest(),
            "bytes": {name: (self.folder / name).stat().st_size for name in names},
            "sums": {"samples.arrow": self._samples.sums, "files.arrow": self._files.sums},
        }
        manifest["sum"] = manifest_sum(manifest)
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        return manifest

    def _check_keys(self) -> None:
        hashes = np.sort(np.frombuffer(self._keys, np.uint64))
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        seen: set[str] = set()
        for batch in Rows(self.folder / "samples.arrow").batches() if twice else []:
            for key in batch.column("key").to_pylist():
                if key in seen:
                    raise ValueError(
                        f"Two samples have the key {key}; rename one of the files that hold them."
                    )
                if key_hash(key) in twice:
                    seen.add(key)


def key_hash(key: str) -> int:
    """64 bits of a key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


class RowWriter:
    """Rows into an Arrow IPC file of equal batches."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._waiting: list[tuple] = []
        self._written = 0
        self.sums: list[int] = []  # of the batches

    def add(self, row: tuple) -> int:
        """Append a row. Returns its number."""
        self._waiting.append(row)
        number = self._written + len(self._waiting) - 1
        if len(self._waiting) == BATCH:
            self._flush()
        return number

    def _flush(self) -> None:
        columns = zip(*self._waiting, strict=True)
        arrays = [
            pa.array(list(column), kind.type) for column, kind in zip(columns, self._schema, strict=True)
        ]
        batch = pa.record_batch(arrays, schema=self._schema)
        self._writer.write_batch(batch)
        self.sums.append(batch_sum(batch))
        self._written += len(self._waiting)
        self._waiting = []

    def close(self) -> int:
        """Write what waits. Returns the number of rows."""
        if self._waiting:
            self._flush()
        self._writer.close()
        self._file.close()
        return self._written
