"""Where and how a command computes: device, types, offloading, step cache, compilation."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..core.checkpoints import Dtypes
    from ..core.pipeline import LadderPipeline


def best_device() -> str:
    """The fastest device of this machine."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def cpu_dtype(part: str, module: nn.Module, stored: torch.dtype) -> Dtypes:
    """On a CPU weights in bfloat16 stay so where it multiplies them, and all others become float32."""
    import torch

    from ..core.checkpoints import Dtypes
    from ..core.processor import multiplies_bfloat16

    kept = stored == torch.bfloat16 and multiplies_bfloat16()
    return Dtypes(*[torch.bfloat16 if kept else torch.float32] * 2)


def check_offload(device: str) -> None:
    """Raise ValueError unless parts can be moved in and out of this device."""
    from importlib.util import find_spec

    from ..core.checkpoints.parts import check_device

    if device == "cpu":
        raise ValueError(
            "--offload keeps the parts in main memory, where a CPU has them anyway; leave it out."
        )
    if find_spec("accelerate") is None:
        raise ValueError("--offload needs accelerate; pip install accelerate.")
    check_device(device)


def speed_up(pipeline: LadderPipeline, options: argparse.Namespace) -> None:
    """Step cache and compilation, as the options want them."""
    if options.cache:
        from diffusers.hooks import FirstBlockCacheConfig

        pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=options.cache))
    if options.compile:
        pipeline.transformer.compile_repeated_blocks()
