"""The model inside ComfyUI's samplers, guiders, loaders and memory management, against the Python pipeline.

The model is the tiny recorded checkpoint; every expected value comes from core, run directly.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfy

DATA = Path(__file__).parent / "data" / "parity"
PROMPT = "a red apple on a wooden table"
OTHER = "three green bottles in a row"
INSTRUCTION = "make the sky pink"
STEPS = 6


@pytest.fixture(scope="module")
def checkpoint(pipe, tmp_path_factory) -> Path:
    """The same model as a pipeline folder, which is what ComfyUI loads."""
    folder = tmp_path_factory.mktemp("tiny")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(comfy, checkpoint):
    """MODEL, MLLM and VAE as Load Model hands them out."""
    from tbac_uniimage.nodes.bridge import load_for_comfy

    return SimpleNamespace(**dict(zip(("model", "mllm", "vae"), load_for_comfy(checkpoint), strict=True)))


@pytest.fixture(autouse=True)
def inference(comfy):
    """ComfyUI runs every node in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(DATA / "images" / "wide.png").convert("RGB")


def as_batch(image: Image.Image) -> torch.Tensor:
    """A PIL image the way LoadImage gives it."""
    import numpy as np

    return torch.from_numpy(np.asarray(image).astype("float32") / 255)[None]


def encode(loaded, prompt: str) -> list:
    from tbac_uniimage.nodes.conditioning import LadderEncode

    return LadderEncode.execute(loaded.mllm, prompt).result[0]


def edit(loaded, picture: Image.Image) -> tuple:
    from tbac_uniimage.nodes.conditioning import LadderImageEdit

    return LadderImageEdit.execute(loaded.mllm, INSTRUCTION, as_batch(picture)).result


def empty(loaded, batch: int = 1) -> dict:
    from tbac_uniimage.nodes.sampling import LadderEmptyLatent

    return LadderEmptyLatent.execute(loaded.model, 0, 0, batch).result[0]


def ladder_sample(
    model, positive, negative, latent, image_only=None, guidance=4.5, image_guidance=1.5, seed=7
):
    from tbac_uniimage.nodes.sampling import LadderSampler

    result = LadderSampler.execute(
        model, positive, negative, latent, seed, STEPS, guidance, image_guidance, image_only
    )
    return result.result[0]["samples"]


def reference(pipe, prompt, seed=7, **options) -> torch.Tensor:
    """The pipeline's final latents, unscaled as LATENT wires carry them."""
    options = {"num_inference_steps": STEPS, "output_type": "latent", **options}
    latents = pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images
    return latents / pipe.vae.config.scaling_factor


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def velocity(model, latents, sigma: float, context) -> torch.Tensor:
    """What the MODEL predicts, as any sampler would ask it (denoised -> velocity)."""
    denoised = model.model.apply_model(latents, torch.tensor([sigma]), c_crossattn=context)
    return (latents - denoised) / sigma


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


def test_lora_with_diffusion_model_keys_equals_merged_weights(loaded, pipe):
    import comfy.sd

    generator = torch.Generator().manual_seed(1)
    name = "transformer_blocks.0.attn2.to_k"
    weight = pipe.transformer.get_parameter(f"{name}.weight")
    a = torch.randn(2, weight.shape[1], generator=generator)
    b = torch.randn(weight.shape[0], 2, generator=generator)
    lora = {f"diffusion_model.{name}.lora_A.weight": a, f"diffusion_model.{name}.lora_B.weight": b}
    patched, _ = comfy.sd.load_lora_for_models(loaded.model, None, lora, 0.5, 0)
    assert len(patched.patches) == 1
    positive, negative = encode(loaded, PROMPT), encode(loaded, "")
    before = ladder_sample(loaded.model, positive, negative, empty(loaded))
    found = ladder_sample(patched, positive, negative, empty(loaded))
    original = weight.data
    weight.data = original + 0.5 * b @ a
    expected = reference(pipe, PROMPT)
    weight.data = original
    assert largest(found, expected) < 1e-3
    assert largest(found, before) > 1e-2
    assert largest(ladder_sample(loaded.model, positive, negative, empty(loaded)), before) == 0


