"""Pictures as they were given, with all their bits: what an edit within a mask is laid into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import numpy_to_pil
from PIL import Image

from .editing import fit_mask
from .inputs import array_of
from .masks import AUTO, MaskInput, read_masks
from .requests import Picture
from .rgb import to_rgba

WHITES = {np.dtype(bool): 1, np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True)
class Original:
    """A picture that is drawn over.

    Attributes:
        pixels: at its own size, ``[1, height, width, 1, 3 or 4]`` float32, 0 … 1, upright sRGB; alpha is not
            multiplied in.
        canvas: the same as the model sees it, RGB with transparent parts white.
        mask: ``[1, height, width]``, 0 = stays; None = all may change, or the model is asked.
    """

    pixels: torch.Tensor
    canvas: Image.Image
    mask: torch.Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.canvas.size


def make_originals(
    pictures: Sequence[Picture], canvases: Sequence[Image.Image], mask: MaskInput = None
) -> list[Original]:
    """Every picture with its mask.

    Args:
        pictures: as they were given, usable for :func:`.inputs.prepare_image`.
        canvases: what that function made of them.
        mask: one for all or one for each, in any form; None and "auto" leave the pictures without.

    Raises:
        ValueError: a mask that cannot be used, one sentence.
    """
    masks: Sequence[torch.Tensor | None] = [None] * len(pictures)
    if mask is not None and not (isinstance(mask, str) and mask == AUTO):
        masks = read_masks(mask, len(pictures))
    originals = []
    for picture, canvas, own in zip(pictures, canvases, masks, strict=True):
        pixels = pixels_of(picture)
        if own is not None:
            own = fit_mask(own, 1, *pixels.shape[1:3])
        originals.append(Original(pixels, canvas, own))
    return originals


def pixels_of(picture: Picture) -> torch.Tensor:
    """A picture as ``[1, height, width, 1, 3 or 4]``, with all its bits; a tensor comes channels first."""
    if isinstance(picture, torch.Tensor):
        picture = array_of(picture.movedim(0, -1))
    if isinstance(picture, Image.Image):
        picture = np.asarray(to_rgba(picture))
    return scaled(picture if picture.ndim == 3 else picture[..., None])[None]


def scaled(values: np.ndarray) -> torch.Tensor:
    """Whole numbers from 0 to the greatest of their type as float32 from 0 to 1; floating point stays."""
    if values.dtype.kind == "f":
        return torch.from_numpy(values.astype(np.float32))
    return torch.from_numpy(values.astype(np.float32)) / WHITES[values.dtype]


def as_output(pictures: Sequence[torch.Tensor], output_type: str) -> Any:
    """Batches ``[n, height, width, channels]`` as diffusers returns pictures: "pil", "np", or a tensor."""
    if output_type == "pil":
        return [one for batch in pictures for one in numpy_to_pil(batch.float().cpu().numpy())]
    joined = torch.cat(list(pictures))
    return joined.float().cpu().numpy() if output_type == "np" else joined.movedim(-1, 1)
