"""Tables with pictures inside: which columns hold what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from .layouts.findings import CAPTIONS, INPUTS, INSTRUCTIONS, PICTURES, TARGETS, Found, Refused, text_of
from .storage import Ref


@dataclass(frozen=True)
class Columns:
    """Which columns hold what."""

    target: str
    inputs: tuple[str, ...]
    texts: tuple[str, ...]


def find_columns(schema: pa.Schema, path: str) -> Columns:
    """What the columns of a table hold, by name and type.

    Raises:
        ValueError: no picture or no text.
    """
    pictures = [field.name for field in schema if holds_pictures(field.type)]
    texts = [name for name in (*CAPTIONS, *INSTRUCTIONS) if name in schema.names]
    inputs = [name for name in INPUTS if name in pictures][:1]
    targets = [name for name in (*TARGETS, *PICTURES) if name in pictures]
    rest = [name for name in pictures if name not in inputs]
    target = targets[0] if targets else rest[0] if len(rest) == 1 else None
    if target is None or not texts:
        raise ValueError(
            f"{path} has columns {', '.join(schema.names)}: "
            f"{'none of texts' if target else 'none that is certainly the picture to learn'}; "
            f"rename one to {'caption' if target else 'image, or for edits output_image'}."
        )
    return Columns(target, tuple(inputs), tuple(dict.fromkeys(texts)))


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold pictures: bytes, {bytes, path}, or lists of these."""
    if is_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a cell holds several values."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def make_sample(key: str, record: dict[str, Any], target: Ref | None, inputs: list[Ref]) -> Found | Refused:
    """A sample from the texts of a row."""
    if target is None:
        return Refused(key, "no target picture")
    text = text_of(record, bool(inputs))
    return Refused(key, "no text") if text is None else Found(key, text, target, tuple(inputs))
