"""The command `tbac-uniimage score`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ....core.few_steps import FewSteps
from ...arguments import add_few, any_path, fill_in, threshold
from ..domain import art
from ..judge import detector
from ..judge.pictures import see
from . import cases as asked
from . import drawing, reader, store, table
from .judging import Judged, See, judge_answers, judge_pictures, read_words
from .reader import Reader
from .rows import Row, make_rows
from .sheet import group_sheet, kind_sheet, passed, tell

EMBEDDED = Path(__file__).resolve().parents[3] / "assets" / "nano"
JUDGE = EMBEDDED / "judge" / "model.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add = parser.add_argument
    add(
        "--model",
        type=any_path,
        default=EMBEDDED,
        metavar="DIR",
        help="its folder (default: the embedded model)",
    )
    add(
        "--judge",
        type=any_path,
        default=JUDGE,
        metavar="FILE",
        help="its weights (default: the embedded judge)",
    )
    add("--samples", type=int, default=200, metavar="N", help="prompts of each kind (default %(default)s)")
    add("--pictures", type=int, default=4, metavar="N", help="of each prompt (default %(default)s)")
    add("--edit-pictures", type=int, default=1, metavar="N", help="of each edit (default %(default)s)")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="each gives prompts and noise of its own",
    )
    add("--only", nargs="+", default=[], metavar="KIND", help=f"of {', '.join(asked.GROUPS)} or single kinds")
    add("--steps", type=int, metavar="N", help="default 20")
    add("--guidance", type=float, metavar="X", help="of prompts (default 3)")
    add("--edit-guidance", type=float, metavar="X", help="of instructions (default 2)")
    add("--image-guidance", type=float, metavar="X", help="of sources (default 2)")
    add_few(parser)
    add("--cache", type=threshold, metavar="X", help="FirstBlockCache, as of generate; decided by the batch")
    add("--batch", type=int, default=32, metavar="N", help="pictures at once (default %(default)s)")
    add("--ocr", action="store_true", help="let RapidOCR read the words too, if it is installed")
    add("--device", help="default: cuda if it is there, else cpu")
    add("--json", type=any_path, metavar="FILE", help="also write the figures here")
    add(
        "-o",
        "--out",
        type=any_path,
        metavar="DIR",
        help="pictures, verdicts, sheets and figures; what is there is not drawn again "
        "(default: a folder in out/ named after the model's weights and the options)",
    )


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be scored.

    Raises:
        ValueError: an option out of its range.
        FileNotFoundError: no model's folder.
    """
    for name, least in (("samples", 2), ("pictures", 1), ("edit_pictures", 1), ("steps", 1), ("batch", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}: give at least {least}")
    for name in ("guidance", "edit_guidance", "image_guidance"):
        if not (math.isfinite(getattr(options, name)) and getattr(options, name) >= 0):
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}: give a finite number of at least 0"
            )
    if len(set(options.seeds)) < len(options.seeds):
        raise ValueError("--seeds names a seed twice: give every seed once")
    if options.json and options.json.is_dir():
        raise ValueError(f"--json {options.json} is a folder: give a file")
    if not options.model.is_dir():
        raise FileNotFoundError(f"there is no model folder at {options.model}: give one with --model")


def choose_kinds(options: argparse.Namespace) -> tuple[list[str], bool]:
    """The kinds to score, and whether the drawings of the objects are there.

    Without these only prompts can be scored, and only beside chance.

    Raises:
        FileNotFoundError: kinds were asked for that need the drawings, which are not there.
    """
    kinds = asked.choose(options.only)
    try:
        art.load()
    except FileNotFoundError:
        if options.only and any(asked.KINDS[kind] != "draw" for kind in kinds):
            raise
        return [kind for kind in kinds if asked.KINDS[kind] == "draw"], False
    return kinds, True


def complete(options: argparse.Namespace) -> FewSteps | None:
    """Fill in what was left out, see :func:`....arguments.fill_in`."""
    return fill_in(
        options, lambda: options.model, steps=20, guidance=3.0, edit_guidance=2.0, image_guidance=2.0
    )


def settings_of(options: argparse.Namespace, few: FewSteps | None = None) -> dict[str, Any]:
    """All that a picture depends on besides its prompt and its noise."""
    names = ("steps", "guidance", "edit_guidance", "image_guidance", *(["cache"] if options.cache else []))
    settings = {"weights": store.fingerprint(options.model)} | {
        name: getattr(options, name) for name in names
    }
    return settings | ({"few": sha256(few.file.read_bytes()).hexdigest()[:12]} if few else {})


