"""The noise levels of training, and the loss on a case worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tbac_uniimage.core.conditions import LadderCondition
from tbac_uniimage.training.step.objective import flow_matching_loss, flow_timesteps


@given(st.floats(0, 0.9999989867210388, width=32), st.floats(0.5, 6))
def test_levels_lie_on_the_training_grid(u, shift):
    sigma, timestep = flow_timesteps(torch.tensor([u]))
    assert 0 < sigma.item() <= 1
    assert timestep.item() == pytest.approx(round(timestep.item()), abs=1e-3)
    shifted, _ = flow_timesteps(torch.tensor([u]), shift)
    assert shifted.item() == pytest.approx(shift * sigma.item() / (1 + (shift - 1) * sigma.item()))


def test_both_ends():
    sigma, timestep = flow_timesteps(torch.tensor([0.0, 0.5, 0.9999]))
    torch.testing.assert_close(sigma, torch.tensor([1.0, 0.5, 0.001]))
    torch.testing.assert_close(timestep, torch.tensor([1000.0, 500.0, 1.0]))


def test_loss_of_a_known_prediction():
    """A model that predicts noise + latent misses the target noise - latent by twice the latent."""
    latents = torch.tensor([0.5, -2.0]).reshape(2, 1, 1, 1)
    noise = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    seen = {}

    def model(noisy, states, timestep, encoder_attention_mask, text_tokens, return_dict):
        seen.update(noisy=noisy, timestep=timestep)
        return (noise + latents,)

    condition = LadderCondition(torch.zeros(1, 2, 1, 1), torch.ones(2, 1))
    loss = flow_matching_loss(model, condition, latents, noise, u=torch.tensor([0.75, 0.0]))
    assert loss.item() == pytest.approx(((2 * 0.5) ** 2 + (2 * 2.0) ** 2) / 2)
    torch.testing.assert_close(seen["noisy"].flatten(), torch.tensor([0.75 * 0.5 + 0.25 * 1.0, 3.0]))
    torch.testing.assert_close(seen["timestep"], torch.tensor([250.0, 1000.0]))
