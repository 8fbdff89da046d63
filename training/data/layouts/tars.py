"""Tars and zips in the WebDataset layout: files of one key are one sample (:mod:`.pairs`).

``<key>.jpg`` (or png, webp …) with ``<key>.txt`` or ``<key>.json`` is a picture with its caption;
``<key>.input.jpg`` (several: ``.input0.``, ``.input_1.``; also ``.source.``), ``<key>.output.jpg`` (also
``.target.``) and the text are an edit. Keys may contain dots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..archives import Archive, Torn, description_path, find_archives, members
from ..columns import listed
from ..paths import check_apart
from ..refs import Ref
from ..storage import Storage
from .findings import Finding, Ignored, Large, LeftOut, Note, Place, Reading, chunked
from .pairs import Group, is_edit, leftovers, pair, samples_of

NAME = "tars"
SUMMARY = "tars or zips of <key>.jpg + <key>.txt or .json, or of <key>.input.jpg + <key>.output.jpg + text"
LARGE = 2**32  # bytes of an archive that several processes look at
PART_SAMPLES = 4096  # samples of a large archive that one process looks at
LISTS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
SUFFIX = re.compile(r"\.(tar|tar\.gz|tgz|zip)$", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """One archive, or some of the samples of a large one.

    Attributes:
        archive: where it lies.
        description: where it is described if it is compressed or split.
        groups: the samples; None for all of it.
        edits: whether there are edits among all its samples, if these are some of them.
    """

    archive: Archive
    description: Path
    groups: tuple[Group, ...] | None = None
    edits: bool = False


def recognise(place: Place) -> bool:
    """Whether there are tars or zips."""
    return bool(archives_of(place))


def archives_of(place: Place) -> list[Archive]:
    """The archives of a data set; one alone if it was named."""
    if place.files:
        return find_archives(place.source, place.files)
    folder, _, name = place.source.rpartition("/")
    return find_archives(folder, [(name, Storage().size(place.source))]) if SUFFIX.search(name) else []


def units(place: Place) -> Iterator[Unit | Large | LeftOut | Ignored]:
    """One archive each."""
    archives = archives_of(place)
    check_apart([archive.name for archive in archives], SUFFIX)
    if place.files:
        taken, left = place.of_splits(archive.name for archive in archives)
        yield left
        parts = {os.path.basename(path) for archive in archives for path, _ in archive.parts}
        yield place.others(name for name, _ in place.files if os.path.basename(name) in parts)
        archives = [archive for archive in archives if archive.name in taken]
    for archive in archives:
        unit = Unit(archive, description_path(place.scratch, archive))
        yield Large(unit) if sum(size for _, size in archive.parts) > LARGE else unit


def divide(unit: Unit, storage: Storage, reading: Reading) -> list[Unit | Finding]:
    """A large archive as some of its samples each, so that several processes look at its pictures.

    Its headers are walked by one of them, which reads none of what lies between.
    """
    groups, findings = walk_archive(unit, storage, reading)
    edits = any(is_edit(group, reading.columns) for group in groups)
    parts = [replace(unit, groups=tuple(chunk), edits=edits) for chunk in chunked(groups, PART_SAMPLES)]
    return [*parts, *findings]


def files(unit: Unit) -> list[Ref]:
    """What a unit is read from."""
    return [Ref(path) for path, _ in unit.archive.parts]


def scan(unit: Unit, storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples of one archive, in the order in which their keys first appear."""
    if unit.groups is not None:
        yield from samples_of(unit.groups, reading, storage, unit.edits)
        return
    groups, findings = walk_archive(unit, storage, reading)
    yield from samples_of(groups, reading, storage)
    yield from findings


def walk_archive(unit: Unit, storage: Storage, reading: Reading) -> tuple[list[Group], list[Finding]]:
    """The files of an archive sorted into samples, and what else there is to say of it."""
    archive, torn = unit.archive, None
    found: list[tuple[str, Ref]] = []
    try:
        for member, ref in members(archive, storage, unit.description):
            found.append((member.name, ref))
    except Torn as error:
        torn = error
    groups, unreadable, others = pair(found, reading.columns)
    shard = SUFFIX.sub("", archive.name)
    for group in groups:
        group.key = f"{shard}/{group.key}"
    findings: list[Finding] = []
    if torn:
        findings.append(Note(f"{archive.name}: {torn}; {len(groups):,} samples before that were found."))
    if lists := [suffix for suffix in others if suffix in LISTS]:
        findings.append(
            Note(f"{archive.name}: its {listed(lists)} is not read; unpack it, or put that beside it.")
        )
    return groups, findings + list(leftovers(unreadable, others, f"{shard}/"))
