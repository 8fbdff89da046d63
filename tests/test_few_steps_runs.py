"""Stage 4 of models that read what they edit and the words themselves: values, caches, processes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import load_tiny
from PIL import Image
from source_models import attending, pipeline_of, reading
from tbac_uniimage.core.denoising import velocities
from tbac_uniimage.core.guidance import Guidance
from tbac_uniimage.training import models
from tbac_uniimage.training.data.cache import command as cache
from tbac_uniimage.training.recipe.recipe import Recipe
from tbac_uniimage.training.run.checkpoints.shards import read_tensors
from tbac_uniimage.training.step.few_steps import FewStepTrainee, few_step_losses
from tbac_uniimage.training.step.lora import add_lora
from tbac_uniimage.training.train import open_data
from training_runs import losses, make_data, make_edits, recipe, train

DISTILLATION = {"steps": 4, "guidance": 3.0, "edit_guidance": 2.0, "image_guidance": 1.5}
TARGETS = ["attn1.to_q", "ff.conv_point", "time_embed.linear", "patch_embed.proj"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    return [make_data(folder, 6), make_edits(folder)]


@pytest.fixture(scope="module")
def parts():
    """A model that reads all that there is to read, whose input pictures have 64 patches."""
    parts = attending(reading(load_tiny()))
    parts.image_processor = copy.deepcopy(parts.image_processor)
    parts.image_processor.size = {"longest_edge": 112 * 112, "shortest_edge": 112 * 112}
    return parts


def stage_four(run: Path, data: list[Path], **sections) -> dict:
    return recipe(run, data, stage="few_steps", init="model", distillation=DISTILLATION, **sections)


def velocity_of(pipeline, text: str, images: list[Image.Image], guidance: Guidance):
    """What a call of the pipeline evaluates in a step."""
    scales = {"guidance_scale": guidance.text, "image_guidance_scale": guidance.image}
    condition = pipeline.encode_prompt(text, images or None, **scales)

    def velocity(x: torch.Tensor, level: float) -> torch.Tensor:
        rungs = pipeline.prepare_rungs(condition, 1, CPU)
        seen = pipeline.prepare_seen(condition, x.shape, 1, CPU)
        timestep, branches = torch.tensor(1000 * level), condition.branches
        found = velocities(pipeline.transformer, x, timestep, rungs, branches, seen)
        return guidance.combine(found, branches)

    return velocity


@pytest.mark.parametrize("cached", [False, True])
def test_losses_are_those_of_what_the_pipeline_evaluates(data, parts, tmp_path, cached):
    """Captions and edits of one batch, each against teacher and student drawing it alone."""
    caches = {"cache": {name: str(tmp_path / name) if cached else None for name in ("latents", "vision")}}
    settings = stage_four(tmp_path / "run", data)
    settings["data"] |= caches | {"drop": dict.fromkeys(("text", "image", "both", "caption"), 0.0)}
    settings["train"] |= {"micro_batch": 4, "batch": 8}
    settings = Recipe.model_validate(settings)
    if cached:
        assert cache.fill(settings, parts, torch.float32).written
    batches = open_data(settings, parts)
    uncached = copy.copy(batches)
    uncached.vision = uncached.latents = None

    teacher, tuned = pipeline_of(parts), copy.copy(parts)
    tuned.transformer = copy.deepcopy(parts.transformer)
    add_lora(tuned.transformer, 2, 2, targets=TARGETS)
    for name, parameter in tuned.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(2))
    student = pipeline_of(tuned)
    trainee = FewStepTrainee(tuned, settings.distillation, CPU)
    batch = next(batch for batch in map(batches.__getitem__, range(4)) if 0 < len(batch.edits) < 4)
    assert batch.pixels is None and batch.latents is None and batch.mask is None
    with torch.no_grad():
        found = trainee(*trainee.arguments(tuned, batch, CPU))
        for row, position in enumerate(batch.positions):
            sample = uncached.sample(uncached.order.place(position), None, (0.5, 0.5))
            assert bool(sample.images) == (row in batch.edits)
            guidance = Guidance(2.0, 1.5) if sample.images else Guidance(3.0)
            taught = velocity_of(teacher, sample.text, sample.images, guidance)
            learned = velocity_of(student, sample.text, sample.images, Guidance(1.0))
            expected = few_step_losses(learned, taught, batch.noise[row : row + 1], trainee.levels)
            torch.testing.assert_close(found[row : row + 1], expected, atol=1e-5, rtol=2e-4)


def test_targets_and_their_masks_are_not_read(data, parts, tmp_path, monkeypatch):
    """So one that is gone, or whose mask is black, is no reason to leave a sample out."""
    settings = Recipe.model_validate(stage_four(tmp_path / "run", data))
    batches = open_data(settings, parts)
    monkeypatch.setattr(type(batches), "read_target", lambda *_: pytest.fail("a target was read"))
    assert [batches[number].bad for number in range(4)] == [[]] * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    pipeline_of(attending(reading(load_tiny()))).save_pretrained(folder)
    return folder


def distilled(run: Path, data: list[Path], model: Path, world: int, **train_section):
    """Losses of a run, and what it trained."""
    lora = {"rank": 2, "alpha": 2.0, "targets": TARGETS}
    settings = stage_four(run, data, validation={"every": 3, "held_out": 3, "prompts": ["a dog"], "steps": 2})
    settings |= {"init": str(model)}
    settings["train"] |= {"steps": 3, "warmup": 0, "learning_rate": 1e-3, "lora": lora} | train_section
    train(settings, world)
    return losses(run), read_tensors(models.find_checkpoint(run), "trained/")


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["lora", "all"])
def test_processes_distil_as_one_does(tmp_path, data, model, parts):
    """In micro-batches of one sample, so that often one process edits and the other does not."""
    one, weights = distilled(tmp_path / "one", data, model, 1, parts=parts)
    engines = {"ddp": {}, "fsdp2": {"parallel": "fsdp2", "gradient_checkpointing": True}}
    for name, options in engines.items():
        two, weights_of_two = distilled(tmp_path / name, data, model, 2, parts=parts, **options)
        assert two == pytest.approx(one, rel=1e-5), name
        for key, weight in weights.items():
            torch.testing.assert_close(weights_of_two[key], weight, atol=1e-5, rtol=1e-4)
