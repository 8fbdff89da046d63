"""GenEval (djghosh13/geneval): 553 prompts about objects, counts, colours and places."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark import AS_PUBLISHED, Answer, Checkout, Item, Picture, Request, Row, Source

SAMPLES = 4
OFFICIAL = Source(
    "github:djghosh13/geneval",
    "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
    {"prompts/evaluation_metadata.jsonl": "", "evaluation/object_names.txt": ""},
    "MIT",
)


@dataclass(frozen=True)
class GenEval:
    """The set as published, or with prompts that a language model made long."""

    name: str
    title: str
    prompts: Source
    file: str
    sources: tuple[Source, ...]
    unit: str = "share"
    judge: None = None
    modes: tuple[str, ...] = (AS_PUBLISHED,)

    def items(self, checkout: Checkout) -> list[Item]:
        """One a line, in the order of the file."""
        lines = checkout.path(self.prompts, self.file).read_text(encoding="utf-8").splitlines()
        items = []
        for number, line in enumerate(lines):
            record = json.loads(line)
            folder = f"{number:05}"
            shots = tuple(Picture(f"{folder}/samples/{s:04}.png", (s,)) for s in range(SAMPLES))
            items.append(Item(folder, record["prompt"], shots, record["tag"], data=record))
        return items

    def companions(self, item: Item) -> Mapping[str, bytes]:
        """``metadata.jsonl``, which the scorer reads instead of the prompts."""
        return {f"{item.key}/metadata.jsonl": (json.dumps(dict(item.data)) + "\n").encode()}

    def requests(self, item: Item, checkout: Checkout) -> list[Request]:
        """None: a detector judges."""
        return []

    def read(self, request: Request, text: str, mode: str = AS_PUBLISHED) -> Any:
        """Never called."""
        raise NotImplementedError

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """``results.jsonl`` of the official scorer."""
        raise NotImplementedError

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str) -> list[Row]:
        """Verdicts ``{"correct": bool, "reason": str}`` by path of the picture."""
        raise NotImplementedError

    def figures(self, rows: Sequence[Row], mode: str) -> dict[str, float]:
        """Tasks, and their mean as ``overall``."""
        raise NotImplementedError


SETS = (GenEval("geneval", "GenEval", OFFICIAL, "prompts/evaluation_metadata.jsonl", (OFFICIAL,)),)
