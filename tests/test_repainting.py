"""Edits over their picture: masks of every form, the mask that the model finds, strength, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tbac_uniimage.core import change_map, repainting
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.core.schedulers import euler_scheduler, scheduler_for_call

SIZE = (61, 45)  # odd, and no multiple of a latent
WIDTH, HEIGHT = SIZE


def source(mode: str = "RGB", seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    picture = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


def left_half(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


OUTSIDE = ~left_half()


def edit(pipe: LadderPipeline, image, prompt="make it red", seed=1, **options):
    settings = {"guidance_scale": 3.0, "image_guidance_scale": 1.5, "num_inference_steps": 2}
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, image, generator=generator, **settings | options)


@pytest.fixture(autouse=True)
def half_of_the_cells(monkeypatch):
    """Random weights change everything alike; so here the half of the cells changes that does so most."""
    monkeypatch.setattr(repainting, "changed_cells", lambda change: change > change.median())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("mask", ["given", "auto"])
def test_outside_of_the_mask_every_bit_stays(pipe, mode, mask):
    picture = source(mode)
    output = edit(pipe, picture, mask=Image.fromarray(left_half()) if mask == "given" else "auto")
    [found], [shown] = output.images, output.masks
    assert found.size == shown.size == SIZE and shown.mode == "L"
    expected = picture if mode == "RGBA" else picture.convert("RGB")
    assert found.mode == expected.mode
    outside = np.asarray(shown) == 0
    assert 0 < outside.sum() < outside.size
    if mask == "given":
        assert np.array_equal(outside, OUTSIDE)
    assert np.array_equal(np.asarray(found)[outside], np.asarray(expected)[outside])
    assert (np.asarray(found) != np.asarray(expected))[~outside].mean() > 0.3
    if mode == "RGBA":
        assert np.array_equal(np.asarray(found)[..., 3], np.asarray(picture)[..., 3])


def test_arrays_and_tensors_keep_all_their_bits(pipe):
    values = np.random.default_rng(1).random((HEIGHT, WIDTH, 3), np.float32)
    for image, output_type in (
        (values, "np"),
        (torch.from_numpy(values).movedim(-1, 0), "pt"),
        ((values * 65535).astype(np.uint16), "np"),
    ):
        found = edit(pipe, image, mask=left_half(), output_type=output_type).images[0]
        found = np.asarray(found) if output_type == "np" else found.movedim(0, -1).numpy()
        if isinstance(image, np.ndarray) and image.dtype == np.uint16:
            assert np.array_equal((found[OUTSIDE] * 65535).round(), image[OUTSIDE])
        else:
            assert np.array_equal(found[OUTSIDE], values[OUTSIDE])
        assert np.abs(found - values)[~OUTSIDE].mean() > 0.01


def masks() -> dict[str, object]:
    half = left_half()
    white = half.astype(np.uint8) * 255
    clear = np.stack([np.full_like(white, 255)] * 3 + [white], -1)
    return {
        "L": Image.fromarray(white),
        "1": Image.fromarray(half),
        "P": Image.fromarray(white).convert("P"),
        "RGB": Image.fromarray(white).convert("RGB"),
        "RGBA": Image.fromarray(white).convert("RGBA"),
        "white on clear": Image.fromarray(clear),
        "I;16": Image.fromarray(white.astype(np.uint16) * 257),
        "F": Image.fromarray(half.astype(np.float32)),
        "bool": half,
        "0 and 1": half.astype(np.int64),
        "0 to 255": white,
        "0 to 65535": white.astype(np.uint16) * 257,
        "float": half.astype(np.float64),
        "with a channel": white[..., None],
        "with three": np.repeat(white[..., None], 3, -1),
        "batch": white[None],
        "batch with channels first": white[None, None],
        "batch with a channel": white[None, ..., None],
        "tensor": torch.from_numpy(half),
        "tensor of one": torch.from_numpy(half)[None].half(),
        "tensor as diffusers has it": torch.from_numpy(half)[None, None].float(),
        "tensor in bfloat16": torch.from_numpy(half).bfloat16(),
        "list": [white],
        "twice as large": Image.fromarray(white).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.NEAREST),
    }


@pytest.fixture(scope="module")
def by_array(pipe):
    return np.asarray(edit(pipe, source(), mask=left_half()).images[0])


@pytest.mark.parametrize("form", masks())
def test_masks_of_every_form_mean_the_same(pipe, by_array, form):
    found = edit(pipe, source(), mask=masks()[form])
    if form != "twice as large":
        assert np.array_equal(np.asarray(found.masks[0]) > 0, left_half())
        assert np.array_equal(np.asarray(found.images[0]), by_array)
        return
    outside = np.asarray(found.masks[0]) == 0  # the seam may be a pixel wider where a pixel is half inside
    assert (outside != OUTSIDE).sum() <= HEIGHT
    assert np.array_equal(np.asarray(found.images[0])[outside], np.asarray(source())[outside])


def test_the_mask_that_was_found_gives_the_same_result_again(pipe):
    first = edit(pipe, source(), mask="auto")
    again = edit(pipe, source(), mask=first.masks[0])
    assert np.array_equal(np.asarray(first.images[0]), np.asarray(again.images[0]))
    assert pipe.change_map("make it red", source()).masks[0].tobytes() == first.masks[0].tobytes()


def test_a_white_mask_is_the_edit_without(pipe):
    picture = source(size=(64, 64))
    plain, white = edit(pipe, picture), edit(pipe, picture, mask=np.ones((64, 64)))
    assert plain.masks is None
    assert np.array_equal(np.asarray(plain.images[0]), np.asarray(white.images[0]))


def test_maps_do_not_depend_on_what_else_is_asked(pipe):
    pictures = [source(seed=1), source(seed=2, size=(40, 80)), source("RGBA", seed=3)]
    texts = ["make it red", "remove the car and the bird that stands behind it", "add a cat"]
    together = pipe.change_map(texts, pictures)
    backwards = pipe.change_map(texts[::-1], pictures[::-1])
    for i in range(3):
        alone = pipe.change_map(texts[i], pictures[i])
        assert torch.equal(together.maps[i], alone.maps[0])
        assert torch.equal(together.maps[i], backwards.maps[2 - i])
        assert together.masks[i].tobytes() == alone.masks[0].tobytes()
        assert together.masks[i].size == pictures[i].size and together.maps[i].max() == 1
    assert not torch.equal(together.maps[0], together.maps[2])


@pytest.mark.parametrize("size", [(96, 40), (30, 200)])
def test_pictures_of_other_proportions_are_mapped_as_squares(pipe, size):
    picture, side = source(size=size), round((size[0] * size[1]) ** 0.5)
    square = picture.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    found, expected = (pipe.change_map("make it red", each) for each in (picture, square))
    assert torch.equal(found.maps[0], expected.maps[0]) and found.masks[0].size == size
    assert edit(pipe, picture, mask="auto").masks[0].tobytes() == found.masks[0].tobytes()


def test_a_batch_of_pictures_is_drawn_one_by_one(pipe):
    pictures = [source(seed=1), source(seed=2, size=(40, 80))]
    texts = ["make it red", "add a cat"]
    seeds = [torch.Generator().manual_seed(s) for s in range(4)]
    options = {"num_images_per_prompt": 2, "mask": "auto", "num_inference_steps": 1}
    together = pipe(texts, pictures, generator=seeds, **options)
    assert (
        [p.size for p in together.images]
        == [SIZE, SIZE, (40, 80), (40, 80)]
        == [m.size for m in together.masks]
    )
    for i in range(2):
        seeds = [torch.Generator().manual_seed(s) for s in (2 * i, 2 * i + 1)]
        alone = pipe(texts[i], pictures[i], generator=seeds, **options)
        for j in range(2):
            assert alone.images[j].tobytes() == together.images[2 * i + j].tobytes()
    assert together.images[0].tobytes() != together.images[1].tobytes()


def test_the_first_of_several_pictures_is_drawn_over(pipe):
    pictures = [source(seed=1), source(seed=2, size=(30, 50))]
    found = edit(pipe, pictures, mask=left_half()).images[0]
    assert np.array_equal(np.asarray(found)[OUTSIDE], np.asarray(pictures[0])[OUTSIDE])
    alone = edit(pipe, pictures[0], mask=left_half()).images[0]
    assert found.tobytes() != alone.tobytes()


@pytest.mark.parametrize(("guidance", "image_guidance"), [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0), (3.0, 2.0)])
def test_the_map_is_the_same_whatever_the_guidance(pipe, guidance, image_guidance):
    rows: list[int] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    try:
        found = edit(
            pipe, source(), guidance_scale=guidance, image_guidance_scale=image_guidance, mask="auto"
        )
    finally:
        handle.remove()
    branches = 3 if image_guidance != 1 else 2 if guidance != 1 else 1
    assert rows == [change_map.EVALUATIONS, branches, branches]
    expected = pipe.change_map("make it red", source()).masks[0]
    assert found.masks[0].tobytes() == expected.tobytes()


def test_strength_is_part_of_the_way(pipe):
    """Written out with Euler: the last steps of the schedule, from the source mixed with their noise."""
    picture = source(size=(64, 64))
    noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(5))
    steps: list[int] = []
    old, pipe.scheduler = pipe.scheduler, euler_scheduler()
    try:
        found = edit(
            pipe,
            picture,
            latents=noise,
            strength=0.5,
            num_inference_steps=5,
            guidance_scale=1.0,
            image_guidance_scale=1.0,
            output_type="latent",
            callback_on_step_end=lambda _p, i, _t, _k: steps.append(i) or {},
        ).images
        sigmas = scheduler_for_call(pipe.scheduler, 5, noise.device).sigmas[3:]
    finally:
        pipe.scheduler = old
    assert steps == [0, 1]  # int(5 * 0.5)
    pixels = torch.from_numpy(np.asarray(picture)).movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        clean = pipe.vae.encode(pixels).latent * pipe.vae.config.scaling_factor
        states = pipe.encoder(["make it red"], [[picture]]).states
        x = (1 - sigmas[0]) * clean + sigmas[0] * noise
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + (then - now) * pipe.transformer(x, states, now.expand(1) * 1000).sample
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_strength_zero_is_the_autoencoder_alone(pipe):
    picture = source(size=(64, 64))
    found = edit(pipe, picture, strength=0.0, output_type="pt").images
    pixels = torch.from_numpy(np.asarray(picture)).movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        rebuilt = pipe.vae.decode(pipe.vae.encode(pixels).latent).sample
    torch.testing.assert_close(found, (rebuilt / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_latents_outside_of_the_mask_end_as_the_source(pipe):
    picture = source(size=(64, 64))
    output = edit(pipe, picture, mask=left_half(64, 64), output_type="latent")
    clean = edit(pipe, picture, strength=0.0, output_type="latent").images
    assert torch.equal(output.images[..., 4:], clean[..., 4:])
    assert (output.images[..., :4] - clean[..., :4]).abs().mean() > 0.01
    assert torch.equal(output.masks[0, 0].bool(), torch.from_numpy(left_half(64, 64)))


BAD = [
    ({"mask": "yes"}, "The mask is 'yes'; give a picture, an array or a tensor, or \"auto\""),
    ({"mask": 3}, "The mask is of the type int"),
    ({"mask": np.zeros((HEIGHT, WIDTH))}, "The mask is empty"),
    ({"mask": np.ones((WIDTH, HEIGHT))}, "The mask is 45x61 and the picture 61x45"),
    ({"mask": np.ones((2, HEIGHT, WIDTH))}, "2 masks were given for 1 pictures"),
    (
        {"mask": np.full((HEIGHT, WIDTH), 7.0)},
        "from 7 to 7, of the type float64; give 0 to 1, or",
    ),
    ({"mask": np.full((HEIGHT, WIDTH), np.nan)}, "The mask has values from nan"),
    ({"mask": np.full((HEIGHT, WIDTH), -1)}, "The mask has values from -1"),
    ({"mask": np.zeros((HEIGHT, 0))}, "The mask has the shape"),
    ({"mask": np.zeros(5)}, "The mask has the shape"),
    ({"mask": np.full((HEIGHT, WIDTH), "x")}, "The mask has values of the type"),
    ({"mask": "auto", "image": None}, "A mask needs a picture"),
    ({"strength": 0.5, "image": None}, "A strength below 1 needs a picture"),
    ({"strength": 1.5}, "strength is 1.5"),
    ({"strength": float("nan")}, "strength is nan"),
    ({"strength": "much"}, "strength is much"),
    ({"mask": "auto", "feather": -1}, "feather is -1"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_masks_are_named_before_anything_is_computed(pipe, arguments, words):
    def refuse(*_):
        raise AssertionError("a model ran")

    modules = (
        pipe.mllm.model.language_model.layers[0],
        pipe.transformer.patch_embed,
        pipe.vae.encoder.conv_in,
    )
    handles = [module.register_forward_pre_hook(refuse) for module in modules]
    try:
        with pytest.raises(ValueError, match=words):
            pipe(**{"prompt": "a cat", "image": source()} | arguments)
    finally:
        for handle in handles:
            handle.remove()


def test_pictures_of_different_sizes_are_no_array(pipe):
    pictures = [source(), source(size=(30, 50))]
    with pytest.raises(ValueError, match='give output_type="pil"'):
        pipe(["a", "b"], pictures, mask="auto", output_type="np")


def test_a_condition_holds_its_pictures(pipe):
    """Which were read in their own proportions: of others a prompt's map is another."""
    sizes, texts = [(61, 59), (80, 80)], ["make it red", "add a cat"]
    pictures = [source(seed=seed, size=size) for seed, size in enumerate(sizes, 1)]
    scales = {"guidance_scale": 3.0, "image_guidance_scale": 1.5}
    condition = pipe.encode_prompt(texts, pictures, **scales)
    found = pipe(
        condition=condition, mask="auto", num_inference_steps=2, generator=torch.Generator(), **scales
    )
    direct = pipe(texts, pictures, mask="auto", num_inference_steps=2, generator=torch.Generator(), **scales)
    for ours, expected in zip(found.images, direct.images, strict=True):  # rounding: conditions of one batch
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(expected)).max() <= 2
    unguided = pipe.encode_prompt(texts, pictures, guidance_scale=1.0)
    with pytest.raises(ValueError, match="needs a condition of guidance"):
        pipe(condition=unguided, guidance_scale=1.0, mask="auto")
