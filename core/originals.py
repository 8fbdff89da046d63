"""Pictures as they were given, with all their bits: what an edit within a mask is laid into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .colours import from_srgb, rgb_profile
from .crops import Crop, grown, stitch, within
from .editing import fit_mask
from .inputs import array_of
from .masks import AUTO, MaskInput, read_masks
from .requests import Picture
from .rgb import to_rgba

WHITES = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True)
class Original:
    """A picture that is drawn over.

    Attributes:
        picture: upright, at its own size and with its own bits: RGB, RGBA, or ``[height, width, 1, 3 or 4]``
            of 8 or 16 bits or float32 from 0 to 1; alpha is not multiplied in.
        canvas: the same as the model sees it, sRGB with transparent parts white.
        mask: ``[1, height, width]``, 0 = stays; None = all may change, or the model is asked.
        profile: ICC profile of the pixels; empty = sRGB.
    """

    picture: Image.Image | np.ndarray
    canvas: Image.Image
    mask: torch.Tensor | None = None
    profile: bytes = b""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.canvas.size

    @property
    def has_alpha(self) -> bool:
        """Whether there is a fourth channel, which stays."""
        if isinstance(self.picture, Image.Image):
            return self.picture.mode == "RGBA"
        return self.picture.shape[-1] == 4

    def copies(self, number: int) -> np.ndarray:
        """The pixels to draw into, ``[number, height, width, 3 or 4]``."""
        pixels = np.array(self.picture)  # a copy in any case; a photograph is large
        pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
        return pixels[None] if number == 1 else np.repeat(pixels[None], number, axis=0)


def make_originals(
    pictures: Sequence[Picture],
    canvases: Sequence[Image.Image],
    mask: MaskInput = None,
    own_colours: bool = False,
) -> list[Original]:
    """Every picture with its mask.

    Args:
        pictures: as they were given, usable for :func:`.inputs.prepare_image`.
        canvases: what that function made of them.
        mask: one for all or one for each, in any form; None and "auto" leave the pictures without.
        own_colours: PIL pictures with a profile stay in its colours.

    Raises:
        ValueError: a mask that cannot be used, one sentence.
    """
    masks: Sequence[torch.Tensor | None] = [None] * len(pictures)
    if mask is not None and not (isinstance(mask, str) and mask == AUTO):
        masks = read_masks(mask, len(pictures))
    originals = []
    for picture, canvas, own in zip(pictures, canvases, masks, strict=True):
        profile = b""
        if isinstance(picture, Image.Image):
            picture = to_rgba(picture, own_colours)
            profile = rgb_profile(picture) if own_colours else b""
        else:
            picture = pixels_of(picture)
        if own is not None:
            own = fit_mask(own, 1, *canvas.size[::-1])
        originals.append(Original(picture, canvas, own, profile))
    return originals


def pixels_of(picture: np.ndarray | torch.Tensor) -> np.ndarray:
    """An array as ``[height, width, 1, 3 or 4]``, with all its bits; a tensor comes channels first."""
    pixels = array_of(picture.movedim(0, -1)) if isinstance(picture, torch.Tensor) else picture
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    elif pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def lay_in(
    pixels: np.ndarray,
    drawn: torch.Tensor,
    crop: Crop,
    mask: torch.Tensor,
    feather: int,
    profile: bytes = b"",
) -> None:
    """Lay a drawn crop into pictures, in place; outside of the mask they stay bit for bit.

    Args:
        pixels: ``[batch, height, width, 3 or 4]``, as :meth:`Original.copies` returns them.
        drawn: ``[batch, h, w, 3]`` sRGB, 0 … 1, the crop at the size that it was drawn at.
        mask: ``[height, width]``, 0 … 1.
        feather: width of the seam in pixels.
        profile: of the pixels.
    """
    around = grown(crop.box, mask.shape)
    place = (slice(None), *around)
    part = Crop(within(crop.box, around), within(crop.part, around))
    values = as_floats(pixels[place])
    stitch(values, in_colours(drawn.float().cpu(), profile), part, mask[around], feather)
    if pixels.dtype.kind == "f":
        pixels[place] = values.numpy()
    else:
        pixels[place] = (values.numpy() * WHITES[pixels.dtype]).round()


def in_colours(drawn: torch.Tensor, profile: bytes) -> torch.Tensor:
    """sRGB pictures ``[batch, h, w, 3]`` in the colours of a profile."""
    if not profile:
        return drawn
    return torch.stack([as_floats(np.asarray(from_srgb(picture, profile))) for picture in to_pil(drawn)])


def as_floats(values: np.ndarray) -> torch.Tensor:
    """Whole numbers from 0 to the greatest of their type as float32 from 0 to 1; floating point stays."""
    floats = torch.from_numpy(values.astype(np.float32))
    return floats if values.dtype.kind == "f" else floats.div_(WHITES[values.dtype])


def as_output(
    pictures: Sequence[torch.Tensor | np.ndarray], output_type: str, profiles: Sequence[bytes] = ()
) -> Any:
    """Batches ``[n, height, width, channels]`` as diffusers returns pictures: "pil", "np", or a tensor.

    Args:
        profiles: of each batch, for PIL pictures.
    """
    if output_type == "pil":
        profiles = profiles or [b""] * len(pictures)
        return [one for each in zip(pictures, profiles, strict=True) for one in to_pil(*each)]
    joined = torch.cat([as_floats(one) if isinstance(one, np.ndarray) else one for one in pictures])
    return joined.float().cpu().numpy() if output_type == "np" else joined.movedim(-1, 1)


def to_pil(pictures: torch.Tensor | np.ndarray, profile: bytes = b"") -> list[Image.Image]:
    """A batch as PIL pictures; those of 8 bits keep their bits."""
    if not (isinstance(pictures, np.ndarray) and pictures.dtype == np.uint8):
        floats = as_floats(pictures) if isinstance(pictures, np.ndarray) else pictures.float().cpu()
        pictures = (floats * 255).round_().to(torch.uint8).numpy()
    found = [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pictures]
    for picture in found if profile else ():
        picture.info["icc_profile"] = profile
    return found
