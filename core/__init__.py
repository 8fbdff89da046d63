"""The ladder-side model. Its public names are here; each loads what it needs on first use.

Installing the pack installs nothing (see ``requirements.txt``), so versions are checked here, before a name
that is missing deep inside says it less clearly.
"""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from typing import Any

MINIMUM = {"torch": (2, 4), "transformers": (4, 56), "diffusers": (0, 35, 2)}

_HOMES = {
    "LadderCondition": "conditions",
    "LadderConnector": "connector",
    "LadderEncoder": "encoder",
    "LadderParts": "checkpoints",
    "LadderPipeline": "pipeline",
    "LadderPipelineOutput": "repainting",
    "LadderTransformer2DModel": "transformer",
    "assemble": "checkpoints",
    "euler_scheduler": "schedulers",
    "fold_condition": "conditions",
    "load_parts": "checkpoints",
    "mix_rungs": "rungs",
    "recipe_scheduler": "schedulers",
    "save_released": "checkpoints",
    "scale_rungs": "rungs",
    "unfold_condition": "conditions",
    "watch_attention": "attention",
}
__all__ = sorted(_HOMES)


def check_versions() -> None:
    """Raise ImportError, one sentence with the command to run, if a library is missing or too old.

    The command keeps what is good at its version: a pip that may choose freely would replace transformers to
    get the newest diffusers, and with it break what else runs in a ComfyUI.
    """
    problems, wanted = [], []
    for name, minimum in MINIMUM.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed")
        else:
            if tuple(int(part) for part in re.findall(r"\d+", found)[: len(minimum)]) >= minimum:
                wanted.append(f'"{name}=={found}"')
                continue
            problems.append(f"{name} {found} is too old")
        wanted.append(f'"{name}>={".".join(map(str, minimum))}"')
    if problems:
        command = f"pip install {' '.join(wanted)}"
        raise ImportError(f"TBAC-UniImage cannot run: {', '.join(problems)}; in this Python run `{command}`.")


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


check_versions()