def default_folder(settings: dict[str, Any]) -> Path:
    """A folder for pictures of these settings and of no others."""
    drawn = "-".join(f"{value:g}" for name, value in settings.items() if name not in ("weights", "few"))
    if "few" in settings:
        drawn += f"-few-{settings['few']}"
    return Path("out") / f"score-{settings['weights']}-{drawn}"


def score(
    kinds: Sequence[str],
    options: argparse.Namespace,
    folder: Path,
    model: drawing.Model,
    look: See,
    with_art: bool = True,
    read: Reader | None = None,
) -> dict[str, Judged]:
    """Draw and judge every kind; writes pictures, verdicts and a sheet of each as it goes.

    Args:
        look: the judge's eye: pictures to scenes.
        with_art: whether true pictures can be drawn to stand beside the model's.
        read: a second reader of words.
    """
    judged: dict[str, Judged] = {}
    for kind in kinds:
        group = asked.KINDS[kind]
        cases = asked.collect(kind, options.seeds, options.samples)
        if group == "ask":
            part = judge_answers(cases, store.answers(folder, cases, model))
        else:
            copies = options.pictures if group == "draw" else options.edit_pictures
            shown = store.pictures(folder, cases, copies, model, options.batch)
            part = judge_pictures(cases, shown, look, model.rebuild if with_art else None)
            if kind == "text" and read:
                read_words(part, read, model.rebuild)
        judged[kind] = part
        store.write_lines(folder / "verdicts" / f"{kind}.jsonl", lines(kind, part, folder))
        if with_art or group == "draw":
            store.write_picture(folder / "sheets" / f"{kind}.png", kind_sheet(kind, part))
    return judged


def lines(kind: str, part: Judged, folder: Path) -> list[dict[str, Any]]:
    """One entry for every picture or answer: what was asked, what was seen, the verdict."""
    entries = []
    for case, seen, verdicts in zip(part.cases, part.seen, part.model, strict=True):
        for copy, (found, verdict) in enumerate(zip(seen, verdicts, strict=True)):
            entry = {"kind": kind, "seed": case.seed, "number": case.number, "text": case.asked.text}
            if case.group == "ask":
                entry |= {"right": case.asked.answer, "answer": found}
            else:
                job = drawing.Job(case, copy)
                path = store.picture_path(folder, job).relative_to(folder).as_posix()
                entry |= {"picture": path, "noise_seed": job.noise_seed, "seen": tell(found)}
            entries.append(entry | {"passed": passed(kind, verdict), "verdict": verdict})
    return entries


def run(options: argparse.Namespace) -> list[Row]:
    """Score a model: print the table, write everything into the folder."""
    few = complete(options)
    check(options)
    kinds, with_art = choose_kinds(options)
    eye = detector.load(options.judge)
    read = reader.load() if options.ocr else None
    settings = settings_of(options, few)
    folder = options.out or default_folder(settings)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = drawing.load(options.model, device)
    if few is not None:
        few.apply(pipeline)
    if options.cache:
        from diffusers.hooks import FirstBlockCacheConfig

        pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=options.cache))
    model = drawing.from_pipeline(pipeline, options)
    store.claim(folder, settings)
    judged = score(kinds, options, folder, model, lambda pictures: see(eye, pictures), with_art, read)
    rows = make_rows(judged)
    write(rows, judged, options, settings, folder, with_art)
    return rows


def write(
    rows: list[Row],
    judged: dict[str, Judged],
    options: argparse.Namespace,
    settings: dict[str, Any],
    folder: Path,
    with_art: bool,
) -> None:
    """Print the table and write it, the figures and a sheet of every group."""
    seeds = ", ".join(map(str, options.seeds))
    about = [
        f"model {options.model.name}, weights {settings['weights']}; seeds: {seeds}",
        f"{options.steps} steps; guidance {options.guidance:g}, of edits {options.edit_guidance:g} and of "
        f"their sources {options.image_guidance:g}",
    ]
    notes = (
        []
        if with_art
        else [
            "Edits, questions and every column but chance were left out: they need the drawings, which "
            "`python -m tbac_uniimage.training.nano.domain.art` fetches."
        ]
    )
    text = table.text(rows, about, notes)
    figures = {"score": "sprite-scene score", "model": options.model.name, "seeds": options.seeds}
    figures |= {"samples": options.samples, "settings": settings}
    figures |= {"rows": table.figures(rows), "notes": [*notes, *table.NOTES]}
    for path in filter(None, (folder / "score.json", options.json)):
        store.write_text(path, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    store.write_text(folder / "score.txt", text + "\n")
    for group in {asked.KINDS[kind] for kind in judged}:
        store.write_picture(folder / "sheets" / f"{group}.png", group_sheet(judged, group))
    print(text)
    print(f"\npictures, verdicts and sheets: {folder}")
