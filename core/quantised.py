"""Weights in fewer bits: diffusers' ``quantization_config`` for models of every layout."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks it up here
from diffusers.models.transformers.sana_transformer import GLUMBConv
from diffusers.quantizers import PipelineQuantizationConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .transformer import LadderTransformer2DModel

LIBRARIES = {"mllm": "transformers", "transformer": "diffusers"}  # by part, whose classes they are
PARTS = tuple(LIBRARIES)


class PointwiseGLU(nn.Module):
    """SANA's gated feed-forward, its convolutions of one pixel as the linear layers that they are.

    They see channels last, as all linear layers do, so that a LoRA beside them is one of a linear layer.

    Args:
        ff: whose layers and weights it takes.
    """

    def __init__(self, ff: GLUMBConv) -> None:
        super().__init__()
        self.nonlinearity, self.conv_depth = ff.nonlinearity, ff.conv_depth
        self.conv_inverted, self.conv_point = as_linear(ff.conv_inverted), as_linear(ff.conv_point)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to the same."""
        wide = self.conv_inverted(hidden_states.movedim(1, -1)).movedim(-1, 1)
        states, gate = self.conv_depth(self.nonlinearity(wide)).chunk(2, dim=1)
        gated = states * self.nonlinearity(gate)
        return self.conv_point(gated.movedim(1, -1)).movedim(-1, 1)


class PointwiseTransformer2DModel(LadderTransformer2DModel):
    """The diffusion transformer with linear layers for the 1 x 1 convolutions of SANA's feed-forward.

    They are half of its weights, and what quantises knows linear layers only. Parameters have the same names,
    and these weights two dimensions.
    """

    @functools.wraps(LadderTransformer2DModel.__init__)  # diffusers reads the configuration's keys off it
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for block in self.transformer_blocks:
            block.ff = PointwiseGLU(block.ff)


def as_linear(layer: nn.Conv2d) -> nn.Linear:
    """The same layer, with the same weights, for channels last."""
    linear = nn.Linear(layer.in_channels, layer.out_channels, bias=layer.bias is not None, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach()[:, :, 0, 0], requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        linear.bias = layer.bias
    return linear


def check_config(config: Any) -> PipelineQuantizationConfig:
    """A configuration for parts that can be quantised; where it names none, for all of these.

    Raises:
        ValueError: it is another kind of thing, or names other parts or what cannot quantise them.
    """
    if not isinstance(config, PipelineQuantizationConfig):
        raise ValueError(
            f"quantization_config is a {type(config).__name__}; give diffusers' PipelineQuantizationConfig, "
            "such as PipelineQuantizationConfig(quant_mapping={'mllm': …, 'transformer': …})."
        )
    others = set(config.quant_mapping or config.components_to_quantize or PARTS) - set(PARTS)
    if others:
        raise ValueError(
            f"quantization_config names {', '.join(sorted(others))}; of this model {' and '.join(PARTS)} can "
            "be quantised."
        )
    for part, own in (config.quant_mapping or {}).items():
        library, found = LIBRARIES[part], type(own).__module__.partition(".")[0]
        if getattr(own, "quant_method", None) == "gguf":
            raise ValueError(
                f"The quantization_config of {part} is for a file in GGUF; give it with the file to "
                "LadderTransformer2DModel.from_single_file, and what that returns as transformer=."
            )
        if found != library:
            raise ValueError(
                f"The quantization_config of {part} is the {type(own).__name__} of {found}; take that of "
                f"{library}, whose model the {part} is."
            )
    if config.quant_mapping is None and not config.components_to_quantize:
        config = copy.copy(config)
        config.components_to_quantize = list(PARTS)
    return config


def takes_torchao(config: PipelineQuantizationConfig) -> bool:
    """Whether the transformer is quantised by torchao, or not at all; others are diffusers' own affair."""
    wanted = config._resolve_quant_config(is_diffusers=True, module_name="transformer")
    return wanted is None or type(wanted).__name__ == "TorchAoConfig"


def prepare_saving(parts: Mapping[str, Any]) -> None:
    """Let quantised weights be written.

    Raises:
        ValueError: some are quantised in a way that would not be read back as they are.
    """
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            continue
        if getattr(part, "is_loaded_in_4bit", False) and part.device.type == "cpu":
            raise ValueError(
                f"The {name} is in 4 bits on a CPU, from where bitsandbytes does not write what it reads "
                "back; save the model as it was, and quantise it as it loads."
            )
        own = getattr(part, "hf_quantizer", None) is None
        if own and any(is_traceable_wrapper_subclass(parameter) for parameter in part.parameters()):
            raise ValueError(
                f"The weights of the {name} were quantised in place, and nothing says how to write them; "
                "load the model with quantization_config= and save that."
            )
        if not own and hasattr(part, "_weight_conversions"):
            # transformers notes how it read a quantised file, and knows no way back; the names are the same
            del part._weight_conversions


def quantise(parts: Mapping[str, Any], config: PipelineQuantizationConfig) -> dict[str, nn.Module]:
    """The parts that a configuration names, quantised.

    Args:
        parts: of a pipeline; their weights may be views onto files, of which one after the other is read.
        config: that :func:`check_config` and :func:`takes_torchao` let pass.
    """
    found: dict[str, nn.Module] = {}
    wanted = config._resolve_quant_config(is_diffusers=False, module_name="mllm")
    if wanted is not None and parts.get("mllm") is not None:
        mllm = parts["mllm"]
        found["mllm"] = (
            type(mllm)
            .from_pretrained(
                None,
                config=mllm.config,
                state_dict=mllm.state_dict(),
                quantization_config=wanted,
                dtype=mllm.dtype,
            )
            .requires_grad_(False)
        )
    wanted = config._resolve_quant_config(is_diffusers=True, module_name="transformer")
    if wanted is not None and parts.get("transformer") is not None:
        found["transformer"] = quantise_transformer(parts["transformer"], wanted)
    return found


def quantise_transformer(transformer: LadderTransformer2DModel, config: Any) -> PointwiseTransformer2DModel:
    """The transformer with weights that torchao keeps, as diffusers would have loaded it.

    Args:
        transformer: its weights may be views onto a file.
        config: diffusers' TorchAoConfig.
    """
    from diffusers.quantizers.auto import DiffusersAutoQuantizer
    from torchao.quantization import quantize_

    quantiser = DiffusersAutoQuantizer.from_config(config)
    quantiser.validate_environment()
    settings = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        pointwise = PointwiseTransformer2DModel(**settings)
    shapes = {name: tensor.shape for name, tensor in pointwise.state_dict().items()}
    weights = {name: tensor.view(shapes[name]) for name, tensor in transformer.state_dict().items()}
    pointwise.load_state_dict(weights, assign=True)
    kept = config.modules_to_not_convert or []

    def is_meant(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not any(part in name for part in kept)

    quantize_(pointwise.requires_grad_(False).eval(), config.quant_type, is_meant)
    pointwise.register_to_config(quantization_config=config)
    pointwise.hf_quantizer = quantiser  # by which save_pretrained knows how
    return pointwise
