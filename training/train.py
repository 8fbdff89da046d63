"""Run a stage of the recipe: ``accelerate launch -m tbac_uniimage.training.train RECIPE [key=value …]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import any_path
from .exits import Parser, parse, run_command

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..core.checkpoints import LadderParts
    from .data.samples import MicroBatches
    from .data.sets import TrainSet
    from .evaluation.validation import JudgedSets
    from .recipe.recipe import Recipe
    from .run.lock import RunLock

LOOKED_AT = 2000  # texts of a bucket whose length the dry run counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``train run``."""
    parser.add_argument("recipe", type=any_path, metavar="RECIPE", help="a YAML file as in training/recipes")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="in place of what the file says: train.batch=64"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print recipe, parameters, data and the memory estimate; start nothing",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m tbac_uniimage.training.train`` is ``tbac-uniimage train run``. Returns the exit code."""

    def command() -> None:
        parser = Parser(prog="tbac-uniimage train run", description=(__doc__ or "").splitlines()[0])
        add_arguments(parser)
        run(parse(parser, sys.argv[1:] if argv is None else list(map(str, argv))))

    return run_command(command)


def run(options: argparse.Namespace) -> None:
    """Run the stage to its end, going on from the newest whole checkpoint of its folder.

    Raises:
        ValueError: bad recipe, model or data, before anything is computed.
        Stop: the run ended before its last step.
    """
    from .recipe.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if not options.dry_run:
        train(recipe)
    elif os.environ.get("RANK", "0") == "0":
        print(dry_run(recipe), end="")


def run_folder(recipe: Recipe) -> Path:
    """Where a run lies, or will. Raises ValueError if nothing can lie there."""
    from ..core.paths import user_path

    try:
        return user_path(recipe.run)
    except ValueError as error:
        raise ValueError(f"run= names no folder that can be written to: {error}") from error


def train(recipe: Recipe) -> None:
    """Everything between a recipe and the loop."""
    from .run import engine
    from .run.lock import RunLock

    accelerator = engine.start(recipe.train.precision)
    check_engine(recipe, accelerator.num_processes)
    with RunLock(run_folder(recipe), say=lambda text: print(text, file=sys.stderr)) as lock:
        train_alone(recipe, accelerator, lock)
    accelerator.end_training()


def train_alone(recipe: Recipe, accelerator: Accelerator, lock: RunLock) -> None:
    """Train with a lock on the folder; the first process takes it at once, or when it makes the folder."""
    from .recipe.recipe import total_steps
    from .run import engine, frozen
    from .run.loop import Trainer

    folder = run_folder(recipe)
    recipe, found = engine.by_first(accelerator, lambda: find_start(recipe, folder, lock))
    parts = prepare_parts(recipe, accelerator)
    dataset = open_data(recipe, parts)
    if recipe.train.offload:  # of what lies elsewhere no cache can be told
        for module in (parts.mllm, parts.vae):
            frozen.offload(module, accelerator.device)
    steps = total_steps(recipe.train, dataset.order.steps_per_epoch)
    held_out = dataset.held_out() if recipe.validation.every else []
    trainer = Trainer(recipe, accelerator, parts, dataset, held_out, steps, judged_sets(recipe))
    for line in (line for batch in held_out for line in batch.bad):
        trainer.say(f"Left out of the validation: {line}")
    if found is not None:
        trainer.resume(found)
    if trainer.done >= steps:
        trainer.say(f"{folder} has all of its {steps} steps; there is nothing left to do.")
        return
    for line in masked_sets(dataset):
        trainer.say(line)
    engine.by_first(accelerator, lambda: begin(recipe, folder, lock))
    trainer.fit()


def judged_sets(recipe: Recipe) -> JudgedSets | None:
    """The benchmarks of a recipe, None if it names none. Raises ValueError: they cannot be judged."""
    if not (recipe.validation.sets and recipe.validation.every):
        return None
    from .evaluation.validation import JudgedSets

    return JudgedSets(recipe.validation, recipe.data.resolution, Path(recipe.run).expanduser())


def find_start(recipe: Recipe, folder: Path, lock: RunLock | None = None) -> tuple[Recipe, Path | None]:
    """The recipe with its model pinned, and the checkpoint to go on from. Reads little and makes no folder.

    Args:
        recipe: the resolved recipe.
        folder: of the run; locked if it is there.
        lock: on the folder; None only looks.

    Raises:
        ValueError: something that the recipe names is not there or cannot be used, or another run is there.
    """
    from .run.frozen import check_quantised
    from .run.validation import read_requests

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
    from .models import RECIPE_FILE
    from .recipe.recipe import save_recipe

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


def dry_run(recipe: Recipe) -> str:
    """What a run would do: recipe, parameters, data and memory of a device. Nothing is started.

    What keeps the run from starting is found here too; of several processes each would say the same.
    """
    from ..core.checkpoints import released_parts_on_meta
    from .data.samples import MicroBatches
    from .models import follow_recipe, load_base
    from .recipe.settings import BaseModels
    from .run import engine
    from .run.dry_run import summarise

    world = int(os.environ.get("WORLD_SIZE", "1"))
    engine.refuse_deepspeed()
    check_engine(recipe, world)
    recipe, found = find_start(recipe, run_folder(recipe))
    # the launcher may have asked for it
    parallel = {"parallel": engine.wanted_parallel(recipe.train.parallel)}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=parallel)})
    # the released sizes are known without their files
    released = recipe.init is None and recipe.base.model_copy(update={"mllm_dtype": None}) == BaseModels()
    parts = follow_recipe(released_parts_on_meta(), recipe) if released else load_base(recipe)
    channels, factor = parts.vae.config.latent_channels, parts.vae.spatial_compression_ratio
    dataset = MicroBatches(recipe, None, channels, factor)
    images = max(int(data.index.input_counts().max(initial=0)) for data in dataset.sets)
    told = [line for data in dataset.sets if (line := cut_texts(data, parts))]
    told += masked_sets(dataset)
    return summarise(recipe, parts, dataset.order.sources, world, images, found, told)


