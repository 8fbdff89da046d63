"""Where things lie below ``--out DIR``: one folder a set, and in it one a judge.

=================================== ======================================================================
``DIR/<set>/pictures/``             nothing but what the official scorer expects
``DIR/<set>/manifest.json``         how they were drawn
``DIR/<set>/<judge>/judge.json``    who judged: name, URL's host, temperature, template; or what was imported
``DIR/<set>/<judge>/answers.jsonl`` one :class:`~.benchmark.Answer` a line, appended
``DIR/<set>/<judge>/score.json``    figures of every mode
=================================== ======================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .benchmark import Answer

PICTURES = "pictures"
MANIFEST = "manifest.json"
JUDGE = "judge.json"
ANSWERS = "answers.jsonl"
SCORE = "score.json"


def pictures(out: Path, name: str) -> Path:
    """The folder that is given to the official scorer of a set."""
    return out / name / PICTURES


def judged(out: Path, name: str, judge: str) -> Path:
    """The folder of what one judge said about the pictures of a set; its name may hold any character."""
    return out / name / (re.sub(r"[^\w.+-]+", "_", judge).strip(".") or "judge")


def read_answers(path: Path) -> dict[str, Answer]:
    """Answers by key of the request, the last of several; a line torn by a kill is no answer.

    Raises:
        ValueError: the file cannot be read or holds something else.
    """
    found: dict[str, Answer] = {}
    for number, line, last in lines_of(path):
        try:
            fields = json.loads(line)
            answer = Answer(fields["request"], fields["item"], fields.get("text"), fields.get("verdict"))
        except (ValueError, KeyError, TypeError) as error:
            if last and not line.endswith("\n"):
                break
            raise ValueError(
                f"{path}, line {number}, is no answer of a judge; remove it and judge again."
            ) from error
        found[answer.request] = answer
    return found


def lines_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Number, text and whether it is the last, of every line that is not blank. Raises ValueError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line, number == len(lines)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
