"""Parquet files with pictures inside, such as OmniEdit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..paths import join
from ..storage import Ref, Storage
from ..tables import Columns, find_columns, is_list, make_sample
from .findings import Found, Note, Place, Refused

NAME = "parquet"
SUMMARY = "Parquet files with a column of pictures and one of texts"


@dataclass(frozen=True)
class Unit:
    """One row group."""

    name: str
    path: str
    columns: Columns
    group: int
    first_row: int


def recognise(place: Place) -> bool:
    """Whether there are Parquet files."""
    return bool(parquet_files(place))


def parquet_files(place: Place) -> list[tuple[str, str]]:
    """(name, path) of the Parquet files."""
    if not place.files and place.source.endswith(".parquet"):
        return [(place.source.rpartition("/")[2], place.source)]
    return [(name, join(place.source, name)) for name, _ in place.files if name.endswith(".parquet")]


def units(place: Place) -> Iterator[Unit | Note]:
    """The row groups of all files; the texts of a group and its pictures are read once."""
    storage = Storage()
    for name, path in parquet_files(place):
        try:
            table = storage.table(path)
        except OSError as error:
            yield Note(f"{name}: {error}")
            continue
        columns = find_columns(table.schema_arrow, path)
        row = 0
        for group in range(table.num_row_groups):
            yield Unit(name.removesuffix(".parquet"), path, columns, group, row)
            row += table.metadata.row_group(group).num_rows


def scan(unit: Unit | Note, storage: Storage) -> Iterator[Found | Refused | Note]:
    """The samples of a row group."""
    if isinstance(unit, Note):
        yield unit
        return
    columns = unit.columns
    try:
        # the texts and not the pictures, which are read when they are looked at
        records = storage.table(unit.path).read_row_group(unit.group, columns=list(columns.texts)).to_pylist()
        counts = {name: cell_counts(storage.group(unit.path, unit.group, name)) for name in columns.inputs}
    except (OSError, pa.ArrowException) as error:
        yield Note(f"{unit.name}: row group {unit.group} cannot be read ({error}).")
        return
    for i, record in enumerate(records):
        row = unit.first_row + i
        inputs = [
            Ref(unit.path, item, -1, row, name) for name in columns.inputs for item in range(counts[name][i])
        ]
        yield make_sample(f"{unit.name}/{row}", record, Ref(unit.path, 0, -1, row, columns.target), inputs)


def cell_counts(column: pa.ChunkedArray) -> list[int]:
    """Number of pictures in every cell: 0 where there is none, more than 1 in lists only."""
    if is_list(column.type):
        return [count or 0 for count in pc.list_value_length(column).to_pylist()]
    return [int(valid) for valid in column.is_valid().to_pylist()]
