"""What training the released model needs on a device, computed from its configuration.

    python benchmarks/training_memory.py [KEY=VALUE …]

Prints the tables of docs/training.md. Nothing is loaded and no GPU is needed: ``training/recipe/memory.py``
adds up weights, gradients and optimizer state from shapes, and runs one micro-batch on tensors without
values, with prompts as long as they may be and one input picture per edit. Overrides, as in
data.resolution=1024, apply to every row. ``--dry-run`` of a recipe prints the parts of its own sum.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tbac_uniimage.core.checkpoints import released_parts_on_meta
from tbac_uniimage.training.recipe.memory import estimate_memory
from tbac_uniimage.training.recipe.recipe import load_recipe

GIB = 1 << 30
RECIPES = Path(__file__).resolve().parent.parent / "training" / "recipes"
# (heading, recipe, input pictures, samples at once)
COLUMNS = [
    *(("stage 1", "1_text_to_image.yaml", 0, samples) for samples in (16, 4, 1)),
    *(("stages 2, 3", "3_fine_tune.yaml", 1, samples) for samples in (4, 1)),
]
# (name, overrides, devices)
ROWS: list[tuple[str, list[str], int]] = [
    ("as published", [], 1),
    ("train.ema=0.9999", ["train.ema=0.9999"], 1),
    ("train.gradient_checkpointing=false", ["train.gradient_checkpointing=false"], 1),
    ("train.optimizer=adamw_8bit", ["train.optimizer=adamw_8bit"], 1),
    ("base.mllm_dtype=int8", ["base.mllm_dtype=int8"], 1),
    ("train.offload=true", ["train.offload=true"], 1),
    ("both of the last two", ["base.mllm_dtype=int8", "train.offload=true"], 1),
    (
        "train.offload=true train.optimizer=adamw_8bit",
        ["train.offload=true", "train.optimizer=adamw_8bit"],
        1,
    ),
    ("train.parallel=fsdp2, 2 devices", ["train.parallel=fsdp2"], 2),
    ("train.parallel=fsdp2, 8 devices", ["train.parallel=fsdp2"], 8),
    ("train.parts=lora", ["train.parts=lora"], 1),
]
FEW_STEPS: list[tuple[str, list[str], int]] = [  # of stage 4, edits
    ("as in the recipe", [], 1),
    ("train.micro_batch=1", ["train.micro_batch=1"], 1),
    ("train.parts=all", ["train.parts=all"], 1),
    ("train.parts=all train.parallel=fsdp2, 8 devices", ["train.parts=all", "train.parallel=fsdp2"], 8),
]
CARDS = (24, 40, 80)
SPARE = 1.1  # kernels differ between devices: what the estimate may be wrong by


def main(overrides: Sequence[str]) -> None:
    """Print the tables as Markdown."""
    parts = released_parts_on_meta()
    print("| GiB per device |", " | ".join(f"{stage}, {samples}" for stage, _, _, samples in COLUMNS), "|")
    print("| --- |", " | ".join("---:" for _ in COLUMNS), "|")
    for name, own, world in ROWS:
        cells = []
        for _, recipe, images, samples in COLUMNS:
            settings = [f"train.micro_batch={samples}", *own, *overrides]
            estimate = estimate_memory(parts, load_recipe(RECIPES / recipe, settings), world, images)
            cells.append(cell(sum(estimate.values())))
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    print("\n| GiB per device | stage 4 |\n| --- | ---: |")
    for name, own, world in FEW_STEPS:
        recipe = load_recipe(RECIPES / "4_few_steps.yaml", [*own, *overrides])
        print(f"| {name} | {cell(sum(estimate_memory(parts, recipe, world, 1).values()))} |", flush=True)


def cell(size: int) -> str:
    """Bytes as GiB, and the smallest card that has them and some to spare."""
    card = next((f"{card}" for card in CARDS if size * SPARE <= card * GIB), f"> {CARDS[-1]}")
    return f"{size / GIB:.1f} ({card})"


if __name__ == "__main__":
    main(sys.argv[1:])
