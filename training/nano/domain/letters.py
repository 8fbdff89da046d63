"""Words to be drawn in a scene: the list, and a font of 5 x 7 dots per capital letter."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import numpy as np

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHORTEST, LONGEST = 2, 5
DOT = 2  # pixels per dot along each axis
WIDTH, HEIGHT, ADVANCE = 5 * DOT, 7 * DOT, 6 * DOT  # of a letter, and from one letter to the next, in pixels
DARK, LIGHT = (24, 24, 32), (250, 250, 250)
INK = {  # whichever stands out
    "white": DARK,
    "gray": LIGHT,
    "orange": DARK,
    "yellow": DARK,
    "green": LIGHT,
    "blue": LIGHT,
    "purple": LIGHT,
    "pink": DARK,
}
FONT = {  # rows from the top
    "A": (".###.", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"),
    "B": ("####.", "#...#", "#...#", "####.", "#...#", "#...#", "####."),
    "C": (".####", "#....", "#....", "#....", "#....", "#....", ".####"),
    "D": ("####.", "#...#", "#...#", "#...#", "#...#", "#...#", "####."),
    "E": ("#####", "#....", "#....", "####.", "#....", "#....", "#####"),
    "F": ("#####", "#....", "#....", "####.", "#....", "#....", "#...."),
    "G": (".####", "#....", "#....", "#..##", "#...#", "#...#", ".####"),
    "H": ("#...#", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"),
    "I": ("#####", "..#..", "..#..", "..#..", "..#..", "..#..", "#####"),
    "J": ("..###", "...#.", "...#.", "...#.", "...#.", "#..#.", ".##.."),
    "K": ("#...#", "#..#.", "#.#..", "##...", "#.#..", "#..#.", "#...#"),
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
    "M": ("#...#", "##.##", "#.#.#", "#.#.#", "#...#", "#...#", "#...#"),
    "N": ("#...#", "##..#", "##..#", "#.#.#", "#..##", "#..##", "#...#"),
    "O": (".###.", "#...#", "#...#", "#...#", "#...#", "#...#", ".###."),
    "P": ("####.", "#...#", "#...#", "####.", "#....", "#....", "#...."),
    "Q": (".###.", "#...#", "#...#", "#...#", "#.#.#", "#..#.", ".##.#"),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "S": (".####", "#....", "#....", ".###.", "....#", "....#", "####."),
    "T": ("#####", "..#..", "..#..", "..#..", "..#..", "..#..", "..#.."),
    "U": ("#...#", "#...#", "#...#", "#...#", "#...#", "#...#", ".###."),
    "V": ("#...#", "#...#", "#...#", "#...#", ".#.#.", ".#.#.", "..#.."),
    "W": ("#...#", "#...#", "#...#", "#.#.#", "#.#.#", "##.##", "#...#"),
    "X": ("#...#", "#...#", ".#.#.", "..#..", ".#.#.", "#...#", "#...#"),
    "Y": ("#...#", "#...#", ".#.#.", "..#..", "..#..", "..#..", "..#.."),
    "Z": ("#####", "....#", "...#.", "..#..", ".#...", "#....", "#####"),
}
WORDS = tuple(
    """
    AT BE BY DO GO HI IN IT ME MY NO OF OH OK ON OR OX SO TO UP US WE
    ACE ACT AGE AIR ANT ARM ART ASK BAG BAT BED BEE BIG BOX BOY BUY BYE CAP COW CRY CUP CUT DAY DIG DRY
    EAR EAT EGG EYE FAN FAR FEW FIG FLY FOG FUN GAS GEM GUM GYM HAT HEN HOT ICE INK JAM JAR JET JOB JOY
    KEY KID LAW LEG LID LOW MAP MIX MUD NEW NUT OAK OIL OLD OWL PAN PEN PIE RAY RED RUN SAD SEA SKY SUN
    TAX TEA TEN TOY VAN VET WAX WEB WET WIN YES ZIP ZOO
    QUIZ ARMY BABY BACK BALL BAND BANK BATH BEAN BELL BIRD BLUE BOAT BOOK BURN CAFE CAKE CALM CAMP CITY
    CLUB COLD COOK COZY DARK DEER DESK DICE DOOR DUCK DUST EASY EXIT FARM FAST FIRE FISH FLAG FOOD FOUR
    FREE FROG GAME GIFT GOLD GOOD GRAY HELP HERO HOME HOPE IDEA IRON JAZZ JULY JUMP JUNE KEEP KIND KING
    KITE LAKE LAMP LEAF LION LOVE LUCK MAZE MENU MILK MOON NEST NEXT NICE NOON OPEN OVEN PARK PLAY PLUS
    POET QUIT RAIN RICE RING ROAD ROCK ROOF ROSE SALE SALT SAND SHIP SHOP SNOW SOAP STAR STOP SWIM TAXI
    TIME TOWN TREE VIEW VOTE WARM WAVE WIND WOLF YARD YEAR ZERO ZONE
    ABOUT ALARM ANGEL APPLE BEACH BLACK BREAD BRICK BRUSH CABLE CANDY CHAIR CLOCK CLOUD DANCE DREAM DRINK
    EAGLE EARTH ENJOY EXTRA FIELD FLAME FRESH FRUIT FUNNY GHOST GIANT GRAPE GREEN HAPPY HEART HELLO HONEY
    HORSE HOTEL HOUSE JELLY JUICE KAYAK LEMON LIGHT LUCKY MAGIC MANGO METAL MONEY MOUSE MUSIC NIGHT NORTH
    OCEAN ONION PAPER PARTY PEACE PHOTO PIANO PILOT PIXEL PIZZA PLANT QUEEN QUICK QUIET RADIO RIVER ROBOT
    SALAD SHARK SMILE SOUTH SPACE SPOON STONE STORM SUGAR TABLE TIGER TOAST TRAIN TRUCK VIDEO VOICE WATER
    WHALE WHITE WORLD YOUNG ZEBRA
    """.split()
)


def spell(random: Random) -> str:
    """Letters in any order, which cannot be learned as a whole."""
    return "".join(random.choices(LETTERS, k=random.randint(SHORTEST, LONGEST)))


@lru_cache(maxsize=64)
def mask(letter: str, scale: int = 1) -> np.ndarray:
    """Which pixels of a letter are ink: [14, 10] bool, in a picture of `scale` times the scene's size so many
    times that.
    """
    dots = np.array([[dot == "#" for dot in row] for row in FONT[letter]])
    return dots.repeat(scale * DOT, 0).repeat(scale * DOT, 1)


def centres(letters: str, middle: int) -> list[int]:
    """Where the middles of a word's letters are along the line whose middle is at `middle`, in pixels."""
    left = middle - ((len(letters) - 1) * ADVANCE + WIDTH) // 2
    return [left + i * ADVANCE + WIDTH // 2 for i in range(len(letters))]
