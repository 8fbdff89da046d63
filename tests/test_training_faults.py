"""What goes wrong in real runs: each ends right, or stops with one sentence and an exit code of its own."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from pathlib import Path

import pytest
from data_files import pack, picture
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.run.checkpoints import folders, shards
from training_runs import losses, make_data, metrics, recipe, run, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    return [make_data(tmp_path_factory.mktemp("data"))]


def settings_of(tmp_path: Path, data: list[Path], monitor: dict | None = None, **train: object) -> dict:
    """A run of 30 steps of 2 samples with a monitor that is soon grown up."""
    settings = recipe(tmp_path / "run", data, monitor={"young": 10} | (monitor or {}))
    settings["train"] |= {"steps": 30, "batch": 2, "learning_rate": 1e-4} | train
    settings["checkpoint"] = {"every": 5}
    return settings


def skips(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "skips.jsonl").read_text().splitlines()]


def skipped(run: Path) -> list[int]:
    """Numbers of the steps that were not applied, from 0."""
    return [line["step"] - 1 for line in metrics(run) if line["skipped"]]


def sentence(output: str) -> str:
    """The one sentence that a run ends with."""
    assert "Traceback" not in output
    (found,) = [line for line in output.splitlines() if line.startswith("tbac-uniimage: ")]
    return found


def test_nan_on_one_rank_only(tmp_path, data):
    """Both ranks skip that step and stay in step with each other."""
    settings = settings_of(tmp_path, data, steps=8)
    train(settings, world=2, prepare="nan_on_rank_1")
    assert skipped(tmp_path / "run") == [4]
    (line,) = skips(tmp_path / "run")
    assert line["finite"] is False and line["positions"] == [8, 10] and len(line["samples"]) == 2
    lines = metrics(tmp_path / "run")
    assert lines[4]["update_rms"] is None and lines[4]["loss"] is None
    assert all(
        math.isfinite(line["loss"]) and line["update_rms"] > 0 for line in lines if line is not lines[4]
    )


def test_a_skipped_step_changes_nothing(tmp_path, data):
    """Weights, moments and averages after a skipped step are those before it, to the bit."""
    settings = settings_of(tmp_path, data, steps=6, ema=0.9)
    settings["checkpoint"] = {"every": 1}
    train(settings, prepare="nan_at_4")
    before, after, later = (
        shards.read_tensors(tmp_path / "run" / "checkpoints" / f"step-{step:08d}", "") for step in (4, 5, 6)
    )
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert not any(after[name].equal(later[name]) for name in before if name.startswith("trained/"))


def test_gradient_spike(tmp_path, data):
    train(settings_of(tmp_path, data), prepare="spike")
    assert skipped(tmp_path / "run") == [20]
    (line,) = skips(tmp_path / "run")
    assert line["norm"] > line["threshold"] > 0
    assert all(sample.startswith("pictures/") for sample in line["samples"])
    after = metrics(tmp_path / "run")[21]
    assert after["threshold"] == pytest.approx(line["threshold"], rel=1e-6)  # the spike taught it nothing


def test_spike_while_the_statistics_are_young(tmp_path, data):
    """The step is logged with the norms of its parts, though it is not time for a line."""
    settings = settings_of(tmp_path, data, monitor={"young": 100})
    settings["log"] |= {"every": 5}
    train(settings, prepare="young_spike")
    assert skipped(tmp_path / "run") == [6]
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [5, 7, 10, 15, 20, 25, 30]
    spike, usual = lines[1], lines[2]
    assert set(spike["part_norms"]) == {"queries", "connector", "transformer"}
    assert all(spike["part_norms"][part] > 20 * usual["part_norms"][part] for part in usual["part_norms"])
    norm = math.sqrt(sum(value**2 for value in spike["part_norms"].values()))
    assert norm == pytest.approx(spike["grad_norm"], rel=1e-5)


def test_shift_rolls_back_and_goes_on(tmp_path, data):
    train(settings_of(tmp_path, data, monitor={"trips": 3}), prepare="shift")
    assert skipped(tmp_path / "run") == [20, 21, 22, 23, 24]
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "rolled_back_to" in line] == [23]
    assert lines[22]["rolled_back_to"] == 20
    assert [line["decision"] for line in skips(tmp_path / "run")] == [
        "skip",
        "skip",
        "roll_back",
        "skip",
        "skip",
    ]
    assert len(lines) == 30  # the data were not rewound
    assert [line["positions"][0] for line in skips(tmp_path / "run")] == [40, 42, 44, 46, 48]


def test_gives_up_with_an_explanation(tmp_path, data):
    settings = settings_of(tmp_path, data, monitor={"trips": 3, "rollbacks": 1})
    codes, output = run(settings, prepare="broken_for_good")
    assert codes == [3]
    assert "skips.jsonl" in sentence(output)
    assert skipped(tmp_path / "run") == [20, 21, 22, 23, 24, 25]
    found, refused = folders.newest(tmp_path / "run")
    assert found is not None and not refused


def test_dead_worker(tmp_path, data):
    settings = settings_of(tmp_path, data)
    settings["data"] |= {"workers": 1}
    codes, output = run(settings, prepare="dying_worker")
    assert codes == [4]
    assert "data worker" in sentence(output)
    train(settings)
    reference = settings_of(tmp_path, data) | {"run": str(tmp_path / "reference")}
    train(reference)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "reference"), rel=1e-6)


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("dying_worker_on_rank_1", (1, 4), "tbac-uniimage, process 1: A data worker"),
        ("no_logs", (5, 1), "tbac-uniimage: The log"),
        ("full_disk_on_rank_1", (5, 5), "tbac-uniimage: Step 12 was not saved"),
    ],
)
def test_trouble_in_one_of_two_processes(tmp_path, data, fault, code, words):
    """Nobody waits for the one that ended, which has a code of its own and says why."""
    settings = settings_of(tmp_path, data, steps=12)
    settings["data"] |= {"workers": 1 if "worker" in fault else 0}
    codes, output = run(settings, world=2, prepare=fault)
    assert tuple(codes) == code, output
    said = [line for line in output.splitlines() if line.startswith("tbac-uniimage")]
    others = [line for line in said if not line.startswith(words)]
    assert len(others) == len(said) - 1, output
    assert all(line.startswith("tbac-uniimage: Another process of the run has ended") for line in others)
    assert "Traceback" not in output


def test_killed_after_a_roll_back(tmp_path, data):
    """The resumed run rolls back again, to the same checkpoint, and ends as the uninterrupted one."""
    monitor = {"trips": 3}
    settings = settings_of(tmp_path, data, monitor)
    train(settings | {"run": str(tmp_path / "whole")}, prepare="shift")
    assert run(settings, prepare="shift_then_killed")[0] == [-signal.SIGKILL]
    train(settings, prepare="shift")
    assert skips(tmp_path / "run") == skips(tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    states = [folders.read_state(tmp_path / name / "last") for name in ("run", "whole")]
    assert states[0] == states[1] and len(states[0]["monitor"]["closed"]) == 1


def write_unnoticed(path: Path, data: bytes) -> None:
    """Other bytes under the same time, as on a disk that loses some."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_bad_samples_in_several_processes(tmp_path):
    """Counted, named and left out alike, whatever the number of processes."""
    files = {}
    for i in range(40):
        files |= {f"{i:02d}.png": picture((i, 90, 160), (64, 64)), f"{i:02d}.txt": f"number {i}".encode()}
    tar = tmp_path / "source" / "shard.tar"
    tar.parent.mkdir()
    tar.write_bytes(pack(files))
    build(str(tar.parent), tmp_path / "index", name="torn")
    half = tar.stat().st_size // 2
    write_unnoticed(tar, tar.read_bytes()[:half] + bytes(tar.stat().st_size - half))
    for name, world, parallel in (("one", 1, "ddp"), ("two", 2, "ddp"), ("sharded", 2, "fsdp2")):
        settings = settings_of(tmp_path, [tmp_path / "index" / "torn"], steps=8, batch=4, parallel=parallel)
        settings["data"] |= {"max_bad": 1.0}
        train(settings | {"run": str(tmp_path / name)}, world)
    one, two, sharded = (
        sorted((tmp_path / name / "bad_samples.jsonl").read_text().splitlines())
        for name in ("one", "two", "sharded")
    )
    assert len(one) > 8 and one == two == sharded
    for name in ("two", "sharded"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=2e-6)
        assert metrics(tmp_path / name)[-1]["samples"] == 32 - len(one)


