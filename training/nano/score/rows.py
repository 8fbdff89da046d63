"""From verdicts to the figures of the table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from . import intervals
from .cases import GROUPS
from .judging import VIEWS, Judged, Verdict

SHAPED = {  # kind -> its name in GenEval's shape; their mean is the overall figure
    "single": "single object",
    "two": "two objects",
    "count": "counting",
    "color": "colours",
    "position": "position",
    "binding": "attribute binding",
}
EDITS = {
    "recolor": "recolour (adjust)",
    "hybrid": "hybrid (two at once)",
    "action": "action (move, count)",
}
NAMES = {  # of a group's kinds, where they are not those of the domain
    "edit": EDITS,
    "masked": EDITS,
    "auto": EDITS,
    "ask": {"color": "which colour"},
}
KEPT = ("kept dB", "kept SSIM")


@dataclass
class Figure:
    """A mean with its interval and what stands beside it: shares in 0..1, or decibels.

    `beside` has the views of `judging.VIEWS` that there are.
    """

    value: float
    low: float
    high: float
    beside: dict[str, float] = field(default_factory=dict)


@dataclass
class Row:
    """One line of the table.

    Attributes:
        group: one of `cases.GROUPS`.
        name: of the line.
        prompts: units of the interval: different texts, or texts with their picture.
        scenes: how many different contents these tell.
        pictures: pictures or answers that were judged.
        main: what the line is about.
        kept: for edits, what must stay, by measure.
    """

    group: str
    name: str
    prompts: int
    scenes: int
    pictures: int
    main: Figure
    kept: dict[str, Figure] = field(default_factory=dict)


def clusters(parts: Sequence[Judged], measure: str, view: str | None = None) -> list[list[float]]:
    """Values of a measure by prompt, of the model or of a view; [] where it was not measured."""
    found: dict[tuple, list[float]] = defaultdict(list)
    for part in parts:
        verdicts: list[list[Verdict]] = part.model if view is None else part.views.get(view, [])
        for case, of_case in zip(part.cases, verdicts, strict=bool(verdicts)):
            found[case.unit] += [one[measure] for one in of_case if measure in one]
    return [values for values in found.values() if values]


def figure(parts: Sequence[Judged], measure: str) -> Figure:
    """The figure of a measure over one kind or several."""
    values = clusters(parts, measure)
    limits = intervals.of_mean(values) if measure == "kept dB" else intervals.of_share(values)
    beside = {view: clusters(parts, measure, view) for view in VIEWS}
    means = {view: intervals.mean(values) for view, values in beside.items() if values}
    return Figure(intervals.mean(values), *limits, means)


def average(figures: Sequence[Figure]) -> Figure:
    """The plain mean of figures, each of the same weight."""
    limits = intervals.of_average([(one.value, one.low, one.high) for one in figures])
    common = [view for view in VIEWS if all(view in one.beside for one in figures)]
    means = {view: fmean(one.beside[view] for one in figures) for view in common}
    return Figure(fmean(one.value for one in figures), *limits, means)


def row(group: str, name: str, parts: Sequence[Judged], measure: str) -> Row:
    """The line of a measure."""
    told = [case for part in parts for case, model in asked_about(part, measure)]
    values = clusters(parts, measure)
    kept = {what: figure(parts, what) for what in KEPT if clusters(parts, what)}
    contents = {case.content for case in told}
    return Row(group, name, len(values), len(contents), sum(map(len, values)), figure(parts, measure), kept)


def asked_about(part: Judged, measure: str) -> list[tuple]:
    """The cases of which a measure says something, with their verdicts."""
    return [pair for pair in zip(part.cases, part.model, strict=True) if any(measure in v for v in pair[1])]


def overall(name: str, rows: Sequence[Row]) -> Row:
    """The mean of lines of one group."""
    sums = (sum(getattr(one, what) for one in rows) for what in ("prompts", "scenes", "pictures"))
    kept = {what: average([one.kept[what] for one in rows if what in one.kept]) for what in rows[0].kept}
    return Row(rows[0].group, name, *sums, average([one.main for one in rows]), kept)


def make_rows(judged: dict[str, Judged]) -> list[Row]:
    """Every line for which something was judged; an overall one only where all its kinds were."""
    rows: list[Row] = []
    shaped = [row("draw", name, [judged[kind]], "right") for kind, name in SHAPED.items() if kind in judged]
    rows += shaped
    if len(shaped) == len(SHAPED):
        rows.append(overall("overall: mean of six", shaped))
    drawn = [judged[kind] for kind in GROUPS["draw"] if kind in judged]
    for what in ("background", "style"):
        if clusters(drawn, what):
            rows.append(row("draw", what, drawn, what))
    for kind, measures in {
        "dense": {"facts": "dense: stated facts", "whole": "dense: all of a text"},
        "text": {"letters": "text: letters", "word": "text: whole words", "read": "text: words, RapidOCR"},
    }.items():
        for measure, name in measures.items():
            if kind in judged and clusters([judged[kind]], measure):
                rows.append(row("draw", name, [judged[kind]], measure))
    for group, names in NAMES.items():
        kinds = {kind: told for kind, told in GROUPS[group].items() if kind in judged}
        own = [row(group, names.get(told, told), [judged[kind]], "right") for kind, told in kinds.items()]
        rows += own
        if len(own) == len(GROUPS[group]):
            rows.append(overall(f"overall: mean of {len(own)}", own))
    return rows


def is_number(value: float | None) -> bool:
    """Whether there is a figure to print."""
    return value is not None and not math.isnan(value)
