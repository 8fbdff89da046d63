"""Sentences that tell a scene in a few words; how they are worded varies."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .scene import Item, Word
from .words import NUMBERS, RELATIONS, STYLE_NOUNS, a, plural

BOTH = (  # style and background are named
    "{render} of {body} on {a_ground} background",
    "{body} on {a_ground} background, {style} style",
    "{body}, {ground} background, {style} style",
    "{style} style, {body} on {ground}",
    "{body} on {ground} in {style} style",
)
GROUND = ("{body} on {a_ground} background", "{body} on {ground}", "{body}, {ground} background")
STYLE = ("{render} of {body}", "{body}, {style} style", "{body} in {style} style")
PAIRS = ("{0} and {1}", "{0} next to {1}", "{0} beside {1}")
SIGNS = ('the word "{word}"', '"{word}"', 'a sign that says "{word}"')
SIGNED = {  # a sprite with a word above or below it
    "above": ('{thing} with the word "{word}" above it', '"{word}" above {thing}'),
    "below": ('{thing} with the word "{word}" below it', '"{word}" below {thing}'),
}


def frame(random: Random, body: str, style: str, background: str) -> str:
    """A sentence of what is to be seen, its style and its background, either of them "" for not named."""
    wordings = BOTH if style and background else GROUND if background else STYLE if style else ("{body}",)
    return random.choice(wordings).format(
        body=body,
        render=STYLE_NOUNS.get(style, ""),
        style=style,
        ground=background,
        a_ground=a(background) if background else "",
    )


def pair(random: Random, items: Sequence[Item]) -> str:
    """Two things without saying where."""
    return random.choice(PAIRS).format(*(a(item.noun) for item in items))


def counted(items: Sequence[Item]) -> str:
    """How many of one kind."""
    return f"{NUMBERS[len(items)]} {plural(items[0].name)}"


def placed(item: Item) -> str:
    """One thing and where it is."""
    return f"{a(item.noun)} {item.place}"


def relation(random: Random, first: Item, relation: str, second: Item) -> str:
    """Two things and how they stand."""
    return f"{a(first.noun)} {random.choice(RELATIONS[relation])} {a(second.noun)}"


def sign(random: Random, word: Word, items: Sequence[Item]) -> str:
    """A word, or a sprite and a word."""
    if not items:
        return random.choice(SIGNS).format(word=word.letters)
    [item] = items
    side = "above" if word.y < item.y else "below"
    return random.choice(SIGNED[side]).format(thing=a(item.noun), word=word.letters)
