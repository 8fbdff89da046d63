"""From a checkpoint on disk to ComfyUI's MODEL, our MLLM and ComfyUI's VAE."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import torch

from ..core.checkpoints import load_parts
from .autoencoder import LadderVAE, fit_latent_rgb
from .diffusion import LadderLatentFormat, make_model
from .mllm import LadderMLLM, LatentSize

TORCH_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


def load_for_comfy(
    path: Path, weight_dtype: str = "default"
) -> tuple[comfy.model_patcher.ModelPatcher, LadderMLLM, LadderVAE]:
    """Load a checkpoint; every weight is held once, by the object that ComfyUI manages.

    Args:
        path: pipeline folder, released folder or file.
        weight_dtype: a key of ``TORCH_DTYPES``, for the diffusion model. "fp32" and "bf16" hold for the
            MLLM and the autoencoder too.

    Raises:
        ValueError: what is wrong with the checkpoint, one sentence.
    """
    parts = load_parts(path)
    dtype = TORCH_DTYPES[weight_dtype]
    others = dtype if dtype in (torch.bfloat16, torch.float32) else None
    vae = LadderVAE(parts.vae, others)
    config = parts.transformer.config
    size = LatentSize(config.in_channels, vae.downscale_ratio, config.sample_size * vae.downscale_ratio)
    scale = parts.vae.config.scaling_factor
    latent_format = LadderLatentFormat(size, scale, fit_latent_rgb(vae, scale))
    if others is None:
        device = comfy.model_management.text_encoder_device()
        others = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
    mllm = LadderMLLM(parts, others, size)
    return make_model(parts.transformer, latent_format, dtype), mllm, vae
