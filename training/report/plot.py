"""``tbac-uniimage train plot``: the log of a run as one picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.paths import write_whole
from ..arguments import any_path
from .log import METRICS, SKIPS, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, PURPLE, GREEN, GREY = "#1f5fa8", "#d9730d", "#c62828", "#7b3fa0", "#2e7d4f", "#6b7280"
SUFFIXES = (".png", ".svg", ".pdf")
BEYOND = 30.0  # times the usual largest norm: what is above is drawn at the upper edge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run_folder", metavar="RUN", type=any_path, help="folder of the run")
    parser.add_argument(
        "-o",
        "--output",
        type=any_path,
        metavar="FILE",
        help="picture to write: .png, .svg or .pdf (default: RUN/plot.png)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw a run and say where.

    Raises:
        ValueError: there is no run, nothing is logged yet, or the picture has an unknown type.
        ImportError: matplotlib is not installed.
    """
    output = options.output or options.run_folder / "plot.png"
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"The picture {output} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    record = read_run(options.run_folder)
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent} to write the picture to; make it first.")
    figure = draw(record)
    picture = BytesIO()
    figure.savefig(picture, format=output.suffix[1:].lower())
    write_whole(output, picture.getvalue())
    print(output)


@dataclass
class RunRecord:
    """What is drawn.

    Attributes:
        name: of the run.
        lines: of ``metrics.jsonl``, at least one.
        skips: of ``skips.jsonl``.
    """

    name: str
    lines: list[dict[str, Any]]
    skips: list[dict[str, Any]]

    def series(self, key: str, applied: bool = False) -> tuple[list[int], list[float]]:
        """Steps and values where a value was logged; ``applied`` leaves out skipped steps."""
        chosen = [
            (line["step"], line[key])
            for line in self.lines
            if line.get(key) is not None and not (applied and line.get("skipped"))
        ]
        return [step for step, _ in chosen], [value for _, value in chosen]

    @property
    def roll_backs(self) -> list[int]:
        """Steps at which the run went back to a checkpoint."""
        return [skip["step"] for skip in self.skips if skip.get("decision") == "roll_back"]


def read_run(folder: Path) -> RunRecord:
    """The log of a run.

    Raises:
        ValueError: no log, an empty or a damaged one.
    """
    if not (folder / METRICS).is_file():
        raise ValueError(f"There is no {METRICS} in {folder}; give the folder of a run.")
    lines = read_lines(folder / METRICS)
    if not lines:
        raise ValueError(f"The run {folder} has logged nothing yet; wait for its first lines.")
    return RunRecord(folder.resolve().name, lines, read_lines(folder / SKIPS))


