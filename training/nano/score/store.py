"""Pictures, answers and verdicts on disk. What is there is not made again.

FOLDER/settings.json                     the model and how it draws; a folder holds those of one model
FOLDER/pictures/KIND/SEED-NUMBER-…-K.png
FOLDER/answers/KIND.jsonl
FOLDER/verdicts/KIND.jsonl               one line for every picture or answer
FOLDER/sheets/KIND.png                   first passes and failures of a kind, first prompts of a group
FOLDER/score.json, FOLDER/score.txt
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..domain.render import render
from ..files import replace_file
from .cases import Case
from .drawing import Job, Model

ASKED_AT_ONCE = 25  # answers between two writes


def fingerprint(folder: Path) -> str:
    """Twelve letters that change with any weight or setting of a pipeline folder."""
    digest = sha256()
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.json")]):
        if path.relative_to(folder).parts[0] not in ("judge", "scorer", "few_steps"):  # beside the model
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Take a folder for pictures drawn with these settings.

    Raises:
        ValueError: it holds pictures of other settings, or is a file.
    """
    path = folder / "settings.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder with -o")
    if path.exists():
        held = json.loads(path.read_text())
        for name, value in settings.items():
            if held.get(name) != value:
                raise ValueError(
                    f"{folder} holds pictures with {name} {held.get(name)}, not {value}: give another folder "
                    "with -o"
                )
        return
    write_text(path, json.dumps(settings, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(lambda partial: partial.write_text(text, encoding="utf-8"), path)


def write_lines(path: Path, entries: Sequence[dict]) -> None:
    """Write a JSON lines file."""
    write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def write_picture(path: Path, picture: np.ndarray | Image.Image) -> None:
    """Write a PNG whole or not at all, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    replace_file(lambda partial: image.save(partial, format="PNG"), path)


def picture_path(folder: Path, job: Job) -> Path:
    """Where a job's picture lies."""
    return folder / "pictures" / job.case.kind / f"{job.case.name}-{job.copy}.png"


def pictures(folder: Path, cases: Sequence[Case], copies: int, model: Model, batch: int) -> list[list]:
    """Every case's pictures [size, size, 3] uint8, `copies` of each; those not there are drawn first."""
    jobs = [Job(case, copy) for case in cases for copy in range(copies)]
    missing = [job for job in jobs if not picture_path(folder, job).exists()]
    kind = cases[0].kind
    with tqdm(total=len(missing), desc=kind, unit="picture", disable=None if missing else True) as progress:
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            for job, picture in zip(part, model.draw(part), strict=True):
                write_picture(picture_path(folder, job), picture)
            progress.update(len(part))
    stored = [np.asarray(Image.open(picture_path(folder, job)).convert("RGB")) for job in jobs]
    return [stored[i : i + copies] for i in range(0, len(stored), copies)]


def answers(folder: Path, cases: Sequence[Case], model: Model) -> list[str]:
    """The model's answer to every question; those that are missing are asked for first."""
    kind = cases[0].kind
    path = folder / "answers" / f"{kind}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    given: dict[str, str] = {entry["name"]: entry["answer"] for entry in map(json.loads, lines)}
    missing = [case for case in cases if case.name not in given]
    with tqdm(total=len(missing), desc=kind, unit="answer", disable=None if missing else True) as progress:
        for start in range(0, len(missing), ASKED_AT_ONCE):
            part = missing[start : start + ASKED_AT_ONCE]
            for case in part:
                given[case.name] = model.answer(render(case.wanted, model.size), case.asked.text)
            write_lines(path, [{"name": name, "answer": answer} for name, answer in given.items()])
            progress.update(len(part))
    return [given[case.name] for case in cases]
