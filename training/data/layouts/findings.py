"""What a layout hands over while a data set is indexed, and how it is told to read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..columns import Columns
from ..listing import Files
from ..refs import Ref
from ..roles import Roles
from ..splits import choose, split_of_file
from ..storage import Storage

CHUNK = 256  # samples that are handed to a worker at once
MAX_INPUTS = 4  # as core.prompts.MAX_IMAGES, which costs an import of torch


@dataclass(frozen=True)
class Found:
    """A sample whose pictures nobody has looked at yet.

    Attributes:
        key: its name.
        texts: its wordings; the first is empty if there is none.
        target: picture to learn.
        inputs: pictures to start from.
        roles: which fields these are from.
        mask: of the target, white where it counts, or None.
    """

    key: str
    texts: tuple[str, ...]
    target: Ref
    inputs: tuple[Ref, ...] = ()
    roles: Roles | None = None
    mask: Ref | None = None


@dataclass(frozen=True)
class Refused:
    """A sample that cannot be used.

    Attributes:
        key: its name.
        reason: a few words that many samples share.
        detail: what exactly, such as a file name.
    """

    key: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Note:
    """Something to tell the user about a file, such as where it is torn."""

    text: str


@dataclass(frozen=True)
class Ignored:
    """Files that are in no sample, by suffix."""

    counts: dict[str, int]


@dataclass(frozen=True)
class LeftOut:
    """Files or rows of splits that were not asked for, by split."""

    counts: dict[str, int]


Finding = Found | Refused | Note | Ignored | LeftOut


@dataclass(frozen=True)
class Large:
    """A unit that is too large for one process; the layout's ``divide`` makes smaller ones of it."""

    unit: Any


@dataclass(frozen=True)
class Reading:
    """How a data set is read.

    Attributes:
        columns: fields that were named by hand.
        encoding: of texts without a byte order mark, None for UTF-8.
        splits: which are taken; empty for train and what has no split.
        captions: which of several texts is taken, one of :data:`~..texts.CAPTION_RULES`.
        tokenizer: ``tokenizer.json`` that texts are counted with, or None.
    """

    columns: Columns = Columns()
    encoding: str | None = None
    splits: tuple[str, ...] = ()
    captions: str = "last"
    tokenizer: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a data set lies.

    Attributes:
        source: absolute path or URL of its folder or of the one file that was named.
        files: all files below ``source``; none if it is a file.
        images: folder or URL where pictures lie that a list names, or None: beside the list.
        scratch: folder of the index that is being written.
        say: told what is being read where that may take long.
        reading: how.
    """

    source: str
    files: Files = field(repr=False)
    images: str | None
    scratch: Path
    say: Callable[[str], Any] = field(default=lambda text: None, repr=False)
    reading: Reading = Reading()

    def of_splits(
        self, names: Iterable[str], shards: bool = True, rows: bool = False
    ) -> tuple[set[str], LeftOut]:
        """Which of these files are of the splits that are read, and how many are not. Raises ValueError.

        Args:
            names: relative paths.
            shards: whether a file holds many samples, so that its own name counts.
            rows: whether its rows may tell of splits where no name does.
        """
        marked = [(name, split_of_file(name, shards)) for name in names]
        taken, left = choose(marked, self.reading.splits, self.source, rows)
        return set(taken), LeftOut(dict(left))

    def others(self, used: Iterable[str]) -> Ignored:
        """The files that are none of these, by suffix."""
        taken = set(used)
        rest = (os.path.splitext(name)[1].lower() for name, _ in self.files if name not in taken)
        return Ignored(dict(Counter(suffix or "without suffix" for suffix in rest)))


class Layout(Protocol):
    """A module that knows one layout. Units are small, can be pickled, and are scanned in any process.

    ``units`` may hand over findings among them, which are taken as they are, and :class:`Large` units, which
    ``divide`` makes smaller ones and findings of. ``files`` names what a unit is read from: of a unit whose
    files have kept size and time nothing is looked at again.
    """

    NAME: str
    SUMMARY: str

    def recognise(self, place: Place) -> bool: ...

    def units(self, place: Place) -> Iterable[Any]: ...

    def files(self, unit: Any) -> Iterable[Ref]: ...

    def scan(self, unit: Any, storage: Storage, reading: Reading) -> Iterator[Finding]: ...


def chunked(items: Iterable[Any], size: int = 0) -> Iterator[list[Any]]:
    """Lists of ``size`` items, :data:`CHUNK` if it is 0, the last one shorter."""
    size = size or CHUNK
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
