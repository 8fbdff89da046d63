"""Which models lie in the folders of the key ``uniimage``, and which of them belong together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import folder_paths

EMBEDDED = "nano (embedded)"
EMBEDDED_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "nano"
MODEL_FOLDER = "uniimage"
WEIGHTS = ".safetensors"
GGUF = ".gguf"  # listed, so that loading it can say what to take instead
SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # one of several files, which alone is no model
DEPTH = 3  # how deep models may lie in subfolders
KINDS = {"tbacuniimage", "metaquery", "LadderPipeline"}  # as config.json or model_index.json say
SOURCE = "https://huggingface.co/TencentBAC/TBAC-UniImage-3B"


def add_folders() -> None:
    """Make ``models/uniimage`` known, and ``output/uniimage``, where ModelSave can write; behind those of
    ``extra_model_paths.yaml``. The embedded model's LoRA for few steps is one of ComfyUI's LoRAs."""
    for parent in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(parent) / MODEL_FOLDER))
    folder_paths.add_model_folder_path("loras", str(EMBEDDED_FOLDER / "few_steps"))
    # a folder added this way lists every file until it is told its extensions
    folder_paths.folder_names_and_paths[MODEL_FOLDER][1].update((WEIGHTS, GGUF))


def find_models() -> dict[str, Path]:
    """Name -> path of the embedded model and of all that lies in the folders; the first of a name counts."""
    found = {EMBEDDED: EMBEDDED_FOLDER}
    for folder in map(Path, folder_paths.get_folder_paths(MODEL_FOLDER)):
        for path in models_below(folder, DEPTH):
            found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def models_below(folder: Path, depth: int) -> Iterator[Path]:
    """Files of weights, folders of whole models, and what lies in other folders."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            if is_model(entry):
                yield entry
            elif depth > 1 and not has_config(entry):  # a base model's folder holds nothing of ours
                yield from models_below(entry, depth - 1)
        elif entry.suffix in (WEIGHTS, GGUF) and not SHARD.search(entry.stem):
            yield entry


def has_config(folder: Path) -> bool:
    """Whether a folder is that of a model, of any kind."""
    return any((folder / name).is_file() for name in ("config.json", "model_index.json"))


def is_model(folder: Path) -> bool:
    """Whether a folder says that it holds a model of ours."""
    for name in ("model_index.json", "config.json"):
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except OSError:
            continue
        except ValueError:
            return True  # damaged: listed, so that loading it can say so
        if not isinstance(config, dict):
            return True
        kind = config.get("_class_name")  # of a pipeline a name, or a module and a name
        kinds = {str(part) for part in kind} if isinstance(kind, list) else {kind}
        return bool((kinds | {config.get("model_type")}) & KINDS)
    return False


def missing(name: str, known: list[str]) -> str:
    """What to tell who asks for a model that is not there."""
    places = ", ".join(folder_paths.get_folder_paths(MODEL_FOLDER))
    return (
        f"There is no model {name!r} in models/{MODEL_FOLDER} (searched: {places}); known: "
        f"{', '.join(known)}; the released model is at {SOURCE}."
    )


def model_path(name: str) -> Path:
    """The path of a model. Raises ValueError, with the places searched, if there is none of that name."""
    found = find_models()
    if name not in found:
        raise ValueError(missing(name, list(found)))
    return found[name]


def base_of(name: str, base: str) -> Path:
    """The whole model that a file with a diffusion transformer alone is loaded with.

    Args:
        name: of that file.
        base: a model's name, or "auto" for the only one whose transformer has the same tensors and shapes.

    Raises:
        ValueError: none fits, or several do, or nothing here reads the file's format.
    """
    from ..core.checkpoints import fits, is_transformer_alone
    from ..core.checkpoints.scaled import is_comfyui, refuse_scaled
    from ..core.checkpoints.weights import read_header

    if base != "auto":
        return model_path(base)
    file, fitting = model_path(name), {}
    headers = read_header(file)
    if not is_comfyui(headers):
        refuse_scaled(file, headers)
    for other, path in find_models().items():
        try:
            whole = path != file and (path.is_dir() or not is_transformer_alone(path))
            if whole and fits(file, path):
                fitting[other] = path
        except ValueError:
            continue  # a damaged neighbour is none of this model's concern
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if not fitting:
        raise ValueError(
            f"{file} holds a diffusion transformer alone and no model here has one of its sizes; put the "
            f"model that it was made from into models/{MODEL_FOLDER}."
        )
    raise ValueError(
        f"{file} holds a diffusion transformer alone and fits {', '.join(fitting)}; choose one as base."
    )


def stamp(*paths: Path) -> str:
    """Changes when a file of weights or a configuration at one of the paths does."""
    from ..core.checkpoints.unchanged import FileWatch

    return repr(sorted((str(file), known) for file, known in FileWatch(*paths).stamps.items()))