def draw(record: RunRecord) -> Figure:
    """One picture, 1,600 pixels wide, of six panels over the optimizer steps."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The plot needs matplotlib: pip install matplotlib.") from error

    panels: list[tuple[float, Callable[[Axes, RunRecord], None]]] = [
        (3.0, draw_loss),
        (2.6, draw_bins),
        (3.0, draw_norm),
        (1.2, draw_rate),
        (1.2, draw_speed),
        (1.2, draw_shares),
    ]
    figure = Figure(figsize=(16, 15), dpi=100)
    grid = figure.add_gridspec(
        len(panels),
        1,
        height_ratios=[height for height, _ in panels],
        left=0.07,
        right=0.83,
        top=0.935,
        bottom=0.045,
        hspace=0.14,
    )
    figure.text(0.07, 0.973, record.name, fontsize=19, weight="bold", va="center")
    figure.text(0.07, 0.95, summary(record), fontsize=12.5, color=GREY, va="center")
    shared = None
    for row, (_, panel) in enumerate(panels):
        axes = shared = figure.add_subplot(grid[row], sharex=shared)
        dress(axes)
        panel(axes, record)
        for step in record.roll_backs:
            axes.axvline(step, color=RED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.5)
        beside(axes)
        axes.tick_params(labelbottom=row == len(panels) - 1)
    first, last = record.lines[0]["step"], record.lines[-1]["step"]
    margin = max((last - first) * 0.01, 1.0)
    shared.set_xlim(first - margin, last + margin)
    shared.set_xlabel("optimizer step", fontsize=13)
    shared.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    shared.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    figure.align_ylabels()
    return figure


def summary(record: RunRecord) -> str:
    """The state of the run in one line."""
    last = record.lines[-1]
    facts = [f"step {last['step']:,}"]
    if last.get("epoch") is not None:
        facts.append(f"epoch {last['epoch']:.2f}")
    if last.get("samples") is not None:
        facts.append(f"{last['samples']:,} samples")
    _, losses = record.series("loss", applied=True)
    if losses:
        facts.append(f"loss {smooth(losses)[-1]:.4f}")
    facts.append(f"{count(len(record.skips), 'step')} skipped")
    facts.append(count(len(record.roll_backs), "roll-back"))
    if last.get("peak_memory"):
        facts.append(f"peak memory {last['peak_memory'] / 1e9:.1f} GB")
    return "   ·   ".join(facts)


def count(number: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def draw_loss(axes: Axes, record: RunRecord) -> None:
    """Loss of the applied steps, raw and smoothed, and the loss over the held-out samples."""
    steps, losses = record.series("loss", applied=True)
    curve(axes, steps, losses, BLUE, "training")
    at, held_out = record.series("validation_loss")
    if held_out:
        best = min(range(len(held_out)), key=held_out.__getitem__)
        axes.plot(at, held_out, "o-", color=ORANGE, markersize=5.5, linewidth=1, label="held out", zorder=4)
        label = f"best: {held_out[best]:.4f}\nat step {at[best]:,}"
        ring = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.6}
        axes.plot(at[best], held_out[best], "o", color=ORANGE, label=label, zorder=4, **ring)
    fit_view(axes, losses, held_out)
    axes.set_ylabel("loss", fontsize=13)


def draw_bins(axes: Axes, record: RunRecord) -> None:
    """Smoothed loss per tenth of the noise level, from clean to noise."""
    from matplotlib import colormaps

    lines = [line for line in record.lines if line.get("loss_bins") and not line.get("skipped")]
    bins = len(lines[0]["loss_bins"]) if lines else 0
    drawn: list[float] = []
    for i in reversed(range(bins)):  # from noise to clean, as the lines mostly lie
        points = [(line["step"], line["loss_bins"][i]) for line in lines if line["loss_bins"][i] is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        values = smooth(values)
        drawn += values
        end = " (noise)" if i == bins - 1 else " (clean)" if i == 0 else ""
        name = f"{i / bins:.1f} to {(i + 1) / bins:.1f}{end}"
        colour = colormaps["turbo"](0.95 - 0.9 * i / max(bins - 1, 1))
        axes.plot(steps, values, "-" if len(steps) > 1 else "o", color=colour, linewidth=1.6, label=name)
    fit_view(axes, drawn)
    axes.set_ylabel("loss by noise level", fontsize=13)


def draw_norm(axes: Axes, record: RunRecord) -> None:
    """Gradient norm of the applied steps with the monitor's threshold, and the steps that were skipped."""
    axes.set_yscale("log")
    logged = zip(*record.series("grad_norm", applied=True), strict=True)
    shown = [(step, norm) for step, norm in logged if norm > 0]  # 0: a step without a good sample
    steps, norms = [step for step, _ in shown], [norm for _, norm in shown]
    at, thresholds = record.series("threshold", applied=True)
    curve(axes, steps, norms, BLUE, "gradient norm")
    if thresholds:
        style = {"marker": "_"} if len(at) == 1 else {}
        axes.plot(at, thresholds, color=PURPLE, linewidth=1.6, label="threshold", zorder=3, **style)
    usual = norms + thresholds or [1.0]
    ceiling = max(usual) * BEYOND
    inside, above = [], []
    for skip in record.skips:
        norm = skip.get("norm")
        fits = skip.get("finite", True) and norm is not None and norm <= ceiling
        (inside if fits else above).append((skip["step"], norm))
    bottom, top = min(usual) / 2, max([norm for _, norm in inside] + [max(usual)]) * 2
    axes.set_ylim(bottom, top)
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if top < 200 * bottom else (1,))
    if inside:
        name = f"skipped: {count(len(inside), 'step')}"
        axes.plot(*zip(*inside, strict=True), "x", color=RED, markersize=8, mew=1.8, label=name, zorder=5)
    if above:
        name = f"skipped, not finite\nor off the scale: {count(len(above), 'step')}"
        edge = [step for step, _ in above], [top / 1.12] * len(above)
        axes.plot(*edge, "^", color=RED, markersize=8, label=name, zorder=5)
    if record.roll_backs:
        axes.plot([], [], color=RED, linestyle=(0, (5, 3)), label=f"roll-back: {len(record.roll_backs)}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("gradient norm", fontsize=13)


def draw_rate(axes: Axes, record: RunRecord) -> None:
    """Learning rate."""
    steps, rates = record.series("lr")
    axes.plot(steps, rates, "-" if len(steps) > 1 else "o", color=GREEN, linewidth=1.8)
    axes.set_ylim(0, max(rates, default=1.0) * 1.15)
    axes.yaxis.set_major_formatter(lambda value, _: scientific(value))
    axes.yaxis.get_major_locator().set_params(nbins=4)
    axes.set_ylabel("learning rate", fontsize=13)


def draw_speed(axes: Axes, record: RunRecord) -> None:
    """Samples per second."""
    steps, speeds = record.series("samples_per_second")
    curve(axes, steps, speeds, BLUE, "all processes")
    axes.set_ylim(0, max(speeds, default=1.0) * 1.15)
    axes.yaxis.get_major_locator().set_params(nbins=4)
    axes.set_ylabel("samples / s", fontsize=13)


def draw_shares(axes: Axes, record: RunRecord) -> None:
    """Share of time spent waiting for data, and of the device's peak where that is known; per cent."""
    shares = []
    for key, colour, name in (("data_wait", ORANGE, "waiting for data"), ("mfu", BLUE, "MFU, of bf16 peak")):
        steps, values = record.series(key)
        if values:
            values = [100 * value for value in values]
            curve(axes, steps, values, colour, name)
            shares += values
    axes.set_ylim(0, min(max([*shares, 4.0]) * 1.2, 105))
    axes.yaxis.get_major_locator().set_params(nbins=4)
    axes.set_ylabel("share (%)", fontsize=13)


def curve(axes: Axes, steps: Sequence[int], values: Sequence[float], colour: str, name: str) -> None:
    """Values as they were logged, faint, and smoothed; a single one as a dot."""
    if len(values) == 1:
        axes.plot(steps, values, "o", color=colour, label=name, zorder=3)
    elif values:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3, zorder=2)
        axes.plot(steps, smooth(values), color=colour, linewidth=1.9, label=name, zorder=3)


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential mean, forwards and then backwards, so that nothing moves to the right.

    It reaches over ten values, a fifth of a short series, or a hundredth of a long one.
    """
    weight = 1 / max(1.0, min(len(values) / 5, 10.0), len(values) / 100)
    smoothed = list(values)
    for _ in range(2):
        mean, rest = 0.0, 1.0
        for i, value in enumerate(smoothed):
            mean += weight * (value - mean)
            rest *= 1 - weight
            smoothed[i] = mean / (1 - rest)
        smoothed.reverse()
    return smoothed


def fit_view(axes: Axes, *series: Sequence[float]) -> None:
    """Show all values, or nearly all where a few extreme ones would flatten the rest."""
    values = sorted(value for values in series for value in values)
    if len(values) < 2:
        return
    low, high, usual = values[0], values[-1], values[-1 - len(values) // 200]
    if high - low > 2 * (usual - low):
        high = usual
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    axes.set_ylim(low - margin, high + margin)


def scientific(value: float) -> str:
    """``2.5e-5``."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def dress(axes: Axes) -> None:
    """Quiet axes."""
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=11.5, color="#9ca3af")
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#9ca3af")


def beside(axes: Axes) -> None:
    """Put the legend to the right of a panel, where it hides nothing."""
    if axes.get_legend_handles_labels()[1]:
        place = {"loc": "upper left", "bbox_to_anchor": (1.008, 1.03), "borderaxespad": 0}
        axes.legend(**place, frameon=False, fontsize=11.5, handlelength=1.6, labelspacing=0.45)
