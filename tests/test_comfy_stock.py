"""ComfyUI's own nodes on our MODEL, VAE and CONDITIONING: values, not merely that they run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import OTHER, PROMPT, as_batch, empty, encode, largest, velocity

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

SCENE = Path(__file__).resolve().parent.parent / "assets" / "samples" / "tbac_uniimage_scene.png"


@pytest.fixture(scope="module")
def conditions(loaded):
    with torch.inference_mode():
        return SimpleNamespace(
            a=encode(loaded, PROMPT), b=encode(loaded, OTHER), negative=encode(loaded, "blurry")
        )


def known_latent(loaded, seed: int = 2) -> dict:
    shape = empty(loaded)["samples"].shape
    return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def ksample(model, positive, negative, latent, seed=7, steps=6, cfg=3.0, sampler="euler", denoise=1.0):
    import nodes as stock

    result = stock.KSampler().sample(
        model, seed, steps, cfg, sampler, "simple", positive, negative, latent, denoise
    )
    return result[0]["samples"]


def advanced(model, positive, negative, latent, start, end, add_noise, leftover, steps=8):
    import nodes as stock

    sampler = stock.KSamplerAdvanced()
    result = sampler.sample(
        model,
        "enable" if add_noise else "disable",
        7,
        steps,
        3.0,
        "euler",
        "simple",
        positive,
        negative,
        latent,
        start,
        end,
        "enable" if leftover else "disable",
    )
    return result[0]


@pytest.mark.parametrize("middle", [1, 4, 7])
def test_two_halves_of_ksampler_advanced_are_one_whole(loaded, conditions, middle):
    arguments = loaded.model, conditions.a, conditions.negative
    whole = advanced(*arguments, empty(loaded), 0, 8, True, False)
    first = advanced(*arguments, empty(loaded), 0, middle, True, True)
    second = advanced(*arguments, first, middle, 8, False, False)
    assert largest(second["samples"], whole["samples"]) < 1e-4
    assert largest(first["samples"], whole["samples"]) > 0.1  # noise was left over
    assert largest(whole["samples"], ksample(*arguments, empty(loaded), steps=8)) < 1e-5


def test_cfg_guider_equals_ksampler(loaded, conditions):
    from comfy_extras.nodes_custom_sampler import (
        BasicScheduler,
        CFGGuider,
        KSamplerSelect,
        RandomNoise,
        SamplerCustomAdvanced,
    )

    guider = CFGGuider.execute(loaded.model, conditions.a, conditions.negative, 3.0).result[0]
    sigmas = BasicScheduler.execute(loaded.model, "simple", 6, 1.0).result[0]
    sampler = KSamplerSelect.execute("euler").result[0]
    noise = RandomNoise.execute(7).result[0]
    found = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, empty(loaded)).result
    expected = ksample(loaded.model, conditions.a, conditions.negative, empty(loaded))
    assert largest(found[0]["samples"], expected) < 1e-5


@pytest.mark.parametrize(
    "sampler", ["euler", "dpmpp_2m", "heun", "uni_pc", "res_multistep", "euler_ancestral"]
)
def test_stock_samplers_give_finite_pictures_that_follow_the_seed(loaded, conditions, sampler):
    arguments = loaded.model, conditions.a, conditions.negative, empty(loaded)
    found = ksample(*arguments, sampler=sampler)
    assert found.isfinite().all()
    assert largest(found, ksample(*arguments, sampler=sampler)) == 0
    assert largest(found, ksample(*arguments, sampler=sampler, seed=8)) > 0.1


@pytest.mark.parametrize("step", range(1, 7))
def test_ksampler_is_interrupted_at_every_step(loaded, conditions, monkeypatch, step):
    import comfy.model_management as management
    import comfy.utils

    seen = []

    def hook(value: int, *_: object, **__: object) -> None:
        seen.append(value)
        if value == step:
            management.interrupt_current_processing(True)

    arguments = loaded.model, conditions.a, conditions.negative, empty(loaded)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    if step < 6:
        with pytest.raises(management.InterruptProcessingException):
            ksample(*arguments, steps=6)
    else:  # nothing is left to interrupt
        ksample(*arguments, steps=6)
        management.interrupt_current_processing(False)
    assert seen == list(range(1, step + 1))
    assert loaded.model.model.diffusion_model.rung_cache is None
    monkeypatch.undo()
    assert ksample(*arguments, steps=2).isfinite().all()


def test_less_denoise_stays_closer_to_the_latent(loaded, conditions):
    latent = known_latent(loaded)
    distances = [
        (
            ksample(loaded.model, conditions.a, conditions.negative, latent, denoise=denoise)
            - latent["samples"]
        )
        .pow(2)
        .mean()
        for denoise in (0.1, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_lora_of_the_training_through_the_stock_loader(
    loaded, conditions, pipe, tmp_path, monkeypatch, strength
):
    import folder_paths
    from conftest import load_tiny
    from tbac_uniimage.training.step.lora import add_lora, merge_lora, save_lora

    import nodes as stock

    transformer = load_tiny().transformer
    with torch.inference_mode(False):
        add_lora(transformer, 3, 6.0)
        generator = torch.Generator().manual_seed(6)
        matrices = [p for name, p in transformer.named_parameters() if "lora_B" in name]
        for matrix in matrices:
            matrix.data = 0.1 * torch.randn(matrix.shape, generator=generator)
        save_lora(transformer, tmp_path / "style.safetensors", {})
        for matrix in matrices:
            matrix.data = strength * matrix.data
        merge_lora(transformer)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    patched = stock.LoraLoaderModelOnly().load_lora_model_only(loaded.model, "style.safetensors", strength)[0]
    assert len(patched.patches) == 8 * len(transformer.transformer_blocks)
    x = torch.randn(1, transformer.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    context = conditions.a[0][0]
    from comfy.model_management import load_models_gpu
    from tbac_uniimage.core.conditions import unfold_condition

    load_models_gpu([patched])
    found = velocity(patched, x, 0.5, context)
    states = unfold_condition(context, transformer.config.num_layers)
    with torch.no_grad():
        expected = transformer(x, states, torch.tensor([500.0])).sample
    load_models_gpu([loaded.model])
    plain = velocity(loaded.model, x, 0.5, context)
    assert largest(found, expected) < 1e-4
    assert largest(found, plain) > 1e-3
    assert largest(plain, pipe.transformer(x, states, torch.tensor([500.0])).sample) < 1e-5


def test_average_at_its_ends_is_one_of_the_two(loaded, conditions):
    import nodes as stock

    average = stock.ConditioningAverage().addWeighted
    assert torch.equal(average(conditions.a, conditions.b, 1.0)[0][0][0], conditions.a[0][0])
    assert torch.equal(average(conditions.a, conditions.b, 0.0)[0][0][0], conditions.b[0][0])


def denoised_once(loaded, positive, latent=None) -> torch.Tensor:
    """One unguided step: what the model says about pure noise."""
    return ksample(loaded.model, positive, positive, latent or empty(loaded), steps=1, cfg=1.0)


def test_combine_is_the_mean_of_the_predictions(loaded, conditions):
    import nodes as stock

    both = stock.ConditioningCombine().combine(conditions.a, conditions.b)[0]
    a, b = denoised_once(loaded, conditions.a), denoised_once(loaded, conditions.b)
    assert largest(denoised_once(loaded, both), (a + b) / 2) < 1e-4
    assert largest(a, b) > 1e-2


def test_masks_divide_the_picture_between_prompts(loaded, conditions):
    import nodes as stock

    height, width = empty(loaded)["samples"].shape[-2:]
    left = torch.zeros(1, height, width)
    left[..., : width // 2] = 1
    set_mask = stock.ConditioningSetMask().append
    a = set_mask(conditions.a, left, "default", 1.0)[0]
    b = set_mask(conditions.b, 1 - left, "default", 1.0)[0]
    found = denoised_once(loaded, a + b)
    half = width // 2
    assert largest(found[..., :half], denoised_once(loaded, conditions.a)[..., :half]) < 1e-4
    assert largest(found[..., half:], denoised_once(loaded, conditions.b)[..., half:]) < 1e-4


def test_areas_in_pixels_and_in_shares_are_the_same_area(loaded, conditions, monkeypatch):
    """ConditioningSetArea reckons with 8 pixels per latent; the tiny model is told that it has 32."""
    import dataclasses

    import nodes as stock

    latent_format = loaded.model.get_model_object("latent_format")
    monkeypatch.setattr(latent_format, "size", dataclasses.replace(latent_format.size, factor=32))
    channels = empty(loaded)["samples"].shape[1]
    latent = {"samples": torch.zeros(1, channels, 8, 12)}
    share = stock.ConditioningSetAreaPercentage().append(conditions.b, 0.5, 0.5, 0.5, 0.25, 1.0)[0]
    pixels = stock.ConditioningSetArea().append(conditions.b, 192, 128, 192, 64, 1.0)[0]
    by_share = denoised_once(loaded, conditions.a + share, latent)
    by_pixels = denoised_once(loaded, conditions.a + pixels, latent)
    assert largest(by_share, by_pixels) < 1e-5
    assert largest(by_share, denoised_once(loaded, conditions.a, latent)) > 1e-2
    assert pixels[0][1]["area"] == (16, 24, 8, 24)  # the conditioning itself stays as it was


def test_what_stock_nodes_cannot_do_is_one_sentence(loaded, conditions):
    import node_helpers
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    arguments = conditions.negative, empty(loaded)
    reference = node_helpers.conditioning_set_values(conditions.a, {"reference_latents": [torch.zeros(1)]})
    with pytest.raises(ValueError, match="reference latents, which this model does not read; connect"):
        ksample(loaded.model, reference, *arguments)
    perturbed = PerturbedAttentionGuidance.execute(loaded.model, 3.0).result[0]
    with pytest.raises(ValueError, match="A node patches attn1, which this model has not"):
        ksample(perturbed, conditions.a, *arguments)
    latent = {"samples": torch.ones(1, 4, 8, 8)}
    with pytest.raises(ValueError, match=r"has the shape \[1, 4, 8, 8\] and this model needs 8 channels"):
        ksample(loaded.model, conditions.a, conditions.negative, latent)
    from comfy_extras.nodes_model_advanced import (
        ModelSamplingAuraFlow,
        ModelSamplingDiscrete,
        ModelSamplingFlux,
        ModelSamplingSD3,
    )
    from tbac_uniimage.nodes.diffusion import refuse_patches

    for other in (
        ModelSamplingAuraFlow().patch_aura(loaded.model, 3.0)[0],
        ModelSamplingFlux().patch(loaded.model, 1.15, 0.5, 1024, 1024)[0],
        ModelSamplingDiscrete().patch(loaded.model, "eps", False)[0],
    ):
        with pytest.raises(ValueError, match="another kind of model; use ModelSamplingSD3"):
            ksample(other, conditions.a, *arguments)
    shifted = ModelSamplingSD3().patch(loaded.model, 1.0)[0]
    assert largest(*(ksample(model, conditions.a, *arguments) for model in (shifted, loaded.model))) > 1e-2
    with pytest.raises(ValueError, match="A ControlNet is connected"):
        refuse_patches({"output": []}, {})
    assert ksample(loaded.model, conditions.a, *arguments).isfinite().all()


def test_timestep_ranges_follow_each_other(loaded, conditions):
    import nodes as stock

    set_range = stock.ConditioningSetTimestepRange().set_range
    early = set_range(conditions.a, 0.0, 0.45)[0]
    late = set_range(conditions.b, 0.45, 1.0)[0]
    found = advanced(loaded.model, early + late, conditions.negative, empty(loaded), 0, 8, True, False)
    model = loaded.model.get_model_object("model_sampling")
    from comfy.samplers import calculate_sigmas

    sigmas = calculate_sigmas(model, "simple", 8)
    switch = int((sigmas[:-1] > model.percent_to_sigma(0.45)).sum())
    first = advanced(loaded.model, conditions.a, conditions.negative, empty(loaded), 0, switch, True, True)
    expected = advanced(loaded.model, conditions.b, conditions.negative, first, switch, 8, False, False)
    assert 0 < switch < 8
    assert largest(found["samples"], expected["samples"]) < 1e-4


def test_zero_out_is_a_condition_of_zeros(loaded, conditions, pipe):
    import nodes as stock

    zero = stock.ConditioningZeroOut().zero_out(conditions.a)[0]
    assert not zero[0][0].any() and zero[0][0].shape == conditions.a[0][0].shape
    config = pipe.transformer.config
    x = torch.randn(1, config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    states = torch.zeros(config.num_layers, 1, zero[0][0].shape[1], config.caption_channels)
    expected = pipe.transformer(x, states, torch.tensor([500.0])).sample
    assert largest(velocity(loaded.model, x, 0.5, zero[0][0]), expected) < 1e-5


def test_concat_equals_itself_twice(loaded, conditions):
    """Attention over the same queries twice is attention over them once."""
    import nodes as stock

    twice = stock.ConditioningConcat().concat(conditions.a, conditions.a)[0]
    assert largest(denoised_once(loaded, twice), denoised_once(loaded, conditions.a)) < 1e-4


def test_noise_mask_keeps_what_it_covers_in_ksampler(loaded, conditions):
    import nodes as stock

    latent = known_latent(loaded)
    factor = loaded.vae.downscale_ratio
    height, width = (length * factor for length in latent["samples"].shape[-2:])
    mask = torch.zeros(1, height, width)
    mask[..., width // 2 :] = 1
    masked = stock.SetLatentNoiseMask().set_mask(latent, mask)[0]
    found = ksample(loaded.model, conditions.a, conditions.negative, masked)
    half = latent["samples"].shape[-1] // 2
    assert largest(found[..., :half], latent["samples"][..., :half]) < 1e-5
    assert largest(found[..., half:], latent["samples"][..., half:]) > 0.1


def test_inpaint_conditioning_equals_encode_and_noise_mask(loaded, conditions, picture):
    import nodes as stock

    factor = loaded.vae.downscale_ratio
    pixels = as_batch(picture.resize((8 * factor, 8 * factor)))
    mask = torch.zeros(1, 8 * factor, 8 * factor)
    mask[:, : 4 * factor] = 1
    positive, negative, latent = stock.InpaintModelConditioning().encode(
        conditions.a, conditions.negative, pixels, loaded.vae, mask
    )
    found = ksample(loaded.model, positive, negative, latent)
    encoded = stock.VAEEncode().encode(loaded.vae, pixels)[0]
    masked = stock.SetLatentNoiseMask().set_mask(encoded, mask)[0]
    expected = ksample(loaded.model, conditions.a, conditions.negative, masked)
    assert largest(found, expected) < 1e-5
    assert largest(found[:, :, 4:], encoded["samples"][:, :, 4:]) < 1e-5


@pytest.fixture(scope="module")
def nano_vae(comfy):
    from tbac_uniimage.nodes.bridge import load_for_comfy
    from tbac_uniimage.nodes.loading import EMBEDDED_FOLDER

    return load_for_comfy(EMBEDDED_FOLDER)[2]


@pytest.fixture(scope="module")
def mosaic():
    """The sample scene four by four, mirrored in turns: a large picture of what nano's autoencoder knows."""
    from PIL import Image

    tile = as_batch(Image.open(SCENE).convert("RGB"))
    row = torch.cat([tile, tile.flip(2)] * 2, dim=2)
    return torch.cat([row, row.flip(1)] * 2, dim=1)


