"""``tbac-uniimage train cache``: compute the latents and vision tokens of a recipe's data once.

Half of what a step computes never changes with the weights: the autoencoder's latents of the target pictures
and the vision tower's output on the input pictures.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...arguments import any_path

if TYPE_CHECKING:
    import torch

    from ....core.checkpoints import LadderParts
    from ...recipe.recipe import Recipe

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Filled:
    """What :func:`fill` did.

    Attributes:
        written: samples that got an entry.
        present: samples that had all theirs.
        bad: a line for each sample whose pictures cannot be read; they get none.
    """

    written: int = 0
    present: int = 0
    bad: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``train cache``. Imports nothing heavy."""
    parser.description = (
        "Fills the folders that data.cache.latents and data.cache.vision name, and goes on where it was "
        "stopped. Several processes, started by accelerate launch or one by one, share the work."
    )
    parser.add_argument("recipe", type=any_path, metavar="RECIPE", help="a YAML file as in training/recipes")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="in place of what the file says: data.workers=8"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="how the values are kept; float32 changes no loss (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N", help="samples computed at once (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Fill the caches of a recipe.

    Raises:
        ValueError: bad recipe, model or data, or no cache named. Recipes refuse random crops beside a cache.
    """
    from ....core.paths import user_path
    from ...recipe.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if not (recipe.data.cache.latents or recipe.data.cache.vision):
        raise ValueError(
            "data.cache.latents and data.cache.vision are both null; give a folder for one of them at least, "
            "as in data.cache.latents=cache/latents."
        )
    if options.batch < 1:
        raise ValueError(f"--batch is {options.batch}; a computation needs at least 1 sample.")
    for name, folder in recipe.data.cache:
        if folder:
            make_folder(user_path(folder), name)

    import torch
    from accelerate import PartialState

    from ...models import load_base

    state = PartialState(cpu=not torch.accelerator.is_available())
    parts = load_base(recipe, torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32)
    if recipe.distils and not parts.transformer.config.source_latents and not recipe.data.cache.vision:
        raise ValueError(
            "Few-step distillation reads no targets, and this model no latents of what it edits, so nothing "
            "of data.cache.latents would be read; leave it out, or name data.cache.vision."
        )
    for module in (parts.vae, parts.mllm):
        module.eval().to(state.device)
    filled = fill(
        recipe,
        parts,
        dtype=getattr(torch, options.dtype),
        batch=options.batch,
        rank=state.process_index,
        world=state.num_processes,
    )
    print(f"{filled.written:,} samples computed, {filled.present:,} were there, {len(filled.bad):,} are bad.")


def make_folder(folder: Path, name: str) -> None:
    """Make the folder of a cache. Raises ValueError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"data.cache.{name} is {folder}, which is no folder and cannot be made one ({error.strerror}); "
            "give another one."
        ) from error


def fill(
    recipe: Recipe, parts: LadderParts, dtype: torch.dtype, batch: int = 8, rank: int = 0, world: int = 1
) -> Filled:
    """Compute this process's part of the entries that are not there.

    Args:
        recipe: says data, sizes and folders.
        parts: the model that will be trained; its autoencoder and vision tower on the device to use, in the
            type that training has them in.
        dtype: of the entries.
        batch: samples computed at once.
        rank: of this process.
        world: processes that share the work.

    Returns:
        Filled: what was done by this process.
    """
    import torch
    from tqdm import tqdm

    from ...report.progress import progress_bar
    from ..loading import read_ahead
    from .filling import Computer, Work

    work = Work(recipe, parts, batch)
    computer = Computer(parts, work, dtype)
    mine = range(rank, len(work), world)
    filled = Filled()
    # as in a training step: some operations stay float32 there
    bf16 = recipe.train.precision == "bf16"
    autocast = torch.autocast(parts.vae.device.type, torch.bfloat16, enabled=bf16)
    with (
        progress_bar(rank == 0, total=work.count(mine), unit="sample", desc="cache") as bar,
        closing(read_ahead(work, mine, recipe.data.workers)) as chunks,
        closing(computer),
    ):
        for items in chunks:
            with autocast:
                computer.write(items)
            for item in items:
                if item.bad:
                    filled.bad.append(item.bad)
                    tqdm.write(item.bad)
                elif item.needed:
                    filled.written += 1
                else:
                    filled.present += 1
            bar.update(len(items))
    return filled
