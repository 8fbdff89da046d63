"""Tables with pictures inside: which columns hold what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from . import chats, splits
from .columns import Columns, UnclearRoles
from .layouts.findings import Found, LeftOut, Reading, Refused
from .picture_roles import several_masks
from .refs import Ref
from .roles import Roles, roles_of
from .texts import captions_of

Cells = dict[str, Sequence[Ref]]  # pictures of a row by column


def find_columns(schema: pa.Schema, path: str, columns: Columns) -> Roles:
    """What the columns of a table hold, by name and type.

    Raises:
        ValueError: it cannot be told.
    """
    pictures = tuple(field.name for field in schema if holds_pictures(field.type))
    texts = tuple(field.name for field in schema if holds_texts(field.type))
    chat = next((field.name for field in schema if field.name in chats.FIELDS and is_list(field.type)), None)
    if chat and pictures and not texts:
        raise ValueError(
            f"{path} holds conversations ({chat}), which are read from JSON lists and not from tables; write "
            "what describes the picture to a column of its own."
        )
    try:
        return roles_of(pictures, texts, columns)
    except UnclearRoles as error:
        raise ValueError(f"{path} has the columns {', '.join(schema.names)}: {error}") from error


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold pictures: bytes, {bytes, path}, or lists of these."""
    if is_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_texts(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold texts, or lists of them."""
    if is_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a cell holds several values."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def read_columns(schema: pa.Schema, roles: Roles) -> list[str]:
    """Names of the columns that are read at once: texts and splits."""
    return [*roles.texts, *(name for name in schema.names if name.lower() in splits.COLUMNS)]


def samples_of(
    name: str, rows: Iterable[tuple[int, dict[str, Any], Cells]], roles: Roles, reading: Reading
) -> Iterator[Found | Refused | LeftOut]:
    """The samples of rows: of each its number, its texts and splits, and its pictures by column."""
    left: Counter[str] = Counter()
    for row, record, cells in rows:
        sample = make_sample(f"{name}/{row}", record, cells, roles, reading)
        if isinstance(sample, str):
            left[sample] += 1
        else:
            yield sample
    if left:
        yield LeftOut(dict(left))


def make_sample(
    key: str, record: dict[str, Any], cells: Cells, roles: Roles, reading: Reading
) -> Found | Refused | str:
    """A sample of a row, or the split that it is left out for.

    Args:
        key: of the sample.
        record: the row's texts and splits.
        cells: its pictures by column.
        roles: of the columns.
        reading: how.
    """
    if split := splits.is_left_out(record, key.rpartition("/")[0], reading.splits):
        return split
    targets = roles.target.pick(cells[roles.target.name])
    if len(targets) != 1:
        name = roles.target.name
        command = f"--columns target={name}[-1] input={name}[:-1] text={roles.texts[0]}"
        return Refused(
            key, f"several pictures in {name}; say which with {command}" if targets else "no target picture"
        )
    inputs = tuple(ref for field in roles.inputs for ref in field.pick(cells[field.name]))
    if reading.columns.inputs and not inputs:
        return Refused(key, "no picture to start from")
    masks = roles.mask.pick(cells[roles.mask.name]) if roles.mask else ()
    if len(masks) > 1:
        return Refused(key, several_masks(roles.mask.name))
    texts = captions_of(record, roles.texts)
    if not texts:
        return Refused(key, "no text")
    return Found(key, tuple(texts), targets[0], inputs, roles, masks[0] if masks else None)
