"""The ladder transformer is SANA with one condition per block; its fast path changes no number."""

import pytest
import torch
from diffusers import SanaTransformer2DModel
from tbac_uniimage.core.transformer import LadderTransformer2DModel

CONFIG = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=3,
    num_cross_attention_heads=2,
    cross_attention_head_dim=16,
    cross_attention_dim=32,
    caption_channels=24,
    sample_size=8,
)


def models(**changes) -> tuple[LadderTransformer2DModel, SanaTransformer2DModel]:
    torch.manual_seed(3)
    ladder = LadderTransformer2DModel(**CONFIG | changes).eval()
    sana = SanaTransformer2DModel(**CONFIG | changes).eval()
    sana.load_state_dict(ladder.state_dict())
    return ladder, sana


def inputs(layers: int = 3, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, 4, 8, 6, generator=generator)
    return x, torch.randn(layers, batch, 5, 24, generator=generator), torch.tensor([999.0, 20.0][:batch])


@pytest.mark.parametrize("changes", [{}, {"patch_size": 2}, {"qk_norm": "rms_norm_across_heads"}])
def test_equal_rungs_give_sana(changes):
    """With the same states on every rung the ladder is diffusers' SANA, parameter for parameter."""
    ladder, sana = models(**changes)
    x, states, t = inputs()
    states[:] = states[:1]
    with torch.no_grad():
        expected = sana(x, states[0], t).sample
        torch.testing.assert_close(ladder(x, states, t).sample, expected, atol=1e-5, rtol=1e-5)


def test_attention_calls_its_processor_without_reading_its_signature(monkeypatch):
    """What diffusers does in each of two attentions a block, which a small step feels."""
    import inspect

    ladder, _ = models()
    x, states, t = inputs()
    with torch.no_grad():
        expected = ladder(x, states, t).sample
        monkeypatch.setattr(inspect, "signature", lambda *_: pytest.fail("a signature was read"))
        assert torch.equal(ladder(x, states, t).sample, expected)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_what_was_compiled_in_the_first_step_serves_all(whole):
    """A graph for the first block and one for the others, or one of the whole: for every noise level, latents
    and rungs."""
    graphs, counts = [], []

    def backend(module: torch.fx.GraphModule, _: list):
        graphs.append(len(module.graph.nodes))
        return module.forward

    torch.compiler.reset()
    (ladder, _), (plain, _) = models(), models()
    x, states, _ = inputs()
    try:
        (ladder.compile if whole else ladder.compile_repeated_blocks)(backend=backend, fullgraph=True)
        with torch.no_grad():
            for condition in (states, states.flip(0)):
                rungs = ladder.prepare_rungs(condition)
                for timestep in (999.0, 500.0, 20.0):
                    t = torch.full((2,), timestep)
                    expected = plain(x, rungs, t).sample
                    torch.testing.assert_close(ladder(x, rungs, t).sample, expected, atol=1e-5, rtol=1e-5)
                    x = x - 0.1 * expected
                    counts.append(len(graphs))
    finally:
        torch.compiler.reset()
    assert set(counts) == {1 if whole else 2} and min(graphs) > 20


def test_each_block_sees_its_own_rung():
    """Reference: SANA's own blocks, each called with its rung through diffusers' attention processor."""
    ladder, sana = models()
    x, states, t = inputs()
    with torch.no_grad():
        hidden = sana.patch_embed(x)
        modulation, embedded = sana.time_embed(t, batch_size=2, hidden_dtype=hidden.dtype)
        for block, rung in zip(sana.transformer_blocks, states, strict=True):
            rung = sana.caption_norm(sana.caption_projection(rung))
            hidden = block(hidden, None, rung, None, modulation, 8, 6)
        hidden = sana.proj_out(sana.norm_out(hidden, embedded, sana.scale_shift_table))
        expected = hidden.transpose(1, 2).reshape(2, 4, 8, 6)
        torch.testing.assert_close(ladder(x, states, t).sample, expected, atol=1e-5, rtol=1e-5)


def test_fast_path_equals_plain_path_over_all_steps():
    """Rungs prepared once and used for several timesteps give what the states give each time."""
    ladder, _ = models()
    x, states, _ = inputs()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        rungs = ladder.prepare_rungs(states, mask)
        for t in (999.0, 500.0, 1.0):
            t = torch.full((2,), t)
            plain = ladder(x, states, t, encoder_attention_mask=mask).sample
            torch.testing.assert_close(ladder(x, rungs, t).sample, plain, atol=1e-6, rtol=1e-6)


def test_masked_queries_do_not_count():
    ladder, _ = models()
    x, states, t = inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    with torch.no_grad():
        masked = ladder(x, states, t, encoder_attention_mask=mask).sample
        torch.testing.assert_close(masked, ladder(x, states[:, :, :3], t).sample, atol=1e-5, rtol=1e-5)
        assert (masked - ladder(x, states, t).sample).abs().max() > 1e-3


def test_gradient_checkpointing_changes_no_gradient():
    ladder, _ = models()
    x, states, t = inputs()

    def gradient() -> torch.Tensor:
        ladder.zero_grad()
        ladder(x, states, t).sample.square().mean().backward()
        return ladder.transformer_blocks[0].attn2.to_k.weight.grad.clone()

    plain = gradient()
    ladder.train().enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain)


def test_wrong_number_of_layers_is_named():
    ladder, _ = models()
    x, states, t = inputs(layers=2)
    with pytest.raises(ValueError, match="has 2 layers but the diffusion transformer has 3 blocks"):
        ladder(x, states, t)


def test_configuration_survives_a_round_trip(tmp_path):
    ladder, _ = models(patch_size=2)
    ladder.save_pretrained(tmp_path)
    again = LadderTransformer2DModel.from_pretrained(tmp_path)
    public = [{k: v for k, v in m.config.items() if not k.startswith("_")} for m in (again, ladder)]
    assert public[0] == public[1]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ladder.parameters(), strict=True))
