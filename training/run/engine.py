"""Processes, devices and precision: accelerate's launcher and DDP, torch's FSDP2.

accelerate starts the processes, picks the device and casts. It wraps for DDP; its own FSDP2 wrapping refuses
CPUs, on which the tests run, and knows no way to gather the keys and values of the rungs apart from their
blocks, so ``fully_shard`` is called here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core.transformer import LadderTransformer2DModel
from ..exits import LOST_PROCESS, Stop
from ..step.trainee import LadderTrainee

Result = TypeVar("Result")
PATIENCE = timedelta(hours=1)  # how long a rank waits for the others: one may be writing samples
# what gloo and torch's store say when the other end of a connection is gone
LOST = re.compile(
    r"Connection (?:closed|reset) by peer|Connection was likely closed|Broken pipe"
    r"|Application timeout caused pair closure"
)


def refuse_deepspeed() -> None:
    """Raise ValueError if accelerate was told to use DeepSpeed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(
            "DeepSpeed cannot be used: it applies every step inside backward, before the gradient-norm "
            "monitor can refuse it; use train.parallel=fsdp2, which shards the same state."
        )


def wanted_parallel(named: str) -> str:
    """``ddp`` or ``fsdp2``; accelerate's own FSDP settings stand for the latter."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return named
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP 1 cannot be used; set fsdp_version: 2 in accelerate's configuration.")
    return "fsdp2"


def start(precision: str) -> Accelerator:
    """The processes that accelerate's launcher made, as one accelerator.

    Args:
        precision: ``bf16`` or ``fp32``; trained weights are float32 with both.
    """
    refuse_deepspeed()
    options = [
        DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        InitProcessGroupKwargs(timeout=PATIENCE),
    ]
    return Accelerator(
        # not said, ranks without a GPU would not know of each other
        cpu=not torch.accelerator.is_available(),
        mixed_precision="bf16" if precision == "bf16" else "no",
        dynamo_backend="no",  # the recipe says what is compiled, not accelerate's configuration
        kwargs_handlers=options,
    )


def wrap(accelerator: Accelerator, trainee: LadderTrainee, parallel: str) -> nn.Module:
    """The module to call: moved to the device, replicated or sharded.

    ``trainee`` stays usable for its parameters; with FSDP2 it is the returned module itself.
    """
    trainee.to(accelerator.device)
    if parallel == "fsdp2" and dist.is_initialized():
        return shard(trainee, accelerator.device.type, accelerator.mixed_precision)
    if accelerator.num_processes > 1:
        return accelerator.prepare_model(trainee)
    return trainee


def shard(trainee: LadderTrainee, device_type: str, precision: str) -> LadderTrainee:
    """Shard the trained parameters over all processes, in place.

    A block is one group. The projections to keys and values are groups of their own: all rungs are
    projected before the first block runs.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        # inputs keep their type: timesteps up to 1000 are not exact in bfloat16
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in trainee.transformer.transformer_blocks:
        for projection in (block.attn2.to_k, block.attn2.to_v, block.attn2.to_v_text):
            if projection is not None:
                fully_shard(projection, mesh=mesh, mp_policy=policy)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(trainee, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(trainee, "within")
    return trainee


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 holds the module's parameters."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


@contextmanager
def mixed_precision(accelerator: Accelerator, checkpoints: bool = False) -> Iterator[None]:
    """The recipe's precision for a forward pass whose backward pass follows.

    In bfloat16 on CPUs without torch's fused attention: on models as small as those that are trained there
    its backward pass takes twice as long as the written-out one's, see ``benchmarks/cpu_attention.py``.
    Not where ``checkpoints`` are computed again: that happens outside, and has to save the same tensors.
    """
    plain = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16" and not checkpoints
    with accelerator.autocast(), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        yield


@contextmanager
def accumulating(module: nn.Module, last: bool) -> Iterator[None]:
    """Reduce gradients over the processes only in the last backward pass of a step.

    FSDP2 reduces in every one: it would have to hold whole gradients otherwise.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def call_within(trainee: LadderTrainee, function: Callable[[], Result]) -> Result:
    """Call a function that uses the parts outside of a training step, whatever holds their weights."""
    if not is_sharded(trainee):
        return function()
    reshard(trainee)
    try:
        return trainee.within(function)
    finally:
        reshard(trainee)  # gathered copies would outlive a change of the weights


def reshard(trainee: nn.Module) -> None:
    """Free all gathered parameters."""
    for module in trainee.modules():
        if is_sharded(module):
            module.reshard()


def by_first(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """What a function returns in the first process, for all of them; a ValueError too.

    For what is read from a disk: another process could see it a moment later, when it has changed.
    """
    outcome = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [function(), None]
        except ValueError as error:
            outcome = [None, error]
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def total(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum over the processes, by way of their devices; on the CPU, as the values are."""
    if not dist.is_initialized():
        return values  # float64, which not every device knows
    summed = values.to(device)
    dist.all_reduce(summed)
    return summed.cpu()


def as_lost_process(error: Exception) -> Stop | None:
    """The sentence for a process whose partner in a collective is gone, None for any other error.

    With NCCL nothing is raised: the launcher ends the other processes.
    """
    found = LOST.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    return Stop(
        f"Another process of the run has ended, or cannot be reached any more ({found[0]}); what it said and "
        "its exit code tell why. The same command goes on from the last checkpoint.",
        LOST_PROCESS,
    )


def compile_blocks(transformer: LadderTransformer2DModel) -> None:
    """Compile the block that all depths share; names of parameters stay as they are."""
    transformer.compile_repeated_blocks()
