"""Stages 2 and 3: vision tower, then language model and queries, before both are frozen.

The paper freezes a pretrained MLLM. Ours is too small to be one, so it learns its domain here: its
sixteen query slots name the scene that is to be drawn (background, then name, place and side of every
sprite) at the input of every layer that becomes a rung. The diffusion transformer learns objects only
once it finds them named there. With a caption the scene is the one told, with a picture and an
instruction the edited one; the same model answers questions about pictures in words. The vision tower
starts alone, each of its tokens naming the sprite it lies on, which takes minutes where learning it
through the language model takes hours.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.connector import LadderConnector
from ...core.prompts import build_chat, encode_text, pad_left
from . import edits, loop, mllm, questions, scenes
from .scenes import HIGH, JITTER, LARGE, LOW, MIDDLE, SIZE, SMALL, Item, Scene
from .sprites import OBJECTS
from .tokenizer import ASK_SYSTEM_PROMPT, SYSTEM_PROMPT

VARIATION = range(-JITTER, JITTER + 1)
COORDINATES = [centre + delta for centre in (LOW, MIDDLE, HIGH) for delta in VARIATION]
SIDES = [side + delta for side in (SMALL, LARGE) for delta in VARIATION]
NAMES = (  # everything a slot can say
    ["nothing"]
    + [("background", name) for name in scenes.BACKGROUNDS]
    + [("name", name) for name in OBJECTS]
    + [("x", value) for value in COORDINATES]
    + [("y", value) for value in COORDINATES]
    + [("side", value) for value in SIDES]
    + [("number", value) for value in (1, 2, 3)]
)
INDEX = {name: index for index, name in enumerate(NAMES)}
PARTS = ("name", "x", "y", "side")
MAX_ITEMS = 3
BATCHES = {"caption": 8, "edit": 40, "question": 8}  # samples of each task in one step
EDITS = {  # share of each kind, by difficulty
    "add": 0.08,
    "remove": 0.4,
    "replace": 0.28,
    "background": 0.12,
    "move": 0.08,
    "count": 0.04,
}
EMPTY = np.zeros((SIZE, SIZE, 3), np.uint8)  # the black picture of unconditional guidance


WEIGHTS = torch.ones(len(NAMES))  # of the names in the loss: objects matter most and are said most rarely
WEIGHTS[0] = 0.3
WEIGHTS[INDEX["name", next(iter(OBJECTS))] :][: len(OBJECTS)] = 4.0


def item_names(item: Item) -> list[int]:
    return [
        INDEX[part, value] for part, value in zip(PARTS, (item.name, item.x, item.y, item.size), strict=True)
    ]


def without_jitter(item: Item) -> Item:
    """The item as a caption can tell it: at its place and of its side but for the jitter."""
    x, y = (min((LOW, MIDDLE, HIGH), key=lambda centre: abs(centre - value)) for value in (item.x, item.y))
    return Item(item.name, x, y, min((SMALL, LARGE), key=lambda side: abs(side - item.size)))


def slot_names(scene: Scene | None, exact: bool = True) -> list[int]:
    """What each of the sixteen query slots says about a scene; nothing at all for no scene."""
    slots = [0] * mllm.QUERIES
    if scene is not None:
        items = scene.items if exact else [without_jitter(item) for item in scene.items]
        slots[0] = INDEX["background", scene.background]
        slots[1] = INDEX["number", len(items)]
        slots[2 : 2 + len(PARTS) * len(items)] = [name for item in items for name in item_names(item)]
    return slots


def cell_names(scene: Scene) -> list[list[int]]:
    """What each vision token says: the background, and the sprite whose box the cell's centre lies in, if
    any.
    """
    side = SIZE // 4
    cells = []
    for top in range(0, SIZE, side):
        for left in range(0, SIZE, side):
            x, y = left + side / 2, top + side / 2
            covering = [i for i in scene.items if max(abs(i.x - x), abs(i.y - y)) < i.size / 2 + 2]
            names = (
                item_names(min(covering, key=lambda i: abs(i.x - x) + abs(i.y - y))) if covering else [0] * 4
            )
            cells.append([INDEX["background", scene.background], *names])
    return cells


class Heads(nn.Module):
    """What is needed in training only: names from query states, and five names from a vision token."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.Linear(mllm.WIDTH, len(NAMES))
        self.cells = nn.Linear(mllm.WIDTH, (1 + len(PARTS)) * len(NAMES))

    def name_cells(self, tokens: Tensor) -> Tensor:
        """Logits [pictures, CELLS, 5, names] of vision tokens."""
        return self.cells(tokens.float()).unflatten(-1, (-1, len(NAMES)))

    def name_slots(self, states: Tensor) -> Tensor:
        """Logits [..., QUERIES, names] of normalised query states."""
        return self.slots(states.float())

    def cell_loss(self, tokens: Tensor, names: Tensor) -> Tensor:
        """Cross-entropy of vision tokens [pictures, CELLS, WIDTH] naming [pictures, CELLS, 5]."""
        return F.cross_entropy(self.name_cells(tokens).flatten(0, 2), names.flatten())


