"""Where weights go and as what: tensor by tensor as they are read, so that none is held twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from .unchanged import FileWatch
from .weights import TensorInfo, read_tensors, stored_dtype

LAYERS = (nn.Linear, nn.Conv2d)  # nearly all bytes; SANA has many 1x1 convolutions


class Dtypes(NamedTuple):
    """Types of a part: of all its weights, and of the weights of :data:`LAYERS`; None keeps each its own."""

    weights: torch.dtype | None
    layers: torch.dtype | None


DtypeRule: TypeAlias = Callable[[str, nn.Module, torch.dtype], Dtypes]


@dataclass(frozen=True)
class Placement:
    """What becomes of tensors that are read.

    Attributes:
        device: where they go.
        dtype: their type, None keeps each its own; or a rule that is told a part (a field of LadderParts),
            its module without weights, and the type of most of its values in the file.
        own: copies are made even where a view onto a file would do, so that the file may change or go; this
            watch over it is asked before each.
    """

    device: torch.device
    dtype: torch.dtype | DtypeRule | None = None
    own: FileWatch | None = None

    def plan(
        self, part: str, module: nn.Module, infos: dict[str, TensorInfo]
    ) -> dict[str, torch.dtype | None]:
        """The type of every tensor of ``infos``, by its name in ``module``."""
        if not callable(self.dtype):
            return dict.fromkeys(infos, self.dtype)
        weights, layers = self.dtype(part, module, stored_dtype(infos.values()))
        large = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, LAYERS)}
        return {name: layers if name in large else weights for name in infos}

    def put(self, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        """A tensor where it goes."""
        if self.own is not None:
            self.own.check()
        return tensor.to(self.device, dtype, copy=self.own is not None)

    def read(self, part: str, module: nn.Module, infos: dict[str, TensorInfo]) -> dict[str, torch.Tensor]:
        """The tensors of a part under their names in ``module``."""
        plan = self.plan(part, module, infos)
        return read_tensors(infos, lambda name, tensor: self.put(tensor, plan[name]))
