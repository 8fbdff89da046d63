"""Run the ladder study: `python -m tbac_uniimage.training.nano.study.run`. What is finished is skipped.

Drawings, captions with their pictures, latents; then seed by seed every kind of rungs: train, export, score;
then the report. A stop costs at most 300 steps of one run. `--trial` takes a few steps of everything.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from ....core.rung_kinds import RUNGS
from ..compose import SETS
from ..make import ROOT, SHELL, Step, module, moved, run_steps

RECIPE = ROOT / "training" / "recipes" / "study" / "rungs.yaml"
RUNS = "runs/study"  # what the recipe has
MODEL = ROOT / "assets" / "nano"


@dataclass(frozen=True)
class Budget:
    """How much is learned and drawn.

    Attributes:
        scenes: captions with their picture; those of the validation among them.
        prompts: of each kind, one picture each, that a finished run is scored on.
        sampling: steps of a picture.
        changes: what differs from the recipe, as ``key=value``.
    """

    scenes: int
    prompts: int
    sampling: int = 20
    changes: tuple[str, ...] = ()


FULL = Budget(scenes=105_000, prompts=100)
TRIAL = Budget(
    scenes=24,
    prompts=2,
    sampling=2,
    changes=(
        "train.steps=4",
        "train.batch=4",
        "train.micro_batch=4",
        "train.warmup=1",
        "checkpoint.every=2",
        "validation.every=2",
        "validation.held_out=4",
        "log.every=1",
    ),
)


def run_name(rungs: str, seed: int) -> str:
    """Folder of a run below that of the study."""
    return f"{rungs}-{seed}"


def one_run(rungs: str, seed: int, runs: Path, budget: Budget) -> list[Step]:
    """Train a kind with a seed, make a model of its averaged weights, and score it."""
    folder = runs / run_name(rungs, seed)
    scored = (folder / "score.json").exists
    changes = [*moved(RECIPE, runs, RUNS), *budget.changes, f"model.rungs={rungs}", f"seed={seed}"]
    changes += [f"run={folder}", f"init={runs / f'start-{seed}'}"]
    export = [str(SHELL), "export", str(folder), "--to", "pipeline", "--ema", "-o", str(folder / "model")]
    score = [str(SHELL), "score", "--model", str(folder / "model"), "-o", str(folder / "pictures")]
    score += ["--json", str(folder / "score.json"), "--only", "draw", "--pictures", "1"]
    score += ["--samples", str(budget.prompts), "--steps", str(budget.sampling)]
    return [
        Step(f"train {folder.name}", module("train", RECIPE, *changes), scored),
        Step(f"export {folder.name}", export, (folder / "model").exists),
        Step(f"score {folder.name}", score, scored),
    ]


def steps(
    runs: Path, budget: Budget, kinds: list[str], seeds: list[int], model: Path, keep_queries: bool
) -> list[Step]:
    """All steps in order; all kinds of a seed come before the next seed, so that a part can be compared.

    Args:
        runs: folder of everything that is made.
        budget: how much.
        kinds: of rungs.
        seeds: of new parts, order and noise.
        model: gives the frozen parts.
        keep_queries: see `start.untrained`.
    """
    keep = ["--keep-queries"] if keep_queries else []
    starts = {seed: runs / f"start-{seed}" for seed in seeds}
    cached = [*moved(RECIPE, runs, RUNS), *budget.changes, f"init={starts[seeds[0]]}"]
    index = [str(SHELL), "data", "index", str(runs / "data" / "scenes"), "-o", str(runs / "index")]
    counts = {name: budget.scenes if name == "scenes" else 0 for name in SETS}
    told = [word for name, count in counts.items() for word in (f"--{name}", count)]
    return [
        Step("drawings", module("nano.domain.art")),
        Step("data", module("nano.compose", runs / "data", *told)),
        Step("index", index, (runs / "index" / "scenes").exists),
        *(
            Step(path.name, module("nano.study.start", model, path, "--seed", seed, *keep), path.exists)
            for seed, path in starts.items()
        ),
        Step("latents", [str(SHELL), "train", "cache", str(RECIPE), *cached, "--dtype", "float16"]),
        *(step for seed in seeds for kind in kinds for step in one_run(kind, seed, runs, budget)),
        Step("report", module("nano.study.report", runs)),
    ]


def main() -> None:
    """Run every step that is not done yet; stop at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = ", ".join(RUNGS)
    add("--kinds", nargs="+", choices=RUNGS, default=list(RUNGS), metavar="KIND", help=f"default: {names}")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    add("--model", type=Path, default=MODEL, help="whose frozen parts are taken (default: assets/nano)")
    add("--keep-queries", action="store_true", help="start from its queries too, which know the ladder")
    add("--runs", type=Path, help=f"where everything is made (default: {RUNS}, of a trial {RUNS}-trial)")
    add("--trial", action="store_true", help="a few steps of everything, to see that it works")
    options = parser.parse_args()
    runs = (options.runs or ROOT / (f"{RUNS}-trial" if options.trial else RUNS)).absolute()
    budget = TRIAL if options.trial else FULL
    model = options.model.absolute()
    sys.exit(run_steps(steps(runs, budget, options.kinds, options.seeds, model, options.keep_queries)))


if __name__ == "__main__":
    main()
