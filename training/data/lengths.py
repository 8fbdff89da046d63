"""Texts that are cut: what goes beyond the tokens that the language model is given of one.

With a ``tokenizer.json`` they are counted. Without, they are estimated, and the report says so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LIMIT = 256  # tokens, as core.prompts.MAX_TEXT_TOKENS, which costs an import of torch
PIECE = re.compile(r"\d|[a-zA-Z]+|[^\w\s]+")
PER_LETTER = 0.7  # tokens of a letter that is not of English
NAME = "tokenizer.json"


def find_tokenizer(folder: str | Path | None) -> str | None:
    """The ``tokenizer.json`` of a folder, of a pipeline or of a model; None if no folder is given.

    Raises:
        ValueError: there is none.
    """
    if folder is None:
        return None
    places = (Path(folder).expanduser() / below / NAME for below in ("", "tokenizer"))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"{folder} holds no {NAME}; give a folder of the language model that does.")
    return str(found)


@lru_cache(maxsize=2)
def load_tokenizer(path: str) -> Tokenizer:
    """A tokenizer, once per process."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)


def is_cut(text: str, tokenizer: str | None, limit: int = LIMIT) -> bool:
    """Whether a text has more tokens than the model is given; by estimate if there is no tokenizer."""
    if len(text.encode("utf-8", "replace")) <= limit:
        return False  # no token is shorter than a byte
    if tokenizer is None:
        return estimate(text) > limit
    return len(load_tokenizer(tokenizer).encode(text, add_special_tokens=False)) > limit


def kept(text: str, tokenizer: str, limit: int = LIMIT) -> str:
    """What the model is given of a text."""
    coder = load_tokenizer(tokenizer)
    ids = coder.encode(text, add_special_tokens=False).ids
    return text if len(ids) <= limit else coder.decode(ids[:limit])


def estimate(text: str) -> float:
    """About how many tokens a text has: one for a word, a digit or a run of signs, less for other letters."""
    letters = sum(character.isalpha() and not character.isascii() for character in text)
    return len(PIECE.findall(text)) + PER_LETTER * letters
