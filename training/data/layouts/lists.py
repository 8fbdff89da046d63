"""Lists that name picture files: JSON, JSON lines, CSV, Parquet, and ``data.txt`` that names such lists.

ShareGPT-4o-Image and OpenGPT-4o-Image (``text_to_image.json``, ``text_and_image_to_image.json``),
GPT-Image-Edit-1.5M (``data.txt`` and ``conversations``), LLaVA and chat templates (``messages``), COCO's
captions, ImgEdit and SimpleTuner (names in Parquet), image folders of `datasets` (``metadata.jsonl``,
``.csv``, ``.parquet``).
"""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO, cast

from ..archives import ARCHIVE
from ..archives import PART as PARTS
from ..chats import is_chat
from ..columns import Columns, Field, UnclearRoles, UnclearText
from ..names import Names
from ..paths import absolute, check_apart, join, list_files, parent
from ..pictures import SUFFIXES, is_picture_name
from ..records import Named, holds_inline, parse_record, picture_names, read_records
from ..refs import Ref
from ..rows import Broken
from ..splits import is_left_out
from ..storage import Storage
from ..tables import holds_pictures
from ..texts import open_text
from .findings import Finding, Found, LeftOut, Note, Place, Reading, Refused, chunked
from .stems import Stems, is_of_one

NAME = "lists"
SUMMARY = "JSON, JSON-lines, CSV or Parquet lists of picture files and texts, or a data.txt of root,json,flag"
KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIX = re.compile(r"\.(json|jsonl|ndjson|csv|tsv|parquet)(\.gz)?$", re.IGNORECASE)
PEEK = 2**16  # characters
STEM_COLUMNS = (
    "filename",
    "file_name",
    "image",
    "id",
    "key",
    "image_id",
    "img_id",
    "name",
    "photo_id",
    "uid",
)
SHOWN, SHOWN_COLUMNS = 3, 12
FIRST = 16  # records that show whether a file is a list


@dataclass(frozen=True)
class List:
    """One list.

    Attributes:
        name: what it is called in keys.
        path: where it is.
        root: where its pictures are.
        below: folder in ``root`` where they are looked for first.
        columns: fields that were named by hand, or the one that holds the stems of files.
    """

    name: str
    path: str
    root: str
    below: str = ""
    columns: Columns = Columns()


def recognise(place: Place) -> bool:
    """Whether there is a list that names pictures."""
    return next(find_lists(place), None) is not None


def find_lists(place: Place) -> Iterator[List]:
    """The lists of a data set, sorted by name: those that a ``data.txt`` names, or else all there are.

    The JSON of a single picture is none.
    """
    if not place.files:
        name, folder = os.path.basename(place.source), parent(place.source)
        yield from lists_of_roots(place, place.source) or one_list(place, name, folder)
        return
    tops = (name for name in place.files.ending(".txt") if "/" not in name)
    apart = (name for name in tops if not is_of_one(name, place.files))
    roots = [item for name in apart for item in lists_of_roots(place, join(place.source, name))]
    yield from roots
    if roots:
        return
    stems = Stems(place.files)
    for name in place.files.ending(*KINDS, ".parquet", ".gz"):
        if SUFFIX.search(name) and not is_of_one(name, place.files):
            yield from one_list(place, name, place.source, stems)


def one_list(place: Place, name: str, folder: str, stems: Container[str] = ()) -> list[List]:
    """The list that a file is; none if it is something else.

    Args:
        place: the data set.
        name: of the file in ``folder``.
        folder: absolute path or URL.
        stems: of pictures, where no text lies beside them: a column may name those by their stem alone.
    """
    if not SUFFIX.search(name):
        return []
    path, columns = join(folder, name), place.reading.columns
    first = list(islice(read_list(path, place.reading), FIRST))
    if not any(is_of_pictures(record, columns) for record in first):
        column = next((found for record in first if (found := stem_column(record, stems))), None)
        if column is None or columns.target:
            return []
        columns = replace(columns, target=(Field(column),))
    below = "" if place.images else name.rpartition("/")[0]
    return [List(SUFFIX.sub("", name), path, place.images or folder, below, columns)]


def is_of_pictures(record: Any, columns: Columns) -> bool:
    """Whether a record of a list names pictures."""
    if not isinstance(record, dict):
        return False
    if columns.target and columns.target[0].name in record:
        return True
    if is_chat(record):
        return "image" in repr(record)[:PEEK]
    return holds_inline(record) or any(
        any(map(is_picture_name, picture_names(value))) for value in record.values()
    )


def stem_column(record: Any, stems: Container[str]) -> str | None:
    """The field whose value, with a suffix, is the name of a picture that is there: SimpleTuner's ``id``."""
    if not isinstance(record, dict):
        return None
    return next((name for name in STEM_COLUMNS if str(record.get(name, "")) in stems), None)


def read_list(path: str, reading: Reading) -> Iterator[Any]:
    """The records of a list. Raises ValueError if it is not there, or of another encoding."""
    storage = Storage()
    if path.lower().endswith(".parquet"):
        yield from read_rows(path, storage)
        return
    try:
        file: Any = storage.open(Ref(path))
        file.peek(1)
    except FileNotFoundError as error:
        raise ValueError(f"There is no list at {path}; check the path.") from error
    name = path
    if path.lower().endswith(".gz"):
        file, name = cast(BinaryIO, gzip.GzipFile(fileobj=file)), path[: -len(".gz")]
    with open_text(file, path, reading.encoding) as text:
        yield from read_records(text, name)


