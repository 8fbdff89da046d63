"""Weights of one's own: copied out of files that must not change meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Stamp = tuple[int, int, int]


class FileWatch:
    """Remembers size, time and identity of the weight files of some models.

    A file that is cut short while it is mapped ends the process at the next read, so it is asked for first.

    Args:
        paths: files, or folders whose safetensors files and configurations count.
    """

    def __init__(self, *paths: str | Path) -> None:
        files = [
            file
            for path in map(Path, paths)
            for file in ([path] if path.is_file() else sorted(path.rglob("*")))
            if file.suffix in (".safetensors", ".json")
        ]
        self.stamps = {file: stamp(file) for file in files}

    def check(self) -> None:
        """Raise ValueError, naming the file, if one is no longer what it was."""
        for file, known in self.stamps.items():
            if stamp(file) != known:
                raise ValueError(
                    f"{file} changed while the model was loaded; wait until it is written, then run again."
                )


def stamp(file: Path) -> Stamp | None:
    """What changes when a file is written or replaced; None if it is gone."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def own_weights(module: Module, watch: FileWatch, dtype: torch.dtype | None = None) -> Module:
    """Copy a module's parameters out of the mapped files, one by one, so that these may change or go.

    Args:
        module: as the loaders return it.
        watch: made before the module was loaded.
        dtype: of the copies, None keeps each tensor's own.

    Raises:
        ValueError: a file changed since ``watch`` was made.
    """
    for parameter in module.parameters():
        watch.check()
        parameter.data = parameter.data.to(dtype or parameter.dtype, copy=True)
    watch.check()
    return module
