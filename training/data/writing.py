"""Writing an index: its pieces in order become one set of files."""

from __future__ import annotations

import hashlib
import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .arrow_files import ARROW_FILES, Rows, RowWriter
from .index import FORMAT, manifest_sum
from .pieces import Piece, file_numbers, unit_row, with_files


class IndexWriter:
    """Writes the files of an index, piece by piece.

    Args:
        folder: exists; the caller renames it when all is done. It may hold descriptions of archives.
        source: root of the data set, to which paths are relative.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.folder, self.source = folder, source
        self._tables = {name: RowWriter(folder / name, schema) for name, schema in ARROW_FILES.items()}
        self._refused = open(folder / "refused.jsonl", "wb")  # noqa: SIM115
        self._shared: dict[tuple[str, str, str], int] = {}
        self._keys = array("Q")  # 8 bytes a sample
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, name: bytes, number: tuple[int, int], piece: Piece) -> None:
        """Append a piece.

        Args:
            name: of its unit.
            number: of its unit.
            piece: what that gave.
        """
        numbers = self._file_numbers(piece.files)
        samples = with_files(piece.samples, numbers[file_numbers(piece.samples)])
        self._tables["samples.arrow"].add(samples)
        self._tables["units.arrow"].add(unit_row(name, number, piece))
        self._refused.write(piece.refused)
        self._hash.update(piece.fingerprint)
        self._keys.extend(map(key_hash, piece.samples.column("key").to_pylist()))

    def _file_numbers(self, files: pa.RecordBatch) -> np.ndarray:
        """Rows of ``files.arrow`` for the files of a piece ``[files]``: what is not there is appended.

        Only what holds many pictures is looked up; a lone file is simply added.
        """
        table = self._tables["files.arrow"]
        alone = files.column("alone").to_numpy(zero_copy_only=False)
        new, numbers = alone.copy(), np.empty(len(files), np.int32)
        for place in np.flatnonzero(~alone).tolist():
            key = tuple(files.column(i)[place].as_py() for i in range(3))
            known = self._shared.get(key)
            new[place] = known is None
            numbers[place] = -1 if known is None else known
        numbers[new] = table.rows + np.arange(new.sum(), dtype=np.int32)
        for place in np.flatnonzero(new & ~alone).tolist():
            self._shared[tuple(files.column(i)[place].as_py() for i in range(3))] = int(numbers[place])
        table.add(files if new.all() else files.filter(pa.array(new)))
        return numbers

    def close(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Finish the files and write the manifest, which holds ``facts``. Returns the manifest.

        Raises:
            ValueError: two samples have one key.
        """
        for table in self._tables.values():
            table.close()
        self._refused.close()
        self._check_keys()
        # archive descriptions and seek points are guarded too: without them pictures cannot be read
        names = [*ARROW_FILES, *self._descriptions()]
        manifest = {
            "format": FORMAT,
            **facts,
            "source": self.source,
            "samples": self._tables["samples.arrow"].rows,
            "fingerprint": self._hash.hexdigest(),
            "bytes": {name: (self.folder / name).stat().st_size for name in names},
            "sums": {name: table.sums for name, table in self._tables.items()},
        }
        manifest["sum"] = manifest_sum(manifest)
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        return manifest

    def _descriptions(self) -> list[str]:
        """The files that describe archives; those of archives that are gone since a run that was stopped are
        taken away."""
        used = {archive for _, _, archive in self._shared if archive}
        for name in sorted(used):
            points = json.loads((self.folder / name).read_bytes())["seek_points"]
            used |= {points} if points else set()
        there = sorted(path.name for path in self.folder.glob("archive-*"))
        for name in there:
            if name not in used:
                (self.folder / name).unlink()
        return [name for name in there if name in used]

    def _check_keys(self) -> None:
        hashes = np.frombuffer(self._keys, np.uint64)
        hashes.sort()  # in place: 300 million are 2.4 GB
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        seen: set[str] = set()
        for batch in Rows(self.folder / "samples.arrow").batches() if twice else []:
            for key in batch.column("key").to_pylist():
                if key in seen:
                    raise ValueError(
                        f"Two samples have the key {key}; rename one of the files that hold them."
                    )
                if key_hash(key) in twice:
                    seen.add(key)


def key_hash(key: str) -> int:
    """64 bits of a key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
