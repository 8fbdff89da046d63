"""Editing a picture or a part of it: the size to draw at, masks, and pasting back.

Pictures here are ComfyUI's: ``[batch, height, width, channels]`` float, 0 … 1. Masks are
``[batch, height, width]``, 0 = must not change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .requests import fit_size

MAX_STRETCH = 0.02  # by how much the proportions of a mask may differ from its picture's


def drawing_size(size: tuple[int, int], side: int, native: int, factor: int) -> tuple[int, int]:
    """Width and height to draw at, multiples of ``factor``, in the proportions of the picture.

    Args:
        size: width and height of the picture.
        side: 0 draws at about ``native``² pixels; otherwise the picture is drawn at its own size, or at
            most at ``side``² pixels.
        native: side in pixels that the model was trained at.
        factor: pixels per latent.
    """
    if side == 0:
        return fit_size(size, native, factor)
    scale = min(1.0, side / (size[0] * size[1]) ** 0.5)
    width, height = (max(factor, round(length * scale / factor) * factor) for length in size)
    while width * height > side * side and max(width, height) > factor:  # rounded up beyond the budget
        width, height = (width - factor, height) if width >= height else (width, height - factor)
    return width, height


def check_pictures(name: str, pixels: torch.Tensor) -> None:
    """Raise ValueError unless ``pixels`` is a batch of pictures with finite values and 1, 3 or 4 channels."""
    if not isinstance(pixels, torch.Tensor):
        raise ValueError(f"{name} is of the type {type(pixels).__name__}; connect a picture.")
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise ValueError(f"{name} has the shape {list(pixels.shape)}; give pictures of at least one pixel.")
    if pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name} has {pixels.shape[-1]} channels; give a grey picture (1), RGB (3) or RGBA (4)."
        )
    if not pixels.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite; mend the node that made it.")


def as_rgb(pixels: torch.Tensor) -> torch.Tensor:
    """Grey becomes RGB; alpha is left out. Other values stay bit for bit."""
    return pixels.expand(*pixels.shape[:-1], 3) if pixels.shape[-1] == 1 else pixels[..., :3]


def resize(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Pictures at another size; edges stay on edges, so nothing shifts."""
    if pixels.shape[1:3] == (height, width):
        return pixels
    # antialiased: plain bicubic picks single pixels of a large picture
    resized = F.interpolate(
        pixels.movedim(-1, 1), size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0, 1).movedim(1, -1)


def fit_mask(mask: torch.Tensor, batch: int, height: int, width: int) -> torch.Tensor:
    """A mask for every picture of a batch.

    Args:
        mask: ``[height, width]`` or ``[1 or batch, height, width]``, of any size in the same proportions.

    Returns:
        ``[batch, height, width]`` float, 0 … 1.

    Raises:
        ValueError: empty, not finite, of another number or of other proportions.
    """
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"mask is of the type {type(mask).__name__}; connect a mask.")
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"The mask has the shape {list(mask.shape)}; give a mask of at least one pixel.")
    if len(mask) not in (1, batch):
        raise ValueError(f"{len(mask)} masks were given for {batch} pictures; give one, or one for each.")
    if not mask.isfinite().all():
        raise ValueError("The mask holds values that are not finite; mend the node that made it.")
    mask = mask.float().clamp(0, 1)
    if not mask.any():
        raise ValueError(
            "The mask is empty, so nothing may change; paint the part to edit, or leave the mask out."
        )
    if mask.shape[1:] != (height, width):
        stretch = (mask.shape[2] * height) / (mask.shape[1] * width)
        if not 1 - MAX_STRETCH <= stretch <= 1 + MAX_STRETCH:
            raise ValueError(
                f"The mask is {mask.shape[2]}x{mask.shape[1]} and the picture {width}x{height}; give a mask "
                "in the proportions of the picture."
            )
        mask = F.interpolate(mask[:, None], size=(height, width), mode="bilinear", antialias=True)[:, 0]
    return mask.expand(batch, -1, -1)


def latent_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Latents that may change, ``[batch, 1, height, width]``: 1 wherever the mask touches one."""
    return (F.adaptive_max_pool2d(mask[:, None], (height, width)) > 0).float()


def inner_distance(inside: torch.Tensor, limit: int) -> torch.Tensor:
    """How deep each pixel lies inside, in pixels; 0 outside, ``limit`` for whatever is deeper.

    The edges of the picture do not count as outside.

    Args:
        inside: ``[batch, height, width]`` bool.
    """
    far = float(limit)
    rows = torch.arange(inside.shape[1], dtype=torch.float32, device=inside.device)[:, None]
    above, below = (  # along columns: from the last pixel outside, going down and going up
        (rows - torch.where(i, -torch.inf, rows).cummax(1).values) for i in (inside, inside.flip(1))
    )
    column = torch.minimum(above, below.flip(1)).clamp(max=far)
    squared, nearest = column**2, column**2
    beside = F.pad(squared, (limit, limit), value=far**2)
    for shift in range(1, limit):  # then Pythagoras along rows
        for start in (limit - shift, limit + shift):
            nearest = torch.minimum(nearest, beside[..., start : start + inside.shape[-1]] + shift**2)
    return nearest.sqrt()


def feathered(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Share of the edit in every pixel: 0 outside the mask, growing to the mask's own value inside.

    Args:
        mask: ``[batch, height, width]``, 0 … 1; whatever is above 0 counts as inside.
        width: pixels over which the share grows; where a mask is thinner than twice that, half its depth.
    """
    inside = mask > 0
    if width < 1 or not inside.any():
        return mask
    box = bounds(inside.any(0), margin=1)
    depth = inner_distance(inside[:, box[0], box[1]], 2 * width + 1)
    deepest = depth.amax(dim=(1, 2), keepdim=True)
    ramp = (depth / (deepest / 2).clamp(min=1, max=width + 1)).clamp(max=1)
    share = mask.clone()
    share[:, box[0], box[1]] *= ramp * ramp * (3 - 2 * ramp)
    return share


def bounds(inside: torch.Tensor, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around what is true in ``[height, width]``, and so much more."""
    found = (inside.any(dim).nonzero()[:, 0].tolist() for dim in (1, 0))
    rows, columns = (slice(max(0, line[0] - margin), line[-1] + 1 + margin) for line in found)
    return rows, columns


def paste(source: torch.Tensor, edited: torch.Tensor, share: torch.Tensor | None = None) -> torch.Tensor:
    """Edited pictures within the source; where the share is 0 the source's values bit for bit.

    Args:
        source: ``[batch, height, width, 1, 3 or 4]``; alpha is kept, grey becomes RGB.
        edited: ``[batch, height, width, 3]``.
        share: ``[batch, height, width]``, as :func:`feathered` returns it; None = 1 everywhere.
    """
    if share is None:
        return torch.cat([edited, source[..., 3:]], dim=-1) if source.shape[-1] == 4 else edited
    result = source.clone() if source.shape[-1] == 4 else as_rgb(source).clone()
    for picture, new, part in zip(result, edited, share, strict=True):
        if not part.any():  # nothing of this picture may change
            continue
        box = bounds(part > 0)
        old, new, part = picture[box][..., :3], new[box], part[box][..., None]
        mixed = torch.where(part < 1, old + part * (new - old), new)
        picture[box][..., :3] = torch.where(part > 0, mixed, old)
    return result
