"""Change maps: the arithmetic by values, masks of whole cells at any size, what the embedded model finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nano_models import CELLS
from PIL import Image
from tbac_uniimage.core import LadderPipeline, change_map
from tbac_uniimage.core.crops import Crop, whole
from tbac_uniimage.core.editing import latent_mask

ROOT = Path(__file__).resolve().parent.parent


def test_mixtures_are_the_source_with_the_same_noise_always():
    source = torch.randn(3, 4, 5)
    mixed, levels = change_map.mixtures(source)
    again, _ = change_map.mixtures(source + 1)
    assert levels.tolist() == pytest.approx(list(change_map.LEVELS)) and mixed.shape == (len(levels), 3, 4, 5)
    share = 1 - levels[:, None, None, None]
    torch.testing.assert_close(again - mixed, share.expand_as(mixed))
    noise = (mixed - share * source) / levels[:, None, None, None]
    assert 0.8 < noise.std() < 1.2 and not torch.equal(noise[0], noise[1])
    assert len(change_map.LEVELS) * 2 == change_map.EVALUATIONS


def test_differences_are_averaged_before_they_are_measured():
    plain = torch.zeros(2, 2, 3, 3)
    prompted = torch.zeros(2, 2, 3, 3)
    prompted[:, :, 0, 0] = torch.tensor([3.0, 1.0])  # the same in both draws
    prompted[0, :, 2, 2], prompted[1, :, 2, 2] = 5.0, -5.0  # noise
    found = change_map.differences(plain, prompted)
    assert found[0, 0].item() == pytest.approx(5**0.5) and found.count_nonzero() == 1
    smooth = change_map.change_map(plain, prompted)
    expected = torch.tensor([[1 / 4, 1 / 6, 0], [1 / 6, 1 / 9, 0], [0, 0, 0]]) * 4
    torch.testing.assert_close(smooth, expected)


def test_cells_above_the_share_change_and_most_are_all():
    change = torch.zeros(8, 8)
    change[2:4, 2:5] = 1
    change[5, 5] = change_map.SHARE - 0.01
    cells = change_map.changed_cells(change)
    assert cells.sum() == 6 and cells[2:4, 2:5].all()
    most = torch.zeros(8, 8)
    most[: int(8 * change_map.EVERYTHING) + 1] = 1
    assert change_map.changed_cells(most).all()
    assert not change_map.changed_cells(torch.zeros(8, 8)).any()


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 90), st.integers(0, 90), st.integers(0, 2**32 - 1)
)
def test_a_mask_touches_the_cells_that_it_was_made_of_and_no_other(rows, columns, taller, wider, seed):
    cells = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask = change_map.mask_of_cells(cells, 2 * rows + taller, 2 * columns + wider)
    assert mask.shape == (2 * rows + taller, 2 * columns + wider) and set(mask.unique().tolist()) <= {
        0.0,
        1.0,
    }
    assert torch.equal(latent_mask(mask[None], rows, columns)[0, 0] > 0, cells)


def test_a_picture_of_fewer_pixels_than_cells_keeps_what_changes():
    cells = torch.zeros(8, 8, dtype=torch.bool)
    cells[7, 7] = True
    mask = change_map.mask_of_cells(cells, 3, 2)
    assert mask.tolist() == [[0, 0], [0, 0], [0, 1]]


def test_a_mask_is_narrowed_to_what_was_drawn_otherwise():
    old = torch.full((32, 32, 3), 0.2)
    new = old.clone()
    new[4:12, 4:8, 1] = 1.0  # surely another colour
    new[4:12, 8:12] = 0.45  # and, beside it, one that is a little different
    new[20:28, 4:12] = 0.5  # drawn again, not quite as it was
    new[20:28, 20:28] = 0.7  # a second place that changed
    mask = torch.ones(32, 32)
    mask[:, 30:] = 0
    mask[21] = 0
    found = change_map.narrowed(mask, [whole(32, 32)], [new], [old], cell=8)
    for rows, columns in ((slice(4, 12), slice(4, 11)), (slice(20, 28), slice(20, 28))):
        assert torch.equal(found[rows, columns], mask[rows, columns])
        found[rows.start - 3 : rows.stop + 3, columns.start - 3 : columns.stop + 3] = 0  # blurred, then grown
    assert found.sum() == 0
    assert change_map.narrowed(mask, [whole(32, 32)], [old], [old], cell=8).sum() == 0


def test_crops_are_compared_with_each_other_and_what_is_not_drawn_stays():
    mask = torch.zeros(40, 80)
    mask[8:32, 8:32] = mask[8:32, 48:72] = mask[0, 0] = 1
    crops = [Crop((slice(4, 36), slice(x - 4, x + 28)), (slice(8, 32), slice(x, x + 24))) for x in (8, 48)]
    old = torch.zeros(64, 64, 3)  # drawn at twice their size
    strong, weak = old.clone(), old.clone()
    strong[20:44, 20:44], weak[20:44, 20:44] = 0.9, 0.3
    found = change_map.narrowed(mask, crops, [strong, weak], [old, old], cell=16)
    assert found[0, 0] == 1 and found[8:32, 48:72].sum() == 0
    rows, columns = found[8:32, 8:32].nonzero().T
    assert 3 <= rows.min() == columns.min() <= 6 and 17 <= rows.max() == columns.max() <= 20


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 32), st.integers(0, 2**32 - 1))
def test_narrowing_takes_away_and_adds_nothing(height, width, cell, seed):
    random = torch.Generator().manual_seed(seed)
    mask = (torch.rand(height, width, generator=random) - 0.3).clamp(min=0)
    new, old = torch.rand(2, 24, 16, 3, generator=random)
    found = change_map.narrowed(mask, [whole(height, width)], [new], [old], cell)
    assert ((found == mask) | (found == 0)).all()


@pytest.fixture(scope="module")
def nano():
    pipeline = LadderPipeline.from_pretrained(ROOT / "assets" / "nano")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def scene():
    """A rocket to the left of a cactus."""
    return Image.open(ROOT / "assets" / "samples" / "tbac_uniimage_scene.png").convert("RGB")


def test_the_embedded_model_finds_what_is_named(nano, scene):
    texts = ["remove the cactus", "remove the rocket", "change the background to blue"]
    right, left, everywhere = (np.asarray(nano.change_map(text, scene).masks[0]) > 0 for text in texts)
    assert everywhere.all()
    for found, other in ((right, left), (left, right)):
        assert 0.1 < found.mean() < 0.6 and (found & other).mean() < 0.1
    middle = scene.width // 2
    assert right[:, middle:].mean() > 4 * right[:, :middle].mean()
    assert left[:, :middle].mean() > 4 * left[:, middle:].mean()


def test_what_is_only_drawn_again_stays_in_every_result(nano, scene):
    options = {"num_inference_steps": 4, "num_images_per_prompt": 2, "feather": 0}
    text, random = "remove the cactus", lambda: torch.Generator().manual_seed(1)
    found = nano(text, image=scene, mask="auto", generator=random(), **options)
    [mask] = {mask.tobytes() for mask in found.masks}
    assert mask == nano.change_map(text, scene).masks[0].tobytes()
    by_hand = nano(text, image=scene, mask=found.masks[0], generator=random(), **options)
    source, inside = np.asarray(scene).astype(int), np.asarray(found.masks[0]) > 0
    changed = [(np.asarray(image) != source).any(-1) for image in found.images]
    for image, drawn, places in zip(found.images, by_hand.images, changed, strict=True):
        assert 0.1 < places[inside].mean() < 0.9 and not places[~inside].any()
        assert np.array_equal(np.asarray(image)[places], np.asarray(drawn)[places])
        again = np.abs(np.asarray(drawn) - source)
        assert again[inside & ~places].mean() < again[places].mean() / 2
    assert not np.array_equal(*changed)
    cactus = np.abs(source - source[0, 0]).max(-1) > 60
    cactus[:, : scene.width // 2] = False  # the rocket
    assert changed[0][cactus].mean() > 0.97


def test_an_instruction_that_says_nothing_changes_no_pixel(nano, scene):
    found = nano(
        "remove the cactus",
        negative_prompt="remove the cactus",
        image=scene,
        mask="auto",
        num_inference_steps=2,
    )
    assert np.array_equal(np.asarray(found.images[0]), np.asarray(scene))
    assert not np.asarray(found.masks[0]).any()


def test_in_a_wide_picture_the_model_finds_it_too(nano, scene):
    wide = scene.resize((scene.width * 4 // 3, scene.height), Image.BICUBIC)
    output = nano.change_map("remove the rocket", wide)
    found = np.asarray(output.masks[0]) > 0
    assert output.maps[0].shape == (CELLS, CELLS) and found.shape == (wide.height, wide.width)
    middle = wide.width // 2
    assert found.mean() < 0.4 and found[:, :middle].mean() > 4 * found[:, middle:].mean()


def test_what_asks_for_nothing_changes_nothing(nano, scene):
    output = nano("", scene, mask="auto", num_inference_steps=1)
    assert not np.asarray(output.masks[0]).any()
    assert np.array_equal(np.asarray(output.images[0]), np.asarray(scene))
