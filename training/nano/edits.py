"""Edits of sprite scenes: source, instruction and the exact target, in which everything else stays as it
was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from . import scenes
from .scenes import COLUMN, NUMBERS, PLACES, ROW, SMALL, TRIANGLES, Item, Scene, a
from .sprites import OBJECTS

KINDS = ("add", "remove", "replace", "background", "move", "count")
SIDES = {"on the left": "on the right", "at the top": "at the bottom"}
SIDES |= {there: here for here, there in SIDES.items()}


@dataclass(frozen=True)
class Edit:
    """A source scene, an instruction and the scene that following it gives."""

    source: Scene
    target: Scene
    instruction: str
    kind: str


def other(random: Random, *names: str) -> str:
    """A random object that is none of `names`."""
    return random.choice([name for name in OBJECTS if name not in names])


def draw_any(random: Random, kind: str) -> Edit:
    """A random edit of one kind, held out or not."""
    if kind == "add":
        side = random.choice(list(SIDES))
        first = scenes.place(other(random), PLACES[SIDES[side]], SMALL, random)
        added = scenes.place(other(random, first.name), PLACES[side], SMALL, random)
        source = Scene(random.choice(list(scenes.BACKGROUNDS)), (first,), "position", SIDES[side])
        return changed(source, (first, added), f"add {a(added.name)} {side}", kind)
    if kind == "remove":
        source = scenes.draw_any(random, "two")
        gone = random.choice(source.items)
        kept = tuple(item for item in source.items if item != gone)
        return changed(source, kept, f"remove the {gone.name}", kind)
    if kind == "replace":
        source = scenes.draw_any(random, random.choice(("single", "two", "two")))
        old = random.choice(source.items)
        new = other(random, *(item.name for item in source.items))
        items = tuple(replace(item, name=new) if item == old else item for item in source.items)
        return changed(source, items, f"replace the {old.name} with {a(new)}", kind)
    if kind == "background":
        source = scenes.draw_any(random, random.choice(("single", "two", "count", "position")))
        new = random.choice([name for name in scenes.BACKGROUNDS if name != source.background])
        target = replace(source, background=new)
        return Edit(source, target, f"change the background to {new}", kind)
    if kind == "move":
        here, there = random.sample(list(PLACES), 2)
        item = scenes.place(other(random), PLACES[here], SMALL, random)
        source = Scene(random.choice(list(scenes.BACKGROUNDS)), (item,), "position", here)
        moved = replace(scenes.place(item.name, PLACES[there], SMALL, random), size=item.size)
        goal = there.replace("on the", "to the").replace("at the", "to the").replace("in the", "to the")
        return changed(source, (moved,), f"move the {item.name} {goal}", kind)
    if kind == "count":
        source = scenes.draw_any(random, "count")
        name, number = source.items[0].name, 5 - len(source.items)
        layout = {2: random.choice((ROW, COLUMN)), 3: random.choice(TRIANGLES)}[number]
        items = tuple(scenes.place(name, centre, SMALL, random) for centre in layout)
        return changed(source, items, f"make it {NUMBERS[number]} {scenes.plural(name)}", kind)
    raise ValueError(f"unknown kind of edit {kind!r}: use one of {', '.join(KINDS)}")


def changed(source: Scene, items: tuple[Item, ...], instruction: str, kind: str) -> Edit:
    """The edit whose target has other items."""
    return Edit(source, Scene(source.background, items, kind), instruction, kind)


def draw(random: Random, kind: str | None = None, held_out: bool = False) -> Edit:
    """A random edit. In training neither picture is a held-out combination; for the score the target is
    one.
    """
    kind = kind or random.choice(KINDS)
    while True:
        edit = draw_any(random, kind)
        if held_out and scenes.is_held_out(edit.target):
            return edit
        if not held_out and not (scenes.is_held_out(edit.target) or scenes.is_held_out(edit.source)):
            return edit
