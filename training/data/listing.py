"""The files of a data set in a database on disk: of sixty million no list is held in memory."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

CACHE = 64 * 2**10  # KiB that a database holds in memory
PICKED = 10_000  # rows that are read at once


def open_database(path: str | Path = "") -> sqlite3.Connection:
    """A database that lives as long as it is open; "" for a temporary file of the system's."""
    database = sqlite3.connect(path, isolation_level=None)
    for setting in (f"cache_size=-{CACHE}", "journal_mode=OFF", "synchronous=OFF"):
        database.execute(f"PRAGMA {setting}")
    return database


class Files:
    """(relative path with ``/``, bytes) of files, sorted by path, whatever order they are found in.

    Args:
        found: the files.
        path: of the database; default: a temporary one.
    """

    def __init__(self, found: Iterable[tuple[str, int]], path: str | Path = "") -> None:
        self._database = open_database(path)
        self._database.execute("CREATE TABLE found (name BLOB, size INTEGER)")
        self.suffixes: Counter[str] = Counter()  # in lower case, with their dot
        self._insert("INSERT INTO found VALUES (?, ?)", map(self._row, found))
        # one row behind the other: rows at random places of a large tree would each cost a read
        self._database.execute("CREATE TABLE files (name BLOB PRIMARY KEY, size INTEGER) WITHOUT ROWID")
        self._database.execute("INSERT OR IGNORE INTO files SELECT name, size FROM found ORDER BY name")
        self._database.execute("DROP TABLE found")
        self.arranged_by: Any = None  # what decided on the keys, for whoever arranges them

    def _row(self, found: tuple[str, int]) -> tuple[bytes, int]:
        name, size = found
        self.suffixes[os.path.splitext(name)[1].lower()] += 1
        return os.fsencode(name), size

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for name, size in self._database.execute("SELECT name, size FROM files ORDER BY name"):
            yield os.fsdecode(name), size

    def __len__(self) -> int:
        return self.suffixes.total()

    def __contains__(self, name: str) -> bool:
        query = "SELECT 1 FROM files WHERE name = ?"
        return self._database.execute(query, (os.fsencode(name),)).fetchone() is not None

    def ending(self, *suffixes: str) -> Iterator[str]:
        """The files with one of these suffixes; none are looked at if there is none."""
        if any(suffix in self.suffixes for suffix in suffixes):
            for name, _ in self:
                if os.path.splitext(name)[1].lower() in suffixes:
                    yield name

    def beginning(self, start: str) -> Iterator[str]:
        """The files whose path begins so."""
        first = os.fsencode(start)
        query = "SELECT name FROM files WHERE name >= ? AND name < ? ORDER BY name"
        for (name,) in self._database.execute(query, (first, first + b"\xff" * 4)):
            yield os.fsdecode(name)

    def arrange(self, keyed: Iterable[tuple[str, str]]) -> None:
        """Keep files by a key; those of an earlier call are forgotten."""
        self._database.execute("DROP TABLE IF EXISTS arranged")
        self._database.execute("CREATE TABLE keyed (key BLOB, name BLOB)")
        rows = ((key.encode(errors="surrogatepass"), os.fsencode(name)) for key, name in keyed)
        self._insert("INSERT INTO keyed VALUES (?, ?)", rows)
        self._database.execute("CREATE TABLE arranged AS SELECT * FROM keyed ORDER BY key, name")
        self._database.execute("DROP TABLE keyed")

    def arranged(self) -> Iterator[tuple[bytes, str]]:
        """Key and path of these, by key."""
        query = "SELECT key, name FROM arranged ORDER BY rowid"
        for key, name in self._database.execute(query):
            yield key, os.fsdecode(name)

    def _insert(self, statement: str, rows: Iterable[tuple]) -> None:
        rows = iter(rows)
        while some := list(islice(rows, PICKED)):  # its source may read from this database
            self._database.execute("BEGIN")
            self._database.executemany(statement, some)
            self._database.execute("COMMIT")

    def close(self) -> None:
        """Forget them."""
        self._database.close()
