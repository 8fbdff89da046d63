"""Stages 5 and 6: the frozen language model's states meet the diffusion transformer.

Stage 5 fits the connector to the name table that the transformer learned to draw from, stage 6 trains
connector and transformer together by flow matching on captions and on edits. Language model, vision tower
and queries are frozen (the queries have learned to name the scene), so the states of every prompt are
computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.conditions import LadderCondition
from ..objective import flow_matching_loss
from . import drawing, edits, loop, mllm, naming, scenes
from .scenes import Scene

POOL = 20_000
BATCH = 48
EDITS = 0.4  # share of edits; the others are captions
WITHOUT_CAPTION = 0.1
EDIT_VARIANTS = ((False, False), (True, False), (False, True), (True, True))  # no instruction, no picture
EDIT_SHARES = (0.5, 0.2, 0.2, 0.1)


@dataclass(frozen=True)
class Prompt:
    """A prompt with the scene it asks for. `source` is the picture's scene; `blackened` hides it."""

    text: str
    target: Scene
    source: Scene | None = None
    blackened: bool = False

    @property
    def named(self) -> Scene | None:
        """The scene that the query slots can name: none without caption, the source without instruction."""
        if self.text:
            return self.target
        return None if self.blackened else self.source

    def picture(self) -> np.ndarray:
        return naming.EMPTY if self.blackened else scenes.render(self.source)


def draw_prompt(random: Random, edit: bool, held_out: bool = False, dropout: bool = True) -> Prompt:
    """A caption or an edit, in training with parts dropped so that guidance has its branches."""
    if edit:
        drawn = edits.draw(random, held_out=held_out)
        no_text, no_picture = random.choices(EDIT_VARIANTS, EDIT_SHARES)[0] if dropout else EDIT_VARIANTS[0]
        return Prompt("" if no_text else drawn.instruction, drawn.target, drawn.source, no_picture)
    scene = scenes.draw(random, held_out=held_out)
    text = scenes.caption(scene, random)
    return Prompt("" if dropout and random.random() < WITHOUT_CAPTION else text, scene)


@lru_cache(maxsize=POOL)
def pool_prompt(seed: int, index: int) -> Prompt:
    random = Random(f"{seed}/prompts/{index}")
    return draw_prompt(random, edit=random.random() < EDITS)