def test_merging_reaches_the_scale_shift_tables(loaded, checkpoint):
    """ModelPatcher passes over parameters that lie beside submodules; ours must not be forgotten."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    from tbac_uniimage.nodes.bridge import load_for_comfy

    other = load_for_comfy(checkpoint)[0]
    name = "transformer_blocks.0.scale_shift_table"
    table = other.model.diffusion_model.get_parameter(name)
    table.data = table + 1.0
    merged = ModelMergeSimple().merge(loaded.model, other, 0.5)[0]
    before = loaded.model.model.diffusion_model.get_parameter(name).clone()
    merged.patch_model(device_to=torch.device("cpu"))
    assert largest(merged.model.diffusion_model.get_parameter(name), before + 0.5) < 1e-6
    merged.unpatch_model(device_to=torch.device("cpu"))
    assert largest(loaded.model.model.diffusion_model.get_parameter(name), before) == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_no_weight_is_left_behind_in_partial_loads(comfy, checkpoint, share):
    """On the meta device, any parameter that stays on the CPU uncast raises in the forward pass."""
    from tbac_uniimage.nodes.bridge import load_for_comfy

    model, mllm, vae = load_for_comfy(checkpoint)
    meta = torch.device("meta")
    size = model.model.latent_format.size
    for patcher in (model, mllm.patcher, vae.patcher):
        patcher.load(meta, lowvram_model_memory=max(1, int(patcher.model_size() * share)))
    layers = model.model.diffusion_model.config.num_layers
    context = torch.zeros(1, 8, layers * model.model.diffusion_model.config.caption_channels, device=meta)
    latents = torch.zeros(1, size.channels, 8, 8, device=meta)
    out = model.model.diffusion_model(latents, torch.zeros(1, device=meta), context)
    assert out.shape == latents.shape
    assert vae.first_stage_model.decode(latents).shape[-1] == 8 * size.factor
    for module in mllm.patcher.model.modules():
        if not getattr(module, "comfy_cast_weights", False):
            held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            assert all(tensor.device == meta for tensor in held)


def test_partly_loaded_language_model_gives_the_same_conditions(loaded, checkpoint, picture):
    from tbac_uniimage.nodes.bridge import load_for_comfy

    mllm = load_for_comfy(checkpoint)[1]
    mllm.patcher.load(torch.device("cpu"), lowvram_model_memory=mllm.patcher.model_size() // 2)
    assert mllm.patcher.model.model_lowvram
    whole, partly = (m.encode([PROMPT], [[picture]]) for m in (loaded.mllm, mllm))
    assert largest(whole, partly) < 1e-6


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


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2e-2), ("fp8_e4m3fn", 0.2)])
def test_low_precision_weights_stay_close(loaded, checkpoint, dtype, tolerance):
    from tbac_uniimage.nodes.bridge import load_for_comfy

    model = load_for_comfy(checkpoint, dtype)[0]
    context = encode(loaded, PROMPT)[0][0]
    latents = torch.randn(1, model.model.latent_format.latent_channels, 8, 8)
    exact, rough = (velocity(m, latents, 0.5, context) for m in (loaded.model, model))
    assert (exact - rough).norm() / exact.norm() < tolerance


def test_vae_equals_diffusers(loaded, pipe, picture):
    factor = loaded.vae.downscale_ratio
    side = 8 * factor
    pixels = as_batch(picture.resize((side + 3, side)))
    cropped = pixels[:, :, 1 : side + 1]
    expected = pipe.vae.encode(cropped.movedim(-1, 1) * 2 - 1).latent
    latents = loaded.vae.encode(pixels)
    assert largest(latents, expected) < 1e-5
    decoded = loaded.vae.decode(latents)
    expected = (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert largest(decoded, expected) < 1e-5
    assert loaded.vae.decode_tiled(latents, tile_x=4, tile_y=4, overlap=1).shape == decoded.shape
    assert loaded.vae.decode_tiled(latents).shape == decoded.shape
    assert set(loaded.vae.get_sd()) == set(pipe.vae.state_dict())


def test_previews_come_from_the_autoencoder(loaded):
    import latent_preview
    from comfy.cli_args import args

    args.preview_method = latent_preview.LatentPreviewMethod.Auto
    previewer = latent_preview.get_previewer(torch.device("cpu"), loaded.model.model.latent_format)
    _, image, _ = previewer.decode_latent_to_preview_image(
        "JPEG", torch.randn(1, loaded.vae.latent_channels, 8, 6)
    )
    assert image.size == (6, 8)
    factors = torch.tensor(loaded.model.model.latent_format.latent_rgb_factors)
    assert factors.shape == (loaded.vae.latent_channels, 3) and factors.isfinite().all()


def test_weights_are_held_once(comfy, checkpoint, monkeypatch):
    """The loaded parts themselves become MODEL and VAE."""
    from tbac_uniimage.core.checkpoints import load_parts
    from tbac_uniimage.nodes import bridge

    parts = load_parts(checkpoint)
    monkeypatch.setattr(bridge, "load_parts", lambda path: parts)
    model, mllm, vae = bridge.load_for_comfy(checkpoint)
    assert model.model.diffusion_model is parts.transformer
    assert vae.first_stage_model is parts.vae
    assert mllm.encoder.mllm is parts.mllm


def test_bad_input_is_one_sentence(loaded, picture):
    from tbac_uniimage.nodes.conditioning import LadderEncode
    from tbac_uniimage.nodes.sampling import LadderEmptyLatent, LadderSampler

    factor = loaded.vae.downscale_ratio
    with pytest.raises(ValueError, match=f"use {factor * 8} or {factor * 9}"):
        LadderEmptyLatent.execute(loaded.model, factor * 8 + 1, factor * 8, 1)
    with pytest.raises(ValueError, match="at most 4 images, 5 were given"):
        LadderEncode.execute(loaded.mllm, PROMPT, as_batch(picture).expand(5, -1, -1, -1))
    rows = [[encode(loaded, PROMPT)[0][0].expand(2, -1, -1), {}]]
    with pytest.raises(ValueError, match="2 rows for a batch of 3 latents"):
        ladder_sample(loaded.model, rows, encode(loaded, ""), empty(loaded, 3))
    assert "guidance is nan" in LadderSampler.validate_inputs(guidance=math.nan, image_guidance=1.0)
    assert LadderSampler.validate_inputs(guidance=4.5, image_guidance=1.0) is True
    wrong = [[encode(loaded, PROMPT)[0][0][..., :-1], {}]]
    with pytest.raises(ValueError, match="does not unfold into 4 layers"):
        ladder_sample(loaded.model, wrong, wrong, empty(loaded))


def test_cancel_stops_the_language_model(loaded):
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        encode(loaded, PROMPT)
