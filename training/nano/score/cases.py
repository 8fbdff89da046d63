"""What the score asks: held-out prompts, edits and questions, by (kind, seed, number)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

from ..domain import edits, prompts, questions
from ..domain.edits import Edit
from ..domain.prompts import Prompt
from ..domain.questions import Question
from ..domain.scene import Scene, straightened

Asked = Prompt | Edit | Question
GROUPS: dict[str, dict[str, str]] = {  # group -> kind of the score -> kind of the domain
    "draw": {kind: kind for kind in prompts.KINDS},
    "edit": {f"edit-{kind}": kind for kind in edits.KINDS},
    "masked": {f"masked-{kind}": kind for kind in edits.KINDS},
    "auto": {f"auto-{kind}": kind for kind in edits.KINDS},
    "ask": {f"ask-{kind.replace(' ', '-')}": kind for kind in questions.KINDS},
}
KINDS = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
EDITED = ("edit", "masked", "auto")  # groups whose cases are edits
DRAW = {"draw": prompts.draw, **dict.fromkeys(EDITED, edits.draw), "ask": questions.draw}
TRIES = 40  # draws per case wanted before texts may repeat


@dataclass(frozen=True)
class Case:
    """One thing that the model is asked; `number` is its place in the domain's held-out stream."""

    kind: str
    seed: int
    number: int
    asked: Asked

    @property
    def group(self) -> str:
        """ "draw", "edit", "masked" (within the true mask), "auto" (within the model's own) or "ask"."""
        return KINDS[self.kind]

    @property
    def stream(self) -> str:
        """Kind of its prompts and noise: an edit within a mask has those of the same edit without."""
        name = GROUPS[self.group][self.kind]
        return f"edit-{name}" if self.group in EDITED else self.kind

    @property
    def wanted(self) -> Scene:
        """The scene that the answer to a prompt or an edit shows, or that a question is about."""
        return self.asked.target if isinstance(self.asked, Edit) else self.asked.scene

    @cached_property
    def content(self) -> tuple[Scene, ...]:
        """The scenes without the jitter of places and sides, which no text tells."""
        scenes = (self.asked.source, self.asked.target) if isinstance(self.asked, Edit) else (self.wanted,)
        return tuple(replace(s, items=tuple(map(straightened, s.items))) for s in scenes)

    @property
    def unit(self) -> tuple:
        """What makes two cases one and the same prompt: the text, and the picture that comes with it."""
        return (self.asked.text, *(() if isinstance(self.asked, Prompt) else self.content))

    @cached_property
    def name(self) -> str:
        """Name of its files. It changes with the text and the scenes, should the domain ever change."""
        digest = blake2b(repr(self.asked).encode(), digest_size=4).hexdigest()
        return f"{self.seed}-{self.number:05}-{digest}"


def one(kind: str, seed: int, number: int) -> Case:
    """The case of a number."""
    group = KINDS[kind]
    return Case(kind, seed, number, DRAW[group](seed, "held out", number, GROUPS[group][kind]))


def collect(kind: str, seeds: Sequence[int], samples: int) -> list[Case]:
    """Cases of one kind, `samples` for every seed, no prompt twice as long as there are others.

    The first cases are the same whatever `samples` is, until texts repeat.
    """
    taken: list[Case] = []
    known: set[tuple] = set()
    for seed in seeds:
        fresh: list[Case] = []
        spare: list[Case] = []
        for number in range(TRIES * samples):
            if len(fresh) == samples:
                break
            case = one(kind, seed, number)
            (spare if case.unit in known else fresh).append(case)
            known.add(case.unit)
        taken += [*fresh, *spare[: samples - len(fresh)]]
    return taken


def choose(names: Sequence[str]) -> list[str]:
    """The kinds that names of kinds and of groups mean, in the table's order; all if none is named.

    Raises:
        ValueError: no such kind or group.
    """
    unknown = [name for name in names if name not in KINDS and name not in GROUPS]
    if unknown:
        raise ValueError(
            f"--only {unknown[0]} is no kind of the score: use {', '.join(GROUPS)} or one of "
            f"{', '.join(KINDS)}"
        )
    return [kind for kind, group in KINDS.items() if not names or kind in names or group in names]
