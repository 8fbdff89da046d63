"""A run as one picture."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tbac_uniimage.training.report import plot

pytest.importorskip("matplotlib")


def line(step: int, **changes) -> dict:
    return {
        "step": step,
        "epoch": step / 100,
        "samples": step * 8,
        "loss": 1 / step,
        "loss_bins": [None] + [0.1 * i + 1 / step for i in range(1, 10)],
        "grad_norm": 0.5,
        "threshold": 2.0 if step > 5 else None,
        "skipped": False,
        "lr": 1e-4,
        "samples_per_second": 12.5,
        "data_wait": 0.02,
        "mfu": None,
        "peak_memory": 2_500_000_000,
        **changes,
    }


def written(folder: Path, lines: list[dict], skips: list[dict] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    if skips is not None:
        (folder / "skips.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in skips))
    return folder


def called(*arguments: str | Path) -> None:
    parser = argparse.ArgumentParser()
    plot.add_arguments(parser)
    options = parser.parse_args([str(argument) for argument in arguments])
    options.run(options)


def labels(axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


@pytest.fixture
def eventful(tmp_path: Path) -> Path:
    """Sixty steps with spikes of all kinds, a roll-back and validation."""
    lines = [line(step) for step in range(1, 61)]
    lines[9] |= {"skipped": True, "grad_norm": 40.0, "loss": 1e6}
    lines[19] |= {"skipped": True, "grad_norm": None, "loss": None}
    lines[29]["validation_loss"], lines[59]["validation_loss"] = 0.3, 0.2
    skips = [
        {"step": 10, "decision": "skip", "norm": 40.0, "threshold": 2.0, "finite": True},
        {"step": 15, "decision": "skip", "norm": 1e12, "threshold": 2.0, "finite": True},
        {"step": 20, "decision": "roll_back", "norm": None, "threshold": 2.0, "finite": False},
    ]
    return written(tmp_path / "eventful", lines, skips)


def test_what_is_drawn(eventful: Path) -> None:
    record = plot.read_run(eventful)
    figure = plot.draw(record)
    loss, bins, norm, rate, speed, shares = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "loss",
        "loss by noise level",
        "gradient norm",
        "learning rate",
        "samples / s",
        "share (%)",
    ]
    assert shares.get_xlabel() == "optimizer step"
    assert labels(loss) == ["training", "held out", "best: 0.2000\nat step 60"]
    assert loss.get_ylim()[1] < 2  # the loss of a skipped step is not shown
    assert len(labels(bins)) == 9 and labels(bins)[0] == "0.9 to 1.0 (noise)"
    drawn = [entry.get_ydata() for entry in bins.get_lines()[:9]]  # from noise to clean
    assert drawn[0][-1] > 0.9 > drawn[1][-1] > 0.2 > drawn[-1][-1]
    assert norm.get_yscale() == "log" and 40 < norm.get_ylim()[1] < 100
    assert labels(norm) == [
        "gradient norm",
        "threshold",
        "skipped: 1 step",
        "skipped, not finite\nor off the scale: 2 steps",
        "roll-back: 1",
    ]
    marks = {entry.get_label(): entry for entry in norm.get_lines()}
    assert list(marks["skipped: 1 step"].get_xdata()) == [10]
    assert list(marks["skipped, not finite\nor off the scale: 2 steps"].get_xdata()) == [15, 20]
    assert list(marks["threshold"].get_xdata())[0] == 6
    for axes in figure.axes:
        assert any(list(entry.get_xdata()) == [20, 20] for entry in axes.get_lines())
    told = [text.get_text() for text in figure.texts]
    assert told[0] == "eventful"
    assert "step 60" in told[1] and "3 steps skipped" in told[1] and "1 roll-back" in told[1]
    assert "peak memory 2.5 GB" in told[1]


def test_nothing_overlaps(eventful: Path) -> None:
    figure = plot.draw(plot.read_run(eventful))
    figure.canvas.draw()
    boxes = [axes.get_tightbbox(for_layout_only=True) for axes in figure.axes]
    for upper, lower in zip(boxes, boxes[1:], strict=False):
        assert upper.y0 >= lower.y1 - 8
    for axes in figure.axes:
        if axes.get_legend():
            legend = axes.get_legend().get_window_extent()
            assert legend.x0 > axes.get_window_extent().x1 and legend.x1 < 1600
    assert boxes[0].y1 < min(text.get_window_extent().y0 for text in figure.texts)


def test_command_writes_a_picture(eventful: Path, tmp_path: Path, capsys) -> None:
    called(eventful)
    assert capsys.readouterr().out == f"{eventful / 'plot.png'}\n"
    with Image.open(eventful / "plot.png") as picture:
        assert picture.size == (1600, 1500)
    called(eventful, "-o", tmp_path / "mine.svg")
    assert (tmp_path / "mine.svg").read_bytes().startswith(b"<?xml")
    assert not list(tmp_path.glob(".*")) and not list(eventful.glob(".*"))


@pytest.mark.parametrize(
    "lines",
    [
        [line(10)],
        [{"step": 1}],
        [line(1, loss=None, loss_bins=[None] * 10, grad_norm=None, skipped=True)],
        [line(step, validation_loss=0.5, mfu=0.4) for step in (1, 2)],
        [line(step, grad_norm=0.0) for step in (1, 2)],
    ],
    ids=["one point", "nothing but a step", "one skipped step", "two points", "no gradient"],
)
def test_short_runs(tmp_path: Path, lines: list[dict], recwarn) -> None:
    folder = written(tmp_path / "run", lines)
    called(folder)
    with Image.open(folder / "plot.png") as picture:
        assert picture.size == (1600, 1500)
    assert [str(warning.message) for warning in recwarn] == []


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metrics.jsonl in .*; give the folder of a run"):
        called(tmp_path)
    with pytest.raises(ValueError, match="has logged nothing yet"):
        called(written(tmp_path / "empty", []))
    with pytest.raises(ValueError, match="must end in .png, .svg or .pdf"):
        called(written(tmp_path / "run", [line(1)]), "-o", tmp_path / "plot.bmp")
    with pytest.raises(ValueError, match="no folder .*nowhere"):
        called(tmp_path / "run", "-o", tmp_path / "nowhere" / "plot.png")


def test_smoothing() -> None:
    assert plot.smooth([3.0]) == [3.0]
    assert plot.smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    step = plot.smooth([0.0] * 500 + [1.0] * 500)
    assert step[0] == pytest.approx(0, abs=1e-9) and step[-1] == pytest.approx(1, abs=1e-9)
    assert step[499] + step[500] == pytest.approx(1, abs=0.1)  # does not lag
    assert plot.smooth([]) == []


def test_rates_are_short() -> None:
    assert [plot.scientific(value) for value in (1e-4, 2.5e-5, 0.0)] == ["1e-4", "2.5e-5", "0"]


def test_parser_loads_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from tbac_uniimage.training.report import plot;"
        "plot.add_arguments(argparse.ArgumentParser());"
        "print(sorted({'torch', 'matplotlib', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout == "[]\n"


def test_no_run_is_what_is_said_first(tmp_path) -> None:
    options = SimpleNamespace(output=None, run_folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="There is no metrics.jsonl in .*nowhere; give the folder of a run"):
        plot.run(options)
