"""Which field of a data set is the picture to learn, which are those to start from, which is the text.

One rule for the columns of tables, the fields of JSON and CSV records, the endings of files that share a key
and the folders that pictures lie in (:mod:`.words`, :mod:`.picture_roles`, :mod:`.text_roles`). What their
words do not say is an error that names the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .columns import Columns, Field
from .picture_roles import picture_roles
from .text_roles import text_roles


@dataclass(frozen=True)
class Roles:
    """What the fields of a sample are.

    Attributes:
        target: the picture to learn.
        inputs: pictures to start from, in order.
        texts: of these the first that holds something is the text.
        unused: fields of pictures and texts that were left aside.
        mask: picture that is white where the target counts in the loss, or None.
    """

    target: Field
    inputs: tuple[Field, ...]
    texts: tuple[str, ...]
    unused: tuple[str, ...] = ()
    mask: Field | None = None

    @property
    def pictures(self) -> tuple[Field, ...]:
        """All of them that are used."""
        return (self.target, *self.inputs, *((self.mask,) if self.mask else ()))

    def __str__(self) -> str:
        inputs = f", input {', '.join(map(str, self.inputs))}" if self.inputs else ""
        inputs += f", mask {self.mask}" if self.mask else ""
        unused = f"; unused: {', '.join(self.unused)}" if self.unused else ""
        return (
            f"target {self.target}{inputs}, text {' or '.join(self.texts) or 'of the conversation'}{unused}"
        )


@lru_cache(maxsize=4096)
def roles_of(pictures: tuple[str, ...], texts: tuple[str, ...], columns: Columns) -> Roles:
    """What the fields of a sample, a table or a key are.

    Args:
        pictures: names of the fields that hold pictures.
        texts: names of the fields that hold text.
        columns: fields that were named by hand, which come first.

    Raises:
        UnclearRoles: a picture could not be told.
        UnclearText: the text could not be told.
    """
    target, inputs, mask, unused = picture_roles(pictures, texts, columns)
    chosen = text_roles(texts, target, inputs, columns)
    return Roles(target, inputs, chosen, (*unused, *(name for name in texts if name not in chosen)), mask)
