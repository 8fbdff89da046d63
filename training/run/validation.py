"""What a run can be judged by: the loss on held-out samples, and pictures of fixed prompts and edits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from ...core.checkpoints import LadderParts
from ...core.pictures import read_picture
from ...core.pipeline import LadderPipeline
from ..data.batch import TrainBatch
from ..recipe.recipe import Recipe
from ..recipe.settings import ValidationSettings
from ..report.drawn_text import wrap
from ..report.log import RunLog, full_disk_stops
from ..report.progress import progress_bar
from ..step.ema import AveragedWeights
from ..step.trainee import LadderTrainee
from . import engine

CELL = 256  # side of a picture in the grid, pixels
LINE = 14
LINES = 2
COLUMNS = 4


@dataclass(frozen=True)
class Request:
    """A prompt, or an instruction with the picture that it is about."""

    text: str
    image: Image.Image | None = None


class Judged(Protocol):
    """Parts of benchmarks that are drawn and judged as a run goes on."""

    def draw(self, pipeline: LadderPipeline, step: int, first: bool) -> None:
        """Draw them, in all processes; the first writes."""
        ...

    def judge(self, step: int, say: Callable[[str], object]) -> dict[str, float | None]:
        """How well they went, by name, 0 to 1; None, and a sentence, where nobody could judge."""
        ...


def read_requests(settings: ValidationSettings) -> list[Request]:
    """Fixed prompts and edits of a run.

    Raises:
        ValueError: a picture that cannot be read.
    """
    requests = [Request(prompt) for prompt in settings.prompts]
    for edit in settings.edits:
        try:
            picture = read_picture(edit.image)
        except ValueError as error:
            raise ValueError(f"The validation picture {edit.image} cannot be read: {error}") from error
        requests.append(Request(edit.instruction, picture))
    return requests


def draw_all(
    parts: LadderParts,
    requests: Sequence[Request],
    settings: ValidationSettings,
    size: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Image.Image]:
    """Pictures of all requests by the model as it is now, request i with the seed ``settings.seed + i``.

    Args:
        parts: the model.
        requests: what to draw.
        settings: of the sampler.
        size: side of a picture in pixels; an edit keeps the proportions of its source.
        advance: called after each.
    """
    pipeline = LadderPipeline(**vars(parts))
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for i, request in enumerate(requests):
        side = size if request.image is None else None
        pictures += pipeline(
            request.text,
            image=request.image,
            height=side,
            width=side,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            image_guidance_scale=settings.image_guidance if request.image is not None else 1.0,
            generator=torch.Generator().manual_seed(settings.seed + i),
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


def save_grid(sheet: Image.Image, folder: Path, step: int) -> Path:
    """Write a grid as ``step-00001000.png``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.png"
    partial = path.with_suffix(".partial")
    sheet.save(partial, format="PNG")
    os.replace(partial, path)
    return path


def set_of(key: str, sets: Sequence[str]) -> int:
    """The data set that a key of ``TrainBatch.keys`` is of; a name may begin like another's."""
    return max((i for i, name in enumerate(sets) if key.startswith(f"{name}/")), key=lambda i: len(sets[i]))


def mean(total: float, weight: float) -> float | None:
    """A weighted mean, None of nothing."""
    return total / weight if weight else None


class Validator:
    """Judges a run now and then.

    Args:
        recipe: of the run.
        accelerator: the processes.
        parts: the model.
        trainee: its trained parts.
        ema: their averages, which are judged where a run keeps them.
        held_out: micro-batches that training never sees.
        losses: losses of a micro-batch ``[batch]``, as training computes them.
        sets: names of the data sets, with which the samples' keys begin.
        judged: draws and judges parts of benchmarks, None where the recipe names none.

    Raises:
        ValueError: a picture of the recipe cannot be read.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        parts: LadderParts,
        trainee: LadderTrainee,
        ema: AveragedWeights | None,
        held_out: Sequence[TrainBatch],
        losses: Callable[[TrainBatch], torch.Tensor],
        sets: Sequence[str],
        judged: Judged | None = None,
    ) -> None:
        self.settings = recipe.validation
        self.size = recipe.data.resolution
        self.folder = Path(recipe.run).expanduser() / "samples"
        self.accelerator = accelerator
        self.parts = parts
        self.trainee = trainee
        self.ema = ema
        self.held_out = held_out
        self.losses = losses
        self.sets = sets
        self.judged = judged
        self.requests = read_requests(self.settings)

    @torch.no_grad()
    def validate(self, step: int, log: RunLog) -> dict[str, Any]:
        """Write the pictures of a step.

        Returns:
            ``validation_loss``, None if nothing was held out; ``validation_losses`` by data set where there
            are several; ``validation_sets`` if the recipe names any.
        """
        self.trainee.eval()
        try:
            with self.ema.applied() if self.ema else nullcontext():
                if self.requests:
                    self.draw(step, log)
                if self.judged:
                    engine.call_within(self.trainee, lambda: self.draw_sets(step))
                found: dict[str, Any] = self.loss()
        finally:
            self.trainee.train()
        if self.judged and self.accelerator.is_main_process:
            found["validation_sets"] = self.judged.judge(step, tqdm.write)
        return found

    def draw_sets(self, step: int) -> None:
        """Pictures of the recipe's sets."""
        pipeline = LadderPipeline(**vars(self.parts))
        pipeline.set_progress_bar_config(disable=True)
        with self.accelerator.autocast():
            self.judged.draw(pipeline, step, self.accelerator.is_main_process)

    def loss(self) -> dict[str, Any]:
        """Means over the held-out samples, each at its own noise level; the processes share them."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        sums = torch.zeros(len(self.sets), 2, dtype=torch.float64)  # loss and weight
        for first in range(0, len(self.held_out), world):
            mine = first + rank
            # all processes run as often: FSDP2 gathers weights in every pass
            batch = self.held_out[min(mine, len(self.held_out) - 1)]
            losses = engine.call_within(self.trainee, lambda batch=batch: self.losses(batch))
            if mine < len(self.held_out):
                counted = torch.where(batch.weight > 0, losses.cpu(), 0.0)
                rows = torch.tensor([set_of(key, self.sets) for key in batch.keys])
                sums.index_add_(0, rows, torch.stack([counted, batch.weight], dim=1).double())
        sums = engine.total(sums, self.accelerator.device)
        found: dict[str, Any] = {"validation_loss": mean(*sums.sum(dim=0).tolist())}
        if len(self.sets) > 1:
            found["validation_losses"] = {
                name: mean(*row) for name, row in zip(self.sets, sums.tolist(), strict=True)
            }
        return found

    def draw(self, step: int, log: RunLog) -> None:
        """Pictures of the fixed prompts and edits, by all processes alike; the first writes them."""
        bar = progress_bar(
            total=len(self.requests),
            desc="samples",
            unit="picture",
            leave=False,
            shown=self.accelerator.is_main_process,
        )

        def draw() -> list[Image.Image]:
            with self.accelerator.autocast():
                return draw_all(self.parts, self.requests, self.settings, self.size, bar.update)

        pictures = engine.call_within(self.trainee, draw)
        bar.close()
        if self.accelerator.is_main_process:
            sheet = grid(self.requests, pictures)
            with full_disk_stops(self.folder):
                save_grid(sheet, self.folder, step)
            log.image("samples", sheet, step)
