"""Operations, peaks and figures of a run."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from PIL import Image
from tbac_uniimage.core.rung_kinds import RUNGS
from tbac_uniimage.training.report import throughput
from tbac_uniimage.training.report.throughput import LadderFlops, Throughput, peak_flops
from tbac_uniimage.training.step.trainee import LadderTrainee
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

LATENTS = torch.Size([2, 8, 8, 8])


def counted(trainee: LadderTrainee, inputs) -> tuple[int, dict]:
    """Operations of a step as torch counts them, but for convolutions backward, by kind."""
    latents = torch.randn(LATENTS)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = trainee(inputs, latents, torch.randn(LATENTS), torch.rand(2))
        losses.sum().backward()
    kinds = {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}
    # torch takes a grouped convolution's backward pass for that of a whole one
    return counter.get_total_flops() - kinds.get("aten.convolution_backward", 0), kinds


@pytest.mark.parametrize(
    ("rungs", "text"), [*((rungs, False) for rungs in RUNGS), ("ladder", True), ("last", True)]
)
def test_formula_is_what_torch_counts(rungs, text) -> None:
    parts = load_tiny()
    parts.connector.choose_rungs(rungs, 4)
    parts.transformer.read_text(text)
    trainee, flops = LadderTrainee(parts), LadderFlops(parts)
    captions = trainee.encoder.tokenize(["a cat on a mat " * 5, "a dog"])
    total, kinds = counted(trainee, captions)
    convolutions = 2 * kinds["aten.convolution"]  # all of them in the diffusion transformer
    assert flops(captions, LATENTS) == pytest.approx(total + convolutions, rel=5e-3)

    pictures = [[Image.new("RGB", (90, 60), "red")], [Image.new("RGB", (60, 120), "blue")]]
    edits = trainee.encoder.tokenize(["make it a cat", "a dog"], pictures)
    total, _ = counted(trainee, edits)
    assert flops(edits, LATENTS) == pytest.approx(total + convolutions, rel=5e-3)
    edits.pixel_values = None
    assert flops(edits, LATENTS) < 0.9 * (total + convolutions)


def test_what_is_frozen_costs_less() -> None:
    parts = load_tiny()
    inputs = LadderTrainee(parts).encoder.tokenize(["a cat", "a dog"])
    whole = LadderFlops(parts)(inputs, LATENTS)
    parts.connector.requires_grad_(False)
    without_connector = LadderFlops(parts)(inputs, LATENTS)
    assert without_connector < whole
    parts.transformer.requires_grad_(False)
    assert LadderFlops(parts).transformer(64) < 0.8 * LadderFlops(load_tiny()).transformer(64)


@pytest.mark.parametrize(
    "name, tera",
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080 Ti", None),
    ],
)
def test_peaks(name: str, tera: int | None) -> None:
    assert peak_flops(name) == (None if tera is None else tera * 1e12)


def test_figures(monkeypatch) -> None:
    parts = load_tiny()
    clock = iter([10.0, 12.0, 100.0, 102.0, 200.0, 201.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    speed = Throughput(parts, torch.device("cpu"), world=2)
    inputs = LadderTrainee(parts).encoder.tokenize(["a cat", "a dog"])
    for _ in range(2):
        speed.begin()
        speed.see(inputs, LATENTS)
        speed.count(samples=6, wait=1.0)
    speed.peak = 1e12
    figures = speed.figures()
    assert figures["samples_per_second"] == 12 / 4
    assert figures["data_wait"] == 2.0 / 2 / 4
    assert figures["mfu"] == pytest.approx(2 * speed.flops(inputs, LATENTS) / 4 / 1e12)
    assert 50e6 < figures["peak_memory"] < 1e12
    speed.peak = None
    speed.begin()
    speed.count(samples=3, wait=0.0)
    assert speed.figures() | {"peak_memory": 0} == {
        "samples_per_second": 3.0,
        "data_wait": 0.0,
        "mfu": None,
        "peak_memory": 0,
    }
