"""Crops around the parts of a mask: where they lie, and that what comes back lies where it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import profiles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.core import repainting
from tbac_uniimage.core.crops import MOST_ASPECT, Crop, crop_box, lengths, overlap, plan_crops, stitch
from tbac_uniimage.core.editing import drawing_size, feathered, resize
from tbac_uniimage.core.encoder import LadderEncoder
from tbac_uniimage.core.originals import lay_in, make_originals
from tbac_uniimage.core.requests import fit_size
from tbac_uniimage.core.rgb import to_rgb, to_rgba

SIDE, FACTOR = 64, 8


def mask_of(height: int, width: int, *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """A mask of boxes, each its top, left, bottom and right."""
    mask = torch.zeros(height, width)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = 1
    return mask


def edges(box: tuple[slice, slice]) -> tuple[int, int, int, int]:
    rows, columns = box
    return rows.start, columns.start, rows.stop, columns.stop


def is_in(inner: tuple[slice, slice], outer: tuple[slice, slice]) -> bool:
    return all(o.start <= i.start and i.stop <= o.stop for i, o in zip(inner, outer, strict=True))


@st.composite
def masks(draw) -> torch.Tensor:
    """Up to five boxes in a picture of any form; some overlap, some lie apart, some at an edge."""
    height, width = draw(st.integers(1, 500)), draw(st.integers(1, 500))
    boxes = []
    for _ in range(draw(st.integers(1, 5))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        boxes.append((top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))))
    return mask_of(height, width, *boxes)


contexts = st.one_of(st.floats(0, 4), st.just(math.inf))


@given(masks(), contexts, st.sampled_from([(64, 8), (512, 32), (96, 16)]))
def test_crops_cover_the_mask_once_and_lie_in_the_picture(mask, context, model):
    crops = plan_crops(mask, context, *model)
    covered = torch.zeros_like(mask)
    for crop in crops:
        covered[crop.part] += 1
        assert is_in(crop.part, crop.box) and min(lengths(crop.part)) > 0
        top, left, bottom, right = edges(crop.box)
        assert torch.count_nonzero(mask[crop.box]) == torch.count_nonzero(mask[crop.part])
        assert top >= 0 and left >= 0 and bottom <= mask.shape[0] and right <= mask.shape[1]
    assert torch.equal(covered > 0, (covered > 0) | (mask > 0)) and covered.max() == 1
    assert sum(mask[crop.part].sum() for crop in crops) == mask.sum()


@given(masks(), contexts)
def test_a_crop_has_the_proportions_that_it_is_drawn_in(mask, context):
    """Within a pixel, where neither the picture nor the part itself stands in the way."""
    for crop in plan_crops(mask, context, SIDE, FACTOR):
        height, width = lengths(crop.box)
        if height in (mask.shape[0], lengths(crop.part)[0]) or width in (
            mask.shape[1],
            lengths(crop.part)[1],
        ):
            continue
        across, down = fit_size((width, height), SIDE, FACTOR)
        assert max(width, height) <= 1.25 * MOST_ASPECT * min(width, height)  # 1.25: a step of the factor
        assert abs(height * across / down - width) <= 0.5 * (1 + across / down)


@given(masks(), st.floats(0, 2), st.floats(0, 2))
def test_more_context_is_never_a_smaller_crop(mask, context, further):
    part = plan_crops(mask, math.inf, SIDE, FACTOR)[0].part
    size = mask.shape[0], mask.shape[1]
    small, large = (crop_box(part, size, c, SIDE, FACTOR) for c in (context, context + further))
    # the proportions go in steps of the factor, an eighth of a side here
    assert all(b >= a * 0.85 - 1 for a, b in zip(lengths(small), lengths(large), strict=True))


def test_parts_that_lie_apart_have_crops_of_their_own():
    mask = mask_of(1000, 1500, (100, 100, 160, 160), (800, 1200, 860, 1260))
    first, second = plan_crops(mask, 0.5, SIDE, FACTOR)
    assert edges(first.part) == (100, 100, 160, 160) and edges(second.part) == (800, 1200, 860, 1260)
    assert edges(first.box) == (70, 70, 190, 190) and edges(second.box) == (770, 1170, 890, 1290)


def test_parts_that_lie_near_are_drawn_together():
    mask = mask_of(1000, 1500, (100, 100, 160, 160), (110, 180, 160, 240))
    [crop] = plan_crops(mask, 0.5, SIDE, FACTOR)
    assert edges(crop.part) == (100, 100, 160, 240)
    [ring] = plan_crops(mask_of(900, 900, (100, 100, 800, 110), (790, 100, 800, 800)), 0.0, SIDE, FACTOR)
    assert edges(ring.part) == (100, 100, 800, 800)


def test_a_part_in_the_box_of_another_is_drawn_with_it():
    frame = mask_of(900, 900, (0, 0, 900, 900)) - mask_of(900, 900, (20, 20, 880, 880))
    [crop] = plan_crops(frame + mask_of(900, 900, (440, 440, 450, 450)), 0.5, SIDE, FACTOR)
    assert edges(crop.part) == edges(crop.box) == (0, 0, 900, 900)


def test_a_mask_of_specks_is_a_few_crops():
    specks = (torch.rand(1200, 1600, generator=torch.Generator().manual_seed(0)) < 2e-4).float()
    crops = plan_crops(specks, 0.5, SIDE, FACTOR)
    assert 1 <= len(crops) <= 16
    assert sum(specks[crop.part].sum() for crop in crops) == specks.sum()
    assert not any(overlap(a.part, b.part) for i, a in enumerate(crops) for b in crops[i + 1 :])


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ((0, 0, 300, 300), (0, 0, 600, 600)),  # in a corner: moved inwards, as large as elsewhere
        ((2700, 3700, 3000, 4000), (2400, 3400, 3000, 4000)),
        ((1000, 2000, 1300, 2300), (850, 1850, 1450, 2450)),
        ((1, 1, 301, 301), (0, 0, 600, 600)),
        ((1500, 1500, 1510, 1510), (1249, 1249, 1761, 1761)),  # small: the model's size
        ((100, 100, 2900, 3900), (0, 0, 3000, 4000)),
    ],
)
def test_crops_of_a_photograph(part, expected):
    [crop] = plan_crops(mask_of(3000, 4000, part), 0.5, 512, 32)
    assert edges(crop.box) == expected


def test_a_line_gets_surroundings_and_a_narrow_picture_gives_what_it_has():
    [line] = plan_crops(mask_of(3000, 4000, (1500, 1000, 1510, 2000)), 0.5, 512, 32)
    assert lengths(line.box) == (1010, 2112)
    [narrow] = plan_crops(mask_of(300, 4000, (0, 1000, 300, 1400)), 4.0, 512, 32)
    assert lengths(narrow.box) == (300, 627)
    [wide] = plan_crops(mask_of(300, 4000, (0, 10, 300, 3990)), 0.5, 512, 32)
    assert is_in(wide.part, wide.box) and lengths(wide.box)[0] == 300


def test_no_mask_no_crop_and_much_context_is_the_picture():
    assert plan_crops(torch.zeros(40, 50), 0.5, SIDE, FACTOR) == []
    [crop] = plan_crops(mask_of(301, 457, (20, 30, 22, 33)), math.inf, SIDE, FACTOR)
    assert edges(crop.box) == (0, 0, 301, 457)
    [panorama] = plan_crops(mask_of(300, 4000, (20, 30, 22, 33)), math.inf, SIDE, FACTOR)
    assert edges(panorama.box) == (0, 0, 300, 4000)


def smooth(height: int, width: int, channels: int) -> torch.Tensor:
    """A picture that a smaller one can hold: waves of 40 pixels and more, up to its edges."""
    rows, columns = torch.meshgrid(torch.arange(height) / 40, torch.arange(width) / 50, indexing="ij")
    waves = [
        (0.4 * torch.sin(6.28 * (a * rows + b * columns) + a)) for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.8))
    ]
    colours = torch.stack(waves, -1) + 0.5
    alpha = (rows[..., None] * 97 + columns[..., None] * 31) % 1
    return torch.cat([colours, alpha], -1)[..., :channels].contiguous()


def stitched(picture: torch.Tensor, crop: Crop, mask: torch.Tensor) -> torch.Tensor:
    """An edit that changes nothing: cut, scaled to the drawn size, scaled back, laid in."""
    height, width = lengths(crop.box)
    drawn = resize(
        picture[None, crop.box[0], crop.box[1], :3], *drawing_size((width, height), 0, SIDE, FACTOR)
    )
    result = picture.clone()
    stitch(result[None], drawn, crop, mask, feather=4)
    return result


PARTS = [
    (1, 1, 90, 90),
    (0, 0, 90, 90),
    (331 - 91, 457 - 91, 331 - 1, 457 - 1),
    (331 - 90, 457 - 90, 331, 457),
    (120, 1, 200, 81),
    (100, 200, 187, 263),
    (0, 0, 331, 457),
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("channels", [3, 4])
def test_an_identity_edit_shifts_nothing(part, channels):
    """Drawn at up to a sixth of its size, a wave of 40 pixels comes back within 1/50 of its height.

    Laid in one pixel beside its place it would not.
    """
    picture = smooth(331, 457, channels)
    mask = mask_of(331, 457, part)
    [crop] = plan_crops(mask, 0.0 if part != PARTS[-1] else 1.0, SIDE, FACTOR)
    found = stitched(picture, crop, mask)
    assert torch.equal(found[mask == 0], picture[mask == 0])
    assert torch.equal(found[..., 3:], picture[..., 3:])
    # the mean offset of a wave that moved is its slope times the shift
    rows, columns = crop.part
    there, here = (p[rows, columns, :3].double() for p in (found, picture))
    for axis in (0, 1):
        slope = torch.gradient(here, dim=axis)[0]
        shift = -((there - here) * slope).sum() / slope.square().sum()
        assert abs(shift) < 0.05
    if part != PARTS[-1]:
        assert (there - here).abs().max() < 0.03


def test_a_shift_of_one_pixel_would_be_seen():
    picture = smooth(331, 457, 3)
    moved = picture.roll(1, 0)[100:187, 200:263].double()
    slope = torch.gradient(picture[100:187, 200:263].double(), dim=0)[0]
    shift = -((moved - picture[100:187, 200:263]) * slope).sum() / slope.square().sum()
    assert abs(shift - 1) < 0.1


def test_the_seam_lies_inside_the_part():
    picture = torch.zeros(200, 300, 3)
    mask = mask_of(200, 300, (60, 80, 120, 160))
    share = feathered(mask[None], 8)[0]
    [crop] = plan_crops(mask, 0.5, SIDE, FACTOR)
    stitch(picture[None], torch.ones(1, 64, 64, 3), crop, mask, feather=8)
    assert (picture - share[..., None]).abs().max() < 1e-6 and not picture[share == 0].any()
    assert picture[90, 120, 0] == 1 and 0 < picture[61, 120, 0] < 0.2


def photograph(mode: str = "RGB", size: tuple[int, int] = (403, 301), seed: int = 0) -> Image.Image:
    """A picture larger than the tiny model's 64 pixels, with detail everywhere."""
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), np.uint8)
    picture = Image.fromarray(values)
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


