"""safetensors files: headers are checked before any tensor is read, tensors are mapped and never copied."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"}
SHOWN_NAMES = 10
PIECE = 1 << 24
STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, as its file's header says."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError if the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON; download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; download it again.")
    return content


def list_names(names: Iterable[str]) -> str:
    """The first ten names, and how many more there are."""
    names = list(names)
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def refuse_pickle(path: Path) -> None:
    """Raise ValueError if a file's name says that it is a pickle."""
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run code when read; convert it, only safetensors is opened."
        )


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, types and shapes of a safetensors file, from its header alone.

    Raises:
        ValueError: a pickle, another kind of file, or a file that ends too early.
    """
    refuse_pickle(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        if len(start) < 9 or start[8:] != b"{":
            if start.startswith(b"version h"):
                raise ValueError(
                    f"{path} is a git-lfs pointer and no weights; run `git lfs pull` in its folder."
                )
            if start.startswith(b"GGUF"):
                raise ValueError(
                    f"{path} is a GGUF file; take safetensors in bf16 or fp16, in ComfyUI with weight_dtype "
                    "fp8_e4m3fn for less memory, or in Python load a GGUF of the diffusion transformer with "
                    "LadderTransformer2DModel.from_single_file and give it as transformer=."
                )
            raise ValueError(f"{path} is not a safetensors file; download it again or give another file.")
        length = struct.unpack("<Q", start[:8])[0]
        if 8 + length > size:
            raise ValueError(
                f"{path} is truncated: {size} bytes, its header alone needs {8 + length}; download it again."
            )
        header = start[8:] + file.read(length - 1)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        infos = {
            name: TensorInfo(path, name, entry["dtype"], tuple(entry["shape"]))
            for name, entry in entries.items()
        }
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} has no readable safetensors header; download it again or give another file."
        ) from error
    if end != size:
        state = "is truncated" if size < end else "is damaged"
        raise ValueError(f"{path} {state}: {size} bytes, its header describes {end}; download it again.")
    read_metadata(path)  # the library looks at every entry
    return infos


def read_metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file notes beside its tensors.

    Raises:
        ValueError: types, shapes and places that cannot be.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged, its header does not hold ({error}); download it again."
        ) from error


def find_weights(path: Path, stem: str = "model", variant: str | None = None) -> dict[str, TensorInfo]:
    """Headers of a safetensors file, or of the one or more files of a folder.

    Args:
        path: a file, or a folder with ``stem.safetensors``, with ``stem.safetensors.index.json`` and its
            shards, or with one safetensors file of any name.
        stem: "model" in transformers' folders, "diffusion_pytorch_model" in diffusers'.
        variant: as in ``stem.fp16.safetensors``, of a folder that has it.

    Raises:
        ValueError: no weights, a missing shard, or a file that :func:`read_header` refuses.
    """
    if path.is_file():
        if re.search(r"-\d{5}-of-\d{5}$", path.stem):
            raise ValueError(f"{path} is one of several files of a model; give its folder, {path.parent}.")
        return read_header(path)
    for added in [f".{variant}", ""] if variant else [""]:
        index = path / f"{stem}.safetensors.index{added}.json"
        if index.is_file():
            return _read_shards(index)
        if (path / f"{stem}{added}.safetensors").is_file():
            return read_header(path / f"{stem}{added}.safetensors")
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(files[0])
    if files:
        raise ValueError(
            f"{path} holds {len(files)} safetensors files and no {index.name} that says what is in them; "
            "add the index, or give one file."
        )
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{path} holds weights as pickles only ({list_names(pickles)}), which can run code when read; "
            "convert them to safetensors."
        )
    raise ValueError(f"{path} holds no safetensors weights; complete the folder.")


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map of tensors to files; download it again.")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index.parent} lacks {len(missing)} of its {len(names)} weight files ({list_names(missing)}); "
            "download them."
        )
    infos: dict[str, TensorInfo] = {}
    for name in names:
        infos.update(read_header(index.parent / name))
    absent = sorted(weight_map.keys() - infos.keys())
    if absent:
        raise ValueError(
            f"{index.parent} lacks {len(absent)} tensors that {index.name} lists ({list_names(absent)}); "
            "download it again."
        )
    return infos


def stored_dtype(infos: Iterable[TensorInfo]) -> torch.dtype:
    """The type of most values of some tensors."""
    counts: Counter[str] = Counter()
    for info in infos:
        counts[info.dtype] += math.prod(info.shape)
    return STORED.get(counts.most_common(1)[0][0] if counts else "", torch.float32)


def read_tensors(
    infos: dict[Key, TensorInfo], convert: Callable[[Key, torch.Tensor], torch.Tensor] | None = None
) -> dict[Key, torch.Tensor]:
    """Tensors under the keys of ``infos``: views onto the mapped files, copied on write.

    Args:
        infos: where they are.
        convert: what becomes of each. Files are mapped anew every :data:`PIECE` bytes then, so that not all
            that was read stays in memory beside the tensors made of it; the largest come first, when little
            else is there.
    """
    tensors: dict[Key, torch.Tensor] = {}
    for path in {info.file for info in infos.values()}:
        mine = [key for key, info in reversed(infos.items()) if info.file == path]
        mine.sort(key=lambda key: math.prod(infos[key].shape) > PIECE)
        while mine:
            with safe_open(path, framework="pt", device="cpu") as file:
                read = 0
                while mine and read < PIECE:
                    key = mine.pop()
                    tensor = file.get_tensor(infos[key].name)
                    tensors[key] = tensor if convert is None else convert(key, tensor)
                    read += 0 if tensors[key] is tensor else tensor.nbytes
                del tensor  # else it would keep the file mapped
    return tensors
