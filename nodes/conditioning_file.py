"""A CONDITIONING as a safetensors file: tensors by entry and name, everything else as JSON in the header.

0/states     folded condition [batch, queries, layers * dim]
0/mask       and other tensors that stock nodes attach
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT, VERSION = "tbac_uniimage_conditioning", "1"


def plain(name: str, value: Any) -> Any:
    """A value as JSON keeps it. Raises ValueError for one that is more than numbers and words."""
    if isinstance(value, list | tuple):
        return [plain(name, part) for part in value]
    number = isinstance(value, int | float) and math.isfinite(value)
    if value is None or isinstance(value, str | bool) or number:
        return value
    raise ValueError(
        f"The conditioning carries {name!r} ({type(value).__name__}), which a file cannot hold; attach it "
        "after Load Conditioning."
    )


def shortest(states: torch.Tensor) -> torch.Tensor:
    """The same numbers in 16 bits where they fit, as they do after a model in 16 bits."""
    if states.dtype != torch.float32:
        return states
    for dtype in (torch.bfloat16, torch.float16):
        short = states.to(dtype)
        if torch.equal(short.to(states.dtype), states):
            return short
    return states


def write_conditioning(path: Path, conditioning: list, note: str = "") -> int:
    """Write a file, whole or not at all; nothing is lost by it.

    Returns:
        int: its size in bytes.

    Raises:
        ValueError: an empty conditioning, one that is not of a ladder, or one with parts that no file holds.
    """
    if not isinstance(conditioning, list) or not conditioning:
        raise ValueError("The conditioning is empty; connect Multi-Layer MLLM Encode.")
    tensors, entries = {}, []
    for i, (states, options) in enumerate(conditioning):
        if states.ndim != 3 or not states.is_floating_point() or not torch.isfinite(states).all():
            raise ValueError(
                f"Entry {i + 1} of the conditioning is {states.dtype} of shape {list(states.shape)} or not "
                "finite; connect Multi-Layer MLLM Encode."
            )
        own = {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}
        entries.append({name: plain(name, value) for name, value in options.items() if name not in own})
        for name, tensor in {**own, "states": states}.items():
            tensors[f"{i}/{name}"] = shortest(tensor).cpu().contiguous().clone()
    header = {"format": FORMAT, "version": VERSION, "entries": json.dumps(entries)}
    header["note"] = note.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata=header)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name} could not be written ({error}); see to the output folder.") from error
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def read_conditioning(path: Path) -> tuple[list, str]:
    """A CONDITIONING and its note; nothing in the file is run.

    Raises:
        ValueError: a damaged file, or one of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(
                    f"{path.name} is no saved conditioning; give a file that Save Conditioning wrote."
                )
            if header.get("version") != VERSION:
                raise ValueError(f"{path.name} was saved by a newer version of this pack; update it.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            entries = json.loads(header["entries"])
            conditioning = [make_entry(tensors, i, options) for i, options in enumerate(entries)]
            if not conditioning or tensors:  # what is left over belongs to no entry
                raise KeyError
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is damaged; save the conditioning again.") from error
    return conditioning, header.get("note", "")


def make_entry(tensors: dict[str, torch.Tensor], number: int, options: dict[str, Any]) -> list:
    """One entry; its tensors are taken out of ``tensors``. Raises KeyError if it cannot be one."""
    device = comfy.model_management.intermediate_device()
    names = [name for name in tensors if name.startswith(f"{number}/")]
    own = {name.split("/", 1)[1]: tensors.pop(name) for name in names}
    own = {name: t.float() if t.is_floating_point() else t for name, t in own.items()}
    states = own.pop("states")
    if states.ndim != 3 or 0 in states.shape or not torch.isfinite(states).all():
        raise KeyError(number)
    options = {name: tuple_of(value) for name, value in options.items()}
    return [states.to(device), {**options, **{name: tensor.to(device) for name, tensor in own.items()}}]


def tuple_of(value: Any) -> Any:
    """JSON's lists as the tuples that ComfyUI puts into conditionings."""
    return tuple(map(tuple_of, value)) if isinstance(value, list) else value
