"""The text of a sample among the text files that lie beside its pictures."""

from __future__ import annotations

import json

from ..columns import Columns, Field, UnclearText
from ..refs import Ref
from ..storage import Storage
from ..text_roles import text_roles
from ..texts import BadText, captions_of, clean, decode_text, is_text
from .findings import Reading, Refused

TEXTS = (".txt", ".caption", ".json")  # of several the first one counts
Pictures = tuple[Field, tuple[Field, ...]]  # target and inputs


def text_order(ending: str) -> tuple[int, str]:
    """Plain ``.txt`` first, then ``.caption``, what says more in its name, and JSON last."""
    return (TEXTS.index(ending) if ending in TEXTS[:2] else 3 if ending.endswith(".json") else 2, ending)


def read_texts(
    key: str,
    files: dict[str, Ref],
    texts: tuple[str, ...],
    pictures: Pictures,
    reading: Reading,
    storage: Storage,
) -> tuple[str, tuple[str, ...]] | Refused:
    """What the text is called, and its wordings: of the first of the files that holds any."""
    name = ""
    try:
        names = told_files(texts, pictures, reading.columns)
        for name in names:
            data = decode_text(storage.read(files[name]), reading.encoding)
            if name.endswith(".json"):
                told, captions = captions_in_json(name, data, pictures, reading.columns)
            else:
                told, captions = name, [clean(data)]
            if any(captions):
                return told, tuple(captions)
        return Refused(key, "empty text" if names else "no text")
    except BadText as error:
        return Refused(key, str(error), files[name].path)
    except UnclearText as error:
        return Refused(key, str(error))
    except OSError as error:
        return Refused(key, "text cannot be read", str(error))


def told_files(texts: tuple[str, ...], pictures: Pictures, columns: Columns) -> tuple[str, ...]:
    """The text files to look into, in order. Raises UnclearText."""
    records = tuple(name for name in texts if name.endswith(".json"))
    if columns.texts:  # endings of files, or fields of the JSON
        endings = tuple(name for name in columns.texts if name in texts)
        fields = any(name not in texts for name in columns.texts)
        return endings + tuple(name for name in records if fields and name not in endings)
    plain = tuple(name for name in texts if name in TEXTS[:2])
    more = tuple(name for name in texts if name not in (*plain, *records))
    if more and not plain:
        plain = text_roles(more, *pictures, columns)
    return plain + records


def captions_in_json(name: str, data: str, pictures: Pictures, columns: Columns) -> tuple[str, list[str]]:
    """The field of a JSON file that holds the text, and its wordings. Raises BadText, UnclearText."""
    try:
        record = json.loads(data)
    except ValueError as error:
        raise BadText("text is no JSON") from error
    fields = tuple(key for key, value in record.items() if is_text(value)) if isinstance(record, dict) else ()
    if not fields:
        raise BadText("JSON without a text")
    named = Columns(texts=tuple(key for key in columns.texts if key in fields))
    chosen = text_roles(fields, *pictures, named)
    return f"{name}:{chosen[0]}", captions_of(record, chosen)
