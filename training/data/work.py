"""The folder in which an index is made: kept over interruptions, one process at a time, gone when it is done.

``OUT/.NAME.work`` holds a lock, the ``pieces`` that were made and the ``new`` index. A run that is stopped or
killed leaves it, and the next one goes on from it; what the system locks for a process ends with the process.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from io import FileIO
from pathlib import Path

from ...core.paths import refusal
from ..run.lock import NO_LOCKS, lock
from .index import Index
from .pieces import IndexPieces
from .shards import Damaged, Shards

LOCK = "lock"


class Work:
    """The folder of an index that is being made. Has the lock until it is closed.

    Args:
        out: folder of all indexes; made if it is not there.
        name: of this one.

    Raises:
        ValueError: another process makes this index, or ``out`` cannot be written to.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.target, self.folder = out / name, out / f".{name}.work"
        self.pieces, self.new, self.old = (self.folder / part for part in ("pieces", "new", "old"))
        self.listing = self.folder / "files"
        # what this run makes, inner ones first
        self._made = [folder for folder in (out, *out.parents) if not folder.exists()]
        try:
            self._lock = take_lock(self.folder)
            take_away_dead(out, self.folder)
            if self.old.exists() and not self.target.exists():  # killed between two renames
                os.replace(self.old, self.target)
            shutil.rmtree(self.old, ignore_errors=True)
            self.listing.unlink(missing_ok=True)
            for folder in (self.pieces, self.new):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            self.remove_all()
            raise ValueError(refusal(out, error)) from error

    def has_pieces(self) -> bool:
        """Whether there is anything to go on from."""
        return any(self.pieces.iterdir())

    def finish(self) -> None:
        """Put the new index in the place of an old one; whoever has mapped that one's files keeps them."""
        if self.target.exists():
            os.replace(self.target, self.old)
        os.replace(self.new, self.target)
        self.remove()

    def remove(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_all(self) -> None:
        """Leave nothing of it, nor of the folders that were made for it."""
        self.remove()
        for folder in self._made:
            with suppress(OSError):  # something else lies there by now
                folder.rmdir()

    def close(self) -> None:
        """Let go of the lock."""
        self._lock.close()


def take_lock(folder: Path) -> FileIO:
    """Make a folder, if it is not there, and lock it for this process.

    Raises:
        ValueError: another process has it.
        OSError: it cannot be made.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = FileIO(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        except FileNotFoundError:  # taken away by a run that has just ended
            continue
        try:
            lock(file)
        except BlockingIOError as error:
            file.close()
            raise ValueError(
                f"{folder} is in use by another `tbac-uniimage data index`; wait for it to end, or give "
                "another name with --name."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                return file
        file.close()


def take_away_dead(out: Path, mine: Path) -> None:
    """Take the folders of other indexes away whose process has ended without a piece to go on from."""
    for folder in out.glob(".*.work"):
        if folder != mine and (folder / LOCK).is_file() and not any(folder.glob("pieces/*.rows")):
            with suppress(ValueError, OSError):  # it lives, or is not ours to take away
                take_lock(folder).close()
                shutil.rmtree(folder)


class Kept:
    """Pieces that were made before: by a run that was stopped, or of the index that is there.

    Args:
        work: where they are looked for.
        remote: whether the data set lies behind a URL, so that nothing tells whether its files changed since
            the index was made.
        part: whether the index is a part of one.
    """

    def __init__(self, work: Work, remote: bool, part: bool) -> None:
        self._work, self._shards = work, Shards(work.pieces)
        self._index: IndexPieces | None = None
        self._numbers: dict[bytes, int] = {}
        self._copied: set[str] = set()
        if not remote:
            with suppress(ValueError):  # none, or of an earlier format or damaged, and so to be made again
                self._index = IndexPieces(Index(work.target, part=part))
                self._numbers = {name: number for number, name in enumerate(self._index.names)}

    def __bool__(self) -> bool:
        return bool(len(self._shards) or self._numbers)

    def get(self, name: bytes) -> bytes | None:
        """The piece of a unit, packed, or None."""
        try:
            data = self._shards.get(name)
            if data is not None or name not in self._numbers:
                return data
            piece = self._index[self._numbers[name]]
        except (Damaged, ValueError):  # and so to be made again
            return None
        for archive in set(piece.files.column("archive").to_pylist()) - {""}:
            copy_description(self._work.target, self._work.new, archive, self._copied)
        return piece.to_bytes()


def copy_description(source: Path, target: Path, archive: str, copied: set[str]) -> None:
    """Copy the description of an archive, and its seek points, from one index to another, once."""
    if archive not in copied:
        for path in source.glob(f"{archive.removesuffix('.json')}.*"):
            shutil.copyfile(path, target / path.name)
        copied.add(archive)