def read_rows(path: str, storage: Storage) -> Iterator[Any]:
    """The rows of a Parquet file; none if it holds pictures itself."""
    try:
        table = storage.table(path)
        if any(holds_pictures(kind.type) for kind in table.schema_arrow):
            return
        for batch in table.iter_batches():
            yield from batch.to_pylist()
    except OSError as error:
        yield Broken(str(error), last=True)


def columns_seen(place: Place) -> list[str]:
    """What lists have for columns that are not understood, for the error; the first few."""
    seen = []
    for name in place.files.ending(*KINDS, ".parquet", ".gz"):
        if SUFFIX.search(name) and len(seen) < SHOWN:
            record = next(read_list(join(place.source, name), place.reading), None)
            if isinstance(record, dict) and record:
                seen.append(f"{name} has {', '.join(list(record)[:SHOWN_COLUMNS])}")
            elif isinstance(record, Broken):
                seen.append(f"of {name} the first {record.reason} ({record.detail})".replace(" ()", ""))
    return seen


def lists_of_roots(place: Place, path: str) -> list[List]:
    """The lists that a ``.txt`` of lines ``root,json,flag`` names; the flag weights a loss, and is unused."""
    if not path.lower().endswith(".txt"):
        return []
    with Storage().open(Ref(path)) as file:
        start = file.read(PEEK).decode("utf-8-sig", errors="replace")
    lines = [[part.strip() for part in line.split(",")] for line in start.splitlines()]
    lines = [line for line in lines if line != [""]]
    if not lines or not all(len(line) in (2, 3) and line[1].endswith(KINDS) for line in lines):
        return []
    folder, columns = parent(path), place.reading.columns
    return [
        List(
            SUFFIX.sub("", line[1]),
            join(folder, line[1]),
            absolute(join(place.images or folder, line[0])),
            "",
            columns,
        )
        for line in lines
    ]


def units(place: Place) -> Iterator[list[Finding] | Finding]:
    """Some samples each, their pictures found already: that takes one table of all names."""
    tables: dict[str, Names] = {}
    storage = Storage()
    lists = list(find_lists(place))
    check_apart([item.path for item in lists], SUFFIX)
    if place.files:
        taken, left = place.of_splits((item.name for item in lists), rows=True)
        yield left
        known = (ARCHIVE, PARTS, SUFFIX)
        yield place.others(
            name
            for name, _ in place.files
            if name.lower().endswith(SUFFIXES) or any(pattern.search(name) for pattern in known)
        )
        lists = [item for item in lists if item.name in taken]
    for listed in lists:
        if listed.root not in tables:
            files = place.files if listed.root == place.source else list_files(listed.root)
            tables[listed.root] = Names(listed.root, files, place.scratch, storage, place.say)
            for text in tables[listed.root].notes:
                yield Note(text)
        yield from chunked(samples_of(listed, tables[listed.root], place.reading))


def samples_of(listed: List, names: Names, reading: Reading) -> Iterator[Finding]:
    """The samples of one list in its order."""
    left: Counter[str] = Counter()
    for number, record in enumerate(read_list(listed.path, reading)):
        key = f"{listed.name}/{number}"
        if isinstance(record, Broken) and record.last:
            yield Note(f"{listed.path}: {record.reason}; {number:,} records before that were read.")
        elif isinstance(record, Broken):
            yield Refused(key, record.reason, record.detail)
        elif isinstance(record, dict) and (split := is_left_out(record, listed.name, reading.splits)):
            left[split] += 1
        else:
            yield find_pictures(key, record, listed, names)
    if left:
        yield LeftOut(dict(left))


def find_pictures(key: str, record: object, listed: List, names: Names) -> Found | Refused:
    """The sample of a record. Raises ValueError if it cannot be told what its pictures are."""
    try:
        named = parse_record(record, listed.columns)
    except UnclearText as error:
        return Refused(key, str(error))
    except UnclearRoles as error:
        raise ValueError(f"{key} of {listed.path}: {error}") from error
    if not isinstance(named, Named):
        return Refused(key, named)
    key = f"{key}:{named.target}"
    masks = (named.mask,) if named.mask else ()
    found = {name: names.find(name, listed.below) for name in (named.target, *named.inputs, *masks)}
    missing = [name for name, ref in found.items() if ref is None]
    if several := [name for name in missing if names.several(name)]:
        return Refused(key, "several files have this name; give more of its path", ", ".join(several))
    if missing:
        return Refused(key, "picture file is missing", ", ".join(missing))
    inputs = tuple(found[name] for name in named.inputs)
    mask = found[named.mask] if named.mask else None
    return Found(key, named.texts, found[named.target], inputs, named.roles, mask)


def files(unit: list[Finding]) -> Iterator[Ref]:
    """What a unit is read from."""
    for found in unit:
        if isinstance(found, Found):
            yield from (found.target, *found.inputs, *((found.mask,) if found.mask else ()))


def scan(unit: list[Finding], storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples, which were found already."""
    yield from unit
