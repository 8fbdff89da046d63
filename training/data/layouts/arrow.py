"""Folders that ``Dataset.save_to_disk`` of `datasets` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..paths import filesystem, is_url, join, parent
from ..storage import Ref, Storage
from ..tables import find_columns, is_list, make_sample
from .findings import Found, Note, Place, Refused

NAME = "datasets"
SUMMARY = "a folder that Dataset.save_to_disk wrote"


def recognise(place: Place) -> bool:
    """Whether the files that save_to_disk writes are there."""
    return bool(arrow_files(place))


def arrow_files(place: Place) -> list[tuple[str, str]]:
    """(name, path) of the Arrow files of a saved data set, of ``train`` if it was saved with splits.

    Raises:
        ValueError: splits, but none is called train.
    """
    names = [name for name, _ in place.files]
    start = ""
    if "dataset_dict.json" in names:
        splits = json.loads(Storage().read(Ref(join(place.source, "dataset_dict.json"))))["splits"]
        if "train" not in splits:
            raise ValueError(f"{place.source} has the splits {', '.join(splits)}; give the folder of one.")
        start = "train/"
    if f"{start}state.json" not in names:
        return []
    listed = json.loads(Storage().read(Ref(join(place.source, f"{start}state.json"))))["_data_files"]
    return [(start + item["filename"], join(place.source, start + item["filename"])) for item in listed]


def units(place: Place) -> Iterator[tuple[str, str]]:
    """Name and path of one Arrow file each."""
    for name, path in arrow_files(place):
        yield name.removesuffix(".arrow"), path


def scan(unit: tuple[str, str], storage: Storage) -> Iterator[Found | Refused | Note]:
    """The samples of an Arrow file.

    Nothing in it is compressed, so a picture is a range of bytes of the file, read like a tar's member.
    """
    name, path = unit
    row = 0
    try:
        mapped = map_file(path)
        with pa.ipc.open_stream(mapped) as stream:
            columns = find_columns(stream.schema, path)
            for batch in stream:
                pictures = (columns.target, *columns.inputs)
                cells = {column: byte_ranges(batch.column(column), mapped, path) for column in pictures}
                for i, record in enumerate(batch.select(list(columns.texts)).to_pylist()):
                    targets = cells[columns.target][i]
                    inputs = [ref for column in columns.inputs for ref in cells[column][i]]
                    yield make_sample(f"{name}/{row}", record, targets[-1] if targets else None, inputs)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        yield Note(f"{name}: torn after row {row:,} ({error}).")


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
