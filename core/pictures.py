"""Picture files: opening the user's, and writing ours whole, numbered, with their settings inside.

Shell and training open them here and nowhere else; what is in them becomes upright sRGB on white, see
:mod:`.rgb`. A file holds one picture: animations are refused, for no text says which frame is meant.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from .paths import refusal, shown, user_path, write_whole
from .rgb import BROKEN, BadPicture, check_shape, to_rgb

# No EPS and the like: Pillow starts other programs to read them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF", "JXL")
PLUGINS = {  # module, function that registers it, package; for formats that not every Pillow reads itself
    "AVIF": ("pillow_avif", None, "pillow-avif-plugin"),
    "HEIF": ("pillow_heif", "register_heif_opener", "pillow-heif"),
    "JXL": ("pillow_jxl", None, "pillow-jxl-plugin"),
}
HEAD = 16  # bytes by which a format is told
MAX_PIXELS = 89_478_485  # of a file; from here on Pillow warns of a decompression bomb
MAX_PROFILE = 64 * 2**20  # bytes; Pillow opens no PNG with more than 1 MiB of profile, and printers have 2
CHUNK = "tbac_uniimage"  # not "prompt" or "workflow": ComfyUI reads a graph out of chunks of these names

T = TypeVar("T")

PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, MAX_PROFILE)


def read_picture(path: str | Path) -> Image.Image:
    """A picture file as upright sRGB on white. Raises ValueError, see :func:`read_file`."""
    return read_file(path, to_rgb)


def read_file(path: str | Path, read: Callable[[Image.Image], T]) -> T:
    """What ``read`` makes of a picture file that was opened; it may raise BadPicture.

    Raises:
        ValueError: no file there, or none that holds a picture.
    """
    path = user_path(path)
    if not path.is_file():
        raise ValueError(f"There is no picture at {shown(path)}; check the path.")
    try:
        with open(path, "rb") as file, open_picture(file) as image:
            return read(image)
    except BadPicture as error:
        raise ValueError(
            f"{shown(path)} is not a readable picture ({error}); give one still picture as PNG, JPEG or WebP."
        ) from error
    except OSError as error:
        raise ValueError(refusal(path, error)) from error


def is_deep(image: Image.Image) -> bool:
    """Whether a channel of an opened file has more than 8 bits, which Pillow's RGB drops without a word."""
    if image.mode.startswith(("I", "F")):
        return True
    for codec, _, _, told in image.tile:  # a raw mode as "RGB;16B", alone or first; of PPM also the white
        told = told if isinstance(told, tuple) else (told,)
        if ";16" in str(told[0]) or (codec == "ppm" and told[1] > 255):
            return True
    return False


def picture_of(data: bytes) -> Image.Image:
    """A picture file's content as upright sRGB on white. Raises BadPicture."""
    with open_picture(BytesIO(data)) as image:
        return to_rgb(image)


def open_picture(file: BinaryIO) -> Image.Image:
    """Open a picture, and refuse it if its header says enough. Nothing is decoded yet. Raises BadPicture."""
    head = file.read(HEAD)
    file.seek(0)
    formats = known_formats(head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage and of bombs; both are judged here
            image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        claimed = [name for name in formats if (accept := Image.OPEN[name][1]) and accept(head) is True]
        if claimed:
            raise BadPicture("broken or of an unknown kind", claimed[0]) from None
        raise BadPicture("not a picture") from None
    except Image.DecompressionBombError as error:
        raise BadPicture(f"more than {MAX_PIXELS:,} pixels", error) from None
    except BROKEN as error:
        raise BadPicture("broken", error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadPicture(f"more than {MAX_PIXELS:,} pixels", f"{width}x{height}")
    check_shape(image.size)
    try:
        # cameras keep a preview or the other eye in MPO and HEIF; the first is the picture
        animated = image.format not in ("MPO", "HEIF") and getattr(image, "is_animated", False)
    except BROKEN as error:
        raise BadPicture("broken", error) from error
    if animated:
        raise BadPicture("animated", f"{image.n_frames} frames")
    return image


def known_formats(head: bytes) -> tuple[str, ...]:
    """Formats that Pillow reads here, a plugin for what begins with ``head`` included. Raises BadPicture."""
    Image.init()
    name = plugin_format(head)
    if name and name not in Image.OPEN:
        module, register, package = PLUGINS[name]
        try:
            plugin = importlib.import_module(module)
        except ImportError:
            raise BadPicture(f"{name}, which the package {package} reads; it is not installed") from None
        if register:
            getattr(plugin, register)()
    return tuple(known for known in FORMATS if known in Image.OPEN)


def plugin_format(head: bytes) -> str | None:
    """AVIF, HEIF or JXL, if a file that begins so is one of them."""
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "JXL"
    if head[4:8] != b"ftyp":
        return None
    if head[8:12] in (b"avif", b"avis"):
        return "AVIF"
    return "HEIF" if head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1") else None


def check_folder(folder: Path) -> None:
    """Raise ValueError if no picture can be written into a folder, which need not be there yet."""
    folder = user_path(folder)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file; give a folder for the pictures.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing} may not be written to; give another folder for the pictures.")


def write_picture(image: Image.Image, folder: Path, settings: dict[str, Any]) -> Path:
    """Save a picture as the folder's next number; nothing is overwritten, nothing half-written is left.

    Args:
        image: what to save.
        folder: made if it is not there.
        settings: kept as JSON in the text chunk :data:`CHUNK`.

    Returns:
        Path: where it is now.
    """
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "TBAC-UniImage")
    info.add_text(CHUNK, json.dumps(settings))
    folder.mkdir(parents=True, exist_ok=True)
    partial, path = reserve_number(folder)
    try:
        image.save(partial, format="PNG", pnginfo=info)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def save_mask(mask: Image.Image, path: Path) -> None:
    """Write a mask as PNG, whole or not at all; its folder is made if it is not there. Raises ValueError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()
    mask.save(content, format="PNG")
    write_whole(path, content.getvalue())


def reserve_number(folder: Path) -> tuple[Path, Path]:
    """A temporary file that was not there before, and the free name that it will be renamed to.

    Creating the temporary file is what reserves the number: a second process that draws into the same folder
    takes the next one.
    """
    taken = [
        int(entry.stem) for entry in folder.glob("*.png") if entry.stem.isascii() and entry.stem.isdigit()
    ]
    number = max(taken, default=0)
    while True:
        number += 1
        partial, path = folder / f".{number:04d}.partial", folder / f"{number:04d}.png"
        try:
            partial.touch(exist_ok=False)
        except FileExistsError:
            continue
        if not path.exists():
            return partial, path
        partial.unlink()
