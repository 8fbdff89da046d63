"""Drawing over a picture: part of the way from noise, inside a mask, or where the model sees a change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import BaseOutput
from PIL import Image

from .canvas import canvas_pixels, encode_latents, in_tiles_if_large
from .change_map import change_map, changed_cells, mask_of_cells, mixtures, narrowed
from .crops import Crop, corners, lengths, plan_crops, whole
from .denoising import Generators, Sampling, Source, denoise, draw_noises, forget_steps, rows_of, velocities
from .editing import latent_mask
from .masks import MaskInput
from .originals import Original, as_output, lay_in, make_originals
from .requests import Picture, in_trained_proportions

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
        context: what is drawn of the surroundings of a mask's parts, see :func:`.crops.plan_crops`; None =
            the whole picture.
    """

    originals: list[Original]
    masked: bool
    auto: bool
    feather: int | None
    context: float | None

    def crops(self, call: LadderPipeline, mask: torch.Tensor) -> list[Crop]:
        """What is drawn of a picture with a mask ``[height, width]``."""
        if self.context is None:
            return [whole(*mask.shape)]
        factor = call.vae_scale_factor
        return plan_crops(mask, self.context, call.transformer.config.sample_size * factor, factor)

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
    context: float | None,
    output_type: str,
) -> Repainting | None:
    """What a call draws over; None if it draws from noise alone.

    Args:
        pictures: the first of every prompt, as it was given.
        canvases: the same as the model sees them.

    Raises:
        ValueError: a strength, a feather, a context or a mask that cannot be, or no picture for them.
    """
    if not (isinstance(strength, int | float) and 0 <= strength <= 1):  # NaN is in no order
        raise ValueError(f"strength is {strength}; give a number from 0 (the picture as it is) to 1.")
    if feather is not None and feather < 0:
        raise ValueError(f"feather is {feather}; give a width of at least 0 pixels.")
    if context is not None and not (isinstance(context, int | float) and context >= 0):
        raise ValueError(f"context is {context}; give a share of the mask's size from 0, or None.")
    if mask is None and strength == 1:
        return None
    if pictures is None:
        what = "A strength below 1" if mask is None else "A mask"
        raise ValueError(f"{what} needs a picture that is drawn over; give image.")
    originals = make_originals(
        pictures, canvases, mask, own_colours=mask is not None and output_type == "pil"
    )
    shapes = {(original.size, original.has_alpha) for original in originals}
    if mask is not None and output_type != "pil" and len(shapes) > 1:
        raise ValueError(
            'The pictures differ in size or transparency, which no array holds; give output_type="pil".'
        )
    return Repainting(originals, mask is not None, isinstance(mask, str), feather, context)


def draw_over(
    call: LadderPipeline,
    sampling: Sampling,
    task: Repainting,
    read: Callable[[int, Image.Image, int], LadderCondition],
    noises: Sequence[torch.Tensor],
    generator: Generators,
    output_type: str,
) -> LadderPipelineOutput:
    """Draw over pictures, one after the other, each as if it were alone.

    Args:
        call: the call's own view of the pipeline.
        read: ``read(number, canvas, branches)`` is the condition of a picture, or of a crop of it, of at
            least so many branches.
        noises: for each picture ``[results, channels, h, w]``.
        generator: of stochastic solvers, and of the noise of crops.
    """
    drawn, masks = [], []
    for number, (original, noise) in enumerate(zip(task.originals, noises, strict=True)):
        own = rows_of(generator, number * len(noise), len(noise))
        result, mask = draw_picture(
            call, sampling, task, original, partial(read, number), noise, own, output_type
        )
        drawn.append(result)
        if mask is not None:
            masks.append(mask[..., None].expand(len(noise), -1, -1, -1))
    if output_type == "latent":
        images = torch.cat(drawn)
    else:
        images = as_output(drawn, output_type, [original.profile for original in task.originals])
    return LadderPipelineOutput(images, as_output(masks, output_type) if masks else None)


