"""How many threads of a CPU a model computes with."""

from __future__ import annotations

import os

import torch
from torch import nn

SMALL = 50_000_000  # parameters; the nano model has 10 million, the released one 5,700
CHOICES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which somebody has said how many


def spare_threads(*models: nn.Module) -> None:
    """Compute with one thread if all models together are small and nobody has said otherwise.

    The pieces of a small model are so short that its threads mostly wait for each other, and on a busy
    machine for the slowest of them; ``python benchmarks/threads.py`` measures it. It is a setting of the
    whole process, so this is for programs of their own and not for libraries or ComfyUI.
    """
    count = sum(parameter.numel() for model in models for parameter in model.parameters())
    if count < SMALL and not any(os.environ.get(name) for name in CHOICES):
        torch.set_num_threads(1)
