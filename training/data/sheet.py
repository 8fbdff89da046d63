"""A contact sheet of some samples: input pictures, target, text."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from ..report.drawn_text import wrap
from .index import Index
from .pictures import BadPicture, decode
from .storage import Ref, Storage

SIDE, GAP, LINE, LINES = 192, 8, 14, 4  # pixels; lines of text under a sample
ARROW = 24  # pixels between the last input and the target
WIDTH = 6 * (SIDE + GAP)


def contact_sheet(index: Index, numbers: list[int]) -> Image.Image:
    """Samples of an index, row by row, as many as fit beside one another."""
    storage, font = Storage(), ImageFont.load_default(12)
    cells = [draw_sample(index, number, storage, font) for number in numbers]
    places, x, y = [], 0, 0
    height = SIDE + LINES * LINE + 2 * GAP
    for cell in cells:
        if x and x + cell.width > WIDTH:
            x, y = 0, y + height
        places.append((x, y))
        x += cell.width + GAP
    width = max(x + cell.width for (x, _), cell in zip(places, cells, strict=True))
    sheet = Image.new("RGB", (width, y + height), "white")
    for place, cell in zip(places, cells, strict=True):
        sheet.paste(cell, place)
    return sheet


def draw_sample(index: Index, number: int, storage: Storage, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One sample: inputs, an arrow, the target, and below them key and text."""
    entry = index[number]
    pictures = [thumbnail(ref, storage) for ref in (*entry.inputs, entry.target)]
    gaps = (len(pictures) - 1) * GAP + (ARROW if entry.inputs else 0)
    cell = Image.new("RGB", (len(pictures) * SIDE + gaps, SIDE + LINES * LINE + GAP), "white")
    draw = ImageDraw.Draw(cell)
    x = 0
    for place, picture in enumerate(pictures):
        if entry.inputs and place == len(pictures) - 1:
            draw_arrow(draw, x)
            x += ARROW
        cell.paste(picture, (x + (SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
        x += SIDE + GAP
    draw.text((0, SIDE + 2), cut_left(entry.key, cell.width, font), fill="grey", font=font)
    for line, text in enumerate(wrap(entry.text, cell.width, font)[: LINES - 1]):
        draw.text((0, SIDE + 2 + LINE * (line + 1)), text, fill="black", font=font)
    return cell


def thumbnail(ref: Ref, storage: Storage) -> Image.Image:
    """A picture of at most SIDE pixels; one that cannot be read is a red field that says why."""
    try:
        picture = decode(storage.read(ref))
    except (BadPicture, OSError) as error:
        picture = Image.new("RGB", (SIDE, SIDE), "red")
        ImageDraw.Draw(picture).text(
            (4, 4), "\n".join(wrap(str(error), SIDE - 8, ImageFont.load_default(12)))
        )
    picture.thumbnail((SIDE, SIDE))
    return picture


def draw_arrow(draw: ImageDraw.ImageDraw, x: int) -> None:
    """An arrow to the right at half the height of the pictures; the font may lack one."""
    left, right, y = x - GAP // 2, x + ARROW - GAP, SIDE // 2
    draw.line((left, y, right, y), fill="black", width=2)
    draw.polygon(((right, y - 5), (right + 6, y), (right, y + 5)), fill="black")


def cut_left(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text that fits into ``width`` pixels; the start of a key tells least."""
    while font.getlength(text) > width:
        text = text[1:]
    return text
