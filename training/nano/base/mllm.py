"""The nano model's MLLM: Qwen2.5-VL's classes with 8 layers of width 192 and a vision tower of width 128."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ....core.connector import LadderConnector
from ....core.prompts import build_prompt, pad_left
from ....core.rope import rope_positions
from ..domain import naming
from ..domain.scene import SIZE
from . import tokenizer as nano_tokenizer

WIDTH, LAYERS, RUNGS = 192, 8, 6
QUERIES = len(naming.SLOTS)
PATCH, MERGE = 8, 2
CELLS = (SIZE // (PATCH * MERGE)) ** 2  # merged vision tokens of one picture


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The nano tokenizer in a folder, trained now if it is not there yet."""
    if not (Path(folder) / "tokenizer.json").exists():
        nano_tokenizer.train(Path(folder))
    return Qwen2Tokenizer.from_pretrained(folder)


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Patches of 8 pixels; every picture is resized to about 64 x 64 pixels."""
    pixels = SIZE**2
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": pixels, "longest_edge": pixels},
    )


def build(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained language model for a tokenizer."""

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(name)

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 8, 8]},
            "tie_word_embeddings": True,
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": SIZE,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "out_hidden_size": WIDTH,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model


def build_connector() -> LadderConnector:
    return LadderConnector(num_queries=QUERIES, mllm_dim=WIDTH, caption_dim=WIDTH)


class Prompter:
    """Prompts and pictures of training as tensors; sentences of the domain repeat, so their ids are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.processor = build_image_processor()
        self.ids = lru_cache(maxsize=200_000)(self._ids)

    def _ids(self, text: str, images: int) -> tuple[int, ...]:
        prompt = build_prompt(
            self.tokenizer,
            text,
            [CELLS] * images,
            num_queries=QUERIES,
            first_query_id=len(self.tokenizer),
            system_prompt=nano_tokenizer.SYSTEM_PROMPT,
            max_text_tokens=nano_tokenizer.MAX_TEXT_TOKENS,
        )
        return tuple(prompt[:-2])  # nothing after the queries is ever read

    def prompts(self, texts: list[str], images: int) -> tuple[Tensor, Tensor]:
        """Ids and mask [batch, length] of prompts that all have the same number of images."""
        return pad_left([self.ids(text, images) for text in texts], self.tokenizer.pad_token_id)

    def patches(self, pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Patches and grid of pictures [64, 64, 3] uint8, as the image processor gives them."""
        batch = self.processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="pt")
        return batch["pixel_values"], batch["image_grid_thw"]


def vision_tokens(mllm: Qwen2_5_VLForConditionalGeneration, patches: Tensor, grid: Tensor) -> Tensor:
    """Merged vision tokens [pictures, CELLS, WIDTH] of pictures of 64 x 64 pixels."""
    features = mllm.model.get_image_features(patches, grid).pooler_output
    return torch.stack(tuple(features))


def run(
    mllm: Qwen2_5_VLForConditionalGeneration,
    queries: Tensor,
    ids: Tensor,
    mask: Tensor,
    vision: Tensor | None = None,
    grid: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Full pass with gradient everywhere: hidden states h_0 ... h_L, each [batch, length, WIDTH], h_L
    normalised.

    Args:
        queries: [QUERIES, WIDTH], put where ids reach beyond the vocabulary.
        vision: merged vision tokens [batch, CELLS, WIDTH] of one picture per prompt.
        grid: [batch, 3] patches along time, height and width.
    """
    model = mllm.model
    image = ids == mllm.config.image_token_id
    positions = rope_positions(ids, mask, mllm.config.image_token_id, grid, MERGE)
    table = torch.cat([model.language_model.embed_tokens.weight, queries])
    hidden = torch.nn.functional.embedding(ids, table)
    if vision is not None:
        hidden = hidden.masked_scatter(image[..., None], vision.to(hidden.dtype))
    return model.language_model(
        inputs_embeds=hidden,
        attention_mask=mask,
        position_ids=positions,
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states


def attention(
    mllm: Qwen2_5_VLForConditionalGeneration,
    inputs: dict[int, Tensor],
    ids: Tensor,
    mask: Tensor,
    grid: Tensor | None,
) -> Tensor:
    """How the queries attend in the first head of some layers, which no fast implementation tells.

    Args:
        inputs: by index of the layer, ``[batch, length, WIDTH]``.
        ids, mask, grid: of the prompts, as for :func:`run`.

    Returns:
        Log-probabilities ``[layers, batch, QUERIES, length]``, float32.
    """
    text, length = mllm.model.language_model, ids.shape[1]
    positions = rope_positions(ids, mask, mllm.config.image_token_id, grid, MERGE)
    turns = text.rotary_emb(torch.zeros(()), positions)
    hidden = torch.ones(QUERIES, length, dtype=torch.bool).triu(length - QUERIES + 1) | ~mask.bool()[:, None]
    layers = []
    for number, states in inputs.items():
        layer = text.layers[number]
        normed, size = layer.input_layernorm(states), layer.self_attn.head_dim
        query, key = (
            project(normed)[:, None, :, :size].float()
            for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *turns)
        scores = (query[:, 0, -QUERIES:] @ key[:, 0].mT).float() * layer.self_attn.scaling
        layers.append(scores.masked_fill(hidden, -torch.inf).log_softmax(-1))
    return torch.stack(layers)
