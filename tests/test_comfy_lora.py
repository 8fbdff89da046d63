"""Load LoRA: whatever names a file has, the weights that ComfyUI computes are those added by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_lora_names import ALPHA, FORMS, RANKS, named

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]


@pytest.fixture(scope="module")
def pairs(loaded) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    transformer, generator = loaded.model.model.diffusion_model, torch.Generator().manual_seed(7)
    found = {}
    for layer, rank in RANKS.items():
        shape = transformer.get_submodule(layer).weight.shape
        down = torch.randn(rank, *shape[1:], generator=generator)
        found[layer] = down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
    return found


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch) -> Path:
    """ComfyUI's only folder of LoRA."""
    import folder_paths

    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors", ".pt"})
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def load(model, name: str, strength: float = 1.0):
    from tbac_uniimage.nodes.lora import LadderLoadLora

    return LadderLoadLora.execute(model, name, strength).result[0]


def weights(model) -> dict[str, torch.Tensor]:
    """What ComfyUI makes of the weights that have patches."""
    import comfy.lora
    import comfy.utils

    return {
        key: comfy.lora.calculate_weight(patches, comfy.utils.get_attr(model.model, key).clone().float(), key)
        for key, patches in model.patches.items()
    }


def expected(model, pairs, scales: dict[str, float]) -> dict[str, torch.Tensor]:
    import comfy.utils

    found = {}
    for layer, (down, up) in pairs.items():
        key = f"diffusion_model.{layer}.weight"
        weight = comfy.utils.get_attr(model.model, key).float()
        found[key] = weight + scales[layer] * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_name_adds_the_same(loaded, pairs, folder, form):
    save_file(named(pairs, *FORMS[form]), folder / "style.safetensors")
    model = load(loaded.model, "style.safetensors", 0.5)
    (folder / "style.safetensors").write_bytes(b"")  # it was read, and is not needed any more
    scales = {layer: 0.5 * (ALPHA / rank if len(FORMS[form]) == 4 else 1) for layer, rank in RANKS.items()}
    torch.testing.assert_close(weights(model), expected(loaded.model, pairs, scales), atol=1e-5, rtol=1e-4)
    assert not loaded.model.patches


def test_alpha_beside_a_file_of_peft_counts(loaded, pairs, folder):
    (folder / "mine").mkdir()
    save_file(named(pairs, *FORMS["peft"]), folder / "mine" / "adapter_model.safetensors")
    (folder / "mine" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": ALPHA}))
    model = load(loaded.model, "mine/adapter_model.safetensors")
    scales = {layer: ALPHA / rank for layer, rank in RANKS.items()}
    torch.testing.assert_close(weights(model), expected(loaded.model, pairs, scales), atol=1e-5, rtol=1e-4)


def test_what_fits_no_layer_is_an_error(loaded, pairs, folder):
    from tbac_uniimage.nodes.lora import LadderLoadLora

    save_file({"lora_unet_down_0.lora_up.weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    with pytest.raises(ValueError, match="1 of the 1 tensors of the LoRA fit no layer"):
        load(loaded.model, "other.safetensors")
    (folder / "old.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a pickle"):
        load(loaded.model, "old.pt")
    save_file(named(pairs, *FORMS["peft"]), folder / "good.safetensors")
    with pytest.raises(ValueError, match="not a TBAC-UniImage model"):
        load(object(), "good.safetensors")
    with pytest.raises(ValueError, match="strength is nan"):
        load(loaded.model, "good.safetensors", float("nan"))
    assert LadderLoadLora.validate_inputs("good.safetensors", 1.0) is True
    assert "There is no LoRA 'gone.safetensors'" in LadderLoadLora.validate_inputs("gone.safetensors")
    assert "There is no LoRA 'old.pt'" in LadderLoadLora.validate_inputs("old.pt")
    before = LadderLoadLora.fingerprint_inputs("good.safetensors")
    save_file(named(pairs, *FORMS["kohya"]), folder / "good.safetensors")
    assert LadderLoadLora.fingerprint_inputs("good.safetensors") != before
