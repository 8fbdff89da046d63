"""Make the embedded nano model from nothing: `python -m tbac_uniimage.training.nano.make`, or `make nano`.

Drawings, composed data, the recipes a to g, which make what a pretrained model would bring, the ladder's
stages, the score's judge, and all of it as `assets/nano`. What is finished is skipped and what was
interrupted goes on, so the command can be given again after any stop. Two CPU cores take most of a day.

`--model DIR` takes language model, ladder and judge of a trained model in place of b to g, and gives it a new
autoencoder; its ladder goes on from there.

`--trial` takes a few steps of every stage on a few pictures and writes below `runs/nano-trial`: it shows in a
minute or two that everything works, and its model draws nothing.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..recipe.recipe_file import read_settings

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes" / "nano"
SHELL = Path(sys.executable).with_name("tbac-uniimage")
PACKAGE = "tbac_uniimage.training"
RUNS = "runs/nano"  # what the recipes have
BASE = ("a_autoencoder", "b_vision", "c_language", "d_grounding", "e_seeing", "f_answers")
LADDER = ("g_transformer", "1_text_to_image", "2_image_text_to_image", "3_fine_tune", "4_few_steps")


@dataclass(frozen=True)
class Size:
    """How much is composed and learned.

    Attributes:
        counts: samples of every data set that `compose` writes.
        judge_minutes: of the judge's training.
        base: what differs from the recipes of the base models, by recipe, as `key=value`.
        ladder: the same of the ladder's stages.
    """

    counts: dict[str, int]
    judge_minutes: float
    base: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ladder: tuple[str, ...] = ()


FULL = Size(
    {
        "scenes": 300_000,
        "words": 100_000,
        "edits": 200_000,
        "curated-scenes": 20_000,
        "curated-edits": 20_000,
    },
    judge_minutes=16,
)
TRIAL = Size(
    {"scenes": 24, "words": 16, "edits": 16, "curated-scenes": 16, "curated-edits": 16},
    judge_minutes=0.02,
    base={
        "a_autoencoder": ("steps=3", "warmup=1", "batch=2"),
        "b_vision": ("steps=3", "warmup=1", "batch=2"),
        "c_language": ("steps=3", "warmup=1", "batch={caption: 1, dense: 1, edit: 1, question: 1}"),
        "d_grounding": ("steps=3", "warmup=1", "batch={caption: 1, dense: 1, edit: 1, question: 1}"),
        "e_seeing": ("steps=3", "warmup=1", "batch=2"),
        "f_answers": ("steps=3", "warmup=1", "batch={caption: 1, dense: 1, edit: 1, question: 1}"),
    },
    ladder=(
        "train.steps=4",
        "train.batch=4",
        "train.micro_batch=2",
        "train.warmup=1",
        "checkpoint.every=2",
        "validation.every=4",
        "validation.held_out=2",
        "validation.steps=2",
        "log.every=1",
    ),
)


@dataclass(frozen=True)
class Step:
    """One command, and how to see that it has been done; most say themselves when nothing is left to do."""

    name: str
    command: list[str]
    done: Callable[[], bool] = lambda: False


def module(name: str, *arguments: object) -> list[str]:
    """A module of the training package as a command."""
    return [sys.executable, "-m", f"{PACKAGE}.{name}", *map(str, arguments)]


def values(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of plain settings with their values."""
    pairs = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def moved(recipe: Path, runs: Path, named: str = RUNS) -> list[str]:
    """The recipe's paths below `named` put below `runs`, as `key=value`; none where that is the same."""
    inside = ((k, v) for k, v in values(read_settings(recipe)) if str(v).startswith(f"{named}/"))
    changed = [f"{key}={runs / value.removeprefix(f'{named}/')}" for key, value in inside]
    return [] if runs == ROOT / named else changed


def base_stage(name: str, runs: Path, size: Size) -> Step:
    """One of the base models."""
    path = RECIPES / f"{name}.yaml"
    changes = [*moved(path, runs), *size.base.get(name, ())]

    def done() -> bool:
        from .base.stage import STATE, load_stage_recipe, read_progress

        recipe = load_stage_recipe(path, changes)
        folder = ROOT / recipe.run
        return (folder / STATE).exists() and read_progress(folder)["steps"] >= recipe.steps

    return Step(name, module("nano.base.train", path, *changes), done)


