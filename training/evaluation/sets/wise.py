"""WISE (PKU-YuanGroup/WISE): 1,000 prompts that need knowledge; legacy (GPT-4o), Verified (local judge)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark import (
    AS_PUBLISHED,
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
from ..reading import filled, json_of, lines_of, messages

CATEGORIES = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
LAST = {  # number of the last prompt of each category
    "legacy": (400, 567, 700, 800, 900, 1000),
    "verified": (400, 520, 640, 760, 880, 1000),
}
WEIGHTS = {
    "legacy": (0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    "verified": (0.4, 0.12, 0.12, 0.12, 0.12, 0.12),
}
PARTS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}


def read_legacy(text: str) -> dict[str, float]:
    """The named scores of an answer, each the last of its name; without names, three lines of 0, 1 or 2."""
    named = re.findall(
        r"\*{0,2}(consistency|realism|aesthetic quality)\*{0,2}\s*:?\s*(\d)", text, re.IGNORECASE
    )
    if named:
        return {name.lower().replace(" ", "_"): float(digit) for name, digit in named}
    bare = re.findall(r"(?m)^\s*([0-2])\s*$", text)
    return dict(zip(PARTS, map(float, bare), strict=False)) if len(bare) >= len(PARTS) else {}


def read_verified(text: str) -> dict[str, float]:
    """``{"score": 0 or 1}``: the first that is named, else the only line that is one; empty: none."""
    named = re.search(r"\*{0,2}score\*{0,2}\s*:?\s*([01])\b", text, re.IGNORECASE)
    if named:
        return {"score": float(named[1])}
    bare = re.findall(r"(?m)^\s*([01])\s*$", text)
    return {"score": float(bare[0])} if len(bare) == 1 else {}


def category_of(version: str, number: int) -> str | None:
    """The category of a prompt; None: there is no such prompt."""
    if number < 1:
        return None
    return next((name for name, last in zip(CATEGORIES, LAST[version], strict=True) if number <= last), None)


def score_of(version: str, record: Mapping[str, Any]) -> float | None:
    """WiScore of a record of scores, 0 to 1; None: it holds none."""
    if version == "verified":
        score = record.get("score")
        return float(score) if isinstance(score, int | float) and score in (0, 1) else None
    scores = [record.get(name) for name in PARTS]
    if not all(isinstance(score, int | float) for score in scores):
        return None
    return sum(weight * score for weight, score in zip(PARTS.values(), scores, strict=True)) / 2


def numbers_of(version: str, category: str) -> range:
    """The prompts that ``--category`` of the official script wants: culture, space-time, science or all."""
    last = LAST[version]
    first_and_last = {
        "culture": (1, last[0]),
        "space-time": (last[0] + 1, last[2]),
        "science": (last[2] + 1, last[5]),
        "all": (1, last[5]),
    }
    first, end = first_and_last[category]
    return range(first, end + 1)


def missing(version: str, category: str, records: Iterable[Mapping[str, Any]]) -> list[int]:
    """Numbers that a file of scores lacks; a record without a readable score counts as there."""
    there = {r["prompt_id"] for r in records if isinstance(r.get("prompt_id"), int)}
    return [number for number in numbers_of(version, category) if number not in there]


def scores_by_category(version: str, records: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """WiScores of the records that have one, by category; categories without any are absent."""
    found: dict[str, list[float]] = {}
    for record in records:
        number = record.get("prompt_id")
        category = category_of(version, number) if isinstance(number, int) else None
        score = score_of(version, record)
        if category and score is not None:
            found.setdefault(category, []).append(score)
    return {name: found[name] for name in CATEGORIES if name in found}


def totals(version: str, scores: Mapping[str, list[float]]) -> dict[str, float]:
    """``overall``, the published weighted mean, if no category is absent; then the mean of each category."""
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    if len(means) < len(CATEGORIES):
        return means
    weights = WEIGHTS[version]
    overall = sum(weight * means[name] for name, weight in zip(CATEGORIES, weights, strict=True))
    return {"overall": overall} | means


def source(folder: str, ending: str, hashes: Sequence[str], script: str, digest: str, size: int) -> Source:
    """Prompts of the three parts, and the script that holds the judge's prompt."""
    parts = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
    files = [
        File(f"{folder}/{part}{ending}.json", f"sha256:{h}") for part, h in zip(parts, hashes, strict=True)
    ]
    return Source(
        "github:PKU-YuanGroup/WISE",
        "eb51174483a5de2e34e8614cf9dfb3319ee7fcd0",
        (*files, File(script, f"sha256:{digest}")),
        None,
        size=size,
    )


