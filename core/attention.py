"""Where the blocks of the diffusion transformer look: how the picture attends to the queries of a rung."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange

from .rung_attention import RungKV
from .transformer import LadderTransformer2DModel


def attention_weights(
    attn: Attention, hidden_states: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """How much every place of the picture attends to every query, mean over the heads.

    Args:
        attn: the cross-attention of a block.
        hidden_states: what the block hands it, ``[batch, places, width]``.
        keys: ``[batch, heads, queries, head_dim]``.
        bias: added to the logits, ``[batch, 1, 1, queries]``.

    Returns:
        float32 ``[batch, places, queries]``; sums to 1 over the queries.
    """
    query = attn.to_q(hidden_states)
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    query = rearrange(query, "b n (h d) -> b h n d", h=attn.heads).float()
    logits = query @ keys.float().transpose(-1, -2) * keys.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias.float()
    return logits.softmax(-1).mean(1)


class AttentionMaps:
    """Attention added up over the evaluations of a model.

    Attributes:
        sums: for every rung ``[queries, height, width]`` float32 on the CPU.
        count: pictures that were added.
    """

    def __init__(self, rungs: int) -> None:
        self.sums: list[torch.Tensor | None] = [None] * rungs
        self.count = 0
        self.shape = (0, 0)

    def add(self, rung: int, weights: torch.Tensor) -> None:
        """Add ``[batch, places, queries]`` of one evaluation of one block.

        Raises:
            ValueError: not as many places or queries as before.
        """
        height, width = self.shape
        total = rearrange(weights.sum(0), "(h w) q -> q h w", h=height, w=width).cpu()
        known = self.sums[rung]
        if known is not None and known.shape != total.shape:
            raise ValueError(
                "The conditioning joins parts of different sizes, whose attention cannot be laid over each "
                "other; probe one part."
            )
        self.sums[rung] = total if known is None else known + total
        self.count += len(weights) if rung == 0 else 0

    def mean(self) -> torch.Tensor:
        """Mean maps ``[rungs, queries, height, width]``; at every place they sum to 1 over the queries.

        Raises:
            ValueError: the model was not evaluated.
        """
        if not self.count:
            raise ValueError("The model was not evaluated, so that there is no attention to show.")
        return torch.stack(self.sums) / self.count


@contextmanager
def watch_attention(transformer: LadderTransformer2DModel) -> Iterator[AttentionMaps]:
    """Collect the attention of every evaluation inside the ``with`` block; nothing is changed by it."""
    maps = AttentionMaps(len(transformer.transformer_blocks))

    def before_block(block: torch.nn.Module, inputs: tuple) -> None:
        maps.shape = inputs[5], inputs[6]

    def before_attention(rung: int, attn: Attention, inputs: tuple, options: dict) -> None:
        hidden_states = inputs[0] if inputs else options["hidden_states"]
        kv: RungKV = options["encoder_hidden_states"]
        weights = attention_weights(attn, hidden_states, kv.key, kv.bias)
        maps.add(rung, weights)

    handles = []
    try:
        for i, block in enumerate(transformer.transformer_blocks):
            handles.append(block.register_forward_pre_hook(before_block))

            def hook(attn: Attention, inputs: tuple, options: dict, rung: int = i) -> None:
                before_attention(rung, attn, inputs, options)

            handles.append(block.attn2.register_forward_pre_hook(hook, with_kwargs=True))
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def focus(maps: torch.Tensor) -> torch.Tensor:
    """How far each place departs from what a rung attends to on average: where it does something of its own.

    Args:
        maps: ``[rungs, queries, height, width]``, sums to 1 over the queries.

    Returns:
        ``[rungs, height, width]``, 0 (as everywhere) to 1 (other queries altogether).
    """
    return (maps - maps.mean((-2, -1), keepdim=True)).abs().sum(1) / 2


def sharpest_queries(maps: torch.Tensor, count: int) -> torch.Tensor:
    """The queries of each rung whose attention varies most over the picture, most first.

    Args:
        maps: ``[rungs, queries, height, width]``.

    Returns:
        int64 ``[rungs, count]``.
    """
    return maps.flatten(2).std(-1).topk(min(count, maps.shape[1]), dim=1).indices