def picture_batch(random: Random, size: int) -> list[Scene]:
    kinds = random.choices(list(scenes.KINDS), (0.2, 0.35, 0.15, 0.3), k=size)
    return [scenes.draw(random, kind) for kind in kinds]


def train_vision(folder: Path, minutes: float, threads: int = 1, seed: int = 0) -> None:
    """Stage 2: the vision tower alone."""
    prompter = mllm.Prompter(mllm.load_tokenizer(folder))
    model, heads = mllm.build(prompter.tokenizer), Heads()
    models = {"vision": model.model.visual, "heads": heads}
    batch = 32

    def tokens_and_names(drawn: list[Scene]) -> tuple[Tensor, Tensor]:
        with loop.autocast():
            tokens = mllm.vision_tokens(model, *prompter.patches([scenes.render(scene) for scene in drawn]))
        return tokens, torch.tensor([cell_names(scene) for scene in drawn])

    def step(position: int) -> Tensor:
        return heads.cell_loss(*tokens_and_names(picture_batch(Random(f"{seed}/vision/{position}"), batch)))

    held_out = Random(98)
    examples = [scenes.draw(held_out, held_out=True) for _ in range(64)]

    @torch.no_grad()
    def evaluate() -> str:
        tokens, names = tokens_and_names(examples)
        right = heads.name_cells(tokens).argmax(-1) == names
        share = [right[..., i][names[..., i] > 0].float().mean().item() for i in range(1 + len(PARTS))]
        return "right: " + ", ".join(
            f"{part} {value:.2f}" for part, value in zip(("background", *PARTS), share, strict=True)
        )

    stage = loop.Stage("vision", folder, minutes, batch, learning_rate=1.5e-3, threads=threads, seed=seed)
    loop.train(stage, models, step, evaluate)


def slot_loss(language_model: nn.Module, heads: Heads, hidden: tuple[Tensor, ...], names: Tensor) -> Tensor:
    """Mean cross-entropy of the slots' names at the inputs of the last `RUNGS` layers."""
    rungs = torch.stack(hidden[-1 - mllm.RUNGS : -1])[:, :, -mllm.QUERIES :]
    logits = heads.name_slots(language_model.norm(rungs))
    return F.cross_entropy(logits.flatten(0, 2), names.expand(mllm.RUNGS, -1, -1).flatten(), WEIGHTS)


