"""The released layout: one ``config.json`` and safetensors of the whole model (DESIGN "Released checkpoint").

The embedding matrix of its MLLM has three kinds of rows: vocabulary, queries, and rows that the authors
reserved for two more tokens and that nothing reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .connector import LadderConnector
from .naming import EMBEDDING, HEAD, Place, check_tensors, place_of, released_name
from .parts import (
    BaseConfigs,
    LadderParts,
    fill,
    freeze,
    mllm_on_meta,
    on_meta,
    read_json,
    released_configs,
    stored_shapes,
    transformer_on_meta,
    vae_on_meta,
)
from .prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from .schedulers import recipe_scheduler
from .tokenizers import RELEASED_MLLM_ID, find_tokenizer, make_image_processor
from .weights import TensorInfo, find_weights, read_tensors

RELEASED_SANA_ID = "Efficient-Large-Model/Sana_1600M_512px_diffusers"
RELEASED_TYPES = ("tbacuniimage", "metaquery")
RELEASED_QUERIES = 64
NUM_RESERVED = 2  # <begin_of_img> and <end_of_img> of the authors' tokenizer, after the queries
REMEDY = (
    "for a model of another size give mllm_dir and sana_dir, the Qwen2.5-VL and SANA folders that it was "
    "made from, otherwise download the checkpoint again"
)


def load_released(
    path: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    tokenizer_dir: str | Path | None = None,
    mllm_dir: str | Path | None = None,
    sana_dir: str | Path | None = None,
) -> LadderParts:
    """Read a released checkpoint.

    Args:
        path: its folder, or its one safetensors file with or without ``config.json`` beside it.
        device: where the weights go.
        dtype: their type, None keeps that of the files.
        tokenizer_dir: folder of a Qwen2.5-VL tokenizer, used if the model's own folders have none.
        mllm_dir: Qwen2.5-VL folder whose sizes the model has, if they are not the released 3B's.
        sana_dir: the same for SANA.

    Raises:
        ValueError: tensors that are missing, unexpected or misshapen, or no tokenizer.
    """
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type") not in RELEASED_TYPES:  # that of something else in a folder of many models
        config = {}
    headers = find_weights(path)
    mllm_dir = _base_folder(folder, mllm_dir, config.get("mllm_id"))
    sana_dir = _base_folder(folder, sana_dir, config.get("diffusion_model_id"))
    bases = base_configs(config, mllm_dir, sana_dir)
    skeleton = {
        "mllm": mllm_on_meta(bases.mllm),
        "transformer": transformer_on_meta(bases.transformer),
        "vae": vae_on_meta(bases.vae),
    }
    mllm_config = skeleton["mllm"].config
    found, rows = _match_released(path, headers, skeleton, config.get("num_metaqueries"))
    tokenizer = find_tokenizer([folder, mllm_dir], tokenizer_dir, config.get("mllm_id") or RELEASED_MLLM_ID)

    tensors: dict[str, dict[str, torch.Tensor]] = {part: {} for part in skeleton}
    for name, tensor in read_tensors(headers).items():
        if name in found:
            part, own_name = found[name]
            tensors.setdefault(part, {})[own_name] = tensor
    embeddings = tensors["mllm"][EMBEDDING]
    tensors["mllm"][EMBEDDING], queries, reserved = embeddings.split(rows)
    # of their own: they are trained, and the matrix they are cut from need not stay
    tensors["connector"] |= {"queries": queries.clone(), "reserved_rows": reserved.clone()}
    skeleton["connector"] = _connector_on_meta(bases, *rows[1:])
    parts = LadderParts(
        **{part: fill(module, tensors.pop(part), device, dtype) for part, module in skeleton.items()},
        tokenizer=tokenizer,
        image_processor=make_image_processor(mllm_config, mllm_dir),
        scheduler=recipe_scheduler(),
        system_prompt=config.get("system_prompt", SYSTEM_PROMPT),
        max_text_tokens=config.get("max_input_text_tokens", MAX_TEXT_TOKENS),
    )
    return freeze(parts)


def _connector_on_meta(bases: BaseConfigs, num_queries: int, num_reserved: int) -> LadderConnector:
    width = mllm_width(bases.mllm)
    return on_meta(LadderConnector, num_queries, width, bases.transformer["caption_channels"], num_reserved)


def mllm_width(config: dict[str, Any]) -> int:
    """Width of the language model; newer configurations keep it one level down."""
    return config.get("text_config", config)["hidden_size"]


def _base_folder(folder: Path, given: str | Path | None, hub_id: str | None) -> Path | None:
    """The folder of a base model: the one given, or one named as ``hub_id`` in or beside the checkpoint."""
    if given is not None:
        if not Path(given).is_dir():
            raise ValueError(f"There is no base-model folder at {given}.")
        return Path(given)
    if not hub_id:
        return None
    places = [folder / hub_id, folder.parent / hub_id, folder.parent / Path(hub_id).name]
    return next((place for place in places if place.is_dir()), None)


def base_configs(config: dict[str, Any], mllm_dir: Path | None, sana_dir: Path | None) -> BaseConfigs:
    """Sizes of the parts: of the base-model folders, else those that we wrote, else the released 3B's."""
    bases = released_configs()
    if "base_configs" in config:
        bases = BaseConfigs(**config["base_configs"])
    if mllm_dir is not None:
        bases.mllm = read_base_config(mllm_dir / "config.json")
    if sana_dir is not None:
        bases.transformer = read_base_config(sana_dir / "transformer" / "config.json")
        bases.vae = read_base_config(sana_dir / "vae" / "config.json")
    return bases


def read_base_config(path: Path) -> dict[str, Any]:
    """Configuration of one base part. Raises ValueError if it is not there."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; give a complete folder in the layout of its hub repository.")
    return read_json(path)


def _match_released(
    path: Path,
    headers: dict[str, TensorInfo],
    skeleton: dict[str, torch.nn.Module],
    num_queries: int | None,
) -> tuple[dict[str, Place], list[int]]:
    """Places of all tensors by name, and how the embedding rows divide (vocabulary, queries, reserved)."""
    places = {name: place_of(name) for name in headers}
    tied = skeleton["mllm"].config.tie_word_embeddings
    drop = Place("mllm", HEAD) if tied else None  # repeats the embeddings
    places = {name: place for name, place in places.items() if place is None or place != drop}
    canonical = {name: name if place is None else released_name(place) for name, place in places.items()}
    wanted = {
        released_name(Place(part, name)): shape
        for part, module in skeleton.items()
        for name, shape in stored_shapes(module).items()
    }
    transformer, mllm = skeleton["transformer"].config, skeleton["mllm"].config.text_config
    connector = on_meta(LadderConnector, 1, mllm.hidden_size, transformer.caption_channels)
    for name, shape in stored_shapes(connector).items():
        if name.startswith("layers."):
            wanted[released_name(Place("connector", name))] = shape

    found = {canonical[name]: headers[name] for name in canonical}
    embedding = released_name(Place("mllm", EMBEDDING))
    vocabulary = mllm.vocab_size
    added = found[embedding].shape[0] - vocabulary if embedding in found else 0
    if num_queries is None:
        num_queries = max(added - NUM_RESERVED, 1)
    rows = [vocabulary, num_queries, max(added - num_queries, 0)]
    wanted[embedding] = (sum(rows), mllm.hidden_size)
    check_tensors(path, found, wanted, REMEDY)
    return {name: place for name, place in places.items() if place is not None}, rows
