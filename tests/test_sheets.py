"""Charts and contact sheets: what is drawn where."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tbac_uniimage.core.sheets import LOUD, MUTED, QUIET, contact_sheet, draw_gains, heat_overlay


def colours(picture: Image.Image) -> set:
    return {colour for _, colour in picture.getcolors(1 << 20)}


def test_the_chart_says_louder_quieter_and_muted():
    assert not {LOUD, QUIET, MUTED} & colours(draw_gains([1.0] * 20))
    assert {LOUD, QUIET, MUTED} <= colours(draw_gains([1, 2, 0.5, 0, 1, 1]))
    assert LOUD in colours(draw_gains([10.0] * 40, "title"))
    low = draw_gains([1.0, 1.0, 1.2])
    high = draw_gains([1.0, 1.0, 1.9])
    count = [sum(n for n, c in p.getcolors(1 << 20) if c == LOUD) for p in (low, high)]
    assert count[1] > 3 * count[0]


@pytest.mark.parametrize(
    ("count", "size"), [(1, (64, 64)), (7, (64, 32)), (21, (512, 512)), (21, (300, 900))]
)
def test_a_sheet_holds_every_picture_in_order(count, size):
    pictures = [Image.new("RGB", size, (i * 10, 255 - i * 10, 77)) for i in range(count)]
    sheet = contact_sheet(
        pictures, [f"rung {i}\nnote" for i in range(count)], "title", [i / count for i in range(count)]
    )
    found = {colour for colour in colours(sheet) if colour[2] == 77 and colour[0] + colour[1] == 255}
    assert found == {(i * 10, 255 - i * 10, 77) for i in range(count)}
    assert sheet.width < 1400
    assert (0, 255, 77) in colours(sheet.crop((14, 0, 15, sheet.height)))


def test_labels_keep_their_size_where_a_node_shows_the_sheet_small():
    """Letters of a sheet of 21, scaled to the 400 pixels of a node, are at least 9 pixels high."""
    pictures = [Image.new("RGB", (64, 64))] * 21
    sheet = contact_sheet(pictures, ["H"] * 21, "")
    ink = (
        sheet.crop((14, sheet.height - 60, 14 + 192, sheet.height))
        .convert("L")
        .point(lambda v: 255 * (v > 128))
    )
    left, top, right, bottom = ink.getbbox()
    assert (bottom - top) * 400 / sheet.width >= 8


def test_heat_is_brightest_where_the_map_is_highest():
    picture = Image.new("RGB", (64, 64), (128, 128, 128))
    heat = torch.zeros(8, 8)
    heat[2, 5] = 1.0
    shown = heat_overlay(picture, heat)
    grey, hot = shown.getpixel((2, 60)), shown.getpixel((5 * 8 + 4, 2 * 8 + 4))
    assert len(set(grey)) == 1 and hot[0] > 200 and hot[0] > hot[2]
    assert heat_overlay(picture, torch.zeros(3, 3)).getpixel((5, 5)) == grey
    assert heat_overlay(picture, torch.full((3, 3), 7.0)).getpixel((5, 5))[0] > 200
