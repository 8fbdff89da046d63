"""A run is a function of recipe and seed, whatever the number of processes and however often it is killed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from training_runs import (
    LIMIT,
    finish,
    free_port,
    losses,
    make_data,
    make_edits,
    metrics,
    recipe,
    run,
    start,
    train,
    wait_until,
    write_recipe,
)

ROUNDING = 2e-6  # relative, of float32 sums in another order


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    return [make_data(folder), make_edits(folder)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, data) -> Path:
    """An uninterrupted run in one process, four micro-batches a step."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    train(recipe(folder, data, train=recipe(folder, data)["train"] | {"ema": 0.9}))
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint, whole."""
    from tbac_uniimage.training.run.checkpoints.shards import read_tensors

    return read_tensors(run / "last", "")


def assert_same_run(run: Path, reference: Path) -> None:
    assert losses(run) == pytest.approx(losses(reference), rel=ROUNDING)
    expected = weights(reference)
    found = weights(run)
    assert found.keys() == expected.keys()
    for kind in ("trained/", "ema/"):
        # all together: Adam turns the rounding of a gradient of zero into a step of either sign
        pairs = [(found[name], expected[name]) for name in expected if name.startswith(kind)]
        error = sum((a - b).square().sum() for a, b in pairs).sqrt()
        assert error < 1e-5 * sum(b.square().sum() for _, b in pairs).sqrt()


def test_run_leaves_what_it_should(reference):
    lines = metrics(reference)
    assert len(lines) == 12 and lines[-1]["samples"] == 48
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and not line["skipped"] for line in lines)
    assert lines[0]["lr"] < lines[2]["lr"] == pytest.approx(2e-3)
    assert set(lines[0]["part_norms"]) == {"queries", "connector", "transformer"}
    names = {name.split("/")[0] for name in weights(reference)}
    assert names == {"trained", "optimizer", "ema", "ema_updates"}
    assert not any("mllm" in name or "vae" in name for name in weights(reference))
    assert [path.name for path in sorted((reference / "checkpoints").iterdir())] == [
        f"step-{step:08d}" for step in (6, 9, 12)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "parallel"), [(2, "ddp"), (4, "ddp"), (2, "fsdp2")])
def test_number_of_processes_does_not_matter(tmp_path, data, reference, world, parallel):
    settings = recipe(tmp_path / "run", data)
    settings["train"] |= {"ema": 0.9, "parallel": parallel}
    train(settings, world)
    assert writers(tmp_path / "run") == world
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, data):
    """SIGKILL at random moments, 8 times, then to the end: the same losses as in one go."""
    settings = recipe(tmp_path / "run", data, checkpoint={"every": 1})
    settings["train"] |= {"ema": 0.9, "steps": 18}
    train(settings | {"run": str(tmp_path / "uninterrupted")})
    path, output, random = write_recipe(settings), tmp_path / "log", Random(5)
    reached = []
    for kill in range(8):
        (process,) = start([path], output)
        # some are killed while they start, some in the middle of a step, some while they save; every second
        # comes on, however slow the machine is
        goal, delay = random.randint(0, kill + 1), random.uniform(0, 0.3)
        if kill % 2:
            goal = min(progress(tmp_path / "run") + 2, 12)
        wait_until(lambda goal=goal: logged(tmp_path / "run") >= goal, [process], output)
        process.join(delay)
        assert process.exitcode is None, output.read_text()
        process.kill()
        process.join(LIMIT)
        reached.append(progress(tmp_path / "run"))
    assert reached == sorted(reached) and len(set(reached)) > 3
    assert finish(start([path], output)) == [0], output.read_text()
    assert_same_run(tmp_path / "run", tmp_path / "uninterrupted")


def writers(run: Path) -> int:
    """Processes that wrote the last checkpoint of a run: each writes a share of the tensors."""
    return len({path.name for path in (run / "last").glob("shard-*.safetensors")})


def logged(run: Path) -> int:
    """Steps that a run has logged so far; its last line may be torn."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def progress(run: Path) -> int:
    """Newest checkpoint of a run."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


@pytest.mark.slow
def test_goes_on_with_another_number_of_processes(tmp_path, data, reference):
    """Begun by one process, gone on with by two with FSDP2, then by two with DDP, ended by one."""
    settings = recipe(tmp_path / "run", data)
    settings["train"] |= {"ema": 0.9}
    path, output = write_recipe(settings), tmp_path / "log"
    for world, parallel, steps in ((1, "ddp", 3), (2, "fsdp2", 6), (2, "ddp", 9), (1, "ddp", 12)):
        processes = start([path, f"train.parallel={parallel}"], output, world, f"stop_at_{steps}")
        codes = finish(processes)
        assert set(codes) == {75 if steps < 12 else 0}, output.read_text()
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_sigterm_saves_and_has_its_own_exit_code(tmp_path, data, reference):
    settings = recipe(tmp_path / "run", data, checkpoint={"every": 1000})
    settings["train"] |= {"ema": 0.9}
    path, output = write_recipe(settings), tmp_path / "log"
    (process,) = start([path], output)
    wait_until(lambda: logged(tmp_path / "run") > 0, [process], output)
    os.kill(process.pid, signal.SIGTERM)
    assert finish([process]) == [75]
    assert "the same command goes on" in output.read_text()
    assert 0 < progress(tmp_path / "run") < 12
    assert finish(start([path], output)) == [0], output.read_text()
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over_by_name(tmp_path, data, reference):
    """The run goes on from the newest whole one, and ends as if nothing had been."""
    settings = recipe(tmp_path / "run", data)
    settings["train"] |= {"ema": 0.9}
    assert run(settings, prepare="stop_at_9")[0] == [75]
    torn = tmp_path / "run" / "checkpoints" / "step-00000009"
    (shard, *_) = torn.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    output = train(settings)
    assert f"Passed over: {shard} has {shard.stat().st_size} bytes and should have" in output or (
        "Passed over: " in output and shard.name in output
    )
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_accelerate_launches_it(tmp_path, data, reference):
    """The documented command, in two real processes: `--cpu` would start one, whatever their number."""
    settings = recipe(tmp_path / "run", data)
    settings["train"] |= {"ema": 0.9}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--main_process_port", str(free_port())]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "tbac_uniimage.training.train", str(write_recipe(settings)), "log.tensorboard=true"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
    assert result.returncode == 0, result.stderr
    assert writers(tmp_path / "run") == 2
    assert_same_run(tmp_path / "run", reference)
    assert any((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.slow
def test_accelerate_launches_it_on_two_machines(tmp_path, data, reference):
    """One launcher on each: both processes are the first of their machine, and one is that of the run."""
    settings = recipe(tmp_path / "run", data)
    settings["train"] |= {"ema": 0.9}
    common = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    common += ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port"]
    common += [str(free_port()), "--mixed_precision", "no", "--dynamo_backend", "no"]
    script = ["-m", "tbac_uniimage.training.train", str(write_recipe(settings))]
    machines = []
    for rank in (0, 1):
        output = (tmp_path / f"machine{rank}").open("w")
        command = [*common, "--machine_rank", str(rank), *script]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        machines.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
    try:
        codes = [machine.wait(LIMIT) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    said = [(tmp_path / f"machine{rank}").read_text() for rank in (0, 1)]
    assert codes == [0, 0], "\n".join(said)
    assert "12/12" in said[0] and "step" not in said[1]  # the bar
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_workers_change_nothing_and_end_with_the_run(tmp_path, data, reference, world):
    settings = recipe(tmp_path / "run", data)
    settings["train"] |= {"ema": 0.9}
    settings["data"] |= {"workers": 2}
    train(settings, world)
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_a_finished_run_is_lengthened(tmp_path, data):
    """At a constant rate, where nothing else hangs on the length: as if it had been that from the start."""
    constant = recipe(tmp_path, data)["train"] | {"min_learning_rate": 2e-3, "ema": 0.9}
    whole = recipe(tmp_path / "whole", data, train=constant | {"steps": 8})
    train(whole)
    settings = recipe(tmp_path / "run", data, train=constant | {"steps": 4})
    train(settings)
    settings["train"]["steps"] = 3
    codes, output = run(settings)
    assert codes == [2] and "train.steps: 4, now 3" in output
    settings["train"] |= {"steps": 8, "profile": 2}
    assert "The run becomes longer (train.steps is higher)" in train(settings)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 9))

    traces = list((tmp_path / "run").glob("*profile*"))
    assert [path.name for path in traces] == ["profile-step-00000006.json.gz"]
    with gzip.open(traces[0]) as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sum(name.startswith("Optimizer.step#") for name in names) == 2
    assert "aten::mm" in names


@pytest.mark.slow
def test_another_recipe_is_not_gone_on_with(tmp_path, data):
    settings = recipe(tmp_path / "run", data, train=recipe(tmp_path, data)["train"] | {"steps": 2})
    train(settings)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    settings["train"]["learning_rate"] = 1e-3
    codes, output = run(settings)
    assert codes == [2]
    assert "train.learning_rate" in output and "Traceback" not in output
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    settings["train"]["learning_rate"] = 2e-3
    assert train(settings)  # nothing left to do
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before

    (tmp_path / "run" / "recipe.yaml").unlink()
    codes, output = run(settings)
    assert codes == [2] and "holds checkpoints and no recipe.yaml" in output
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
