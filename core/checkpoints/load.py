"""Reading and writing models: one entry for every layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ..connector import LadderConnector
from ..paths import user_path
from ..schedulers import recipe_scheduler
from .folders import load_pipeline_folder
from .parts import (
    BaseConfigs,
    LadderParts,
    check_device,
    check_dtype,
    mllm_on_meta,
    on_meta,
    released_configs,
    transformer_on_meta,
    vae_on_meta,
)
from .placing import DtypeRule, Placement
from .released import NUM_RESERVED, RELEASED_QUERIES, RELEASED_TYPES, load_released
from .tokenizers import make_image_processor
from .unchanged import FileWatch
from .weights import read_json, refuse_pickle

PIPELINE_CLASS = "LadderPipeline"
LORA_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")


def load_parts(
    path: str | Path,
    *,
    dtype: torch.dtype | str | DtypeRule | None = None,
    device: str | torch.device = "cpu",
    tokenizer_dir: str | Path | None = None,
    mllm_dir: str | Path | None = None,
    sana_dir: str | Path | None = None,
    transformer_file: str | Path | None = None,
    own: FileWatch | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> LadderParts:
    """Load a model of any layout, its weights held once: views onto the files, or what they were cast to.

    Args:
        path: a pipeline folder, a folder in the released layout, or its one safetensors file.
        dtype: type of all weights, also by name; None keeps that of the files. Or a rule for every part, see
            :class:`.placing.Placement`.
        device: where the weights go.
        tokenizer_dir: tokenizer to use if the model's folders have none.
        mllm_dir: Qwen2.5-VL folder that a released checkpoint of another size than 3B was made from.
        sana_dir: SANA folder in diffusers' layout that it was made from.
        transformer_file: safetensors file of a diffusion transformer alone, in place of the model's own.
        own: a watch over the files, made before; the weights are copied then, so that these may change.
        given: components by name to take in place of the model's own, which a pipeline folder need not have;
            None leaves one out.

    Returns:
        LadderParts: in evaluation mode; MLLM and autoencoder frozen.

    Raises:
        ValueError: one sentence about what is wrong with the path, the weights, the type or the device, or a
            file that changed since ``own`` was made.
    """
    path, rule = user_path(path), dtype if callable(dtype) else check_dtype(dtype)
    placement = Placement(check_device(device), rule, own)
    check_layout(path)
    try:
        if is_pipeline_folder(path):
            parts = load_pipeline_folder(path, placement, tokenizer_dir, transformer_file, given)
        else:
            parts = load_released(path, placement, tokenizer_dir, mllm_dir, sana_dir, transformer_file)
        return replace(parts, **given)
    finally:  # an error of reading, too, may come from a file that changed
        if own is not None:
            own.check()


def is_pipeline_folder(path: str | Path) -> bool:
    """Whether a path is a folder in the layout of diffusers' pipelines."""
    return (Path(path) / "model_index.json").is_file()


def check_layout(path: Path) -> None:
    """Raise ValueError unless a path can hold a model of ours; say what it looks like if not."""
    if not path.exists():
        raise ValueError(f"There is no model at {path}; check the path, or download the model first.")
    if path.is_file():
        refuse_pickle(path)
    elif is_pipeline_folder(path):
        kind = read_json(path / "model_index.json").get("_class_name")
        kind = kind[-1] if isinstance(kind, list) and kind else kind  # a module and a name
        if kind != PIPELINE_CLASS:
            raise ValueError(
                f"{path} is a {kind} folder and not a TBAC-UniImage model; if it is the SANA model to start "
                "from, give it to assemble."
            )
    elif any((path / name).is_file() for name in LORA_FILES):
        raise ValueError(f"{path} is a LoRA; load the model that it was trained on, then the LoRA.")
    elif (path / "config.json").is_file():
        config = read_json(path / "config.json")
        kind = config.get("model_type") or config.get("_class_name")
        if kind not in RELEASED_TYPES:
            raise ValueError(
                f"{path} is a {kind} folder and not a TBAC-UniImage model; base models go to assemble, "
                "or as mllm_dir and sana_dir beside a checkpoint."
            )


def released_parts_on_meta(bases: BaseConfigs | None = None) -> LadderParts:
    """A model of the released kind with shapes and no weights, and no tokenizer.

    Args:
        bases: its sizes, if they are not those of the released 3B.
    """
    bases = bases or released_configs()
    mllm, transformer = mllm_on_meta(bases.mllm), transformer_on_meta(bases.transformer)
    return LadderParts(
        mllm=mllm,
        tokenizer=None,
        image_processor=make_image_processor(mllm.config),
        connector=on_meta(
            LadderConnector,
            num_queries=RELEASED_QUERIES,
            mllm_dim=mllm.config.text_config.hidden_size,
            caption_dim=transformer.config.caption_channels,
            num_reserved=NUM_RESERVED,
        ),
        transformer=transformer,
        vae=vae_on_meta(bases.vae),
        scheduler=recipe_scheduler(),
    )


def count_parameters(parts: LadderParts) -> dict[str, int]:
    """Parameters by part; their sum is the size of the model. A tied head counts once."""
    connector = parts.connector
    modules = {"mllm": parts.mllm, "connector": connector.layers}
    modules |= {"transformer": parts.transformer, "vae": parts.vae}
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return counts | {"queries": connector.queries.numel(), "reserved rows": connector.reserved_rows.numel()}
