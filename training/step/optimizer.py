"""What one optimizer step needs: parameter groups, AdamW, its state as tensors, schedule, norms, clipping.

Works on plain tensors and on the DTensors of FSDP2. Whatever is said to be collective must be called on all
processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# offsets and embeddings, factors of no product
UNDECAYED = ("queries", "layer_logits", "scale_shift_table")
CONSTANTS = ("qmap1", "qmap2")  # of the 8-bit optimizer: equal for all parameters, never written
SAMPLED = 4096  # values per tensor that UpdateRMS looks at


class OptimizerSettings(Protocol):
    """The part of a recipe's ``train`` section that is read here."""

    optimizer: str  # adamw | adamw_8bit
    learning_rate: float
    betas: tuple[float, float]


def parameter_groups(
    module: nn.Module, weight_decay: float, rates: Mapping[str, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Group the parameters that take a gradient by whether they decay, and by how fast they learn.

    Weight decay is for the factors of matrix products and convolutions. Gains and biases of any layer (fewer
    than two dimensions), weights of normalisations, scale-shift tables and queries do not decay.

    Args:
        module: all that is trained.
        weight_decay: of those that decay.
        rates: factors of the learning rate, by the name of a layer or of a part of the model.

    Returns:
        Groups ``{"params": …, "weight_decay": …, "factor": …}``, those that decay first, parameters in the
        order of the module. ``factor`` is what a step's rate is multiplied by.

    Raises:
        ValueError: a rate of nothing that is trained.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    unused = set(rates)
    for place, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_norm = "Norm" in type(owner).__name__
                exempt = parameter.ndim < 2 or is_norm or name in UNDECAYED
                named = [part for part in (*place.split("."), name) if part in rates]
                unused -= set(named)
                factor = rates[named[-1]] if named else 1.0  # the innermost name counts
                groups.setdefault((exempt, factor), []).append(parameter)
    if unused:
        raise ValueError(
            f"train.rates names {', '.join(sorted(unused))}, and nothing that is trained is called so; name "
            "layers as the model does, such as source_embed."
        )
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[0] else weight_decay, "factor": key[1]}
        for key in sorted(groups)
    ]


