"""What is frozen in little memory: the same losses from main memory, nearly the same in 8 bits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tbac_uniimage.core.checkpoints import released_parts_on_meta
from tbac_uniimage.training.recipe import memory
from tbac_uniimage.training.recipe.memory import estimate_memory, frozen_sizes
from tbac_uniimage.training.recipe.recipe import Recipe
from tbac_uniimage.training.run import frozen
from tbac_uniimage.training.step.trainee import LadderTrainee, encode_latents
from training_runs import losses, make_data, make_edits, recipe, run, train

GIB = 1 << 30
CPU = torch.device("cpu")
KINDS = ("int8", "fp8")


def settings(base: dict | None = None, **train) -> Recipe:
    sets = [{"index": "index/a"}]
    train = {"epochs": 1, "warmup": 1, "batch": 4, "micro_batch": 4} | train
    return Recipe.model_validate(
        {"stage": "test", "data": {"sets": sets, "resolution": 64}, "train": train, "base": base or {}}
    )


@pytest.fixture
def parts(tiny):
    """The tiny model, its frozen parts to be changed."""
    own = copy.copy(tiny)
    own.mllm, own.vae = copy.deepcopy(tiny.mllm), copy.deepcopy(tiny.vae)
    for module in (own.mllm, own.vae):
        module.eval().requires_grad_(False)
    return own


def step(parts, checkpointing: bool = True) -> dict[str, torch.Tensor]:
    """Losses of an edit and a caption, and the gradients that they give."""
    trainee = LadderTrainee(parts)
    trainee.encoder.gradient_checkpointing = checkpointing
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 64, 64, generator=draw) * 2 - 1
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    latents = encode_latents(parts.vae, pixels)
    noise = torch.randn(latents.shape, generator=draw)
    inputs = trainee.encoder.tokenize(["a red cat", "make it blue"], [[], [image]])
    found = trainee(inputs, latents, noise, torch.tensor([0.2, 0.7]))
    named = [(name, p) for name, p in trainee.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(found.sum(), [p for _, p in named], allow_unused=True)
    given = {name: grad for (name, _), grad in zip(named, grads, strict=True) if grad is not None}
    return {"losses": found.detach()} | given


@pytest.mark.parametrize("checkpointing", [True, False])
def test_main_memory_changes_no_bit(tiny, parts, checkpointing):
    expected = step(tiny, checkpointing)
    for module in (parts.mllm, parts.vae):
        frozen.offload(module, CPU)
        assert all(parameter.is_meta for parameter in module.parameters())
    found = step(parts, checkpointing)
    assert found.keys() == expected.keys() and "connector.queries" in found
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(parameter.is_meta for module in (parts.mllm, parts.vae) for parameter in module.parameters())


def test_one_layer_lies_on_the_device(parts):
    """What of the modules is there at any time is what the memory table says of it, but for the gradient."""
    sizes = {"mllm": memory.layer_sizes(parts.mllm.model), "vae": memory.layer_sizes(parts.vae)}
    seen = dict.fromkeys(sizes, 0)

    def watch(name, module):
        def look(layer, arguments):
            there = memory.size(p for p in module.parameters() if not p.is_meta)
            seen[name] = max(seen[name], there)

        for layer in module.modules():
            if not list(layer.children()):
                old = layer.forward

                def forward(*arguments, old=old, layer=layer, **named):
                    look(layer, arguments)
                    return old(*arguments, **named)

                layer.forward = forward

    watch("mllm", parts.mllm.model)
    watch("vae", parts.vae)
    frozen.offload(parts.mllm, CPU)
    frozen.offload(parts.vae, CPU)
    with torch.no_grad():
        step_inputs = LadderTrainee(parts).encoder
        step_inputs(["a cat"])
        encode_latents(parts.vae, torch.zeros(1, 3, 64, 64))
    assert 0 < seen["mllm"] <= max(sizes["mllm"])
    assert 0 < seen["vae"] <= max(sizes["vae"])
    told = frozen_sizes(parts, settings(offload=True))
    assert max(seen.values()) <= told["frozen layers at a time"]


def kept_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters, of those in 8 bits what they are made of."""
    total = 0
    for parameter in module.parameters():
        names = getattr(parameter, "tensor_data_names", None)
        more = getattr(parameter, "optional_tensor_data_names", ())
        tensors = [getattr(parameter, name) for name in (*names, *more)] if names else [parameter]
        total += memory.size(tensor for tensor in tensors if tensor is not None)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits(tiny, parts, kind):
    """The language model takes what is computed for it, the rest is as it was, and losses differ a little."""
    pytest.importorskip("torchao")
    expected = step(tiny)
    frozen.quantise(parts.mllm.model.language_model, kind)
    told = frozen_sizes(tiny, settings({"mllm_dtype": kind}))
    assert kept_bytes(parts.mllm.model.language_model) == told["frozen MLLM"]
    assert all(torch.equal(a, b) for a, b in zip(parts.mllm.model.visual.parameters(),
               tiny.mllm.model.visual.parameters(), strict=True))  # fmt: skip
    found = step(parts)
    difference = (found["losses"] / expected["losses"] - 1).abs().max()
    assert 0 < difference < 0.01
    a, b = found["connector.queries"], expected["connector.queries"]
    assert 0.98 < torch.cosine_similarity(a.flatten(), b.flatten(), 0) < 1
    frozen.offload(parts.mllm, CPU)
    again = step(parts)
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_the_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(frozen, "find_spec", lambda name: None)
    frozen.check_quantised(settings())
    with pytest.raises(ValueError, match=r"base\.mllm_dtype=int8 needs torchao, which is not installed: pip"):
        frozen.check_quantised(settings({"mllm_dtype": "int8"}))


