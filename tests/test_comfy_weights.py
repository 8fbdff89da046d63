"""Loading, patching and moving weights under ComfyUI's memory management; the VAE; bad input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from comfy_helpers import PROMPT, as_batch, empty, encode, ladder_sample, largest, reference, velocity

SCENE = Path(__file__).resolve().parent.parent / "assets" / "samples" / "tbac_uniimage_scene.png"

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]


def test_weights_are_held_once(comfy, checkpoint, monkeypatch):
    """The loaded parts themselves become MODEL and VAE."""
    from tbac_uniimage.core.checkpoints import load_parts
    from tbac_uniimage.nodes import bridge

    parts = load_parts(checkpoint)
    monkeypatch.setattr(bridge, "load_parts", lambda path, **_: parts)
    model, mllm, vae = bridge.load_for_comfy(checkpoint)
    assert model.model.diffusion_model is parts.transformer
    assert vae.first_stage_model is parts.vae
    assert mllm.encoder.mllm is parts.mllm


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


@pytest.mark.parametrize("dtype", ["default", "bf16", "fp8_e4m3fn"])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_no_weight_is_left_behind_in_partial_loads(comfy, checkpoint, share, dtype):
    """On the meta device, any parameter that stays on the CPU uncast raises in the forward pass."""
    from tbac_uniimage.nodes.bridge import load_for_comfy

    model, mllm, vae = load_for_comfy(checkpoint, dtype)
    meta = torch.device("meta")
    size = model.model.latent_format.size
    for patcher in (model, mllm.patcher, vae.patcher):
        budget = max(1, int(patcher.model_size() * share))
        patcher.load(meta, lowvram_model_memory=budget, full_load=share == 1)
        assert patcher.model.model_lowvram == (share < 1)
    layers = model.model.diffusion_model.config.num_layers
    context = torch.zeros(1, 8, layers * model.model.diffusion_model.config.caption_channels, device=meta)
    latents = torch.zeros(1, size.channels, 8, 8, device=meta)
    computed = model.model.manual_cast_dtype or model.model.get_dtype()
    assert computed in (torch.float32, torch.bfloat16)
    out = model.model.diffusion_model(
        latents.to(computed), torch.zeros(1, device=meta).to(computed), context.to(computed)
    )
    assert out.shape == latents.shape
    assert vae.first_stage_model.decode(latents.to(vae.vae_dtype)).shape[-1] == 8 * size.factor
    pixels = torch.zeros(1, 3, 8 * size.factor, 8 * size.factor, device=meta, dtype=vae.vae_dtype)
    assert vae.first_stage_model.encode(pixels).shape == latents.shape
    for module in mllm.patcher.model.modules():
        if not getattr(module, "comfy_cast_weights", False):
            held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            assert all(tensor.device == meta for tensor in held)
    hidden = mllm.encoder.mllm.config.text_config.hidden_size
    blocks = mllm.patcher.model["mllm"].language_model.layers
    states = torch.zeros(1, 6, hidden, device=meta, dtype=blocks[0].input_layernorm.weight.dtype)
    assert blocks[-1].mlp(blocks[0].input_layernorm(states)).device == meta
    assert mllm.patcher.model["connector"].layers(states).device == meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_released_size_loaded_in_part(comfy, share, dtype):
    """The published configuration as a MODEL, without memory: 16 x 16 latents of 32 channels, 64 queries."""
    from tbac_uniimage.core.checkpoints.parts import released_configs, transformer_on_meta
    from tbac_uniimage.nodes.diffusion import LadderLatentFormat, make_model
    from tbac_uniimage.nodes.mllm import LatentSize

    meta = torch.device("meta")
    transformer = transformer_on_meta(released_configs().transformer)
    latent_format = LadderLatentFormat(LatentSize(32, 32, 512), 0.41407, (torch.zeros(32, 3), torch.zeros(3)))
    model = make_model(transformer, latent_format, dtype)
    gigabytes = model.model_size() / 2**30
    print(f"\n{dtype}: {gigabytes:.2f} GiB")
    assert gigabytes < 1.604 * (2.02 if dtype == torch.bfloat16 else 1.1)
    model.load(meta, lowvram_model_memory=int(model.model_size() * share), full_load=share == 1)
    assert sum(p.numel() for p in model.model.diffusion_model.parameters()) == 1_604_462_752
    computed = model.model.manual_cast_dtype or model.model.get_dtype()
    latents = torch.zeros(2, 32, 16, 16, device=meta, dtype=computed)
    context = torch.zeros(2, 64, 20 * 2304, device=meta, dtype=computed)
    times = torch.zeros(2, device=meta, dtype=computed)
    assert model.model.diffusion_model(latents, times, context).shape == latents.shape


def test_the_released_language_model_within_budgets(comfy):
    """4, 6 and 8 GB for 7.5 GB of weights, without memory: ComfyUI fills what it is given."""
    from tbac_uniimage.core.checkpoints import released_parts_on_meta
    from tbac_uniimage.nodes.mllm import LadderMLLM, LatentSize

    meta = torch.device("meta")
    mllm = LadderMLLM(released_parts_on_meta(), torch.bfloat16, LatentSize(32, 32, 512), torch.bfloat16)
    patcher = mllm.patcher
    whole, loaded = patcher.model_size(), []
    largest_layer = max(p.nbytes for p in patcher.model.parameters())
    for gigabytes in (4, 6, 8):
        budget = gigabytes * 10**9
        patcher.load(meta, lowvram_model_memory=budget, full_load=budget > whole)
        loaded.append(patcher.loaded_size())
        assert patcher.model.model_lowvram == (budget < whole)
        if budget < whole:
            assert budget - 4 * largest_layer < loaded[-1] < budget
        states = torch.zeros(1, 6, 2048, device=meta, dtype=torch.bfloat16)
        for layer in (mllm.encoder.mllm.model.language_model.layers[i] for i in (0, -1)):
            assert layer.mlp(layer.input_layernorm(states)).dtype == torch.bfloat16
        patcher.unpatch_model(meta)
    print("\n", whole, loaded)
    assert loaded[0] < loaded[1] < loaded[2] == whole


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_partly_loaded_models_give_the_same_numbers(loaded, checkpoint, picture, share):
    """A real partial load on the CPU, of every part, with a LoRA on the part that has them."""
    from tbac_uniimage.nodes.bridge import load_for_comfy

    model, mllm, vae = load_for_comfy(checkpoint)
    name = "diffusion_model.transformer_blocks.1.attn2.to_k.weight"
    shape = model.model.get_parameter(name).shape
    change = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    model.add_patches({name: ("diff", (change,))}, 1.0)
    whole_model = loaded.model.clone()
    whole_model.add_patches({name: ("diff", (change,))}, 1.0)
    for patcher in (model, mllm.patcher, vae.patcher):
        patcher.load(torch.device("cpu"), lowvram_model_memory=max(1, int(patcher.model_size() * share)))
        assert patcher.model.model_lowvram
    whole, partly = (m.encode([PROMPT], [[picture]])[0] for m in (loaded.mllm, mllm))
    assert largest(whole, partly) < 1e-6
    factor = vae.downscale_ratio
    pixels = as_batch(picture.resize((8 * factor, 6 * factor)))
    latents = loaded.vae.encode(pixels)
    assert largest(latents, vae.encode(pixels)) < 1e-6
    assert largest(loaded.vae.decode(latents), vae.decode(latents)) < 1e-6
    x = torch.randn(1, model.model.latent_format.latent_channels, 8, 8)
    partly = velocity(model, x, 0.5, whole)
    whole_model.patch_model(device_to=torch.device("cpu"))
    patched = velocity(whole_model, x, 0.5, whole)
    whole_model.unpatch_model(device_to=torch.device("cpu"))
    assert largest(partly, patched) < 1e-5
    assert largest(patched, velocity(loaded.model, x, 0.5, whole)) > 1e-3


@pytest.mark.parametrize(
    ("dtype", "smaller", "tolerance"),
    [("bf16", 1.9, 2e-2), ("fp16", 1.9, 3e-3), ("fp8_e4m3fn", 3.5, 8e-2), ("fp32", 1, 1e-6)],
)
def test_low_precision_weights_stay_close_and_small(loaded, checkpoint, picture, dtype, smaller, tolerance):
    from tbac_uniimage.nodes.bridge import load_for_comfy

    model, mllm, _ = load_for_comfy(checkpoint, dtype)
    context = encode(loaded, PROMPT)[0][0]
    latents = torch.randn(1, model.model.latent_format.latent_channels, 8, 8)
    exact, rough = (velocity(m, latents, 0.5, context) for m in (loaded.model, model))
    error = (exact - rough).norm() / exact.norm()
    states, rough = (m.encode([PROMPT], [[picture]])[0] for m in (loaded.mllm, mllm))
    mllm_error = (states - rough).norm() / states.norm()
    share = loaded.model.model_size() / model.model_size()
    print(f"\n{dtype}: velocity {error:.1e}, conditions {mllm_error:.1e}, {share:.2f} times smaller")
    assert error < tolerance and mllm_error < tolerance
    assert share >= smaller
    table = model.model.diffusion_model.scale_shift_table
    if dtype in ("fp16", "fp8_e4m3fn"):  # never rounded to what they are not kept in
        assert torch.equal(table, loaded.model.model.diffusion_model.scale_shift_table)


@pytest.mark.parametrize("multiplies", [True, False])
def test_short_weights_are_computed_in_bfloat16_where_a_cpu_multiplies_it(
    loaded, checkpoint, monkeypatch, multiplies
):
    """ComfyUI computes in float32 on every CPU; float16 weights would lose by bfloat16."""
    import comfy.model_management
    from tbac_uniimage.nodes.bridge import load_for_comfy

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": multiplies}, raising=False)
    faster = torch.bfloat16 if multiplies else torch.float32
    seen = []
    for name, expected in (
        ("bf16", faster),
        ("fp8_e4m3fn", faster),
        ("fp16", torch.float32),
        ("fp32", torch.float32),
        ("default", torch.float32),
    ):
        model, mllm, _ = load_for_comfy(checkpoint, name)
        assert (model.model.manual_cast_dtype or model.model.get_dtype()) == expected, name
        assert model.model.diffusion_model.scale_shift_table.dtype == expected
        if name != "bf16":  # which holds for all that the language model computes, on every CPU
            assert mllm.encoder.connector.dtype == expected
        handle = model.model.diffusion_model.proj_out.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].dtype)
        )
        x = torch.zeros(1, model.model.latent_format.latent_channels, 8, 8)
        velocity(model, x, 0.5, encode(loaded, PROMPT)[0][0])
        handle.remove()
        assert seen[-1] == expected
    monkeypatch.setattr(comfy.model_management, "FORCE_FP32", True)
    model = load_for_comfy(checkpoint, "fp8_e4m3fn")[0]
    assert model.model.manual_cast_dtype == torch.float32


def test_fast_float8_products_are_used_where_they_are_asked_for(loaded, checkpoint, monkeypatch, caplog):
    """ComfyUI's --fast fp8_matrix_mult; what it cannot do it says in the log, and casts."""
    import comfy.ops
    from tbac_uniimage.nodes.bridge import load_for_comfy

    context = encode(loaded, PROMPT)[0][0]
    latents = torch.randn(1, loaded.model.model.latent_format.latent_channels, 8, 8)
    plain = velocity(load_for_comfy(checkpoint, "fp8_e4m3fn")[0], latents, 0.5, context)
    monkeypatch.setattr(comfy.ops, "pick_operations", lambda *_, **__: comfy.ops.fp8_ops)
    with caplog.at_level("INFO"):
        fast = velocity(load_for_comfy(checkpoint, "fp8_e4m3fn")[0], latents, 0.5, context)
    error = ((fast - plain).norm() / plain.norm()).item()
    print(f"\nfloat8 products against float8 weights: {error:.1e}")
    assert 0 < error < 0.1
    assert "Exception during fp8 op" not in caplog.text


