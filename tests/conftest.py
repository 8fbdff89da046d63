"""Makes ComfyUI's modules importable for the tests that need them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="session")
def comfy_tree() -> Path:
    """The ComfyUI tree that tests run against; skips where there is none."""
    import comfy_tree

    tree = comfy_tree.find_tree()
    if tree is None:
        pytest.skip("no ComfyUI tree: set COMFYUI_PATH, or let `make setup` fetch one")
    return tree


@pytest.fixture(scope="session")
def comfy(comfy_tree: Path) -> None:
    """Put ComfyUI first on the path, on the CPU, as its own main.py would."""
    sys.path.insert(0, str(comfy_tree))
    from comfy.cli_args import args

    args.cpu = True
