"""Small models take one thread in the shell, unless somebody said otherwise."""

from __future__ import annotations

import pytest
import torch
from tbac_uniimage.shell import commands
from tbac_uniimage.shell.main import make_parser
from tbac_uniimage.training import threads
from tbac_uniimage.training.threads import CHOICES, spare_threads
from torch import nn


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """What torch is asked for, with no choice made."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    return asked


def test_small_ones_take_one(asked):
    spare_threads(nn.Linear(10, 10), nn.Linear(10, 10))
    assert asked == [1]


def test_large_ones_keep_all(asked):
    with torch.device("meta"):
        halves = [nn.Linear(5000, 5100), nn.Linear(5000, 5100)]
    spare_threads(halves[0])
    assert asked == [1]
    spare_threads(*halves)
    assert asked == [1]


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_stands(name, asked, monkeypatch):
    monkeypatch.setenv(name, "2")
    spare_threads(nn.Linear(10, 10))
    assert asked == []


@pytest.mark.parametrize(("limit", "expected"), [(threads.SMALL, [1]), (1_000_000, [])])
def test_the_shell_counts_the_model(limit, expected, asked, monkeypatch):
    monkeypatch.setattr(threads, "SMALL", limit)
    commands.load_pipeline(make_parser().parse_args(["generate", "x", "--device", "cpu"]))
    assert asked == expected