APART = mask_of(301, 403, (1, 1, 41, 51), (240, 350, 301, 403))


def edit(pipe, image, prompt="make it red", seed=1, **options):
    settings = {"guidance_scale": 3.0, "image_guidance_scale": 1.5, "num_inference_steps": 1}
    return pipe(prompt, image, generator=torch.Generator().manual_seed(seed), **settings | options)


@contextmanager
def watched(pipe) -> Iterator[list[tuple[str, object]]]:
    """``("drawn", (height, width))`` of what the autoencoder encodes, ``("seen", size)`` of what is read."""
    seen: list[tuple[str, object]] = []
    encode, read = pipe.vae.encode, LadderEncoder.__call__
    pipe.vae.encode = lambda x: seen.append(("drawn", tuple(x.shape[2:]))) or encode(x)
    LadderEncoder.__call__ = lambda self, prompts, images: (
        seen.append(("seen", images[-1][0].size)) or read(self, prompts, images)
    )
    try:
        yield seen
    finally:
        pipe.vae.encode, LadderEncoder.__call__ = encode, read


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_the_pipeline_draws_parts_at_the_models_size(pipe, mode):
    picture = photograph(mode)
    with watched(pipe) as seen:
        [found] = edit(pipe, picture, mask=APART.numpy(), context=0.5).images
    assert seen == [("seen", (100, 100)), ("drawn", (64, 64)), ("seen", (122, 122)), ("drawn", (64, 64))]
    expected = picture if mode == "RGBA" else picture.convert("RGB")
    assert (found.size, found.mode) == (expected.size, expected.mode)
    before, after = np.asarray(expected), np.asarray(found)
    assert np.array_equal(after[APART == 0], before[APART == 0])
    assert np.array_equal(after[..., 3:], before[..., 3:])
    for box in ((slice(10, 30), slice(10, 40)), (slice(260, 290), slice(370, 400))):
        assert (after[box] != before[box]).mean() > 0.3


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"context": None}, (56, 72)),
        ({"context": math.inf}, (56, 72)),
        ({"width": 64, "height": 48}, (48, 64)),
        ({"output_type": "latent"}, (56, 72)),
    ],
)
def test_the_whole_picture_is_drawn_where_that_is_wanted(pipe, options, drawn):
    with watched(pipe) as seen:
        edit(pipe, photograph(), mask=APART.numpy(), **options)
    assert seen == [("seen", (403, 301)), ("drawn", drawn)]


