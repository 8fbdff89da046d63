"""What it takes to fill a cache: read the samples that have no entry, run the frozen parts, write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ....core.canvas import encode_latents, to_pixels
from ....core.checkpoints import LadderParts
from ...recipe.recipe import Recipe
from ..index import Index
from ..pictures import BadPicture, decode, fit
from ..samples import CENTRE, read_canvas, read_inputs, read_mask
from ..sets import open_sets, target_sizes
from ..storage import Storage
from .entries import (
    black_canvas_path,
    black_path,
    latent_cache,
    source_name,
    transform_name,
    vision_cache,
)


@dataclass
class Item:
    """One sample: what has to be computed, and where it goes; None where it is there already.

    Attributes:
        drawn: of entries of latents the path, the picture ``[3, height, width]`` float32 in -1 … 1, and what
            the entry holds besides: of a target its mask ``[h, w]`` float32, if it has one.
        vision: path of the entry of the input pictures' vision tokens.
        patches: of all input pictures ``[patches, values]`` float32.
        grid: ``[images, 3]`` int64.
        bad: one line if a picture cannot be read.
    """

    drawn: list[tuple[Path, Tensor, dict[str, Tensor]]] = field(default_factory=list)
    vision: Path | None = None
    patches: Tensor | None = None
    grid: Tensor | None = None
    bad: str = ""

    @property
    def needed(self) -> bool:
        """Whether something has to be computed."""
        return bool(self.drawn) or self.patches is not None


class Work(Dataset):
    """All samples of a recipe's data in chunks of one size. Can be sent to other processes.

    Args:
        recipe: the resolved recipe.
        parts: the model, for the hashes of what computes.
        batch: samples of a chunk.
    """

    def __init__(self, recipe: Recipe, parts: LadderParts, batch: int) -> None:
        folders = recipe.data.cache
        self.image_processor = parts.image_processor
        self.latents = self.vision = None
        if folders.latents:
            self.latents = latent_cache(folders.latents, parts.vae)
        if folders.vision:
            self.vision = vision_cache(folders.vision, parts.mllm.model.visual, parts.image_processor)
        self.reads_source = parts.transformer.config.source_latents
        self.factor = parts.vae.spatial_compression_ratio
        self.sizes = target_sizes(recipe, self.factor)
        self.sets = open_sets(recipe, self.sizes)
        self.chunks = [
            (number, bucket, first, min(first + batch, len(rows)))
            for number, data in enumerate(self.sets)
            for bucket, rows in enumerate(data.rows)
            for first in range(0, len(rows), batch)
        ]
        self.storage = Storage()

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> list[Item]:
        which, bucket, first, end = self.chunks[number]
        data = self.sets[which]
        return [self.item(data.index, int(data.rows[bucket][i]), bucket) for i in range(first, end)]

    def count(self, numbers: Iterable[int]) -> int:
        """Samples of these chunks."""
        return sum(end - first for _, _, first, end in (self.chunks[number] for number in numbers))

    def item(self, index: Index, row: int, bucket: int) -> Item:
        """Read what has no entry yet."""
        entry, size, item = index[row], self.sizes[bucket], Item()
        place, transform = index.cache_name(entry), transform_name(*size, entry.mask)
        try:
            if self.latents and not (path := self.latents.path(*place, transform)).exists():
                target = to_pixels(fit(decode(self.storage.read(entry.target)), *size))
                masks = {}
                if entry.mask:
                    masks = {"mask": read_mask(self.storage, entry, size, self.factor, CENTRE)}
                item.drawn.append((path, target, masks))
            if self.latents and self.reads_source and entry.inputs:
                if not (path := self.latents.path(*place, source_name(*size))).exists():
                    canvas = read_canvas(self.storage, entry, size, CENTRE)
                    item.drawn.append((path, to_pixels(canvas), {}))
            transform = transform_name(*size)
            if self.vision and entry.inputs and not (path := self.vision.path(*place, transform)).exists():
                item.vision = path
                pictures = read_inputs(self.storage, entry, size, CENTRE)
                read = self.image_processor(images=pictures, return_tensors="pt")
                item.patches, item.grid = read["pixel_values"], read["image_grid_thw"]
        except (BadPicture, OSError) as error:
            return Item(bad=f"{index.name}/{entry.key}: {error}")
        return item


class Computer:
    """Runs autoencoder and vision tower, and writes entries.

    Args:
        parts: the model.
        work: whose items it gets.
        dtype: of the entries.
    """

    def __init__(self, parts: LadderParts, work: Work, dtype: torch.dtype) -> None:
        self.vae, self.model = parts.vae, parts.mllm.model
        self.latents, self.vision = work.latents, work.vision
        self.dtype = dtype
        black = parts.image_processor(images=[Image.new("RGB", (56, 56))], return_tensors="pt")
        self.black_patch = black["pixel_values"][:1]  # all patches of a black picture are the same
        self.black: set[tuple[int, ...]] = set()  # grids and sizes that have an entry
        self.reads_source = work.reads_source

    @torch.no_grad()
    def write(self, items: Sequence[Item]) -> None:
        """Compute and write what the items of a chunk lack."""
        drawn = [picture for item in items for picture in item.drawn]
        if drawn:
            pixels = torch.stack([picture for _, picture, _ in drawn])
            if self.reads_source:
                self.write_black_canvas(pixels[0])
            for (path, _, more), values in zip(drawn, self.encode(pixels), strict=True):
                self.latents.write(path, {"latents": values.to(self.dtype), **more})
        edits = [item for item in items if item.patches is not None]
        if edits:
            grids = torch.cat([item.grid for item in edits])
            features = iter(self.see(torch.cat([item.patches for item in edits]), grids))
            for item in edits:
                own = torch.cat([next(features) for _ in item.grid]).to(self.dtype)
                self.vision.write(item.vision, {"features": own, "grid": item.grid})
            self.write_black(grids)

    def write_black_canvas(self, like: Tensor) -> None:
        """The entry of black pictures of a size, that of ``like`` ``[3, height, width]``."""
        size = (like.shape[2], like.shape[1])
        path = black_canvas_path(self.latents, *size)
        if size not in self.black and not path.exists():
            self.latents.write(path, {"latents": self.encode(-torch.ones_like(like[None]))[0].to(self.dtype)})
        self.black.add(size)

    def write_black(self, grids: Tensor) -> None:
        """Entries of black pictures of these grids, which stand for blackened ones."""
        for grid in {tuple(row) for row in grids.tolist()} - self.black:
            path = black_path(self.vision, grid)
            if not path.exists():
                patches = self.black_patch.expand(grid[0] * grid[1] * grid[2], -1)
                features = self.see(patches, torch.tensor([grid]))[0]
                self.vision.write(path, {"features": features.to(self.dtype)})
            self.black.add(grid)

    def encode(self, pixels: Tensor) -> Tensor:
        """Scaled latents ``[batch, c, h, w]``, as the training loop computes them."""
        return encode_latents(self.vae, pixels.to(self.vae.device))

    def see(self, patches: Tensor, grid: Tensor) -> Sequence[Tensor]:
        """Vision tokens ``[tokens, mllm_dim]`` of every picture."""
        weight = self.model.visual.patch_embed.proj.weight
        patches = patches.to(weight.device, weight.dtype)
        return self.model.get_image_features(patches, grid.to(weight.device)).pooler_output
