"""GEdit-Bench, English (stepfun-ai/Step1X-Edit): edits of 11 groups, VIEScore's semantics and quality."""

from __future__ import annotations

import json
import math
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
from ..reading import arrow_rows, constants, table_of

MODEL = "tbac-uniimage"  # names the folder of a model, which the official scorer is told
LANGUAGE = "en"
COUNT = 606  # half of the 1,212 rows
PROMPTS = "GEdit-Bench/viescore/vie_prompts.py"
CODE = Source(
    "github:stepfun-ai/Step1X-Edit",
    "570eba6ebda0c45c013983a483afbf2fd12bfcbc",
    (File(PROMPTS, "sha256:010234af186eb0a70fcb99047cd32ad1da01bed59ca1a95a01335426417cf838"),),
    "Apache-2.0",
    size=22_101,
)
DATA = Source(
    "hub:stepfun-ai/GEdit-Bench",
    "58159f3de6689982b1df7f1a6c557ded16548a24",
    (File("**/*.arrow", "", 0),),
    "MIT",
)
SEMANTICS = ("_context_no_delimit", "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC")
QUALITY = ("_context_no_delimit", "_prompts_0shot_rule_PQ")

GROUPS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
DELIMITER = "||V^=^V||"


def read(text: str) -> list:
    """The ``score`` of a JSON object, a list of two whole numbers, or one number from 0 to 10.

    Raises:
        Unreadable: the official script asks again once, then makes a number up or asks for ever.
    """
    if text == "rate_limit_exceeded":
        raise Unreadable("the judge refused the call")
    if text.count(DELIMITER) == 2:
        return score_in(text.split(DELIMITER)[1])
    start, end = text.find("{"), text.rfind("}") + 1
    if start >= 0 and end > 0:
        return score_in(text[start:end])
    start, end = text.find("["), text.rfind("]") + 1
    if re.match(r"^\[\d+, ?\d+\]$", text[start:end]):
        return json.loads(text[start:end])
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 10:
        raise Unreadable("neither a JSON object nor a list of two numbers nor a number from 0 to 10")
    return [number]


def score_in(text: str) -> list:
    """The ``score`` of a JSON object, mended once if it is none. Raises Unreadable."""
    text = text.strip().replace("\n", "")
    try:
        found = json.loads(text)["score"]
        return found if isinstance(found, list) else [found]
    except (ValueError, KeyError, TypeError):
        pass
    try:
        found = json.loads(mended(text))["score"]
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable("broken JSON, or no score in it") from error
    return found if isinstance(found, list) else [found]


def mended(text: str) -> str:
    """JSON with quotes around bare names and values, and numbers in lists, where VIEScore puts them."""

    def value(match: re.Match) -> str:
        name, said, end = match[1], match[2].strip(), match[3]
        if re.fullmatch(r"-?\d+(\.\d+)?", said):
            said = f"[{said}]"
        elif said.lower() not in ("true", "false", "null"):
            said = f'"{said}"'
        return f"{name}: {said}{end}"

    return re.sub(r'(".*?"):(.*?)([,}])', value, re.sub(r"(\w+):", r'"\1":', text))


def least(scores: Sequence) -> float:
    """The least of some scores. Raises Unreadable: there is none, or one is no number."""
    if not scores or not all(isinstance(score, int | float) for score in scores):
        raise Unreadable(f"{scores} are no scores")
    return min(scores)


def overall(semantics: float, quality: float) -> float:
    """Score of an edit: the root of the product. Raises Unreadable: that is negative."""
    if semantics * quality < 0:
        raise Unreadable(f"scores {semantics} and {quality} have no root")
    return math.sqrt(semantics * quality)


def evaluate(answers: Iterable[str]) -> tuple[float, float, float]:
    """Semantics, quality and overall score from the first pair of answers of which both can be read.

    Raises:
        Unreadable: no pair can, or a score is no number.
    """
    answers = iter(answers)
    for semantics, quality in zip(answers, answers, strict=False):
        try:
            scores = read(semantics), read(quality)
        except Unreadable:
            continue
        low = least(scores[0]), least(scores[1])
        return *low, overall(*low)
    raise Unreadable("no pair of answers can be read")