def test_parts_depend_on_nothing_else(pipe):
    """The noise of a part comes from the call's generator, in the order of the parts."""
    picture = photograph()
    both = np.asarray(edit(pipe, picture, mask=APART.numpy()).images[0])
    first = np.asarray(edit(pipe, picture, mask=APART.numpy() * (np.arange(301) < 100)[:, None]).images[0])
    assert np.array_equal(both[:100], first[:100])
    two = [photograph(), photograph("RGBA", (200, 350), seed=1)]
    masks = [APART.numpy(), mask_of(350, 200, (100, 100, 140, 140)).numpy()]
    settings = {"num_inference_steps": 1, "num_images_per_prompt": 2}
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    together = pipe(["make it red", "add a cat"], two, mask=masks, generator=seeds, **settings).images
    seeds = [torch.Generator().manual_seed(seed) for seed in (2, 3)]
    alone = pipe("add a cat", two[1], mask=masks[1], generator=seeds, **settings).images
    assert [one.tobytes() for one in together[2:]] == [one.tobytes() for one in alone]
    assert together[0].tobytes() != together[1].tobytes()


def test_the_map_is_of_the_whole_picture_and_its_parts_are_drawn(pipe, monkeypatch):
    cells = torch.zeros(8, 8, dtype=torch.bool)
    cells[1, 6] = True
    monkeypatch.setattr(repainting, "changed_cells", lambda change: cells)
    picture = photograph(size=(480, 480))
    with watched(pipe) as seen:
        output = edit(pipe, picture, mask="auto", context=0.5)
    assert seen == [("seen", (480, 480)), ("drawn", (64, 64)), ("seen", (120, 120)), ("drawn", (64, 64))]
    outside = np.asarray(output.masks[0]) == 0
    assert np.array_equal(~outside, mask_of(480, 480, (60, 360, 120, 420)) > 0)
    assert np.array_equal(np.asarray(output.images[0])[outside], np.asarray(picture)[outside])


