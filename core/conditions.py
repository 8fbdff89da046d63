"""A ladder condition: what every block of the diffusion transformer is told, and its form in ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

if TYPE_CHECKING:
    from .guidance import Guidance


KINDS = 2  # numbers beside a token's states: how much it counts as a query, and as a token of the text


@dataclass
class LadderCondition:
    """One condition per transformer block, and what it was made for.

    Attributes:
        states: caption states ``[layers, batch, tokens, dim]``, of the queries, then of the text's tokens
            where the model attends to them.
        mask: ``[batch, tokens]`` int64, 1 = attend; texts are padded behind.
        branches: of the guidance; the batch holds all prompts of the first, then of the second, and so on.
        canvases: what is edited, the first picture of every prompt; None without pictures.
        text_tokens: how many of the tokens, the last ones, are the text's.
    """

    states: torch.Tensor
    mask: torch.Tensor
    branches: int = 1
    canvases: Sequence[Image.Image] | None = None
    text_tokens: int = 0

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


def check_condition(
    condition: LadderCondition, guidance: Guidance, layers: int, width: int, reads_text: bool = False
) -> None:
    """Raise ValueError unless a condition was made for this guidance, and for a model of these rungs.

    Args:
        condition: what a pipeline's ``encode_prompt`` returned.
        guidance: with which it shall be used.
        layers: rungs of the model.
        width: of its caption states.
        reads_text: whether it attends to the text's tokens.
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
    if bool(condition.text_tokens) != reads_text:
        holds, attends = ("no tokens", "attends") if reads_text else ("tokens", "does not attend")
        raise ValueError(
            f"The condition holds {holds} of its text, to which this model {attends}; encode the prompt with "
            "the same model."
        )
    if shape[1] % branches or tuple(condition.mask.shape) != shape[1:3]:
        raise ValueError(
            f"The condition has {shape[1]} rows for {branches} branches and a mask of shape "
            f"{list(condition.mask.shape)}; give it as encode_prompt returned it."
        )


def pack_condition(condition: LadderCondition, multiple: int = 1) -> torch.Tensor:
    """States of queries and text as one tensor that may be cut, joined and averaged along its tokens.

    Behind the states of each token stand the :data:`KINDS` numbers 1, 0 of a query, 0, 1 of a token of the
    text, and 0, 0 of padding, whose states are zeros too. An average with a shorter text then leaves a token
    that counts in part, its states as much smaller: they are premultiplied, like colours by alpha.

    Args:
        condition: of a model that attends to the text's tokens.
        multiple: the tokens are padded to a multiple of this number. ComfyUI repeats what it evaluates
            together to the same length, which is long if lengths have no common factor.

    Returns:
        ``[layers, batch, tokens, dim + 2]``.
    """
    states, queries = condition.states, condition.states.shape[2] - condition.text_tokens
    counts = condition.mask[..., None] * torch.ones(KINDS, device=states.device)
    counts[:, queries:, 0] = counts[:, :queries, 1] = 0
    counts = counts.to(states.dtype)
    packed = torch.cat([states * counts.sum(-1, keepdim=True), counts.expand(len(states), -1, -1, -1)], -1)
    return F.pad(packed, (0, 0, 0, -packed.shape[2] % multiple))


def columns_of_kinds(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens of a packed condition are queries, and which of the text, in any row; bool ``[tokens]``.

    Where none is a query, as after ConditioningZeroOut, all count as queries that say nothing.
    """
    queries, text = (packed[..., -KINDS:] > 0).any(0).any(0).unbind(-1)
    return queries if queries.any() else torch.ones_like(queries), text


def unpack_condition(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What :meth:`.transformer.LadderTransformer2DModel.prepare_rungs` takes, of what was packed.

    Args:
        packed: ``[layers, batch, tokens, dim + 2]``, also after joins, averages and repetitions.

    Returns:
        States ``[layers, batch, queries + text, dim]``, how much each counts ``[layers, batch, queries +
        text]``, and how many are the text's.
    """
    states, counts = packed[..., :-KINDS], packed[..., -KINDS:].clamp(min=0)
    total = counts.sum(-1, keepdim=True)
    states = torch.where(total > 0, states / total, states)
    queries, text = counts.unbind(-1)
    is_query, is_text = columns_of_kinds(packed)
    states = torch.cat([states[:, :, is_query], states[:, :, is_text]], dim=2)
    return states, torch.cat([queries[:, :, is_query], text[:, :, is_text]], dim=2), int(is_text.sum())


def fold_condition(states: torch.Tensor) -> torch.Tensor:
    """``[layers, batch, tokens, dim]`` to ``[batch, tokens, layers * dim]``, a CONDITIONING of ComfyUI."""
    return rearrange(states, "l b q d -> b q (l d)")


def unfold_condition(folded: torch.Tensor, layers: int) -> torch.Tensor:
    """``[batch, tokens, layers * dim]`` back to ``[layers, batch, tokens, dim]``."""
    if folded.ndim != 3 or folded.shape[-1] % layers:
        raise ValueError(
            f"The conditioning has shape {list(folded.shape)}, which does not unfold into {layers} layers; "
            "make it with Multi-Layer MLLM Encode of the same model."
        )
    return rearrange(folded, "b q (l d) -> l b q d", l=layers)
