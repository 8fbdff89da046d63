"""Prompts as token ids: system message, user message (images first, then text), and the queries.

The assistant turn holds the queries between ``<|vision_start|>`` and ``<|vision_end|>``. Query i has the id
``first_query_id + i``, the row that it has in the embedding matrix of a released checkpoint; no tokenizer
knows these ids, so no text can produce one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM_PROMPT = (
    "You will be given an image or its caption. "
    "Please describe the content of the image in detail in your own words."
)
MAX_TEXT_TOKENS = 256
MAX_IMAGES = 4


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of ``text`` taken literally: ``<|im_end|>`` in it is ten characters, not the end of a turn.

    The tokenizer's normaliser, pre-tokeniser and BPE model run without its table of added tokens, so that the
    result cannot contain a control token however that table is filled.
    """
    backend = tokenizer.backend_tokenizer
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = backend.pre_tokenizer.pre_tokenize_str(text)
    return [token.id for word, _ in words for token in backend.model.tokenize(word)]


def control_token(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Id of a control token of the chat format. Raises ValueError if the tokenizer lacks it."""
    token_id = tokenizer.backend_tokenizer.token_to_id(token)  # get_vocab() copies 151,000 entries each time
    if token_id is None:
        raise ValueError(f"The tokenizer has no {token} token; a tokenizer of Qwen2.5-VL is needed.")
    return token_id


def cut_text(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> str:
    """``text``, or its first ``max_tokens`` tokens if it is longer."""
    ids = encode_text(tokenizer, text)
    return text if len(ids) <= max_tokens else tokenizer.decode(ids[:max_tokens])


def build_chat(
    tokenizer: PreTrainedTokenizerBase, system_prompt: str, text: str, image_tokens: Sequence[int] = ()
) -> list[int]:
    """Token ids of a chat up to and including ``assistant\\n``.

    Args:
        tokenizer: a Qwen2.5-VL tokenizer.
        system_prompt: text of the system turn.
        text: text of the user turn, taken literally.
        image_tokens: for every image of the user turn the number of merged vision tokens it takes.

    Returns:
        list of int: system turn, user turn (images, then text), opening of the assistant turn.
    """
    start, end = control_token(tokenizer, "<|im_start|>"), control_token(tokenizer, "<|im_end|>")
    newline = encode_text(tokenizer, "\n")
    ids = [start, *encode_text(tokenizer, f"system\n{system_prompt}"), end, *newline, start]
    if image_tokens:
        ids += encode_text(tokenizer, "user\n")
        for count in image_tokens:
            ids += [
                control_token(tokenizer, "<|vision_start|>"),
                *[control_token(tokenizer, "<|image_pad|>")] * count,
                control_token(tokenizer, "<|vision_end|>"),
            ]
        ids += encode_text(tokenizer, text)
    else:
        # one string: leading white space of the text merges with the newline before it
        ids += encode_text(tokenizer, f"user\n{text}")
    return ids + behind_text(tokenizer)


def behind_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a chat that follow the user's text, up to and including ``assistant\\n``."""
    start, end = control_token(tokenizer, "<|im_start|>"), control_token(tokenizer, "<|im_end|>")
    return [end, *encode_text(tokenizer, "\n"), start, *encode_text(tokenizer, "assistant\n")]


def count_text(tokenizer: PreTrainedTokenizerBase, text: str, num_images: int) -> int:
    """How many tokens of a chat, the last before :func:`behind_text`, are the user's text.

    Without images white space at its beginning may have merged with the newline before it; such a token is
    the text's.
    """
    if num_images:
        return len(encode_text(tokenizer, text))
    opening, whole = encode_text(tokenizer, "user\n"), encode_text(tokenizer, f"user\n{text}")
    pairs = zip(opening, whole, strict=False)
    return len(whole) - len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])


def build_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    image_tokens: Sequence[int],
    num_queries: int,
    first_query_id: int,
    system_prompt: str = SYSTEM_PROMPT,
    max_text_tokens: int = MAX_TEXT_TOKENS,
) -> list[int]:
    """Token ids of one complete prompt, queries and closing tokens included (DESIGN "Prompt").

    Args:
        text: caption or instruction; cut at ``max_text_tokens`` tokens.
        image_tokens: number of merged vision tokens of each of the up to four images.
        num_queries: how many queries the assistant turn holds.
        first_query_id: id of the first query.

    Raises:
        ValueError: more than four images, or a tokenizer without the control tokens.
    """
    if len(image_tokens) > MAX_IMAGES:
        raise ValueError(
            f"A prompt takes at most {MAX_IMAGES} images, {len(image_tokens)} were given; leave some out."
        )
    text = cut_text(tokenizer, text, max_text_tokens)
    return [
        *build_chat(tokenizer, system_prompt, text, image_tokens),
        control_token(tokenizer, "<|vision_start|>"),
        *range(first_query_id, first_query_id + num_queries),
        control_token(tokenizer, "<|vision_end|>"),
        control_token(tokenizer, "<|im_end|>"),
    ]


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the left to one length. Returns ids and mask (1 = token), both int64 ``[batch, length]``."""
    length = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (length - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in sequences])
    return ids, mask
