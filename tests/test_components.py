"""A pipeline is what its components and settings say now: exchanged, missing, offloaded, in threads."""

from __future__ import annotations

import copy
import gc
import inspect
import threading
import weakref

import diffusers
import numpy as np
import pytest
import torch
from conftest import load_tiny
from PIL import Image
from tbac_uniimage.core.conditions import LadderCondition
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.core.schedulers import recipe_scheduler, scheduler_for_call
from tbac_uniimage.core.versions import IS_4

STEPS = 3


def fresh(**others) -> LadderPipeline:
    pipeline = LadderPipeline(**{**vars(load_tiny()), **others})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipeline: LadderPipeline, prompt: str | None = "a cat", **options) -> torch.Tensor:
    options = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeded()} | options
    return pipeline(prompt, **options).images


def halved(module: torch.nn.Module) -> torch.nn.Module:
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    return other


@pytest.mark.parametrize("way", ["attribute", "register_modules"])
@pytest.mark.parametrize("name", ["mllm", "connector", "transformer"])
def test_what_was_exchanged_draws_and_is_saved(pipe, tmp_path, name, way):
    pipeline = fresh()
    other = halved(getattr(pipeline, name))
    if way == "attribute":
        setattr(pipeline, name, other)
    else:
        pipeline.register_modules(**{name: other})
    drawn = draw(pipeline)
    assert (drawn - draw(pipe)).abs().max() > 1e-3
    assert torch.equal(drawn, draw(fresh(**{name: other})))
    if way == "attribute":
        pipeline.save_pretrained(tmp_path / "saved")
        again = LadderPipeline.from_pretrained(tmp_path / "saved")
        again.set_progress_bar_config(disable=True)
        assert torch.equal(draw(again), drawn)


def test_exchanged_vae_processor_and_tokenizer_count(pipe):
    pipeline = fresh()
    pipeline.vae = halved(pipeline.vae)
    latents = draw(pipeline)
    assert torch.equal(latents, draw(pipe))
    assert np.abs(pipeline.decode(latents, "np") - pipe.decode(latents, "np")).max() > 1e-3
    shown = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    pipeline.image_processor = copy.deepcopy(pipe.image_processor)
    budget = pipe.image_processor.size
    pipeline.image_processor.size = {e: 4 * budget[e] for e in ("shortest_edge", "longest_edge")}
    grids = [p.encoder.tokenize(["x"], [[shown]]).image_grid_thw.prod() for p in (pipeline, pipe)]
    assert grids[0] > 2 * grids[1]
    pipeline.tokenizer = copy.deepcopy(pipe.tokenizer)
    assert pipeline.encoder.processor.tokenizer is pipeline.tokenizer


def test_settings_count_from_the_next_call_on_and_travel_with_the_components(pipe, tmp_path):
    pipeline = fresh()
    pipeline.register_to_config(system_prompt="Draw.", max_text_tokens=2)
    long = "a red cat on a very large table"
    drawn = draw(pipeline, long)
    assert (drawn - draw(pipe, long)).abs().max() > 1e-3
    assert torch.equal(drawn, draw(pipeline, long + " by the sea"))
    assert torch.equal(drawn, draw(fresh(system_prompt="Draw.", max_text_tokens=2), long))
    pipeline.save_pretrained(tmp_path / "saved")
    for other in (
        LadderPipeline(**pipeline.components),
        LadderPipeline(**pipeline.components, **pipeline.parameters),
        LadderPipeline.from_pipe(pipeline),
        LadderPipeline.from_pretrained(tmp_path / "saved"),
    ):
        other.set_progress_bar_config(disable=True)
        assert (other.config.system_prompt, other.config.max_text_tokens) == ("Draw.", 2)
        assert torch.equal(draw(other, long), drawn)


