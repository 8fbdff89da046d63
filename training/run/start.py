"""Where a run begins or goes on, and what is wrong with it before anything is computed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.paths import user_path
from ..data.index import Index
from ..evaluation.validation import JudgedSets
from ..models import RECIPE_FILE, find_checkpoint
from ..recipe.recipe import Recipe, differences, lengthened, load_recipe, save_recipe
from . import engine
from .checkpoints import folders
from .frozen import check_quantised
from .lock import RunLock
from .validation import read_requests


def run_folder(recipe: Recipe) -> Path:
    """Where a run lies, or will. Raises ValueError if nothing can lie there."""
    try:
        return user_path(recipe.run)
    except ValueError as error:
        raise ValueError(f"run= names no folder that can be written to: {error}") from error


def check_engine(recipe: Recipe, world: int) -> None:
    """Raise ValueError if so many processes cannot do what the recipe says."""
    settings = recipe.train
    micro_batches = settings.batch // settings.micro_batch
    if micro_batches % world:
        raise ValueError(
            f"A step of train.batch={settings.batch} has {micro_batches} micro-batches of "
            f"train.micro_batch={settings.micro_batch}, which {world} processes cannot share evenly; change "
            "one of the three."
        )
    if settings.optimizer == "adamw_8bit" and engine.wanted_parallel(settings.parallel) == "fsdp2":
        raise ValueError(
            "train.optimizer=adamw_8bit cannot be sharded by train.parallel=fsdp2; take adamw, whose state "
            "is sharded, or ddp."
        )


def find_start(recipe: Recipe, folder: Path, lock: RunLock | None = None) -> tuple[Recipe, Path | None]:
    """The recipe with its model pinned, and the checkpoint to go on from. Reads little and makes no folder.

    Args:
        recipe: the resolved recipe.
        folder: of the run; locked if it is there.
        lock: on the folder; None only looks.

    Raises:
        ValueError: something that the recipe names is not there or cannot be used, or another run is there.
    """
    if lock is not None and folder.is_dir():
        with writing(folder):
            lock.take()
    recipe = pin_init(recipe, folder)
    found = checkpoint_to_resume(folder, recipe)
    check_quantised(recipe)
    check_data(recipe)
    read_requests(recipe.validation)
    judged_sets(recipe)
    return recipe, found


def begin(recipe: Recipe, folder: Path, lock: RunLock) -> None:
    """Make the folder of a run, with its resolved recipe. Raises ValueError if that cannot be done."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if lock.take() and (folder / RECIPE_FILE).exists():  # it was not there when we looked
            raise ValueError(
                f"Another run has begun in {folder} in the meantime; start again to go on with it, or name "
                "another folder with run=."
            )
        save_recipe(recipe, folder / RECIPE_FILE)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one sentence where the folder of a run cannot be written to."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"The run folder {folder} cannot be written to ({error.strerror}); name another with run=."
        ) from error


def pin_init(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the checkpoint itself where ``init`` is ``last``, or the folder, of an earlier run.

    A run that goes on keeps the one that it began with, though the earlier run may have gone on since.
    """
    if recipe.init is None:
        return recipe
    found = find_checkpoint(recipe.init)
    if found is None:
        return recipe
    saved = folder / RECIPE_FILE
    if saved.exists():
        began = load_recipe(saved).init
        if began is not None and Path(began).parent == found.parent:
            return recipe.model_copy(update={"init": began})
    return recipe.model_copy(update={"init": str(found)})


def checkpoint_to_resume(folder: Path, recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, None for a run that begins.

    Raises:
        ValueError: the folder holds a run of another recipe, or checkpoints of which none is whole.
    """
    saved = folder / RECIPE_FILE
    newest, refused = folders.newest(folder)
    if not saved.exists():
        if newest or refused:
            raise ValueError(
                f"{folder} holds checkpoints and no {RECIPE_FILE}, so nobody knows of what run they are; put "
                "the file back, or name another folder with run=."
            )
        return None
    changed = differences(load_recipe(saved), recipe)
    if changed:
        raise ValueError(
            f"{folder} holds a run of another recipe ({'; '.join(changed)}); name another folder with run=, "
            "or take the recipe of that run."
        )
    for key in lengthened(load_recipe(saved), recipe):
        print(
            f"The run becomes longer ({key} is higher): weights and optimizer go on, the learning rate "
            "follows the schedule of the new length.",
            file=sys.stderr,
        )
    for sentence in refused:
        print(f"Passed over: {sentence}", file=sys.stderr)
    if newest is None and refused:
        raise ValueError(
            f"No checkpoint of {folder} is whole; remove them to begin again, or name another run=."
        )
    return newest


def check_data(recipe: Recipe) -> None:
    """Raise ValueError if an index, the files that it is of, or a cache are not there or have changed."""
    for settings in recipe.data.sets:
        Index(settings.folder).check_source()
    for name, folder in recipe.data.cache:
        if folder and not user_path(folder).is_dir():
            raise ValueError(
                f"There is no folder {folder}, which data.cache.{name} names; fill it with `tbac-uniimage "
                "train cache`, or train without it."
            )


def judged_sets(recipe: Recipe) -> JudgedSets | None:
    """The benchmarks of a recipe, None if it names none. Raises ValueError: they cannot be judged."""
    if not (recipe.validation.sets and recipe.validation.every):
        return None
    return JudgedSets(recipe.validation, recipe.data.resolution, Path(recipe.run).expanduser())
