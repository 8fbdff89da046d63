"""MosaicML's streaming format, MDS, read in place: a picture is a range of bytes of a shard.

Its own reader unpacks shards into a cache and holds transformers below 5, so the format is read here:
``index.json`` names columns and shards; a shard begins with the places of its samples, a sample with the
sizes of the columns that have no fixed one.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..columns import UnclearRoles
from ..paths import join
from ..refs import Ref
from ..roles import Roles, roles_of
from ..storage import Storage
from ..tables import samples_of
from .arrow import map_file
from .findings import Finding, LeftOut, Note, Place, Reading

NAME = "mds"
SUMMARY = "MosaicML MDS shards with their index.json"
PICTURES, TEXT = ("jpeg", "png", "bytes"), "str"
NO_FILES = ("pil", "jpeg_array", "jpegarray", "ndarray")  # pixels, or pictures within a list


@dataclass(frozen=True)
class Shard:
    """One shard: its name in keys, path, and columns as (name, encoding, bytes or None)."""

    name: str
    path: str
    columns: tuple[tuple[str, str, int | None], ...]


def recognise(place: Place) -> bool:
    """Whether there is an index.json of MDS."""
    return any(True for _ in indexes(place))


def indexes(place: Place) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Folder of every index.json of MDS, and its shards."""
    for name in place.files.ending(".json"):
        if posixpath.basename(name) != "index.json":
            continue
        try:
            shards = json.loads(Storage().read(Ref(join(place.source, name))))["shards"]
            if shards and all(shard["format"] == "mds" for shard in shards):
                yield posixpath.dirname(name), shards
        except (ValueError, KeyError, TypeError):
            continue


def units(place: Place) -> Iterator[Shard | LeftOut]:
    """One shard each. Raises ValueError if one is compressed or missing."""
    found = dict(indexes(place))
    taken, left = place.of_splits((posixpath.join(folder, "index.json") for folder in found), rows=True)
    yield left
    for folder, shards in found.items():
        for shard in shards if posixpath.join(folder, "index.json") in taken else ():
            name = posixpath.join(folder, shard["raw_data"]["basename"])
            if name not in place.files:
                packed = (shard.get("zip_data") or {}).get("basename")
                raise ValueError(
                    f"{place.source} has {packed} and not {name}; unpack it: "
                    f"zstd -d --rm {join(place.source, folder)}/*.zstd"
                    if packed
                    else f"{place.source} lacks {name}, which its index.json names; fetch it."
                )
            columns = zip(
                shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True
            )
            yield Shard(name.removesuffix(".mds"), join(place.source, name), tuple(columns))


def files(unit: Shard) -> list[Ref]:
    """What a unit is read from."""
    return [Ref(unit.path)]


def scan(unit: Shard, storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples of a shard."""
    roles = find_roles(unit, reading)
    try:
        data = memoryview(map_file(unit.path))
        count = int(np.frombuffer(data, np.uint32, 1)[0])
        bounds = np.frombuffer(data, np.uint32, count + 1, 4).tolist()
        if bounds[-1] > len(data):
            yield Note(f"{unit.name}: the shard is cut off; its last samples are missing.")
    except (OSError, ValueError) as error:
        yield Note(f"{unit.name}: no whole shard ({error}).")
        return
    whole = [start for start, end in zip(bounds, bounds[1:], strict=False) if end <= len(data)]
    rows = ((row, *read_sample(unit, data, start)) for row, start in enumerate(whole))
    yield from samples_of(unit.name, rows, roles, reading)


def find_roles(unit: Shard, reading: Reading) -> Roles:
    """What the columns are. Raises ValueError."""
    pictures = tuple(name for name, encoding, _ in unit.columns if encoding in PICTURES)
    for name, encoding, _ in unit.columns:
        if encoding.split(":")[0] in NO_FILES or encoding.startswith("list["):
            raise ValueError(
                f"{unit.path}: column {name} is encoded as {encoding}, not as a picture file; write the set "
                "again with jpeg or png."
            )
    texts = tuple(name for name, encoding, _ in unit.columns if encoding == TEXT)
    try:
        return roles_of(pictures, texts, reading.columns)
    except UnclearRoles as error:
        raise UnclearRoles(f"{unit.path}: {error.sentence}", error.command) from error


def read_sample(unit: Shard, data: memoryview, start: int) -> tuple[dict[str, str], dict[str, list[Ref]]]:
    """Texts and pictures of a sample by column."""
    open_sizes = sum(size is None for _, _, size in unit.columns)
    sizes = iter(np.frombuffer(data, np.uint32, open_sizes, start).tolist())
    place = start + 4 * open_sizes
    cells, record = {}, {}
    for name, encoding, fixed in unit.columns:
        size = next(sizes) if fixed is None else fixed
        if encoding in PICTURES:
            cells[name] = [Ref(unit.path, place, size)] if size else []
        elif encoding == TEXT:
            record[name] = bytes(data[place : place + size]).decode("utf-8", "replace")
        place += size
    return record, cells
