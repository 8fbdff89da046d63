"""The data sets of a recipe, their samples sorted into buckets of one target size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..recipe.recipe import Recipe
from .index import Index
from .pictures import aspect_buckets, nearest_buckets


@dataclass
class TrainSet:
    """The samples of one index that are trained on, by bucket.

    Attributes:
        index: opened lazily by every process.
        rows: row numbers per bucket ``[n]`` int32 in shared memory, which workers map and do not copy.
    """

    index: Index
    rows: list[Tensor | range]


def target_sizes(recipe: Recipe, factor: int) -> list[tuple[int, int]]:
    """(width, height) of the targets of every bucket. Raises ValueError."""
    resolution = recipe.data.resolution
    if resolution % factor:
        raise ValueError(
            f"data.resolution is {resolution}, no multiple of the {factor} pixels that the autoencoder makes "
            "one latent of; give one that is."
        )
    return (
        [(resolution, resolution)] if recipe.data.aspect == "square" else aspect_buckets(resolution, factor)
    )


def open_sets(recipe: Recipe, sizes: Sequence[tuple[int, int]]) -> list[TrainSet]:
    """The data sets of a recipe, their samples sorted into buckets. Raises ValueError."""
    sets = []
    for settings in recipe.data.sets:
        index = Index(settings.folder, recipe.train.masked_loss)
        if len(sizes) == 1 and not settings.exclude:
            sets.append(TrainSet(index, [range(len(index))]))
            continue
        rows = index.selected(settings.exclude, settings.lenient)
        nearest = np.zeros(len(rows), dtype=int)
        if len(sizes) > 1:
            nearest = nearest_buckets(index.sizes()[rows], sizes)
        parts = [rows[nearest == bucket] for bucket in range(len(sizes))]
        sets.append(TrainSet(index, [torch.from_numpy(part.astype(np.int32)) for part in parts]))
    return sets
