"""Sampling of edits: conditions of all pictures at once, then one picture after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.samplers import KSAMPLER, CFGGuider, calc_cond_batch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG

from ..core.canvas import canvas_pixels
from ..core.change_map import LEVELS, change_map, changed_cells, mask_of_cells, mixtures, narrowed
from ..core.guidance import Guidance, branch_inputs, branch_pictures
from .source import SOURCE, encode_sources

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from PIL import Image

    from ..core.crops import Crop
    from .autoencoder import LadderVAE
    from .mllm import LadderMLLM, LatentSize

ENCODED_TOGETHER = 4  # pictures whose conditions, three each, the language model computes at once


def encode_edits(
    mllm: LadderMLLM,
    instruction: str,
    groups: list[list[Image.Image]],
    negative_prompt: str,
    branches: int,
) -> list[list[torch.Tensor]]:
    """Folded conditions of every edit in guidance's order, see :meth:`.mllm.LadderMLLM.encode`."""
    conditions = []
    for start in range(0, len(groups), ENCODED_TOGETHER):
        some = groups[start : start + ENCODED_TOGETHER]
        texts = [instruction] * len(some), [negative_prompt] * len(some)
        rows = mllm.encode(*branch_inputs(*texts, some, branches))
        conditions += [rows[i :: len(some)] for i in range(len(some))]
    return conditions


def edit_sources(
    vae: LadderVAE, group: list[Image.Image], guidance: Guidance, latent: torch.Tensor
) -> list[dict[str, torch.Tensor]]:
    """What the conditions of an edit carry for a model that reads what it edits, branch by branch.

    Args:
        group: its pictures.
        latent: of the shape of what is drawn.
    """
    height, width = (side * vae.downscale_ratio for side in latent.shape[-2:])
    branches = guidance.num_branches(has_images=True)
    return encode_sources(vae, branch_pictures([group], branches), width, height)


def find_changes(model: ModelPatcher, condition: list[torch.Tensor], latent: torch.Tensor) -> torch.Tensor:
    """The change map ``[h, w]`` of one edit, see :func:`..core.change_map.change_map`.

    Args:
        condition: its last two rows are the picture without and with the instruction.
        latent: of the source, ``[1, channels, h, w]``.
    """
    found = []

    def measure(sampled, x, sigmas, extra_args, callback=None, disable=None) -> torch.Tensor:
        guider = sampled.inner_model
        mixed, levels = mixtures(sampled.latent_image[0])
        conds = [guider.conds["negative"], guider.conds["positive"]]
        clean = calc_cond_batch(guider.inner_model, conds, mixed, levels, extra_args["model_options"])
        plain, prompted = ((mixed - one) / levels[:, None, None, None] for one in clean)
        found.append(change_map(plain, prompted))
        return x

    guider = CFGGuider(model)
    carried = {SOURCE: latent} if model.model.diffusion_model.config.source_latents else {}
    guider.set_conds(*([[row, carried]] for row in (condition[-1], condition[-2])))
    sampler, sigmas = KSAMPLER(measure), torch.tensor([max(LEVELS), 0.0])
    guider.sample(torch.zeros_like(latent), latent, sampler, sigmas, disable_pbar=True)
    return found[0].float().cpu()


