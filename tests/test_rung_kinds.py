"""What every block is told, by the kind of model: values, files, and the same pictures in ComfyUI."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import PROMPT, empty, encode, ladder_sample, largest, reference
from full_pass import query_states
from tbac_uniimage.core.checkpoints import LadderParts, load_parts, save_released
from tbac_uniimage.core.conditions import unfold_condition
from tbac_uniimage.core.connector import LadderConnector
from tbac_uniimage.core.encoder import LadderEncoder
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.core.rung_kinds import RUNGS
from tiny_checkpoint import assert_same

BLOCKS = 4
NANO = Path(__file__).resolve().parent.parent / "assets" / "nano"


@pytest.fixture
def of_kind(tiny) -> Callable[[str], LadderParts]:
    """The tiny model with rungs of another kind; learned weights are drawn."""

    def make(kind: str) -> LadderParts:
        connector = copy.deepcopy(tiny.connector)
        connector.choose_rungs(kind, BLOCKS)
        if kind == "mixed":
            generator = torch.Generator().manual_seed(0)
            connector.layer_logits.data = torch.randn(BLOCKS, BLOCKS, generator=generator)
        return replace(tiny, connector=connector)

    return make


def encoder_of(parts: LadderParts) -> LadderEncoder:
    return LadderEncoder(parts.mllm, parts.connector, parts.tokenizer, parts.image_processor, BLOCKS)


def pipeline_of(parts: LadderParts) -> LadderPipeline:
    pipeline = LadderPipeline(**vars(parts))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", RUNGS)
@torch.no_grad()
def test_every_block_is_told_what_the_kind_says(of_kind, picture, kind):
    parts = of_kind(kind)
    encoder = encoder_of(parts)
    inputs = encoder.tokenize(["a cat", "make the sky much darker"], [[], [picture]])
    *layers, final = query_states(parts, encoder, inputs)
    first, second, third, last = layers[-BLOCKS:]
    told = {
        "ladder": [first, second, third, last],
        "last": [last] * BLOCKS,
        "final": [final] * BLOCKS,
        "reversed": [last, third, second, first],
    }
    if kind == "mixed":
        exponentials = parts.connector.layer_logits.exp()
        weights = exponentials / exponentials.sum(1, keepdim=True)
        assert weights.std() > 0.05
        told["mixed"] = [sum(w * s for w, s in zip(row, layers[-BLOCKS:], strict=True)) for row in weights]
    expected = parts.connector.layers(torch.stack(told[kind]))
    torch.testing.assert_close(encoder.encode(inputs).states, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", RUNGS)
def test_the_last_layer_runs_for_the_final_state_only(of_kind, kind):
    parts, ran = of_kind(kind), []
    hook = parts.mllm.model.language_model.layers[-1].register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        encoder_of(parts)(["a cat"])
    finally:
        hook.remove()
    assert len(ran) == (2 if kind == "final" else 0)  # the prefix, then the queries


@pytest.mark.parametrize("kind", RUNGS)
def test_gradients_reach_queries_connector_and_learned_weights(of_kind, kind):
    parts = of_kind(kind)
    encoder_of(parts)(["a cat"]).states.square().sum().backward()
    for name, parameter in parts.connector.named_parameters():
        assert name == "reserved_rows" or parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in parts.mllm.parameters())


def test_learned_weights_start_equal_and_are_all_that_is_added(of_kind):
    counts = {kind: sum(p.numel() for p in of_kind(kind).connector.parameters()) for kind in RUNGS}
    added = {kind: count - counts["ladder"] for kind, count in counts.items()}
    assert added == dict.fromkeys(RUNGS, 0) | {"mixed": BLOCKS**2}
    connector = LadderConnector(2, 8, 8, rungs="mixed", num_blocks=3)
    states = torch.randn(3, 1, 2, 8)
    mean = connector.layers(states.mean(0))
    torch.testing.assert_close(connector(states), mean.expand(3, -1, -1, -1))


@pytest.mark.parametrize("kind", RUNGS)
def test_a_saved_model_draws_the_same(of_kind, tmp_path, kind):
    parts = of_kind(kind)
    pipeline = pipeline_of(parts)
    pipeline.save_pretrained(tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "connector" / "config.json").read_text())
    assert (stored["rungs"], stored["num_blocks"]) == (kind, BLOCKS if kind == "mixed" else None)
    loaded = load_parts(tmp_path / "model")
    assert_same(loaded, parts)
    assert torch.equal(reference(pipeline_of(loaded), PROMPT), reference(pipeline, PROMPT))


@torch.no_grad()
def test_every_kind_draws_another_picture(of_kind):
    drawn = [reference(pipeline_of(of_kind(kind)), PROMPT) for kind in RUNGS]
    for i, latents in enumerate(drawn):
        assert all(largest(latents, other) > 1e-3 for other in drawn[:i])


def test_models_that_say_nothing_have_the_ladder(tmp_path):
    config = json.loads((NANO / "connector" / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("rungs", "num_blocks")}
    connector = LadderConnector.from_config(config)
    assert connector.config.rungs == "ladder" and connector.layer_logits is None
    states = torch.randn(6, 1, 20, config["mllm_dim"])
    assert torch.equal(connector(states), connector.layers(states))


def test_the_released_layout_is_for_the_ladder(of_kind, tmp_path):
    for kind in RUNGS[1:]:
        with pytest.raises(ValueError, match=f"has {kind} rungs, .* know the ladder only; write a pipeline"):
            save_released(of_kind(kind), tmp_path / "released")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_refused(of_kind):
    with pytest.raises(ValueError, match="rungs is 'sideways'; choose ladder, last, final, reversed, mixed"):
        LadderConnector(2, 8, 8, rungs="sideways")
    with pytest.raises(ValueError, match="'mixed', which learns weights for every block; give num_blocks"):
        LadderConnector(2, 8, 8, rungs="mixed")
    parts = of_kind("mixed")
    with pytest.raises(ValueError, match="mixes states for 4 blocks but the diffusion transformer has 3"):
        LadderEncoder(parts.mllm, parts.connector, parts.tokenizer, parts.image_processor, num_layers=3)


@pytest.mark.comfy
@pytest.mark.parametrize("kind", RUNGS[1:])
def test_comfyui_draws_what_the_pipeline_draws(comfy, of_kind, tmp_path, kind):
    from tbac_uniimage.nodes.bridge import load_for_comfy

    pipeline = pipeline_of(of_kind(kind))
    pipeline.save_pretrained(tmp_path)
    loaded = SimpleNamespace(**dict(zip(("model", "mllm", "vae"), load_for_comfy(tmp_path), strict=True)))
    with torch.inference_mode():
        positive, negative = encode(loaded, PROMPT), encode(loaded, "")
        states = pipeline.encoder([PROMPT]).states
        assert largest(unfold_condition(positive[0][0], BLOCKS), states) < 1e-5
        drawn = ladder_sample(loaded.model, positive, negative, empty(loaded))
        expected = reference(pipeline, PROMPT, guidance_scale=4.5)
    assert largest(drawn, expected) < 1e-3
