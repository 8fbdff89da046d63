"""The vocabulary of the scenes: objects, styles, backgrounds, paints, places, and how they are written."""

from __future__ import annotations

# Word used in captions -> label of the code point in emojibase. Chosen to differ in outline and in colour.
OBJECTS = {
    "cat": "cat face",
    "dog": "dog face",
    "panda": "panda",
    "frog": "frog",
    "pig": "pig face",
    "penguin": "penguin",
    "chick": "baby chick",
    "butterfly": "butterfly",
    "turtle": "turtle",
    "sunflower": "sunflower",
    "cactus": "cactus",
    "mushroom": "mushroom",
    "apple": "red apple",
    "banana": "banana",
    "carrot": "carrot",
    "donut": "doughnut",
    "car": "automobile",
    "bus": "bus",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "house": "house",
    "star": "star",
    "heart": "red heart",
    "balloon": "balloon",
}
STYLES = ("3D", "flat", "cartoon")
STYLE_NOUNS = {"3D": "a 3D render", "flat": "a flat illustration", "cartoon": "a cartoon"}
BACKGROUNDS = {  # red, green, blue
    "white": (250, 250, 250),
    "gray": (150, 152, 158),
    "orange": (247, 142, 42),
    "yellow": (250, 214, 64),
    "green": (70, 170, 84),
    "blue": (52, 112, 222),
    "purple": (140, 82, 200),
    "pink": (247, 160, 196),
}
PAINTS = {
    "red": (218, 26, 32),
    "yellow": (255, 208, 0),
    "green": (22, 152, 52),
    "blue": (24, 84, 235),
    "purple": (134, 40, 196),
    "pink": (255, 104, 176),
}
# What could not be told apart: a paint on a background close to it, a paint close to the object's own
# colours, an object on a background close to them (measured as the share of pixels less than 25 apart in
# CIELAB, in the worst of the three styles).
PAINTS_HIDDEN = {
    "white": (),
    "gray": (),
    "orange": ("yellow",),
    "yellow": ("yellow",),
    "green": ("green",),
    "blue": ("blue", "purple"),
    "purple": ("purple", "blue"),
    "pink": ("pink",),
}
OWN_PAINT = {
    "cat": "yellow",
    "pig": "pink",
    "chick": "yellow",
    "turtle": "green",
    "frog": "green",
    "sunflower": "yellow",
    "cactus": "green",
    "mushroom": "red",
    "apple": "red",
    "banana": "yellow",
    "car": "red",
    "bus": "yellow",
    "star": "yellow",
    "heart": "red",
    "balloon": "red",
}
OBJECTS_HIDDEN = {
    "orange": ("cat", "carrot"),
    "yellow": ("cat", "chick", "sunflower", "banana", "star"),
    "green": ("cactus",),
    "pink": ("pig",),
}
DEFAULT_STYLE, DEFAULT_BACKGROUND = "3D", "white"  # of a caption that names none

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
IRREGULAR = {"butterfly": "butterflies", "bus": "buses"}
# Words for the picture's nine parts, by column and row.
PLACES = {
    (0, 0): "in the top left corner",
    (1, 0): "at the top",
    (2, 0): "in the top right corner",
    (0, 1): "on the left",
    (1, 1): "in the middle",
    (2, 1): "on the right",
    (0, 2): "in the bottom left corner",
    (1, 2): "at the bottom",
    (2, 2): "in the bottom right corner",
}
MIDDLE_PLACE = PLACES[1, 1]
RELATIONS = {  # first word is the name of the relation, the others mean the same
    "to the left of": ("to the left of", "left of"),
    "to the right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def plural(name: str) -> str:
    """The noun for more than one."""
    return IRREGULAR.get(name) or name + ("es" if name.endswith("s") else "s")


def a(noun: str) -> str:
    """The noun, or its adjective and itself, with the article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def told_apart(name: str, paint: str, background: str) -> bool:
    """Whether an object of a paint ("" for none) can be seen, and its paint told, on a background."""
    if not paint:
        return name not in OBJECTS_HIDDEN.get(background, ())
    return paint not in PAINTS_HIDDEN[background] and OWN_PAINT.get(name) != paint
