"""What a layout hands over while a data set is indexed, and the fields in which published sets keep it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..storage import Ref, Storage

CHUNK = 256  # samples that are handed to a worker at once
MAX_INPUTS = 4  # as core.prompts.MAX_IMAGES, which costs an import of torch

# in the order in which they are looked for
CAPTIONS = ("caption", "text", "prompt", "input_prompt", "long_caption", "description")
INSTRUCTIONS = (
    "edited_prompt_list",
    "instruction",
    "edit_instruction",
    "edit_prompt",
    "input_prompt",
    "edit",
)
INPUTS = ("input_image", "input_images", "src_img", "source_img", "source_image", "original_image", "source")
TARGETS = ("output_image", "edited_img", "edited_image", "target_img", "target_image", "output", "target")
PICTURES = ("image", "img", "jpg", "jpeg", "png", "webp", "file_name", "image_path", "image_file", "picture")


@dataclass(frozen=True)
class Found:
    """A sample whose pictures nobody has looked at yet."""

    key: str
    text: str
    target: Ref
    inputs: tuple[Ref, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A sample that cannot be used.

    Attributes:
        key: its name.
        reason: a few words that many samples share.
        detail: what exactly, such as a file name.
    """

    key: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Note:
    """Something to tell the user about a file, such as where it is torn."""

    text: str


@dataclass(frozen=True)
class Ignored:
    """Files that are neither pictures nor texts, by suffix."""

    counts: dict[str, int]


Finding = Found | Refused | Note | Ignored


@dataclass(frozen=True)
class Place:
    """Where a data set lies.

    Attributes:
        source: absolute path or URL of its folder or of the one file that was named.
        files: (relative path, bytes) of all files below ``source``, sorted; empty if it is a file.
        images: folder or URL where pictures lie that a list names, or None: beside the list.
        scratch: folder of the index that is being written.
        say: told what is being read where that may take long.
    """

    source: str
    files: list[tuple[str, int]] = field(repr=False)
    images: str | None
    scratch: Path
    say: Callable[[str], Any] = field(default=lambda text: None, repr=False)


class Layout(Protocol):
    """A module that knows one layout. Units are small, can be pickled, and are scanned in any process."""

    NAME: str
    SUMMARY: str

    def recognise(self, place: Place) -> bool: ...

    def units(self, place: Place) -> Iterable[Any]: ...

    def scan(self, unit: Any, storage: Storage) -> Iterator[Finding]: ...


def first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of the named fields that holds something, or None."""
    values = (record.get(name) for name in names)
    return next((value for value in values if value is not None and value != []), None)


def text_of(record: Mapping[str, Any], edits: bool) -> str | None:
    """Caption or instruction of a record, or None. Of a list of wordings the last is taken, as published."""
    names = (*INSTRUCTIONS, *CAPTIONS) if edits else (*CAPTIONS, *INSTRUCTIONS)
    value = first(record, names)
    if isinstance(value, (list, tuple)):
        value = value[-1]
    return value.strip() if isinstance(value, str) else None


def load_text(key: str, ref: Ref, is_json: bool, edits: bool, storage: Storage) -> str | Refused:
    """The text of sample ``key``, without surrounding blanks, from a text file or a JSON object."""
    try:
        text = storage.read(ref).decode("utf-8-sig").strip()
        if not is_json:
            return text
        record = json.loads(text)
    except UnicodeDecodeError:
        return Refused(key, "text is not UTF-8", ref.path)
    except OSError as error:
        return Refused(key, "text cannot be read", str(error))
    except ValueError as error:
        return Refused(key, "text is no JSON", f"{ref.path}: {error}")
    found = text_of(record, edits) if isinstance(record, dict) else None
    return Refused(key, "JSON without a text", ref.path) if found is None else found


def chunked(items: Iterable[Any], size: int = CHUNK) -> Iterator[list[Any]]:
    """Lists of ``size`` items, the last one shorter."""
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
