"""Tars and zips read in place: plain, compressed, and split into parts. Nothing is ever unpacked."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .paths import join
from .ranges import open_gzip
from .refs import Ref
from .storage import DEFLATED, Storage

# "hqedit.tar.gz.part001", "x.tar.gz.aa", "x.tar.002", "x.tar.split.000", "x.zip.001"
PART = re.compile(
    r"(?P<whole>.+\.(?:tar|tar\.gz|tgz|zip))[._-]?(?:part|split|chunk)?[._-]?(?:\d+|(?!gz|xz)[a-z]{2})",
    re.IGNORECASE,
)
ARCHIVE = re.compile(r".+\.(tar|tar\.gz|tgz|zip)", re.IGNORECASE)
WALKED = 4096  # bytes read for each header of a tar, which is enough for a text behind it and the next header
LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a zip: lengths of its name and of what follows that


@dataclass(frozen=True)
class Archive:
    """One archive.

    Attributes:
        name: path relative to the data set, without the number of a part.
        path: the same, absolute or a URL.
        parts: (path, bytes) of its files in order.
    """

    name: str
    path: str
    parts: tuple[tuple[str, int], ...]

    @property
    def compressed(self) -> bool:
        """Whether it is gzip."""
        return self.name.lower().endswith((".gz", ".tgz"))

    @property
    def is_zip(self) -> bool:
        """Whether it is a zip."""
        return self.name.lower().endswith(".zip")


@dataclass(frozen=True)
class Member:
    """One file in an archive; ``offset`` counts uncompressed bytes."""

    name: str
    offset: int
    size: int


class Torn(Exception):
    """An archive ends or breaks off at byte ``offset`` (uncompressed)."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"torn at byte {offset} ({reason})")


def find_archives(root: str, files: Iterable[tuple[str, int]]) -> list[Archive]:
    """The archives among files, sorted by name, with the parts of split ones together.

    Raises:
        ValueError: a part is missing.
    """
    whole: dict[str, list[tuple[str, int]]] = {}
    for name, size in files:
        split = PART.fullmatch(name)
        if split or ARCHIVE.fullmatch(name):
            whole.setdefault(split["whole"] if split else name, []).append((name, size))
    archives = []
    for name, parts in sorted(whole.items()):
        check_numbers(name, [part for part, _ in parts])
        paths = tuple((join(root, part), size) for part, size in parts)
        archives.append(Archive(name, join(root, name), paths))
    return archives


def description_path(scratch: Path, archive: Archive) -> Path:
    """Where a compressed or split archive is described in the index that is being written."""
    return scratch / f"archive-{hashlib.blake2b(archive.name.encode(), digest_size=8).hexdigest()}.json"


def check_numbers(name: str, parts: list[str]) -> None:
    """Raise ValueError if the numbers of an archive's parts have a gap."""
    numbers = [int(found[0]) for part in parts if (found := re.search(r"\d+$", part[len(name) :]))]
    for number, expected in zip(numbers, range(numbers[0] if numbers[:1] == [0] else 1, 2**31), strict=False):
        if number != expected:
            raise ValueError(f"Part {expected} of {name} is missing (there is {parts[0]}, …); fetch it.")


def members(archive: Archive, storage: Storage, description: Path) -> Iterator[tuple[Member, Ref]]:
    """Every regular file of an archive with its place, in the order of the archive; hidden ones are left out.

    A plain tar is walked from header to header. A compressed one is decompressed twice from end to end: for
    the seek points by which it is read at random later, and for its headers. That is 4 times as fast as once
    with seeks, each of which would decompress from the last seek point on.

    Args:
        archive: what to walk.
        storage: reads it.
        description: where a compressed or split archive is described; ``.gzidx`` beside it.

    Raises:
        Torn: after the last whole member.
        ValueError: a zip that is encrypted, or compressed otherwise than by deflate.
    """
    find = zip_members if archive.is_zip else tar_members
    for member, ref in find(archive, storage, description):
        if not any(part.startswith((".", "__MACOSX")) for part in member.name.split("/")):
            yield member, ref


def zip_members(archive: Archive, storage: Storage, description: Path) -> Iterator[tuple[Member, Ref]]:
    """The members of a zip as its directory lists them; the ``Ref.size`` of a deflated one is compressed."""
    parts = list(archive.parts)
    names = [(path.rpartition("/")[2], length) for path, length in parts]
    deflated = description.with_name(f"{description.stem}-{DEFLATED}")
    stored = description if len(parts) > 1 else None
    if stored:
        describe_archive(str(stored), names, None)
    try:
        whole = storage.open_parts(parts)
        listing = zipfile.ZipFile(whole).infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise Torn(0, f"no whole zip: {error}") from error
    for info in listing:
        if info.is_dir():
            continue
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = "encrypted" if info.flag_bits & 1 else "compressed otherwise than by deflate"
            raise ValueError(f"{archive.name} is {kind}; unpack it, or pack it again with `zip -0`.")
        whole.seek(info.header_offset)
        start = (
            info.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(whole.read(LOCAL_HEADER.size)))
        )
        packed = info.compress_type == zipfile.ZIP_DEFLATED
        if packed and not deflated.exists():
            describe_archive(str(deflated), names, None)
        told = str(deflated) if packed else str(stored or "")
        yield (
            Member(info.filename, start, info.file_size),
            Ref(archive.path, start, info.compress_size, archive=told),
        )