class States:
    """Language model states of a list of prompts, each computed when it is first asked for."""

    def __init__(self, model: nn.Module, queries: Tensor, prompter: mllm.Prompter, size: int) -> None:
        self.model, self.queries, self.prompter = model, queries, prompter
        self.states = torch.empty(size, mllm.RUNGS, mllm.QUERIES, mllm.WIDTH, dtype=torch.float16)
        self.known = torch.zeros(size, dtype=torch.bool)

    @torch.no_grad()
    def __call__(self, indices: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        """States [RUNGS, batch, QUERIES, WIDTH] float32 of the prompts at these indices."""
        new = {i: prompt for i, prompt in zip(indices, prompts, strict=True) if not self.known[i]}
        for with_picture in (False, True):
            part = {i: prompt for i, prompt in new.items() if (prompt.source is not None) == with_picture}
            if part:
                self.compute(list(part), list(part.values()), with_picture)
        return self.states[torch.as_tensor(indices)].float().transpose(0, 1)

    def compute(self, indices: list[int], prompts: list[Prompt], with_picture: bool) -> None:
        ids, mask = self.prompter.prompts([prompt.text for prompt in prompts], int(with_picture))
        with loop.autocast():
            vision = grid = None
            if with_picture:
                patches, grid = self.prompter.patches([prompt.picture() for prompt in prompts])
                vision = mllm.vision_tokens(self.model, patches, grid)
            hidden = mllm.run(self.model, self.queries, ids, mask, vision, grid)
        rungs = torch.stack(hidden[-1 - mllm.RUNGS : -1], 1)[:, :, -mllm.QUERIES :]
        self.states[indices] = rungs.half()
        self.known[indices] = True


def load_language(folder: Path) -> tuple:
    """The frozen language model, the connector with the trained queries, and the prompter."""
    prompter = mllm.Prompter(mllm.load_tokenizer(folder))
    model, connector, heads = mllm.build(prompter.tokenizer), mllm.build_connector(), naming.Heads()
    loop.load_stage(folder, "mllm", {"mllm": model, "connector": connector, "heads": heads})
    connector.queries.requires_grad_(False)
    return model.eval().requires_grad_(False), connector, prompter


def train_connector(folder: Path, minutes: float, threads: int = 1, seed: int = 0) -> None:
    """Stage 5: map the states of every rung to the name table's caption states."""
    model, connector, prompter = load_language(folder)
    table = drawing.NameTable()
    loop.load_stage(folder, "drawing", {"transformer": drawing.build(), "table": table}, averaged=True)
    table.requires_grad_(False)
    size, batch = 6_000, 192
    states = States(model, connector.queries, prompter, size)
    vaguely = torch.ones(batch, dtype=torch.bool)  # the slots do not tell the jitter
    last = [float("nan")]

    def step(position: int) -> Tensor:
        random = Random(f"{seed}/connector/{position}")
        indices = [random.randrange(size) for _ in range(batch)]
        prompts = [pool_prompt(seed, index) for index in indices]
        names = torch.tensor([naming.slot_names(prompt.named) for prompt in prompts])
        wanted = table(names, vaguely)
        with loop.autocast():
            mapped = connector(states(indices, prompts))
        loss = F.mse_loss(mapped.float(), wanted.expand(mllm.RUNGS, -1, -1, -1))
        last[0] = loss.item() / wanted.var().item()
        return loss

    stage = loop.Stage("connector", folder, minutes, batch, 3e-3, decay=0.7, threads=threads, seed=seed)
    loop.train(stage, {"connector": connector}, step, lambda: f"unexplained {last[0]:.3f} of the variance")


def train(folder: Path, minutes: float, threads: int = 1, seed: int = 0) -> None:
    """Stage 6: connector and transformer by flow matching on captions and edits."""
    model, connector, prompter = load_language(folder)
    vae, transformer, table = drawing.load_vae(folder), drawing.build(), drawing.NameTable()
    loop.load_stage(folder, "drawing", {"transformer": transformer, "table": table}, averaged=True)
    loop.load_stage(folder, "connector", {"connector": connector})
    states = States(model, connector.queries, prompter, POOL)
    encoded = drawing.Encoded(vae, lambda index: pool_prompt(seed, index).target, POOL)

    def loss(rungs: Tensor, latents: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        mask = torch.ones(len(latents), mllm.QUERIES, dtype=torch.long)
        with loop.autocast():
            condition = LadderCondition(connector(rungs), mask)
            return flow_matching_loss(transformer, condition, latents, noise, u, drawing.SHIFT)

    def step(position: int) -> Tensor:
        random = Random(f"{seed}/ladder/{position}")
        indices = [random.randrange(POOL) for _ in range(BATCH)]
        latents = encoded(indices)
        rungs = states(indices, [pool_prompt(seed, index) for index in indices])
        return loss(rungs, latents, *drawing.noise_and_levels(f"{seed}/ladder/{position}", latents))

    held_out = Random(93)
    examples = []
    for edit in (False, True):
        prompts = [draw_prompt(held_out, edit, held_out=True, dropout=False) for _ in range(96)]
        everyone = range(len(prompts))
        rungs = States(model, connector.queries, prompter, len(prompts))(everyone, prompts)
        latents = drawing.Encoded(vae, lambda i, prompts=prompts: prompts[i].target, len(prompts))(everyone)
        noise, _ = drawing.noise_and_levels("examples", latents)
        examples.append((rungs, latents, noise, (torch.arange(len(prompts)) + 0.5) / len(prompts)))

    @torch.no_grad()
    def evaluate() -> str:
        captions, edited = (loss(*example).item() for example in examples)
        return f"held-out loss: captions {captions:.4f}, edits {edited:.4f}"

    stage = loop.Stage(
        "ladder",
        folder,
        minutes,
        BATCH,
        8e-4,
        0.01,
        warmup=100,
        decay=0.6,
        ema=0.999,
        threads=threads,
        seed=seed,
    )
    loop.train(stage, {"connector": connector, "transformer": transformer}, step, evaluate)
