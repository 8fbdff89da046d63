"""From prompts and pictures to ladder conditions: MLLM states at the query positions (paper section 3.1).

For models that attend to the text's tokens, theirs follow. Of a prompt these are the user's own words alone:
the system turn and the template are the same in every prompt and tell nothing, and pictures, whose tokens
would be most of all, are what the words were read beside.

The MLLM is causal, frozen, and the queries come last. So where a gradient is wanted the prefix (system,
images, text) runs without and leaves its keys and values, on which the queries run. Where none is wanted all
runs in one pass, but for what prompts have in common: everything up to the last picture runs once for all
that begin with it, and is kept for the next ones.

An MLLM of L layers gives a transformer of N blocks the inputs of layers L-N … L-1: the last layer, the final
norm and the head never run. Which of these states every block is told says `connector`; if it says ``final``,
the last layer and the norm do run.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from transformers.cache_utils import DynamicCache

from .conditions import LadderCondition
from .connector import LadderConnector
from .inputs import LadderInputs, LadderProcessor
from .layers import exhaust, layer_inputs, take, text_columns
from .prefixes import cut_left, picture_ends, put_in, take_out
from .prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from .rope import rope_positions
from .vision import LadderVision, execution_device, image_keys, recall

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

SHARED_FROM = 128  # tokens; less costs more in a pass of its own than it saves. A released picture has 256
PREFIX_CACHE_SIZE = 4  # pictures with all before them; one of the released model takes 11 MB in bfloat16


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
        text_states: whether the diffusion transformer attends to the text's tokens.

    Attributes:
        gradient_checkpointing: computes the layers of the queries twice where they take a gradient, to save
            memory.
        vision: the vision tower. Where it does not keep what pictures became, prompts that begin alike do not
            share that either, see :meth:`picture_prefixes`.
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
        text_states: bool = False,
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
            text_states=text_states,
        )
        self.gradient_checkpointing = False
        self.vision = LadderVision(mllm)
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
        queries = self.connector.config.num_queries
        text_tokens = states.shape[2] - queries
        if text_tokens:
            begin, end = inputs.text_spans.to(mask).unbind(1)
            columns = torch.arange(text_tokens, device=mask.device)
            mask[:, queries:] = columns < (end - begin)[:, None]
        return LadderCondition(self.caption_states(states), mask, text_tokens=text_tokens)

    def caption_states(self, states: torch.Tensor) -> torch.Tensor:
        """Caption states of the MLLM's at queries and text, of the same shape but for the last axis."""
        states, queries = states.to(self.connector.dtype), self.connector.config.num_queries
        if states.shape[2] == queries:
            return self.connector(states)
        # each by itself, so that what is made of the queries does not depend on the text in its last bits
        asked, text = states[:, :, :queries], states[:, :, queries:].detach()
        return torch.cat([self.connector(asked), self.connector(text)], dim=2)

    def hidden_states(self, inputs: LadderInputs) -> torch.Tensor:
        """MLLM states ``[num_layers, batch, tokens, mllm_dim]``; see :meth:`rungs_of`.

        Of the queries, and behind them of the tokens of the text where ``inputs`` say where it is: texts
        begin in the first column, what follows the shorter ones is of no meaning, and there is one column at
        least.
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
        text = None if inputs.text_spans is None else text_columns(inputs.text_spans.to(device))
        beside = []  # states of the text that a prefix leaves
        cache = DynamicCache(config=self.mllm.config.get_text_config())
        wants_gradient = torch.is_grad_enabled() and self.connector.queries.requires_grad
        with torch.no_grad():
            if wants_gradient:
                first = ids.shape[1] - num_queries
                prefix = self.embed(ids[:, :first], self.vision.of(inputs))
                layers = self.layer_inputs(prefix, mask[:, :first], positions[..., :first], cache)
                if text is None:
                    exhaust(layers)
                else:
                    beside = [self.rungs_of(take(states, text) for states in layers)]
                hidden, text = prefix[:, :0], None
            else:
                ends, features = picture_ends(ids, image_token), None
                spans = list(zip(mask.argmax(1).tolist(), ends, strict=True))  # of pictures and all before
                shortest = min(end - start for start, end in spans)
                if self.vision.keeps and inputs.pixel_values is not None and shortest >= SHARED_FROM:
                    first = min(ends)
                    known = self.picture_prefixes(ids, mask, positions, spans, inputs)
                    columns = torch.arange(ids.shape[1], device=device)
                    behind = mask * (columns >= torch.tensor(ends, device=device)[:, None])
                    mask = torch.cat([put_in(cache, known), behind[:, first:]], dim=1)
                else:
                    first, features = 0, self.vision.of(inputs)
                hidden = self.embed(ids[:, first:-num_queries], features)
        queries = self.connector.queries.to(hidden).expand(len(ids), -1, -1)
        with torch.set_grad_enabled(wants_gradient):
            hidden = torch.cat([hidden, queries], dim=1)
            text = None if text is None else text - first
            found = self.run_layers(hidden, mask, positions[..., first:], cache, text)
            return torch.cat([found, *beside], dim=2) if beside else found

    def embed(self, ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Embeddings ``[batch, tokens, dim]`` of ids without queries, with vision tokens at their places."""
        hidden = self.mllm.model.language_model.embed_tokens(ids)
        if features is not None:
            hidden[ids == self.mllm.config.image_token_id] = features.to(hidden)
        return hidden

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
            features = self.vision(torch.cat([images[i] for i in chosen]), grid[chosen])
            cache = DynamicCache(config=self.mllm.config.get_text_config())
            embedded = self.embed(cut_left(ids[rows], where), features)
            places = cut_left(positions[:, rows], where)
            exhaust(self.layer_inputs(embedded, cut_left(mask[rows], where), places, cache))
            for number, (key, row) in enumerate(new.items()):
                start, end = spans[row]
                self.prefix_cache[key] = take_out(cache, number, end - start)
        return [prefix.to(ids.device) for prefix in recall(self.prefix_cache, keys, PREFIX_CACHE_SIZE)]

    def run_layers(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: DynamicCache,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the rungs are told of the queries, the last tokens, then of the tokens in columns ``text``.

        See :meth:`layer_inputs` and :meth:`rungs_of`. Nothing is added to a cache with a prefix.
        """
        last = -self.connector.config.num_queries

        def chosen(states: torch.Tensor) -> torch.Tensor:
            queries = states[:, last:]
            return queries.contiguous() if text is None else torch.cat([queries, take(states, text)], dim=1)

        return self.rungs_of(map(chosen, self.layer_inputs(hidden, mask, positions, cache)))

    def rungs_of(self, layer_inputs: Iterable[torch.Tensor]) -> torch.Tensor:
        """Inputs of the last ``num_layers`` layers, ``[num_layers, batch, tokens, dim]``.

        For a connector of ``final`` rungs it is the normed output of the last layer, as often.
        """
        inputs = deque(layer_inputs, maxlen=self.num_layers)
        if self.reads_final:
            final = self.mllm.model.language_model.norm(inputs[-1])
            return final.expand(self.num_layers, *final.shape)
        return torch.stack([*inputs])

    @property
    def reads_final(self) -> bool:
        """Whether the last layer and the final norm run."""
        return self.connector.config.rungs == "final"

    def layer_inputs(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
    ) -> Iterator[torch.Tensor]:
        """Run the language layers that are needed, see :func:`.layers.layer_inputs`."""
        return layer_inputs(
            self.mllm, hidden, mask, positions, cache, self.reads_final, self.gradient_checkpointing
        )
