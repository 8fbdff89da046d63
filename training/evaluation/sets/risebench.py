"""RISEBench (PhoenixZ810/RISEBench, ``gpt_eval.py``): formulas alone.

Its 360 pictures are on the hub, at a commit that was not known here: no set yet, an empty :data:`SETS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..benchmark import Unreadable

SETS = ()
LOGICAL = "logical_reasoning"
HEADING = r"\*?\*?final score{}\*?\*?:?\s*([\d*\s,\n]*)"


def read(text: str) -> list[int]:
    """Whole numbers behind the first "Final Score" that has any, else behind the first "Final Scores".

    Raises:
        Unreadable: there are none.
    """
    for plural in ("", "s"):
        for after in re.findall(HEADING.format(plural), text, re.IGNORECASE):
            if numbers := re.findall(r"\d+", after):
                return [int(number) for number in numbers]
    raise Unreadable("no number behind Final Score")


def score(row: Mapping[str, Any]) -> float:
    """Score of an edit, 1 to 5.

    As published, a row with a cell ``consistency_free``, even an empty one, is scored without consistency.

    Args:
        row: ``category``, ``Reasoning``, ``ApprConsistency``, ``VisualPlausibility`` and perhaps
            ``consistency_free`` (NaN: an empty cell).
    """
    reasoning = row["Reasoning"]
    if row["category"] == LOGICAL:
        value = 0.3 * row["ApprConsistency"] + 0.7 * reasoning
    elif row.get("consistency_free"):
        value = 0.2 * row["VisualPlausibility"] + 0.8 * reasoning
    else:
        value = 0.3 * row["ApprConsistency"] + 0.5 * reasoning + 0.2 * row["VisualPlausibility"]
    return max(value * 0.5, 1) if reasoning == 1 else value


def complete(row: Mapping[str, Any]) -> int:
    """1 if everything that is judged of an edit has the full score, else 0. An empty cell is empty."""
    free = row.get("consistency_free")
    judged = ["Reasoning"]
    if row["category"] == LOGICAL or free is None or free != free:
        judged.append("ApprConsistency")
    if row["category"] != LOGICAL:
        judged.append("VisualPlausibility")
    return int(all(row[name] == 5 for name in judged))
