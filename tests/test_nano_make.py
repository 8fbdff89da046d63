"""The whole nano model by one command: what it runs, what may be published, and a trial of all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nano_drawings import drawings, made_up  # noqa: F401  a fixture
from safetensors.torch import save_file
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.nano import make, publish
from tbac_uniimage.training.nano.base.stage import load_stage_recipe
from tbac_uniimage.training.nano.domain.words import OBJECTS, STYLES
from tbac_uniimage.training.recipe.recipe import load_recipe
from training_runs import finish, start

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "drawings",
    *make.BASE,
    "base",
    "data",
    "index",
    *make.LADDER,
    "judge",
    "publish",
]


def commands(runs: Path, size: make.Size, processes: int = 2) -> dict[str, list[str]]:
    return {step.name: step.command for step in make.steps(runs, runs / "model", size, processes)}


def overrides(command: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command if "=" in word)


def test_the_full_size_is_what_the_recipes_say():
    full = commands(ROOT / "runs" / "nano", make.FULL)
    assert list(full) == NAMES
    for name in (*make.BASE, *make.LADDER):
        assert not overrides(full[name]), name
        assert str(ROOT / "training" / "recipes" / "nano" / f"{name}.yaml") in full[name]
    numbers = [full["data"][full["data"].index(f"--{name}") + 1] for name in make.FULL.counts]
    assert numbers == ["300000", "100000", "200000", "20000", "20000"]


def test_another_folder_moves_everything_that_the_recipes_name(tmp_path):
    there = commands(tmp_path, make.FULL)
    assert overrides(there["c_language"]) == {
        "run": f"{tmp_path}/language",
        "tokenizer": f"{tmp_path}/tokenizer",
        "vision": f"{tmp_path}/vision",
    }
    assert overrides(there["d_grounding"]) == {
        "run": f"{tmp_path}/grounding",
        "tokenizer": f"{tmp_path}/tokenizer",
        "init": f"{tmp_path}/language",
    }
    assert overrides(there["f_answers"]) == {
        "run": f"{tmp_path}/answers",
        "tokenizer": f"{tmp_path}/tokenizer",
        "vision": f"{tmp_path}/seeing",
        "init": f"{tmp_path}/grounding",
    }
    assert there["base"][there["base"].index("--language") + 1] == f"{tmp_path}/answers"
    assert overrides(there["3_fine_tune"]) == {
        "run": f"{tmp_path}/stage3",
        "init": f"{tmp_path}/stage2/last",
        "data.sets.0.index": f"{tmp_path}/index/curated-edits",
        "data.sets.1.index": f"{tmp_path}/index/curated-scenes",
    }
    for name in make.LADDER:
        changes = [word for word in there[name] if "=" in word]
        recipe = load_recipe(make.RECIPES / f"{name}.yaml", changes)
        paths = [recipe.run, recipe.init, *(data.index for data in recipe.data.sets)]
        assert all(str(path).startswith(str(tmp_path)) for path in paths)


def test_all_that_draw_have_one_size():
    """The autoencoder, the data, and every stage of the ladder."""
    full = commands(ROOT / "runs" / "nano", make.FULL)
    drawn = [load_recipe(make.RECIPES / f"{name}.yaml").data.resolution for name in make.LADDER]
    drawn.append(load_stage_recipe(make.RECIPES / "a_autoencoder.yaml", []).size)
    drawn.append(int(full["data"][full["data"].index("--size") + 1]))
    assert drawn == [128] * 7
    with pytest.raises(ValueError, match="size"):
        load_stage_recipe(make.RECIPES / "a_autoencoder.yaml", ["size=96"])


def test_a_trained_model_gives_all_but_the_autoencoder(tmp_path):
    model, runs = tmp_path / "trained", tmp_path / "runs"
    to_do = {step.name: step.command for step in make.steps(runs, runs / "model", make.FULL, 2, model)}
    assert list(to_do) == ["drawings", "a_autoencoder", "base", "data", "index", *make.LADDER[1:], "publish"]
    assert to_do["base"][-4:] == ["--autoencoder", str(runs / "autoencoder"), "--model", str(model)]
    assert to_do["publish"][-5:-2] == [str(runs / "stage3"), str(model / "judge"), str(runs / "model")]
    assert to_do["publish"][-2:] == ["--few-steps", str(runs / "stage4")]
    first, *others = (
        load_recipe(make.RECIPES / f"{name}.yaml", [word for word in to_do[name] if "=" in word])
        for name in make.LADDER[1:]
    )
    assert (first.init, first.init_ema) == (str(runs / "base"), False)
    assert [recipe.init for recipe in others] == [str(runs / f"stage{i}" / "last") for i in (1, 2, 3)]


@pytest.mark.parametrize("processes, micro", [(1, 24), (2, 24), (4, 12), (48, 1)])
def test_a_step_is_shared_out_to_the_processes(tmp_path, processes, micro):
    command = commands(tmp_path, make.FULL, processes)["1_text_to_image"]
    assert ("torch.distributed.run" in command) == (processes > 1)
    changes = [word for word in command if "=" in word]
    train = load_recipe(make.RECIPES / "1_text_to_image.yaml", changes).train
    assert train.micro_batch == micro and train.batch % (processes * train.micro_batch) == 0


@pytest.mark.parametrize("processes", [0, 5])
def test_processes_that_cannot_share_a_step_are_refused(processes, tmp_path):
    with pytest.raises(ValueError, match=f"--processes is {processes}: give a divisor of 48"):
        commands(tmp_path, make.FULL, processes)


def test_a_base_model_is_done_at_its_last_step(tmp_path):
    from tbac_uniimage.training.nano.base.stage import STATE

    [step] = [s for s in make.steps(tmp_path, tmp_path, make.TRIAL, 1) if s.name == "a_autoencoder"]
    assert not step.done()
    (tmp_path / "autoencoder").mkdir()
    for done in (2, 3):
        progress = {"progress": json.dumps({"steps": done})}
        save_file({"x": torch.zeros(1)}, tmp_path / "autoencoder" / STATE, metadata=progress)
        assert step.done() == (done == 3)


def test_what_is_too_large_or_not_finite_is_not_published(tmp_path, monkeypatch):
    (tmp_path / "vae").mkdir()
    weights = {"good": torch.ones(9, dtype=torch.float16), "bad": torch.full((2,), 1.0, dtype=torch.float16)}
    save_file(weights, tmp_path / "vae" / "model.safetensors")
    size = (tmp_path / "vae" / "model.safetensors").stat().st_size
    assert publish.check(tmp_path) == size
    monkeypatch.setattr(publish, "WEIGHTS_LIMIT", size - 1)
    with pytest.raises(ValueError, match=f"takes {size:,} bytes, more than the {size - 1:,}"):
        publish.check(tmp_path)
    monkeypatch.undo()
    weights["bad"][1] = torch.inf
    save_file(weights, tmp_path / "vae" / "model.safetensors")
    with pytest.raises(ValueError, match="bad of vae/model.safetensors is not finite in float16"):
        publish.check(tmp_path)


def test_without_a_run_or_a_judge_nothing_is_published(tmp_path):
    with pytest.raises(ValueError, match="is no run with a checkpoint; train the stage first"):
        publish.publish(tmp_path, tmp_path, tmp_path / "model")
    assert not list(tmp_path.iterdir())


LIGHT = ("nano.domain.art", "nano.compose")  # load no torch, so they may as well start anew


def runner(output: Path, cache: Path) -> Callable[..., SimpleNamespace]:
    """`subprocess.run` for `make`: most processes are forked off one that has the libraries loaded.

    The launcher of several processes itself runs for one stage; the others get the two that it would start.
    """
    environment = {"TBAC_UNIIMAGE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def run(command: list[str], cwd: Path) -> SimpleNamespace:
        modules = [word.removeprefix(f"{make.PACKAGE}.") for word in command if word.startswith(make.PACKAGE)]
        launched = "torch.distributed.run" in command
        if not modules or modules[0] in LIGHT or (launched and "1_text_to_image" in " ".join(command)):
            return subprocess.run(
                command, cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL
            )
        assert cwd == ROOT and command[0] == sys.executable
        world = int(command[command.index("--nproc_per_node") + 1]) if launched else 1
        words = command[command.index(f"{make.PACKAGE}.{modules[0]}") + 1 :]
        processes = start(words, output, world, module=f"training.{modules[0]}", environment=environment)
        return SimpleNamespace(returncode=max(map(abs, finish(processes))))

    return run


@pytest.mark.slow
@pytest.mark.long
def test_a_trial_of_everything(drawings, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Every stage takes a few steps, the ladder's on two processes; the model loads, draws and is scored."""
    sprites = np.stack(list(made_up().values())).reshape(len(STYLES), len(OBJECTS), 96, 96, 4)
    (tmp_path / "nano").mkdir()
    atlas = {"styles": np.array(STYLES), "names": np.array(list(OBJECTS)), "rgba": sprites}
    np.savez_compressed(tmp_path / "nano" / "art.npz", **atlas)
    runs, model = tmp_path / "runs", tmp_path / "runs" / "model"
    monkeypatch.setattr(make, "subprocess", SimpleNamespace(run=runner(tmp_path / "log", tmp_path)))
    monkeypatch.setattr(sys, "argv", ["make", "--trial", "--runs", str(runs)])
    with pytest.raises(SystemExit) as ended:
        make.main()
    assert ended.value.code is None, (tmp_path / "log").read_text()
    for name in ("transformer", "stage1", "stage2", "stage3", "stage4"):
        lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[-1]["samples"] == 16
        assert all(0 < line["loss"] < 10 and not line["skipped"] for line in lines)
        assert (runs / name / "samples" / "step-00000004.png").exists()
    done = [step.name for step in make.steps(runs, model, make.TRIAL, 2) if step.done()]
    assert done == [*make.BASE, "base", "index"]
    assert 20_000_000 < publish.check(model) < publish.WEIGHTS_LIMIT
    drawing = json.loads((model / "transformer" / "config.json").read_text())
    assert (drawing["source_latents"], drawing["in_channels"]) == (True, 32)
    assert not list(runs.rglob("*.partial"))

    monkeypatch.chdir(tmp_path)
    drawing = ["--model", str(model), "--device", "cpu"]
    assert main(["generate", "a cat on a blue background", "--steps", "2", "--out", "drawn", *drawing]) == 0
    assert main(["ask", "drawn/0001.png", "what is it?", "--max-tokens", "3", *drawing]) == 0
    assert main(["generate", "a cat on a blue background", "--few", "--out", "drawn", *drawing]) == 0
    capsys.readouterr()
    few = ["--samples", "2", "--pictures", "1", "--steps", "2", "--only", "single", "edit-add", "ask-what"]
    judge = ["--judge", str(model / "judge" / "model.safetensors")]
    assert main(["score", *drawing, *judge, *few, "-o", "score"]) == 0
    assert "single object" in capsys.readouterr().out
    assert len(list((tmp_path / "score" / "verdicts").iterdir())) == 3
