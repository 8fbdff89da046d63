"""The artwork of the sprite scenes: fetched from npm, joined by code point, stored as one atlas without
pickle.

`python -m tbac_uniimage.training.nano.sprites` runs `npm pack` for three pinned packages and writes
`.cache/nano/sprites.npz`: `names` [N] (unicode) and `rgba` [N, 96, 96, 4] uint8, every drawing cropped to its
visible part and centred in a square. Both steps are skipped when their result is already there.
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

CACHE = Path(os.environ.get("TBAC_UNIIMAGE_CACHE", Path(__file__).resolve().parents[2] / ".cache")) / "nano"
SPRITE_SIZE = 96

ART = "@lobehub/fluent-emoji-3d@1.1.0"
PROVENANCE = "@iconify-json/fluent-emoji-flat@1.2.6"
NAMES = "emojibase-data@17.0.0"
PACKAGES = {  # what each package gives, and under which licence
    ART: "3D drawings (WebP), Fluent Emoji by Microsoft Corporation, packaged by LobeHub: MIT",
    PROVENANCE: "list of the code points in Microsoft's own set (MIT); no drawing of it is used",
    NAMES: "names of the code points: MIT, Copyright (c) 2017-2019 Miles Johnson",
}

# Word used in captions -> label of the code point in emojibase. Chosen to differ in outline and in colour.
OBJECTS = {
    "cat": "cat face",
    "dog": "dog face",
    "panda": "panda",
    "fox": "fox",
    "frog": "frog",
    "pig": "pig face",
    "penguin": "penguin",
    "chick": "baby chick",
    "octopus": "octopus",
    "fish": "tropical fish",
    "butterfly": "butterfly",
    "turtle": "turtle",
    "rose": "rose",
    "sunflower": "sunflower",
    "cactus": "cactus",
    "mushroom": "mushroom",
    "apple": "red apple",
    "banana": "banana",
    "strawberry": "strawberry",
    "carrot": "carrot",
    "pizza": "pizza",
    "donut": "doughnut",
    "car": "automobile",
    "bus": "bus",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "house": "house",
    "star": "star",
    "moon": "crescent moon",
    "heart": "red heart",
    "balloon": "balloon",
    "guitar": "guitar",
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
    """Code-point sequence as all three packages agree on it: lower case, without the emoji variation
    selector.
    """
    return code_points.lower().replace("-fe0f", "")


def crop_to_square(drawing: Image.Image, size: int) -> np.ndarray:
    """Visible part of an RGBA drawing, centred in a square of `size` pixels: [size, size, 4] uint8."""
    box = drawing.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    visible = drawing.crop(box)
    side = max(visible.size)
    square = Image.new("RGBA", (side, side))
    square.paste(visible, ((side - visible.width) // 2, (side - visible.height) // 2))
    return np.asarray(square.resize((size, size), Image.LANCZOS))


def build(folder: Path = CACHE) -> Path:
    """Write the atlas of `OBJECTS` and return its path.

    Raises:
        ValueError: an object has no drawing, or its code point is not in Microsoft's own set.
    """
    art, provenance, names = (tarfile.open(fetch(package, folder)) for package in (ART, PROVENANCE, NAMES))
    with art, provenance, names:
        code_of = {
            entry["label"]: key(entry["hexcode"])
            for entry in json.load(names.extractfile("package/en/data.json"))
        }
        microsoft = {key(code) for code in json.load(provenance.extractfile("package/chars.json"))}
        drawings = {key(Path(file.name).stem): file for file in art if file.name.endswith(".webp")}
        sprites = []
        for name, label in OBJECTS.items():
            code = code_of.get(label)
            if code not in drawings or code not in microsoft:
                raise ValueError(
                    f"the object {name!r} (label {label!r}) has no drawing of Microsoft's own set"
                )
            drawing = Image.open(io.BytesIO(art.extractfile(drawings[code]).read())).convert("RGBA")
            sprites.append(crop_to_square(drawing, SPRITE_SIZE))
    atlas, partial = folder / "sprites.npz", folder / "sprites.partial.npz"
    np.savez_compressed(partial, names=np.array(list(OBJECTS)), rgba=np.stack(sprites))
    os.replace(partial, atlas)
    return atlas


@lru_cache(maxsize=1)
def load(folder: Path = CACHE) -> dict[str, np.ndarray]:
    """Sprite of every object: name -> [96, 96, 4] uint8.

    Raises:
        FileNotFoundError: the atlas has not been built.
        ValueError: the atlas holds other objects than `OBJECTS`.
    """
    atlas = folder / "sprites.npz"
    if not atlas.exists():
        raise FileNotFoundError(
            f"the sprites are not at {atlas}: fetch them with `python -m tbac_uniimage.training.nano.sprites`"
        )
    with np.load(atlas, allow_pickle=False) as stored:
        sprites = dict(zip(stored["names"].tolist(), stored["rgba"], strict=True))
    if list(sprites) != list(OBJECTS):
        raise ValueError(f"{atlas} holds other objects than this version uses: delete it and build it again")
    return sprites


if __name__ == "__main__":
    print(build())
