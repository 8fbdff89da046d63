"""Where an instruction changes a picture: the term of guidance that is the instruction's, by its size.

``v(picture, text) - v(picture)`` is what the text adds to the velocity. At the source's latents mixed with
noise, its size tells where the source will not stay (the idea of DiffEdit, Couairon et al. 2022, with the
branches that guidance evaluates anyway). Nothing here depends on what else is edited: the noise is always
the same, and every picture is evaluated by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .crops import Crop, lengths, within
from .editing import resize

LEVELS = (0.6, 0.7, 0.8, 0.9)  # of noise, each with a draw of its own; 1 is noise alone
SEED = 0
EVALUATIONS = 2 * len(LEVELS)  # of the transformer for one map
SHARE = 0.46  # of the largest value; cells above it change
EVERYTHING = 0.4  # of the cells; where more change than that, all may
# of a latent's width: over so much what was drawn is compared, and as much around what differs is laid in
SPREAD = 0.25
CHANGED = 0.15  # of the largest difference: what is above it changed,
SURELY = 0.5  # if it is somewhere above this


def mixtures(source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The source's latents mixed with noise.

    Args:
        source: ``[channels, h, w]``, scaled.

    Returns:
        ``[mixtures, channels, h, w]`` float32 and their noise levels ``[mixtures]``, 0 … 1.
    """
    levels = torch.tensor(LEVELS, device=source.device)
    noise = torch.randn(len(levels), *source.shape, generator=torch.Generator().manual_seed(SEED))
    share = levels[:, None, None, None]
    return (1 - share) * source.float() + share * noise.to(source.device), levels


def change_map(plain: torch.Tensor, prompted: torch.Tensor) -> torch.Tensor:
    """How much the text changes every cell, from 0 to 1 where it changes most: ``[h, w]`` float32.

    Args:
        plain: velocities of the mixtures by the picture alone, ``[mixtures, channels, h, w]``.
        prompted: the same by picture and text.
    """
    return smoothed(differences(plain, prompted))


def differences(plain: torch.Tensor, prompted: torch.Tensor) -> torch.Tensor:
    """Sizes ``[h, w]`` of what the text adds, averaged over the mixtures first: what is noise goes."""
    return (prompted.float() - plain.float()).mean(0).square().mean(0).sqrt()


def smoothed(sizes: torch.Tensor) -> torch.Tensor:
    """Means over each cell and its neighbours, as shares of the largest: what changes is seldom one cell."""
    means = F.avg_pool2d(sizes[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    return means / means.max().clamp(min=torch.finfo(means.dtype).tiny)


def changed_cells(change: torch.Tensor) -> torch.Tensor:
    """Cells that may change, ``[h, w]`` bool, of a map ``[h, w]``; all, where it is most of them."""
    cells = change > SHARE
    return cells | (cells.float().mean() > EVERYTHING)


def mask_of_cells(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cells ``[h, w]`` as a mask ``[height, width]`` of pixels, 1 = may change.

    A pixel that a cell which stays has a share in is left out, so that the mask touches the same cells again.
    Of a picture with less than two pixels a cell it holds those that have a share in one that changes.
    """
    cells = cells[None].float()
    if height < 2 * cells.shape[1] or width < 2 * cells.shape[2]:
        return F.adaptive_max_pool2d(cells, (height, width))[0]
    return 1 - F.adaptive_max_pool2d(1 - cells, (height, width))[0]


def narrowed(
    mask: torch.Tensor,
    crops: Sequence[Crop],
    drawn: Sequence[torch.Tensor],
    rebuilt: Sequence[torch.Tensor],
    cell: int,
) -> torch.Tensor:
    """What of a mask really was drawn otherwise than the source, once it is drawn.

    A cell of the map that has a part in a change holds other things, too, which the model drew again as they
    were, if less well. They are where the drawing differs little from what the autoencoder makes of the
    source. What lies outside of the crops stays.

    Args:
        mask: ``[height, width]``, 0 … 1.
        crops: that were drawn of it.
        drawn: each ``[h, w, 3]``, 0 … 1.
        rebuilt: the sources of the same after the autoencoder, ``[h, w, 3]``.
        cell: pixels per latent.
    """
    width = round(SPREAD * cell)  # that of a seam, which so lies around the change and not within it
    beside = {"kernel_size": width // 2 * 2 + 1, "stride": 1, "padding": width // 2}
    around = {"kernel_size": 2 * width + 1, "stride": 1, "padding": width}
    sizes = []
    for new, old in zip(drawn, rebuilt, strict=True):
        size = (new.float() - old.float()).abs().amax(-1).cpu()
        sizes.append(F.avg_pool2d(size[None], count_include_pad=False, **beside)[0])
    largest = max(size.max().item() for size in sizes)
    result = mask.clone()
    for crop, size in zip(crops, sizes, strict=True):
        changed = F.max_pool2d(connected(size, largest)[None].float(), **around)
        down, across = lengths(crop.box)
        fitted = resize(changed[..., None], across, down)[0, ..., 0] > 0.5
        result[crop.part] *= fitted[within(crop.part, crop.box)].to(mask)
    return result


def connected(sizes: torch.Tensor, largest: float) -> torch.Tensor:
    """Parts of ``[h, w]`` that are above the low share of the largest, and somewhere above the high: bool."""
    from scipy import ndimage

    labels, number = ndimage.label((sizes > CHANGED * largest).numpy(), structure=[[1] * 3] * 3)
    labels = torch.from_numpy(labels).long()
    sure = torch.zeros(number + 1, dtype=torch.bool)
    sure[labels[sizes > SURELY * largest]] = True
    return sure[labels]
