"""What a benchmark is to this package: one protocol, and the plain data that passes between the five verbs.

:class:`Checkout` -> :class:`Item` -> pictures -> :class:`Request`, :class:`Answer` -> :class:`Row` -> figures

A set knows its files, its items, where the official scorer looks for their pictures, what a judge is asked,
how the answer is read, and how rows become figures. It never draws, opens no connection, writes no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

AS_PUBLISHED = "as published"  # the official script to the last defect: may stand beside published numbers
CORRECTED = "corrected"  # without the defects: a number of its own


class Unreadable(ValueError):
    """A judge's answer that holds no verdict; the judge is asked again a bounded number of times."""


@dataclass(frozen=True)
class File:
    """A file of a repository, or several.

    Attributes:
        path: in the repository; with ``*`` in its name: all that match.
        digest: ``sha256:…`` of the file, or of what ``LC_ALL=C sha256sum PATH`` prints for several; ``git:…``
            (blob id) where the file itself was out of reach; "" where no hash is known: what is fetched first
            is recorded and held to.
        count: how many files; 0: not known.
    """

    path: str
    digest: str
    count: int = 1


@dataclass(frozen=True)
class Source:
    """Files of one public repository at one commit.

    Attributes:
        repo: ``github:owner/name``, or ``hub:owner/name`` for a data set of the Hugging Face hub.
        commit: full id. Empty where none was known when the set was written: what was fetched is recorded.
        files: what is needed of it.
        licence: as the repository states it, or None: none was found, the user is asked.
        size: bytes of these files; 0: not known.
        archive: tar file of the repository that holds the files; empty: they lie in the repository.
    """

    repo: str
    commit: str
    files: tuple[File, ...]
    licence: str | None
    size: int = 0
    archive: str = ""


@dataclass(frozen=True)
class Checkout:
    """Fetched and verified files of a set.

    Attributes:
        roots: repository (``Source.repo``) -> folder that holds its files under their own paths.
        digest: SHA-256 over names and contents of all files, which a manifest records.
        modified: the user said that the files are not those of the commits; their numbers stand alone.
    """

    roots: Mapping[str, Path]
    digest: str
    modified: bool = False

    def path(self, source: Source, name: str) -> Path:
        """Where a file of a source lies."""
        return self.roots[source.repo] / name


@dataclass(frozen=True)
class Picture:
    """One file that the official scorer expects.

    Attributes:
        path: relative to the folder of pictures, with ``/``.
        samples: numbers of the samples in it. One is the picture itself; four are a 2 x 2 grid, row by row.
    """

    path: str
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A prompt or an edit of a set.

    Attributes:
        key: names it within the set; seeds depend on it.
        prompt: what the model is asked, unchanged.
        pictures: the files to draw.
        group: stratum of the bootstrap, such as the task of GenEval or the edit type.
        source: reads the picture to edit, a PNG or JPEG file; None: text to image.
        data: what scoring needs of the set's own fields.
    """

    key: str
    prompt: str
    pictures: tuple[Picture, ...]
    group: str
    source: Callable[[], bytes] | None = None
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Shown:
    """A picture within a request.

    Attributes:
        path: relative to the folder of pictures; None: the item's source.
        tile: number of the quarter that is shown of a 2 x 2 grid, row by row; None: all of it.
        source_size: resized to the size of the item's source (Pillow's default filter) before it is sent.
        format: "PNG", "JPEG" of quality 75, or None: the file's bytes as they are, called PNG.
    """

    path: str | None
    tile: int | None = None
    source_size: bool = False
    format: str | None = None


@dataclass(frozen=True)
class Request:
    """One call of a judge.

    Attributes:
        key: names it within the set: the item's key and which call.
        item: key of the item.
        parts: texts and pictures of the user's message, in the order in which they are sent.
        system: system message, if any.
        choices: spellings of the answer whose probabilities as first token are summed, which is the verdict;
            empty: the text is the answer.
        expects: how many answers the text must hold, for ``read``.
    """

    key: str
    item: str
    parts: tuple[str | Shown, ...]
    system: str | None = None
    choices: tuple[str, ...] = ()
    expects: int = 1


@dataclass(frozen=True)
class Judge:
    """How the official script asks its judge. None leaves a parameter out of the call, as it does.

    Attributes:
        model: as it names it.
        extra: fields of the request's body beyond OpenAI's, for a local server.
    """

    model: str
    temperature: float | None = None
    max_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What became of a request (or of a picture, where a detector judges): a line of an answers file.

    Attributes:
        request: key of the request; for a detector, the path of the picture.
        item: key of the item.
        text: the judge's raw answer; None if all attempts failed, or where a detector judged.
        verdict: what a detector or an imported results file says, as JSON.
    """

    request: str
    item: str
    text: str | None = None
    verdict: Any = None


@dataclass(frozen=True)
class Row:
    """What one prompt contributes to the figures; the unit of the bootstrap.

    Attributes:
        key: of the item.
        group: its stratum.
        value: whatever ``figures`` of the set reads.
        good: 0 to 1, how well it went: orders the contact sheet.
        asked, seen: a line each for the contact sheet.
    """

    key: str
    group: str
    value: Any
    good: float = 0.0
    asked: str = ""
    seen: str = ""


class Benchmark(Protocol):
    """A set. A module of ``sets/`` lists the ones that it defines, variants included, in ``SETS``."""

    name: str  # on the command line and in files: "geneval", "geneval-rewritten"
    title: str  # for people
    unit: str  # of the figures: "share", "percent", "of 5", …
    sources: tuple[Source, ...]
    judge: Judge | None  # the published judge; None: a detector or VQA model judges
    official: str  # who judges in published numbers
    modes: tuple[str, ...]  # AS_PUBLISHED first

    def items(self, checkout: Checkout) -> list[Item]:
        """All items in fixed order. Raises ValueError: a file is not of the published form."""
        ...

    def companions(self, item: Item) -> Mapping[str, bytes]:
        """Other files that the official scorer wants among the pictures: relative path -> content."""
        return {}

    def requests(self, item: Item, checkout: Checkout) -> list[Request]:
        """What a judge is asked about the item's pictures; empty where no chat model can judge."""
        return []

    def read(self, request: Request, text: str, mode: str = AS_PUBLISHED) -> Any:
        """The verdict in a judge's answer, as JSON. Raises Unreadable; a judge is then asked again."""
        raise NotImplementedError

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """Answers from results of the official scorer. Raises ValueError: not such a file."""
        raise ValueError(f"The results of another scorer cannot be imported for {self.name}.")

    def lost(self, item: Item, mode: str = AS_PUBLISHED) -> bool:
        """Whether the official script drops an item whatever its pictures show: no answer is missed."""
        return False

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str = AS_PUBLISHED) -> list[Row]:
        """One row an item, from verdicts by key of the request or path of the picture.

        What could not be read is absent from ``verdicts``; an item may then have no row.
        """
        ...

    def figures(self, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, float]:
        """Figures by name, the headline first; all that span the set have "overall" in their name.

        Pure; called anew for every draw of the bootstrap.
        """
        ...
