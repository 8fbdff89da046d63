"""Fields that are named by hand, ``--columns target=… input=… text=… mask=…``, and errors that ask for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
SPEC = re.compile(r"(?P<name>.+?)(?:\[(?P<at>-?\d+)\]|\[(?P<start>-?\d*):(?P<end>-?\d*)\])?", re.DOTALL)


@dataclass(frozen=True)
class Field:
    """A field, or some of the pictures in it.

    Attributes:
        name: of the field.
        start: first of its pictures, if it holds a list; counted from the end if below 0.
        stop: the one after the last.
    """

    name: str
    start: int | None = None
    stop: int | None = None

    def pick(self, items: Sequence[T]) -> Sequence[T]:
        """Those of the field's pictures that are meant."""
        return items[self.start : self.stop]

    def __str__(self) -> str:
        if self.start is self.stop is None:
            return self.name
        if self.start is not None and self.stop == (self.start + 1 or None):
            return f"{self.name}[{self.start}]"
        start, stop = ("" if end is None else end for end in (self.start, self.stop))
        return f"{self.name}[{start}:{stop}]"


@dataclass(frozen=True)
class Columns:
    """Fields that were named by hand, ``--columns target=… input=…,… text=… mask=…``; empty where none is."""

    target: tuple[Field, ...] = ()
    inputs: tuple[Field, ...] = ()
    texts: tuple[str, ...] = ()
    mask: tuple[Field, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.target or self.inputs or self.texts or self.mask)

    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*(field.name for field in (*self.target, *self.inputs)), *self.texts, *self.masks())

    def masks(self) -> tuple[str, ...]:
        """The one that holds masks, if it was named."""
        return tuple(field.name for field in self.mask)

    def words(self) -> list[str]:
        """As they were typed."""
        parts = (
            ("target", self.target),
            ("input", self.inputs),
            ("text", self.texts),
            ("mask", self.mask),
        )
        return [f"{role}={','.join(map(str, fields))}" for role, fields in parts if fields]


def parse_columns(words: Sequence[str]) -> Columns:
    """``["target=a", "input=b,c[0]", "text=d"]`` as fields. Raises ValueError."""
    found: dict[str, list[str]] = {}
    for word in words:
        role, equals, names = word.partition("=")
        fields = [name.strip() for name in names.split(",")]
        if role not in ("target", "input", "text", "mask") or not equals or not all(fields):
            raise ValueError(
                f"--columns {word} cannot be understood; give target=NAME, input=NAME,NAME, text=NAME and "
                "mask=NAME."
            )
        found.setdefault(role, []).extend(fields)
    if len(found.get("target", [])) > 1:
        raise ValueError(f"--columns names {len(found['target'])} targets; there is one picture to learn.")
    if len(found.get("mask", [])) > 1:
        raise ValueError(f"--columns names {len(found['mask'])} masks; a picture has one.")
    return Columns(
        tuple(map(parse_field, found.get("target", []))),
        tuple(map(parse_field, found.get("input", []))),
        tuple(found.get("text", [])),
        tuple(map(parse_field, found.get("mask", []))),
    )


def parse_field(text: str) -> Field:
    """``images[-1]`` or ``images[:-1]`` or ``images`` as a field."""
    match = SPEC.fullmatch(text)
    if match["at"] is not None:
        at = int(match["at"])
        return Field(match["name"], at, at + 1 or None)
    start, end = (int(match[name]) if match[name] else None for name in ("start", "end"))
    return Field(match["name"], start, end)


class UnclearRoles(ValueError):
    """Fields whose meaning cannot be told.

    Args:
        sentence: what is unclear, without the end.
        command: the ``--columns …`` to type.
    """

    def __init__(self, sentence: str, command: str) -> None:
        super().__init__(sentence)
        self.sentence, self.command = sentence, command

    def __reduce__(self) -> tuple:
        return type(self), (self.sentence, self.command)

    def __str__(self) -> str:
        return f"{self.sentence}; say which is which with {self.command}" if self.command else self.sentence


class UnclearText(UnclearRoles):
    """Pictures are clear, the text is not."""


def typed(target: Field, inputs: tuple[Field, ...], text: str) -> str:
    """The option that names these fields."""
    given = f" input={','.join(map(str, inputs))}" if inputs else ""
    return f"--columns target={target}{given} text={text}"


def listed(names: Iterable[str]) -> str:
    """Names for a sentence."""
    return ", ".join(names) or "none"
