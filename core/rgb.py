"""Any picture in memory as upright sRGB on white, which is what a picture means here.

EXIF turns it, its colour profile is applied, transparent parts become white, 16 bits and floating point are
scaled. What is so already stays as it is.
"""

from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

from .colours import has_other_colours, rgb_profile, to_srgb

MAX_ASPECT = 200  # the limit of Qwen2.5-VL's image processor
WHITES = (1, 255, 65535)  # of floating-point pixels
ORIENTATION = 0x0112  # EXIF
PNG_EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow keeps it
BROKEN = (  # what Pillow raises of damaged files
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
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


def check_shape(size: tuple[int, int]) -> None:
    """Raise BadPicture for a picture without pixels, or one too long for the language model."""
    width, height = size
    if not width or not height:
        raise BadPicture("without pixels", f"{width}x{height}")
    if max(size) > MAX_ASPECT * min(size):
        raise BadPicture(f"more than {MAX_ASPECT} times as long as wide", f"{width}x{height}")


def load(image: Image.Image) -> None:
    """Decode all pixels. Raises BadPicture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except BROKEN as error:
        reason = "truncated" if "truncated" in str(error) else "broken"
        raise BadPicture(reason, error) from error


def conversions(image: Image.Image) -> tuple[str, ...]:
    """What :func:`to_rgb` has to change, in words; the pixels need not be decoded. Raises BadPicture."""
    found = [f"{image.mode} to RGB"] if image.mode != "RGB" else []
    try:
        if has_transparency(image):
            found = ["transparency on white"]
        if has_other_colours(image):
            found.append("colour profile to sRGB")
    except BROKEN as error:
        raise BadPicture("broken", error) from error
    if orientation(image) != 1:
        found.append("turned by EXIF")
    return tuple(found)


def has_transparency(image: Image.Image) -> bool:
    """Whether some pixels may be transparent."""
    if image.mode == "P" and image.palette.mode.endswith("A"):
        return True
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Raises BadPicture."""
    # PNG may hold EXIF behind its pixels, and Pillow decodes them all to look there
    if image.format == "PNG" and not any(key in image.info for key in PNG_EXIF):
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except BROKEN as error:
        raise BadPicture("broken", f"EXIF: {error}") from error
    return value if value in range(1, 9) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as upright sRGB on white; itself if it is that already.

    An opened file of several frames gives the one that it stands at.

    Raises:
        BadPicture: pixels that cannot be decoded, or nothing says which of their values is white.
    """
    rgb = to_rgba(image)
    if rgb.mode == "RGBA":
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
        rgb.info = {}
    return rgb


def to_rgba(image: Image.Image, own_colours: bool = False) -> Image.Image:
    """Any picture as upright sRGB, with the transparency that it has: RGBA, or RGB. Raises BadPicture.

    Args:
        own_colours: RGB with a profile that colours can be brought back to keeps its numbers and the profile.
    """
    load(image)
    try:
        upright = image if orientation(image) == 1 else ImageOps.exif_transpose(image)
        colours, alpha = split(upright)
        profile = rgb_profile(colours) if own_colours else b""
        rgb = colours if profile else to_srgb(to_8_bits(colours))
        if alpha is not None:
            rgb.putalpha(alpha)
    except BadPicture:
        raise
    except BROKEN as error:
        raise BadPicture("broken", error) from error
    if rgb is not image:
        rgb.info = {"icc_profile": profile} if profile else {}  # what was applied must not be again
    return rgb


def split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours without alpha and alpha as L, None if all is opaque."""
    if not has_transparency(image):
        return (image.convert("RGB") if image.mode == "P" else image), None
    if image.mode.startswith("I"):  # one value of 16 bits is transparent
        clear = np.asarray(image) == image.info["transparency"]
        return image, Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))
    layer = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    return layer.convert(layer.mode[:-1]), layer.getchannel("A")


def to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floating point as L; Pillow's own conversion cuts all above 255.

    White is 65535 of whole numbers, and of floating point the least of :data:`WHITES` that holds all.

    Raises:
        BadPicture: other values, or floating point that would be nearly black: nothing says what is white.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode != "F":
        if low < 0 or high > 65535:
            raise BadPicture("32-bit pixels", f"{low} to {high}, where 0 to 65535 are possible")
        scaled = (values.astype(np.uint32) + 128) // 257
    else:
        white = next((white for white in WHITES if high <= white), 0)
        if not (low >= 0 and white and (white == 1 or high > white / 16)):  # NaN is in no order
            raise BadPicture("floating-point pixels", f"{low:g} to {high:g}, where 0 to 1 are possible")
        scaled = np.rint(values * (255 / white))
    grey = Image.fromarray(scaled.astype(np.uint8))
    grey.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return grey


def from_array(values: np.ndarray) -> Image.Image:
    """An array ``[height, width]`` or ``[height, width, 1, 3 or 4]`` as a picture of 8 bits a channel.

    Args:
        values: bool, uint8, uint16 (white is 65535) or floating point from 0 to 1.

    Raises:
        BadPicture: another shape, type or range.
    """
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise BadPicture("an array of another shape", f"{list(values.shape)}, not height, width, channels")
    if not values.size:
        raise BadPicture("without pixels", list(values.shape))
    if values.dtype.kind == "f":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):
            raise BadPicture("floating-point pixels", f"{low:g} to {high:g}, where 0 to 1 are possible")
        values = np.rint(values * 255)
    elif values.dtype == np.uint16:
        values = (values.astype(np.uint32) + 128) // 257
    elif values.dtype == bool:
        values = values * 255
    elif values.dtype != np.uint8:
        raise BadPicture("pixels of an unknown type", values.dtype)
    grey = values.ndim == 3 and values.shape[2] == 1
    return Image.fromarray((values[..., 0] if grey else values).astype(np.uint8))
