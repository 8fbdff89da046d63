"""A contact sheet of some samples, as the model sees them: input pictures, target, text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..report.drawn_text import wrap
from .index import Entry, Index
from .lengths import LIMIT, is_cut, kept
from .pictures import BadPicture, aligned, decode, decode_mask, fit, nearest_buckets
from .refs import Ref
from .storage import Storage

SIDE, GAP, LINE = 192, 8, 14  # pixels
ARROW = 24  # pixels between the last input and the target
WIDTH = 6 * (SIDE + GAP)


@dataclass(frozen=True)
class View:
    """What stands between a sample and the model.

    Attributes:
        sizes: (width, height) of the buckets, one if there are none; empty: pictures are drawn whole.
        tokenizer: path of a ``tokenizer.json`` that texts are cut with; None: an estimate says which are.
    """

    sizes: Sequence[tuple[int, int]] = ()
    tokenizer: str | None = None

    def size(self, entry: Entry) -> tuple[int, int] | None:
        """The size that a sample's target is cut to, or None."""
        if not self.sizes:
            return None
        return self.sizes[int(nearest_buckets(np.array([[entry.width, entry.height]]), self.sizes)[0])]


def contact_sheet(index: Index, numbers: list[int], view: View = View()) -> Image.Image:  # noqa: B008
    """Samples of an index, row by row, as many as fit beside one another."""
    storage, font = Storage(), ImageFont.load_default(12)
    cells = [draw_sample(index[number], storage, font, view) for number in numbers]
    places, x, y, height = [], 0, 0, 0
    for cell in cells:
        if x and x + cell.width > WIDTH:
            x, y, height = 0, y + height + GAP, 0
        places.append((x, y))
        x, height = x + cell.width + GAP, max(height, cell.height)
    width = max(x + cell.width for (x, _), cell in zip(places, cells, strict=True))
    sheet = Image.new("RGB", (width, y + height), "white")
    for place, cell in zip(places, cells, strict=True):
        sheet.paste(cell, place)
    return sheet


def draw_sample(entry: Entry, storage: Storage, font: ImageFont.FreeTypeFont, view: View) -> Image.Image:
    """One sample: inputs, an arrow, the target, and below them key and text."""
    size = view.size(entry)
    pictures = [thumbnail(ref, storage, size, entry) for ref in (*entry.inputs, entry.target)]
    if entry.mask:
        pictures[-1] = masked(pictures[-1], entry.mask, storage, size)
    gaps = (len(pictures) - 1) * GAP + (ARROW if entry.inputs else 0)
    width = len(pictures) * SIDE + gaps
    lines = [(cut_left(entry.key, width, font), "grey"), *text_lines(entry.texts, width, font, view)]
    cell = Image.new("RGB", (width, SIDE + len(lines) * LINE + GAP), "white")
    draw = ImageDraw.Draw(cell)
    x = 0
    for place, picture in enumerate(pictures):
        if entry.inputs and place == len(pictures) - 1:
            draw_arrow(draw, x)
            x += ARROW
        cell.paste(picture, (x + (SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
        x += SIDE + GAP
    for line, (text, color) in enumerate(lines):
        draw.text((0, SIDE + 2 + LINE * line), text, fill=color, font=font)
    return cell


def text_lines(
    texts: Sequence[str], width: int, font: ImageFont.FreeTypeFont, view: View
) -> list[tuple[str, str]]:
    """(line, colour) of all texts; where one is cut it ends and says so."""
    lines = []
    for text in texts:
        long = is_cut(text, view.tokenizer)
        shown = kept(text, view.tokenizer) if long and view.tokenizer else text
        lines += [(line, "black") for line in wrap(shown, width, font)]
        if long:
            how = f"cut at {LIMIT} tokens" if view.tokenizer else f"about {LIMIT} tokens or more"
            lines.append((how, "red"))
    return lines


def thumbnail(ref: Ref, storage: Storage, size: tuple[int, int] | None, entry: Entry) -> Image.Image:
    """A picture of at most SIDE pixels, cut to ``size`` as in training; a red field that says why not."""
    try:
        picture = decode(storage.read(ref))
        if size and aligned(picture.size, (entry.width, entry.height)):
            picture = fit(picture, *size)
    except (BadPicture, OSError) as error:
        return complaint(error)
    picture.thumbnail((SIDE, SIDE))
    return picture


def masked(picture: Image.Image, ref: Ref, storage: Storage, size: tuple[int, int] | None) -> Image.Image:
    """The thumbnail of a target, red where it does not count in the loss; what is wrong with its mask."""
    try:
        mask = decode_mask(storage.read(ref))
    except (BadPicture, OSError) as error:
        return complaint(error)
    mask = (fit(mask, *size) if size else mask).resize(picture.size, Image.Resampling.BOX)
    red = Image.blend(picture, Image.new("RGB", picture.size, "red"), 0.7)
    return Image.composite(picture, red, mask)


def complaint(error: Exception) -> Image.Image:
    """A red field that says why there is no picture."""
    picture = Image.new("RGB", (SIDE, SIDE), "red")
    ImageDraw.Draw(picture).text((4, 4), "\n".join(wrap(str(error), SIDE - 8, ImageFont.load_default(12))))
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
