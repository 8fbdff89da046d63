"""Samplers, guiders and conditions in ComfyUI's own code, against the Python pipeline on the tiny model."""

from __future__ import annotations

import pytest
import torch
from comfy_helpers import (
    INSTRUCTION,
    OTHER,
    PROMPT,
    STEPS,
    edit,
    empty,
    encode,
    ladder_sample,
    largest,
    reference,
    velocity,
)

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]


def test_conditioning_equals_core(loaded, pipe, picture):
    from tbac_uniimage.core.conditions import unfold_condition

    condition = pipe.encode_prompt(INSTRUCTION, picture, guidance_scale=3.0, image_guidance_scale=2.0)
    positive, image_only, negative, latent = edit(loaded, picture)
    layers = pipe.transformer.config.num_layers
    for i, conditioning in enumerate((negative, image_only, positive)):
        assert largest(unfold_condition(conditioning[0][0], layers)[:, 0], condition.states[:, i]) < 1e-5
    assert latent["samples"].shape[1] == pipe.transformer.config.in_channels
    assert largest(encode(loaded, PROMPT)[0][0], encode(loaded, PROMPT)[0][0]) == 0


def test_model_equals_core_transformer(loaded, pipe):
    from tbac_uniimage.core.conditions import unfold_condition

    latents = torch.randn(
        1, pipe.transformer.config.in_channels, 8, 6, generator=torch.Generator().manual_seed(0)
    )
    context = encode(loaded, PROMPT)[0][0]
    states = unfold_condition(context, pipe.transformer.config.num_layers)
    expected = pipe.transformer(latents, states, torch.tensor([600.0])).sample
    assert largest(velocity(loaded.model, latents, 0.6, context), expected) < 1e-5


def test_concat_joins_tokens_and_average_mixes_them(loaded, pipe):
    from tbac_uniimage.core.conditions import unfold_condition

    import nodes as stock

    a, b = encode(loaded, PROMPT), encode(loaded, OTHER)
    layers = pipe.transformer.config.num_layers
    latents = torch.randn(
        1, pipe.transformer.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    joined = stock.ConditioningConcat().concat(a, b)[0][0][0]
    both = torch.cat([unfold_condition(c[0][0], layers) for c in (a, b)], dim=2)
    expected = pipe.transformer(latents, both, torch.tensor([500.0])).sample
    assert largest(velocity(loaded.model, latents, 0.5, joined), expected) < 1e-5
    mixed = stock.ConditioningAverage().addWeighted(a, b, 0.25)[0][0][0]
    assert largest(mixed, 0.25 * a[0][0] + 0.75 * b[0][0]) < 1e-6


def test_ladder_sampler_equals_pipeline_text_to_image(loaded, pipe):
    found = ladder_sample(loaded.model, encode(loaded, PROMPT), encode(loaded, ""), empty(loaded, 2))
    error = largest(found, reference(pipe, PROMPT, num_images_per_prompt=2))
    print(f"\nLadder Sampler against the pipe, text to image: {error:.2e}")
    assert error < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 33])
def test_recipe_solver_equals_pipeline_at_any_step_count(loaded, pipe, steps):
    from tbac_uniimage.nodes.sampling import LadderSampler

    positive, negative = encode(loaded, PROMPT), encode(loaded, "")
    out = LadderSampler.execute(loaded.model, positive, negative, empty(loaded), 3, steps, 2.0, 1.0)
    expected = reference(pipe, PROMPT, seed=3, num_inference_steps=steps, guidance_scale=2.0)
    assert largest(out.result[0]["samples"], expected) < 1e-3


def test_ladder_sampler_equals_pipeline_edit(loaded, pipe, picture):
    positive, image_only, negative, latent = edit(loaded, picture)
    found = ladder_sample(loaded.model, positive, negative, latent, image_only, 3.0, 2.0)
    expected = reference(pipe, INSTRUCTION, image=picture, guidance_scale=3.0, image_guidance_scale=2.0)
    error = largest(found, expected)
    print(f"\nLadder Sampler against the pipe, edit: {error:.2e}")
    assert error < 1e-3
    text_only = ladder_sample(loaded.model, positive, image_only, latent, guidance=3.0)
    expected = reference(pipe, INSTRUCTION, image=picture, guidance_scale=3.0, image_guidance_scale=1.0)
    assert largest(text_only, expected) < 1e-3


def test_stock_dual_guider_with_ladder_scheduler_equals_pipeline_edit(loaded, pipe, picture):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider, RandomNoise, SamplerCustomAdvanced
    from tbac_uniimage.nodes.sampling import LadderScheduler

    positive, image_only, negative, latent = edit(loaded, picture)
    guider = DualCFGGuider.execute(loaded.model, positive, image_only, negative, 3.0, 2.0, "regular").result[
        0
    ]
    sigmas, sampler = LadderScheduler.execute(STEPS).result
    noise = RandomNoise.execute(7).result[0]
    found = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0]["samples"]
    expected = reference(pipe, INSTRUCTION, image=picture, guidance_scale=3.0, image_guidance_scale=2.0)
    assert largest(found, expected) < 1e-3


