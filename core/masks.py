"""Masks of edits in every form that people have them in: white (1) is drawn anew, black (0) stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps

from .inputs import array_of
from .rgb import load, orientation, split

AUTO = "auto"  # the mask that the model finds itself

# arrays are [height, width] or [height, width, 1], tensors [height, width] or [1, height, width], or batches
Mask: TypeAlias = Image.Image | np.ndarray | torch.Tensor
MaskInput: TypeAlias = Mask | Sequence[Mask] | str | None


def read_masks(mask: MaskInput, pictures: int) -> list[torch.Tensor]:
    """A mask ``[height, width]``, 0 … 1, for every picture; white (1) is what is drawn anew.

    Raises:
        ValueError: another type, shape, range or number.
    """
    if isinstance(mask, str) or not isinstance(mask, Mask | Sequence):
        found = repr(mask) if isinstance(mask, str) else f"of the type {type(mask).__name__}"
        raise ValueError(f'The mask is {found}; give a picture, an array or a tensor, or "{AUTO}".')
    if isinstance(mask, Sequence):
        found = [one for each in mask for one in read_masks(each, 1)]
    elif isinstance(mask, Image.Image):
        found = [unit(np.asarray(grey(mask)))]
    else:
        is_tensor = isinstance(mask, torch.Tensor)
        found = [unit(one).mean(-1) for one in planes(array_of(mask) if is_tensor else mask, is_tensor)]
    if len(found) not in (1, pictures):
        raise ValueError(
            f"{len(found)} masks were given for {pictures} pictures; give one for all, or one for each."
        )
    return found * pictures if len(found) == 1 else found


def planes(values: np.ndarray, channels_first: bool) -> list[np.ndarray]:
    """An array of one mask or several as arrays ``[height, width, channels]``, without alpha.

    Raises:
        ValueError: another shape.
    """
    shape = list(values.shape)
    if values.ndim == 3 and not channels_first and shape[-1] in (1, 3, 4) and shape[0] > 1:
        values = values[None]  # one, with channels
    elif values.ndim == 2:
        values = values[None, ..., None]
    elif values.ndim == 3:
        values = values[..., None]
    elif values.ndim == 4 and (channels_first or (shape[1] == 1 and shape[-1] not in (1, 3, 4))):
        values = np.moveaxis(values, 1, -1)
    if values.ndim != 4 or 0 in shape or values.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"The mask has the shape {shape}; give height x width, or several of these, with or without a "
            "channel axis of 1."
        )
    return list(values[..., :3])


def unit(values: np.ndarray) -> torch.Tensor:
    """Values of a mask as float32 from 0 to 1. Whole numbers are 0 and 1, or up to 255, or up to 65535.

    Raises:
        ValueError: values that cannot be those of a mask.
    """
    if values.dtype.kind not in "bfiu":
        raise ValueError(f"The mask has values of the type {values.dtype}; give numbers from 0 to 1.")
    low, high = values.min(), values.max()
    white = 1 if values.dtype.kind in "bf" else next((w for w in (1, 255, 65535) if high <= w), 0)
    if not (0 <= low and high <= white):  # NaN is in no order
        raise ValueError(
            f"The mask has values from {low:g} to {high:g}, of the type {values.dtype}; give 0 to 1, or 0 to "
            "255 of an integer type."
        )
    return torch.from_numpy(values.astype(np.float32)).div_(white)


def grey(mask: Image.Image) -> Image.Image:
    """A mask picture, upright, as L or what holds more; transparent parts are black: nobody painted there."""
    load(mask)
    colours, alpha = split(mask if orientation(mask) == 1 else ImageOps.exif_transpose(mask))
    if colours.mode.startswith(("I", "F")):
        return colours
    shade = colours.convert("L")
    return shade if alpha is None else ImageChops.multiply(shade, alpha)
