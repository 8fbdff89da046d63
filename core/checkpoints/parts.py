"""The parts of a model, and how each is built without memory and then filled from tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler
from torch import nn
from transformers import (
    BaseImageProcessor,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from ..connector import LadderConnector
from ..prompts import MAX_TEXT_TOKENS, SYSTEM_PROMPT
from ..transformer import LadderTransformer2DModel
from ..versions import fill_rotary, mllm_config
from .weights import read_json

CONFIGS = Path(__file__).parent.parent / "configs"
CLASSES = {
    "mllm": ("qwen2_5_vl",),
    "connector": ("LadderConnector",),
    "transformer": ("SanaTransformer2DModel", "LadderTransformer2DModel"),
    "vae": ("AutoencoderDC",),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Module = TypeVar("Module", bound=nn.Module)


@dataclass
class LadderParts:
    """Everything a :class:`.pipeline.LadderPipeline` is made of, under the names of its components."""

    mllm: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase | None
    image_processor: BaseImageProcessor
    connector: LadderConnector
    transformer: LadderTransformer2DModel
    vae: AutoencoderDC
    scheduler: DPMSolverMultistepScheduler
    system_prompt: str = SYSTEM_PROMPT
    max_text_tokens: int = MAX_TEXT_TOKENS


@dataclass
class BaseConfigs:
    """Sizes of the three pretrained parts, in their own libraries' configuration formats."""

    mllm: dict[str, Any]
    transformer: dict[str, Any]
    vae: dict[str, Any]


def read_part_config(folder: Path, part: str) -> dict[str, Any]:
    """Configuration of the folder of one part (a field of LadderParts).

    Raises:
        ValueError: there is none, or it is that of another kind of model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is not there; give a complete folder, in the layout of its hub repository.")
    config = read_json(path)
    if config.get("quantization_config"):
        raise ValueError(
            f"{folder} holds quantised weights, which LadderPipeline.from_pretrained alone loads; give the "
            "model that they were made from."
        )
    kind = config.get("_class_name") or config.get("model_type")
    if kind not in CLASSES[part]:
        raise ValueError(f"{folder} holds a {kind}; as {part} a {CLASSES[part][0]} is needed.")
    return config


def released_configs() -> BaseConfigs:
    """The configurations of the released 3B model, which its checkpoint does not carry."""
    names = ("qwen2_5_vl_3b", "sana_1600m_512", "dc_ae_f32c32")
    return BaseConfigs(*(read_json(CONFIGS / f"{name}.json") for name in names))


def on_meta(make: Callable[..., Module], *args: Any, **kwargs: Any) -> Module:
    """Call ``make`` so that the module it returns has shapes and no memory."""
    with torch.device("meta"):
        return make(*args, **kwargs)


def mllm_on_meta(config: dict[str, Any]) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL of a configuration in transformers' format."""
    mllm = on_meta(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig.from_dict(mllm_config(config)))
    mllm.tie_weights()  # transformers 5.0 does so only where it reads a folder
    return mllm


def transformer_on_meta(config: dict[str, Any]) -> LadderTransformer2DModel:
    """The ladder's diffusion transformer of a SANA configuration in diffusers' format."""
    return on_meta(LadderTransformer2DModel.from_config, config)


def vae_on_meta(config: dict[str, Any]) -> AutoencoderDC:
    """The autoencoder of a configuration in diffusers' format."""
    return on_meta(AutoencoderDC.from_config, config)


def stored_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a checkpoint holds of ``module``; a tied head is not stored."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if isinstance(module, Qwen2_5_VLForConditionalGeneration) and module.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def fill(
    module: Module,
    tensors: dict[str, torch.Tensor],
    device: str | torch.device = "cpu",
) -> Module:
    """Give a module built by :func:`on_meta` its weights; no second copy is made of any.

    Args:
        module: module whose :func:`stored_shapes` are those of ``tensors``.
        tensors: what :meth:`.placing.Placement.read` returns; they become the parameters themselves.
        device: where they are, and the buffers go. These keep their type: rotary frequencies in bfloat16
            would turn far positions by wrong angles.

    Returns:
        ``module``, in evaluation mode.
    """
    module.load_state_dict(tensors, strict=False, assign=True)
    if isinstance(module, Qwen2_5_VLForConditionalGeneration):
        module.tie_weights()
        for child in module.modules():
            if child._non_persistent_buffers_set:  # rotary frequencies, which no checkpoint stores
                child.to_empty(device="cpu")
                fill_rotary(module, child)
    return module.to(device).eval()


def place(module: Module, device: str | torch.device, dtype: torch.dtype | None) -> Module:
    """Move a module, and cast its parameters but not its buffers, one by one."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(device=device, dtype=dtype)
    return module.to(device)


def freeze(parts: LadderParts) -> LadderParts:
    """The MLLM and the autoencoder, as far as they are there, are never trained (paper section 3)."""
    for part in (parts.mllm, parts.vae):
        if part is not None:
            part.requires_grad_(False)
    return parts


def check_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch type of a type or its name. Raises ValueError for any other."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"The type {dtype} is not known; choose float32, bfloat16 or float16.")
    return DTYPES[dtype]


def check_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it. Raises ValueError if not."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"The device {device} is not there on this machine; use cpu, or mend torch."
        ) from error
