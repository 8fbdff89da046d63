"""Averaged weights."""

from __future__ import annotations

import pytest
import torch
from tbac_uniimage.training.step.ema import AveragedWeights
from torch import nn


def built(decay: float = 0.9) -> tuple[nn.Linear, AveragedWeights]:
    layer = nn.Linear(3, 2)
    return layer, AveragedWeights(dict(layer.named_parameters()), decay)


def walk(layer: nn.Module, averages: AveragedWeights, steps: range) -> None:
    """Some training: weights drawn by step."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(generator=draw)
        averages.update()


def test_average_by_hand() -> None:
    layer, averages = built(decay=0.25)
    expected = layer.weight.detach().double()
    for step, decay in enumerate([0.1, 2 / 11, 0.25, 0.25]):
        walk(layer, averages, range(step, step + 1))
        expected = decay * expected + (1 - decay) * layer.weight.detach().double()
    torch.testing.assert_close(averages.averages["weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert averages.tensors()["ema_updates"] == 4


def test_long_average_forgets_the_first_weights() -> None:
    layer, averages = built(decay=0.9999)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
    for _ in range(200):
        averages.update()
    assert (averages.averages["weight"] - 1).abs().max() < 1e-6


def test_applied_and_restored_exactly() -> None:
    layer, averages = built()
    walk(layer, averages, range(5))
    weight, average = layer.weight.detach().clone(), averages.averages["weight"].clone()
    with averages.applied():
        assert torch.equal(layer.weight, average)
        with pytest.raises(RuntimeError, match="in use"):
            averages.update()
        with pytest.raises(RuntimeError, match="in use"):
            averages.tensors()
    assert torch.equal(layer.weight, weight)
    assert torch.equal(averages.averages["weight"], average)


def test_restored_after_an_error() -> None:
    layer, averages = built()
    walk(layer, averages, range(3))
    weight = layer.weight.detach().clone()
    with pytest.raises(KeyError), averages.applied():
        raise KeyError
    assert torch.equal(layer.weight, weight)


def test_resumed_is_uninterrupted() -> None:
    (layer, averages), (other, resumed) = built(), built()
    walk(layer, averages, range(4))
    other.load_state_dict(layer.state_dict())
    assert resumed.tensors().keys() == {"ema/weight", "ema/bias", "ema_updates"}
    for name, tensor in resumed.tensors().items():
        tensor.copy_(averages.tensors()[name])
    walk(layer, averages, range(4, 9))
    walk(other, resumed, range(4, 9))
    for name, tensor in resumed.tensors().items():
        assert torch.equal(tensor, averages.tensors()[name])


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="train.ema is 1"):
        built(decay=1.0)
    with pytest.raises(ValueError, match="weight is torch.bfloat16"):
        AveragedWeights(dict(nn.Linear(2, 2).bfloat16().named_parameters()), 0.9)
