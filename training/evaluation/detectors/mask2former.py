"""transformers' Mask2Former as mmdet 2.28 runs it: what it is shown, and what comes out of it.

The folder's own image processor is not asked: the hub's says 384 x 384 pixels, merges masks that overlap and
thresholds.
"""

from __future__ import annotations

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


def load(folder: Path, device: str, classes: int) -> Mask2FormerForUniversalSegmentation:
    """The detector on its device. Raises ValueError: it is another model, or of other classes."""
    from transformers import AutoConfig, Mask2FormerForUniversalSegmentation

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
    model = Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, config=config, use_safetensors=True, dtype=torch.float32
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
    rows, columns = weights(pixels.shape[0], height), weights(pixels.shape[1], width)
    (left, right), (near, far) = columns
    mixed = (
        pixels[:, left].astype(np.int64) * near[:, None] + pixels[:, right].astype(np.int64) * far[:, None]
    )
    (above, below), (near, far) = rows
    high, low = (((mixed[at] >> 4) * w[:, None, None]) >> 16 for at, w in ((above, near), (below, far)))
    return ((high + low + 2) >> 2).astype(np.uint8)


def weights(source: int, target: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Which two pixels of a line each new one lies between, and their weights of 2048."""
    at = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = np.where((first < 0) | (first >= source - 1), np.float32(0), at - first.astype(np.float32))
    first = first.clip(0, source - 1)
    near, far = (np.rint(part * np.float32(2048)).astype(np.int64) for part in (np.float32(1) - share, share))
    return (first, np.minimum(first + 1, source - 1)), (near, far)
