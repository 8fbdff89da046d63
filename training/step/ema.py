"""Averaged weights of the trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .optimizer import local


class AveragedWeights:
    """Exponential moving average of parameters, float32, one update per applied optimizer step.

    The decay of update n (from 0) is ``min(decay, (1 + n) / (10 + n))``, so that the first weights do not
    linger. Averages of sharded parameters (FSDP2) are sharded in the same way, and nothing is communicated.

    Args:
        named_parameters: the trained parameters, float32.
        decay: weight of the past, in (0, 1).

    Raises:
        ValueError: decay out of range, or a parameter that is not float32.
    """

    def __init__(self, named_parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"train.ema is {decay}; it must be between 0 and 1, such as 0.9999, or null.")
        for name, parameter in named_parameters.items():
            if parameter.dtype != torch.float32:
                raise ValueError(f"Averaged weights need float32 parameters; {name} is {parameter.dtype}.")
        self.decay = decay
        self.parameters = dict(named_parameters)
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.updates = torch.zeros((), dtype=torch.int64)
        self.in_place = False

    def local_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Averages and parameters, as far as this process holds them."""
        averages = [local(average) for average in self.averages.values()]
        return averages, [local(parameter) for parameter in self.parameters.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters."""
        if self.in_place:
            raise RuntimeError("The averaged weights are in use; they cannot be updated now.")
        n = int(self.updates)
        decay = min(self.decay, (1 + n) / (10 + n))
        averages, parameters = self.local_pairs()
        torch._foreach_lerp_(averages, parameters, 1 - decay)
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """Live tensors for a checkpoint: ``ema/<parameter name>``, and ``ema_updates``, an int64 scalar.

        Writing into them in place restores the averages exactly.
        """
        if self.in_place:
            raise RuntimeError("The averaged weights are in use; they cannot be saved now.")
        return {f"ema/{name}": average for name, average in self.averages.items()} | {
            "ema_updates": self.updates
        }

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in place of the parameters; afterwards both are exactly as before.

        The two trade places tensor by tensor, which needs memory for one of them only.
        """
        self.swap()
        self.in_place = True
        try:
            yield
        finally:
            self.in_place = False
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and parameters."""
        for average, parameter in zip(*self.local_pairs(), strict=True):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)
