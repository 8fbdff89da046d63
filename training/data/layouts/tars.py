"""Tars in the WebDataset layout: files of one key are one sample.

``<key>.jpg`` (or png, webp …) with ``<key>.txt`` or ``<key>.json`` is a picture with its caption;
``<key>.input.jpg`` (several: ``.input0.``, ``.input_1.``; also ``.source.``), ``<key>.output.jpg`` (also
``.target.``) and the text are an edit. Keys may contain dots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..archives import Archive, Torn, description_path, find_archives, members
from ..pictures import SUFFIXES
from ..storage import Ref, Storage
from .findings import Finding, Found, Ignored, Note, Place, Refused, load_text

NAME = "tars"
SUMMARY = "tars of <key>.jpg + <key>.txt or .json, or of <key>.input.jpg + <key>.output.jpg + text"

MEMBER = re.compile(
    r"(?P<key>.+?)(?:\.(?P<role>input|source|output|target)_?(?P<number>\d*))?(?P<suffix>\.[^./]+)", re.DOTALL
)


@dataclass
class Group:
    """Files of one key by role: ``text``, ``json``, ``target``, or ``input`` with a number."""

    key: str
    files: dict[tuple[str, int], Ref] = field(default_factory=dict)


def recognise(place: Place) -> bool:
    """Whether there are tars."""
    return bool(find_archives(place.source, place.files))


def units(place: Place) -> Iterator[tuple[Archive, Path]]:
    """One tar each, with the path for its description."""
    for archive in find_archives(place.source, place.files):
        yield archive, description_path(place.scratch, archive)


def scan(unit: tuple[Archive, Path], storage: Storage) -> Iterator[Finding]:
    """The samples of one tar, in the order in which their keys first appear."""
    archive, description = unit
    groups, torn, ignored = collect(archive, storage, description)
    shard = re.sub(r"\.(tar|tar\.gz|tgz)$", "", archive.name, flags=re.IGNORECASE)
    for group in groups:
        yield make_sample(f"{shard}/{group.key}", group, storage)
    if torn:
        yield Note(f"{archive.name}: {torn}; {len(groups):,} samples before that were found.")
    if ignored:
        yield Ignored(dict(ignored))


def collect(
    archive: Archive, storage: Storage, description: Path
) -> tuple[list[Group], Torn | None, Counter[str]]:
    """The groups of a tar, where it is torn, and how many other files it holds by suffix.

    A file whose role its key already has opens another group, ``key#2``.
    """
    groups: dict[str, Group] = {}
    ignored: Counter[str] = Counter()
    torn = None
    try:
        for member, ref in members(archive, storage, description):
            parsed = parse(member.name)
            if parsed is None:
                ignored[Path(member.name).suffix or "without suffix"] += 1
                continue
            key, role = parsed
            name, number = key, 1
            while name in groups and role in groups[name].files:
                number += 1
                name = f"{key}#{number}"
            groups.setdefault(name, Group(name)).files[role] = ref
    except Torn as error:
        torn = error
    return list(groups.values()), torn, ignored


def parse(name: str) -> tuple[str, tuple[str, int]] | None:
    """Key and role of a member; None if it is neither picture nor text."""
    match = MEMBER.fullmatch(name)
    if match is None:
        return None
    suffix = match["suffix"].lower()
    if suffix in (".txt", ".json"):
        return name[: -len(suffix)], ("text" if suffix == ".txt" else "json", 0)
    if suffix not in SUFFIXES:
        return None
    if match["role"] in ("input", "source"):
        return match["key"], ("input", int(match["number"] or 0))
    return match["key"], ("target", 0)


def make_sample(key: str, group: Group, storage: Storage) -> Found | Refused:
    """A group as a sample, with its text read."""
    inputs = [ref for (role, _), ref in sorted(group.files.items()) if role == "input"]
    target = group.files.get(("target", 0))
    if target is None:
        return Refused(key, "no target picture" if inputs else "text without a picture")
    role = next((role for role in (("text", 0), ("json", 0)) if role in group.files), None)
    if role is None:
        return Refused(key, "no text")
    text = load_text(key, group.files[role], role[0] == "json", bool(inputs), storage)
    return text if isinstance(text, Refused) else Found(key, text, target, tuple(inputs))
