"""The tiny checkpoint in the released layout: where it lies, how to write one, and when two are the same."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tbac_uniimage.core.checkpoints import LadderParts

PARITY = Path(__file__).parent / "data" / "parity"
CHECKPOINT = PARITY / "checkpoint"
QWEN = PARITY / "Qwen2.5-VL-tiny"
SANA = PARITY / "Sana_tiny_diffusers"
BASES = {"mllm_dir": QWEN, "sana_dir": SANA}
MODULES = ("mllm", "connector", "transformer", "vae")


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def assert_same(a: LadderParts, b: LadderParts) -> None:
    for part in MODULES:
        ours, theirs = getattr(a, part).state_dict(), getattr(b, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(ours[name].dtype == theirs[name].dtype for name in ours)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    assert (a.system_prompt, a.max_text_tokens) == (b.system_prompt, b.max_text_tokens)
    assert a.image_processor.to_dict() == b.image_processor.to_dict()
    assert a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
