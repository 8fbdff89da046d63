"""The samples of an index in buckets of one target size: row numbers in a file that all processes map.

It lies beside the index and is made once, batch by batch, so that neither making nor reading it takes memory
in proportion to the number of samples, whatever the number of processes. Where nothing can be written beside
the index, each training process makes one for itself and its workers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..run.lock import wait_for
from .index import Index
from .pictures import nearest_buckets

COUNT, ROW = np.dtype("<i8"), np.dtype("<i4")


class Rows:
    """Row numbers of one bucket. Sent to other processes as its place; mapped when first used.

    Args:
        path: of the file.
        first: byte where they begin.
        count: of them.
    """

    def __init__(self, path: Path, first: int, count: int) -> None:
        self.path, self.first, self.count = path, first, count
        self._mapped: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mapped": None}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int | slice) -> int | np.ndarray:
        if self._mapped is None:
            empty = np.zeros(0, ROW)  # what has no bytes cannot be mapped
            shape = (self.count,)
            self._mapped = np.memmap(self.path, ROW, "r", self.first, shape) if self.count else empty
        return self._mapped[place] if isinstance(place, slice) else int(self._mapped[place])


def bucket_rows(
    index: Index, sizes: Sequence[tuple[int, int]], exclude: Sequence[str], lenient: bool
) -> list[Rows]:
    """The rows of an index by bucket, without those that are left out.

    Args:
        index: a data set.
        sizes: (width, height) of every bucket.
        exclude: globs, see :meth:`.index.Index.selected`.
        lenient: whether a glob may fit no key.

    Raises:
        ValueError: a glob fits none.
    """
    asked = repr((index.fingerprint, list(sizes), list(exclude), lenient)).encode()
    name = f"buckets-{hashlib.blake2b(asked, digest_size=8).hexdigest()}.rows"
    path = index.folder / name
    if not path.is_file():
        path = path if os.access(path.parent, os.W_OK) else own_folder() / name
        with wait_for(path.parent / ".buckets.lock"):  # of the processes of a run one makes it
            if not path.is_file():
                write_rows(path, index, sizes, exclude, lenient)
    counts = np.fromfile(path, COUNT, len(sizes)).tolist()
    rows, first = [], COUNT.itemsize * len(sizes)
    for count in counts:
        rows.append(Rows(path, first, count))
        first += count * ROW.itemsize
    return rows


@lru_cache(maxsize=1)
def kept_folder(process: int) -> tempfile.TemporaryDirectory:
    """A folder that lives as long as a process."""
    return tempfile.TemporaryDirectory(prefix="tbac-uniimage-")


def own_folder() -> Path:
    """A folder that lives as long as this process."""
    return Path(kept_folder(os.getpid()).name)


def write_rows(
    path: Path, index: Index, sizes: Sequence[tuple[int, int]], exclude: Sequence[str], lenient: bool
) -> None:
    """Write the counts of all buckets and then their rows, whole or not at all."""
    with ExitStack() as stack:
        parts: list[BinaryIO] = [stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in sizes]
        counts = np.zeros(len(sizes), COUNT)
        for rows, shapes in index.scan(exclude, lenient):
            nearest = nearest_buckets(shapes, sizes) if len(sizes) > 1 else np.zeros(len(rows), int)
            for bucket in np.unique(nearest).tolist():
                mine = rows[nearest == bucket].astype(ROW)
                parts[bucket].write(mine.tobytes())
                counts[bucket] += len(mine)
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            file.write(counts.tobytes())
            for part in parts:
                part.seek(0)
                shutil.copyfileobj(part, file, 2**20)
        partial.replace(path)
