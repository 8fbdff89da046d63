"""The MLLM, its queries and the connector under ComfyUI's memory management."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from PIL import Image

from ..core.conditions import LadderEncoder, fold_condition
from ..core.requests import check_size
from .offload import cast_parameters, manage_strays, use_comfy_ops

if TYPE_CHECKING:
    from ..core.checkpoints import LadderParts


@dataclass(frozen=True)
class LatentSize:
    """How pixels and latents of a model relate.

    Attributes:
        channels: latent channels.
        factor: pixels per latent along a side.
        native: side in pixels that the model was trained at.
    """

    channels: int
    factor: int
    native: int

    def empty_latent(self, width: int, height: int, batch: int) -> dict[str, torch.Tensor]:
        """A LATENT of zeros. Raises ValueError if a side is no multiple of the factor."""
        check_size(height, width, self.factor)
        shape = (batch, self.channels, height // self.factor, width // self.factor)
        return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


class LadderMLLM:
    """What the MLLM socket carries.

    Args:
        parts: the loaded model.
        dtype: dtype of MLLM and connector.
        size: how this model's pixels and latents relate.
    """

    def __init__(self, parts: LadderParts, dtype: torch.dtype, size: LatentSize) -> None:
        management = comfy.model_management
        self.size = size
        self.encoder = LadderEncoder(
            parts.mllm,
            parts.connector,
            parts.tokenizer,
            parts.image_processor,
            num_layers=parts.transformer.config.num_layers,
            system_prompt=parts.system_prompt,
            max_text_tokens=parts.max_text_tokens,
        )
        # without the head, which shares the embedding's weights and would be counted again
        module = torch.nn.ModuleDict({"mllm": parts.mllm.model, "connector": parts.connector})
        cast_parameters(module.eval().requires_grad_(False), dtype)
        use_comfy_ops(module, comfy.ops.disable_weight_init)
        self.patcher = comfy.model_patcher.ModelPatcher(
            module,
            load_device=management.text_encoder_device(),
            offload_device=management.text_encoder_offload_device(),
        )
        manage_strays(self.patcher)
        # in a partial load the first weights may lie elsewhere than the work is done
        place = SimpleNamespace(execution_device=self.patcher.load_device)
        parts.mllm.model.language_model.embed_tokens._hf_hook = place
        parts.mllm.model.visual.patch_embed.proj._hf_hook = place

    def encode(self, prompts: list[str], images: list[list[Image.Image]]) -> torch.Tensor:
        """Folded conditions ``[prompts, queries, layers * dim]``, float32.

        Raises:
            ValueError: bad prompts or pictures, before the weights are moved.
        """
        inputs = self.encoder.tokenize(prompts, images)
        config = self.encoder.mllm.config.text_config
        tokens = inputs.input_ids.numel()
        activations = tokens * config.hidden_size * 4 * (config.num_hidden_layers + 16)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=activations)
        with torch.no_grad():
            states = self.encoder.encode(inputs).states
        return fold_condition(states).float().to(comfy.model_management.intermediate_device())
