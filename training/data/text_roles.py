"""Which text of a sample is the one to learn from."""

from __future__ import annotations

from functools import lru_cache

from .columns import Columns, Field, UnclearText, listed, typed
from .words import (
    ABOUT_TEXTS,
    ANSWERS,
    ASKED,
    CAPTION_WORDS,
    CAPTIONS,
    DESCRIBING,
    INSTRUCTION_WORDS,
    INSTRUCTIONS,
    NOT_WANTED,
    OF_ONE_PICTURE,
    PLAIN_TEXTS,
    simple,
    words_of,
)


@lru_cache(maxsize=4096)
def text_roles(
    texts: tuple[str, ...], target: Field, inputs: tuple[Field, ...], columns: Columns
) -> tuple[str, ...]:
    """The texts to use, best first. Raises UnclearText."""
    if not columns.texts:
        return told_texts(texts, target, inputs)
    chosen = tuple(name for name in columns.texts if name in texts)
    if not chosen:
        raise UnclearText(
            f"there is no text {listed(columns.texts)} among {listed(texts)}", typed(target, inputs, "…")
        )
    return chosen


def told_texts(texts: tuple[str, ...], target: Field, inputs: tuple[Field, ...]) -> tuple[str, ...]:
    """The texts to use, by their names alone, best first. Raises UnclearText."""
    answers = [name for name in texts if simple(name) in ANSWERS]
    families = ((CAPTIONS, CAPTION_WORDS), (INSTRUCTIONS, INSTRUCTION_WORDS))
    if inputs:
        families = ((INSTRUCTIONS, INSTRUCTION_WORDS), (PLAIN_TEXTS, CAPTION_WORDS))
    elif answers:
        families = ((tuple(name for name in CAPTIONS if name not in ASKED), DESCRIBING),)
    for order, words in families:
        found = tuple(name for wanted in order for name in texts if simple(name) == wanted)
        if found:
            return found
        like = tuple(name for name in texts if says(name, words, bool(inputs)))
        if len({simple(name) for name in like}) == 1:
            return like
        if like:
            raise UnclearText(f"{listed(like)} could each be the text", typed(target, inputs, like[0]))
    if not texts:
        raise UnclearText("nothing of it is a text", "")
    raise UnclearText(
        f"of the texts {listed(texts)} it is not clear which is to be learned",
        typed(target, inputs, next((name for name in (*answers, *texts) if not is_about(name)), "…")),
    )


def says(name: str, words: frozenset[str], edit: bool) -> bool:
    """Whether a text's name holds one of the words; not, if it is something about it.

    Nor, in an edit, if it describes one of the pictures.
    """
    own = set(words_of(name)[0])
    return bool(own & words) and not is_about(name) and not (edit and own & OF_ONE_PICTURE)


def is_about(name: str) -> bool:
    """Whether a field tells something about a text (``caption_type``), or what is not to be drawn."""
    own = words_of(name)[0]
    return bool(own) and (own[-1] in ABOUT_TEXTS or not NOT_WANTED.isdisjoint(own))
