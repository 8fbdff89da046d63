"""Colours of a picture as sRGB: what its ICC profile says, and CMYK and Lab, which are no RGB at all."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}  # of a profile, by mode of its picture
SAME = 2  # of 255: a profile that moves no colour by more is sRGB, of which there are many wordings
GRID = 9  # steps along each channel at which that is tried


def to_srgb(image: Image.Image) -> Image.Image:
    """Colours as sRGB.

    A profile that is broken, or of another kind of picture, is passed over, as browsers do; CMYK without one
    is converted by Pillow's plain formula.

    Args:
        image: RGB, L, CMYK, LAB or what else becomes RGB by itself; 8 bits a channel, no alpha.

    Returns:
        Image.Image: RGB; the picture itself where nothing had to change.
    """
    transform = transform_of(image)
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return transform.apply(image.convert(transform.input_mode))


def has_other_colours(image: Image.Image) -> bool:
    """Whether the profile of a picture, of any mode, says that its numbers are no sRGB."""
    return "icc_profile" in image.info and transform_of(image) is not None


def rgb_profile(image: Image.Image) -> bytes:
    """The profile of a picture in RGB, if colours can be brought to it and back; else nothing."""
    profile = image.info.get("icc_profile") or b""
    return profile if image.mode in ("RGB", "RGBA") and profile and to_profile(profile) is not None else b""


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB picture in the colours of a profile that :func:`rgb_profile` returned."""
    if not profile or make_transform(profile, "RGB") is None:  # another wording of sRGB
        return image
    return to_profile(profile).apply(image)


@lru_cache(maxsize=16)
def to_profile(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """The transform from sRGB to an RGB profile; None if there is none, as of a scanner's."""
    try:
        target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), target, "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def transform_of(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """The transform of a picture to sRGB, None if it needs none or has no usable profile."""
    profile = image.info.get("icc_profile") or b""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F")):
        mode = "L"
    else:
        mode = image.mode if image.mode in ("CMYK", "LAB") else "RGB"
    if not profile and mode != "LAB":
        return None
    return make_transform(profile, mode)


@lru_cache(maxsize=16)
def make_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """A transform to sRGB of RGB, L, CMYK or LAB, which needs no profile; None if it changes nothing."""
    try:
        file = ImageCms.createProfile("LAB") if mode == "LAB" else io.BytesIO(profile)
        source = ImageCms.ImageCmsProfile(file)
        space = source.profile.xcolor_space.strip()
        taken = "RGB" if mode == "L" and space == "RGB" else mode  # grey pictures in RGB spaces are usual
        if space != SPACES[taken]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), taken, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    colours = known_colours(mode)
    if colours is None:
        return transform
    moved = np.asarray(transform.apply(Image.fromarray(colours).convert(taken)), dtype=int) - colours
    return transform if np.abs(moved).max() > SAME else None


def known_colours(mode: str) -> np.ndarray | None:
    """Colours ``[1, n, 3]`` uint8 that a profile of a mode may be of, None if these are no RGB."""
    if mode == "L":
        return np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    if mode != "RGB":
        return None
    steps = np.linspace(0, 255, GRID).round().astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
