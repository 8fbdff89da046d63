"""The released layout: one ``config.json`` and safetensors of the whole model (DESIGN "Released checkpoint").

The embedding matrix of its MLLM has three kinds of rows: vocabulary, queries, and rows that the authors
reserved for two more tokens and that nothing reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..connector import LadderConnector
from ..prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from ..schedulers import recipe_scheduler
from .alone import match_transformer
from .naming import EMBEDDING, HEAD, Place, check_weights, mllm_name, place_of, released_name
from .parts import (
    BaseConfigs,
    LadderParts,
    fill,
    freeze,
    mllm_on_meta,
    on_meta,
    read_part_config,
    released_configs,
    stored_shapes,
    transformer_on_meta,
    vae_on_meta,
)
from .placing import Placement
from .tokenizers import IMAGE_PIXELS, RELEASED_MLLM_ID, find_tokenizer, make_image_processor
from .weights import TensorInfo, find_weights, list_names, read_json, read_tensors

RELEASED_SANA_ID = "Efficient-Large-Model/Sana_1600M_512px_diffusers"
ROW_NAMES = ("queries", "reserved_rows")  # of the connector; rows of the embedding matrix in the file
RELEASED_TYPES = ("tbacuniimage", "metaquery")
RELEASED_QUERIES = 64
NUM_RESERVED = 2  # <begin_of_img> and <end_of_img> of the authors' tokenizer, after the queries
REMEDY = (
    "for a model of another size put the Qwen2.5-VL and SANA folders that it was made from beside it, under "
    "the names in its config.json, or give them as mllm_dir and sana_dir; otherwise download it again"
)


def load_released(
    path: Path,
    placement: Placement,
    tokenizer_dir: str | Path | None = None,
    mllm_dir: str | Path | None = None,
    sana_dir: str | Path | None = None,
    transformer_file: str | Path | None = None,
) -> LadderParts:
    """Read a released checkpoint.

    Args:
        path: its folder, or its one safetensors file with or without ``config.json`` beside it.
        placement: where the weights go, and as what.
        tokenizer_dir: folder of a Qwen2.5-VL tokenizer, used if the model's own folders have none.
        mllm_dir: Qwen2.5-VL folder whose sizes the model has, if they are not the released 3B's.
        sana_dir: the same for SANA.
        transformer_file: safetensors file of a diffusion transformer alone, read in place of its own.

    Raises:
        ValueError: tensors that are missing, unexpected or misshapen, or no tokenizer.
    """
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type") not in RELEASED_TYPES:  # a file in a folder of many models
        config = {}
    headers = find_weights(path)
    check_origin(path, headers)
    mllm_dir = _base_folder(folder, mllm_dir, config.get("mllm_id"))
    sana_dir = _base_folder(folder, sana_dir, config.get("diffusion_model_id"))
    bases = base_configs(config, mllm_dir, sana_dir)
    skeleton = {
        "mllm": mllm_on_meta(bases.mllm),
        "transformer": transformer_on_meta(bases.transformer),
        "vae": vae_on_meta(bases.vae),
    }
    mllm_config = skeleton["mllm"].config
    rows = _embedding_rows(headers, mllm_config.text_config.vocab_size, config.get("num_metaqueries"))
    skeleton["connector"] = on_meta(
        LadderConnector,
        num_queries=rows[1],
        mllm_dim=mllm_config.text_config.hidden_size,
        caption_dim=skeleton["transformer"].config.caption_channels,
        num_reserved=rows[2],
    )
    found = _match(path, headers, skeleton, rows)
    if transformer_file is not None:
        other = match_transformer(transformer_file, skeleton["transformer"])
        found |= {Place("transformer", name): info for name, info in other.items()}
    mllm_id = config.get("mllm_id") or RELEASED_MLLM_ID
    tokenizer = find_tokenizer(mllm_config, [folder, mllm_dir], tokenizer_dir, mllm_id)

    infos: dict[str, dict[str, TensorInfo]] = {part: {} for part in skeleton}
    for place, info in found.items():
        infos[place.part][place.name] = info
    plans = {part: placement.plan(part, module, infos[part]) for part, module in skeleton.items()}
    tensors: dict[str, dict[str, torch.Tensor]] = {part: {} for part in skeleton}
    # all parts are in the same files, which are read once
    read = read_tensors(found, lambda place, tensor: placement.put(tensor, plans[place.part][place.name]))
    for place, tensor in read.items():
        tensors[place.part][place.name] = tensor
    tensors["mllm"][EMBEDDING], queries, reserved = tensors["mllm"][EMBEDDING].split(rows)
    # of their own: they are trained, and the matrix that they are cut from need not stay
    device, dtype = placement.device, plans["connector"]["layers.0.bias"]
    cut = {"queries": queries, "reserved_rows": reserved}
    tensors["connector"] |= {name: matrix.to(device, dtype, copy=True) for name, matrix in cut.items()}
    preprocessor = folder if (folder / "preprocessor_config.json").is_file() else mllm_dir
    return freeze(
        LadderParts(
            **{part: fill(module, tensors.pop(part), placement.device) for part, module in skeleton.items()},
            tokenizer=tokenizer,
            image_processor=make_image_processor(
                mllm_config, preprocessor, config.get("image_pixels", IMAGE_PIXELS)
            ),
            scheduler=recipe_scheduler(),
            system_prompt=config.get("system_prompt", SYSTEM_PROMPT),
            max_text_tokens=config.get("max_input_text_tokens", MAX_TEXT_TOKENS),
        )
    )


def check_origin(path: Path, headers: dict[str, TensorInfo]) -> None:
    """Raise ValueError if no tensor has a name of the released layout; say what they look like."""
    if any(place_of(name) for name in headers):
        return
    if any("lora" in name.lower() for name in headers):
        kind = "a LoRA; load the model that it was trained on, then the LoRA"
    elif any(name.startswith("model.diffusion_model.") for name in headers):
        kind = "a checkpoint of another diffusion model"
    elif any(mllm_name(name) == EMBEDDING for name in headers):
        kind = "a language model alone; give its folder as mllm_dir, or to assemble"
    elif any(name.startswith(("caption_projection.", "transformer_blocks.")) for name in headers):
        kind = (
            "a diffusion transformer alone; load the model that it was made from and give this as its "
            "transformer_file, or give its folder to assemble"
        )
    else:
        kind = f"another model ({list_names(sorted(headers))})"
    raise ValueError(f"{path} holds no tensor of a TBAC-UniImage model; it looks like {kind}.")


def _base_folder(folder: Path, given: str | Path | None, hub_id: str | None) -> Path | None:
    """The folder of a base model: the one given, or one named as ``hub_id`` in or beside the checkpoint."""
    if given is not None:
        return Path(given)
    if not hub_id:
        return None
    places = [folder / hub_id, folder.parent / hub_id, folder.parent / Path(hub_id).name]
    return next((place for place in places if place.is_dir()), None)


def base_configs(config: dict[str, Any], mllm_dir: Path | None, sana_dir: Path | None) -> BaseConfigs:
    """Sizes of the parts: of the base-model folders, else those that we wrote, else the released 3B's."""
    bases = BaseConfigs(**config["base_configs"]) if "base_configs" in config else released_configs()
    if mllm_dir is not None:
        bases.mllm = read_part_config(mllm_dir, "mllm")
    if sana_dir is not None:
        bases.transformer = read_part_config(sana_dir / "transformer", "transformer")
        bases.vae = read_part_config(sana_dir / "vae", "vae")
    return bases


