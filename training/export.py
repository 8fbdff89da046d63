"""From a checkpoint of a run to a model that others load: ``tbac-uniimage export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import any_path

if TYPE_CHECKING:
    import torch

OUTPUTS = {"released": "released", "pipeline": "pipeline", "lora": "lora.safetensors"}  # by layout
DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``export``."""
    parser.add_argument(
        "checkpoint",
        type=any_path,
        metavar="RUN",
        help="folder of a run, or one of its checkpoints: runs/x/last",
    )
    parser.add_argument(
        "--to",
        choices=OUTPUTS,
        required=True,
        help="the layout of the released checkpoint, a diffusers pipeline folder, or a LoRA for ComfyUI",
    )
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument(
        "-o",
        "--output",
        type=any_path,
        metavar="PATH",
        help="a new folder, of a LoRA a new file; released, pipeline or lora.safetensors in the run's folder "
        "if not given",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of all weights; without it those that were trained get that of the MLLM, and a LoRA "
        "stays float32",
    )


def run(options: argparse.Namespace) -> None:
    """Write the model and print its path.

    Raises:
        ValueError: no checkpoint, none that is whole, or something at the output path already.
    """
    import torch

    from .models import find_checkpoint

    path = find_checkpoint(options.checkpoint)
    if path is None:
        raise ValueError(f"{options.checkpoint} is no run and no checkpoint of one; give runs/NAME.")
    dtype = getattr(torch, options.dtype) if options.dtype else None
    output = options.output or path.parent.parent / OUTPUTS[options.to]
    print(export(path, options.to, output, averaged=options.ema, dtype=dtype))


def export(
    checkpoint: Path, layout: str, output: Path, *, averaged: bool = False, dtype: torch.dtype | None = None
) -> Path:
    """Write a model as it was when a run wrote a checkpoint.

    Args:
        checkpoint: folder of a whole checkpoint, in the folder of its run.
        layout: ``released``, ``pipeline`` or, of a LoRA run, ``lora``; the others have a LoRA merged in.
        output: a new or empty folder; of a LoRA a new file ending in ``.safetensors``.
        averaged: take the averaged weights.
        dtype: type of all weights. None gives those that were trained that of the MLLM, and leaves a LoRA
            in float32.

    Returns:
        The absolute path of what was written.

    Raises:
        ValueError: something is at ``output`` already, or the checkpoint cannot give what is asked for.
    """
    from ..core.checkpoints import save_released
    from ..core.checkpoints.parts import place
    from ..core.few_steps import header_of
    from ..core.paths import user_path
    from ..core.pipeline import LadderPipeline
    from .models import base_ids, load_run, recipe_of
    from .step.lora import check_lora_path, save_lora

    recipe = recipe_of(checkpoint)
    if layout == "lora":
        if recipe.train.parts != "lora":
            raise ValueError(
                f"The run of {checkpoint} trains the whole model and no LoRA; export it to released or "
                "pipeline."
            )
        output = check_lora_path(output)
        parts = load_run(checkpoint, averaged, merged=False)
        metadata = lora_metadata(checkpoint, averaged)
        if recipe.distils:
            metadata |= header_of(recipe.distillation.steps)
        return save_lora(parts.transformer, output, metadata, dtype)

    output = user_path(output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already and not empty; give another path, or remove it first.")
    parts = load_run(checkpoint, averaged)
    for module in (parts.connector, parts.transformer):
        place(module, "cpu", dtype or parts.mllm.dtype)
    for module in (parts.mllm, parts.vae):
        place(module, "cpu", dtype)
    if layout == "released":
        return save_released(parts, output, **base_ids(recipe))
    LadderPipeline(**vars(parts)).save_pretrained(output)
    return output


def lora_metadata(checkpoint: Path, averaged: bool) -> dict[str, str]:
    """What the file of a LoRA says about itself."""
    from .models import name_of, recipe_of
    from .run.checkpoints.folders import read_complete

    recipe = recipe_of(checkpoint)
    lora = recipe.train.lora
    began_with = [recipe.init] if recipe.init else [recipe.base.mllm, recipe.base.sana]
    return {
        "base_model": " + ".join(map(name_of, began_with)),
        "run": Path(recipe.run).name,
        "stage": recipe.stage,
        "step": str(read_complete(checkpoint)["step"]),
        "rank": str(lora.rank),
        "alpha": str(lora.alpha),
        "targets": ", ".join(lora.targets),
        "averaged": str(averaged).lower(),
    }
