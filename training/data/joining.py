"""Putting the parts of an index together that several machines made (``data index --part 3/16``)."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .index import Index
from .pieces import IndexPieces, Piece
from .report import Report
from .units import Number
from .work import Work, copy_description
from .writing import IndexWriter

SAME = {  # facts of a manifest that all parts share, and what gives them
    "name": "--name",
    "source": "the data set",
    "layout": "--format",
    "check": "--check",
    "given": "--columns, --split, --captions, --encoding or --tokenizer",
}


def join(
    folders: Sequence[Path],
    out: Path,
    name: str | None = None,
    progress: Callable[[int], Any] = lambda count: None,
) -> Report:
    """Make one index of all its parts: byte for byte the one that a single machine would have made.

    Args:
        folders: of the parts, in any order.
        out: folder of all indexes.
        name: of this one; default: that of the parts.
        progress: called with the number of samples that were just written.

    Raises:
        ValueError: a part is missing, there twice, damaged, or of another data set or other options.
    """
    started = time.monotonic()
    parts = [Index(folder, part=True) for folder in folders]
    check_parts(parts)
    first = parts[0].manifest
    name = name or first["name"]
    target = out / name
    if target.exists() and not (target / "manifest.json").is_file():
        raise ValueError(f"{target} is there and no index; give another name with --name.")
    work = Work(out, name)
    try:
        writer = IndexWriter(work.new, first["source"])
        report = Report(name, first["source"], first["layout"], first["check"], str(target), first["given"])
        copied: set[str] = set()
        for number, part, unit, piece in heapq.merge(*map(pieces_in, parts), key=lambda item: item[0]):
            for archive in set(piece.files.column("archive").to_pylist()) - {""}:
                copy_description(part.folder, work.new, archive, copied)
            writer.add(unit, number, piece)
            report.count(piece.facts)
            progress(len(piece.samples))
        report.check_usable()
        report.seconds = time.monotonic() - started
        report.write(work.new)
        writer.close(report.facts())
        work.finish()
    except Exception:
        work.remove()
        raise
    finally:
        work.close()
    return report


def pieces_in(part: Index) -> Iterator[tuple[Number, Index, bytes, Piece]]:
    """The pieces of a part in order: number, part, name of the unit, piece."""
    pieces = IndexPieces(part)
    for place, (number, name) in enumerate(zip(pieces.numbers, pieces.names, strict=True)):
        yield number, part, name, pieces[place]
    pieces.close()


def check_parts(parts: Sequence[Index]) -> None:
    """Raise ValueError unless these are all parts of one index, once each."""
    first = parts[0]
    _, count = first.manifest["part"]
    seen: dict[int, Index] = {}
    for part in parts:
        number, total = part.manifest["part"]
        if total != count:
            raise ValueError(
                f"{part.folder} is one of {total} parts and {first.folder} one of {count}; index all of them "
                "with the same --part N/M."
            )
        if number in seen:
            raise ValueError(
                f"{seen[number].folder} and {part.folder} are both part {number}; take one away."
            )
        seen[number] = part
        for fact, option in SAME.items():
            if part.manifest[fact] != first.manifest[fact]:
                raise ValueError(
                    f"{part.folder} and {first.folder} were indexed with other options: {fact} is "
                    f"{part.manifest[fact]} and {first.manifest[fact]}, see {option}; index one again."
                )
        if part.manifest["plan"] != first.manifest["plan"]:
            raise ValueError(
                f"{part.folder} and {first.folder} saw other files below {part.source}; make them the same "
                "on all machines and index both parts again."
            )
    missing = [number for number in range(1, count + 1) if number not in seen]
    if missing:
        names = ", ".join(map(str, missing))
        raise ValueError(
            f"Of {count} parts of {first.name} these are missing: {names}; index them with --part."
        )
