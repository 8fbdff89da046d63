"""Picture files: reading the user's, and writing ours whole, numbered, with their settings inside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

CHUNK = "tbac_uniimage"  # not "prompt" or "workflow": ComfyUI reads a graph out of chunks of these names


def read_picture(path: str | Path) -> Image.Image:
    """A picture file as RGB, turned as its camera meant it.

    Raises:
        ValueError: no file there, or none that holds a picture.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no picture at {path}; check the path.")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable picture ({error}); give a PNG, JPEG or WebP.") from error


def check_folder(folder: Path) -> None:
    """Raise ValueError if no picture can be written into a folder, which need not be there yet."""
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
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
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
