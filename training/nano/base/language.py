"""The MLLM learns its world: what Qwen2.5-VL brings ready-made, before it is frozen.

Its query slots name the scene that is to be drawn at the input of every layer that becomes a rung: with a
caption the scene that it tells, with a picture and an instruction the edited one. The diffusion transformer
learns objects only once it finds them named there. The same model answers questions about pictures in words.

Which object an instruction means is the last thing that it learns from the slots alone. So the nouns of
instructions may be asked, too, where in the picture their object lies (:mod:`.grounding`).
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....core.connector import LadderConnector
from ....core.prompts import build_chat, encode_text, pad_left
from ..domain import edits, naming, prompts, questions
from ..domain.render import render
from ..domain.scene import SIZE
from ..domain.words import OBJECTS, PAINTS, plural
from . import grounding, mllm, stage
from .slots import SlotHeads
from .stage import StageRecipe, autocast
from .tokenizer import ASK_SYSTEM_PROMPT, SYSTEM_PROMPT
from .vision import WHAT, CellHeads, cell_names

EMPTY = np.zeros((SIZE, SIZE, 3), np.uint8)  # the black picture of unconditional guidance
DROPPED = 0.05  # share of empty captions
EDIT_PARTS = {(False, False): 0.84, (True, False): 0.08, (False, True): 0.04, (True, True): 0.04}
EXAMPLES = 96


class Reading(NamedTuple):
    """What the model made of prompts.

    Attributes:
        slots: normalised query states at the inputs of the rungs, ``[RUNGS, batch, QUERIES, WIDTH]``.
        ids: of the prompts, ``[batch, length]``.
        layers: the same of all tokens at the inputs of some layers, ``[layers, batch, length, WIDTH]``.
        attention: of the slots in some layers, :func:`.mllm.attention`, where grounding counts.
        vision: vision tokens ``[batch, CELLS, WIDTH]`` of prompts with pictures.
    """

    slots: Tensor
    ids: Tensor
    layers: Tensor
    attention: Tensor | None
    vision: Tensor | None


class Answers(NamedTuple):
    """What the model says to questions.

    Attributes:
        logits: of the answers' tokens, ``[tokens, vocabulary]``.
        tokens: the right ones, ``[tokens]``.
        ids, layers, vision: as in :class:`Reading`.
    """

    logits: Tensor
    tokens: Tensor
    ids: Tensor
    layers: Tensor
    vision: Tensor


class Tasks:
    """Captions, edits and questions on one model: each draws a batch and gives its loss."""

    def __init__(self, prompter: mllm.Prompter, grounding_weight: float = 0.0) -> None:
        self.prompter, self.grounding_weight = prompter, grounding_weight
        self.model = mllm.build(prompter.tokenizer)
        self.connector: LadderConnector = mllm.build_connector()
        self.connector.layers.requires_grad_(False)  # belongs to the ladder
        self.slots, self.cells, self.grounding = SlotHeads(), CellHeads(), grounding.Grounding()
        one, many, self.paints = (
            torch.tensor([encode_text(prompter.tokenizer, f" {name}")[0] for name in names])
            for names in (OBJECTS, map(plural, OBJECTS), PAINTS)
        )
        self.words = torch.stack([one, many])  # [2, OBJECTS], ids of the nouns

    def read(self, texts: list[str], pictures: list[np.ndarray] | None = None) -> Reading:
        """Read prompts with one picture each or none."""
        ids, mask = self.prompter.prompts(texts, 0 if pictures is None else 1)
        with autocast():
            vision = grid = None
            if pictures is not None:
                patches, grid = self.prompter.patches(pictures)
                vision = mllm.vision_tokens(self.model, patches, grid)
            hidden = mllm.run(self.model, self.connector.queries, ids, mask, vision, grid)
            rungs = torch.stack(hidden[-1 - mllm.RUNGS : -1])[:, :, -mllm.QUERIES :]
            norm = self.model.model.language_model.norm
            asked = None
            if self.grounding_weight:
                inputs = {layer: hidden[layer] for layer in grounding.ASKED}
                asked = mllm.attention(self.model, inputs, ids, mask, grid)
            return Reading(norm(rungs), ids, norm(torch.stack(hidden[grounding.GROUNDED])), asked, vision)

    def caption(self, random: Random, size: int, kind: str | None = None) -> Tensor:
        """A caption: the slots name its scene. Some are empty and name nothing.

        Of any kind but the dense ones, which would make all others as long, or of one kind.
        """
        texts, told, written = [], [], []
        while len(texts) < size:
            prompt = prompts.sample(random, kind)
            if prompt.kind == "dense" and kind is None:
                continue
            scene = None if random.random() < DROPPED else prompt.scene
            texts.append(prompt.text if scene else "")
            told.append(naming.slot_names(scene, exact=False))
            letters = scene.word.letters if scene and scene.word else ""
            written.append(encode_text(self.prompter.tokenizer, letters))
        reading, names = self.read(texts), torch.from_numpy(np.stack(told))
        loss = self.slots.loss(reading.slots, names)
        if self.grounding_weight:
            what = self.slots.names(names)["what"]
            spots = grounding.find_words(reading.ids, self.words, what, written)
            row, number, place = spots.nonzero(as_tuple=True)
            said = self.slots.read["what"](reading.layers[:, row, place].float())
            says = F.one_hot(what[row, number], naming.SIZES["what"]).bool()
            loss = loss + self.grounding_weight * (
                grounding.telling_loss(reading.attention[grounding.NAMED], spots)
                + self.grounding.number_loss(reading.layers, spots)
                + grounding.spread_loss(said, says)
            )
        return loss

    def count(self, random: Random, size: int) -> Tensor:
        """Several of a kind."""
        return self.caption(random, size, "count")

    def text(self, random: Random, size: int) -> Tensor:
        """A word to be written."""
        return self.caption(random, size, "text")

    def dense(self, random: Random, size: int) -> Tensor:
        """Long captions."""
        return self.caption(random, size, "dense")

    def edit(self, random: Random, size: int) -> Tensor:
        """A picture and an instruction: the slots name the edited scene.

        Without the instruction they name the picture's own scene, with a black picture and no instruction
        nothing: the three states that guidance compares.
        """
        texts, pictures, told, fates, sources = [], [], [], [], []
        for _ in range(size):
            edit = edits.sample(random)
            no_text, no_picture = random.choices(list(EDIT_PARTS), list(EDIT_PARTS.values()))[0]
            source = None if no_picture else edit.source
            texts.append("" if no_text else edit.text)
            pictures.append(EMPTY if no_picture else render(edit.source))
            target = source if no_text else edit.target
            told.append(naming.slot_names(target, before=source))
            if source is not None:
                fates.append(naming.fates(target, source))
            sources.append(source)
        reading = self.read(texts, pictures)
        seen = [i for i, source in enumerate(sources) if source is not None]
        slots = self.slots.loss(reading.slots, torch.from_numpy(np.stack(told)))
        if not seen:
            return slots
        cells, vision = cell_names([sources[i] for i in seen]), reading.vision[seen]
        loss = slots + self.seeing_loss(vision, cells)
        if self.grounding_weight:
            before, after = (
                self.slots.names(torch.from_numpy(np.stack(names)))
                for names in ([naming.slot_names(sources[i]) for i in seen], [told[i] for i in seen])
            )
            ids, layers, attention = (
                reading.ids[seen],
                reading.layers[:, seen],
                reading.attention[:, seen],
            )
            nouns = grounding.find_nouns(ids, self.words, cells, before["what"])
            news = grounding.find_news(ids, self.words, self.paints, before, after)
            slots = reading.slots[grounding.TOLD][:, seen]
            loss = loss + self.grounding_weight * (
                self.grounding.cell_loss(layers, nouns)
                + self.grounding.number_loss(layers, nouns.spots)
                + self.grounding.fate_loss(slots, torch.from_numpy(np.stack(fates)))
                + grounding.naming_loss(attention[grounding.NAMED], before["what"], nouns.spots)
                + grounding.telling_loss(attention[grounding.NEWS], news)
                + self.meaning_loss(ids, layers)
            )
        return loss

    def seeing_loss(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """Vision tokens say what lies on their cells, and point where its nouns do."""
        return 0.3 * self.cells.loss(tokens, cells) + 0.2 * self.pointing(tokens, cells)

    def pointing(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """A vision token on a sprite should point where the nouns for the sprite point.

        Then finding the object that an instruction speaks of is attention between equal directions, and nouns
        in the plural are known of which no caption tells the number.
        """
        rows = self.model.model.language_model.embed_tokens.weight[self.words]
        logits = 16 * F.normalize(tokens.float(), dim=-1) @ F.normalize(rows, dim=-1)[:, None].mT
        what = cells[..., WHAT]
        wanted = torch.where(what == naming.NOTHING, naming.UNREAD, what - 1)
        wanted = wanted.repeat(len(rows), 1).flatten()
        total = F.cross_entropy(logits.flatten(0, 2), wanted, ignore_index=naming.UNREAD, reduction="sum")
        return total / (wanted != naming.UNREAD).sum().clamp(min=1)  # a word alone shows no sprite at all

    def question(self, random: Random, size: int) -> Tensor:
        """A picture and a question: the answer in words, then the end of the turn.

        Its vision tokens are asked as those of edits, which show neither words nor large sprites alone.
        """
        asked = [questions.sample(random) for _ in range(size)]
        said = self.answers(asked, random)
        loss = F.cross_entropy(said.logits.float(), said.tokens)
        loss = loss + self.seeing_loss(said.vision, cell_names([question.scene for question in asked]))
        if self.grounding_weight:
            loss = loss + self.grounding_weight * self.meaning_loss(said.ids, said.layers)
        return loss

    def meaning_loss(self, ids: Tensor, layers: Tensor) -> Tensor:
        """Every noun says its object as a slot does.

        Nouns in the plural differ from those in the singular all in the same way, so that one is known of
        which no caption tells the number.

        Args:
            ids, layers: of a :class:`Reading`.
        """
        row, place, _, word = (ids[..., None, None] == self.words).nonzero(as_tuple=True)
        said = self.slots.read["what"](layers[:, row, place].float())
        one, many = self.model.model.language_model.embed_tokens.weight[self.words]
        plurals = (many - one - (many - one).mean(0)).square().mean() / one.detach().square().mean()
        return grounding.spread_loss(said, F.one_hot(word + 1, naming.SIZES["what"]).bool()) + plurals

    def answers(self, asked: list[questions.Question], random: Random) -> Answers:
        """What the model says to questions, its answers given up to the token before."""
        tokenizer = self.prompter.tokenizer
        chats, answers = [], []
        for question in asked:
            system = random.choice((SYSTEM_PROMPT, ASK_SYSTEM_PROMPT))
            chats.append(build_chat(tokenizer, system, question.text, [mllm.CELLS]))
            answers.append([*encode_text(tokenizer, question.answer), tokenizer.eos_token_id])
        ids, mask = pad_left([c + a for c, a in zip(chats, answers, strict=True)], tokenizer.pad_token_id)
        labels, _ = pad_left([[-100] * len(c) + a for c, a in zip(chats, answers, strict=True)], -100)
        with autocast():
            patches, grid = self.prompter.patches([render(question.scene) for question in asked])
            vision = mllm.vision_tokens(self.model, patches, grid)
            hidden = mllm.run(self.model, self.connector.queries, ids, mask, vision, grid)
            said = labels[:, 1:] != -100
            logits = self.model.lm_head(hidden[-1][:, :-1][said])
            layers = self.model.model.language_model.norm(torch.stack(hidden[grounding.GROUNDED]))
        return Answers(logits, labels[:, 1:][said], ids, layers, vision)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is saved."""
        names = ("connector", "slots", "cells", "grounding")
        return {"mllm": self.model, **{name: getattr(self, name) for name in names}}


