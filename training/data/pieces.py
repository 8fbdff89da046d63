"""Pieces of an index: what looking at one unit of a data set gave, as rows that are only put together later.

A piece is made in a worker, kept over interruptions, and read back from a finished index, so that nothing is
looked at twice. An index is its pieces in order, and does not depend on where they come from.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from .arrow_files import FILES, SAMPLES, UNITS
from .index import Entry, Index
from .layouts.findings import Refused
from .refs import Ref, Stamp
from .report import FIRST_NAMES, shape, side_class
from .roles import Roles
from .shards import NAME_BYTES
from .words import says_mask

SIZES = struct.Struct("<4Q")


@dataclass
class Examined:
    """What a worker found in one unit."""

    entries: list[Entry] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    roles: Counter[Roles | None] = field(default_factory=Counter)
    several: int = 0
    cut: int = 0

    def facts(self) -> dict[str, Any]:
        """What the report counts; what is none is left out."""
        reasons: dict[str, list[str]] = {}
        for item in self.refused:
            names = reasons.setdefault(item.reason, [])
            if len(names) < FIRST_NAMES:
                # file names may be no Unicode, and such a string cannot be printed
                names.append(item.key.encode(errors="backslashreplace").decode())
        facts = {
            "samples": len(self.entries),
            "masks": sum(entry.mask is not None for entry in self.entries),
            "inputs": Counter(str(len(entry.inputs)) for entry in self.entries),
            "sides": Counter(side_class(min(entry.width, entry.height)) for entry in self.entries),
            "shapes": Counter(shape(entry.width, entry.height) for entry in self.entries),
            "refused": Counter(item.reason for item in self.refused),
            "refused_first": reasons,
            "converted": self.converted,
            "ignored": self.ignored,
            "left_out": self.left_out,
            "columns": Counter(),
            "no_masks": Counter(),
            "several": self.several,
            "cut": self.cut,
            "notes": self.notes,
        }
        for roles, count in self.roles.items():
            facts["columns"][str(roles or "of the conversation")] += count
            for name in roles.unused if roles else ():
                if says_mask(name):
                    facts["no_masks"][name] += count
        return {name: value for name, value in facts.items() if value}


@dataclass(frozen=True)
class Piece:
    """What one unit gave.

    Attributes:
        samples: rows of ``samples.arrow``; their files are counted within the piece.
        files: rows of ``files.arrow``.
        facts: see :meth:`Examined.facts`.
        refused: lines of ``refused.jsonl``.
        fingerprint: of what of it decides on training: nothing of the place where the data set lies.
    """

    samples: pa.RecordBatch
    files: pa.RecordBatch
    facts: dict[str, Any]
    refused: bytes
    fingerprint: bytes

    def to_bytes(self) -> bytes:
        """All of it, see :func:`from_bytes`."""
        parts = [
            self.samples.serialize().to_pybytes(),
            self.files.serialize().to_pybytes(),
            json.dumps(self.facts).encode(),
            self.refused,
        ]
        return b"".join([SIZES.pack(*map(len, parts)), *parts, self.fingerprint])


def from_bytes(data: bytes) -> Piece:
    """A piece that was kept."""
    place, parts = SIZES.size, []
    for size in SIZES.unpack_from(data):
        parts.append(data[place : place + size])
        place += size
    samples = pa.ipc.read_record_batch(pa.py_buffer(parts[0]), SAMPLES)
    files = pa.ipc.read_record_batch(pa.py_buffer(parts[1]), FILES)
    return Piece(samples, files, json.loads(parts[2]), parts[3], data[place:])


def piece_of(examined: Examined, source: str, stamp_of: Callable[[Ref], Stamp]) -> Piece:
    """What was found as rows.

    Args:
        examined: what was found.
        source: root of the data set, to which paths are written relative.
        stamp_of: what the tar or table that a picture lies in is now.
    """
    prefix = source.rstrip("/") + "/"
    files: list[tuple] = []
    shared: dict[tuple, int] = {}
    rows = []
    for entry in examined.entries:
        refs = entry.pictures
        numbers = []
        for ref in refs:
            place = (ref.path.removeprefix(prefix), ref.column, ref.archive.rpartition("/")[2])
            number = None if ref.alone else shared.get(place)
            if number is None:
                number = len(files)
                stamp = ref.stamp or stamp_of(ref)
                files.append((*place, ref.alone, stamp.bytes, stamp.modified, stamp.digest))
                if not ref.alone:
                    shared[place] = number
            numbers.append(number)
        rows.append(
            (
                entry.key,
                entry.texts,
                entry.width,
                entry.height,
                entry.mask is not None,
                numbers,
                [ref.offset for ref in refs],
                [ref.size for ref in refs],
                [ref.row for ref in refs],
                [b"" if ref.alone else ref.digest for ref in refs],
            )
        )
    refused = "".join(json.dumps(asdict(item)) + "\n" for item in examined.refused).encode()
    fingerprint = hashlib.blake2b(digest_size=NAME_BYTES)
    for row in rows:
        fingerprint.update(repr(row).encode())
    for *place, size, modified, digest in files:
        # time counts only where contents are unknown: a copy of a data set is the same data set
        fingerprint.update(repr((*place, size, digest or modified)).encode())
    return Piece(batch(rows, SAMPLES), batch(files, FILES), examined.facts(), refused, fingerprint.digest())


def batch(rows: Sequence[tuple], schema: pa.Schema) -> pa.RecordBatch:
    """Rows as a record batch."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(list(column), kind.type) for column, kind in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def file_numbers(samples: pa.RecordBatch) -> np.ndarray:
    """The files of all pictures of some samples ``[pictures]``."""
    return samples.column("file").flatten().to_numpy()


