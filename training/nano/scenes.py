"""Sprite scenes: what is in a picture, how it is drawn, how it is told in a sentence.

A scene is one to three sprites on a plain background of 64 x 64 pixels. Four kinds follow the shape of
GenEval's tasks: single, two, count and position. Which scenes are kept for the score is a hash of the
objects and the background, so no picture of a held-out combination, in whatever arrangement, is seen in
training.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image

from . import sprites
from .sprites import OBJECTS

SIZE = 64
BACKGROUNDS = {
    "white": (250, 250, 250),
    "gray": (150, 152, 158),
    "orange": (247, 142, 42),
    "yellow": (250, 214, 64),
    "green": (70, 170, 84),
    "blue": (52, 112, 222),
    "purple": (140, 82, 200),
    "pink": (247, 160, 196),
}
KINDS = {"single": 0.31, "two": 0.23, "count": 0.18, "position": 0.28}  # share of each kind in training

LOW, MIDDLE, HIGH = 17, 32, 47  # the three places of a sprite's centre along an axis, in pixels
LARGE, SMALL = 42, 27  # side of a sprite, alone in the middle or one of several
JITTER = 1  # places and sides vary by at most this many pixels
PLACES = {
    "on the left": (LOW, MIDDLE),
    "on the right": (HIGH, MIDDLE),
    "at the top": (MIDDLE, LOW),
    "at the bottom": (MIDDLE, HIGH),
    "in the top left corner": (LOW, LOW),
    "in the top right corner": (HIGH, LOW),
    "in the bottom left corner": (LOW, HIGH),
    "in the bottom right corner": (HIGH, HIGH),
}
ROW = ((LOW, MIDDLE), (HIGH, MIDDLE))
COLUMN = ((MIDDLE, LOW), (MIDDLE, HIGH))
TRIANGLES = (((MIDDLE, LOW), (LOW, HIGH), (HIGH, HIGH)), ((LOW, LOW), (HIGH, LOW), (MIDDLE, HIGH)))
RELATIONS = {
    "to the left of": ROW,
    "to the right of": ROW[::-1],
    "above": COLUMN,
    "below": COLUMN[::-1],
}
LAYOUTS = {1: (((MIDDLE, MIDDLE),),), 2: (ROW, COLUMN), 3: TRIANGLES}
NUMBERS = {1: "one", 2: "two", 3: "three"}
IRREGULAR = {
    "fish": "fish",
    "butterfly": "butterflies",
    "strawberry": "strawberries",
    "bus": "buses",
    "octopus": "octopuses",
    "fox": "foxes",
    "cactus": "cactuses",
}


@dataclass(frozen=True)
class Item:
    """One sprite: the object's name, its centre and its side in pixels."""

    name: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """Sprites on a plain background; `kind` and `relation` say what a caption promises about them."""

    background: str
    items: tuple[Item, ...]
    kind: str
    relation: str = ""  # a key of PLACES (one item) or RELATIONS (two items), for the kind "position"


@lru_cache(maxsize=4096)
def sprite(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours times alpha [size, size, 3] and the background's share [size, size, 1], float32, colours
    0..255.
    """
    channels = sprites.load()[name].astype(np.float32)
    channels[..., :3] *= channels[..., 3:] / 255  # resizing mixes colours by their alpha
    small = np.stack(
        [np.asarray(Image.fromarray(channels[..., i]).resize((size, size), Image.LANCZOS)) for i in range(4)],
        -1,
    )
    small = small.clip(0, 255)
    return small[..., :3], 1 - small[..., 3:] / 255


def render(scene: Scene) -> np.ndarray:
    """Picture of a scene: [64, 64, 3] uint8. Every sprite must lie inside the picture."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for item in scene.items:
        colours, rest = sprite(item.name, item.size)
        top, left = item.y - item.size // 2, item.x - item.size // 2
        window = picture[top : top + item.size, left : left + item.size]
        window *= rest
        window += colours
    return picture.clip(0, 255).astype(np.uint8)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is kept for the score: one in ten sets of objects (with their number) and
    background.
    """
    names = sorted(item.name for item in scene.items)
    return zlib.crc32(" ".join([scene.background, *names]).encode()) % 10 == 0


def plural(name: str) -> str:
    return IRREGULAR.get(name, name + "s")


def a(name: str) -> str:
    """The noun with its article."""
    return ("an " if name[0] in "aeiou" else "a ") + name


def place(name: str, centre: tuple[int, int], size: int, random: Random) -> Item:
    """The object at a place, moved and scaled by at most `JITTER` pixels."""

    def jitter() -> int:
        return random.randint(-JITTER, JITTER)

    return Item(name, centre[0] + jitter(), centre[1] + jitter(), size + jitter())


def draw_any(random: Random, kind: str) -> Scene:
    background = random.choice(list(BACKGROUNDS))
    names, relation = random.sample(list(OBJECTS), 2), ""
    if kind == "single":
        names, centres = names[:1], LAYOUTS[1][0]
    elif kind == "two":
        centres = random.choice(LAYOUTS[2])
    elif kind == "count":
        names = names[:1] * random.choice((2, 3))
        centres = random.choice(LAYOUTS[len(names)])
    elif kind == "position" and random.random() < 0.4:
        relation = random.choice(list(PLACES))
        names, centres = names[:1], (PLACES[relation],)
    elif kind == "position":
        relation = random.choice(list(RELATIONS))
        centres = RELATIONS[relation]
    else:
        raise ValueError(f"unknown kind of scene {kind!r}: use one of {', '.join(KINDS)}")
    side = LARGE if kind == "single" else SMALL
    items = tuple(place(name, centre, side, random) for name, centre in zip(names, centres, strict=True))
    return Scene(background, items, kind, relation)


def draw(random: Random, kind: str | None = None, held_out: bool = False) -> Scene:
    """A random scene, of one kind or of the training mix, from the training or from the held-out
    combinations.
    """
    kind = kind or random.choices(list(KINDS), list(KINDS.values()))[0]
    while is_held_out(scene := draw_any(random, kind)) != held_out:
        pass
    return scene


def caption(scene: Scene, random: Random) -> str:
    """A sentence that tells the scene; the wording of the background varies."""
    names = [item.name for item in scene.items]
    if scene.kind == "count":
        text = f"{NUMBERS[len(names)]} {plural(names[0])}"
    elif scene.kind == "two":
        text = f"{a(names[0])} and {a(names[1])}"
    elif len(names) == 2:
        text = f"{a(names[0])} {scene.relation} {a(names[1])}"
    else:
        text = f"{a(names[0])} {scene.relation}".rstrip()
    wording = random.choice(("{text} on {a} background", "{text} on {name}", "{text}, {name} background"))
    return wording.format(text=text, a=a(scene.background), name=scene.background)
