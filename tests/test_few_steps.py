"""Few steps: the objective on flows with a known solution, its teacher, and the LoRA that comes of it."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from comfy_helpers import PROMPT, empty, encode, largest, reference
from conftest import ROOT, load_tiny
from hypothesis import given
from hypothesis import strategies as st
from nano_models import CELLS, CHANNELS
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from source_models import attending, pipeline_of, reading
from tbac_uniimage.core.checkpoints import load_parts
from tbac_uniimage.core.few_steps import FOLDER, find_few_steps, header_of
from tbac_uniimage.core.guidance import Guidance
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.core.schedulers import euler_scheduler, scheduler_for_call, step_levels
from tbac_uniimage.training.data.samples import MicroBatches, Sample
from tbac_uniimage.training.export import export
from tbac_uniimage.training.recipe.settings import DistillationSettings
from tbac_uniimage.training.step.few_steps import FewStepTrainee, few_step_losses, guided, midpoint
from tbac_uniimage.training.step.lora import add_lora, save_lora, without_lora
from training_runs import losses, make_data, make_edits, recipe, train

NANO = ROOT / "assets" / "nano"
LEVELS = [1.0, 0.9, 0.75, 0.5, 0.0]
SETTINGS = DistillationSettings(steps=4, guidance=3.0, edit_guidance=2.0, image_guidance=1.5)


def test_levels_are_those_of_shift_three():
    assert step_levels(4) == pytest.approx(LEVELS)
    assert step_levels(2) == pytest.approx([1, 0.75, 0])
    assert set(step_levels(2)) < set(step_levels(4)) < set(step_levels(8))


@given(st.integers(1, 8))
def test_euler_steps_along_these_levels(steps):
    scheduler = scheduler_for_call(euler_scheduler(), steps, torch.device("cpu"))
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(step_levels(steps)))
    torch.testing.assert_close(scheduler.timesteps, 1000 * torch.tensor(step_levels(steps)[:-1]))


def test_midpoint_is_exact_for_what_grows_evenly():
    """dx/ds = 2 s c leads from s to t by (t^2 - s^2) c; dx/ds = x by exp(t - s), with an error of order 2."""
    x = torch.tensor([1.0, -2.0])
    found = midpoint(lambda x, level: 2 * level * torch.ones(2), x, 0.9, 0.5, 3)
    torch.testing.assert_close(found, x + 0.5**2 - 0.9**2)
    errors = [(midpoint(lambda x, _: x, x, 1.0, 0.5, n) - x * math.exp(-0.5)).abs().max() for n in (1, 2, 4)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_loss_is_the_distance_from_the_teachers_mean_velocity():
    """The teacher's velocity 2 s has the mean s + t from s to t; a student of 0 misses all of it."""
    noise = torch.zeros(2, 1, 1, 1)
    found = few_step_losses(lambda x, _: 0 * x, lambda x, level: torch.full_like(x, 2 * level), noise, LEVELS)
    expected = sum((s + t) ** 2 for s, t in pairwise(LEVELS)) / 4
    torch.testing.assert_close(found, torch.full((2,), expected))


def test_the_teacher_goes_on_from_where_the_student_is():
    seen = []

    def teacher(x, level):
        seen.append((level, x[0].item()))
        return torch.zeros_like(x)

    few_step_losses(lambda x, _: torch.ones_like(x), teacher, torch.zeros(1, 1, 1, 1), LEVELS)
    expected = [(level, s - 1) for s, t in pairwise(LEVELS) for level in (s, (s + t) / 2)]
    assert [level for level, _ in seen] == pytest.approx([level for level, _ in expected])
    assert [x for _, x in seen] == pytest.approx([x for _, x in expected])


