"""The diffusion transformer of the ladder: block i cross-attends to the states of MLLM layer i (its rung)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import CacheMixin, ModelMixin, SanaTransformer2DModel  # noqa: F401  ModelMixin is looked up here
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.sana_transformer import SanaTransformerBlock
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import nn

from .rung_attention import (
    DirectAttention,
    RungAttnProcessor,
    RungKV,
    Rungs,
    check_processors,
    rung_biases,
)


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

    As another it attends to the states of the text's own tokens beside the queries. Their values come from a
    projection of each block's own, ``attn2.to_v_text``; all else they share with the queries.

    ``enable_cache`` and ``disable_cache`` are those of diffusers' transformers.

    Args:
        args, kwargs: of :class:`SanaTransformer2DModel`.
        source_latents: whether it reads the source's latents.
        text_states: whether it attends to the text's tokens.
    """

    _repeated_blocks = ["SanaTransformerBlock"]  # what diffusers' compile_repeated_blocks compiles

    @with_arguments_of(SanaTransformer2DModel.__init__)
    def __init__(
        self, *args: Any, source_latents: bool = False, text_states: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        for block in self.transformer_blocks:
            block.attn2.set_processor(RungAttnProcessor())
            for attention in (block.attn1, block.attn2):
                attention.__class__ = DirectAttention
        self.read_source(source_latents)
        self.read_text(text_states)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: Any, **kwargs: Any) -> Any:
        """As in diffusers, from safetensors and GGUF alone: all else it would open as a pickle.

        Raises:
            ValueError: a file of another kind.
        """
        given = pretrained_model_link_or_path_or_dict
        if not isinstance(given, Mapping) and not str(given).endswith((".safetensors", ".gguf")):
            raise ValueError(
                f"{given} is neither safetensors nor GGUF, and nothing else is opened; convert it."
            )
        return super().from_single_file(given, **kwargs)

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

    def read_text(self, reads: bool) -> None:
        """Attend to the text's own tokens from now on, or no longer.

        The new weights are zeros: until they are trained, nothing that the model predicts changes by a bit.
        """
        self.register_to_config(text_states=reads)
        like = {"device": self.scale_shift_table.device, "dtype": self.scale_shift_table.dtype}
        for block in self.transformer_blocks:
            attn = block.attn2
            attn.to_v_text = None
            if reads:
                attn.to_v_text = nn.Linear(attn.cross_attention_dim, attn.inner_kv_dim, bias=False, **like)
                nn.init.zeros_(attn.to_v_text.weight)

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
    def prepare_rungs(
        self, encoder_hidden_states: torch.Tensor, mask: torch.Tensor | None = None, text_tokens: int = 0
    ) -> Rungs:
        """Compute what does not change between denoising steps.

        Args:
            encoder_hidden_states: caption states ``[layers, batch, tokens, caption_channels]``, one layer per
                block: queries, then tokens of the text.
            mask: ``[batch, tokens]``, 1 = attend to it; numbers between 0 and 1 count in part, and with
                another axis before the batch they hold for each layer. None attends to all.
            text_tokens: how many of the tokens, the last ones, are the text's. Where none of a row counts,
                the text adds nothing; where all count in part, it adds as much as the most of them.

        Raises:
            ValueError: the number of layers is not the number of blocks, tokens of a text for a model that
                does not attend to them, or a processor that cannot read rungs.
        """
        if len(encoder_hidden_states) != len(self.transformer_blocks):
            raise ValueError(
                f"The condition has {len(encoder_hidden_states)} layers but the diffusion transformer has "
                f"{len(self.transformer_blocks)} blocks; encode the prompt with the MLLM of the same model."
            )
        if text_tokens and not self.config.text_states:
            raise ValueError(
                "The condition holds tokens of its text, to which this model does not attend; encode the "
                "prompt with the same model, or read_text(True)."
            )
        check_processors(
            {
                f"transformer_blocks.{i}.attn2.processor": block.attn2.processor
                for i, block in enumerate(self.transformer_blocks)
            }
        )
        blocks, queries = len(self.transformer_blocks), encoder_hidden_states.shape[2] - text_tokens
        # each by itself, so that what is made of the queries does not depend on the text in its last bits
        parts = [encoder_hidden_states[:, :, :queries], encoder_hidden_states[:, :, queries:]]
        masks = [None, None] if mask is None else [mask[..., :queries], mask[..., queries:]]
        kv = self._keys_and_values(parts[0], rung_biases(masks[0], blocks))
        if text_tokens:
            text = self._keys_and_values(parts[1], rung_biases(masks[1], blocks), text=True)
            if mask is not None:
                most = masks[1].to(text[0].value.dtype).amax(-1).expand(blocks, -1)[..., None, None, None]
                text = [one._replace(value=one.value * by) for one, by in zip(text, most, strict=True)]
            kv = [one._replace(text=beside) for one, beside in zip(kv, text, strict=True)]
        return Rungs(kv)

    def _keys_and_values(
        self, states: torch.Tensor, biases: Sequence[torch.Tensor | None], text: bool = False
    ) -> list[RungKV]:
        """Of every block, of caption states ``[layers, batch, tokens, caption_channels]``."""
        states = self.caption_norm(self.caption_projection(states))
        kv = [
            RungAttnProcessor.keys_and_values(block.attn2, rung, text)
            for block, rung in zip(self.transformer_blocks, states, strict=True)
        ]
        return [
            one if bias is None else one._replace(bias=bias.to(one.key.dtype))
            for one, bias in zip(kv, biases, strict=True)
        ]

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
        text_tokens: int = 0,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity noise - latent.

        Args:
            hidden_states: noisy latents ``[batch, channels, height, width]``, scaled.
            encoder_hidden_states: caption states ``[layers, batch, tokens, caption_channels]``, or the rungs
                that :meth:`prepare_rungs` made of them.
            timestep: ``[batch]``, 0 (clean) to 1000 (noise).
            encoder_attention_mask: ``[batch, tokens]``, 1 = attend; only beside caption states.
            source_latents: scaled latents of what is edited, of the shape of ``hidden_states``; None, or
                zeros, where nothing is.
            text_tokens: how many of the caption states' tokens, the last, are the text's.

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
            else self.prepare_rungs(encoder_hidden_states, encoder_attention_mask, text_tokens)
        )
        x = self.patch_embed(hidden_states)
        if source_latents is not None:
            if self.source_embed is None:
                raise ValueError("The model reads no source_latents; leave them out, or read_source(True).")
            x = x + self.source_embed(source_latents).flatten(2).transpose(1, 2)
        modulation, embedded_timestep = self.time_embed(timestep, batch_size=batch, hidden_dtype=x.dtype)
        for block, kv in zip(self.transformer_blocks, rungs.kv, strict=True):
            beside = (None, kv, None, modulation, height // patch, width // patch)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                # FSDP2 hands on a view, but not when blocks are computed again; of one sample that is not
                # contiguous a view has other strides, and by these torch chooses what it multiplies and saves
                x = self._gradient_checkpointing_func(block, x.contiguous(), *beside)
            else:
                x = block(x, *beside)
        x = self.proj_out(self.norm_out(x, embedded_timestep, self.scale_shift_table))
        x = rearrange(
            x, "b (h w) (p q c) -> b c (h p) (w q)", h=height // patch, w=width // patch, p=patch, q=patch
        )
        return Transformer2DModelOutput(sample=x) if return_dict else (x,)
