"""Reading and writing models: one entry for every layout."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from .connector import LadderConnector
from .naming import match_module
from .parts import (
    LadderParts,
    check_device,
    check_dtype,
    fill,
    freeze,
    mllm_on_meta,
    on_meta,
    read_json,
    transformer_on_meta,
    vae_on_meta,
)
from .prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from .released import RELEASED_TYPES, load_released
from .tokenizers import find_tokenizer
from .weights import PICKLES, find_weights, read_tensors

PIPELINE_CLASS = "LadderPipeline"


def load_parts(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    tokenizer_dir: str | Path | None = None,
    mllm_dir: str | Path | None = None,
    sana_dir: str | Path | None = None,
) -> LadderParts:
    """Load a model of any layout, its weights held once: views onto the files until they are cast or moved.

    Args:
        path: a pipeline folder, a folder in the released layout, or its one safetensors file.
        dtype: type of all weights; None keeps that of the files.
        device: where the weights go.
        tokenizer_dir: tokenizer to use if the model's folders have none.
        mllm_dir: Qwen2.5-VL folder that a released checkpoint of another size than 3B was made from.
        sana_dir: SANA folder in diffusers' layout that it was made from.

    Returns:
        LadderParts: in evaluation mode; MLLM and autoencoder frozen.

    Raises:
        ValueError: one sentence about what is wrong with the path, the weights, the type or the device.
    """
    path, dtype, device = Path(path), check_dtype(dtype), check_device(device)
    check_layout(path)
    if is_pipeline_folder(path):
        return _load_pipeline(path, device, dtype, tokenizer_dir)
    return load_released(path, device, dtype, tokenizer_dir, mllm_dir, sana_dir)


def is_pipeline_folder(path: str | Path) -> bool:
    """Whether a path is a folder in the layout of diffusers' pipelines."""
    return (Path(path) / "model_index.json").is_file()


def check_layout(path: Path) -> None:
    """Raise ValueError unless a path can hold a model of ours; say what it looks like if not."""
    if not path.exists():
        raise ValueError(f"There is no model at {path}; check the path, or download the model first.")
    if path.is_file():
        if path.suffix in PICKLES:
            raise ValueError(
                f"{path} is a pickle, which can run code when read; convert it, only safetensors is opened."
            )
        return
    if is_pipeline_folder(path):
        kind = read_json(path / "model_index.json").get("_class_name")
        if kind != PIPELINE_CLASS:
            raise ValueError(
                f"{path} is a {kind} folder and not a TBAC-UniImage model; if it is the SANA model to start "
                "from, give it to assemble."
            )
        return
    if any((path / name).is_file() for name in ("adapter_config.json", "pytorch_lora_weights.safetensors")):
        raise ValueError(f"{path} is a LoRA; load the model that it was trained on, then the LoRA.")
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        kind = config.get("model_type") or config.get("_class_name")
        if kind not in RELEASED_TYPES:
            raise ValueError(
                f"{path} is a {kind} folder and not a TBAC-UniImage model; base models go to assemble, "
                "or as mllm_dir and sana_dir beside a checkpoint."
            )


def _load_pipeline(
    path: Path, device: torch.device, dtype: torch.dtype | None, tokenizer_dir: str | Path | None
) -> LadderParts:
    """Load our own pipeline folder.

    The modules that ``model_index.json`` names are not looked up: ComfyUI imports this package under a name
    of its own.
    """
    index = read_json(path / "model_index.json")
    connector_config = LadderConnector.load_config(path / "connector")
    skeleton = {
        "mllm": mllm_on_meta(read_json(path / "mllm" / "config.json")),
        "connector": on_meta(LadderConnector.from_config, connector_config),
        "transformer": transformer_on_meta(read_json(path / "transformer" / "config.json")),
        "vae": vae_on_meta(read_json(path / "vae" / "config.json")),
    }
    infos = {}
    for part, module in skeleton.items():
        stem = "model" if part == "mllm" else "diffusion_pytorch_model"
        headers = find_weights(path / part, stem)
        infos[part] = match_module(path / part, headers, module, "save or download the model again")
    tokenizer = find_tokenizer([path / "tokenizer"], tokenizer_dir)
    euler = index["scheduler"][1] == FlowMatchEulerDiscreteScheduler.__name__
    scheduler_class = FlowMatchEulerDiscreteScheduler if euler else DPMSolverMultistepScheduler
    parts = LadderParts(
        **{p: fill(module, read_tensors(infos.pop(p)), device, dtype) for p, module in skeleton.items()},
        tokenizer=tokenizer,
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(path / "image_processor"),
        scheduler=scheduler_class.from_pretrained(path / "scheduler"),
        system_prompt=index.get("system_prompt", SYSTEM_PROMPT),
        max_text_tokens=index.get("max_text_tokens", MAX_TEXT_TOKENS),
    )
    return freeze(parts)
