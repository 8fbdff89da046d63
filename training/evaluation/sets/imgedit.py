"""ImgEdit-Bench, basic (PKU-YuanGroup/ImgEdit): 737 edits of nine types; three scores of 1 to 5 each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark import (
    AS_PUBLISHED,
    CORRECTED,
    Answer,
    Benchmark,
    Checkout,
    File,
    Item,
    Judge,
    Picture,
    Request,
    Row,
    Shown,
    Source,
    Unreadable,
)
from ..reading import json_of, within

EDITS = "Benchmark/Basic/basic_edit.json"
PROMPTS = "Benchmark/Basic/prompts.json"
SOURCES = "Benchmark/singleturn"
SCORE = (
    r"(?:[-•]\s*)?(?:\d+[.)]\s*)?([^:\d][^:]*):\s*([1-5])(?:\s*/\s*5|\.0)?\.?"  # "2. Detail Integrity: 4/5."
)
CODE = Source(
    "github:PKU-YuanGroup/ImgEdit",
    "547185d12c08267a862b94248576e1746e479937",
    (
        File(EDITS, "sha256:5ee9b7d61e918692416f79896300f738598c83adff8de737b25be4aaff72dc69"),
        File(PROMPTS, "sha256:f9468dc848776ee0a6c2e2c31e678c7224e9cb61b013747c8c52d4a05627b5a0"),
    ),
    None,
    size=157_817,
)
PICTURES = Source(
    "hub:sysuyy/ImgEdit", "", (File(f"{SOURCES}/**/*", "", 171),), None, archive="Benchmark.tar"
)


def read_published(text: str) -> float:
    """Mean of every whole number that ends a line behind its only ": ", two decimals.

    Raises:
        Unreadable: there is none, or a digit that is no number, at which the official script stops.
    """
    scores = []
    for line in text.splitlines():
        parts = line.strip().split(": ")
        if len(parts) == 2 and parts[1].isdigit():
            if not parts[1].isdecimal():
                raise Unreadable(f"{parts[1]!r} is no number")
            scores.append(int(parts[1]))
    if not scores:
        raise Unreadable("no score behind a colon and a blank at the end of a line")
    return round(sum(scores) / len(scores), 2)


def read_corrected(text: str) -> float:
    """Mean of exactly three named scores from 1 to 5, of which the 2nd and 3rd count at most as the 1st.

    The judge is told that limit; nothing in the official script holds it to it. Emphasis, numbering, "/5" and
    a full stop do not matter; a line of reasoning is no score. Raises Unreadable.
    """
    named = [re.fullmatch(SCORE, re.sub(r"[*_`#>]", "", line).strip()) for line in text.splitlines()]
    scores = [int(line[2]) for line in named if line and "reason" not in line[1].lower()]
    if len(scores) != 3:
        raise Unreadable(f"{len(scores)} of 3 scores from 1 to 5")
    return sum(min(scores[0], score) for score in scores) / 3


def type_means(scores: Mapping[str, list[float]], mode: str = AS_PUBLISHED) -> dict[str, float]:
    """Mean per edit type, of which none is empty; two decimals as published."""
    means = {name: sum(values) / len(values) for name, values in scores.items() if values}
    return {name: round(mean, 2) for name, mean in means.items()} if mode == AS_PUBLISHED else means


@dataclass(frozen=True)
class ImgEdit(Benchmark):
    """The basic suite."""

    name: str = "imgedit"
    title: str = "ImgEdit-Bench"
    unit: str = "of 5"
    sources: tuple[Source, ...] = (CODE, PICTURES)
    judge: Judge = Judge("gpt-4.1")
    official: str = "gpt-4.1"
    modes: tuple[str, ...] = (AS_PUBLISHED, CORRECTED)

    def items(self, checkout: Checkout) -> list[Item]:
        """One an edit, in the order of the file. Raises ValueError: a source picture is missing."""
        items = []
        for key, edit in json_of(checkout.path(CODE, EDITS)).items():
            source = checkout.path(PICTURES, f"{SOURCES}/{within(edit['id'])}")
            if not source.is_file():
                raise ValueError(f"{source} is missing, the picture of edit {key}; fetch {self.name} again.")
            picture = Picture(f"{key}.png", (0,))
            items.append(Item(key, edit["prompt"], (picture,), edit["edit_type"], source.read_bytes))
        return items

    def requests(self, item: Item, checkout: Checkout) -> list[Request]:
        """One call: the prompt of the edit's type, source and result."""
        text = json_of(checkout.path(CODE, PROMPTS))[item.group].replace("<edit_prompt>", item.prompt)
        return [Request(item.key, item.key, (text, Shown(None), Shown(item.pictures[0].path)))]

    def read(self, request: Request, text: str, mode: str = AS_PUBLISHED) -> float:
        """Score of an edit. Raises Unreadable."""
        return read_published(text) if mode == AS_PUBLISHED else read_corrected(text)

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """``result.json`` of ``basic_bench.py``; a failed call is an answer that cannot be read."""
        known = {item.key for item in items}
        answers = []
        for key, said in json_of(path).items():
            if key not in known:
                raise ValueError(f"{path} judges {key}, which is no edit of {self.name}.")
            answers.append(Answer(key, key, text=said if isinstance(said, str) else None))
        return answers

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str = AS_PUBLISHED) -> list[Row]:
        """Scores of the edits that could be read."""
        return [
            Row(item.key, item.group, score, (score - 1) / 4, item.prompt, f"{score:.2f} of 5")
            for item in items
            if (score := verdicts.get(item.key)) is not None
        ]

    def figures(self, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, float]:
        """Edit types, and as ``overall`` their mean, as in published tables; the code has none."""
        scores: dict[str, list[float]] = {}
        for row in rows:
            scores.setdefault(row.group, []).append(row.value)
        means = type_means(scores, mode)
        return {"overall": sum(means.values()) / len(means)} | means if means else {}


SETS = (ImgEdit(),)
