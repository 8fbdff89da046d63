"""The artwork of the scenes in three styles: fetched from npm, joined by code point, stored as one atlas.

`python -m tbac_uniimage.training.nano.domain.art` runs `npm pack` for four pinned packages and writes
`.cache/nano/art.npz`: `names` [N] and `styles` [3] (unicode), and `rgba` [3, N, 96, 96, 4] uint8, every
drawing cropped to its visible part and centred in a square. What is already there is not made again.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from .words import OBJECTS, STYLES

CACHE = Path(os.environ.get("TBAC_UNIIMAGE_CACHE", Path(__file__).resolve().parents[3] / ".cache")) / "nano"
SPRITE_SIZE = 96

RENDERED = "@lobehub/fluent-emoji-3d@1.1.0"
FLAT = "@iconify-json/fluent-emoji-flat@1.2.6"
CARTOON = "@iconify-json/noto@1.2.9"
NAMES = "emojibase-data@17.0.0"
PACKAGES = {  # what each package gives, and under which licence
    RENDERED: "3D drawings (WebP), Fluent Emoji by Microsoft Corporation, packaged by LobeHub: MIT",
    FLAT: "flat drawings (SVG), Fluent Emoji by Microsoft Corporation, packaged by Iconify: MIT",
    CARTOON: "cartoon drawings (SVG), Noto Emoji by Google, packaged by Iconify: Apache-2.0",
    NAMES: "names of the code points: MIT, Copyright (c) 2017-2019 Miles Johnson",
}


def fetch(package: str, folder: Path = CACHE) -> Path:
    """Path of the package's tarball, downloaded with `npm pack` unless it is already in `folder`."""
    name, version = package.rsplit("@", 1)
    target = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not target.exists():
        partial = folder / "partial"
        partial.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", package, "--silent", "--pack-destination", str(partial)], check=True)
        os.replace(partial / target.name, target)
    return target


def key(code_points: str) -> str:
    """Code-point sequence as all packages agree on it: lower case, without the emoji variation selector."""
    return code_points.lower().replace("-fe0f", "")


def crop_to_square(drawing: Image.Image, size: int) -> np.ndarray:
    """Visible part of an RGBA drawing, centred in a square of `size` pixels: [size, size, 4] uint8."""
    box = drawing.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    visible = drawing.crop(box)
    side = max(visible.size)
    square = Image.new("RGBA", (side, side))
    square.paste(visible, ((side - visible.width) // 2, (side - visible.height) // 2))
    return np.asarray(square.resize((size, size), Image.LANCZOS))


def webp_drawings(package: tarfile.TarFile) -> dict[str, Image.Image]:
    """RGBA drawing of every object's code point in a package of WebP files; see `codes`."""
    files = {key(Path(file.name).stem): file for file in package if file.name.endswith(".webp")}
    return {
        code: Image.open(io.BytesIO(package.extractfile(files[code]).read())).convert("RGBA")
        for code in codes().values()
        if code in files
    }


def svg_drawings(package: tarfile.TarFile) -> dict[str, Image.Image]:
    """RGBA drawing of every object's code point in one of Iconify's packages, 256 pixels high."""
    import resvg_py

    icons = json.load(package.extractfile("package/icons.json"))
    names = {key(code): name for code, name in json.load(package.extractfile("package/chars.json")).items()}
    drawings = {}
    for code in codes().values():
        if code not in names:
            continue
        icon = icons["icons"][names[code]]
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, height=256)
        drawings[code] = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return drawings


@lru_cache(maxsize=1)
def codes(folder: Path = CACHE) -> dict[str, str]:
    """Code point of every object."""
    with tarfile.open(fetch(NAMES, folder)) as package:
        entries = json.load(package.extractfile("package/en/data.json"))
    code_of = {entry["label"]: key(entry["hexcode"]) for entry in entries}
    return {name: code_of[label] for name, label in OBJECTS.items()}


def build(folder: Path = CACHE) -> Path:
    """Write the atlas of all objects in all styles unless it is there, and return its path.

    Raises:
        ValueError: an object lacks a drawing in a style. The 3D package has drawings that are not of
            Microsoft's own set; those the flat package lacks are never used.
    """
    atlas, partial = folder / "art.npz", folder / "art.partial.npz"
    if atlas.exists() and (stored := read(atlas)) is not None and list(stored) == expected():
        return atlas
    readers = {
        "3D": (RENDERED, webp_drawings),
        "flat": (FLAT, svg_drawings),
        "cartoon": (CARTOON, svg_drawings),
    }
    sprites = []
    for style in STYLES:
        package, drawings_of = readers[style]
        with tarfile.open(fetch(package, folder)) as file:
            drawings = drawings_of(file)
        for name, code in codes().items():
            if code not in drawings:
                raise ValueError(f"the object {name!r} has no drawing in the style {style!r} ({package})")
            sprites.append(crop_to_square(drawings[code], SPRITE_SIZE))
    rgba = np.stack(sprites).reshape(len(STYLES), len(OBJECTS), SPRITE_SIZE, SPRITE_SIZE, 4)
    np.savez_compressed(partial, styles=np.array(list(STYLES)), names=np.array(list(OBJECTS)), rgba=rgba)
    os.replace(partial, atlas)
    return atlas


def expected() -> list[tuple[str, str]]:
    """What an atlas of this version holds, in order."""
    return [(style, name) for style in STYLES for name in OBJECTS]


def read(atlas: Path) -> dict[tuple[str, str], np.ndarray]:
    """What an atlas holds: (style, name) -> [96, 96, 4] uint8."""
    with np.load(atlas, allow_pickle=False) as stored:
        styles, names, rgba = (stored[part] for part in ("styles", "names", "rgba"))
    return {
        (style, name): rgba[i, j]
        for i, style in enumerate(styles.tolist())
        for j, name in enumerate(names.tolist())
    }


@lru_cache(maxsize=1)
def load(folder: Path = CACHE) -> dict[tuple[str, str], np.ndarray]:
    """Sprite of every object in every style: (style, name) -> [96, 96, 4] uint8.

    Raises:
        FileNotFoundError: the atlas has not been built.
        ValueError: the atlas holds other drawings than this version uses.
    """
    atlas = folder / "art.npz"
    command = "`python -m tbac_uniimage.training.nano.domain.art`"
    if not atlas.exists():
        raise FileNotFoundError(f"the drawings are not at {atlas}: fetch them with {command}")
    sprites = read(atlas)
    if list(sprites) != expected():
        raise ValueError(
            f"{atlas} holds other drawings than this version uses: build it again with {command}"
        )
    return sprites


if __name__ == "__main__":
    print(build())
