"""The MLLM, its queries and the connector under ComfyUI's memory management."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from ..core.conditions import fold_condition, pack_condition
from ..core.encoder import LadderEncoder
from ..core.requests import check_size
from ..core.understanding import Answer, ask, check_question
from ..core.vision import execution_device
from .offload import cast_parameters, cast_when_used, make_patcher, use_comfy_ops

if TYPE_CHECKING:
    from ..core.checkpoints import LadderParts
    from .autoencoder import LadderVAE


CONDITIONS_KEPT = 12  # of single prompts; one of the released model is 12 MB in float32
TOKENS_PER_IMAGE = 256  # of the released model, whose pictures all have 256 * 28 * 28 pixels


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


class ManagedMLLM(Qwen2_5_VLForConditionalGeneration):
    """Generates where ComfyUI computes, also when the first weights lie elsewhere."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return execution_device(self.model.language_model.embed_tokens)


class TiedHead(torch.nn.Module):
    """The language model's head: its embedding's own weight, wherever ComfyUI keeps it just now."""

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        super().__init__()
        self.embedding = (embedding,)  # hidden from torch, which would count the weight again

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Logits ``[..., vocabulary]`` of states ``[..., dim]``."""
        embedding = self.embedding[0]
        weight, _, stream = comfy.ops.cast_bias_weight(embedding, input, offloadable=True)
        logits = torch.nn.functional.linear(input, weight)
        comfy.ops.uncast_bias_weight(embedding, weight, None, stream)
        return logits


def row_key(prompt: str, images: list[Image.Image]) -> bytes:
    """The same for the same prompt and the same pixels."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16)
    for image in images:
        digest.update(repr((image.mode, image.size)).encode())
        digest.update(image.tobytes())
    return digest.digest()


def keep_with(patcher: comfy.model_patcher.ModelPatcher, tensors: dict[bytes, torch.Tensor]) -> None:
    """Have tensors move with a model, so that a model that was taken off the device leaves nothing there."""

    def move(moved: comfy.model_patcher.ModelPatcher, *_: object) -> None:
        for key, tensor in tensors.items():
            tensors[key] = tensor.to(moved.model.device)

    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, "tbac_uniimage_kept", move)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, "tbac_uniimage_kept", move)


class LadderMLLM:
    """What the MLLM socket carries.

    Args:
        parts: the loaded model.
        dtype: what MLLM and connector compute in, and are kept in.
        size: how this model's pixels and latents relate.
        layers: what the MLLM's large weights are kept in, if it is another.
        vae: of the same model, for what it reads of a picture beside what the MLLM sees.
    """

    def __init__(
        self,
        parts: LadderParts,
        dtype: torch.dtype,
        size: LatentSize,
        layers: torch.dtype | None = None,
        vae: LadderVAE | None = None,
    ) -> None:
        management = comfy.model_management
        self.size = size
        self.vae = vae
        self.reads_source = parts.transformer.config.source_latents  # the latents of what is edited
        self.known: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.encoder = LadderEncoder(
            parts.mllm,
            parts.connector,
            parts.tokenizer,
            parts.image_processor,
            num_layers=parts.transformer.config.num_layers,
            system_prompt=parts.system_prompt,
            max_text_tokens=parts.max_text_tokens,
            text_states=parts.transformer.config.text_states,
        )
        # without the head, which shares the embedding's weights and would be counted again
        module = torch.nn.ModuleDict({"mllm": parts.mllm.model, "connector": parts.connector})
        module.eval().requires_grad_(False)
        cast_parameters(module["mllm"], dtype, layers)
        cast_parameters(module["connector"], dtype)
        use_comfy_ops(module, comfy.ops.disable_weight_init)
        if layers is not None:
            cast_when_used(module["mllm"])
        devices = management.text_encoder_device(), management.text_encoder_offload_device()
        self.patcher = make_patcher(module, *devices)
        for kept in (self.encoder.vision.cache, self.encoder.prefix_cache):
            keep_with(self.patcher, kept)
        # in a partial load the first weights may lie elsewhere than the work is done
        for first in (parts.mllm.model.language_model.embed_tokens, parts.mllm.model.visual.patch_embed.proj):
            first.execution_device = self.patcher.load_device
        parts.mllm.lm_head = TiedHead(parts.mllm.model.language_model.embed_tokens)
        parts.mllm.__class__ = ManagedMLLM

    def encode(self, prompts: list[str], images: list[list[Image.Image]]) -> list[torch.Tensor]:
        """Folded conditions of every prompt, each ``[1, queries, layers * dim]``, float32.

        Of a model that attends to the text's tokens they are packed, ``[1, tokens, layers * (dim + 2)]``,
        the tokens padded to a multiple of the queries.

        Every prompt is encoded alone, so that its condition does not depend in the last bits on what it came
        with; the last :data:`CONDITIONS_KEPT` are kept and never encoded again.

        Raises:
            ValueError: bad prompts or pictures, before the weights are moved.
        """
        keys = [row_key(prompt, group) for prompt, group in zip(prompts, images, strict=True)]
        found = {key: self.known[key] for key in keys if key in self.known}
        inputs = {
            key: self.encoder.tokenize([prompt], [group])
            for key, prompt, group in zip(keys, prompts, images, strict=True)
            if key not in found
        }
        if inputs:
            self.load(max(row.input_ids.numel() for row in inputs.values()))
        for key, row in inputs.items():
            with torch.no_grad():
                condition = self.encoder.encode(row)
            states = condition.states.float()
            if condition.text_tokens:
                queries = self.encoder.connector.config.num_queries
                states = pack_condition(replace(condition, states=states), queries)
            found[key] = fold_condition(states).to(comfy.model_management.intermediate_device())
        for key in keys:
            self.known[key] = found[key]
            self.known.move_to_end(key)
        while len(self.known) > CONDITIONS_KEPT:
            self.known.popitem(last=False)
        return [found[key] for key in keys]

    def ask(
        self,
        images: list[Image.Image],
        question: str,
        max_new_tokens: int,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question about pictures, see :func:`..core.understanding.ask`.

        Raises:
            ValueError: a bad question or bad pictures, before the weights are moved.
        """
        encoder = self.encoder
        processor = encoder.processor
        tokens = check_question(processor.tokenizer, images, question, max_new_tokens)
        self.load(tokens + max_new_tokens + len(images) * TOKENS_PER_IMAGE)
        return ask(
            encoder.mllm,
            processor.tokenizer,
            processor.image_processor,
            images,
            question,
            max_new_tokens,
            on_text=on_text,
        )

    def load(self, tokens: int) -> None:
        """Have ComfyUI bring the weights to the device, with room for the activations of ``tokens``."""
        config = self.encoder.mllm.config.text_config
        activations = tokens * config.hidden_size * 4 * (config.num_hidden_layers + 16)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=activations)
