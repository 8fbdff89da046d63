"""GenEval (djghosh13/geneval): 553 prompts about objects, counts, colours and places, four pictures each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark import AS_PUBLISHED, Answer, Benchmark, Checkout, File, Item, Picture, Row, Source
from ..reading import lines_of

SAMPLES = 4
NAMES = "evaluation/object_names.txt"
OFFICIAL = Source(
    "github:djghosh13/geneval",
    "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
    (
        File(
            "prompts/evaluation_metadata.jsonl",
            "sha256:5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        ),
        File(NAMES, "sha256:608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd"),
    ),
    "MIT",
    size=85_851,
)
REWRITTEN = Source(
    "github:ByteDance-Seed/Bagel",
    "056b5fd51a88c1eb4547318609e25d40080fcf87",
    (
        File(
            "eval/gen/geneval/prompts/evaluation_metadata_long.jsonl",
            "sha256:09472cc9c24e225417b1d5df27e688e5f2a0fcac9ec772f33d9debe4e5d49f27",
        ),
    ),
    "Apache-2.0",
    size=397_873,
)


def looked_at(path: str) -> bool:
    """Whether the official script judges a file at ``<folder>/samples/<file>``, relative to the pictures."""
    parts = path.split("/")
    return (
        len(parts) == 3
        and parts[0].isdigit()
        and parts[1] == "samples"
        and re.match(r"\d+\.png", parts[2]) is not None
    )


def summary(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``summary_scores.py`` counts over result lines: pictures, prompts, tasks in order, overall.

    Prompts are told apart by the text of their metadata. Tasks that are absent are absent from the mean.
    """
    tasks: dict[str, list[bool]] = {}
    prompts: dict[str, list[bool]] = {}
    for line in lines:
        tasks.setdefault(line["tag"], []).append(line["correct"])
        prompts.setdefault(line["metadata"], []).append(line["correct"])
    right = [correct for task in tasks.values() for correct in task]
    return {
        "images": len(right),
        "prompts": len(prompts),
        "correct images": mean(right),
        "correct prompts": mean([any(correct) for correct in prompts.values()]),
        "tasks": tasks,
        "overall": mean([mean(task) for task in tasks.values()]),
    }


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")


@dataclass(frozen=True)
class GenEval(Benchmark):
    """The set as published, or with prompts that a language model made long.

    Args:
        prompts: where the prompts are; their first file.
    """

    name: str
    title: str
    prompts: Source
    sources: tuple[Source, ...]
    unit: str = "share"
    judge: None = None
    official: str = "mmdet Mask2Former"
    modes: tuple[str, ...] = (AS_PUBLISHED,)

    def items(self, checkout: Checkout) -> list[Item]:
        """One a line, in the order of the file. Raises ValueError."""
        items = []
        for number, record in enumerate(lines_of(checkout.path(self.prompts, self.prompts.files[0].path))):
            folder = f"{number:05}"
            pictures = tuple(Picture(f"{folder}/samples/{n:04}.png", (n,)) for n in range(SAMPLES))
            items.append(Item(folder, record["prompt"], pictures, record["tag"], data=record))
        return items

    def companions(self, item: Item) -> Mapping[str, bytes]:
        """``metadata.jsonl``, from which the official scorer knows the prompt."""
        return {f"{item.key}/metadata.jsonl": (json.dumps(dict(item.data)) + "\n").encode()}

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """``results.jsonl`` of ``evaluate_images.py``. Raises ValueError."""
        known = {picture.path: item.key for item in items for picture in item.pictures}
        answers = []
        for line in lines_of(path):
            picture = "/".join(Path(line["filename"]).parts[-3:])
            if picture not in known:
                raise ValueError(f"{path} judges {line['filename']}, which is no picture of {self.name}.")
            verdict = {"correct": line["correct"], "reason": line["reason"]}
            answers.append(Answer(picture, known[picture], verdict=verdict))
        return answers

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str = AS_PUBLISHED) -> list[Row]:
        """Verdicts ``{"correct": bool, "reason": str}`` by path of the picture."""
        rows = []
        for item in items:
            judged = [verdicts[picture.path] for picture in item.pictures if picture.path in verdicts]
            if judged:
                right = tuple(bool(verdict["correct"]) for verdict in judged)
                seen = "; ".join(dict.fromkeys(v["reason"] for v in judged if v["reason"]))
                rows.append(Row(item.key, item.group, right, mean(right), item.prompt, seen))
        return rows

    def figures(self, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, float]:
        """The mean over a task's pictures, and as ``overall`` the mean of the tasks."""
        tasks: dict[str, list[bool]] = {}
        for row in rows:
            tasks.setdefault(row.group, []).extend(row.value)
        means = {name: mean(right) for name, right in tasks.items()}
        return {"overall": mean(list(means.values()))} | means


SETS = (
    GenEval("geneval", "GenEval", OFFICIAL, (OFFICIAL,)),
    GenEval("geneval-rewritten", "GenEval, rewritten prompts", REWRITTEN, (REWRITTEN, OFFICIAL)),
)
