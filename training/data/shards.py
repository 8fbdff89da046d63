"""Bytes by name in few large files, to which any number of processes append.

Every writer has files of its own: ``X.data``, one entry behind the other, and ``X.rows``, a row for each that
is appended when the entry is there. A killed writer leaves a tail without a row, which nobody looks
at, or a torn row, which is passed over. Readers map one table of all rows, sorted by name, and make it anew
where a writer has gone on since; so a million entries are a few files, and take no memory of a process.
"""

from __future__ import annotations

import hashlib
import os
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

NAME_BYTES = 16
LIMIT = 2**30  # bytes of a file, after which the next is begun
OPEN_FILES = 64
# `high` and `low` are the two halves of the name
ROW = np.dtype([("low", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("sum", "<u4"), ("shard", "<u4")])
HIGH = np.dtype("<u8")
STORED = np.dtype([("high", HIGH), *((name, ROW[name]) for name in ROW.names)])


def name_of(*parts: str) -> bytes:
    """The name of what these texts describe, :data:`NAME_BYTES` bytes."""
    return hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=NAME_BYTES).digest()


class Damaged(Exception):
    """The bytes of an entry in the file ``path`` are not those that were written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


class ShardWriter:
    """Appends entries to files of its own in a folder.

    Args:
        folder: exists.
        limit: bytes of a file, after which the next is begun.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self._data: BinaryIO | None = None
        self._rows: BinaryIO | None = None
        self._place = 0

    def add(self, name: bytes, data: bytes) -> None:
        """Append an entry. It is there for every process when this returns. Raises OSError."""
        if self._data is None or self._place >= self.limit:
            self._begin()
        write_fully(self._data, data)
        halves = np.frombuffer(name, HIGH)
        row = np.array((halves[0], halves[1], self._place, len(data), zlib.crc32(data), 0), STORED)
        write_fully(self._rows, row.tobytes())
        self._place += len(data)

    def _begin(self) -> None:
        self.close()
        stem = self.folder / uuid.uuid4().hex
        self._data = open(stem.with_suffix(".data"), "xb", buffering=0)  # noqa: SIM115
        self._rows = open(stem.with_suffix(".rows"), "xb", buffering=0)  # noqa: SIM115
        self._place = 0

    def close(self) -> None:
        """Make what was written survive a loss of power too."""
        for file in (self._data, self._rows):
            if file is not None:
                os.fsync(file.fileno())
                file.close()
        self._data = self._rows = None


class Shards:
    """The entries in a folder, by name; of several of one name any.

    May be sent to other processes, which map the same table. What is written later is found after
    :meth:`refresh`.

    Args:
        folder: where writers write; nothing is looked at before the first question.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._seen = ""  # names the state of the folder that the table is of
        self._high, self._rows = np.zeros(0, HIGH), np.zeros(0, ROW)
        self._shards: list[str] = []
        self._open: dict[int, BinaryIO] = {}

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["folder"])

    def __len__(self) -> int:
        self._look()
        return len(self._high)

    def __contains__(self, name: bytes) -> bool:
        return self._find(name) is not None

    def get(self, name: bytes) -> bytes | None:
        """An entry, or None. Raises Damaged."""
        row = self._find(name)
        if row is None:
            return None
        shard, size = int(row["shard"]), int(row["size"])
        path = self.folder / f"{self._shards[shard]}.data"
        try:
            if shard not in self._open:
                if len(self._open) >= OPEN_FILES:
                    self._open.pop(next(iter(self._open))).close()
                self._open[shard] = open(path, "rb", buffering=0)  # noqa: SIM115
            data = os.pread(self._open[shard].fileno(), size, int(row["offset"]))
        except OSError as error:
            raise Damaged(path, str(error)) from error
        if len(data) != size:
            raise Damaged(path, "it is cut off")
        if zlib.crc32(data) != row["sum"]:
            raise Damaged(path, "its sum is another")
        return data

    def refresh(self) -> None:
        """Find what was written since the first question."""
        counts = self._counts()
        state = name_of(*(f"{stem} {count}" for stem, count in counts)).hex()
        if state == self._seen:
            return
        self._forget()
        self._seen, self._shards = state, [stem for stem, _ in counts]
        if not counts:
            return
        path = self.folder / f"{state}.table"
        try:
            table = open(path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            self._high, self._rows = sorted_rows(self.folder, counts)
            try:
                table = write_table(path, self._high, self._rows)
            except OSError:  # a folder that may only be read: the table stays in memory
                return
        with table:
            number = os.fstat(table.fileno()).st_size // (HIGH.itemsize + ROW.itemsize)
            if number:  # what has no bytes cannot be mapped
                self._high = np.memmap(table, HIGH, "r", 0, (number,))
                self._rows = np.memmap(table, ROW, "r", HIGH.itemsize * number, (number,))

    def _look(self) -> None:
        if self._process != os.getpid():
            self._forget()
        if not self._seen:
            self.refresh()

    def _counts(self) -> list[tuple[str, int]]:
        """Stem and rows of every writer's files."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as items:
            found = [item for item in items if item.name.endswith(".rows")]
        stems = sorted((item.name.removesuffix(".rows"), item.stat().st_size) for item in found)
        return [
            (stem, size // STORED.itemsize)
            for stem, size in stems
            if (self.folder / f"{stem}.data").is_file()  # a damaged one may be deleted alone
        ]

    def _find(self, name: bytes) -> np.void | None:
        self._look()
        high, low = np.frombuffer(name, HIGH)
        place = int(np.searchsorted(self._high, high))
        while place < len(self._high) and self._high[place] == high:
            if self._rows[place]["low"] == low:
                return self._rows[place]
            place += 1
        return None


def sorted_rows(folder: Path, counts: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of these files, by the first half of their names."""
    total = sum(count for _, count in counts)
    high, rows, place = np.empty(total, HIGH), np.empty(total, ROW), 0
    for shard, (stem, count) in enumerate(counts):
        stored = np.fromfile(folder / f"{stem}.rows", STORED, count)
        size = (folder / f"{stem}.data").stat().st_size
        stored = stored[stored["offset"] + stored["size"] <= size]
        here = slice(place, place + len(stored))
        high[here] = stored["high"]
        for name in ROW.names:
            rows[name][here] = shard if name == "shard" else stored[name]
        place += len(stored)
    order = np.argsort(high[:place], kind="stable")
    return high[order], rows[order]


def write_table(path: Path, high: np.ndarray, rows: np.ndarray) -> BinaryIO:
    """Write a table whole or not at all, and take earlier ones away; who has mapped one keeps it.

    Returns:
        BinaryIO: the file, even if another process takes it away at once. Raises OSError.
    """
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}")
    earlier = [other for other in path.parent.glob("*.table") if other != path]
    try:
        with open(partial, "xb") as file:
            high.tofile(file)
            rows.tofile(file)
        table = open(partial, "rb")  # noqa: SIM115
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    for other in earlier:
        other.unlink(missing_ok=True)
    return table


def write_fully(file: BinaryIO, data: bytes) -> None:
    """Write all of it to an unbuffered file. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
