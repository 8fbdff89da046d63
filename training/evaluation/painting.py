"""The pictures of an item: a function of the model, the item, the way of drawing and the seed.

An item is one call of the pipeline whatever else there is to draw: sums of a larger batch, or of another
number of threads, may round differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isqrt
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ...core.editing import drawing_size
from ...core.pictures import picture_of
from .benchmark import Item

if TYPE_CHECKING:
    from ...core.pipeline import LadderPipeline

EDIT_SIZES = ("model", "own")


@dataclass(frozen=True)
class Way:
    """How pictures are drawn.

    Attributes:
        steps: of the sampler.
        guidance: strength of the text.
        image_guidance: of edits, strength of the source.
        size: side in pixels of a picture from text; None: what the model was trained at.
        edit_size: edits are as large as the "model" was trained at, in the proportions of their source, or of
            the source's "own" size to the pixel.
        seed: of the whole set.
    """

    steps: int = 30
    guidance: float = 4.5
    image_guidance: float = 1.5
    size: int | None = None
    edit_size: str = "model"
    seed: int = 0


def noise_seed(name: str, item: str, sample: int, seed: int) -> int:
    """Seed of a sample's noise, 0 to 2^63 - 1, whoever draws it and whatever was drawn before."""
    digest = sha256("\0".join((name, item, str(sample), str(seed))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeds_of(name: str, item: Item, seed: int) -> list[int]:
    """Seeds of an item's samples, in the order of its pictures."""
    return [noise_seed(name, item.key, sample, seed) for shot in item.pictures for sample in shot.samples]


def paint(pipeline: LadderPipeline, name: str, item: Item, way: Way) -> list[Image.Image]:
    """The item's pictures, as its set wants them: single ones, or samples in a grid.

    Raises:
        ValueError: the source is no picture, or the size is none that the model can draw.
    """
    seeds = seeds_of(name, item, way.seed)
    source = None if item.source is None else source_of(item)
    width, height = size_of(pipeline, source, way)
    samples = pipeline(
        item.prompt,
        image=source,
        guidance_scale=way.guidance,
        image_guidance_scale=way.image_guidance if source is not None else 1.0,
        height=height,
        width=width,
        num_inference_steps=way.steps,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],  # on the CPU: the same everywhere
    ).images
    if source is not None and way.edit_size == "own":
        samples = [fitted(sample, source.size) for sample in samples]
    left = iter(samples)
    return [grid([next(left) for _ in shot.samples]) for shot in item.pictures]


def size_of(pipeline: LadderPipeline, source: Image.Image | None, way: Way) -> tuple[int, int]:
    """Width and height to draw at."""
    factor = pipeline.vae_scale_factor
    native = pipeline.transformer.config.sample_size * factor
    if source is None:
        return way.size or native, way.size or native
    side = 0 if way.edit_size == "model" else max(source.size) + factor  # no limit
    return drawing_size(source.size, side, native, factor)


def source_of(item: Item) -> Image.Image:
    """The picture to edit, as everything else reads it. Raises ValueError."""
    try:
        return picture_of(item.source())
    except (OSError, ValueError) as error:
        raise ValueError(f"The source of {item.key} is no readable picture ({error}).") from error


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at exactly a size."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def grid(samples: Sequence[Image.Image]) -> Image.Image:
    """One picture as it is; a square number of them row by row."""
    if len(samples) == 1:
        return samples[0]
    side, (width, height) = isqrt(len(samples)), samples[0].size
    sheet = Image.new("RGB", (side * width, side * height))
    for number, sample in enumerate(samples):
        sheet.paste(sample, (number % side * width, number // side * height))
    return sheet
