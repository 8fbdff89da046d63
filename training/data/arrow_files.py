"""Rows in Arrow IPC files of batches of equal length: row i is found without a search, through a map."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

BATCH = 8192  # rows of a record batch
SAMPLES = pa.schema(
    {
        "key": pa.string(),
        "text": pa.list_(pa.string()),  # its wordings, one but where the position in training chooses
        "width": pa.int32(),
        "height": pa.int32(),
        "mask": pa.bool_(),  # whether the last picture is the target's mask
        # one item per picture, the target first
        "file": pa.list_(pa.int32()),
        "offset": pa.list_(pa.int64()),
        "size": pa.list_(pa.int64()),
        "row": pa.list_(pa.int32()),
        "digest": pa.list_(pa.binary()),  # of the picture, empty if unknown or that of its file
    }
)
FILES = pa.schema(
    {
        "path": pa.string(),
        "column": pa.string(),
        "archive": pa.string(),
        "alone": pa.bool_(),  # whether it holds one picture
        # see refs.Stamp
        "bytes": pa.int64(),
        "modified": pa.int64(),
        "digest": pa.binary(),
    }
)
UNITS = pa.schema(
    {
        "name": pa.binary(),  # what it was made of and how, see units.unit_name
        # which one, and which part of it if it was divided
        "number": pa.int32(),
        "within": pa.int32(),
        "fingerprint": pa.binary(),  # of its rows
        "samples": pa.int32(),
        "refused": pa.int64(),  # bytes of its lines in refused.jsonl
        "facts": pa.string(),  # JSON, what the report counts
    }
)
ARROW_FILES = {"samples.arrow": SAMPLES, "files.arrow": FILES, "units.arrow": UNITS}


class Rows:
    """Rows of an Arrow IPC file whose batches have :data:`BATCH` rows each (the last one fewer).

    Args:
        path: of the file.
        sums: of its batches, see :func:`batch_sum`; None of an index from before there were any.

    Raises:
        ValueError: bytes of it are not those that were written; here, or where they are first read.
    """

    def __init__(self, path: Path, sums: Sequence[int] | None = None) -> None:
        self._path, self._sums = path, sums
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise self._damaged() from error
        if not self._file.schema.equals(ARROW_FILES[path.name]):
            raise self._damaged()
        if sums is not None and self._file.num_record_batches != len(sums):
            raise self._damaged()
        self._batches: dict[int, pa.RecordBatch] = {}

    def row(self, number: int) -> dict[str, Any]:
        """Its values by column name."""
        batch = self._batch(number // BATCH)
        place = number % BATCH
        return {name: batch.column(i)[place].as_py() for i, name in enumerate(batch.schema.names)}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All of them, mapped, not read."""
        return map(self._batch, range(self._file.num_record_batches))

    def column(self, name: str) -> np.ndarray:
        """A column of numbers as an array ``[n]``."""
        parts = [batch.column(name).to_numpy() for batch in self.batches()]
        empty = np.zeros(0, self._file.schema.field(name).type.to_pandas_dtype())
        return np.concatenate([empty, *parts])

    def slice(self, first: int, count: int) -> pa.RecordBatch:
        """Some rows that follow each other."""
        numbers = range(first // BATCH, -(-(first + count) // BATCH))
        table = pa.Table.from_batches(map(self._batch, numbers), self._file.schema)
        return one_batch(table.slice(first % BATCH, count))

    def take(self, numbers: np.ndarray) -> pa.RecordBatch:
        """The rows of these numbers, which are sorted."""
        cuts = np.flatnonzero(np.diff(numbers // BATCH)) + 1
        runs = [run for run in np.split(numbers, cuts) if len(run)]
        taken = [self._batch(int(run[0]) // BATCH).take(pa.array(run % BATCH)) for run in runs]
        return one_batch(pa.Table.from_batches(taken, self._file.schema))

    def _batch(self, number: int) -> pa.RecordBatch:
        if number not in self._batches:
            try:
                batch = self._file.get_batch(number)
                batch.validate(full=self._sums is None)  # Arrow itself trusts offsets, and would crash
            except (pa.ArrowException, OSError) as error:
                raise self._damaged() from error
            if self._sums is not None and batch_sum(batch) != self._sums[number]:
                raise self._damaged()
            self._batches[number] = batch
        return self._batches[number]

    def _damaged(self) -> ValueError:
        return ValueError(f"{self._path} is damaged; index the data set again.")


def batch_sum(batch: pa.RecordBatch) -> int:
    """CRC-32 of what is in a batch and how it is laid out; 1 ms for 8,192 rows."""
    return zlib.crc32(batch.serialize())


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """A table as one record batch."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


class RowWriter:
    """Record batches of any length into an Arrow IPC file of equal ones."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._waiting: list[pa.RecordBatch] = []
        self._count = 0  # of rows that wait
        self.rows = 0  # all that were added
        self.sums: list[int] = []  # of the batches

    def add(self, rows: pa.RecordBatch) -> None:
        """Append rows."""
        self._waiting.append(rows)
        self._count += len(rows)
        self.rows += len(rows)
        if self._count >= BATCH:
            table = pa.Table.from_batches(self._waiting, self._schema)
            whole = self._count // BATCH * BATCH
            for first in range(0, whole, BATCH):
                self._write(table.slice(first, BATCH))
            self._waiting = table.slice(whole).to_batches()
            self._count -= whole

    def _write(self, table: pa.Table) -> None:
        batch = one_batch(table)
        self._writer.write_batch(batch)
        self.sums.append(batch_sum(batch))

    def close(self) -> None:
        """Write what waits."""
        if self._count:
            self._write(pa.Table.from_batches(self._waiting, self._schema))
        self._writer.close()
        self._file.close()
