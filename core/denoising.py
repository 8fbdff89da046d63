"""Denoising: guided velocities, one step of the solver after another, and latents that stay the source's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from diffusers.schedulers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .guidance import Guidance
from .rung_attention import Rungs
from .schedulers import step_options
from .transformer import LadderTransformer2DModel

if TYPE_CHECKING:
    from .conditions import LadderCondition
    from .pipeline import LadderPipeline

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True)
class Sampling:
    """How a call of the pipeline denoises, whatever it draws.

    Attributes:
        scheduler: ready for its first step; each drawing steps a copy. Where that step is not the first of
            all, drawing begins with the source mixed with the noise of its level.
        guidance: how the branches of the condition are combined.
        gains: how loud each block hears its rung; None = as trained.
        step_end: ``f(pipeline, step, timestep, {"latents": …})`` after every step.
        stopped: whether a callback asked for an end.
    """

    scheduler: SchedulerMixin
    guidance: Guidance
    gains: Sequence[float] | None = None
    step_end: Callable[[LadderPipeline, int, torch.Tensor, dict], dict | None] | None = None
    stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Source:
    """The latents that an edit is drawn over.

    Attributes:
        latents: of the picture, ``[batch, channels, h, w]``, scaled.
        cells: ``[batch, 1, h, w]``, 1 = may change, 0 = stays; None = all may.
    """

    latents: torch.Tensor
    cells: torch.Tensor | None = None

    def mixed(self, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The source with as much noise as the flow has at ``sigma``, 0 … 1."""
        return (1 - sigma) * self.latents + sigma * noise

    def keep(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Latents of a step; those that stay become the source's with the noise of that step."""
        if self.cells is None:
            return latents
        return torch.where(self.cells > 0, latents, self.mixed(noise, sigma).to(latents))


def rows_of(generator: Generators, start: int, rows: int) -> Generators:
    """Generators of some rows of a batch; one for all stays."""
    return generator[start : start + rows] if isinstance(generator, list) else generator


def draw_noises(
    shapes: Sequence[tuple[int, ...]],
    device: torch.device,
    generator: Generators,
    latents: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Initial noise, float32 of each shape ``[rows, channels, h, w]``.

    Args:
        generator: one, one for each row of all, or None.
        latents: given noise of all rows.

    Raises:
        ValueError: given noise of another shape, or that is not finite.
    """
    if latents is not None and not latents.isfinite().all():
        raise ValueError("latents are not finite; give noise without NaN and infinity.")
    batch = sum(rows for rows, *_ in shapes)
    for _, *rest in shapes:
        if latents is not None and list(latents.shape) != [batch, *rest]:
            needed = [batch, *rest]
            raise ValueError(f"latents have shape {list(latents.shape)}; this call needs {needed}.")
    noises, start = [], 0
    for rows, *rest in shapes:
        if latents is None:
            own = rows_of(generator, start, rows)
            noises.append(randn_tensor((rows, *rest), generator=own, device=device, dtype=torch.float32))
        else:
            noises.append(latents[start : start + rows].to(device, torch.float32))
        start += rows
    return noises


@torch.no_grad()
def denoise(
    call: LadderPipeline,
    sampling: Sampling,
    condition: LadderCondition,
    noise: torch.Tensor,
    generator: Generators = None,
    source: Source | None = None,
) -> torch.Tensor:
    """Draw latents from noise, or over a source.

    Args:
        call: the call's own view of the pipeline.
        condition: of all branches of the guidance.
        noise: ``[prompts * results of each, channels, h, w]``, float32.
        generator: of stochastic solvers.
        source: what latents that may not change stay.
    """
    call.scheduler = scheduler = copy.deepcopy(sampling.scheduler)
    forget_steps(call.transformer)
    guidance, branches = sampling.guidance, condition.branches
    per_prompt = len(noise) * branches // condition.states.shape[1]
    seen = call.prepare_seen(condition, noise.shape, per_prompt, noise.device)
    rungs = call.prepare_rungs(condition, per_prompt, noise.device, sampling.gains)
    begin = scheduler.begin_index
    timesteps, sigmas = scheduler.timesteps[begin:], scheduler.sigmas[begin:].to(noise.device, noise.dtype)
    latents = source.mixed(noise, sigmas[0]) if source is not None and begin else noise
    options = step_options(scheduler, generator)
    with call.progress_bar(total=len(timesteps)) as progress:
        for i, t in enumerate(timesteps):
            if sampling.stopped():
                break
            active = branches if guidance.is_active(i, len(timesteps)) else 1
            told = last_branches(rungs, active * len(noise))
            velocity = velocities(call.transformer, latents, t, told, active, seen)
            velocity = guidance.combine(velocity, active)
            latents = scheduler.step(velocity, t, latents, return_dict=False, **options)[0]
            if source is not None:
                latents = source.keep(latents, noise, sigmas[i + 1])
            if sampling.step_end is not None:
                returned = sampling.step_end(call, i, t, {"latents": latents})
                latents = (returned or {}).pop("latents", latents)
            progress.update()
    return latents


def velocities(
    transformer: LadderTransformer2DModel,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    rungs: Rungs,
    branches: int,
    seen: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Velocities of all branches ``[branches * batch, …]``, float32 because guidance amplifies.

    Args:
        timestep: 0 … 1000, one for all latents or ``[batch]``.
        seen: what the transformer reads besides, by argument, of these branches or of more before them.
    """
    x = torch.cat([latents] * branches).to(rungs.kv[0].key.dtype)  # the transformer's own is slow to ask
    timestep = timestep.expand(len(latents)).repeat(branches) * transformer.config.timestep_scale
    rows = {name: value[-len(x) :] for name, value in (seen or {}).items()}
    cached = getattr(transformer, "is_cache_enabled", False)
    # an evaluation can be compared with one of as many rows
    with transformer.cache_context(f"{len(x)} rows") if cached else nullcontext():
        return transformer(x, rungs, timestep, return_dict=False, **rows)[0].float()


def forget_steps(transformer: LadderTransformer2DModel) -> None:
    """Drop what a step cache keeps of evaluations that the next do not go on from."""
    if getattr(transformer, "is_cache_enabled", False):
        transformer._reset_stateful_cache()


def last_branches(rungs: Rungs, rows: int) -> Rungs:
    """The last ``rows`` rows of the batch: the branch of the prompt comes last."""
    if rows == len(rungs.kv[0].key):
        return rungs
    return Rungs([kv.last(rows) for kv in rungs.kv])
