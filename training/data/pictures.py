"""Pictures: what is a usable one, how it becomes RGB, and how it is cut to the size of a batch."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# No EPS and the like: Pillow starts other programs to read them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
MAX_PIXELS = 89_478_485  # from here on Pillow warns of a decompression bomb
MIN_SIDE = 16  # pixels
MAX_ASPECT = 200  # the limit of Qwen2.5-VL's image processor
ORIENTATION = 0x0112  # EXIF
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    struct.error,
    zlib.error,
)


class BadPicture(ValueError):
    """A picture that cannot be used.

    Args:
        reason: a few words that many pictures share, so that they can be counted.
        detail: what the decoder said.
    """

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(f"{reason} ({detail})" if str(detail) else reason)
        self.reason = reason
        self.detail = str(detail)

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.detail)


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
    """A picture as upright RGB.

    Grey, palette, CMYK and 16-bit pictures are converted, transparent ones are laid on white, and the EXIF
    rotation is applied. Of a camera's multi-picture file the first is taken; animations are refused, since no
    text describes one frame of them.

    Raises:
        BadPicture: no picture, broken, animated, or too small, too large or too long to train on.
    """
    with open_picture(io.BytesIO(data)) as image:
        load(image)
        return to_rgb(image)


def examine(file: BinaryIO, full: bool) -> Facts:
    """Look at a picture; ``full`` decodes it, else only its header is read (all of it, if it is WebP).

    Raises:
        BadPicture: :func:`decode` would raise it too (not for damage behind the header unless ``full``).
    """
    with open_picture(file) as image:
        turned = orientation(image)
        swapped = turned in (5, 6, 7, 8)
        width, height = image.size[::-1] if swapped else image.size
        conversions = [f"{image.mode} to RGB"] if image.mode != "RGB" else []
        if has_transparency(image):
            conversions = ["transparency on white"]
        if turned != 1:
            conversions.append("turned by EXIF")
        if full:
            load(image)
            to_rgb(image)
    return Facts(width, height, tuple(conversions))


def open_picture(file: BinaryIO) -> Image.Image:
    """Open a picture, and refuse it if its header says enough. Nothing is decoded yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage and of bombs; both are judged here
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadPicture("not a picture") from None
    except Image.DecompressionBombError as error:
        raise BadPicture(f"more than {MAX_PIXELS:,} pixels", error) from None
    except BROKEN as error:
        raise BadPicture("broken", error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadPicture(f"more than {MAX_PIXELS:,} pixels", f"{width}x{height}")
    if min(width, height) < MIN_SIDE:
        raise BadPicture(f"smaller than {MIN_SIDE} pixels", f"{width}x{height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadPicture(f"more than {MAX_ASPECT} times as long as wide", f"{width}x{height}")
    if image.mode == "F":
        raise BadPicture("floating-point pixels")  # nothing says which value is white
    try:
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except BROKEN as error:
        raise BadPicture("broken", error) from error
    if animated:
        raise BadPicture("animated")
    return image


def load(image: Image.Image) -> None:
    """Decode all pixels. Raises BadPicture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except BROKEN as error:
        reason = "truncated" if "truncated" in str(error) else "broken"
        raise BadPicture(reason, error) from error


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Raises BadPicture."""
    # PNG may hold EXIF behind its pixels, and Pillow decodes them all to look there
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except BROKEN as error:
        raise BadPicture("broken", f"EXIF: {error}") from error
    return value if value in range(1, 9) else 1


def has_transparency(image: Image.Image) -> bool:
    """Whether some pixels may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture as upright RGB. Raises BadPicture."""
    try:
        if orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return Image.fromarray(from_16_bits(np.asarray(image))).convert("RGB")
        if not has_transparency(image):
            return image.convert("RGB")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    except BadPicture:
        raise
    except BROKEN as error:
        raise BadPicture("broken", error) from error


def from_16_bits(values: np.ndarray) -> np.ndarray:
    """Grey values ``[height, width]`` of 0..65535 as uint8; Pillow's own conversion cuts all above 255."""
    if values.min() < 0 or values.max() > 65535:
        raise BadPicture("32-bit pixels")  # nothing says which value is white
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


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
    scale = min(picture.width / width, picture.height / height)
    kept_width, kept_height = min(width * scale, picture.width), min(height * scale, picture.height)
    left, top = (picture.width - kept_width) * crop[0], (picture.height - kept_height) * crop[1]
    right, bottom = min(left + kept_width, picture.width), min(top + kept_height, picture.height)
    # the gap halves large pictures first, which is several times faster and cannot be seen
    return picture.resize(
        (width, height), Image.Resampling.LANCZOS, (left, top, right, bottom), reducing_gap=3.0
    )


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
