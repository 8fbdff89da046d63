"""The memory that ComfyUI is told to make room for, against what the released sizes take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.slow]


@pytest.fixture
def fake(comfy) -> Iterator[None]:
    """Tensors without values, bfloat16 as on a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def released() -> SimpleNamespace:
    from tbac_uniimage.core.checkpoints.parts import released_configs

    return released_configs()


def growth(call: Callable[[torch.Tensor], object], small: tuple, large: tuple) -> int:
    """By how many bytes the peak of a call grows with its input; weights and other constants cancel."""
    from torch.distributed._tools.mem_tracker import MemTracker

    peaks = []
    for shape in (small, large):
        inputs, tracker = torch.zeros(shape), MemTracker()
        with tracker:
            call(inputs)
        peaks.append(max(found["Total"] for found in tracker.get_tracker_snapshot("peak").values()))
    return peaks[1] - peaks[0]


def test_room_for_the_autoencoder(released, fake):
    from diffusers import AutoencoderDC
    from tbac_uniimage.nodes.autoencoder import DECODE_VALUES, ENCODE_VALUES

    vae = AutoencoderDC.from_config(released.vae).eval()
    pixels = 1024**2 - 512**2
    for told, taken in (
        (ENCODE_VALUES, growth(vae.encode, (1, 3, 512, 512), (1, 3, 1024, 1024))),
        (DECODE_VALUES, growth(vae.decode, (1, 32, 16, 16), (1, 32, 32, 32))),
    ):
        print(f"\n{taken / pixels / 2:.0f} values a pixel, {told} told")
        assert 1 <= told * pixels * 2 / taken < 1.25


def test_room_for_the_diffusion_model(released, fake, monkeypatch):
    import comfy.model_management
    from comfy.model_base import BaseModel
    from tbac_uniimage.core.transformer import LadderTransformer2DModel
    from tbac_uniimage.nodes.diffusion import LadderConfig

    # as on a GPU; otherwise ComfyUI adds room for attention of another kind
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)
    transformer = LadderTransformer2DModel.from_config(released.transformer).eval()
    states, timesteps = torch.zeros(20, 3, 64, 2304), torch.zeros(3)
    small, large = (3, 32, 16, 16), (3, 32, 64, 64)
    taken = growth(lambda x: transformer(x, states, timesteps), small, large)
    model = SimpleNamespace(
        memory_usage_factor=LadderConfig.memory_usage_factor,
        memory_usage_factor_conds=(),
        memory_usage_shape_process={},
        manual_cast_dtype=None,
        get_dtype=torch.get_default_dtype,
        get_dtype_inference=torch.get_default_dtype,  # what ComfyUI 0.13 and newer ask
    )
    told = BaseModel.memory_required(model, large) - BaseModel.memory_required(model, small)
    print(f"\n{taken / 2**20:.0f} MB more for latents of 64 x 64 than of 16 x 16, {told / 2**20:.0f} told")
    assert 1 <= told / taken < 1.6
