"""Let ComfyUI move, cast and patch the weights of diffusers and transformers modules."""

from __future__ import annotations

import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from diffusers.models.normalization import RMSNorm

from ..core.checkpoints import LAYERS
from ..core.processor import multiplies_bfloat16
from ..core.versions import Qwen2_5_VLRMSNorm

CASTABLE = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "Embedding", "GroupNorm", "LayerNorm")


class CastRMSNorm(RMSNorm, comfy.ops.CastWeightBiasOp):
    """diffusers' RMSNorm whose weight may be kept on another device or in another dtype."""

    comfy_cast_weights = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis in float32, as diffusers does, then scale in the input's dtype."""
        return scaled_rms_norm(self, hidden_states, self.eps)


class CastQwenRMSNorm(Qwen2_5_VLRMSNorm, comfy.ops.CastWeightBiasOp):
    """The same for the language model's norm."""

    comfy_cast_weights = True
    bias = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis in float32, then scale in the input's dtype."""
        return scaled_rms_norm(self, hidden_states, self.variance_epsilon)


def scaled_rms_norm(norm: torch.nn.Module, hidden_states: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm with the weights of ``norm``, fetched the way comfy.ops fetches those of its own layers."""
    comfy.ops.run_every_op()
    x = hidden_states.float()
    x = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)).to(hidden_states.dtype)
    if norm.weight is None:
        return x
    weight, bias, stream = comfy.ops.cast_bias_weight(norm, hidden_states, offloadable=True)
    x = x * weight if bias is None else x * weight + bias
    comfy.ops.uncast_bias_weight(norm, weight, bias, stream)
    return x


def cast_parameters(
    module: torch.nn.Module, dtype: torch.dtype, layers: torch.dtype | None = None
) -> torch.nn.Module:
    """Cast parameters in place, one at a time. Buffers stay: rotary frequencies need their full precision.

    Args:
        layers: dtype of the weights of :data:`LAYERS`, if it is another.
    """
    weights = {id(layer.weight) for layer in module.modules() if isinstance(layer, LAYERS)}
    for parameter in module.parameters():
        parameter.data = parameter.data.to(layers if layers and id(parameter) in weights else dtype)
    return module


def computed_in(kept: torch.dtype | None, device: torch.device) -> torch.dtype:
    """What weights are computed in that are kept in a shorter type: bfloat16 where ComfyUI computes in it.

    ComfyUI computes in it on no CPU. Here those do that multiply it themselves, if ComfyUI was not started
    for float32, and the weights are kept in bfloat16 or in less, which lose nothing by it.

    Args:
        kept: None stands for a type that is not known yet.
    """
    management = comfy.model_management
    if device.type != "cpu":
        return torch.bfloat16 if management.should_use_bf16(device) else torch.float32
    fits = kept in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    faster = fits and not management.FORCE_FP32 and multiplies_bfloat16()
    return torch.bfloat16 if faster else torch.float32


def cast_when_used(module: torch.nn.Module) -> torch.nn.Module:
    """Have the weights of :data:`LAYERS` cast at every use, because they are kept in a short dtype.

    Few bytes lie elsewhere, and norms, biases, embeddings and tables suffer most from a short dtype.

    Args:
        module: after :func:`use_comfy_ops`.
    """
    for layer in module.modules():
        if isinstance(layer, LAYERS):
            layer.comfy_cast_weights = True
    return module


def use_comfy_ops(root: torch.nn.Module, operations: type) -> torch.nn.Module:
    """Give every leaf module of ``root`` its comfy.ops class. Weights and their names stay as they are."""
    classes = {getattr(torch.nn, name): getattr(operations, name) for name in CASTABLE}
    classes |= {RMSNorm: CastRMSNorm, Qwen2_5_VLRMSNorm: CastQwenRMSNorm}
    for module in root.modules():
        module.__class__ = classes.get(type(module), type(module))
        if isinstance(module, torch.nn.Embedding):
            module.bias = None  # comfy.ops asks for one when it casts
        if isinstance(module, torch.nn.Linear):
            module.scale_weight = module.scale_input = None  # and for these with --fast fp8_matrix_mult
    return root


def stray_parameters(root: torch.nn.Module) -> list[str]:
    """Names of parameters that ``ModelPatcher.load`` passes over: those beside submodules, as in
    ``transformer_blocks.0.scale_shift_table``."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, module in root.named_modules()
        if any(True for child in module.children() for _ in child.parameters())
        for name, _ in module.named_parameters(recurse=False)
    ]


def make_patcher(
    model: torch.nn.Module,
    load_device: torch.device,
    offload_device: torch.device,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """A patcher of the class that ComfyUI manages models with just now.

    Newer ComfyUI's main.py puts the class of its dynamic VRAM into ``CoreModelPatcher``, older has none.

    Args:
        disable_dynamic: the plain class all the same.
    """
    current = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    patcher = (ModelPatcher if disable_dynamic else current)(model, load_device, offload_device)
    manage_strays(patcher)
    return patcher


def manage_strays(patcher: ModelPatcher) -> None:
    """Patch and move stray parameters, and move buffers, whenever the model is loaded, wholly or in part."""

    def on_load(loaded: ModelPatcher, device: torch.device, *_: object) -> None:
        for name in stray_parameters(loaded.model):
            if name in loaded.patches and name not in loaded.backup:
                loaded.patch_weight_to_device(name, device_to=device)
            weight = comfy.utils.get_attr(loaded.model, name)
            if weight.device != device:
                comfy.utils.set_attr_param(loaded.model, name, weight.to(device))
        for module in loaded.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, "tbac_uniimage", on_load)
