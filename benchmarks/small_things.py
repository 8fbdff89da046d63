"""Edits of small things in large pictures: what the language model had better see, and how much around them.

    python benchmarks/small_things.py [--sizes 512 1024] [--context 0.25 0.5] [--views crop whole none]

Held-out edits of the nano model's world, their sprites composed small into a large picture, a box around the
changed one as the mask. Prints for every kind the share of edits that the score's judge finds followed, and
in decibels how well what should stay in a window around the thing was kept. Views: the language model reads
the crop that is drawn, or the whole picture while the crop is drawn; "none" draws the whole picture at the
model's size. "add-here" is "add" without the words for a place in the whole picture: the mask says where.
Needs the drawings that `make score` fetches.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from tbac_uniimage.core import LadderPipeline
from tbac_uniimage.core.inputs import prepare_image
from tbac_uniimage.core.requests import Request
from tbac_uniimage.training.nano.domain.edits import Edit
from tbac_uniimage.training.nano.domain.layouts import PLACED
from tbac_uniimage.training.nano.domain.render import sprite
from tbac_uniimage.training.nano.domain.scene import MEDIUM, SIZE, Item, Scene
from tbac_uniimage.training.nano.domain.words import BACKGROUNDS
from tbac_uniimage.training.nano.judge import detector
from tbac_uniimage.training.nano.judge.pictures import see
from tbac_uniimage.training.nano.judge.verdicts import follows_edit
from tbac_uniimage.training.nano.score.cases import Case, collect
from tbac_uniimage.training.nano.score.command import EMBEDDED, JUDGE
from tbac_uniimage.training.nano.score.drawing import Job

KINDS = ("remove", "replace", "recolor", "add", "add-here")
GROWN = 1.5  # pixels of the large picture for one of the scene's, of sprites; places grow with the picture
MASKED = 1.2  # side of the mask for one of the sprite
BEST = 60.0  # decibels that are given for equal pixels


class Whole(LadderPipeline):
    """A pipeline whose language model reads the whole picture where a crop of it is drawn."""

    def _encode(self, request: Request, branches: int) -> Any:
        whole = [[prepare_image(picture)] for picture in request.originals]
        return super()._encode(replace(request, images=whole), branches)


def asked(kind: str, options: argparse.Namespace) -> list[Case]:
    """Held-out edits of a kind."""
    if kind != "add-here":
        return collect(f"edit-{kind}", options.seeds, options.samples)
    cases = collect("edit-add", options.seeds, options.samples)
    return [replace(case, asked=replace(case.asked, text=placeless(case.asked.text))) for case in cases]


def placeless(text: str) -> str:
    """An instruction without the words for a part of the picture."""
    for place in PLACED:
        text = text.replace(f" {place}", "")
    return text


def compose(scene: Scene, size: int) -> np.ndarray:
    """The scene in a picture of ``size`` pixels, its sprites small."""
    picture = np.full((size, size, 3), BACKGROUNDS[scene.background], np.float32)
    for item in scene.items:
        side = round(item.size * GROWN)
        left, top = (round(at * size / SIZE) - side // 2 for at in (item.x, item.y))
        colours, rest = sprite(scene.style, item.name, item.paint, side)
        part = picture[top : top + side, left : left + side]
        part *= rest
        part += colours
    return picture.clip(0, 255).astype(np.uint8)


def around(edit: Edit, size: int, share: float) -> tuple[slice, slice]:
    """Rows and columns of a square around the changed thing, ``share`` times as large."""
    [thing] = set(edit.target.items) - set(edit.source.items) or set(edit.source.items) - set(
        edit.target.items
    )
    side = min(size, round(thing.size * GROWN * share))
    starts = (min(max(0, round(at * size / SIZE) - side // 2), size - side) for at in (thing.y, thing.x))
    return tuple(slice(start, start + side) for start in starts)


def seen_in(scene: Scene, window: tuple[slice, slice], size: int) -> Scene:
    """What of a scene stands in a window, in the window's own places."""
    side, items = window[0].stop - window[0].start, []
    for item in scene.items:
        y, x = (at * size / SIZE - edge.start for at, edge in zip((item.y, item.x), window, strict=True))
        if 0 <= y < side and 0 <= x < side:
            items.append(Item(item.name, round(x * SIZE / side), round(y * SIZE / side), MEDIUM, item.paint))
    return replace(scene, items=tuple(items))


def verdict(case: Case, size: int, edited: np.ndarray, eye: torch.nn.Module) -> tuple[float, float]:
    """Followed, 0 or 1, and decibels kept of one edit."""
    edit = case.asked
    window = around(edit, size, SIZE / MEDIUM)  # where the thing is as large as the judge knows it
    look = Image.fromarray(edited[window]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    [seen] = see(eye, [np.asarray(look)])
    target = seen_in(edit.target, window, size)
    target = target if target.items else replace(target, style=seen.style)
    before, after = (compose(scene, size)[window].astype(float) for scene in (edit.source, edit.target))
    error = ((edited[window] - after) / 255)[(before == after).all(-1)]
    kept = -10 * math.log10(max((error**2).mean(), 10 ** (-BEST / 10)))
    return float(follows_edit(seen, replace(edit, target=target))), kept


def main() -> None:
    """Every size, context and view in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--context", type=float, nargs="+", default=[0.5])
    parser.add_argument("--views", nargs="+", choices=["crop", "whole", "none"], default=["crop", "whole"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--samples", type=int, default=20, metavar="N", help="edits of a kind and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipes = {"crop": LadderPipeline.from_pretrained(EMBEDDED)}
    pipes |= {"whole": Whole(**pipes["crop"].components), "none": pipes["crop"]}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    eye = detector.load(JUDGE)
    for size in options.sizes:
        for context in options.context:
            for view in options.views:
                shown = []
                for kind in options.kinds:
                    found = []
                    for case in asked(kind, options):
                        mask = np.zeros((size, size), bool)
                        mask[around(case.asked, size, MASKED)] = True
                        edited = pipes[view](
                            case.asked.text,
                            Image.fromarray(compose(case.asked.source, size)),
                            mask=mask,
                            context=None if view == "none" else context,
                            guidance_scale=2.0,
                            image_guidance_scale=2.0,
                            num_inference_steps=options.steps,
                            generator=torch.Generator().manual_seed(Job(case, 0).noise_seed),
                        ).images[0]
                        found.append(verdict(case, size, np.asarray(edited), eye))
                    followed, kept = np.mean(found, axis=0)
                    shown.append(f"{kind} {followed:.3f} {kept:4.1f} dB")
                print(f"{size}, context {context:g}, {view:5}: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
