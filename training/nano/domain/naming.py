"""What the query slots of the MLLM say of a scene, and what its vision tokens say of a picture.

Trained to name the scene that is to be drawn, the slots give the diffusion transformer everything about it in
one canonical form. There are 20: one for the background, one for the rest that is said once, and three for
each of six items. A slot may be read by several heads, each with its own list of values; 0 is always
"nothing".

| slot | heads |
|---|---|
| 0 | background |
| 1 | style, number (of items), line (of the word) |
| 2, 5, 8 ... | what (object or letter), paint |
| 3, 6, 9 ... | x, side |
| 4, 7, 10 ... | y |

A word's five letters take the slots of the items 2 to 6, places and all: a scene with a word has one item at
most.

Items are numbered in their order. What an edit leaves of a picture keeps its number, so that an instruction
changes only the slots of which it speaks: the slots of a removed item say nothing.
"""

from __future__ import annotations

import numpy as np

from . import letters
from .scene import (
    BOTTOM_LINE,
    JITTER,
    LARGE,
    MEDIUM,
    MIDDLE,
    MOST_ITEMS,
    SIZE,
    SMALL,
    TITLED,
    TOP_LINE,
    Item,
    Scene,
    Word,
    straightened,
)
from .words import BACKGROUNDS, OBJECTS, PAINTS, STYLES

NOTHING, UNREAD = 0, -100  # no value; not read by this head, and ignored by cross-entropy
COORDINATES = tuple(range(8, 57))  # of sprites' centres and of letters'
SIDES = tuple(side + delta for side in (SMALL, MEDIUM, TITLED, LARGE) for delta in (-JITTER, 0, JITTER))
HEADS: dict[str, tuple] = {  # what every head can say, besides nothing
    "background": tuple(BACKGROUNDS),
    "style": STYLES,
    "number": tuple(range(1, MOST_ITEMS + 1)),
    "line": (TOP_LINE, MIDDLE, BOTTOM_LINE),
    "what": (*OBJECTS, *letters.LETTERS),
    "paint": tuple(PAINTS),
    "x": COORDINATES,
    "y": COORDINATES,
    "side": SIDES,
}
COLUMNS = {head: column for column, head in enumerate(HEADS)}
SIZES = {head: 1 + len(values) for head, values in HEADS.items()}  # classes of each head
INDEX = {(head, value): 1 + i for head, values in HEADS.items() for i, value in enumerate(values)}
ITEM_SLOTS = (("what", "paint"), ("x", "side"), ("y",))
SLOTS: tuple[tuple[str, ...], ...] = (("background",), ("style", "number", "line"), *ITEM_SLOTS * MOST_ITEMS)
FATES = ("kept", "removed", "replaced", "painted", "moved")  # what an edit does to an item of its picture
CELLS = 4  # vision tokens along an axis of the picture
CELL_HEADS = ("background", "style", "what", "paint", "x", "y", "side", "letter", "next letter")


def empty() -> np.ndarray:
    """Slots that name nothing: [20, 9] int64."""
    slots = np.full((len(SLOTS), len(HEADS)), UNREAD)
    for slot, heads in enumerate(SLOTS):
        slots[slot, [COLUMNS[head] for head in heads]] = NOTHING
    return slots


def numbered(scene: Scene, before: Scene | None) -> tuple[Item | None, ...]:
    """The items by number, None where one was removed.

    Args:
        scene: after an edit.
        before: and before it; None numbers the items in their order.
    """
    if before is None or (len(set(before.names)) == 1 and set(scene.names) == set(before.names)):
        return scene.items  # another number of one kind is laid out anew
    changed = [item for item in scene.items if item not in before.items]
    items: list[Item | None] = []
    for old in before.items:
        same = [new for new in changed if new.name == old.name]  # moved or painted
        same += [new for new in changed if (new.x, new.y) == (old.x, old.y)]  # another in its place
        new = old if old in scene.items else same[0] if same else None
        if new in changed:
            changed.remove(new)
        items.append(new)
    return (*items, *changed)


