"""What a run can be judged by: the loss on held-out samples, and pictures of fixed prompts and edits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..core.checkpoints import LadderParts
from ..core.pipeline import LadderPipeline

CELL = 256  # side of a picture in the grid, pixels
LINE = 14
LINES = 2
COLUMNS = 4


@dataclass(frozen=True)
class Request:
    """A prompt, or an instruction with the picture that it is about."""

    text: str
    image: Image.Image | None = None


def read_requests(prompts: Sequence[str], edits: Sequence[tuple[Path, str]]) -> list[Request]:
    """Fixed prompts and edits of a run.

    Raises:
        ValueError: a picture that cannot be read.
    """
    requests = [Request(prompt) for prompt in prompts]
    for path, instruction in edits:
        try:
            with Image.open(path) as image:
                requests.append(Request(instruction, ImageOps.exif_transpose(image).convert("RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"The validation picture {path} cannot be read ({error}); give a PNG, JPEG or WebP."
            ) from error
    return requests


def draw(
    parts: LadderParts,
    requests: Sequence[Request],
    *,
    size: int,
    steps: int,
    guidance: float,
    image_guidance: float,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Image.Image]:
    """Pictures of all requests, each of its own seed ``seed + i``, by the model as it is now."""
    pipeline = LadderPipeline(**vars(parts))
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for i, request in enumerate(requests):
        side = size if request.image is None else None  # an edit keeps the proportions of its source
        pictures += pipeline(
            request.text,
            image=request.image,
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=guidance,
            image_guidance_scale=image_guidance if request.image is not None else 1.0,
            generator=torch.Generator().manual_seed(seed + i),
        ).images
        advance()
    return pictures


def grid(requests: Sequence[Request], pictures: Sequence[Image.Image]) -> Image.Image:
    """All pictures with their texts beneath; an edit shows its source on the left."""
    font = ImageFont.load_default(12)
    cells: list[tuple[Image.Image, str]] = []
    for request, picture in zip(requests, pictures, strict=True):
        if request.image is not None:
            if len(cells) % COLUMNS == COLUMNS - 1:
                cells.append((Image.new("RGB", (1, 1), "white"), ""))  # keeps source and result in one row
            cells.append((request.image, "source"))
        cells.append((picture, request.text))
    rows = -(-len(cells) // COLUMNS)
    height = CELL + LINES * LINE + 8
    sheet = Image.new("RGB", (min(COLUMNS, len(cells)) * CELL, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(cells):
        left, top = i % COLUMNS * CELL, i // COLUMNS * height
        shown = ImageOps.contain(picture, (CELL - 8, CELL - 8), Image.Resampling.LANCZOS)
        sheet.paste(shown, (left + (CELL - shown.width) // 2, top + (CELL - shown.height) // 2))
        for row, line in enumerate(wrap(text, CELL - 8, font)[:LINES]):
            draw.text((left + 4, top + CELL + row * LINE), line, fill="black", font=font)
    return sheet


def wrap(text: str, width: int, font: ImageFont.ImageFont) -> list[str]:
    """The words of a text in lines of at most ``width`` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def save_grid(sheet: Image.Image, folder: Path, step: int) -> Path:
    """Write a grid as ``step-00001000.png``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.png"
    partial = path.with_suffix(".partial")
    sheet.save(partial, format="PNG")
    os.replace(partial, path)
    return path
