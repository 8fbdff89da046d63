"""What prompts begin with, as keys and values: computed once, read by everything that follows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class PrefixLayer(DynamicLayer):
    """Keys and values of a prefix in one layer, as what follows it reads them.

    Nothing is added to them, so a layer may run again for its gradient.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[batch, heads, tokens, head_dim]`` of the prefix, and those given behind."""
        return torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)


def prefix_of(cache: DynamicCache) -> Cache:
    """A cache that shares the keys and values of ``cache`` and keeps them as they are."""
    layers = []
    for filled in cache.layers:
        layer = PrefixLayer()
        vars(layer).update(vars(filled))  # whatever the library's layer holds, in any version
        layers.append(layer)
    return Cache(layers=layers)


def picture_ends(ids: torch.Tensor, image_token: int) -> list[int]:
    """The column behind the last picture of every row of ``ids`` ``[batch, length]``, 0 without pictures."""
    columns = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return ((ids == image_token) * columns).amax(1).tolist()


def take_out(cache: DynamicCache, row: int, tokens: int) -> torch.Tensor:
    """The last ``tokens`` of a row, ``[layers, 2 (keys, values), heads, tokens, head_dim]``."""
    filled = [layer for layer in cache.layers if layer.get_seq_length()]
    return torch.stack([torch.stack((x.keys[row], x.values[row]))[..., -tokens:, :] for x in filled])


def put_in(cache: DynamicCache, prefixes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Fill an empty cache with a prefix of :func:`take_out` for every row, padded on the left.

    Returns:
        Mask ``[rows, tokens]``, 1 = token.
    """
    lengths = [prefix.shape[-2] for prefix in prefixes]
    rows = torch.stack([F.pad(p, (0, 0, max(lengths) - p.shape[-2], 0)) for p in prefixes], dim=2)
    for number, (keys, values) in enumerate(rows):
        cache.update(keys, values, number)
    columns = torch.arange(max(lengths), 0, -1, device=rows.device)
    return (columns <= torch.tensor(lengths, device=rows.device)[:, None]).long()


def cut_left(tensor: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The columns ``start`` to ``end`` of every row of ``[…, rows, columns]``, padded with 0 on the left."""
    longest = max(end - start for start, end in spans)
    pieces = [
        F.pad(row[..., start:end], (longest - (end - start), 0))
        for row, (start, end) in zip(tensor.unbind(-2), spans, strict=True)
    ]
    return torch.stack(pieces, dim=-2)
