"""Finding pictures by the names that a list gives them: files, or members of archives that lie beside it."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from .archives import Archive, Torn, description_path, find_archives, members
from .listing import Files, open_database
from .paths import is_url, join
from .pictures import SUFFIXES
from .refs import Ref
from .storage import Storage

TABLE = "names (name TEXT, base TEXT, actual TEXT, archive INTEGER, start INTEGER, size INTEGER)"
INSERT = "INSERT INTO names VALUES (?, ?, ?, ?, ?, ?)"
SAY_EVERY = 10_000  # members
Row = tuple[str, str | None, int, int, int]  # name, as it is written if not composed, archive, start, size


class Names:
    """Every file below a folder and every member of its archives, by name.

    Kept in a temporary database of SQLite: GPT-Image-Edit names three million pictures, and as Python objects
    these would take gigabytes.

    Args:
        root: folder or URL.
        files: all files there.
        scratch: where archives are described (see :func:`~.archives.members`).
        say: told what is being read; an archive may take hours.
    """

    def __init__(
        self,
        root: str,
        files: Files,
        scratch: Path,
        storage: Storage,
        say: Callable[[str], None],
    ) -> None:
        self._root = root
        self._archives: list[tuple[Archive, str]] = []
        self.notes: list[str] = []
        self._database = open_database()
        self._database.execute(f"CREATE TABLE {TABLE}")
        self._database.execute("BEGIN")
        self._database.executemany(INSERT, (entry(name, -1, 0, -1) for name, _ in files))
        for archive in find_archives(root, files):
            self._database.executemany(INSERT, self._members(archive, scratch, storage, say))
        self._database.execute("COMMIT")
        self._database.execute("CREATE INDEX by_name ON names (name)")
        self._database.execute("CREATE INDEX by_base ON names (base)")

    def _members(
        self, archive: Archive, scratch: Path, storage: Storage, say: Callable[[str], None]
    ) -> Iterator[tuple]:
        """Rows of the members of one archive; a tear is noted."""
        description = description_path(scratch, archive)
        numbers: dict[str, int] = {}  # a zip may hold deflated and stored members
        count = 0
        say(archive.name)
        try:
            for member, ref in members(archive, storage, description):
                if ref.archive not in numbers:
                    numbers[ref.archive] = len(self._archives)
                    self._archives.append((archive, ref.archive))
                yield entry(member.name, numbers[ref.archive], ref.offset, ref.size)
                count += 1
                if count % SAY_EVERY == 0:
                    say(f"{archive.name}: {count:,} names")
        except Torn as error:
            self.notes.append(f"{archive.name}: {error}; {count:,} files before that were found.")

    def find(self, name: str, below: str = "") -> Ref | None:
        """The picture of this name, or None.

        ``images/1.png`` is a file of that name beside the list, or else below the data set's folder, or else
        the member ``images/1.png`` of an archive, or else the member ``1.png`` of ``images.tar``, or else the
        one file or member whose path ends with ``/images/1.png``. Where two of a kind fit it is none, for
        nothing says which one is meant. A name without the suffix of a picture is tried with each.

        Args:
            name: as the list gives it.
            below: folder of the list, relative to the data set.
        """
        name = normal(name)
        ref = self._look(name, below)
        if ref is None and posixpath.splitext(name)[1].lower() not in SUFFIXES:
            found = {ref for suffix in SUFFIXES if (ref := self._look(name + suffix, below))}
            ref = found.pop() if len(found) == 1 else None
        return ref

    def several(self, name: str) -> bool:
        """Whether a name that :meth:`find` finds no picture of fits more than one."""
        name = normal(name)
        return len(self._select(name)) + len(self._select_ending(name)) > 1

    def _look(self, name: str, below: str) -> Ref | None:
        rows = self._select(normal(f"{below}/{name}")) if below else []
        rows = rows or self._select(name)
        if not rows and "/" in name:
            folder, _, rest = name.partition("/")
            rows = [row for row in self._select(rest) if row[2] >= 0 and self._stem(row[2]) == folder]
        rows = rows or self._select_ending(name)
        lone = {row[:2] for row in rows if row[2] < 0}
        if lone:
            return Ref(join(self._root, next(row[1] or row[0] for row in lone))) if len(lone) == 1 else None
        if len({(self._archives[row[2]][0].name, row[0]) for row in rows}) == 1:
            _, _, number, start, size = rows[-1]  # of a member that was stored twice the last one counts
            archive, description = self._archives[number]
            return Ref(archive.path, start, size, archive=description)
        if not rows and not is_url(self._root) and os.path.isfile(join(self._root, name)):
            return Ref(join(self._root, name))  # outside of the folder
        return None

    def _select(self, name: str) -> list[Row]:
        query = "SELECT name, actual, archive, start, size FROM names WHERE name = ? ORDER BY rowid"
        return self._database.execute(query, (name,)).fetchall()

    def _select_ending(self, name: str) -> list[Row]:
        query = "SELECT name, actual, archive, start, size FROM names WHERE base = ? ORDER BY rowid"
        rows = self._database.execute(query, (posixpath.basename(name),))
        return [row for row in rows if row[0].endswith(f"/{name}")]

    def _stem(self, number: int) -> str:
        return posixpath.basename(self._archives[number][0].name).partition(".")[0]


def entry(name: str, archive: int, start: int, size: int) -> tuple:
    """The row of a file or member; one whose name is no Unicode has a name that nothing asks for."""
    name = name.encode("utf-8", "backslashreplace").decode()
    composed = normal(name)
    actual = name if composed != name else None
    return composed, posixpath.basename(composed), actual, archive, start, size


def normal(name: str) -> str:
    """A name as all of them are compared: composed; ``./a//b.png`` and ``a\\b.png`` are ``a/b.png``."""
    return posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/")))
