"""How far the judge can be trusted: `python -m tbac_uniimage.training.nano.judge.accuracy MODEL`.

On held-out scenes as they are drawn: how often it says yes to the right caption, to the caption of another
scene ("shuffled"), and to the right one with one property changed. An edit is asked about its own result,
about the result of another edit ("shuffled"), and about its unchanged source ("changed"). With
`--autoencoder RUN` the pictures pass that one first: the ceiling of whatever draws in its latents.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np

from ..domain import edits, prompts
from ..domain.facts import GENERAL
from ..domain.render import render
from ..domain.scene import SIZE
from .changed import change_general, change_one
from .detector import Detector, load
from .pictures import see
from .verdicts import facts_right, follows, follows_edit, general, letters_right

Pictures = list[np.ndarray]


@dataclass(frozen=True)
class Trust:
    """Shares in 0..1: yes to what is right, to what belongs to another picture, to what is nearly right (None
    where the row is a mean share, which one wrong fact hardly lowers).
    """

    name: str
    samples: int
    truth: float
    shuffled: float
    changed: float | None


def mean(judge: Callable, found: Sequence, wanted: Sequence) -> float:
    """Mean verdict, less the pairs about which nothing is said."""
    verdicts = [judge(f, w) for f, w in zip(found, wanted, strict=True)]
    return fmean(float(verdict) for verdict in verdicts if verdict is not None)


def rotate(values: Sequence) -> list:
    """Every value moved on by one, so that nothing stands beside its own."""
    return [*values[1:], values[0]]


def measure(
    eye: Detector,
    samples: int = 200,
    seed: int = 0,
    through: Callable[[Pictures], Pictures] | None = None,
    size: int = SIZE,
) -> list[Trust]:
    """A row for every kind of caption and edit, and for facts, letters, style and background.

    Args:
        eye: the detector in evaluation mode.
        samples: held-out scenes of each kind, at least 2.
        seed: which scenes.
        through: what is done to the pictures first, such as an autoencoder's reconstruction.
        size: side of the pictures in pixels.
    """
    rows: list[Trust] = []
    random = Random(f"{seed}/changed")
    all_found, all_asked = [], []

    def add(name: str, judge: Callable, found: Sequence, asked: Sequence, changed: Sequence | None) -> None:
        right, shuffled = mean(judge, found, asked), mean(judge, found, rotate(asked))
        wrong = None if changed is None else mean(judge, found, changed)
        rows.append(Trust(name, len(asked), right, shuffled, wrong))

    def look(pictures: Pictures) -> list:
        return see(eye, through(pictures) if through else pictures)

    for kind in prompts.KINDS:
        asked = [prompts.draw(seed, "held out", i, kind) for i in range(samples)]
        found = look([render(prompt.scene, size) for prompt in asked])
        changed = [change_one(random, prompt) for prompt in asked]
        add(kind, follows, found, asked, changed)
        if kind == "dense":
            add("dense: facts", facts_right, found, asked, None)
        if kind == "text":
            add("text: letters", letters_right, found, asked, None)
        all_found += found
        all_asked += asked
    for what in GENERAL:
        named = [(f, p) for f, p in zip(all_found, all_asked, strict=True) if general(f, p, what) is not None]
        found, asked = ([pair[i] for pair in named] for i in range(2))
        changed = [change_general(random, prompt) for prompt in asked]
        add(what, lambda f, p, what=what: general(f, p, what), found, asked, changed)
    for kind in edits.KINDS:
        asked = [edits.draw(seed, "held out", i, kind) for i in range(samples)]
        found = look([render(edit.target, size) for edit in asked])
        source = look([render(edit.source, size) for edit in asked])
        pairs = ((found, asked), (found, rotate(asked)), (source, asked))
        shares = (mean(follows_edit, seen, wanted) for seen, wanted in pairs)
        rows.append(Trust(f"edit: {kind}", samples, *shares))
    return rows


def table(rows: Sequence[Trust]) -> str:
    """The rows as text."""
    head = f"{'judge on real scenes':<22}{'n':>6}{'truth':>9}{'shuffled':>10}{'changed':>9}"
    lines = []
    for row in rows:
        changed = "–" if row.changed is None else f"{row.changed:.3f}"
        lines.append(f"{row.name:<22}{row.samples:>6}{row.truth:>9.3f}{row.shuffled:>10.3f}{changed:>9}")
    return "\n".join([head, "-" * len(head), *lines])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="How far the judge of the sprite-scene score can be trusted."
    )
    parser.add_argument("model", type=Path, help="weights of the detector")
    parser.add_argument("--samples", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder", metavar="RUN", help="run of an autoencoder to pass first")
    options = parser.parse_args()
    through, size = reconstruction(options.autoencoder) if options.autoencoder else (None, SIZE)
    print(table(measure(load(options.model), options.samples, options.seed, through, size)))


def reconstruction(run: str) -> tuple[Callable[[Pictures], Pictures], int]:
    """What a trained autoencoder makes of pictures, and the side of these in pixels.

    Raises:
        ValueError: it has not been trained yet.
    """
    from ..base import autoencoder, stage
    from ..score.drawing import rebuild

    size = autoencoder.trained_size(run)
    vae = autoencoder.build(size).eval()
    stage.load_stage(run, {"vae": vae})
    return lambda pictures: rebuild(vae, pictures), size


if __name__ == "__main__":
    main()
