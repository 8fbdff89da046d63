"""What a model sees of a sample's pictures: cut and scaled as one, its target, is."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from .index import Entry
from .pictures import BadPicture, aligned, decode, decode_mask, fit, mask_cells
from .storage import Storage

CENTRE = (0.5, 0.5)


def read_inputs(
    storage: Storage, entry: Entry, size: tuple[int, int], crop: tuple[float, float]
) -> list[Image.Image]:
    """The input pictures of an edit.

    Those that have the target's proportions show the same frame, and are cut as the target is: an edit that
    always came out larger would teach the model to zoom. Others are references, and stay whole.

    Raises:
        BadPicture, OSError: one cannot be read.
    """
    pictures = [decode(storage.read(ref)) for ref in entry.inputs]
    return [
        cut(picture, size, crop) if aligned(picture.size, (entry.width, entry.height)) else picture
        for picture in pictures
    ]


def read_mask(
    storage: Storage, entry: Entry, size: tuple[int, int], factor: int, crop: tuple[float, float]
) -> Tensor:
    """The mask of a sample as shares of its latents ``[h, w]`` float32, see :func:`.pictures.mask_cells`.

    Raises:
        BadPicture, OSError: it cannot be read, or is none of this picture any more.
    """
    mask = decode_mask(storage.read(entry.mask))
    if not aligned(mask.size, (entry.width, entry.height)):
        raise BadPicture("mask has other proportions than its picture", f"{mask.width}x{mask.height}")
    return torch.from_numpy(mask_cells(mask, *size, factor, crop))


def read_canvas(
    storage: Storage, entry: Entry, size: tuple[int, int], crop: tuple[float, float]
) -> Image.Image:
    """What an edit edits, its first input picture, cut and scaled as its target is.

    Raises:
        BadPicture, OSError: it cannot be read.
    """
    return fit(decode(storage.read(entry.inputs[0])), *size, crop)


def cut(picture: Image.Image, size: tuple[int, int], crop: tuple[float, float]) -> Image.Image:
    """What :func:`.pictures.fit` keeps of a picture, unscaled: the image processor scales it anyway."""
    scale = min(picture.width / size[0], picture.height / size[1])
    width, height = (max(1, min(round(s * scale), p)) for s, p in zip(size, picture.size, strict=True))
    left, top = round((picture.width - width) * crop[0]), round((picture.height - height) * crop[1])
    return picture.crop((left, top, left + width, top + height))
