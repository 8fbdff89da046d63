"""What is trained, as one module: queries, connector and diffusion transformer (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ...core.canvas import encode_latents
from ...core.checkpoints import LadderParts
from ...core.encoder import LadderEncoder
from ...core.inputs import LadderInputs
from .objective import flow_matching_losses, flow_timesteps, spread

if TYPE_CHECKING:
    from ..data.batch import TrainBatch

Result = TypeVar("Result")


class LadderTrainee(nn.Module):
    """The trained parts around the frozen ones.

    Its parameters are those of ``connector`` (queries included) and ``transformer``. MLLM and autoencoder
    are reached through plain objects, so that no engine broadcasts, shards or saves them.

    Where the transformer checkpoints its activations, so do the MLLM's layers at the queries.

    Args:
        parts: the model; MLLM frozen.
        timesteps: distribution of the noise levels, see :func:`.objective.spread`.
        shift: how far the levels move towards noise.
    """

    def __init__(self, parts: LadderParts, timesteps: str = "uniform", shift: float = 1.0) -> None:
        super().__init__()
        self.connector = parts.connector
        self.transformer = parts.transformer
        self.timesteps = timesteps
        self.shift = shift
        self.encoder = LadderEncoder(
            parts.mllm,
            parts.connector,
            parts.tokenizer,
            parts.image_processor,
            num_layers=parts.transformer.config.num_layers,
            system_prompt=parts.system_prompt,
            max_text_tokens=parts.max_text_tokens,
            text_states=parts.transformer.config.text_states,
        )
        self.encoder.gradient_checkpointing = parts.transformer.gradient_checkpointing
        self.encoder.vision.keeps = False

    def forward(
        self,
        inputs: LadderInputs,
        latents: torch.Tensor,
        noise: torch.Tensor,
        u: torch.Tensor,
        mask: torch.Tensor | None = None,
        seen: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Losses of a micro-batch, float32 ``[batch]``.

        Args:
            inputs: prompts with their pictures; ``pixel_values`` stay on the CPU.
            latents: scaled latents of the targets ``[batch, channels, height, width]``.
            noise: standard normal, same shape.
            u: uniform draws in [0, 1), ``[batch]``.
            mask: how much every latent counts, see :func:`.objective.flow_matching_losses`.
            seen: what the transformer reads besides, see :func:`seen_beside`.
        """
        condition = self.encoder.encode(inputs)
        levels = spread(u, self.timesteps)
        return flow_matching_losses(
            self.transformer, condition, latents, noise, levels, self.shift, mask, seen
        )

    def arguments(self, parts: LadderParts, batch: TrainBatch, device: torch.device) -> tuple[Any, ...]:
        """Arguments of :meth:`forward` for a micro-batch, on a device."""
        latents = latents_of(parts.vae, batch.pixels, batch.latents, device)
        return (
            batch.inputs,
            latents,
            batch.noise.to(device, non_blocking=True),
            batch.u.to(device, non_blocking=True),
            None if batch.mask is None else batch.mask.to(device, non_blocking=True),
            seen_beside(parts, batch, latents),
        )

    def noise_levels(self, u: torch.Tensor) -> torch.Tensor:
        """Noise levels in (0, 1], 1 is pure noise, that uniform draws in [0, 1) lead to; ``[batch]``."""
        return flow_timesteps(spread(u, self.timesteps), self.shift)[0]

    def within(self, function: Callable[[], Result]) -> Result:
        """Call a function that uses the parts directly, with the parameters gathered as in ``forward``."""
        return function()


def parameters_by_name(trainee: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take a gradient, by name."""
    return {name: p for name, p in trainee.named_parameters() if p.requires_grad}


def latents_of(
    vae: nn.Module, pixels: torch.Tensor | None, latents: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """Scaled latents float32 on a device: those of a cache, else what ``vae`` makes of pixels in -1 … 1."""
    if latents is None:
        latents = encode_latents(vae, pixels.to(device, non_blocking=True))
    return latents.to(device, torch.float32, non_blocking=True)


def seen_beside(parts: LadderParts, batch: TrainBatch, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the transformer reads of a micro-batch besides its noisy ``latents``, by argument.

    What a sample has nothing of is zeros and not left out: the weights that read it have a gradient in every
    step, or processes could not reduce it.
    """
    seen = parts.transformer.nothing_seen(latents)
    if batch.edits:
        source = latents_of(parts.vae, batch.source_pixels, batch.source_latents, latents.device)
        seen["source_latents"][batch.edits] = source
    return seen
