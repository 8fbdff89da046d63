"""Captions that are wrong in one property: what the judge must refuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random

from ..domain.facts import GENERAL, Fact
from ..domain.layouts import PLACED
from ..domain.letters import LETTERS
from ..domain.prompts import Prompt
from ..domain.words import BACKGROUNDS, OBJECTS, PAINTS, STYLES

OPPOSITE = {"to the left of": "to the right of", "above": "below"}
OPPOSITE |= {there: here for here, there in OPPOSITE.items()}


def other(random: Random, values: Iterable[str], *taken: str) -> str:
    """One of the values that is not taken."""
    return random.choice([value for value in values if value not in taken])


def change_fact(random: Random, fact: Fact, names: list[str]) -> Fact:
    """The fact with one word exchanged: it is wrong of a scene with these objects of which it was true.

    Raises:
        ValueError: no such fact.
    """
    what, *said = fact
    if what == "there":
        return (what, other(random, OBJECTS, *names))
    if what == "count":
        return (what, said[0], other(random, "1234", said[1]))
    if what == "paint":
        return (what, said[0], other(random, PAINTS, said[1]))
    if what == "place":
        return (what, said[0], other(random, PLACED, said[1]))
    if what == "relation":
        return (what, said[0], OPPOSITE[said[1]], said[2])
    if what == "word":
        at = random.randrange(len(said[0]))
        return (what, said[0][:at] + other(random, LETTERS, said[0][at]) + said[0][at + 1 :])
    if what in GENERAL:
        return (what, other(random, STYLES if what == "style" else BACKGROUNDS, said[0]))
    raise ValueError(f"no such fact: {fact}")


def change_one(random: Random, prompt: Prompt) -> Prompt:
    """The prompt with one of its facts about objects and words made wrong; its text and scene stay."""
    at = random.choice([i for i, fact in enumerate(prompt.facts) if fact[0] not in GENERAL])
    wrong = change_fact(random, prompt.facts[at], prompt.scene.names)
    return replace(prompt, facts=(*prompt.facts[:at], wrong, *prompt.facts[at + 1 :]))


def change_general(random: Random, prompt: Prompt) -> Prompt:
    """The prompt with the style and the background that it names made wrong."""
    facts = tuple(change_fact(random, fact, []) if fact[0] in GENERAL else fact for fact in prompt.facts)
    return replace(prompt, facts=facts)