def find_masks(
    model: ModelPatcher,
    vae: LadderVAE,
    image: torch.Tensor,
    groups: list[list[Image.Image]],
    conditions: list[list[torch.Tensor]],
    size: LatentSize,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each picture of a batch changes: masks ``[batch, height, width]`` and maps ``[batch, h, w]``.

    Args:
        groups: the pictures and their further ones, :func:`.edit_inputs.as_mapped`.
        conditions: of these.
    """
    # one by one, so that none counts for another
    pixels = [canvas_pixels(group[:1], size.native, size.native).movedim(1, -1) / 2 + 0.5 for group in groups]
    found = zip(conditions, map(vae.encode, pixels), strict=True)
    maps = [find_changes(model, condition, latent) for condition, latent in found]
    masks = [mask_of_cells(changed_cells(change), *image.shape[1:3]) for change in maps]
    return torch.stack(masks).to(image.device), torch.stack(maps)


def narrow_masks(
    vae: LadderVAE,
    masks: torch.Tensor,
    crops: list[tuple[int, Crop]],
    drawn: list[torch.Tensor],
    sources: list[torch.Tensor],
) -> torch.Tensor:
    """Masks that the model found, narrowed to what was drawn, see :func:`..core.change_map.narrowed`.

    Args:
        masks: ``[batch, height, width]``.
        crops: that were drawn, each with the number of its picture.
        drawn: pixels of each, ``[1, h, w, 3]``.
        sources: latents of what was drawn over.
    """
    result = masks.clone()
    for number, mask in enumerate(masks):
        own = [i for i, (picture, _) in enumerate(crops) if picture == number]
        if mask.all() or not own:  # all may change, or nothing does
            continue
        rebuilt = [vae.decode(sources[i])[0].to(mask.device) for i in own]
        shown = [drawn[i][0] for i in own]
        result[number] = narrowed(mask, [crops[i][1] for i in own], shown, rebuilt, vae.downscale_ratio)
    return result


def sample_edits(
    model: ModelPatcher,
    conditions: list[list[torch.Tensor]],
    guidance: Guidance,
    latents: Sequence[torch.Tensor],
    changeable: Sequence[torch.Tensor | None],
    seed: int,
    sampler: KSAMPLER,
    sigmas: torch.Tensor,
    sources: Sequence[list[dict[str, torch.Tensor]]] | None = None,
) -> list[torch.Tensor]:
    """Sample one edit after the other, each as if it were alone; one progress bar over all.

    Args:
        conditions: of every edit, from :func:`encode_edits`; of more branches than needed the last count.
        latents: of every edit, ``[1, channels, h, w]`` of its own size, zeros to start from noise alone.
        changeable: of every edit, ``[1, 1, h, w]``, 0 = latents that stay; None = none does.
        sampler: of all of them.
        sigmas: noise levels.
        sources: of every edit, from :func:`edit_sources`, for a model that reads them.
    """
    steps = len(sigmas) - 1
    show = preview_callback(model, steps * len(latents))
    device = comfy.model_management.intermediate_device()
    results = []
    for i, (condition, latent, mask) in enumerate(zip(conditions, latents, changeable, strict=True)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        result = make_guider(model, condition, guidance, sources and sources[i]).sample(
            comfy.sample.prepare_noise(latent, seed),
            latent,
            sampler,
            sigmas,
            denoise_mask=mask,
            callback=lambda step, denoised, x, _, done=i * steps: show(done + step, denoised),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        results.append(result.to(device))
    return results


def make_guider(
    model: ModelPatcher,
    condition: list[torch.Tensor],
    guidance: Guidance,
    sources: list[dict[str, torch.Tensor]] | None = None,
) -> CFGGuider:
    """ComfyUI's guider for the branches of ``condition``, and what each carries besides."""
    condition = condition[-guidance.num_branches(has_images=True) :]
    carried = sources or [{}] * len(condition)
    *others, positive = ([[row, options]] for row, options in zip(condition, carried, strict=True))
    if len(others) == 2:
        guider = Guider_DualCFG(model)
        guider.set_conds(positive, others[1], others[0])
        guider.set_cfg(guidance.text, guidance.image)
        return guider
    guider = CFGGuider(model)
    guider.set_conds(positive, others[0] if others else positive)
    guider.set_cfg(guidance.text if others else 1.0)
    return guider


def preview_callback(model: ModelPatcher, total: int) -> Callable[[int, torch.Tensor], None]:
    """``show(step, denoised)``: progress over ``total`` steps and a preview of the picture in work."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    bar = comfy.utils.ProgressBar(total)

    def show(step: int, denoised: torch.Tensor) -> None:
        preview = previewer and previewer.decode_latent_to_preview_image("JPEG", denoised)
        bar.update_absolute(step + 1, total, preview)

    return show
