"""DPG-Bench (TencentQQGYLab/ELLA): 1,065 long prompts, and yes/no questions that depend on each other.

The official judge is mPLUG through modelscope, whose results are imported. A chat model can be asked the same
questions; its numbers are its own. A picture is a 2 x 2 grid of four samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..benchmark import (
    AS_PUBLISHED,
    CORRECTED,
    Answer,
    Benchmark,
    Checkout,
    File,
    Item,
    Picture,
    Request,
    Row,
    Shown,
    Source,
    Unreadable,
)
from ..reading import table_of, text_of

SAMPLES = 4
TABLE = "dpg_bench/dpg_bench.csv"
PROMPTS = "dpg_bench/prompts/*.txt"
SOURCE = Source(
    "github:TencentQQGYLab/ELLA",
    "3c228f1dc6c4d3cad0a47493816151a419f14db3",
    (
        File(TABLE, "git:98457fc9901943f51ff9a30367250fc292533bed"),
        File(PROMPTS, "sha256:1578603a42ef1cab808318588670915f7d3a93e45418cf0df07514681deef9de", 1065),
    ),
    "Apache-2.0",
    size=7_780_000,
)


class MissingParent(ValueError):
    """A question depends on one that is not there; the official script drops the picture."""


@dataclass(frozen=True)
class Question:
    """A question about an item.

    Attributes:
        parents: numbers of the questions that must be answered with yes; 0: none.
        kind: ``tuple`` of the table, such as ``attribute - color (…)``.
        text: as it is asked.
    """

    parents: tuple[int, ...]
    kind: str
    text: str

    @property
    def category(self) -> str:
        """The finer category (L2)."""
        return self.kind.split("(")[0].strip()


Questions = dict[int, Question]


def read_table(rows: Sequence[Mapping[str, Any]], mode: str = AS_PUBLISHED) -> dict[str, Questions]:
    """Questions by item and number, in the order of the table.

    As published: the first row is lost, and a second block of rows of an item replaces the first.

    Raises:
        ValueError: no dependency has a comma, so that the official script stops; or a cell is not a number.
    """
    published = mode == AS_PUBLISHED
    numbers = [re.fullmatch(r"\s*-?\d+\s*", str(row["dependency"])) for row in rows]
    if published and len(rows) > 1 and all(numbers):
        raise ValueError(
            "The table of DPG-Bench has no dependency with a comma: the official script stops at it."
        )
    items: dict[str, Questions] = {}
    previous = None
    for row in rows[1:] if published else rows:
        name = row["item_id"]
        if name not in items or (published and name != previous):
            items[name] = {}
        parents = tuple(int(number) for number in str(row["dependency"]).split(","))
        question = Question(parents, row["tuple"], row["question_natural_language"])
        items[name][int(row["proposition_id"])] = question
        previous = name
    return items


def with_parents(questions: Questions, answers: Mapping[int, float]) -> dict[int, float]:
    """Scores of one tile: in the table's order, a question with a parent whose score is 0 *now* becomes 0.

    Raises:
        MissingParent: a parent is looked up that is no question of the item.
    """
    scores = {number: answers[number] for number in questions}
    for number, question in questions.items():
        for parent in question.parents:
            if parent == 0:
                continue
            if parent not in scores:
                raise MissingParent(str(parent))
            if scores[parent] == 0:
                scores[number] = 0.0
                break
    return scores


@dataclass(frozen=True)
class Graded:
    """A picture's result.

    Attributes:
        tiles: a score per tile, 0 to 1.
        categories: sum and number of the scores that each fine category's score is made of.
    """

    tiles: tuple[float, ...]
    categories: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Score of the picture."""
        return sum(self.tiles) / len(self.tiles)


def grade(questions: Questions, tiles: Sequence[Mapping[int, float]], mode: str = AS_PUBLISHED) -> Graded:
    """The result of a picture.

    As published, categories are those of the last tile alone, without dependencies.

    Args:
        questions: of the item.
        tiles: per tile, 1 or 0 by number of the question.

    Raises:
        MissingParent: the official script drops the picture.
    """
    zeroed = [with_parents(questions, answers) for answers in tiles]
    counted = [tiles[-1]] if mode == AS_PUBLISHED else zeroed
    categories: dict[str, tuple[float, int]] = {}
    for scores in counted:
        for number, question in questions.items():
            add(categories, question.category, scores[number], 1)
    return Graded(tuple(sum(scores.values()) / len(scores) for scores in zeroed), categories)


def totals(graded: Iterable[Graded]) -> dict[str, float]:
    """Percent: ``overall``, then coarse and fine categories, as "entity" and "entity - whole"."""
    graded = list(graded)
    fine: dict[str, tuple[float, int]] = {}
    coarse: dict[str, tuple[float, int]] = {}
    for picture in graded:
        for category, (total, count) in picture.categories.items():
            add(fine, category, total, count)
    for category, (total, count) in fine.items():
        add(coarse, category.split("-")[0].strip(), total, count)
    sums = (
        {"overall": (sum(picture.mean for picture in graded), len(graded))}
        | coarse
        | dict(sorted(fine.items()))
    )
    return {name: 100 * total / count for name, (total, count) in sums.items() if count}


def add(sums: dict[str, tuple[float, int]], name: str, total: float, count: int) -> None:
    """Add to a sum and its number."""
    before = sums.get(name, (0.0, 0))
    sums[name] = (before[0] + total, before[1] + count)