def tar_members(archive: Archive, storage: Storage, description: Path) -> Iterator[tuple[Member, Ref]]:
    """The members of a tar; see :func:`members`."""
    if len(archive.parts) == 1 and not archive.compressed:
        path, size = archive.parts[0]
        with storage.open(Ref(path, 0, size), WALKED) as file:
            for member in walk(file, size):
                yield member, Ref(archive.path, member.offset, member.size)
        return
    points = description.with_suffix(".gzidx") if archive.compressed else None
    whole, size = storage.open_parts(list(archive.parts)), sum(size for _, size in archive.parts)
    if points:
        save_seek_points(whole, points)
        whole.seek(0)
        whole, size = gzip.GzipFile(fileobj=whole), None
    names = [(path.rpartition("/")[2], length) for path, length in archive.parts]
    describe_archive(str(description), names, points.name if points else None)
    with whole:
        for member in walk(whole, size):
            place = Ref(archive.path, member.offset, member.size, archive=str(description))
            yield member, place


def describe_archive(path: str, parts: list[tuple[str, int]], seek_points: str | None) -> None:
    """Write what :class:`Storage` needs to read a compressed or split archive at random.

    Args:
        path: of the description, a JSON file.
        parts: (file name, bytes) of the parts in order; they lie in the folder of ``Ref.path``.
        seek_points: name of indexed_gzip's file beside ``path``, or None if nothing is compressed.
    """
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"parts": parts, "seek_points": seek_points}, file)


def save_seek_points(file: BinaryIO, path: Path) -> None:
    """Write the seek points of a gzip file; of a torn one those before the tear, which its walk will find."""
    seekable = open_gzip(file)
    with contextlib.suppress(OSError, ValueError):
        seekable.build_full_index()
    seekable.export_index(str(path))


def walk(file: BinaryIO, size: int | None) -> Iterator[Member]:
    """The regular files of an uncompressed tar. ``size`` is that of the tar, None if unknown. Raises Torn."""
    try:
        # odd names become readable ones instead of strings that Arrow refuses
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="backslashreplace")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise Torn(0, f"no tar: {error}") from error
    tar.offset = 0  # the constructor has read the first header
    while True:
        start = tar.offset
        try:
            member, regular, wanted = next_member(file, tar)
            end = member.offset + member.size
            if regular and size is None:
                file.seek(end - 1 if member.size else end)
                ended = member.size > 0 and not file.read(1)
            else:
                ended = size is not None and regular and end > size
        except tarfile.EOFHeaderError:
            return  # the block of zeros that ends a tar
        except tarfile.EmptyHeaderError:
            raise Torn(start, "the mark of its end is missing") from None
        except (tarfile.HeaderError, OSError, EOFError, ValueError, zlib.error) as error:
            raise Torn(start, str(error)) from error
        if ended:
            raise Torn(start, f"{member.name} is cut off")
        if wanted:
            yield member


def next_member(file: BinaryIO, tar: tarfile.TarFile) -> tuple[Member, bool, bool]:
    """The member whose header is next, whether it is a file, and whether it can be read in place."""
    file.seek(tar.offset)
    member = None if tar.pax_headers else plain_member(file.read(tarfile.BLOCKSIZE), tar.offset)
    if member:
        tar.offset = member.offset + member.size + -member.size % tarfile.BLOCKSIZE
        return member, True, True
    file.seek(tar.offset)
    info = tarfile.TarInfo.fromtarfile(tar)
    member = Member(info.name.removeprefix("./"), info.offset_data, info.size)
    return member, info.isreg(), info.isreg() and info.sparse is None


def plain_member(block: bytes, start: int) -> Member | None:
    """The file that a header of a tar names, if it is a plain one; None of any other, which `tarfile` reads.

    Nearly all headers are plain, and `tarfile` takes 5 times as long for each.

    Args:
        block: the header.
        start: where it lies.
    """
    name, size, told = block[:100], block[124:136].strip(b" \0"), block[148:156].strip(b" \0")
    if block[156:157] not in (b"0", b"\0") or not (size.isdigit() and told.isdigit()):
        return None
    try:
        if sum(block) - sum(block[148:156]) + 8 * ord(" ") != int(told, 8):
            return None
        length = int(size, 8)
    except ValueError:  # digits that are none of octal numbers
        return None
    parts = [part.partition(b"\0")[0] for part in (block[345:500], name)]
    path = b"/".join(filter(None, parts)).decode("utf-8", "backslashreplace")
    if path.endswith("/"):  # a folder, as old tars have it
        return None
    return Member(path.removeprefix("./"), start + tarfile.BLOCKSIZE, length)
