"""The judge's training loop: timed and resumable.

The state (weights, both moments of AdamW, samples and minutes so far) is written to
`<folder>/<stage>.safetensors` and `.json` once a minute and at the end, each to a temporary name first, so a
training that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import replace_file

SAVE_EVERY = 60.0  # seconds
REPORT_EVERY = 200  # steps


@dataclass(frozen=True)
class Stage:
    """What one call of `train` is asked to do.

    `minutes` is the whole budget, including what earlier, interrupted calls used. The learning rate warms up
    over `warmup` steps and falls as a cosine over the budget.
    """

    name: str
    folder: Path
    minutes: float
    batch: int
    learning_rate: float
    weight_decay: float
    warmup: int = 50
    threads: int = 1
    seed: int = 0

    @property
    def path(self) -> Path:
        """Where its state lies."""
        return self.folder / f"{self.name}.safetensors"


def autocast() -> AbstractContextManager:
    """bfloat16 where it is faster: matrix products and convolutions."""
    return torch.autocast("cpu", torch.bfloat16)


def learning_rate(stage: Stage, step: int, progress: float) -> float:
    """Learning rate at a step, `progress` of the budget (0..1) being used."""
    cosine = 0.5 - 0.5 * math.cos(math.pi * max(0.0, 1 - progress))
    return stage.learning_rate * min(1.0, (step + 1) / stage.warmup) * max(0.01, cosine)


def trained(models: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter that takes a gradient, by model and name."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, model in models.items()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_state(stage: Stage, models: dict, optimizer: torch.optim.Optimizer, done: dict) -> None:
    """Write weights, both moments of AdamW and the counters."""
    tensors = {f"model/{k}.{n}": t for k, model in models.items() for n, t in model.state_dict().items()}
    for name, parameter in trained(models).items():
        for moment, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{moment}/{name}"] = tensor
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    stage.folder.mkdir(parents=True, exist_ok=True)
    metadata = {"progress": json.dumps(done)}  # in the same file: weights and counters are never out of step
    replace_file(lambda partial: save_file(tensors, partial, metadata=metadata), stage.path)
    replace_file(lambda partial: partial.write_text(json.dumps(done)), stage.path.with_suffix(".json"))


def load_state(stage: Stage, models: dict, optimizer: torch.optim.Optimizer) -> dict:
    """Restore what `save_state` wrote; returns the counters, all zero if there is nothing yet."""
    if not stage.path.exists():
        return {"steps": 0, "samples": 0, "minutes": 0.0}
    state = load_file(stage.path)
    for prefix, model in models.items():
        start = f"model/{prefix}."
        model.load_state_dict({n[len(start) :]: t for n, t in state.items() if n.startswith(start)})
    parameters = trained(models)
    for name, tensor in state.items():
        if name.startswith("optimizer/"):
            _, moment, parameter = name.split("/", 2)
            optimizer.state[parameters[parameter]][moment] = tensor
    with safe_open(stage.path, "pt") as stored:
        return json.loads(stored.metadata()["progress"])


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
        evaluate: a short report.

    Raises:
        FloatingPointError: a loss is not finite.
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
    done = load_state(stage, models, optimizer)
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
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if done["steps"] % REPORT_EVERY == 0:
            speed = done["samples"] / done["minutes"] / 60
            print(
                f"{stage.name} {done['minutes']:.1f} min, step {done['steps']}, {done['samples']} samples, "
                f"{speed:.0f}/s, loss {running:.4f}, rate {rate:.1e}: {evaluate()}",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_EVERY:
            save_state(stage, models, optimizer, done)
            saved = time.monotonic()
    save_state(stage, models, optimizer, done)
    return done
