"""Writing a model in the released layout, with the names and the rows that its readers expect."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from ..paths import user_path
from .naming import EMBEDDING, Place, released_name
from .parts import LadderParts, stored_shapes
from .released import RELEASED_SANA_ID, ROW_NAMES
from .tokenizers import RELEASED_MLLM_ID
from .weights import read_json

PIPELINE_MODULE = "pipeline"
PIPELINE_CODE = '''"""For DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)."""

from tbac_uniimage.core import {name}  # noqa: F401
'''


def save_released(
    parts: LadderParts,
    folder: str | Path,
    *,
    mllm_id: str = RELEASED_MLLM_ID,
    sana_id: str = RELEASED_SANA_ID,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write ``config.json``, safetensors, and the tokenizer and image processor beside them.

    Everything goes to a folder of another name first, which is renamed when it is complete.

    Args:
        parts: the model. Tensors keep their types; those that were read from a checkpoint are written under
            the same names with the same bytes.
        folder: a path with nothing at it, or an empty folder.
        mllm_id: hub name of the Qwen2.5-VL that the model was made from; other readers take its sizes.
        sana_id: hub name of the SANA that it was made from.
        max_shard_size: larger models are written as several files and an index.

    Raises:
        ValueError: something is there already, or a model that the layout knows nothing of.
    """
    rungs = parts.connector.config.rungs
    if rungs != "ladder":
        raise ValueError(
            f"The model has {rungs} rungs, and readers of the released layout know the ladder only; write a "
            "pipeline folder."
        )
    if parts.transformer.config.source_latents:
        raise ValueError(
            "The model reads the source's latents, of which readers of the released layout know nothing; "
            "write a pipeline folder."
        )
    if parts.transformer.config.text_states:
        raise ValueError(
            "The model attends to the text's tokens, of which readers of the released layout know nothing; "
            "write a pipeline folder."
        )
    with complete_folder(folder) as unfinished:
        parts.tokenizer.save_pretrained(unfinished)
        parts.image_processor.save_pretrained(unfinished)
        write_weights(released_tensors(parts), unfinished, max_shard_size)
        write_json(unfinished / "config.json", released_config(parts, mllm_id, sana_id))
    return Path(folder).absolute()


@contextmanager
def complete_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into that becomes ``folder`` when the block ends, and is removed if the block fails.

    Raises:
        ValueError: something is there already.
    """
    folder = user_path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty; give another path, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    unfinished.mkdir()
    try:
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except BaseException:  # an interrupted write leaves nothing behind either
        shutil.rmtree(unfinished)
        raise


def forget_origin(folder: Path) -> None:
    """Take the place that a pipeline was loaded from, a path of this machine, out of what was written."""
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = read_json(path)
        if config.pop("_name_or_path", None) is not None:
            write_json(path, config)


def name_class(folder: Path, name: str) -> None:
    """Let diffusers alone load a pipeline folder: put a module into it that imports the class, and name it.

    Whoever loads it so allows the module to run (``trust_remote_code``) and has this package installed.
    """
    (folder / f"{PIPELINE_MODULE}.py").write_text(PIPELINE_CODE.format(name=name), encoding="utf-8")
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, "_class_name": [PIPELINE_MODULE, name]})


def released_tensors(parts: LadderParts) -> dict[str, torch.Tensor]:
    """All tensors by released name; queries and reserved rows follow the vocabulary in one matrix."""
    tensors = {}
    for part in ("mllm", "connector", "transformer", "vae"):
        module = getattr(parts, part)
        state = module.state_dict()
        tensors |= {
            released_name(Place(part, name)): state[name].contiguous() for name in stored_shapes(module)
        }
    embedding = released_name(Place("mllm", EMBEDDING))
    vocabulary = tensors[embedding]
    added = [tensors.pop(released_name(Place("connector", name))) for name in ROW_NAMES]
    tensors[embedding] = torch.cat([vocabulary, *(rows.to(vocabulary) for rows in added)])
    return tensors


def released_config(parts: LadderParts, mllm_id: str, sana_id: str) -> dict[str, Any]:
    """What readers of the layout look for, and the parts' own configurations.

    The released layout names base models and relies on their folders for sizes; ``base_configs`` makes a
    checkpoint of any size readable alone, as ``image_pixels`` does for its input images. Other readers ignore
    both.
    """
    transformer = parts.transformer.config
    return {
        "architectures": ["TBACUniImage"],
        "model_type": "tbacuniimage",
        "mllm_id": mllm_id,
        "diffusion_model_id": sana_id,
        "vae_id": sana_id,
        "noise_scheduler_id": sana_id,
        "scheduler_id": sana_id,
        "in_channels": transformer.in_channels,
        "input_size": transformer.sample_size,
        "vae_downsample_f": parts.vae.spatial_compression_ratio,
        "num_metaqueries": parts.connector.config.num_queries,
        "connector_num_hidden_layers": 24,  # the authors' name for a connector of two layers
        "max_input_text_tokens": parts.max_text_tokens,
        "system_prompt": parts.system_prompt,
        "image_pixels": parts.image_processor.size["longest_edge"],
        "loss_type": "flow",
        "modules_to_freeze": ["vae", "model.mllm_backbone"],
        "modules_to_unfreeze": ["model.mllm_backbone.model.embed_tokens"],
        "tie_word_embeddings": parts.mllm.config.tie_word_embeddings,
        "torch_dtype": str(parts.connector.dtype).removeprefix("torch."),
        "base_configs": {
            "mllm": parts.mllm.config.to_diff_dict(),
            "transformer": _plain(transformer),
            "vae": _plain(parts.vae.config),
        },
    }


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers configuration without the notes that diffusers keeps about itself."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def write_weights(
    tensors: dict[str, torch.Tensor],
    folder: Path,
    max_shard_size: int | str,
    values: Callable[[str, torch.Tensor], torch.Tensor] = lambda _, tensor: tensor,
) -> None:
    """Write safetensors, and their index if they are several.

    Args:
        tensors: by name; also on the meta device.
        folder: where to.
        max_shard_size: bytes of a file, or a text such as "5GB".
        values: what is written of a tensor, asked for one file after the other.
    """
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for name, keys in split.filename_to_tensors.items():
        save_file({key: values(key, tensors[key]) for key in keys}, folder / name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
