"""Bytes of one picture: a file, a part of a tar or a row of a table, on disk or behind a URL."""

from __future__ import annotations

import io
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

from .cells import find_group, picture_in
from .paths import filesystem, is_url, join, parent
from .ranges import GZIP_BUFFER, Ranges, inflate, open_gzip, read_fully
from .refs import Changed, Ref, Stamp, check_stamp, digest_of, sample_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from lance import LanceDataset

OPEN_FILES = 64  # per process; the oldest is closed
TABLE_CACHE = 256 * 2**20  # bytes of decoded row groups that one process keeps
HEADER = 32 * 2**10  # bytes read at once where only the head of a picture is wanted
LANCE = ".lance"  # end of the folder of a Lance data set
DEFLATED = "deflate.json"  # end of the description of an archive whose members are compressed one by one


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
        self._stamps: dict[tuple[str, str], Stamp] = {}

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self._forget()

    def read(self, ref: Ref) -> bytes:
        """The bytes of a picture.

        Raises:
            OSError: the file is gone, another than it was when it was indexed, or cannot be read.
        """
        data = self._read(ref)
        if ref.digest and digest_of(data) != ref.digest:
            what = "is another file" if ref.alone else "holds another picture"
            raise Changed(f"{ref.path} {what} than was indexed; index the data set again.")
        return data

    def _read(self, ref: Ref) -> bytes:
        if ref.row >= 0:
            return self._read_cell(ref)
        if ref.size < 0:
            data, modified = self._read_file(ref.path)
            if ref.stamp and not ref.digest:
                check_stamp(ref.path, ref.stamp, len(data), modified, bytes)
            return data
        data = self.read_range(ref, 0, ref.size)
        return inflate(data, ref.path) if ref.archive.endswith(DEFLATED) else data

    def open(self, ref: Ref, ahead: int = HEADER) -> BinaryIO:
        """A picture as a file, read ``ahead`` bytes at a time; a cell or what is deflated as a whole."""
        if ref.row >= 0 or ref.archive.endswith(DEFLATED):
            return io.BytesIO(self.read(ref))
        size = self.size(ref.path) if ref.size < 0 else ref.size
        whole = Ref(ref.path, ref.offset, size, archive=ref.archive)
        return io.BufferedReader(
            Ranges(lambda start, count: self.read_range(whole, start, count), size), ahead
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

    def stamp(self, ref: Ref) -> Stamp:
        """The file that holds a picture as it is now; a tar or table is looked at once. Raises OSError.

        What holds one picture gets no digest here: that is the picture's own.
        """
        if ref.alone:
            if is_url(ref.path):
                return Stamp(self.size(ref.path), -1)
            facts = os.stat(ref.path)
            return Stamp(facts.st_size, facts.st_mtime_ns)
        key = (ref.path, ref.archive)
        if key not in self._stamps:
            size, modified = self.facts(ref)
            digest = b"" if ref.path.endswith(LANCE) else self._sample(ref)
            self._stamps[key] = Stamp(size, modified, digest)
        return self._stamps[key]

    def check(self, ref: Ref) -> None:
        """Raise OSError if the file of a picture is gone, Changed if it is another than its stamp says.

        Where the time differs contents count: all of them of a file with one picture, if its digest is known.
        """
        size, modified = self.facts(ref)
        check_stamp(
            ref.path,
            ref.stamp,
            size,
            modified,
            lambda: digest_of(self._read_file(ref.path)[0]) if ref.alone else self._sample(ref),
        )

    def facts(self, ref: Ref) -> tuple[int, int]:
        """Size and time of a file, or of all parts of an archive; the time is -1 if unknown."""
        paths = [path for path, _ in self._parts(ref)] if ref.archive else [ref.path]
        if is_url(ref.path) or ref.path.endswith(LANCE):
            return sum(map(self.size, paths)), -1
        facts = [os.stat(path) for path in paths]
        return sum(fact.st_size for fact in facts), max(fact.st_mtime_ns for fact in facts)

    def _sample(self, ref: Ref) -> bytes:
        """A hash of a part of what lies in a file, or in all parts of an archive."""
        parts = self._parts(ref) if ref.archive else [(ref.path, self.size(ref.path))]
        file = self.open_parts(parts).raw

        def read(start: int, count: int) -> bytes:
            file.seek(start)
            return read_fully(file, count)

        return sample_of(sum(size for _, size in parts), read)

    def _parts(self, ref: Ref) -> list[tuple[str, int]]:
        """Paths and sizes of the files of a compressed or split archive."""
        with open(ref.archive, encoding="utf-8") as file:
            parts = json.load(file)["parts"]
        return [(join(parent(ref.path), name), size) for name, size in parts]

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
            seek_points = json.load(file)["seek_points"]
        whole = self.open_parts(self._parts(ref))
        if seek_points is None:
            return whole
        return open_gzip(whole, os.path.join(os.path.dirname(ref.archive), seek_points))

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

        return io.BufferedReader(Ranges(read, total), GZIP_BUFFER)

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
