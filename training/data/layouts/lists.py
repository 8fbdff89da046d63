"""Lists that name picture files: JSON arrays, JSON lines, CSV, and ``data.txt`` that names such lists.

ShareGPT-4o-Image and OpenGPT-4o-Image (``text_to_image.json``, ``text_and_image_to_image.json``),
GPT-Image-Edit-1.5M (``data.txt`` and ``conversations``), image folders of `datasets` with ``metadata.jsonl``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..names import Names
from ..paths import absolute, join, list_files, parent
from ..pictures import SUFFIXES
from ..records import Broken, parse_record, read_records
from ..storage import Ref, Storage
from .findings import CHUNK, Found, Note, Place, Refused, chunked

NAME = "lists"
SUMMARY = "JSON, JSON-lines or CSV lists of picture files and texts, or a data.txt of root,json,flag"
KINDS = (".json", ".jsonl", ".csv")
METADATA = ("metadata.jsonl", "metadata.csv")
PEEK = 2**16  # characters


@dataclass(frozen=True)
class List:
    """One list: what it is called in keys, where it is, and where its pictures are."""

    name: str
    path: str
    root: str


def recognise(place: Place) -> bool:
    """Whether there is a list that names pictures."""
    return bool(find_lists(place))


def find_lists(place: Place) -> list[List]:
    """The lists of a data set, sorted by name."""
    if not place.files:
        return one_list(place, os.path.basename(place.source), parent(place.source))
    pictured = {
        stem for stem, dot, kind in (name.rpartition(".") for name, _ in place.files) if is_picture(kind)
    }
    lists = []
    for name, _ in place.files:
        below, _, base = name.rpartition("/")
        # a .json that belongs to one picture is no list
        if base in METADATA or (not below and name.rpartition(".")[0] not in pictured):
            lists += one_list(place, name, place.source)
    return lists


def is_picture(suffix: str) -> bool:
    """Whether a suffix, without its dot, is one of a picture."""
    return f".{suffix.lower()}" in SUFFIXES


def one_list(place: Place, name: str, folder: str) -> list[List]:
    """The lists that a file is or names; none if it is something else."""
    path = join(folder, name)
    if name.lower().endswith(".txt"):
        return lists_of_roots(place, path)
    if not name.lower().endswith(KINDS):
        return []
    with open_text(path) as file:
        start = io.StringIO(file.read(PEEK), newline="")
    record = next(read_records(start, name), None)
    if isinstance(record, Broken) or record is None or isinstance(parse_record(record), str):
        return []
    below = name.rpartition("/")[0] if name.rpartition("/")[2] in METADATA else ""
    root = place.images or (join(folder, below) if below else folder)
    return [List(name.rpartition(".")[0], path, root)]


def lists_of_roots(place: Place, path: str) -> list[List]:
    """The lists of a file of lines ``root,json,flag``; the flag, a weighting of the loss, is ignored."""
    with open_text(path) as file:
        lines = [[part.strip() for part in line.split(",")] for line in file.read(PEEK).splitlines()]
    lines = [line for line in lines if line != [""]]
    if not lines or not all(len(line) in (2, 3) and line[1].endswith(KINDS) for line in lines):
        return []
    folder = parent(path)
    return [
        List(
            line[1].rpartition(".")[0], join(folder, line[1]), absolute(join(place.images or folder, line[0]))
        )
        for line in lines
    ]


def open_text(path: str) -> io.TextIOWrapper:
    """A text file. Raises ValueError if it is not there."""
    try:
        file = Storage().open(Ref(path))
    except FileNotFoundError as error:
        raise ValueError(f"There is no list at {path}; check the path.") from error
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")


def units(place: Place) -> Iterator[list[Found | Refused | Note]]:
    """Some samples each, their pictures found already: that takes one table of all names."""
    tables: dict[str, Names] = {}
    storage = Storage()
    for listed in find_lists(place):
        if listed.root not in tables:
            files = place.files if listed.root == place.source else list_files(listed.root)
            tables[listed.root] = Names(listed.root, files, place.scratch, storage, place.say)
            yield [Note(text) for text in tables[listed.root].notes]
        yield from chunked(samples_of(listed, tables[listed.root]), CHUNK)


def samples_of(listed: List, names: Names) -> Iterator[Found | Refused | Note]:
    """The samples of one list in its order."""
    with open_text(listed.path) as file:
        for number, record in enumerate(read_records(file, listed.path)):
            key = f"{listed.name}/{number}"
            if isinstance(record, Broken) and record.last:
                yield Note(f"{listed.path}: {record.reason}; {number:,} records before that were read.")
            elif isinstance(record, Broken):
                yield Refused(key, "record is no JSON", record.reason)
            else:
                yield find_pictures(key, record, names)


def find_pictures(key: str, record: object, names: Names) -> Found | Refused:
    """The sample of a record."""
    named = parse_record(record)
    if isinstance(named, str):
        return Refused(key, named)
    key = f"{key}:{named.target}"
    found = {name: names.find(name) for name in (named.target, *named.inputs)}
    missing = [name for name, ref in found.items() if ref is None]
    if missing:
        return Refused(key, "picture file is missing", ", ".join(missing))
    return Found(key, named.text, found[named.target], tuple(found[name] for name in named.inputs))


def scan(unit: list[Found | Refused | Note], storage: Storage) -> Iterator[Found | Refused | Note]:
    """The samples, which were found already."""
    yield from unit
