"""LoRA in all the ways that people write it: whatever a file calls a layer, here it has the model's name.

diffusers writes ``transformer.<layer>.lora_A.weight``; peft ``base_model.model.<layer>.lora_A.weight``, and
alpha into a file beside; kohya's scripts ``lora_unet_<layer with underscores>.lora_down.weight`` and
``.alpha``; this project ``diffusion_model.<layer>.lora_A.weight`` and ``.alpha``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import SanaLoraLoaderMixin
from diffusers.utils import USE_PEFT_BACKEND
from torch import nn

from .checkpoints.weights import list_names, read_header, read_json, read_metadata, read_tensors
from .hub import find_model
from .versions import know_transformer

Shapes = Mapping[str, tuple[int, ...]]

DOTTED = ("base_model.model.", "model.", "module.", "diffusion_model.", "transformer.", "unet.")
UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
PEFT_FILE = "adapter_model.safetensors"
FILES = ("pytorch_lora_weights.safetensors", PEFT_FILE)
ADAPTER_CONFIG = "adapter_config.json"  # peft's, beside its weights
HEADER_CONFIG = "lora_adapter_metadata"  # diffusers', in the file's header
MATRIX = re.compile(r"(?:lora_linear_layer|lora)[._](A|B|down|up)(?:(?:\.\w+)?\.weight)?")
KINDS = {"A": "lora_A", "down": "lora_A", "B": "lora_B", "up": "lora_B"}


def layer_shapes(transformer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a LoRA can stand beside, by name; those of LoRA that is there are none."""
    return {
        name.removesuffix(".base_layer"): tuple(module.weight.shape)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name
    }


def read_lora(
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor], weight_name: str | None = None, **hub: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of a LoRA as they are named, and what stands beside them about rank and alpha.

    Args:
        source: tensors by name, a safetensors file, a folder, or ``owner/model`` on the hub.
        weight_name: file in the folder, if it has several.
        hub: see :func:`.hub.find_model`.

    Raises:
        ValueError: no such file, a pickle, or a file that is damaged.
    """
    if isinstance(source, Mapping):
        return dict(source), {}
    path = find_model(source, (weight_name or "*.safetensors", ADAPTER_CONFIG), **hub)
    file = path if path.is_file() else path / (weight_name or _only_file(path))
    if not file.is_file():
        raise ValueError(f"There is no LoRA at {file}; check weight_name.")
    headers = read_header(file)
    try:
        noted = dict(json.loads(read_metadata(file).get(HEADER_CONFIG, "{}")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} has no readable {HEADER_CONFIG} in its header; get the file again."
        ) from error
    config = {name.rpartition("transformer.")[2]: value for name, value in noted.items()}
    beside = file.with_name(ADAPTER_CONFIG)
    if (path.is_dir() or file.name == PEFT_FILE) and beside.is_file():
        config = read_json(beside)
    return read_tensors(headers), config


def _only_file(folder: Path) -> str:
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    known = [name for name in FILES if name in found]
    if len(known or found) != 1:
        raise ValueError(
            f"{folder} holds {len(found)} safetensors files; name the LoRA's as weight_name."
            if found
            else f"{folder} holds no safetensors file, and nothing else is opened; give a LoRA."
        )
    return (known or found)[0]


def name_layers(
    tensors: Mapping[str, torch.Tensor], shapes: Shapes, config: Mapping[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """A LoRA under the names of a model's layers.

    Args:
        tensors: under the names of any of the formats.
        shapes: of the model's layers, see :func:`layer_shapes`.
        config: rank and alpha, of those who write them beside the tensors.

    Returns:
        ``<layer>.lora_A.weight`` ``[rank, in]``, ``<layer>.lora_B.weight`` ``[out, rank]``, and
        ``<layer>.alpha`` where it is known; what is no LoRA keeps its own ending.

    Raises:
        ValueError: tensors that fit no layer, by name or by shape.
    """
    places = {name: _split(name, shapes) for name in tensors}
    strange = [name for name, place in places.items() if place is None]
    if strange or not tensors:
        raise ValueError(
            f"{len(strange)} of the {len(tensors)} tensors of the LoRA fit no layer of this model "
            f"({list_names(strange)}); it was made for another."
        )
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        layer, rest = places[name]
        matrix = MATRIX.fullmatch(rest)
        named[f"{layer}.{KINDS[matrix[1]]}.weight" if matrix else f"{layer}.{rest}"] = tensor
    for layer in matrices(named):
        _check_pair(layer, named, shapes[layer])
        alpha = _noted_alpha(layer, len(named[f"{layer}.lora_A.weight"]), config or {})
        if alpha is not None:
            named.setdefault(f"{layer}.alpha", torch.tensor(alpha))
    return named


def matrices(named: Mapping[str, torch.Tensor]) -> list[str]:
    """The layers that have one matrix of a LoRA, or both."""
    ends = (".lora_A.weight", ".lora_B.weight")
    return list(dict.fromkeys(name[: -len(ends[0])] for name in named if name.endswith(ends)))


def _split(name: str, shapes: Shapes) -> tuple[str, str] | None:
    """A tensor's layer and what of it this is; None if the model has no such layer."""
    underscored = {layer.replace(".", "_"): layer for layer in shapes}
    parts = name.replace("_lora.", ".lora.").replace(".processor.", ".").split(".")
    for end in range(len(parts) - 1, 0, -1):
        stem, rest = ".".join(parts[:end]), ".".join(parts[end:])
        for prefix in (*DOTTED, *UNDERSCORED):
            stem = stem.removeprefix(prefix)
        layer = stem if stem in shapes else underscored.get(stem.replace(".", "_"))
        if layer is not None:
            return layer, rest
    return None