def draw_picture(
    call: LadderPipeline,
    sampling: Sampling,
    task: Repainting,
    original: Original,
    read: Callable[[Image.Image, int], LadderCondition],
    noise: torch.Tensor,
    generator: Generators,
    output_type: str,
) -> tuple[torch.Tensor | np.ndarray, torch.Tensor | None]:
    """Draw over one picture, whole or in crops: latents or pixels, and the mask ``[1, height, width]``.

    In a mask of the model's own that is laid in which was drawn otherwise than it was.
    """
    branches = sampling.guidance.num_branches(has_images=True)
    mask, known = original.mask, None
    if task.auto:
        seen = as_mapped(call, original.canvas)
        condition = read(seen, max(branches, 2))
        mask = find_mask(find_changes(call, condition, sampling.gains), original.size)
        known = condition if seen is original.canvas else None
    narrow = task.auto and not mask.all()

    def draw(
        canvas: Image.Image, inside: torch.Tensor | None, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is drawn, and the source: latents."""
        condition = known if known is not None and canvas is original.canvas else read(canvas, branches)
        rows, columns = noise.shape[-2:]
        cells = None if inside is None else latent_mask(inside, rows, columns).to(noise.device)
        source = Source(encode(call, canvas, rows, columns), cells)
        # what the transformer reads of the picture is what it draws over
        condition = replace(condition.last(branches), canvases=[canvas])
        return denoise(call, sampling, condition, noise, generator, source), source.latents

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        return call.decode(latents, "pt").movedim(1, -1)

    if output_type == "latent":
        return draw(original.canvas, mask, noise)[0], mask
    if mask is None:
        return decoded(draw(original.canvas, None, noise)[0]), None
    crops, drawn, rebuilt = [], [], []
    for crop in task.crops(call, mask[0]):
        if sampling.stopped():
            break  # what was not begun stays as it was
        part, start = original.canvas, noise
        if crop.box != whole(*mask.shape[1:]).box:
            part = part.crop(corners(crop.box))
            shape = (len(noise), *call._latent_shape(None, None, [part]))
            [start] = draw_noises([shape], noise.device, generator)
        latents, source = draw(part, mask[0][crop.box][None], start)
        crops.append(crop)
        drawn.append(decoded(latents))
        if narrow:
            rebuilt.append(decoded(source)[0])
    return lay_all(task, original, mask[0], crops, drawn, rebuilt, len(noise), call.vae_scale_factor), mask


def lay_all(
    task: Repainting,
    original: Original,
    mask: torch.Tensor,
    crops: Sequence[Crop],
    drawn: Sequence[torch.Tensor],
    rebuilt: Sequence[torch.Tensor],
    number: int,
    factor: int,
) -> np.ndarray:
    """Copies of a picture with everything that was drawn of it laid in, ``[batch, height, width, 3 or 4]``.

    Args:
        mask: ``[height, width]``.
        drawn: of every crop ``[batch, h, w, 3]``.
        rebuilt: of every crop what the autoencoder makes of the source, ``[h, w, 3]``, if only what differs
            from that is laid in; else nothing.
        number: of copies; a call that was stopped may have drawn nothing.
        factor: pixels per latent.
    """
    result = original.copies(number)
    copies, insides = [slice(None)], [mask]
    if rebuilt:
        copies = [slice(i, i + 1) for i in range(number)]
        insides = [narrowed(mask, crops, own, rebuilt, factor) for own in zip(*drawn, strict=True)]
    for copy, inside in zip(copies, insides, strict=True):
        for crop, pixels in zip(crops, drawn, strict=True):
            seam = SEAM * factor * lengths(crop.box)[1] / pixels.shape[2]
            feather = round(seam) if task.feather is None else task.feather
            lay_in(result[copy], pixels[copy], crop, inside, feather, original.profile)
    return result


def find_changes(
    call: LadderPipeline, condition: LadderCondition, gains: Sequence[float] | None = None
) -> torch.Tensor:
    """The change map of one picture, as a square of the model's own size, see :func:`.change_map`.

    Args:
        condition: of one picture, see :func:`as_mapped`; its last two branches are those without and with the
            text.
    """
    side, [canvas] = call.transformer.config.sample_size, condition.canvases
    mixed, levels = mixtures(encode(call, canvas, side, side)[0])
    seen = call.prepare_seen(condition.last(2), mixed.shape, len(mixed), mixed.device)
    rungs = call.prepare_rungs(condition.last(2), len(mixed), mixed.device, gains)
    forget_steps(call.transformer)
    plain, prompted = velocities(call.transformer, mixed, levels * 1000, rungs, 2, seen).chunk(2)
    return change_map(plain, prompted).cpu()


def as_mapped(call: LadderPipeline, canvas: Image.Image) -> Image.Image:
    """What the language model reads of a picture for its change map, which covers a square.

    Away from the proportions that a model was trained in, text and picture change everything a little.
    """
    factor = call.vae_scale_factor
    return in_trained_proportions(canvas, call.transformer.config.sample_size * factor, factor)


def find_mask(change: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The mask ``[1, height, width]`` of a change map, for a picture of this width and height."""
    return mask_of_cells(changed_cells(change), size[1], size[0])[None]


def encode(call: LadderPipeline, canvas: Image.Image, rows: int, columns: int) -> torch.Tensor:
    """Scaled latents ``[1, channels, rows, columns]`` of a picture, float32."""
    factor = call.vae_scale_factor
    pixels = canvas_pixels([canvas], columns * factor, rows * factor)
    vae = in_tiles_if_large(call.vae, *pixels.shape[-2:])
    return encode_latents(vae, pixels.to(call._execution_device)).float()
