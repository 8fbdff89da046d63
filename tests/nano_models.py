"""The embedded model as ComfyUI and as the Python pipeline load it, once per test session."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

ASSETS = Path(__file__).resolve().parent.parent / "assets"
PROMPT = "a green apple and a blue butterfly on a yellow background"
OTHER = "three stars on a purple background"


def config(part: str) -> dict:
    """Configuration of a part."""
    return json.loads((ASSETS / "nano" / part / "config.json").read_text(encoding="utf-8"))


CHANNELS, CELLS = config("transformer")["in_channels"], config("transformer")["sample_size"]  # of its latents
FACTOR = 2 ** (len(config("vae")["encoder_block_out_channels"]) - 1)  # by which its autoencoder compresses
SIDE = CELLS * FACTOR  # of its pictures, in pixels


@functools.cache
def nano_comfy() -> SimpleNamespace:
    """MODEL, MLLM and VAE. Only in tests that take the fixture ``comfy``."""
    from tbac_uniimage.nodes.bridge import load_for_comfy

    return SimpleNamespace(
        **dict(zip(("model", "mllm", "vae"), load_for_comfy(ASSETS / "nano"), strict=True))
    )


@functools.cache
def nano_pipe():
    """The pipeline in float32, as ComfyUI loads the model on the CPU."""
    from tbac_uniimage.core.checkpoints import load_parts
    from tbac_uniimage.core.pipeline import LadderPipeline

    pipeline = LadderPipeline(**vars(load_parts(ASSETS / "nano", dtype="float32")))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_picture() -> Image.Image:
    """A scene of icons."""
    return Image.open(ASSETS / "samples" / "tbac_uniimage_scene.png").convert("RGB")


def noise_like(latent: dict, seed: int) -> torch.Tensor:
    """The noise of a seed, as ComfyUI draws it."""
    return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(seed))