def right(tasks: Tasks, states: Tensor, told: Tensor) -> str:
    """Share of what is said of scenes that the slots name rightly: objects, paints, places, all together."""
    said = {head: logits.argmax(-1) for head, logits in tasks.slots(states[-1]).items()}
    names = tasks.slots.names(told)
    wrong = torch.zeros(len(told), dtype=torch.bool)
    shares = []
    for head in ("what", "paint", "x", "y", "background", "style"):
        equal = said[head] == names[head]
        if head in ("x", "y"):
            equal = (said[head] - names[head]).abs() <= 3  # to three pixels
        equal &= (said[head] == naming.NOTHING) == (names[head] == naming.NOTHING)
        wrong |= ~equal.all(-1)
        present = equal[names[head] > 0]
        shares.append(f"{head} {present.float().mean():.2f}")
    return f"{', '.join(shares)}, whole scenes {1 - wrong.float().mean():.2f}"


def train(recipe: StageRecipe) -> None:
    """Train by a recipe, going on where its run left off."""
    torch.manual_seed(recipe.seed)
    tasks = Tasks(mllm.Prompter(mllm.load_tokenizer(recipe.tokenizer)), recipe.grounding)
    tower = tasks.model.model.visual
    if recipe.init:
        stage.load_stage(recipe.init, tasks.modules)
    if recipe.vision:
        stage.load_stage(recipe.vision, {"vision": tower, "heads": tasks.cells})
    tower.requires_grad_(not (recipe.init and recipe.vision))
    told = [prompts.draw(recipe.seed, "held out", i) for i in range(EXAMPLES)]
    edited = [edits.draw(recipe.seed, "held out", i) for i in range(EXAMPLES)]
    asked = [questions.draw(recipe.seed, "held out", i) for i in range(EXAMPLES)]

    def step(number: int) -> Tensor:
        random = Random(f"{recipe.seed}/language/{number}")
        return sum(getattr(tasks, task)(random, size) for task, size in recipe.batch.items())

    captioned = np.stack([naming.slot_names(prompt.scene, exact=False) for prompt in told])
    changed = np.stack([naming.slot_names(edit.target, before=edit.source) for edit in edited])

    @torch.no_grad()
    def evaluate() -> str:
        captions = tasks.read([prompt.text for prompt in told]).slots
        edits_ = tasks.read([edit.text for edit in edited], [render(edit.source) for edit in edited]).slots
        answers = tasks.answers(asked, Random(0))
        return (
            f"captions: {right(tasks, captions, torch.from_numpy(captioned))}; "
            f"edits: {right(tasks, edits_, torch.from_numpy(changed))}; "
            f"answers: {(answers.logits.argmax(-1) == answers.tokens).float().mean():.3f} of tokens"
        )

    stage.train(recipe, tasks.modules, step, evaluate)
