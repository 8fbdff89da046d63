"""What a caption states, one fact at a time, and whether it holds for a scene.

A fact is a tuple of words: ("there", name), ("count", name, number), ("paint", name, paint),
("place", name, place), ("relation", name, relation, name), ("style", style), ("background", background),
("word", letters).
"""

from __future__ import annotations

from .scene import MIDDLE, SIZE, Item, Scene
from .words import PLACES

Fact = tuple[str, ...]
MARGIN = 0.1 * SIZE  # GenEval's: "left of" means by at least a tenth of the picture
SLACK = 10  # an item stands in the middle third if it is so close to the middle, in pixels
AROUND = SLACK - 4  # and in an outer one if it is farther than this
THIRDS = {words: cell for cell, words in PLACES.items()}
GENERAL = ("style", "background")  # facts with a row of their own in the score


def stands(item: Item, place: str) -> bool:
    """Whether an item is in a part of the picture. The parts overlap a little: places are found to within
    a few pixels.
    """

    def inside(value: int, third: int) -> bool:
        away = value - MIDDLE
        return abs(away) < SLACK if third == 1 else away * (third - 1) > AROUND

    return all(inside(v, t) for v, t in zip((item.x, item.y), THIRDS[place], strict=True))


def related(first: Item, relation: str, second: Item) -> bool:
    """Whether the first item is left of, right of, above or below the second."""
    right, down = first.x - second.x, first.y - second.y
    return {
        "to the left of": right < -MARGIN,
        "to the right of": right > MARGIN,
        "above": down < -MARGIN,
        "below": down > MARGIN,
    }[relation]


def holds(fact: Fact, scene: Scene) -> bool:
    """Whether a scene, drawn or seen, is as the fact says.

    Raises:
        ValueError: no such fact.
    """
    what, *said = fact
    if what == "style":
        return scene.style == said[0]
    if what == "background":
        return scene.background == said[0]
    if what == "word":
        return scene.word is not None and scene.word.letters == said[0]
    mine = [item for item in scene.items if item.name == said[0]]
    if what == "there":
        return bool(mine)
    if what == "count":
        return len(mine) == int(said[1])
    if what == "paint":
        return any(item.paint == said[1] for item in mine)
    if what == "place":
        return any(stands(item, said[1]) for item in mine)
    if what == "relation":
        others = [item for item in scene.items if item.name == said[2]]
        return any(related(first, said[1], second) for first in mine for second in others)
    raise ValueError(f"no such fact: {fact}")


def item_facts(item: Item) -> tuple[Fact, ...]:
    """That an item is there, and its paint if it has one."""
    return (("paint", item.name, item.paint),) if item.paint else (("there", item.name),)
