"""The tiny model with the options of its transformer, their new weights drawn."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from tbac_uniimage.core.checkpoints import LadderParts
from tbac_uniimage.core.pipeline import LadderPipeline


def reading(parts: LadderParts, trained: bool = True) -> LadderParts:
    """The same parts whose transformer also reads the source's latents; untrained, its weights are zeros."""
    transformer = copy.deepcopy(parts.transformer)
    transformer.read_source(True)
    if trained:
        weight = transformer.source_embed.weight
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) / 4
    return replace(parts, transformer=transformer)


def attending(parts: LadderParts, trained: bool = True) -> LadderParts:
    """The same parts whose blocks attend to the text's tokens, too; untrained, their values are zeros."""
    transformer = copy.deepcopy(parts.transformer)
    transformer.read_text(True)
    if trained:
        generator = torch.Generator().manual_seed(3)
        for block in transformer.transformer_blocks:
            weight = block.attn2.to_v_text.weight
            weight.data = torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5
    return replace(parts, transformer=transformer)


def pipeline_of(parts: LadderParts) -> LadderPipeline:
    pipeline = LadderPipeline(**vars(parts))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
