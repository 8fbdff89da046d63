"""TIIF-Bench (A113N-W3I/TIIF-Bench): prompts of 39 attributes, short and long; yes/no questions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
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
from ..reading import constants, json_of, lines_of, messages

LENGTHS = ("short", "long")
MODEL = "tbac-uniimage"  # names the folder of a model, which the official scorer is told
SCRIPT = "eval/eval_with_vlm.py"
TEMPLATES = ("raw_prompt", "raw_prompt_1", "raw_prompt_2")
QUESTIONS = "##YNQuestions##"

AND = ("numeracy", "comparison", "differentiation", "negation")
BASIC = {
    "attribute": ("shape+color", "color+texture", "texture+color", "shape+texture"),
    "relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
    "reasoning": AND,
}
ADVANCED = {
    "attribute+relation": (
        "action+color",
        "action+texture",
        *(f"{name}+{space}" for name in ("color", "shape", "texture") for space in ("2d", "3d")),
    ),
    "attribute+reasoning": tuple(f"{name}+{kind}" for name in AND for kind in ("color", "texture")),
    "relation+reasoning": tuple(f"{name}+{space}" for name in AND for space in ("2d", "3d")),
    "text": ("text",),
    "style": ("style",),
}
REAL = {"real world": ("real_world",)}
GROUPS = BASIC | ADVANCED | REAL  # the nine whose mean is the overall score


def source(split: str, prompts: str, questions: str, size: int) -> Source:
    """What a split needs, with the hashes of its prompts and of its questions, and the bytes of all."""
    return Source(
        "github:A113N-W3I/TIIF-Bench",
        "3aae7504d2546516eaec2fea82fde9ae445dfea3",
        (
            File(f"data/{split}_prompts/*.jsonl", f"sha256:{prompts}", 39),
            File(f"data/{split}_eval_prompts/*.jsonl", f"sha256:{questions}", 39),
            File(SCRIPT, "sha256:df9cbe25b38cc276c759c0e41b9d86212bc4a5d24599be663aecbc700233f0ea"),
        ),
        None,
        size=size,
    )


def read(text: str, questions: int, mode: str = AS_PUBLISHED) -> list[str]:
    """Answers yes and no, one for each line that begins with one; corrected, behind numbers and marks too.

    Raises:
        Unreadable: there are not as many as questions; the official script asks again for ever.
    """
    before = "" if mode == AS_PUBLISHED else r"[\W\d_]*"
    found = [re.match(rf"{before}(yes|no)\b", line.strip(), re.IGNORECASE) for line in text.split("\n")]
    answers = [match[1].lower() for match in found if match]
    if len(answers) != questions:
        raise Unreadable(f"{len(answers)} answers to {questions} questions")
    return answers


def right(truth: Sequence[str], answers: Sequence[str]) -> tuple[int, int]:
    """Right answers and all, case and outer blanks aside; what has no counterpart is not counted."""
    pairs = list(zip(truth, answers, strict=False))
    return sum(true.strip().lower() == answer.strip().lower() for true, answer in pairs), len(pairs)


def of_files(judgements: Mapping[str, Any]) -> float | None:
    """Share of right answers in the judgement files of an attribute, by file name; None: no answer at all.

    As in ``summary_results.py``, a file that breaks off counts up to its fault, the faulty answer as wrong.
    """
    hits = total = 0
    for name, content in judgements.items():
        if not name.endswith(".json") or not isinstance(content, dict):
            continue
        truth, answers = content.get("gt_answers", []), content.get("model_pred", [])
        if not all(
            isinstance(side, list | str | dict) for side in (truth, answers)
        ):  # what zip takes of JSON
            continue
        for pair in zip(truth, answers, strict=False):
            total += 1
            if not all(isinstance(word, str) for word in pair):
                break
            hits += right(pair[:1], pair[1:])[0]
    return hits / total if total else None


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there; None: none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def totals(accuracy: Mapping[tuple[str, str], float | None]) -> dict[str, float]:
    """Overall scores, those of basic and advanced prompts, and groups, by "name (length)"; none if absent.

    An overall score is the mean of the nine groups; basic and advanced ones are means of attributes.

    Args:
        accuracy: by attribute and length, 0 to 1; as published, rounded to four decimals.
    """
    figures: dict[str, dict[str, float | None]] = {}
    for length in LENGTHS:

        def of(groups: Mapping[str, Sequence[str]], length: str = length) -> float | None:
            return mean(accuracy.get((name, length)) for names in groups.values() for name in names)

        groups = {name: of({name: names}) for name, names in GROUPS.items()}
        pooled = {
            "overall": mean(groups.values()),
            "basic overall": of(BASIC),
            "advanced overall": of(ADVANCED),
        }
        for name, value in (pooled | groups).items():
            figures.setdefault(name, {})[length] = value
    return {
        f"{name} ({length})": value
        for name, values in figures.items()
        for length, value in values.items()
        if value is not None
    }


@dataclass(frozen=True)
class TIIF(Benchmark):
    """A split of TIIF-Bench."""

    name: str
    title: str
    split: str
    sources: tuple[Source, ...]
    unit: str = "percent"
    judge: Judge = Judge("gpt-4o", temperature=1.0)
    official: str = "gpt-4o"
    modes: tuple[str, ...] = (AS_PUBLISHED, CORRECTED)

    def items(self, checkout: Checkout) -> list[Item]:
        """Short and long prompt of every line of every file. Raises ValueError."""
        items = []
        first = checkout.path(self.sources[0], f"data/{self.split}_prompts")
        for path in sorted(first.glob("*.jsonl")):
            kind = path.name.removesuffix("_prompts.jsonl")
            asked = lines_of(first.parent / f"{self.split}_eval_prompts" / f"{kind}_eval_prompts.jsonl")
            lines = lines_of(path)
            if len(lines) != len(asked):
                raise ValueError(f"{path} has {len(lines)} prompts and questions for {len(asked)}.")
            for number, (line, questions) in enumerate(zip(lines, asked, strict=True)):
                for length in LENGTHS:
                    picture = f"{line['type']}/{MODEL}/{length}_description/{number}.png"
                    items.append(
                        Item(
                            f"{line['type']}/{length}/{number}",
                            line[f"{length}_description"],
                            (Picture(picture, (0,)),),
                            f"{line['type']} ({length})",
                            data=questions | {"length": length},
                        )
                    )
        return items

    def requests(self, item: Item, checkout: Checkout) -> list[Request]:
        """One call with all questions. The official script draws a template; here the key does."""
        script = checkout.path(self.sources[0], SCRIPT)
        digest = hashlib.sha256(item.key.encode()).digest()
        text = constants(script)[TEMPLATES[digest[0] % len(TEMPLATES)]]
        questions = "\n".join(question.strip() for question in item.data["yn_question_list"])
        (system,) = messages(script, "generate_with_prompt")
        parts = (text.replace(QUESTIONS, questions), Shown(item.pictures[0].path))
        return [
            Request(item.key, item.key, parts, system=system[0], expects=len(item.data["yn_question_list"]))
        ]

    def read(self, request: Request, text: str, mode: str = AS_PUBLISHED) -> list[str]:
        """Answers in the order of the questions. Raises Unreadable."""
        return read(text, request.expects, mode)

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """A model's folder of judgements, ``<attribute>/<short|long>/<line>.json``. Raises ValueError.

        They are told by their questions, alike ones by their order: the repository's own judgements are
        numbered otherwise.
        """
        known: dict[tuple, list[str]] = {}
        for item in items:
            known.setdefault((item.group, *item.data["yn_question_list"]), []).append(item.key)
        answers = []
        for file in sorted(path.glob("*/*/*.json"), key=lambda file: (file.parent, int(file.stem))):
            judged = json_of(file)
            keys = known.get((f"{file.parts[-3]} ({file.parts[-2]})", *judged["questions"]))
            if not keys:
                raise ValueError(f"{file} judges no prompt of {self.name}.")
            key = keys.pop(0)
            answers.append(Answer(key, key, verdict=judged["model_pred"]))
        if not answers:
            raise ValueError(f"{path} holds no judgements <attribute>/<short|long>/<line>.json.")
        return answers

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str = AS_PUBLISHED) -> list[Row]:
        """Right answers and all of an item; verdicts are lists of yes and no by key of the item."""
        rows = []
        for item in items:
            if item.key in verdicts:
                said = verdicts[item.key]
                value = right(item.data["yn_answer_list"], said)
                asked = zip(item.data["yn_question_list"], item.data["yn_answer_list"], said, strict=False)
                wrong = [f"{q} {a}" for q, true, a in asked if not right([true], [a])[0]]
                share = value[0] / value[1] if value[1] else 0.0
                rows.append(Row(item.key, item.group, value, share, item.prompt, " ".join(wrong)))
        return rows

    def figures(self, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, float]:
        """Percent, as :func:`totals`. An attribute pools its questions; corrected, its prompts."""
        by_group: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            by_group.setdefault(row.group, []).append(row.value)
        accuracy: dict[tuple[str, str], float | None] = {}
        for group, values in by_group.items():
            attribute, length = group[:-1].split(" (")
            if mode == AS_PUBLISHED:
                total = sum(count for _, count in values)
                accuracy[attribute, length] = (
                    round(sum(hits for hits, _ in values) / total, 4) if total else None
                )
            else:
                accuracy[attribute, length] = mean(hits / count for hits, count in values if count)
        return {name: 100 * value for name, value in totals(accuracy).items()}


SETS = (
    TIIF(
        "tiif",
        "TIIF-Bench testmini",
        "testmini",
        (
            source(
                "testmini",
                "9c283f38d9dd297b8a735502bc7d5883b14d3396b585692a743b3351ec6098b1",
                "655a08d5cd8534ced3985581be851d39b896eac960311ea3661d7eb63b5e0755",
                332_857,
            ),
        ),
    ),
    TIIF(
        "tiif-test",
        "TIIF-Bench test",
        "test",
        (
            source(
                "test",
                "644e8dd37c34dae983c559417d2660395037b30fd3bf138dbae170531afc0f4d",
                "ecf0c00a24cb2b899625c334bb715cb3781ed3e79c48c3d4beb205d95a67d5bb",
                2_656_681,
            ),
        ),
    ),
)
