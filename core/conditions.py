"""A ladder condition: what every block of the diffusion transformer is told, and its form in ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from PIL import Image

if TYPE_CHECKING:
    from .guidance import Guidance


@dataclass
class LadderCondition:
    """One condition per transformer block, and what it was made for.

    Attributes:
        states: caption states ``[layers, batch, queries, dim]``.
        mask: ``[batch, queries]`` int64, 1 = attend.
        branches: of the guidance; the batch holds all prompts of the first, then of the second, and so on.
        canvases: what is edited, the first picture of every prompt; None without pictures.
    """

    states: torch.Tensor
    mask: torch.Tensor
    branches: int = 1
    canvases: Sequence[Image.Image] | None = None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of the first picture in pixels; None without pictures."""
        return None if self.canvases is None else self.canvases[0].size

    def to(self, *place: Any, **options: Any) -> LadderCondition:
        """The same with its states elsewhere or in another type; arguments of ``torch.Tensor.to``."""
        states = self.states.to(*place, **options)
        return replace(self, states=states, mask=self.mask.to(states.device))

    def single(self, number: int) -> LadderCondition:
        """One prompt of the batch, with all its branches."""
        rows = slice(number, None, self.states.shape[1] // self.branches)
        canvases = self.canvases and self.canvases[number : number + 1]
        return replace(self, states=self.states[:, rows], mask=self.mask[rows], canvases=canvases)

    def last(self, branches: int) -> LadderCondition:
        """The last branches alone; that of the prompt is the last of all."""
        rows = self.states.shape[1] // self.branches * branches
        return replace(self, states=self.states[:, -rows:], mask=self.mask[-rows:], branches=branches)


def check_condition(condition: LadderCondition, guidance: Guidance, layers: int, width: int) -> None:
    """Raise ValueError unless a condition was made for this guidance, and for a model of these rungs.

    Args:
        condition: what a pipeline's ``encode_prompt`` returned.
        guidance: with which it shall be used.
        layers: rungs of the model.
        width: of its caption states.
    """
    if not isinstance(condition, LadderCondition):
        raise ValueError(f"The condition is a {type(condition).__name__}; give what encode_prompt returned.")
    branches = guidance.num_branches(condition.canvases is not None)
    if condition.branches != branches:
        raise ValueError(
            f"The condition was made for guidance of {condition.branches} branches, these scales need "
            f"{branches}; encode it with the same guidance scales."
        )
    shape = tuple(condition.states.shape)
    if len(shape) != 4 or shape[0] != layers or shape[-1] != width:
        raise ValueError(
            f"The condition has the shape {list(shape)}, this model needs {layers} rungs of {width} values; "
            "encode the prompt with the same model."
        )
    if shape[1] % branches or tuple(condition.mask.shape) != shape[1:3]:
        raise ValueError(
            f"The condition has {shape[1]} rows for {branches} branches and a mask of shape "
            f"{list(condition.mask.shape)}; give it as encode_prompt returned it."
        )


def fold_condition(states: torch.Tensor) -> torch.Tensor:
    """``[layers, batch, queries, dim]`` to ``[batch, queries, layers * dim]``, a CONDITIONING of ComfyUI."""
    return rearrange(states, "l b q d -> b q (l d)")


def unfold_condition(folded: torch.Tensor, layers: int) -> torch.Tensor:
    """``[batch, queries, layers * dim]`` back to ``[layers, batch, queries, dim]``."""
    if folded.ndim != 3 or folded.shape[-1] % layers:
        raise ValueError(
            f"The conditioning has shape {list(folded.shape)}, which does not unfold into {layers} layers; "
            "make it with Multi-Layer MLLM Encode of the same model."
        )
    return rearrange(folded, "b q (l d) -> l b q d", l=layers)