class Tasks:
    """The three tasks of stage 3 on one model: each draws a batch and gives its loss."""

    def __init__(
        self, model: nn.Module, connector: LadderConnector, heads: Heads, prompter: mllm.Prompter
    ) -> None:
        self.model, self.connector, self.heads, self.prompter = model, connector, heads, prompter
        self.words = [encode_text(prompter.tokenizer, f" {name}")[0] for name in OBJECTS]

    def name_slots(
        self, texts: list[str], targets: list[Scene | None], pictures: list | None = None
    ) -> tuple:
        """Hidden states and slot names of prompts, with one picture each or none."""
        ids, mask = self.prompter.prompts(texts, 0 if pictures is None else 1)
        names = torch.tensor([slot_names(target, exact=False) for target in targets])
        with loop.autocast():
            vision = grid = None
            if pictures is not None:
                patches, grid = self.prompter.patches(pictures)
                vision = mllm.vision_tokens(self.model, patches, grid)
            hidden = mllm.run(self.model, self.connector.queries, ids, mask, vision, grid)
        return hidden, names, vision

    def caption(self, random: Random, size: int) -> Tensor:
        """A caption: the slots name its scene. One in twenty is empty and names nothing."""
        drawn = [scenes.draw(random) for _ in range(size)]
        dropped = [random.random() < 0.05 for _ in drawn]
        texts = ["" if drop else scenes.caption(s, random) for s, drop in zip(drawn, dropped, strict=True)]
        targets = [None if drop else s for s, drop in zip(drawn, dropped, strict=True)]
        hidden, names, _ = self.name_slots(texts, targets)
        with loop.autocast():
            return slot_loss(self.model.model.language_model, self.heads, hidden, names)

    def edit(self, random: Random, size: int) -> Tensor:
        """A picture and an instruction: the slots name the edited scene.

        Without the instruction they name the picture's own scene, with a black picture and no instruction
        nothing: the three states that guidance compares.
        """
        texts, targets, pictures, sources = [], [], [], []
        for _ in range(size):
            edit = edits.draw(random, random.choices(list(EDITS), list(EDITS.values()))[0])
            no_text, no_picture = random.choices(((0, 0), (1, 0), (0, 1), (1, 1)), (0.84, 0.08, 0.04, 0.04))[
                0
            ]
            texts.append("" if no_text else edit.instruction)
            pictures.append(EMPTY if no_picture else scenes.render(edit.source))
            targets.append((None if no_picture else edit.source) if no_text else edit.target)
            sources.append(None if no_picture else edit.source)
        hidden, names, vision = self.name_slots(texts, targets, pictures)
        seen = [i for i, source in enumerate(sources) if source is not None]
        cells = torch.tensor([cell_names(sources[i]) for i in seen])
        with loop.autocast():
            slots = slot_loss(self.model.model.language_model, self.heads, hidden, names)
            read = self.read_loss(vision[seen], cells[..., 1])
            return slots + 0.2 * self.heads.cell_loss(vision[seen], cells) + 0.2 * read

    def read_loss(self, tokens: Tensor, names: Tensor) -> Tensor:
        """A vision token on a sprite should point where the word for the sprite points.

        Then finding the object that an instruction speaks of is attention between equal directions.
        """
        rows = self.model.model.language_model.embed_tokens.weight[self.words]
        logits = 16 * F.normalize(tokens.float(), dim=-1) @ F.normalize(rows, dim=-1).T
        first = INDEX["name", next(iter(OBJECTS))]
        wanted = torch.where(names == 0, -100, names - first)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    def question(self, random: Random, size: int) -> Tensor:
        """A picture and a question: the answer in words, then the end of the turn."""
        drawn = picture_batch(random, size)
        tokenizer = self.prompter.tokenizer
        chats, answers = [], []
        for scene in drawn:
            question, answer = questions.draw(random, scene, random.choice(questions.KINDS))
            system = random.choice((SYSTEM_PROMPT, ASK_SYSTEM_PROMPT))
            chats.append(build_chat(tokenizer, system, question, [mllm.CELLS]))
            answers.append([*encode_text(tokenizer, answer), tokenizer.eos_token_id])
        ids, mask = pad_left([c + a for c, a in zip(chats, answers, strict=True)], tokenizer.pad_token_id)
        labels, _ = pad_left([[-100] * len(c) + a for c, a in zip(chats, answers, strict=True)], -100)
        with loop.autocast():
            patches, grid = self.prompter.patches([scenes.render(scene) for scene in drawn])
            vision = mllm.vision_tokens(self.model, patches, grid)
            hidden = mllm.run(self.model, self.connector.queries, ids, mask, vision, grid)[-1]
            asked = labels[:, 1:] != -100
            logits = self.model.lm_head(hidden[:, :-1][asked])
        return F.cross_entropy(logits.float(), labels[:, 1:][asked])


def train(folder: Path, minutes: float, threads: int = 1, seed: int = 0) -> None:
    """Stage 3: language model, vision tower and queries together."""
    prompter = mllm.Prompter(mllm.load_tokenizer(folder))
    model, connector, heads = mllm.build(prompter.tokenizer), mllm.build_connector(), Heads()
    loop.load_stage(folder, "vision", {"vision": model.model.visual, "heads": heads})
    connector.layers.requires_grad_(False)  # belongs to the ladder
    tasks = Tasks(model, connector, heads, prompter)
    models = {"mllm": model, "connector": connector, "heads": heads}

    def step(position: int) -> Tensor:
        random = Random(f"{seed}/mllm/{position}")
        return sum(getattr(tasks, task)(random, size) for task, size in BATCHES.items())

    held_out = Random(97)
    told = [scenes.draw(held_out, held_out=True) for _ in range(64)]
    captions = [scenes.caption(scene, held_out) for scene in told]
    changed = [edits.draw(held_out, held_out=True) for _ in range(64)]

    def share(hidden: tuple[Tensor, ...], names: Tensor) -> str:
        """Share of slots named right at the first and at the last rung: background, objects, all that is
        said.
        """
        shares = []
        for rung in (-1 - mllm.RUNGS, -2):
            states = model.model.language_model.norm(hidden[rung][:, -mllm.QUERIES :])
            right = heads.name_slots(states).argmax(-1) == names
            objects = [right[:, slot][names[:, slot] > 0] for slot in (2, 6, 10)]
            parts = (right[:, 0], torch.cat(objects), right[names > 0])
            shares.append("/".join(f"{part.float().mean():.2f}" for part in parts))
        return " to ".join(shares)

    @torch.no_grad()
    def evaluate() -> str:
        from_text = tasks.name_slots(captions, told)
        pictures = [scenes.render(edit.source) for edit in changed]
        from_edit = tasks.name_slots([e.instruction for e in changed], [e.target for e in changed], pictures)
        answer = tasks.question(Random(96), 48)
        return f"caption {share(*from_text[:2])}, edit {share(*from_edit[:2])}, answer loss {answer:.3f}"

    batch = sum(BATCHES.values())
    stage = loop.Stage(
        "mllm", folder, minutes, batch, learning_rate=2e-3, threads=threads, seed=seed, decay=0.6
    )
    loop.train(stage, models, step, evaluate)
