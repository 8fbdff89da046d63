"""Ladder conditions: the states of the last MLLM layers at the query positions (paper section 3.1).

The MLLM is causal, frozen, and the queries come last. So the prefix (system, images, text) runs once without
gradient and leaves its keys and values; the queries then run on these, with gradient where one is wanted.
An MLLM of L layers gives a transformer of N blocks the inputs of layers L-N … L-1: the last layer, the final
norm and the head never run. Which of these states every block is told says `connector`; if it says ``final``,
the last layer and the norm do run.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from PIL import Image
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .connector import LadderConnector
from .inputs import LadderInputs, LadderProcessor
from .prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from .rope import rope_positions
from .versions import CACHE_ARGUMENT, causal_mask, image_features, layer_output

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

    from .guidance import Guidance

VISION_CACHE_SIZE = 16  # images; one of the released model is 256 x 2048 values


@dataclass
class LadderCondition:
    """One condition per transformer block, and what it was made for.

    Attributes:
        states: caption states ``[layers, batch, queries, dim]``.
        mask: ``[batch, queries]`` int64, 1 = attend.
        branches: of the guidance; the batch holds all prompts of the first, then of the second, and so on.
        canvases: what is edited, the first picture of every prompt; None without pictures.
    """

    states: torch.Tensor
    mask: torch.Tensor
    branches: int = 1
    canvases: Sequence[Image.Image] | None = None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of the first picture in pixels; None without pictures."""
        return None if self.canvases is None else self.canvases[0].size

    def to(self, *place: Any, **options: Any) -> LadderCondition:
        """The same with its states elsewhere or in another type; arguments of ``torch.Tensor.to``."""
        states = self.states.to(*place, **options)
        return replace(self, states=states, mask=self.mask.to(states.device))

    def single(self, number: int) -> LadderCondition:
        """One prompt of the batch, with all its branches."""
        rows = slice(number, None, self.states.shape[1] // self.branches)
        canvases = self.canvases and self.canvases[number : number + 1]
        return replace(self, states=self.states[:, rows], mask=self.mask[rows], canvases=canvases)

    def last(self, branches: int) -> LadderCondition:
        """The last branches alone; that of the prompt is the last of all."""
        rows = self.states.shape[1] // self.branches * branches
        return replace(self, states=self.states[:, -rows:], mask=self.mask[-rows:], branches=branches)


def check_condition(condition: LadderCondition, guidance: Guidance, layers: int, width: int) -> None:
    """Raise ValueError unless a condition was made for this guidance, and for a model of these rungs.

    Args:
        condition: what a pipeline's ``encode_prompt`` returned.
        guidance: with which it shall be used.
        layers: rungs of the model.
        width: of its caption states.
    """
    if not isinstance(condition, LadderCondition):
        raise ValueError(f"The condition is a {type(condition).__name__}; give what encode_prompt returned.")
    branches = guidance.num_branches(condition.canvases is not None)
    if condition.branches != branches:
        raise ValueError(
            f"The condition was made for guidance of {condition.branches} branches, these scales need "
            f"{branches}; encode it with the same guidance scales."
        )
    shape = tuple(condition.states.shape)
    if len(shape) != 4 or shape[0] != layers or shape[-1] != width:
        raise ValueError(
            f"The condition has the shape {list(shape)}, this model needs {layers} rungs of {width} values; "
            "encode the prompt with the same model."
        )
    if shape[1] % branches or tuple(condition.mask.shape) != shape[1:3]:
        raise ValueError(
            f"The condition has {shape[1]} rows for {branches} branches and a mask of shape "
            f"{list(condition.mask.shape)}; give it as encode_prompt returned it."
        )


def fold_condition(states: torch.Tensor) -> torch.Tensor:
    """``[layers, batch, queries, dim]`` to ``[batch, queries, layers * dim]``, a CONDITIONING of ComfyUI."""
    return rearrange(states, "l b q d -> b q (l d)")


def unfold_condition(folded: torch.Tensor, layers: int) -> torch.Tensor:
    """``[batch, queries, layers * dim]`` back to ``[layers, batch, queries, dim]``."""
    if folded.ndim != 3 or folded.shape[-1] % layers:
        raise ValueError(
            f"The conditioning has shape {list(folded.shape)}, which does not unfold into {layers} layers; "
            "make it with Multi-Layer MLLM Encode of the same model."
        )
    return rearrange(folded, "b q (l d) -> l b q d", l=layers)


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a module computes, if its weights may lie elsewhere between calls.

    accelerate's sequential offload says it in its hook, a node of ComfyUI in an attribute of that name.
    """
    for said_by in (module, getattr(module, "_hf_hook", None)):
        device = getattr(said_by, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return module.weight.device


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


class LadderEncoder:
    """Turns prompts and images into ladder conditions.

    Args:
        mllm: the frozen MLLM.
        connector: queries and connector.
        tokenizer: the MLLM's tokenizer.
        image_processor: the PIL image processor, which holds patch size and pixel budget.
        num_layers: blocks of the diffusion transformer.
        system_prompt: text of the system turn.
        max_text_tokens: where the user's text is cut.

    Attributes:
        gradient_checkpointing: computes the layers of the queries twice where they take a gradient, to save
            memory.
        cache_vision: keeps the vision tokens of the last images, see :meth:`vision_features`.
    """

    def __init__(
        self,
        mllm: Qwen2_5_VLForConditionalGeneration,
        connector: LadderConnector,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        num_layers: int,
        system_prompt: str = SYSTEM_PROMPT,
        max_text_tokens: int = MAX_TEXT_TOKENS,
    ) -> None:
        depth = mllm.config.text_config.num_hidden_layers
        if num_layers > depth:
            raise ValueError(
                f"A diffusion transformer of {num_layers} blocks needs an MLLM of at least as many layers; "
                f"this one has {depth}."
            )
        if connector.config.rungs == "mixed" and connector.config.num_blocks != num_layers:
            raise ValueError(
                f"The connector mixes states for {connector.config.num_blocks} blocks but the diffusion "
                f"transformer has {num_layers}; take both from one model."
            )
        self.mllm = mllm
        self.connector = connector
        self.num_layers = num_layers
        self.processor = LadderProcessor(
            tokenizer,
            image_processor,
            num_queries=connector.config.num_queries,
            first_query_id=mllm.config.text_config.vocab_size,
            system_prompt=system_prompt,
            max_text_tokens=max_text_tokens,
        )
        self.gradient_checkpointing = False
        self.cache_vision = True
        self.vision_cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> LadderCondition:
        """Encode a batch of prompts, each with its own list of up to four images."""
        return self.encode(self.tokenize(prompts, images))

    def tokenize(
        self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> LadderInputs:
        """Token ids and patches, see :class:`LadderProcessor`."""
        return self.processor(prompts, images)

    def encode(self, inputs: LadderInputs) -> LadderCondition:
        """Run the MLLM and the connector. Gradients reach the queries and the connector, never the MLLM."""
        states = self.hidden_states(inputs)
        mask = torch.ones(states.shape[1:3], dtype=torch.long, device=states.device)
        return LadderCondition(self.connector(states.to(self.connector.dtype)), mask)

    def hidden_states(self, inputs: LadderInputs) -> torch.Tensor:
        """MLLM states at the query positions ``[num_layers, batch, queries, mllm_dim]``; see
        :meth:`run_layers`.
        """
        hook = getattr(self.mllm, "_hf_hook", None)  # we call parts of the MLLM, never its forward
        if hook is not None:
            hook.pre_forward(self.mllm)
        model = self.mllm.model
        device = execution_device(model.language_model.embed_tokens)
        ids, mask = inputs.input_ids.to(device), inputs.attention_mask.to(device)
        closing = 2  # <|vision_end|><|im_end|> come after the queries, which never see them
        ids, mask = ids[:, :-closing], mask[:, :-closing]
        num_queries = self.connector.config.num_queries
        image_token = self.mllm.config.image_token_id
        merge_size = self.mllm.config.vision_config.spatial_merge_size
        positions = rope_positions(ids, mask, image_token, inputs.image_grid_thw, merge_size)
        cache = DynamicCache(config=self.mllm.config.get_text_config())
        with torch.no_grad():
            prefix = model.language_model.embed_tokens(ids[:, :-num_queries])
            features = inputs.features
            if inputs.pixel_values is not None:
                features = self.vision_features(inputs.pixel_values, inputs.image_grid_thw)
            if features is not None:
                prefix[ids[:, :-num_queries] == image_token] = features.to(prefix)
            for _ in self.layer_inputs(prefix, mask[:, :-num_queries], positions[..., :-num_queries], cache):
                pass  # their keys and values are all that is wanted
        queries = self.connector.queries.to(prefix).expand(len(ids), -1, -1)
        return self.run_layers(queries, mask, positions[..., -num_queries:], cache)

    def run_layers(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Inputs of the last ``num_layers`` layers, ``[num_layers, batch, tokens, dim]``.

        For a connector of ``final`` rungs it is the normed output of the last layer, as often. See
        :meth:`layer_inputs`. Nothing is added to a cache that holds a prefix.
        """
        inputs = list(self.layer_inputs(hidden, mask, positions, cache))
        if self.reads_final:
            final = self.mllm.model.language_model.norm(inputs[-1])
            return final.expand(self.num_layers, *final.shape)
        return torch.stack(inputs[-self.num_layers :])

    @property
    def reads_final(self) -> bool:
        """Whether the last layer and the final norm run."""
        return self.connector.config.rungs == "final"

    def layer_inputs(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
    ) -> Iterator[torch.Tensor]:
        """Run all language layers but the last, which only ``final`` rungs need.

        Args:
            hidden: embeddings ``[batch, tokens, dim]``.
            mask: ``[batch, cached + tokens]``, 1 = token; None if all are.
            positions: M-RoPE positions ``[3, batch, tokens]``.
            cache: keys and values of a prefix, or empty: it is filled then.

        Yields:
            The input of every layer, ``[batch, tokens, dim]``, and the output of the last if it runs.
        """
        language_model = self.mllm.model.language_model
        common = {
            "attention_mask": causal_mask(language_model.config, hidden, mask, cache),
            "position_embeddings": language_model.rotary_emb(hidden, positions),
            CACHE_ARGUMENT: prefix_of(cache) if cache.get_seq_length() else cache,
            "use_cache": True,
        }
        yield hidden
        for layer in language_model.layers if self.reads_final else language_model.layers[:-1]:
            if self.gradient_checkpointing and hidden.requires_grad:
                # the frozen layers draw no random numbers; where hooks bring their weights, only a layer that
                # runs to its end gives them back
                whole = {} if getattr(self.mllm, "_hf_hook", None) is None else {"early_stop": False}
                output = checkpoint(
                    layer, hidden, use_reentrant=False, preserve_rng_state=False, **whole, **common
                )
            else:
                output = layer(hidden, **common)
            hidden = layer_output(output)
            yield hidden

    def vision_features(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Vision tokens of all images in order ``[tokens, mllm_dim]``; each distinct image runs once.

        Several branches of a guided batch hold the same image, and an edit is often tried again with other
        words, so features are kept by the content of the patches. Training does without: there hardly an
        image comes twice.
        """
        if not self.cache_vision:
            return torch.cat(self.run_vision_tower(pixels, grid))
        images = pixels.split(grid.prod(-1).tolist())
        keys = [
            hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() + g.numpy().tobytes()
            for image, g in zip(images, grid, strict=True)
        ]
        new = {key: i for i, key in enumerate(keys) if key not in self.vision_cache}
        if new:
            chosen = list(new.values())
            features = self.run_vision_tower(torch.cat([images[i] for i in chosen]), grid[chosen])
            self.vision_cache.update(zip(new, features, strict=True))
        for key in keys:
            self.vision_cache.move_to_end(key)
        features = [self.vision_cache[key] for key in keys]
        while len(self.vision_cache) > VISION_CACHE_SIZE:
            self.vision_cache.popitem(last=False)
        return torch.cat(features)

    def run_vision_tower(self, pixels: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Vision tokens of every image, each ``[tokens, mllm_dim]``."""
        projection = self.mllm.model.visual.patch_embed.proj
        device = execution_device(projection)
        # a norm has the type that is computed in, where linear layers keep their weights in fewer bits
        patches = pixels.to(device, self.mllm.model.visual.blocks[0].norm1.weight.dtype)
        return image_features(self.mllm.model, patches, grid.to(device))