def test_an_interrupted_edit_leaves_what_was_not_begun(pipe):
    picture = photograph()

    def stop(pipeline, step, timestep, values):
        pipeline._interrupt = True
        return {}

    [found] = edit(pipe, picture, mask=APART.numpy(), callback_on_step_end=stop).images
    changed = (np.asarray(found) != np.asarray(picture)).any(-1)
    assert changed[:100].any() and not changed[100:].any()


@pytest.mark.parametrize("context", [-1, math.nan, "much"])
def test_a_context_that_cannot_be_is_refused(pipe, context):
    with pytest.raises(ValueError, match=f"context is {context}"):
        edit(pipe, photograph(), mask=APART.numpy(), context=context)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pictures_stay_in_the_colours_of_their_profile(pipe, mode):
    """Outside of the mask every number stays, and what is drawn is what it would be in sRGB."""
    picture, profile = photograph(mode), profiles.rgb()
    plain = edit(pipe, to_rgba(tagged(picture, profile)), mask=APART.numpy()).images[0]
    [found] = edit(pipe, tagged(picture, profile), mask=APART.numpy()).images
    assert found.info["icc_profile"] == profile and found.mode == mode
    outside = APART.numpy() == 0
    assert np.array_equal(np.asarray(found)[outside], np.asarray(picture)[outside])
    moved = np.asarray(to_rgba(found)).astype(int) - np.asarray(plain)
    inside = np.abs(moved[260:290, 370:400, :3])
    assert inside.mean() < 2 and np.abs(np.asarray(found).astype(int) - np.asarray(plain))[outside].max() > 20
    again = edit(pipe, found, mask=APART.numpy()).images[0]
    assert np.array_equal(np.asarray(again)[outside], np.asarray(picture)[outside])


