"""The diffusion transformer of the ladder: block i cross-attends to the states of MLLM layer i (its rung)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import CacheMixin, ModelMixin, SanaTransformer2DModel  # noqa: F401  ModelMixin is looked up here
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.sana_transformer import SanaTransformerBlock
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import nn


class RungKV(NamedTuple):
    """Keys and values of one block's cross-attention, each ``[batch, heads, queries, head_dim]``."""

    key: torch.Tensor
    value: torch.Tensor


class Rungs(NamedTuple):
    """What no denoising step changes: every block's keys and values, and the attention bias if any."""

    kv: list[RungKV]
    bias: torch.Tensor | None


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
    """Cross-attention onto keys and values that were computed before the first denoising step."""

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
        attended = F.scaled_dot_product_attention(
            query, encoder_hidden_states.key, encoder_hidden_states.value, attn_mask=attention_mask
        )
        attended = rearrange(attended, "b h n d -> b n (h d)")
        return attn.to_out[1](attn.to_out[0](attended)) / attn.rescale_output_factor

    @staticmethod
    def keys_and_values(attn: Attention, states: torch.Tensor) -> RungKV:
        """Project normalised caption states ``[batch, queries, width]`` once for all steps."""
        key, value = attn.to_k(states), attn.to_v(states)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        return RungKV(*(rearrange(x, "b n (h d) -> b h n d", h=attn.heads) for x in (key, value)))


