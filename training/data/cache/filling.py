"""What it takes to fill a cache: read the samples that have no entry, run the frozen parts, write."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ....core.canvas import encode_latents, to_pixels
from ....core.checkpoints import LadderParts
from ...recipe.recipe import Recipe
from ..index import Entry
from ..pictures import BadPicture, decode, fit
from ..seen import CENTRE, read_canvas, read_inputs, read_mask
from ..sets import open_sets, target_sizes
from ..storage import Storage
from .entries import (
    Cache,
    black_canvas_name,
    black_name,
    latent_cache,
    source_name,
    transform_name,
    vision_cache,
)


@dataclass
class Item:
    """One sample: what is computed, and what of it is written; None where it is there already.

    Of a chunk of which anything is missing all is computed, also what is there: the values of a batch depend
    on what else is in it, by rounding, and so an interruption changes none.

    Attributes:
        drawn: of entries of latents the name, the picture ``[3, height, width]`` float32 in -1 … 1, and what
            the entry holds besides: of a target its mask ``[h, w]`` float32, if it has one.
        vision: name of the entry of the input pictures' vision tokens.
        patches: of all input pictures ``[patches, values]`` float32.
        grid: ``[images, 3]`` int64.
        bad: one line if a picture cannot be read.
    """

    drawn: list[tuple[bytes | None, Tensor, dict[str, Tensor]]] = field(default_factory=list)
    vision: bytes | None = None
    patches: Tensor | None = None
    grid: Tensor | None = None
    bad: str = ""

    @property
    def needed(self) -> bool:
        """Whether something has to be written."""
        return self.vision is not None or any(name is not None for name, _, _ in self.drawn)


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
        self.reads_target = not recipe.distils
        self.factor = parts.vae.spatial_compression_ratio
        self.sizes = target_sizes(recipe, self.factor)
        self.sets = open_sets(recipe, self.sizes)
        self.batch = batch
        cells = [
            (number, bucket, len(rows))
            for number, data in enumerate(self.sets)
            for bucket, rows in enumerate(data.rows)
        ]
        self.cells = [cell for cell in cells if cell[-1]]
        self.ends = list(accumulate(-(-size // batch) for _, _, size in self.cells))  # in chunks
        self.storage = Storage()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: int) -> list[Item]:
        which, bucket, first, end = self.chunk(number)
        data, size = self.sets[which], self.sizes[bucket]
        entries = [data.index[int(data.rows[bucket][i])] for i in range(first, end)]
        places = [data.index.cache_name(entry) for entry in entries]
        pairs = list(zip(entries, places, strict=True))
        whole = transform_name(*size)
        targets = [(*place, transform_name(*size, e.mask)) for e, place in pairs]
        latents = lacking(self.latents if self.reads_target else None, targets)
        edits = [(*place, whole) if e.inputs else None for e, place in pairs]
        vision = lacking(self.vision, edits)
        canvases = [(*place, source_name(*size)) if e.inputs else None for e, place in pairs]
        sources = lacking(self.latents if self.reads_source else None, canvases)
        draws, sees = any((*latents, *sources)), any(vision)
        return [
            self.item(f"{data.name}/{entry.key}", entry, size, names, draws, sees)
            for entry, *names in zip(entries, latents, sources, vision, strict=True)
        ]

    def chunk(self, number: int) -> tuple[int, int, int, int]:
        """Set, bucket, first sample of it and the one behind the last."""
        cell = bisect_right(self.ends, number)
        which, bucket, size = self.cells[cell]
        first = (number - (self.ends[cell - 1] if cell else 0)) * self.batch
        return which, bucket, first, min(first + self.batch, size)

    def count(self, numbers: Iterable[int]) -> int:
        """Samples of these chunks."""
        return sum(end - first for _, _, first, end in map(self.chunk, numbers))

    def item(
        self,
        name: str,
        entry: Entry,
        size: tuple[int, int],
        names: Sequence[bytes | None],
        draws: bool,
        sees: bool,
    ) -> Item:
        """Read a sample for what is computed of its chunk.

        Args:
            name: of the sample.
            entry: of the index.
            size: (width, height) of the target.
            names: of the entries of its latents, of those of what it edits, and of its vision tokens; None of
                what is there.
            draws: whether latents are computed.
            sees: whether vision tokens are.
        """
        latents, source, vision = names
        item = Item(vision=vision)
        try:
            if draws and self.reads_target:
                target = to_pixels(fit(decode(self.storage.read(entry.target)), *size))
                masks = {}
                if entry.mask:
                    masks = {"mask": read_mask(self.storage, entry, size, self.factor, CENTRE)}
                item.drawn.append((latents, target, masks))
            if draws and self.reads_source and entry.inputs:
                item.drawn.append((source, to_pixels(read_canvas(self.storage, entry, size, CENTRE)), {}))
            if sees and entry.inputs:
                pictures = read_inputs(self.storage, entry, size, CENTRE)
                read = self.image_processor(images=pictures, return_tensors="pt")
                item.patches, item.grid = read["pixel_values"], read["image_grid_thw"]
        except (BadPicture, OSError) as error:
            return Item(bad=f"{name}: {error}")
        return item


def lacking(cache: Cache | None, places: Sequence[tuple[str, str, str] | None]) -> list[bytes | None]:
    """Names of the entries that a cache lacks; None where it has one or none is wanted."""
    names = [cache.name(*place) if cache and place else None for place in places]
    return [name if name is not None and name not in cache else None for name in names]


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

    def close(self) -> None:
        """End writing."""
        for cache in (self.latents, self.vision):
            if cache:
                cache.close()

    @torch.no_grad()
    def write(self, items: Sequence[Item]) -> None:
        """Compute a chunk, and write what it lacks."""
        drawn = [picture for item in items for picture in item.drawn]
        if drawn:
            pixels = torch.stack([picture for _, picture, _ in drawn])
            if self.reads_source:
                self.write_black_canvas(pixels[0])
            for (name, _, more), values in zip(drawn, self.encode(pixels), strict=True):
                if name is not None:
                    self.latents.write(name, {"latents": values.to(self.dtype), **more})
        edits = [item for item in items if item.patches is not None]
        if edits:
            grids = torch.cat([item.grid for item in edits])
            features = iter(self.see(torch.cat([item.patches for item in edits]), grids))
            for item in edits:
                own = torch.cat([next(features) for _ in item.grid]).to(self.dtype)
                if item.vision is not None:
                    self.vision.write(item.vision, {"features": own, "grid": item.grid})
            self.write_black(grids)

    def write_black_canvas(self, like: Tensor) -> None:
        """The entry of black pictures of a size, that of ``like`` ``[3, height, width]``."""
        size = (like.shape[2], like.shape[1])
        name = black_canvas_name(self.latents, *size)
        if size not in self.black and name not in self.latents:
            self.latents.write(name, {"latents": self.encode(-torch.ones_like(like[None]))[0].to(self.dtype)})
        self.black.add(size)

    def write_black(self, grids: Tensor) -> None:
        """Entries of black pictures of these grids, which stand for blackened ones."""
        for grid in {tuple(row) for row in grids.tolist()} - self.black:
            name = black_name(self.vision, grid)
            if name not in self.vision:
                patches = self.black_patch.expand(grid[0] * grid[1] * grid[2], -1)
                features = self.see(patches, torch.tensor([grid]))[0]
                self.vision.write(name, {"features": features.to(self.dtype)})
            self.black.add(grid)

    def encode(self, pixels: Tensor) -> Tensor:
        """Scaled latents ``[batch, c, h, w]``, as the training loop computes them."""
        return encode_latents(self.vae, pixels.to(self.vae.device))

    def see(self, patches: Tensor, grid: Tensor) -> Sequence[Tensor]:
        """Vision tokens ``[tokens, mllm_dim]`` of every picture."""
        weight = self.model.visual.patch_embed.proj.weight
        patches = patches.to(weight.device, weight.dtype)
        return self.model.get_image_features(patches, grid.to(weight.device)).pooler_output