def averages(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means of groups, and the mean of the eleven as "avg", of each of semantics, quality and overall.

    Args:
        rows: ``group``, ``semantics``, ``quality`` of the edits of one language.

    Returns:
        NaN for a group without rows, and then for the average too.
    """
    kinds: dict[str, dict[str, list[float]]] = {
        kind: {group: [] for group in GROUPS} for kind in ("semantics", "quality", "overall")
    }
    for row in rows:
        semantics, quality = row["semantics"], row["quality"]
        for kind, score in zip(kinds, (semantics, quality, overall(semantics, quality)), strict=True):
            kinds[kind][row["group"]].append(score)
    return {
        kind: with_average({group: mean(s) for group, s in groups.items()}) for kind, groups in kinds.items()
    }


def with_average(means: dict[str, float]) -> dict[str, float]:
    """The means, and theirs as "avg"."""
    return means | {"avg": mean(list(means.values()))}


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class GEdit(Benchmark):
    """The English half, all edits ("full set")."""

    name: str = "gedit"
    title: str = "GEdit-Bench-EN"
    unit: str = "of 10"
    sources: tuple[Source, ...] = (CODE, DATA)
    judge: Judge = Judge("gpt-4.1", max_tokens=1400)
    official: str = "gpt-4.1"
    modes: tuple[str, ...] = (AS_PUBLISHED,)

    def items(self, checkout: Checkout) -> list[Item]:
        """One an English row. Raises ValueError: there are more or fewer than published."""
        items = []
        columns = ["key", "task_type", "instruction", "instruction_language", "Intersection_exist"]
        for row, picture in arrow_rows(checkout.roots[DATA.repo], columns, "input_image"):
            if row["instruction_language"] == LANGUAGE:
                folder = f"{MODEL}/fullset/{row['task_type']}/{LANGUAGE}"
                shot = Picture(f"{folder}/{row['key']}.png", (0,))
                items.append(
                    Item(row["key"], row["instruction"], (shot,), row["task_type"], picture, data=row)
                )
        if len(items) != COUNT and not checkout.modified:
            raise ValueError(
                f"GEdit-Bench has {len(items)} English edits here, not {COUNT}; fetch gedit again."
            )
        return items

    def companions(self, item: Item) -> Mapping[str, bytes]:
        """The source beside the result, as PNG."""
        return {item.pictures[0].path.replace(".png", "_SRCIMG.png"): item.source()}

    def requests(self, item: Item, checkout: Checkout) -> list[Request]:
        """Two calls: how well the edit follows the instruction, and how good the result looks."""
        texts = constants(checkout.path(CODE, PROMPTS))
        semantics, quality = ("\n".join(texts[name] for name in names) for names in (SEMANTICS, QUALITY))
        result = Shown(item.pictures[0].path, source_size=True, format="JPEG")
        asked = semantics.replace("<instruction>", item.prompt)
        return [
            Request(f"{item.key}/semantics", item.key, (asked, Shown(None, format="JPEG"), result)),
            Request(f"{item.key}/quality", item.key, (quality, result)),
        ]

    def read(self, request: Request, text: str, mode: str = AS_PUBLISHED) -> float:
        """The least score of an answer. Raises Unreadable, where the official script makes a number up."""
        return least(read(text))

    def imported(self, path: Path, items: Sequence[Item]) -> list[Answer]:
        """``<model>_combined_gpt_score.csv``, or one of a group. Raises ValueError."""
        known = {item.key for item in items}
        answers = []
        for row in table_of(path):
            if row["instruction_language"] != LANGUAGE:
                continue
            key = Path(row["edited_image"]).stem
            if key not in known:
                raise ValueError(f"{path} judges {row['edited_image']}, which is no edit of {self.name}.")
            for kind, column in (("semantics", "sementics_score"), ("quality", "quality_score")):
                answers.append(Answer(f"{key}/{kind}", key, verdict=float(row[column])))
        return answers

    def rows(self, items: Sequence[Item], verdicts: Mapping[str, Any], mode: str = AS_PUBLISHED) -> list[Row]:
        """Edits of which both answers could be read."""
        rows = []
        for item in items:
            scores = [verdicts.get(f"{item.key}/{kind}") for kind in ("semantics", "quality")]
            if None not in scores:
                value = {"group": item.group, "semantics": scores[0], "quality": scores[1]}
                value["intersection"] = item.data["Intersection_exist"]
                seen = f"semantics {scores[0]:g}, quality {scores[1]:g} of 10"
                rows.append(Row(item.key, item.group, value, overall(*scores) / 10, item.prompt, seen))
        return rows

    def figures(self, rows: Sequence[Row], mode: str = AS_PUBLISHED) -> dict[str, float]:
        """The mean of the groups, of all edits and of those that all closed models answered; groups."""
        every = averages(row.value for row in rows)
        some = averages(row.value for row in rows if row.value["intersection"])
        figures = {"overall": every["overall"]["avg"], "overall (intersection)": some["overall"]["avg"]}
        figures |= {f"{kind}, overall": every[kind]["avg"] for kind in ("semantics", "quality")}
        figures |= {group: every["overall"][group] for group in GROUPS}
        return {name: value for name, value in figures.items() if not math.isnan(value)}


SETS = (GEdit(),)
