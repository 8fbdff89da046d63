"""Image Edit: size, alignment, masks, batches, strength, and its numbers against the Python pipeline."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import INSTRUCTION, STEPS, as_batch, largest
from nano_models import FACTOR, SIDE

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

SCENE = Path(__file__).resolve().parent.parent / "assets" / "samples" / "tbac_uniimage_scene.png"


@pytest.fixture(scope="module")
def nano(comfy):
    """The embedded model: its autoencoder knows pictures, the tiny one's is random."""
    from tbac_uniimage.nodes.bridge import load_for_comfy
    from tbac_uniimage.nodes.loading import EMBEDDED_FOLDER

    names = ("model", "mllm", "vae")
    return SimpleNamespace(**dict(zip(names, load_for_comfy(EMBEDDED_FOLDER), strict=True)))


@pytest.fixture(scope="module")
def scene():
    from PIL import Image

    return Image.open(SCENE).convert("RGB")


def edit_picture(parts, image, instruction=INSTRUCTION, seed=7, steps=STEPS, g=3.0, image_g=2.0, **options):
    from tbac_uniimage.nodes.editing import LadderEdit

    result = LadderEdit.execute(
        parts.model, parts.mllm, parts.vae, image, instruction, seed, steps, g, image_g, **options
    )
    return result.result[0]


