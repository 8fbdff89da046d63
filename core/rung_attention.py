"""Cross-attention onto a rung: onto its queries, and in some models beside it onto the text's own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange


class RungKV(NamedTuple):
    """What one block attends to; no denoising step changes it.

    Attributes:
        key, value: ``[batch, heads, tokens, head_dim]``.
        bias: added to the logits, ``[batch, 1, 1, tokens]``; None adds nothing.
        text: the same of the text's tokens, whose attention is added to that of the queries; None without.
    """

    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor | None = None
    text: RungKV | None = None

    def louder(self, gain: float) -> RungKV:
        """With values ``gain`` times as large."""
        text = None if self.text is None else self.text.louder(gain)
        return self._replace(value=self.value * gain, text=text)

    def last(self, rows: int) -> RungKV:
        """The last rows of the batch."""
        bias = None if self.bias is None else self.bias[-rows:]
        text = None if self.text is None else self.text.last(rows)
        return RungKV(self.key[-rows:], self.value[-rows:], bias, text)

    def rows(self, chosen: torch.Tensor) -> RungKV:
        """Rows of the batch by their numbers, any number of times each."""
        bias = None if self.bias is None else self.bias[chosen]
        text = None if self.text is None else self.text.rows(chosen)
        return RungKV(self.key[chosen], self.value[chosen], bias, text)


class Rungs(NamedTuple):
    """What every block attends to."""

    kv: list[RungKV]


class DirectAttention(Attention):
    """diffusers' attention, which calls its processor without reading that one's signature every time."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | RungKV | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: object,
    ) -> torch.Tensor:
        """What the processor makes of ``[batch, tokens, width]``."""
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask, **options)


class RungAttnProcessor:
    """Cross-attention onto keys and values that were computed before the first denoising step.

    The text's tokens have a softmax of their own, whose result is added (as image prompts are in IP-Adapter,
    arXiv 2308.06721, section 3.2): in a common one even tokens of value 0 would take weight from the queries.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: RungKV,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query = attn.to_q(hidden_states)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        query = rearrange(query, "b n (h d) -> b h n d", h=attn.heads)
        attended, text = attend(query, encoder_hidden_states), encoder_hidden_states.text
        if text is not None:
            attended = attended + attend(query, text)
        attended = rearrange(attended, "b h n d -> b n (h d)")
        return attn.to_out[1](attn.to_out[0](attended)) / attn.rescale_output_factor

    @staticmethod
    def keys_and_values(attn: Attention, states: torch.Tensor, text: bool = False) -> RungKV:
        """Project normalised caption states ``[batch, tokens, width]`` of queries, or of a text, once for all
        steps."""
        key, value = attn.to_k(states), (attn.to_v_text if text else attn.to_v)(states)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        return RungKV(*(rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (key, value)))


def attend(query: torch.Tensor, kv: RungKV) -> torch.Tensor:
    """Attention of ``query`` ``[batch, heads, places, head_dim]``, of its shape."""
    return F.scaled_dot_product_attention(query, kv.key, kv.value, attn_mask=kv.bias)


def rung_biases(weights: torch.Tensor | None, blocks: int) -> list[torch.Tensor | None]:
    """What is added to the logits of every block so that a token counts ``weight`` times.

    Args:
        weights: ``[batch, tokens]`` for all blocks or ``[blocks, batch, tokens]``, at least 0. Only their
            proportions in a row matter; where all of a row are 0, all count the same. None: all do.
        blocks: how many there are.

    Returns:
        For each block ``[batch, 1, 1, tokens]`` float32, or None where nothing is to add.
    """
    if weights is None or bool((weights == 1).all()):
        return [None] * blocks
    weights = weights.float()
    most = weights.amax(-1, keepdim=True)
    bias = torch.where(most > 0, weights / most, 1.0).log()[..., None, None, :]
    return [bias] * blocks if weights.ndim == 2 else list(bias)


def check_processors(processors: Mapping[str, Any]) -> None:
    """Raise ValueError if a processor, by name, cannot do what its attention is for."""
    for name, processor in processors.items():
        reads_rungs = isinstance(processor, RungAttnProcessor)
        if name.endswith(".attn2.processor") and not reads_rungs:
            raise ValueError(
                f"{type(processor).__name__} at {name} cannot read rungs, whose keys and values are computed "
                "before the first step; leave RungAttnProcessor in every attn2, and set those of attn1 with "
                "a dict like transformer.attn_processors."
            )
        if name.endswith(".attn1.processor") and reads_rungs:
            raise ValueError(f"RungAttnProcessor at {name} has no rung to read; it belongs into attn2 alone.")
