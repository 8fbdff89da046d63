"""Questions about a sprite scene with their one right answer."""

from __future__ import annotations

from random import Random

from .scenes import COLUMN, LOW, MIDDLE, NUMBERS, PLACES, ROW, Item, Scene, a, plural

KINDS = ("what", "how many", "background", "where", "describe")
MIDDLE_PLACE = "in the middle"


def nearest(value: int) -> int:
    """Which of the three places along an axis a coordinate belongs to."""
    return LOW + (MIDDLE - LOW) * round((value - LOW) / (MIDDLE - LOW))


def where(item: Item) -> str:
    """Words for the place of an item."""
    centre = nearest(item.x), nearest(item.y)
    return next((words for words, place in PLACES.items() if place == centre), MIDDLE_PLACE)


def describe(scene: Scene) -> str:
    """The sentence that tells everything in a picture, in one fixed wording."""
    names = [item.name for item in scene.items]
    if len(names) == 1:
        place = where(scene.items[0])
        text = a(names[0]) if place == MIDDLE_PLACE else f"{a(names[0])} {place}"
    elif len(set(names)) == 1:
        text = f"{NUMBERS[len(names)]} {plural(names[0])}"
    else:
        first, second = sorted(scene.items, key=lambda item: (nearest(item.y), nearest(item.x)))
        places = tuple((nearest(item.x), nearest(item.y)) for item in (first, second))
        relation = {ROW: "to the left of", COLUMN: "above"}[places]
        text = f"{a(first.name)} {relation} {a(second.name)}"
    return f"{text} on {a(scene.background)} background"


def draw(random: Random, scene: Scene, kind: str) -> tuple[str, str]:
    """A question of one kind and its answer, or the background's where the kind does not fit the scene."""
    names = [item.name for item in scene.items]
    if kind == "what" and len(names) == 1:
        return random.choice(("what is it?", "what is this?", "what is in the picture?")), a(names[0])
    if kind == "how many":
        name = random.choice(names)
        asked = random.choice(("objects", plural(name)))
        return f"how many {asked} are there?", NUMBERS[
            len(names) if asked == "objects" else names.count(name)
        ]
    if kind == "where" and len(set(names)) == len(names):
        item = random.choice(scene.items)
        return f"where is the {item.name}?", where(item)
    if kind == "describe":
        return random.choice(("describe the picture", "describe this picture")), describe(scene)
    return random.choice(("what is the background?", "what color is the background?")), scene.background