def test_profiles_that_lead_nowhere_are_passed_over(pipe):
    picture = photograph()
    for profile in (b"broken", profiles.grey(2.2)):
        [found] = edit(pipe, tagged(picture, profile), mask=APART.numpy()).images
        assert "icc_profile" not in found.info
        assert np.array_equal(np.asarray(found)[APART == 0], np.asarray(picture)[APART == 0])
    values = edit(pipe, tagged(picture, profiles.rgb()), mask=APART.numpy(), output_type="np").images[0]
    expected = np.asarray(to_rgb(tagged(picture, profiles.rgb()))) / np.float32(255)  # arrays have no profile
    assert np.array_equal(values[APART == 0], expected[APART == 0])


def tagged(picture: Image.Image, profile: bytes) -> Image.Image:
    picture = picture.copy()
    picture.info["icc_profile"] = profile
    return picture


def kinds() -> dict[str, object]:
    random = np.random.default_rng(0)
    return {
        "8 bits": random.integers(0, 256, (61, 45, 3), np.uint8),
        "16 bits with alpha": random.integers(0, 65536, (61, 45, 4), np.uint16),
        "16 bits, grey": random.integers(0, 65536, (61, 45), np.uint16),
        "black and white": random.integers(0, 2, (61, 45)).astype(bool),
        "floating point": random.random((61, 45, 3)),
        "a tensor": torch.from_numpy(random.random((3, 61, 45), np.float32)),
        "RGBA": Image.fromarray(random.integers(0, 256, (61, 45, 4), np.uint8)),
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("results", [1, 2])
def test_pictures_of_every_kind_keep_their_own_bits(kind, results):
    mask = mask_of(61, 45, (10, 5, 30, 25))
    given = kinds()[kind]
    [original] = make_originals([given], [Image.new("RGB", (45, 61))], mask)
    pixels = original.copies(results)
    before = pixels.copy()
    [crop] = plan_crops(mask, 0.2, 16, 8)
    lay_in(pixels, torch.rand(results, 16, 16, 3), crop, mask, feather=2)
    outside = mask.numpy() == 0
    assert np.array_equal(pixels[:, outside], before[:, outside])
    assert np.array_equal(pixels[..., 3:], before[..., 3:])
    assert (pixels[:, ~outside, :3] != before[:, ~outside, :3]).mean() > 0.9
    if isinstance(given, np.ndarray):
        assert np.array_equal(given, kinds()[kind])  # the user's own is left alone
