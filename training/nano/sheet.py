"""A contact sheet: pictures with their prompts, framed green where they count and red where not."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..captions import wrap
from .scenes import SIZE

COLUMNS, SCALE = 8, 2
CELL, FRAME, LINE = SIZE * SCALE, 3, 11
HEIGHT = CELL + 2 * LINE + 4  # of a row: the picture and two lines of text


def place_all(widths: list[int]) -> list[tuple[int, int]]:
    """Column and row of pictures that take one or more cells of a row, in reading order."""
    places, column, row = [], 0, 0
    for width in widths:
        if column + width > COLUMNS:
            column, row = 0, row + 1
        places.append((column, row))
        column += width
    return places


def contact_sheet(shown: list[tuple[np.ndarray, str, bool]]) -> Image.Image:
    """Sheet of (picture [64, 64 * n, 3] uint8, prompt, counted); a wide picture is source and result."""
    font = ImageFont.load_default(10)
    widths = [picture.shape[1] // SIZE for picture, _, _ in shown]
    places = place_all(widths)
    sheet = Image.new("RGB", (COLUMNS * CELL, (places[-1][1] + 1) * HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for (picture, prompt, counted), width, (column, row) in zip(shown, widths, places, strict=True):
        left, top, right = column * CELL, row * HEIGHT, (column + width) * CELL
        draw.rectangle((left, top, right - 1, top + CELL - 1), fill="green" if counted else "red")
        size = (right - left - 2 * FRAME, CELL - 2 * FRAME)
        sheet.paste(Image.fromarray(picture).resize(size, Image.BICUBIC), (left + FRAME, top + FRAME))
        for i, line in enumerate(wrap(prompt, right - left - 4, font)[:2]):
            draw.text((left + 2, top + CELL + LINE * i), line, fill="black", font=font)
    return sheet
