"""The training loop that every stage of the nano model shares: timed, resumable, one function.

A stage is a name, a folder and a budget in minutes. Its state (weights, optimizer, averaged weights,
samples and minutes so far) is written to `<folder>/<stage>.safetensors` and `.json` once a minute and at
the end, each to a temporary name first, so a stage that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SAVE_EVERY = 60.0  # seconds
REPORT_EVERY = 200  # steps


@dataclass(frozen=True)
class Stage:
    """What one call of `train` is asked to do.

    `minutes` is the whole budget of the stage, including what earlier, interrupted calls used. The
    learning rate warms up over `warmup` steps, stays, and falls as a cosine over the last `decay` of the
    budget.
    """

    name: str
    folder: Path
    minutes: float
    batch: int
    learning_rate: float
    weight_decay: float = 1e-4
    warmup: int = 50
    decay: float = 1.0
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    threads: int = 1
    seed: int = 0


def autocast() -> AbstractContextManager:
    """bfloat16 where it is faster: matrix products and convolutions."""
    return torch.autocast("cpu", torch.bfloat16)


def learning_rate(stage: Stage, step: int, progress: float) -> float:
    """Learning rate at a step, `progress` of the budget (0..1) being used."""
    remaining = min(1.0, (1 - progress) / stage.decay) if stage.decay else 1.0
    cosine = 0.5 - 0.5 * math.cos(math.pi * max(0.0, remaining))
    return stage.learning_rate * min(1.0, (step + 1) / stage.warmup) * max(0.01, cosine)


def replace_file(write: Callable[[Path], None], target: Path) -> None:
    """Let `write` fill a temporary file beside `target`, then rename it."""
    partial = target.with_name(target.name + ".partial")
    write(partial)
    os.replace(partial, target)


def trained(models: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter that takes a gradient, by model and name."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, model in models.items()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_state(
    stage: Stage, models: dict, optimizer: torch.optim.Optimizer, averages: dict, done: dict
) -> None:
    """Write weights, averages, both moments of AdamW and the counters."""
    tensors = {f"model/{k}.{n}": t for k, model in models.items() for n, t in model.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in averages.items()}
    for name, parameter in trained(models).items():
        for moment, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{moment}/{name}"] = tensor
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    stage.folder.mkdir(parents=True, exist_ok=True)
    path = stage.folder / f"{stage.name}.safetensors"
    metadata = {"progress": json.dumps(done)}  # in the same file: weights and counters are never out of step
    replace_file(lambda partial: save_file(tensors, partial, metadata=metadata), path)
    replace_file(lambda partial: partial.write_text(json.dumps(done)), path.with_suffix(".json"))


def load_state(stage: Stage, models: dict, optimizer: torch.optim.Optimizer, averages: dict) -> dict:
    """Restore what `save_state` wrote; returns the counters, all zero if there is nothing yet."""
    path = stage.folder / f"{stage.name}.safetensors"
    if not path.exists():
        return {"steps": 0, "samples": 0, "minutes": 0.0}
    state = load_file(path)
    load_models(state, models)
    parameters = trained(models)
    for name in averages:
        averages[name].copy_(state[f"average/{name}"])
    for name, tensor in state.items():
        if name.startswith("optimizer/"):
            _, moment, parameter = name.split("/", 2)
            optimizer.state[parameters[parameter]][moment] = tensor
    return read_progress(path)


def read_progress(path: Path) -> dict:
    """Counters stored in a stage's file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as state:
        return json.loads(state.metadata()["progress"])


def load_models(state: dict[str, Tensor], models: dict[str, nn.Module], averaged: bool = False) -> None:
    """Put a stage's weights into its models, the averaged ones where asked for and kept."""
    for prefix, model in models.items():
        start = f"model/{prefix}."
        weights = {name[len(start) :]: t for name, t in state.items() if name.startswith(start)}
        if averaged:
            start = f"average/{prefix}."
            weights |= {name[len(start) :]: t for name, t in state.items() if name.startswith(start)}
        model.load_state_dict(weights)


def load_stage(folder: Path, name: str, models: dict[str, nn.Module], averaged: bool = False) -> dict:
    """Load a finished (or running) stage's weights into `models`; returns its counters.

    Raises:
        FileNotFoundError: the stage has not been trained yet.
    """
    path = Path(folder) / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: train the stage {name!r} first")
    load_models(load_file(path), models, averaged)
    return read_progress(path)


def train(
    stage: Stage,
    models: dict[str, nn.Module],
    step: Callable[[int], Tensor],
    evaluate: Callable[[], str],
) -> dict:
    """Run the stage to the end of its budget; returns the counters.

    Args:
        models: what is saved; parameters that take a gradient are trained.
        step: loss of the batch at a position; everything random in it should follow from the position.
        evaluate: a short report, called with the averaged weights in place if the stage keeps them.
    """
    torch.set_num_threads(stage.threads)
    torch.manual_seed(stage.seed)
    parameters = trained(models)
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": stage.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98))
    averages = {name: p.detach().clone() for name, p in parameters.items()} if stage.ema else {}
    done = load_state(stage, models, optimizer, averages)
    began, saved, earlier = time.monotonic(), time.monotonic(), done["minutes"]
    running = None
    while done["minutes"] < stage.minutes:
        torch.manual_seed(stage.seed * 1_000_003 + done["steps"])
        rate = learning_rate(stage, done["steps"], done["minutes"] / stage.minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = step(done["steps"])
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of stage {stage.name!r} is {loss} at step {done['steps']}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        done["steps"] += 1
        done["samples"] += stage.batch
        done["minutes"] = earlier + (time.monotonic() - began) / 60
        if averages:
            keep = min(stage.ema, (1 + done["steps"]) / (10 + done["steps"]))
            torch._foreach_lerp_(list(averages.values()), [p.detach() for p in parameters.values()], 1 - keep)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if done["steps"] % REPORT_EVERY == 0:
            report = with_averages(parameters, averages, evaluate)
            speed = done["samples"] / done["minutes"] / 60
            print(
                f"{stage.name} {done['minutes']:.1f} min, step {done['steps']}, {done['samples']} samples, "
                f"{speed:.0f}/s, loss {running:.4f}, rate {rate:.1e}: {report}",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_EVERY:
            save_state(stage, models, optimizer, averages, done)
            saved = time.monotonic()
    save_state(stage, models, optimizer, averages, done)
    return done


def with_averages(parameters: dict[str, nn.Parameter], averages: dict, evaluate: Callable[[], str]) -> str:
    """Call `evaluate` with the averaged weights in place of the current ones."""
    current = {name: parameters[name].detach().clone() for name in averages}
    for name, tensor in averages.items():
        parameters[name].data.copy_(tensor)
    try:
        return evaluate()
    finally:
        for name, tensor in current.items():
            parameters[name].data.copy_(tensor)
