"""What a user may ask for: prompts, pictures and sizes in every form accepted, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from .inputs import prepare_images

# arrays are [height, width, channels], tensors [channels, height, width], or batches of these
Picture: TypeAlias = Image.Image | np.ndarray | torch.Tensor
ImageInput: TypeAlias = Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None


@dataclass(frozen=True)
class Request:
    """A checked batch: as many negatives as prompts, one list of images per prompt or no images at all.

    Attributes:
        images: upright RGB, as the model reads them.
        originals: the first picture of every prompt as it was given; None without pictures.
    """

    prompts: list[str]
    negatives: list[str]
    images: list[list[Image.Image]] | None
    originals: list[Picture] | None = None

    def single(self, number: int, canvas: Image.Image | None = None) -> Request:
        """One prompt of the batch, with what belongs to it; a canvas takes the place of its first picture."""
        one = slice(number, number + 1)
        images, originals = self.images and self.images[one], self.originals and self.originals[one]
        if canvas is not None:
            images = [[canvas, *images[0][1:]]]
        return Request(self.prompts[one], self.negatives[one], images, originals)

    @property
    def canvases(self) -> list[Image.Image] | None:
        """What is edited: the first picture of every prompt, if there are pictures."""
        return None if self.images is None else [group[0] for group in self.images]


def check_options(steps: int, per_prompt: int, output_type: str) -> None:
    """Raise ValueError for numbers and words that no call can have."""
    for name, count in (("num_inference_steps", steps), ("num_images_per_prompt", per_prompt)):
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{name} is {count!r}; give a whole number of at least 1.")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"output_type is {output_type!r}; choose pil, np, pt or latent.")


def check_generator(generator: Any, results: int) -> Any:
    """One generator, a list of one for each result, or None. Raises ValueError for anything else."""
    if not isinstance(generator, Sequence):
        found = [] if generator is None else [generator]
    else:
        generator = found = list(generator)
        if len(found) != results:
            raise ValueError(f"{len(found)} generators were given for {results} results; give one for each.")
    for one in found:
        if not hasattr(one, "initial_seed"):
            raise ValueError(f"A generator is a {type(one).__name__}; give torch.Generator().manual_seed(…).")
    return generator


def check_request(
    prompt: str | Sequence[str] | None, image: ImageInput = None, negative_prompt: str | Sequence[str] = ""
) -> Request:
    """Bring prompts, negatives and images into one shape.

    Raises:
        ValueError: no prompt, an empty prompt without an image, numbers that do not match, bad images.
    """
    if prompt is None:
        raise ValueError("Give either a prompt or a condition that was made of one.")
    prompts = texts_of(prompt, "prompt")
    if not prompts:
        raise ValueError("No prompt was given; give at least one.")
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives = [negative_prompt or ""] * len(prompts)
    else:
        negatives = texts_of(negative_prompt, "negative prompt")
    if len(negatives) != len(prompts):
        raise ValueError(
            f"{len(negatives)} negative prompts were given for {len(prompts)} prompts; give one for all or "
            "one for each."
        )
    given = group_images(image, None if isinstance(prompt, str) else len(prompts))
    images = None
    if given is not None:
        images = prepare_images(given, prompts)
        if len({len(group) > 0 for group in images}) > 1 or not images[0]:
            raise ValueError("Some prompts come with an image and some without; make them two calls.")
    elif any(not text.strip() for text in prompts):
        raise ValueError("The prompt is empty and there is no image; say what to draw.")
    return Request(prompts, negatives, images, given and [group[0] for group in given])


def texts_of(given: Any, what: str) -> list[str]:
    """One text or several as a list. Raises ValueError for anything else."""
    texts = list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else [given]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"A {what} is a {type(text).__name__}; give text.")
    return texts


def group_images(image: ImageInput, num_prompts: int | None) -> list[list[Picture]] | None:
    """One list of images per prompt. ``num_prompts`` is None for a prompt that is no list."""
    if image is None:
        return None
    if isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 4:
        image = list(image)
    if isinstance(image, Picture):
        return [[image]] * (num_prompts or 1)
    if isinstance(image, str) or not isinstance(image, Sequence):
        raise ValueError(f"The image is a {type(image).__name__}; give PIL images.")
    if not image:
        raise ValueError("The list of images is empty; give one, or leave image out.")
    if num_prompts is None:
        return [list(image)]
    if len(image) != num_prompts:
        raise ValueError(
            f"{len(image)} images were given for {num_prompts} prompts; give one for each prompt."
        )
    return [[one] if isinstance(one, Picture) else list(one) for one in image]


def check_size(height: int, width: int, factor: int) -> None:
    """Raise ValueError, naming the nearest sizes, unless both are positive multiples of ``factor``."""
    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, Integral):
            raise ValueError(f"The {name} is {size!r}; give a whole number of pixels.")
        if size < factor or size % factor:
            low, high = max(factor, size // factor * factor), max(factor, -(-size // factor) * factor)
            nearest = f"{low}" if low == high else f"{low} or {high}"
            raise ValueError(f"The {name} {size} is no positive multiple of {factor}; use {nearest}.")


def fit_size(size: tuple[int, int], side: int, factor: int) -> tuple[int, int]:
    """Width and height of about ``side``² pixels in the proportions of ``size``, multiples of ``factor``."""
    scale = side / (size[0] * size[1]) ** 0.5
    width, height = (max(factor, round(length * scale / factor) * factor) for length in size)
    return width, height


def in_trained_proportions(picture: Image.Image, side: int, factor: int) -> Image.Image:
    """The picture as a square of about as many pixels; itself, if :func:`fit_size` makes a square of it."""
    if fit_size(picture.size, side, factor) == (side, side):
        return picture
    length = round((picture.width * picture.height) ** 0.5)
    return picture.resize((length, length), Image.Resampling.LANCZOS, reducing_gap=3.0)
