"""The training target: flow matching with v = noise - latent (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from ...core.conditions import LadderCondition
from ...core.transformer import LadderTransformer2DModel

TRAIN_TIMESTEPS = 1000


def flow_timesteps(u: torch.Tensor, shift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn uniform draws into noise levels on the training grid of 1,000 steps.

    Args:
        u: uniform draws in [0, 1), ``[batch]``.
        shift: how far the levels move towards noise; the published recipe trains with 1 and samples with 3.

    Returns:
        sigma in (0, 1] and timestep 1000 * sigma, both float32 ``[batch]``. u = 0 is pure noise.
    """
    index = (u * TRAIN_TIMESTEPS).long()
    sigma = (TRAIN_TIMESTEPS - index).to(torch.float32) / TRAIN_TIMESTEPS
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    return sigma, sigma * TRAIN_TIMESTEPS


def spread(u: torch.Tensor, timesteps: str) -> torch.Tensor:
    """Turn uniform draws into draws of the named distribution over (0, 1).

    Args:
        u: uniform draws in [0, 1).
        timesteps: ``uniform`` (the published recipe), or ``logit_normal``, which prefers the middle.

    Returns:
        float32 in [0, 1), of the shape of ``u``.
    """
    if timesteps == "uniform":
        return u
    if timesteps == "logit_normal":
        below_one = 1 - torch.finfo(torch.float32).eps
        return torch.special.ndtri(u.double()).sigmoid().float().clamp(max=below_one)
    raise ValueError(f"There is no distribution of timesteps named {timesteps}; use uniform or logit_normal.")


def flow_matching_losses(
    transformer: LadderTransformer2DModel,
    condition: LadderCondition,
    latents: torch.Tensor,
    noise: torch.Tensor,
    u: torch.Tensor,
    shift: float = 1.0,
    mask: torch.Tensor | None = None,
    seen: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Mean squared error of the predicted velocity of every sample, over what its mask leaves of it.

    A mean and not a sum: a sample weighs the same however much of it is masked, and as one without a mask.

    Args:
        latents: scaled latents of the target pictures ``[batch, channels, height, width]``.
        noise: standard normal, same shape.
        u: draws in [0, 1) that choose the timesteps, ``[batch]``.
        mask: how much every latent counts, ``[batch, height, width]`` from 0 to 1 and nowhere all 0; None:
            all of them do.
        seen: what the transformer reads besides, by argument.

    Returns:
        float32 ``[batch]``.
    """
    sigma, timestep = flow_timesteps(u, shift)
    sigma = sigma[:, None, None, None].to(latents)
    noisy = (1 - sigma) * latents + sigma * noise
    velocity = transformer(
        noisy,
        condition.states,
        timestep,
        encoder_attention_mask=condition.mask,
        text_tokens=condition.text_tokens,
        return_dict=False,
        **(seen or {}),
    )[0]
    errors = F.mse_loss(velocity.float(), (noise - latents).float(), reduction="none")
    if mask is None:
        return errors.flatten(1).mean(1)
    return (errors * mask[:, None]).flatten(1).mean(1) / mask.flatten(1).mean(1)


def flow_matching_loss(*args, **kwargs) -> torch.Tensor:
    """The mean of :func:`flow_matching_losses`, a float32 scalar."""
    return flow_matching_losses(*args, **kwargs).mean()
