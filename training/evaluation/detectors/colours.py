"""What CLIP is shown of an object to name its colour (GenEval), and the texts it is compared with."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .verdict import COLOURS

BACKGROUND = "#999"


def crop(
    picture: Image.Image,
    box: np.ndarray,
    mask: np.ndarray | None,
    background: str = BACKGROUND,
    whole: bool = False,
) -> Image.Image:
    """An object on plain ground, before CLIP's own resizing.

    Args:
        picture: the whole picture.
        box: left, top, right, bottom (and more, unused), pixels; rounded, halves to even. What lies beyond
            the edge becomes black.
        mask: ``[height, width]``: what belongs to the object; None: everything.
        background: colour of the rest, or "original": as it is.
        whole: do not cut.

    Raises:
        ValueError: the mask has another size than the picture.
    """
    picture = picture.convert("RGB")
    if mask is not None:
        if mask.shape != (picture.height, picture.width):
            raise ValueError(
                f"The mask has {mask.shape[1]} x {mask.shape[0]} pixels, the picture "
                f"{picture.width} x {picture.height}."
            )
        plain = picture if background == "original" else Image.new("RGB", picture.size, background)
        picture = Image.composite(picture, plain, Image.fromarray(mask.astype(bool)))
    return picture if whole else picture.crop(tuple(round(float(edge)) for edge in box[:4]))


def colour_texts(name: str) -> dict[str, tuple[str, str, str]]:
    """The three texts of every colour; their normalised embeddings are averaged, then normalised."""
    return {
        colour: (
            f"a photo of a {colour} {name}",
            f"a photo of a {colour}-colored {name}",
            f"a photo of a {colour} object",
        )
        for colour in COLOURS
    }
