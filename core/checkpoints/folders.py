"""Folders of one part each: those of base models on the hub, and those of our own pipeline folder."""

from __future__ import annotations

from pathlib import Path

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from ..connector import LadderConnector
from ..prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from ..versions import Qwen2VLImageProcessorPil
from .alone import match_transformer
from .naming import HEAD, check_tensors, mllm_name
from .parts import (
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
from .weights import TensorInfo, find_weights, read_json

SCHEDULERS = {
    scheduler.__name__: scheduler
    for scheduler in (DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler)
}


def match_folder(folder: Path, module: nn.Module) -> dict[str, TensorInfo]:
    """Headers of a part's own folder under the names of ``module``, all there and of the right shapes.

    Raises:
        ValueError: weights that cannot be read, or missing, unexpected and misshapen tensors.
    """
    is_mllm = isinstance(module, Qwen2_5_VLForConditionalGeneration)
    found = find_weights(folder, "model" if is_mllm else "diffusion_pytorch_model")
    wanted = stored_shapes(module)
    if is_mllm:
        found = {mllm_name(name): info for name, info in found.items()}
        if HEAD not in wanted:  # tied: where it is stored it repeats the embeddings
            found.pop(HEAD, None)
    check_tensors(folder, found, wanted, "download or save the folder again")
    return found


def load_pipeline_folder(
    path: Path,
    placement: Placement,
    tokenizer_dir: str | Path | None = None,
    transformer_file: str | Path | None = None,
) -> LadderParts:
    """Load our own pipeline folder, which diffusers' ``save_pretrained`` wrote.

    The modules that ``model_index.json`` names are not looked up: ComfyUI imports this package under a name
    of its own. With ``transformer_file`` the folder's own transformer is not read and need not be there.

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
        "mllm": mllm_on_meta(read_part_config(path / "mllm", "mllm")),
        "connector": on_meta(LadderConnector.from_config, read_part_config(path / "connector", "connector")),
        "transformer": transformer_on_meta(read_part_config(path / "transformer", "transformer")),
        "vae": vae_on_meta(read_part_config(path / "vae", "vae")),
    }
    headers = {
        part: match_transformer(transformer_file, module)
        if part == "transformer" and transformer_file is not None
        else match_folder(path / part, module)
        for part, module in skeleton.items()
    }
    tokenizer = find_tokenizer(skeleton["mllm"].config, [path / "tokenizer"], tokenizer_dir)
    return freeze(
        LadderParts(
            **{
                part: fill(module, placement.read(part, module, headers[part]), placement.device)
                for part, module in skeleton.items()
            },
            tokenizer=tokenizer,
            image_processor=Qwen2VLImageProcessorPil.from_pretrained(path / "image_processor"),
            scheduler=SCHEDULERS[scheduler].from_pretrained(path / "scheduler"),
            system_prompt=index.get("system_prompt", SYSTEM_PROMPT),
            max_text_tokens=index.get("max_text_tokens", MAX_TEXT_TOKENS),
        )
    )
