"""Pictures about rungs that people can read: a chart of gains, labelled sheets, maps laid over a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (24, 26, 31), (236, 238, 242), (96, 102, 114)
LOUD, QUIET, MUTED = (255, 178, 62), (74, 144, 226), (214, 69, 65)
# from nothing to most: the colours of a heat map, dark to light so that it also reads in grey
HEAT = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


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
    cell: int = 192,
    columns: int | None = None,
) -> Image.Image:
    """Pictures in a grid, each with its label below in letters that stay legible at a third of the size.

    Args:
        pictures: all of one size; shown ``cell`` pixels wide, small ones enlarged pixel by pixel.
        labels: one for each; a second line after a newline is written fainter.
        columns: pictures in a row; by default about half as many again as there are rows.
    """
    columns = columns or min(len(pictures), max(1, math.ceil(math.sqrt(len(pictures) * 1.5))))
    rows = math.ceil(len(pictures) / columns)
    first = pictures[0]
    size = cell, max(1, round(cell * first.height / first.width))
    lines = max(label.count("\n") for label in labels) + 1
    gap, line, head = 12, 28, 48
    step = size[0] + gap, size[1] + line * lines + gap
    sheet = Image.new("RGB", (gap + columns * step[0], head + rows * step[1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 10), title, font=font(24), fill=INK)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = gap + i % columns * step[0], head + i // columns * step[1]
        method = Image.Resampling.NEAREST if picture.width * 2 <= cell else Image.Resampling.LANCZOS
        sheet.paste(picture.convert("RGB").resize(size, method), (x, y))
        for k, text in enumerate(label.split("\n")):
            middle = (x + size[0] / 2, y + size[1] + line * (k + 0.5))
            write_centred(draw, middle, text, 24 if k == 0 else 20, INK if k == 0 else (176, 182, 194))
    return sheet


def heat_overlay(picture: Image.Image, heat: torch.Tensor, strength: float = 0.8) -> Image.Image:
    """A map over a picture: the picture in grey, brightest colours where the map is highest.

    Args:
        picture: RGB.
        heat: ``[height, width]``, at least 0, of any scale; drawn from its least to its greatest value.
        strength: share of colour where the map is highest.
    """
    low, high = heat.min(), heat.max()
    level = (heat - low) / (high - low) if high > low else torch.zeros_like(heat)
    level = torch.nn.functional.interpolate(
        level[None, None].float(), (picture.height, picture.width), mode="bicubic", align_corners=False
    )[0, 0].clamp(0, 1)
    stops = torch.tensor(HEAT, dtype=torch.float32)
    place = level * (len(stops) - 1)
    below = place.long().clamp(max=len(stops) - 2)
    colour = torch.lerp(stops[below], stops[below + 1], (place - below)[..., None])
    grey = torch.tensor(list(picture.convert("L").getdata()), dtype=torch.float32)
    grey = grey.reshape(picture.height, picture.width, 1) * 0.75 + 16
    share = strength * level[..., None].sqrt()
    mixed = torch.lerp(grey.expand(-1, -1, 3), colour, share).round().clamp(0, 255).byte()
    return Image.fromarray(mixed.numpy())