def test_a_student_learns_the_steps_of_a_linear_flow():
    """dx/ds = a x is solved by exp; a student w_k x in step k can meet it exactly and has to."""
    slope, weights = 1.7, torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    noise = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        optimizer.zero_grad()

        def student(x, level):
            return weights[LEVELS.index(level)] * x

        few_step_losses(student, lambda x, _: slope * x, noise, LEVELS, solver_steps=8).sum().backward()
        optimizer.step()
    expected = [math.expm1(slope * (t - s)) / (t - s) for s, t in pairwise(LEVELS)]
    torch.testing.assert_close(weights.detach(), torch.tensor(expected), rtol=2e-3, atol=2e-3)


def test_no_gradient_goes_through_teacher_and_states():
    calls = []

    def student(x, level):
        calls.append(x.requires_grad)
        return weight * x

    def teacher(x, level):
        assert not torch.is_grad_enabled()
        return 2 * x

    weight = torch.tensor(0.5, requires_grad=True)
    few_step_losses(student, teacher, torch.ones(1, 1, 1, 1), LEVELS).sum().backward()
    assert calls == [False] * 4
    assert weight.grad is not None


def loud_lora(transformer, targets=("attn1.to_q", "ff.conv_point", "attn2.to_out.0")):
    """A LoRA that changes what it stands beside."""
    add_lora(transformer, 2, 2, targets=targets, seed=1)
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))


def colourful(size=(64, 64)) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")


def micro_batch(parts, samples):
    """What a micro-batch of given samples is read as."""
    from tbac_uniimage.core.inputs import LadderProcessor

    batches = object.__new__(MicroBatches)
    batches.vision = None
    batches.processor = LadderProcessor(
        parts.tokenizer,
        parts.image_processor,
        parts.connector.config.num_queries,
        parts.mllm.config.text_config.vocab_size,
    )
    return batches.ladder_inputs(samples), batches.branches(samples)


def rows_of(branches):
    return branches.captions, branches.edits


def test_branches_of_a_mixed_batch():
    parts, picture = load_tiny(), colourful()
    samples = [
        Sample("a", "a dog"),
        Sample("b", "make it red", images=[picture]),
        Sample("c", ""),
        Sample("d", "make it blue", images=[colourful()]),
    ]
    _, branches = micro_batch(parts, samples)
    assert branches.captions.tolist() == [[4, 4], [0, 2]]  # one row without text for both
    assert branches.edits.tolist() == [[5, 5], [6, 7], [1, 3]]  # black pictures of one size are one row
    assert len(branches.inputs.input_ids) == len(samples) + 4
    none = micro_batch(parts, samples[:1])[1]
    assert none.edits.shape == (3, 0) and none.captions.tolist() == [[1], [0]]


def test_the_teacher_is_the_guided_model_without_lora():
    """Captions and edits of one batch, against what the pipeline's own parts say of each alone."""
    parts, picture = load_tiny(), colourful()
    plain = LadderPipeline(**vars(load_tiny()))
    samples = [Sample("a", "a dog"), Sample("b", "make it red", images=[picture]), Sample("c", "a cat")]
    loud_lora(parts.transformer)
    trainee = FewStepTrainee(parts, SETTINGS, torch.device("cpu"))
    _, branches = micro_batch(parts, samples)
    x = torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        states = trainee.encoder.encode(branches.inputs).states
        rungs = parts.transformer.prepare_rungs(states)
        found = guided(parts.transformer, rungs, rows_of(branches), trainee.guidances, {}, {})(x, 0.75)
        black = Image.new("RGB", picture.size)
        alone = [
            [("", []), ("a dog", [])],
            [("", [black]), ("", [picture]), ("make it red", [picture])],
            [("", []), ("a cat", [])],
        ]
        for row, asked in enumerate(alone):
            guidance = Guidance(2.0, 1.5) if len(asked) == 3 else Guidance(3.0)
            told = plain.encoder([text for text, _ in asked], [images for _, images in asked]).states
            latents = x[row : row + 1].repeat(len(asked), 1, 1, 1)
            velocities = plain.transformer(latents, told, torch.full((len(asked),), 750.0)).sample
            expected = guidance.combine(velocities, len(asked))
            torch.testing.assert_close(found[row : row + 1], expected, atol=2e-5, rtol=1e-4)
        student = parts.transformer(x[:1], states[:, :1], torch.tensor([750.0])).sample
        with without_lora(parts.transformer):
            base = parts.transformer(x[:1], states[:, :1], torch.tensor([750.0])).sample
    assert (student - base).abs().max() > 1e-2


