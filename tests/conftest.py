"""The tiny reference model, and ComfyUI's modules for the tests that need them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from tbac_uniimage.core.checkpoints import LadderParts

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

# time is no property of the code: on a machine busy with other work it would fail a test now and then
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin first, so that none of them runs alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


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
    import comfy.utils

    # ComfyUI from 0.9.1 on tells of progress ten times a second at most, and tests look at every step
    comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = comfy.utils.PROGRESS_THROTTLE_MIN_PERCENT = 0


PARITY = Path(__file__).parent / "data" / "parity"
QWEN = PARITY / "Qwen2.5-VL-tiny"
SANA = PARITY / "Sana_tiny_diffusers"


def load_tiny():
    """The parts of the tiny random-weight model of the recordings, float32 on the CPU."""
    import torch
    from tbac_uniimage.core.checkpoints import load_parts

    return load_parts(
        PARITY / "checkpoint",
        mllm_dir=QWEN,
        sana_dir=SANA,
        dtype=torch.float32,
    )


@pytest.fixture(scope="session")
def tiny():
    return load_tiny()


@pytest.fixture(scope="session")
def pipe():
    from tbac_uniimage.core.pipeline import LadderPipeline

    pipeline = LadderPipeline(**vars(load_tiny()))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def checkpoint(pipe, tmp_path_factory) -> Path:
    """The same model as a pipeline folder, which is what ComfyUI loads."""
    folder = tmp_path_factory.mktemp("tiny")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(comfy, checkpoint):
    """MODEL, MLLM and VAE as Load Model hands them out."""
    from tbac_uniimage.nodes.bridge import load_for_comfy

    return SimpleNamespace(**dict(zip(("model", "mllm", "vae"), load_for_comfy(checkpoint), strict=True)))


@pytest.fixture
def inference(comfy):
    """ComfyUI runs every node in inference mode."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """One of the recorded pictures, wider than high."""
    from PIL import Image

    return Image.open(PARITY / "images" / "wide.png").convert("RGB")


@pytest.fixture(scope="session")
def stored() -> dict[str, torch.Tensor]:
    """The tensors of the released layout, by name."""
    from safetensors.torch import load_file

    return load_file(PARITY / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="session")
def parts() -> LadderParts:
    from tbac_uniimage.core.checkpoints import load_parts

    return load_parts(PARITY / "checkpoint", mllm_dir=QWEN, sana_dir=SANA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the checkpoint, to damage."""
    return Path(shutil.copytree(PARITY / "checkpoint", tmp_path / "model"))


@pytest.fixture(scope="session")
def qwen_tokenizer(tmp_path_factory) -> Path:
    """The tiny tokenizer with its <|image_pad|> where the real Qwen2.5-VL has it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    content = json.loads((QWEN / "tokenizer.json").read_text(encoding="utf-8"))
    shift = 151655 - 432  # <|image_pad|>
    for token in content["added_tokens"]:
        token["id"] += shift
        content["model"]["vocab"][token["content"]] = token["id"]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