def _embedding_rows(headers: dict[str, TensorInfo], vocabulary: int, num_queries: int | None) -> list[int]:
    """How the rows of the embedding matrix divide: vocabulary, queries, reserved.

    Without a configuration the queries are all added rows but the two that the authors always reserve.
    """
    embedding = Place("mllm", EMBEDDING)
    added = next((h.shape[0] for name, h in headers.items() if place_of(name) == embedding), 0) - vocabulary
    if num_queries is None:
        num_queries = max(added - NUM_RESERVED, 1)
    if not isinstance(num_queries, int) or num_queries < 1:
        raise ValueError(
            f"config.json says num_metaqueries {num_queries}; it must be a whole number above 0."
        )
    return [vocabulary, num_queries, max(added - num_queries, 0)]


def _match(
    path: Path, headers: dict[str, TensorInfo], skeleton: dict[str, nn.Module], rows: list[int]
) -> dict[Place, TensorInfo]:
    """Headers by place, after a check that they are those of ``skeleton``, whatever names they have."""
    wanted = {
        released_name(Place(part, name)): shape
        for part, module in skeleton.items()
        for name, shape in stored_shapes(module).items()
        if name not in ROW_NAMES
    }
    embedding = released_name(Place("mllm", EMBEDDING))
    wanted[embedding] = (sum(rows), wanted[embedding][1])
    head = Place("mllm", HEAD)
    found: dict[str, TensorInfo] = {}
    for name, info in headers.items():
        place = place_of(name)
        if place == head and released_name(head) not in wanted:  # tied: it repeats the embeddings
            continue
        found[name if place is None else released_name(place)] = info
    check_weights(path, found, wanted, REMEDY)
    return {place_of(name): info for name, info in found.items()}
