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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ..columns import Columns
from ..pictures import SUFFIXES, UNREADABLE
from ..roles import CAPTIONS, INSTRUCTIONS, Roles, UnclearRoles, kind_of, listed, picture_roles, simple
from ..storage import Ref, Storage
from .beside import TEXTS, read_texts, text_order
from .findings import Finding, Found, Ignored, Reading, Refused

TEXT_WORDS = frozenset((*CAPTIONS, *INSTRUCTIONS))
PART = re.compile(r"(?P<base>.*?[^/])(?P<part>(?P<mark>[._-])(?P<word>[^./_-]+(?:[_-]\d+)?))", re.DOTALL)


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


@dataclass(frozen=True)
class Item:
    """A picture or text.

    Attributes:
        ref: where it lies.
        name: what it is called, composed.
        stem: its name, composed, without suffix, and without the folder that tells its role.
        suffix: in lower case.
        folder: that folder, with a slash behind it, or "".
        copy: 1, or 2 for the second file of this very name in a tar.
    """

    ref: Ref
    name: str
    stem: str
    suffix: str
    folder: str = ""
    copy: int = 1

    @property
    def is_text(self) -> bool:
        return self.suffix in TEXTS


def pair(files: Iterable[tuple[str, Ref]], columns: Columns) -> tuple[list[Group], list[str], Counter[str]]:
    """Sort the files of one tar, zip or folder into samples.

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
    items = in_role_folders(items, columns)
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


def in_role_folders(items: list[Item], columns: Columns) -> list[Item]:
    """Take folders such as ``control/`` and ``target/`` that lie beside one another out of the keys.

    ``captions/`` beside ``images/`` is one of them too, and what ``--columns`` names with a slash behind it.
    """
    named = {name for name in columns.names() if name.endswith("/")}
    masks = named & set(columns.masks())
    beside: dict[str, dict[str, str]] = defaultdict(dict)
    for folder, text in {(item.stem.rpartition("/")[0], item.is_text) for item in items}:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            kind = "text" if text and simple(part) in TEXT_WORDS else kind_of(part) if part else "unknown"
            if kind in ("input", "target", "plain", "mask", "unused", "text") or f"{part}/" in named:
                beside["/".join(parts[:depth])].setdefault(part, kind)
    roles = {}
    for above, kinds in beside.items():
        there = set(kinds.values())
        told = there & {"target", "plain"} and there & {"input", "text", "mask"}
        if told or named - masks & {f"{part}/" for part in kinds}:
            roles[above] = set(kinds)
            continue
        for part, kind in kinds.items():
            if f"{part}/" in masks or not masks and kind == "mask":
                if taken := with_masked(items, above, part):
                    roles.setdefault(above, set()).update(taken)
    if not columns:
        check_folders(items, set(roles))
    return [without_role(item, roles) for item in items] if roles else items


def with_masked(items: list[Item], above: str, folder: str) -> set[str]:
    """A folder of masks, with the folder beside it whose pictures they are of, if these lie in one.

    Raises UnclearRoles: they fit those of several.
    """
    stems: dict[str, set[str]] = defaultdict(set)  # by folder in ``above``, and of all but the masks by ""
    for item in items:
        if item.is_text or above and not item.stem.startswith(f"{above}/"):
            continue
        within = item.stem.removeprefix(f"{above}/")
        part, slash, rest = within.partition("/")
        if slash:
            stems[part].add(without_mask_ending(rest) if part == folder else rest)
        if part != folder or not slash:
            stems[""].add(within)
    own = stems.pop(folder, set())
    if own & stems.pop("", set()):
        return {folder}
    of = sorted(part for part, there in stems.items() if own & there)
    if len(of) > 1:
        raise UnclearRoles(
            f"{folder}/ may hold masks of {listed(f'{part}/' for part in of)}",
            "one `data index` for each of them",
        )
    return {folder, *of} if of else set()


def without_mask_ending(stem: str) -> str:
    """``cat`` of ``cat-masklabel``."""
    part = PART.fullmatch(stem)
    return part["base"] if part and kind_of(part["word"]) == "mask" else stem


def check_folders(items: list[Item], told: set[str]) -> None:
    """Raise UnclearRoles if a folder without texts holds the same names as one beside it that has them.

    The two are likely halves of edits, and to take the one for captioned pictures would lose the sources.

    Args:
        items: of the data set.
        told: folders whose folders tell what they are.
    """
    pictures, texts = defaultdict(set), set()
    for item in items:
        above, _, name = item.stem.rpartition("/")
        if item.is_text:
            texts.add(above)
        else:
            pictures[above].add(name)
    beside = defaultdict(list)
    for folder in pictures:
        above = folder.rpartition("/")[0]
        if folder and above not in told and kind_of(folder.rpartition("/")[2]) not in ("mask", "unused"):
            beside[above].append(folder)
    for folders in beside.values():
        for bare in folders:
            for other in folders if bare not in texts else ():
                if other in texts and pictures[bare] <= pictures[other]:
                    names = [f"{folder.rpartition('/')[2]}/" for folder in (bare, other)]
                    raise UnclearRoles(
                        f"{' and '.join(names)} hold pictures of the same names and do not say what they are",
                        f"--columns target={names[1]} input={names[0]} text=.txt",
                    )


def without_role(item: Item, roles: dict[str, set[str]]) -> Item:
    """An item whose folder tells its role, without that folder in its stem."""
    parts = item.stem.split("/")
    for depth, part in enumerate(parts[:-1]):
        if part in roles.get("/".join(parts[:depth]), ()):
            stem = "/".join((*parts[:depth], *parts[depth + 1 :]))
            return replace(item, stem=stem, folder=f"{part}/")
    return item


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
    groups: list[Group], reading: Reading, storage: Storage, edits: bool = False, loose: bool = False
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
