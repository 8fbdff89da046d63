"""LoRA: what is trained, what is written, and that ComfyUI applies it as peft does."""

from __future__ import annotations

import pytest
import torch
from comfy_helpers import PROMPT, empty, encode, ladder_sample, largest, reference, velocity
from conftest import load_tiny
from safetensors import safe_open
from safetensors.torch import load_file
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.training.step.lora import PREFIX, TARGETS, add_lora, merge_lora, save_lora

LAYERS = [f"{attention}.{target}" for attention in ("attn1", "attn2") for target in TARGETS]


@pytest.fixture
def parts():
    return load_tiny()


def with_lora(transformer, rank=3, alpha=12.0, targets=TARGETS):
    """A LoRA that does something: B is not zero."""
    add_lora(transformer, rank, alpha, 0.0, targets, seed=5)
    generator = torch.Generator().manual_seed(6)
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return transformer


def test_only_the_matrices_are_trained_and_they_change_nothing_at_first(parts):
    transformer = parts.transformer.bfloat16()
    before = {name: p.detach().clone() for name, p in transformer.named_parameters()}
    x = torch.randn(1, transformer.config.in_channels, 4, 4).bfloat16()
    blocks = transformer.config.num_layers
    states = torch.randn(blocks, 1, 2, transformer.config.caption_channels).bfloat16()
    expected = transformer(x, states, torch.tensor([500.0]), return_dict=False)[0]
    add_lora(transformer, 2, 4, 0.0)
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    assert sorted(trained) == sorted(
        f"transformer_blocks.{block}.{layer}.{kind}.default.weight"
        for block in range(blocks)
        for layer in LAYERS
        for kind in ("lora_A", "lora_B")
    )
    assert all(p.dtype == torch.float32 for p in trained.values())
    frozen = {n.replace(".base_layer", ""): p for n, p in transformer.named_parameters() if n not in trained}
    assert frozen.keys() == before.keys()
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    assert torch.equal(transformer(x, states, torch.tensor([500.0]), return_dict=False)[0], expected)


def test_first_values_follow_the_seed_alone(parts):
    other = load_tiny()
    add_lora(parts.transformer, 2, 4, 0.0, seed=1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    add_lora(other.transformer, 2, 4, 0.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    values = other.transformer.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in parts.transformer.state_dict().items())


@pytest.mark.parametrize("target", ["to_x", "conv_depth", "norm1", "q"])
def test_targets_that_are_no_linear_layers_are_refused(parts, target):
    with pytest.raises(ValueError, match=f"train.lora.targets has {target}, which names no linear"):
        add_lora(parts.transformer, 2, 4, 0.0, ["to_q", target])
    assert not any("lora" in name for name, _ in parts.transformer.named_parameters())


def test_merging_changes_the_targets_by_alpha_over_rank(parts):
    before = {name: p.detach().clone() for name, p in parts.transformer.named_parameters()}
    transformer = with_lora(parts.transformer, rank=3, alpha=12.0, targets=["attn2.to_k"])
    layer = transformer.transformer_blocks[1].attn2.to_k
    a, b = (getattr(layer, kind)["default"].weight.detach() for kind in ("lora_A", "lora_B"))
    merge_lora(transformer)
    after = dict(transformer.named_parameters())
    assert after.keys() == before.keys()
    name = "transformer_blocks.1.attn2.to_k.weight"
    torch.testing.assert_close(after[name], before[name] + 4 * b @ a)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {
        f"transformer_blocks.{i}.attn2.to_k.weight" for i in range(transformer.config.num_layers)
    }


def test_the_file_has_the_names_that_comfyui_reads(parts, tmp_path):
    transformer = with_lora(parts.transformer)
    path = save_lora(transformer, tmp_path / "new" / "style.safetensors", {"rank": "3"}, torch.bfloat16)
    tensors = load_file(path)
    names = [
        f"{PREFIX}transformer_blocks.{i}.{n}" for i in range(transformer.config.num_layers) for n in LAYERS
    ]
    kinds = ("alpha", "lora_A.weight", "lora_B.weight")
    assert sorted(tensors) == sorted(f"{name}.{kind}" for name in names for kind in kinds)
    assert tensors[f"{names[0]}.alpha"].item() == 12.0
    assert tensors[f"{names[0]}.lora_A.weight"].dtype == torch.bfloat16
    assert tensors[f"{names[0]}.lora_A.weight"].shape[0] == 3
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "rank": "3"}
    assert [file.name for file in path.parent.iterdir()] == ["style.safetensors"]

    with pytest.raises(ValueError, match="is there already"):
        save_lora(transformer, path, {})
    with pytest.raises(ValueError, match="ends in .safetensors"):
        save_lora(transformer, tmp_path / "lora", {})
    with pytest.raises(ValueError, match="has no LoRA to save"):
        save_lora(load_tiny().transformer, tmp_path / "none.safetensors", {})


@pytest.mark.comfy
@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("rank, alpha", [(3, 12.0), (4, 1.0)])
def test_comfyui_applies_it_as_peft_does(loaded, tmp_path, rank, alpha):
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    with torch.inference_mode(False):
        tuned = load_tiny()
        with_lora(tuned.transformer, rank, alpha)
        path = save_lora(tuned.transformer, tmp_path / "lora.safetensors", {})
    file = comfy.utils.load_torch_file(str(path), safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(loaded.model, None, file, 1.0, 0)
    assert len(patched.patches) == len(LAYERS) * tuned.transformer.config.num_layers

    pipe = LadderPipeline(**vars(tuned))
    pipe.set_progress_bar_config(disable=True)
    unmerged = reference(pipe, PROMPT)
    merge_lora(tuned.transformer)
    merged = reference(pipe, PROMPT)
    assert largest(unmerged, merged) < 1e-3
    assert largest(unmerged, reference(LadderPipeline(**vars(load_tiny())), PROMPT)) > 1e-2

    positive, negative = encode(loaded, PROMPT), encode(loaded, "")
    latents = torch.randn(1, tuned.transformer.config.in_channels, 4, 4, generator=torch.manual_seed(2))
    states = pipe.encode_prompt(PROMPT, guidance_scale=1).states
    expected = tuned.transformer(latents, states, torch.tensor([500.0]), return_dict=False)[0]
    comfy.model_management.load_models_gpu([patched])
    found = velocity(patched, latents, 0.5, positive[0][0])
    comfy.model_management.load_models_gpu([loaded.model])
    assert largest(found, expected) < 1e-5
    assert largest(velocity(loaded.model, latents, 0.5, positive[0][0]), expected) > 1e-2
    assert largest(ladder_sample(patched, positive, negative, empty(loaded)), merged) < 1e-3
