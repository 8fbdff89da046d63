"""A diffusion transformer alone in ComfyUI's formats of fewer bits, in ComfyUI's own layers.

A layer of such a file has scales beside its weight and ``comfy_quant``, which names its format (ComfyUI's
QUANTIZATION.md); files of ``scaled_fp8``, the form before, are turned into it by ComfyUI.
"""

from __future__ import annotations

import json
from pathlib import Path

import comfy.ops
import comfy.utils
import torch
from safetensors import safe_open

from ..core.checkpoints.alone import bare_name
from ..core.checkpoints.naming import check_tensors
from ..core.checkpoints.parts import stored_shapes
from ..core.checkpoints.scaled import MARK, is_comfyui, refuse_scaled
from ..core.checkpoints.weights import TensorInfo, read_header

UNPACKED = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # a number stored for each; others pack


def is_scaled(path: Path | None) -> bool:
    """Whether a file of a transformer has ComfyUI's scales beside its weights."""
    return path is not None and is_comfyui(read_header(path))


def take_scaled(transformer: torch.nn.Module, path: Path, config: object, compute: torch.dtype) -> None:
    """Give a transformer the weights of such a file, in place.

    Args:
        transformer: with the classes of comfy.ops.
        config: of comfy.supported_models_base, which is told of the layers.
        compute: what the layers compute in.

    Raises:
        ValueError: a ComfyUI that has no such layers, a format that it does not know, or tensors that do not
            fit the transformer.
    """
    headers = read_header(path)
    if not hasattr(comfy.utils, "convert_old_quants"):
        refuse_scaled(f"This ComfyUI has no layers for scales; update it. {path}", headers)
    with safe_open(path, framework="pt") as file:
        state = {bare_name(name): file.get_tensor(name).clone() for name in headers}
        for name in state:
            if name.endswith(MARK):  # read by ComfyUI next
                format_of(state[name], name.removesuffix(MARK), path)
        state, _ = comfy.utils.convert_old_quants(state, metadata=file.metadata())
    layers = [name.removesuffix(MARK) for name in state if name.endswith(MARK)]
    kinds = {
        layer: format_of(state[layer + MARK], layer, path) for layer in layers
    }  # ComfyUI reads them next
    config.quant_config = comfy.utils.detect_layer_quantization(state, "")
    operations = comfy.ops.pick_operations(None, compute, model_config=config)
    wanted = stored_shapes(transformer)
    for layer in layers:
        own = {name: state.pop(name) for name in list(state) if name.startswith(f"{layer}.")}
        tensors = {name.removeprefix(f"{layer}."): own[name] for name in own}
        swap(transformer, layer, tensors, kinds[layer], operations, path)
        for name in ("weight", "bias"):
            wanted.pop(f"{layer}.{name}", None)
    found = {
        name: TensorInfo(path, name, str(value.dtype), tuple(value.shape)) for name, value in state.items()
    }
    check_tensors(path, found, wanted, "load it with the model that it was made from")
    for name, value in state.items():
        transformer.get_parameter(name).data.copy_(value)


def swap(
    transformer: torch.nn.Module,
    layer: str,
    tensors: dict[str, torch.Tensor],
    kind: object,
    operations: type,
    path: Path,
) -> None:
    """Put ComfyUI's layer in the place of a linear layer, with its tensors of a format."""
    from comfy.quant_ops import QUANT_ALGOS

    parent, _, leaf = layer.rpartition(".")
    try:
        old = transformer.get_submodule(layer)
    except AttributeError:
        old = None
    if kind not in QUANT_ALGOS or not isinstance(old, torch.nn.Linear):
        what = f"the format {kind}" if kind not in QUANT_ALGOS else "a layer that is none of this model"
        raise ValueError(
            f"{path} has {what} at {layer}, which this ComfyUI cannot load; take the same model in bf16 or "
            "fp16 and weight_dtype fp8_e4m3fn."
        )
    shape, wanted = list(tensors["weight"].shape), [old.out_features, old.in_features]
    if kind in UNPACKED and shape != wanted:
        raise ValueError(
            f"{path} has a weight of the shape {shape} at {layer}, where the model has {wanted}; load it "
            "with the model that it was made from."
        )
    new = operations.Linear(
        old.in_features, old.out_features, bias=old.bias is not None, device="cpu", dtype=old.weight.dtype
    )
    try:
        new.load_state_dict(tensors)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} does not fit together at {layer} ({told(error)}); get the file again."
        ) from error
    setattr(transformer.get_submodule(parent), leaf, new.requires_grad_(False))


def format_of(mark: torch.Tensor, layer: str, path: Path) -> object:
    """What the JSON beside a layer's weight calls its format. Raises ValueError if it is none."""
    try:
        return json.loads(mark.numpy().tobytes()).get("format")
    except (ValueError, AttributeError) as error:  # no JSON, or no object
        raise ValueError(
            f"{path} says in no readable form what {layer} holds; get the file again."
        ) from error


def told(error: Exception) -> str:
    """The last line of what a library says, as the others only name its class."""
    return str(error).strip().splitlines()[-1].strip().rstrip(".")
