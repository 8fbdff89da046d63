"""The sprite-scene score: does a nano model draw, edit and answer what it is asked, on held-out combinations?

Shaped like GenEval (single object, two objects, count, position) and ImgEdit (instruction followed, the rest
preserved), but judged by our own detector on our own sprites: it says nothing about photographs and is not
GenEval. Every share stands beside three others on the same scenes: what chance gives, and what the detector
says of the true pictures and of their reconstruction by the autoencoder, the two ceilings.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from . import autoencoder, checks, detector, edits, loop, questions, scenes, sprites
from .edits import Edit
from .scenes import Scene
from .sheet import contact_sheet

MODEL = Path(__file__).resolve().parents[2] / "assets" / "nano"
DETECTOR = Path("scorer") / "model.safetensors"  # below the model's folder
STEPS, GUIDANCE, BATCH = 20, 3.0, 32
EDIT_GUIDANCE, IMAGE_GUIDANCE = 2.0, 2.0  # the best of nine pairs on other scenes (seed 7, 32 per kind)


@dataclass
class Row:
    """One line of the table: shares in 0..1, or decibels and similarity for preservation; None = not
    measured.
    """

    name: str
    samples: int
    model: float
    shuffled: float | None = None
    guess: float | None = None
    truth: float | None = None
    autoencoder: float | None = None
    unit: str = "share"

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of a share (Wilson)."""
        n, z = self.samples, 1.96
        centre = (self.model + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self.model * (1 - self.model) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass
class Report:
    """The rows of the table, what was left out and why, and the pictures for the contact sheet."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shown: list[tuple[np.ndarray, str, bool]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{'sprite-scene score':<24}{'n':>5}  {'model':>6}  {'95 % interval':<15}"
        head += "".join(f"{name:>10}" for name in ("shuffled", "guess", "truth", "autoenc."))
        lines = [head, "-" * len(head)]
        for row in self.rows:
            digits = {"share": 3, "dB": 1, "SSIM": 3}[row.unit]
            low, high = row.interval if row.unit == "share" else (math.nan, math.nan)
            between = f"{low:.3f} to {high:.3f}" if row.unit == "share" else row.unit
            others = (row.shuffled, row.guess, row.truth, row.autoencoder)
            line = f"{row.name:<24}{row.samples:>5}  {row.model:>6.{digits}f}  {between:<15}"
            lines.append(line + "".join("         –" if v is None else f"{v:>10.{digits}f}" for v in others))
        return "\n".join(lines + self.notes)


Drawn = list[np.ndarray]


def in_batches(pipeline, prompts: list[str], pictures: Drawn | None, seed: int, options: dict) -> Drawn:
    """Pictures [64, 64, 3] uint8 that the pipeline draws; sample i has its own noise, whatever the batch."""
    drawn: Drawn = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        chosen = prompts[part]
        generators = [torch.Generator().manual_seed(seed * 100_003 + start + i) for i in range(len(chosen))]
        images = None if pictures is None else [[Image.fromarray(picture)] for picture in pictures[part]]
        result = pipeline(
            prompt=chosen,
            image=images,
            height=scenes.SIZE,
            width=scenes.SIZE,
            generator=generators,
            output_type="pil",
            **options,
        )
        drawn += [np.asarray(image.convert("RGB")) for image in result.images]
    return drawn


def see(eye: detector.Detector, pictures: Drawn) -> list[detector.Found]:
    return detector.detect(eye, autoencoder.pixels(pictures))


@torch.no_grad()
def reconstruct(vae, pictures: Drawn) -> Drawn:
    """The pictures after the autoencoder, the best that any generator in its latent space can do."""
    pixels = autoencoder.pixels(pictures).to(vae.dtype)
    return autoencoder.pictures_of(vae.decode(vae.encode(pixels).latent).sample)


def share(judge: Callable, found: Sequence, wanted: Sequence) -> float:
    return fmean(float(judge(f, w)) for f, w in zip(found, wanted, strict=True))


def rotate(values: Sequence) -> list:
    """Every value moved on by one: the pairing of a shuffled caption, nothing paired with itself."""
    return [*values[1:], values[0]]


def score_captions(report: Report, pipeline, eye, samples: int, seed: int, options: dict, art: bool) -> None:
    """Text to image: one row per kind, then object classes and background over all kinds."""
    all_found, all_drawn, all_truth, all_rebuilt = [], [], [], []
    for kind in tqdm(scenes.KINDS, desc="text to image", unit="kind"):
        random = Random(f"{seed}/score/{kind}")
        drawn = [scenes.draw(random, kind, held_out=True) for _ in range(samples)]
        captions = [scenes.caption(scene, random) for scene in drawn]
        pictures = in_batches(pipeline, captions, None, seed, options)
        found = see(eye, pictures)
        row = Row(kind, samples, share(checks.follows_caption, found, drawn))
        row.shuffled = share(checks.follows_caption, found, rotate(drawn))
        row.guess = fmean(checks.guess_chance(scene) for scene in drawn)
        if art:
            true = [scenes.render(scene) for scene in drawn]
            truth, rebuilt = see(eye, true), see(eye, reconstruct(pipeline.vae, true))
            row.truth = share(checks.follows_caption, truth, drawn)
            row.autoencoder = share(checks.follows_caption, rebuilt, drawn)
            all_truth += truth
            all_rebuilt += rebuilt
        report.rows.append(row)
        right = [checks.follows_caption(f, s) for f, s in zip(found, drawn, strict=True)]
        report.shown += list(zip(pictures, captions, right, strict=True))[:16]
        all_found += found
        all_drawn += drawn

    def background_right(found: detector.Found, scene: Scene) -> bool:
        return found.background == scene.background

    judges = (
        ("object class", checks.objects_right, 1 / len(sprites.OBJECTS)),
        ("background", background_right, 1 / len(scenes.BACKGROUNDS)),
    )
    for name, judge, guess in judges:
        row = Row(name, len(all_drawn), share(judge, all_found, all_drawn), guess=guess)
        row.shuffled = share(judge, all_found, rotate(all_drawn))
        if art:
            row.truth, row.autoencoder = (
                share(judge, all_truth, all_drawn),
                share(judge, all_rebuilt, all_drawn),
            )
        report.rows.append(row)


def score_edits(report: Report, pipeline, eye, samples: int, seed: int, options: dict) -> None:
    """Editing: instruction followed per kind, and what must stay, against the exact target."""
    kept: list[dict] = []
    for kind in tqdm(edits.KINDS, desc="edits", unit="kind"):
        random = Random(f"{seed}/score/{kind}")
        drawn = [edits.draw(random, kind, held_out=True) for _ in range(samples)]
        sources = [scenes.render(edit.source) for edit in drawn]
        true = [scenes.render(edit.target) for edit in drawn]
        pictures = in_batches(pipeline, [edit.instruction for edit in drawn], sources, seed, options)
        rebuilt = reconstruct(pipeline.vae, true)
        found = see(eye, pictures)
        row = Row(f"edit: {kind}", samples, share(checks.follows_edit, found, drawn))
        row.shuffled = share(checks.follows_edit, found, rotate(drawn))
        row.guess = share(checks.follows_edit, see(eye, sources), drawn)
        row.truth = share(checks.follows_edit, see(eye, true), drawn)
        row.autoencoder = share(checks.follows_edit, see(eye, rebuilt), drawn)
        report.rows.append(row)
        right = [checks.follows_edit(f, e) for f, e in zip(found, drawn, strict=True)]
        for source, picture, edit, good in list(zip(sources, pictures, drawn, right, strict=True))[:8]:
            report.shown.append((np.concatenate([source, picture], 1), edit.instruction, good))
        kept += [
            {
                "model": preserved(picture, edit),
                "autoencoder": preserved(again, edit),
                "truth": preserved(target, edit),
                "other": preserved(other, edit),
            }
            for picture, again, target, other, edit in zip(
                pictures, rebuilt, true, rotate(true), drawn, strict=True
            )
        ]
    for index, unit in enumerate(("dB", "SSIM")):
        values = {who: fmean(entry[who][index] for entry in kept) for who in kept[0]}
        report.rows.append(
            Row(
                f"kept ({unit})",
                len(kept),
                values["model"],
                shuffled=values["other"],
                truth=values["truth"],
                autoencoder=values["autoencoder"],
                unit=unit,
            )
        )
    report.notes.append(
        "edits: the column 'guess' is the unchanged source; 'kept' ends at 60 dB, identical pixels."
    )


def preserved(picture: np.ndarray, edit: Edit) -> tuple[float, float]:
    return checks.preservation(picture, edit)


def score_answers(report: Report, pipeline, samples: int, seed: int) -> None:
    """Understanding: exact match of the answers about true pictures of held-out scenes."""
    for kind in tqdm(questions.KINDS, desc="answers", unit="kind"):
        random = Random(f"{seed}/score/{kind}")
        asked = []
        for _ in range(samples):
            scene = scenes.draw(random, "single" if kind == "what" else None, held_out=True)
            asked.append((scene, *questions.draw(random, scene, kind)))
        answers = [pipeline.ask(Image.fromarray(scenes.render(s)), question).text for s, question, _ in asked]
        truth = [answer for _, _, answer in asked]
        row = Row(f"ask: {kind}", samples, fmean(a == t for a, t in zip(answers, truth, strict=True)))
        row.shuffled = fmean(a == t for a, t in zip(answers, rotate(truth), strict=True))
        report.rows.append(row)


def score(pipeline, eye: detector.Detector, samples: int = 64, seed: int = 0) -> Report:
    """Score a pipeline.

    Without the sprites (`sprites.load`) only text to image is scored, and without ceilings.
    """
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    pipeline.set_progress_bar_config(disable=True)
    report = Report()
    art = (sprites.CACHE / "sprites.npz").exists()
    score_captions(report, pipeline, eye, samples, seed, options, art)
    if art:
        both = options | {"guidance_scale": EDIT_GUIDANCE, "image_guidance_scale": IMAGE_GUIDANCE}
        score_edits(report, pipeline, eye, samples, seed, both)
        score_answers(report, pipeline, samples, seed)
    else:
        report.notes.append(
            "edits, answers and ceilings were left out: they need the sprites, which "
            "`python -m tbac_uniimage.training.nano.sprites` fetches"
        )
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command `score`."""
    parser.add_argument("--model", type=Path, default=MODEL, help="pipeline folder (default: embedded)")
    parser.add_argument("--samples", type=int, default=64, help="held-out scenes per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--out", type=Path, help="also write the contact sheet into this folder")


def run(options: argparse.Namespace) -> Report:
    """The command `score`: print the table, write what was asked for."""
    from ...core.pipeline import LadderPipeline

    if options.samples < 2:
        raise ValueError(f"--samples is {options.samples}: give at least 2 scenes per kind")
    if not (options.model / "model_index.json").exists():
        raise FileNotFoundError(f"there is no pipeline folder at {options.model}: give one with --model")
    eye_path = options.model / DETECTOR
    eye = detector.load(eye_path if eye_path.exists() else MODEL / DETECTOR)
    pipeline = LadderPipeline.from_pretrained(options.model, torch_dtype=torch.float32)
    report = score(pipeline, eye, options.samples, options.seed)
    print(report)
    if options.json:
        rows = [
            asdict(row) | ({"interval": row.interval} if row.unit == "share" else {}) for row in report.rows
        ]
        text = json.dumps({"seed": options.seed, "rows": rows, "notes": report.notes}, indent=1)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        loop.replace_file(lambda partial: partial.write_text(text), options.json)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(report.shown)
        loop.replace_file(lambda partial: sheet.save(partial, format="PNG"), options.out / "score.png")
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tbac-uniimage score", description=__doc__)
    add_arguments(parser)
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
