"""The parts of a picture that an edit draws: crops around the parts of its mask.

A mask of 300 pixels in a photograph of 4,000 is drawn at 40 pixels if the whole photograph is. So the mask is
cut out with its surroundings, drawn at the model's own size, scaled back and laid in.

A box is rows and columns, as slices that index a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias

import torch
import torch.nn.functional as F

from .editing import bounds, feathered, paste, resize
from .requests import fit_size

Box: TypeAlias = tuple[slice, slice]

MOST_PARTS = 16  # of a mask; the specks of a finer one are taken together
MOST_ASPECT = 2  # a crop is at most so many times as long as wide, where mask and picture allow
CONTEXT = 0.5  # how far a crop reaches beyond its part on every side, as a share of the part's longer side


@dataclass(frozen=True)
class Crop:
    """What is cut out, and what of it is laid in: a box around a part of the mask."""

    box: Box
    part: Box


def plan_crops(mask: torch.Tensor, context: float, side: int, factor: int) -> list[Crop]:
    """Crops around the parts of a mask, from the top to the bottom.

    What of the mask lies in the crop around a part belongs to that part, and so does what is nearer than a
    sixteenth of ``side``. So the parts are disjoint, cover the mask, and may be drawn in any order.

    Args:
        mask: ``[height, width]``; whatever is above 0 may change.
        context: how far a crop reaches beyond its part on every side, as a share of the part's longer side.
            0 is the part itself, much is the whole picture.
        side: side in pixels that the model draws at.
        factor: pixels per latent.

    Returns:
        list[Crop]: none of an empty mask.
    """
    size = tuple(mask.shape)
    crops = [
        Crop(crop_box(part, size, context, side, factor), part)
        for part in separate_parts(mask > 0, max(1, side // 16))
    ]
    while near := next((pair for pair in permutations(crops, 2) if overlap(pair[0].box, pair[1].part)), None):
        part = union(near[0].part, near[1].part)
        crops = [crop for crop in crops if crop not in near]
        crops.append(Crop(crop_box(part, size, context, side, factor), part))
    return sorted(crops, key=lambda crop: (crop.part[0].start, crop.part[1].start))


def whole(height: int, width: int) -> Crop:
    """All of a picture."""
    box = slice(0, height), slice(0, width)
    return Crop(box, box)


def stitch(pictures: torch.Tensor, drawn: torch.Tensor, crop: Crop, mask: torch.Tensor, feather: int) -> None:
    """Lay a drawn crop into pictures, in place; outside of the mask they stay bit for bit.

    Args:
        pictures: ``[batch, height, width, 3 or 4]``; alpha is kept.
        drawn: ``[batch, h, w, 3]``, the crop at the size that it was drawn at.
        mask: ``[height, width]``, 0 … 1.
        feather: width of the seam in pixels, see :func:`.editing.feathered`.
    """
    height, width = lengths(crop.box)
    part = (slice(None), *crop.part)
    around = grown(crop.part, mask.shape)  # the seam begins where the mask ends
    share = feathered(mask[around][None], feather)[(slice(None), *within(crop.part, around))]
    drawn = resize(drawn, width, height)[(slice(None), *within(crop.part, crop.box))]
    pictures[part] = paste(pictures[part], drawn, share.to(pictures).expand(len(pictures), -1, -1))


def crop_box(part: Box, size: tuple[int, int], context: float, side: int, factor: int) -> Box:
    """The box to cut out around a part of a mask, never beyond the picture.

    Where the picture has room it is at least as large as it is drawn, and has the proportions that it is
    drawn in (:func:`.requests.fit_size`).

    Args:
        size: height and width of the picture.
    """
    own = lengths(part)
    margin = min(context * max(own), max(size))  # a context may be infinite
    wanted = [max(length + 2 * margin, side) for length in own]
    wanted = [max(length, max(wanted) / MOST_ASPECT) for length in wanted]
    wanted = [min(length, room) for length, room in zip(wanted, size, strict=True)]
    if tuple(wanted) == size:
        return whole(*size).box
    longest = MOST_ASPECT * min(wanted)  # less surroundings where the picture is narrow
    wanted = [max(min(length, longest), mine) for length, mine in zip(wanted, own, strict=True)]

    # as many of the model's squares as it will be drawn in: the shorter side grows, or the longer shrinks
    squares = fit_size((math.ceil(wanted[0]), math.ceil(wanted[1])), side, factor)
    scale = min(
        max(length / number for length, number in zip(wanted, squares, strict=True)),
        *(room / number for room, number in zip(size, squares, strict=True)),
    )
    return tuple(
        placed(edge, min(max(round(scale * number), edge.stop - edge.start), room), room)
        for edge, number, room in zip(part, squares, size, strict=True)
    )


def placed(edge: slice, length: int, room: int) -> slice:
    """So many pixels around an edge of a box, moved inwards where the picture ends."""
    start = max(0, (edge.start + edge.stop - length) // 2)
    start = min(start, room - length)
    return slice(start, start + length)


def separate_parts(inside: torch.Tensor, cell: int) -> list[Box]:
    """Boxes around the connected parts of ``[height, width]`` bool, seen in squares of ``cell`` pixels."""
    from scipy import ndimage

    if not inside.any():
        return []
    whole = bounds(inside)
    inside, number = inside[whole], MOST_PARTS + 1
    while number > MOST_PARTS:
        cells = F.max_pool2d(inside[None].float(), cell, ceil_mode=True)[0]
        labels, number = ndimage.label(cells.cpu().numpy(), structure=[[1] * 3] * 3)
        found, used = ndimage.find_objects(labels), cell
        cell *= 2
    boxes = [tuple(slice(edge.start * used, edge.stop * used) for edge in box) for box in found]
    return [beyond(beyond(bounds(inside[box]), box), whole) for box in boxes]


def beyond(inner: Box, outer: Box) -> Box:
    """A box of what lies in ``outer`` as a box of what ``outer`` lies in."""
    return tuple(slice(o.start + i.start, o.start + i.stop) for i, o in zip(inner, outer, strict=True))


def within(inner: Box, outer: Box) -> Box:
    """The contrary of :func:`beyond`."""
    return tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))


def union(one: Box, other: Box) -> Box:
    """The box around two."""
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share a pixel."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def grown(box: Box, size: tuple[int, int]) -> Box:
    """The box and a pixel around it, where the picture of this height and width has one."""
    return tuple(
        slice(max(0, edge.start - 1), min(edge.stop + 1, room)) for edge, room in zip(box, size, strict=True)
    )


def corners(box: Box) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, as PIL has them."""
    rows, columns = box
    return columns.start, rows.start, columns.stop, rows.stop


def lengths(box: Box) -> tuple[int, int]:
    """Height and width of a box."""
    return tuple(edge.stop - edge.start for edge in box)
