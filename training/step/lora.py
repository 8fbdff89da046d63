"""LoRA of the diffusion transformer: trained with peft, written for the loaders of ComfyUI."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from ...core.paths import user_path
from ...core.transformer import LadderTransformer2DModel

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of both attentions of every block
ADAPTER = "default"
PREFIX = "diffusion_model."  # what ComfyUI calls the diffusion model; it finds no other names


def add_lora(
    transformer: LadderTransformer2DModel,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
) -> None:
    """Freeze a transformer and put pairs of trainable float32 matrices beside its linear layers.

    Convolutions of one latent, as SANA's feed-forward layers have them, are linear layers too.

    A layer's output becomes W x + alpha / rank * B A x, with A ``[rank, in]`` drawn and B ``[out, rank]``
    zero. Queries and connector are not touched: a LoRA has to work on the model as everybody has it.

    Args:
        transformer: changed in place; its own weights keep their type.
        rank: of the matrices.
        alpha: numerator of their weight.
        dropout: share of their inputs that is dropped.
        targets: names of linear layers, or the ends of names.
        seed: same seed, same first values.

    Raises:
        ValueError: a target that names no linear layer, or also other layers.
    """
    for target in targets:
        named = [
            module
            for name, module in transformer.named_modules()
            if name == target or name.endswith(f".{target}")
        ]
        if not named or not all(map(is_linear, named)):
            raise ValueError(
                f"train.lora.targets has {target}, which names no linear layers of the DiT; "
                f"the default is {', '.join(TARGETS)}."
            )
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config, ADAPTER)
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name
            parameter.data = parameter.data.float()  # peft gives them the type of the layer


def is_linear(module: nn.Module) -> bool:
    """Whether a layer multiplies every position by one matrix."""
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    return pointwise or isinstance(module, nn.Linear)


@contextmanager
def without_lora(transformer: LadderTransformer2DModel) -> Iterator[None]:
    """Compute as if the matrices were not there; without any, as ever."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer._disable_adapters = True  # peft's enable_adapters(False) would freeze the matrices too
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merge_lora(transformer: LadderTransformer2DModel) -> None:
    """Add the matrices to the weights that they stand beside, and take them away."""
    transformer.fuse_lora()
    transformer.unload_lora()


def save_lora(
    transformer: LadderTransformer2DModel,
    path: str | Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the matrices as one safetensors file that ComfyUI's own LoRA loaders apply.

    For every layer: ``diffusion_model.<name>.lora_A.weight`` ``[rank, in]``, ``.lora_B.weight``
    ``[out, rank]`` and the number ``.alpha``, which ComfyUI divides by the rank.

    Args:
        transformer: one that :func:`add_lora` changed, its parameters whole.
        path: a file that is not there yet, ending in ``.safetensors``.
        metadata: about the training, written into the file's header.
        dtype: of the matrices, None keeps theirs.

    Raises:
        ValueError: a file is there already, its name ends otherwise, or the transformer has no LoRA.
    """
    path = check_lora_path(path)
    tensors = {}
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            for kind in ("lora_A", "lora_B"):
                weight = getattr(module, kind)[ADAPTER].weight.detach()
                tensors[f"{PREFIX}{name}.{kind}.weight"] = weight.to("cpu", dtype).contiguous()
            alpha = torch.tensor(float(module.lora_alpha[ADAPTER]))
            tensors[f"{PREFIX}{name}.alpha"] = alpha
    if not tensors:
        raise ValueError("The diffusion transformer has no LoRA to save; train one with train.parts=lora.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        save_file(tensors, unfinished, metadata={"format": "pt", **metadata})
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def check_lora_path(path: str | Path) -> Path:
    """The absolute path of a LoRA to write. Raises ValueError if it cannot be written there."""
    path = user_path(path).absolute()
    if path.suffix != ".safetensors":
        raise ValueError(f"A LoRA is one file; give a name that ends in .safetensors and not {path}.")
    if path.exists():
        raise ValueError(f"{path} is there already; give another path, or remove it first.")
    return path
