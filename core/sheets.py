"""Pictures about rungs that people can read: a chart of gains, labelled sheets, maps laid over a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

PAPER, INK, DIM, FAINT = (24, 26, 31), (236, 238, 242), (184, 190, 202), (96, 102, 114)
LOUD, QUIET, MUTED = (255, 178, 62), (74, 144, 226), (214, 69, 65)
# from nothing to most: the colours of a heat map, dark to light so that it also reads in grey
HEAT = ((74, 20, 110), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


def font(size: int) -> ImageFont.ImageFont:
    """Pillow's own font, so that no machine draws it differently."""
    return ImageFont.load_default(size)


def write_centred(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, fill: tuple[int, int, int] = INK
) -> None:
    """Text with its middle at a point."""
    draw.text(at, text, font=font(size), fill=fill, anchor="mm")


def draw_gains(gains: Sequence[float], title: str = "") -> Image.Image:
    """Gains as bars, 640 x 320, one per rung, on a line at 1 (unchanged).

    Louder rungs stand above the line, quieter ones hang below it, muted ones are crossed.
    """
    width, height, left, top, bottom = 640, 320, 48, 44, 272
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    highest = max(2.0, math.ceil(max(gains)))
    slot = (width - left - 16) / len(gains)

    def y(gain: float) -> float:
        return bottom - (bottom - top) * gain / highest

    for level in (0, 1, highest):
        draw.line((left, y(level), width - 16, y(level)), fill=INK if level == 1 else FAINT, width=2)
        draw.text((left - 10, y(level)), f"{level:g}", font=font(20), fill=INK, anchor="rm")
    for i, gain in enumerate(gains):
        x = left + slot * (i + 0.5)
        half = max(slot * 0.36, 2)
        if gain == 0:
            arm = min(half, 9)
            for sign in (1, -1):
                draw.line((x - arm, bottom - sign * arm, x + arm, bottom + sign * arm), fill=MUTED, width=4)
        elif gain == 1:
            draw.ellipse((x - 4, y(1) - 4, x + 4, y(1) + 4), fill=INK)
        else:
            box = (x - half, min(y(gain), y(1)), x + half, max(y(gain), y(1)))
            draw.rectangle(box, fill=LOUD if gain > 1 else QUIET)
        if len(gains) <= 12 or i % 2 == 0:
            write_centred(draw, (x, bottom + 24), str(i + 1), 20 if len(gains) <= 24 else 13)
    draw.text((left, 8), title, font=font(22), fill=INK)
    return sheet


def contact_sheet(
    pictures: Sequence[Image.Image],
    labels: Sequence[str],
    title: str,
    levels: Sequence[float] | None = None,
    cell: int = 192,
) -> Image.Image:
    """Pictures in a grid with labels below, in letters that stay legible where the sheet is shown small.

    Args:
        pictures: all of one size; shown ``cell`` pixels wide, small ones enlarged pixel by pixel.
        labels: one for each; a second line after a newline is smaller and fainter.
        levels: for each a number from 0 to 1, drawn as a bar between picture and label; 0 draws none.
    """
    columns = min(len(pictures), max(1, math.ceil(math.sqrt(len(pictures) * 1.4))))
    rows = math.ceil(len(pictures) / columns)
    first = pictures[0]
    size = cell, max(1, round(cell * first.height / first.width))
    gap, bar = 14, 10 if levels else 0
    width = gap + columns * (cell + gap)
    letters = int(max(26, min(cell / 5, width / 32)))  # a node shows about 400 pixels of the width
    faint = int(letters * 0.8)
    second = any("\n" in label for label in labels)
    caption = bar + int(letters * 1.3) + (int(faint * 1.3) if second else 0)
    head, step = int(letters * 1.7), size[1] + caption + gap
    sheet = Image.new("RGB", (width, head + rows * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, head / 2), title, font=font(letters), fill=INK, anchor="lm")
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = gap + i % columns * (cell + gap), head + i // columns * step
        method = Image.Resampling.NEAREST if picture.width * 2 <= cell else Image.Resampling.LANCZOS
        sheet.paste(picture.convert("RGB").resize(size, method), (x, y))
        y += size[1] + bar
        if levels and levels[i] > 0:
            draw.rectangle((x, y - bar + 2, x + max(cell * levels[i], 3), y - 1), fill=LOUD)
        for k, text in enumerate(label.split("\n")):
            height, fill = ((letters, INK), (faint, DIM))[min(k, 1)]
            write_centred(draw, (x + cell / 2, y + height * 0.65), text, height, fill)
            y += int(height * 1.3)
    return sheet


def heat_overlay(picture: Image.Image, heat: torch.Tensor, strength: float = 0.85) -> Image.Image:
    """A map over a picture: the picture in grey, brighter and warmer where the map is higher.

    Args:
        picture: RGB.
        heat: ``[height, width]``, 0 (grey) to 1 (brightest); what lies outside is cut.
        strength: share of colour where the map is 1.
    """
    size = picture.height, picture.width
    level = torch.nn.functional.interpolate(heat[None, None].float().cpu(), size, mode="bicubic")[0, 0]
    level = level.clamp(0, 1)
    stops = torch.tensor(HEAT, dtype=torch.float32)
    place = level * (len(stops) - 1)
    below = place.long().clamp(max=len(stops) - 2)
    colour = torch.lerp(stops[below], stops[below + 1], (place - below)[..., None])
    grey = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8)
    grey = grey.reshape(*size, 1).float().expand(-1, -1, 3) * 0.55 + 20
    mixed = torch.lerp(grey, colour, strength * level[..., None] ** 0.8)
    return Image.fromarray(mixed.round().byte().numpy())


def change_overlay(picture: Image.Image, change: torch.Tensor, mask: torch.Tensor) -> Image.Image:
    """A change map over its picture, with the outline of the mask in white.

    Args:
        picture: RGB.
        change: ``[h, w]``, 0 … 1.
        mask: ``[height, width]`` of the picture, above 0 = may change.
    """
    width = max(1, round(min(picture.size) / 128))  # of the line
    inside = Image.fromarray((mask > 0).byte().cpu().numpy() * 255)
    inner = inside.filter(ImageFilter.MinFilter(2 * width + 1))
    shown = heat_overlay(picture, change)
    shown.paste("white", mask=ImageChops.subtract(inside, inner))
    return shown
