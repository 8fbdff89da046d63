"""Answers become a score: rows, figures, standard errors; a set that is not whole has no overall figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .benchmark import AS_PUBLISHED, Answer, Benchmark, Checkout, Item, Request, Row, Unreadable

DRAWS = 1000
SEED = 20260101
INTERVAL = (2.5, 97.5)  # percentiles
LIMIT = 0.01  # share of answers that may be unreadable
SHOWN = 5  # keys that a sentence lists


@dataclass(frozen=True)
class Figure:
    """A number with what sampling of prompts does to it.

    Attributes:
        value: the score.
        error: its standard error.
        low, high: its 95 % interval.
    """

    value: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """What a set says about a model.

    Attributes:
        name: of the set; with the judge where it takes the place of the official detector or VQA model, the
            mode unless that is "as published", and "modified" for changed prompts.
        benchmark: name of the set.
        mode: "as published" or "corrected".
        unit: of the figures.
        judge: who judged.
        figures: by name, the headline first.
        rows: items that the figures are made of; ``of``: items of the set.
        unreadable: answers without a verdict; ``asked``: all answers.
        digest: of the set's files.
        partial: not the full set: there is no overall figure.
        modified: the set's files are not the published ones.
        counts: rows of each group.
    """

    name: str
    benchmark: str
    mode: str
    unit: str
    judge: str
    figures: Mapping[str, Figure]
    rows: int
    of: int
    unreadable: int
    asked: int
    digest: str
    partial: bool = False
    modified: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Verdicts:
    """What was said of a set.

    Attributes:
        read: verdicts by key of the request or path of the picture.
        unreadable: keys of answers without one.
        missing: keys of items that nobody answered for, or not in full.
    """

    read: Mapping[str, Any]
    unreadable: Sequence[str]
    missing: Sequence[str]


def verdicts(
    benchmark: Benchmark,
    items: Sequence[Item],
    checkout: Checkout,
    answers: Mapping[str, Answer],
    mode: str = AS_PUBLISHED,
) -> Verdicts:
    """Read the answers to a set's requests, or those about its pictures.

    Args:
        benchmark: the set.
        items: all of it.
        checkout: its files.
        answers: by key of the request or path of the picture.
        mode: how they are read.
    """
    read: dict[str, Any] = {}
    unreadable, missing = [], []
    for item in items:
        requests = benchmark.requests(item, checkout)
        by_picture = {picture.path: None for picture in item.pictures}
        by_request = {request.key: request for request in requests}
        known = by_picture if all(key in answers for key in by_picture) or not requests else by_request
        for key, request in known.items():
            if key not in answers:
                continue
            try:
                read[key] = verdict(benchmark, request, answers[key], mode)
            except Unreadable:
                unreadable.append(key)
        if not all(key in answers for key in known) and not benchmark.lost(item, mode):
            missing.append(item.key)
    return Verdicts(read, unreadable, missing)


def verdict(benchmark: Benchmark, request: Request | None, answer: Answer, mode: str) -> Any:
    """The verdict of an answer. Raises Unreadable."""
    if answer.verdict is not None:
        return answer.verdict
    if answer.text is None or request is None:
        raise Unreadable("no answer")
    return benchmark.read(request, answer.text, mode)


def score(
    benchmark: Benchmark,
    items: Sequence[Item],
    checkout: Checkout,
    answers: Mapping[str, Answer],
    judge: str,
    mode: str = AS_PUBLISHED,
    partial: bool = False,
) -> tuple[Score, list[Row]]:
    """The score of a full set, and its rows.

    Args:
        benchmark: the set.
        items: all of it.
        checkout: its files.
        answers: by key of the request or path of the picture.
        judge: its name.
        mode: one of the set's.
        partial: take what is there; figures that span the set are left out.

    Raises:
        ValueError: no such mode, answers are missing, too many cannot be read, or there are none.
    """
    if mode not in benchmark.modes:
        raise ValueError(f"{benchmark.name} has no mode {mode!r}; it has {', '.join(benchmark.modes)}.")
    said = verdicts(benchmark, items, checkout, answers, mode)
    asked = len(said.read) + len(said.unreadable)
    if said.missing and not partial:
        raise ValueError(
            f"{benchmark.name} is not whole: {len(said.missing):,} of {len(items):,} items lack answers "
            f"({', '.join(said.missing)}); judge the rest, or see the rows alone with --partial."
        )
    if len(said.unreadable) > LIMIT * asked:
        raise ValueError(
            f"{len(said.unreadable):,} of {asked:,} answers about {benchmark.name} cannot be read, more than "
            f"{LIMIT:.0%} ({listed(said.unreadable)}); judge them again, or take another judge."
        )
    gone = set(said.missing)
    rows = benchmark.rows([item for item in items if item.key not in gone], said.read, mode)
    if not rows:
        raise ValueError(f"No item of {benchmark.name} was judged.")
    figures = bootstrapped(benchmark, rows, mode)
    if partial:
        figures = {name: figure for name, figure in figures.items() if "overall" not in name}
    return (
        Score(
            name=named(benchmark, judge, mode, checkout.modified),
            benchmark=benchmark.name,
            mode=mode,
            unit=benchmark.unit,
            judge=judge,
            figures=figures,
            rows=len(rows),
            of=len(items),
            unreadable=len(said.unreadable),
            asked=asked,
            digest=checkout.digest,
            partial=partial,
            modified=checkout.modified,
            counts=dict(Counter(row.group for row in rows)),
        ),
        rows,
    )


def named(benchmark: Benchmark, judge: str, mode: str, modified: bool) -> str:
    """What a score is called, so that none is taken for another."""
    name = benchmark.name
    if benchmark.judge is None and judge != benchmark.official:
        name += f" ({judge})"
    if mode != AS_PUBLISHED:
        name += f" ({mode})"
    return f"{name} (modified)" if modified else name


def listed(keys: Sequence[str]) -> str:
    """The first of some keys."""
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else "")


def bootstrapped(benchmark: Benchmark, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, Figure]:
    """Figures with standard errors and intervals: prompts are drawn anew, within their groups, 1,000 times.

    The draws depend on the number of prompts of each group and a fixed seed alone.
    """
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.group, []).append(number)
    random = np.random.default_rng(SEED)
    values = benchmark.figures(rows, mode)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(DRAWS):
        chosen = np.concatenate([random.choice(numbers, len(numbers)) for numbers in groups.values()])
        figures = benchmark.figures([rows[number] for number in chosen], mode)
        for name in drawn:
            if name in figures:
                drawn[name].append(figures[name])
    return {name: figure(value, drawn[name]) for name, value in values.items()}


def figure(value: float, drawn: Sequence[float]) -> Figure:
    """A figure from its value and the values of the draws."""
    low, high = np.percentile(drawn, INTERVAL)
    return Figure(float(value), float(np.std(drawn, ddof=1)), float(low), float(high))
