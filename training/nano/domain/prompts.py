"""Scenes with a caption: the training stream and the score's prompts, by (seed, split, number).

Eight kinds. Six have the shape of GenEval's tasks; "dense" describes four to six objects in 40 to 80 words,
and "text" asks for a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from . import captions, dense, letters
from .facts import Fact, item_facts
from .layouts import ALONE, COUNTED, PLACED, RELATED, ROW, Centres, choose_item, choose_items, crowd, side
from .scene import (
    BOTTOM_LINE,
    HIGHER,
    LOWER,
    MEDIUM,
    MIDDLE,
    TITLED,
    TOP_LINE,
    Item,
    Scene,
    Word,
    combined,
    is_held_out,
    is_kept,
    put,
)
from .words import BACKGROUNDS, DEFAULT_BACKGROUND, DEFAULT_STYLE, STYLES, a

KINDS = {  # share of each in training
    "single": 0.06,
    "two": 0.08,
    "count": 0.1,
    "color": 0.14,
    "position": 0.12,
    "binding": 0.13,
    "dense": 0.19,
    "text": 0.18,
}
SPLITS = ("train", "held out")
NAMED = {
    (True, True): 0.7,
    (False, True): 0.15,
    (True, False): 0.1,
    (False, False): 0.05,
}  # style, background
# What is new about a prompt of the score: combinations of these sorts, at least one of them held out.
NEW = {
    "single": ("background",),
    "two": ("pair",),
    "count": ("count",),
    "color": ("paint",),
    "position": ("place", "pair"),
    "binding": ("paint", "pair"),
    "dense": ("background", "paint", "place", "pair"),
    "text": ("word",),
}
PAINTED = 0.1  # share of items with a paint where no kind asks for one
PAINTED_IN_CROWD = 0.3
ONE_PLACED = 0.4  # share of one item at a place in the kind "position"
WORD_ALONE = 0.5  # share of words without a sprite
SPELLED = 0.7  # share of training's words that are letters in any order: 282 words are soon known by heart


@dataclass(frozen=True)
class Prompt:
    """A caption, the scene that it tells, and what it states about it."""

    kind: str
    scene: Scene
    text: str
    facts: tuple[Fact, ...]


def draw(seed: int, split: str, number: int, kind: str | None = None) -> Prompt:
    """The prompt of a number in a split: "train", or "held out" for the score.

    Raises:
        ValueError: no such split or kind.
    """
    if split not in SPLITS:
        raise ValueError(f"no such split: {split!r}; use one of {', '.join(SPLITS)}")
    return sample(Random(f"{seed}/{split}/{number}"), kind, split == "train")


def sample(random: Random, kind: str | None = None, training: bool = True) -> Prompt:
    """A random prompt, of one kind or of the training mix.

    For training its scene holds no combination that is held out, else at least one of what `NEW` says.
    """
    kind = kind or random.choices(list(KINDS), list(KINDS.values()))[0]
    while True:
        prompt = sample_any(random, kind, training)
        if prompt and (not is_held_out(prompt.scene) if training else is_new(prompt)):
            return prompt


def is_new(prompt: Prompt) -> bool:
    """Whether a combination that the prompt's kind is about is held out."""
    return any(what[0] in NEW[prompt.kind] and is_kept(what) for what in combined(prompt.scene))


