"""Models that runs start from, and models that runs have made."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tbac_uniimage.core.checkpoints import assemble, load_parts, save_released
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.training import export, models
from tbac_uniimage.training.models import find_checkpoint, load_base, load_run
from tbac_uniimage.training.recipe.recipe import Recipe, save_recipe
from tbac_uniimage.training.run.checkpoints.shards import save
from tiny_checkpoint import MODULES, QWEN, SANA, assert_same

BASE = {"mllm": str(QWEN), "sana": str(SANA), "num_queries": 5}


def recipe(run: Path, **changes) -> Recipe:
    train = {"steps": 2, "warmup": 0} | changes.pop("train", {})
    settings = {"stage": "test", "run": str(run), "data": {"sets": [{"index": "none"}]}, "train": train}
    return Recipe.model_validate(settings | {"base": BASE, "seed": 3} | changes)


def lora_recipe(run: Path, **changes) -> Recipe:
    lora = {"rank": 2, "alpha": 6.0, "targets": ["attn2.to_q"]}
    return recipe(run, train={"parts": "lora", "lora": lora}, **changes)


def run_of(settings: Recipe, steps: tuple[int, ...] = (1,), ema: bool = False) -> Path:
    """A run that added its step / 64 to all that it trains; averaged weights are 1 more."""
    run = Path(settings.run)
    run.mkdir(parents=True)
    save_recipe(settings, run / "recipe.yaml")
    for step in steps:
        trained = {n: p.detach() for n, p in models.trained_parameters(load_base(settings), settings).items()}
        tensors = {f"trained/{name}": tensor.float() + step / 64 for name, tensor in trained.items()}
        if ema:
            tensors |= {f"ema/{name}": tensor.float() + step / 64 + 1 for name, tensor in trained.items()}
            tensors["ema_updates"] = torch.tensor(step)
        tensors["optimizer/x/exp_avg"] = torch.zeros(3)
        save(run, step, tensors, {"step": step}, asynchronous=False).wait()
    return run


def call(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    export.run(parser.parse_args([str(argument) for argument in arguments]))


def by_hand(settings: Recipe, *added: float):
    """The model of a run that trained everything, made without its checkpoint."""
    parts = assemble(QWEN, SANA, num_queries=5, seed=settings.seed)
    for module in (parts.connector, parts.transformer):
        for name, parameter in module.named_parameters():
            if name != "reserved_rows":
                for number in added:
                    parameter.data = parameter.data + number
    return parts


@pytest.mark.parametrize("arguments, added", [([], (2 / 64,)), (["--ema"], (2 / 64, 1))])
def test_released_export_equals_a_model_changed_by_hand(tmp_path, arguments, added):
    settings = recipe(tmp_path / "run")
    run = run_of(settings, (1, 2), ema=True)
    call(run / "last", "--to", "released", "-o", tmp_path / "out", *arguments)
    expected = save_released(
        by_hand(settings, *added), tmp_path / "expected", mllm_id=QWEN.name, sana_id=SANA.name
    )
    found, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", expected))
    assert found.keys() == wanted.keys()
    assert all(found[n].dtype == wanted[n].dtype and torch.equal(found[n], wanted[n]) for n in wanted)
    files = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (expected / name).read_bytes()


def test_pipeline_export_draws_the_same_picture(tmp_path, capsys):
    settings = recipe(tmp_path / "run")
    run = run_of(settings)
    call(run, "--to", "pipeline")
    assert capsys.readouterr().out == f"{run / 'pipeline'}\n"
    drawn = []
    for pipe in (
        LadderPipeline.from_pretrained(run / "pipeline"),
        LadderPipeline(**vars(by_hand(settings, 1 / 64))),
    ):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        drawn.append(pipe("a cat", num_inference_steps=2, generator=generator, output_type="pt").images)
    assert torch.equal(*drawn) and drawn[0].isfinite().all()


def test_rungs_of_a_recipe_last_from_stage_to_stage(tmp_path):
    """A run that starts from another keeps its kind and its learned weights until told otherwise."""
    first = run_of(recipe(tmp_path / "first", model={"rungs": "mixed"}))
    second = run_of(recipe(tmp_path / "second", init=str(first)))
    third = run_of(recipe(tmp_path / "third", init=str(second), model={"rungs": "mixed"}))
    for run, sum_of_steps in ((first, 1), (second, 2), (third, 3)):
        connector = load_run(find_checkpoint(run)).connector
        assert connector.config.rungs == "mixed"
        assert connector.layer_logits.tolist() == [[sum_of_steps / 64] * 4] * 4
    call(third, "--to", "pipeline", "-o", tmp_path / "model")
    assert load_parts(tmp_path / "model").connector.config.rungs == "mixed"
    with pytest.raises(ValueError, match="has mixed rungs"):
        call(third, "--to", "released", "-o", tmp_path / "released")
    changed = load_base(recipe(tmp_path / "fourth", init=str(tmp_path / "model"), model={"rungs": "last"}))
    assert changed.connector.config.rungs == "last" and changed.connector.layer_logits is None
    assert load_base(recipe(tmp_path / "fifth")).connector.config.rungs == "ladder"


def test_exported_loras_name_their_model_without_folders(tmp_path):
    first = run_of(recipe(tmp_path / "first"))
    second = run_of(lora_recipe(tmp_path / "second", init=str(first / "last")))
    call(second, "--to", "lora")
    with safe_open(second / "lora.safetensors", framework="pt") as opened:
        metadata = opened.metadata()
    assert re.fullmatch(r"first/step-0*1", metadata["base_model"]) and metadata["run"] == "second"
    assert not any(str(tmp_path) in value for value in metadata.values())
    assert models.name_of("owner/model") == "owner/model"
    assert models.name_of(str(tmp_path / "gone" / "model")) == "model"


def test_types_of_an_export(tmp_path):
    base = LadderPipeline(**vars(assemble(QWEN, SANA, num_queries=5, dtype=torch.bfloat16)))
    base.save_pretrained(tmp_path / "base")
    run = run_of(recipe(tmp_path / "run", init=str(tmp_path / "base")))
    call(run, "--to", "pipeline", "-o", tmp_path / "same")
    parts = load_parts(tmp_path / "same")
    assert all(getattr(parts, part).dtype == torch.bfloat16 for part in MODULES)
    call(run, "--to", "released", "-o", tmp_path / "full", "--dtype", "float32")
    parts = load_parts(tmp_path / "full")
    assert all(getattr(parts, part).dtype == torch.float32 for part in MODULES)


def test_base_of_a_run_has_the_types_that_training_needs(tmp_path):
    base = LadderPipeline(**vars(assemble(QWEN, SANA, num_queries=5, dtype=torch.bfloat16)))
    base.save_pretrained(tmp_path / "base")
    settings = recipe(tmp_path / "run", init=str(tmp_path / "base"))
    parts = load_base(settings, torch.float16)
    types = [{p.dtype for p in getattr(parts, part).parameters()} for part in MODULES]
    assert types == [{torch.float16}, {torch.float32}, {torch.float32}, {torch.float16}]
    parts = load_base(lora_recipe(tmp_path / "run", init=str(tmp_path / "base")), torch.float16)
    assert all({p.dtype for p in getattr(parts, part).parameters()} == {torch.float16} for part in MODULES)


def test_stages_follow_each_other(tmp_path):
    first = run_of(recipe(tmp_path / "first"), ema=True)
    last = recipe(tmp_path / "last", init=str(first / "last"), init_ema=True)
    start = load_base(last)
    assert_same(start, by_hand(last, 1 / 64, 1))
    second = run_of(last, (1, 2))
    third = recipe(tmp_path / "third", init=str(second))
    assert_same(load_base(third), by_hand(third, 1 / 64, 1, 2 / 64))
    assert models.base_ids(third) == {"mllm_id": QWEN.name, "sana_id": SANA.name}
    # weights of the first are not needed any more, its recipe is
    for shard in (first / "last").glob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        content[-1000:] = b"\xff" * 1000
        shard.write_bytes(content)
    assert_same(load_run(find_checkpoint(second)), by_hand(third, 1 / 64, 1, 2 / 64))


def test_lora_runs(tmp_path, capsys):
    settings = lora_recipe(tmp_path / "run")
    run = run_of(settings, ema=True)
    call(run, "--to", "lora")
    file = run / "lora.safetensors"
    assert capsys.readouterr().out == f"{file}\n"
    tensors = load_file(file)
    layers = sorted({name.split(".lora_")[0] for name in tensors if ".lora_" in name})
    assert layers == [f"diffusion_model.transformer_blocks.{i}.attn2.to_q" for i in range(4)]
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["rank"] == "2" and metadata["alpha"] == "6.0" and metadata["step"] == "1"
    assert metadata["base_model"] == f"{QWEN.name} + {SANA.name}" and metadata["averaged"] == "false"

    call(run, "--to", "released", "-o", tmp_path / "merged")
    base, merged = load_base(settings), load_parts(tmp_path / "merged")
    for layer in layers:
        name = layer.removeprefix("diffusion_model.") + ".weight"
        a, b = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
        weight = base.transformer.get_parameter(name)
        weight.data = weight + 3 * b @ a
        torch.testing.assert_close(merged.transformer.get_parameter(name), weight)
        base.transformer.get_parameter(name).data = merged.transformer.get_parameter(name)
    assert_same(merged, base)
    after = recipe(tmp_path / "after", init=str(run / "last"))
    assert_same(load_base(after), base)

    call(run, "--to", "lora", "--ema", "--dtype", "bfloat16", "-o", tmp_path / "ema.safetensors")
    averaged = load_file(tmp_path / "ema.safetensors")
    expected = {n: (t + 1).bfloat16() if ".lora_" in n else t for n, t in tensors.items()}
    assert averaged.keys() == expected.keys()
    assert all(torch.equal(averaged[name], expected[name]) for name in expected)


def test_what_cannot_be_exported_is_said_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = run_of(recipe(tmp_path / "run"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    alone = Path(shutil.copytree(run / "checkpoints" / "step-00000001", tmp_path / "a" / "b" / "alone"))

    def refused(match: str, *arguments: object) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            call(*arguments)
        assert str(caught.value).endswith(".")

    refused("holds no averaged weights, its run has train.ema = null", run, "--to", "released", "--ema")
    refused("trains the whole model and no LoRA", run, "--to", "lora")
    refused("full is there already and not empty", run, "--to", "pipeline", "-o", "full")
    refused("full is no run and no checkpoint", "full", "--to", "pipeline")
    refused("has no whole checkpoint, it has written none yet", "empty", "--to", "pipeline")
    refused("recipe.yaml is not there; put it back", alone, "--to", "pipeline")
    lora = run_of(lora_recipe(tmp_path / "lora"))
    refused("give a name that ends in .safetensors", lora, "--to", "lora", "-o", "file")
    (run / "last" / "complete.json").unlink()
    refused("step-00000001 has no complete.json", run, "--to", "released")
    refused("last has no complete.json", run / "last", "--to", "released")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(SystemExit):
        call(run / "last", "--to", "released")
    assert "last is a link to checkpoints/step-00000001, which is not there" in capsys.readouterr().err


def test_what_cannot_be_started_from_is_said_in_one_sentence(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refused(match: str, **changes: object) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            load_base(recipe(tmp_path / "run", **changes))
        assert str(caught.value).endswith(".")

    refused("There is no model at .*none; check the path", init=str(tmp_path / "none"))
    refused("init_ema is true but init = .* is no checkpoint of a run", init=str(checkpoint), init_ema=True)
    refused("There is no model at .*none", base=BASE | {"sana": str(tmp_path / "none")})

    changed = recipe(tmp_path / "other", base=BASE | {"num_queries": 6})
    run = run_of(changed)
    save_recipe(recipe(tmp_path / "other"), run / "recipe.yaml")
    refused(r"1 misshapen \(connector.queries is \[6, 64\] and should be \[5, 64\]\)", init=str(run))
    save_recipe(recipe(tmp_path / "other", init=str(run / "last")), run / "recipe.yaml")
    refused("starts from itself", init=str(run))


def test_folders_called_checkpoints_may_hold_models(tmp_path, checkpoint):
    model = tmp_path / "checkpoints" / "model"
    model.parent.mkdir()
    model.symlink_to(checkpoint)
    assert find_checkpoint(model) is None
    assert json.loads((model / "model_index.json").read_text())["_class_name"][-1] == "LadderPipeline"
    assert load_base(recipe(tmp_path / "run", init=str(model))).connector.config.num_queries == 8
