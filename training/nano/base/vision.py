"""The vision tower, trained alone: each of its tokens says what lies at its part of the picture.

That takes minutes; through the language model it takes hours.
"""

from __future__ import annotations

from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..domain import edits, naming, prompts
from ..domain.render import render
from ..domain.scene import Scene
from . import mllm, stage
from .stage import StageRecipe, autocast

EXAMPLES = 128
WEIGHTS = {  # of the heads in the loss: what is seen most rarely counts most
    "background": 0.5,
    "style": 1.0,
    "what": 3.0,
    "paint": 2.0,
    "x": 1.0,
    "y": 1.0,
    "side": 0.5,
    "letter": 3.0,
    "next letter": 2.0,
}
NOTHING_WEIGHT = 0.2  # of the class "nothing", the most frequent one
KINDS = {  # share of each kind of captioned scene; the rest are edits, which show little of these
    "text": 0.2,
    "color": 0.2,
    "single": 0.12,
    "dense": 0.15,
    "binding": 0.04,
    "position": 0.04,
}
GREY = 0.3  # share of pictures without colours, where outlines alone tell the objects
WHAT = naming.CELL_HEADS.index("what")
COLOURS = [naming.CELL_HEADS.index(head) for head in ("background", "paint")]


class CellHeads(nn.Module):
    """What vision tokens say, needed in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = naming.cell_sizes()
        self.read = nn.Linear(mllm.WIDTH, sum(self.sizes))

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Logits of every head, ``[pictures, CELLS, values]``, of tokens ``[pictures, CELLS, WIDTH]``."""
        return self.read(tokens.float()).split(self.sizes, -1)

    def loss(self, tokens: Tensor, names: Tensor) -> Tensor:
        """Weighted cross-entropy with names ``[pictures, CELLS, heads]``, the mean over heads."""
        total = tokens.new_zeros((), dtype=torch.float32)
        for head, logits, said in zip(naming.CELL_HEADS, self(tokens), names.unbind(-1), strict=True):
            classes = torch.ones(logits.shape[-1])
            classes[naming.NOTHING] = NOTHING_WEIGHT
            total = total + WEIGHTS[head] * F.cross_entropy(logits.flatten(0, 1), said.flatten(), classes)
        return total / sum(WEIGHTS.values())


def draw_scene(random: Random) -> Scene:
    """A scene of a caption or of an edit."""
    kind = random.choices([*KINDS, None], [*KINDS.values(), 1 - sum(KINDS.values())])[0]
    if kind:
        return prompts.sample(random, kind).scene
    edit = edits.sample(random)
    return random.choice((edit.source, edit.target))


def cell_names(scenes: list[Scene]) -> Tensor:
    """Names ``[pictures, CELLS, heads]`` int64."""
    return torch.from_numpy(np.stack([naming.cell_names(scene) for scene in scenes]))


def draw_batch(random: Random, size: int) -> tuple[list[np.ndarray], Tensor]:
    """Pictures with the names of their cells, some of them grey, of which no colour is asked.

    Else objects are known by the backgrounds and paints that they were seen with, and others are taken for
    other objects.
    """
    scenes = [draw_scene(random) for _ in range(size)]
    pictures, names = [render(scene) for scene in scenes], cell_names(scenes)
    for number in range(int(GREY * size)):
        grey = pictures[number].mean(-1, keepdims=True).round().astype(np.uint8)
        pictures[number] = grey.repeat(3, -1)
        names[number, :, COLOURS] = naming.UNREAD
    return pictures, names


def train(recipe: StageRecipe) -> None:
    """Train by a recipe, going on where its run left off."""
    torch.manual_seed(recipe.seed)
    prompter = mllm.Prompter(mllm.load_tokenizer(recipe.tokenizer))
    model, heads = mllm.build(prompter.tokenizer), CellHeads()
    if recipe.init:
        stage.load_stage(recipe.init, {"mllm": model, "cells": heads})
    drawn = [prompts.draw(recipe.seed, "held out", i).scene for i in range(EXAMPLES)]

    def tokens(pictures: list[np.ndarray]) -> Tensor:
        with autocast():
            return mllm.vision_tokens(model, *prompter.patches(pictures))

    def step(number: int) -> Tensor:
        pictures, names = draw_batch(Random(f"{recipe.seed}/vision/{number}"), recipe.batch)
        return heads.loss(tokens(pictures), names)

    @torch.no_grad()
    def evaluate() -> str:
        names = cell_names(drawn)
        said = [part.argmax(-1) for part in heads(tokens([render(scene) for scene in drawn]))]
        right = [(a == names[..., i])[names[..., i] > 0].float().mean() for i, a in enumerate(said)]
        told = zip(naming.CELL_HEADS, right, strict=True)
        return "right " + ", ".join(f"{head} {share:.2f}" for head, share in told)

    stage.train(recipe, {"vision": model.model.visual, "heads": heads}, step, evaluate)
