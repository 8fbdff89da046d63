"""The dry run: what it says about parameters, data, steps and memory."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch
from tbac_uniimage.core.checkpoints import released_parts_on_meta
from tbac_uniimage.training.data.order import Source
from tbac_uniimage.training.recipe import memory
from tbac_uniimage.training.recipe.memory import estimate_memory, moments, parameter_counts
from tbac_uniimage.training.recipe.recipe import Recipe
from tbac_uniimage.training.run.dry_run import summarise
from tbac_uniimage.training.step.optimizer import make_optimizer, optimizer_tensors, parameter_groups

GIB = 1 << 30


def recipe(train: dict | None = None, **changes) -> Recipe:
    train = {"epochs": 10, "warmup": 10, "batch": 32, "micro_batch": 4} | (train or {})
    sets = [{"index": "index/a"}, {"index": "index/b"}]
    return Recipe.model_validate({"stage": "edits", "data": {"sets": sets}, "train": train} | changes)


@pytest.fixture(scope="module")
def released():
    return released_parts_on_meta()


def test_parameters_of_the_released_model(released):
    counts = parameter_counts(released, recipe())
    assert counts["queries"] == (64 * 2048, 0)
    assert counts["connector"] == (10_033_920, 0)
    assert counts["diffusion transformer"] == (1_604_462_752, 0)
    assert counts["MLLM"][0] == counts["vision tower"][0] == counts["autoencoder"][0] == 0
    assert counts["MLLM"][1] + counts["vision tower"][1] == 3_754_622_976
    assert counts["autoencoder"] == (0, 312_250_275)


def test_a_lora_trains_two_thin_matrices_per_layer(tiny):
    counts = parameter_counts(tiny, recipe({"parts": "lora", "lora": {"rank": 4, "alpha": 4.0}}))
    layers = [
        module
        for block in tiny.transformer.transformer_blocks
        for attention in (block.attn1, block.attn2)
        for module in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    ]
    expected = sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert counts["diffusion transformer"] == (
        expected,
        sum(p.numel() for p in tiny.transformer.parameters()),
    )
    assert counts["queries"][0] == counts["connector"][0] == 0


def test_state_of_the_optimizer_is_what_it_is(tiny):
    """Against the tensors that training really makes."""
    settings = recipe().train
    transformer = type(tiny.transformer).from_config(tiny.transformer.config)
    named = dict(transformer.named_parameters())
    optimizer = make_optimizer(parameter_groups(transformer, 0.05), settings)
    state = optimizer_tensors(named, optimizer)
    real = sum(t.numel() * t.element_size() for t in state.values())
    assert real == sum(moments(p.numel(), "adamw") for p in named.values())


def test_moments_in_8_bits_are_what_they_are():
    pytest.importorskip("bitsandbytes")
    layer = torch.nn.Linear(100, 131)
    settings = recipe({"optimizer": "adamw_8bit"}).train
    optimizer = make_optimizer(parameter_groups(layer, 0.05), settings)
    state = optimizer_tensors(dict(layer.named_parameters()), optimizer)
    real = sum(t.numel() * t.element_size() for t in state.values())
    assert real == sum(moments(p.numel(), "adamw_8bit") for p in layer.parameters())


def test_sharding_divides_what_is_trained(tiny):
    whole = estimate_memory(tiny, recipe({"ema": 0.999}), world=8)
    shard = estimate_memory(tiny, recipe({"ema": 0.999, "parallel": "fsdp2"}), world=8)
    for name in ("trained weights", "gradients", "optimizer state", "averaged weights"):
        assert shard[name] == pytest.approx(whole[name] / 8, abs=1)
    for name in ("frozen MLLM", "frozen vision tower", "frozen autoencoder"):
        assert shard[name] == whole[name]
    counts = parameter_counts(tiny, recipe())
    assert whole["trained weights"] == 4 * sum(trained for trained, _ in counts.values())
    assert whole["frozen MLLM"] == 2 * counts["MLLM"][1]
    assert "gathered weights" in shard and "gathered weights" not in whole


@pytest.mark.slow
def test_options_save_what_they_are_for(tiny):
    def estimate(**train) -> dict[str, int]:
        settings = recipe({"batch": 64} | train, data={"sets": [{"index": "a"}], "resolution": 128})
        return estimate_memory(tiny, settings)

    plain = estimate(micro_batch=64, gradient_checkpointing=False)
    checked = estimate(micro_batch=64)
    fewer = estimate(micro_batch=1, gradient_checkpointing=False)
    eight = estimate(optimizer="adamw_8bit")
    assert checked["activations"] < 0.9 * plain["activations"]
    assert fewer["activations"] < plain["activations"] / 20
    assert eight["optimizer state"] < plain["optimizer state"] / 2


def real_peak(run) -> int:
    """Largest sum of what torch's allocator gave and took back, bytes."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    now = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_those_of_a_real_step(tiny, monkeypatch, checkpointing, precision):
    """The same step with values, by torch's allocator."""
    settings = recipe(
        {"gradient_checkpointing": checkpointing, "precision": precision, "micro_batch": 8},
        data={"sets": [{"index": "a"}], "resolution": 128},
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def step() -> int:
        model = memory.on_meta(tiny, settings, dtype)
        return memory.count_activations(model, settings, dtype, images=1, gathered=False)

    counted = step()
    weights = memory.on_meta(tiny, settings, dtype)
    modules = (weights.mllm, weights.vae, weights.connector, weights.transformer)
    held = sum(memory.size({id(p): p for p in m.parameters()}.values()) for m in modules)
    held += memory.size(b for m in modules for b in m.buffers())
    held += memory.size(p for p in memory.model_parameters(weights) if p.requires_grad)  # gradients
    monkeypatch.setattr(memory, "FakeTensorMode", nullcontext)
    real = real_peak(step) - held
    print(f"counted {counted:,} of {real:,} bytes")
    assert counted == pytest.approx(real, rel=0.1)


@pytest.mark.slow
def test_text_of_a_dry_run(released):
    sources = [Source("gpt-image-edit", (1_553_575,)), Source("sharegpt-4o-image", (92_256,), 2.0)]
    text = summarise(recipe(init="runs/stage1/last"), released, sources, world=8)
    assert max(map(len, text.splitlines())) <= 100
    assert "stage: edits\n" in text and "learning_rate: 0.0001\n" in text
    assert "Starts from runs/stage1/last (init is given, so base is not read)." in text
    assert re.search(r"diffusion transformer +1,604,462,752 +0\n", text)
    assert re.search(r"gpt-image-edit +1,553,575 +60 +1 +1,553,\d+ +89\.\d\d\n", text)
    assert re.search(r"sharegpt-4o-image +92,256 +4 +2 +184,\d+ +10\.\d\d\n", text)
    steps = int(re.search(r"steps per epoch +([\d,]+)", text).group(1).replace(",", ""))
    assert steps == -(-(1_553_515 + 2 * 92_252) // 32)
    assert re.search(rf"\nsteps +{10 * steps:,}\n", text)
    assert re.search(rf"samples seen +{320 * steps:,}\n", text)
    assert re.search(r"passes per step and device +1\n", text)
    together = [float(n) for n in re.findall(r"together +([\d.]+)\n", text)][-1]
    assert 30 < together < 45


def test_a_new_model_and_small_buckets_are_said(tiny):
    text = summarise(recipe(), tiny, [Source("a", (500, 3)), Source("b", (100, 0))], world=1)
    assert "A new model of Qwen/Qwen2.5-VL-3B-Instruct" in text
    assert "1 of 2 buckets have less than one step's 32 samples" in text
    assert "repeats 29 samples per epoch" in text


def test_a_run_shorter_than_its_warmup_is_refused(tiny):
    with pytest.raises(ValueError, match="train.warmup is 1000, more than the run's 160 steps"):
        summarise(recipe({"warmup": 1000}), tiny, [Source("a", (500,)), Source("b", (70,))], world=1)
