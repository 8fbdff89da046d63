"""From prompts and pictures to ladder conditions: MLLM states at the query positions (paper section 3.1).

The MLLM is causal, frozen, and the queries come last. So where a gradient is wanted the prefix (system,
images, text) runs without and leaves its keys and values, on which the queries run. Where none is wanted all
runs in one pass, but for what prompts have in common: everything up to the last picture runs once for all
that begin with it, and is kept for the next ones.

An MLLM of L layers gives a transformer of N blocks the inputs of layers L-N … L-1: the last layer, the final
norm and the head never run. Which of these states every block is told says `connector`; if it says ``final``,
the last layer and the norm do run.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache

from .conditions import LadderCondition
from .connector import LadderConnector
from .inputs import LadderInputs, LadderProcessor
from .prefixes import cut_left, picture_ends, prefix_of, put_in, take_out
from .prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from .rope import rope_positions
from .versions import CACHE_ARGUMENT, causal_mask, image_features, layer_output

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

VISION_CACHE_SIZE = 16  # images; one of the released model is 256 x 2048 values
SHARED_FROM = 128  # tokens; less costs more in a pass of its own than it saves. A released picture has 256
PREFIX_CACHE_SIZE = 4  # pictures with all before them; one of the released model takes 11 MB in bfloat16


def execution_device(module: torch.nn.Module) -> torch.device:
    """Where a module computes, if its weights may lie elsewhere between calls.

    accelerate's sequential offload says it in its hook, a node of ComfyUI in an attribute of that name.
    """
    for said_by in (module, getattr(module, "_hf_hook", None)):
        device = getattr(said_by, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return module.weight.device


def image_keys(images: Sequence[torch.Tensor], grid: torch.Tensor) -> list[bytes]:
    """The same for images of the same patches and grid."""
    return [
        hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() + g.numpy().tobytes()
        for image, g in zip(images, grid, strict=True)
    ]


def recall(kept: OrderedDict[bytes, torch.Tensor], keys: Sequence[bytes], most: int) -> list[torch.Tensor]:
    """What is kept under these keys; of all that is, the ``most`` used last stay."""
    for key in keys:
        kept.move_to_end(key)
    found = [kept[key] for key in keys]
    while len(kept) > most:
        kept.popitem(last=False)
    return found


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
        cache_vision: keeps what the last images became, see :meth:`vision_features` and
            :meth:`picture_prefixes`; without, prompts that begin alike do not share it either.
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
        self.prefix_cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()

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
        wants_gradient = torch.is_grad_enabled() and self.connector.queries.requires_grad
        with torch.no_grad():
            if wants_gradient:
                first = ids.shape[1] - num_queries
                prefix = self.embed(ids[:, :first], self.features_of(inputs))
                self.fill_cache(prefix, mask[:, :first], positions[..., :first], cache)
                hidden = prefix[:, :0]
            else:
                ends, features = picture_ends(ids, image_token), None
                spans = list(zip(mask.argmax(1).tolist(), ends, strict=True))  # of pictures and all before
                shortest = min(end - start for start, end in spans)
                if self.cache_vision and inputs.pixel_values is not None and shortest >= SHARED_FROM:
                    first = min(ends)
                    known = self.picture_prefixes(ids, mask, positions, spans, inputs)
                    columns = torch.arange(ids.shape[1], device=device)
                    behind = mask * (columns >= torch.tensor(ends, device=device)[:, None])
                    mask = torch.cat([put_in(cache, known), behind[:, first:]], dim=1)
                else:
                    first, features = 0, self.features_of(inputs)
                hidden = self.embed(ids[:, first:-num_queries], features)
        queries = self.connector.queries.to(hidden).expand(len(ids), -1, -1)
        with torch.set_grad_enabled(wants_gradient):
            hidden = torch.cat([hidden, queries], dim=1)
            return self.run_layers(hidden, mask, positions[..., first:], cache)

    def embed(self, ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Embeddings ``[batch, tokens, dim]`` of ids without queries, with vision tokens at their places."""
        hidden = self.mllm.model.language_model.embed_tokens(ids)
        if features is not None:
            hidden[ids == self.mllm.config.image_token_id] = features.to(hidden)
        return hidden

    def fill_cache(
        self, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
    ) -> None:
        """Run a prefix for its keys and values alone; arguments as of :meth:`layer_inputs`."""
        for _ in self.layer_inputs(hidden, mask, positions, cache):
            pass

    def picture_prefixes(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        spans: list[tuple[int, int]],
        inputs: LadderInputs,
    ) -> list[torch.Tensor]:
        """Keys and values of every row up to its last picture, see :func:`.prefixes.take_out`.

        The branches of an edit begin alike but for the black picture, and so does the next edit of a picture;
        what is new runs once, as one batch.
        """
        grid, image_token = inputs.image_grid_thw, self.mllm.config.image_token_id
        images = inputs.pixel_values.split(grid.prod(-1).tolist())
        sizes = grid.prod(-1) // self.mllm.config.vision_config.spatial_merge_size**2
        row_ends = (ids == image_token).sum(1).cumsum(0).cpu()
        owners = torch.searchsorted(row_ends, sizes.cumsum(0)).tolist()  # the row of every image
        digests = image_keys(images, grid)
        keys = []
        for row, (start, end) in enumerate(spans):
            mine = [digest for digest, owner in zip(digests, owners, strict=True) if owner == row]
            keys.append(b"".join([ids[row, start:end].cpu().numpy().tobytes(), *mine]))
        new = {key: row for row, key in enumerate(keys) if key not in self.prefix_cache}
        if new:
            rows = list(new.values())
            where = [spans[row] for row in rows]
            chosen = [image for row in rows for image, owner in enumerate(owners) if owner == row]
            features = self.vision_features(torch.cat([images[i] for i in chosen]), grid[chosen])
            cache = DynamicCache(config=self.mllm.config.get_text_config())
            embedded = self.embed(cut_left(ids[rows], where), features)
            places = cut_left(positions[:, rows], where)
            self.fill_cache(embedded, cut_left(mask[rows], where), places, cache)
            for number, (key, row) in enumerate(new.items()):
                start, end = spans[row]
                self.prefix_cache[key] = take_out(cache, number, end - start)
        return [prefix.to(ids.device) for prefix in recall(self.prefix_cache, keys, PREFIX_CACHE_SIZE)]

    def run_layers(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Inputs of the last ``num_layers`` layers at the queries, ``[num_layers, batch, queries, dim]``.

        For a connector of ``final`` rungs it is the normed output of the last layer, as often. See
        :meth:`layer_inputs`; the queries are the last tokens. Nothing is added to a cache with a prefix.
        """
        last = -self.connector.config.num_queries
        inputs = [
            states[:, last:].contiguous() for states in self.layer_inputs(hidden, mask, positions, cache)
        ]
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

    def features_of(self, inputs: LadderInputs) -> torch.Tensor | None:
        """Vision tokens of a batch, computed or known; None without pictures."""
        if inputs.pixel_values is None:
            return inputs.features
        return self.vision_features(inputs.pixel_values, inputs.image_grid_thw)

    def vision_features(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Vision tokens of all images in order ``[tokens, mllm_dim]``; each distinct image runs once.

        Several branches of a guided batch hold the same image, and an edit is often tried again with other
        words, so features are kept by the content of the patches. Training does without: there hardly an
        image comes twice.
        """
        if not self.cache_vision:
            return torch.cat(self.run_vision_tower(pixels, grid))
        images = pixels.split(grid.prod(-1).tolist())
        keys = image_keys(images, grid)
        new = {key: i for i, key in enumerate(keys) if key not in self.vision_cache}
        if new:
            chosen = list(new.values())
            features = self.run_vision_tower(torch.cat([images[i] for i in chosen]), grid[chosen])
            self.vision_cache.update(zip(new, features, strict=True))
        return torch.cat(recall(self.vision_cache, keys, VISION_CACHE_SIZE))

    def run_vision_tower(self, pixels: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Vision tokens of every image, each ``[tokens, mllm_dim]``."""
        projection = self.mllm.model.visual.patch_embed.proj
        device = execution_device(projection)
        # a norm has the type that is computed in, where linear layers keep their weights in fewer bits
        patches = pixels.to(device, self.mllm.model.visual.blocks[0].norm1.weight.dtype)
        return image_features(self.mllm.model, patches, grid.to(device))
