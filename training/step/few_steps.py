"""Few steps: a student whose single step goes where its teacher's many guided ones go (stage 4).

The teacher is the model as it was before, with both guidances. The student draws from noise along the few
noise levels of sampling, and at each of them the teacher goes on from where the student stands: the student
learns the mean velocity of that way, without guidance.

Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512) of guided models (Meng et al. 2023, arXiv
2210.03142) to piecewise straight flows (PeRFlow, arXiv 2405.07510), on the student's own states (DAgger,
arXiv 1011.0686).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.canvas import encode_latents
from ...core.checkpoints import LadderParts
from ...core.guidance import Guidance
from ...core.inputs import LadderInputs
from ...core.rung_attention import Rungs
from ...core.schedulers import step_levels
from ...core.transformer import LadderTransformer2DModel
from ..recipe.recipe import Recipe
from ..recipe.settings import DistillationSettings
from .lora import without_lora
from .objective import TRAIN_TIMESTEPS
from .trainee import LadderTrainee, seen_beside

if TYPE_CHECKING:
    from ..data.batch import Branches, TrainBatch

Velocity = Callable[[Tensor, float], Tensor]  # of latents at a noise level in (0, 1]


def midpoint(velocity: Velocity, x: Tensor, start: float, end: float, steps: int) -> Tensor:
    """Follow a flow from one noise level to another by the midpoint rule, two evaluations a step."""
    length = (end - start) / steps
    for i in range(steps):
        level = start + i * length
        middle = x + length / 2 * velocity(x, level)
        x = x + length * velocity(middle, level + length / 2)
    return x


def few_step_losses(
    student: Velocity,
    teacher: Velocity,
    noise: Tensor,
    levels: Sequence[float],
    solver_steps: int = 1,
) -> Tensor:
    """Mean squared error of the student's velocities along its own way, against the teacher's from there.

    Args:
        student: takes gradients.
        teacher: guided; called without gradients.
        noise: standard normal ``[batch, channels, height, width]``.
        levels: noise levels that the student steps along, falling, from 1 to 0.
        solver_steps: of the teacher within one of the student's, see :func:`midpoint`.

    Returns:
        The mean over the steps, float32 ``[batch]``.
    """
    x, losses = noise, []
    for start, end in pairwise(levels):
        velocity = student(x, start)
        with torch.no_grad():
            goal = midpoint(teacher, x, start, end, solver_steps)
            wanted = (goal - x) / (end - start)
            x = x + (end - start) * velocity.detach()
        losses.append((velocity - wanted).square().flatten(1).mean(1))
    return torch.stack(losses).mean(0)


class FewStepTrainee(LadderTrainee):
    """The trained parts with the loss of :func:`few_step_losses`.

    Of a LoRA the teacher is the same transformer without it; where all parts are trained, a copy of
    connector and transformer, which no engine sees, as the other frozen parts.

    Args:
        parts: the model, what is trained already chosen.
        settings: how many steps, and the teacher's guidance.
        device: of the copy.
    """

    def __init__(self, parts: LadderParts, settings: DistillationSettings, device: torch.device) -> None:
        super().__init__(parts)
        self.levels = step_levels(settings.steps)
        self.solver_steps = settings.solver_steps
        self.guidances = (
            Guidance(settings.guidance),
            Guidance(settings.edit_guidance, settings.image_guidance),
        )
        self.black: dict[torch.Size, Tensor] = {}  # by size, of a model that reads what it edits
        self.teacher = [self.encoder, self.transformer]  # in a list: no part of the module
        if parts.connector.queries.requires_grad:
            connector, transformer = (
                copy.deepcopy(part).requires_grad_(False).eval().to(device, parts.mllm.dtype)
                for part in (parts.connector, parts.transformer)
            )
            encoder = copy.copy(self.encoder)
            encoder.connector = connector
            self.teacher = [encoder, transformer]

    def arguments(self, parts: LadderParts, batch: TrainBatch, device: torch.device) -> tuple[Any, ...]:
        """Arguments of :meth:`forward` for a micro-batch, on a device; it has no targets."""
        noise = batch.noise.to(device, torch.float32, non_blocking=True)
        seen = seen_beside(parts, batch, noise)
        black = {"source_latents": self.black_latents(parts, noise)} if batch.edits else {}
        return batch.inputs, noise, batch.branches, seen, black

    def black_latents(self, parts: LadderParts, noise: Tensor) -> Tensor:
        """Latents of a black picture of the size of ``noise``, ``[1, channels, height, width]``."""
        size = noise.shape[2:]
        if size not in self.black:
            factor = parts.vae.spatial_compression_ratio
            pixels = noise.new_full((1, 3, *(factor * side for side in size)), -1)
            self.black[size] = encode_latents(parts.vae, pixels).to(noise)
        return self.black[size]

    def forward(
        self,
        inputs: LadderInputs,
        noise: Tensor,
        branches: Branches,
        seen: Mapping[str, Tensor] | None = None,
        black: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Losses of a micro-batch, float32 ``[batch]``.

        Args:
            inputs: prompts with their pictures; ``pixel_values`` stay on the CPU.
            noise: standard normal ``[batch, channels, height, width]`` float32.
            branches: what guidance reads besides.
            seen: what the transformer reads besides, see :func:`.trainee.seen_beside`.
            black: the same of a black picture, ``[1, …]``.
        """
        encoder, transformer = self.teacher
        with torch.no_grad(), without_lora(transformer):
            known = encoder.encode(branches.inputs)
            rungs = transformer.prepare_rungs(known.states, known.mask, known.text_tokens)
        if encoder is not self.encoder:
            told = self.encoder.encode(inputs)
            told = self.transformer.prepare_rungs(told.states, told.mask, told.text_tokens)
        elif trains_rungs(transformer):
            states, mask = known.states[:, : len(noise)], known.mask[: len(noise)]
            told = transformer.prepare_rungs(states, mask, known.text_tokens)
        else:
            told = rows_of(rungs, torch.arange(len(noise), device=noise.device))
        rows = branches.captions, branches.edits
        teacher = guided(transformer, rungs, rows, self.guidances, seen or {}, black or {})
        student = partial(velocity_of, self.transformer, rungs=told, seen=seen or {})
        return few_step_losses(student, teacher, noise, self.levels, self.solver_steps)

    def noise_levels(self, u: Tensor) -> None:
        """A loss is the mean over all levels."""
        return None


