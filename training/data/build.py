"""Indexing: find the samples of a data set, look at every picture, write the index."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ...core.paths import refusal
from .layouts import lists
from .layouts.findings import Layout, Place, Reading
from .layouts.known import LAYOUTS
from .paths import absolute, is_url, list_files, parent
from .pieces import from_bytes
from .report import Report
from .units import Number, Task, make_pieces, said
from .work import Kept, Work
from .writing import IndexWriter

FULL = (errno.ENOSPC, errno.EDQUOT)


def build(
    source: str,
    out: Path,
    *,
    name: str | None = None,
    layout: str | None = None,
    images: str | None = None,
    reading: Reading = Reading(),  # noqa: B008
    check: str = "decode",
    workers: int = 1,
    part: tuple[int, int] | None = None,
    progress: Callable[[int], Any] = lambda count: None,
    say: Callable[[str], Any] = lambda text: None,
) -> Report:
    """Index one data set into ``out/name``, in place of an index that is there.

    The index does not depend on ``workers``, nor on interruptions: pieces are put together in the order of
    their units. What an index that is there, or a run that was stopped, says of files that have not changed
    is taken from it.

    Args:
        source: path or URL of a folder or file.
        out: folder of all indexes.
        name: of this one; default: the last part of ``source``.
        layout: a key of :data:`LAYOUTS`; default: what is recognised.
        images: where the pictures lie that a list names; default: beside it.
        reading: columns, encoding, splits and captions.
        check: ``decode`` decodes every picture, ``header`` only reads its head.
        workers: processes; 1 = this one.
        part: (3, 16) looks at the third sixteenth of the units only, for :func:`.joining.join`.
        progress: called with the number of samples that were just looked at.
        say: called with what is being read where that may take long.

    Returns:
        Report: counts, and where the index is.

    Raises:
        ValueError: no layout fits, nothing is usable, or ``out`` cannot be written to.
    """
    source = absolute(source)
    name = checked_name(name or name_of(source))
    folder = f"{name}.part-{part[0]}-of-{part[1]}" if part else name
    target = out / folder
    if target.exists() and not (target / "manifest.json").is_file():
        raise ValueError(f"{target} is there and no index; give another name with --name.")
    started = time.monotonic()
    work = Work(out, folder)
    try:
        files = list_files(source, work.listing)
        place = Place(source, files, absolute(images) if images else None, work.new, say, reading)
        module = LAYOUTS[layout] if layout else recognise(place)
        root = source if files else parent(source)
        report = Report(name, source, module.NAME, check, str(target), as_given(reading))
        task = Task(module.NAME, root, work.new, work.pieces, check == "decode", reading)
        plan = Plan(task, part)
        kept = Kept(work, is_url(source), part is not None)
        writer = IndexWriter(work.new, root)
        for made in make_pieces(task, module.units(place), workers, kept.get if kept else None, plan.wants):
            piece = from_bytes(made.piece)
            writer.add(made.name, made.number, piece)
            report.count(piece.facts)
            progress(piece.facts.get("samples", 0) + sum(piece.facts.get("refused", {}).values()))
        if not part:
            report.check_usable()
        report.seconds = time.monotonic() - started
        report.write(work.new)
        writer.close(report.facts() | plan.facts())
        work.finish()
    except Exception as error:
        # what was looked at is kept where the same command may get further
        again = isinstance(error, OSError) or isinstance(error.__cause__, BrokenProcessPool)
        full = isinstance(error, OSError) and error.errno in FULL  # of what is read nothing is said so
        if full:
            work.remove_all()
            raise ValueError(refusal(target, error)) from error
        if not again or not work.has_pieces():
            work.remove()
        raise
    finally:
        work.close()
    return report


class Plan:
    """Which units are looked at, and how many there are: what all parts of an index have in common.

    Args:
        task: what is the same for all units.
        part: which part of how many, or None for all.
    """

    def __init__(self, task: Task, part: tuple[int, int] | None) -> None:
        self.task, self.part, self.units = task, part, 0
        self._hash = hashlib.blake2b(digest_size=16)

    def wants(self, number: Number, unit: Any) -> bool:
        """Whether a unit is to be looked at; all are asked about in order."""
        if self.part is None:
            return True
        self.units += 1
        self._hash.update(said(self.task, unit).encode())
        return sum(number) % self.part[1] == self.part[0] - 1

    def facts(self) -> dict[str, Any]:
        """What the manifest of a part says of it."""
        if self.part is None:
            return {}
        return {"part": list(self.part), "plan": {"units": self.units, "hash": self._hash.hexdigest()}}


def as_given(reading: Reading) -> dict[str, Any]:
    """What was said by hand about how to read a data set, for its manifest."""
    return {
        "columns": reading.columns.words(),
        "encoding": reading.encoding,
        "splits": list(reading.splits),
        "captions": reading.captions,
        "counted": reading.tokenizer is not None,
    }


def name_of(source: str) -> str:
    """What the index of a data set is called: the last part of its path, without suffixes."""
    return os.path.basename(absolute(source)).partition(".")[0] or "data"


def checked_name(name: str) -> str:
    """A name for an index, which is that of a folder too. Raises ValueError."""
    if name.startswith(".") or not name.isprintable() or set(name) & set("/\\"):
        raise ValueError(
            f"An index cannot be called {name!r}; give a name without slashes and without a dot at its start."
        )
    return name


def recognise(place: Place) -> Layout:
    """The layout of what lies there. Raises ValueError naming what was found."""
    for module in LAYOUTS.values():
        if module.recognise(place):
            return module
    kinds = place.files.suffixes.most_common(6)
    found = ", ".join(f"{count:,} {kind or 'without suffix'}" for kind, count in kinds) or "no files"
    known = "; ".join(f"{module.NAME}: {module.SUMMARY}" for module in LAYOUTS.values())
    seen = "; ".join(lists.columns_seen(place))
    hint = f" {seen}: name the column of pictures with --columns target=… text=…." if seen else ""
    raise ValueError(
        f"{place.source} is no data set of a known layout (found: {found}).{hint} Known are {known}."
    )