def fates(scene: Scene, before: Scene) -> np.ndarray:
    """What an edit does to every item of its picture: [6] int64, index in `FATES`, `UNREAD` for no item."""
    told = np.full(MOST_ITEMS, UNREAD)
    after = dict(enumerate(numbered(scene, before)))
    for number, old in enumerate(before.items):
        new = after.get(number)
        if new is None:
            fate = "removed"
        elif new.name != old.name:
            fate = "replaced"
        elif new.paint != old.paint:
            fate = "painted"
        else:
            fate = "kept" if new == old else "moved"
        told[number] = FATES.index(fate)
    return told


def slot_names(scene: Scene | None, exact: bool = True, before: Scene | None = None) -> np.ndarray:
    """What every slot says, by head: [20, 9] int64, `UNREAD` where a head does not read a slot.

    Args:
        scene: None names nothing at all.
        exact: places and sides to the pixel; else without jitter, as a caption tells them.
        before: the scene that an edit of it started from.
    """
    slots = empty()
    if scene is None:
        return slots

    def say(slot: int, head: str, value: object) -> None:
        slots[slot, COLUMNS[head]] = INDEX[head, value]

    say(0, "background", scene.background)
    if scene.style:
        say(1, "style", scene.style)
    if scene.items:
        say(1, "number", len(scene.items))
    for number, item in enumerate(numbered(scene, before)):
        if item is None:
            continue
        first = 2 + len(ITEM_SLOTS) * number
        item = item if exact else straightened(item)
        values = {"what": item.name, "x": item.x, "y": item.y, "side": item.size} | (
            {"paint": item.paint} if item.paint else {}
        )
        for offset, heads in enumerate(ITEM_SLOTS):
            for head in heads:
                if head in values:
                    say(first + offset, head, values[head])
    if scene.word:
        say(1, "line", scene.word.y)
        for number, (letter, x) in enumerate(placed_letters(scene.word), start=1):
            first = 2 + len(ITEM_SLOTS) * number
            say(first, "what", letter)
            say(first + 1, "x", x)
            say(first + 2, "y", scene.word.y)
    return slots


def placed_letters(word: Word) -> list[tuple[str, int]]:
    """A word's letters with the x of their middles."""
    return list(zip(word.letters, letters.centres(word.letters, MIDDLE), strict=True))


def cell_sizes() -> list[int]:
    """Classes of each head of `CELL_HEADS`; letters have those of "what"."""
    return [SIZES.get(head, SIZES["what"]) for head in CELL_HEADS]


def cell_names(scene: Scene) -> np.ndarray:
    """What every vision token says, by `CELL_HEADS`: [16, 9] int64, row by row.

    Background and style; the item in whose square the cell's middle lies (the nearest of several); and the
    one or two letters whose middles lie on the cell.
    """
    step = SIZE // CELLS
    cells = np.zeros((CELLS**2, len(CELL_HEADS)), np.int64)
    written = placed_letters(scene.word) if scene.word else []
    for cell in range(CELLS**2):
        y, x = (step * part + step / 2 for part in divmod(cell, CELLS))
        said = {"background": scene.background, "style": scene.style}
        covering = [i for i in scene.items if max(abs(i.x - x), abs(i.y - y)) < i.size / 2 + 2]
        if covering:
            item = min(covering, key=lambda i: abs(i.x - x) + abs(i.y - y))
            said |= {"what": item.name, "paint": item.paint, "x": item.x, "y": item.y, "side": item.size}
        if scene.word and abs(scene.word.y - y) <= step / 2:
            here = [letter for letter, at in written if -step / 2 <= at - x < step / 2]
            said |= dict(zip(("letter", "next letter"), here, strict=False))
        for column, head in enumerate(CELL_HEADS):
            if said.get(head):
                cells[cell, column] = INDEX[head if head in SIZES else "what", said[head]]
    return cells
