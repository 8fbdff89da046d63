"""Parquet files with pictures inside, such as OmniEdit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..paths import check_apart, join
from ..refs import Ref
from ..roles import Roles
from ..storage import Storage
from ..tables import find_columns, holds_pictures, is_list, read_columns, samples_of
from .findings import Finding, Note, Place, Reading

NAME = "parquet"
SUMMARY = "Parquet files with a column of pictures and one of texts"
SUFFIX = re.compile(r"\.(parquet|pq)$", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """One row group."""

    name: str
    path: str
    roles: Roles
    columns: tuple[str, ...]
    group: int
    first_row: int


def recognise(place: Place) -> bool:
    """Whether there are Parquet files with pictures inside; what only tells of pictures is none."""
    storage = Storage()
    for _, path in parquet_files(place):
        try:
            return any(holds_pictures(field.type) for field in storage.table(path).schema_arrow)
        except OSError:
            continue
    return bool(parquet_files(place))


def parquet_files(place: Place) -> list[tuple[str, str]]:
    """(name, path) of the Parquet files."""
    if not place.files and SUFFIX.search(place.source):
        return [(place.source.rpartition("/")[2], place.source)]
    return [(name, join(place.source, name)) for name in place.files.ending(".parquet", ".pq")]


def units(place: Place) -> Iterator[Unit | Finding]:
    """The row groups of all files; the texts of a group and its pictures are read once."""
    storage = Storage()
    files = parquet_files(place)
    check_apart([name for name, _ in files], SUFFIX)
    if place.files:
        taken, left = place.of_splits((name for name, _ in files), rows=True)
        yield left
        yield place.others(name for name, _ in files)
        files = [(name, path) for name, path in files if name in taken]
    for name, path in files:
        try:
            table = storage.table(path)
        except OSError as error:
            yield Note(f"{name}: {error}")
            continue
        roles = find_columns(table.schema_arrow, path, place.reading.columns)
        columns = tuple(read_columns(table.schema_arrow, roles))
        row = 0
        for group in range(table.num_row_groups):
            yield Unit(SUFFIX.sub("", name), path, roles, columns, group, row)
            row += table.metadata.row_group(group).num_rows


def files(unit: Unit) -> list[Ref]:
    """What a unit is read from."""
    return [Ref(unit.path)]


def scan(unit: Unit, storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples of a row group."""
    pictures = {field.name for field in unit.roles.pictures}
    try:
        # the texts and not the pictures, which are read when they are looked at
        table = storage.table(unit.path).read_row_group(unit.group, columns=list(unit.columns))
        records = table.select(list(unit.columns)).to_pylist()
        counts = {name: cell_counts(storage.group(unit.path, unit.group, name)) for name in pictures}
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        yield Note(f"{unit.name}: row group {unit.group} cannot be read ({error}).")
        return
    rows = range(unit.first_row, unit.first_row + len(records))
    cells = (
        {
            name: [Ref(unit.path, item, -1, row, name) for item in range(counts[name][row - rows.start])]
            for name in pictures
        }
        for row in rows
    )
    yield from samples_of(unit.name, zip(rows, records, cells, strict=True), unit.roles, reading)


def cell_counts(column: pa.ChunkedArray) -> list[int]:
    """Number of pictures in every cell: 0 where there is none, more than 1 in lists only."""
    if is_list(column.type):
        return [count or 0 for count in pc.list_value_length(column).to_pylist()]
    if pa.types.is_struct(column.type):  # such as a picture that could not be fetched
        filled = pc.and_(column.is_valid(), pc.is_valid(pc.struct_field(column, "bytes")))
        return [int(valid) for valid in filled.to_pylist()]
    return [int(valid) for valid in column.is_valid().to_pylist()]
