"""Guidance arithmetic, and the order in which branches are stacked."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.core.guidance import Guidance, branch_inputs

scale = st.floats(0, 30, allow_nan=False)


@given(scale, scale, st.integers(1, 3))
def test_formulas(text, image, batch):
    torch.manual_seed(batch)
    nothing, pictured, both = torch.randn(3, batch, 2, 3, 3, dtype=torch.float64)
    guidance = Guidance(text, image)
    two = guidance.combine(torch.cat([pictured, both]), 2)
    torch.testing.assert_close(two, (1 - text) * pictured + text * both)
    three = guidance.combine(torch.cat([nothing, pictured, both]), 3)
    expected = (1 - image) * nothing + (image - text) * pictured + text * both
    torch.testing.assert_close(three, expected)
    assert torch.equal(guidance.combine(both, 1), both)


def test_number_of_branches():
    assert Guidance(4.5).num_branches(has_images=False) == 2
    assert Guidance(1.0).num_branches(has_images=False) == 1
    assert Guidance(1.0, 1.0).num_branches(has_images=True) == 1
    assert Guidance(3.0, 1.0).num_branches(has_images=True) == 2
    assert Guidance(3.0, 1.5).num_branches(has_images=True) == 3
    assert Guidance(1.0, 1.5).num_branches(has_images=True) == 3
    assert Guidance(3.0, 1.5).num_branches(has_images=False) == 2


def test_order_of_branches():
    image = Image.new("RGB", (6, 4), "red")
    prompts, images = branch_inputs(["a", "b"], ["n", "m"], [[image], [image]], 3)
    assert prompts == ["n", "m", "n", "m", "a", "b"]
    assert [group[0].getpixel((0, 0)) for group in images] == [(0, 0, 0)] * 2 + [(255, 0, 0)] * 4
    assert {group[0].size for group in images} == {(6, 4)}
    assert branch_inputs(["a"], ["n"], None, 2) == (["n", "a"], None)
    assert branch_inputs(["a"], ["n"], None, 1) == (["a"], None)


def test_interval_counts_steps_from_the_noisy_end():
    guidance = Guidance(interval=(0.2, 0.6))
    assert [guidance.is_active(i, 10) for i in range(10)] == [False] * 2 + [True] * 4 + [False] * 4
    assert all(Guidance().is_active(i, 7) for i in range(7))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": float("nan")}, "guidance_scale is nan"),
        ({"text": -1.0}, "guidance_scale is -1.0"),
        ({"image": float("inf")}, "image_guidance_scale is inf"),
        ({"interval": (0.5, 0.5)}, "guidance_interval is"),
        ({"interval": (0.0, 1.5)}, "guidance_interval is"),
    ],
)
def test_bad_values_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Guidance(**arguments)