def test_the_language_model_is_kept_no_longer_than_its_file(comfy):
    """Where bf16 is not to be had it computes in float32; twice the bytes would not make it better."""
    from nano_models import nano_comfy, nano_pipe

    mllm = nano_comfy().mllm
    kept = {
        type(module).__name__: (parameter.dtype, name)
        for module in mllm.patcher.model["mllm"].modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "weight"
    }
    assert kept["Linear"][0] == torch.float16 and kept["Embedding"][0] == torch.float32
    assert kept["CastQwenRMSNorm"][0] == torch.float32
    whole = sum(parameter.numel() for parameter in mllm.patcher.model["mllm"].parameters()) * 4
    assert mllm.patcher.model_size() < 0.8 * whole
    condition = nano_pipe().encode_prompt(PROMPT, guidance_scale=1.0)
    from tbac_uniimage.core.conditions import fold_condition

    assert largest(mllm.encode([PROMPT], [[]])[0], fold_condition(condition.states)) < 1e-5


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


def test_previews_show_the_colours_of_the_picture(comfy, monkeypatch):
    """ComfyUI's own previewer on the latents of a picture that the fit has not seen."""
    import latent_preview
    from comfy.cli_args import args
    from PIL import Image
    from tbac_uniimage.nodes.autoencoder import LadderVAE
    from tbac_uniimage.nodes.bridge import load_for_comfy
    from tbac_uniimage.nodes.loading import EMBEDDED_FOLDER

    encoded = []
    plain = LadderVAE.encode
    monkeypatch.setattr(LadderVAE, "encode", lambda vae, x: encoded.append(x.shape) or plain(vae, x))
    model, _, vae = load_for_comfy(EMBEDDED_FOLDER)
    latent_format = model.model.latent_format
    assert not encoded, "loading has no use for previews"
    assert latent_preview.get_previewer(torch.device("cpu"), latent_format) is None and not encoded
    monkeypatch.setattr(args, "preview_method", latent_preview.LatentPreviewMethod.Auto)
    previewer = latent_preview.get_previewer(torch.device("cpu"), latent_format)
    fitted = len(encoded)
    assert 0 < fitted <= 4
    latent_preview.get_previewer(torch.device("cpu"), latent_format)
    assert len(encoded) == fitted, "the colours were fitted again"
    scene = as_batch(Image.open(SCENE).convert("RGB"))
    pictures = [scene, scene.flip(2), 1 - scene, scene[..., [1, 2, 0]], scene[:, :, scene.shape[2] // 4 :]]
    found, expected = [], []
    for picture in pictures:
        latents = latent_format.process_in(vae.encode(picture))
        _, preview, _ = previewer.decode_latent_to_preview_image("JPEG", latents)
        shown, wanted = as_batch(preview)[0], picture.movedim(-1, 1)
        wanted = torch.nn.functional.avg_pool2d(wanted, vae.downscale_ratio)[0].movedim(0, -1)
        assert shown.shape == wanted.shape
        found.append(shown.reshape(-1, 3))
        expected.append(wanted.reshape(-1, 3))
    found, expected = torch.cat(found), torch.cat(expected)
    error, spread = (found - expected).pow(2).mean(), expected.var(0, correction=0).mean()
    print(f"\npreviews explain {1 - error / spread:.2f} of the variance of the colours")
    assert error / spread < 0.3


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
    with pytest.raises(ValueError, match="needs 4 rungs of 48 values"):
        ladder_sample(loaded.model, wrong, wrong, empty(loaded))


def test_cancel_stops_the_language_model(loaded):
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        encode(loaded, "never asked before")
