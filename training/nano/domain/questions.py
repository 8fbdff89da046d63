"""Questions about a picture with their one right answer, by (seed, split, number)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from . import edits, prompts
from .prompts import SPLITS
from .scene import Item, Scene, in_reading_order
from .words import NUMBERS, a, plural

KINDS = {  # share of each in training; the hardest have most
    "what": 0.14,
    "how many": 0.06,
    "color": 0.17,
    "where": 0.06,
    "style": 0.02,
    "background": 0.02,
    "word": 0.23,
    "describe": 0.3,
}
ASKED = {
    "one": ("what is it?", "what is this?", "what is in the picture?"),
    "there": ("what is {place}?", "which object is {place}?"),
    "all": ("how many objects are there?", "how many things are in the picture?"),
    "many": ("how many {names} are there?", "how many {names} do you see?"),
    "color": ("what color is the {name}?", "which color does the {name} have?"),
    "where": ("where is the {name}?", "in which part of the picture is the {name}?"),
    "style": ("what is the style of the picture?", "in which style is it drawn?"),
    "background": ("what color is the background?", "what is the background?"),
    "word": ("what does it say?", "which word is written there?"),
    "describe": ("describe the picture", "describe this picture", "what do you see?"),
}


@dataclass(frozen=True)
class Question:
    """A picture's scene, a question about it and the answer."""

    kind: str
    scene: Scene
    text: str
    answer: str


def draw(seed: int, split: str, number: int, kind: str | None = None) -> Question:
    """The question of a number in a split: "train", or "held out" for the score.

    Raises:
        ValueError: no such split or kind.
    """
    if split not in SPLITS:
        raise ValueError(f"no such split: {split!r}; use one of {', '.join(SPLITS)}")
    return sample(Random(f"{seed}/{split}/question/{number}"), kind, split == "train")


def sample(random: Random, kind: str | None = None, training: bool = True) -> Question:
    """A random question about a random picture.

    Raises:
        ValueError: no such kind.
    """
    kind = kind or random.choices(list(KINDS), list(KINDS.values()))[0]
    if kind not in KINDS:
        raise ValueError(f"unknown kind of question {kind!r}: use one of {', '.join(KINDS)}")
    while True:
        scene = picture(random, kind, training)
        asked = ask(random, kind, scene)
        if asked is not None:
            return Question(kind, scene, *asked)


def picture(random: Random, kind: str, training: bool) -> Scene:
    """A scene to ask about: of a caption, or of an edit, whose objects stand in more ways."""
    if kind == "word":
        return prompts.sample(random, "text", training).scene
    if random.random() < 0.5:
        return prompts.sample(random, None, training).scene
    return edits.sample(random, None, training).target


def ask(random: Random, kind: str, scene: Scene) -> tuple[str, str] | None:
    """A question of a kind and its answer, None if it does not fit the scene."""
    items, names = scene.items, scene.names
    alone = [item for item in items if names.count(item.name) == 1]
    if kind == "word" and scene.word:
        return random.choice(ASKED["word"]), scene.word.letters
    if kind == "background":
        return random.choice(ASKED["background"]), scene.background
    if kind == "describe":
        return random.choice(ASKED["describe"]), describe(scene)
    if not items:
        return None
    if kind == "what" and len(items) == 1:
        return random.choice(ASKED["one"]), a(items[0].noun)
    if kind == "what" and len(alone) == len(items):
        item = random.choice(items)
        return random.choice(ASKED["there"]).format(place=item.place), a(item.noun)
    if kind == "how many" and not scene.word:
        if random.random() < 0.5:
            return random.choice(ASKED["all"]), NUMBERS[len(items)]
        name = random.choice(names)
        return random.choice(ASKED["many"]).format(names=plural(name)), NUMBERS[names.count(name)]
    if kind == "color" and (painted := [item for item in alone if item.paint]):
        item = random.choice(painted)
        return random.choice(ASKED["color"]).format(name=item.name), item.paint
    if kind == "where" and alone and not scene.word:
        item = random.choice(alone)
        return random.choice(ASKED["where"]).format(name=item.name), item.place
    if kind == "style":
        return random.choice(ASKED["style"]), scene.style
    return None


def describe(scene: Scene) -> str:
    """The sentence that tells everything in a picture, in one fixed wording."""
    items = in_reading_order(scene.items)
    names = [item.name for item in items]
    if len(names) > 1 and set(names) == {names[0]}:
        told = f"{NUMBERS[len(names)]} {plural(names[0])}"
    elif len(names) == 1 and (scene.word or items[0].place == "in the middle"):
        told = a(items[0].noun)
    else:
        told = ", ".join(map(told_with_place, items))
    if scene.word:
        word = f'the word "{scene.word.letters}"'
        told = f"{told} with {word} {'above' if scene.word.y < items[0].y else 'below'} it" if told else word
    style = f", {scene.style} style" if scene.style else ""
    return f"{told} on {a(scene.background)} background{style}"


def told_with_place(item: Item) -> str:
    """The item and its place."""
    return f"{a(item.noun)} {item.place}"
