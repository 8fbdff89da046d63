"""The source's latents as an input of the transformer: values, branches, files, data, training."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from source_models import pipeline_of, reading
from tbac_uniimage.core.canvas import canvas_pixels, encode_latents
from tbac_uniimage.core.checkpoints import load_parts, save_released
from tbac_uniimage.core.crops import corners, plan_crops
from tbac_uniimage.core.inputs import LadderProcessor
from tbac_uniimage.core.transformer import LadderTransformer2DModel
from tbac_uniimage.training import models
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.cache import command as cache
from tbac_uniimage.training.data.cache.entries import latent_cache, vision_cache
from tbac_uniimage.training.data.samples import MicroBatches
from tbac_uniimage.training.data.shards import Shards
from tbac_uniimage.training.recipe.recipe import Recipe
from tbac_uniimage.training.step.trainee import LadderTrainee, latents_of, seen_beside
from tiny_checkpoint import CHECKPOINT, QWEN, SANA, assert_same
from training_runs import (
    finish,
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

EDIT = "make it red"
SIDE = 64
CPU = torch.device("cpu")


def draw(parts, prompt=EDIT, **options) -> torch.Tensor:
    """Latents after three steps."""
    options = {"num_inference_steps": 3, "output_type": "latent", "image_guidance_scale": 1.5} | options
    return pipeline_of(parts)(prompt, generator=torch.Generator().manual_seed(1), **options).images


def states_of(transformer, batch: int = 2) -> torch.Tensor:
    config = transformer.config
    generator = torch.Generator().manual_seed(2)
    return torch.randn(config.num_layers, batch, 5, config.caption_channels, generator=generator)


def noise_of(transformer, seed: int, batch: int = 2) -> torch.Tensor:
    shape = (batch, transformer.config.in_channels, 6, 10)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_an_extended_model_predicts_the_same_to_the_bit(tiny, picture):
    plain, extended = tiny, reading(tiny, trained=False)
    x, source = noise_of(tiny.transformer, 0), noise_of(tiny.transformer, 1)
    arguments = x, states_of(tiny.transformer), torch.tensor([900.0, 3.0])
    expected = plain.transformer(*arguments).sample
    assert torch.equal(extended.transformer(*arguments, source_latents=source).sample, expected)
    assert torch.equal(extended.transformer(*arguments).sample, expected)
    assert torch.equal(draw(extended, image=picture), draw(plain, image=picture))
    added = extended.transformer.state_dict().keys() - plain.transformer.state_dict().keys()
    assert added == {"source_embed.weight"}


@torch.no_grad()
def test_it_is_one_convolution_over_the_channels_of_both(tiny):
    transformer = reading(tiny).transformer
    x, source = noise_of(transformer, 0), noise_of(transformer, 1)
    proj = transformer.patch_embed.proj
    weight = torch.cat([proj.weight, transformer.source_embed.weight], dim=1)
    joined = torch.nn.functional.conv2d(torch.cat([x, source], 1), weight, proj.bias, proj.stride)
    seen = []
    hook = transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    transformer(x, states_of(transformer), torch.tensor([500.0, 500.0]), source_latents=source)
    hook.remove()
    torch.testing.assert_close(seen[0], joined.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    none = transformer(x, states_of(transformer), torch.tensor([500.0] * 2)).sample
    zeros = torch.zeros_like(x)
    absent = transformer(x, states_of(transformer), torch.tensor([500.0] * 2), source_latents=zeros).sample
    assert torch.equal(none, absent)
    other = transformer(x, states_of(transformer), torch.tensor([500.0] * 2), source_latents=source).sample
    assert (other - none).abs().max() > 1e-2


def test_a_plain_model_refuses_what_it_would_not_read(tiny):
    x = noise_of(tiny.transformer, 0)
    with pytest.raises(ValueError, match=r"reads no source_latents; leave them out, or read_source\(True\)"):
        tiny.transformer(x, states_of(tiny.transformer), torch.tensor([5.0] * 2), source_latents=x)


def seen_by(transformer) -> tuple[list, object]:
    """What the transformer is handed as the source at every evaluation, and the hook."""
    seen = []

    def before(_module, _inputs, options) -> None:
        seen.append(options.get("source_latents"))

    return seen, transformer.register_forward_pre_hook(before, with_kwargs=True)


@torch.no_grad()
def test_every_branch_reads_what_it_sees(tiny, picture):
    """Black for the branch without picture, rows of prompts and results in their order."""
    parts = reading(tiny)
    red = Image.new("RGB", (120, 80), "red")
    canvases = canvas_pixels([picture, red, Image.new("RGB", (9, 9))], 96, 64)
    first, second, black = encode_latents(parts.vae, canvases)
    pipeline = pipeline_of(parts)
    options = {"height": 64, "width": 96, "num_inference_steps": 4, "output_type": "latent"}
    seen, hook = seen_by(parts.transformer)
    options |= {"num_images_per_prompt": 2, "guidance_interval": (0.0, 0.5)}
    pipeline([EDIT, "blue"], [[picture, red], [red]], image_guidance_scale=2.0, **options)
    hook.remove()
    rows = [black] * 4 + [first, first, second, second] * 2
    assert [len(step) for step in seen] == [12, 12, 4, 4]
    torch.testing.assert_close(seen[0], torch.stack(rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[3], torch.stack(rows[-4:]), atol=1e-5, rtol=1e-5)
    assert (first - second).abs().max() > 0.1 and (first - black).abs().max() > 0.1

    seen, hook = seen_by(parts.transformer)
    pipeline("a cat", **options)
    pipeline(EDIT, picture, **options)  # text guidance alone: both branches see it
    hook.remove()
    assert seen[:4] == [None] * 4
    torch.testing.assert_close(seen[4], torch.stack([first] * 4), atol=1e-5, rtol=1e-5)


def test_a_condition_is_read_at_the_size_of_the_call(tiny, picture):
    parts = reading(tiny)
    condition = pipeline_of(parts).encode_prompt(EDIT, picture, image_guidance_scale=1.5)
    for size in ({}, {"height": 64, "width": 32}):
        assert torch.equal(draw(parts, None, condition=condition, **size), draw(parts, image=picture, **size))


def test_without_an_autoencoder_it_can_draw_and_not_edit(tiny, picture):
    parts = reading(tiny)
    condition = pipeline_of(parts).encode_prompt(EDIT, picture)
    pipeline = pipeline_of(parts)
    pipeline.vae = None
    options = {"num_inference_steps": 1, "output_type": "latent"}
    assert pipeline("a cat", **options).images.isfinite().all()
    with pytest.raises(ValueError, match="has no vae, without which it cannot read the picture"):
        pipeline(condition=condition, height=64, width=64, **options)


def test_what_is_stretched_and_what_is_not():
    half = Image.new("RGB", (40, 20), "white")
    half.paste("black", (0, 0, 20, 20))
    pixels = canvas_pixels([half], 8, 8)
    assert (pixels[0, :, :, :3] < -0.98).all() and (pixels[0, :, :, 5:] > 0.98).all()
    same = canvas_pixels([half], 40, 20)
    assert torch.equal(same[0, 0, 0], torch.tensor([-1.0] * 20 + [1.0] * 20))


def test_it_lasts_through_a_pipeline_folder_and_not_through_the_released_layout(tiny, picture, tmp_path):
    parts = reading(tiny)
    pipeline_of(parts).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "transformer" / "config.json").read_text())
    assert config["source_latents"] is True and config["in_channels"] == tiny.transformer.config.in_channels
    found = load_parts(tmp_path / "model")
    assert_same(found, parts)
    assert torch.equal(draw(found, image=picture), draw(parts, image=picture))
    alone = LadderTransformer2DModel.from_pretrained(tmp_path / "model" / "transformer")
    assert torch.equal(alone.source_embed.weight, parts.transformer.source_embed.weight)
    with pytest.raises(
        ValueError, match="reads the source's latents, .* know nothing; write a pipeline folder"
    ):
        save_released(parts, tmp_path / "released")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    pipeline_of(tiny).save_pretrained(tmp_path / "plain")
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert_same(load_parts(tmp_path / "model", transformer_file=weights), parts)
    with pytest.raises(ValueError, match=r"1 unexpected \(source_embed.weight\)"):
        load_parts(tmp_path / "plain", transformer_file=weights)


def test_models_that_say_nothing_do_not_read_it(tiny):
    config = {key: value for key, value in tiny.transformer.config.items() if key != "source_latents"}
    transformer = LadderTransformer2DModel.from_config(config)
    assert transformer.config.source_latents is False and transformer.source_embed is None
    transformer.read_source(True)
    assert not transformer.source_embed.weight.any()
    transformer.read_source(False)
    assert "source_embed.weight" not in transformer.state_dict()


# data


@pytest.fixture(scope="module")
def edits(tmp_path_factory) -> list[Path]:
    """Captions and edits, of which one has two input pictures."""
    folder = tmp_path_factory.mktemp("edits")
    return [make_data(folder, 6), make_edits(folder, 8)]


def data_recipe(indexes, folder: Path | None, **changes) -> Recipe:
    caches = {name: str(folder / name) if folder else None for name in ("latents", "vision")}
    data = {"sets": [{"index": str(index)} for index in indexes], "resolution": SIDE, "workers": 0}
    data |= {"cache": caches, "drop": {"caption": 0.2, "text": 0.4, "image": 0.6, "both": 0.2}}
    return Recipe.model_validate(
        {
            "stage": "test",
            "data": data | changes,
            "train": {"steps": 10, "warmup": 1, "batch": 4, "micro_batch": 2, "precision": "fp32"},
            "validation": {"held_out": 0},
        }
    )


@pytest.fixture(scope="module")
def model(tiny):
    """A model that reads it, whose input pictures have 64 patches."""
    parts = reading(tiny)
    parts.image_processor = copy.deepcopy(tiny.image_processor)
    parts.image_processor.size = {"longest_edge": 112 * 112, "shortest_edge": 112 * 112}
    return parts


def batches_of(settings: Recipe, parts, cached: bool = False) -> MicroBatches:
    processor = LadderProcessor(
        parts.tokenizer,
        parts.image_processor,
        num_queries=parts.connector.config.num_queries,
        first_query_id=parts.mllm.config.text_config.vocab_size,
    )
    folders, visual = settings.data.cache, parts.mllm.model.visual
    return MicroBatches(
        settings,
        processor,
        parts.vae.config.latent_channels,
        parts.vae.spatial_compression_ratio,
        latents=latent_cache(folders.latents, parts.vae) if cached else None,
        vision=vision_cache(folders.vision, visual, parts.image_processor) if cached else None,
        source_latents=parts.transformer.config.source_latents,
    )


def test_dropped_with_the_picture_in_the_same_draws(edits, model):
    found = batches_of(data_recipe(edits, None), model)
    plain = batches_of(data_recipe(edits, None), reading_no_more(model))
    kinds = set()
    for number in range(16):
        batch, without = found[number], plain[number]
        assert torch.equal(batch.pixels, without.pixels) and torch.equal(batch.u, without.u)
        assert torch.equal(batch.noise, without.noise) and without.edits == []
        assert torch.equal(batch.inputs.input_ids, without.inputs.input_ids)
        assert batch.edits == [row for row, key in enumerate(batch.keys) if key.startswith("edits/")]
        for row, pixels in zip(batch.edits, batch.source_pixels if batch.edits else [], strict=True):
            place = found.order.place(batch.positions[row])
            whole = found.sample(place, None, (0.5, 0.5))
            images = images_of(found, batch.positions[row])
            black = all(image.getextrema() == ((0, 0),) * 3 for image in images)
            kinds.add(black)
            assert torch.equal(pixels, -torch.ones_like(pixels) if black else whole.source)
            assert black or torch.equal(whole.source, canvas_pixels(whole.images[:1], SIDE, SIDE)[0])
    assert kinds == {True, False}


def reading_no_more(parts):
    plain = copy.copy(parts)
    plain.transformer = copy.deepcopy(parts.transformer)
    plain.transformer.read_source(False)
    return plain


def images_of(batches: MicroBatches, position: int) -> list[Image.Image]:
    """The input pictures that the MLLM is given of a position."""
    from tbac_uniimage.training.data.order import uniform

    drop = uniform(batches.seed, batches.stage, position, "drop")
    return batches.sample(batches.order.place(position), drop, batches.crop(position)).images


@pytest.mark.parametrize("crop", ["center", "random"])
def test_the_source_lies_exactly_over_the_target(tmp_path, model, crop):
    """Of an edit that changes nothing, source and target are the same pixels wherever they are cut."""
    ramp = Image.linear_gradient("L").resize((150, 90))
    picture = Image.merge("RGB", (ramp, ramp.rotate(90).resize(ramp.size), ramp))
    folder = tmp_path / "edits"
    folder.mkdir()
    line = {"input_prompt": "nothing", "input_image": ["a.png"], "output_image": "b.png"}
    (folder / "text_and_image_to_image.json").write_text(json.dumps([line] * 4))
    for name in ("a.png", "b.png"):
        picture.save(folder / name)
    build(str(folder), tmp_path / "index")
    batches = batches_of(
        data_recipe(
            [tmp_path / "index" / "edits"],
            None,
            crop=crop,
            drop=dict.fromkeys(("caption", "text", "image", "both"), 0.0),
        ),
        model,
    )
    read = [batches[number] for number in range(4)]
    for batch in read:
        assert batch.edits == [0, 1] and torch.equal(batch.source_pixels, batch.pixels)
    corners = {round(float(pixels[1, 0, 0]), 4) for batch in read for pixels in batch.pixels}
    assert (len(corners) > 1) == (crop == "random")


def losses_of(batches: MicroBatches, parts, count: int = 12) -> torch.Tensor:
    trainee, found = LadderTrainee(parts), []
    for number in range(count):
        batch = batches[number]
        latents = latents_of(parts.vae, batch.pixels, batch.latents, CPU)
        seen = seen_beside(parts, batch, latents)
        with torch.no_grad():
            found.append(trainee(batch.inputs, latents, batch.noise, batch.u, seen=seen))
    return torch.cat(found)


def test_the_cache_holds_it_too(edits, model, tmp_path):
    settings = data_recipe(edits, tmp_path)
    filled = cache.fill(settings, reading_no_more(model), torch.float32)
    assert (filled.written, filled.present) == (14, 0)
    folder = Path(settings.data.cache.latents)
    entries = len(Shards(folder))
    again = cache.fill(settings, model, torch.float32)
    assert (again.written, again.present) == (8, 6)  # the edits lack what the model reads besides
    assert entries == 14 and len(Shards(folder)) == 14 + 8 + 1  # and a black picture
    assert cache.fill(settings, model, torch.float32).written == 0

    cached, computed = batches_of(settings, model, cached=True), batches_of(settings, model)
    batch = next(cached[number] for number in range(9) if cached[number].edits)
    assert batch.source_pixels is None and batch.source_latents.dtype == torch.float32
    expected = losses_of(computed, model)
    assert ((losses_of(cached, model) - expected).abs() / expected).max() < 1e-6


def test_a_cache_without_it_is_named(edits, model, tmp_path):
    settings = data_recipe(edits, tmp_path)
    cache.fill(settings, reading_no_more(model), torch.float32)
    batches = batches_of(settings, model, cached=True)
    with pytest.raises(ValueError, match="has nothing of edits/.* fill it with `tbac-uniimage train cache`"):
        [batches[number] for number in range(9)]


# training


@pytest.mark.parametrize("kind", ["captions", "edits"])
def test_gradients_reach_the_new_weights_and_only_edits_move_them(edits, model, kind):
    parts = copy.copy(model)
    parts.transformer = copy.deepcopy(model.transformer)
    weight = parts.transformer.source_embed.weight
    weight.data.zero_()
    batch = batches_of(data_recipe([edits[kind == "edits"]], None), parts)[0]
    latents = latents_of(parts.vae, batch.pixels, None, CPU)
    seen = seen_beside(parts, batch, latents)
    assert [bool(row.any()) for row in seen["source_latents"]] == [kind == "edits"] * 2
    LadderTrainee(parts)(batch.inputs, latents, batch.noise, batch.u, seen=seen).sum().backward()
    largest = weight.grad.abs().max().item()  # there in any case, so that processes can reduce it
    assert largest > 1e-6 if kind == "edits" else largest == 0


def stage(run: Path, init: Path | None = None, **changes) -> Recipe:
    settings = recipe(run, ["none"], **changes)
    return Recipe.model_validate(settings | ({"init": str(init)} if init else {}))


@pytest.mark.parametrize("layout", ["released", "pipeline"])
def test_one_line_of_a_recipe_extends_a_model(checkpoint, tiny, tmp_path, layout):
    """Of either layout: every weight as it was, and the new ones zero."""
    start = checkpoint
    if layout == "released":
        start = tmp_path / "released"
        shutil.copytree(CHECKPOINT, start)
        for name, base in (("Qwen2.5-VL-3B-Instruct", QWEN), ("Sana_1600M_512px_diffusers", SANA)):
            (tmp_path / name).symlink_to(base)
    plain = models.load_base(stage(tmp_path / "a", start))
    parts = models.load_base(stage(tmp_path / "b", start, model={"source_latents": True}))
    weight = parts.transformer.source_embed.weight
    assert not weight.any() and weight.dtype == torch.float32
    assert plain.transformer.config.source_latents is False
    assert_same(plain, tiny)
    pipeline_of(parts).save_pretrained(tmp_path / "extended")
    assert_same(load_parts(tmp_path / "extended"), parts)
    del parts.transformer.source_embed
    assert_same(parts, plain)


def test_a_lora_run_does_not_extend_a_model(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="source_latents is true .* a LoRA .* set train.parts=all"):
        models.load_base(
            stage(tmp_path / "c", checkpoint, model={"source_latents": True}, train={"parts": "lora"})
        )


def test_the_dry_run_counts_it(checkpoint, tmp_path):
    from tbac_uniimage.training.recipe.memory import estimate_memory, parameter_counts

    counts = []
    for reads in (False, True):
        settings = stage(tmp_path / "a", checkpoint, model={"source_latents": reads})
        parts = models.load_base(settings)
        counts.append(parameter_counts(parts, settings)["diffusion transformer"][0])
        assert estimate_memory(parts, settings)["trained weights"] > 0
    assert counts[1] - counts[0] == parts.transformer.source_embed.weight.numel()


@pytest.mark.slow
def test_a_run_with_it_goes_on_where_it_was_killed(tmp_path, edits):
    """Killed, it has the losses of an uninterrupted one; its model is exported, tuned, and drawn with."""
    from tbac_uniimage.training.export import export

    changes = {"model": {"source_latents": True}, "checkpoint": {"every": 2}}
    whole = recipe(tmp_path / "whole", edits, **changes)
    train(whole)
    broken = recipe(tmp_path / "broken", edits, **changes)
    output = tmp_path / "broken.log"
    processes = start([write_recipe(broken)], output)
    saved = tmp_path / "broken" / "checkpoints"
    wait_until(lambda: any(saved.glob("step-*/complete.json")), processes, output)
    for process in processes:
        process.kill()
    finish(processes)
    train(broken)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    plain = recipe(tmp_path / "plain", edits)
    train(plain)
    assert losses(tmp_path / "plain")[0] == losses(tmp_path / "whole")[0]  # its weights begin at zero
    assert losses(tmp_path / "plain") != losses(tmp_path / "whole")

    last = models.find_checkpoint(tmp_path / "whole")
    parts = models.load_run(last)
    assert parts.transformer.source_embed.weight.abs().max() > 0
    folder = export(last, "pipeline", tmp_path / "out")
    assert torch.equal(
        load_parts(folder).transformer.source_embed.weight, parts.transformer.source_embed.weight
    )
    with pytest.raises(ValueError, match="reads the source's latents"):
        export(last, "released", tmp_path / "released")
    lora = recipe(
        tmp_path / "lora",
        edits,
        init=str(tmp_path / "whole"),
        train={"parts": "lora", "steps": 2, "warmup": 0, "lora": {"rank": 2, "alpha": 2.0}},
    )
    del lora["base"]
    train(lora)
    tuned = models.load_run(models.find_checkpoint(tmp_path / "lora"))
    assert torch.equal(tuned.transformer.source_embed.weight, parts.transformer.source_embed.weight)


@pytest.mark.slow
def test_the_new_layer_may_learn_faster(tmp_path, edits):
    """AdamW's first step moves every weight by its rate, here from zero."""
    changes = {"steps": 1, "warmup": 0, "learning_rate": 1e-3, "rates": {"source_embed": 20}}
    train(recipe(tmp_path / "run", edits, model={"source_latents": True}, train=changes))
    transformer = models.load_run(models.find_checkpoint(tmp_path / "run")).transformer
    assert transformer.source_embed.weight.abs().max().item() == pytest.approx(2e-2, rel=1e-3)
    changes["rates"] = {"elsewhere": 2.0}
    settings = recipe(tmp_path / "other", edits, model={"source_latents": True}, train=changes)
    codes, output = run(settings)
    assert codes == [2] and "train.rates names elsewhere, and nothing that is trained" in output
    assert not (tmp_path / "other").exists()


