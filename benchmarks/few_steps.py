"""Whole pictures and edits: guided steps against few steps with the model's LoRA for them.

    python benchmarks/few_steps.py [--model DIR] [--repeats N]

Both sides run in one process and in turns, from prompt to pixels; medians of the CPU time of one thread, and
how many rows the transformer evaluates for a picture.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from ladder import compare
from PIL import Image
from tbac_uniimage.core import LadderPipeline, load_parts
from tbac_uniimage.core.few_steps import find_few_steps
from tbac_uniimage.shell.commands import EMBEDDED

GUIDED = (30, 20)
SOURCE = EMBEDDED.parent / "samples" / "tbac_uniimage_scene.png"


def main() -> None:
    """Measure prompts and edits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="default: the embedded nano model")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain, quick = (load(options.model) for _ in range(2))
    few = find_few_steps(options.model)
    few.apply(quick)
    print(f"{options.model}, float32, one CPU thread, {options.repeats} repeats")
    with Image.open(SOURCE) as picture:
        tasks = {
            "text to image": partial(draw, prompt="a panda on a yellow background"),
            "edit": partial(draw, prompt="change the background to yellow", image=picture.convert("RGB")),
        }
    for name, task in tasks.items():
        now = partial(task, quick, steps=few.steps, guidance=1.0)
        for steps in GUIDED:
            before = partial(task, plain, steps=steps, guidance=2.0)
            print(f"{name}: {rows(plain, before)} rows of the transformer, {rows(quick, now)} with the LoRA")
            sides = (f"{steps} guided steps", before, f"{few.steps} steps", now)
            print(compare(*sides, options.repeats))


def load(model: Path) -> LadderPipeline:
    """A model in float32."""
    pipeline = LadderPipeline(**vars(load_parts(model, dtype=torch.float32)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: LadderPipeline, prompt: str, steps: int, guidance: float, image: Image.Image | None = None
) -> None:
    """One picture; what it shows does not matter here."""
    pipeline(
        prompt,
        image=image,
        num_inference_steps=steps,
        guidance_scale=guidance,
        image_guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
    )


def rows(pipeline: LadderPipeline, task: partial) -> int:
    """Rows that the transformer evaluates in a task."""
    counted = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    task()
    hook.remove()
    return sum(counted)


if __name__ == "__main__":
    main()