def test_tiled_decode_and_encode_stay_close_to_whole_ones(nano_vae, mosaic):
    import nodes as stock

    latents = stock.VAEEncode().encode(nano_vae, mosaic)[0]
    whole = stock.VAEDecode().decode(nano_vae, latents)[0]
    tiled = stock.VAEDecodeTiled().decode(nano_vae, latents, 128, 32)[0]
    fallback = nano_vae.decode_tiled(torch.cat([latents["samples"]] * 3, dim=-1))
    encoded = stock.VAEEncodeTiled().encode(nano_vae, mosaic, 128, 32)[0]["samples"]
    decoding = (tiled - whole).abs().mean().item()
    encoding = ((encoded - latents["samples"]).norm() / latents["samples"].norm()).item()
    print(f"\ntiled against whole: decoded {decoding:.4f} of 1 in the mean, encoded {encoding:.3f} relative")
    assert (whole - mosaic).abs().mean() < 0.05
    assert decoding < 0.02 and encoding < 0.2
    height, width = mosaic.shape[1:3]
    assert tiled.shape == whole.shape and fallback.shape == (1, height, 3 * width, 3)


def test_the_autoencoder_takes_grey_and_refuses_what_it_cannot(loaded):
    import nodes as stock

    factor, channels = loaded.vae.downscale_ratio, loaded.vae.latent_channels
    grey = torch.rand(1, 2 * factor, 2 * factor, 1)
    encode_picture = stock.VAEEncode().encode
    expected = encode_picture(loaded.vae, grey.expand(-1, -1, -1, 3))[0]["samples"]
    assert torch.equal(encode_picture(loaded.vae, grey)[0]["samples"], expected)
    with pytest.raises(ValueError, match=f"is 1x1; the autoencoder needs at least {factor} pixels a side"):
        encode_picture(loaded.vae, torch.zeros(1, 1, 1, 3))
    with pytest.raises(ValueError, match="values that are not finite"):
        encode_picture(loaded.vae, torch.full((1, 64, 64, 3), torch.nan))
    for decode in (loaded.vae.decode, loaded.vae.decode_tiled):
        with pytest.raises(ValueError, match=f"this autoencoder's have {channels} channels"):
            decode(torch.zeros(1, 4, 8, 8))


