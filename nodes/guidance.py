"""Guidance of ladders as a GUIDER, and sampling with it. What stock guiders can do, they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.samplers import CFGGuider, calc_cond_batch, cfg_function, sampling_function
from comfy_extras.nodes_custom_sampler import Guider_DualCFG

from ..core.guidance import Guidance
from .inputs import RECIPE
from .ladders import check_conditioning, ladder_of, mix_conditioning
from .solver import recipe_sampler, recipe_sigmas

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

DOWNSCALE = "downscale_ratio_spacial"  # a key of LATENT, misspelt as ComfyUI has it


class LadderGuidance(Guider_DualCFG):
    """Text guidance that may differ from rung to rung, image guidance, and an interval of steps.

    Rungs of equal guidance in a row are a group. The prompt enters group by group, from the first rung up:

        v = v_0 + Σ g_k · (v_k − v_{k−1})

    where v_0 is predicted without the prompt, v_k with the prompt on the rungs of the groups 1 … k. With one
    group this is classifier-free guidance, computed by ComfyUI's own guiders.
    """

    def set_ladder(
        self,
        positive: list,
        negative: list,
        image_only: list | None,
        text: Sequence[float],
        image: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Set what guides, and how strongly.

        Args:
            positive, negative, image_only: CONDITIONING; the last is None without image guidance.
            text: guidance of the prompt for every rung, from 0; 1 = none.
            image: guidance of the input picture, from 0; 1 = none.
            interval: part of the steps that is guided, see :class:`..core.guidance.Guidance`.

        Raises:
            ValueError: a scale or an interval out of range, or a conditioning of another model.
        """
        ladder = ladder_of(self.model_patcher)
        for scale in text:
            Guidance(scale)
        self.guidance = Guidance(max(text), image, interval)
        conditionings = {"positive": positive, "negative": negative, "image_only": image_only}
        for name, conditioning in conditionings.items():
            if conditioning is not None:
                check_conditioning(ladder, name, conditioning)
        runs = [(scale, len(list(run))) for scale, run in groupby(text)]
        self.scales = [scale for scale, _ in runs]
        self.base = "negative" if image_only is None else "middle"
        if image_only is None:
            CFGGuider.set_conds(self, positive, negative)
        else:
            self.set_conds(positive, image_only, negative)
        self.cfg = self.scales[0]
        self.set_cfg(self.scales[0], image)

        source, entered = image_only or negative, 0
        for k, (_, count) in enumerate(runs[:-1], start=1):
            entered += count
            weights = [1.0] * entered + [0.0] * (ladder.rungs - entered)
            mixed = mix_conditioning(ladder, source, positive, weights)
            self.inner_set_conds({f"entered_{k}": mixed})

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Denoised latents, as ComfyUI's guiders return them."""
        model_options = model_options or {}
        arguments = (x, timestep, model_options, seed)
        if not self.is_guided(timestep, model_options):
            conds = self.conds["negative"], self.conds["positive"]
            return sampling_function(self.inner_model, x, timestep, *conds, 1.0, model_options, seed)
        if len(self.scales) > 1:
            return self.predict_groups(x, timestep, model_options)
        if self.base == "middle":
            return super().predict_noise(*arguments)
        return CFGGuider.predict_noise(self, *arguments)

    def is_guided(self, timestep: torch.Tensor, model_options: dict) -> bool:
        """Whether the step at noise level ``timestep`` lies in the interval."""
        sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
        if sigmas is None or self.guidance.interval == (0.0, 1.0):
            return True
        begun = (sigmas[1:] >= timestep.max().to(sigmas) * (1 - 1e-6)).sum().item()
        return self.guidance.is_active(begun, len(sigmas) - 1)

    def predict_groups(self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict) -> torch.Tensor:
        """The formula of the class, all branches in one batch as far as memory allows."""
        names = [self.base, *(f"entered_{k}" for k in range(1, len(self.scales))), "positive"]
        by_image = self.base == "middle" and self.guidance.image != 1
        names = ["negative", *names] if by_image else names
        conds = [self.conds[name] for name in names]
        found = calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        prompted = found[1:] if by_image else found
        change = sum(
            scale * (after - before)
            for scale, before, after in zip(self.scales, prompted, prompted[1:], strict=False)
        )

        def combine(cond: torch.Tensor, uncond: torch.Tensor, scale: float, to: int) -> torch.Tensor:
            branches = {"cond": conds[to], "uncond": conds[0], "model_options": model_options}
            return cfg_function(self.inner_model, cond, uncond, scale, x, timestep, **branches)

        if by_image:
            return combine(found[1], found[0], self.guidance.image, 1) + change
        # said as a single scale, so that nodes that change guidance (RescaleCFG and its kind) have their say
        scale = self.guidance.text
        return combine(found[0] + change / scale, found[0], scale, -1)


def choose_sampler(name: str) -> comfy.samplers.KSAMPLER:
    """A SAMPLER by its name in ComfyUI, or the recipe's."""
    return recipe_sampler() if name == RECIPE else comfy.samplers.sampler_object(name)


def choose_sigmas(
    model: ModelPatcher, sampler: str, scheduler: str, steps: int, denoise: float = 1.0
) -> torch.Tensor:
    """Noise levels ``[steps + 1]``: the recipe's, or those that KSampler would take; none for denoise 0."""
    if scheduler != RECIPE:
        stock = "euler" if sampler == RECIPE else sampler
        return comfy.samplers.KSampler(model, steps, "cpu", stock, scheduler, denoise).sigmas
    if denoise <= 0:
        return torch.zeros(0)
    total = steps if denoise > 0.9999 else int(steps / denoise)
    return recipe_sigmas(total)[-(steps + 1) :]


def sample_latent(
    guider: CFGGuider,
    latent: dict,
    seed: int,
    sampler: comfy.samplers.KSAMPLER,
    sigmas: torch.Tensor,
    callback: Callable[..., None] | None = None,
) -> dict:
    """Sample a LATENT with previews, progress and interrupts.

    Args:
        callback: told of every step in place of previews and progress.

    Raises:
        ValueError: a latent of another kind of model.
    """
    model = guider.model_patcher
    channels = model.get_model_object("latent_format").latent_channels
    samples = latent["samples"]
    if not samples.is_nested:
        # how newer ComfyUI's Empty Latent Image says what it assumed, so that its size can be put right
        told = {DOWNSCALE: latent[DOWNSCALE]} if DOWNSCALE in latent else {}
        samples = comfy.sample.fix_empty_latent_channels(model, samples, **told)
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != channels or 0 in samples.shape:
        found = "a video" if samples.is_nested else f"the shape {list(samples.shape)}"
        raise ValueError(
            f"The latent has {found}, this model needs {channels} channels; connect Empty Ladder Latent, or "
            "VAE Encode with the model's own VAE."
        )
    result = guider.sample(
        comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback or latent_preview.prepare_callback(model, max(len(sigmas) - 1, 1)),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    kept = {name: value for name, value in latent.items() if name != DOWNSCALE}
    return {**kept, "samples": result.to(comfy.model_management.intermediate_device())}
