"""Contact sheets of failures: the worst pictures of a set, what was asked, and what the judge saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..report.drawn_text import wrap
from . import fetch, folders, sets
from .benchmark import Item
from .reading import json_of

MOST = 24
CELL, GAP, LETTERS, LINE = 256, 12, 13, 16
WIDTH = 4 * (CELL + GAP)
ASKED, SEEN = 4, 6  # lines of text
BLACK, RED = (20, 20, 20), (204, 32, 32)


def draw_all(given: Sequence[Path], cache: Path, out: Path) -> Iterator[Path]:
    """Write a sheet for every score below some folders whose pictures are there. Raises ValueError."""
    for folder in given:
        for path in sorted(folder.glob(f"*/*/{folders.SCORE}")):
            name, judge = path.parent.parent.name, path.parent.name
            benchmark = sets.find(name)
            items = {item.key: item for item in benchmark.items(fetch.load(benchmark, cache))}
            worst = failures(json_of(path)["rows"])
            pictures = folders.pictures(folder, name)
            worst = [
                row
                for row in worst
                if all((pictures / shot.path).is_file() for shot in items[row["key"]].pictures)
            ]
            if worst:
                yield write(sheet(worst, items, pictures), out / f"{folder.name}-{name}-{judge}.png")


def failures(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The worst rows that are not wholly right, the worst first."""
    wrong = [row for row in rows if row["good"] < 1]
    return sorted(wrong, key=lambda row: (row["good"], row["key"]))[:MOST]


def sheet(rows: Sequence[Mapping[str, Any]], items: Mapping[str, Item], pictures: Path) -> Image.Image:
    """Tiles of pictures with texts below: what was asked, what was seen, what the judge said.

    Args:
        rows: what to show.
        items: of the set, by key.
        pictures: folder of the pictures.
    """
    font = ImageFont.load_default(LETTERS)
    tiles = [tile(items[row["key"]], pictures) for row in rows]
    texts = [told(row, shown.width, font) for row, shown in zip(rows, tiles, strict=True)]
    width = max(shown.width for shown in tiles) + GAP
    height = CELL + max(map(len, texts)) * LINE + 2 * GAP
    columns = min(WIDTH // width, len(rows))
    canvas = Image.new("RGB", (columns * width + GAP, -(-len(rows) // columns) * height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (shown, lines) in enumerate(zip(tiles, texts, strict=True)):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        canvas.paste(shown, (left, top))
        for place, (line, colour) in enumerate(lines):
            draw.text((left, top + CELL + 4 + place * LINE), line, font=font, fill=colour)
    return canvas


def told(
    row: Mapping[str, Any], width: int, font: ImageFont.FreeTypeFont
) -> list[tuple[str, tuple[int, int, int]]]:
    """Lines below a tile with their colours."""
    seen = " | ".join(filter(None, (row["seen"] or f"{row['good']:.2f} right", row.get("said"))))
    found = []
    for text, most, colour in ((row["asked"], ASKED, BLACK), (seen, SEEN, RED)):
        lines = wrap(text, width, font)
        cut = lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " …"]
        found += [(line, colour) for line in cut]
    return found


def tile(item: Item, pictures: Path) -> Image.Image:
    """The pictures of an item, four in a square; an edit's source and its result are twice as wide."""
    shown = [Image.open(pictures / shot.path) for shot in item.pictures]
    if item.source is not None:
        shown.insert(0, Image.open(BytesIO(item.source())))
    side = CELL if len(shown) <= 2 else CELL // 2
    canvas = Image.new("RGB", (side * min(len(shown), 2), CELL), "white")
    for number, picture in enumerate(shown[:4]):
        small = ImageOps.contain(ImageOps.exif_transpose(picture).convert("RGB"), (side, side))
        canvas.paste(small, (number % 2 * side, number // 2 * side))
    return canvas


def write(canvas: Image.Image, path: Path) -> Path:
    """Write a sheet whole or not at all. Raises ValueError: it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written ({error}); give another folder with --sheets.") from error
    return path
