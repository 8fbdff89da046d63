"""What all processes saw in one optimizer step, in one tensor, so that one reduction does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import engine

BINS = 10  # of the noise level, for the loss per bin


@dataclass
class StepSums:
    """Sums over all processes.

    Attributes:
        loss: of good samples.
        weight: number of good samples.
        broken: micro-batches whose loss was not finite.
        interrupted: processes that were asked to stop.
        wait: seconds that processes waited for data.
        bin_losses: ``loss`` by bin of the noise level, from clean to noise.
        bin_weights: ``weight`` by bin.
    """

    loss: float
    weight: float
    broken: float
    interrupted: float
    wait: float
    bin_losses: list[float]
    bin_weights: list[float]

    @property
    def bins(self) -> list[float | None]:
        """Mean loss of every bin of the noise level, None where no sample fell."""
        return [
            loss / weight if weight else None
            for loss, weight in zip(self.bin_losses, self.bin_weights, strict=True)
        ]


class OwnSums:
    """The same of this process, while its micro-batches run."""

    def __init__(self) -> None:
        self.values = torch.zeros(5 + 2 * BINS, dtype=torch.float64)
        self.losses: list[
            tuple[Tensor, Tensor, Tensor | None]
        ] = []  # read at the end: a device is waited for once

    def add(self, losses: Tensor, weight: Tensor, levels: Tensor | None, wait: float) -> None:
        """Take in a micro-batch.

        Args:
            losses: ``[batch]``, 0 for bad samples.
            weight: ``[batch]`` on the CPU, 0 for bad samples.
            levels: noise levels in (0, 1] ``[batch]`` on the CPU; None where a loss is one of several.
            wait: seconds.
        """
        bins = None if levels is None else (levels * BINS).ceil().long() - 1
        self.losses.append((losses.detach(), weight.double(), bins))
        self.values[4] += wait

    def reduced(self, device: torch.device, interrupted: bool) -> StepSums:
        """Sums over all processes. Collective."""
        values = self.values
        for losses, weight, bins in self.losses:
            losses = losses.double().cpu()
            values[0] += losses.sum()
            values[1] += weight.sum()
            values[2] += not losses.isfinite().all()
            if bins is not None:
                values[5 : 5 + BINS].index_add_(0, bins, losses)
                values[5 + BINS :].index_add_(0, bins, weight)
        values[3] = interrupted
        numbers = engine.total(values, device).tolist()
        return StepSums(*numbers[:5], numbers[5 : 5 + BINS], numbers[5 + BINS :])
