"""Where the items of a scene stand, and which objects they are."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .scene import FIRST, HIGH, LARGE, LAST, LOW, MEDIUM, MIDDLE, SMALL, Item, is_known, put
from .words import OBJECTS, PAINTS, told_apart

Centres = tuple[tuple[int, int], ...]
NAMES, COLOURS = list(OBJECTS), list(PAINTS)
TRIES = 60  # for one item, before the whole scene is drawn again

ALONE: Centres = ((MIDDLE, MIDDLE),)
ROW: Centres = ((LOW, MIDDLE), (HIGH, MIDDLE))
COLUMN: Centres = ((MIDDLE, LOW), (MIDDLE, HIGH))
TRIANGLE: Centres = ((MIDDLE, LOW), (LOW, HIGH), (HIGH, HIGH))
SQUARE: Centres = ((LOW, LOW), (HIGH, LOW), (LOW, HIGH), (HIGH, HIGH))
QUINCUNX: Centres = ((FIRST, FIRST), (LAST, FIRST), (MIDDLE, MIDDLE), (FIRST, LAST), (LAST, LAST))
WIDE: Centres = tuple((x, y) for y in (LOW, HIGH) for x in (FIRST, MIDDLE, LAST))
TALL: Centres = tuple((x, y) for y in (FIRST, MIDDLE, LAST) for x in (LOW, HIGH))
COUNTED = {1: ALONE, 2: ROW, 3: TRIANGLE, 4: SQUARE}  # a number of one kind stands like this
PLACED = {  # a part of the picture -> the centre there of one item, or of one of two
    "on the left": (LOW, MIDDLE),
    "on the right": (HIGH, MIDDLE),
    "at the top": (MIDDLE, LOW),
    "at the bottom": (MIDDLE, HIGH),
    "in the top left corner": (LOW, LOW),
    "in the top right corner": (HIGH, LOW),
    "in the bottom left corner": (LOW, HIGH),
    "in the bottom right corner": (HIGH, HIGH),
}
RELATED = {  # relation of the first to the second -> their centres
    "to the left of": ROW,
    "to the right of": ROW[::-1],
    "above": COLUMN,
    "below": COLUMN[::-1],
}


def side(centres: Centres) -> int:
    """How large the items of a layout are, in pixels."""
    if len(centres) == 1 and centres == ALONE:
        return LARGE
    return SMALL if any(value in (FIRST, LAST) for centre in centres for value in centre) else MEDIUM


def crowd(random: Random, number: int) -> Centres:
    """A layout of four to six items."""
    if number == 4:
        return SQUARE
    layout = random.choice((WIDE, TALL) if number == 6 else (QUINCUNX, WIDE, TALL))
    return tuple(sorted(random.sample(layout, number), key=layout.index))


def choose_item(
    random: Random,
    background: str,
    centre: tuple[int, int],
    size: int,
    paint: bool,
    taken: Sequence[str],
    training: bool,
) -> Item | None:
    """A random object at a place, painted or not; None if none is found that fits.

    It is none of the objects `taken`, it can be told from the background, and if it is for `training` it
    makes no combination that is held out.
    """
    for _ in range(TRIES):
        name = random.choice(NAMES)
        colour = random.choice(COLOURS) if paint else ""
        if name in taken or not told_apart(name, colour, background):
            continue
        item = put(random, name, centre, size, colour)
        if not training or is_known(item, background, taken):
            return item
    return None


def choose_items(
    random: Random, background: str, centres: Centres, paints: Sequence[bool], training: bool
) -> tuple[Item, ...] | None:
    """Different random objects in a layout, painted or not; see `choose_item`."""
    items: list[Item] = []
    for centre, paint in zip(centres, paints, strict=True):
        taken = [item.name for item in items]
        item = choose_item(random, background, centre, side(centres), paint, taken, training)
        if item is None:
            return None
        items.append(item)
    return tuple(items)
