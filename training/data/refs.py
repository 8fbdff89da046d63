"""Where the bytes of a picture lie, and whether they are still those that were indexed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

DIGEST_BYTES = 12
BLOCK, BLOCKS = 4 * 2**10, 16  # bytes, and how many of them stand for a large file


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file was when it was indexed.

    Attributes:
        bytes: its size.
        modified: when it was last written, nanoseconds; -1 if unknown, as behind a URL.
        digest: of the contents of a file with one picture, see :func:`digest_of`, or of a part of those of a
            tar or table, see :func:`sample_of`; empty if it was not read.
    """

    bytes: int
    modified: int
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Ref:
    """Where the bytes of one picture lie.

    Attributes:
        path: local path or fsspec URL.
        offset: first byte in the file, or in the uncompressed archive; of a table's row: number of the
            picture where the cell is a list.
        size: in bytes; -1 = to the end of the file.
        row: row of a Parquet file; -1 = no table.
        column: column of that table.
        archive: file that :func:`~.archives.describe_archive` wrote of a compressed or split archive, or "".
        digest: of the picture's bytes, see :func:`digest_of`; empty if only its head was read.
        stamp: of the file as it was indexed, or None.
    """

    path: str
    offset: int = 0
    size: int = -1
    row: int = -1
    column: str = ""
    archive: str = ""
    digest: bytes = b""
    stamp: Stamp | None = None

    @property
    def alone(self) -> bool:
        """Whether the file holds this picture and nothing else."""
        return self.size < 0 and self.row < 0


def digest_of(data: bytes) -> bytes:
    """A hash of a picture's bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def sample_of(size: int, read: Callable[[int, int], bytes]) -> bytes:
    """A hash of some blocks that are spread over a file, the first and the last among them.

    Args:
        size: of the file, bytes.
        read: (start, count) → bytes.
    """
    last = max(0, size - BLOCK)
    starts = sorted({last * number // (BLOCKS - 1) for number in range(BLOCKS)})
    state = hashlib.blake2b(str(size).encode(), digest_size=DIGEST_BYTES)
    for start in starts:
        state.update(read(start, min(BLOCK, size - start)))
    return state.digest()


class Changed(OSError):
    """A file is another than it was when it was indexed."""


def check_stamp(path: str, stamp: Stamp, size: int, modified: int, digest: Callable[[], bytes]) -> None:
    """Raise Changed if a file is another than it was when it was indexed.

    A copy that kept the contents but not the time is the same file.

    Args:
        path: of the file.
        stamp: as it was.
        size: as it is.
        modified: as it is.
        digest: computes the digest as it is, where the time does not tell.
    """
    if size == stamp.bytes and (modified == stamp.modified or -1 in (modified, stamp.modified)):
        return
    if size != stamp.bytes or not stamp.digest or digest() != stamp.digest:
        raise Changed(f"{path} is another file than was indexed; index the data set again.")
