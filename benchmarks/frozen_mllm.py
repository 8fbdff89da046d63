"""What 8 bits for the frozen language model change (``base.mllm_dtype``), and what main memory costs.

    python benchmarks/frozen_mllm.py [--turns N] [--divide 8]

Two models: the embedded nano model, on pictures that it draws itself, and one of random weights in released
depth (36 layers, 20 blocks) with widths divided by ``--divide``, on random latents. The same samples, noise
and noise levels go through the model as it is, with int8 and with fp8 weights (torchao), and as it is from
main memory (``train.offload``). Printed are the bytes of the language model, the loss, how far the losses of
samples and the gradients of all that is trained are from those of the model as it is, and the CPU time of
forward and backward, in turns, as a multiple of it. float32, one thread; ``pip install torchao`` first.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tbac_uniimage.core import LadderPipeline, load_parts
from tbac_uniimage.core.checkpoints import LadderParts
from tbac_uniimage.core.inputs import LadderInputs
from tbac_uniimage.shell.commands import EMBEDDED
from tbac_uniimage.training.run import frozen
from tbac_uniimage.training.step.trainee import LadderTrainee
from torch import Tensor
from train_step import make_batch, small_model

COLOURS, THINGS = ("red", "blue", "green", "yellow"), ("panda", "car", "apple", "rocket")
SAMPLES = 16
CPU = torch.device("cpu")


@dataclass
class Batch:
    """What goes through a model."""

    inputs: LadderInputs
    latents: Tensor
    noise: Tensor
    u: Tensor


def main() -> None:
    """Print a table of each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--divide", type=int, choices=(8, 16), default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("nano")
    table(*nano(), options.turns)
    parts = small_model(options.divide, CPU)
    batch = make_batch(parts, 4, True, CPU)
    print(f"random weights, released depth, widths / {options.divide}")
    table(parts, Batch(batch.inputs, batch.latents, batch.noise, batch.u), options.turns)


def nano() -> tuple[LadderParts, Batch]:
    """The embedded model, and pictures that it draws with their texts."""
    parts = load_parts(EMBEDDED, dtype=torch.float32)
    pipeline = LadderPipeline(**vars(parts))
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"a {thing} on a {colour} background" for thing in THINGS for colour in COLOURS]
    draw = torch.Generator().manual_seed(0)
    latents = pipeline(
        prompts, num_inference_steps=10, guidance_scale=3, output_type="latent", generator=draw
    ).images
    noise = torch.randn(latents.shape, generator=draw)
    inputs = LadderTrainee(parts).encoder.tokenize(prompts)
    return parts, Batch(inputs, latents, noise, (torch.arange(SAMPLES) + 0.5) / SAMPLES)


def variants(parts: LadderParts) -> dict[str, LadderParts]:
    """The model in all the ways, which share what is trained."""
    found = {"as it is": parts}
    for kind in frozen.CONFIGS:
        own = replace(parts, mllm=copy.deepcopy(parts.mllm))
        frozen.quantise(own.mllm.model.language_model, kind)
        found[kind] = own
    found["main memory"] = replace(parts, mllm=copy.deepcopy(parts.mllm))
    frozen.offload(found["main memory"].mllm, CPU)
    return found


def table(parts: LadderParts, batch: Batch, turns: int) -> None:
    """A line of every way."""
    parts.mllm.requires_grad_(False)
    bytes_of = {name: language_bytes(own) for name, own in variants(parts).items()}
    steps = {name: step_of(own, batch) for name, own in variants(parts).items()}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            started = time.thread_time()
            results[name] = step()
            times[name].append(time.thread_time() - started)
    losses, gradient = results["as it is"]
    for name, (found, own) in results.items():
        ratio = found / losses - 1
        cosine = torch.cosine_similarity(own.double(), gradient.double(), 0).item()
        slower = statistics.median(a / b for a, b in zip(times[name], times["as it is"], strict=True))
        print(
            f"  {name:12} {bytes_of[name] / 2**20:8.1f} MiB   loss {found.mean():.6f}, {ratio.mean():+.2%} "
            f"(a sample at most {ratio.abs().max():.2%})   1 - cosine of gradients {1 - cosine:.1e}   "
            f"{slower:.2f} x the time",
            flush=True,
        )


def step_of(parts: LadderParts, batch: Batch) -> Callable[[], tuple[Tensor, Tensor]]:
    """Forward and backward of a batch: losses ``[batch]``, and all gradients in one row."""
    trainee = LadderTrainee(parts)
    trainee.encoder.gradient_checkpointing = True

    def step() -> tuple[Tensor, Tensor]:
        trainee.zero_grad()
        losses = trainee(batch.inputs, batch.latents, batch.noise, batch.u)
        losses.mean().backward()
        grads = [p.grad.flatten() for p in trainee.parameters() if p.grad is not None]
        return losses.detach(), torch.cat(grads).clone()

    return step


def language_bytes(parts: LadderParts) -> int:
    """Of the language model on the device."""
    total = 0
    for parameter in parts.mllm.model.language_model.parameters():
        names = getattr(parameter, "tensor_data_names", ()) or ()
        more = getattr(parameter, "optional_tensor_data_names", ()) if names else ()
        tensors = [getattr(parameter, name) for name in (*names, *more)] or [parameter]
        total += sum(0 if t is None or t.is_meta else t.numel() * t.element_size() for t in tensors)
    return total


if __name__ == "__main__":
    main()
