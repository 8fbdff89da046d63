"""The data sets of a recipe, their samples sorted into buckets of one target size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..recipe.recipe import Recipe
from .buckets import Rows, bucket_rows
from .index import Index
from .pictures import aspect_buckets


@dataclass
class TrainSet:
    """The samples of one index that are trained on, by bucket.

    Attributes:
        index: opened lazily by every process.
        rows: row numbers per bucket, which all processes map and none holds.
        name: in this run; default: that of the index.
    """

    index: Index
    rows: Sequence[Rows | range]
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.index.name


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
    indexes = [Index(settings.folder, recipe.train.masked_loss) for settings in recipe.data.sets]
    sets = []
    for settings, index, name in zip(recipe.data.sets, indexes, names_of(recipe, indexes), strict=True):
        if len(sizes) == 1 and not settings.exclude:
            rows: Sequence[Rows | range] = [range(len(index))]
        else:
            rows = bucket_rows(index, sizes, settings.exclude, settings.lenient)
        sets.append(TrainSet(index, rows, name))
    return sets


def names_of(recipe: Recipe, indexes: Sequence[Index]) -> list[str]:
    """What the data sets are called in a run: as the recipe says, or as their indexes are called.

    Where two are called the same, as those of two folders ``data``, they have the paths of the recipe.
    """
    said = [settings.name or index.name for settings, index in zip(recipe.data.sets, indexes, strict=True)]
    return [
        settings.index if said.count(name) > 1 and not settings.name else name
        for settings, name in zip(recipe.data.sets, said, strict=True)
    ]
