"""Edits in ImgEdit's categories: a picture, an instruction and the exact result, by (seed, split, number)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from . import changes
from .layouts import (
    ALONE,
    COLUMN,
    COUNTED,
    PLACED,
    ROW,
    SQUARE,
    TRIANGLE,
    Centres,
    choose_item,
    choose_items,
    side,
)
from .prompts import SPLITS
from .scene import MEDIUM, Scene, in_reading_order, is_clear, is_held_out, put
from .words import BACKGROUNDS, STYLES

KINDS = {  # share of each in training
    "add": 0.12,
    "recolor": 0.12,
    "extract": 0.08,
    "replace": 0.14,
    "remove": 0.14,
    "background": 0.1,
    "style": 0.08,
    "hybrid": 0.11,
    "action": 0.11,
}
NUMBERS = {1: 0.2, 2: 0.45, 3: 0.25, 4: 0.1}  # share of sources with so many objects
PAINTED = 0.2  # share of painted objects in sources
COUNTED_ACTION = 0.4  # share of changes of the number in the kind "action"; the others move something
LAYOUTS: dict[int, tuple[Centres, ...]] = {  # besides any corners
    1: (ALONE, *((centre,) for centre in PLACED.values())),
    2: (ROW, COLUMN),
    3: (TRIANGLE,),
    4: (SQUARE,),
}
CORNERS = 0.6  # share of sources whose objects stand in corners only


@dataclass(frozen=True)
class Edit:
    """A source, an instruction and what following it gives.

    Where `anywhere` is true only the number of the objects is told, not where they stand.
    """

    kind: str
    source: Scene
    target: Scene
    text: str
    anywhere: bool = False


def draw(seed: int, split: str, number: int, kind: str | None = None) -> Edit:
    """The edit of a number in a split: "train", or "held out" for the score.

    Raises:
        ValueError: no such split or kind.
    """
    if split not in SPLITS:
        raise ValueError(f"no such split: {split!r}; use one of {', '.join(SPLITS)}")
    return sample(Random(f"{seed}/{split}/edit/{number}"), kind, split == "train")


def sample(random: Random, kind: str | None = None, training: bool = True) -> Edit:
    """A random edit. For training neither picture holds a held-out combination; else the result does."""
    kind = kind or random.choices(list(KINDS), list(KINDS.values()))[0]
    while True:
        edit = sample_any(random, kind, training)
        if edit is None or edit.source == edit.target or not is_clear(edit.target):
            continue
        if training and not (is_held_out(edit.source) or is_held_out(edit.target)):
            return edit
        if not training and is_held_out(edit.target):
            return edit


def sample_any(random: Random, kind: str, training: bool) -> Edit | None:
    """A random edit of a kind, None where the change did not fit the source."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of edit {kind!r}: use one of {', '.join(KINDS)}")
    anywhere = kind == "action" and random.random() < COUNTED_ACTION
    source = counted(random, training) if anywhere else mixed(random, training)
    if source is None:
        return None
    change = {
        "extract": changes.extract,
        "style": changes.style,
        "hybrid": changes.two_at_once,
        "action": changes.count if anywhere else changes.move,
    } | changes.SIMPLE
    changed = change[kind](random, source, training)
    return changed and Edit(kind, source, *changed, anywhere)


def mixed(random: Random, training: bool) -> Scene | None:
    """One to four different objects."""
    background = random.choice(list(BACKGROUNDS))
    number = random.choices(list(NUMBERS), list(NUMBERS.values()))[0]
    layout = random.choice(LAYOUTS[number])
    if random.random() < CORNERS:
        layout = tuple(random.sample(SQUARE, number))
    paints = [random.random() < PAINTED for _ in layout]
    items = choose_items(random, background, layout, paints, training)
    return items and Scene(random.choice(STYLES), background, in_reading_order(items))


def counted(random: Random, training: bool) -> Scene | None:
    """Two to four of a kind."""
    background = random.choice(list(BACKGROUNDS))
    centres = COUNTED[random.randint(2, 4)]
    first = choose_item(random, background, centres[0], MEDIUM, False, (), training)
    if first is None:
        return None
    items = tuple(put(random, first.name, centre, side(centres)) for centre in centres)
    return Scene(random.choice(STYLES), background, items)
