"""Tars and zips in the WebDataset layout: files of one key are one sample (:mod:`.pairs`).

``<key>.jpg`` (or png, webp …) with ``<key>.txt`` or ``<key>.json`` is a picture with its caption;
``<key>.input.jpg`` (several: ``.input0.``, ``.input_1.``; also ``.source.``), ``<key>.output.jpg`` (also
``.target.``) and the text are an edit. Keys may contain dots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..archives import Archive, Torn, description_path, find_archives, members
from ..paths import check_apart
from ..storage import Ref, Storage
from .findings import Finding, LeftOut, Note, Place, Reading
from .pairs import leftovers, pair, samples_of

NAME = "tars"
SUMMARY = "tars or zips of <key>.jpg + <key>.txt or .json, or of <key>.input.jpg + <key>.output.jpg + text"
SUFFIX = re.compile(r"\.(tar|tar\.gz|tgz|zip)$", re.IGNORECASE)


def recognise(place: Place) -> bool:
    """Whether there are tars or zips."""
    return bool(archives_of(place))


def archives_of(place: Place) -> list[Archive]:
    """The archives of a data set; one alone if it was named."""
    if place.files:
        return find_archives(place.source, place.files)
    folder, _, name = place.source.rpartition("/")
    return find_archives(folder, [(name, Storage().size(place.source))]) if SUFFIX.search(name) else []


def units(place: Place) -> Iterator[tuple[Archive, Path] | LeftOut]:
    """One archive each, with the path for its description."""
    archives = archives_of(place)
    check_apart([archive.name for archive in archives], SUFFIX)
    if place.files:
        taken, left = place.of_splits(archive.name for archive in archives)
        yield left
        parts = {os.path.basename(path) for archive in archives for path, _ in archive.parts}
        yield place.others(name for name, _ in place.files if os.path.basename(name) in parts)
        archives = [archive for archive in archives if archive.name in taken]
    for archive in archives:
        yield archive, description_path(place.scratch, archive)


def scan(unit: tuple[Archive, Path], storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples of one archive, in the order in which their keys first appear."""
    archive, description = unit
    files: list[tuple[str, Ref]] = []
    torn = None
    try:
        for member, ref in members(archive, storage, description):
            files.append((member.name, ref))
    except Torn as error:
        torn = error
    groups, unreadable, others = pair(files, reading.columns)
    shard = SUFFIX.sub("", archive.name)
    for group in groups:
        group.key = f"{shard}/{group.key}"
    yield from samples_of(groups, reading, storage)
    if torn:
        yield Note(f"{archive.name}: {torn}; {len(groups):,} samples before that were found.")
    yield from leftovers(unreadable, others, f"{shard}/")
