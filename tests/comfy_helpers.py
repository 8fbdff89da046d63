"""Shorthands for calling our nodes in-process. ComfyUI is imported only when they are called."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from PIL import Image

PROMPT = "a red apple on a wooden table"
OTHER = "three green bottles in a row"
INSTRUCTION = "make the sky pink"
STEPS = 6


def as_batch(image: Image.Image) -> torch.Tensor:
    """A PIL image the way LoadImage gives it."""
    import numpy as np

    return torch.from_numpy(np.asarray(image).astype("float32") / 255)[None]


def in_both(pipeline, folder) -> SimpleNamespace:
    """A pipeline as ComfyUI and as Python have it, saved in a folder on the way."""
    from tbac_uniimage.nodes.bridge import load_for_comfy

    pipeline.save_pretrained(folder)
    names = ("model", "mllm", "vae")
    return SimpleNamespace(pipe=pipeline, **dict(zip(names, load_for_comfy(folder), strict=True)))


def encode(loaded, prompt: str) -> list:
    from tbac_uniimage.nodes.conditioning import LadderEncode

    return LadderEncode.execute(loaded.mllm, prompt).result[0]


def edit(loaded, picture: Image.Image) -> tuple:
    from tbac_uniimage.nodes.conditioning import LadderImageEdit

    return LadderImageEdit.execute(loaded.mllm, INSTRUCTION, as_batch(picture)).result


def empty(loaded, batch: int = 1) -> dict:
    from tbac_uniimage.nodes.sampling import LadderEmptyLatent

    return LadderEmptyLatent.execute(loaded.model, 0, 0, batch).result[0]


def ladder_sample(
    model, positive, negative, latent, image_only=None, guidance=4.5, image_guidance=1.5, seed=7
):
    from tbac_uniimage.nodes.sampling import LadderSampler

    result = LadderSampler.execute(
        model, positive, negative, latent, seed, STEPS, guidance, image_guidance, image_only
    )
    return result.result[0]["samples"]


def reference(pipe, prompt, seed=7, **options) -> torch.Tensor:
    """The pipeline's final latents, unscaled as LATENT wires carry them."""
    options = {"num_inference_steps": STEPS, "output_type": "latent", **options}
    latents = pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images
    return latents / pipe.vae.config.scaling_factor


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def velocity(model, latents, sigma: float, context) -> torch.Tensor:
    """What the MODEL predicts, as any sampler would ask it (denoised -> velocity)."""
    denoised = model.model.apply_model(latents, torch.tensor([sigma]), c_crossattn=context)
    return (latents - denoised) / sigma
