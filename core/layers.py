"""The MLLM's language layers, run for the states between them; and the columns that are taken of these."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from .prefixes import prefix_of
from .versions import CACHE_ARGUMENT, causal_mask, layer_output

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.cache_utils import DynamicCache


def layer_inputs(
    mllm: Qwen2_5_VLForConditionalGeneration,
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    cache: DynamicCache,
    to_the_end: bool = False,
    checkpointing: bool = False,
) -> Iterator[torch.Tensor]:
    """Run all language layers but the last, which only ``final`` rungs need.

    Args:
        mllm: whose layers run.
        hidden: embeddings ``[batch, tokens, dim]``.
        mask: ``[batch, cached + tokens]``, 1 = token; None if all are.
        positions: M-RoPE positions ``[3, batch, tokens]``.
        cache: keys and values of a prefix, or empty: it is filled then.
        to_the_end: run the last one, too.
        checkpointing: compute layers twice where they take a gradient, to save memory.

    Yields:
        The input of every layer, ``[batch, tokens, dim]``, and the output of the last if it runs.
    """
    language_model = mllm.model.language_model
    common = {
        "attention_mask": causal_mask(language_model.config, hidden, mask, cache),
        "position_embeddings": language_model.rotary_emb(hidden, positions),
        CACHE_ARGUMENT: prefix_of(cache) if cache.get_seq_length() else cache,
        "use_cache": True,
    }
    yield hidden
    for layer in language_model.layers if to_the_end else language_model.layers[:-1]:
        if checkpointing and hidden.requires_grad:
            # the frozen layers draw no random numbers; where hooks bring their weights, only a layer that
            # runs to its end gives them back
            whole = {} if getattr(mllm, "_hf_hook", None) is None else {"early_stop": False}
            output = checkpoint(
                layer, hidden, use_reentrant=False, preserve_rng_state=False, **whole, **common
            )
        else:
            output = layer(hidden, **common)
        hidden = layer_output(output)
        yield hidden


def exhaust(steps: Iterable[object]) -> None:
    """Run all steps for what they leave behind."""
    deque(steps, maxlen=0)


def text_columns(spans: torch.Tensor) -> torch.Tensor:
    """The columns of texts, from their beginnings on ``[batch, longest]``, at least one; behind the shorter
    ones the last column over again.

    Args:
        spans: ``[batch, 2]``, the columns at which they begin and end.
    """
    begin, end = spans[:, :1], spans[:, 1:]
    longest = max(int((end - begin).max()), 1)
    return (begin + torch.arange(longest, device=spans.device)).minimum(end)


def take(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Some columns of every row, ``[batch, columns, dim]`` of ``[batch, tokens, dim]``."""
    return states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))