def with_files(samples: pa.RecordBatch, numbers: np.ndarray) -> pa.RecordBatch:
    """Samples with other numbers of files ``[pictures]``."""
    place = samples.schema.get_field_index("file")
    offsets = samples.column(place).offsets.to_numpy()
    lists = pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), pa.array(numbers, pa.int32()))
    return samples.set_column(place, SAMPLES.field("file"), lists)


class IndexPieces:
    """The pieces that an index is made of, as they were made.

    Args:
        index: a finished one.

    Raises:
        ValueError: here or where a piece is read: the index is damaged.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        units = index.table("units.arrow")
        self._ends = np.cumsum(units.column("samples"), dtype=np.int64)
        self._refused_ends = np.cumsum(units.column("refused"), dtype=np.int64)
        self.names = [name for rows in units.batches() for name in rows.column("name").to_pylist()]
        self.numbers = list(
            zip(units.column("number").tolist(), units.column("within").tolist(), strict=True)
        )
        self._refused = open(index.folder / "refused.jsonl", "rb")  # noqa: SIM115

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Piece:
        unit = self.index.table("units.arrow").row(number)
        samples = self.index.table("samples.arrow").slice(
            int(self._ends[number]) - unit["samples"], unit["samples"]
        )
        known, local = np.unique(file_numbers(samples), return_inverse=True)
        files = self.index.table("files.arrow").take(known)
        self._refused.seek(int(self._refused_ends[number]) - unit["refused"])
        refused = self._refused.read(unit["refused"])
        return Piece(
            with_files(samples, local), files, json.loads(unit["facts"]), refused, unit["fingerprint"]
        )

    def close(self) -> None:
        """Close the file of what was refused."""
        self._refused.close()


def unit_row(name: bytes, number: tuple[int, int], piece: Piece) -> pa.RecordBatch:
    """The row of ``units.arrow`` of a piece."""
    row = (name, *number, piece.fingerprint, len(piece.samples), len(piece.refused), json.dumps(piece.facts))
    return batch([row], UNITS)
