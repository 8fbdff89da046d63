"""Folders that tell what lies in them: ``control/`` beside ``target/``, ``captions/`` beside ``images/``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from ..columns import Columns, UnclearRoles, listed
from ..refs import Ref
from ..words import CAPTIONS, INSTRUCTIONS, kind_of, simple
from .beside import TEXTS

TEXT_WORDS = frozenset((*CAPTIONS, *INSTRUCTIONS))
PART = re.compile(r"(?P<base>.*?[^/])(?P<part>(?P<mark>[._-])(?P<word>[^./_-]+(?:[_-]\d+)?))", re.DOTALL)
RoleFolders = dict[str, tuple[str, ...]]  # by the folder that they lie in, sorted


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


class Pictures(Protocol):
    """The pictures of a data set by their stems: composed paths without suffix."""

    def below(self, folder: str) -> Iterable[str]:
        """Those below a folder, relative to it."""
        ...

    def __contains__(self, stem: str) -> bool: ...


class Held:
    """Those among some items."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._stems = sorted({item.stem for item in items if not item.is_text})
        self._known = set(self._stems)

    def below(self, folder: str) -> Iterable[str]:
        start = f"{folder}/" if folder else ""
        return (stem[len(start) :] for stem in self._stems if stem.startswith(start))

    def __contains__(self, stem: str) -> bool:
        return stem in self._known


def told_folders(items: list[Item], columns: Columns) -> RoleFolders:
    """The folders among items that tell roles. Raises UnclearRoles."""
    folders = {(item.stem.rpartition("/")[0], item.is_text) for item in items}
    return role_folders(folders, Held(items), columns)


def role_folders(folders: set[tuple[str, bool]], pictures: Pictures, columns: Columns) -> RoleFolders:
    """The folders that tell roles, because they lie beside one another, or ``--columns`` names them.

    ``captions/`` beside ``images/`` is one of them too, and ``masks/`` if its pictures are called as others.

    Args:
        folders: that hold pictures (False) or texts (True).
        pictures: in them.
        columns: fields that were named by hand, folders with a slash behind them.

    Raises:
        UnclearRoles: two folders are likely halves of edits, or it cannot be told what masks are of.
    """
    named = {name for name in columns.names() if name.endswith("/")}
    masks = named & set(columns.masks())
    beside: dict[str, dict[str, str]] = defaultdict(dict)
    for folder, text in sorted(folders):
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            kind = "text" if text and simple(part) in TEXT_WORDS else kind_of(part) if part else "unknown"
            if kind in ("input", "target", "plain", "mask", "unused", "text") or f"{part}/" in named:
                beside["/".join(parts[:depth])].setdefault(part, kind)
    roles: dict[str, set[str]] = {}
    for above, kinds in beside.items():
        there = set(kinds.values())
        told = there & {"target", "plain"} and there & {"input", "text", "mask"}
        if told or named - masks & {f"{part}/" for part in kinds}:
            roles[above] = set(kinds)
            continue
        for part, kind in kinds.items():
            if f"{part}/" in masks or not masks and kind == "mask":
                if taken := with_masked(folders, pictures, above, part):
                    roles.setdefault(above, set()).update(taken)
    if not columns:
        check_folders(folders, pictures, set(roles))
    return {above: tuple(sorted(parts)) for above, parts in roles.items()}


def with_masked(folders: set[tuple[str, bool]], pictures: Pictures, above: str, folder: str) -> set[str]:
    """A folder of masks, with the folder beside it whose pictures they are of, if these lie in one.

    Raises UnclearRoles: they fit those of several.
    """
    start = f"{above}/" if above else ""
    within = (name.removeprefix(start) for name, text in folders if not text and name.startswith(start))
    siblings = sorted({name.partition("/")[0] for name in within} - {folder, ""})
    of = set()
    for stem in pictures.below(f"{start}{folder}"):
        masked = without_mask_ending(stem)
        if f"{start}{masked}" in pictures and not masked.startswith(f"{folder}/"):
            return {folder}
        of |= {part for part in siblings if f"{start}{part}/{masked}" in pictures}
    if len(of) > 1:
        raise UnclearRoles(
            f"{folder}/ may hold masks of {listed(f'{part}/' for part in sorted(of))}",
            "one `data index` for each of them",
        )
    return {folder, *of} if of else set()


def without_mask_ending(stem: str) -> str:
    """``cat`` of ``cat-masklabel``."""
    part = PART.fullmatch(stem)
    return part["base"] if part and kind_of(part["word"]) == "mask" else stem


def check_folders(folders: set[tuple[str, bool]], pictures: Pictures, told: set[str]) -> None:
    """Raise UnclearRoles if a folder without texts holds the same names as one beside it that has them.

    The two are likely halves of edits, and to take the one for captioned pictures would lose the sources.

    Args:
        folders: that hold pictures (False) or texts (True).
        pictures: in them.
        told: folders whose folders tell what they are.
    """
    texts = {folder for folder, text in folders if text}
    beside = defaultdict(list)
    for folder in sorted(folder for folder, text in folders if not text):
        above = folder.rpartition("/")[0]
        if folder and above not in told and kind_of(folder.rpartition("/")[2]) not in ("mask", "unused"):
            beside[above].append(folder)
    for group in beside.values():
        for bare in group:
            for other in group if bare not in texts else ():
                if other in texts and all_in(pictures, bare, other):
                    names = [f"{folder.rpartition('/')[2]}/" for folder in (bare, other)]
                    raise UnclearRoles(
                        f"{' and '.join(names)} hold pictures of the same names and do not say what they are",
                        f"--columns target={names[1]} input={names[0]} text=.txt",
                    )


def all_in(pictures: Pictures, bare: str, other: str) -> bool:
    """Whether all pictures of a folder lie in another one too."""
    return all(f"{other}/{stem}" in pictures for stem in pictures.below(bare) if "/" not in stem)


def without_role(item: Item, roles: RoleFolders) -> Item:
    """An item whose folder tells its role, without that folder in its stem."""
    parts = item.stem.split("/")
    for depth, part in enumerate(parts[:-1]):
        if part in roles.get("/".join(parts[:depth]), ()):
            stem = "/".join((*parts[:depth], *parts[depth + 1 :]))
            return replace(item, stem=stem, folder=f"{part}/")
    return item