@pytest.mark.parametrize("way", ["delete", "none"])
@pytest.mark.parametrize("offloaded", [False, True])
def test_a_component_that_is_dropped_is_freed_and_missed_in_words(way, offloaded):
    pipeline = fresh()
    if offloaded:
        pipeline.enable_model_cpu_offload(device="cpu")
    condition = pipeline.encode_prompt("a cat")
    expected = draw(pipeline, None, condition=condition)
    reference = weakref.ref(pipeline.mllm)
    if way == "delete":
        del pipeline.mllm
    else:
        pipeline.mllm = None
    gc.collect()
    assert reference() is None
    assert torch.equal(draw(pipeline, None, condition=condition), expected)
    for use in (
        lambda: draw(pipeline),
        lambda: pipeline.encode_prompt("a cat"),
        lambda: pipeline.ask(None, "what?"),
    ):
        with pytest.raises(ValueError, match="This pipeline has no mllm, without which it cannot"):
            use()
    pipeline.to("cpu")


@pytest.mark.skipif(IS_4, reason="with transformers 4 a folder has to be whole")
def test_parts_of_a_pipeline_load_save_and_come_back(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "whole")
    condition = pipe.encode_prompt("a cat")
    half = LadderPipeline.from_pretrained(tmp_path / "whole", mllm=None, tokenizer=None, vae=None)
    half.set_progress_bar_config(disable=True)
    assert torch.equal(draw(half, None, condition=condition), draw(pipe))
    with pytest.raises(ValueError, match="no vae, without which it cannot show"):
        draw(half, None, condition=condition, output_type="pil")
    with pytest.raises(ValueError, match="no vae, without which it cannot tell latents from pixels"):
        draw(half, None, condition=condition, height=64)
    half.save_pretrained(tmp_path / "half")
    assert not (tmp_path / "half" / "mllm").exists()
    again = LadderPipeline.from_pretrained(tmp_path / "half")
    assert again.mllm is None and again.vae is None
    again.mllm, again.tokenizer, again.vae = pipe.mllm, pipe.tokenizer, pipe.vae
    again.save_pretrained(tmp_path / "again")  # diffusers alone would leave out what was once None
    whole = LadderPipeline.from_pretrained(tmp_path / "again", transformer=halved(pipe.transformer))
    whole.set_progress_bar_config(disable=True)
    assert (draw(whole) - draw(pipe)).abs().max() > 1e-3
    whole.transformer = pipe.transformer
    assert torch.equal(draw(whole), draw(pipe))
    del whole.transformer
    with pytest.raises(ValueError, match="no transformer"):
        whole.encode_prompt("a cat")
    del whole.scheduler
    whole.transformer = pipe.transformer
    with pytest.raises(ValueError, match="no scheduler"):
        draw(whole)


def test_offloading_on_and_off_changes_no_number(pipe):
    pipeline, expected = fresh(), draw(pipe)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.equal(draw(pipeline), expected)
    pipeline.connector, pipeline.mllm = halved(pipe.connector), halved(pipe.mllm)
    assert hasattr(pipeline.mllm, "_hf_hook")
    assert torch.equal(draw(pipeline), draw(fresh(connector=pipeline.connector, mllm=halved(pipe.mllm))))
    pipeline.connector, pipeline.mllm = pipe.connector, copy.deepcopy(pipe.mllm)
    pipeline.remove_all_hooks()
    assert not hasattr(pipeline.mllm, "_hf_hook") and torch.equal(draw(pipeline), expected)


