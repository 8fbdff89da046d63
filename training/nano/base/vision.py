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
WHAT = naming.CELL_HEADS.index("what")


class CellHeads(nn.Module):
    """What vision tokens say, needed in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [naming.SIZES["what" if head == "letter" else head] for head in naming.CELL_HEADS]
        self.read = nn.Linear(mllm.WIDTH, sum(self.sizes))

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Logits of every head, ``[pictures, CELLS, values]``, of tokens ``[pictures, CELLS, WIDTH]``."""
        return self.read(tokens.float()).split(self.sizes, -1)

    def loss(self, tokens: Tensor, names: Tensor) -> Tensor:
        """Cross-entropy with names ``[pictures, CELLS, heads]``, the mean over heads."""
        logits = self(tokens)
        losses = [
            F.cross_entropy(part.flatten(0, 1), names[..., i].flatten()) for i, part in enumerate(logits)
        ]
        return torch.stack(losses).mean()


def draw_scene(random: Random) -> Scene:
    """A scene of a caption or of an edit."""
    if random.random() < 0.5:
        return prompts.sample(random).scene
    edit = edits.sample(random)
    return random.choice((edit.source, edit.target))


def cell_names(scenes: list[Scene]) -> Tensor:
    """Names ``[pictures, CELLS, heads]`` int64."""
    return torch.from_numpy(np.stack([naming.cell_names(scene) for scene in scenes]))


def train(recipe: StageRecipe) -> None:
    """Train by a recipe, going on where its run left off."""
    torch.manual_seed(recipe.seed)
    prompter = mllm.Prompter(mllm.load_tokenizer(recipe.tokenizer))
    model, heads = mllm.build(prompter.tokenizer), CellHeads()
    drawn = [prompts.draw(recipe.seed, "held out", i).scene for i in range(EXAMPLES)]

    def tokens(scenes: list[Scene]) -> Tensor:
        with autocast():
            return mllm.vision_tokens(model, *prompter.patches([render(scene) for scene in scenes]))

    def step(number: int) -> Tensor:
        random = Random(f"{recipe.seed}/vision/{number}")
        scenes = [draw_scene(random) for _ in range(recipe.batch)]
        return heads.loss(tokens(scenes), cell_names(scenes))

    @torch.no_grad()
    def evaluate() -> str:
        names = cell_names(drawn)
        said = [part.argmax(-1) for part in heads(tokens(drawn))]
        right = [(a == names[..., i])[names[..., i] > 0].float().mean() for i, a in enumerate(said)]
        told = zip(naming.CELL_HEADS, right, strict=True)
        return "right " + ", ".join(f"{head} {share:.2f}" for head, share in told)

    stage.train(recipe, {"vision": model.model.visual, "heads": heads}, step, evaluate)
