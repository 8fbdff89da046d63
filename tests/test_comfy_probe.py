"""Ladder Probe on the embedded model: pictures are the sampler's, maps those computed the plain way."""

from __future__ import annotations

import math

import pytest
import torch
from comfy_helpers import largest
from nano_models import CHANNELS, PROMPT, SIDE, nano_comfy, nano_pipe

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

STEPS = 3


@pytest.fixture(scope="module")
def nano(comfy, tmp_path_factory):
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))
    return nano_comfy()


@pytest.fixture
def inputs(nano) -> tuple:
    from tbac_uniimage.nodes.conditioning import LadderEncode
    from tbac_uniimage.nodes.sampling import LadderEmptyLatent

    positive, negative, _ = LadderEncode.execute(nano.mllm, PROMPT).result
    return positive, negative, LadderEmptyLatent.execute(nano.model, 0, 0, 1).result[0]


def probe(nano, inputs, model=None, **options) -> tuple:
    from tbac_uniimage.nodes.probe import LadderProbe

    return LadderProbe.execute(model or nano.model, nano.vae, *inputs, 7, STEPS, 3.0, 1.0, **options).result


def plain_attention(transformer, latents, states, timestep) -> torch.Tensor:
    """Softmax of queries times keys by hand, head by head, ``[rungs, queries, places]``."""
    seen = []
    hooks = [
        block.attn2.to_q.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
        for block in transformer.transformer_blocks
    ]
    try:
        transformer(latents, states, timestep)
    finally:
        for hook in hooks:
            hook.remove()
    caption = transformer.caption_norm(transformer.caption_projection(states))
    maps = []
    for block, query, rung in zip(transformer.transformer_blocks, seen, caption, strict=True):
        attn = block.attn2
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = attn.to_k(rung)
        key = key if attn.norm_k is None else attn.norm_k(key)
        heads = []
        for q, k in zip(query[0].chunk(attn.heads, -1), key[0].chunk(attn.heads, -1), strict=True):
            weights = torch.exp(q @ k.T / math.sqrt(q.shape[-1]))
            heads.append(weights / weights.sum(-1, keepdim=True))
        maps.append(torch.stack(heads).mean(0).T)
    return torch.stack(maps)


