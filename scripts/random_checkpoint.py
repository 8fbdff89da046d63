"""Random checkpoints in the released layout: the sizes of a model, and nothing learnt."""

from __future__ import annotations

from pathlib import Path

import torch
from tbac_uniimage.core.checkpoints import LadderParts
from tbac_uniimage.core.checkpoints.export import (
    complete_folder,
    released_config,
    released_tensors,
    write_json,
    write_weights,
)
from tbac_uniimage.core.checkpoints.released import RELEASED_SANA_ID
from tbac_uniimage.core.checkpoints.tokenizers import RELEASED_MLLM_ID

ADDED = ("base_configs", "image_pixels")  # to config.json by us; the published one has neither


def write_random(
    parts: LadderParts, folder: Path, *, as_published: bool = False, max_shard_size: str = "5GB"
) -> None:
    """Write a model of random weights in bfloat16; one file of it is in memory at a time.

    Args:
        parts: shapes on the meta device, and a tokenizer.
        folder: a path with nothing at it.
        as_published: leave out of ``config.json`` what only we add, so that a reader has to know the sizes.
        max_shard_size: larger models are written as several files and an index.
    """
    torch.manual_seed(0)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in released_tensors(parts).items()}
    config = released_config(parts, RELEASED_MLLM_ID, RELEASED_SANA_ID) | {"torch_dtype": "bfloat16"}
    if as_published:
        config = {name: value for name, value in config.items() if name not in ADDED}
    with complete_folder(folder) as unfinished:
        parts.tokenizer.save_pretrained(unfinished)
        parts.image_processor.save_pretrained(unfinished)
        write_weights(tensors, unfinished, max_shard_size, random_values)
        write_json(unfinished / "config.json", config)


def random_values(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Small weights as they are initialised, and norms that scale nothing."""
    if tensor.ndim == 1 and name.endswith("weight"):
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    return torch.empty(tensor.shape).normal_(std=0.02).to(tensor.dtype)
