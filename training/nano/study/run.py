"""Run a study: `python -m tbac_uniimage.training.nano.study.run rungs`. What is finished is skipped.

Drawings, samples, their caches; then seed by seed every side: train, export, score; then the report.
A stop costs at most the steps since a run's last checkpoint. `--trial` takes a few steps of everything.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from ....core.checkpoints.weights import read_json
from ...recipe.recipe import load_recipe
from ..compose import SETS
from ..make import ROOT, SHELL, Step, module, moved, run_steps
from .studies import STUDIES, Study

RUNS = "runs/study"
MODEL = ROOT / "assets" / "nano"


@dataclass(frozen=True)
class Budget:
    """How much is learned and drawn.

    Attributes:
        counts: samples of every data set; those of the validation among them.
        samples: prompts of each kind that a finished run is scored on.
        changes: what differs from the recipe, as ``key=value``.
        score: options of the score that differ from the study's.
    """

    counts: dict[str, int]
    samples: int
    changes: tuple[str, ...] = ()
    score: tuple[str, ...] = ()


def full(study: Study) -> Budget:
    """What the study takes."""
    return Budget(study.counts, study.samples)


def trial(study: Study) -> Budget:
    """A few steps of everything."""
    changes = (
        "train.steps=4",
        "train.batch=4",
        "train.micro_batch=4",
        "train.warmup=1",
        "checkpoint.every=2",
        "validation.every=2",
        "validation.held_out=4",
        "log.every=1",
    )
    return Budget(dict.fromkeys(study.counts, 24), 2, changes, ("--steps", "2"))


@dataclass(frozen=True)
class Place:
    """Where a study finds and makes everything.

    Attributes:
        runs: folder of everything that is made.
        model: gives the frozen parts, or all that a run starts from.
    """

    runs: Path
    model: Path = MODEL

    def start(self, study: Study, seed: int) -> Path:
        """What a run of a seed starts from."""
        return self.runs / f"start-{seed}" if study.untrained else self.model


def has_option(model: Path, study: Study) -> bool:
    """Whether a model has what the sides of a study add, which is called as the study."""
    file = model / "transformer" / "config.json"
    return file.is_file() and bool(read_json(file).get(study.name))


def recipe_changes(study: Study, place: Place, budget: Budget, side: str, seed: int) -> list[str]:
    """What a run has in place of what the recipe says."""
    changes = [*moved(study.recipe, place.runs, study.folder), *budget.changes, *study.sides[side]]
    return [*changes, f"seed={seed}", f"init={place.start(study, seed)}"]


def one_run(study: Study, place: Place, budget: Budget, side: str, seed: int) -> list[Step]:
    """Train a side with a seed, make a model of its averaged weights, and score it."""
    folder = place.runs / f"{side}-{seed}"
    scored = (folder / "score.json").exists
    changes = [*recipe_changes(study, place, budget, side, seed), f"run={folder}"]
    export = [str(SHELL), "export", str(folder), "--to", "pipeline", "--ema", "-o", str(folder / "model")]
    score = [str(SHELL), "score", "--model", str(folder / "model"), "-o", str(folder / "pictures")]
    score += ["--json", str(folder / "score.json"), "--samples", str(budget.samples)]
    return [
        Step(f"train {folder.name}", module("train", study.recipe, *changes), scored),
        Step(f"export {folder.name}", export, (folder / "model").exists),
        Step(f"score {folder.name}", [*score, *study.score, *budget.score], scored),
    ]


def steps(study: Study, place: Place, budget: Budget, sides: list[str], seeds: list[int]) -> list[Step]:
    """All steps in order; all sides of a seed come before the next seed, so that a part can be compared.

    Args:
        study: what is compared.
        place: where.
        budget: how much.
        sides: of the study.
        seeds: of new parts, order and noise.
    """
    runs = place.runs
    starts = {seed: place.start(study, seed) for seed in seeds} if study.untrained else {}
    counts = {name: budget.counts.get(name, 0) for name in SETS}
    told = [word for name, count in counts.items() for word in (f"--{name}", count)]
    sets = [runs / "data" / name for name in study.counts]
    pixels = load_recipe(study.recipe).data.resolution
    cached = recipe_changes(study, place, budget, study.fullest, seeds[0])
    return [
        Step("drawings", module("nano.domain.art")),
        Step("data", module("nano.compose", runs / "data", "--size", pixels, "--seed", study.seed, *told)),
        Step(
            "index",
            [str(SHELL), "data", "index", *map(str, sets), "-o", str(runs / "index")],
            lambda: all((runs / "index" / path.name).exists() for path in sets),
        ),
        *(
            Step(path.name, module("nano.study.start", place.model, path, "--seed", seed), path.exists)
            for seed, path in starts.items()
        ),
        Step("caches", [str(SHELL), "train", "cache", str(study.recipe), *cached, "--dtype", "float16"]),
        *(step for seed in seeds for side in sides for step in one_run(study, place, budget, side, seed)),
        Step("report", module("nano.study.report", study.name, runs)),
    ]


def main() -> None:
    """Run every step that is not done yet; stop at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("study", choices=STUDIES, help="; ".join(f"{s.name}: {', '.join(s.sides)}" for s in STUDIES.values()))
    add("--sides", nargs="+", metavar="SIDE", help="default: all")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    add("--model", type=Path, default=MODEL, help="what is started from (default: assets/nano)")
    add("--runs", type=Path, help=f"where everything is made (default: {RUNS}/STUDY, of a trial STUDY-trial)")
    add("--trial", action="store_true", help="a few steps of everything, to see that it works")
    options = parser.parse_args()
    study = STUDIES[options.study]
    sides = options.sides or list(study.sides)
    if unknown := set(sides) - set(study.sides):
        parser.error(f"--sides: {study.name} has {', '.join(study.sides)}, not {', '.join(sorted(unknown))}")
    if has_option(options.model, study):
        parser.error(f"--model: {options.model} has {study.name} already; give a model that has not")
    runs = options.runs or ROOT / (f"{study.folder}-trial" if options.trial else study.folder)
    place = Place(runs.absolute(), options.model.absolute())
    budget = trial(study) if options.trial else full(study)
    sys.exit(run_steps(steps(study, place, budget, sides, options.seeds)))


if __name__ == "__main__":
    main()
