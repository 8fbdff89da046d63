"""The canvas of an edit: its first input picture, at the size that is drawn, as pixels and as latents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderDC
from PIL import Image
from torch import nn

TILED_ABOVE = 1024 * 1024  # pixels of a picture


def to_pixels(picture: Image.Image) -> torch.Tensor:
    """RGB to ``[3, height, width]`` float32, -1 (black) to 1 (white)."""
    values = torch.from_numpy(np.array(picture, dtype=np.float32))
    return (values / 127.5 - 1).permute(2, 0, 1).contiguous()


def canvas_pixels(pictures: Sequence[Image.Image], width: int, height: int) -> torch.Tensor:
    """Pictures at the size that is drawn, ``[pictures, 3, height, width]`` float32 in -1 … 1.

    All of a picture is kept, so what is drawn lies exactly over it; in other proportions it is stretched.

    Args:
        pictures: RGB.
        width, height: in pixels.
    """
    size, scaled = (width, height), []
    for picture in pictures:
        # the gap halves large pictures first, which is several times faster and cannot be seen
        same = picture.size == size
        scaled.append(picture if same else picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    return torch.stack([to_pixels(picture) for picture in scaled])


def in_tiles_if_large(vae: AutoencoderDC, height: int, width: int) -> AutoencoderDC:
    """The autoencoder for a picture of a size in pixels: from :data:`TILED_ABOVE` on it takes tile by tile.

    That saves most of the memory and some time; tiles differ a little from one piece, as it attends to all it
    sees.
    """
    if height * width <= TILED_ABOVE:
        return vae
    vae = copy.copy(vae)  # the same weights; that it tiles is this picture's own affair
    vae.use_tiling = True
    return vae


def encode_canvases(
    encode: Callable[[torch.Tensor], torch.Tensor],
    pictures: Sequence[Image.Image],
    width: int,
    height: int,
) -> torch.Tensor:
    """Latents of pictures at the size that is drawn, ``[pictures, channels, h, w]``.

    Branches of guidance share pictures: one that stands at several places is encoded once.

    Args:
        encode: makes latents of pixels as :func:`canvas_pixels` gives them.
        pictures: RGB.
        width, height: in pixels.
    """
    unique = {id(picture): picture for picture in pictures}
    rows = {key: row for row, key in enumerate(unique)}
    latents = encode(canvas_pixels(list(unique.values()), width, height))
    return latents[[rows[id(picture)] for picture in pictures]]


@torch.no_grad()
def encode_latents(vae: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Scaled latents of pictures ``[batch, 3, height, width]`` in -1 … 1."""
    return vae.encode(pixels.to(vae.dtype)).latent * vae.config.scaling_factor