def masked_sets(dataset: MicroBatches) -> list[str]:
    """A line about the masks of every data set that has any; few-step distillation knows no targets."""
    lines = []
    if dataset.guided:
        return lines
    for data in dataset.sets:
        index, count = data.index, data.index.manifest["masks"]
        if count:
            how = "count where their mask is white" if index.masks else "have masks, which are left out"
            lines.append(f"{index.name}: {count:,} of {len(index):,} samples {how} (train.masked_loss).")
    return lines


def cut_texts(data: TrainSet, parts: LadderParts) -> str:
    """A line about the texts of a data set that the model cuts, or ""; some spread over it are looked at."""
    from ..core.prompts import encode_text
    from .data.lengths import is_cut

    rows = [int(row) for part in data.rows for row in part[:: max(1, len(part) // LOOKED_AT)]]
    longest = (max(data.index[row].texts, key=len) for row in rows)
    limit, tokenizer = parts.max_text_tokens, parts.tokenizer
    if tokenizer is None:
        count, how = sum(is_cut(text, None, limit) for text in longest), ", by estimate"
    else:  # no token is shorter than a byte
        long = (text for text in longest if len(text.encode()) > limit)
        count, how = sum(len(encode_text(tokenizer, text)) > limit for text in long), ""
    if not count:
        return ""
    return f"{data.name}: {count:,} of {len(rows):,} texts looked at are cut at {limit} tokens{how}."


def check_engine(recipe: Recipe, world: int) -> None:
    """Raise ValueError if so many processes cannot do what the recipe says."""
    from .run import engine

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


def pin_init(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the checkpoint itself where ``init`` is ``last``, or the folder, of an earlier run.

    A run that goes on keeps the one that it began with, though the earlier run may have gone on since.
    """
    from . import models
    from .recipe.recipe import load_recipe

    if recipe.init is None:
        return recipe
    found = models.find_checkpoint(recipe.init)
    if found is None:
        return recipe
    saved = folder / models.RECIPE_FILE
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
    from .models import RECIPE_FILE
    from .recipe.recipe import differences, lengthened, load_recipe
    from .run.checkpoints import folders

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


def prepare_parts(recipe: Recipe, accelerator: Accelerator) -> LadderParts:
    """The model on its device, what is trained in float32 and all else frozen."""
    import torch

    from ..core.schedulers import euler_scheduler
    from .models import load_base
    from .run import engine, frozen

    settings = recipe.train
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    parts = load_base(recipe, dtype)
    if recipe.base.mllm_dtype:
        frozen.quantise(parts.mllm.model.language_model, recipe.base.mllm_dtype)
    if not settings.offload:
        parts.mllm.to(accelerator.device)
        parts.vae.to(accelerator.device)
    choose_parameters(recipe, parts)
    if recipe.distils:
        parts.scheduler = euler_scheduler()  # what is drawn meanwhile is drawn as it will be
    if settings.gradient_checkpointing:
        parts.transformer.enable_gradient_checkpointing()
    if settings.compile:
        engine.compile_blocks(parts.transformer)
    return parts


def choose_parameters(recipe: Recipe, parts: LadderParts) -> None:
    """Say what takes gradients: queries, connector and diffusion transformer, or a LoRA of the latter."""
    settings = recipe.train
    for module in (parts.mllm, parts.vae):
        module.eval().requires_grad_(False)
    if settings.parts == "lora":
        from .step.lora import add_lora

        parts.connector.requires_grad_(False)
        lora = settings.lora
        add_lora(parts.transformer, lora.rank, lora.alpha, lora.dropout, lora.targets, seed=recipe.seed)
    else:
        parts.connector.requires_grad_(True)
        parts.connector.reserved_rows.requires_grad_(False)
        parts.transformer.requires_grad_(True)
    parts.connector.train()
    parts.transformer.train()


def open_data(recipe: Recipe, parts: LadderParts) -> MicroBatches:
    """The recipe's data as micro-batches for this model, from the caches it names."""
    from ..core.inputs import LadderProcessor
    from .data.cache.entries import latent_cache, vision_cache
    from .data.samples import MicroBatches

    cache = recipe.data.cache
    visual = parts.mllm.model.visual
    return MicroBatches(
        recipe,
        LadderProcessor(
            parts.tokenizer,
            parts.image_processor,
            num_queries=parts.connector.config.num_queries,
            first_query_id=parts.mllm.config.text_config.vocab_size,
            system_prompt=parts.system_prompt,
            max_text_tokens=parts.max_text_tokens,
            text_states=parts.transformer.config.text_states,
        ),
        latent_channels=parts.vae.config.latent_channels,
        factor=parts.vae.spatial_compression_ratio,
        latents=latent_cache(cache.latents, parts.vae) if cache.latents else None,
        vision=vision_cache(cache.vision, visual, parts.image_processor) if cache.vision else None,
        source_latents=parts.transformer.config.source_latents,
    )


def check_data(recipe: Recipe) -> None:
    """Raise ValueError if an index, the files that it is of, or a cache are not there or have changed."""
    from ..core.paths import user_path
    from .data.index import Index

    for settings in recipe.data.sets:
        Index(settings.folder).check_source()
    for name, folder in recipe.data.cache:
        if folder and not user_path(folder).is_dir():
            raise ValueError(
                f"There is no folder {folder}, which data.cache.{name} names; fill it with `tbac-uniimage "
                "train cache`, or train without it."
            )


if __name__ == "__main__":
    sys.exit(main())
