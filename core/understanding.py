"""Questions about pictures, answered by the frozen MLLM that also conditions the generator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from .checkpoints.naming import EMBEDDING, mllm_name
from .checkpoints.weights import find_weights, read_tensors
from .inputs import prepare_images
from .paths import user_path
from .prompts import build_chat, control_token, encode_text
from .versions import image_arguments, mend_positions
from .vision import execution_device

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

ANSWER_SYSTEM_PROMPT = "You are a helpful assistant."  # the one Qwen2.5-VL was tuned with
MAX_QUESTION_TOKENS = 2048
GENERATING = threading.RLock()  # the model keeps where an answer's positions begin: one answer at a time


@dataclass
class Answer:
    """What the MLLM said.

    Attributes:
        text: the answer, without control tokens.
        rows: whose vocabulary rows read and wrote it: "checkpoint" or "qwen" (DESIGN "Released checkpoint").
    """

    text: str
    rows: str = "checkpoint"


class TextStream(BaseStreamer):
    """Hands on the text of an answer while it grows.

    Args:
        tokenizer: decodes it.
        on_text: called after every token with the whole text so far; may raise to stop.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.ids: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt ``[1, length]``, then every new token ``[1]``."""
        if self.ids is None:  # generate hands over the prompt first
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        self.on_text(text.strip().rstrip("\ufffd"))  # half a letter: its other bytes come with the next token

    def end(self) -> None:
        """Nothing is held back that would have to follow."""


def check_question(
    tokenizer: PreTrainedTokenizerBase, images: Sequence[Image.Image], question: str, max_new_tokens: int
) -> int:
    """How many tokens a question has, its pictures not counted.

    Raises:
        ValueError: an empty or overlong question, too many or unusable images, no room for an answer.
    """
    if not isinstance(question, str):
        raise ValueError(f"The question is a {type(question).__name__}; give text.")
    if not question.strip():
        raise ValueError("The question is empty; ask something.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; give at least 1.")
    prepare_images([images], [question])
    tokens = len(encode_text(tokenizer, question))
    if tokens > MAX_QUESTION_TOKENS:
        raise ValueError(f"The question has {tokens} tokens, {MAX_QUESTION_TOKENS} is the most; shorten it.")
    return tokens


@torch.no_grad()
def ask(
    mllm: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    images: Sequence[Image.Image],
    question: str,
    max_new_tokens: int = 128,
    vocabulary_rows: torch.Tensor | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answer ``question`` about up to four images; greedy, so the same question gives the same answer.

    Args:
        images: pictures the question is about; may be empty.
        question: taken literally, no text in it is a control token.
        max_new_tokens: where the answer is cut.
        vocabulary_rows: embedding rows ``[vocabulary, dim]`` of an original Qwen2.5-VL to read and write
            with. Those of a released checkpoint were shrunk by weight decay; None uses them all the same.
        on_text: called after every token with the answer so far; what it raises ends the answer.

    Raises:
        ValueError: see :func:`check_question`.
    """
    check_question(tokenizer, images, question, max_new_tokens)
    if vocabulary_rows is not None:
        mllm = with_vocabulary_rows(mllm, vocabulary_rows)
    device = execution_device(mllm.model.language_model.embed_tokens)
    inputs: dict[str, torch.Tensor] = {}
    counts: list[int] = []
    if images:
        (pictures,) = prepare_images([images], [question])
        patches = image_processor(images=pictures, return_tensors="pt")
        grid = patches["image_grid_thw"]
        counts = (grid.prod(-1) // image_processor.merge_size**2).tolist()
        inputs = {"pixel_values": patches["pixel_values"].to(device), "image_grid_thw": grid.to(device)}
    ids = torch.tensor([build_chat(tokenizer, ANSWER_SYSTEM_PROMPT, question, counts)], device=device)
    mend_positions(mllm)
    with GENERATING:
        output = mllm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            # all said here, so that a generation_config.json beside one copy of a model changes nothing
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                repetition_penalty=1.0,
                eos_token_id=[
                    control_token(tokenizer, "<|im_end|>"),
                    control_token(tokenizer, "<|endoftext|>"),
                ],
                pad_token_id=tokenizer.pad_token_id,
            ),
            streamer=None if on_text is None else TextStream(tokenizer, on_text),
            **inputs,
            **image_arguments(ids, mllm.config.image_token_id),
        )
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    return Answer(text, "checkpoint" if vocabulary_rows is None else "qwen")


def load_vocabulary_rows(folder: str | Path) -> torch.Tensor:
    """Embedding rows ``[vocabulary, dim]`` of an original Qwen2.5-VL folder, mapped and not copied.

    Raises:
        ValueError: no such folder, or one without these rows.
    """
    if not user_path(folder).is_dir():
        raise ValueError(f"There is no Qwen2.5-VL folder at {folder}; give one to answer with its rows.")
    found = {mllm_name(name): info for name, info in find_weights(Path(folder)).items()}
    if EMBEDDING not in found:
        raise ValueError(f"{folder} holds no token embeddings; give a Qwen2.5-VL folder.")
    return read_tensors({EMBEDDING: found[EMBEDDING]})[EMBEDDING]


def with_vocabulary_rows(
    mllm: Qwen2_5_VLForConditionalGeneration, rows: torch.Tensor
) -> Qwen2_5_VLForConditionalGeneration:
    """The same MLLM, layers shared, reading and writing with other vocabulary rows ``[vocabulary, dim]``.

    Raises:
        ValueError: rows of another width.
    """
    width = mllm.config.text_config.hidden_size
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(
            f"The vocabulary rows have shape {list(rows.shape)}, this MLLM needs [vocabulary, {width}]; take "
            "them from the Qwen2.5-VL that the model was built on."
        )
    current = mllm.model.language_model.embed_tokens.weight
    rows = torch.nn.Parameter(rows.to(current), requires_grad=False)
    with torch.device("meta"):
        other = type(mllm)(mllm.config)
    other.model.visual = mllm.model.visual
    language_model = other.model.language_model
    language_model.layers = mllm.model.language_model.layers
    language_model.norm = mllm.model.language_model.norm
    language_model.rotary_emb = mllm.model.language_model.rotary_emb
    language_model.embed_tokens.weight = rows
    other.lm_head.weight = rows
    return other.eval()
