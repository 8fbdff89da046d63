"""A plain folder: ``cat.jpg`` beside ``cat.txt``, in sub-folders too; what most people have of their own.

For edits ``cat.input.jpg`` (several: ``cat.input0.jpg`` …) lies beside them, and ``cat.output.jpg`` may take
the place of ``cat.jpg``; or there is a folder of sources beside one of targets. A ``.caption`` or ``.json``
file may take the place of ``cat.txt``. :mod:`.pairs` has the rules.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .. import splits
from ..listing import Files
from ..paths import join
from ..pictures import SUFFIXES, UNREADABLE
from ..refs import Ref
from ..storage import Storage
from ..words import kind_of
from . import findings
from .beside import TEXTS
from .findings import Finding, Ignored, LeftOut, Place, Reading
from .pairs import is_edit, leftovers, pair, samples_of
from .role_folders import PART, RoleFolders, role_folders

NAME = "folder"
SUMMARY = "pictures, each with a .txt, .caption or .json file of the same name beside it"
FIRST_WORD = re.compile(r".[^._-]*", re.DOTALL)


@dataclass(frozen=True)
class Unit:
    """All files of some keys.

    Attributes:
        root: folder or URL.
        names: paths below it.
        roles: folders of theirs that tell roles.
        edits: whether there are edits in the whole data set.
        lone: whether texts without a picture are told: such a one is likely a README, or that of a picture of
            another split.
    """

    root: str
    names: tuple[str, ...]
    roles: tuple[tuple[str, tuple[str, ...]], ...]
    edits: bool
    lone: bool


def recognise(place: Place) -> bool:
    """Whether a picture has a text beside it."""
    if not any(suffix in place.files.suffixes for suffix in TEXTS):
        return False
    roles = find_roles(place)
    arrange(place.files, roles, frozenset())
    for names in blocks(place.files):
        groups, _, _ = pair(refs(place.source, names), place.reading.columns, roles)
        if any(group.pictures and group.texts for group in groups):
            return True
    return False


def refs(root: str, names: list[str] | tuple[str, ...]) -> Iterator[tuple[str, Ref]]:
    """Name and place of files."""
    return ((name, Ref(join(root, name))) for name in names)


def is_picture(name: str) -> bool:
    """Whether a file is a picture, of whatever kind."""
    return name.lower().endswith((*SUFFIXES, *UNREADABLE))


def folder_of(name: str) -> str:
    """The folder of a file, composed, as :func:`~.pairs.pair` compares it."""
    return unicodedata.normalize("NFC", name).rpartition("/")[0]


def find_roles(place: Place) -> RoleFolders:
    """The folders that tell roles. Raises UnclearRoles."""
    items = (name for name, _ in place.files if name.lower().endswith((*SUFFIXES, *TEXTS)))
    folders = {(folder_of(name), name.lower().endswith(TEXTS)) for name in items}
    return role_folders(folders, Listed(place.files), place.reading.columns)


class Listed:
    """The pictures among files, see :class:`.role_folders.Pictures`.

    A name is asked for composed and decomposed, as file systems have both.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    def below(self, folder: str) -> Iterator[str]:
        start = f"{folder}/" if folder else ""
        for stem in self._beginning(start):
            yield stem[len(start) :]

    def __contains__(self, stem: str) -> bool:
        return stem in self._beginning(f"{stem}.")

    def _beginning(self, start: str) -> Iterator[str]:
        for form in dict.fromkeys((start, unicodedata.normalize("NFD", start))):
            for name in self._files.beginning(form):
                if name.lower().endswith(SUFFIXES):
                    yield unicodedata.normalize("NFC", posixpath.splitext(name)[0])


def arrange(files: Files, roles: RoleFolders, left_out: frozenset[str]) -> None:
    """Put files that may be of one sample beside one another, without pictures of folders that are left out.

    Files of one sample share their folder, but for one that tells a role, and their name up to the first dot,
    dash or underscore.
    """
    files.arranged_by = None if left_out else roles
    files.arrange(
        (first_words(name, roles), name)
        for name, _ in files
        if not (is_picture(name) and name.rpartition("/")[0] in left_out)
    )


def first_words(name: str, roles: RoleFolders) -> str:
    """What all files share that may be of one sample."""
    *folders, last = unicodedata.normalize("NFC", name).split("/")
    for depth, folder in enumerate(folders if roles else ()):
        if folder in roles.get("/".join(folders[:depth]), ()):
            del folders[depth]
            break
    return "/".join((*folders, FIRST_WORD.match(last)[0]))


def blocks(files: Files) -> Iterator[list[str]]:
    """The files that were arranged, so many at once that few keys of a sample are in each.

    Where a block ends is told by what is in it, so that files that are added change few blocks.
    """
    block: list[str] = []
    before = None
    for key, name in files.arranged():
        if block and key != before and zlib.crc32(before) % findings.CHUNK == 0:
            yield block
            block = []
        block.append(name)
        before = key
    if block:
        yield block


def units(place: Place) -> Iterator[Unit | LeftOut]:
    """The files of some samples each; they are paired where they are looked at."""
    roles = find_roles(place)
    pictures = Counter(name.rpartition("/")[0] for name, _ in place.files if is_picture(name))
    marks = {folder: splits.split_of_file(f"{folder}/", shard=False) for folder in pictures}
    taken = splits.wanted(marks.values(), place.reading.splits, place.source)
    out = frozenset(folder for folder, split in marks.items() if split not in taken)
    left: Counter[str] = Counter()
    for folder in sorted(out):
        left[str(marks[folder] or "no split")] += pictures[folder]
    yield LeftOut(dict(left))
    if out or place.files.arranged_by != roles:
        arrange(place.files, roles, out)
    edits = any(has_edits(place, names, roles) for names in blocks(place.files))
    for names in blocks(place.files):
        above = {"/".join(parts[:depth]) for parts in map(split, names) for depth in range(len(parts))}
        own = tuple((folder, roles[folder]) for folder in sorted(above & roles.keys()))
        yield Unit(place.source, tuple(names), own, edits, lone=not left)


def split(name: str) -> list[str]:
    """The folders and the name of a file, composed."""
    return unicodedata.normalize("NFC", name).split("/")


def has_edits(place: Place, names: list[str], roles: RoleFolders) -> bool:
    """Whether there are edits among the files of some samples. They are paired only if a name says so."""
    columns = place.reading.columns
    if not columns and not roles and not any(map(may_be_input, names)):
        return False
    groups, _, _ = pair(refs(place.source, names), columns, roles)
    return any(is_edit(group, columns) for group in groups)


def may_be_input(name: str) -> bool:
    """Whether the last word of a name may say that a picture is one to start from."""
    part = PART.fullmatch(posixpath.splitext(name)[0])
    return part is not None and kind_of(part["word"]) == "input"


def files(unit: Unit) -> Iterator[Ref]:
    """What a unit is read from."""
    return (ref for _, ref in refs(unit.root, unit.names))


def scan(unit: Unit, storage: Storage, reading: Reading) -> Iterator[Finding]:
    """The samples with their texts."""
    groups, unreadable, others = pair(refs(unit.root, unit.names), reading.columns, dict(unit.roles))
    yield from leftovers(unreadable, others, "")
    lone = Counter(name[name.rindex(".") :] for group in groups if not group.pictures for name in group.texts)
    if lone and unit.lone:
        yield Ignored(dict(lone))
    samples = [group for group in groups if group.pictures]
    yield from samples_of(samples, reading, storage, unit.edits, loose=True)
