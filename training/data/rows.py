"""Rows of CSV files, none of which costs another."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from .pictures import is_picture_name

SEPARATORS = ",;\t|"
SAID = re.compile(r"sep=(.)\s*")  # Excel's
LONGEST = 2**24  # characters of one record; beyond that the file is taken for broken


@dataclass(frozen=True)
class Broken:
    """A record that is none, with what is wrong; ``last`` if nothing after it can be read."""

    reason: str
    detail: str = ""
    last: bool = False


def read_table(file: TextIO, name: str, delimiter: str) -> Iterator[dict[str, str] | Broken]:
    """Rows of a CSV file by column. One that does not fit its header costs itself and none of the next.

    A quote that is not closed would make one cell of all rows down to the next quote, so the rows that it
    took are read again.

    Args:
        file: opened with ``newline=""``.
        name: of the file.
        delimiter: between cells, if the header has it: Excel writes ``;`` in half of the world.

    Raises:
        ValueError: two columns have one name, or there is no header.
    """
    waiting: list[str] = []
    header: list[str] = []
    while True:
        line = waiting.pop() if waiting else file.readline()
        if not line:
            return
        if not line.strip():
            continue
        if not header and (said := SAID.fullmatch(line)):
            delimiter = said[1]
            continue
        if not header and delimiter not in line:
            delimiter = max(delimiter, *SEPARATORS, key=line.count)
        lines = [line]
        row = parse_row(lines, delimiter)
        while row is None and (more := waiting.pop() if waiting else file.readline()):
            lines.append(more)
            row = parse_row(lines, delimiter)
        if row is None:
            row = Broken("a quote is not closed")
        elif not header:
            header = [] if isinstance(row, Broken) else [cell.strip() for cell in row]
            if any(is_picture_name(column) and not column.startswith(".") for column in header):
                raise ValueError(
                    f"{name} has no header, its first row is {', '.join(header)[:60]}; put the names of the "
                    "columns above it, such as image,caption."
                )
            for column in header:
                if header.count(column) > 1:
                    raise ValueError(f"{name}: two columns are called {column!r}; rename one.")
            continue
        elif not isinstance(row, Broken) and len(row) != len(header):
            row = Broken("row has more or fewer cells than columns", f"{len(row)} for {len(header)}")
        elif not isinstance(row, Broken) and any(resembles(more, row, delimiter) for more in lines[1:]):
            row = Broken("a quote is not closed")
        if isinstance(row, Broken):
            waiting += reversed(lines[1:])
            yield row
        else:
            yield dict(zip(header, row, strict=True))


def parse_row(lines: list[str], delimiter: str) -> list[str] | Broken | None:
    """The cells of lines that are one row; None if a quote is still open."""
    if sum(map(len, lines)) > LONGEST:
        return Broken("a quote is not closed")
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return None
        if "field limit" in str(error):
            return Broken(f"cell is longer than {csv.field_size_limit():,} characters")
        return Broken("a quote is not closed", str(error))


def resembles(line: str, row: list[str], delimiter: str) -> bool:
    """Whether a line within a row is a row of its own: as many cells, and pictures where that has them."""
    other = parse_row([line], delimiter)
    if not isinstance(other, list) or len(other) != len(row):
        return False
    named = [place for place, cell in enumerate(row) if is_picture_name(cell)]
    return bool(named) and all(is_picture_name(other[place]) for place in named)
