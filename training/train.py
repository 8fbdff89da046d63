"""Run a stage of the recipe: ``accelerate launch -m tbac_uniimage.training.train RECIPE [key=value …]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .arguments import any_path
from .exits import Parser, parse, run_command

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..core.checkpoints import LadderParts
    from .data.samples import MicroBatches
    from .recipe.recipe import Recipe
    from .run.lock import RunLock


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


def train(recipe: Recipe) -> None:
    """Everything between a recipe and the loop."""
    from .run import engine, start
    from .run.lock import RunLock

    accelerator = engine.start(recipe.train.precision)
    start.check_engine(recipe, accelerator.num_processes)
    with RunLock(start.run_folder(recipe), say=lambda text: print(text, file=sys.stderr)) as lock:
        train_alone(recipe, accelerator, lock)
    accelerator.end_training()


def train_alone(recipe: Recipe, accelerator: Accelerator, lock: RunLock) -> None:
    """Train with a lock on the folder; the first process takes it at once, or when it makes the folder."""
    from .data.remarks import masked_sets
    from .recipe.recipe import total_steps
    from .run import engine, frozen, start
    from .run.loop import Trainer

    folder = start.run_folder(recipe)
    recipe, found = engine.by_first(accelerator, lambda: start.find_start(recipe, folder, lock))
    parts = prepare_parts(recipe, accelerator)
    dataset = open_data(recipe, parts)
    if recipe.train.offload:  # of what lies elsewhere no cache can be told
        for module in (parts.mllm, parts.vae):
            frozen.offload(module, accelerator.device)
    steps = total_steps(recipe.train, dataset.order.steps_per_epoch)
    held_out = dataset.held_out() if recipe.validation.every else []
    trainer = Trainer(recipe, accelerator, parts, dataset, held_out, steps, start.judged_sets(recipe))
    for line in (line for batch in held_out for line in batch.bad):
        trainer.say(f"Left out of the validation: {line}")
    if found is not None:
        trainer.resume(found)
    if trainer.done >= steps:
        trainer.say(f"{folder} has all of its {steps} steps; there is nothing left to do.")
        return
    for line in masked_sets(dataset):
        trainer.say(line)
    engine.by_first(accelerator, lambda: start.begin(recipe, folder, lock))
    trainer.fit()


def dry_run(recipe: Recipe) -> str:
    """What a run would do: recipe, parameters, data and memory of a device. Nothing is started.

    What keeps the run from starting is found here too; of several processes each would say the same.
    """
    from ..core.checkpoints import released_parts_on_meta
    from .data.remarks import cut_texts, masked_sets
    from .data.samples import MicroBatches
    from .models import follow_recipe, load_base
    from .recipe.settings import BaseModels
    from .run import engine, start
    from .run.dry_run import summarise

    world = int(os.environ.get("WORLD_SIZE", "1"))
    engine.refuse_deepspeed()
    start.check_engine(recipe, world)
    recipe, found = start.find_start(recipe, start.run_folder(recipe))
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


if __name__ == "__main__":
    sys.exit(main())
