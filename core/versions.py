"""What transformers 4.56 to 5.23 and diffusers before 0.40 have otherwise than the newest: names, shapes.

The rest of the code is written for the newest; each name here says what an older version needs.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import Qwen2TokenizerFast  # noqa: F401  before 5.0 Qwen2Tokenizer is the slow one
from transformers.masking_utils import create_causal_mask

from .rope import rope_positions

FOUND = Version(transformers.__version__)
IS_4 = FOUND < Version("5")
# 5.5 does no more, but its patch releases are not told apart here: our positions are right in all of them
MISPLACES_PICTURES = Version("5.3") <= FOUND < Version("5.6")
CACHE_ARGUMENT = "cache" if FOUND >= Version("5.24") else "past_key_values"  # of decoder layers, masks
DTYPE_ARGUMENT = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"

try:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
except ImportError:  # before 5.4 the plain name is the PIL one
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    class Qwen2VLImageProcessorPil(Qwen2VLImageProcessor):
        """The older class, with the pixel budget in ``size`` alone; the older one ignores it there."""

        __module__ = "transformers"  # where saved pipelines look for it, whatever version saved them

        def __init__(self, size: dict[str, int] | None = None, **options: Any) -> None:
            budget = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
            super().__init__(**{budget[edge]: area for edge, area in (size or {}).items()} | options)

        @property
        def min_pixels(self) -> int:
            """Least area of a resized picture."""
            return self.size["shortest_edge"]

        @min_pixels.setter
        def min_pixels(self, value: int) -> None:
            self.size = {**getattr(self, "size", {}), "shortest_edge": value}

        @property
        def max_pixels(self) -> int:
            """Largest area of a resized picture."""
            return self.size["longest_edge"]

        @max_pixels.setter
        def max_pixels(self, value: int) -> None:
            self.size = {**getattr(self, "size", {}), "longest_edge": value}

        def to_dict(self) -> dict[str, Any]:
            """What is saved, under the class name that every version reads."""
            return {**super().to_dict(), "image_processor_type": "Qwen2VLImageProcessor"}


try:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
except ImportError:  # before 5.0 it is Qwen2's
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm as Qwen2_5_VLRMSNorm  # noqa: F401


def name_image_processor() -> None:
    """Let diffusers find the image processor under its newest name, before it reads a saved pipeline."""
    if not hasattr(transformers, "Qwen2VLImageProcessorPil"):
        transformers.Qwen2VLImageProcessorPil = Qwen2VLImageProcessorPil


def know_transformer(name: str) -> None:
    """Let older diffusers set the strength of a LoRA beside a transformer that it has no class of."""
    from diffusers.loaders import peft

    peft._SET_ADAPTER_SCALE_FN_MAPPING.setdefault(name, lambda _model, weights: weights)


def tokenizer_arguments() -> dict[str, Any]:
    """What reading a tokenizer needs; before 5.0 the list of special tokens that newer ones save is an error.

    They are special without it, by the tokenizer's own file.
    """
    return {"extra_special_tokens": {}} if IS_4 else {}


def causal_mask(config: Any, hidden: torch.Tensor, mask: torch.Tensor | None, cache: Any) -> Any:
    """The attention mask of ``hidden`` ``[batch, tokens, dim]`` behind what ``cache`` holds."""
    given: dict[str, Any] = {CACHE_ARGUMENT: cache}
    if FOUND < Version("5.4"):  # places in the sequence had to be said
        start = cache.get_seq_length()
        given["cache_position"] = torch.arange(start, start + hidden.shape[1], device=hidden.device)
    return create_causal_mask(config, hidden, mask, **given)


def layer_output(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Hidden states that a decoder layer returned; before 5.4 they are the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def image_features(model: nn.Module, patches: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Vision tokens of every image, each ``[tokens, dim]``; before 5.0 they are returned bare."""
    output = model.get_image_features(patches, grid)
    return getattr(output, "pooler_output", output)


def image_arguments(ids: torch.Tensor, image_token: int) -> dict[str, torch.Tensor]:
    """How ``generate`` tells image tokens from text; before 5.3 it knows them by their id."""
    return {} if FOUND < Version("5.3") else {"mm_token_type_ids": (ids == image_token).int()}


def mend_positions(mllm: nn.Module) -> None:
    """Give ``generate`` our positions of pictures; 5.3 and 5.4 compute them wrongly for still ones."""
    config = mllm.config

    def get_rope_index(
        input_ids: torch.Tensor,
        *_: Any,
        image_grid_thw: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        merge_size = config.vision_config.spatial_merge_size
        positions = rope_positions(input_ids, mask, config.image_token_id, image_grid_thw, merge_size)
        return positions, positions.amax(dim=(0, 2))[:, None] + 1 - input_ids.shape[1]

    if MISPLACES_PICTURES:
        mllm.model.get_rope_index = get_rope_index


def fill_rotary(model: nn.Module, module: nn.Module) -> None:
    """Compute the rotary frequencies of a ``module`` of ``model``, which are uninitialised memory."""
    if IS_4:  # its _init_weights knows of no buffers
        made_of = module.config if hasattr(module, "config") else 2 * len(module.inv_freq)
        module.inv_freq = module.original_inv_freq = type(module)(made_of).inv_freq
    else:
        model._init_weights(module)


def mllm_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of Qwen2.5-VL for this version; before 5.0 there are no ``rope_parameters``."""
    text = config.get("text_config", {})
    if not IS_4 or "rope_parameters" not in text:
        return config
    rope = dict(text["rope_parameters"])
    theta = rope.pop("rope_theta")
    return {**config, "text_config": {**text, "rope_theta": theta, "rope_scaling": rope}}
