"""Pictures as the detector takes them, and what it sees in many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..domain.scene import SIZE, Scene
from .detector import Detector, detect

BATCH = 64


def scaled(picture: np.ndarray) -> np.ndarray:
    """A picture [n * 64, n * 64, 3] uint8 at the judge's size: the mean of every n x n pixels."""
    return np.asarray(Image.fromarray(picture).reduce(len(picture) // SIZE))


def pixels(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures [H, W, 3] uint8 as one tensor [B, 3, H, W] float32 in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def see(detector: Detector, pictures: Sequence[np.ndarray]) -> list[Scene]:
    """What a detector in evaluation mode sees in pictures [64, 64, 3] uint8, or larger by a whole factor."""
    found: list[Scene] = []
    for start in range(0, len(pictures), BATCH):
        found += detect(detector, pixels([scaled(picture) for picture in pictures[start : start + BATCH]]))
    return found
