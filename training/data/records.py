"""Records of JSON arrays, JSON lines and CSV files, one at a time, and what they say of a sample."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from . import splits
from .chats import is_chat, parse_chat
from .columns import Columns
from .picture_roles import several_masks
from .pictures import is_picture_name
from .roles import Roles, roles_of
from .rows import LONGEST, Broken, read_table
from .texts import captions_of, is_text
from .words import CAPTIONS, INSTRUCTIONS, PICTURE, kind_of, simple, words_of

BLOCK = 2**20  # characters that are read at once
WHOLE = 2**31  # characters of a file that is one JSON object
GAP = re.compile(r"[\s,]*")
TABLES = {".csv": ",", ".tsv": "\t"}
PICTURE_WORDS = PICTURE - frozenset("name names local ground file files path paths".split())
INLINE = "pictures are in the list itself (base64); write them to files, or as bytes to Parquet"
BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk")  # JPEG, PNG, WebP, GIF, BMP
SHORT = 200  # characters; a picture has more
TEXT_NAMES = frozenset((*CAPTIONS, *INSTRUCTIONS))


@dataclass(frozen=True)
class Named:
    """A sample whose pictures are named, not yet found."""

    texts: tuple[str, ...]
    target: str
    inputs: tuple[str, ...] = ()
    roles: Roles | None = None
    mask: str | None = None


def read_records(file: TextIO, name: str) -> Iterator[Any | Broken]:
    """The records of a list in order; but for one JSON object never all in memory.

    Args:
        file: opened with ``newline=""``.
        name: of the file; ``.csv`` and ``.tsv`` are tables, anything else is a JSON array if it starts with
            ``[``, else lines, or one object that holds the records.
    """
    delimiter = next((mark for suffix, mark in TABLES.items() if name.lower().endswith(suffix)), None)
    if delimiter:
        yield from read_table(file, name, delimiter)
        return
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    if start == "[":
        yield from read_array(file)
    elif name.lower().endswith(".json"):
        yield from read_object(file, start)
    else:
        yield from read_lines(file, start)


def read_lines(file: TextIO, start: str) -> Iterator[Any | Broken]:
    """JSON lines; ``start`` was read already. A broken line costs one record."""
    for line in file:
        line, start = start + line, ""
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                yield Broken("record is no JSON", str(error))


def read_object(file: TextIO, start: str) -> Iterator[Any | Broken]:
    """The records in one JSON object; JSON lines that have a name for it."""
    line = start + file.readline()
    try:
        value, more = json.loads(line), file.readline()
    except ValueError:
        rest = file.read(WHOLE)
        try:
            yield from unwrapped(json.loads(line + rest))
        except ValueError as error:
            yield Broken("record is no JSON", str(error), last=True)
        return
    if more.strip():
        yield value
        yield from read_lines(file, more)
    else:
        yield from unwrapped(value)


def unwrapped(value: Any) -> list[Any]:
    """The records in a JSON object: those of its one list, or of COCO, or by the names of their pictures."""
    if not isinstance(value, Mapping) or is_chat(value):
        return [value]
    lists = {name: items for name, items in value.items() if is_records(items)}
    if lists and all(name.lower() in splits.WORDS for name in lists):
        return [of_split(item, name) for name, items in lists.items() for item in items]
    if {"images", "annotations"} <= lists.keys():
        return joined(lists["images"], lists["annotations"])
    if len(lists) == 1:
        return [with_sentences(item) for item in next(iter(lists.values()))]
    if value and all(is_picture_name(name) for name in value):
        return [
            {"file_name": name, **(item if isinstance(item, Mapping) else {"caption": item})}
            for name, item in value.items()
        ]
    return [value]


def of_split(item: Any, split: str) -> Any:
    """A record with the split that it is of."""
    return {"split": split, **item} if isinstance(item, Mapping) else item


def is_records(items: Any) -> bool:
    """Whether a value is a list of objects."""
    return isinstance(items, list) and bool(items) and isinstance(items[0], Mapping)


def joined(images: list[Any], annotations: list[Any]) -> list[Any]:
    """COCO's pictures with the captions that were given to each; none if the annotations are no captions."""
    captions: dict[Any, list[Any]] = {}
    for item in annotations:
        if isinstance(item, Mapping) and "caption" in item:
            captions.setdefault(item.get("image_id"), []).append(item["caption"])
    if not captions:
        return []
    return [
        {**image, "captions": captions.get(image.get("id"), [])} if isinstance(image, Mapping) else image
        for image in images
    ]


def with_sentences(item: Any) -> Any:
    """A record of Karpathy's lists of COCO and Flickr: its folder, and sentences with their tokens."""
    if not isinstance(item, Mapping) or not is_records(item.get("sentences")):
        return item
    kept = {name: value for name, value in item.items() if name not in ("sentences", "filepath")}
    if isinstance(item.get("filepath"), str) and isinstance(item.get("filename"), str):
        kept["filename"] = f"{item['filepath']}/{item['filename']}"
    return {**kept, "captions": [sentence.get("raw") for sentence in item["sentences"]]}


def read_array(file: TextIO) -> Iterator[Any | Broken]:
    """The items of a JSON array whose ``[`` was read already."""
    decoder, text, place, read = json.JSONDecoder(), "", 0, 1
    while True:
        place = GAP.match(text, place).end()
        if text.startswith("]", place):
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except ValueError as error:
            more = file.read(BLOCK) if len(text) - place < LONGEST else ""
            if not more:
                at = read - len(text) + place
                yield Broken(f"torn at character {at:,} ({getattr(error, 'msg', error)})", last=True)
                return
            text, place, read = text[place:] + more, 0, read + len(more)
            continue
        yield value


def parse_record(record: Any, columns: Columns = Columns()) -> Named | str:  # noqa: B008
    """What a record names, or in words what it lacks.

    Raises:
        UnclearRoles: it cannot be told what its pictures are.
        UnclearText: it cannot be told what its text is.
    """
    if not isinstance(record, Mapping):
        return "record is no JSON object"
    if is_chat(record) and not columns:
        chat = parse_chat(record, lambda value: list(picture_names(value)))
        if isinstance(chat, str):
            return INLINE if holds_inline(record) else chat
        return Named((chat.text,), chat.target, chat.inputs)
    if any(lacks_one(name, value) for name, value in record.items()):
        return "record names no picture"
    named = {field.name for field in (*columns.target, *columns.inputs, *columns.mask)}
    pictures = {
        name: names
        for name, value in record.items()
        if (name in named or looks_like_pictures(name, value)) and (names := picture_names(value))
    }
    texts = tuple(name for name, value in record.items() if name not in pictures and is_words(value))
    if not pictures:
        if holds_inline(record):
            return INLINE
        urls = any(map(is_url, record.values()))
        return "pictures are URLs; fetch them first" if urls else "record names no picture"
    if not texts:
        return "record has no text"
    roles = roles_of(tuple(pictures), texts, columns)
    if len(roles.inputs) < len(columns.inputs):
        return "no picture to start from"
    targets = roles.target.pick(pictures[roles.target.name])
    if len(targets) != 1:
        return several(roles.target.name)
    inputs = tuple(name for field in roles.inputs for name in field.pick(pictures[field.name]))
    masks = roles.mask.pick(pictures[roles.mask.name]) if roles.mask else ()
    if len(masks) > 1:
        return several_masks(roles.mask.name)
    captions = captions_of(record, roles.texts)
    if not captions:
        return "empty text"
    return Named(tuple(captions), targets[0], inputs, roles, masks[0] if masks else None)


def several(name: str) -> str:
    """That a field holds more than the one picture to learn, and what to type."""
    return f"several pictures in {name}; say which with --columns target={name}[-1] input={name}[:-1] text=…"


def picture_names(value: Any) -> tuple[str, ...]:
    """File names in a field: one, several, or as ``{"path": …}``; what is empty or a URL is none."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    names = []
    for item in items:
        if isinstance(item, Mapping):
            item = next((item[key] for key in ("path", "file_name", "image") if item.get(key)), None)
        item = str(item) if isinstance(item, int) and not isinstance(item, bool) else item
        if isinstance(item, str) and item.strip() and not is_url(item) and not holds_inline(item):
            names.append(item.strip())
    return tuple(names)


def lacks_one(name: str, value: Any) -> bool:
    """Whether a list of pictures has a gap."""
    return (
        isinstance(value, (list, tuple))
        and any(item is None or item == "" for item in value)
        and kind_of(name) in ("input", "target", "plain")
        and bool(set(words_of(name)[0]) & PICTURE_WORDS)
    )


def looks_like_pictures(name: str, value: Any) -> bool:
    """Whether a field holds names of pictures, by their suffix or, without one, by the field's name."""
    if simple(name) in TEXT_NAMES:
        return False
    names = picture_names(value)
    if not names or isinstance(value, int):
        return False
    words = set(words_of(name)[0])
    return (
        all(map(is_picture_name, names)) or bool(words & PICTURE_WORDS) and all(" " not in n for n in names)
    )


def is_url(value: Any) -> bool:
    """Whether a value is an address on the web."""
    return isinstance(value, str) and value.lstrip().startswith(("http://", "https://"))


def holds_inline(value: Any) -> bool:
    """Whether a value is, or holds, the bytes of a picture as text (base64)."""
    if isinstance(value, Mapping):
        return any(map(holds_inline, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_inline, value))
    if not isinstance(value, str) or not value.startswith(("data:image/", *BASE64)):
        return False
    return value.startswith("data:") or len(value) > SHORT and "." not in value


def is_words(value: Any) -> bool:
    """Whether a value may be a text or several, and is no address."""
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else (value,)
    return is_text(value) and not any(map(is_url, items))
