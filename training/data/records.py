"""Records of JSON arrays, JSON lines and CSV files, one at a time, and what they say of a sample."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from .layouts.findings import INPUTS, PICTURES, TARGETS, first, text_of

BLOCK = 2**20  # characters that are read at once
LONGEST = 2**24  # characters of one record; beyond that the file is taken for broken
GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Broken:
    """A record that is none, with what is wrong; ``last`` if nothing after it can be read."""

    reason: str
    last: bool = False


@dataclass(frozen=True)
class Named:
    """A sample whose pictures are named, not yet found."""

    text: str
    target: str
    inputs: tuple[str, ...]


def read_records(file: TextIO, name: str) -> Iterator[Any | Broken]:
    """The records of a list in order, never all in memory.

    Args:
        file: opened with ``newline=""``.
        name: of the file; ``.csv`` is one, anything else is a JSON array if it starts with ``[``, else lines.
    """
    if name.lower().endswith(".csv"):
        yield from csv.DictReader(file)
        return
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    yield from read_array(file) if start == "[" else read_lines(file, start)


def read_lines(file: TextIO, start: str) -> Iterator[Any | Broken]:
    """JSON lines; ``start`` was read already. A broken line costs one record."""
    for line in file:
        line, start = start + line, ""
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                yield Broken(f"no JSON: {error}")


def read_array(file: TextIO) -> Iterator[Any | Broken]:
    """The items of a JSON array whose ``[`` was read already."""
    decoder, text, place, read = json.JSONDecoder(), "", 0, 1
    while True:
        place = GAP.match(text, place).end()
        if text.startswith("]", place):
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except ValueError as error:
            more = file.read(BLOCK) if len(text) - place < LONGEST else ""
            if not more:
                at = read - len(text) + place
                yield Broken(f"torn at character {at:,} ({getattr(error, 'msg', error)})", last=True)
                return
            text, place, read = text[place:] + more, 0, read + len(more)
            continue
        yield value


def parse_record(record: Any) -> Named | str:
    """What a record names, or in words what it lacks.

    ``conversations`` with a list ``image`` is the layout of GPT-Image-Edit: the last picture is the target,
    the first thing that the human says is the text, with ``<image>`` where the pictures go.
    """
    if not isinstance(record, Mapping):
        return "record is no JSON object"
    target, inputs = first(record, TARGETS), names_of(first(record, INPUTS))
    if target is None:
        *more, target = names_of(first(record, PICTURES)) or (None,)
        inputs = inputs + tuple(more)
    else:
        target = (names_of(target) or (None,))[-1]
    if target is None or None in inputs:
        return "record names no picture"
    text = spoken(record["conversations"]) if "conversations" in record else text_of(record, bool(inputs))
    if text is None:
        return "record has no text"
    return Named(text, target, inputs)


def names_of(value: Any) -> tuple[str | None, ...]:
    """File names in a field: one, several, or as ``{"path": …}``; None for what is no name."""
    if value is None:
        return ()
    items = value if isinstance(value, (list, tuple)) else (value,)
    items = (item.get("path") if isinstance(item, Mapping) else item for item in items)
    return tuple(item if isinstance(item, str) and item.strip() else None for item in items)


def spoken(turns: Any) -> str | None:
    """The first thing that the human says, without the marks of pictures."""
    if not isinstance(turns, list):
        return None
    said = [turn.get("value") for turn in turns if isinstance(turn, Mapping) and turn.get("from") == "human"]
    if not said or not isinstance(said[0], str):
        return None
    return said[0].replace("<image>", "").strip()
