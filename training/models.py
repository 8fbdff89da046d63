"""Models that runs start from, and models that runs have made."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..core.checkpoints import LadderParts, assemble, load_parts
from ..core.checkpoints.naming import check_tensors
from ..core.checkpoints.parts import place
from ..core.checkpoints.weights import read_json
from ..core.hub import find_model
from ..core.paths import user_path
from .recipe.recipe import Recipe, load_recipe
from .run.checkpoints import folders, shards
from .run.checkpoints.folders import CHECKPOINTS, COMPLETE, FOLDER_NAME, LAST
from .step.lora import add_lora, merge_lora

RECIPE_FILE = "recipe.yaml"
SANA_FILES = ("transformer/*.json", "transformer/*.safetensors", "vae/*.json", "vae/*.safetensors")


def load_base(recipe: Recipe, frozen_dtype: torch.dtype | None = None) -> LadderParts:
    """The model that a run starts from, on the CPU.

    Weights are views onto their files until they are cast, part by part, so that nothing is held twice.

    Args:
        recipe: of the run.
        frozen_dtype: type of the parts that the run does not train, None keeps that of their files. Those
            that it trains are float32; of a LoRA run that is none, its matrices are yet to be added.

    Raises:
        ValueError: one sentence about the model that is not there, not whole or of another kind.
    """
    parts = _start_of(recipe, frozenset())
    trained = torch.float32 if recipe.train.parts == "all" else frozen_dtype
    for module, dtype in (
        (parts.mllm, frozen_dtype),
        (parts.vae, frozen_dtype),
        (parts.connector, trained),
        (parts.transformer, trained),
    ):
        place(module, "cpu", dtype)
    return parts


def follow_recipe(parts: LadderParts, recipe: Recipe) -> LadderParts:
    """The same parts, whose transformer is told and reads what the recipe says, if it says anything.

    Raises:
        ValueError: the run would add weights and not train them.
    """
    settings, transformer = recipe.model, parts.transformer
    if settings.rungs not in (None, parts.connector.config.rungs):
        parts.connector.choose_rungs(settings.rungs, transformer.config.num_layers)
    extensions = {"source_latents": transformer.read_source, "text_states": transformer.read_text}
    for name, extend in extensions.items():
        wanted = getattr(settings, name)
        if wanted in (None, transformer.config[name]):
            continue
        if wanted and recipe.train.parts == "lora":
            raise ValueError(
                f"model.{name} is true but the model that the run starts from has no weights for it, and a "
                "LoRA (train.parts) does not train them; start from a model that has them, or set "
                "train.parts=all."
            )
        extend(wanted)
    return parts


def load_run(path: Path, averaged: bool = False, merged: bool = True) -> LadderParts:
    """The model that a run had made when it wrote a checkpoint, on the CPU, what was trained in float32.

    Args:
        path: the checkpoint, in the folder of its run.
        averaged: take the averaged weights.
        merged: add the matrices of a LoRA run to the weights that they stand beside; otherwise they stay
            apart, and the transformer keeps its type.

    Raises:
        ValueError: a checkpoint that is not whole, or not of its recipe, or without averaged weights; or a
            model, that the run started from, which is gone.
    """
    return _load_run(path, averaged, merged, frozenset())


def find_checkpoint(name: str | Path) -> Path | None:
    """The checkpoint that a path stands for: it itself, ``last``, or the newest whole one of a run's folder.

    Returns:
        The folder, links resolved; None if the path is none of these, which leaves models and hub ids.

    Raises:
        ValueError: a run without a whole checkpoint, or a checkpoint that is not whole.
    """
    path = user_path(name)
    named = path.parent.name == CHECKPOINTS and FOLDER_NAME.fullmatch(path.name)
    if (path / COMPLETE).is_file() or named or (path.name == LAST and path.is_symlink()):
        folders.check(path)
        return path.resolve()
    if not (path / CHECKPOINTS).is_dir():
        return None
    found, refused = folders.newest(path)
    if found is None:
        reasons = f": {' '.join(refused)}" if refused else ", it has written none yet."
        raise ValueError(f"The run {path} has no whole checkpoint{reasons}")
    return found.resolve()


def recipe_of(path: Path) -> Recipe:
    """The recipe of the run that a checkpoint lies in. Raises ValueError if it lies in none."""
    file = path.parent.parent / RECIPE_FILE
    if not file.is_file():
        raise ValueError(f"{path} lies in no folder of a run: {file} is not there; put it back to its run.")
    return load_recipe(file)


def base_ids(recipe: Recipe) -> dict[str, str]:
    """Names of the pretrained models at the beginning of a chain of runs, as ``save_released`` takes them."""
    while recipe.init is not None:
        path = find_checkpoint(recipe.init)
        if path is None:
            return _noted_ids(find_model(recipe.init))
        recipe = recipe_of(path)
    return {"mllm_id": name_of(recipe.base.mllm), "sana_id": name_of(recipe.base.sana)}


def name_of(model: str) -> str:
    """What files that are given away call a model: its name on the hub, its folder, or its run and step."""
    path = Path(model).expanduser()
    if not path.exists():
        return path.name if path.is_absolute() else model
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        return path.resolve().name
    return f"{checkpoint.parent.parent.name}/{checkpoint.name}"


def _noted_ids(model: Path) -> dict[str, str]:
    """What a released checkpoint says about its pretrained models; nothing if it does not, or is none."""
    file = (model if model.is_dir() else model.parent) / "config.json"
    config = read_json(file) if file.is_file() else {}
    noted = {"mllm_id": config.get("mllm_id"), "sana_id": config.get("diffusion_model_id")}
    return {key: name for key, name in noted.items() if name}


def _start_of(recipe: Recipe, seen: frozenset[Path], frozen_only: bool = False) -> LadderParts:
    """The model that a run starts from; ``frozen_only`` where its trained parts will be replaced."""
    return follow_recipe(_named_by(recipe, seen, frozen_only), recipe)


def _named_by(recipe: Recipe, seen: frozenset[Path], frozen_only: bool) -> LadderParts:
    """The model that ``init`` names, or one of the parts that ``base`` does."""
    if recipe.init is None:
        base = recipe.base
        return assemble(
            find_model(base.mllm),
            find_model(base.sana, SANA_FILES),
            num_queries=base.num_queries,
            seed=recipe.seed,
            tokenizer_dir=base.tokenizer,
        )
    path = find_checkpoint(recipe.init)
    if path is not None:
        return _load_run(path, recipe.init_ema, True, seen, frozen_only)
    if recipe.init_ema:
        raise ValueError(
            f"init_ema is true but init = {recipe.init} is no checkpoint of a run; set it to false."
        )
    return load_parts(find_model(recipe.init), tokenizer_dir=recipe.base.tokenizer)


def _load_run(
    path: Path, averaged: bool, merged: bool, seen: frozenset[Path], frozen_only: bool = False
) -> LadderParts:
    if path in seen:
        raise ValueError(f"The run of {path} starts from itself; name another init.")
    recipe = recipe_of(path)
    replaces_all = recipe.train.parts == "all"
    parts = _start_of(recipe, seen | {path}, frozen_only or replaces_all)
    if frozen_only:
        return parts
    if averaged and not any(name.startswith("ema/") for name in folders.stored(path)):
        raise ValueError(
            f"{path} holds no averaged weights, its run has train.ema = null; take the weights themselves."
        )
    if not replaces_all and merged:
        place(parts.transformer, "cpu", torch.float32)  # a sum in bfloat16 would lose most of a LoRA
    _replace(trained_parameters(parts, recipe), path, "ema/" if averaged else "trained/")
    if not replaces_all and merged:
        merge_lora(parts.transformer)
    return parts


def trained_parameters(parts: LadderParts, recipe: Recipe) -> dict[str, nn.Parameter]:
    """What a run trains, under the names that its checkpoints have; a LoRA's matrices are added first."""
    if recipe.train.parts == "lora":
        lora = recipe.train.lora
        add_lora(parts.transformer, lora.rank, lora.alpha, lora.dropout, lora.targets)
        named = {name: p for name, p in parts.transformer.named_parameters() if p.requires_grad}
        return {f"transformer.{name}": parameter for name, parameter in named.items()}
    trained = {f"connector.{name}": p for name, p in parts.connector.named_parameters()}
    del trained["connector.reserved_rows"]
    return trained | {f"transformer.{name}": p for name, p in parts.transformer.named_parameters()}


def _replace(parameters: dict[str, nn.Parameter], path: Path, prefix: str) -> None:
    """Give parameters the tensors of a checkpoint. Raises ValueError if they are others."""
    infos = folders.stored(path)
    found = {name.removeprefix(prefix): info for name, info in infos.items() if name.startswith(prefix)}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_tensors(path, found, wanted, "has the model that its run started from been replaced?")
    for name, tensor in shards.read_tensors(path, prefix).items():
        parameters[name].data = tensor
