"""Weights in fewer bits with scales beside them: told by their names, read by ComfyUI's own layers alone."""

from __future__ import annotations

from collections.abc import Iterable

from .weights import TensorInfo

MARK = ".comfy_quant"  # says the format of a layer of ComfyUI's
# how names of what lies beside such a weight end, and the format
COMFYUI = (MARK, ".weight_scale", ".weight_scale_2", ".weight_s_rel", ".weight_s_channel")
COMFYUI += (".input_scale", ".pre_quant_scale", ".weight_codebook")
SCALED_FP8 = (".scale_weight", ".scale_input", "scaled_fp8")  # ComfyUI's before
FORMATS = {
    COMFYUI: "ComfyUI's quantised weights with scales",
    SCALED_FP8: "ComfyUI's scaled fp8",
    (".absmax", ".quant_map", ".nested_absmax"): "bitsandbytes' 4 bits",
    (".qweight", ".qzeros", ".scales"): "GPTQ or AWQ",
}
STORED_AS = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "int8", "U8": "4 bits"}  # of ComfyUI's, by its weights


def scaled_format(found: dict[str, TensorInfo]) -> str | None:
    """What the format of some tensors is called, by their names; None if no scales are among them."""
    for endings, name in FORMATS.items():
        if not any(tensor.endswith(endings) for tensor in found):
            continue
        return f"{name} ({kind})" if endings == COMFYUI and (kind := _stored_as(found.values())) else name
    return None


def is_comfyui(found: Iterable[str]) -> bool:
    """Whether scales as ComfyUI stores them are among some names."""
    return any(name.endswith((*COMFYUI, *SCALED_FP8)) for name in found)


def without_scales(found: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors but for ComfyUI's scales."""
    return {name: info for name, info in found.items() if not name.endswith((*COMFYUI, *SCALED_FP8))}


def packed_layers(found: dict[str, TensorInfo]) -> list[str]:
    """Names of ComfyUI's weights that may hold several values in a byte, so that their shape says little."""
    weights = (name.removesuffix(MARK) + ".weight" for name in found if name.endswith(MARK))
    return [name for name in weights if name in found and found[name].dtype in ("I8", "U8")]


def refuse_scaled(source: object, found: dict[str, TensorInfo]) -> None:
    """Raise ValueError if scales lie beside weights: without them these mean other numbers."""
    name = scaled_format(found)
    if name is not None:
        raise ValueError(
            f"{source} holds {name}, which is not read here; take the same model in bf16 or fp16, and for "
            "less memory weight_dtype fp8_e4m3fn of Load Model, or quantization_config in Python."
        )


def _stored_as(infos: Iterable[TensorInfo]) -> str | None:
    kinds = {STORED_AS[info.dtype] for info in infos if info.dtype in STORED_AS and len(info.shape) > 1}
    return " and ".join(sorted(kinds)) or None
