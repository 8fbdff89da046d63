"""``evaluate judge geneval --detector DIR --clip DIR``: GenEval by transformers' classes.

Its numbers are called "geneval (transformers)": other weights than mmdet's see other objects, and the same
weights in other code not quite the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import folders
from ..benchmark import Benchmark, Item

if TYPE_CHECKING:
    from PIL import Image

    from ..judge import Drawn
    from .clip import ColourClassifier
    from .instances import Instances

NAME = "transformers"


def check_options(options: argparse.Namespace, benchmarks: Sequence[Benchmark]) -> None:
    """Raise ValueError unless the command names detector and CLIP, for GenEval."""
    for option, folder in (("--detector", options.detector), ("--clip", options.clip)):
        if folder is None:
            raise ValueError(f"GenEval needs a detector and CLIP; give {option} too.")
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give that of a model with {option}.")
    if options.url:
        raise ValueError("Detectors are asked over no address; leave --url out.")
    for benchmark in benchmarks:
        if not benchmark.name.startswith("geneval") or benchmark.judge is not None:
            raise ValueError(f"{benchmark.name} is not judged by a detector; give --url and --judge.")


def judge(found: Drawn, options: argparse.Namespace) -> None:
    """Look at every picture that has no verdict yet.

    Raises:
        ValueError: the models are others than those that began, or no such models.
        Stop: a verdict cannot be written.
    """
    import torch
    from tqdm import tqdm

    from ..judge import check_about, name_of
    from ..judges.answers import AnswerFile, read_lines
    from ..manifest import model_digest
    from . import clip, mask2former

    name = name_of(options)
    folder = folders.judged(options.out, found.benchmark.name, name)
    about = {
        "judge": name,
        "detector": model_digest([options.detector]),
        "clip": model_digest([options.clip]),
        "pictures": found.manifest,
    }
    check_about(folder, about)
    names = class_names(found)
    mask2former.check(options.detector, len(names))
    clip.check(options.clip)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    detector = mask2former.load(options.detector, device, len(names))
    colours = clip.ColourClassifier(options.clip, device)
    path = folder / folders.ANSWERS
    lines = read_lines(path)
    shots = [(item, shot.path) for item in found.items for shot in item.pictures]
    left = [(item, shot) for item, shot in shots if shot not in lines]
    file = AnswerFile(path, about)
    done = len(shots) - len(left)
    with tqdm(total=len(shots), initial=done, desc=found.benchmark.name, unit="picture") as bar:
        for item, shot in left:
            picture = opened(found, shot)
            verdict = verdict_of(item, picture, mask2former.detect(detector, picture), names, colours)
            file.append({"request": shot, "item": item.key, "verdict": verdict})
            bar.update()
    file.close()
    print(f"{found.benchmark.name}, judged by {name}: {len(shots):,} pictures in {folder}")


def class_names(found: Drawn) -> list[str]:
    """GenEval's names of COCO's classes, in their order."""
    from ..sets.geneval import NAMES, OFFICIAL

    return found.checkout.path(OFFICIAL, NAMES).read_text(encoding="utf-8").split("\n")[:-1]


def opened(found: Drawn, shot: str) -> Image.Image:
    """A picture of the set. Raises ValueError."""
    from ....core.pictures import read_picture

    return read_picture(found.pictures / shot)


def verdict_of(
    item: Item, picture: Image.Image, seen: Instances, names: Sequence[str], colours: ColourClassifier
) -> dict[str, Any]:
    """Whether a picture shows what its prompt asks for, and why not."""
    from .verdict import Seen, kept, verdict

    objects: dict[str, list[Seen]] = {}
    for label, box, mask in zip(seen.labels.tolist(), seen.boxes.cpu(), seen.masks.cpu(), strict=True):
        objects.setdefault(names[label], []).append(Seen(box.numpy(), mask.numpy()))
    counted = kept(objects, item.group)
    correct, reason = verdict(counted, item.data, lambda some, name: colours(picture, some, name))
    return {"correct": correct, "reason": reason}
