"""Pictures to train on: which are usable, and how they are cut to the size of a batch."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops

from ...core.pictures import open_picture
from ...core.rgb import BadPicture, conversions, load, orientation, split, to_rgb

MIN_SIDE = 16  # pixels
ALIGNED = 100  # aspect ratios that differ by a hundredth or less: two pictures show the same frame
WHITE = 128  # of 255: a mask that is nowhere as light as this is black, or a map of numbers
COLOURED = 48  # of 255, between the channels of a pixel; JPEG of black and white stays below
# How names of pictures end, by the module that Pillow needs for them; what is in them, their first bytes say.
BY_PLUGIN = {"pillow_heif": (".heic", ".heif", ".hif"), "pillow_jxl": (".jxl",)}
INSTALLED = {module for module in BY_PLUGIN if find_spec(module)}
SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib",
    ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pnm",
    *(suffix for module in BY_PLUGIN if module in INSTALLED for suffix in BY_PLUGIN[module]),
)  # fmt: skip
# pictures too, and nothing here reads them
UNREADABLE = (
    ".svg", ".psd", ".exr", ".hdr", ".ico", ".tga", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".rw2", ".raf",
    *(suffix for module in BY_PLUGIN if module not in INSTALLED for suffix in BY_PLUGIN[module]),
)  # fmt: skip


def is_picture_name(name: object) -> bool:
    """Whether a value ends like a picture's file."""
    return (
        isinstance(name, str)
        and len(name) < 4096
        and "\n" not in name
        and name.strip().lower().endswith((*SUFFIXES, *UNREADABLE))
    )


@dataclass(frozen=True)
class Facts:
    """What a look at a picture showed.

    Attributes:
        width: pixels, after EXIF rotation.
        height: pixels, after EXIF rotation.
        conversions: what :func:`decode` has to change to make it upright RGB, in words.
    """

    width: int
    height: int
    conversions: tuple[str, ...]


def decode(data: bytes) -> Image.Image:
    """A picture as upright sRGB on white, see :mod:`...core.rgb`.

    Raises:
        BadPicture: no picture, broken, animated, or too small, too large or too long to train on.
    """
    with open_large(io.BytesIO(data)) as image:
        return to_rgb(image)


def decode_mask(data: bytes) -> Image.Image:
    """A mask as upright grey (L), white where its picture counts.

    Raises:
        BadPicture: no picture that can be used, or one that is no mask: in colours, transparent in parts, or
            nowhere white.
    """
    with open_large(io.BytesIO(data)) as image:
        rgb = to_rgb(image)
        _, alpha = split(image)
        if alpha is not None and alpha.getextrema()[0] < 255:
            raise BadPicture("mask is transparent in parts; save it in black and white, opaque")
    red, green, blue = rgb.split()
    spread = max(ImageChops.difference(red, other).getextrema()[1] for other in (green, blue))
    if spread > COLOURED:
        raise BadPicture("mask is in colours; save it in black and white")
    grey = rgb.convert("L")
    if grey.getextrema()[1] < WHITE:
        raise BadPicture("mask is nowhere white")
    return grey


def aligned(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same proportions."""
    a, b = size[0] * other[1], size[1] * other[0]
    return ALIGNED * abs(a - b) <= b


def examine(file: BinaryIO, full: bool) -> Facts:
    """Look at a picture; ``full`` decodes it, else only its header is read (all of it, if it is WebP).

    Raises:
        BadPicture: :func:`decode` would raise it too (not for damage behind the header unless ``full``).
    """
    with open_large(file) as image:
        if full:
            load(image)  # EXIF may lie behind the pixels
        width, height = image.size[::-1] if orientation(image) in (5, 6, 7, 8) else image.size
        changed = conversions(image)
        if full:
            to_rgb(image)
    return Facts(width, height, changed)


def open_large(file: BinaryIO) -> Image.Image:
    """Open a picture that is large enough to learn from. Raises BadPicture."""
    image = open_picture(file)
    if min(image.size) < MIN_SIDE:
        raise BadPicture(f"smaller than {MIN_SIDE} pixels", f"{image.width}x{image.height}")
    return image


def fit(picture: Image.Image, width: int, height: int, crop: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Scale a picture until it just covers ``width`` x ``height``, and cut off the rest.

    Args:
        picture: RGB.
        width: pixels of the result.
        height: pixels of the result.
        crop: where the kept part lies along x and y: 0 = left or top, 0.5 = centre, 1 = right or bottom.

    Returns:
        Image.Image: RGB of exactly ``width`` x ``height``.
    """
    box = kept_box(picture, width, height, crop)
    # the gap halves large pictures first, which is several times faster and cannot be seen
    return picture.resize((width, height), Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def kept_box(
    picture: Image.Image, width: int, height: int, crop: tuple[float, float]
) -> tuple[float, float, float, float]:
    """What :func:`fit` keeps of a picture: left, top, right and bottom in its own pixels."""
    scale = min(picture.width / width, picture.height / height)
    kept_width, kept_height = min(width * scale, picture.width), min(height * scale, picture.height)
    left, top = (picture.width - kept_width) * crop[0], (picture.height - kept_height) * crop[1]
    return left, top, min(left + kept_width, picture.width), min(top + kept_height, picture.height)


def mask_cells(
    mask: Image.Image, width: int, height: int, factor: int, crop: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """Which share of every latent a mask leaves, cut as :func:`fit` cuts the picture.

    Args:
        mask: L, of the picture's proportions, of any size.
        width: pixels that the picture is cut to.
        height: pixels that the picture is cut to.
        factor: pixels per latent along each side.
        crop: as of the picture.

    Returns:
        np.ndarray: ``[height / factor, width / factor]`` float32 in 0 (black) … 1 (white), means of areas.
    """
    box = kept_box(mask, width, height, crop)
    cells = mask.convert("F").resize((width // factor, height // factor), Image.Resampling.BOX, box)
    return np.asarray(cells, dtype=np.float32) / 255


def aspect_buckets(resolution: int, multiple: int) -> list[tuple[int, int]]:
    """Sizes (width, height) of about ``resolution``² pixels, tall to wide, from 1:4 to 4:1.

    Args:
        resolution: side of the square one, pixels.
        multiple: every side is a multiple of it (the factor of the autoencoder times the patch size).

    Raises:
        ValueError: ``resolution`` is no multiple of ``multiple``.
    """
    if resolution % multiple:
        raise ValueError(f"Resolution {resolution} is no multiple of {multiple}; give one that is.")
    tall = []
    for width in range(multiple, resolution, multiple):
        height = resolution**2 // width // multiple * multiple
        if height <= 4 * width:
            tall.append((width, height))
    return [*tall, (resolution, resolution), *((height, width) for width, height in reversed(tall))]


def nearest_buckets(sizes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Numbers ``[n]`` of the buckets whose aspect ratios are nearest to those of ``sizes`` ``[n, 2]``.

    Near means the least to cut off, so ratios are compared as logarithms; of two the first is taken.
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    ratios = np.array([math.log(width / height) for width, height in buckets])
    nearest = np.zeros(len(sizes), dtype=np.int64)
    best = np.full(len(sizes), np.inf)
    logarithms = np.log(sizes[:, 0] / sizes[:, 1])
    for number, ratio in enumerate(ratios):  # bucket by bucket: the full table of 27 million is too large
        distance = np.abs(logarithms - ratio)
        closer = distance < best
        nearest[closer], best[closer] = number, distance[closer]
    return nearest
