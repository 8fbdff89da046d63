"""A plain folder: ``cat.jpg`` beside ``cat.txt``, in sub-folders too; what most people have of their own.

For edits ``cat.input.jpg`` (several: ``cat.input0.jpg`` …) lies beside them, and ``cat.output.jpg`` may take
the place of ``cat.jpg``; or there is a folder of sources beside one of targets. A ``.caption`` or ``.json``
file may take the place of ``cat.txt``. :mod:`.pairs` has the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..paths import join
from ..pictures import SUFFIXES, UNREADABLE
from ..storage import Ref, Storage
from .beside import TEXTS
from .findings import Finding, Found, Ignored, Place, Reading, Refused, chunked
from .pairs import Group, is_edit, leftovers, pair, samples_of

NAME = "folder"
SUMMARY = "pictures, each with a .txt, .caption or .json file of the same name beside it"
Unit = tuple[list[Group], bool]


def recognise(place: Place) -> bool:
    """Whether a picture has a text beside it."""
    if not any(name.lower().endswith(TEXTS) for name, _ in place.files):
        return False
    groups, _, _ = pair(files_of(place, {name for name, _ in place.files}), place.reading.columns)
    return any(group.pictures and group.texts for group in groups)


def files_of(place: Place, taken: set[str]) -> Iterator[tuple[str, Ref]]:
    """Name and place of these files."""
    return ((name, Ref(join(place.source, name))) for name, _ in place.files if name in taken)


def units(place: Place) -> Iterator[Unit | Finding]:
    """Some samples each, and whether there are edits among all of them."""
    pictures = [name for name, _ in place.files if name.lower().endswith((*SUFFIXES, *UNREADABLE))]
    taken, left = place.of_splits(pictures, shards=False)
    yield left
    out = set(pictures) - taken
    files = files_of(place, {name for name, _ in place.files} - out)
    groups, unreadable, others = pair(files, place.reading.columns)
    yield from leftovers(unreadable, others, "")
    # a text without a picture is likely a README, or that of a picture of another split
    lone = Counter(name[name.rindex(".") :] for group in groups if not group.pictures for name in group.texts)
    if lone and not left.counts:
        yield Ignored(dict(lone))
    samples = [group for group in groups if group.pictures]
    edits = any(is_edit(group, place.reading.columns) for group in samples)
    for chunk in chunked(samples):
        yield chunk, edits


def scan(unit: Unit, storage: Storage, reading: Reading) -> Iterator[Found | Refused]:
    """The samples with their texts."""
    groups, edits = unit
    yield from samples_of(groups, reading, storage, edits, loose=True)
