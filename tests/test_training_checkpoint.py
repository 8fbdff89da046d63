"""Checkpoints of a run: exact, readable by any number of processes, and whole whenever a process dies."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from children import end_in_time
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tbac_uniimage.training.run.checkpoints import folders
from tbac_uniimage.training.run.checkpoints.folders import newest, prune
from tbac_uniimage.training.run.checkpoints.shards import CheckpointError, load, read_tensors, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.multiprocessing.spawn import start_processes

STATE = {"monitor": {"mean": -1.25, "count": 7}, "skips": [3, 4], "name": "Ünï"}


def some_tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "trained/transformer.blocks.0.weight": value * torch.randn(6, 5, generator=generator),
        "trained/connector.queries": (value * torch.randn(3, 4, generator=generator)).bfloat16(),
        "optimizer/connector.queries/step": torch.tensor(float(value)),
        "optimizer/connector.queries/state1": torch.arange(9, dtype=torch.uint8) + int(value),
        "ema/connector.queries": torch.full((4, 3), float(value)).t(),
        "ema/empty": torch.zeros(0, 2),
    }


def blank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, 77) for name, tensor in tensors.items()}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One process


@pytest.mark.parametrize("asynchronous", [False, True])
def test_all_types_and_shapes_come_back(tmp_path, asynchronous):
    tensors = some_tensors()
    saving = save(tmp_path, 1000, tensors, STATE, asynchronous=asynchronous)
    folder = saving.wait()
    assert saving.done()
    assert folder == tmp_path / "checkpoints" / "step-00001000"
    assert names(tmp_path) == ["checkpoints", "last"] and names(folder.parent) == ["step-00001000"]
    assert os.readlink(tmp_path / "last") == "checkpoints/step-00001000"
    assert folders.read_state(tmp_path / "last") == STATE

    found = blank(tensors)
    load(folder, found)
    assert_equal(found, tensors)
    ema = read_tensors(folder, "ema/")
    assert_equal(ema, {"connector.queries": tensors["ema/connector.queries"], "empty": torch.zeros(0, 2)})
    assert read_tensors(folder, "other/") == {}


def test_parameters_are_loaded_in_place(tmp_path):
    linear = torch.nn.Linear(3, 2)
    wanted = linear.weight.detach().clone()
    tensors = {"trained/weight": linear.weight}
    folder = save(tmp_path, 1, tensors, {}, asynchronous=False).wait()
    with torch.no_grad():
        linear.weight.zero_()
    load(folder, tensors)
    assert torch.equal(linear.weight, wanted) and linear.weight.requires_grad and linear.weight.is_leaf


def test_tensors_may_change_as_soon_as_an_asynchronous_save_returns(tmp_path):
    tensors = {f"trained/{i}": torch.full((100_000,), float(i)) for i in range(10)}
    state = {"steps": [1]}
    saving = save(tmp_path, 1, tensors, state, asynchronous=True)
    for tensor in tensors.values():
        tensor.fill_(-1)
    state["steps"].append(2)
    folder = saving.wait()
    found = read_tensors(folder, "trained/")
    assert all(torch.equal(found[str(i)], torch.full((100_000,), float(i))) for i in range(10))
    assert folders.read_state(folder) == {"steps": [1]}


def test_large_models_are_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("tbac_uniimage.training.run.checkpoints.shards.SHARD_BYTES", 50)
    tensors = some_tensors()
    folder = save(tmp_path, 1, tensors, STATE, asynchronous=False).wait()
    assert len(list(folder.glob("*.safetensors"))) > 1
    found = blank(tensors)
    load(folder, found)
    assert_equal(found, tensors)


def test_the_same_step_can_be_saved_again(tmp_path):
    save(tmp_path, 5, some_tensors(1), {"try": 1}, asynchronous=False).wait()
    folder = save(tmp_path, 5, some_tensors(2), {"try": 2}, asynchronous=True).wait()
    assert folders.read_state(folder) == {"try": 2} and names(folder.parent) == ["step-00000005"]


def test_what_is_no_json_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="step 3 cannot be written as JSON"):
        save(tmp_path, 3, some_tensors(), {"x": torch.zeros(1)}, asynchronous=True)
    assert names(tmp_path) == []


def test_tensors_that_do_not_fit_are_named_and_nothing_is_changed(tmp_path):
    tensors = some_tensors()
    folder = save(tmp_path, 1, tensors, {}, asynchronous=False).wait()
    wrong = blank(tensors)
    wrong["trained/new"] = wrong.pop("ema/empty")
    wrong["trained/connector.queries"] = torch.full((3, 5), 77.0)
    with pytest.raises(ValueError) as caught:
        load(folder, wrong)
    message = str(caught.value)
    assert "1 missing (trained/new); 1 unexpected (ema/empty)" in message
    assert "trained/connector.queries is [3, 4] and should be [3, 5]" in message
    assert all((tensor == 77).all() for tensor in wrong.values())

    other_type = blank(tensors) | {"ema/empty": torch.zeros(0, 2, dtype=torch.float16)}
    with pytest.raises(ValueError, match="ema/empty of .* is float32 and should be float16"):
        load(folder, other_type)
    assert (other_type["trained/connector.queries"] == 77).all()


def test_a_run_that_was_copied_with_its_links_followed(two, tmp_path):
    run = Path(shutil.copytree(two, tmp_path / "run", symlinks=False))
    assert (run / "last").is_dir() and not (run / "last").is_symlink()
    save(run, 9, some_tensors(9), {"step": 9}, asynchronous=False).wait()
    assert (run / "last").is_symlink() and (run / "last").resolve().name == "step-00000009"

    (run / "last").unlink()
    (run / "last").mkdir()
    (run / "last" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="last is in the way, .* rename it"):
        save(run, 10, some_tensors(10), {"step": 10}, asynchronous=False).wait()
    assert (run / "last" / "notes.txt").exists() and newest(run)[0].name == "step-00000009"


# Several processes


def in_processes(folder: Path, world: int, work, *arguments) -> None:
    """Run ``work(rank, …)`` in ``world`` forked processes that form a gloo group."""
    rendezvous = folder / f"rendezvous-{len(list(folder.glob('rendezvous-*')))}"
    start_processes(_in_process, (rendezvous, world, work, arguments), nprocs=world, start_method="fork")


def _in_process(rank: int, rendezvous: Path, world: int, work, arguments) -> None:
    end_in_time()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    work(rank, *arguments)
    dist.destroy_process_group()


def laid_out(layout: str, filled: bool) -> dict[str, torch.Tensor]:
    """Tensors of a small model and its optimizer, as DDP or one process holds them, or FSDP2."""
    torch.manual_seed(3 if filled else 4)
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 1), torch.nn.Linear(7, 8))
    if layout == "fsdp2":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for parameter in model.parameters():  # fully_shard keeps the values of its own process
            dist.broadcast(parameter.data, 0)
        fully_shard(model, mesh=mesh)
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"trained/{name}"] = parameter
        tensors[f"optimizer/{name}/exp_avg"] = parameter.detach() * 2
        tensors[f"optimizer/{name}/step"] = torch.tensor(float(len(tensors)) if filled else 0.0)
    return tensors


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}


def _save_layout(rank: int, layout: str, run: Path, asynchronous: bool) -> None:
    save(run, 10, laid_out(layout, True), STATE, asynchronous=asynchronous).wait()


def _load_layout(rank: int, layout: str, run: Path) -> None:
    tensors = laid_out(layout, False)
    load(run / "last", tensors)
    found, wanted = whole(tensors), laid_out("one", True)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert isinstance(tensors["trained/0.weight"], DTensor) == (layout == "fsdp2")


@pytest.mark.parametrize("saved", ["one", "ddp", "fsdp2"])
def test_every_layout_reads_every_other(tmp_path, saved):
    if saved == "one":
        _save_layout(0, saved, tmp_path, False)
    else:
        in_processes(tmp_path, 2, _save_layout, saved, tmp_path, saved == "ddp")
    _load_layout(0, "one", tmp_path)
    in_processes(tmp_path, 2, _load_layout, "ddp", tmp_path)
    in_processes(tmp_path, 3, _load_layout, "fsdp2", tmp_path)
    assert read_tensors(tmp_path / "last", "trained/")["2.weight"].shape == (8, 7)


def test_replicated_tensors_are_written_once(tmp_path):
    in_processes(tmp_path, 3, _save_layout, "ddp", tmp_path, True)
    found, sizes = [], []
    for shard in sorted((tmp_path / "last").glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            found += file.keys()
            sizes.append(sum(file.get_tensor(name).nbytes for name in file.keys()))  # noqa: SIM118
    assert sorted(found) == sorted(laid_out("one", True))
    assert len(sizes) == 3 and max(sizes) <= min(sizes) + 7 * 8 * 4


def test_more_processes_than_tensors(tmp_path):
    in_processes(tmp_path, 3, _save_one_tensor, tmp_path)
    assert read_tensors(tmp_path / "last", "")["t"].tolist() == [1.0, 2.0]


def _save_one_tensor(rank: int, run: Path) -> None:
    save(run, 1, {"t": torch.tensor([1.0, 2.0])}, {}, asynchronous=False).wait()


def test_training_goes_on_while_several_processes_save(tmp_path):
    in_processes(tmp_path, 2, _save_and_go_on, tmp_path)
    for step in (1, 2, 3):
        found = read_tensors(tmp_path / "checkpoints" / f"step-{step:08d}", "")
        assert torch.equal(found["plain"], torch.full((50_000,), float(step)))
        assert torch.equal(found["sharded"], torch.full((1001, 50), float(step)))


def _save_and_go_on(rank: int, run: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    plain = torch.full((50_000,), 1.0)
    sharded = distribute_tensor(torch.full((1001, 50), 1.0), mesh)
    for step in (1, 2, 3):
        saving = save(run, step, {"plain": plain, "sharded": sharded}, {}, asynchronous=True)
        gradient = torch.ones(1000)
        for _ in range(20):
            dist.all_reduce(gradient)
        plain += 1
        sharded.to_local().add_(1)
        saving.wait()


# Disks that are full


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    tensors = {"trained/x": torch.zeros(1000)}
    save(tmp_path, 1, tensors, {}, asynchronous=False).wait()
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 3_000_000, 3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    saving = save(tmp_path, 2, tensors, {}, asynchronous=True)
    with pytest.raises(
        CheckpointError, match="Step 2 .*step-00000002, which needs 0.0 MB: the disk has 3.0 MB"
    ):
        saving.wait()
    assert names(tmp_path / "checkpoints") == ["step-00000001"]
    assert newest(tmp_path) == (tmp_path / "checkpoints" / "step-00000001", [])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_fills_under_one_process_stops_all(tmp_path, asynchronous):
    in_processes(tmp_path, 2, _save_on_a_full_disk, tmp_path, asynchronous)
    assert names(tmp_path / "checkpoints") == ["step-00000001"]
    assert (tmp_path / "refused-0").read_text() == (tmp_path / "refused-1").read_text()
    assert newest(tmp_path)[0] == tmp_path / "checkpoints" / "step-00000001"


def _save_on_a_full_disk(rank: int, run: Path, asynchronous: bool) -> None:
    tensors = {name: torch.zeros(100_000) for name in "ab"}
    save(run, 1, tensors, {}, asynchronous=asynchronous).wait()
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    saving = save(run, 2, tensors, {}, asynchronous=asynchronous)
    with pytest.raises(
        CheckpointError, match=r"needs 0.8 MB: \[Errno 27\] File too large on process 1; free"
    ):
        saving.wait()
    (run / f"refused-{rank}").write_text("refused")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if rank == 1:
        assert newest(run)[0].name == "step-00000001"


# Folders that are not whole


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        save(run, step, some_tensors(step), {"step": step}, asynchronous=False).wait()
    return run


@pytest.fixture
def run(two, tmp_path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "run", symlinks=True))


@settings(max_examples=40)
@given(data=st.data())
def test_a_cut_file_is_refused_by_name(two, tmp_path_factory, data):
    run = Path(shutil.copytree(two, tmp_path_factory.mktemp("cut") / "run", symlinks=True))
    second = run / "checkpoints" / "step-00000002"
    file = second / data.draw(st.sampled_from(names(second)))
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    found, refused = newest(run)
    assert found == run / "checkpoints" / "step-00000001"
    assert len(refused) == 1 and str(file) in refused[0]


def test_a_missing_file_is_refused_by_name(run):
    for name in names(run / "checkpoints" / "step-00000002"):
        broken = Path(shutil.copytree(run, run.with_name(name), symlinks=True))
        (broken / "checkpoints" / "step-00000002" / name).unlink()
        found, refused = newest(broken)
        assert found == broken / "checkpoints" / "step-00000001"
        assert len(refused) == 1 and name in refused[0]


def _rewrite(folder: Path, **changes) -> None:
    content = json.loads((folder / "complete.json").read_text())
    (folder / "complete.json").write_text(json.dumps(content | changes))


def test_foreign_folders_are_refused(run):
    second = run / "checkpoints" / "step-00000002"
    shard = next(second.glob("*.safetensors"))
    _rewrite(second, version=2)
    with pytest.raises(ValueError, match="has version 2 of the format and this program reads 1"):
        folders.check(second)
    _rewrite(second, version=1, format="other")
    with pytest.raises(ValueError, match=r"not that of a training checkpoint \(format other\)"):
        folders.check(second)
    (second / "complete.json").write_text("[]")
    with pytest.raises(ValueError, match="not that of a training checkpoint"):
        folders.check(second)
    (second / "complete.json").write_text(json.dumps({"format": checkpoint_format(run), "version": 1}))
    with pytest.raises(ValueError, match="lacks files, state, step, tensors"):
        folders.check(second)

    shutil.copy(run / "last" / ".." / "step-00000001" / "complete.json", second)
    save_file({"other": torch.zeros(4)}, shard)
    _rewrite(second, files={shard.name: shard.stat().st_size})
    with pytest.raises(ValueError, match="do not hold the tensors .*other.*trained"):
        folders.check(second)
    garbage = b"\xff" * shard.stat().st_size
    shard.write_bytes(garbage)
    with pytest.raises(ValueError, match=f"{shard.name} has no readable header"):
        folders.check(second)
    assert newest(run)[0] == run / "checkpoints" / "step-00000001"


def checkpoint_format(run: Path) -> str:
    return json.loads((run / "checkpoints" / "step-00000001" / "complete.json").read_text())["format"]


def test_shards_of_something_else_are_refused(run):
    save_file({"trained/x": torch.zeros(4)}, run / "last" / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds shards of something else \(model.safetensors\)"):
        load(run / "last", blank(some_tensors()))


def test_no_checkpoint_is_no_mistake_for_newest_and_one_for_the_others(tmp_path):
    assert newest(tmp_path) == (None, [])
    with pytest.raises(ValueError, match="There is no checkpoint at"):
        load(tmp_path / "last", {})


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4, 10):
        save(tmp_path, step, {"t": torch.zeros(1)}, {}, asynchronous=False).wait()
    torn = tmp_path / "checkpoints" / "step-00000010"
    (torn / "complete.json").unlink()
    prune(tmp_path, 2, "step-00000001")
    left = ["step-00000001", "step-00000003", "step-00000004", "step-00000010"]
    assert names(tmp_path / "checkpoints") == left
    with pytest.raises(ValueError, match="keep at least 1"):
        prune(tmp_path, 0)


def test_newest_before_a_step(two):
    assert newest(two, before=5)[0].name == newest(two, before=2)[0].name == "step-00000002"
    assert newest(two, before=1)[0].name == "step-00000001"
    assert newest(two, before=0) == (None, [])


# Processes that die


def _die_at(event: int, run: Path) -> None:
    """Save three more checkpoints, the last one over the second; be killed at an operation on files."""
    count = 0

    def operation(name: str, arguments: tuple) -> None:
        nonlocal count
        if name in WATCHED and any(str(run) in str(argument) for argument in arguments):
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(operation)
    for number, step in enumerate((3, 4, 4)):
        save(run, step, some_tensors(step), {"step": step}, asynchronous=number == 1).wait()
        prune(run, 2)


WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "shutil.rmtree"}
WATCHED |= {"os.listdir", "os.scandir"}


def forked(work, *arguments) -> int:
    """Run ``work`` in a forked process; returns the process's id."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            end_in_time()
            torch.set_num_threads(1)
            work(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return process


def assert_whole(run: Path) -> int:
    """The newest checkpoint of a run is one that was saved; returns its step."""
    folder, refused = newest(run)
    assert refused == []
    step = folders.read_state(folder)["step"]
    found = blank(some_tensors())
    load(folder, found)
    assert_equal(found, some_tensors(step))
    return step


@pytest.mark.slow
def test_a_process_killed_at_any_operation_leaves_a_whole_checkpoint(two, tmp_path):
    seen, event, killed = [], 0, True
    while killed:
        event += 1
        run = Path(shutil.copytree(two, tmp_path / f"run-{event}", symlinks=True))
        _, status = os.waitpid(forked(_die_at, event, run), 0)
        killed = os.WIFSIGNALED(status)
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        seen.append(assert_whole(run))
        save(run, 5, some_tensors(5), {"step": 5}, asynchronous=False).wait()  # and the next run goes on
        assert assert_whole(run) == 5 and all(name.startswith("step-") for name in names(run / "checkpoints"))
        shutil.rmtree(run)
    assert event > 100 and seen == sorted(seen) and set(seen) == {2, 3, 4}


def _save_for_ever(run: Path, pipe: int) -> None:
    step = 2
    while True:
        step += 1
        save(run, step, some_tensors(step), {"step": step}, asynchronous=bool(step % 2)).wait()
        prune(run, 2)
        os.write(pipe, b".")


def test_a_process_killed_at_any_time_leaves_a_whole_checkpoint(two, tmp_path):
    run = Path(shutil.copytree(two, tmp_path / "run", symlinks=True))
    chance = random.Random(1)
    for _ in range(20):
        before = assert_whole(run)
        reading, writing = os.pipe()
        process = forked(_save_for_ever, run, writing)
        os.close(writing)  # so that a child that ends can be told from one that is slow
        for _ in range(chance.randint(1, 3)):
            assert os.read(reading, 1)
        for _ in range(chance.randint(0, 100_000)):  # somewhere in the next one
            pass
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reading)
        assert assert_whole(run) >= max(3, before - 1)
