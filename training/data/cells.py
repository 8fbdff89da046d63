"""Pictures in the cells of tables."""

from __future__ import annotations

from typing import Any

from .refs import Ref


def picture_in(cell: Any, ref: Ref) -> bytes:
    """The picture in a cell of a table. Raises OSError."""
    data = cell["bytes"] if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise OSError(f"Row {ref.row} of {ref.path} holds no picture in column {ref.column}.")
    return data


def find_group(metadata: Any, ref: Ref) -> tuple[int, int]:
    """Row group of a row of a Parquet file, and its number in it. Raises OSError."""
    row = ref.row
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if row < count:
            return group, row
        row -= count
    raise OSError(f"{ref.path} has {metadata.num_rows} rows, so no row {ref.row}; index it again.")