def test_truncated_and_overwritten_tar(tmp_path):
    """A tar that was cut or written over is noticed before anything starts, lost bytes sample by sample.

    Samples that cannot be read count for nothing, are named, and end a run that is strict.
    """
    files = {}
    for i in range(40):
        files |= {f"{i:02d}.png": picture((i, 90, 160), (64, 64)), f"{i:02d}.txt": f"number {i}".encode()}
    tar = tmp_path / "source" / "shard.tar"
    tar.parent.mkdir()
    tar.write_bytes(pack(files))
    build(str(tar.parent), tmp_path / "index", name="torn")
    before = tar.stat()
    whole = tar.read_bytes()
    settings = settings_of(tmp_path, [tmp_path / "index" / "torn"], steps=10, batch=4)
    tar.write_bytes(whole[: len(whole) // 2])
    codes, output = run(settings)
    assert codes == [2] and "shard.tar" in sentence(output)
    assert not (tmp_path / "run").exists()

    half = len(whole) // 2
    tar.write_bytes(whole[:half] + bytes(len(whole) - half))
    os.utime(tar, ns=(1, 1))
    codes, output = run(settings)
    assert codes == [2] and "shard.tar" in sentence(output) and "has changed" in sentence(output)
    assert not (tmp_path / "run").exists()

    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))  # as on a disk that loses bytes
    settings["data"] |= {"max_bad": 1.0}
    train(settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    used = metrics(tmp_path / "run")[-1]["samples"]
    assert 10 <= len(lines) <= 30 and used == 40 - len(lines)
    assert all(line["sample"].startswith("torn/") for line in lines)
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))

    settings |= {"run": str(tmp_path / "strict")}
    settings["data"] |= {"max_bad": 0.0005}  # 5 of the first 10,000
    codes, output = run(settings)
    assert codes == [4]
    bad, read = map(int, re.search(r"(\d+) of the (\d+) samples", sentence(output)).groups())
    assert 6 <= bad <= 9 and bad <= read <= 40 and "bad_samples.jsonl" in sentence(output)


def test_disk_that_fills(tmp_path, data):
    """The run says so and goes on; at the end it stops with the code for it. Nothing saved before is lost."""
    settings = settings_of(tmp_path, data, steps=12)
    settings["checkpoint"] = {"every": 3}
    assert run(settings, prepare="stop_at_3")[0] == [75]
    codes, output = run(settings, prepare="full_disk")
    assert codes == [5]
    assert "goes on" in output and "step-00000012" in sentence(output)
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step-00000003"]
    train(settings)
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 13))
    assert folders.newest(tmp_path / "run")[0].name == "step-00000012"