def test_out_of_memory_in_the_decoder_falls_back_to_tiles(nano_vae, mosaic, monkeypatch):
    import comfy.model_management as management

    latents = nano_vae.encode(mosaic)
    expected = nano_vae.decode_tiled(latents)
    decode = nano_vae.first_stage_model.decode
    calls = []

    def failing(samples):
        calls.append(samples.shape[-1])
        if len(calls) == 1:
            raise management.OOM_EXCEPTION("out of memory")
        return decode(samples)

    monkeypatch.setattr(nano_vae.first_stage_model, "decode", failing)
    assert largest(nano_vae.decode(latents), expected) == 0
    assert len(calls) > 1


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_merged_models_predict_as_merged_weights(loaded, conditions, checkpoint, ratio):
    from comfy.model_management import load_models_gpu
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    from conftest import load_tiny
    from tbac_uniimage.core.conditions import unfold_condition
    from tbac_uniimage.nodes.bridge import load_for_comfy

    other = load_for_comfy(checkpoint)[0]
    transformer = load_tiny().transformer
    generator = torch.Generator().manual_seed(4)
    for name, parameter in transformer.named_parameters():
        change = 0.05 * torch.randn(parameter.shape, generator=generator)
        twin = other.model.diffusion_model.get_parameter(name)
        twin.data = twin.data + change
        parameter.data = parameter.data + (1 - ratio) * change
    merged = ModelMergeSimple().merge(loaded.model, other, ratio)[0]
    load_models_gpu([merged])
    x = torch.randn(1, transformer.config.in_channels, 8, 8, generator=generator)
    context = conditions.a[0][0]
    found = velocity(merged, x, 0.5, context)
    states = unfold_condition(context, transformer.config.num_layers)
    expected = transformer(x, states, torch.tensor([500.0])).sample
    assert largest(found, expected) < 1e-4
    load_models_gpu([loaded.model])


