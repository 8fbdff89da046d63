"""Contact sheets of what the domain holds: `python -m tbac_uniimage.training.nano.domain.catalogue FOLDER`.

Writes `prompts.png` (every kind of caption) and `edits.png` (every kind of edit: source, result, text).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...report.drawn_text import wrap
from . import edits, prompts
from .render import render
from .scene import SIZE

SCALE, GAP, LINE = 2, 6, 11
Shown = tuple[np.ndarray, str]  # picture [64, 64 * n, 3] uint8 and what is written below


def sheet(rows: list[list[Shown]], scale: int = SCALE) -> Image.Image:
    """A row of pictures for every list, each with its text below."""
    font = ImageFont.load_default(10)
    texts = [[wrap(text, picture.shape[1] * scale, font) for picture, text in row] for row in rows]
    heights = [SIZE * scale + LINE * max(map(len, lines)) + 2 * GAP for lines in texts]
    width = max(sum(picture.shape[1] * scale + GAP for picture, _ in row) for row in rows)
    result = Image.new("RGB", (width, sum(heights)), "white")
    draw = ImageDraw.Draw(result)
    top = 0
    for row, lines_of, height in zip(rows, texts, heights, strict=True):
        left = 0
        for (picture, _), lines in zip(row, lines_of, strict=True):
            size = (picture.shape[1] * scale, picture.shape[0] * scale)
            result.paste(Image.fromarray(picture).resize(size, Image.BICUBIC), (left, top))
            for i, line in enumerate(lines):
                draw.text((left, top + size[1] + 2 + LINE * i), line, fill="black", font=font)
            left += size[0] + GAP
        top += height
    return result


def prompt_rows(seed: int, split: str, columns: int = 10) -> list[list[Shown]]:
    """Prompts of every kind, a row each."""
    drawn = [[prompts.draw(seed, split, i, kind) for i in range(columns)] for kind in prompts.KINDS]
    return [[(render(prompt.scene), prompt.text) for prompt in row] for row in drawn]


def edit_rows(seed: int, split: str, columns: int = 5) -> list[list[Shown]]:
    """Edits of every kind, a row each."""
    drawn = [[edits.draw(seed, split, i, kind) for i in range(columns)] for kind in edits.KINDS]

    def show(edit: edits.Edit) -> Shown:
        return np.concatenate([render(edit.source), render(edit.target)], 1), f"[{edit.kind}] {edit.text}"

    return [[show(edit) for edit in row] for row in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description="Contact sheets of the nano model's scenes and edits.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=prompts.SPLITS, default="train")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("prompts", prompt_rows), ("edits", edit_rows)):
        path = options.folder / f"{name}.png"
        sheet(rows(options.seed, options.split)).save(path)
        print(path)


if __name__ == "__main__":
    main()
