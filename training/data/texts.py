"""Texts of data sets: their encoding, the marks of pictures in them, and one of several captions."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from .words import simple

NOTHING = frozenset("nan none null n/a <na> #n/a".split())  # in small letters
CAPTION_RULES = ("last", "first", "random", "all")
# the longest first: UTF-32's mark begins as UTF-16's does
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# <image>, <image_1>, <|image_1|>, <img><|image_1|></img>, <ImageHere>
PICTURE_MARK = re.compile(
    r"(?:<img>\s*)?<\|?\s*(?:image|img|imagehere)\s*[_ ]?(\d*)\s*\|?>(?:\s*</img>)?", re.IGNORECASE
)


class BadText(ValueError):
    """Bytes that are no text of the encoding; says what to do."""


def encoding_of(start: bytes, encoding: str | None) -> str:
    """The encoding of a text: what its byte order mark says, else ``encoding``, else UTF-8."""
    return next((name for mark, name in MARKS if start.startswith(mark)), encoding or "utf-8")


def check_encoding(name: str | None) -> None:
    """Raise ValueError if Python knows no text encoding of this name."""
    if name is None:
        return
    try:
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"--encoding {name} is unknown; give one such as gbk, latin-1 or utf-16-le."
        ) from error


def decode_text(data: bytes, encoding: str | None) -> str:
    """A text file's contents. Raises BadText."""
    name = encoding_of(data, encoding)
    try:
        return checked(data.decode(name), name)
    except UnicodeError as error:
        raise BadText(not_of(name)) from error


def checked(text: str, encoding: str) -> str:
    """``text``, if it does not hold what UTF-16 looks like to an encoding of single bytes. Raises BadText."""
    if "\0" in text:
        raise BadText(f"text is not {encoding.upper()}, but perhaps UTF-16 (--encoding utf-16-le)")
    return text


def not_of(encoding: str) -> str:
    """That a text is of another encoding, and what to do."""
    name = encoding.removesuffix("-sig").upper()
    return f"text is not {name}; say what it is with --encoding (gbk, latin-1, …)"


def open_text(file: BinaryIO, name: str, encoding: str | None) -> io.TextIOBase:
    """A list as text, read piece by piece; line ends stay.

    Reading raises ValueError that names the list where a byte is of no character.
    """
    return CheckedText(file, name, encoding_of(file.read(4), encoding))


class CheckedText(io.TextIOWrapper):
    """A text file whose encoding errors name the file."""

    def __init__(self, file: BinaryIO, name: str, encoding: str) -> None:
        file.seek(0)
        super().__init__(file, encoding=encoding, newline="")
        self._list = name

    def read(self, size: int | None = -1) -> str:
        return self._told(super().read, size)

    def readline(self, size: int = -1) -> str:
        return self._told(super().readline, size)

    def __next__(self) -> str:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def _told(self, read: Any, size: int | None) -> str:
        try:
            return checked(read(size), self.encoding)
        except UnicodeError as error:  # its byte number counts from the start of a block
            raise ValueError(f"{self._list}: {not_of(self.encoding)}") from error
        except BadText as error:
            raise ValueError(f"{self._list}: {error}") from error


def clean(text: str) -> str:
    """A text without surrounding blanks and marks of pictures; within it a mark becomes "image 1".

    What tables write where there is none, such as ``nan``, is no text.
    """
    text = without_marks(text.replace("\r\n", "\n"))
    return "" if text.casefold() in NOTHING else text


def without_marks(text: str) -> str:
    """A text without surrounding blanks and marks of pictures."""
    found = list(PICTURE_MARK.finditer(text))
    if not found:
        return text.strip()
    pieces, end = [], 0
    for number, mark in enumerate(found):
        pieces += [text[end : mark.start()], f"image {mark[1] or number + 1}"]
        end = mark.end()
    pieces.append(text[end:])
    first, last = 0, len(pieces) - 1
    while first < last and not pieces[first].strip():
        first += 2
    while last > first and not pieces[last].strip():
        last -= 2
    return "".join(pieces[first : last + 1]).strip()


def captions_of(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The texts of a record: of the first field that holds one, and of those that differ from it by a number.

    A field may hold one text or a list of them; what is empty or no text is passed over.
    """
    chosen: list[str] = []
    family = None
    for name in names:
        if chosen and simple(name) != family:
            break
        value = record.get(name)
        values = value if isinstance(value, (list, tuple)) else (value,)
        chosen += [text for item in values if isinstance(item, str) and (text := clean(item))]
        family = simple(name)
    return chosen


def is_text(value: object) -> bool:
    """Whether a value may be a text, or a list of its wordings."""
    if isinstance(value, (list, tuple)):
        return bool(value) and any(isinstance(item, str) for item in value)
    return isinstance(value, str)


def choose_captions(texts: tuple[str, ...], rule: str) -> list[tuple[str, ...]]:
    """The wordings of each sample that one picture becomes.

    Args:
        texts: all of them, at least one.
        rule: ``last``, ``first``, ``random`` (the position in training chooses), or ``all``: a sample each.
    """
    if rule == "all":
        return [(text,) for text in texts]
    return [texts if rule == "random" else texts[:1] if rule == "first" else texts[-1:]]
