"""Finding pictures by the names that a list gives them: files, or members of archives that lie beside it."""

from __future__ import annotations

import os
import posixpath
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from .archives import Archive, Torn, description_path, find_archives, members
from .paths import is_url, join
from .storage import Ref, Storage

INSERT = "INSERT INTO names VALUES (?, ?, ?, ?)"
SAY_EVERY = 10_000  # members


class Names:
    """Every file below a folder and every member of its archives, by name.

    Kept in a temporary database of SQLite: GPT-Image-Edit names three million pictures, and as Python objects
    these would take gigabytes.

    Args:
        root: folder or URL.
        files: (relative path, bytes) of all files there.
        scratch: where archives are described (see :func:`~.archives.members`).
        say: told what is being read; an archive may take hours.
    """

    def __init__(
        self,
        root: str,
        files: list[tuple[str, int]],
        scratch: Path,
        storage: Storage,
        say: Callable[[str], None],
    ) -> None:
        self._root = root
        self._archives: list[tuple[Archive, str]] = []
        self.notes: list[str] = []
        self._database = sqlite3.connect("")  # on disk, deleted when closed
        self._database.execute("CREATE TABLE names (name TEXT, archive INTEGER, start INTEGER, size INTEGER)")
        self._database.executemany(INSERT, ((name, -1, 0, -1) for name, _ in files))
        for archive in find_archives(root, files):
            self._database.executemany(INSERT, self._members(archive, scratch, storage, say))
        self._database.execute("CREATE INDEX by_name ON names (name)")

    def _members(
        self, archive: Archive, scratch: Path, storage: Storage, say: Callable[[str], None]
    ) -> Iterator[tuple[str, int, int, int]]:
        """Rows of the members of one archive; a tear is noted."""
        description = description_path(scratch, archive)
        number, count = len(self._archives), 0
        self._archives.append((archive, ""))
        say(archive.name)
        try:
            for member, ref in members(archive, storage, description):
                self._archives[number] = (archive, ref.archive)
                yield normal(member.name), number, ref.offset, ref.size
                count += 1
                if count % SAY_EVERY == 0:
                    say(f"{archive.name}: {count:,} names")
        except Torn as error:
            self.notes.append(f"{archive.name}: {error}; {count:,} files before that were found.")

    def find(self, name: str) -> Ref | None:
        """The picture of this name, or None.

        ``images/1.png`` is a file of that name, or else the member ``images/1.png`` of an archive, or else
        the member ``1.png`` of ``images.tar``. Two archives that both hold the name give None, for nothing
        says which one is meant.
        """
        name = normal(name)
        rows = self._select(name)
        lone = [row for row in rows if row[0] < 0]
        if lone:
            return Ref(join(self._root, name))
        if not rows and "/" in name:
            folder, _, rest = name.partition("/")
            rows = [row for row in self._select(rest) if row[0] >= 0 and self._stem(row[0]) == folder]
        if len({row[0] for row in rows}) == 1:
            number, start, size = rows[-1]  # of a member that was stored twice the last one counts
            archive, description = self._archives[number]
            return Ref(archive.path, start, size, archive=description)
        if not rows and not is_url(self._root) and os.path.isfile(join(self._root, name)):
            return Ref(join(self._root, name))  # outside of the folder
        return None

    def _select(self, name: str) -> list[tuple[int, int, int]]:
        query = "SELECT archive, start, size FROM names WHERE name = ? ORDER BY rowid"
        return self._database.execute(query, (name,)).fetchall()

    def _stem(self, number: int) -> str:
        return posixpath.basename(self._archives[number][0].name).partition(".")[0]


def normal(name: str) -> str:
    """A name as all of them are compared: ``./a//b.png`` and ``a\\b.png`` are ``a/b.png``."""
    return posixpath.normpath(name.replace("\\", "/"))
