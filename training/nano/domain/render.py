"""Pictures of scenes: sprites and letters on a plain background."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from . import art, letters
from .scene import MIDDLE, SIZE, Item, Scene
from .words import BACKGROUNDS, PAINTS

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@lru_cache(maxsize=512)
def painted(style: str, name: str, paint: str) -> np.ndarray:
    """The sprite in shades of one paint, or in its own colours for "": [96, 96, 4] uint8.

    Its brightness is stretched first, so that dark drawings take the paint too: the darkest parts become a
    third of the paint, the median the paint itself, the brightest mix it with white.
    """
    rgba = art.load()[style, name]
    if not paint:
        return rgba
    luma = rgba[..., :3].astype(np.float32) / 255 @ LUMA
    low, middle, high = np.percentile(luma[rgba[..., 3] > 128], (3, 50, 97))
    steps = [min(low, middle - 0.15), middle, max(high, middle + 0.1)]  # flat drawings have one brightness
    colour = np.array(PAINTS[paint], np.float32)
    shades = np.stack([0.35 * colour, colour, 0.6 * colour + 0.4 * 255])
    result = rgba.copy()
    for channel in range(3):
        result[..., channel] = np.interp(luma, steps, shades[:, channel])
    return result


@lru_cache(maxsize=1 << 14)
def sprite(style: str, name: str, paint: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours times alpha [size, size, 3] and the background's share [size, size, 1], float32, colours
    0..255.
    """
    channels = painted(style, name, paint).astype(np.float32)
    channels[..., :3] *= channels[..., 3:] / 255  # resizing mixes colours by their alpha
    small = np.stack(
        [np.asarray(Image.fromarray(channels[..., i]).resize((size, size), Image.LANCZOS)) for i in range(4)],
        -1,
    ).clip(0, 255)
    return small[..., :3], 1 - small[..., 3:] / 255


def window(item: Item, scale: int = 1) -> tuple[slice, slice]:
    """Rows and columns that an item's square covers in a picture of `scale` times the scene's size."""
    top, left = (scale * (centre - item.size // 2) for centre in (item.y, item.x))
    side = scale * item.size
    return slice(top, top + side), slice(left, left + side)


def render(scene: Scene, size: int = SIZE) -> np.ndarray:
    """Picture of a scene: [size, size, 3] uint8. Every sprite must lie inside the picture.

    `size` is a multiple of the scene's own: everything covers exactly the same part of a larger picture, in
    finer detail, a word's dots excepted.
    """
    scale = size // SIZE
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for item in scene.items:
        colours, rest = sprite(scene.style, item.name, item.paint, scale * item.size)
        part = picture[window(item, scale)]
        part *= rest
        part += colours
    if scene.word:
        top = scale * (scene.word.y - letters.HEIGHT // 2)
        for letter, x in zip(scene.word.letters, letters.centres(scene.word.letters, MIDDLE), strict=True):
            left = scale * (x - letters.WIDTH // 2)
            part = picture[top : top + scale * letters.HEIGHT, left : left + scale * letters.WIDTH]
            part[letters.mask(letter, scale)] = letters.INK[scene.background]
    return picture.clip(0, 255).astype(np.uint8)