def ladder_stage(name: str, runs: Path, size: Size, processes: int, *more: str) -> Step:
    """A stage of the ladder, on several processes of one thread each; `more` differs from its recipe, too.

    Raises:
        ValueError: its samples cannot be shared out to so many processes.
    """
    path = RECIPES / f"{name}.yaml"
    changes = [*moved(path, runs), *size.ladder, *more]
    shares = dict(values(read_settings(path))) | dict(change.split("=", 1) for change in size.ladder)
    batch, micro = int(shares["train.batch"]), int(shares["train.micro_batch"])
    if name == LADDER[-1]:  # its steps are smaller than those of the others
        processes = math.gcd(processes, batch)
    if processes < 1 or batch % processes:
        raise ValueError(f"--processes is {processes}: give a divisor of {batch}, the samples of a step")
    if batch // processes < micro:
        changes.append(f"train.micro_batch={batch // processes}")
    command = module("train", path, *changes)
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *launcher, *command[1:]]
    return Step(name, command)


def steps(runs: Path, target: Path, size: Size, processes: int, model: Path | None = None) -> list[Step]:
    """All steps in order.

    Args:
        runs: folder of everything that is made on the way.
        target: folder of the model.
        size: how much is composed and learned.
        processes: of the ladder's stages.
        model: a trained model whose language model, ladder and judge are taken instead of making them anew.
    """
    made = {"autoencoder": runs / "autoencoder"}
    made |= {"model": model} if model else {"language": runs / "answers", "tokenizer": runs / "tokenizer"}
    parts = (word for name, folder in made.items() for word in (f"--{name}", folder))
    pixels = read_settings(RECIPES / f"{LADDER[0]}.yaml")["data"]["resolution"]
    counts = [word for name, count in size.counts.items() for word in (f"--{name}", count)]
    sets = [str(runs / "data" / name) for name in size.counts]
    index = [str(SHELL), "data", "index", *sets, "-o", str(runs / "index")]
    judge, few_steps = (model or runs) / "judge", ("--few-steps", runs / "stage4")
    ladder = [ladder_stage(name, runs, size, processes) for name in LADDER]
    if model:  # its ladder is what g would have made
        start = (f"init={runs / 'base'}", "init_ema=false")
        ladder[:2] = [ladder_stage(LADDER[1], runs, size, processes, *start)]
    train_judge = Step("judge", module("nano.judge.train", judge, "--minutes", size.judge_minutes))
    return [
        Step("drawings", module("nano.domain.art")),
        *(base_stage(name, runs, size) for name in (BASE[:1] if model else BASE)),
        Step("base", module("nano.base.assemble", runs / "base", *parts), (runs / "base").exists),
        Step("data", module("nano.compose", runs / "data", "--size", pixels, *counts)),
        Step("index", index, lambda: all((runs / "index" / name).exists() for name in size.counts)),
        *ladder,
        *([] if model else [train_judge]),
        Step("publish", module("nano.publish", runs / "stage3", judge, target, *few_steps)),
    ]


def run_steps(to_do: list[Step]) -> str | None:
    """Run what is not done yet, up to the first step that fails; a sentence about that one."""
    for step in to_do:
        if step.done():
            print(f"{step.name}: done before", flush=True)
            continue
        print(f"{step.name} …", flush=True)
        if code := subprocess.run(step.command, cwd=ROOT).returncode:
            return f"The step {step.name} ended with {code}; the same command goes on from here."
    return None


def main() -> None:
    """Run every step that is not done yet; stop at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=int, default=2, help="of the ladder's stages (default: %(default)s)")
    add("--model", type=Path, metavar="DIR", help="a trained model in place of the recipes b to g")
    add("--trial", action="store_true", help="a few steps of everything, to see that it works")
    add("--runs", type=Path, help=f"where everything is made (default: {RUNS}, of a trial {RUNS}-trial)")
    add("--target", type=Path, help="folder of the model (default: assets/nano, of a trial RUNS/model)")
    options = parser.parse_args()
    runs = (options.runs or ROOT / (f"{RUNS}-trial" if options.trial else RUNS)).absolute()
    target = options.target or (runs / "model" if options.trial else ROOT / "assets" / "nano")
    try:
        size = TRIAL if options.trial else FULL
        model = options.model and options.model.absolute()
        to_do = steps(runs, target.absolute(), size, options.processes, model)
    except ValueError as error:
        sys.exit(str(error))
    sys.exit(run_steps(to_do))


if __name__ == "__main__":
    main()
