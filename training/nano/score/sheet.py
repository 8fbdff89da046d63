"""Contact sheets: pictures with their prompts, marked green where they count and red where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...report.drawn_text import wrap
from ..domain.edits import Edit
from ..domain.facts import holds
from ..domain.prompts import Prompt
from ..domain.render import render
from ..domain.scene import SIZE, Scene
from ..domain.words import a
from .cases import EDITED
from .judging import Judged

GAP, FRAME, MARK = 14, 4, 22
TALL = 4 * SIZE  # of a shown picture: a whole multiple of either size
LETTERS, LINE, TITLE = 13, 16, 20
WIDTH = 6 * (TALL + 2 * FRAME + GAP) + GAP
GREEN, RED, BLACK, DIM = (22, 140, 60), (204, 32, 32), (20, 20, 20), (95, 95, 95)
BETWEEN = 2  # white pixels between the pictures of one tile, before scaling
LONG = 150  # letters of a text that takes the width of two pictures
MOST = 18  # passes and failures of a kind, each
FEW = {"draw": 6, "edit": 2, "masked": 2, "auto": 2, "ask": 6}  # of a kind on the sheet of its group
MEASURE = {"dense": "whole", "text": "word"}  # what decides whether a picture counts; else "right"


@dataclass(frozen=True)
class Tile:
    """A picture [size, any width, 3] uint8, the text below, what was seen instead ("" where it counts)."""

    picture: np.ndarray
    text: str
    seen: str
    passed: bool


def tell(scene: Scene) -> str:
    """What the judge saw, in words."""
    items = [f"{a(item.noun)} {item.place}" for item in scene.items]
    word = [f'"{scene.word.letters}"'] if scene.word else []
    style = f", {scene.style}" if scene.style else ""
    return f"{', '.join([*items, *word]) or 'nothing'}{style}, on {scene.background}"


def missing(prompt: Prompt, seen: Scene) -> str:
    """What does not hold of all that a long text states."""
    wrong = [" ".join(fact[1:]) for fact in prompt.facts if not holds(fact, seen)]
    return f"{len(wrong)} of {len(prompt.facts)} wrong: {'; '.join(wrong)}"


def passed(kind: str, verdict: dict[str, float]) -> bool:
    """Whether a picture or an answer counts."""
    return verdict[MEASURE.get(kind, "right")] == 1


def tiles(kind: str, part: Judged) -> list[Tile]:
    """The first picture of every case, or its answer beside the picture that it is about.

    An edit shows its source, the model's picture and the exact result.
    """
    found = []
    for case, shown, seen, verdicts in zip(part.cases, part.shown, part.seen, part.model, strict=True):
        good, asked = passed(kind, verdicts[0]), case.asked
        if isinstance(asked, Edit):
            source, result = (render(scene, len(shown[0])) for scene in (asked.source, asked.target))
            line = beside(source, shown[0], result)
            found.append(Tile(line, asked.text, "" if good else f"seen: {tell(seen[0])}", good))
        elif isinstance(asked, Prompt):
            instead = missing(asked, seen[0]) if kind == "dense" else f"seen: {tell(seen[0])}"
            found.append(Tile(shown[0], asked.text, "" if good else instead, good))
        else:
            text = f"{asked.text} {asked.answer}"
            found.append(Tile(render(case.wanted), text, "" if good else f"said: {seen[0]}", good))
    return found


def beside(*pictures: np.ndarray) -> np.ndarray:
    """Pictures in one line, with white between them."""
    white = np.full((len(pictures[0]), BETWEEN, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (white, picture)][1:], 1)


def height_of(tile: Tile, font: ImageFont.FreeTypeFont) -> int:
    """Pixels of a tile with its text."""
    return TALL + 2 * FRAME + LINE * len(lines_of(tile, font)) + GAP


def framed(tile: Tile) -> int:
    """Pixels of a tile's picture and its frame, from the left to the right."""
    height, width, _ = tile.picture.shape
    return width * TALL // height + 2 * FRAME


