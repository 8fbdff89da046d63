"""What the processes of a step add up, and what a process says whose partner is gone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from tbac_uniimage.training.run.engine import as_lost_process
from tbac_uniimage.training.run.sums import OwnSums
from tbac_uniimage.training.step.objective import flow_timesteps

# where values are lost: sums of one process stay on the CPU, since a device may know no float64
NOWHERE = torch.device("meta")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_losses_are_sorted_by_noise_level_from_clean_to_noise(shift):
    """u = 0 is pure noise; a shift towards noise moves samples to later bins."""
    u = torch.tensor([0.0, 0.05, 0.1, 0.55, 0.999])
    levels = flow_timesteps(u, shift)[0]
    own = OwnSums()
    own.add(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.ones(5), levels, wait=0.5)
    sums = own.reduced(NOWHERE, interrupted=False)
    expected = {1.0: {0: 16.0, 4: 8.0, 8: 4.0, 9: 1.5}, 3.0: {0: 16.0, 7: 8.0, 9: 7 / 3}}[shift]
    assert {i: loss for i, loss in enumerate(sums.bins) if loss is not None} == pytest.approx(expected)
    assert (sums.loss, sums.weight, sums.wait, sums.broken, sums.interrupted) == (31, 5, 0.5, 0, 0)


def test_every_level_of_the_grid_has_its_bin():
    own = OwnSums()
    levels = flow_timesteps((torch.arange(1000) + 0.5) / 1000)[0]
    own.add(torch.ones(1000), torch.ones(1000), levels, wait=0.0)
    assert own.reduced(NOWHERE, interrupted=False).bin_weights == [100.0] * 10


def test_bad_samples_count_for_nothing_and_broken_ones_are_seen():
    own = OwnSums()
    own.add(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), wait=1.0)
    own.add(torch.tensor([math.nan]), torch.ones(1), torch.tensor([1.0]), wait=1.0)
    sums = own.reduced(NOWHERE, interrupted=True)
    assert (sums.weight, sums.broken, sums.interrupted, sums.wait) == (2, 1, 1, 2)
    assert sums.bins[4] == 2 and math.isnan(sums.bins[9])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"),
        RuntimeError("[gloo/transport/tcp/pair.cc:525] Read error [::1]:4711: Connection reset by peer"),
        RuntimeError("[gloo/transport/tcp/pair.cc:80] Application timeout caused pair closure"),
        dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the"),
    ],
)
def test_signs_of_a_lost_process(error):
    stop = as_lost_process(error)
    assert str(stop).startswith("Another process of the run has ended") and stop.code == 1 and not stop.alone


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory"), ConnectionResetError(104, "Connection reset by peer")]
)
def test_other_errors_are_not_taken_for_a_lost_process(error):
    assert as_lost_process(error) is None