def random_picture(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def left_half(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, :, : width // 2] = 1
    return mask


def shift_between(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """By how many pixels ``b`` lies below and to the right of ``a``, from the peak of their correlation."""
    windows = [torch.hann_window(length, periodic=False) for length in a.shape[1:3]]
    window = windows[0][:, None] * windows[1]
    spectra = [torch.fft.fft2((p[0].mean(-1) - p.mean()) * window) for p in (a, b)]
    surface = torch.fft.ifft2(spectra[0].conj() * spectra[1]).real
    peak = divmod(int(surface.argmax()), surface.shape[1])
    found = []
    for axis, length in enumerate(surface.shape):
        line = surface.select(1 - axis, peak[1 - axis])
        before, here, after = (line[(peak[axis] + step) % length].item() for step in (-1, 0, 1))
        fine = peak[axis] + (before - after) / (2 * (before - 2 * here + after))
        found.append((fine + length / 2) % length - length / 2)
    return found[0], found[1]


def test_correlation_finds_a_known_shift(scene):
    picture = as_batch(scene.resize((96, 80)))
    down, right = shift_between(picture, picture.roll((2, -3), (1, 2)))
    assert abs(down - 2) < 0.1 and abs(right + 3) < 0.1


SIZES = [(64, 64), (96, 80), (203, 131), (75, 190), (67, 61), (333, 250)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [0, 256])
def test_identity_edit_keeps_size_and_place(nano, scene, size, side):
    """Through the autoencoder and back: no crop, no shift.

    What nano's small autoencoder draws wrongly moves the peak of one picture; the mean over its four mirror
    images cancels some of that, and nothing of a shift of ours.
    """
    picture = as_batch(scene.resize(size))
    mirrored = torch.cat([picture, picture.flip(1), picture.flip(2), picture.flip(1, 2)])
    found = edit_picture(nano, mirrored, strength=0.0, side=side)
    assert found.shape == mirrored.shape and (found - mirrored).abs().mean() < 0.05
    pairs = zip(mirrored, found, strict=True)
    shifts = torch.tensor([shift_between(a[None], b[None]) for a, b in pairs])
    drawn = max(1.0, (size[0] * size[1]) ** 0.5 / (side or SIDE))  # size of a drawn pixel
    down, right = (shifts.mean(0) / drawn).tolist()
    print(f"\n{size[0]}x{size[1]}, side {side}: shift {down:+.3f} {right:+.3f} of a drawn pixel")
    assert math.hypot(down, right) < 0.25


@pytest.mark.parametrize("size", SIZES)
def test_resizing_there_and_back_neither_shifts_nor_zooms(scene, size):
    """A perfect autoencoder in the middle: what remains is ours."""
    from tbac_uniimage.core.editing import drawing_size, resize

    picture = as_batch(scene.resize(size))
    back = resize(resize(picture, *drawing_size(size, 0, SIDE, FACTOR)), *size)
    width, height = size
    drawn = max(1.0, (width * height) ** 0.5 / SIDE)
    halves = {"whole": (0, 0), "lower half": (height // 2, 0), "right half": (0, width // 2)}
    for name, (top, left) in halves.items():  # a zoom would move the halves apart
        down, right = shift_between(picture[:, top:, left:], back[:, top:, left:])
        print(f"\n{width}x{height}, {name}: shift {down:+.4f} {right:+.4f} pixels")
        assert math.hypot(down, right) < 0.03 * drawn


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((100, 100), 0, (512, 512)),
        ((1000, 500), 0, (736, 352)),
        ((1024, 768), 4096, (1024, 768)),
        ((1000, 700), 4096, (992, 704)),
        ((2000, 1000), 512, (736, 352)),
        ((1, 1), 64, (32, 32)),
    ],
)
def test_drawing_size_keeps_proportions_within_the_budget(size, side, expected):
    from tbac_uniimage.core.editing import drawing_size

    found = drawing_size(size, side, native=512, factor=32)
    if side:
        assert found[0] * found[1] <= side * side
    assert found == expected


def test_edit_equals_the_python_pipeline(loaded, pipe, picture):
    from tbac_uniimage.core.requests import fit_size

    factor = loaded.vae.downscale_ratio
    size = fit_size(picture.size, loaded.mllm.size.native, factor)
    small = picture.resize(size)
    found = edit_picture(loaded, as_batch(small))
    expected = pipe(
        INSTRUCTION,
        small,
        guidance_scale=3.0,
        image_guidance_scale=2.0,
        num_inference_steps=STEPS,
        width=size[0],
        height=size[1],
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images.movedim(1, -1)
    error = largest(found, expected)
    print(f"\nImage Edit against the pipeline: {error:.2e}")
    assert error < 1e-3


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("few_steps", ["2", "4"])
def test_few_steps_are_those_of_ladder_sampler(loaded, picture, few_steps, strength):
    """Whatever stands above them; and of a strength below 1 all steps are made, from a level in between."""
    from tbac_uniimage.nodes.conditioning import LadderImageEdit
    from tbac_uniimage.nodes.sampling import LadderSampler

    size = [length * loaded.vae.downscale_ratio for length in (10, 6)]
    pixels = as_batch(picture.resize(size))
    positive, _, negative, latent = LadderImageEdit.execute(loaded.mllm, INSTRUCTION, pixels).result
    if strength < 1:
        latent = {"samples": loaded.vae.encode(pixels)}
    few = {"few_steps": few_steps, "denoise": strength}
    latents = LadderSampler.execute(loaded.model, positive, negative, latent, 7, 30, 4.5, 1.5, **few)
    decoded = loaded.vae.decode(latents.result[0]["samples"])
    if decoded.shape != pixels.shape:
        from tbac_uniimage.core.editing import resize

        decoded = resize(decoded, *size)
    found = edit_picture(loaded, pixels, steps=9, few_steps=few_steps, strength=strength)
    assert largest(found, decoded) < 1e-4
    assert largest(edit_picture(loaded, pixels, steps=int(few_steps), strength=strength), decoded) > 1e-3


def test_few_steps_equal_the_python_pipeline_and_cost_as_much(loaded, pipe, picture):
    """With the mask that the model finds: two conditions and eight rows for the map, then one a step."""
    from tbac_uniimage.core.requests import fit_size
    from tbac_uniimage.core.schedulers import euler_scheduler

    small = picture.resize(fit_size(picture.size, loaded.mllm.size.native, loaded.vae.downscale_ratio))
    rows, told, own = [], [], pipe.scheduler

    def before(module, inputs) -> None:
        rows.append(len(inputs[0]))

    def encoding(module, inputs) -> None:
        told.append(inputs[0].shape[1])

    hook = loaded.model.model.diffusion_model.register_forward_pre_hook(before)
    found = edit_picture(loaded, as_batch(small), mask_from="automatic", few_steps="4", context=100.0)
    hook.remove()
    assert sum(rows) == 8 + 4 and rows[-4:] == [1] * 4
    rows.clear()
    hooks = [pipe.transformer.register_forward_pre_hook(before)]
    hooks.append(pipe.connector.register_forward_pre_hook(encoding))
    pipe.register_modules(scheduler=euler_scheduler())
    expected = pipe(
        INSTRUCTION,
        small,
        mask="auto",
        guidance_scale=1.0,
        num_inference_steps=4,
        context=None,
        feather=8,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images.movedim(1, -1)
    pipe.register_modules(scheduler=own)
    for hook in hooks:
        hook.remove()
    assert (rows, told) == ([8, 1, 1, 1, 1], [2, 1])  # maps are of squares, and this is none
    assert largest(found, expected) < 0.5 / 255 + 1e-3  # the pipeline rounds to the picture's 8 bits


@pytest.mark.parametrize("image_guidance", [1.0, 1.5])
def test_edit_equals_the_graph_of_single_nodes(loaded, picture, image_guidance):
    from comfy_helpers import ladder_sample
    from tbac_uniimage.nodes.conditioning import LadderImageEdit

    size = [length * loaded.vae.downscale_ratio for length in (10, 6)]
    pixels = as_batch(picture.resize(size))
    positive, image_only, negative, latent = LadderImageEdit.execute(loaded.mllm, INSTRUCTION, pixels).result
    if image_guidance == 1:
        latents = ladder_sample(loaded.model, positive, image_only, latent, None, 3.0)
    else:
        latents = ladder_sample(loaded.model, positive, negative, latent, image_only, 3.0, image_guidance)
    decoded = loaded.vae.decode(latents)
    if decoded.shape != pixels.shape:
        from tbac_uniimage.core.editing import resize

        decoded = resize(decoded, *size)
    assert largest(edit_picture(loaded, pixels, image_g=image_guidance), decoded) < 1e-4


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("feather", [0, 1, 5, 40])
def test_outside_the_mask_every_bit_stays(loaded, channels, feather):
    picture = random_picture(1, 45, 61, channels)
    mask = left_half(45, 61)
    found = edit_picture(loaded, picture, steps=2, mask=mask, feather=feather)
    expected = picture.expand(1, 45, 61, 3) if channels == 1 else picture
    assert found.shape == expected.shape
    outside = mask[0] == 0
    assert torch.equal(found[0][outside], expected[0][outside])
    if channels == 4:
        assert torch.equal(found[..., 3], picture[..., 3])
    assert (found - expected)[0, ..., :3][~outside].abs().mean() > 0.01


def test_seam_lies_inside_the_mask_and_fades():
    from tbac_uniimage.core.editing import feathered, paste

    mask = left_half(32, 64)
    share = feathered(mask, 8)[0]
    assert (share[:, 32:] == 0).all() and (share[:, :22] == 1).all()
    steps = share[16, 20:33]
    assert (steps[1:] <= steps[:-1]).all() and (steps[:-1] - steps[1:]).max() < 0.25
    assert (share == share[:1]).all()  # the picture's own edges do not fade
    source, edited = torch.zeros(1, 32, 64, 3), torch.ones(1, 32, 64, 3)
    assert torch.equal(paste(source, edited, share[None])[0, ..., 0], share)


def test_thin_and_round_masks_are_feathered_by_their_depth():
    from tbac_uniimage.core.editing import feathered, inner_distance

    line = torch.zeros(1, 20, 20)
    line[:, 10] = 1
    assert torch.equal(feathered(line, 16), line)  # a line of one pixel stays whole
    rows, columns = torch.meshgrid(torch.arange(41) - 20.0, torch.arange(41) - 20.0, indexing="ij")
    radius = (rows**2 + columns**2).sqrt()
    depth = inner_distance(radius[None] < 15, 40)[0]
    assert (depth - (15 - radius).clamp(min=0)).abs().max() < 1.5  # round, not square
    assert depth[radius >= 15].max() == 0
    grey = torch.full((1, 8, 8), 0.5)
    assert torch.equal(feathered(grey, 4), grey)  # everything inside: no seam


def test_depth_inside_a_mask_is_exact():
    from tbac_uniimage.core.editing import inner_distance

    noise = torch.rand(1, 1, 30, 40, generator=torch.Generator().manual_seed(0))
    inside = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)[:, 0] < 0.53
    rows, columns = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    outside = (~inside[0]).nonzero().float()
    all_distances = (rows[..., None] - outside[:, 0]) ** 2 + (columns[..., None] - outside[:, 1]) ** 2
    expected = all_distances.amin(-1).sqrt()
    assert expected.max() > 6
    for limit in (4, 12):
        assert largest(inner_distance(inside, limit)[0], expected.clamp(max=limit)) < 1e-6


def test_a_batch_is_edited_picture_by_picture(loaded):
    batch = random_picture(3, 40, 56, 3)
    masks = torch.cat([left_half(40, 56), left_half(40, 56).flip(-1), torch.ones(1, 40, 56)])
    for mask in (None, masks, masks[:1]):
        together = edit_picture(loaded, batch, steps=2, mask=mask)
        assert together.shape == batch.shape
        for i in range(3):
            own = mask if mask is None or len(mask) == 1 else mask[i : i + 1]
            alone = edit_picture(loaded, batch[i : i + 1], steps=2, mask=own)
            assert largest(together[i : i + 1], alone) < 1e-4


def test_a_picture_of_a_batch_with_an_empty_mask_stays(loaded):
    batch = random_picture(2, 40, 40, 4)
    masks = torch.stack([torch.zeros(40, 40), torch.ones(40, 40)])
    found = edit_picture(loaded, batch, steps=2, mask=masks)
    assert torch.equal(found[0], batch[0]) and largest(found[1], batch[1]) > 0.01
    assert torch.equal(batch, random_picture(2, 40, 40, 4))  # the input itself is left alone


def test_further_pictures_count_for_all_or_for_each(loaded):
    batch, other = random_picture(2, 40, 40, 3), random_picture(2, 32, 24, 3).flip(1)
    shared = edit_picture(loaded, batch, steps=2, image_2=other[:1])
    each = edit_picture(loaded, batch, steps=2, image_2=other)
    plain = edit_picture(loaded, batch, steps=2)
    assert largest(shared[:1], each[:1]) < 1e-5
    assert largest(shared[1:], each[1:]) > 0
    assert largest(shared, plain) > 0


def test_less_strength_keeps_more(nano, scene):
    picture = as_batch(scene)
    differences = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        found = edit_picture(nano, picture, "remove the cactus", g=2.0, steps=8, strength=strength)
        differences.append((found - picture).abs().mean().item())
    print("\nmean difference to the source at strength 0, 0.3, 0.6, 1:", [f"{d:.4f}" for d in differences])
    assert differences[0] < differences[3]
    assert differences[1] <= differences[2] * 1.05


def test_masked_edit_removes_what_is_masked(nano, scene):
    picture = as_batch(scene)
    side = scene.width
    mask = left_half(side, side).flip(-1)
    found = edit_picture(nano, picture, "remove the cactus", steps=20, g=2.0, mask=mask, feather=4)
    assert torch.equal(found[:, :, : side // 2], picture[:, :, : side // 2])
    background, rows = picture[0, 0, 0], slice(side // 4, side * 3 // 4)
    was, now = ((p[0, rows, side // 2 + 4 :] - background).abs().amax(-1) > 0.15 for p in (picture, found))
    print(f"\ncactus pixels before and after: {was.sum()} {now.sum()}")
    assert now.sum() < 0.2 * was.sum()


def test_progress_covers_the_batch_and_previews_come(loaded, monkeypatch):
    import comfy.utils
    import latent_preview
    from comfy.cli_args import args

    seen = []
    monkeypatch.setattr(args, "preview_method", latent_preview.LatentPreviewMethod.Auto)
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, preview, **_: seen.append((value, total, preview)),
    )
    edit_picture(loaded, random_picture(2, 40, 40, 3), steps=3)
    sampling = [entry for entry in seen if entry[1] == 6]
    assert [value for value, _, _ in sampling] == [1, 2, 3, 4, 5, 6]
    assert all(preview is not None for *_, preview in sampling)


@pytest.mark.parametrize("moment", [1, 2, 4])
def test_interrupt_stops_at_the_step(loaded, monkeypatch, moment):
    import comfy.model_management as management
    import comfy.utils

    seen = []

    def hook(value, total, *_, **__):
        seen.append(value)
        if len(seen) == moment:
            management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(management.InterruptProcessingException):
        edit_picture(loaded, random_picture(2, 40, 40, 3), steps=3)
    assert len(seen) == moment
    monkeypatch.undo()
    assert edit_picture(loaded, random_picture(1, 40, 40, 3), steps=1).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.zeros(1, 0, 8, 3)}, "image has the shape [1, 0, 8, 3]"),
        ({"image": torch.zeros(1, 8, 8, 2)}, "image has 2 channels"),
        ({"image": torch.full((1, 8, 8, 3), torch.nan)}, "image holds values that are not finite"),
        ({"image": torch.zeros(1, 8, 2000, 3)}, "more than 200 times as long as wide"),
        ({"instruction": "  "}, "The instruction is empty"),
        ({"mask": torch.zeros(1, 64, 64)}, "The mask is empty"),
        ({"mask": torch.ones(1, 64, 200)}, "The mask is 200x64 and the picture 40x40"),
        ({"mask": torch.ones(3, 40, 40)}, "3 masks were given for 2 pictures"),
        ({"mask": torch.full((1, 40, 40), torch.inf)}, "The mask holds values that are not finite"),
        ({"image_2": torch.zeros(3, 8, 8, 3)}, "image_2 holds 3 pictures for 2 edits"),
        ({"few_steps": "3"}, "few_steps is '3'; choose off, 1, 2, 4, 8"),
        ({"mllm": None}, "mllm is that of another model"),
        ({"vae": None}, "vae is that of another model"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_computed(loaded, monkeypatch, changes, message):
    from tbac_uniimage.nodes.mllm import LadderMLLM

    monkeypatch.setattr(LadderMLLM, "encode", lambda *_: pytest.fail("encoded"))
    parts = SimpleNamespace(**vars(loaded))
    for name in ("mllm", "vae"):
        if name in changes:
            setattr(parts, name, changes[name])
    options = {name: value for name, value in changes.items() if name not in ("mllm", "vae", "image")}
    with pytest.raises(ValueError) as error:
        edit_picture(parts, changes.get("image", torch.zeros(2, 40, 40, 3)), **options)
    assert message in str(error.value) and str(error.value).count(". ") == 0


def test_numbers_that_are_no_numbers_are_refused(comfy):
    from tbac_uniimage.nodes.editing import LadderEdit

    good = {"seed": 0, "steps": 1, "guidance": 1.0, "image_guidance": 0.0, "strength": 0.5}
    assert LadderEdit.validate_inputs(**good) is True
    for name, value in (("guidance", math.nan), ("image_guidance", math.inf), ("strength", 1.5)):
        assert f"{name} is {value}" in LadderEdit.validate_inputs(**{**good, name: value})


def photograph(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """A large picture with detail everywhere: the scene, tiled."""
    from PIL import Image

    scene = as_batch(Image.open(SCENE).convert("RGB").resize((SIDE, SIDE)))[0]
    tile = scene.repeat(-(-height // SIDE), -(-width // SIDE), 1)
    alpha = random_picture(height, width, 1)
    return torch.cat([tile[:height, :width], alpha], -1)[None, ..., :channels]


def spots(height: int, width: int, *places: tuple[int, int], side: int = 40) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    for top, left in places:
        mask[:, top : top + side, left : left + side] = 1
    return mask


def test_a_small_part_of_a_large_picture_is_drawn_at_the_models_size(nano):
    """Through the autoencoder and back: what is lost within the mask, with crops and without."""
    scale = SIDE // 64
    height, width = 501 * scale, 403 * scale
    picture = photograph(height, width)
    mask = spots(height, width, (1, 1), (300 * scale, 250 * scale), side=40 * scale)
    inside = mask[0] > 0
    lost = {}
    for context in (0.5, 100.0):
        found = edit_picture(nano, picture, strength=0.0, mask=mask, context=context, feather=0)
        assert torch.equal(found[0][~inside], picture[0][~inside])
        lost[context] = (found - picture)[0][inside].square().mean().sqrt().item()
    print(f"\nlost in the mask: {lost[0.5]:.3f} in crops, {lost[100.0]:.3f} drawn as a whole")
    assert lost[0.5] < 0.06 and lost[100.0] > 2 * lost[0.5]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_outside_the_parts_of_a_large_picture_every_bit_stays(loaded, channels):
    picture = random_picture(2, 333, 251, channels)
    masks = torch.cat([spots(333, 251, (290, 1), (1, 200)), spots(333, 251, (150, 100))])
    found = edit_picture(loaded, picture, steps=2, mask=masks, context=0.5)
    expected = picture.expand(2, 333, 251, 3) if channels == 1 else picture
    assert torch.equal(found[masks == 0], expected[masks == 0])
    assert torch.equal(found[..., 3:], expected[..., 3:])
    for part in ((0, 295, 10), (0, 10, 210), (1, 160, 110)):  # each is another than it was
        i, top, left = part
        assert (found - expected)[i, top : top + 20, left : left + 20, :3].abs().mean() > 0.01
    alone = edit_picture(loaded, picture[1:], steps=2, mask=masks[1:], context=0.5)
    assert largest(found[1:], alone) < 1e-4


def test_the_language_model_sees_what_is_drawn(loaded, monkeypatch):
    """And a large picture is never copied as a whole for it."""
    from tbac_uniimage.nodes import edit_inputs
    from tbac_uniimage.nodes.mllm import LadderMLLM

    seen, encode = [], LadderMLLM.encode
    copied, to_pil = [], edit_inputs.to_pil
    monkeypatch.setattr(
        edit_inputs, "to_pil", lambda pixels: copied.append(pixels.shape[1:3]) or to_pil(pixels)
    )

    def watched(self, prompts, images):
        seen.append([[image.size for image in group] for group in images])
        return encode(self, prompts, images)

    monkeypatch.setattr(LadderMLLM, "encode", watched)
    picture, other = photograph(400, 500), random_picture(1, 30, 20, 3)
    mask = spots(400, 500, (1, 1), (300, 420), side=80)
    edit_picture(loaded, picture, steps=1, mask=mask, context=0.5, image_2=other)
    sizes = {tuple(group) for group in seen[0]}
    assert sizes == {((160, 160), (20, 30))} and set(copied) == {(160, 160), (30, 20)}
    seen.clear()
    edit_picture(loaded, picture, steps=1, mask=mask, context=100.0)
    assert {tuple(group) for group in seen[0]} == {((500, 400),)}
