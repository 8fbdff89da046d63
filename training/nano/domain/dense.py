"""Descriptions of crowded scenes in 40 to 80 words, every object with its place."""

from __future__ import annotations

from itertools import permutations
from random import Random

from .facts import Fact, item_facts
from .scene import Item, Scene, third
from .words import NUMBERS, RELATIONS, STYLE_NOUNS, a

SHORTEST, LONGEST = 40, 80  # in words
OPENINGS = (
    "{Render} with {number} different things on a plain {ground} background.",
    "{Render} in which {number} things are placed on a plain {ground} background.",
    "The picture is {render} of {number} things in front of a plain {ground} background.",
)
SENTENCES = (
    "{Thing} is {place}.",
    "{Place} there is {thing}.",
    "{Place} you can see {thing}.",
    "{Thing} can be seen {place}.",
)
ENDINGS = (
    "Nothing else is in the picture.",
    "There is nothing else to be seen, and the whole background has the same color.",
    "Everything else is empty.",
    "",
)


def raised(text: str) -> str:
    """The text with a capital letter, "3D" as it is."""
    return text[:1].upper() + text[1:]


def neighbours(scene: Scene) -> list[tuple[Item, str, Item]]:
    """Every two items that stand in one row or one column, with their relation."""
    found = []
    for first, second in permutations(scene.items, 2):
        columns, rows = ((third(item.x), third(item.y)) for item in (first, second))
        if columns[1] == rows[1] and columns[0] != rows[0]:
            found.append((first, "to the left of" if first.x < second.x else "to the right of", second))
        elif columns[0] == rows[0] and columns[1] != rows[1]:
            found.append((first, "above" if first.y < second.y else "below", second))
    return found


def describe(random: Random, scene: Scene) -> tuple[str, tuple[Fact, ...]]:
    """A text of 40 to 80 words, and what it states."""
    words = {"number": NUMBERS[len(scene.items)], "ground": scene.background}
    render = STYLE_NOUNS[scene.style]
    sentences = [random.choice(OPENINGS).format(render=render, Render=raised(render), **words)]
    facts: list[Fact] = [("style", scene.style), ("background", scene.background)]
    for item in scene.items:
        wording = random.choice(SENTENCES)
        thing, place = a(item.noun), item.place
        parts = {"thing": thing, "Thing": raised(thing), "place": place, "Place": raised(place)}
        sentences.append(wording.format(**parts))
        facts += [*item_facts(item), ("place", item.name, item.place)]
    known = neighbours(scene)
    random.shuffle(known)
    extra = random.randint(0, 2)
    while known and (extra > 0 or length(sentences) < SHORTEST):
        first, relation, second = known.pop()
        more = f"The {first.noun} is {random.choice(RELATIONS[relation])} the {second.noun}."
        if length([*sentences, more]) > LONGEST:
            break
        sentences.append(more)
        facts.append(("relation", first.name, relation, second.name))
        extra -= 1
    endings = [ending for ending in ENDINGS if length([*sentences, ending]) <= LONGEST]
    return " ".join([*sentences, random.choice(endings)]).rstrip(), tuple(facts)


def length(sentences: list[str]) -> int:
    """Number of words."""
    return len(" ".join(sentences).split())