def test_the_branch_without_picture_reads_the_latents_of_black():
    """Of a model that reads what it edits: an edit beside a caption, which reads zeros in both branches."""
    parts = load_tiny()
    parts.transformer.read_source(True)
    torch.nn.init.normal_(parts.transformer.source_embed.weight, generator=torch.Generator().manual_seed(1))
    samples = [Sample("a", "a dog"), Sample("b", "make it red", images=[colourful()])]
    _, branches = micro_batch(parts, samples)
    generator = torch.Generator().manual_seed(3)
    x, source = (torch.randn(2, 8, 2, 2, generator=generator) for _ in range(2))
    source[0], black = 0, torch.randn(1, 8, 2, 2, generator=generator)
    trainee = FewStepTrainee(parts, SETTINGS, torch.device("cpu"))
    with torch.no_grad():
        states = trainee.encoder.encode(branches.inputs).states
        rungs = parts.transformer.prepare_rungs(states)
        seen, blank = {"source_latents": source}, {"source_latents": black}
        found = guided(parts.transformer, rungs, rows_of(branches), trainee.guidances, seen, blank)(x, 0.75)
        read = torch.cat([black, source[1:], source[1:]])
        told, level = states[:, branches.edits[:, 0]], torch.full((3,), 750.0)
        edit = parts.transformer(x[1:].repeat(3, 1, 1, 1), told, level, source_latents=read).sample
        told = states[:, branches.captions[:, 0]]
        caption = parts.transformer(x[:1].repeat(2, 1, 1, 1), told, level[:2]).sample
    torch.testing.assert_close(found[1:], Guidance(2.0, 1.5).combine(edit, 3), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[:1], Guidance(3.0).combine(caption, 2), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("targets", [("attn1.to_q",), ("attn2.to_k", "attn2.to_v")])
def test_gradients_reach_the_matrices_and_nothing_else(targets):
    """Also where the LoRA changes what the rungs are made of, which the teacher then has of its own."""
    parts = load_tiny()
    parts.connector.requires_grad_(False)
    loud_lora(parts.transformer, targets)
    trainee = FewStepTrainee(parts, SETTINGS, torch.device("cpu"))
    inputs, branches = micro_batch(parts, [Sample("a", "a dog"), Sample("b", "red", images=[colourful()])])
    noise = torch.randn(2, 8, 2, 2, generator=torch.Generator().manual_seed(3))
    trainee(inputs, noise, branches).sum().backward()
    reached = {n for n, p in trainee.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {n for n, p in trainee.named_parameters() if "lora_" in n}


def test_of_all_parts_the_teacher_stays_what_the_run_began_with():
    parts = load_tiny()
    parts.mllm.requires_grad_(False)
    trainee = FewStepTrainee(parts, SETTINGS, torch.device("cpu"))
    inputs, branches = micro_batch(parts, [Sample("a", "a dog")])
    noise = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(3))
    first = trainee(inputs, noise, branches)
    first.sum().backward()
    with torch.no_grad():  # a student that says nothing misses all of the same teacher
        assert parts.connector.queries.grad.abs().max() > 0
        parts.transformer.proj_out.weight.zero_()
        parts.transformer.proj_out.bias.zero_()
        encoder, transformer = trainee.teacher
        states = encoder.encode(branches.inputs).states
        teacher = guided(
            transformer, transformer.prepare_rungs(states), rows_of(branches), trainee.guidances, {}, {}
        )
        expected = few_step_losses(lambda x, _: torch.zeros_like(x), teacher, noise, trainee.levels)
        torch.testing.assert_close(trainee(inputs, noise, branches), expected)
    names = {name.split(".")[0] for name, _ in trainee.named_parameters()}
    assert names == {"connector", "transformer"}  # no copy is trained, sharded or saved


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> Path:
    """A short run of stage 4 on captions and edits, of a model that reads all that there is to read."""
    folder = tmp_path_factory.mktemp("few")
    data = [make_data(folder), make_edits(folder)]
    pipeline_of(attending(reading(load_tiny()))).save_pretrained(folder / "model")
    settings = recipe(folder / "run", data, distillation=SETTINGS.model_dump(), checkpoint={"every": 2})
    settings["init"] = str(folder / "model")
    lora = {"rank": 2, "alpha": 2.0, "targets": ["attn1.to_q", "ff.conv_inverted"]}
    settings["train"] |= {"steps": 4, "parts": "lora", "lora": lora, "ema": 0.9}
    settings["validation"] |= {"every": 4, "held_out": 2, "prompts": ["a dog"], "steps": 4, "guidance": 1.0}
    train(settings)
    return folder


@pytest.mark.slow
def test_a_run_that_goes_on_ends_the_same_to_the_bit(distilled):
    from tbac_uniimage.training.run.checkpoints.shards import read_tensors

    run = distilled / "run"
    expected, lines = read_tensors(run / "last", ""), losses(run)
    assert all(loss > 0 for loss in lines)
    again = distilled / "again"
    shutil.copytree(run, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    settings = yaml.safe_load((run / "recipe.yaml").read_text()) | {"run": str(again)}
    train(settings)
    found = read_tensors(again / "last", "")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(again) == lines


def test_its_lora_says_what_it_is_for_and_draws_what_was_trained(distilled, tmp_path):
    model = tmp_path / "model"
    file = export(
        (distilled / "run" / "last").resolve(), "lora", model / FOLDER / "x.safetensors", averaged=True
    )
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["few_steps"]) == {
            "steps": 4,
            "guidance": 1.0,
            "sampler": "euler",
            "sigmas": pytest.approx(LEVELS),
        }
    few = find_few_steps(model)
    assert (few.file, few.steps) == (file, 4)

    pipe = LadderPipeline(**vars(load_tiny()))
    pipe.set_progress_bar_config(disable=True)
    side = pipe.transformer.config.sample_size
    noise = torch.randn(1, 8, side, side, generator=torch.Generator().manual_seed(4))
    options = {"latents": noise, "guidance_scale": 1.0, "num_inference_steps": 4, "output_type": "latent"}
    before = pipe("a dog", **options).images
    few.apply(pipe)
    found = pipe("a dog", **options).images
    assert not any("lora" in name for name, _ in pipe.transformer.named_parameters())

    tensors = load_file(file)
    weights = load_tiny().transformer
    with torch.no_grad():
        for name, weight in weights.named_parameters():
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            if f"{key}.lora_A.weight" in tensors:
                a, b = (tensors[f"{key}.lora_{kind}.weight"].flatten(1) for kind in "AB")
                weight += (b @ a).reshape(weight.shape)
        states, x = pipe.encoder(["a dog"]).states, noise
        for start, end in pairwise(LEVELS):
            x = x + (end - start) * weights(x, states, torch.tensor([1000 * start])).sample
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 1e-3


@pytest.mark.comfy
@pytest.mark.usefixtures("inference")
def test_comfyui_draws_the_same_in_four_steps(loaded, tmp_path):
    """Stock LoRA loader, then few_steps of Ladder Sampler, or KSampler with cfg 1, euler and simple."""
    import comfy.samplers
    import comfy.sd
    import comfy.utils
    from tbac_uniimage.nodes.inputs import FEW_STEPS
    from tbac_uniimage.nodes.sampling import LadderSampler

    import nodes

    with torch.inference_mode(False):
        tuned = load_tiny()
        loud_lora(tuned.transformer)
        path = save_lora(tuned.transformer, tmp_path / "few.safetensors", header_of(4))
    file = comfy.utils.load_torch_file(str(path), safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(loaded.model, None, file, 1.0, 0)
    sampling = patched.get_model_object("model_sampling")
    for steps in map(int, FEW_STEPS[1:]):
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        torch.testing.assert_close(sigmas, torch.tensor(step_levels(steps)))

    pipe = LadderPipeline(**vars(load_tiny()))
    pipe.set_progress_bar_config(disable=True)
    find_few_steps(tmp_path, path).apply(pipe)
    expected = reference(pipe, PROMPT, num_inference_steps=4, guidance_scale=1.0)
    positive, negative = encode(loaded, PROMPT), encode(loaded, "")
    ours = LadderSampler.execute(patched, positive, negative, empty(loaded), 7, 30, 4.5, 1.5, few_steps="4")
    assert largest(ours.result[0]["samples"], expected) < 1e-3
    common = (positive, negative, empty(loaded), 1.0)
    stock = nodes.common_ksampler(patched, 7, 4, 1.0, "euler", "simple", *common)[0]["samples"]
    assert largest(stock, expected) < 1e-3
    settings = (positive, negative, empty(loaded), 7, 30, 4.5, 1.5)
    plain = LadderSampler.execute(loaded.model, *settings, few_steps="4")
    assert largest(plain.result[0]["samples"], expected) > 1e-2
    with pytest.raises(ValueError, match="few_steps is '3'; choose off, 1, 2, 4, 8"):
        LadderSampler.execute(patched, positive, negative, empty(loaded), 7, 30, 4.5, 1.5, few_steps="3")


def test_the_shell_draws_and_edits_in_few_steps(distilled, tmp_path, capsys, monkeypatch):
    from tbac_uniimage.core.pictures import CHUNK
    from tbac_uniimage.shell.main import main

    def settings_of(number):
        return json.loads(Image.open(tmp_path / "out" / f"{number:04}.png").text[CHUNK])

    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(distilled / "model", model)
    draw = ["generate", "a dog", "--model", str(model), "--device", "cpu", "--seed", "1"]
    assert main([*draw, "--few"]) == 2
    assert "There is no LoRA for few steps at" in capsys.readouterr().err
    export((distilled / "run" / "last").resolve(), "lora", model / FOLDER / "x.safetensors")
    assert main([*draw, "--few", "--guidance", "3"]) == 2
    assert "--guidance is 3.0, but few steps are drawn with 1, which is" in capsys.readouterr().err
    assert main([*draw, "--few", "--scheduler", "recipe"]) == 2
    assert not (tmp_path / "out").is_dir() or not list((tmp_path / "out").iterdir())

    assert main([*draw, "--few"]) == 0
    assert main([*draw, "--few-lora", str(model / FOLDER), "--steps", "2"]) == 0
    edit = ["edit", "out/0001.png", "make it red", "--model", str(model), "--device", "cpu", "--seed", "1"]
    assert main([*edit, "--few"]) == 0
    found = [settings_of(number) for number in (1, 2, 3)]
    assert [settings["steps"] for settings in found] == [4, 2, 4]
    assert all(settings["few"] == "x.safetensors" for settings in found)
    assert all((settings["guidance"], settings["scheduler"]) == (1.0, "euler") for settings in found)
    assert found[2]["image_guidance"] == 1.0
    assert main(draw) == 0  # and without, as ever
    plain = settings_of(4)
    assert (plain["steps"], plain["guidance"], plain["scheduler"]) == (30, 4.5, "recipe")
    assert "few" not in plain
    assert main([*edit, "--few", "--mask", "auto", "--save-mask", str(tmp_path / "mask.png")]) == 0
    masked = settings_of(5)
    assert (masked["steps"], masked["guidance"], masked["mask"]) == (4, 1.0, "auto")
    stays = np.asarray(Image.open(tmp_path / "mask.png").convert("L")) == 0
    source, drawn = (np.asarray(Image.open(f"out/{number:04}.png")) for number in (1, 5))
    assert np.array_equal(drawn[stays], source[stays])


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["lora", "all"])
def test_its_memory_is_counted(tmp_path, parts):
    """A copy of the teacher where all parts are trained, and the activations of every step."""
    from tbac_uniimage.training.recipe.memory import estimate_memory, model_parameters
    from tbac_uniimage.training.recipe.recipe import Recipe

    def estimate(**distillation):
        settings = recipe(tmp_path / "run", [tmp_path], distillation=distillation)
        settings["train"] |= {"parts": parts, "micro_batch": 4}
        return estimate_memory(load_tiny(), Recipe.model_validate(settings | {"init": "x"}))

    plain, two, four = estimate(), estimate(steps=2), estimate(steps=4)
    teacher = 4 * sum(p.numel() for p in model_parameters(load_tiny()))
    assert two.get("teacher", 0) == (teacher if parts == "all" else 0)
    assert "teacher" not in plain
    kept = {name: size for name, size in plain.items() if "activations" not in name and "context" not in name}
    assert {name: four[name] for name in kept} == kept
    assert plain["activations"] < two["activations"] < four["activations"]


def test_a_run_needs_a_model_to_distil(tmp_path):
    from tbac_uniimage.training.recipe.recipe import load_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "run", [tmp_path], distillation={"steps": 4})))
    with pytest.raises(ValueError, match="distillation.steps is given but init is null"):
        load_recipe(path)
    with pytest.raises(ValueError, match="distillation.steps"):
        load_recipe(path, ["init=x", "distillation.steps=9"])


