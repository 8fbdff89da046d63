"""Models that read what they edit, in ComfyUI: our nodes and stock ones against the Python pipeline."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import (
    INSTRUCTION,
    PROMPT,
    STEPS,
    as_batch,
    empty,
    encode,
    in_both,
    ladder_sample,
    largest,
    reference,
)
from safetensors.torch import save_file
from source_models import pipeline_of, reading

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

SCALES = {"guidance_scale": 4.5, "image_guidance_scale": 1.5}


@pytest.fixture(scope="module")
def reader(comfy, tiny, tmp_path_factory) -> SimpleNamespace:
    """The tiny model with the option, as ComfyUI and as Python have it."""
    return in_both(pipeline_of(reading(tiny)), tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def small(reader, picture):
    """A picture at the size that it is drawn at."""
    from tbac_uniimage.core.requests import fit_size

    return picture.resize(fit_size(picture.size, reader.mllm.size.native, reader.vae.downscale_ratio))


def edit_conditions(parts, pixels, **options) -> tuple:
    from tbac_uniimage.nodes.conditioning import LadderImageEdit

    return LadderImageEdit.execute(parts.mllm, INSTRUCTION, pixels, **options).result


def drawn_by_pipeline(reader, picture) -> torch.Tensor:
    return reference(reader.pipe, INSTRUCTION, image=picture, **SCALES)


@pytest.fixture(scope="module")
def expected(reader, small) -> torch.Tensor:
    return drawn_by_pipeline(reader, small)


def ksample(model, positive, negative, latent, steps=2, cfg=3.0) -> torch.Tensor:
    import nodes as stock

    sampled = stock.common_ksampler(model, 7, steps, cfg, "euler", "simple", positive, negative, latent)
    return sampled[0]["samples"]


def euler_on(model, steps: int):
    """diffusers' Euler on the sigmas that KSampler takes with euler and simple."""
    from comfy.samplers import calculate_sigmas
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)[:-1].numpy()

    class Simple(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, num_inference_steps, device=None) -> None:
            assert num_inference_steps == steps
            super().set_timesteps(sigmas=sigmas, device=device)

    return Simple(shift=1.0)  # the sigmas are shifted already


@pytest.mark.parametrize("by", ["Edit Conditions", "ReferenceLatent", "InstructPixToPixConditioning"])
def test_stock_ksampler_draws_the_pipelines_picture(reader, small, by):
    """KSampler and VAE Decode, whichever node hands over what is edited, against the pipeline with Euler."""
    from comfy_extras.nodes_edit_model import ReferenceLatent
    from comfy_extras.nodes_ip2p import InstructPixToPixConditioning

    import nodes as stock

    pixels = as_batch(small)
    positive, image_only, _, latent = edit_conditions(reader, pixels, vae=reader.vae)
    if by == "ReferenceLatent":
        source = {"samples": reader.vae.encode(pixels)}
        bare = without(positive, image_only)
        positive, image_only = (ReferenceLatent.execute(branch, source).result[0] for branch in bare)
    elif by == "InstructPixToPixConditioning":
        bare = without(positive, image_only)
        positive, image_only, latent = InstructPixToPixConditioning.execute(*bare, pixels, reader.vae).result
    found = ksample(reader.model, positive, image_only, latent, steps=STEPS)
    pipe = copy.copy(reader.pipe)
    pipe.scheduler = euler_on(reader.model, STEPS)
    options = {"guidance_scale": 3.0, "image_guidance_scale": 1.0}
    wanted = reference(pipe, INSTRUCTION, image=small, **options)
    assert largest(found, wanted) < 1e-3
    [picture] = stock.VAEDecode().decode(reader.vae, {"samples": found})
    drawn = pipe.decode(wanted * pipe.vae.config.scaling_factor, "pt").movedim(1, -1)
    assert largest(picture, drawn) < 1e-3
    blind = ksample(reader.model, *without(positive, image_only), latent, steps=STEPS)
    assert largest(found, blind) > 0.05


