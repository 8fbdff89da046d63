"""The tests that need ComfyUI, on the tree that ``COMFYUI_PATH`` names, with the packages that it asks for.

They go into an environment beside this one, in ``.cache``; torch stays this one's. Arguments are pytest's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import comfy_tree
import environments

PLACE = comfy_tree.CACHE / "newest"
# what they need would bring another torch
ALONE = {"torchaudio": "torchaudio==2.11.1", "spandrel": "spandrel"}
OURS = {"torch", "torchvision", "torchsde", *environments.KEPT}


def wanted_by(tree: Path) -> list[str]:
    """The lines of a tree's requirements but for what this environment keeps."""
    path = tree / "requirements.txt"
    if not path.is_file():
        raise RuntimeError(f"{tree} has no requirements.txt; give a whole tree of ComfyUI.")
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and re.match(r"[\w.-]+", line).group() not in {*OURS, *ALONE}]


def prepare(tree: Path) -> Path:
    """The interpreter of an environment for ``tree``."""
    python = environments.beside_this_one(PLACE, wanted_by(tree))
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(PLACE), "platbase": str(PLACE)}))
    missing = [name for name in ALONE.values() if not [*packages.glob(f"{name.split('=')[0]}-*")]]
    if missing:
        command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", *missing]
        subprocess.run(command, check=True, timeout=environments.INSTALL_LIMIT_S, stdin=subprocess.DEVNULL)
    import torch

    if (
        torch.version.cuda is None
    ):  # PyPI's torchaudio is a CUDA build; ComfyUI needs nothing that it compiles
        for library in (packages / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    return python


def main() -> int:
    """Skipped where no tree is named."""
    if not os.environ.get("COMFYUI_PATH"):
        print("Skipped: name a tree with make test-newest COMFYUI_PATH=/path/to/ComfyUI.")
        return 0
    tree = comfy_tree.find_tree()
    command = [prepare(tree), "-m", "pytest", "-m", "comfy", *sys.argv[1:]]
    return subprocess.run(command, cwd=comfy_tree.ROOT).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"No tests on another ComfyUI: {error}")
