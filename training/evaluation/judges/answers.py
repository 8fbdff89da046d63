"""The file of answers: a line a call, appended; in the set's order when all are there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import folders
from ..manifest import PARTIALS, write_changed, writing

Lines = dict[str, list[dict[str, Any]]]


def read_lines(path: Path) -> Lines:
    """Lines of every request, in the order of the calls; a last line torn by a kill is left out.

    Raises:
        ValueError: the file holds something else.
    """
    found: Lines = {}
    if not path.exists():
        return found
    for number, line, last in folders.lines_of(path):
        if last and not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            found.setdefault(record["request"], []).append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}, is no answer of a judge; remove it and judge again."
            ) from error
    return found


class AnswerFile:
    """Appends lines, each whole: what is torn, by a kill or a full disk, is cut off.

    Args:
        path: of the file, whose folder is made when the first line is written.
        about: ``judge.json``, written before it. Of a part of a set it holds less than of the whole.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.about = about
        self.file: int | None = None

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; it is in the system's hands afterwards. Raises Stop: it cannot be written."""
        self.open()
        content = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        size = os.fstat(self.file).st_size
        with writing(self.path):
            try:
                written = os.write(self.file, content)
                if written < len(content):
                    os.write(self.file, content[written:])  # says why
            except OSError:
                os.ftruncate(self.file, size)
                raise

    def open(self) -> None:
        """Open the file for appending, without a torn end."""
        if self.file is not None:
            return
        about = (json.dumps(self.about, indent=1, ensure_ascii=False) + "\n").encode()
        record = self.path.with_name(folders.JUDGE)
        write_changed(record, about, self.path.parent / PARTIALS)
        shutil.rmtree(self.path.parent / PARTIALS, ignore_errors=True)
        with writing(self.path):
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            content = self.path.read_bytes()
            os.ftruncate(self.file, content.rfind(b"\n") + 1)

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


def put_in_order(path: Path, keys: Sequence[str]) -> None:
    """Bring the lines into the order of the requests, so that the file does not tell who was quicker.

    Raises:
        Stop: it cannot be written.
    """
    lines = read_lines(path)
    place = {key: number for number, key in enumerate(keys)}
    known = sorted(lines, key=lambda key: place.get(key, len(place)))
    ordered = [json.dumps(line, ensure_ascii=False) + "\n" for key in known for line in lines[key]]
    content = "".join(ordered).encode()
    write_changed(path, content, path.parent / PARTIALS)
    shutil.rmtree(path.parent / PARTIALS, ignore_errors=True)
