"""LoRA under the names of diffusers, peft, kohya and others: all draw as weights that were added by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import load_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tbac_uniimage.core.lora import comfy_lora, layer_shapes, name_layers, peft_lora
from tbac_uniimage.core.pipeline import LadderPipeline

# linear layers of both attentions, of different ranks, a convolution, and a layer outside the blocks
RANKS = {
    "transformer_blocks.0.attn1.to_q": 2,
    "transformer_blocks.1.attn2.to_k": 2,
    "transformer_blocks.1.attn2.to_out.0": 3,
    "transformer_blocks.2.ff.conv_inverted": 2,
    "proj_out": 1,
}
ALPHA = 3.0


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    return layer_shapes(load_tiny().transformer)


@pytest.fixture(scope="module")
def pairs(shapes) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    found = {}
    for layer, rank in RANKS.items():
        kernel = [1] * (len(shapes[layer]) - 2)
        down = 0.3 * torch.randn(rank, *shapes[layer][1:], generator=generator)
        found[layer] = down, 0.3 * torch.randn(shapes[layer][0], rank, *kernel, generator=generator)
    return found


def fresh(**others) -> LadderPipeline:
    pipeline = LadderPipeline(**{**vars(load_tiny()), **others})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: LadderPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    return pipeline("a cat", generator=generator, **options).images


def added(pairs, scales: dict[str, float]) -> LadderPipeline:
    """The reference: W + scale · B A."""
    pipeline = fresh()
    for layer, (down, up) in pairs.items():
        weight = pipeline.transformer.get_submodule(layer).weight.data
        weight += scales[layer] * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return pipeline


@pytest.fixture(scope="module")
def expected(pairs) -> dict[str, torch.Tensor]:
    by_alpha = {layer: ALPHA / rank for layer, rank in RANKS.items()}
    return {"alpha": draw(added(pairs, by_alpha)), "plain": draw(added(pairs, dict.fromkeys(RANKS, 1.0)))}


def named(pairs, form: str, down: str, up: str, alpha: str | None = None) -> dict[str, torch.Tensor]:
    tensors = {}
    for layer, (a, b) in pairs.items():
        name = form.replace("LAYER", layer).replace("KOHYA", layer.replace(".", "_"))
        tensors |= {f"{name}{down}": a.contiguous(), f"{name}{up}": b.contiguous()}
        if alpha:
            tensors[f"{name}{alpha}"] = torch.tensor(ALPHA)
    return tensors


FORMS = {
    "this project": ("diffusion_model.LAYER", ".lora_A.weight", ".lora_B.weight", ".alpha"),
    "diffusers": ("transformer.LAYER", ".lora_A.weight", ".lora_B.weight"),
    "diffusers of old": ("transformer.LAYER", ".lora.down.weight", ".lora.up.weight"),
    "bare": ("LAYER", ".lora_A.weight", ".lora_B.weight"),
    "peft": ("base_model.model.LAYER", ".lora_A.weight", ".lora_B.weight"),
    "peft in memory": ("LAYER", ".lora_A.default.weight", ".lora_B.default.weight"),
    "peft around a pipeline": ("base_model.model.transformer.LAYER", ".lora_A.weight", ".lora_B.weight"),
    "kohya": ("lora_unet_KOHYA", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    "onetrainer": ("lora_transformer_KOHYA", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    "comfy": ("model.diffusion_model.LAYER", ".lora_down.weight", ".lora_up.weight", ".alpha"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_name_draws_what_added_weights_draw(pairs, expected, tmp_path, form):
    tensors = named(pairs, *FORMS[form])
    save_file(tensors, tmp_path / "style.safetensors")
    pipeline = fresh()
    pipeline.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    wanted = expected["alpha" if len(FORMS[form]) == 4 else "plain"]
    torch.testing.assert_close(draw(pipeline), wanted, atol=1e-4, rtol=1e-3)
    other = fresh()
    other.load_lora_weights(tensors)
    torch.testing.assert_close(draw(other), wanted, atol=1e-4, rtol=1e-3)


def test_alpha_beside_the_tensors_counts(pairs, expected, tmp_path):
    """peft's folder, its rank-stabilised kind and its patterns; diffusers' header."""
    tensors = named(pairs, *FORMS["peft"])
    pattern = {"to_k": 6.0, "transformer_blocks.1.attn2.to_out.0": 9.0}
    halves = {layer: ALPHA / rank for layer, rank in RANKS.items()}
    patterned = halves | {"transformer_blocks.1.attn2.to_k": 3.0, "transformer_blocks.1.attn2.to_out.0": 3.0}
    rooted = {layer: ALPHA / rank**0.5 for layer, rank in RANKS.items()}
    for name, extra, scales in (
        ("plain", {}, halves),
        ("patterns", {"alpha_pattern": pattern}, patterned),
        ("rslora", {"use_rslora": True}, rooted),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": ALPHA, **extra}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        pipeline = fresh()
        pipeline.load_lora_weights(folder)
        torch.testing.assert_close(draw(pipeline), draw(added(pairs, scales)), atol=1e-4, rtol=1e-3)
    header = {"format": "pt", "lora_adapter_metadata": json.dumps({"transformer.lora_alpha": ALPHA})}
    save_file(named(pairs, *FORMS["diffusers"]), tmp_path / "x.safetensors", metadata=header)
    pipeline = fresh()
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    torch.testing.assert_close(draw(pipeline), expected["alpha"], atol=1e-4, rtol=1e-3)


def test_adapters_are_scaled_fused_saved_and_taken_away(pairs, expected, tmp_path):
    from peft.utils import get_peft_model_state_dict

    pipeline, before = fresh(), draw(fresh())
    pipeline.load_lora_weights(named(pairs, *FORMS["kohya"]), adapter_name="a")
    pipeline.load_lora_weights(named(pairs, *FORMS["diffusers"]), adapter_name="b")
    pipeline.set_adapters(["a", "b"], [0.5, 2.0])
    both = {layer: 0.5 * ALPHA / rank + 2.0 for layer, rank in RANKS.items()}
    torch.testing.assert_close(draw(pipeline), draw(added(pairs, both)), atol=1e-3, rtol=1e-3)
    pipeline.set_adapters("a")
    torch.testing.assert_close(draw(pipeline), expected["alpha"], atol=1e-4, rtol=1e-3)
    pipeline.disable_lora()
    assert torch.equal(draw(pipeline), before)
    pipeline.enable_lora()
    pipeline.delete_adapters("b")

    state = get_peft_model_state_dict(pipeline.transformer, adapter_name="a")
    LadderPipeline.save_lora_weights(
        tmp_path / "lora",
        transformer_lora_layers=state,
        transformer_lora_adapter_metadata=pipeline.transformer.peft_config["a"].to_dict(),
    )
    again = fresh()
    again.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(draw(again), expected["alpha"], atol=1e-4, rtol=1e-3)

    with pytest.raises(ValueError, match="A LoRA stands beside the transformer's weights"):
        pipeline.save_pretrained(tmp_path / "saved")
    pipeline.fuse_lora(lora_scale=0.5)
    half = draw(added(pairs, {layer: 0.5 * ALPHA / rank for layer, rank in RANKS.items()}))
    torch.testing.assert_close(draw(pipeline), half, atol=1e-4, rtol=1e-3)
    pipeline.unfuse_lora()
    torch.testing.assert_close(draw(pipeline), half, atol=1e-4, rtol=1e-3)  # diffusers keeps the scale
    pipeline.set_adapters("a")
    torch.testing.assert_close(draw(pipeline), expected["alpha"], atol=1e-4, rtol=1e-3)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "saved")
    saved = LadderPipeline.from_pretrained(tmp_path / "saved")
    saved.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(saved), expected["alpha"], atol=1e-4, rtol=1e-3)
    again.unload_lora_weights()
    assert torch.equal(draw(again), before)


def test_what_fits_no_layer_is_an_error_and_leaves_the_model_alone(pairs, shapes, tmp_path):
    pipeline = fresh()
    names = set(pipeline.transformer.state_dict())
    good = named(pairs, *FORMS["diffusers"])
    first = "transformer.transformer_blocks.0.attn1.to_q"
    wrong = {
        "8 of the 8": {
            f"unet.down.{i}.{kind}.weight": torch.zeros(2, 2)
            for i in range(4)
            for kind in ("lora_A", "lora_B")
        },
        "1 of the 11": good
        | {"transformer.transformer_blocks.99.attn1.to_q.lora_A.weight": torch.zeros(2, 2)},
        "0 of the 0": {},
        "one matrix of two": {f"{first}.lora_A.weight": good[f"{first}.lora_A.weight"]},
        "it was made for another model": good | {f"{first}.lora_A.weight": torch.zeros(2, 5)},
        r"more than a LoRA .*dora_scale": good | {f"{first}.dora_scale": torch.ones(1)},
        r"more than a LoRA .*lora_magnitude": good | {f"{first}.lora_magnitude_vector": torch.ones(1)},
        r"more than a LoRA .*lora_B.bias": good | {f"{first}.lora_B.bias": torch.ones(1)},
        r"more than a LoRA .*lokr_w1": {f"{first}.lokr_w1": torch.ones(1, 1)},
    }
    for words, tensors in wrong.items():
        with pytest.raises(ValueError, match=words):
            pipeline.load_lora_weights(tensors)
    assert set(pipeline.transformer.state_dict()) == names
    with pytest.raises(ValueError, match="more than a LoRA .*use_dora"):
        peft_lora(good, shapes, {"use_dora": True})
    (tmp_path / "lora.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a pickle"):
        pipeline.load_lora_weights(tmp_path / "lora.bin")
    with pytest.raises(ValueError, match="holds no safetensors file"):
        pipeline.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="only safetensors"):
        pipeline.load_lora_weights(tmp_path, use_safetensors=False)
    save_file(good, tmp_path / "a.safetensors")
    save_file(good, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="holds 2 safetensors files; name the LoRA's as weight_name"):
        pipeline.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="There is no LoRA at"):
        pipeline.load_lora_weights(tmp_path, weight_name="c.safetensors")


@settings(max_examples=40)
@given(st.data())
def test_names_of_all_formats_become_those_of_the_layers(shapes, data):
    layer = data.draw(st.sampled_from(sorted(shapes)))
    form, down, up, *alpha = FORMS[data.draw(st.sampled_from(sorted(FORMS)))]
    shape = shapes[layer]
    pair = torch.zeros(2, *shape[1:]), torch.zeros(shape[0], 2)
    found = name_layers(named({layer: pair}, form, down, up, *alpha), shapes)
    assert set(found) == {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"} | {
        f"{layer}.alpha" for _ in alpha
    }
    assert found[f"{layer}.lora_A.weight"].shape == pair[0].shape


def test_comfyui_gets_names_that_it_looks_for(pairs, shapes):
    found = comfy_lora(named(pairs, *FORMS["peft"]), shapes, {"lora_alpha": ALPHA})
    assert set(found) == set(named(pairs, *FORMS["this project"]))
    assert all(float(value) == ALPHA for name, value in found.items() if name.endswith("alpha"))
    other = {"transformer.proj_out.hada_w1_a": torch.zeros(1), "lycoris_proj_out.diff": torch.zeros(1)}
    assert set(comfy_lora(other, shapes, {})) == {
        "diffusion_model.proj_out.hada_w1_a",
        "diffusion_model.proj_out.diff",
    }


def test_what_the_training_writes_loads(tmp_path):
    from tbac_uniimage.training.step.lora import merge_lora, save_lora
    from test_lora import with_lora

    tuned = load_tiny()
    with_lora(tuned.transformer, 3, 12.0)
    path = save_lora(tuned.transformer, tmp_path / "mine.safetensors", {})
    pipeline = fresh()
    pipeline.load_lora_weights(path)
    merge_lora(tuned.transformer)
    merged = LadderPipeline(**vars(tuned))
    merged.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(pipeline), draw(merged), atol=1e-4, rtol=1e-3)
    assert len(load_file(Path(path))) and copy.copy(pipeline).transformer is pipeline.transformer
