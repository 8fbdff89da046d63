"""The log of a run."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from io import FileIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.training.exits import DISK, Stop
from tbac_uniimage.training.report.log import RunLog, drop_after, flatten, read_lines


def opened(run: Path, step: int = 0, **changes) -> RunLog:
    return RunLog(run, step, **{"tensorboard": False, "wandb": None, "config": {}, **changes})


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_are_there_at_once_and_hold_no_nan(tmp_path: Path) -> None:
    log = opened(tmp_path / "new" / "run")
    log.line({"step": 1, "loss": math.nan, "loss_bins": [0.5, None], "threshold": math.inf, "skipped": False})
    log.skip({"step": 1, "norm": math.nan, "positions": [0, 8], "samples": ["ä/1"]})
    log.bad_samples(1, ["a/1: truncated", "a/2: 1x1"])
    log.line({"step": 2})
    run = tmp_path / "new" / "run"
    first = '{"step": 1, "loss": null, "loss_bins": [0.5, null], "threshold": null, "skipped": false}'
    assert (run / "metrics.jsonl").read_text() == f'{first}\n{{"step": 2}}\n'
    assert '"norm": null' in (run / "skips.jsonl").read_text()
    assert "ä/1" in (run / "skips.jsonl").read_text(encoding="utf-8")
    assert read_lines(run / "bad_samples.jsonl")[1] == {"step": 1, "sample": "a/2: 1x1"}
    log.close()


def test_resuming_drops_later_lines_of_all_files(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for step in range(1, 8):
        log.line({"step": step, "loss": 1 / step})
        log.skip({"step": step})
        log.bad_samples(step, ["x"])
    log.flush()
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    log = opened(tmp_path, step=4)
    log.line({"step": 5, "loss": 0.0})
    log.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5]
    assert read_lines(tmp_path / "metrics.jsonl")[3]["loss"] == 0.25
    assert steps(tmp_path / "skips.jsonl") == steps(tmp_path / "bad_samples.jsonl") == [1, 2, 3, 4]
    assert not list(tmp_path.glob(".*"))


def test_starting_anew_in_a_folder_leaves_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.line({"step": 1})
    log.close()
    opened(tmp_path, step=0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@given(st.integers(0, 200), st.integers(0, 9))
def test_any_torn_end_is_dropped(tmp_path_factory, cut: int, step: int) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    whole = "".join(json.dumps({"step": s, "loss": s / 7}) + "\n" for s in range(1, 7)).encode()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n")
    assert [record["step"] for record in read_lines(path)] == list(range(1, lines + 1))
    drop_after(path, step)
    assert steps(path) == list(range(1, min(lines, step) + 1))
    assert path.read_bytes() == whole[: path.stat().st_size]


def test_a_log_that_needs_no_change_is_not_written(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": 0.1}\n')
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("written"))
    drop_after(path, 3)


def test_torn_last_line_with_an_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 3}\n\0\0\0\n')
    assert read_lines(path) == [{"step": 3}]
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("line", ["nonsense", "[1]", "{}", '{"step": null}'])
def test_damage_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"Line 2 of .*metrics.jsonl is damaged; remove it"):
        opened(tmp_path, step=1)


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
    log = opened(tmp_path, tensorboard=True, wandb="project", enabled=False)
    log.line({"step": 1})
    log.skip({"step": 1})
    log.bad_samples(1, ["x"])
    log.image("samples", Image.new("RGB", (2, 2)), 1)
    log.flush()
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert steps(tmp_path / "metrics.jsonl") == [9]


def test_full_disk_stops_the_run(tmp_path: Path, monkeypatch) -> None:
    class Full(FileIO):
        def write(self, data) -> int:
            if len(data) > 4:
                return super().write(data[:4])  # a disk takes what it can
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tbac_uniimage.training.report.log.FileIO", Full)
    log = opened(tmp_path)
    with pytest.raises(Stop, match="metrics.jsonl cannot be written: No space left on device") as stop:
        log.line({"step": 1000})
    assert stop.value.code == DISK
    log.close()
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_flatten() -> None:
    values = {"step": 3, "loss_bins": [0.5, None, 0.25], "part_norms": {"queries": 1.0}, "skipped": True}
    assert dict(flatten(values | {"mfu": None, "loss": math.nan, "note": "x"})) == {
        "step": 3,
        "loss_bins/0": 0.5,
        "loss_bins/2": 0.25,
        "part_norms/queries": 1.0,
        "skipped": 1,
    }


def test_tensorboard_shows_an_unbroken_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = opened(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        log.line({"step": step, "loss": step / 2, "part_norms": {"queries": 0.5}})
    log.close()
    log = opened(tmp_path, step=2, tensorboard=True)
    log.line({"step": 3, "loss": 9.0})
    log.image("samples", Image.new("RGB", (3, 2), "red"), 3)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert [e.step for e in events.Scalars("part_norms/queries")] == [1, 2]
    (picture,) = events.Images("samples")
    assert (picture.width, picture.height, picture.step) == (3, 2, 3)


def test_wandb_when_asked(tmp_path: Path, monkeypatch) -> None:
    calls = []
    run = SimpleNamespace(log=lambda *a, **k: calls.append((a, k)), finish=lambda: calls.append("finish"))
    fake = SimpleNamespace(init=lambda **k: calls.append(k) or run, Image=lambda picture: picture.size)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        log = opened(tmp_path / "mine", wandb="ladder", config={"seed": 1})
        log.line({"step": 1, "loss": 0.5, "mfu": None})
        log.image("samples", Image.new("RGB", (3, 2)), 1)
        log.close()
    first, second = calls[0], calls[4]
    assert first == second and len(first["id"]) == 8  # the same run goes on
    assert (first["project"], first["name"], first["resume"]) == ("ladder", "mine", "allow")
    assert first["config"] == {"seed": 1} and first["dir"] == str(tmp_path / "mine")
    assert calls[1:4] == [(({"loss": 0.5},), {"step": 1}), (({"samples": (3, 2)},), {"step": 1}), "finish"]


@pytest.mark.parametrize(
    "module, changes, remedy",
    [
        ("wandb", {"wandb": "p"}, "log.wandb=null"),
        ("torch.utils.tensorboard", {"tensorboard": True}, "log.tensorboard=false"),
    ],
)
def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch, module, changes, remedy) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=remedy):
        opened(tmp_path, **changes)


def test_what_cannot_be_written_at_the_end_is_one_sentence(tmp_path, monkeypatch) -> None:
    log = RunLog(tmp_path, 0, tensorboard=True, wandb=None, config={})

    def close() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log.tensorboard, "close", close)
    with pytest.raises(Stop, match="tensorboard cannot be written: No space left") as caught:
        log.close()
    assert caught.value.code == DISK