@dataclass(frozen=True)
class WISE(Benchmark):
    """One of the two versions, whose numbers do not compare."""

    name: str
    title: str
    version: str
    sources: tuple[Source, ...]
    judge: Judge
    official: str
    unit: str = "share"
    modes: tuple[str, ...] = (AS_PUBLISHED,)

    def items(self, checkout: Checkout) -> list[Item]:
        """One a prompt, by number. Raises ValueError."""
        *files, _ = self.sources[0].files
        records = [record for file in files for record in json_of(checkout.path(self.sources[0], file.path))]
        return [
            Item(
                str(record["prompt_id"]),
                record["Prompt"],
                (Picture(f"{record['prompt_id']}.png", (0,)),),
                category_of(self.version, record["prompt_id"]) or "",
                data=record,
            )
            for record in sorted(records, key=lambda record: record["prompt_id"])
        ]

    def requests(self, item: Item, checkout: Checkout) -> list[Request]:
        """One call."""
        script = checkout.path(self.sources[0], self.sources[0].files[-1].path)
        system, user = messages(script, "build_evaluation_messages")
        parts = (filled(user, item.data), Shown(item.pictures[0].path))
        return [Request(item.key, item.key, parts, system=filled(system, item.data))]

    def read(self, request: Request, text: str, mode: str = AS_PUBLISHED) -> dict[str, float]:
        """Scores by name. Raises Unreadable: one is missing."""
        if self.version == "legacy":
            scores, wanted = read_legacy(text), list(PARTS)
        else:
            text = re.sub(r"<think>.*?</think>\s*|</think>\s*", "", text, flags=re.DOTALL)
            scores, wanted = read_verified(text), ["score"]
        absent = [name for name in wanted if name not in scores]
        if absent:
            raise Unreadable(f"no {' and no '.join(absent)}")
        return scores

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """A ``…_scores.jsonl`` of the official script, or the folder of three. Raises ValueError."""
        known = {item.key for item in items}
        answers = []
        for file in sorted(path.glob("*_scores.jsonl")) if path.is_dir() else [path]:
            for record in lines_of(file):
                key = str(record.get("prompt_id"))
                if key not in known:
                    raise ValueError(f"{file} judges prompt {key}, which is none of {self.name}.")
                answers.append(Answer(key, key, verdict=record))
        return answers

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str = AS_PUBLISHED) -> list[Row]:
        """WiScores of the prompts whose scores could be read."""
        rows = []
        for item in items:
            score = score_of(self.version, verdicts.get(item.key, {}))
            if score is not None:
                said = {name: verdicts[item.key].get(name) for name in (*PARTS, "score")}
                seen = ", ".join(f"{n.replace('_', ' ')} {v:g}" for n, v in said.items() if v is not None)
                rows.append(Row(item.key, item.group, score, score, item.prompt, seen))
        return rows

    def figures(self, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, float]:
        """As :func:`totals`."""
        scores: dict[str, list[float]] = {}
        for row in rows:
            scores.setdefault(row.group, []).append(row.value)
        return totals(self.version, scores)


SETS = (
    WISE(
        "wise",
        "WISE (legacy)",
        "legacy",
        (
            source(
                "WISE_legacy/data",
                "",
                (
                    "7a59216c768698280cea37caa574b52f3faf054d73b398b9bb6b3161baf8e3aa",
                    "e27d797885ad86e64d857d0cc93d33e04be572a8dcae95692a2c7e7876233f9a",
                    "b262fae58e413c7a4bd3c3d5a089f8c6529feac227e4b6606be261a949035544",
                ),
                "WISE_legacy/gpt_eval.py",
                "06fd6dcd7cf45a638fe8a3634b880d936077f161f3641002e58d7bf51daa2407",
                354_663,
            ),
        ),
        Judge("gpt-4o-2024-05-13", temperature=0.0, max_tokens=2000),
        "gpt-4o-2024-05-13",
    ),
    WISE(
        "wise-verified",
        "WISE Verified",
        "verified",
        (
            source(
                "data_verified",
                "_verified",
                (
                    "23482925266e2784b2ba24b75239fdc6691bf85ae253d2c4aa38b71b45fefa89",
                    "42c0b9d829365e392c2d4af283850dc76b1f922ab0c79198366de4f306eaf2b6",
                    "6f346c336f16f611e5c73e0fcacdccb336c200d534cf111526b22d50ea912555",
                ),
                "vllm_eval.py",
                "e6c51c2ae81e4eb0465755b248cbcefeef3fb8340e281bb3ac43ea9689e32192",
                418_338,
            ),
        ),
        Judge(
            "Qwen3.5-35B-A3B",
            temperature=0.0,
            max_tokens=500,
            extra={"chat_template_kwargs": {"enable_thinking": False}},
        ),
        "Qwen3.5-35B-A3B",
    ),
)