def width_of(tile: Tile) -> int:
    """Pixels of a tile, whose text may be wider than the picture."""
    return framed(tile) if len(tile.text) < LONG else max(framed(tile), 2 * (TALL + 2 * FRAME) + GAP)


def lines_of(tile: Tile, font: ImageFont.FreeTypeFont) -> list[tuple[str, tuple[int, int, int]]]:
    """Lines of the text below a tile, with their colours."""
    text = [(line, BLACK) for line in wrap(tile.text, width_of(tile), font)]
    return text + [(line, RED) for line in wrap(tile.seen, width_of(tile), font)]


def put(draw: ImageDraw.ImageDraw, sheet: Image.Image, tile: Tile, at: tuple[int, int], font) -> None:
    """A tile with its frame, its mark and its text."""
    left, top = at
    colour = GREEN if tile.passed else RED
    width = framed(tile)
    draw.rectangle((left, top, left + width - 1, top + TALL + 2 * FRAME - 1), fill=colour)
    inner = Image.fromarray(tile.picture).resize((width - 2 * FRAME, TALL), Image.BICUBIC)
    sheet.paste(inner, (left + FRAME, top + FRAME))
    corner = (left + width - MARK, top, left + width - 1, top + MARK - 1)
    draw.rectangle(corner, fill=colour)
    x, y = corner[:2]  # drawn, not written: not every font has these signs
    if tile.passed:
        draw.line([(x + 5, y + 11), (x + 9, y + 16), (x + 17, y + 6)], fill="white", width=3)
    else:
        draw.line([(x + 6, y + 6), (x + 16, y + 16)], fill="white", width=3)
        draw.line([(x + 16, y + 6), (x + 6, y + 16)], fill="white", width=3)
    for i, (line, ink) in enumerate(lines_of(tile, font)):
        draw.text((left, top + TALL + 2 * FRAME + 2 + LINE * i), line, fill=ink, font=font)


def sheet(sections: Sequence[tuple[str, Sequence[Tile]]]) -> Image.Image:
    """A sheet of titled sections, each in as many lines as its tiles need."""
    font, title_font = ImageFont.load_default(LETTERS), ImageFont.load_default(TITLE)
    placed: list[tuple[Tile, tuple[int, int]]] = []
    titles: list[tuple[str, int]] = []
    top = GAP
    for title, of_section in sections:
        titles.append((title, top))
        top += TITLE + GAP
        line: list[Tile] = []
        for tile in [*of_section, None]:
            used = sum(width_of(other) + GAP for other in line) + GAP
            if line and (tile is None or used + width_of(tile) + GAP > WIDTH):
                lefts = [GAP + sum(width_of(o) + GAP for o in line[:i]) for i in range(len(line))]
                placed += [(other, (left, top)) for other, left in zip(line, lefts, strict=True)]
                top += max(height_of(other, font) for other in line)
                line = []
            if tile is not None:
                line.append(tile)
    result = Image.new("RGB", (WIDTH, top), "white")
    draw = ImageDraw.Draw(result)
    for title, y in titles:
        draw.text((GAP, y), title, fill=DIM, font=title_font)
    for tile, at in placed:
        put(draw, result, tile, at, font)
    return result


def kind_sheet(kind: str, part: Judged) -> Image.Image:
    """The first passes and the first failures of one kind, in the order of the prompts."""
    every = tiles(kind, part)
    sections = []
    for name, wanted in (("passes", True), ("failures", False)):
        own = [tile for tile in every if tile.passed is wanted]
        if own:
            order = " (source, model, exact result)" if part.cases[0].group in EDITED else ""
            shown = f" (the first {MOST} are shown)" if len(own) > MOST else ""
            sections.append((f"{kind}, {name}: {len(own)} of {len(every)} prompts{shown}{order}", own[:MOST]))
    return sheet(sections)


def group_sheet(judged: dict[str, Judged], group: str) -> Image.Image:
    """The first prompts of every kind of a group, none picked."""
    parts = {kind: part for kind, part in judged.items() if part.cases[0].group == group}
    order = ": source, model, exact result" if group in EDITED else ""
    return sheet([(kind + order, tiles(kind, part)[: FEW[group]]) for kind, part in parts.items()])
