"""Write the trained stages as a pipeline folder: `python -m tbac_uniimage.training.nano.export DIR`."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch
from torch import nn

from ...core.pipeline import LadderPipeline
from ...core.schedulers import recipe_scheduler
from . import autoencoder, detector, drawing, loop, mllm, naming
from .tokenizer import MAX_TEXT_TOKENS, SYSTEM_PROMPT

WEIGHTS_LIMIT = 24_000_000  # bytes, the whole folder


def load_trained(folder: Path, name: str, models: dict[str, nn.Module], averaged: bool = False) -> None:
    """Load a stage; one that was not trained yet leaves its models as they are and says so."""
    if (Path(folder) / f"{name}.safetensors").exists():
        progress = loop.load_stage(folder, name, models, averaged)
        print(f"{name}: {progress['samples']} samples in {progress['minutes']:.1f} minutes")
    else:
        print(f"{name}: not trained yet, random weights")


def assemble(folder: Path) -> LadderPipeline:
    """Pipeline of the stages below a run's folder, float32."""
    tokenizer = mllm.load_tokenizer(folder)
    model, connector, transformer = mllm.build(tokenizer), mllm.build_connector(), drawing.build()
    vae = autoencoder.build()
    load_trained(folder, "mllm", {"mllm": model, "connector": connector, "heads": naming.Heads()})
    load_trained(folder, "drawing", {"transformer": transformer, "table": drawing.NameTable()}, averaged=True)
    load_trained(folder, "connector", {"connector": connector})
    load_trained(folder, "ladder", {"connector": connector, "transformer": transformer}, averaged=True)
    if (Path(folder) / "autoencoder.safetensors").exists():
        vae = drawing.load_vae(folder)
    parts = (model, mllm.build_image_processor(), connector, transformer, vae, recipe_scheduler())
    for part in parts:
        if isinstance(part, nn.Module):
            part.to(memory_format=torch.contiguous_format).eval()
    model, processor, connector, transformer, vae, scheduler = parts
    return LadderPipeline(
        mllm=model,
        tokenizer=tokenizer,
        image_processor=processor,
        connector=connector,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
        system_prompt=SYSTEM_PROMPT,
        max_text_tokens=MAX_TEXT_TOKENS,
    )


def export(folder: Path, target: Path) -> None:
    """Write pipeline and detector to `target` in float16, replacing those that are there but no other file.

    Raises:
        ValueError: the folder would be larger than `WEIGHTS_LIMIT`.
    """
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    assemble(folder).to(dtype=torch.float16).save_pretrained(partial, safe_serialization=True)
    eye = detector.Detector()
    load_trained(folder, "detector", {"detector": eye})
    detector.save(eye, partial / detector.WEIGHTS)
    size = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    if size > WEIGHTS_LIMIT:
        raise ValueError(
            f"the pipeline takes {size:,} bytes, more than the {WEIGHTS_LIMIT:,} that are allowed"
        )
    target.mkdir(parents=True, exist_ok=True)
    for part in partial.iterdir():
        if (target / part.name).is_dir():
            shutil.rmtree(target / part.name)
        os.replace(part, target / part.name)
    partial.rmdir()
    print(f"{target}: {size:,} bytes")


def main() -> None:
    from .train import RUNS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--folder", type=Path, default=RUNS, help="the stages' states")
    options = parser.parse_args()
    export(options.folder, options.target)


if __name__ == "__main__":
    main()
