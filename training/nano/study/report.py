"""Tables and a plot of the finished runs of the study.

`python -m tbac_uniimage.training.nano.study.report runs/study` writes `report.md` and `report.png` there.
Every kind is compared with the ladder seed by seed, as runs of a seed share all that is random.
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
from typing import TYPE_CHECKING

from ....core.rung_kinds import RUNGS
from ...report.log import METRICS, read_lines
from ..files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % points, 1 to 9 degrees
LOSS = "held-out loss"
COLOURS = dict(zip(RUNGS, ("#1f5fa8", "#d9730d", "#c62828", "#7b3fa0", "#2e7d4f"), strict=True))


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        losses: samples seen and held-out loss, at every validation.
        figures: the last held-out loss, and the main figure of every row of the score.
    """

    losses: list[tuple[int, float]]
    figures: dict[str, float]


def read_run(folder: Path) -> Run | None:
    """A run, if it is scored; None if it is not there yet."""
    score = folder / "score.json"
    if not score.is_file():
        return None
    lines = [line for line in read_lines(folder / METRICS) if line.get("validation_loss") is not None]
    losses = [(line["samples"], line["validation_loss"]) for line in lines]
    rows = json.loads(score.read_text())["rows"]
    return Run(losses, {LOSS: losses[-1][1]} | {row["name"]: row["main"]["value"] for row in rows})


def read_study(folder: Path) -> dict[str, dict[int, Run]]:
    """The finished runs of a study, by kind and seed."""
    found: dict[str, dict[int, Run]] = {}
    for rungs in RUNGS:
        for path in sorted(folder.glob(f"{rungs}-*")):
            seed = path.name.removeprefix(f"{rungs}-")
            if seed.isdigit() and (run := read_run(path)):
                found.setdefault(rungs, {})[int(seed)] = run
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


def table(study: dict[str, dict[int, Run]], what: Callable[[str, str], str]) -> list[str]:
    """A row for every figure that all runs have, a column for every kind."""
    runs = [run for seeds in study.values() for run in seeds.values()]
    names = [name for name in runs[0].figures if all(run.figures.get(name) is not None for run in runs)]
    lines = [f"| | {' | '.join(study)} |", f"| --- |{' ---: |' * len(study)}"]
    return lines + [f"| {name} | {' | '.join(what(rungs, name) for rungs in study)} |" for name in names]


def write_tables(study: dict[str, dict[int, Run]]) -> str:
    """The report as Markdown: figures of every kind, then their differences from the ladder."""

    def absolute(rungs: str, name: str) -> str:
        return told([run.figures[name] for run in study[rungs].values()])

    def against_ladder(rungs: str, name: str) -> str:
        ladder = study["ladder"]
        shared = [seed for seed in study[rungs] if seed in ladder]
        if rungs == "ladder" or not shared:
            return "–"
        pairs = [study[rungs][seed].figures[name] - ladder[seed].figures[name] for seed in shared]
        return told(pairs, signed=True)

    seeds = ", ".join(f"{rungs} {' '.join(map(str, runs))}" for rungs, runs in study.items())
    lines = [f"Seeds: {seeds}. Means over seeds, ± half of the 95 % interval (Student).", ""]
    lines += table(study, absolute)
    if "ladder" in study:
        lines += ["", "Differences from the ladder of the same seed:", "", *table(study, against_ladder)]
    return "\n".join(lines) + "\n"


def draw(study: dict[str, dict[int, Run]]) -> Figure:
    """Held-out loss over the samples seen: every run faint, the mean of each kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for rungs, runs in study.items():
        for run in runs.values():
            axes.plot(*zip(*run.losses, strict=True), color=COLOURS[rungs], alpha=0.25, linewidth=1)
        at = [samples for samples, _ in next(iter(runs.values())).losses]
        columns = zip(*([loss for _, loss in run.losses] for run in runs.values()), strict=True)
        means = [fmean(losses) for losses in columns]
        axes.plot(at, means, "o-", color=COLOURS[rungs], linewidth=2, markersize=4, label=rungs)
    axes.set_xlabel("samples seen")
    axes.set_ylabel(LOSS)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Write both files and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the study")
    options = parser.parse_args()
    study = read_study(options.folder)
    if not study:
        sys.exit(f"{options.folder} holds no run that is finished and scored; run the study first.")
    text = write_tables(study)
    replace_file(lambda partial: partial.write_text(text, encoding="utf-8"), options.folder / "report.md")
    figure = draw(study)
    replace_file(lambda partial: figure.savefig(partial, format="png"), options.folder / "report.png")
    print(text)


if __name__ == "__main__":
    main()