@pytest.mark.parametrize("scaled", [True, False])
def test_edit_conditions_and_sampler_draw_what_the_pipeline_draws(reader, picture, small, scaled):
    source = small if scaled else picture
    positive, image_only, negative, latent = edit_conditions(reader, as_batch(source), vae=reader.vae)
    found = ladder_sample(reader.model, positive, negative, latent, image_only)
    error = largest(found, drawn_by_pipeline(reader, source))
    print(f"\nEdit Conditions against the pipeline: {error:.2e}")
    assert error < 1e-3
    blind = ladder_sample(reader.model, *without(positive, negative), latent, *without(image_only))
    assert largest(found, blind) > 0.05


def without(*conditionings) -> list:
    """The same, carrying nothing."""
    return [[[states, {}] for states, _ in conditioning] for conditioning in conditionings]


def test_image_edit_draws_what_the_pipeline_draws(reader, small):
    from tbac_uniimage.nodes.editing import LadderEdit

    found = LadderEdit.execute(
        reader.model, reader.mllm, reader.vae, as_batch(small), INSTRUCTION, 7, STEPS, 4.5, 1.5
    ).result[0]
    generator = torch.Generator().manual_seed(7)
    options = {"num_inference_steps": STEPS, "output_type": "pt", "generator": generator}
    expected = reader.pipe(INSTRUCTION, small, **SCALES, **options).images.movedim(1, -1)
    error = largest(found, expected)
    print(f"\nImage Edit against the pipeline: {error:.2e}")
    assert error < 1e-3


def test_text_to_image_reads_nothing(reader):
    found = ladder_sample(reader.model, encode(reader, PROMPT), encode(reader, ""), empty(reader))
    assert largest(found, reference(reader.pipe, PROMPT, guidance_scale=4.5)) < 1e-3


def test_reference_latent_does_what_it_says(reader, small, expected):
    """Stock nodes in place of vae at Edit Conditions: VAE Encode, then ReferenceLatent for each branch."""
    from comfy_extras.nodes_edit_model import ReferenceLatent

    import nodes as stock

    pixels = as_batch(small)
    branches = edit_conditions(reader, pixels, vae=reader.vae)
    positive, image_only, negative = without(*branches[:3])
    [source], [black] = (stock.VAEEncode().encode(reader.vae, p) for p in (pixels, torch.zeros_like(pixels)))
    for batch in (1, 2):
        latent = {"samples": branches[3]["samples"].repeat(batch, 1, 1, 1)}
        found = ladder_sample(
            reader.model,
            ReferenceLatent.execute(positive, source).result[0],
            ReferenceLatent.execute(negative, black).result[0],
            latent,
            ReferenceLatent.execute(image_only, source).result[0],
        )
        assert len(found) == batch
        assert largest(found[:1], expected) < 1e-3


def test_instruct_pix2pix_conditioning_does_what_it_says(reader, small):
    from comfy_extras.nodes_edit_model import ReferenceLatent
    from comfy_extras.nodes_ip2p import InstructPixToPixConditioning

    pixels = as_batch(small)
    branches = edit_conditions(reader, pixels, vae=reader.vae)
    positive, image_only, _ = without(*branches[:3])
    both = InstructPixToPixConditioning.execute(positive, image_only, pixels, reader.vae).result
    found = ksample(reader.model, *both)
    assert both[2]["samples"].shape == branches[3]["samples"].shape
    assert largest(found, ksample(reader.model, branches[0], branches[1], branches[3])) < 1e-4
    source = {"samples": reader.vae.encode(pixels)}
    by_reference = (ReferenceLatent.execute(c, source).result[0] for c in (positive, image_only))
    assert largest(found, ksample(reader.model, *by_reference, both[2])) < 1e-4
    assert largest(found, ksample(reader.model, positive, image_only, both[2])) > 0.05


