"""What a run can be told to do differently: LoRA, precision, checkpointing, sharding, other launchers."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.data.build import build  # noqa: F401  loaded before processes are forked off
from tbac_uniimage.training.run import engine
from tbac_uniimage.training.run.checkpoints import folders, shards
from tbac_uniimage.training.run.loop import Trainer
from training_runs import losses, make_data, make_edits, metrics, recipe, run, train, write_recipe

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
SHORT = {"steps": 3, "warmup": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    return [make_data(folder), make_edits(folder)]


def settings_of(tmp_path: Path, data: list[Path], name: str = "run", **changes: object) -> dict:
    settings = recipe(tmp_path / name, data)
    settings["train"] |= SHORT | changes
    return settings


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data) -> list[float]:
    """Losses of the run that has no options."""
    folder = tmp_path_factory.mktemp("plain")
    train(settings_of(folder, data))
    return losses(folder / "run")


@pytest.mark.slow
def test_lora_trains_and_exports_only_itself(tmp_path, data):
    settings = settings_of(tmp_path, data, parts="lora", lora={"rank": 4, "alpha": 8.0}, learning_rate=1e-2)
    train(settings)
    names = {name for name in folders.stored(tmp_path / "run" / "last") if name.startswith("trained/")}
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert main(["export", str(tmp_path / "run"), "--to", "lora", "-o", str(tmp_path / "x.safetensors")]) == 0
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        keys = set(file.keys())
        ups = [file.get_tensor(key) for key in keys if key.endswith("lora_B.weight")]
        assert file.get_tensor(next(key for key in keys if key.endswith(".alpha"))) == 8
    assert all(key.startswith("diffusion_model.transformer_blocks.") for key in keys)
    assert all(up.abs().max() > 0 for up in ups)  # they begin at zero


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 2e-6),
        pytest.param({"compile": True}, 2e-5, marks=needs_compiler),
        ({"precision": "bf16"}, 3e-2),
        ({"precision": "bf16", "gradient_checkpointing": True}, 3e-2),
        ({"precision": "bf16", "parallel": "fsdp2"}, 3e-2),
        ({"gradient_checkpointing": True, "parallel": "ddp"}, 2e-6),
        ({"gradient_checkpointing": True, "parallel": "fsdp2"}, 2e-6),
        pytest.param(
            {"compile": True, "gradient_checkpointing": True, "parallel": "fsdp2"}, 2e-5, marks=needs_compiler
        ),
    ],
)
def test_options_leave_the_losses(tmp_path, data, plain, changes, tolerance):
    train(settings_of(tmp_path, data, **changes), world=2 if "parallel" in changes else 1)
    assert losses(tmp_path / "run") == pytest.approx(plain, rel=tolerance)
    if "precision" in changes:
        assert losses(tmp_path / "run") != plain
        stored = folders.stored(tmp_path / "run" / "last")
        assert {info.dtype for name, info in stored.items() if name.startswith("trained/")} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_validation_is_the_same_on_any_number_of_processes(tmp_path, data, parallel):
    """Held-out loss and pictures, with averaged weights; and training goes on as if there were none."""
    edit = {"image": str(data[1].parent.parent / "edits" / "1-a.png"), "instruction": "make it 1"}
    validation = {"every": 2, "held_out": 5, "prompts": ["a red dog"], "edits": [edit], "steps": 2}
    for name, world in (("one", 1), ("two", 2)):
        settings = settings_of(tmp_path, data, name, ema=0.5, parallel=parallel)
        settings |= {"validation": validation, "checkpoint": {"every": 1000, "keep": 1}}
        train(settings, world)
    one, two = ([line["validation_loss"] for line in metrics(tmp_path / name)[1:]] for name in ("one", "two"))
    assert len(one) == 2 and one[0] != one[1] and two == pytest.approx(one, rel=1e-5)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-6)
    for step in (2, 3):
        pictures = [
            Image.open(tmp_path / name / "samples" / f"step-{step:08d}.png") for name in ("one", "two")
        ]
        assert pictures[0].size == pictures[1].size and pictures[0].width == 3 * 256
        apart = torch.tensor([list(p.resize((96, 32)).tobytes()) for p in pictures]).float().diff(dim=0).abs()
        assert apart.max() <= 3
    best = min(range(2), key=one.__getitem__)  # kept, though it is not time for a checkpoint
    kept = {path.name for path in (tmp_path / "one" / "checkpoints").iterdir()}
    assert kept == {"step-00000003", f"step-{(2, 3)[best]:08d}"}


@pytest.mark.slow
def test_next_stage_begins_with_the_weights_of_the_last(tmp_path, data):
    first = settings_of(tmp_path, data, "first", learning_rate=1e-2, ema=0.5)
    train(first)
    second = settings_of(tmp_path, data, "second", learning_rate=1e-30, min_learning_rate=0.0)
    second |= {"stage": "second", "init": str(tmp_path / "first" / "last"), "init_ema": True}
    train(second)
    began = shards.read_tensors(tmp_path / "first" / "last", "ema/")
    ended = shards.read_tensors(tmp_path / "second" / "last", "trained/")
    assert began.keys() == ended.keys()
    assert all(began[name].equal(ended[name]) for name in began)
    # the recipe names the checkpoint itself: `last` may come to mean another one
    saved = yaml.safe_load((tmp_path / "second" / "recipe.yaml").read_text())
    assert saved["init"].endswith("first/checkpoints/step-00000003")


def test_launchers_that_cannot_be_used(tmp_path, data, monkeypatch, capsys):
    path = str(write_recipe(settings_of(tmp_path, data)))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert main(["train", "run", path]) == 2
    assert "DeepSpeed" in (said := capsys.readouterr().err) and "monitor" in said and said.count("\n") == 1
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        engine.wanted_parallel("ddp")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert engine.wanted_parallel("ddp") == "fsdp2"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_recipe_decides_and_not_the_launcher(tmp_path, data):
    for name, prepare in (("plain", None), ("run", "launcher_settings"), ("sharded", "launched_for_fsdp2")):
        train(settings_of(tmp_path, data, name), 2, prepare)
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "plain"), rel=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_buckets_and_lora_in_several_processes(tmp_path, data, parallel):
    """Aspect-ratio buckets with random crops; dropout of a LoRA, which follows the micro-batch."""
    options = {
        "micro_batch": 2,
        "parts": "lora",
        "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.2},
        "steps": 4,
    }
    for name, world in (("one", 1), ("two", 2)):
        settings = settings_of(tmp_path, data, name, parallel=parallel, learning_rate=1e-2, **options)
        settings["data"] |= {"aspect": "buckets", "crop": "random"}
        train(settings, world)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("run={file}", "The run folder .*file cannot be written to .*run="),
        ("run={file}/x", "run= names no folder .*x leads through a file as if it were a folder"),
        ("data.cache.latents={file}", "data.cache.latents names; fill it"),
        ("data.cache.vision=nowhere", "no folder nowhere, which data.cache.vision names"),
        ("validation.edits=[{{image: no.png, instruction: x}}]", "validation picture no.png cannot be read"),
    ],
)
def test_what_a_recipe_names_is_looked_at_first(tmp_path, data, monkeypatch, capsys, change, words):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("the run began"))
    path = str(write_recipe(settings_of(tmp_path, data)))
    assert main(["train", "run", path, change.format(file=tmp_path / "file")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(words, said) and said.startswith("tbac-uniimage: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_cannot_share_a_step(tmp_path, data):
    codes, output = run(settings_of(tmp_path, data, batch=3), world=2)
    assert codes[0] == 2 and "2 processes cannot share" in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_dry_run_starts_nothing(tmp_path, data, capsys):
    path = write_recipe(settings_of(tmp_path, data))
    assert main(["train", "run", str(path), "train.batch=8", "--dry-run", "data.sets.0.weight=2"]) == 0
    out = capsys.readouterr().out
    assert "batch: 8" in out and "331,032" in out and "384,427" in out
    assert "85.71" in out  # 2 x 24 of 2 x 24 + 8 samples of an epoch
    assert f"Begins in {tmp_path / 'run'}.\n" in out
    assert not (tmp_path / "run").exists()


def test_dry_run_of_several_processes(tmp_path, data, monkeypatch, capsys):
    """It speaks once, of all devices, and of what the launcher was told."""
    path = str(write_recipe(settings_of(tmp_path, data)))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "run", path, "--dry-run"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert main(["train", "run", path, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "parallel: fsdp2" in out and re.search(r"\ndevices +4\n", out)
    assert main(["train", "run", path, "--dry-run", "train.batch=6"]) == 2
    assert "4 processes cannot share" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert main(["train", "run", path, "--dry-run"]) == 2
    assert "DeepSpeed" in capsys.readouterr().err


@pytest.mark.slow
def test_dry_run_in_the_folder_of_a_run(tmp_path, data, capsys):
    """Where it would go on, or why it would not; nothing is written."""
    settings = settings_of(tmp_path, data)
    train(settings)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    path = str(write_recipe(settings))
    assert main(["train", "run", path, "--dry-run"]) == 0
    assert re.search(r"Goes on from .*step-00000003\.\n", capsys.readouterr().out)
    assert main(["train", "run", path, "--dry-run", "seed=8"]) == 2
    assert "holds a run of another recipe (seed: 3, now 8)" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(("precision", "plain"), [("bf16", True), ("no", False)])
def test_bfloat16_on_a_cpu_trains_without_the_fused_attention(precision, plain):
    # accelerate keeps the precision of a process's first accelerator for all
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), mixed_precision=precision, autocast=contextlib.nullcontext
    )
    query = torch.randn(1, 2, 4, 8, requires_grad=True)
    with engine.mixed_precision(accelerator):
        attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert ("Flash" not in attended.grad_fn.name()) == plain