def make_optimizer(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or the same with 8-bit moments (Dettmers et al. 2022).

    Args:
        groups: of :func:`parameter_groups`.
        settings: name, peak learning rate and betas.

    Raises:
        ValueError: unknown name, or nothing to train.
        ImportError: 8 bits are asked for and bitsandbytes is not installed.
    """
    if not groups:
        raise ValueError("There is nothing to train: no parameter takes a gradient; check train.parts.")
    options = {"lr": settings.learning_rate, "betas": tuple(settings.betas)}
    if settings.optimizer == "adamw":
        on_gpu = groups[0]["params"][0].device.type == "cuda"
        return torch.optim.AdamW(groups, **options, **({"fused": True} if on_gpu else {"foreach": True}))
    if settings.optimizer == "adamw_8bit":
        return adamw_8bit(groups, options)
    raise ValueError(f"train.optimizer is {settings.optimizer!r}; it must be adamw or adamw_8bit.")


def adamw_8bit(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW8bit, whose step counters are tensors like all other state."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            "train.optimizer=adamw_8bit needs bitsandbytes: pip install bitsandbytes, or use adamw."
        ) from error

    class CheckpointableAdamW8bit(AdamW8bit):
        def init_state(self, group: dict, p: Tensor, gindex: int, pindex: int) -> None:
            super().init_state(group, p, gindex, pindex)
            self.state[p]["step"] = torch.tensor(float(self.state[p]["step"]))

        def update_step(self, group: dict, p: Tensor, gindex: int, pindex: int) -> None:
            state, counter = self.state[p], self.state[p]["step"]
            state["step"] = int(counter)  # its kernels take nothing else
            super().update_step(group, p, gindex, pindex)
            state["step"] = counter.fill_(state["step"])

    return CheckpointableAdamW8bit(groups, **options)


def learning_rate(step: int, steps: int, peak: float, floor: float, warmup: int) -> float:
    """Rate of a step: linear warm-up to the peak, then a cosine to the floor.

    Args:
        step: 0 … steps - 1. The peak is reached at ``warmup``; without warm-up at step 0.
        steps: optimizer steps of the run; the floor would be reached at this one.
        peak: highest rate.
        floor: rate at the end.
        warmup: steps of the warm-up; step 0 already has ``peak / (warmup + 1)``.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_tensors(
    named_parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimizer's state as live tensors ``optimizer/<parameter>/<state>``.

    Writing into these tensors in place, into a fresh optimizer too, restores it exactly: moments, block
    maxima of 8-bit moments, and step counters. State that does not exist yet is made, with no effect on
    weights, moments and gradients.

    Args:
        named_parameters: the trained parameters; all of them in ``optimizer``.
        optimizer: of :func:`make_optimizer`.
    """
    make_state(optimizer)
    return {
        f"optimizer/{name}/{key}": value
        for name, parameter in named_parameters.items()
        for key, value in optimizer.state[parameter].items()
        if key not in CONSTANTS
    }


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter without state the state it would have before its first step."""
    places = [
        (group, parameter, i, j)
        for i, group in enumerate(optimizer.param_groups)
        for j, parameter in enumerate(group["params"])
        if not optimizer.state.get(parameter)
    ]
    if hasattr(optimizer, "init_state"):  # bitsandbytes
        for group, parameter, i, j in places:
            optimizer.init_state(group, parameter, i, j)
    elif places:
        step_with_zeros(optimizer, [parameter for _, parameter, _, _ in places])


@torch.no_grad()
def step_with_zeros(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Let torch make the state: a step with zero gradients and rate, which changes only the counters."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in trained]
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in trained:
        parameter.grad = None  # of parameters that have their state
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for parameter in parameters:
        optimizer.state[parameter]["step"].zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient


def norm_of(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm over all values, float32 scalar. Collective where there are DTensors."""
    whole = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    sharded = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    norms = []
    if whole:
        norms.append(torch.nn.utils.get_total_norm(whole).float())
    if sharded:
        norms.append(torch.nn.utils.get_total_norm(sharded).full_tensor().float())
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


@torch.no_grad()
def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together, float32 scalar on their device. Collective for sharded parameters.

    Infinite or NaN where a gradient is, and infinite beyond what float32 squares can hold (1e19).
    """
    return norm_of([parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def part_norms(named_parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Gradient norms of queries, connector and transformer, or of the LoRA. Collective if sharded."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in named_parameters.items():
        if parameter.grad is not None:
            parts.setdefault(part_of(name), []).append(parameter.grad)
    norms = {part: norm_of(gradients) for part, gradients in parts.items()}
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, by its name in ``LadderTrainee``."""
    if ".lora_" in name:
        return "lora"
    return "queries" if name.endswith("queries") else name.split(".", 1)[0]


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], norm: float | Tensor, limit: float) -> None:
    """Scale all gradients so that their common norm, given as ``norm``, is at most ``limit``."""
    scale = limit / (float(norm) + 1e-6)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if scale < 1 and gradients:
        torch._foreach_mul_(gradients, scale)


class UpdateRMS:
    """Root mean square of what a step adds to the weights: an estimate, for any optimizer.

    Looks at up to 4,096 evenly strided values of every tensor (of every local shard), copied here and
    compared by :meth:`value`; tensors count by their size.

    Args:
        parameters: before the step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.before = [values.clone() for values in self.sampled()]

    def sampled(self) -> list[Tensor]:
        """Views of the values looked at."""
        views = []
        for parameter in self.parameters:
            values = local(parameter).reshape(-1)
            views.append(values[:: max(1, math.ceil(values.numel() / SAMPLED))])
        return views

    @torch.no_grad()
    def value(self) -> float:
        """The estimate, after the step. Collective for sharded parameters."""
        total = torch.zeros(2, dtype=torch.float32, device=self.before[0].device)  # squares, values
        for parameter, before, after in zip(self.parameters, self.before, self.sampled(), strict=True):
            if before.numel():
                size = local(parameter).numel()
                total[0] += (after - before).float().square().mean() * size
                total[1] += size
        if dist.is_initialized() and any(isinstance(p, DTensor) for p in self.parameters):
            dist.all_reduce(total)
        squares, values = total.tolist()
        return math.sqrt(squares / values)


def local(parameter: Tensor) -> Tensor:
    """The values that this process holds."""
    return parameter.detach().to_local() if isinstance(parameter, DTensor) else parameter.detach()
