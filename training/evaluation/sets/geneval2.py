"""GenEval 2 (facebookresearch/GenEval2): 800 prompts of 3 to 10 atoms; Soft-TIFA with Qwen3-VL-8B."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark import (
    AS_PUBLISHED,
    Answer,
    Benchmark,
    Checkout,
    File,
    Item,
    Judge,
    Picture,
    Request,
    Row,
    Shown,
    Source,
    Unreadable,
)
from ..reading import json_of, lines_of

DATA = "geneval2_data.jsonl"
SOURCE = Source(
    "github:facebookresearch/GenEval2",
    "a6e82d2289e8d418f27f0adee77908b07060eea3",
    (File(DATA, "sha256:09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43"),),
    "CC BY-NC 4.0",
    size=423_220,
)

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SKILLS = ("object", "attribute", "count", "position", "verb")


def asked(question: str) -> str:
    """The text of a request."""
    return f"{question} Answer in one word."


def accepted(question: str, answer: str) -> tuple[str, ...]:
    """Spellings of the right answer; the probabilities of their first tokens are added."""
    if not question.startswith("How many"):
        return ("Yes", "yes", " yes", " Yes")
    digits = str(NUMBERS.index(answer) + 1) if answer in NUMBERS else "other"
    words = (answer, answer.capitalize())
    return (*words, *(f" {word}" for word in words), digits, f" {digits}")


def geometric_mean(values: Sequence[float]) -> float:
    """0 where one value is 0."""
    if any(value == 0 for value in values):
        return 0.0
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def totals(prompts: Sequence[tuple[int, Sequence[str], Sequence[float]]]) -> dict[str, float]:
    """Percent: Soft-TIFA GM and AM, skills (AM, over questions), atomicities (GM, over prompts).

    Args:
        prompts: atoms, a skill per question, a probability of the right answer per question.

    Raises:
        ValueError: a skill is unknown, or a prompt has not a probability for every question.
    """
    by_skill: dict[str, list[float]] = {name: [] for name in SKILLS}
    by_atoms: dict[int, list[float]] = {}
    means = []
    for atoms, skills, probabilities in prompts:
        if len(skills) != len(probabilities):
            raise ValueError(
                f"A prompt of GenEval 2 has {len(skills)} skills and {len(probabilities)} answers."
            )
        for skill, probability in zip(skills, probabilities, strict=True):
            if skill not in by_skill:
                raise ValueError(f"GenEval 2 knows no skill {skill!r}; it knows {', '.join(SKILLS)}.")
            by_skill[skill].append(probability)
        by_atoms.setdefault(atoms, []).append(geometric_mean(probabilities))
        means.append(mean(probabilities))
    every = [value for values in by_atoms.values() for value in values]
    figures: Mapping[str, list[float]] = {"overall (GM)": every, "overall (AM)": means}
    figures = figures | by_skill | {f"{atoms} atoms": by_atoms[atoms] for atoms in sorted(by_atoms)}
    return {name: 100 * mean(values) for name, values in figures.items() if values}


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class GenEval2(Benchmark):
    """GenEval 2."""

    name: str = "geneval2"
    title: str = "GenEval 2"
    unit: str = "percent"
    sources: tuple[Source, ...] = (SOURCE,)
    judge: Judge = Judge("Qwen/Qwen3-VL-8B-Instruct", temperature=0.0, max_tokens=1)
    official: str = "Qwen/Qwen3-VL-8B-Instruct"
    modes: tuple[str, ...] = (AS_PUBLISHED,)

    def items(self, checkout: Checkout) -> list[Item]:
        """One a line, in the order of the file. Raises ValueError."""
        return [
            Item(
                f"{number:04}",
                record["prompt"],
                (Picture(f"{number:04}.png", (0,)),),
                f"{record['atom_count']} atoms",
                data=record,
            )
            for number, record in enumerate(lines_of(checkout.path(SOURCE, DATA)))
        ]

    def requests(self, item: Item, checkout: Checkout) -> list[Request]:
        """A call a question; the verdict is the probability of the right answer."""
        shown = Shown(item.pictures[0].path)
        return [
            Request(f"{item.key}/{n}", item.key, (shown, asked(question)), choices=accepted(question, answer))
            for n, (question, answer) in enumerate(item.data["vqa_list"])
        ]

    def read(self, request: Request, text: str, mode: str = AS_PUBLISHED) -> float:
        """Raises Unreadable: a text says nothing of the probability that it had."""
        raise Unreadable("no probability of the answer")

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """The list of lists that ``evaluation.py`` writes, in the order of the prompts. Raises ValueError."""
        lists = json_of(path)
        if len(lists) != len(items):
            raise ValueError(f"{path} has {len(lists)} prompts; {self.name} has {len(items)}.")
        return [
            Answer(f"{item.key}/{n}", item.key, verdict=probability)
            for item, probabilities in zip(items, lists, strict=True)
            for n, probability in enumerate(probabilities)
        ]

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str = AS_PUBLISHED) -> list[Row]:
        """Prompts of which every question was answered."""
        rows = []
        for item in items:
            said = [verdicts.get(f"{item.key}/{n}") for n in range(len(item.data["vqa_list"]))]
            if None not in said:
                value = (item.data["atom_count"], item.data["skills"], said)
                doubted = [q for (q, _), p in zip(item.data["vqa_list"], said, strict=True) if p < 0.5]
                rows.append(
                    Row(item.key, item.group, value, geometric_mean(said), item.prompt, " ".join(doubted))
                )
        return rows

    def figures(self, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, float]:
        """Percent, as :func:`totals`."""
        return totals([row.value for row in rows])


SETS = (GenEval2(),)
