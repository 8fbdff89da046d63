"""transformers' Mask2Former as mmdet 2.28 runs it: what it is shown, and what comes out of it.

The folder's own image processor is not asked: the hub's says 384 x 384 pixels, merges masks that overlap and
thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .instances import Instances, instances

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

LONGEST, SHORTEST = 1333, 800  # pixels that a picture is scaled into
MULTIPLE, PAD = 32, 128
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def check(folder: Path, classes: int) -> None:
    """Raise ValueError unless a folder is that of a detector of so many classes."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"{folder} holds no model of transformers ({said}).") from error
    if config.model_type != "mask2former" or config.num_labels != classes:
        kind = f"a {config.model_type} of {config.num_labels} classes"
        raise ValueError(
            f"{folder} is {kind}, not a Mask2Former of {classes}; give "
            "facebook/mask2former-swin-small-coco-instance or a converted checkpoint."
        )


def load(folder: Path, device: str, classes: int) -> Mask2FormerForUniversalSegmentation:
    """The detector on its device. Raises ValueError: it is another model, or of other classes."""
    from transformers import Mask2FormerForUniversalSegmentation

    check(folder, classes)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32
    )
    return model.eval().to(device)


@torch.no_grad()
def detect(model: Mask2FormerForUniversalSegmentation, picture: Image.Image) -> Instances:
    """What is in a picture, the surest first, with masks of the picture's size."""
    pixels, valid = prepare(picture)
    output = model(pixel_values=pixels.to(model.device))
    masks = functional.interpolate(
        output.masks_queries_logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False
    )
    size = (picture.height, picture.width)
    return instances(output.class_queries_logits[0], masks[0], valid, size)


def prepare(
    picture: Image.Image, longest: int = LONGEST, shortest: int = SHORTEST
) -> tuple[Tensor, tuple[int, int]]:
    """What the network is shown of a picture.

    Args:
        picture: RGB.
        longest, shortest: sides that it is scaled into, up or down.

    Returns:
        Pixels ``[1, 3, height, width]``, normalised, both sides multiples of 32; height and width without
        padding.
    """
    sides = picture.height, picture.width
    scale = min(longest / max(sides), shortest / min(sides))
    height, width = (int(side * scale + 0.5) for side in sides)
    resized = resize(np.array(picture.convert("RGB")), height, width)
    pixels = torch.from_numpy(resized).permute(2, 0, 1)[None].float()
    pixels = functional.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE), value=PAD)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, (height, width)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, not antialiased, in whole numbers as OpenCV's: weights of 11 bits, and what it cuts off.

    Args:
        pixels: ``[rows, columns, 3]`` uint8.
        height, width: wanted.
    """
    left, share = between(pixels.shape[1], width)
    share[(left < 0) | (left >= pixels.shape[1] - 1)] = 0  # of rows beyond an edge it takes the edge twice
    columns = pixels.astype(np.int64).swapaxes(0, 1)
    rows = blend(columns, left, share, lambda part, weight: part * weight).swapaxes(0, 1)
    above, share = between(pixels.shape[0], height)
    mixed = blend(rows, above, share, lambda part, weight: ((part >> 4) * weight) >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


def between(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of the pixel before each new one of a line, from -1 on, and how far behind it that one lies."""
    at = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    before = np.floor(at)
    return before.astype(np.int64), at - before


def blend(
    lines: np.ndarray,
    before: np.ndarray,
    share: np.ndarray,
    weigh: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Lines between lines; weights are whole numbers of 2048."""
    parts = []
    for at, part in ((before, np.float32(1) - share), (before + 1, share)):
        weight = np.rint(part * np.float32(2048)).astype(np.int64)
        parts.append(weigh(lines[at.clip(0, len(lines) - 1)], weight[:, None, None]))
    return parts[0] + parts[1]