def guided(
    transformer: LadderTransformer2DModel,
    rungs: Rungs,
    branches: tuple[Tensor, Tensor],
    guidances: tuple[Guidance, Guidance],
    seen: Mapping[str, Tensor],
    black: Mapping[str, Tensor],
) -> Velocity:
    """The teacher's velocity: every sample with the guidance of its kind, all branches in one batch.

    Args:
        transformer: with or without LoRA, which does not count.
        rungs: of the rows that ``branches`` counts.
        branches: rows of captions ``[2, n]`` and of edits ``[3, m]``, see :class:`..data.batch.Branches`.
        guidances: of captions and of edits.
        seen: what the transformer reads besides, of the samples.
        black: the same of a black picture.
    """
    device = rungs.kv[0].key.device
    kinds = []
    for rows, guidance, edits in zip(branches, guidances, (False, True), strict=True):
        count = guidance.num_branches(edits)
        kinds.append((rows[len(rows) - count :].to(device), guidance, count))
    told = rows_of(rungs, torch.cat([rows.flatten() for rows, _, _ in kinds]))
    owners = torch.cat([rows[-1].repeat(count) for rows, _, count in kinds])  # sample of every row
    read = {name: values[owners] for name, values in seen.items()}
    blind, count = kinds[1][0], kinds[1][2]
    if count == 3:
        first = kinds[0][0].numel()
        for name, values in black.items():
            read[name][first : first + blind.shape[1]] = values

    def velocity(x: Tensor, level: float) -> Tensor:
        with without_lora(transformer):
            all_rows = velocity_of(transformer, x[owners], level, told, read)
        combined, first = torch.empty_like(x), 0
        for rows, guidance, count in kinds:
            combined[rows[-1]] = guidance.combine(all_rows[first : first + rows.numel()], count)
            first += rows.numel()
        return combined

    return velocity


def velocity_of(
    transformer: LadderTransformer2DModel, x: Tensor, level: float, rungs: Rungs, seen: Mapping[str, Tensor]
) -> Tensor:
    """Velocities of latents at one noise level, float32."""
    timestep = torch.full((len(x),), level * TRAIN_TIMESTEPS, device=x.device)
    return transformer(x, rungs, timestep, return_dict=False, **seen)[0].float()


def rows_of(rungs: Rungs, rows: Tensor) -> Rungs:
    """Rungs of some rows of a batch."""
    return Rungs([kv.rows(rows) for kv in rungs.kv])


def trains_rungs(transformer: LadderTransformer2DModel) -> bool:
    """Whether what the rungs are made of takes gradients."""
    parts = ("caption_", ".attn2.to_k", ".attn2.to_v", ".attn2.norm_k")
    return any(
        p.requires_grad and any(part in name for part in parts) for name, p in transformer.named_parameters()
    )


def make_trainee(parts: LadderParts, recipe: Recipe, device: torch.device) -> LadderTrainee:
    """What a recipe trains, with its loss."""
    if recipe.distils:
        return FewStepTrainee(parts, recipe.distillation, device)
    return LadderTrainee(parts, recipe.objective.timesteps, recipe.objective.shift)