@pytest.mark.slow
def test_stage_3_in_full_fits_24_gb():
    parts = released_parts_on_meta()
    base = {"epochs": 100, "warmup": 10, "batch": 32, "micro_batch": 4, "optimizer": "adamw_8bit"}
    data = {"sets": [{"index": "index/a"}]}

    def total(**train) -> float:
        values = {"stage": "test", "data": data, "train": base | train}
        return sum(estimate_memory(parts, Recipe.model_validate(values)).values()) / GIB

    assert total() * 1.1 > 24 > total(offload=True) * 1.1


def test_frozen_parts_of_the_released_model():
    """In GiB, weights in bfloat16: what the rows of the table in docs/training.md differ by."""
    parts = released_parts_on_meta()
    for module in (parts.mllm, parts.vae):
        module.to(torch.bfloat16)
    sizes = {
        (kind, away): sum(frozen_sizes(parts, settings({"mllm_dtype": kind}, offload=away)).values()) / GIB
        for kind in (None, *KINDS)
        for away in (False, True)
    }
    print(sizes)
    language, vision, vae = 3_085_938_688, 668_684_288, 312_250_275
    assert sizes[None, False] == pytest.approx(2 * (language + vision + vae) / GIB)
    assert sizes["int8", False] < sizes[None, False] - 2.3  # half of 36 blocks, less one in full
    assert all(sizes[kind, True] < 1 for kind in (None, *KINDS))


@pytest.mark.slow
def test_a_run_from_main_memory_is_the_same_run(tmp_path):
    """Losses, held-out loss and drawn pictures."""
    data = [make_data(tmp_path), make_edits(tmp_path)]
    drawn = {}
    for name, away in (("plain", False), ("away", True)):
        own = recipe(
            tmp_path / name,
            data,
            train={"steps": 3, "warmup": 1, "batch": 4, "offload": away, "gradient_checkpointing": True},
            validation={"every": 3, "held_out": 2, "prompts": ["a cat"], "steps": 2},
        )
        train(own)
        drawn[name] = (tmp_path / name / "samples" / "step-00000003.png").read_bytes()
    assert losses(tmp_path / "away") == losses(tmp_path / "plain")
    assert drawn["away"] == drawn["plain"]


@pytest.mark.slow
def test_a_run_in_eight_bits(tmp_path):
    pytest.importorskip("torchao")
    data = [make_data(tmp_path)]
    for name, kind in (("plain", None), ("eight", "int8")):
        own = recipe(tmp_path / name, data, train={"steps": 3, "warmup": 1, "batch": 4, "precision": "bf16"})
        own["base"] |= {"mllm_dtype": kind}
        train(own)
    found, expected = losses(tmp_path / "eight"), losses(tmp_path / "plain")
    assert found != expected and found == pytest.approx(expected, rel=2e-2)
    own["base"]["mllm_dtype"] = "fp8"
    code, said = run(own)
    assert code == [2] and "base.mllm_dtype: int8, now fp8" in said
