"""A diffusion transformer in a file of its own, as ComfyUI's ModelSave writes it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .naming import check_weights, place_of
from .parts import read_part_config, stored_shapes, transformer_on_meta
from .scaled import packed_layers, without_scales
from .weights import TensorInfo, find_weights, read_header

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.transformer.", "transformer.")
SIGN = "patch_embed.proj.weight"  # every SANA has one


def bare_name(name: str) -> str:
    """A tensor's name in the transformer, whatever a file puts before it."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def is_transformer_alone(path: str | Path) -> bool:
    """Whether a safetensors file holds a diffusion transformer and no other part of a model of ours.

    Raises:
        ValueError: the file cannot be read.
    """
    headers = read_header(Path(path))
    others = (place_of(name) for name in headers)
    return any(bare_name(name) == SIGN for name in headers) and all(
        place is None or place.part == "transformer" for place in others
    )


def match_transformer(path: str | Path, transformer: nn.Module) -> dict[str, TensorInfo]:
    """Headers of such a file under the names of ``transformer``, all there and of the right shapes.

    Raises:
        ValueError: weights that cannot be read, or missing, unexpected and misshapen tensors.
    """
    found = {bare_name(name): info for name, info in read_header(Path(path)).items()}
    check_weights(path, found, stored_shapes(transformer), "load it with the model that it was made from")
    return found


def fits(path: str | Path, model: str | Path) -> bool:
    """Whether the transformer alone at ``path`` has the tensors and shapes of the transformer of ``model``.

    Weights whose bytes hold several values each have shapes of their own; of these the names count.

    Args:
        path: a file that :func:`is_transformer_alone`.
        model: a pipeline folder, with or without weights in its ``transformer``, or a released checkpoint.

    Raises:
        ValueError: one of them cannot be read.
    """
    headers, model = read_header(Path(path)), Path(model)
    shapes = {bare_name(name): info.shape for name, info in without_scales(headers).items()}
    if (model / "model_index.json").is_file():
        wanted = stored_shapes(transformer_on_meta(read_part_config(model / "transformer", "transformer")))
    else:
        places = {place_of(name): info.shape for name, info in find_weights(model).items()}
        wanted = {
            place.name: shape for place, shape in places.items() if place and place.part == "transformer"
        }
    for name in map(bare_name, packed_layers(headers)):
        if name in wanted:
            shapes[name] = wanted[name]
    return shapes == wanted