def learned(folder: Path, edits, world: int, parallel: str = "ddp") -> tuple[list[float], torch.Tensor, list]:
    """Losses of a run with the option, its new weights at the end, and its validations."""
    train_section = {"steps": 4, "warmup": 0, "learning_rate": 1e-2, "parallel": parallel}
    sections = {"model": {"source_latents": True}, "validation": {"every": 2, "held_out": 5}}
    train(recipe(folder, edits, train=train_section, **sections), world)
    parts = models.load_run(models.find_checkpoint(folder))
    validated = [line for line in metrics(folder) if "validation_loss" in line]
    return losses(folder), parts.transformer.source_embed.weight, validated


@pytest.fixture(scope="module")
def learned_alone(tmp_path_factory, edits) -> tuple[list[float], torch.Tensor, list]:
    return learned(tmp_path_factory.mktemp("alone") / "run", edits, world=1)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_processes_train_it_as_one_does(tmp_path, edits, learned_alone, parallel):
    """In micro-batches of one sample, so that often one process edits and the other does not."""
    one, weight, validated = learned_alone
    two, weight_of_two, validated_by_two = learned(tmp_path / "run", edits, 2, parallel)
    assert two == pytest.approx(one, rel=2e-6)
    assert weight.abs().max() > 1e-2  # it began at zero
    torch.testing.assert_close(weight_of_two, weight, atol=1e-5, rtol=1e-4)
    assert len(validated) == 2
    for line, line_of_two in zip(validated, validated_by_two, strict=True):
        assert line["validation_losses"].keys() == {"pictures", "edits"}
        assert line_of_two["validation_losses"] == pytest.approx(line["validation_losses"], rel=1e-5)
        assert line_of_two["validation_loss"] == pytest.approx(line["validation_loss"], rel=1e-5)


