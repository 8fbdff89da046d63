"""What Ladder Probe does: pictures with muted rungs, attention at chosen noise levels, and the two sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import comfy.sample
import torch
from comfy.samplers import KSAMPLER, CFGGuider
from comfy.utils import ProgressBar

from ..core.attention import focus, sharpest_queries, watch_attention
from ..core.conditions import columns_of_kinds, unfold_condition
from ..core.sheets import contact_sheet, heat_overlay
from .conditioning import to_pil
from .guidance import RECIPE, LadderGuidance, choose_sampler, choose_sigmas, sample_latent
from .ladders import Ladder, check_conditioning, gains_of, ladder_of, with_gains

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from PIL import Image

CELL = 192  # pixels of one picture on a sheet


def check_query(model: ModelPatcher, positive: list, query: int) -> None:
    """Raise ValueError if the prompt has no query of this number, counted from 1; 0 stands for all."""
    ladder = ladder_of(model)
    check_conditioning(ladder, "positive", positive)
    queries = min(count_queries(ladder, states) for states, _ in positive)
    if query > queries:
        raise ValueError(f"query is {query}, this conditioning has 1 to {queries}; 0 shows all together.")


def count_queries(ladder: Ladder, states: torch.Tensor) -> int:
    """How many queries a folded condition has."""
    if not ladder.packed:
        return states.shape[1]
    return int(columns_of_kinds(unfold_condition(states, ladder.rungs))[0].sum())


def first_of(latent: dict) -> dict:
    """A LATENT of the first picture alone."""
    mask = latent.get("noise_mask")
    first = {"samples": latent["samples"][:1]}
    return first if mask is None else {**first, "noise_mask": mask[:1]}


def draw_muted(
    model: ModelPatcher,
    branches: tuple[list, list, list | None],
    latent: dict,
    seed: int,
    steps: int,
    guidance: tuple[float, float],
) -> list[dict]:
    """LATENTs drawn by the recipe: as it is, then with each rung muted.

    Args:
        branches: positive, negative, and image_only or None.
        guidance: of the prompt and of the input picture.
    """
    ladder, gains = ladder_of(model), gains_of(model)
    sigmas = choose_sigmas(model, RECIPE, RECIPE, steps)
    bar = ProgressBar((ladder.rungs + 1) * steps)

    def step_done(*_: object) -> None:
        """No live preview: while ComfyUI's page has one, it shows that instead of the node's own pictures."""
        bar.update(1)

    drawn = []
    for muted in range(ladder.rungs + 1):  # 0: none
        loudness = tuple(0.0 if i + 1 == muted else gain for i, gain in enumerate(gains))
        guider = LadderGuidance(with_gains(model, loudness))
        text, image = guidance
        guider.set_ladder(*branches, [text] * ladder.rungs, image)
        drawn.append(sample_latent(guider, latent, seed, choose_sampler(RECIPE), sigmas, step_done))
    return drawn


def read_attention(
    model: ModelPatcher, positive: list, drawn: dict, seed: int, levels: Sequence[float]
) -> torch.Tensor:
    """Attention of a finished picture to the prompt, mean over noise levels and heads.

    The picture gets noise on it again, and the prompt's branch alone is evaluated once per level.

    Returns:
        ``[rungs, queries, height, width]``, sums to 1 over the queries.
    """
    check_conditioning(ladder_of(model), "positive", positive)
    samples = drawn["samples"]
    noise = comfy.sample.prepare_noise(samples, seed)
    guider = CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)

    def evaluate(denoise: object, x: torch.Tensor, sigmas: torch.Tensor, **options: object) -> torch.Tensor:
        return denoise(x, sigmas[0] * x.new_ones(len(x)), **(options["extra_args"] or {}))

    with watch_attention(model.model.diffusion_model) as maps:
        for level in levels:
            sigmas = torch.tensor([level, 0.0])
            guider.sample(noise, samples, KSAMPLER(evaluate), sigmas, disable_pbar=True, seed=seed)
    return maps.mean()


def muted_sheet(pictures: torch.Tensor) -> Image.Image:
    """The picture, then the same with each rung muted; bars say how much of it changed.

    Args:
        pictures: IMAGE ``[1 + rungs, height, width, 3]``.
    """
    change = (pictures - pictures[:1]).abs().mean((1, 2, 3)).tolist()
    most = max(*change, 1e-6)
    labels = ["all rungs\n "] + [
        f"{i} muted\n{'under 1%' if part < 0.01 else format(part, '.0%')} changed"
        for i, part in enumerate(change[1:], start=1)
    ]
    levels = [part / most for part in change]
    return contact_sheet(to_pil(pictures), labels, "What each rung carries", levels, CELL)


def attention_sheet(picture: torch.Tensor, maps: torch.Tensor, query: int, moment: str) -> Image.Image:
    """The picture, then where each rung looks, or one query on each rung; all on one scale.

    Args:
        picture: IMAGE ``[1, height, width, 3]``.
        maps: ``[rungs, queries, height, width]``.
        query: 1 … queries, or 0 for :func:`..core.attention.focus`.
        moment: named in the title.
    """
    [plain] = to_pil(picture)
    scale = max(1, -(-CELL // plain.width))
    plain = plain.resize((plain.width * scale, plain.height * scale), 0)
    heat = maps[:, query - 1] if query else focus(maps)
    best = [" ".join(f"{q + 1}" for q in sorted(row)) for row in sharpest_queries(maps, 2).tolist()]
    peaks = heat.flatten(1).max(1).values.tolist()
    labels = ["picture\n "] + [
        f"rung {i + 1}\n" + (f"up to {peak:.0%}" if query else f"queries {best[i]}")
        for i, peak in enumerate(peaks)
    ]
    top = max(*peaks, 1e-6)
    title = f"Query {query} on each rung, {moment}" if query else f"Where each rung looks, {moment}"
    overlays = [plain] + [heat_overlay(plain, one / top) for one in heat]
    return contact_sheet(overlays, labels, title, [0.0] + [peak / top for peak in peaks], CELL)
