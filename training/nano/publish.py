"""A run and its judge become the embedded model.

`python -m tbac_uniimage.training.nano.publish runs/nano/stage3 runs/nano/judge assets/nano`, and with
`--few-steps runs/nano/stage4` its LoRA for few steps.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...core.few_steps import FOLDER
from ..export import export
from ..models import find_checkpoint

WEIGHTS_LIMIT = 24_000_000  # bytes, the whole model
JUDGE = "judge/model.safetensors"
FEW_STEPS = f"{FOLDER}/tbac_uniimage_nano_few_steps.safetensors"  # tells among all LoRAs of a ComfyUI
FEW_STEPS_LIMIT = 1_000_000  # bytes


def publish(run: Path, judge: Path, target: Path) -> int:
    """Write the averaged weights of a run in float16, and its judge, replacing what is there of these.

    Args:
        run: a run of stage 3, or of an earlier one.
        judge: folder with the judge's ``model.safetensors``.
        target: folder of the model; other files in it stay.

    Returns:
        Bytes written.

    Raises:
        ValueError: no checkpoint, no judge, more than ``WEIGHTS_LIMIT``, or weights beyond float16.
    """
    checkpoint = find_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} is no run with a checkpoint; train the stage first.")
    weights = judge / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} is missing; train the judge first.")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    export(checkpoint, "pipeline", partial, averaged=True, dtype=torch.float16)
    (partial / JUDGE).parent.mkdir()
    shutil.copyfile(weights, partial / JUDGE)
    try:
        size = check(partial)
    except ValueError:
        shutil.rmtree(partial)
        raise
    target.mkdir(parents=True, exist_ok=True)
    for part in partial.iterdir():
        if (target / part.name).is_dir():
            shutil.rmtree(target / part.name)
        os.replace(part, target / part.name)
    partial.rmdir()
    return size


def publish_few_steps(run: Path, target: Path) -> int:
    """Write the averaged LoRA of a run of stage 4 in float16, replacing the one that is there.

    Args:
        run: a run of stage 4.
        target: folder of the model.

    Returns:
        Bytes written.

    Raises:
        ValueError: no checkpoint, or more than ``FEW_STEPS_LIMIT``.
    """
    checkpoint = find_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} is no run with a checkpoint; train stage 4 first.")
    file = target / FEW_STEPS
    partial = file.with_name("partial.safetensors")
    partial.unlink(missing_ok=True)
    try:
        export(checkpoint, "lora", partial, averaged=True, dtype=torch.float16)
        size = partial.stat().st_size
        if size > FEW_STEPS_LIMIT:
            raise ValueError(f"The LoRA takes {size:,} bytes of {FEW_STEPS_LIMIT:,}; give it a smaller rank.")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return size


def check(folder: Path) -> int:
    """Bytes of a model that may be published.

    Raises:
        ValueError: it is too large, or a weight of it is not finite.
    """
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > WEIGHTS_LIMIT:
        raise ValueError(f"The model takes {size:,} bytes, more than the {WEIGHTS_LIMIT:,} that are allowed.")
    for file in sorted(folder.rglob("*.safetensors")):
        bad = [name for name, tensor in load_file(file).items() if not tensor.isfinite().all()]
        if bad:
            raise ValueError(
                f"{bad[0]} of {file.relative_to(folder)} is not finite in float16; train with a smaller rate."
            )
    return size


def main() -> None:
    """Publish and print the size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("run", "judge", "target"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--few-steps", type=Path, metavar="RUN", help="a run of stage 4")
    options = parser.parse_args()
    try:
        size = publish(options.run, options.judge, options.target)
        if options.few_steps is not None:
            size += publish_few_steps(options.few_steps, options.target)
    except ValueError as error:
        sys.exit(str(error))
    print(f"{options.target}: {size:,} bytes")


if __name__ == "__main__":
    main()