# drawing over a picture


@torch.no_grad()
def test_inside_a_mask_it_reads_what_it_draws_over(tiny, picture):
    """As does the map of changes, whose two branches both see the picture."""
    parts = reading(tiny)
    pipeline = pipeline_of(parts)
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 0, picture.width // 2, picture.height))
    options = {"image_guidance_scale": 1.5, "num_inference_steps": 2, "height": 64, "width": 96}
    first, black = encode_latents(parts.vae, canvas_pixels([picture, Image.new("RGB", picture.size)], 96, 64))
    seen, hook = seen_by(parts.transformer)
    pipeline([EDIT, EDIT], [[picture], [Image.new("RGB", picture.size, "red")]], mask=mask, **options)
    assert [len(step) for step in seen] == [3] * 4
    torch.testing.assert_close(seen[0], torch.stack([black, first, first]), atol=1e-5, rtol=1e-5)
    assert (seen[0][1] - seen[2][1]).abs().max() > 0.1
    seen.clear()
    pipeline.change_map(EDIT, picture)
    hook.remove()
    [rows] = seen
    assert len(rows) > 2 and torch.equal(rows, rows[:1].expand_as(rows)) and rows.any()


@torch.no_grad()
def test_a_part_of_a_large_picture_reads_what_it_is_cut_from(tiny):
    """Drawn alone, a part sees its own crop's latents and not those of the whole picture."""
    parts = reading(tiny)
    values = np.random.default_rng(0).integers(0, 256, (301, 403, 3), np.uint8)
    picture, mask = Image.fromarray(values), torch.zeros(301, 403)
    mask[240:301, 350:403] = 1
    [crop] = plan_crops(mask, 0.5, 64, 8)
    cut = picture.crop(corners(crop.box))
    seen, hook = seen_by(parts.transformer)
    options = {"image_guidance_scale": 1.5, "num_inference_steps": 1, "context": 0.5}
    output = pipeline_of(parts)(EDIT, picture, mask=mask.numpy(), **options)
    hook.remove()
    first, black = encode_latents(parts.vae, canvas_pixels([cut, Image.new("RGB", cut.size)], 64, 64))
    torch.testing.assert_close(seen[0], torch.stack([black, first, first]), atol=1e-5, rtol=1e-5)
    whole = encode_latents(parts.vae, canvas_pixels([picture], 64, 64))
    assert (seen[0][1] - whole[0]).abs().max() > 0.1
    assert np.array_equal(np.asarray(output.images[0])[mask == 0], values[mask == 0])
