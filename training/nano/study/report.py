"""Tables and a plot of the finished runs of a study.

`python -m tbac_uniimage.training.nano.study.report rungs runs/study/rungs` writes `report.md` and
`report.png` there. Every side is compared with the study's first seed by seed, as runs of a seed share all
that is random.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ...report.log import METRICS, read_lines
from ..files import replace_file
from .studies import STUDIES, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % points, 1 to 9 degrees
LOSS = "held-out loss"
KEPT = "kept dB"
COLOURS = ("#1f5fa8", "#d9730d", "#c62828", "#7b3fa0", "#2e7d4f")  # of the sides in their order
Runs = dict[str, dict[int, "Run"]]  # by side and seed


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        losses: samples seen and held-out loss at every validation, of all samples and of every data set.
        figures: the last of each, and the figures of every row of the score.
    """

    losses: dict[str, list[tuple[int, float]]]
    figures: dict[str, float]


def read_run(folder: Path) -> Run | None:
    """A run, if it is scored; None if it is not there yet."""
    score = folder / "score.json"
    if not score.is_file():
        return None
    losses: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(folder / METRICS):
        found = {LOSS: line.get("validation_loss")}
        found |= {f"{LOSS}, {name}": loss for name, loss in line.get("validation_losses", {}).items()}
        for name, loss in found.items():
            if loss is not None:
                losses.setdefault(name, []).append((line["samples"], loss))
    figures = {name: curve[-1][1] for name, curve in losses.items()}
    for row in json.loads(score.read_text())["rows"]:
        figures |= figures_of(row)
    return Run(losses, figures)


def figures_of(row: dict[str, Any]) -> dict[str, float]:
    """Those of a row of the score; kinds of edits may be called as kinds of prompts are."""
    name = row["name"] if row["group"] == "draw" else f"{row['group']}, {row['name']}"
    found = {name: row["main"]["value"]}
    if KEPT in row["kept"]:
        found[f"{name}: {KEPT}"] = row["kept"][KEPT]["value"]
    return found


def read_study(study: Study, folder: Path) -> Runs:
    """The finished runs of a study, by side and seed."""
    found: Runs = {}
    for side in study.sides:
        for path in sorted(folder.glob(f"{side}-*")):
            seed = path.name.removeprefix(f"{side}-")
            if seed.isdigit() and (run := read_run(path)):
                found.setdefault(side, {})[int(seed)] = run
    return found


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, after Student; NaN of a single value."""
    if len(values) < 2:
        return math.nan
    quantile = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    return quantile * stdev(values) / math.sqrt(len(values))


def told(values: Sequence[float], signed: bool = False) -> str:
    """Mean and interval as text."""
    mean, half = fmean(values), interval(values)
    text = f"{mean:+.4f}" if signed else f"{mean:.4f}"
    return text if math.isnan(half) else f"{text} ± {half:.4f}"


def table(runs: Runs, what: Callable[[str, str], str]) -> list[str]:
    """A row for every figure that all runs have, a column for every side."""
    every = [run for seeds in runs.values() for run in seeds.values()]
    names = [name for name in every[0].figures if all(run.figures.get(name) is not None for run in every)]
    lines = [f"| | {' | '.join(runs)} |", f"| --- |{' ---: |' * len(runs)}"]
    return lines + [f"| {name} | {' | '.join(what(side, name) for side in runs)} |" for name in names]


def write_tables(study: Study, runs: Runs) -> str:
    """The report as Markdown: figures of every side, then their differences from the first."""
    first = next(iter(study.sides))

    def absolute(side: str, name: str) -> str:
        return told([run.figures[name] for run in runs[side].values()])

    def against_first(side: str, name: str) -> str:
        shared = [seed for seed in runs[side] if seed in runs[first]]
        if side == first or not shared:
            return "–"
        pairs = [runs[side][seed].figures[name] - runs[first][seed].figures[name] for seed in shared]
        return told(pairs, signed=True)

    seeds = ", ".join(f"{side} {' '.join(map(str, found))}" for side, found in runs.items())
    lines = [f"Seeds: {seeds}. Means over seeds, ± half of the 95 % interval (Student).", ""]
    lines += table(runs, absolute)
    if first in runs:
        lines += ["", f"Differences from {first} of the same seed:", "", *table(runs, against_first)]
    return "\n".join(lines) + "\n"


def draw(study: Study, runs: Runs) -> Figure:
    """Held-out loss over the samples seen, a panel for every data set, and the figures that the study shows.

    Runs are faint lines and dots; sides are their means, of figures with the 95 % interval.
    """
    from matplotlib.figure import Figure

    losses = list(next(iter(next(iter(runs.values())).values())).losses)
    losses = losses[1:] or losses
    width = len(losses) + len(study.shown)
    figure = Figure(figsize=(4.5 * max(width, 2), 5), dpi=120, layout="constrained")
    panels = figure.subplots(1, width, squeeze=False)[0]
    sides = [side for side in zip(study.sides, COLOURS, strict=False) if side[0] in runs]
    for axes, name in zip(panels, losses, strict=False):
        for side, colour in sides:
            draw_losses(axes, [run.losses[name] for run in runs[side].values()], side, colour)
        axes.set_xlabel("samples seen")
        axes.legend(frameon=False)
    for axes, name in zip(panels[len(losses) :], study.shown, strict=True):
        for place, (side, colour) in enumerate(sides):
            draw_figures(axes, place, [run.figures[name] for run in runs[side].values()], colour)
        axes.set_xticks(range(len(sides)), [side for side, _ in sides])
    for axes, name in zip(panels, (*losses, *study.shown), strict=True):
        axes.set_ylabel(name)
        axes.grid(color="#e5e7eb", linewidth=0.8)
    return figure


def draw_losses(axes: Axes, curves: list[list[tuple[int, float]]], side: str, colour: str) -> None:
    """The curves of a side's seeds and their mean."""
    for curve in curves:
        axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.25, linewidth=1)
    at = [samples for samples, _ in curves[0]]
    means = [fmean(losses) for losses in zip(*([y for _, y in curve] for curve in curves), strict=True)]
    axes.plot(at, means, "o-", color=colour, linewidth=2, markersize=4, label=side)


def draw_figures(axes: Axes, place: int, values: list[float], colour: str) -> None:
    """A figure of a side's seeds, their mean and its interval."""
    axes.plot([place - 0.15] * len(values), values, "o", color=colour, alpha=0.35, markersize=5)
    half = interval(values)
    axes.errorbar(place, fmean(values), None if math.isnan(half) else half, fmt="D", color=colour, capsize=5)


def main() -> None:
    """Write both files and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("folder", type=Path, help="where it was run")
    options = parser.parse_args()
    study = STUDIES[options.study]
    runs = read_study(study, options.folder)
    if not runs:
        sys.exit(f"{options.folder} holds no run that is finished and scored; run the study first.")
    text = write_tables(study, runs)
    replace_file(lambda partial: partial.write_text(text, encoding="utf-8"), options.folder / "report.md")
    figure = draw(study, runs)
    replace_file(lambda partial: figure.savefig(partial, format="png"), options.folder / "report.png")
    print(text)


if __name__ == "__main__":
    main()
