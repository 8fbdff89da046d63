"""Splits: which part of a data set is for training.

What is marked ``train`` or not marked at all is taken; what is marked as anything else is left out, and the
report says so. Marks are the words train, validation, test and their like in the names of shards, tables,
lists and folders, a column ``split``, and the splits of a saved data set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "development", "minival"),
    "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout", "held_out", "hold_out"),
}
WORDS = {word: split for split, words in SPLITS.items() for word in words}
# no letter before it and no small one behind: "test-00000", "val2017", "testA" and "dev_set", not "latest",
# "geneval" or "device"
WORD = re.compile(rf"(?<![a-zA-Z])(?i:{'|'.join(sorted(WORDS, key=len, reverse=True))})(?![a-z])")
COLUMNS = ("split", "splits", "data_split", "dataset_split", "subset_split", "partition")
ALL = "all"


def split_of(name: str) -> str | None:
    """The split that a name tells, or None."""
    found = WORD.search(name)
    return WORDS[found[0].lower()] if found else None


def split_of_file(path: str, shard: bool) -> str | None:
    """The split of a file: its own name tells it if it is a shard, table or list, else the folder next above.

    Args:
        path: relative to the data set.
        shard: whether it holds many samples; the name of a single picture says nothing of splits.
    """
    *folders, name = path.split("/")
    parts = [*folders, name.partition(".")[0]] if shard else folders
    return next((split for part in reversed(parts) if (split := split_of(part))), None)


def canonical(name: str) -> str:
    """How a split is called: ``dev`` is validation, ``train_sft`` train; what is unknown keeps its name."""
    return split_of(name) or name.strip().lower()


def wanted(
    found: Iterable[str | None], asked: Sequence[str], place: str, rows: bool = False
) -> set[str | None]:
    """Which of the splits that a data set has are taken; None stands for what has no mark.

    Args:
        found: splits that there are.
        asked: what ``--split`` names; empty: train.
        place: the data set, for the error.
        rows: whether a column may tell the splits where names do not.

    Raises:
        ValueError: there are splits, but none of those.
    """
    there = set(found)
    if ALL in asked or rows and there == {None}:
        return there
    names = {canonical(name) for name in asked} or {"train"}
    taken = there & names
    if not asked and None in there:
        taken.add(None)
    if there and not taken:
        named = sorted(split for split in there if split)
        if not named:
            raise ValueError(f"{place} has no splits, so no {listed(names)}; leave --split out.")
        raise ValueError(
            f"{place} has the splits {', '.join(named)}, but not {listed(names)}; choose one with "
            f"--split {named[0]}."
        )
    return taken


def listed(names: Iterable[str]) -> str:
    """Names for a sentence."""
    return " or ".join(sorted(names))


def choose(
    files: Sequence[tuple[str, str | None]], asked: Sequence[str], place: str, rows: bool = False
) -> tuple[list[str], Counter[str]]:
    """Of (name, split) the names to take, and how many there are of every other split. Raises ValueError."""
    taken = wanted((split for _, split in files), asked, place, rows)
    left = Counter(str(split or "no split") for _, split in files if split not in taken)
    return [name for name, split in files if split in taken], left


def is_left_out(row: Mapping[str, Any], file: str, asked: Sequence[str]) -> str:
    """The split that a row is left out for, or "".

    Args:
        row: with the column of splits, if it has one.
        file: name of the list or table.
        asked: what ``--split`` names.
    """
    if ALL in asked:
        return ""
    names = {canonical(name) for name in asked} or {"train"}
    values = (value for name, value in row.items() if name.lower() in COLUMNS)
    split = next((value for value in values if isinstance(value, str) and value.strip()), None)
    if split is not None:
        return "" if canonical(split) in names else canonical(split)
    return "" if not asked or split_of_file(file, shard=True) else "no split"
