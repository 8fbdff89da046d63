"""Lance data sets, read through their own reader, which finds any row in place (``pip install pylance``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..paths import join
from ..refs import Ref
from ..roles import Roles
from ..storage import Storage
from ..tables import find_columns, is_list, read_columns, samples_of
from .findings import CHUNK, Finding, LeftOut, Place, Reading

NAME = "lance"
SUMMARY = "Lance data sets with a column of pictures and one of texts"
FOLDER = re.compile(r"(?P<folder>.*?\.lance)/_versions/")


@dataclass(frozen=True)
class Unit:
    """Some rows of a data set."""

    name: str
    path: str
    roles: Roles
    columns: tuple[str, ...]
    start: int
    stop: int
    version: int


def recognise(place: Place) -> bool:
    """Whether there is a Lance data set."""
    return bool(folders_of(place))


def folders_of(place: Place) -> list[str]:
    """The data sets below a folder, relative to it; "" if it is one itself."""
    manifests = list(place.files.ending(".manifest"))
    if any(name.startswith("_versions/") for name in manifests):
        return [""]
    return sorted({match["folder"] for name in manifests if (match := FOLDER.match(name))})


def units(place: Place) -> Iterator[Unit | LeftOut]:
    """Some rows each. Raises ValueError if the reader is not installed, or columns are unclear."""
    storage = Storage()
    folders = folders_of(place)
    taken, left = place.of_splits((folder for folder in folders if folder), rows=True)
    yield left
    for folder in folders:
        if folder and folder not in taken:
            continue
        path = join(place.source, folder) if folder else place.source
        table = storage.lance(path)
        roles = find_columns(table.schema, path, place.reading.columns)
        for field in roles.pictures:
            if is_list(table.schema.field(field.name).type):
                raise ValueError(
                    f"{path}: column {field.name} holds lists of pictures; write one column for each."
                )
        columns, count = tuple(read_columns(table.schema, roles)), table.count_rows()
        name = folder.removesuffix(".lance") or path.rstrip("/").rpartition("/")[2].removesuffix(".lance")
        for start in range(0, count, CHUNK):
            yield Unit(name, path, roles, columns, start, min(start + CHUNK, count), table.version)


def files(unit: Unit) -> list[Ref]:
    """What a unit is read from, which its version tells."""
    return []


def scan(unit: Unit, storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples of some rows."""
    rows = range(unit.start, unit.stop)
    records = storage.lance(unit.path).take(list(rows), columns=list(unit.columns)).to_pylist()
    names = [field.name for field in unit.roles.pictures]
    cells = ({name: [Ref(unit.path, 0, -1, row, name)] for name in names} for row in rows)
    yield from samples_of(unit.name, zip(rows, records, cells, strict=True), unit.roles, reading)
