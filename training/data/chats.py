"""Conversations: ``conversations`` of LLaVA and GPT-Image-Edit, ``messages`` of chat templates.

What is answered is learned. A picture in the answer is the target, and those of the question are the ones to
start from. A picture in the question alone is described by the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .texts import PICTURE_MARK, clean

FIELDS = ("conversations", "messages", "conversation")
PICTURES = ("images", "image", "image_path", "image_paths")
ASKING, ANSWERING, SETTING = ("human", "user"), ("gpt", "assistant", "model", "bot"), ("system", "developer")


@dataclass(frozen=True)
class Chat:
    """What a conversation teaches: the names of its pictures, and the text."""

    text: str
    target: str
    inputs: tuple[str, ...] = ()


@dataclass
class Side:
    """What one side said, with the pictures in it: names, or None for a mark."""

    text: str = ""
    pictures: list[str | None] = field(default_factory=list)


def is_chat(record: Mapping[str, Any]) -> bool:
    """Whether a record holds turns."""
    return any(is_turns(record.get(name)) for name in FIELDS)


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def parse_chat(record: Mapping[str, Any], names_of: Callable[[Any], list[str]]) -> Chat | str:
    """What a conversation teaches, or in words what it lacks.

    Args:
        record: with its turns, and its pictures beside them or among them.
        names_of: the names of the pictures in a value.
    """
    turns = next(record[name] for name in FIELDS if is_turns(record.get(name)))
    sides = [(role, said(turn, names_of)) for turn in turns if (role := role_of(turn)) not in SETTING]
    asked = [side for role, side in sides if role in ASKING]
    answered = [side for role, side in sides if role in ANSWERING]
    if len(asked) != 1 or len(answered) > 1 or len(sides) > 2:
        return "conversation is not one question and its answer"
    question, answer = asked[0], answered[0] if answered else Side()
    beside = next((names for name in PICTURES if (names := names_of(record.get(name)))), [])
    if not answer.text and not answer.pictures and len(beside) == len(question.pictures) + 1:
        answer.pictures.append(None)  # the answer is the picture that nothing marks
    if not fill([question, answer], beside):
        return "conversation does not say where its pictures stand"
    if len(answer.pictures) == 1:
        return Chat(question.text, answer.pictures[0], tuple(question.pictures))
    if answer.pictures or len(question.pictures) != 1:
        return "conversation is about more than one picture" if beside else "record names no picture"
    if not answer.text:
        return "conversation answers nothing"
    return Chat(answer.text, question.pictures[0])


def role_of(turn: Mapping[str, Any]) -> str:
    """Who speaks."""
    return str(turn.get("from", turn.get("role", ""))).lower()


def said(turn: Mapping[str, Any], names_of: Callable[[Any], list[str]]) -> Side:
    """The text of a turn and its pictures in order."""
    content = turn.get("value", turn.get("content", ""))
    side, texts = Side(), []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, Mapping):
            picture = part.get("image") or part.get("image_url") or part.get("path")
            picture = picture.get("url") if isinstance(picture, Mapping) else picture
            if part.get("type") in ("image", "image_url"):
                side.pictures += names_of(picture) or [None]
            part = part.get("text")
        if isinstance(part, str):
            side.pictures += [None] * len(PICTURE_MARK.findall(part))
            texts.append(part)
    side.text = clean("\n".join(texts))
    return side


def fill(sides: list[Side], names: list[str]) -> bool:
    """Put the names of pictures beside the conversation in place of its marks. False if they do not fit."""
    marks = sum(name is None for side in sides for name in side.pictures)
    if marks != len(names):
        return False
    rest = iter(names)
    for side in sides:
        side.pictures = [next(rest) if name is None else name for name in side.pictures]
    return True
