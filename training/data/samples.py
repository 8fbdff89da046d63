"""Micro-batches as a function of their number: which samples, their pictures, and everything random.

A sample's draws follow from (seed, stage, position). Nothing here knows of processes, workers or what was
read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...core.canvas import to_pixels
from ...core.guidance import black_like
from ...core.inputs import LadderInputs, LadderProcessor
from ..recipe.recipe import Recipe
from ..recipe.settings import DropSettings
from .batch import Branches, TrainBatch
from .cache.entries import Cache, black_canvas_name, black_name, source_name, transform_name
from .index import Entry, Index
from .order import Order, Place, Source, generator, uniform
from .pictures import BadPicture, decode, decode_mask, fit
from .seen import CENTRE, read_canvas, read_inputs, read_mask
from .sets import TrainSet, open_sets, target_sizes
from .storage import Storage

BELOW_ONE = 1 - 2**-24  # largest float32 under 1


@dataclass
class Sample:
    """One sample before it is put into a batch: ``images``, or ``features`` and ``grid`` of the cache.

    ``target`` and ``source`` are pixels or latents.
    """

    key: str
    text: str = ""
    target: Tensor | None = None
    mask: Tensor | None = None
    source: Tensor | None = None
    images: list[Image.Image] = field(default_factory=list)
    features: Tensor | None = None
    grid: Tensor | None = None
    bad: str = ""


class MicroBatches(Dataset):
    """All micro-batches of a stage by their global number; number k has positions k·m … k·m + m - 1.

    Can be sent to other processes; files are opened when first read.

    Args:
        recipe: the resolved recipe.
        processor: prompts and images to tensors.
        latent_channels: channels of the autoencoder's latents.
        factor: pixels per latent along each side.
        latents: cache of the targets' latents, and of those of what is edited.
        vision: cache of the input pictures' vision tokens.
        source_latents: whether the model reads the latents of what is edited.

    Attributes:
        order: which sample is where.
        sizes: (width, height) of every bucket.

    Raises:
        ValueError: a bad index, a resolution that the autoencoder cannot take, or no samples.
    """

    def __init__(
        self,
        recipe: Recipe,
        processor: LadderProcessor,
        latent_channels: int,
        factor: int,
        latents: Cache | None = None,
        vision: Cache | None = None,
        source_latents: bool = False,
    ) -> None:
        self.processor = processor
        self.latent_channels, self.factor = latent_channels, factor
        self.latents, self.vision = latents, vision
        self.source_latents = source_latents
        self.guided = recipe.distils
        self.seed, self.stage = recipe.seed, recipe.stage
        self.batch, self.micro_batch = recipe.train.batch, recipe.train.micro_batch
        self.mask_floor = recipe.train.mask_floor
        self.drop, self.random_crop = recipe.data.drop, recipe.data.crop == "random"
        self.sizes = target_sizes(recipe, factor)
        self.sets = open_sets(recipe, self.sizes)
        sources = [
            Source(data.name, tuple(len(rows) for rows in data.rows), settings.weight)
            for data, settings in zip(self.sets, recipe.data.sets, strict=True)
        ]
        self.order = Order(sources, self.batch, self.seed, self.stage, recipe.validation.held_out)
        self.storage = Storage()

    def __getitem__(self, number: int) -> TrainBatch:
        """The micro-batch of a global number."""
        first = number * self.micro_batch
        positions = list(range(first, first + self.micro_batch))
        draws = [uniform(self.seed, self.stage, position, "timestep") for position in positions]
        samples = []
        for position in positions:
            drop, wording = (uniform(self.seed, self.stage, position, what) for what in ("drop", "wording"))
            samples.append(self.sample(self.order.place(position), drop, self.crop(position), wording))
        size = self.sizes[self.order.bucket(first // self.batch)]
        return self.collate(positions, samples, size, draws)

    def held_out(self) -> list[TrainBatch]:
        """Micro-batches of the samples that training never sees.

        They are the same at every call: nothing is dropped, crops are central, and the noise levels are
        spread evenly. Their noise is that of negative positions.
        """
        places = self.order.held_out()
        batches = []
        for bucket, size in enumerate(self.sizes):
            mine = [number for number, place in enumerate(places) if place.bucket == bucket]
            for first in range(0, len(mine), self.micro_batch):
                numbers = mine[first : first + self.micro_batch]
                samples = [self.sample(places[number], None, CENTRE) for number in numbers]
                draws = [(number + 0.5) / len(places) for number in numbers]
                batches.append(self.collate([-1 - number for number in numbers], samples, size, draws))
        return batches

    def key(self, position: int) -> str:
        """``index name/sample key`` of the sample at a position."""
        data, row = self.locate(self.order.place(position))
        return f"{data.name}/{data.index[row].key}"

    def locate(self, place: Place) -> tuple[TrainSet, int]:
        """Data set and row of a place."""
        data = self.sets[place.source]
        return data, int(data.rows[place.bucket][place.index])

    def crop(self, position: int) -> tuple[float, float]:
        """Where the sample at a position is cut, along x and y."""
        if not self.random_crop:
            return CENTRE
        x, y = (uniform(self.seed, self.stage, position, f"crop {axis}") for axis in "xy")
        return x, y

    def sample(
        self, place: Place, drop: float | None, crop: tuple[float, float], wording: float = 0.0
    ) -> Sample:
        """Read one sample; one whose pictures cannot be read comes back with ``bad`` and nothing else.

        Args:
            place: which one.
            drop: draw in [0, 1) that decides which conditions it loses; None keeps all.
            crop: where it is cut.
            wording: draw in [0, 1) that chooses one of several texts.
        """
        data, row = self.locate(place)
        entry = data.index[row]
        name = f"{data.name}/{entry.key}"
        size = self.sizes[place.bucket]
        no_text, black = dropped(drop, bool(entry.inputs), self.drop)
        sample = Sample(name, "" if no_text else entry.texts[int(wording * len(entry.texts))])
        try:
            if not self.guided:  # a distillation asks its teacher
                sample.target, sample.mask = self.read_target(data.index, entry, name, size, crop)
            if entry.inputs:
                self.read_pictures(sample, data.index, entry, size, crop, black)
        except (BadPicture, OSError) as error:
            return Sample(name, bad=f"{name}: {error}")
        return sample

    def read_target(
        self, index: Index, entry: Entry, name: str, size: tuple[int, int], crop: tuple[float, float]
    ) -> tuple[Tensor, Tensor | None]:
        """The target and its mask.

        Returns:
            tuple: pixels ``[3, height, width]`` in -1 … 1, or latents ``[c, h, w]`` of the cache; mask
            ``[h, w]`` in ``train.mask_floor`` … 1, or None; float32.

        Raises:
            BadPicture: nothing of the target counts.
        """
        if self.latents is None:
            target = to_pixels(fit(decode(self.storage.read(entry.target)), *size, crop))
            mask = read_mask(self.storage, entry, size, self.factor, crop) if entry.mask else None
        else:
            place = self.latents.name(*index.cache_name(entry), transform_name(*size, entry.mask))
            stored = self.read_entry(self.latents, place, entry, name)
            target, mask = stored["latents"].float(), stored.get("mask")
        if mask is not None:
            mask = self.mask_floor + (1 - self.mask_floor) * mask
            if not mask.any():
                raise BadPicture("mask is black where the picture is cut", f"to {size[0]}x{size[1]}")
        return target, mask

    def read_pictures(
        self,
        sample: Sample,
        index: Index,
        entry: Entry,
        size: tuple[int, int],
        crop: tuple[float, float],
        black: bool,
    ) -> None:
        """Give an edit all that is made of its input pictures; where they are dropped, of black ones."""
        if self.vision is None:
            images = read_inputs(self.storage, entry, size, crop)
            sample.images = [black_like(image) for image in images] if black else images
        else:
            place = self.vision.name(*index.cache_name(entry), transform_name(*size))
            stored = self.read_entry(self.vision, place, entry, sample.key)
            sample.grid = stored["grid"]
            sample.features = self.black_features(sample.grid, sample.key) if black else stored["features"]
        if self.source_latents and self.latents is None:
            canvas = read_canvas(self.storage, entry, size, crop)
            sample.source = to_pixels(black_like(canvas) if black else canvas)
        elif self.source_latents:
            place = black_canvas_name(self.latents, *size)
            if not black:
                place = self.latents.name(*index.cache_name(entry), source_name(*size))
            sample.source = self.read_entry(self.latents, place, entry, sample.key)["latents"].float()

    def read_entry(self, cache: Cache, place: bytes, entry: Entry, name: str) -> dict[str, Tensor]:
        """A sample's entry in a cache. A bad sample has none: its pictures say what is wrong with them."""
        if place not in cache:
            for ref in (entry.target, *entry.inputs):
                decode(self.storage.read(ref))
            if entry.mask:
                decode_mask(self.storage.read(entry.mask))
        return cache.read(place, name)

    def black_features(self, grid: Tensor, name: str) -> Tensor:
        """Vision tokens of black pictures of these grids."""
        places = [black_name(self.vision, tuple(row)) for row in grid.tolist()]
        return torch.cat(
            [self.vision.read(place, f"black pictures as in {name}")["features"] for place in places]
        )

    def collate(
        self, positions: list[int], samples: Sequence[Sample], size: tuple[int, int], draws: Sequence[float]
    ) -> TrainBatch:
        """Put samples of one size into a batch."""
        shape = (self.latent_channels, size[1] // self.factor, size[0] // self.factor)
        noise = [
            torch.randn(shape, generator=generator(self.seed, self.stage, position, "noise"))
            for position in positions
        ]
        targets = masks = None
        if not self.guided:
            blank = torch.zeros(shape if self.latents else (3, size[1], size[0]))
            targets = torch.stack([blank if s.target is None else s.target for s in samples])
        if any(sample.mask is not None for sample in samples):
            whole = torch.ones(shape[1:])
            masks = torch.stack([whole if sample.mask is None else sample.mask for sample in samples])
        edits = [row for row, sample in enumerate(samples) if sample.source is not None]
        sources = torch.stack([samples[row].source for row in edits]) if edits else None
        return TrainBatch(
            positions=positions,
            keys=[sample.key for sample in samples],
            inputs=self.ladder_inputs(samples),
            pixels=None if self.latents else targets,
            latents=targets if self.latents else None,
            mask=masks,
            noise=torch.stack(noise),
            u=torch.tensor(draws, dtype=torch.float32).clamp(max=BELOW_ONE),
            weight=torch.tensor([0.0 if sample.bad else 1.0 for sample in samples]),
            bad=[sample.bad for sample in samples if sample.bad],
            edits=edits,
            source_pixels=None if self.latents else sources,
            source_latents=sources if self.latents else None,
            branches=self.branches(samples) if self.guided else None,
        )

    def branches(self, samples: Sequence[Sample]) -> Branches:
        """What the guidance of these samples reads besides them."""
        further: dict[tuple, Sample] = {}
        captions, edits = [], []

        def row(key: tuple, sample: Sample) -> int:
            further.setdefault(key, sample)
            return len(samples) + list(further).index(key)

        for own, sample in enumerate(samples):
            without_text = replace(sample, text="")
            if not sample.images and sample.grid is None:
                captions.append((row((), without_text), own))
                continue
            if sample.grid is None:
                black = {"images": [black_like(image) for image in sample.images]}
                sizes = tuple(image.size for image in sample.images)
            else:
                black = {"features": self.black_features(sample.grid, sample.key)}
                sizes = tuple(map(tuple, sample.grid.tolist()))
            nothing = row(sizes, replace(without_text, **black))
            edits.append((nothing, row((own,), without_text), own))
        return Branches(
            self.ladder_inputs([*samples, *further.values()]),
            torch.tensor(captions, dtype=torch.long).reshape(-1, 2).T,
            torch.tensor(edits, dtype=torch.long).reshape(-1, 3).T,
        )

    def ladder_inputs(self, samples: Sequence[Sample]) -> LadderInputs:
        """What the MLLM reads of a batch."""
        texts = [sample.text for sample in samples]
        if self.vision is None:
            return self.processor(texts, [sample.images for sample in samples])
        counts = [0 if sample.grid is None else len(sample.grid) for sample in samples]
        cached = [sample for sample in samples if sample.grid is not None]
        features = torch.cat([sample.features for sample in cached]) if cached else None
        grid = torch.cat([sample.grid for sample in cached]) if cached else None
        ids, mask = self.processor.tokenize(texts, counts, grid)
        spans = self.processor.text_spans(texts, counts, ids)
        return LadderInputs(ids, mask, image_grid_thw=grid, features=features, text_spans=spans)


def dropped(draw: float | None, edit: bool, shares: DropSettings) -> tuple[bool, bool]:
    """Which conditions a draw in [0, 1) takes away: the text, the pictures."""
    if draw is None:
        return False, False
    if not edit:
        return draw < shares.caption, False
    text_only, image_only = shares.text - shares.both, shares.image - shares.both
    if draw < text_only:
        return True, False
    if draw < text_only + image_only:
        return False, True
    both = draw < text_only + image_only + shares.both
    return both, both
