"""What a run does not train, in little memory: the language model in 8 bits, and weights in main memory."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from accelerate import cpu_offload
from torch import nn

from ..recipe.recipe import Recipe

CONFIGS = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}  # of torchao


def check_quantised(recipe: Recipe) -> None:
    """Raise ValueError if the library that a recipe's ``base.mllm_dtype`` needs is not there."""
    if recipe.base.mllm_dtype and find_spec("torchao") is None:
        raise ValueError(
            f"base.mllm_dtype={recipe.base.mllm_dtype} needs torchao, which is not installed: pip install "
            "torchao."
        )


def quantise(language_model: nn.Module, kind: str) -> None:
    """Keep the weights of all linear layers in 8 bits, a scale a row, in place.

    Values keep their type, embeddings, norms and biases their weights; gradients pass through.

    Args:
        language_model: frozen.
        kind: ``int8``, or ``fp8`` (e4m3).
    """
    from torchao import quantization

    quantization.quantize_(language_model, getattr(quantization, CONFIGS[kind])())


def offload(module: nn.Module, device: torch.device) -> None:
    """Keep the weights of a frozen module in main memory, and bring those of a layer where it is computed.

    A layer gets other tensors each time. What autograd keeps of them stays on the device until the gradient
    has passed, so a module that takes one is only small there if its blocks are checkpointed.
    """
    weights: dict[str, torch.Tensor] = {}
    shared: dict[int, torch.Tensor] = {}  # a tied head is there once
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in shared:
            own = tensor.detach().to("cpu")
            # what is page-locked is copied twice as fast
            shared[id(tensor)] = own.pin_memory() if device.type == "cuda" else own
        weights[name] = shared[id(tensor)]
    cpu_offload(module, device, state_dict=weights)