def test_stock_ksampler_equals_euler_on_the_core_transformer(loaded, pipe):
    from comfy.samplers import calculate_sigmas
    from tbac_uniimage.core.guidance import Guidance

    import nodes as stock

    positive, negative = encode(loaded, PROMPT), encode(loaded, "")
    found = stock.KSampler().sample(
        loaded.model, 7, 20, 3.0, "euler", "simple", positive, negative, empty(loaded), 1.0
    )[0]["samples"]

    condition = pipe.encode_prompt(PROMPT)
    sigmas = calculate_sigmas(loaded.model.get_model_object("model_sampling"), "simple", 20)
    x = torch.randn(found.shape, generator=torch.Generator().manual_seed(7))
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocities = pipe.transformer(torch.cat([x, x]), condition.states, 1000 * sigma.expand(2)).sample
        x = x + (following - sigma) * Guidance(text=3.0).combine(velocities, 2)
    assert largest(found, x / pipe.vae.config.scaling_factor) < 1e-3


def test_stock_masks_and_ranges_on_conditions(loaded):
    import nodes as stock

    positive, negative, latent = encode(loaded, PROMPT), encode(loaded, ""), empty(loaded)
    expected = ladder_sample(loaded.model, positive, negative, latent)
    shape = latent["samples"].shape[-2:]
    whole = stock.ConditioningSetTimestepRange().set_range(positive, 0.0, 1.0)[0]
    masked = stock.ConditioningSetMask().append(positive, torch.ones(1, *shape), "default", 1.0)[0]
    combined = stock.ConditioningCombine().combine(positive, positive)[0]
    for same in (whole, masked, combined):
        assert largest(ladder_sample(loaded.model, same, negative, latent), expected) < 1e-4


def test_noise_mask_keeps_the_rest_of_the_latent(loaded):
    latent = empty(loaded)
    known = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, *known.shape[-2:])
    mask[..., : known.shape[-1] // 2] = 1
    latent = {"samples": known, "noise_mask": mask}
    found = ladder_sample(loaded.model, encode(loaded, PROMPT), encode(loaded, ""), latent)
    kept = mask.expand_as(known) == 0
    assert (found - known)[kept].abs().max() < 1e-5
    assert (found - known)[~kept].abs().max() > 0.1


def test_rungs_are_computed_once_per_run_and_change_nothing(loaded, monkeypatch):
    from tbac_uniimage.nodes.diffusion import LadderDiT

    calls = []
    prepare = LadderDiT.prepare_rungs

    def counting(self, *arguments):
        calls.append(1)
        return prepare(self, *arguments)

    monkeypatch.setattr(LadderDiT, "prepare_rungs", counting)
    positive, negative = encode(loaded, PROMPT), encode(loaded, "")
    remembered = ladder_sample(loaded.model, positive, negative, empty(loaded))
    assert len(calls) == 1  # both branches go as one batch
    assert loaded.model.model.diffusion_model.rung_cache is None
    plain = loaded.model.clone()
    plain.callbacks.clear()
    assert largest(ladder_sample(plain, positive, negative, empty(loaded)), remembered) < 1e-5
    assert len(calls) == 1 + STEPS


def test_no_more_than_a_few_contexts_are_remembered(loaded):
    """A node that changes the conditioning at every step must not fill the memory."""
    from tbac_uniimage.nodes.diffusion import CONTEXTS_KEPT

    transformer = loaded.model.model.diffusion_model
    context = encode(loaded, PROMPT)[0][0]
    transformer.rung_cache = []
    try:
        rungs = [transformer.rungs_of(context * (1 + 0.1 * i)) for i in range(2 * CONTEXTS_KEPT)]
        assert len(transformer.rung_cache) == CONTEXTS_KEPT
        assert transformer.rungs_of(context * (1 + 0.1 * (2 * CONTEXTS_KEPT - 1))) is rungs[-1]
        again = transformer.rungs_of(context)
        assert again is not rungs[0] and torch.equal(again.kv[0].key, rungs[0].kv[0].key)
    finally:
        transformer.rung_cache = None


def test_rungs_are_not_remembered_while_hooks_change_weights(loaded):
    """A LoRA hooked to the prompt alone must not leak into the negative prompt's keys and values."""
    from comfy.hooks import create_hook_lora, set_hooks_for_conditioning

    name = "diffusion_model.transformer_blocks.0.attn2.to_k"
    weight = loaded.model.model.get_parameter(f"{name}.weight")
    generator = torch.Generator().manual_seed(1)
    lora = {
        f"{name}.lora_A.weight": torch.randn(2, weight.shape[1], generator=generator),
        f"{name}.lora_B.weight": torch.randn(weight.shape[0], 2, generator=generator),
    }
    positive, negative = encode(loaded, PROMPT), encode(loaded, "")
    unhooked = ladder_sample(loaded.model, positive, negative, empty(loaded))
    hooked = set_hooks_for_conditioning(positive, create_hook_lora(lora, 1.0, 0.0))
    found = ladder_sample(loaded.model, hooked, negative, empty(loaded))
    plain = loaded.model.clone()
    plain.callbacks.clear()
    assert largest(found, ladder_sample(plain, hooked, negative, empty(loaded))) < 1e-5
    assert largest(found, unhooked) > 1e-2
