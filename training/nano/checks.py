"""When a picture counts: GenEval's rules on what the detector found, and what an edit must keep."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import scenes
from .detector import Found
from .edits import Edit
from .scenes import PLACES, RELATIONS, SIZE, Item, Scene
from .sprites import OBJECTS

NEAR = 0.16 * SIZE  # an object stands where it should if both coordinates are this close
MARGIN = 0.1 * SIZE  # GenEval's: "left of" means by at least a tenth of the picture


def follows_caption(found: Found, scene: Scene) -> bool:
    """Whether the objects, their number and their places are as the caption says; the background is not
    asked.
    """
    items = [item for item, _ in found.items]
    names = [item.name for item in items]
    wanted = [item.name for item in scene.items]
    if scene.kind == "count":
        return names.count(wanted[0]) == len(wanted)
    if not all(name in names for name in wanted):
        return False
    if scene.kind != "position":
        return True
    first = items[names.index(wanted[0])]
    if len(wanted) == 1:
        x, y = PLACES[scene.relation]
        return abs(first.x - x) < NEAR and abs(first.y - y) < NEAR
    second = items[names.index(wanted[1])]
    right, down = first.x - second.x, first.y - second.y
    return {
        "to the left of": right < -MARGIN,
        "to the right of": right > MARGIN,
        "above": down < -MARGIN,
        "below": down > MARGIN,
    }[scene.relation]


def objects_right(found: Found, scene: Scene) -> float:
    """Share of the caption's objects that were found, wherever."""
    names = {item.name for item, _ in found.items}
    wanted = {item.name for item in scene.items}
    return len(wanted & names) / len(wanted)


def follows_edit(found: Found, edit: Edit) -> bool:
    """Whether exactly the target's objects stand at their places on its background."""
    left = [item for item, _ in found.items]
    if found.background != edit.target.background or len(left) != len(edit.target.items):
        return False
    if edit.kind == "count":  # any arrangement of the wanted number will do
        return all(item.name == edit.target.items[0].name for item in left)

    def matches(item: Item, wanted: Item) -> bool:
        return item.name == wanted.name and abs(item.x - wanted.x) < NEAR and abs(item.y - wanted.y) < NEAR

    for wanted in edit.target.items:
        match = next((item for item in left if matches(item, wanted)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def guess_chance(scene: Scene) -> float:
    """Probability that a scene of the same kind, drawn blindly, follows the caption."""
    objects = len(OBJECTS)
    if scene.kind == "count":
        return 1 / objects / 2
    if len(scene.items) == 1:
        return 1 / objects / (len(PLACES) if scene.kind == "position" else 1)
    pair = 1 / math.comb(objects, 2)
    return pair / len(RELATIONS) if scene.kind == "position" else pair


def keep_mask(edit: Edit) -> np.ndarray:
    """Pixels [64, 64] that an edit must not change: where source and target agree.

    When the background changes these are the pixels that the sprites cover wholly.
    """
    if edit.kind == "background":
        over = [scenes.render(Scene(b, edit.target.items, "")).astype(int) for b in ("white", "blue")]
        return np.abs(over[0] - over[1]).max(-1) < 3
    before, after = scenes.render(edit.source).astype(int), scenes.render(edit.target).astype(int)
    return np.abs(before - after).max(-1) == 0


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity map [64, 64] of two pictures [3, 64, 64] in 0..1, on grey values, 7 x 7
    windows.
    """
    pair = torch.stack([first, second]).mean(1, keepdim=True)

    def blur(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="reflect"), 7, 1)

    mean, square, product = blur(pair), blur(pair**2), blur(pair[:1] * pair[1:])
    variance, covariance = square - mean**2, product - mean[:1] * mean[1:]
    small, large = 0.01**2, 0.03**2
    above = (2 * mean[:1] * mean[1:] + small) * (2 * covariance + large)
    below = (mean.square().sum(0) + small) * (variance.sum(0) + large)
    return (above / below)[0, 0]


def preservation(picture: np.ndarray, edit: Edit) -> tuple[float, float]:
    """PSNR in decibels (at most 60) and SSIM of what an edit must keep, against the exact target."""
    mask = torch.from_numpy(keep_mask(edit))
    both = torch.from_numpy(np.stack([picture, scenes.render(edit.target)])).permute(0, 3, 1, 2).float() / 255
    error = (both[0] - both[1]).square().mean(0)[mask].mean().item()
    return -10 * math.log10(max(error, 1e-6)), ssim(*both)[mask].mean().item()
