"""Rules that make a mask of a change map, on held-out edits of the nano model.

    python benchmarks/change_map.py [--seeds N ...] [--samples N] [--only KIND ...] [--draw NAME ...]
                                    [--maps | --few]

Prints how well maps rank the cells that an edit changes (AUC), and for every rule: its share of the cells; of
the cells that change the share that it finds, of the others the share that it takes too; and how often the
edit is followed and how well the rest is kept where it is drawn within that mask, beside no mask and the true
one. Kept "in latents" is what comes out of the autoencoder; "laid in" is that within a mask of the user's,
"narrowed" within one that the model found: of it only what was drawn otherwise than it was. ``--draw`` names
the masks that are drawn, ``--maps`` draws none, nor does ``--few``, whose maps are those of the model with
its LoRA for few steps. Needs the drawings that ``make score`` fetches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tbac_uniimage.core import LadderPipeline, change_map
from tbac_uniimage.core.crops import whole
from tbac_uniimage.core.denoising import velocities
from tbac_uniimage.core.editing import feathered, paste
from tbac_uniimage.core.few_steps import find_few_steps
from tbac_uniimage.core.repainting import SEAM, encode
from tbac_uniimage.training.nano.domain.render import render
from tbac_uniimage.training.nano.judge import detector
from tbac_uniimage.training.nano.judge.pictures import see
from tbac_uniimage.training.nano.score import cases, drawing
from tbac_uniimage.training.nano.score.command import EMBEDDED, JUDGE
from tbac_uniimage.training.nano.score.judging import verdict

STEPS, GUIDANCE = 20, 2.0
MASKS = ("no mask", "true mask")  # beside the rules
Rule = Callable[[torch.Tensor], torch.Tensor]  # sizes of the differences [h, w] to cells [h, w] bool


def shipped(sizes: torch.Tensor) -> torch.Tensor:
    """The rule of ``mask="auto"``."""
    return change_map.changed_cells(change_map.smoothed(sizes))


def roots(sizes: torch.Tensor) -> torch.Tensor:
    """Averaged, two clusters of the roots; everything where more than half are above 0.46 of the largest."""
    change = change_map.smoothed(sizes)
    return otsu(change.sqrt()) | ((change > 0.46).float().mean() > 0.5)


def above(share: float) -> Rule:
    """Cells above a share of the largest."""
    return lambda sizes: sizes > share * sizes.max()


def otsu(sizes: torch.Tensor) -> torch.Tensor:
    """The split into two clusters with the least variance within them, which is the most between them."""
    ordered = sizes.flatten().double().sort().values
    low = torch.arange(1, len(ordered))  # cells of the low cluster
    high, sums = len(ordered) - low, ordered.cumsum(0)
    between = low * high * (sums[:-1] / low - (sums[-1] - sums[:-1]) / high).square()
    return sizes >= ordered[int(between.argmax()) + 1]


def hysteresis(low: float, high: float) -> Rule:
    """Cells above the low share that touch, over others of these, one above the high one."""

    def rule(sizes: torch.Tensor) -> torch.Tensor:
        weak, cells = above(low)(sizes), above(high)(sizes)
        for _ in range(sizes.numel()):
            cells = weak & (F.max_pool2d(cells[None].float(), 3, 1, 1)[0] > 0)
        return cells

    return rule


RULES: dict[str, Rule] = {
    "0.35 of the largest": above(0.35),
    "0.25 of the largest": above(0.25),
    "two clusters (Otsu)": otsu,
    "hysteresis 0.25, 0.5": hysteresis(0.25, 0.5),
    "two clusters of roots": roots,
    "shipped": shipped,
}


@dataclass
class Measured:
    """Of one edit and one mask: its cells, what it finds and takes of the true ones, and the drawn result."""

    cells: float
    found: float
    taken: float
    followed: float = float("nan")
    in_latents: float = float("nan")
    laid_in: float = float("nan")
    narrowed: float = float("nan")
    narrowed_followed: float = float("nan")


def sizes_of(pipe: LadderPipeline, text: str, source: Image.Image) -> torch.Tensor:
    """Sizes ``[h, w]`` of the differences that the text makes."""
    condition = pipe.encode_prompt(text, source)
    side = pipe.transformer.config.sample_size
    with torch.no_grad():
        mixed, levels = change_map.mixtures(encode(pipe, source, side, side)[0])
        rungs = pipe.prepare_rungs(condition, len(mixed), mixed.device)
        seen = pipe.prepare_seen(condition, mixed.shape, len(mixed), mixed.device)
        both = velocities(pipe.transformer, mixed, levels * 1000, rungs, 2, seen)
        return change_map.differences(*both.chunk(2))


def auc(sizes: torch.Tensor, true: torch.Tensor) -> float:
    """How often a cell that changes has a larger value than one that does not."""
    inside, outside = sizes[true], sizes[~true]
    if not len(inside) or not len(outside):
        return float("nan")
    return (inside[:, None] > outside).float().mean().item()


def share(part: torch.Tensor, whole: torch.Tensor) -> float:
    """How much of ``whole`` lies in ``part``."""
    return (part & whole).sum().item() / whole.sum().item() if whole.any() else float("nan")


def measure(
    pipe: LadderPipeline, case: cases.Case, source: Image.Image, cells: torch.Tensor, true: torch.Tensor, eye
) -> Measured:
    """A mask against the true one, and drawn if there is an eye."""
    found = Measured(cells.float().mean().item(), share(cells, true), share(cells, ~true))
    if eye is not None:
        mask = change_map.mask_of_cells(cells, *source.size[::-1])
        latents = pipe(
            case.asked.text,
            source,
            guidance_scale=GUIDANCE,
            image_guidance_scale=GUIDANCE,
            num_inference_steps=STEPS,
            latents=drawing.noise_of(pipe, drawing.Job(case, 0))[None],
            mask=mask,
            output_type="latent",
        ).images
        drawn = torch.from_numpy(pipe.decode(latents, "np"))
        rebuilt = torch.from_numpy(pipe.decode(encode(pipe, source, *cells.shape), "np"))
        everything = whole(*mask.shape)
        inside = change_map.narrowed(mask, [everything], drawn, rebuilt, pipe.vae_scale_factor)
        given = torch.from_numpy(np.array(source))[None] / 255
        feather = round(SEAM * pipe.vae_scale_factor)
        laid = [paste(given, drawn, feathered(each[None], feather)) for each in (mask, inside)]
        laid[1] = laid[0] if mask.all() else laid[1]
        shown = [(picture[0] * 255).round().byte().numpy() for picture in (drawn, *laid)]
        rows = [verdict(case.asked, *pair) for pair in zip(see(eye, shown), shown, strict=True)]
        found.followed, found.narrowed_followed = rows[1]["right"], rows[2]["right"]
        kept = (row.get("kept dB", float("nan")) for row in rows)
        found.in_latents, found.laid_in, found.narrowed = kept
    return found


def mean(values: list[float]) -> float:
    """Of those that are numbers."""
    numbers = [value for value in values if value == value]
    return fmean(numbers) if numbers else float("nan")


def main() -> None:
    """Measure every kind of edit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[101])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=list(cases.GROUPS["edit"]))
    parser.add_argument("--maps", action="store_true")
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--draw", nargs="+", choices=[*MASKS, *RULES], default=[*MASKS, "shipped"])
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    options = parser.parse_args()
    pipe = LadderPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    if options.few:
        find_few_steps(options.model).apply(pipe)
    eye = None if options.maps or options.few else detector.load(JUDGE)
    for kind in options.only:
        every, ranked = {}, []
        for case in cases.collect(kind, options.seeds, options.samples):
            source = Image.fromarray(render(case.asked.source, size))
            sizes = sizes_of(pipe, case.asked.text, source)
            true = drawing.changeable(case.asked, source.width, sizes.shape[-1])[0] > 0
            ranked.append((auc(sizes, true), auc(change_map.smoothed(sizes), true)))
            masks = {name: rule(sizes) for name, rule in RULES.items()}
            masks = dict(zip(MASKS, (torch.ones_like(true), true), strict=True)) | masks
            for name, cells in masks.items():
                drawn = eye if name in options.draw else None
                every.setdefault(name, []).append(measure(pipe, case, source, cells, true, drawn))
        raw, smooth = (mean([pair[k] for pair in ranked]) for k in range(2))
        print(f"\n{kind}: {len(ranked)} edits; AUC {raw:.3f}, smoothed {smooth:.3f}")
        heads = f"{'cells':>7}{'found':>7}{'taken':>7}{'followed':>10}{'in latents':>12}{'laid in':>9}"
        heads += f"{'narrowed':>10}{'followed':>10}"
        print(" " * 22 + heads)
        for name, rows in every.items():
            cells, found, taken, followed, *kept = (
                mean([getattr(row, field) for row in rows]) for field in Measured.__dataclass_fields__
            )
            shares = f"{cells:7.2f}{found:7.2f}{taken:7.2f}{followed:10.3f}"
            print(f"{name:22}{shares}{kept[0]:12.1f}{kept[1]:9.1f}{kept[2]:10.1f}{kept[3]:10.3f}", flush=True)


if __name__ == "__main__":
    main()
