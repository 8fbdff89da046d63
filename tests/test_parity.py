"""Every recorded case of the authors' code (see parity.py), and the comparison itself."""

from pathlib import Path

import pytest
import torch
from parity import Parity, failures

FOLDER = Path(__file__).parent / "data" / "parity"


@pytest.fixture(scope="module")
def recorded():
    return Parity(FOLDER)


CASES = [
    "text_to_image",
    "text_to_image_negative",
    "edit_one_image",
    "edit_tall_image",
    "edit_square_image",
    "edit_text_guidance_only",
    "two_input_images",
    "truncated_prompt",
    "train_text_to_image",
    "train_edit",
]


def test_every_case_is_listed(recorded):
    assert sorted(recorded.cases) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_case(recorded, name):
    recorded.errors.clear()
    recorded.run(name)
    expected = {"token ids", "masks"}
    expected |= (
        {"training loss (relative)", "gradients (relative)"}
        if name.startswith("train")
        else {"conditions", "first predictions", "timesteps", "final latents", "images"}
    )
    assert expected <= set(recorded.errors)
    assert failures(recorded.errors) == []


def test_the_comparison_can_fail(recorded):
    key = "text_to_image.latents"
    for change in (2e-3, float("nan")):
        recorded.errors.clear()
        recorded.compare("final latents", recorded.recorded[key] + change, key)
        assert failures(recorded.errors) == ["final latents"]
    recorded.errors.clear()
    recorded.compare("token ids", torch.zeros(1, 2, dtype=torch.long), "text_to_image.input_ids")
    assert failures(recorded.errors) == ["token ids"]
