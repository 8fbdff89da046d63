"""The training loop of the base models: one recipe, one function, resumable.

What a step learns from is a function of the recipe's seed and the step's number, so a stage that was stopped
and goes on sees what an uninterrupted one sees.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...recipe.recipe_file import explain, override, read_settings
from ...recipe.settings import Section
from ..files import replace_file

SAVE_EVERY = 120.0  # seconds
REPORT_EVERY = 200  # steps
STATE = "state.safetensors"


class StageRecipe(Section):
    """How one of the base models is trained.

    Attributes:
        stage: which one.
        run: folder of its state; made.
        tokenizer: folder of the tokenizer; trained there if it is missing. Of vision and language only.
        vision: run of the vision tower that the language stage starts from; beside ``init`` it takes the
            place of its tower and stays as it is.
        init: run of the language stage that it starts from.
        grounding: how much the language stage minds where an instruction's nouns lie in the picture.
        size: side of the pictures in pixels. Of the autoencoder only: the MLLM sees 64 pixels of any picture,
            as the released one sees 448 of 512.
        seed: of everything random.
        steps: optimizer steps.
        batch: samples of a step; by task for the language stage.
        learning_rate: after ``warmup`` steps; it falls as a cosine over the last ``decay`` of all steps.
        weight_decay: of matrices.
        ema: decay of the averaged weights, which later stages take; null keeps none.
        threads: of the CPU.
    """

    stage: Literal["autoencoder", "vision", "language"]
    run: str = Field(min_length=1)
    tokenizer: str | None = None
    vision: str | None = None
    init: str | None = None
    grounding: float = Field(0.0, ge=0)
    size: Literal[64, 128] = 64
    seed: int = 0
    steps: int = Field(gt=0)
    batch: int | dict[str, int]
    learning_rate: float = Field(gt=0)
    warmup: int = Field(100, gt=0)
    decay: float = Field(1.0, gt=0, le=1)
    weight_decay: float = Field(1e-4, ge=0)
    ema: float | None = Field(None, gt=0, lt=1)
    threads: int = Field(1, gt=0)


def load_stage_recipe(path: Path, overrides: list[str]) -> StageRecipe:
    """A recipe with the command line's ``key=value``.

    Raises:
        ValueError: not a file, not YAML, an unknown key, or a value that does not fit.
    """
    settings = read_settings(path)
    changed = override(settings, overrides)
    try:
        return StageRecipe.model_validate(settings)
    except ValidationError as error:
        raise ValueError(explain(error, StageRecipe, path, changed)) from error


def autocast() -> AbstractContextManager:
    """bfloat16 where it is faster: matrix products and convolutions."""
    return torch.autocast("cpu", torch.bfloat16)


def learning_rate(recipe: StageRecipe, step: int) -> float:
    """Learning rate of a step, counted from 0."""
    remaining = min(1.0, (1 - step / recipe.steps) / recipe.decay)
    cosine = 0.5 - 0.5 * math.cos(math.pi * remaining)
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * max(0.01, cosine)


def trained(models: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter that takes a gradient, by model and name."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, model in models.items()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_state(
    folder: Path, models: dict, optimizer: torch.optim.Optimizer, averages: dict[str, Tensor], done: dict
) -> None:
    """Write weights, averages, moments and counters as one file."""
    tensors = {f"model/{k}.{n}": t for k, model in models.items() for n, t in model.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in averages.items()}
    for name, parameter in trained(models).items():
        for moment, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{moment}/{name}"] = tensor
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"progress": json.dumps(done)}
    replace_file(lambda partial: save_file(tensors, partial, metadata=metadata), folder / STATE)


def read_progress(folder: Path) -> dict[str, Any]:
    """Steps, samples and minutes of a stage so far."""
    with safe_open(folder / STATE, "pt") as state:
        return json.loads(state.metadata()["progress"])


def load_models(state: dict[str, Tensor], models: dict[str, nn.Module], averaged: bool = False) -> None:
    """Put a stage's weights into its models, the averaged ones where asked for and kept."""
    for prefix, model in models.items():
        kinds = ("model", "average") if averaged else ("model",)
        weights = {}
        for start in (f"{kind}/{prefix}." for kind in kinds):
            weights |= {name[len(start) :]: t for name, t in state.items() if name.startswith(start)}
        model.load_state_dict(weights)


