"""Verdicts on the model's pictures and answers, and on the others that stand beside them in the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np

from ..domain.edits import Edit
from ..domain.facts import GENERAL, holds
from ..domain.prompts import Prompt
from ..domain.render import render
from ..domain.scene import Scene
from ..judge.changed import change_general, change_one
from ..judge.preservation import preservation
from ..judge.verdicts import facts_right, follows, follows_edit, general, letters_right
from .cases import Asked, Case
from .drawing import Pictures

Verdict = dict[
    str, float
]  # measure -> 0..1, or decibels for "kept dB"; a measure without meaning is left out
See = Callable[[Pictures], list[Scene]]
PAIRINGS = 20  # other scenes that every prompt is held against for the column "chance"
VIEWS = {  # what stands beside the model's figures
    "truth": "the judge on the true pictures",
    "rebuilt": "the judge on true pictures after the model's autoencoder, the ceiling of any model with it",
    "shuffled": "the judge on the true picture of another prompt of the kind",
    "changed": "the judge on true pictures and prompts with one property made wrong; of an edit, on its "
    "unchanged source",
    "chance": "another scene of the kind seen without error; of questions, the most frequent answer",
}


@dataclass
class Judged:
    """Everything about one kind.

    Attributes:
        cases: what was asked.
        shown: every case's pictures by the model [size, size, 3] uint8; none for questions.
        seen: what the judge saw in them, or for questions the answers.
        model: verdicts on every case's pictures or answers.
        views: the same for every view of `VIEWS` that there is.
    """

    cases: list[Case]
    shown: list[Pictures]
    seen: list[list[Scene]] | list[list[str]]
    model: list[list[Verdict]]
    views: dict[str, list[list[Verdict]]] = field(default_factory=dict)


def verdict(asked: Asked, seen: Scene, picture: np.ndarray | None = None) -> Verdict:
    """All measures of one picture; without a `picture` those that look at pixels are left out."""
    if isinstance(asked, Edit):
        kept = preservation(picture, asked) if picture is not None else None
        values = {"right": follows_edit(seen, asked)} | (
            {"kept dB": kept[0], "kept SSIM": kept[1]} if kept else {}
        )
    else:
        values = {"right": follows(seen, asked)}
        values |= {what: verdict for what in GENERAL if (verdict := general(seen, asked, what)) is not None}
        if asked.kind == "dense":
            values |= {"facts": facts_right(seen, asked), "whole": facts_right(seen, asked) == 1}
        if asked.kind == "text":
            [word] = [fact for fact in asked.facts if fact[0] == "word"]
            values |= {"letters": letters_right(seen, asked), "word": holds(word, seen)}
    return {name: float(value) for name, value in values.items()}


def spoil(random: Random, prompt: Prompt) -> Prompt:
    """The prompt with one thing wrong of what each measure asks about.

    That is the word if it has one, else a fact about its objects; and style and background.
    """
    if prompt.kind == "text":
        prompt = replace(prompt, facts=tuple(f for f in prompt.facts if f[0] in ("word", *GENERAL)))
    return change_general(random, change_one(random, prompt))


def spoiled_verdict(random: Random, prompt: Prompt, seen: Scene) -> Verdict:
    """The verdict on the prompt with one thing wrong, less mean shares, which that hardly lowers."""
    verdicts = verdict(spoil(random, prompt), seen)
    return {name: value for name, value in verdicts.items() if name not in ("facts", "letters")}


def rotated(values: Sequence, by: int = 1) -> list:
    """Every value moved on, so that nothing stands beside its own."""
    return [*values[by:], *values[:by]]


def judge_pictures(
    cases: list[Case],
    shown: list[Pictures],
    see: See,
    rebuild: Callable[[Pictures], Pictures] | None = None,
) -> Judged:
    """Verdicts on pictures of prompts or of edits.

    Args:
        shown: as many pictures of every case.
        rebuild: the model's autoencoder; None leaves out what needs the drawings of the objects.
    """
    copies = len(shown[0])
    flat = see([picture for of_case in shown for picture in of_case])
    seen = [flat[i : i + copies] for i in range(0, len(flat), copies)]
    model = [
        [verdict(case.asked, *pair) for pair in zip(*of_case, strict=True)]
        for case, *of_case in zip(cases, seen, shown, strict=True)
    ]
    views = {"chance": chance(cases)}
    if rebuild is not None:
        views |= beside(cases, see, rebuild, size=len(shown[0][0]))
    return Judged(cases, shown, seen, model, views)


def beside(
    cases: list[Case], see: See, rebuild: Callable[[Pictures], Pictures], size: int
) -> dict[str, list[list[Verdict]]]:
    """Verdicts on true pictures: their own, rebuilt, another prompt's, and against a prompt made wrong."""
    asked = [case.asked for case in cases]
    true = [render(case.wanted, size) for case in cases]
    again = rebuild(true)
    found = see(true)
    random = Random("spoiled")
    if isinstance(asked[0], Edit):
        sources = see([render(edit.source, size) for edit in asked])
        changed = [verdict(edit, source) for edit, source in zip(asked, sources, strict=True)]
    else:
        changed = [spoiled_verdict(random, *pair) for pair in zip(asked, found, strict=True)]
    single = {
        "truth": [verdict(*three) for three in zip(asked, found, true, strict=True)],
        "rebuilt": [verdict(*three) for three in zip(asked, see(again), again, strict=True)],
        "shuffled": [verdict(*pair) for pair in zip(asked, rotated(found), strict=True)],
        "changed": changed,
    }
    return {view: [[one] for one in verdicts] for view, verdicts in single.items()}


def read_words(
    part: Judged, read: Callable[[np.ndarray], str], rebuild: Callable[[Pictures], Pictures]
) -> None:
    """Add a second reader's verdicts to those on words: 1 where it reads the word that was asked for.

    Args:
        part: of the kind "text"; the model's pictures are read and, where they were judged, true ones and
            these rebuilt.
        read: a picture to letters.
        rebuild: the model's autoencoder.
    """
    looked_at = [(part.model, part.shown)]
    if "truth" in part.views:
        size = len(part.shown[0][0])
        true = [render(case.wanted, size) for case in part.cases]
        for view, pictures in (("truth", true), ("rebuilt", rebuild(true))):
            looked_at.append((part.views[view], [[picture] for picture in pictures]))
    for verdicts, pictures in looked_at:
        for case, of_case, shown in zip(part.cases, verdicts, pictures, strict=True):
            for one, picture in zip(of_case, shown, strict=True):
                one["read"] = float(read(picture) == case.wanted.word.letters)


def chance(cases: list[Case]) -> list[list[Verdict]]:
    """Every prompt against the scenes of the next ones, seen without error."""
    scenes = [case.wanted for case in cases]
    pairings = [rotated(scenes, by) for by in range(1, min(PAIRINGS, len(cases) - 1) + 1)]
    return [
        [verdict(case.asked, scene) for scene in others]
        for case, *others in zip(cases, *pairings, strict=True)
    ]


def judge_answers(cases: list[Case], answers: list[str]) -> Judged:
    """Exact match of answers, beside those to other questions and the most frequent one."""
    right = [case.asked.answer for case in cases]
    [(usual, _)] = Counter(right).most_common(1)

    def compare(given: Sequence[str]) -> list[list[Verdict]]:
        return [[{"right": float(g == r)}] for g, r in zip(given, right, strict=True)]

    views = {"shuffled": compare(rotated(right)), "chance": compare([usual] * len(right))}
    return Judged(cases, [[] for _ in cases], [[answer] for answer in answers], compare(answers), views)
