"""Names of pictures without suffix: which files are about one picture, which fields name pictures so."""

from __future__ import annotations

import os
import sqlite3
from functools import cached_property
from itertools import chain

from ..listing import Files, open_database
from ..pictures import SUFFIXES
from .beside import TEXTS
from .role_folders import PART


def is_of_one(name: str, files: Files) -> bool:
    """Whether a file is about one picture: about one of its name, or of its name and a word behind it."""
    stem = os.path.splitext(name)[0]
    for other in chain.from_iterable(files.beginning(stem + mark) for mark in "._-"):
        about = os.path.splitext(other)[0]
        if other.lower().endswith(SUFFIXES) and (
            about == stem or (part := PART.fullmatch(about)) and part["base"] == stem
        ):
            return True
    return False


class Stems:
    """The names of pictures without folder and suffix; none where a text lies beside a picture.

    Args:
        files: of a data set. They are looked at when the first name is asked for, and kept on disk.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    @cached_property
    def _names(self) -> sqlite3.Connection:
        database = open_database()
        database.execute("CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID")
        texts = (name for name, _ in self._files if name.endswith(TEXTS))
        if not any(is_of_one(name, self._files) for name in texts):
            pictures = (name for name, _ in self._files if name.lower().endswith(SUFFIXES))
            stems = ((key(os.path.basename(os.path.splitext(name)[0])),) for name in pictures)
            database.execute("BEGIN")
            database.executemany("INSERT OR IGNORE INTO names VALUES (?)", stems)
            database.execute("COMMIT")
        return database

    def __contains__(self, name: str) -> bool:
        query = "SELECT 1 FROM names WHERE name = ?"
        return self._names.execute(query, (key(name),)).fetchone() is not None


def key(name: str) -> bytes:
    """A name as bytes, also one that is no Unicode."""
    return name.encode(errors="surrogatepass")