def _check_pair(layer: str, named: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    down, up = (named.get(f"{layer}.{kind}.weight") for kind in ("lora_A", "lora_B"))
    if down is None or up is None:
        raise ValueError(f"The LoRA has one matrix of two for {layer}; get the file again.")
    rank = len(down)
    if math.prod(down.shape[1:]) != math.prod(shape[1:]) or math.prod(up.shape) != shape[0] * rank:
        raise ValueError(
            f"The LoRA's matrices for {layer} are {list(down.shape)} and {list(up.shape)}, and the layer is "
            f"{list(shape)}; it was made for another model."
        )


def _noted_alpha(layer: str, rank: int, config: Mapping[str, Any]) -> float | None:
    patterns = {**(config.get("alpha_pattern") or {}), ".*": config.get("lora_alpha")}
    alpha = next(value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", layer))
    return alpha * rank**0.5 if alpha is not None and config.get("use_rslora") else alpha


def peft_lora(
    tensors: Mapping[str, torch.Tensor],
    shapes: Shapes,
    config: Mapping[str, Any],
    prefix: str = "transformer",
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A LoRA as diffusers loads it into a transformer: its tensors, and peft's configuration of it.

    Args:
        tensors, shapes, config: see :func:`name_layers`.
        prefix: before all names.

    Raises:
        ValueError: what :func:`name_layers` says, and other things than LoRA, DoRA among them.
    """
    named = name_layers(tensors, shapes, config)
    layers = matrices(named)
    known = {f"{layer}.{end}" for layer in layers for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    others = sorted(named.keys() - known)
    if others or config.get("use_dora"):
        raise ValueError(
            f"The file holds more than a LoRA ({list_names(others) or 'use_dora'}), and DoRA, LoHa, LoKr and "
            "biases are not supported; train it as plain LoRA."
        )
    state = {}
    for layer in layers:
        down, up = named[f"{layer}.lora_A.weight"], named[f"{layer}.lora_B.weight"]
        kernel = shapes[layer][1:]
        state[f"{prefix}.{layer}.lora_A.weight"] = down.reshape(-1, *kernel)
        state[f"{prefix}.{layer}.lora_B.weight"] = up.reshape(shapes[layer][0], -1, *[1] * (len(kernel) - 1))
    ranks = {layer: len(named[f"{layer}.lora_A.weight"]) for layer in layers}
    alphas = {layer: float(named.get(f"{layer}.alpha", ranks[layer])) for layer in layers}
    exact = {layer: f"^{re.escape(layer)}$" for layer in layers}  # else a name fits the end of another
    peft = {
        "r": ranks[layers[0]],
        "lora_alpha": alphas[layers[0]],
        "rank_pattern": {exact[layer]: rank for layer, rank in ranks.items()},
        "alpha_pattern": {exact[layer]: alpha for layer, alpha in alphas.items()},
        "target_modules": layers,
    }
    return state, {f"{prefix}.{key}": value for key, value in peft.items()}


def comfy_lora(
    tensors: Mapping[str, torch.Tensor], shapes: Shapes, config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """A LoRA, or what else ComfyUI adds to weights, under the names that its loaders look for.

    Raises:
        ValueError: see :func:`name_layers`.
    """
    named = name_layers(tensors, shapes, config)
    return {f"diffusion_model.{name}": tensor for name, tensor in named.items()}


class LadderLoraMixin(SanaLoraLoaderMixin):
    """LoRA of the diffusion transformer: diffusers' own methods, for files with names of any kind."""

    @classmethod
    def lora_state_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, but that only safetensors files are opened."""
        return super().lora_state_dict(*args, **{**kwargs, "use_safetensors": True})

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = False,
        **kwargs: Any,
    ) -> None:
        """Put a LoRA beside the weights of the transformer, with its own alpha.

        Args:
            pretrained_model_name_or_path_or_dict: see :func:`read_lora`, as for ``weight_name`` and what of
                the hub is meant.
            adapter_name: under which ``set_adapters`` and others know it; None numbers them.
            hotswap, low_cpu_mem_usage: see diffusers.

        Raises:
            ImportError: peft is not installed.
            ValueError: a file that is none, fits no layer or holds another kind of adapter.
        """
        if not USE_PEFT_BACKEND:
            raise ImportError("A LoRA in Python needs peft; run `pip install peft`.")
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError("use_safetensors is False, but only safetensors files are opened; leave it out.")
        self.require("load a LoRA", "transformer")
        know_transformer(type(self.transformer).__name__)
        tensors, config = read_lora(pretrained_model_name_or_path_or_dict, **kwargs)
        state, metadata = peft_lora(tensors, layer_shapes(self.transformer), config)
        self.load_lora_into_transformer(
            state,
            transformer=self.transformer,
            adapter_name=adapter_name,
            _pipeline=self,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
            metadata=metadata,
        )
