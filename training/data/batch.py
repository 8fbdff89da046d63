"""What a training step is given."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...core.inputs import LadderInputs


@dataclass
class Branches:
    """What guidance reads of a micro-batch, in the order of :mod:`...core.guidance`.

    Attributes:
        inputs: the prompts of the batch, then those without text and without anything, each once.
        captions: ``[2, n]`` rows of all samples without pictures: without their text, and as they are.
        edits: ``[3, m]`` rows of all others: without anything, without their text, and as they are.
    """

    inputs: LadderInputs
    captions: Tensor
    edits: Tensor


@dataclass
class TrainBatch:
    """A micro-batch.

    Attributes:
        positions: of the samples in the stage; held-out samples have negative ones.
        keys: ``index name/sample key``.
        inputs: what the MLLM reads.
        pixels: targets ``[batch, 3, height, width]`` float32 in -1 … 1, or None where there are latents, or
            ``branches``.
        latents: scaled latents of the targets ``[batch, c, h, w]`` float32 from the cache, or None.
        mask: how much every latent counts in the loss, ``[batch, h, w]`` float32 in 0 … 1, or None where no
            sample has a mask; 1 all over for those that have none.
        edits: rows of the batch that edit a picture, where the model reads its latents; else empty.
        source_pixels: these pictures, or black ones, as they lie under the targets ``[edits, 3, height,
            width]`` float32 in -1 … 1, or None where there are latents.
        source_latents: their scaled latents ``[edits, c, h, w]`` float32 from the cache, or None.
        branches: what the guidance of a teacher reads, or None.
        noise: standard normal ``[batch, c, h, w]`` float32.
        u: draws in [0, 1) ``[batch]`` float32.
        weight: ``[batch]`` float32, 1, or 0 for a sample that could not be read: its text is empty and its
            pictures are zeros, and it must not count.
        bad: one line for each of those.
    """

    positions: list[int]
    keys: list[str]
    inputs: LadderInputs
    pixels: Tensor | None
    latents: Tensor | None
    mask: Tensor | None
    noise: Tensor
    u: Tensor
    weight: Tensor
    bad: list[str]
    edits: list[int] = field(default_factory=list)
    source_pixels: Tensor | None = None
    source_latents: Tensor | None = None
    branches: Branches | None = None

    def pin_memory(self) -> TrainBatch:
        """Page-lock what is copied to the device; the loader calls this."""
        names = ("pixels", "latents", "mask", "noise", "u", "weight", "source_pixels", "source_latents")
        for name in names:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.pin_memory())
        return self
