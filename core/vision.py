"""What the MLLM's vision tower makes of pictures, kept by their content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .versions import image_features

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

    from .inputs import LadderInputs

VISION_CACHE_SIZE = 16  # images; one of the released model is 256 x 2048 values


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a module computes, if its weights may lie elsewhere between calls.

    accelerate's sequential offload says it in its hook, a node of ComfyUI in an attribute of that name.
    """
    for said_by in (module, getattr(module, "_hf_hook", None)):
        device = getattr(said_by, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return module.weight.device


def image_keys(images: Sequence[torch.Tensor], grid: torch.Tensor) -> list[bytes]:
    """The same for images of the same patches and grid."""
    return [
        hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() + g.numpy().tobytes()
        for image, g in zip(images, grid, strict=True)
    ]


def recall(kept: OrderedDict[bytes, torch.Tensor], keys: Sequence[bytes], most: int) -> list[torch.Tensor]:
    """What is kept under these keys; of all that is, the ``most`` used last stay."""
    for key in keys:
        kept.move_to_end(key)
    found = [kept[key] for key in keys]
    while len(kept) > most:
        kept.popitem(last=False)
    return found


class LadderVision:
    """The vision tower of an MLLM.

    Several branches of a guided batch hold the same image, and an edit is often tried again with other words,
    so features are kept by the content of the patches.

    Args:
        mllm: the frozen MLLM.

    Attributes:
        keeps: whether they are. Training does without: there hardly an image comes twice.
        cache: vision tokens by :func:`image_keys`, those used last at the end.
    """

    def __init__(self, mllm: Qwen2_5_VLForConditionalGeneration) -> None:
        self.mllm = mllm
        self.keeps = True
        self.cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def of(self, inputs: LadderInputs) -> torch.Tensor | None:
        """Vision tokens of a batch, computed or known; None without pictures."""
        if inputs.pixel_values is None:
            return inputs.features
        return self(inputs.pixel_values, inputs.image_grid_thw)

    def __call__(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Vision tokens of all images in order ``[tokens, mllm_dim]``; each distinct image runs once."""
        if not self.keeps:
            return torch.cat(self.run(pixels, grid))
        images = pixels.split(grid.prod(-1).tolist())
        keys = image_keys(images, grid)
        new = {key: i for i, key in enumerate(keys) if key not in self.cache}
        if new:
            chosen = list(new.values())
            features = self.run(torch.cat([images[i] for i in chosen]), grid[chosen])
            self.cache.update(zip(new, features, strict=True))
        return torch.cat(recall(self.cache, keys, VISION_CACHE_SIZE))

    def run(self, pixels: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Vision tokens of every image, each ``[tokens, mllm_dim]``."""
        projection = self.mllm.model.visual.patch_embed.proj
        device = execution_device(projection)
        # a norm has the type that is computed in, where linear layers keep their weights in fewer bits
        patches = pixels.to(device, self.mllm.model.visual.blocks[0].norm1.weight.dtype)
        return image_features(self.mllm.model, patches, grid.to(device))