def trained_state(run: str | Path) -> Path:
    """File of a stage's state.

    Raises:
        ValueError: it has not been trained yet.
    """
    path = Path(run) / STATE
    if not path.exists():
        raise ValueError(f"{path} is missing: train that stage first, or name the folder of its run.")
    return path


def load_stage(run: str | Path, models: dict[str, nn.Module]) -> dict[str, Any]:
    """Load a stage's weights, averaged if it keeps averages. Returns its counters.

    Raises:
        ValueError: it has not been trained yet.
    """
    load_models(load_file(trained_state(run)), models, averaged=True)
    return read_progress(Path(run))


def train(
    recipe: StageRecipe,
    models: dict[str, nn.Module],
    step: Callable[[int], Tensor],
    evaluate: Callable[[], str],
) -> dict[str, Any]:
    """Run a stage to its end, going on where its folder left off. Returns the counters.

    Args:
        recipe: the stage's.
        models: what is saved; parameters that take a gradient are trained.
        step: loss of the step of a number; all that is random in it follows from the number.
        evaluate: a short report, called with the averaged weights in place if there are any.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    torch.set_num_threads(recipe.threads)
    folder, parameters = Path(recipe.run), trained(models)
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    averages = {name: p.detach().clone() for name, p in parameters.items()} if recipe.ema else {}
    done = {"steps": 0, "samples": 0, "minutes": 0.0}
    if (folder / STATE).exists():
        state = load_file(folder / STATE)
        load_models(state, models)
        for name in averages:
            averages[name].copy_(state[f"average/{name}"])
        for name, tensor in state.items():
            if name.startswith("optimizer/"):
                _, moment, parameter = name.split("/", 2)
                optimizer.state[parameters[parameter]][moment] = tensor
        done = read_progress(folder)
    samples = recipe.batch if isinstance(recipe.batch, int) else sum(recipe.batch.values())
    saved = counted = time.monotonic()
    running = None
    while done["steps"] < recipe.steps:
        torch.manual_seed(recipe.seed * 1_000_003 + done["steps"])
        rate = learning_rate(recipe, done["steps"])
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = step(done["steps"])
        if not loss.isfinite():
            raise FloatingPointError(f"The loss of {folder} is {loss} at step {done['steps']}.")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        done["steps"] += 1
        done["samples"] += samples
        now = time.monotonic()
        done["minutes"], counted = done["minutes"] + (now - counted) / 60, now
        if averages:
            keep = min(recipe.ema, (1 + done["steps"]) / (10 + done["steps"]))
            torch._foreach_lerp_(list(averages.values()), [p.detach() for p in parameters.values()], 1 - keep)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if done["steps"] % REPORT_EVERY == 0:
            report = with_averages(parameters, averages, evaluate)
            print(
                f"{recipe.stage} step {done['steps']} of {recipe.steps}, {done['minutes']:.1f} min, "
                f"{done['samples'] / done['minutes'] / 60:.0f} samples/s, loss {running:.4f}, "
                f"rate {rate:.1e}: {report}",
                flush=True,
            )
        if now - saved > SAVE_EVERY:
            save_state(folder, models, optimizer, averages, done)
            saved = now
    save_state(folder, models, optimizer, averages, done)
    return done


def with_averages(parameters: dict[str, nn.Parameter], averages: dict, evaluate: Callable[[], str]) -> str:
    """Call ``evaluate`` with the averaged weights in place of the current ones."""
    current = {name: parameters[name].detach().clone() for name in averages}
    for name, tensor in averages.items():
        parameters[name].data.copy_(tensor)
    try:
        return evaluate()
    finally:
        for name, tensor in current.items():
            parameters[name].data.copy_(tensor)
