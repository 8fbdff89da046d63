"""TFRecord files of ``tf.train.Example``, as img2dataset and TensorFlow write them.

Nothing in them is compressed, so a picture is a range of bytes of the file, read like a tar's member. Which
features hold pictures is told by their first bytes.
"""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator

from ..columns import UnclearRoles
from ..paths import check_apart, join
from ..refs import Ref
from ..roles import roles_of
from ..storage import Storage
from ..tables import make_sample
from .arrow import map_file
from .findings import Finding, LeftOut, Note, Place, Reading, Refused

NAME = "tfrecords"
SUMMARY = "TFRecord files of examples with a picture and a text"
SUFFIX = re.compile(r"\.(tfrecords?|tfrec)$", re.IGNORECASE)
SHARD = re.compile(r"(\.(tfrecords?|tfrec)|\.tfrecord-\d+-of-\d+)$", re.IGNORECASE)
LENGTH = struct.Struct("<Q4x")  # and its checksum
CHECKSUM = 4  # bytes behind a record
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
BYTES, VARINT, SIXTY_FOUR, THIRTY_TWO = 2, 0, 1, 5  # wire types of protocol buffers
Span = tuple[int, int]


def recognise(place: Place) -> bool:
    """Whether there are TFRecord files."""
    return bool(record_files(place))


def record_files(place: Place) -> list[tuple[str, str]]:
    """(name, path) of the TFRecord files."""
    if not place.files:
        return [(place.source.rpartition("/")[2], place.source)] if SHARD.search(place.source) else []
    return [(name, join(place.source, name)) for name, _ in place.files if SHARD.search(name)]


def units(place: Place) -> Iterator[tuple[str, str] | LeftOut]:
    """Name and path of one file each."""
    files = record_files(place)
    check_apart([name for name, _ in files], SUFFIX)
    if place.files:
        taken, left = place.of_splits((name for name, _ in files), rows=True)
        yield left
        yield place.others(name for name, _ in files)
        files = [(name, path) for name, path in files if name in taken]
    yield from files


def files(unit: tuple[str, str]) -> list[Ref]:
    """What a unit is read from."""
    return [Ref(unit[1])]


def scan(unit: tuple[str, str], storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples of a file."""
    name, path = unit
    shard, left, row = SUFFIX.sub("", name), Counter(), 0
    try:
        data = memoryview(map_file(path)).cast("B")
        for span in records(data):
            key, row = f"{shard}/{row}", row + 1
            sample = one_sample(key, features(data, span), data, path, reading)
            if isinstance(sample, str):
                left[sample] += 1
            else:
                yield sample
    except (OSError, IndexError, struct.error) as error:
        yield Note(f"{name}: torn after record {row:,} ({error}).")
    if left:
        yield LeftOut(dict(left))


def one_sample(
    key: str, found: dict[str, list[Span]], data: memoryview, path: str, reading: Reading
) -> Finding | str:
    """The sample of an example, or the split that it is left out for. Raises UnclearRoles."""
    cells, record = {}, {}
    for name, spans in found.items():
        if spans and all(bytes(data[start : start + 4]).startswith(MAGIC) for start, _ in spans):
            cells[name] = [Ref(path, start, end - start) for start, end in spans]
            continue
        try:
            record[name] = [bytes(data[start:end]).decode() for start, end in spans]
        except UnicodeDecodeError:
            continue  # such as an embedding
    if not cells:
        return Refused(key, "no target picture")
    try:
        roles = roles_of(tuple(cells), tuple(name for name in record if record[name]), reading.columns)
    except UnclearRoles as error:
        raise UnclearRoles(f"{key}: {error.sentence}", error.command) from error
    flat = {name: values[0] if len(values) == 1 else values for name, values in record.items()}
    return make_sample(key, flat, cells, roles, reading)


def records(data: memoryview) -> Iterator[Span]:
    """Where the records of a TFRecord file lie. Raises IndexError where the last one is cut off."""
    place = 0
    while place < len(data):
        (length,) = LENGTH.unpack_from(data, place)
        start = place + LENGTH.size
        place = start + length + CHECKSUM
        if place > len(data):
            raise IndexError("cut off")
        yield start, start + length


def features(data: memoryview, example: Span) -> dict[str, list[Span]]:
    """Where the byte strings of every feature of an example lie; numbers are left out."""
    found: dict[str, list[Span]] = defaultdict(list)
    for _, whole in fields(data, example):  # features of the example
        for _, item in fields(data, whole):  # items of the map
            parts = dict(fields(data, item))
            name = bytes(data[slice(*parts[1])]).decode("utf-8", "backslashreplace")
            for kind, values in fields(data, parts[2]) if 2 in parts else ():
                if kind == 1:  # a list of bytes
                    found[name] += [span for _, span in fields(data, values)]
    return found


def fields(data: memoryview, span: Span) -> Iterator[tuple[int, Span]]:
    """Number and place of the length-delimited fields of a message. Raises IndexError if it is torn."""
    place, end = span
    while place < end:
        tag, place = varint(data, place)
        kind = tag & 7
        if kind == BYTES:
            length, place = varint(data, place)
            if place + length > end:
                raise IndexError("an example is damaged")
            yield tag >> 3, (place, place + length)
            place += length
        elif kind == VARINT:
            _, place = varint(data, place)
        elif kind in (SIXTY_FOUR, THIRTY_TWO):
            place += 8 if kind == SIXTY_FOUR else 4
        else:
            raise IndexError("no example")


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
