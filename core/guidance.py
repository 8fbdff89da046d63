"""Classifier-free guidance for text-to-image and for editing (DESIGN "Guidance").

A guided step evaluates several branches as one batch, branch by branch:

=============================  ==============================================================
text to image                  negative prompt, prompt
editing, text guidance only    image + negative prompt, image + prompt
editing, both                  black image + negative prompt, image + negative prompt, image + prompt
no guidance                    prompt (with its image)
=============================  ==============================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from PIL import Image


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt and the input image steer.

    Attributes:
        text: scale of the prompt against the negative prompt; 1 = no guidance.
        image: scale of the input images against black ones; 1 = no image guidance. Editing only.
        interval: part of the steps that is guided, from 0 (first step) to 1 (end); the others run the
            prompt's branch alone (Kynkäänniemi et al. 2024).

    Raises:
        ValueError: a scale that is not a finite number of at least 0, or an interval outside 0 … 1.
    """

    text: float = 4.5
    image: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name, value in (("guidance_scale", self.text), ("image_guidance_scale", self.image)):
            if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise ValueError(
                    f"{name} is {value!r}; give a finite number of at least 0, 1 for no guidance."
                )
        start, end = self.interval
        if not 0 <= start < end <= 1:
            raise ValueError(f"guidance_interval is {self.interval}; give two numbers with 0 <= a < b <= 1.")

    def num_branches(self, has_images: bool) -> int:
        """How many branches a guided step evaluates per picture."""
        if has_images and self.image != 1:
            return 3
        return 1 if self.text == 1 else 2

    def is_active(self, step: int, num_steps: int) -> bool:
        """Whether step ``step`` of ``num_steps`` lies in the interval."""
        start, end = self.interval
        return start <= step / num_steps < end

    def combine(self, velocities: torch.Tensor, branches: int) -> torch.Tensor:
        """Guided velocity of branches stacked along the batch axis, ``[branches * batch, ...]``."""
        if branches == 1:
            return velocities
        if branches == 2:
            negative, prompt = velocities.chunk(2)
            return negative + self.text * (prompt - negative)
        nothing, image, image_text = velocities.chunk(3)
        return nothing + self.image * (image - nothing) + self.text * (image_text - image)


def black_like(image: Image.Image) -> Image.Image:
    """The black image that stands for "no image": same size, so that it takes as many tokens."""
    return Image.new("RGB", image.size)


def branch_pictures(images: Sequence[Sequence[Image.Image]], branches: int) -> list[list[Image.Image]]:
    """Pictures of all branches of edits, branch by branch, in the order of the table above."""
    return [
        list(group) if sees else [black_like(image) for image in group]
        for sees in [branches < 3, *[True] * (branches - 1)]
        for group in images
    ]


def branch_inputs(
    prompts: Sequence[str],
    negatives: Sequence[str],
    images: Sequence[Sequence[Image.Image]] | None,
    branches: int,
) -> tuple[list[str], list[list[Image.Image]] | None]:
    """Prompts and images of all branches, branch by branch, in the order of the table above."""
    all_prompts = [*list(negatives) * (branches - 1), *prompts]
    return all_prompts, None if images is None else branch_pictures(images, branches)
