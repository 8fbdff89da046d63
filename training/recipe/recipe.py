"""Recipes: everything that decides what a run computes, as one validated object."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from .recipe_file import dump_yaml, explain, override, read_settings
from .settings import (
    BaseModels,
    CheckpointSettings,
    DataSettings,
    DistillationSettings,
    LogSettings,
    ModelSettings,
    MonitorRecipe,
    ObjectiveSettings,
    Section,
    Switch,
    Text,
    TrainSettings,
    ValidationSettings,
    Whole,
    check_warmup,
)


class Recipe(Section):
    """A run, up to its data and the number of processes, on neither of which its losses depend.

    Attributes:
        stage: name of the stage; part of what seeds everything.
        run: folder of the run; ``runs/<stage>`` if not given.
        seed: same seed, same run.
        init: model to start from: pipeline folder, released checkpoint, hub id or checkpoint of a run.
        init_ema: take that checkpoint's averaged weights.
        base: pretrained parts, where ``init`` is null.
        model: what of the model the run decides.
        distillation: to few steps, in place of ``objective``, where its steps are given.
    """

    stage: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    run: Text = ""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    init: Text | None = None
    init_ema: Switch = False
    base: BaseModels = BaseModels()
    model: ModelSettings = ModelSettings()
    data: DataSettings
    objective: ObjectiveSettings = ObjectiveSettings()
    distillation: DistillationSettings = DistillationSettings()
    train: TrainSettings
    monitor: MonitorRecipe = MonitorRecipe()
    checkpoint: CheckpointSettings = CheckpointSettings()
    validation: ValidationSettings = ValidationSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="before")
    @classmethod
    def name_run(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("run") is None:
            return values | {"run": f"runs/{values.get('stage')}"}
        return values

    @model_validator(mode="after")
    def check(self) -> Recipe:
        if self.init_ema and self.init is None:
            raise ValueError("init_ema is true but init is null; name the checkpoint to take averages from.")
        if self.distils and self.init is None:
            raise ValueError(
                "distillation.steps is given but init is null; name the trained model that shall need fewer "
                "steps."
            )
        return self

    @property
    def distils(self) -> bool:
        """Whether it is a distillation to few steps, and not flow matching."""
        return self.distillation.steps is not None


def total_steps(train: TrainSettings, steps_per_epoch: int) -> int:
    """Optimizer steps of a run. Raises ValueError if its warm-up is longer."""
    steps = train.epochs * steps_per_epoch if train.steps is None else train.steps
    check_warmup(train.warmup, steps)
    return steps


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; what the command line says wins.

    Args:
        path: YAML file.
        overrides: ``key.sub=value``, values in YAML; ``data.sets.0.weight=2`` reaches into a list. Of
            ``train.steps`` and ``train.epochs``, one that is given here replaces the other one of the file.

    Raises:
        ValueError: one sentence with the file, the dotted key and what is wrong with it.
    """
    settings = read_settings(Path(path))
    changed = override(settings, overrides)
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if f"train.{given}" in changed and f"train.{other}" not in changed:
            if settings["train"][given] is not None:
                settings["train"][other] = None
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise ValueError(explain(error, Recipe, path, changed)) from error


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every key with its value."""
    return dump_yaml(recipe.model_dump(mode="json"))


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe, whole or not at all; :func:`load_recipe` reads it back equal."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(recipe_yaml(recipe))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# what may change when a run is resumed: it decides where, how fast and how well watched, not what comes out
FREE = (
    "run",
    "data.max_bad",
    "data.workers",
    "data.cache",
    "train.micro_batch",
    "train.parallel",
    "train.profile",
    "train.gradient_checkpointing",
    "train.offload",
    "train.compile",
    "checkpoint",
    "validation",
    "log",
)
BOUND = ("validation.held_out",)  # says what is trained on


def differences(saved: Recipe, given: Recipe) -> list[str]:
    """What keeps ``given`` from going on with a run of ``saved``: ``train.batch: 128, now 64``.

    A run may become longer. Folders of data sets are compared by their last name: data may have moved.
    Whether they are the same data, their fingerprints say.
    """
    before, after = dict(flat(comparable(saved))), dict(flat(comparable(given)))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    for key in lengthened(saved, given):
        keys.remove(key)
    return [
        f"{key}: {before.get(key, 'absent')}, now {after.get(key, 'absent')}" for key in keys if decides(key)
    ]


def lengthened(saved: Recipe, given: Recipe) -> list[str]:
    """Which of ``train.steps`` and ``train.epochs`` is given and higher than a run had it before."""
    pairs = {name: (getattr(saved.train, name), getattr(given.train, name)) for name in ("steps", "epochs")}
    return [f"train.{name}" for name, (old, new) in pairs.items() if old and new and new > old]


def decides(key: str) -> bool:
    """Whether a dotted key changes the result of a run."""
    below = [any(f"{key}.".startswith(f"{name}.") for name in names) for names in (FREE, BOUND)]
    return below[1] or not below[0]


def comparable(recipe: Recipe) -> dict[str, Any]:
    settings = recipe.model_dump(mode="json")
    for data_set in settings["data"]["sets"]:
        data_set["index"] = Path(data_set["index"]).name
    return settings


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        yield key, value
        return
    for name, inner in items:
        yield from flat(inner, f"{key}.{name}" if key else str(name))