@pytest.mark.slow
def test_compiled_model_predicts_the_same(loaded, conditions):
    """With torch.compile's tracing and no code generation, which needs a compiler."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    compiled = TorchCompileModel.execute(loaded.model, "eager").result[0]
    arguments = conditions.a, conditions.negative, empty(loaded)
    found = ksample(compiled, *arguments)
    assert largest(found, ksample(loaded.model, *arguments)) < 1e-4
    assert largest(ksample(compiled, conditions.b, *arguments[1:]), found) > 1e-2


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_step_caches_of_comfyui_leave_evaluations_out(loaded, conditions, monkeypatch, name):
    """A threshold of 0 changes no bit; a high one evaluates less and draws something else."""
    from comfy_extras import nodes_easycache
    from tbac_uniimage.nodes.diffusion import LadderDiT

    evaluated, predict = [], LadderDiT.predict

    def count(self, x: torch.Tensor, *arguments, **options) -> torch.Tensor:
        evaluated.append(len(x))
        return predict(self, x, *arguments, **options)

    monkeypatch.setattr(LadderDiT, "predict", count)
    drawn, counts = {}, {}
    for threshold in (None, 0.0, 3.0):
        model = loaded.model
        if threshold is not None:
            node = getattr(nodes_easycache, f"{name}Node")
            model = node.execute(model, threshold, 0.0, 1.0, False).result[0]
        evaluated.clear()
        drawn[threshold] = ksample(model, conditions.a, conditions.negative, empty(loaded), steps=8)
        counts[threshold] = sum(evaluated)
    assert torch.equal(drawn[0.0], drawn[None]) and counts[0.0] == counts[None] == 16
    assert counts[3.0] < 16 and largest(drawn[3.0], drawn[None]) > 1e-3
