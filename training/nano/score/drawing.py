"""The model as the score sees it: a function that draws, one that rebuilds pictures, one that answers."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ....core.change_map import mask_of_cells
from ..domain.edits import Edit
from ..domain.render import render
from ..domain.scene import SIZE, SIZES
from ..judge.pictures import pixels
from ..judge.preservation import keep_mask
from .cases import Case

if TYPE_CHECKING:
    from ....core.pipeline import LadderPipeline

Pictures = list[np.ndarray]  # each [64, 64, 3] uint8, or of the model's size if that is larger
MOST_TOKENS = 96  # of an answer; the longest right one has 55


@dataclass(frozen=True)
class Job:
    """One picture to be drawn: a case and which of its pictures."""

    case: Case
    copy: int

    @property
    def noise_seed(self) -> int:
        """Its own seed, whatever else is drawn in the same batch."""
        case = self.case
        digest = blake2b(f"{case.seed}/{case.stream}/{case.number}/{self.copy}".encode(), digest_size=6)
        return int.from_bytes(digest.digest(), "big")


@dataclass(frozen=True)
class Model:
    """What is scored: jobs to pictures; pictures to what its autoencoder makes of them; a picture and a
    question to an answer; and the side of its pictures in pixels.
    """

    draw: Callable[[Sequence[Job]], Pictures]
    rebuild: Callable[[Pictures], Pictures]
    answer: Callable[[np.ndarray, str], str]
    size: int = SIZE


def from_pipeline(pipeline: LadderPipeline, options: argparse.Namespace) -> Model:
    """The pipeline as a `Model`, drawing with the options of the command.

    Raises:
        ValueError: its pictures cannot be scaled to the judge's size.
    """
    size = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    if size not in SIZES:
        raise ValueError(
            f"--model {options.model} draws pictures of {size} pixels: give a nano model, which draws "
            f"{' or '.join(map(str, SIZES))}"
        )
    return Model(
        lambda jobs: draw(pipeline, jobs, options),
        lambda pictures: rebuild(pipeline.vae, pictures),
        lambda picture, question: pipeline.ask(Image.fromarray(picture), question, MOST_TOKENS).text,
        size,
    )


def load(folder: Path, device: str) -> LadderPipeline:
    """A model of any layout in float32.

    Raises:
        ValueError: one sentence about what is wrong with the folder or the device.
    """
    from ....core.checkpoints import load_parts
    from ....core.pipeline import LadderPipeline
    from ...threads import spare_threads

    pipeline = LadderPipeline(**vars(load_parts(folder, dtype=torch.float32, device=device)))
    if device == "cpu":
        spare_threads(pipeline.mllm, pipeline.connector, pipeline.transformer, pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: LadderPipeline, jobs: Sequence[Job], options: argparse.Namespace) -> Pictures:
    """Pictures of jobs that are all prompts or all edits, in their order."""
    copies: dict[Case, list[Job]] = defaultdict(list)
    for job in jobs:
        copies[job.case].append(job)
    drawn: dict[Job, np.ndarray] = {}
    size = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    for number in sorted(
        {len(of_case) for of_case in copies.values()}
    ):  # a prompt is read once for its copies
        chosen = {case: of_case for case, of_case in copies.items() if len(of_case) == number}
        in_order = [job for of_case in chosen.values() for job in of_case]
        noise = torch.stack([noise_of(pipeline, job) for job in in_order])
        result = pipeline(
            prompt=[case.asked.text for case in chosen],
            height=size,
            width=size,
            latents=noise,
            num_images_per_prompt=number,
            num_inference_steps=options.steps,
            output_type="pil",
            **settings_of(pipeline, list(chosen), number, noise, size, options),
        )
        drawn |= zip(in_order, (np.asarray(image.convert("RGB")) for image in result.images), strict=True)
    return [drawn[job] for job in jobs]


def noise_of(pipeline: LadderPipeline, job: Job) -> Tensor:
    """Noise [channels, h, w] of a job, drawn on the CPU so that it is the same on every device."""
    side = pipeline.transformer.config.sample_size
    shape = (pipeline.vae.config.latent_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(job.noise_seed))


def settings_of(
    pipeline: LadderPipeline,
    cases: list[Case],
    copies: int,
    noise: Tensor,
    size: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Arguments of the pipeline that differ between prompts and edits."""
    if not isinstance(cases[0].asked, Edit):
        return {"guidance_scale": options.guidance}
    sources = [render(case.asked.source, size) for case in cases]
    settings = {
        "image": [[Image.fromarray(source)] for source in sources],
        "guidance_scale": options.edit_guidance,
        "image_guidance_scale": options.image_guidance,
    }
    if cases[0].group == "masked":
        masks = [
            mask_of_cells(changeable(case.asked, size, noise.shape[-1])[0], size, size) for case in cases
        ]
        settings["mask"] = torch.stack(masks)
    elif cases[0].group == "auto":
        settings["mask"] = "auto"
    return settings


def changeable(edit: Edit, size: int, side: int) -> Tensor:
    """Latents [1, side, side] that may change: 1 wherever source and exact result, pictures of `size` pixels,
    differ in a pixel.

    That is what someone would paint who knows what the edit touches.
    """
    touched = torch.from_numpy(~keep_mask(edit, size)).float()
    return F.adaptive_max_pool2d(touched[None], side)


@torch.no_grad()
def encode(vae: Any, pictures: Pictures) -> Tensor:
    """Latents [B, C, h, w] of pictures."""
    return vae.encode(pixels(pictures).to(vae.device, vae.dtype)).latent


@torch.no_grad()
def rebuild(vae: Any, pictures: Pictures, batch: int = 64) -> Pictures:
    """The pictures after the autoencoder: the best that any model can draw in its latents."""
    rebuilt: Pictures = []
    for start in range(0, len(pictures), batch):
        decoded = vae.decode(encode(vae, pictures[start : start + batch])).sample
        values = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        rebuilt += list(values.permute(0, 2, 3, 1).contiguous().cpu().numpy())
    return rebuilt