def test_attention_sums_to_one_and_equals_the_plain_way(comfy):
    from tbac_uniimage.core.attention import focus, sharpest_queries, watch_attention

    pipe = nano_pipe()
    states = pipe.encode_prompt(PROMPT).states[:, 1:]
    latents = torch.randn(1, CHANNELS, 8, 6, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([600.0])
    with watch_attention(pipe.transformer) as watched:
        out = pipe.transformer(latents, states, timestep).sample
    maps = watched.mean()
    assert maps.shape == (6, pipe.connector.config.num_queries, 8, 6)
    sums = (maps.sum(1) - 1).abs().max().item()
    error = largest(maps.flatten(2), plain_attention(pipe.transformer, latents, states, timestep))
    print(f"\nattention: sums are 1 to {sums:.1e}, the plain way gives the same to {error:.1e}")
    assert sums < 1e-5 and error < 1e-5
    assert torch.equal(out, pipe.transformer(latents, states, timestep).sample)
    assert not any(block.attn2._forward_pre_hooks for block in pipe.transformer.transformer_blocks)
    places = focus(maps)
    by_hand = (maps[2, :, 3, 4] - maps[2].flatten(1).mean(1)).abs().sum() / 2
    assert places[2, 3, 4] == pytest.approx(by_hand.item()) and 0 <= places.min() and places.max() <= 1
    spread = maps.flatten(2).std(-1)
    assert torch.equal(sharpest_queries(maps, 1)[:, 0], spread.argmax(1))


def test_attention_is_the_mean_over_evaluations_and_pictures(comfy):
    from tbac_uniimage.core.attention import AttentionMaps, watch_attention

    pipe = nano_pipe()
    states = pipe.encode_prompt(PROMPT).states
    latents = torch.randn(2, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(1))
    levels = [torch.tensor([900.0] * 2), torch.tensor([300.0] * 2)]
    with watch_attention(pipe.transformer) as watched:
        for level in levels:
            pipe.transformer(latents, states, level)
    one = []
    for level in levels:
        for row in range(2):
            one.append(
                plain_attention(pipe.transformer, latents[[row]], states[:, [row]], level[:1]).unflatten(
                    -1, (4, 4)
                )
            )
    assert largest(watched.mean(), torch.stack(one).mean(0)) < 1e-5
    with pytest.raises(ValueError, match="was not evaluated"):
        AttentionMaps(2).mean()
    with pytest.raises(ValueError, match="parts of different sizes"):
        watched.add(0, torch.rand(1, 16, 3))


def test_the_pictures_are_those_of_the_sampler(nano, inputs):
    from tbac_uniimage.nodes.rungs import LadderRungGains
    from tbac_uniimage.nodes.sampling import LadderSampler

    model = LadderRungGains.execute(nano.model, "layout", 0.5, "").result[0]
    muted, attention, pictures = probe(nano, inputs, model)
    assert pictures.shape == (7, SIDE, SIDE, 3) and muted.shape == attention.shape
    for rung in (0, 5):
        gained = model if rung == 0 else LadderRungGains.execute(model, "even", 0, f"{rung}: 0").result[0]
        latent = LadderSampler.execute(gained, *inputs, 7, STEPS, 3.0, 1.0).result[0]
        assert torch.equal(nano.vae.decode(latent["samples"])[0], pictures[rung])
    assert largest(pictures[5], pictures[0]) > 0.1


def test_the_maps_on_the_sheet_are_those_of_the_finished_picture(nano, inputs):
    """Read at one noise level, against the pipeline's transformer on the same latents."""
    from tbac_uniimage.core.conditions import unfold_condition
    from tbac_uniimage.nodes.probing import read_attention
    from tbac_uniimage.nodes.sampling import LadderSampler

    drawn = LadderSampler.execute(nano.model, *inputs, 7, STEPS, 3.0, 1.0).result[0]
    maps = read_attention(nano.model, inputs[0], drawn, 5, [0.5])
    noise = torch.randn(drawn["samples"].shape, generator=torch.Generator().manual_seed(5))
    latents = 0.5 * noise + 0.5 * drawn["samples"] * nano_pipe().vae.config.scaling_factor
    states = unfold_condition(inputs[0][0][0], 6)
    expected = plain_attention(nano_pipe().transformer, latents, states, torch.tensor([500.0]))
    error = largest(maps.flatten(2), expected)
    print(f"\nattention in ComfyUI against the plain way on the pipeline's transformer: {error:.1e}")
    assert error < 1e-4
    assert not nano.model.model.diffusion_model.transformer_blocks[0].attn2._forward_pre_hooks


def test_sheets_for_edits_batches_masks_and_single_queries(nano, inputs):
    positive, negative, latent = inputs
    batch = {"samples": latent["samples"].repeat(3, 1, 1, 1), "noise_mask": torch.ones(3, 64, 64)}
    alone = probe(nano, inputs)
    several = probe(nano, (positive, negative, batch), query=7, moment="late", image_only=negative)
    assert largest(several[2], alone[2]) < 1e-4  # image guidance 1
    assert torch.equal(several[1][:, 60:200, 20:200], alone[1][:, 60:200, 20:200])  # the picture itself
    assert largest(several[1], alone[1]) > 0.1


def test_bad_requests_are_one_sentence(nano, inputs, loaded):
    from comfy_helpers import encode
    from tbac_uniimage.nodes.probe import LadderProbe

    import nodes as stock

    assert "guidance is nan" in LadderProbe.validate_inputs(guidance=math.nan)
    assert "moment is 'never'" in LadderProbe.validate_inputs(moment="never")
    most = nano_pipe().connector.config.num_queries
    with pytest.raises(ValueError, match=f"query is {most + 1}, this conditioning has 1 to {most}"):
        probe(nano, inputs, query=most + 1)
    positive, negative, latent = inputs
    with pytest.raises(ValueError, match="positive has the shape .* this model needs 6 rungs"):
        probe(nano, (encode(loaded, PROMPT), negative, latent))
    half = stock.ConditioningSetAreaPercentage().append(positive, 0.5, 1.0, 0.0, 0.0, 1.0)[0]
    mixed = stock.ConditioningCombine().combine(positive, half)[0]
    with pytest.raises(ValueError, match="parts of different sizes"):
        probe(nano, (mixed, negative, latent))


def test_no_live_preview_takes_the_place_of_the_sheets(nano, inputs, monkeypatch):
    """ComfyUI's page shows a node's last preview instead of its pictures, for as long as it has one."""
    import comfy.utils
    from comfy.cli_args import LatentPreviewMethod, args
    from tbac_uniimage.nodes.sampling import LadderSampler

    seen = []

    def record(value: int, total: int, preview: object, node_id: str | None = None) -> None:
        seen.append((value, total, preview))

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", record)
    LadderSampler.execute(nano.model, *inputs, 7, STEPS, 3.0, 1.0)
    assert len(seen) == STEPS and all(preview is not None for *_, preview in seen)  # as samplers do
    seen.clear()
    probe(nano, inputs)
    total = 7 * STEPS  # one bar for the picture and its six mutings
    assert seen == [(step + 1, total, None) for step in range(total)]


def test_cancel_leaves_no_hooks(nano, inputs):
    import comfy.model_management as management
    from tbac_uniimage.nodes.probing import read_attention

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        read_attention(nano.model, inputs[0], inputs[2], 1, [0.5])
    assert not nano.model.model.diffusion_model.transformer_blocks[0].attn2._forward_pre_hooks