@dataclass(frozen=True)
class DPG(Benchmark):
    """DPG-Bench."""

    name: str = "dpg"
    title: str = "DPG-Bench"
    unit: str = "percent"
    sources: tuple[Source, ...] = (SOURCE,)
    judge: None = None
    official: str = "mPLUG"
    modes: tuple[str, ...] = (AS_PUBLISHED, CORRECTED)

    def items(self, checkout: Checkout) -> list[Item]:
        """One a text file, in the order of their names. Raises ValueError."""
        table = table_of(checkout.path(SOURCE, TABLE))
        asked = {mode: read_table(table, mode) for mode in self.modes}
        items = []
        for path in sorted(checkout.path(SOURCE, PROMPTS).parent.glob("*.txt"), key=lambda p: p.name):
            name = path.stem
            if name not in asked[CORRECTED]:
                raise ValueError(f"{path} has no questions in {TABLE}; fetch dpg again.")
            questions = {mode: asked[mode].get(name, {}) for mode in self.modes}
            picture = Picture(f"{name}.png", tuple(range(SAMPLES)))
            items.append(Item(name, text_of(path).strip(), (picture,), "", data=questions))
        return items

    def requests(self, item: Item, checkout: Checkout) -> list[Request]:
        """Every question of every tile, for a chat model."""
        return [
            Request(
                f"{item.key}/{tile}/{number}",
                item.key,
                (Shown(item.pictures[0].path, tile), f"{question.text}\nAnswer with yes or no only."),
            )
            for tile in range(SAMPLES)
            for number, question in item.data[CORRECTED].items()
        ]

    def read(self, request: Request, text: str, mode: str = AS_PUBLISHED) -> str:
        """yes or no, whatever stands behind it. Raises Unreadable."""
        found = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
        if not found:
            raise Unreadable("neither yes nor no")
        return found[1].lower()

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """``…_results.txt``, or ``…_results_detail.txt``, which knows categories too. Raises ValueError."""
        known = {item.key: item for item in items}
        answers = []
        asked: dict[tuple[str, str], list[str]] = {}
        for line in text_of(path).splitlines():
            if line.startswith("Model: "):
                break
            detail = re.fullmatch(r"(.+?), \((\d+, \d+, \d+, \d+)\), .*, (\S*)", line)
            scores = re.fullmatch(r"(.+?)((?:, [\d.]+)+)", line)
            name = Path((detail or scores)[1]).name.split(".")[0] if detail or scores else ""
            if name not in known:
                raise ValueError(f"{path} holds {line[:60]!r}, which is no result of an item of {self.name}.")
            if detail:
                asked.setdefault((name, detail[2]), []).append(detail[3])
            else:
                *tiles, _ = map(float, scores[2].split(", ")[1:])
                answers.append(Answer(known[name].pictures[0].path, name, verdict={"tiles": tiles}))
        return answers + detailed(known, asked)

    def lost(self, item: Item, mode: str = AS_PUBLISHED) -> bool:
        """Whether a question depends on one that is not there: the item whose first question is lost."""
        questions = item.data[mode]
        return any(parent and parent not in questions for q in questions.values() for parent in q.parents)

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str = AS_PUBLISHED) -> list[Row]:
        """A row an item that is not dropped; verdicts "yes" and "no" by question, or tiles by picture."""
        rows = []
        for item in items:
            whole = verdicts.get(item.pictures[0].path)
            if whole is not None:
                if mode == AS_PUBLISHED:  # what was lost on the way to a tile's score cannot be brought back
                    rows.append(self.row(item, Graded(tuple(whole["tiles"])), ""))
                continue
            questions = item.data[mode]
            tiles = [
                {n: float(verdicts.get(f"{item.key}/{tile}/{n}") == "yes") for n in questions}
                for tile in range(SAMPLES)
            ]
            try:
                graded = grade(questions, tiles, mode)
            except (MissingParent, ZeroDivisionError):
                continue  # as published; corrected, the table is whole
            missed = [q.text for n, q in questions.items() if any(answers[n] == 0 for answers in tiles)]
            rows.append(self.row(item, graded, f"no: {' '.join(missed)}" if missed else ""))
        return rows

    def row(self, item: Item, graded: Graded, seen: str) -> Row:
        """The row of an item."""
        return Row(item.key, item.group, graded, graded.mean, item.prompt, seen)

    def figures(self, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, float]:
        """Percent, as :func:`totals`."""
        return totals(row.value for row in rows)


def detailed(known: Mapping[str, Item], asked: Mapping[tuple[str, str], list[str]]) -> list[Answer]:
    """Answers by question, from the lines of a tile in the order of the questions. Raises ValueError."""
    answers = []
    corners = {name: sorted({box for item, box in asked if item == name}, key=corner) for name, _ in asked}
    for (name, box), said in asked.items():
        numbers = list(known[name].data[AS_PUBLISHED])
        if len(said) != len(numbers):
            raise ValueError(
                f"The results have {len(said)} answers for {name}, which has {len(numbers)} questions."
            )
        tile = corners[name].index(box)
        answers += [
            Answer(f"{name}/{tile}/{number}", name, verdict=answer)
            for number, answer in zip(numbers, said, strict=True)
        ]
    return answers


def corner(box: str) -> tuple[int, int]:
    """Top and left of a tile, which sort row by row."""
    left, top, *_ = map(int, box.split(", "))
    return top, left


SETS = (DPG(),)
