"""Mask2Former's logits become instances as in mmdet 2.28 (``MaskFormerFusionHead``), for GenEval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PER_PICTURE = 100


@dataclass(frozen=True)
class Instances:
    """Instances of a picture, the surest first.

    Attributes:
        labels: ``[n]`` numbers of classes.
        boxes: ``[n, 5]`` left, top, right, bottom (exclusive) and score; all 0 where a mask is empty.
        masks: ``[n, height, width]`` bool.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor


@torch.no_grad()
def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    valid: tuple[int, int],
    size: tuple[int, int],
    limit: int = PER_PICTURE,
) -> Instances:
    """Instances of one picture; a query yields one for each of its classes that is among the best.

    Args:
        class_logits: ``[queries, classes + 1]``, the last being "no object".
        mask_logits: ``[queries, height, width]`` at the padded size of the network's input.
        valid: height and width without padding.
        size: height and width of the picture.
        limit: pairs of query and class that are taken.
    """
    scores = class_logits.softmax(-1)[:, :-1]
    best, at = scores.flatten().topk(min(limit, scores.numel()))
    queries, labels = at // scores.shape[1], at % scores.shape[1]
    logits = mask_logits[:, : valid[0], : valid[1]][:, None]
    logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[queries, 0]
    masks = logits > 0
    inside = masks.flatten(1).float()
    sure = best * (logits.sigmoid().flatten(1) * inside).sum(1) / (inside.sum(1) + 1e-6)
    order = sure.argsort(descending=True, stable=True)
    return Instances(labels[order], torch.cat([tight(masks), sure[:, None]], 1)[order], masks[order])


def tight(masks: Tensor) -> Tensor:
    """Left, top, right and bottom (exclusive) of masks ``[n, height, width]``, as ``[n, 4]`` floats."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for i, mask in enumerate(masks):
        if mask.any():
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            boxes[i] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return boxes
