"""The recipe's sampler as ComfyUI's SIGMAS and SAMPLER: diffusers' own scheduler does the arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
import torch
from tqdm.auto import trange

from ..core.schedulers import recipe_scheduler
from .diffusion import EXACT_TIMESTEP


def recipe_sigmas(steps: int) -> torch.Tensor:
    """Noise levels of the recipe, ``[steps + 1]``, from just below 1 to 0."""
    scheduler = recipe_scheduler()
    scheduler.set_timesteps(steps)
    return scheduler.sigmas


@torch.no_grad()
def sample_recipe(
    model: comfy.samplers.KSamplerX0Inpaint,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
) -> torch.Tensor:
    """DPM-Solver++ 2M on flow sigmas, in the form of ComfyUI's sampler functions.

    The model is asked at the scheduler's whole-numbered timesteps, as in training and in the pipeline.

    Args:
        model: returns the denoised latents for noisy ones and a sigma.
        x: noisy latents at ``sigmas[0]``.
        sigmas: falling noise levels that end in 0, of any scheduler.
    """
    scheduler = recipe_scheduler()
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas.cpu()  # the recipe's own, another schedule, or the end of one
    scheduler.timesteps = (scheduler.sigmas[:-1].double() * 1000).long()
    scheduler.set_begin_index(0)
    options = {**extra_args["model_options"]}
    ones = x.new_ones(len(x))
    if 0.99 < sigmas[0] < 1:  # from noise alone: the recipe starts with unit noise, ComfyUI scaled it
        x = x / sigmas[0]
    for i in trange(len(sigmas) - 1, disable=disable):
        sigma, timestep = sigmas[i], scheduler.timesteps[i]
        transformer_options = {**options.get("transformer_options", {}), EXACT_TIMESTEP: timestep.item()}
        arguments = {**extra_args, "model_options": {**options, "transformer_options": transformer_options}}
        denoised = model(x, sigma * ones, **arguments)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = scheduler.step((x - denoised) / sigma, timestep, x, return_dict=False)[0]
    return x


def recipe_sampler() -> comfy.samplers.KSAMPLER:
    """The SAMPLER for SamplerCustomAdvanced."""
    return comfy.samplers.KSAMPLER(sample_recipe)
