"""Files that share a key are one sample: pictures with the text beside them, in tars, zips and folders alike.

``cat.jpg`` and ``cat.txt`` share the key ``cat``. So do ``cat.input.jpg``, ``cat_start.jpg`` and
``cat.caption.txt``, whose endings say more of them, and ``control/cat.jpg`` with ``target/cat.jpg`` and
``target/cat.txt``, whose folders do. An ending or folder that says nothing is an error (:mod:`..roles`).
A mask is ``cat-masklabel.png``, ``cat.mask.png``, or of the picture's name in a folder ``masks/`` that lies
beside that of the pictures or within it.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..columns import Columns, UnclearRoles
from ..picture_roles import picture_roles
from ..pictures import SUFFIXES, UNREADABLE
from ..refs import Ref
from ..roles import Roles
from ..storage import Storage
from ..words import kind_of, simple
from .beside import TEXTS, read_texts, text_order
from .findings import Finding, Found, Ignored, Reading, Refused
from .role_folders import PART, TEXT_WORDS, Item, RoleFolders, told_folders, without_role


@dataclass
class Group:
    """Files of one key.

    Attributes:
        key: what they share.
        pictures: places by what tells them apart: ``.jpg``, ``.input.jpg``, ``_start.png``, ``control/``.
        texts: the same of the texts.
        names: what the files of the pictures are called.
    """

    key: str
    pictures: dict[str, Ref] = field(default_factory=dict)
    texts: dict[str, Ref] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def pair(
    files: Iterable[tuple[str, Ref]], columns: Columns, roles: RoleFolders | None = None
) -> tuple[list[Group], list[str], Counter[str]]:
    """Sort the files of one tar, zip or folder into samples.

    Args:
        files: their names and places; of a folder all that may belong to the same samples.
        columns: fields that were named by hand.
        roles: folders that tell the roles of what lies in them; default: those among the files.

    Returns:
        tuple: groups in the order in which their keys first appear; names of pictures of a kind that is not
        read; number of other files by suffix.
    """
    items, unreadable, others, seen = [], [], Counter(), Counter()
    for name, ref in files:
        composed = unicodedata.normalize("NFC", name)
        stem, suffix = posixpath.splitext(composed)
        suffix = suffix.lower()
        if suffix in UNREADABLE:
            unreadable.append(name)
        elif suffix in SUFFIXES or suffix in TEXTS:
            seen[stem, suffix] += 1
            items.append(Item(ref, composed, stem, suffix, copy=seen[stem, suffix]))
        else:
            others[suffix or "without suffix"] += 1
    if roles is None:
        roles = told_folders(items, columns)
    items = [without_role(item, roles) for item in items] if roles else items
    endings = told_endings(items, columns)
    groups: dict[tuple[str, int], Group] = {}
    for item in items:
        ending = endings.get(item.stem, "")
        key = item.stem.removesuffix(ending)
        name = key if item.copy == 1 else f"{key}#{item.copy}"
        group = groups.setdefault((key, item.copy), Group(name))
        if not item.is_text:
            ending = item.folder or f"{ending}{item.suffix}"
            group.pictures[ending], group.names[ending] = item.ref, item.name
            continue
        told = f"{item.folder}{ending}"
        ours = kind_of(told) in ("target", "plain") or told in columns.names()[:1]
        if told and ours and item.suffix not in group.texts:
            told = ""  # it is about what is to be learned
        group.texts[f"{told}{item.suffix}"] = item.ref
    return list(groups.values()), unreadable, others


def told_endings(items: list[Item], columns: Columns) -> dict[str, str]:
    """The part of a stem that tells a file apart from others of its key, by stem.

    What stands behind a dot is one if it is a role, or if what is before it has a text and the whole none.
    What stands behind ``_`` or ``-`` is one where a source and a target share what is before it and do not
    have a text each, and if it says that it is the mask of what has no such ending.
    """
    pictures = {item.stem for item in items if not item.is_text}
    texts = {item.stem for item in items if item.is_text}
    named = [posixpath.splitext(name)[0] for name in columns.names() if name.startswith((".", "_", "-"))]
    named = [ending for ending in named if ending and not ending.startswith(tuple(SUFFIXES))]
    parts = {stem: PART.fullmatch(stem) for stem in pictures | texts}
    paired = told_pairs({stem: parts[stem] for stem in pictures if parts[stem]}, pictures, texts)
    endings = {}
    for stem, part in parts.items():
        by_hand = next((ending for ending in named if stem.endswith(ending) and stem != ending), None)
        if by_hand or part is None:
            endings[stem] = by_hand or ""
        elif stem in paired or stem not in pictures and simple(part["word"]) in TEXT_WORDS:
            endings[stem] = part["part"]
        elif part["mark"] == "." and (
            kind_of(part["word"]) in ("input", "target", "mask", "unused")
            or stem not in texts
            and part["base"] in texts
        ):
            endings[stem] = part["part"]
    return endings


def told_pairs(parts: dict[str, re.Match], pictures: set[str], texts: set[str]) -> set[str]:
    """Stems such as ``cat_start`` and ``cat_end``, whose last word is a role because both are there."""
    beside: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for stem, part in parts.items():
        if part["mark"] != ".":
            kind = kind_of(part["word"])
            if kind in ("input", "target", "mask", "unused"):
                beside[part["base"], part["mark"]][stem] = kind
    paired = set()
    for (base, _), kinds in beside.items():
        roles = {stem for stem, kind in kinds.items() if kind in ("input", "target")}
        if base in pictures:
            roles.add(base)
            paired |= {stem for stem, kind in kinds.items() if kind == "mask" and stem not in texts}
        complete = "input" in kinds.values() and ("target" in kinds.values() or base in pictures)
        if complete and not roles <= texts:
            paired |= set(kinds)
    return paired


def samples_of(
    groups: Sequence[Group], reading: Reading, storage: Storage, edits: bool = False, loose: bool = False
) -> Iterator[Found | Refused]:
    """Every group as a sample, with its text read.

    Args:
        groups: of one tar, zip or folder; their keys are those of the data set.
        reading: how.
        storage: reads the texts.
        edits: whether there are edits beside them.
        loose: whether the pictures are files: then a sample has the name of its target, and pictures that
            differ by suffix alone are samples of their own.

    Raises:
        UnclearRoles: it cannot be told what the pictures of a key are.
    """
    edits = edits or any(is_edit(group, reading.columns) for group in groups)
    for group in groups:
        if not group.pictures:
            yield Refused(group.key, "text without a picture")
        elif loose and len(group.pictures) > 1 and all(ending in SUFFIXES for ending in group.pictures):
            for ending, ref in group.pictures.items():
                alone = Group(group.key, {ending: ref}, group.texts, {ending: group.names[ending]})
                yield sample_of(alone, reading, storage, edits, loose)
        else:
            yield sample_of(group, reading, storage, edits, loose)


def is_edit(group: Group, columns: Columns) -> bool:
    """Whether a group has a picture that is certainly one to start from."""
    named = {field.name for field in columns.inputs}
    return any(name in named or kind_of(name) == "input" for name in group.pictures)


def sample_of(group: Group, reading: Reading, storage: Storage, edits: bool, loose: bool) -> Found | Refused:
    """A group as a sample. Raises UnclearRoles."""
    pictures, texts = tuple(group.pictures), tuple(sorted(group.texts, key=text_order))
    columns, key = reading.columns, group.names[pictures[0]] if loose else group.key
    inputs_only = {kind_of(name) for name in pictures} <= {"input", "mask", "unused"}
    if columns.target[0].name not in pictures if columns.target else inputs_only:
        return Refused(key, "no target picture")
    try:
        target, inputs, mask, unused = picture_roles(pictures, texts, columns)
    except UnclearRoles as error:
        raise UnclearRoles(f"{key}: {error.sentence}", error.command) from error
    key = group.names[target.name] if loose else key
    if len(inputs) < len(columns.inputs) or not inputs and edits and kind_of(target.name) == "target":
        return Refused(key, "no picture to start from")
    found = read_texts(key, group.texts, texts, (target, inputs), reading, storage)
    if isinstance(found, Refused):
        return found
    name, captions = found
    left = (text for text in texts if text != name.partition(":")[0])
    refs = tuple(group.pictures[field.name] for field in inputs)
    roles = Roles(target, inputs, (name,), (*unused, *left), mask)
    return Found(
        key, captions, group.pictures[target.name], refs, roles, group.pictures[mask.name] if mask else None
    )


def leftovers(unreadable: list[str], others: Counter[str], shard: str) -> Iterator[Finding]:
    """What is in a container and in no sample."""
    for name in unreadable:
        suffix = posixpath.splitext(name)[1].lower()
        yield Refused(f"{shard}{name}", f"{suffix} is not read; convert it to .jpg or .png")
    if others:
        yield Ignored(dict(others))
