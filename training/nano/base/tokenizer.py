"""The nano model's tokenizer: byte-level BPE with Qwen2's pre-tokenisation and Qwen2.5-VL's special tokens.

Trained on the sentences of the domain until every frequent word is one token, so a short caption takes about
ten. Words that are to be drawn are left out of it: they are spelled letter by letter.
Loads as `Qwen2Tokenizer`; any other text falls back to bytes, so nothing is ever unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..domain import edits, prompts, questions
from ..domain.words import OBJECTS, a, plural
from ..files import replace_file

SYSTEM_PROMPT = "Draw the scene."
MAX_TEXT_TOKENS = 128
ASK_SYSTEM_PROMPT = "You are a helpful assistant."
WORD = (  # Qwen2: a word takes the space before it, digits stand alone
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CAPITALS = re.compile(r"[A-Z]{2,}")
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + ASK_SYSTEM_PROMPT + "<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentences(seed: int, number: int) -> Iterator[str]:
    """Text of the domain: chat roles, captions, instructions, questions and answers."""
    yield from (SYSTEM_PROMPT, ASK_SYSTEM_PROMPT, "system\nuser\nassistant\n") * 100
    for name in OBJECTS:
        yield from (f"{a(name)} {name}", f"the {plural(name)}") * 20
    for i in range(number):
        question = questions.draw(seed, "train", i)
        texts = prompts.draw(seed, "train", i).text, edits.draw(seed, "train", i).text
        yield from (CAPITALS.sub("", text) for text in (*texts, question.text, question.answer))


def train(folder: Path, size: int = 1024, seed: int = 0) -> None:
    """Train the tokenizer with at most `size` ordinary tokens and write it in the hub's layout."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sentences(seed, 4000), trainer)
    model = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=SPECIAL,
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    replace_file(lambda partial: partial.write_text(json.dumps(model["vocab"])), folder / "vocab.json")
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    replace_file(lambda partial: partial.write_text(merges), folder / "merges.txt")