def shown(size: tuple[int, int] = (96, 48)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


@pytest.mark.parametrize("image", [None, shown()])
def test_a_condition_is_used_with_the_guidance_that_it_was_made_for(pipe, image):
    kinds = {1: (1.0, 1.0), 2: (4.0, 1.0), 3: (4.0, 1.5)} if image else {1: (1.0, 1.5), 2: (4.0, 1.5)}
    prompts = ["make it red", "a dog"] if image is None else ["make it red"]
    for made, scales in kinds.items():
        arguments = dict(zip(("guidance_scale", "image_guidance_scale"), scales, strict=True))
        condition = pipe.encode_prompt(prompts, image, **arguments)
        assert condition.branches == made and condition.image_size == (image and image.size)
        direct = draw(pipe, prompts, image=image, num_images_per_prompt=2, **arguments)
        reused = draw(pipe, None, condition=condition, num_images_per_prompt=2, **arguments)
        assert torch.equal(direct, reused)
        for used, others in kinds.items():
            if used == made:
                continue
            names = dict(zip(("guidance_scale", "image_guidance_scale"), others, strict=True))
            with pytest.raises(ValueError, match=f"made for guidance of {made} branches, these scales need"):
                draw(pipe, None, condition=condition, **names)


def test_conditions_of_other_models_and_beside_prompts_are_refused(pipe):
    condition = pipe.encode_prompt("a cat")
    states, mask = condition.states, condition.mask
    for wrong, words in (
        (LadderCondition(states[1:], mask, 2), "this model needs 4 rungs"),
        (LadderCondition(states[..., 1:], mask, 2), "this model needs 4 rungs"),
        (LadderCondition(states[:, :1], mask[:1], 2), "1 rows for 2 branches"),
        (LadderCondition(states, mask[:1], 2), "a mask of shape"),
        (states, "The condition is a Tensor"),
    ):
        with pytest.raises(ValueError, match=words):
            draw(pipe, None, condition=wrong)
    for beside in ({"prompt": "a dog"}, {"image": shown()}, {"negative_prompt": "grey"}):
        with pytest.raises(ValueError, match="Give either a condition, or a prompt"):
            draw(pipe, beside.pop("prompt", None), condition=condition, **beside)


def test_a_condition_moves_and_changes_its_type(pipe):
    condition = pipe.encode_prompt("make it red", shown())
    half = condition.to(torch.float16)
    assert half.states.dtype == torch.float16 and half.mask.dtype == torch.int64
    assert (half.branches, half.image_size) == (2, (96, 48)) and condition.states.dtype == torch.float32
    gap = (draw(pipe, None, condition=half) - draw(pipe, None, condition=condition)).abs().max()
    assert 0 < gap < 0.05
    assert condition.to("meta").mask.device.type == condition.to(device="meta").states.device.type == "meta"


STOCHASTIC = {
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": True},
    "FlowMatchLCMScheduler": {},
    "LTXEulerAncestralRFScheduler": {},
}
PLAIN = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


@pytest.mark.parametrize("name", STOCHASTIC)
def test_solvers_that_draw_take_the_generators_of_the_call(pipe, name):
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    if "randn_like" in inspect.getsource(getattr(diffusers, name).step):
        pytest.skip(f"{name} of this diffusers draws from no generator")
    scheduler = getattr(diffusers, name).from_config(recipe_scheduler().config, **STOCHASTIC[name])
    pipeline = LadderPipeline(**{**pipe.components, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 8, 8, 8, generator=seeded(9))
    options = {"height": 64, "width": 64}
    first = draw(pipeline, latents=noise[:1], **options)
    torch.manual_seed(1)
    assert torch.equal(draw(pipeline, latents=noise[:1], **options), first)
    assert (draw(pipeline, latents=noise[:1], generator=seeded(1), **options) - first).abs().max() > 1e-2
    many = draw(pipeline, ["a cat"] * 2, latents=noise, generator=(seeded(), seeded(4)), **options)
    torch.testing.assert_close(many[:1], first, atol=1e-4, rtol=1e-3)
    alone = draw(pipeline, latents=noise[1:], generator=seeded(4), **options)
    torch.testing.assert_close(many[1:], alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", PLAIN)
def test_other_schedulers_of_flows_draw_nearly_the_same(pipe, name):
    scheduler = getattr(diffusers, name).from_config(recipe_scheduler().config)
    shift = {"shift": 3.0} if name.startswith("FlowMatch") else {}
    scheduler = type(scheduler).from_config(scheduler.config, **shift)
    pipeline = LadderPipeline(**{**pipe.components, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 24, "guidance_scale": 1, "height": 32, "width": 32}
    ours, found = draw(pipe, **options), draw(pipeline, **options)
    assert 0 < (found - ours).abs().max() < 0.1 * ours.abs().max()


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_schedulers_of_no_flow_are_refused(pipe, name):
    kind = getattr(diffusers, name)
    for scheduler in (kind(), kind.from_config(recipe_scheduler().config)):
        pipeline = LadderPipeline(**{**pipe.components, "scheduler": scheduler})
        with pytest.raises(ValueError, match=f"{name} with prediction_type .* is no scheduler of a flow"):
            draw(pipeline)
    sigmas = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="is no scheduler of a flow"):
        draw(LadderPipeline(**{**pipe.components, "scheduler": sigmas}))


@pytest.mark.parametrize("steps", [500, 501, 1000, 1500])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", *PLAIN])
def test_many_steps_end_where_the_flow_ends(name, steps):
    """The exact velocity towards a target leads there, though two timesteps are alike."""
    kind = getattr(diffusers, name)
    shared = kind.from_config(recipe_scheduler().config)
    scheduler = scheduler_for_call(shared, steps, torch.device("cpu"))
    target = torch.linspace(-1, 1, 8).reshape(1, 8, 1, 1)
    x = torch.randn(target.shape, generator=seeded())
    for t in scheduler.timesteps:
        velocity = (x - target) / max(float(t) / 1000, 1e-3)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, target, atol=0.01, rtol=0)
    assert len(scheduler.timesteps) >= steps and shared.step_index is None


def test_calls_in_threads_draw_as_if_alone(pipe):
    """Steps, sizes, prompts, pictures and interruptions of one call are not those of another."""
    calls = [
        {"prompt": "a cat", "num_inference_steps": 7},
        {"prompt": ["a dog", "a car"], "num_inference_steps": 4, "height": 32},
        {"prompt": "make it red", "image": shown(), "num_inference_steps": 5, "image_guidance_scale": 1.5},
        {"prompt": "make it red", "image": shown((48, 96)), "num_inference_steps": 6},
        {"prompt": "a cat", "num_inference_steps": 9, "stops": True},
    ]

    def stop(view: LadderPipeline, i: int, _t: torch.Tensor, _tensors: dict) -> dict:
        view._interrupt = i == 2
        return {}

    def one(options: dict) -> torch.Tensor:
        options = dict(options)
        if options.pop("stops", False):
            options["callback_on_step_end"] = stop
        return draw(pipe, **options)

    alone = [one(options) for options in calls]
    found: list[torch.Tensor | Exception | None] = [None] * len(calls)
    together = threading.Barrier(len(calls))

    def work(k: int) -> None:
        together.wait()
        try:
            found[k] = one(calls[k])
        except Exception as error:
            found[k] = error

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, expected in zip(found, alone, strict=True):
        assert torch.is_tensor(ours), ours
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_a_callback_sees_the_scheduler_that_steps_and_either_flag_stops(pipe):
    seen = []

    def look(view: LadderPipeline, i: int, t: torch.Tensor, _tensors: dict) -> dict:
        assert view.mllm is pipe.mllm and view.scheduler is not pipe.scheduler
        seen.append((view.scheduler.step_index, float(view.scheduler.timesteps[i] - t)))
        pipe._interrupt = i == 1  # as a button outside would
        return {}

    draw(pipe, num_inference_steps=5, callback_on_step_end=look)
    assert seen == [(1, 0), (2, 0)]
    assert pipe.scheduler.step_index is None
    assert torch.equal(draw(pipe), draw(pipe))


def test_questions_in_threads_are_answered_as_if_alone(pipe):
    questions = [(shown(), "what is it?"), (shown((40, 90)), "which colour has it?"), (None, "who are you?")]
    alone = [pipe.ask(*question, 12).text for question in questions]
    found = [""] * len(questions)

    def work(k: int) -> None:
        found[k] = pipe.ask(*questions[k], 12).text

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_generators_that_are_none_are_named(pipe):
    with pytest.raises(ValueError, match="A generator is a int"):
        draw(pipe, generator=3)
    with pytest.raises(ValueError, match="0 generators were given for 1"):
        draw(pipe, generator=[])
