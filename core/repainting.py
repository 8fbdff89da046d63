"""Drawing over a picture: part of the way from noise, inside a mask, or where the model sees a change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import BaseOutput
from PIL import Image

from .canvas import canvas_pixels, encode_latents
from .change_map import change_map, changed_cells, mask_of_cells, mixtures
from .denoising import Generators, Sampling, Source, denoise, rows_of, velocities
from .editing import feathered, latent_mask, paste, resize
from .masks import MaskInput
from .originals import Original, as_output, make_originals
from .requests import Picture, fit_size

if TYPE_CHECKING:
    from .conditions import LadderCondition
    from .pipeline import LadderPipeline

SEAM = 0.25  # of a latent's width, where no feather is given


@dataclass
class LadderPipelineOutput(ImagePipelineOutput):
    """What a call of the pipeline returns.

    Attributes:
        images: a list of PIL pictures, an array ``[batch, height, width, channels]``, or a tensor
            ``[batch, channels, height, width]``.
        masks: of every picture where it may have changed (white, 1), of the same kind; None if there was no
            mask.
    """

    masks: list[Image.Image] | np.ndarray | torch.Tensor | None = None


@dataclass
class ChangeMapOutput(BaseOutput):
    """Where instructions change their pictures.

    Attributes:
        maps: for each picture how much every latent changes, ``[h, w]`` float32, 1 where it changes most.
        masks: what ``mask="auto"`` makes of it: white where the picture may change, at its own size.
    """

    maps: list[torch.Tensor]
    masks: list[Image.Image]


@dataclass(frozen=True)
class Repainting:
    """What is drawn over, and how much of it may change.

    Attributes:
        originals: one for every prompt.
        masked: whether results are laid into their pictures.
        auto: whether the model is asked where they change.
        feather: width of the seam in pixels of the picture; None = a quarter of a latent's.
    """

    originals: list[Original]
    masked: bool
    auto: bool
    feather: int | None

    def canvases(self) -> list[list[Image.Image]]:
        """Of every drawing the pictures, the first of which sets its proportions."""
        every = [original.canvas for original in self.originals]
        return [[one] for one in every] if self.masked else [every] * len(every)


def check_repainting(
    pictures: Sequence[Picture] | None,
    canvases: Sequence[Image.Image] | None,
    mask: MaskInput,
    strength: float,
    feather: int | None,
    output_type: str,
) -> Repainting | None:
    """What a call draws over; None if it draws from noise alone.

    Args:
        pictures: the first of every prompt, as it was given.
        canvases: the same as the model sees them.

    Raises:
        ValueError: a strength, a feather or a mask that cannot be, or no picture for them.
    """
    if not (isinstance(strength, int | float) and 0 <= strength <= 1):  # NaN is in no order
        raise ValueError(f"strength is {strength}; give a number from 0 (the picture as it is) to 1.")
    if feather is not None and feather < 0:
        raise ValueError(f"feather is {feather}; give a width of at least 0 pixels.")
    if mask is None and strength == 1:
        return None
    if pictures is None:
        what = "A strength below 1" if mask is None else "A mask"
        raise ValueError(f"{what} needs a picture that is drawn over; give image.")
    originals = make_originals(pictures, canvases, mask)
    shapes = {(original.size, original.pixels.shape[-1] == 4) for original in originals}
    if mask is not None and output_type != "pil" and len(shapes) > 1:
        raise ValueError(
            'The pictures differ in size or transparency, which no array holds; give output_type="pil".'
        )
    return Repainting(originals, mask is not None, isinstance(mask, str), feather)


def draw_over(
    call: LadderPipeline,
    sampling: Sampling,
    task: Repainting,
    read: Callable[[int, int], LadderCondition],
    noises: Sequence[torch.Tensor],
    generator: Generators,
    output_type: str,
) -> LadderPipelineOutput:
    """Draw over pictures, one after the other, each as if it were alone.

    Args:
        call: the call's own view of the pipeline.
        read: ``read(number, branches)`` is the condition of a picture, of at least so many branches.
        noises: for each picture ``[results, channels, h, w]``.
        generator: of stochastic solvers.
    """
    branches = sampling.guidance.num_branches(has_images=True)
    drawn, masks = [], []
    for number, (original, noise) in enumerate(zip(task.originals, noises, strict=True)):
        own = rows_of(generator, number * len(noise), len(noise))
        condition = read(number, max(branches, 2) if task.auto else branches)
        mask = original.mask
        if task.auto:
            mask = find_mask(find_changes(call, condition, sampling.gains), original.size)
        rows, columns = noise.shape[-2:]
        cells = None if mask is None else latent_mask(mask, rows, columns).to(noise.device)
        source = Source(encode(call, original.canvas, rows, columns), cells)
        latents = denoise(call, sampling, condition.last(branches), noise, own, source)
        if mask is not None:
            masks.append(mask[..., None].expand(len(noise), -1, -1, -1))
        if output_type != "latent":
            latents = call.decode(latents, "pt").movedim(1, -1)
            if mask is not None:
                latents = lay_in(original, mask, latents, task.feather, columns)
        drawn.append(latents)
    images = torch.cat(drawn) if output_type == "latent" else as_output(drawn, output_type)
    return LadderPipelineOutput(images, as_output(masks, output_type) if masks else None)


def find_changes(
    call: LadderPipeline, condition: LadderCondition, gains: Sequence[float] | None = None
) -> torch.Tensor:
    """The change map of one picture at the size that the model was trained at, see :func:`.change_map`.

    Args:
        condition: of one picture; its last two branches are those without and with the text.
    """
    factor, [canvas] = call.vae_scale_factor, condition.canvases
    width, height = fit_size(canvas.size, call.transformer.config.sample_size * factor, factor)
    mixed, levels = mixtures(encode(call, canvas, height // factor, width // factor)[0])
    rungs = call.prepare_rungs(condition.last(2), len(mixed), mixed.device, gains)
    plain, prompted = velocities(call.transformer, mixed, levels * 1000, rungs, branches=2).chunk(2)
    return change_map(plain, prompted).cpu()


def find_mask(change: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The mask ``[1, height, width]`` of a change map, for a picture of this width and height."""
    return mask_of_cells(changed_cells(change), size[1], size[0])[None]


def encode(call: LadderPipeline, canvas: Image.Image, rows: int, columns: int) -> torch.Tensor:
    """Scaled latents ``[1, channels, rows, columns]`` of a picture, float32."""
    factor = call.vae_scale_factor
    pixels = canvas_pixels([canvas], columns * factor, rows * factor)
    return encode_latents(call.vae, pixels.to(call._execution_device)).float()


def lay_in(
    original: Original, mask: torch.Tensor, drawn: torch.Tensor, feather: int | None, columns: int
) -> torch.Tensor:
    """Drawn pictures within their source, whose pixels stay bit for bit outside of the mask.

    Args:
        mask: ``[1, height, width]``.
        drawn: ``[results, h, w, 3]``, 0 … 1, of any size in the proportions of the source.
        feather: width of the seam in pixels; None = a quarter of a latent's.
        columns: latents along the width.

    Returns:
        ``[results, height, width, 3 or 4]`` on the device of ``drawn``.
    """
    width, height = original.size
    share = feathered(mask, round(SEAM * width / columns) if feather is None else feather)
    results, place = len(drawn), drawn.device
    source = original.pixels.to(place).expand(results, -1, -1, -1)
    return paste(source, resize(drawn, width, height), share.to(place).expand(results, -1, -1))
