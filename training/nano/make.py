"""Make the embedded nano model from nothing: `python -m tbac_uniimage.training.nano.make`, or `make nano`.

Drawings, base models, composed data, the ladder's three stages, the score's judge, and all of it as
`assets/nano`. What is finished is skipped and what was interrupted goes on, so the command can be given again
after any stop. On two CPU cores it takes most of a day.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes" / "nano"
SHELL = Path(sys.executable).with_name("tbac-uniimage")
PACKAGE = "tbac_uniimage.training"
RUNS = Path("runs/nano")  # below the repository, as the recipes have it
SCENES, EDITS, CURATED = 300_000, 200_000, 20_000


@dataclass(frozen=True)
class Step:
    """One command, and how to see that it has been done."""

    name: str
    command: list[str]
    done: Callable[[], bool]


def module(name: str, *arguments: object) -> list[str]:
    """A module of the training package as a command."""
    return [sys.executable, "-m", f"{PACKAGE}.{name}", *map(str, arguments)]


def ladder_stage(recipe: str, processes: int) -> list[str]:
    """A stage of the ladder, on several processes of one thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, "-m", f"{PACKAGE}.train", str(RECIPES / f"{recipe}.yaml")]


def trained(stage: str) -> Callable[[], bool]:
    """Whether a base model's run has reached its last step."""

    def done() -> bool:
        from .base.stage import STATE, load_stage_recipe, read_progress

        recipe = load_stage_recipe(RECIPES / f"{stage}.yaml", [])
        return (ROOT / recipe.run / STATE).exists() and (
            read_progress(ROOT / recipe.run)["steps"] >= recipe.steps
        )

    return done


def steps(processes: int) -> list[Step]:
    """All steps in order; those of training say themselves when nothing is left to do."""
    index = [RUNS / "data" / name for name in ("scenes", "edits", "curated-scenes", "curated-edits")]
    numbers = ("--scenes", SCENES, "--edits", EDITS, "--curated", CURATED)
    base = (
        "--autoencoder",
        RUNS / "autoencoder",
        "--language",
        RUNS / "language",
        "--tokenizer",
        RUNS / "tokenizer",
    )

    def never() -> bool:
        return False

    return [
        Step("drawings", module("nano.domain.art"), (ROOT / ".cache" / "nano" / "art.npz").exists),
        *(
            Step(name, module("nano.base.train", RECIPES / f"{name}.yaml"), trained(name))
            for name in ("a_autoencoder", "b_vision", "c_language")
        ),
        Step("base", module("nano.base.assemble", RUNS / "base", *base), (ROOT / RUNS / "base").exists),
        Step("data", module("nano.compose", RUNS / "data", *numbers), never),
        Step(
            "index",
            [str(SHELL), "data", "index", *map(str, index), "-o", str(RUNS / "index")],
            (ROOT / RUNS / "index" / "curated-edits").exists,
        ),
        *(
            Step(name, ladder_stage(name, processes), never)
            for name in ("1_text_to_image", "2_image_text_to_image", "3_fine_tune")
        ),
        Step("judge", module("nano.judge.train", RUNS / "judge"), never),
        Step("publish", module("nano.publish", RUNS / "stage3", RUNS / "judge", "assets/nano"), never),
    ]


def main() -> None:
    """Run every step that is not done yet; stop at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="of the ladder's stages; 24 must be a multiple"
    )
    options = parser.parse_args()
    for step in steps(options.processes):
        if step.done():
            print(f"{step.name}: done before", flush=True)
            continue
        print(f"{step.name} …", flush=True)
        subprocess.run(step.command, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
