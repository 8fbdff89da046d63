"""From a checkpoint on disk to ComfyUI's MODEL, our MLLM and ComfyUI's VAE."""

from __future__ import annotations

import functools
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import torch

from ..core.checkpoints import Dtypes, FileWatch, LadderParts, load_parts, own_weights
from .autoencoder import LadderVAE, fit_latent_rgb, preferred_dtype
from .diffusion import LadderLatentFormat, make_model, weight_dtypes
from .mllm import LadderMLLM, LatentSize
from .offload import LAYERS, computed_in
from .scaled import is_scaled

TORCH_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
COMPUTED_IN = (torch.bfloat16, torch.float32)


def load_for_comfy(
    path: Path, weight_dtype: str = "default", transformer_file: Path | None = None
) -> tuple[comfy.model_patcher.ModelPatcher, LadderMLLM, LadderVAE]:
    """Load a checkpoint; every weight is held once, by the object that ComfyUI manages.

    The weights are copied out of the files, which may be replaced or removed afterwards.

    Args:
        path: pipeline folder, released folder or file.
        weight_dtype: a key of ``TORCH_DTYPES``. "bf16" and "fp32" hold for all parts, "fp16" and
            "fp8_e4m3fn" for the large weights of the diffusion model and of the language model; the
            autoencoder is small and keeps what ComfyUI prefers. With "default" the language model's large
            weights are never kept longer than they are in the file.
        transformer_file: a diffusion transformer alone, in place of the checkpoint's own.

    Raises:
        ValueError: what is wrong with the checkpoint, one sentence.
    """
    dtype = TORCH_DTYPES[weight_dtype]
    files = (path, transformer_file)
    watch = FileWatch(*(file for file in files if file is not None))
    rule = functools.partial(kept_as, dtype)
    plain, scaled = told_apart(transformer_file)
    parts = load_parts(path, transformer_file=plain, dtype=rule, own=watch)
    computed, layers = parts.connector.dtype, layer_dtype(parts.mllm)

    vae = LadderVAE(parts.vae, parts.vae.dtype)
    config = parts.transformer.config
    size = LatentSize(vae.latent_channels, vae.downscale_ratio, config.sample_size * vae.downscale_ratio)
    scale = parts.vae.config.scaling_factor
    latent_format = LadderLatentFormat(size, scale, functools.partial(fit_latent_rgb, vae, scale))
    mllm = LadderMLLM(parts, computed, size, None if layers == computed else layers, vae)
    model = make_model(parts.transformer, latent_format, dtype, scaled=scaled)
    # how ComfyUI gets a copy of its own, without dynamic VRAM or for another GPU
    model.cached_patcher_init = (reload_model, (*files, dtype, latent_format))
    vae.patcher.cached_patcher_init = (reload_vae, (*files, dtype))
    return model, mllm, vae


def kept_as(dtype: torch.dtype | None, part: str, module: torch.nn.Module, stored: torch.dtype) -> Dtypes:
    """What the weights of a part are kept in; those of norms, biases and embeddings are computed in, too.

    Args:
        dtype: a value of :data:`TORCH_DTYPES`.
        stored: what the file has.
    """
    if part == "transformer":
        return weight_dtypes(module, dtype)
    if part == "vae":
        return Dtypes(*[dtype if dtype in COMPUTED_IN else preferred_dtype()] * 2)
    if dtype in COMPUTED_IN:
        return Dtypes(dtype, dtype)
    computed = computed_in(dtype, comfy.model_management.text_encoder_device())
    if part == "connector":
        return Dtypes(computed, computed)
    return Dtypes(computed, dtype or min(computed, stored, key=lambda kind: kind.itemsize))


def told_apart(transformer_file: Path | None) -> tuple[Path | None, Path | None]:
    """The file of a transformer as one that core reads, and as one with ComfyUI's scales."""
    return (None, transformer_file) if is_scaled(transformer_file) else (transformer_file, None)


def read_parts(path: Path, transformer_file: Path | None) -> tuple[LadderParts, FileWatch]:
    """The parts as views onto their files, and what tells whether these change meanwhile."""
    watch = FileWatch(path, *([] if transformer_file is None else [transformer_file]))
    return load_parts(path, transformer_file=told_apart(transformer_file)[0]), watch


def reload_model(
    path: Path,
    transformer_file: Path | None,
    dtype: torch.dtype | None,
    latent_format: LadderLatentFormat,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of :func:`load_for_comfy` once more, with weights of its own."""
    parts, watch = read_parts(path, transformer_file)
    own_weights(parts.transformer, watch, dtype if dtype in COMPUTED_IN else None)
    scaled = told_apart(transformer_file)[1]
    return make_model(parts.transformer, latent_format, dtype, disable_dynamic, scaled)


def reload_vae(
    path: Path, transformer_file: Path | None, dtype: torch.dtype | None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher of its VAE once more."""
    parts, watch = read_parts(path, transformer_file)
    dtype = dtype if dtype in COMPUTED_IN else None
    own_weights(parts.vae, watch, dtype)
    return LadderVAE(parts.vae, dtype, disable_dynamic).patcher


def layer_dtype(module: torch.nn.Module) -> torch.dtype:
    """What the large weights of a module are in."""
    return next(layer.weight.dtype for layer in module.modules() if isinstance(layer, LAYERS))
