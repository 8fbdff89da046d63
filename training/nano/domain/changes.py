"""What an edit does to a scene, and the words for it.

A change is a function of (random, scene, training) that gives the changed scene and its instruction, or None
where it does not fit the scene. What it does not speak of keeps its place, size, paint and style.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as with_fields
from random import Random

from .layouts import COLOURS, COUNTED, NAMES, PLACED, TRIES, side
from .scene import MEDIUM, Item, Scene, exchange, in_reading_order, is_clear, is_known, put, without
from .words import BACKGROUNDS, NUMBERS, STYLE_NOUNS, STYLES, a, plural, told_apart

Change = Callable[[Random, Scene, bool], "tuple[Scene, str] | None"]
PAINTED = 0.2  # share of added and replacing objects that are painted
APART = MEDIUM  # two sprites' centres differ by at least this along an axis, in pixels

ADD = ("add {new} {place}", "put {new} {place}", "place {new} {place}")
REMOVE = ("remove {the}", "take {the} away", "delete {the}")
REPLACE = ("replace {the} with {new}", "swap {the} for {new}", "turn {the} into {new}")
RECOLOR = ("make {the} {paint}", "paint {the} {paint}", "change the color of {the} to {paint}")
BACKGROUND = (
    "change the background to {ground}",
    "make the background {ground}",
    "use {a_ground} background",
)
STYLE = ("turn it into {render}", "redraw it in {style} style", "change the style to {style}")
EXTRACT = (
    "keep only {the} on a white background",
    "extract {the} onto a white background",
    "cut out {the} and put it on white",
)
MOVE = ("move {the} {to}", "put {the} {place}", "shift {the} {to}")
COUNT = (
    "make it {number} {names}",
    "there should be {number} {names}",
    "change the number of {names} to {number}",
)


def the(random: Random, item: Item) -> str:
    """The item as an instruction names it: there is one of its kind, so its paint may be left out."""
    return f"the {random.choice((item.noun, item.name))}"


def new_item(random: Random, scene: Scene, centre: tuple[int, int], size: int, training: bool) -> Item | None:
    """An object that the scene does not have, told apart on its background."""
    for _ in range(TRIES):
        name = random.choice(NAMES)
        paint = random.choice(COLOURS) if random.random() < PAINTED else ""
        if name in scene.names or not told_apart(name, paint, scene.background):
            continue
        item = put(random, name, centre, size, paint)
        if not training or is_known(item, scene.background, scene.names):
            return item
    return None


def free_places(scene: Scene) -> list[str]:
    """Parts of the picture where a sprite of medium size touches none that is there."""

    def is_free(centre: tuple[int, int]) -> bool:
        x, y = centre
        return all(
            max(abs(item.x - x), abs(item.y - y)) - (item.size - MEDIUM) // 2 >= APART for item in scene.items
        )

    return [place for place, centre in PLACED.items() if is_free(centre)]


def add(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """Another object at a free place."""
    places = free_places(scene)
    if not places:
        return None
    place = random.choice(places)
    item = new_item(random, scene, PLACED[place], MEDIUM, training)
    if item is None:
        return None
    target = with_fields(scene, items=in_reading_order((*scene.items, item)))
    return target, random.choice(ADD).format(new=a(item.noun), place=place)


def remove(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """One object less; the last one stays."""
    if len(scene.items) < 2:
        return None
    item = random.choice(scene.items)
    return without(scene, item), random.choice(REMOVE).format(the=the(random, item))


def replace(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """Another object in the place and size of one."""
    old = random.choice(scene.items)
    found = new_item(random, scene, (old.x, old.y), old.size, training)
    if found is None:
        return None
    new = with_fields(found, x=old.x, y=old.y, size=old.size)
    words = random.choice(REPLACE).format(the=the(random, old), new=a(new.noun))
    return exchange(scene, old, new), words


def recolor(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """Another paint on one object."""
    old = random.choice(scene.items)
    paints = [p for p in COLOURS if p != old.paint and told_apart(old.name, p, scene.background)]
    if not paints:
        return None
    paint = random.choice(paints)
    words = random.choice(RECOLOR).format(the=f"the {old.name}", paint=paint)
    return exchange(scene, old, with_fields(old, paint=paint)), words


def background(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """The same things on another background."""
    ground = random.choice([name for name in BACKGROUNDS if name != scene.background])
    words = random.choice(BACKGROUND).format(ground=ground, a_ground=a(ground))
    return with_fields(scene, background=ground), words


def style(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """The same things drawn in another style."""
    new = random.choice([name for name in STYLES if name != scene.style])
    return with_fields(scene, style=new), random.choice(STYLE).format(render=STYLE_NOUNS[new], style=new)


def extract(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """One object alone where it is, on white."""
    if len(scene.items) < 2:
        return None
    item = random.choice(scene.items)
    target = with_fields(scene, background="white", items=(item,))
    return target, random.choice(EXTRACT).format(the=the(random, item))


def move(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """One object at another place, in its size."""
    old = random.choice(scene.items)
    places = [place for place in free_places(without(scene, old)) if place != old.place]
    if old.size > MEDIUM + 1 or not places:
        return None
    place = random.choice(places)
    new = with_fields(put(random, old.name, PLACED[place], MEDIUM, old.paint), size=old.size)
    to = f"to the {place.split(' the ')[1]}"
    items = in_reading_order((*without(scene, old).items, new))
    words = random.choice(MOVE).format(the=the(random, old), to=to, place=place)
    return with_fields(scene, items=items), words


def count(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """Another number of the one kind that is there."""
    name = scene.names[0]
    if set(scene.names) != {name}:
        return None
    number = random.choice([number for number in (2, 3, 4) if number != len(scene.items)])
    centres = COUNTED[number]
    items = tuple(put(random, name, centre, side(centres), scene.items[0].paint) for centre in centres)
    words = random.choice(COUNT).format(number=NUMBERS[number], names=plural(name))
    return with_fields(scene, items=items), words


SIMPLE: dict[str, Change] = {
    "add": add,
    "recolor": recolor,
    "replace": replace,
    "remove": remove,
    "background": background,
}


def two_at_once(random: Random, scene: Scene, training: bool) -> tuple[Scene, str] | None:
    """Two different simple changes; the second concerns nothing that the first has touched."""
    first, second = random.sample(list(SIMPLE), 2)
    between = SIMPLE[first](random, scene, training)
    if between is None or not is_clear(between[0]):
        return None
    after = SIMPLE[second](random, between[0], training)
    if after is None:
        return None
    touched = set(scene.items) ^ set(between[0].items)
    if touched & (set(between[0].items) ^ set(after[0].items)):
        return None
    return after[0], f"{between[1]} and {after[1]}"
