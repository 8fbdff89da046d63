"""What query slots say, read off their states in training only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..domain import naming
from . import mllm

WEIGHTS = {  # of the heads in the loss: objects and paints matter most and are said most rarely
    "background": 1.0,
    "style": 1.0,
    "number": 0.5,
    "line": 0.5,
    "what": 4.0,
    "paint": 2.0,
    "x": 1.0,
    "y": 1.0,
    "side": 0.5,
}
NOTHING_WEIGHT = 0.3  # of the class "nothing", the most frequent one


class SlotHeads(nn.Module):
    """One linear layer for every head of `naming.HEADS`."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.ModuleDict({head: nn.Linear(mllm.WIDTH, size) for head, size in naming.SIZES.items()})
        self.slots = {
            head: [i for i, heads in enumerate(naming.SLOTS) if head in heads] for head in naming.HEADS
        }

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """Logits ``[..., slots of the head, values]`` of normalised states ``[..., QUERIES, WIDTH]``."""
        states = states.float()
        return {head: read(states[..., self.slots[head], :]) for head, read in self.read.items()}

    def names(self, slots: Tensor) -> dict[str, Tensor]:
        """The columns of ``naming.slot_names`` ``[batch, QUERIES, heads]`` that every head reads."""
        return {head: slots[:, self.slots[head], naming.COLUMNS[head]] for head in self.slots}

    def loss(self, rungs: Tensor, slots: Tensor) -> Tensor:
        """Weighted cross-entropy of states ``[RUNGS, batch, QUERIES, WIDTH]``, the mean over heads."""
        logits, names = self(rungs), self.names(slots)
        total = rungs.new_zeros((), dtype=torch.float32)
        for head, weight in WEIGHTS.items():
            classes = torch.ones(naming.SIZES[head])
            classes[naming.NOTHING] = NOTHING_WEIGHT
            wanted = names[head].expand(len(rungs), -1, -1)
            total = total + weight * F.cross_entropy(logits[head].flatten(0, 2), wanted.flatten(), classes)
        return total / sum(WEIGHTS.values())
