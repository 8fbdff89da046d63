"""How well an edited picture kept what the instruction did not speak of."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..domain.edits import Edit
from ..domain.render import render
from ..domain.scene import SIZE
from .pictures import scaled

FEWEST = 16  # pixels that must stay for a figure to mean something
BEST = 60.0  # decibels that are given for equal pixels


def keep_mask(edit: Edit, size: int = SIZE) -> np.ndarray:
    """Pixels [64, 64] bool that must not change: where source and result agree, drawn with `size` pixels.

    When the background changes these are the pixels that unchanged sprites cover wholly.
    """
    before, after = (scaled(render(scene, size)).astype(int) for scene in (edit.source, edit.target))
    return np.abs(before - after).max(-1) == 0


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity [64, 64] of two pictures [3, 64, 64] in 0..1, of grey values in 7 x 7 windows."""
    pair = torch.stack([first, second]).mean(1, keepdim=True)

    def blur(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="reflect"), 7, 1)

    mean, square, product = blur(pair), blur(pair**2), blur(pair[:1] * pair[1:])
    variance, covariance = square - mean**2, product - mean[:1] * mean[1:]
    small, large = 0.01**2, 0.03**2
    above = (2 * mean[:1] * mean[1:] + small) * (2 * covariance + large)
    below = (mean.square().sum(0) + small) * (variance.sum(0) + large)
    return (above / below)[0, 0]


def preservation(picture: np.ndarray, edit: Edit) -> tuple[float, float] | None:
    """PSNR in decibels (at most `BEST`) and SSIM of what an edit must keep, against the exact result.

    Both at the judge's size. None where hardly anything must stay.
    """
    size = len(picture)
    mask = torch.from_numpy(keep_mask(edit, size))
    if mask.sum() < FEWEST:
        return None
    pair = np.stack([scaled(each) for each in (picture, render(edit.target, size))])
    both = torch.from_numpy(pair).permute(0, 3, 1, 2).float() / 255
    error = (both[0] - both[1]).square().mean(0)[mask].mean().item()
    floor = 10 ** (-BEST / 10)
    return -10 * math.log10(max(error, floor)), ssim(*both)[mask].mean().item()
