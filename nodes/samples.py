"""The templates' pictures and conditionings, placed where ComfyUI looks: every template runs as it is."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import folder_paths

KINDS = {".png", ".safetensors"}
SAMPLES = Path(__file__).resolve().parent.parent / "assets" / "samples"


def place_samples() -> None:
    """Copy the samples into ComfyUI's input folder, but those that are there already."""
    inputs = Path(folder_paths.get_input_directory())
    for source in sorted(path for path in SAMPLES.rglob("*") if path.suffix in KINDS):
        target = inputs / source.relative_to(SAMPLES)
        try:
            if target.is_file() and target.read_bytes() == source.read_bytes():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
        except OSError as error:  # a read-only input folder must not keep the nodes from loading
            logging.warning("TBAC-UniImage: the sample %s was not placed: %s", target.name, error)
            return