def test_an_area_reads_its_part_of_the_source(reader, small):
    """ConditioningSetAreaPercentage: an area sees the source's latents under it, as if drawn alone."""
    import nodes as stock

    positive, *_, latent = edit_conditions(reader, as_batch(small), vae=reader.vae)
    source = positive[0][1]["concat_latent_image"]
    height, width = source.shape[-2:]
    half = width // 2
    area = stock.ConditioningSetAreaPercentage().append(positive, half / width, 1.0, half / width, 0, 1.0)[0]
    x = torch.randn(1, *source.shape[1:3], width, generator=torch.Generator().manual_seed(0))
    seen = []
    transformer = reader.model.model.diffusion_model
    hook = transformer.source_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ksample(reader.model, area, area, {"samples": torch.zeros_like(x)}, steps=1, cfg=1.0)
    hook.remove()
    scale = reader.model.model.latent_format.scale_factor
    torch.testing.assert_close(seen[0][:1], (source * scale)[..., half : 2 * half], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("connected", [True, False])
def test_encode_with_pictures_carries_it(reader, small, connected):
    """Also in graphs that connect no autoencoder, as they were made before models read what they edit."""
    from tbac_uniimage.nodes.conditioning import LadderEncode

    vae = {"vae": reader.vae} if connected else {}
    found = LadderEncode.execute(reader.mllm, INSTRUCTION, as_batch(small), **vae).result
    positive, image_only, negative, _ = edit_conditions(reader, as_batch(small), vae=reader.vae)
    for one, other in zip(found, (positive, negative, image_only), strict=True):
        assert torch.equal(one[0][0], other[0][0])
        assert torch.equal(one[0][1]["concat_latent_image"], other[0][1]["concat_latent_image"])
    assert LadderEncode.execute(reader.mllm, PROMPT, **vae).result[0][0][1] == {}
    larger = edit_conditions(reader, as_batch(small), **vae, side=128)
    assert larger[0][0][1]["concat_latent_image"].shape == larger[3]["samples"].shape


def test_what_cannot_be_read_is_one_sentence(reader, loaded, small):
    from comfy_extras.nodes_edit_model import ReferenceLatent
    from comfy_extras.nodes_ip2p import InstructPixToPixConditioning

    import nodes as stock

    pixels = as_batch(small)
    with pytest.raises(ValueError, match="vae is that of another model"):
        edit_conditions(reader, pixels, vae=object())
    positive, image_only, negative, latent = edit_conditions(reader, pixels, vae=reader.vae)
    with pytest.raises(ValueError, match="holds 2 latents to edit and this model reads one; leave out all"):
        ksample(reader.model, ReferenceLatent.execute(positive, latent).result[0], negative, latent)
    with pytest.raises(
        ValueError, match=r"latents of shape \[1, 8, .* what is drawn \[1, 8, 3, 5\], but one"
    ):
        ksample(reader.model, positive, negative, {"samples": torch.zeros(1, 8, 3, 5)})
    mask = torch.ones(1, *pixels.shape[1:3])
    inpaint = stock.InpaintModelConditioning().encode(positive, negative, pixels, reader.vae, mask, True)
    with pytest.raises(ValueError, match="comes from InpaintModelConditioning, which greys out"):
        ksample(reader.model, *inpaint)

    plain = edit_conditions(loaded, pixels, vae=loaded.vae)
    assert plain[0][0][1] == {}  # nothing that the model would not read
    pix2pix = InstructPixToPixConditioning.execute(plain[0], plain[2], pixels, loaded.vae).result
    with pytest.raises(
        ValueError, match="latents of InstructPixToPixConditioning, which this model does not"
    ):
        ksample(loaded.model, *pix2pix)


def test_a_lora_made_without_it_fits(reader, tiny, small, tmp_path, monkeypatch):
    """In ComfyUI and in Python, and source_embed stays what it is."""
    import folder_paths
    from tbac_uniimage.nodes.lora import LadderLoadLora

    generator, tensors = torch.Generator().manual_seed(6), {}
    for block in range(tiny.transformer.config.num_layers):
        layer = f"transformer_blocks.{block}.attn2.to_k"
        rows, columns = tiny.transformer.get_submodule(layer).weight.shape
        for kind, shape in (("lora_A", (3, columns)), ("lora_B", (rows, 3))):
            tensors[f"transformer.{layer}.{kind}.weight"] = torch.randn(shape, generator=generator) / 4
    save_file(tensors, tmp_path / "plain.safetensors")
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "loras", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    tuned = LadderLoadLora.execute(reader.model, "plain.safetensors", 1.0).result[0]
    assert not any("source_embed" in name for name in tuned.patches)

    positive, image_only, negative, latent = edit_conditions(reader, as_batch(small), vae=reader.vae)
    found = ladder_sample(tuned, positive, negative, latent, image_only)
    before = ladder_sample(reader.model, positive, negative, latent, image_only)
    with torch.inference_mode(False):
        pipe = pipeline_of(reading(tiny))
        pipe.load_lora_weights(tmp_path / "plain.safetensors")
    assert largest(found, reference(pipe, INSTRUCTION, image=small, **SCALES)) < 1e-3
    assert largest(found, before) > 0.05


def test_gains_probe_and_a_saved_conditioning_go_with_it(reader, small, expected, tmp_path, monkeypatch):
    import folder_paths
    from tbac_uniimage.nodes.conditioning_file import read_conditioning, write_conditioning
    from tbac_uniimage.nodes.ladders import with_gains
    from tbac_uniimage.nodes.probe import LadderProbe

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    positive, image_only, negative, latent = edit_conditions(reader, as_batch(small), vae=reader.vae)
    write_conditioning(tmp_path / "c.safetensors", positive)
    again, _ = read_conditioning(tmp_path / "c.safetensors")
    assert torch.equal(again[0][1]["concat_latent_image"], positive[0][1]["concat_latent_image"])
    drawn = ladder_sample(reader.model, again, negative, latent, image_only)
    assert largest(drawn, expected) < 1e-3

    gains = [1.0, 0.0, 2.0, 1.0]
    quieter = ladder_sample(with_gains(reader.model, gains), positive, negative, latent, image_only)
    wanted = reference(reader.pipe, INSTRUCTION, image=small, rung_gains=gains, **SCALES)
    assert largest(quieter, wanted) < 1e-3
    probed = LadderProbe.execute(
        reader.model, reader.vae, positive, negative, latent, 7, STEPS, 4.5, 1.5, image_only=image_only
    ).result
    assert all(isinstance(sheet, torch.Tensor) and sheet.isfinite().all() for sheet in probed)


def test_a_change_map_and_an_automatic_mask_read_it_too(reader, small):
    """As the pipeline's: both branches of the map see the picture that it is of."""
    from tbac_uniimage.nodes.changes import LadderChangeMap
    from tbac_uniimage.nodes.editing import AUTOMATIC, LadderEdit

    parts = reader.model, reader.mllm, reader.vae, as_batch(small), INSTRUCTION
    wanted = reader.pipe.change_map(INSTRUCTION, small)
    _, found, _ = LadderChangeMap.execute(*parts).result
    large = torch.nn.functional.interpolate(wanted.maps[0][None, None], small.size[::-1], mode="bilinear")
    assert largest(found, large[:, 0]) < 1e-3
    reader.model.model.diffusion_model.source_embed.weight.data.neg_()
    try:
        assert largest(found, LadderChangeMap.execute(*parts).result[1]) > 0.02
    finally:
        reader.model.model.diffusion_model.source_embed.weight.data.neg_()

    drawn, mask = LadderEdit.execute(*parts, 7, STEPS, 4.5, 1.5, mask_from=AUTOMATIC).result
    options = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(7), "mask": "auto"}
    expected = reader.pipe(INSTRUCTION, small, **SCALES, **options, output_type="pt")
    kept = mask == 0
    assert torch.equal(drawn[kept], as_batch(small)[kept])
    assert largest(mask, expected.masks[:, 0].float()) < 1e-3
