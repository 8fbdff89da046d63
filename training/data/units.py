"""The units of a data set, looked at by several processes, their pieces in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Protocol

from .children import follow_parent, kill_all
from .examining import STORAGE, examine_unit
from .index import FORMAT
from .layouts.findings import Finding, Large, Reading
from .layouts.known import LAYOUTS
from .paths import is_url
from .pictures import INSTALLED
from .pieces import piece_of
from .refs import Ref
from .shards import ShardWriter, name_of

Number = tuple[int, int]  # of a unit, and of a part of it if it is divided


@dataclass(frozen=True)
class Task:
    """What is the same for all units of a data set.

    Attributes:
        layout: a key of :data:`~.layouts.LAYOUTS`.
        source: root of the data set.
        scratch: where archives are described; its path is no part of what names a unit.
        pieces: folder that pieces are kept in until the index is whole.
        full: whether pictures are decoded.
        reading: how.
    """

    layout: str
    source: str
    scratch: Path
    pieces: Path
    full: bool
    reading: Reading


@dataclass(frozen=True)
class Made:
    """The piece of a unit.

    Attributes:
        number: of the unit.
        name: of what it was made of and how, see :func:`unit_name`.
        piece: packed, see :meth:`Piece.to_bytes`.
    """

    number: Number
    name: bytes
    piece: bytes


class Answer(Protocol):
    """A result that may have to be waited for."""

    def result(self) -> Any: ...


@dataclass(frozen=True)
class Ready:
    """An answer that is there."""

    made: Made

    def result(self) -> Made:
        return self.made


@dataclass(frozen=True)
class Later:
    """An answer that this process works out when it is asked."""

    work: Callable[..., Any]
    arguments: tuple

    def result(self) -> Any:
        return self.work(*self.arguments)


def unit_name(task: Task, unit: Any) -> bytes:
    """What names the piece of a unit: the unit, how it is read, and size and time of its files.

    Files behind a URL have no time that could be asked for; their pieces are kept until the index is whole.
    """
    remote = isinstance(unit, Finding) or is_url(task.source)
    refs = () if remote else LAYOUTS[task.layout].files(unit)
    stamps = []
    for path, archive in dict.fromkeys((ref.path, ref.archive) for ref in refs):
        try:
            stamps.append(f"{path} {STORAGE.facts(Ref(path, archive=archive))}")
        except OSError:
            stamps.append(f"{path} is gone")
    how = (FORMAT, task.layout, task.full, task.reading, sorted(INSTALLED))
    return name_of(repr(how), said(task, unit), *stamps)


def said(task: Task, unit: Any) -> str:
    """A unit as text, the same for every run."""
    return repr(unit).replace(str(task.scratch), "").encode(errors="backslashreplace").decode()


def make_piece(task: Task, number: Number, unit: Any) -> Made | list[Any]:
    """Look at a unit, in any process. Returns the units that a large one is divided into."""
    layout = LAYOUTS[task.layout]
    if isinstance(unit, Large):
        return layout.divide(unit.unit, STORAGE, task.reading)
    name = unit_name(task, unit)
    examined = examine_unit(layout, unit, task.full, task.reading)
    piece = piece_of(examined, task.source, STORAGE.stamp).to_bytes()
    writer(task.pieces).add(name, piece)
    return Made(number, name, piece)


@lru_cache(maxsize=1)
def writer(folder: Path) -> ShardWriter:
    """What this process keeps pieces with."""
    return ShardWriter(folder)


def make_pieces(
    task: Task,
    units: Iterable[Any],
    workers: int,
    kept: Callable[[bytes], bytes | None] | None,
    wanted: Callable[[Number, Any], bool],
) -> Iterator[Made]:
    """The pieces of all units, in order.

    Args:
        task: what is the same for all.
        units: of the data set.
        workers: processes; 1 = this one.
        kept: finds a piece that was made before; None if there are none.
        wanted: whether a unit is to be looked at; asked of each in order.

    Raises:
        ValueError: a worker died.
    """

    def start(number: Number, unit: Any, run: Callable[..., Answer]) -> Answer:
        if kept and not isinstance(unit, Large) and (piece := kept(name := unit_name(task, unit))):
            return Ready(Made(number, name, piece))
        return run(make_piece, task, number, unit)

    def started(numbered: Iterable[tuple[Number, Any]], run: Callable[..., Answer]) -> Iterator[Made]:
        """Only so many units are drawn before they are needed."""
        waiting: deque[tuple[Number, Answer]] = deque()
        for number, unit in numbered:
            if isinstance(unit, Large) or wanted(number, unit):
                waiting.append((number, start(number, unit, run)))
            if len(waiting) > ahead:
                yield from finished(*waiting.popleft(), run)
        while waiting:
            yield from finished(*waiting.popleft(), run)

    def finished(number: Number, answer: Answer, run: Callable[..., Answer]) -> Iterator[Made]:
        result = answer.result()
        if isinstance(result, Made):
            yield result
        else:
            yield from started((((number[0], part), unit) for part, unit in enumerate(result)), run)

    ahead = 2 * workers if workers > 1 else 0
    numbered = (((number, 0), unit) for number, unit in enumerate(units))
    if workers == 1:
        yield from started(numbered, lambda work, *arguments: Later(work, arguments))
        return
    if task.source.startswith("memory://"):
        raise ValueError("memory:// exists in one process only; index it with --workers 1.")
    others = set(active_children())
    # spawned, not forked: file systems and Arrow run threads
    with ProcessPoolExecutor(workers, get_context("spawn"), follow_parent) as pool:
        try:
            yield from started(numbered, pool.submit)
        except BrokenProcessPool as error:
            raise ValueError(
                "A worker process died, likely for want of memory; try fewer --workers."
            ) from error
        except BaseException:  # nobody waits for what is not wanted any more; pieces are whole or not there
            kill_all(set(active_children()) - others)
            raise