def test_what_is_no_lora_for_few_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no LoRA for few steps at .*few_steps; distil one"):
        find_few_steps(tmp_path)
    file = tmp_path / FOLDER / "a.safetensors"
    file.parent.mkdir()
    notes = ("{", "[]", '{"steps": 0}', '{"steps": true}', '{"steps": "4"}', '{"steps": 1000000000}')
    for metadata in (None, *({"few_steps": note} for note in notes)):
        save_file({"x": torch.zeros(1)}, file, metadata=metadata)
        with pytest.raises(ValueError, match="does not say of itself that it was distilled"):
            find_few_steps(tmp_path)
    save_file({"x": torch.zeros(1)}, file, metadata=header_of(4))
    assert find_few_steps(tmp_path).steps == 4
    assert find_few_steps(tmp_path / "gone", file).file == file
    save_file({"x": torch.zeros(1)}, file.with_name("b.safetensors"), metadata=header_of(4))
    with pytest.raises(ValueError, match="There is more than one LoRA for few steps"):
        find_few_steps(tmp_path)


def test_the_embedded_lora_goes_where_guidance_goes():
    """From the same noise, nearer to the guided picture of many steps than four steps without it come."""
    few = find_few_steps(NANO)
    assert few.steps == 4 and few.file.stat().st_size < 1_000_000
    pipe = LadderPipeline(**vars(load_parts(NANO, dtype=torch.float32)))
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, CHANNELS, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    draw = partial(pipe, ["a red car", "two cats on green"], latents=noise, output_type="latent")
    guided_picture = draw(num_inference_steps=12, guidance_scale=3.0).images
    pipe.scheduler = euler_scheduler()
    short = {"num_inference_steps": 4, "guidance_scale": 1.0}
    plain = draw(**short).images
    few.apply(pipe)
    found = draw(**short).images
    distances = [(x - guided_picture).square().mean().item() for x in (found, plain)]
    assert distances[0] < 0.8 * distances[1]
