"""A scene: what is in a picture, at which places, and which combinations of things are kept for the score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import combinations
from random import Random

from .words import MIDDLE_PLACE, PLACES, told_apart

SIZE = 64  # of a scene, in whose pixels everything is placed
SIZES = (64, 128)  # of its picture, see `render`
MOST_ITEMS = 6
LOW, MIDDLE, HIGH = 17, 32, 47  # centres of two sprites side by side, in pixels
FIRST, LAST = 12, 52  # with MIDDLE, of three
LARGE, TITLED, MEDIUM, SMALL = (
    42,
    36,
    27,
    19,
)  # side of a sprite: alone, with a word, of two, of three in a row
JITTER = 1  # places and sides vary by at most this many pixels
TOP_LINE, BOTTOM_LINE = 12, 52  # middle of a word's line, above or below a sprite
HIGHER, LOWER = 22, 42  # middle of the sprite below or above a word
NOMINAL = (FIRST, LOW, HIGHER, MIDDLE, LOWER, HIGH, LAST)  # every coordinate of a centre, but for the jitter
SIDES = (SMALL, MEDIUM, TITLED, LARGE)
ONE_IN = 10  # of so many combinations one is never seen in training
SALT = "nano 18"  # of the hash that says which; chosen so that they spread evenly over objects and places


@dataclass(frozen=True)
class Item:
    """One sprite: the object, its centre and side in pixels, and its paint ("" for its own colours)."""

    name: str
    x: int
    y: int
    size: int
    paint: str = ""

    @property
    def place(self) -> str:
        """Words for the part of the picture that it stands in."""
        return PLACES[third(self.x), third(self.y)]

    @property
    def noun(self) -> str:
        """Its name with its paint."""
        return f"{self.paint} {self.name}".lstrip()


@dataclass(frozen=True)
class Word:
    """Two to five capital letters in the middle of a line, `y` pixels from the top."""

    letters: str
    y: int


@dataclass(frozen=True)
class Scene:
    """One to six sprites of one style, or a word, or one sprite and a word, on a plain background.

    `style` is "" where no sprite shows it.
    """

    style: str
    background: str
    items: tuple[Item, ...]
    word: Word | None = None

    @property
    def names(self) -> list[str]:
        """The objects' names in order, with repetitions."""
        return [item.name for item in self.items]


def third(value: int) -> int:
    """Which third of the picture a coordinate lies in: 0, 1 or 2."""
    return 0 if value < 21 else 1 if value <= 43 else 2


def put(random: Random, name: str, centre: tuple[int, int], size: int, paint: str = "") -> Item:
    """An object at a place, moved and scaled by at most `JITTER` pixels."""
    x, y, side = (value + random.randint(-JITTER, JITTER) for value in (*centre, size))
    return Item(name, x, y, side, paint)


def straightened(item: Item) -> Item:
    """The item without jitter, as a caption can tell it."""
    x, y = (min(NOMINAL, key=lambda place: abs(place - value)) for value in (item.x, item.y))
    return replace(item, x=x, y=y, size=min(SIDES, key=lambda side: abs(side - item.size)))


def combined_alone(item: Item, background: str) -> Iterator[tuple[str, ...]]:
    """Combinations of one item with its background, its paint, and its place unless it is the middle one."""
    yield "background", item.name, background
    if item.paint:
        yield "paint", item.name, item.paint
    if item.place != MIDDLE_PLACE:
        yield "place", item.name, item.place


def combined(scene: Scene) -> Iterator[tuple[str, ...]]:
    """The combinations of a scene that are held out or not as a whole.

    Those of every item alone, every two different objects, every object with its number, and a word's
    letters.
    """
    for item in scene.items:
        yield from combined_alone(item, scene.background)
    numbers = Counter(scene.names)
    for name, number in numbers.items():
        if number > 1:
            yield "count", name, str(number)
    for pair in combinations(sorted(numbers), 2):
        yield "pair", *pair
    if scene.word:
        yield "word", scene.word.letters


@lru_cache(maxsize=1 << 14)
def is_kept(combination: tuple[str, ...]) -> bool:
    """Whether a combination is kept for the score: one in `ONE_IN`, by a hash."""
    digest = blake2b(" ".join((SALT, *combination)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % ONE_IN == 0


def is_held_out(scene: Scene) -> bool:
    """Whether a scene holds a combination that training must not see."""
    return any(map(is_kept, combined(scene)))


def is_known(item: Item, background: str, names: Sequence[str]) -> bool:
    """Whether training may see an item on a background beside other objects."""
    pairs = (("pair", *sorted((item.name, name))) for name in names if name != item.name)
    return not any(map(is_kept, (*combined_alone(item, background), *pairs)))


def is_clear(scene: Scene) -> bool:
    """Whether everything in it can be told from the background and every paint from the object's own."""
    return all(told_apart(item.name, item.paint, scene.background) for item in scene.items)


def in_reading_order(items: Sequence[Item]) -> tuple[Item, ...]:
    """Items from the top to the bottom, in a row from the left to the right."""
    return tuple(sorted(items, key=lambda item: (third(item.y), third(item.x), item.x)))


def without(scene: Scene, item: Item) -> Scene:
    """The scene less one item."""
    return replace(scene, items=tuple(other for other in scene.items if other != item))


def exchange(scene: Scene, old: Item, new: Item) -> Scene:
    """The scene with one item in place of another."""
    return replace(scene, items=tuple(new if item == old else item for item in scene.items))
