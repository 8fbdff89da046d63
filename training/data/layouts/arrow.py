"""Folders that ``Dataset.save_to_disk`` of `datasets` wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .. import splits
from ..paths import filesystem, is_url, join, parent
from ..refs import Ref
from ..storage import Storage
from ..tables import find_columns, is_list, make_sample, read_columns
from .findings import Finding, LeftOut, Note, Place, Reading

NAME = "datasets"
SUMMARY = "a folder that Dataset.save_to_disk wrote"


def recognise(place: Place) -> bool:
    """Whether the files that save_to_disk writes are there."""
    return "state.json" in place.files or "dataset_dict.json" in place.files


def folders_of(place: Place) -> tuple[list[str], LeftOut]:
    """The folders of the splits that are read, and which splits are not. Raises ValueError."""
    if "dataset_dict.json" not in place.files:
        return [""], LeftOut({})
    names = json.loads(Storage().read(Ref(join(place.source, "dataset_dict.json"))))["splits"]
    marked = [(name, splits.canonical(name)) for name in names]
    taken, left = splits.choose(marked, place.reading.splits, place.source)
    return [f"{name}/" for name in taken], LeftOut(dict(left))


def units(place: Place) -> Iterator[tuple[str, str] | LeftOut]:
    """Name and path of one Arrow file each."""
    folders, left = folders_of(place)
    yield left
    for folder in folders:
        listed = json.loads(Storage().read(Ref(join(place.source, f"{folder}state.json"))))["_data_files"]
        for item in listed:
            name = folder + item["filename"]
            yield name.removesuffix(".arrow"), join(place.source, name)


def files(unit: tuple[str, str]) -> list[Ref]:
    """What a unit is read from."""
    return [Ref(unit[1])]


def scan(unit: tuple[str, str], storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples of an Arrow file.

    Nothing in it is compressed, so a picture is a range of bytes of the file, read like a tar's member.
    """
    name, path = unit
    row, left = 0, Counter()
    try:
        mapped = map_file(path)
        with pa.ipc.open_stream(mapped) as stream:
            roles = find_columns(stream.schema, path, reading.columns)
            pictures = {field.name for field in roles.pictures}
            columns = read_columns(stream.schema, roles)
            for batch in stream:
                cells = {column: byte_ranges(batch.column(column), mapped, path) for column in pictures}
                for i, record in enumerate(batch.select(columns).to_pylist()):
                    own = {column: cells[column][i] for column in pictures}
                    sample = make_sample(f"{name}/{row}", record, own, roles, reading)
                    row += 1
                    if isinstance(sample, str):
                        left[sample] += 1
                    else:
                        yield sample
    except (pa.ArrowException, OSError) as error:
        yield Note(f"{name}: torn after row {row:,} ({error}).")
    if left:
        yield LeftOut(dict(left))


def map_file(path: str) -> pa.Buffer:
    """The bytes of a file: mapped if it is local, else read."""
    if not is_url(path):
        return pa.memory_map(path).read_buffer()
    files, inner = filesystem(path)
    return pa.py_buffer(files.cat_file(inner))


def byte_ranges(column: pa.Array, mapped: pa.Buffer, path: str) -> list[list[Ref]]:
    """Where the pictures of every cell lie in the file."""
    if is_list(column.type):
        items = byte_ranges(column.values, mapped, path)
        bounds = column.offsets.to_pylist()
        return [
            [ref for item in items[start:end] for ref in item]
            for start, end in zip(bounds, bounds[1:], strict=False)
        ]
    names, filled = [None] * len(column), column.is_valid()
    if pa.types.is_struct(column.type):
        if "path" in [column.type.field(i).name for i in range(column.type.num_fields)]:
            names = column.field("path").to_pylist()
        column = column.field("bytes")
        filled = pc.and_(filled, column.is_valid())
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    bounds = np.frombuffer(column.buffers()[1], width)[column.offset : column.offset + len(column) + 1]
    base = column.buffers()[2].address - mapped.address if column.buffers()[2] else 0
    if not 0 <= base <= mapped.size:
        raise pa.ArrowInvalid("compressed; save it without compression")
    ranges = []
    for i, valid in enumerate(filled.to_pylist()):
        if valid:
            ranges.append([Ref(path, base + int(bounds[i]), int(bounds[i + 1] - bounds[i]))])
        else:  # `datasets` keeps only the name of a picture that it did not copy
            ranges.append([Ref(join(parent(path), names[i]))] if names[i] else [])
    return ranges