def with_arguments_of(theirs: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have an ``__init__`` say that it takes what ``theirs`` takes and its own keywords besides.

    diffusers reads the keys of a configuration off the signature.
    """

    def decorate(ours: Callable[..., None]) -> Callable[..., None]:
        own = (p for p in inspect.signature(ours).parameters.values() if p.kind is p.KEYWORD_ONLY)
        known = inspect.signature(theirs)
        ours.__signature__ = known.replace(parameters=[*known.parameters.values(), *own])
        return ours

    return decorate


class LadderTransformer2DModel(SanaTransformer2DModel, CacheMixin):
    """SANA whose block i is conditioned on rung i. Parameters and their names are SANA's own.

    As an option it also reads the latents of what is edited, as further input channels of its patch
    embedding. Their weights are a layer beside it, ``source_embed``: both sum up to the one convolution over
    all channels, a model without them stays as it was, and ``in_channels`` counts those of a latent.

    ``enable_cache`` and ``disable_cache`` are those of diffusers' transformers.

    Args:
        args, kwargs: of :class:`SanaTransformer2DModel`.
        source_latents: whether it reads the source's latents.
    """

    _repeated_blocks = ["SanaTransformerBlock"]  # what diffusers' compile_repeated_blocks compiles

    @with_arguments_of(SanaTransformer2DModel.__init__)
    def __init__(self, *args: Any, source_latents: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.transformer_blocks:
            block.attn2.set_processor(RungAttnProcessor())
            for attention in (block.attn1, block.attn2):
                attention.__class__ = DirectAttention
        self.read_source(source_latents)

    def read_source(self, reads: bool) -> None:
        """Read the source's latents from now on, or no longer.

        The new weights are zeros: until they are trained, nothing that the model predicts changes by a bit.
        """
        self.register_to_config(source_latents=reads)
        self.source_embed = None
        if reads:
            proj = self.patch_embed.proj
            like = {"device": proj.weight.device, "dtype": proj.weight.dtype}
            sizes = (self.config.in_channels, proj.out_channels, proj.kernel_size, proj.stride)
            self.source_embed = nn.Conv2d(*sizes, bias=False, **like)
            nn.init.zeros_(self.source_embed.weight)

    def enable_cache(self, config: object) -> None:
        """Leave blocks out in steps that change little, as ``config`` of ``diffusers.hooks`` says."""
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

        # diffusers knows the blocks of its own cached models; this one returns its hidden states alone
        TransformerBlockRegistry.register(
            SanaTransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0)
        )
        super().enable_cache(config)

    def nothing_seen(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """What it reads besides noisy latents, by argument of :meth:`forward`, where there is none: zeros.

        Args:
            latents: ``[batch, channels, height, width]``.
        """
        return {"source_latents": torch.zeros_like(latents)} if self.config.source_latents else {}

    @apply_forward_hook
    def prepare_rungs(self, encoder_hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> Rungs:
        """Compute what does not change between denoising steps.

        Args:
            encoder_hidden_states: caption states ``[layers, batch, queries, caption_channels]``, one layer
                per block.
            mask: ``[batch, queries]``, 1 = query to attend to; None attends to all.

        Raises:
            ValueError: the number of layers is not the number of blocks, or a processor cannot read rungs.
        """
        if len(encoder_hidden_states) != len(self.transformer_blocks):
            raise ValueError(
                f"The condition has {len(encoder_hidden_states)} layers but the diffusion transformer has "
                f"{len(self.transformer_blocks)} blocks; encode the prompt with the MLLM of the same model."
            )
        check_processors(
            {
                f"transformer_blocks.{i}.attn2.processor": block.attn2.processor
                for i, block in enumerate(self.transformer_blocks)
            }
        )
        states = self.caption_norm(self.caption_projection(encoder_hidden_states))
        blocks = zip(self.transformer_blocks, states, strict=True)
        kv = [RungAttnProcessor.keys_and_values(block.attn2, rung) for block, rung in blocks]
        bias = None
        if mask is not None and not mask.bool().all():
            bias = torch.zeros(mask.shape, dtype=states.dtype, device=states.device)
            bias = bias.masked_fill(~mask.bool(), float("-inf"))[:, None, None, :]
        return Rungs(kv, bias)

    def set_attn_processor(self, processor: Any) -> None:
        """Set a processor for each attention, as in diffusers; those of ``attn2`` have to stay.

        Args:
            processor: a dict with the keys of :attr:`attn_processors`.

        Raises:
            ValueError: one that cannot read rungs would stand in ``attn2``.
        """
        given = processor if isinstance(processor, dict) else dict.fromkeys(self.attn_processors, processor)
        check_processors(given)
        super().set_attn_processor(processor)

    def fuse_qkv_projections(self) -> None:
        """Refused: diffusers has no fused projections for SANA, and would pass over all in silence.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "SANA's attention has no fused projections in diffusers, so nothing can be fused; keys and "
            "values of the rungs are computed once for all steps anyway. Leave the call out."
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | Rungs,
        timestep: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        source_latents: torch.Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity noise - latent.

        Args:
            hidden_states: noisy latents ``[batch, channels, height, width]``, scaled.
            encoder_hidden_states: caption states ``[layers, batch, queries, caption_channels]``, or the
                rungs that :meth:`prepare_rungs` made of them.
            timestep: ``[batch]``, 0 (clean) to 1000 (noise).
            encoder_attention_mask: ``[batch, queries]``, 1 = attend; only beside caption states.
            source_latents: scaled latents of what is edited, of the shape of ``hidden_states``; None, or
                zeros, where nothing is.

        Returns:
            Velocity of the shape of ``hidden_states``.

        Raises:
            ValueError: ``source_latents`` for a model that reads none.
        """
        batch, _, height, width = hidden_states.shape
        patch = self.config.patch_size
        rungs = (
            encoder_hidden_states
            if isinstance(encoder_hidden_states, Rungs)
            else self.prepare_rungs(encoder_hidden_states, encoder_attention_mask)
        )
        x = self.patch_embed(hidden_states)
        if source_latents is not None:
            if self.source_embed is None:
                raise ValueError("The model reads no source_latents; leave them out, or read_source(True).")
            x = x + self.source_embed(source_latents).flatten(2).transpose(1, 2)
        modulation, embedded_timestep = self.time_embed(timestep, batch_size=batch, hidden_dtype=x.dtype)
        for block, kv in zip(self.transformer_blocks, rungs.kv, strict=True):
            inputs = (x, None, kv, rungs.bias, modulation, height // patch, width // patch)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, *inputs)
            else:
                x = block(*inputs)
        x = self.proj_out(self.norm_out(x, embedded_timestep, self.scale_shift_table))
        x = rearrange(
            x, "b (h w) (p q c) -> b c (h p) (w q)", h=height // patch, w=width // patch, p=patch, q=patch
        )
        return Transformer2DModelOutput(sample=x) if return_dict else (x,)


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
