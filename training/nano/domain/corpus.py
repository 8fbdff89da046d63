"""Text of the domain for training a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import edits, prompts, questions
from .words import OBJECTS, a, plural

CAPITALS = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2,}(?![A-Za-z])")


def sentences(seed: int, number: int) -> Iterator[str]:
    """Captions, instructions, questions and answers, `number` of each.

    Words in capitals are left out, so that no two capital letters become one token: a word that training has
    never seen is then written with the same tokens as all others, one for each letter.
    """
    for name in OBJECTS:
        yield from (f"{a(name)} {name}", f"the {plural(name)}") * 20
    for i in range(number):
        question = questions.draw(seed, "train", i)
        texts = (
            prompts.draw(seed, "train", i).text,
            edits.draw(seed, "train", i).text,
            question.text,
            question.answer,
        )
        for text in texts:
            yield CAPITALS.sub("", text)
