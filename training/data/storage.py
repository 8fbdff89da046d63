"""Bytes of one picture: a file, a part of a tar or a row of a table, on disk or behind a URL."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from .paths import filesystem, is_url, join, parent

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from indexed_gzip import IndexedGzipFile
    from lance import LanceDataset

OPEN_FILES = 64  # per process; the oldest is closed
TABLE_CACHE = 256 * 2**20  # bytes of decoded row groups that one process keeps
HEADER = 32 * 2**10  # bytes read at once where only the head of a picture is wanted
GZIP_BUFFER = 2**20
LANCE = ".lance"  # end of the folder of a Lance data set
DEFLATED = "deflate.json"  # end of the description of an archive whose members are compressed one by one


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file with one picture was when it was indexed.

    Attributes:
        bytes: its size.
        modified: when it was last written, nanoseconds; -1 if unknown, as behind a URL.
        digest: of its contents, see :func:`digest_of`; "" if it was not read to its end.
    """

    bytes: int
    modified: int
    digest: str


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
        stamp: of a file with this picture alone, as it was indexed, or None.
    """

    path: str
    offset: int = 0
    size: int = -1
    row: int = -1
    column: str = ""
    archive: str = ""
    stamp: Stamp | None = None


class Storage:
    """Reads pictures by their :class:`Ref`. One per process; keeps files open.

    It may be pickled and forked: a new process starts without open files.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int, str], Any] = OrderedDict()

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self._forget()

    def read(self, ref: Ref) -> bytes:
        """The bytes of a picture.

        Raises:
            OSError: the file is gone, another than it was when it was indexed, or cannot be read.
        """
        if ref.row >= 0:
            return self._read_cell(ref)
        if ref.size < 0:
            data, modified = self._read_file(ref.path)
            if ref.stamp:
                check_stamp(ref.path, ref.stamp, len(data), modified, lambda: data)
            return data
        data = self.read_range(ref, 0, ref.size)
        return inflate(data, ref.path) if ref.archive.endswith(DEFLATED) else data

    def open(self, ref: Ref) -> BinaryIO:
        """A picture as a seekable file that is read piece by piece; a cell or what is deflated at once."""
        if ref.row >= 0 or ref.archive.endswith(DEFLATED):
            return io.BytesIO(self.read(ref))
        size = self.size(ref.path) if ref.size < 0 else ref.size
        whole = Ref(ref.path, ref.offset, size, archive=ref.archive)
        return io.BufferedReader(
            Pieces(lambda start, count: self.read_range(whole, start, count), size), HEADER
        )

    def size(self, path: str) -> int:
        """Bytes of a file; of a Lance data set its version. Raises OSError."""
        if path.endswith(LANCE):
            return self.lance(path).version
        if not is_url(path):
            return os.path.getsize(path)
        files, inner = self._filesystem(path)
        return int(files.size(inner))

    def read_range(self, ref: Ref, start: int, count: int) -> bytes:
        """``count`` bytes from byte ``start`` of a picture on. Raises OSError where there are fewer."""
        first = ref.offset + start
        if ref.archive:
            file = self._handle("archive", ref.archive, lambda: self._open_archive(ref))
            try:
                # unbuffered: what lies behind the picture is not wanted
                file.raw.seek(first)
                data = read_fully(file.raw, count)
            except ValueError as error:  # indexed_gzip's, of a place beyond the end
                raise OSError(f"{ref.path} cannot be read at byte {first} ({error}).") from error
        elif is_url(ref.path):
            data = self._fetch(ref.path, first, first + count)
        else:
            file = self._handle("file", ref.path, lambda: open(ref.path, "rb", buffering=0))  # noqa: SIM115
            file.seek(first)
            data = read_fully(file, count)
        if len(data) != count:
            raise OSError(f"{ref.path} ends {count - len(data)} bytes too early; index it again.")
        return data

    def stamp(self, path: str, data: bytes | None) -> Stamp:
        """A file as it is now; with its contents, if they were read. Raises OSError."""
        digest = "" if data is None else digest_of(data)
        if is_url(path):
            return Stamp(self.size(path) if data is None else len(data), -1, digest)
        facts = os.stat(path)
        return Stamp(facts.st_size, facts.st_mtime_ns, digest)

    def check(self, path: str, stamp: Stamp) -> None:
        """Raise OSError if a file is gone or another than it was; where the time differs contents count."""
        now = self.stamp(path, None)
        check_stamp(path, stamp, now.bytes, now.modified, lambda: self._read_file(path)[0])

    def _read_file(self, path: str) -> tuple[bytes, int]:
        """The contents of a file, and when it was last written."""
        if is_url(path):
            return self._fetch(path), -1
        with open(path, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns

    def _fetch(self, url: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes of a URL. Raises OSError, whatever the file system's own client raises."""
        files, inner = self._filesystem(url)
        try:
            return files.cat_file(inner, start=start, end=end)
        except OSError:
            raise
        except Exception as error:  # of aiohttp, httpx, botocore …: nothing they share
            raise OSError(f"{url} cannot be read ({error}).") from error

    def _read_cell(self, ref: Ref) -> bytes:
        """One picture of a table; see :meth:`group` for the cost of Parquet. Lance finds a row in place."""
        if ref.path.endswith(LANCE):
            row = self.lance(ref.path).take([ref.row], columns=[ref.column]).column(0)[0].as_py()
            return picture_in(row, ref)
        group, row = find_group(self.table(ref.path).metadata, ref)
        cell = self.group(ref.path, group, ref.column)[row].as_py()
        if isinstance(cell, list):
            cell = cell[ref.offset] if ref.offset < len(cell) else None
        return picture_in(cell, ref)

    def lance(self, path: str) -> LanceDataset:
        """A Lance data set, kept open. Raises OSError, or ValueError if its reader is not installed."""
        try:
            import lance
        except ImportError as error:
            raise ValueError(
                f"{path} is a Lance data set; install its reader: pip install pylance."
            ) from error
        try:
            return self._handle("lance", path, lambda: lance.dataset(path))
        except ValueError as error:
            raise OSError(f"{path} cannot be opened ({error}).") from error

    def table(self, path: str) -> pq.ParquetFile:
        """A Parquet file, kept open. Raises OSError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return self._handle("table", path, lambda: pq.ParquetFile(self._open_source(path)))
        except pa.ArrowException as error:
            raise OSError(f"{path} is no whole Parquet file ({error}).") from error

    def group(self, path: str, number: int, column: str) -> pa.ChunkedArray:
        """A column of one row group of a Parquet file, kept while there is memory. Raises OSError.

        Cost: Parquet has no random access to a row. The whole column of the row's group (100 rows in what
        `datasets` writes, about 100 MB of OmniEdit) is read and decoded. In random order that happens for
        nearly every picture: where it limits a run, rewrite the set as tars.
        """
        import pyarrow as pa

        table = self.table(path)
        key = (path, number, column)
        if key not in self._groups:
            try:
                self._groups[key] = table.read_row_group(number, columns=[column]).column(0)
            except pa.ArrowException as error:
                raise OSError(f"Row group {number} of {path} cannot be read ({error}).") from error
            while len(self._groups) > 1 and sum(g.nbytes for g in self._groups.values()) > TABLE_CACHE:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _open_source(self, path: str) -> Any:
        """A table for pyarrow."""
        if not is_url(path):
            return path
        files, inner = self._filesystem(path)
        return files.open(inner, "rb")

    def _open_archive(self, ref: Ref) -> io.BufferedReader:
        """An archive as the one uncompressed file that it was."""
        with open(ref.archive, encoding="utf-8") as file:
            description = json.load(file)
        folder = parent(ref.path)
        parts = [(join(folder, name), size) for name, size in description["parts"]]
        whole = self.open_parts(parts)
        if description["seek_points"] is None:
            return whole
        points = os.path.join(os.path.dirname(ref.archive), description["seek_points"])
        return open_gzip(whole, points)

    def open_parts(self, parts: list[tuple[str, int]]) -> io.BufferedReader:
        """Files of known size as one file, never copied."""
        ends, total = [], 0
        for _, size in parts:
            total += size
            ends.append(total)

        def read(start: int, count: int) -> bytes:
            # the part that holds the first byte gives what it has; the caller asks again for the rest
            number = next(i for i, end in enumerate(ends) if start < end)
            path, size = parts[number]
            within = start - (ends[number] - size)
            return self.read_range(Ref(path), within, min(count, size - within))

        return io.BufferedReader(Pieces(read, total), GZIP_BUFFER)

    def _filesystem(self, url: str) -> tuple[Any, str]:
        """The file system of a URL, made once; fsspec's own objects must not cross a fork."""
        protocol, _, rest = url.partition("://")
        files, _ = self._handle(
            "filesystem", f"{protocol}://{rest.partition('/')[0]}", lambda: filesystem(url)
        )
        return files, files._strip_protocol(url)

    def _handle(self, kind: str, name: str, opened: Callable[[], Any]) -> Any:
        """What was opened under this name before, or now."""
        if self._process != os.getpid():
            self._forget()
        key = (kind, name)
        if key not in self._open:
            self._open[key] = opened()
            while len(self._open) > OPEN_FILES:
                oldest = self._open.popitem(last=False)[1]
                if hasattr(oldest, "close"):
                    oldest.close()
        self._open.move_to_end(key)
        return self._open[key]


class Pieces(io.RawIOBase):
    """A read-only file over a function (start, count) → bytes."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read, self._size, self._position = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._position)
        if count <= 0:
            return 0
        data = self._read(self._position, count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def read_fully(file: BinaryIO, count: int) -> bytes:
    """``count`` bytes of an unbuffered file, fewer at its end."""
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


def picture_in(cell: Any, ref: Ref) -> bytes:
    """The picture in a cell of a table. Raises OSError."""
    data = cell["bytes"] if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise OSError(f"Row {ref.row} of {ref.path} holds no picture in column {ref.column}.")
    return data


def digest_of(data: bytes) -> str:
    """A hash of a file's contents."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def check_stamp(path: str, stamp: Stamp, size: int, modified: int, read: Callable[[], bytes]) -> None:
    """Raise OSError if a file is another than it was when it was indexed.

    A copy that kept the contents but not the time is the same file.
    """
    if size == stamp.bytes and (modified == stamp.modified or -1 in (modified, stamp.modified)):
        return
    if size != stamp.bytes or not stamp.digest or digest_of(read()) != stamp.digest:
        raise OSError(f"{path} is another file than was indexed; index the data set again.")


def inflate(data: bytes, path: str) -> bytes:
    """What a member of a zip holds. Raises OSError."""
    try:
        return zlib.decompress(data, -zlib.MAX_WBITS)
    except zlib.error as error:
        raise OSError(f"{path} is damaged ({error}).") from error


def open_gzip(file: BinaryIO, seek_points: str | None = None) -> IndexedGzipFile:
    """A gzip file with random access.

    A seek point every 4 MiB costs 32 KiB of disk (0.8 %). A read decompresses up to 4 MiB that nobody asked
    for, 0.4 ms for pictures; with 8 MiB it is 3 ms. Without ``seek_points``, ``build_full_index`` finds them
    and ``export_index`` saves them.
    """
    from indexed_gzip import IndexedGzipFile

    return IndexedGzipFile(fileobj=file, index_file=seek_points, spacing=2**22, buffer_size=GZIP_BUFFER)


def find_group(metadata: Any, ref: Ref) -> tuple[int, int]:
    """Row group of a row of a Parquet file, and its number in it. Raises OSError."""
    row = ref.row
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if row < count:
            return group, row
        row -= count
    raise OSError(f"{ref.path} has {metadata.num_rows} rows, so no row {ref.row}; index it again.")