def sample_any(random: Random, kind: str, training: bool) -> Prompt | None:
    """A random prompt of a kind, None where no objects were found that fit."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of prompt {kind!r}: use one of {', '.join(KINDS)}")
    if kind == "dense":
        return crowded(random, training)
    named_style, named_ground = random.choices(list(NAMED), list(NAMED.values()))[0]
    style = random.choice(STYLES) if named_style else DEFAULT_STYLE
    background = random.choice(list(BACKGROUNDS)) if named_ground else DEFAULT_BACKGROUND
    told = TOLD[kind](random, background, training)
    if told is None:
        return None
    named_style = named_style and bool(told.items)  # a word shows no style
    scene = Scene(style if told.items else "", background, told.items, told.word)
    facts = told.facts + (("style", style),) * named_style + (("background", background),) * named_ground
    text = captions.frame(random, told.text, style * named_style, background * named_ground)
    return Prompt(kind, scene, text, facts)


@dataclass(frozen=True)
class Told:
    """What is in a picture but for style and background, in words and as facts."""

    items: tuple[Item, ...]
    text: str
    facts: tuple[Fact, ...]
    word: Word | None = None


def arrange(
    random: Random, background: str, centres: Centres, paint: float, training: bool
) -> tuple[Item, ...] | None:
    """Different objects in a layout, each painted with the probability `paint`."""
    return choose_items(random, background, centres, [random.random() < paint for _ in centres], training)


def single(random: Random, background: str, training: bool, paint: float = 0) -> Told | None:
    """One object in the middle."""
    items = arrange(random, background, ALONE, paint, training)
    return items and Told(items, a(items[0].noun), item_facts(items[0]))


def color(random: Random, background: str, training: bool) -> Told | None:
    """One painted object."""
    return single(random, background, training, paint=1)


def two(random: Random, background: str, training: bool, paint: float = PAINTED) -> Told | None:
    """Two objects, side by side in the order in which they are named, which is not told."""
    items = arrange(random, background, ROW, paint, training)
    return items and Told(items, captions.pair(random, items), (*item_facts(items[0]), *item_facts(items[1])))


def binding(random: Random, background: str, training: bool) -> Told | None:
    """Two painted objects of different paints."""
    told = two(random, background, training, paint=1)
    return told if told and told.items[0].paint != told.items[1].paint else None


def count(random: Random, background: str, training: bool) -> Told | None:
    """Two to four of a kind."""
    centres = COUNTED[random.randint(2, 4)]
    first = choose_item(random, background, centres[0], MEDIUM, False, (), training)
    if first is None:
        return None
    items = tuple(put(random, first.name, centre, side(centres)) for centre in centres)
    return Told(items, captions.counted(items), (("count", first.name, str(len(items))),))


def position(random: Random, background: str, training: bool) -> Told | None:
    """One object at a place, or two and how they stand."""
    if random.random() < ONE_PLACED:
        place = random.choice(list(PLACED))
        items = arrange(random, background, (PLACED[place],), PAINTED, training)
        if items is None:
            return None
        facts = (*item_facts(items[0]), ("place", items[0].name, place))
        return Told(items, captions.placed(items[0]), facts)
    relation = random.choice(list(RELATED))
    items = arrange(random, background, RELATED[relation], PAINTED, training)
    if items is None:
        return None
    first, second = items
    facts = (*item_facts(first), *item_facts(second), ("relation", first.name, relation, second.name))
    return Told(items, captions.relation(random, first, relation, second), facts)


def text(random: Random, background: str, training: bool) -> Told | None:
    """A word in the middle, or one above or below an object."""
    spelled = training and random.random() < SPELLED
    letters_of = letters.spell(random) if spelled else random.choice(letters.WORDS)
    if training and is_kept(("word", letters_of)):
        return None
    facts = (("word", letters_of),)
    if random.random() < WORD_ALONE:
        word = Word(letters_of, MIDDLE)
        return Told((), captions.sign(random, word, ()), facts, word)
    line, middle = random.choice(((TOP_LINE, LOWER), (BOTTOM_LINE, HIGHER)))
    item = choose_item(random, background, (MIDDLE, middle), TITLED, False, (), training)
    if item is None:
        return None
    word = Word(letters_of, line)
    return Told((item,), captions.sign(random, word, (item,)), (*facts, *item_facts(item)), word)


TOLD = {
    "single": single,
    "two": two,
    "count": count,
    "color": color,
    "position": position,
    "binding": binding,
    "text": text,
}


def crowded(random: Random, training: bool) -> Prompt | None:
    """Four to six objects, described at length; style and background are always told."""
    style, background = random.choice(STYLES), random.choice(list(BACKGROUNDS))
    centres = crowd(random, random.randint(4, 6))
    items = arrange(random, background, centres, PAINTED_IN_CROWD, training)
    if items is None:
        return None
    scene = Scene(style, background, items)
    words, facts = dense.describe(random, scene)
    return Prompt("dense", scene, words, facts)
