"""Where things lie below ``--out DIR``: one folder a set, and in it one a judge.

=================================== ======================================================================
``DIR/<set>/pictures/``             nothing but what the official scorer expects
``DIR/<set>/manifest.json``         how they were drawn
``DIR/<set>/<judge>/judge.json``    who judged: its name as ``judge``, and how; or what was imported
``DIR/<set>/<judge>/answers.jsonl`` one :class:`~.benchmark.Answer` a line, appended
``DIR/<set>/<judge>/score.json``    figures of every mode, and the rows behind them
=================================== ======================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.paths import refusal, write_whole
from .benchmark import Answer
from .reading import json_of

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


def judges(out: Path, name: str) -> dict[str, Path]:
    """Who judged the pictures of a set, by name, with their folders. Raises ValueError: nobody did."""
    found = {}
    for path in sorted((out / name).glob(f"*/{ANSWERS}")):
        found[json_of(path.with_name(JUDGE))["judge"]] = path.parent
    if not found:
        raise ValueError(
            f"Nobody judged {name} in {out}; first: tbac-uniimage evaluate judge {name} --out {out}"
        )
    return found


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
    """Number, text and whether it is the last, of every line that is not blank. Raises ValueError.

    A line ends with a line feed and nothing else: answers may hold other separators. A last line without one
    is torn, perhaps within a letter.
    """
    try:
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            torn = number == len(lines)
            if line.strip():
                text = line.decode("utf-8", "replace" if torn else "strict")
                yield number, text + ("" if torn else "\n"), not any(map(bytes.strip, lines[number:]))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises ValueError: it cannot be written."""
    write_lines(path, [json.dumps(content, indent=1, ensure_ascii=False)])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file whole or not at all. Raises ValueError: it cannot be written."""
    content = "".join(f"{line}\n" for line in lines).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(refusal(path.parent, error)) from error
    write_whole(path, content)
