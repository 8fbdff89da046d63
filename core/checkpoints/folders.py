"""Folders of one part each: those of base models on the hub, and those of our own pipeline folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from ..connector import LadderConnector
from ..prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from ..versions import Qwen2VLImageProcessorPil
from .alone import match_transformer
from .naming import HEAD, check_weights, mllm_name
from .parts import (
    CLASSES,
    LadderParts,
    fill,
    freeze,
    mllm_on_meta,
    on_meta,
    read_part_config,
    stored_shapes,
    transformer_on_meta,
    vae_on_meta,
)
from .placing import Placement
from .tokenizers import find_tokenizer
from .weights import TensorInfo, find_weights, list_names, read_json, read_metadata

SCHEDULERS = {
    scheduler.__name__: scheduler
    for scheduler in (DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler)
}
SKELETONS = {  # modules without memory, of the configurations of their folders
    "mllm": mllm_on_meta,
    "connector": partial(on_meta, LadderConnector.from_config),
    "transformer": transformer_on_meta,
    "vae": vae_on_meta,
}
NAMES = {**CLASSES, "mllm": (Qwen2_5_VLForConditionalGeneration.__name__,)}  # in model_index.json
STEMS = ("diffusion_pytorch_model", "model")  # of files of weights, those of the MLLM last
FLATTENED = re.compile(r"_(weight|bias)_[a-z_]+$")  # a weight's parts in torchao's files


def match_folder(folder: Path, module: nn.Module, variant: str | None = None) -> dict[str, TensorInfo]:
    """Headers of a part's own folder under the names of ``module``, all there and of the right shapes.

    Args:
        variant: of the weights, where the folder has it.

    Raises:
        ValueError: weights that cannot be read, or missing, unexpected and misshapen tensors.
    """
    is_mllm = isinstance(module, Qwen2_5_VLForConditionalGeneration)
    found = find_weights(folder, STEMS[is_mllm], variant)
    wanted = stored_shapes(module)
    if is_mllm:
        found = {mllm_name(name): info for name, info in found.items()}
        if HEAD not in wanted:  # tied: where it is stored it repeats the embeddings
            found.pop(HEAD, None)
    check_weights(folder, found, wanted, "download or save the folder again")
    return found


def check_folder(path: Path, given: Mapping[str, Any]) -> None:
    """Raise ValueError unless the weights of our own pipeline folder are whole, by their headers alone.

    diffusers and transformers fill up what is missing with random numbers.

    Args:
        given: what ``from_pretrained`` is given beside the folder, a ``variant`` among it; components in it
            are not read.
    """
    variant = given.get("variant")
    index = read_json(path / "model_index.json")
    for part, skeleton in SKELETONS.items():
        kind = index.get(part)
        if part in given or not kind:
            continue
        folder = path / part
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        if config.pop("quantization_config", None):
            check_quantised(folder, stored_shapes(skeleton(config)), variant)
        elif kind[-1] in NAMES[part]:  # another class has weights of its own
            match_folder(folder, skeleton(read_part_config(folder, part)), variant)


def check_quantised(folder: Path, wanted: Iterable[str], variant: str | None = None) -> None:
    """Raise ValueError if quantised weights of a folder are not whole.

    Args:
        folder: of a part.
        wanted: names of the part's weights; what lies under others (torchao) a file's header names.
        variant: of the weights, where the folder has it.
    """
    is_mllm = folder.name == "mllm"
    plain = mllm_name if is_mllm else str
    found = find_weights(folder, STEMS[is_mllm], variant)
    noted = {plain(name) for file in {info.file for info in found.values()} for name in read_metadata(file)}
    names = {plain(FLATTENED.sub(r"\1", name)): bool(FLATTENED.search(name)) for name in found}
    missing = sorted(set(wanted) - names.keys())
    missing += [f"what the header says of {name}" for name in names if names[name] and name not in noted]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of its quantised tensors ({list_names(missing)}); save it again."
        )


def load_pipeline_folder(
    path: Path,
    placement: Placement,
    tokenizer_dir: str | Path | None = None,
    transformer_file: str | Path | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> LadderParts:
    """Load our own pipeline folder, which diffusers' ``save_pretrained`` wrote.

    The modules that ``model_index.json`` names are not looked up: ComfyUI imports this package under a name
    of its own. With ``transformer_file`` the folder's own transformer is not read and need not be there, and
    so it is with models that are ``given``, which are None in what is returned.

    Raises:
        ValueError: a part that is missing, incomplete or of another kind.
    """
    index = read_json(path / "model_index.json")
    scheduler = index.get("scheduler", [None, None])[1]
    if scheduler not in SCHEDULERS:
        raise ValueError(f"{path} has the scheduler {scheduler}; known are {', '.join(SCHEDULERS)}.")
    for needed in ("scheduler/scheduler_config.json", "image_processor/preprocessor_config.json"):
        if not (path / needed).is_file():
            raise ValueError(f"{path / needed} is not there; complete the folder.")
    skeleton = {
        part: make(read_part_config(path / part, part))
        for part, make in SKELETONS.items()
        if part not in given
    }
    headers = {
        part: match_transformer(transformer_file, module)
        if part == "transformer" and transformer_file is not None
        else match_folder(path / part, module)
        for part, module in skeleton.items()
    }
    mllm = given.get("mllm") or skeleton.get("mllm") or mllm_on_meta(read_part_config(path / "mllm", "mllm"))
    tokenizer = given.get("tokenizer") or find_tokenizer(mllm.config, [path / "tokenizer"], tokenizer_dir)
    read = {
        part: fill(module, placement.read(part, module, headers[part]), placement.device)
        for part, module in skeleton.items()
    }
    return freeze(
        LadderParts(
            **dict.fromkeys(SKELETONS) | read,
            tokenizer=tokenizer,
            image_processor=Qwen2VLImageProcessorPil.from_pretrained(path / "image_processor"),
            scheduler=SCHEDULERS[scheduler].from_pretrained(path / "scheduler"),
            system_prompt=index.get("system_prompt", SYSTEM_PROMPT),
            max_text_tokens=index.get("max_text_tokens", MAX_TEXT_TOKENS),
        )
    )
