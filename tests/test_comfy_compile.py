"""A MODEL compiled as TorchCompileModel compiles it: what differs from step to step is not frozen in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import OTHER, PROMPT, empty, encode, ladder_sample, largest

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]


def keep(guards: list) -> list[bool]:
    """Which guards TorchCompileModel of ComfyUI 0.33 leaves in force (nodes_torch_compile.py)."""
    return ["transformer_options" not in guard.name for guard in guards]


@pytest.fixture(scope="module")
def inputs(loaded) -> tuple:
    """Positive, negative and an empty latent."""
    with torch.inference_mode():
        return encode(loaded, PROMPT), encode(loaded, OTHER), empty(loaded)


@pytest.fixture(scope="module")
def compiled(loaded) -> Iterator[SimpleNamespace]:
    """The MODEL compiled by ComfyUI's own helper, on older ComfyUI, too, with the guards of newer; ``graphs``
    counts what was compiled."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    graphs = []

    def backend(module: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(len(module.graph.nodes))
        return module.forward

    torch.compiler.reset()
    model = loaded.model.clone()
    set_torch_compile_wrapper(model, backend, options={"guard_filter_fn": keep})
    yield SimpleNamespace(model=model, graphs=graphs)
    torch.compiler.reset()


def test_every_step_has_its_own_timestep(loaded, compiled, inputs):
    """Ladder Sampler tells the model the recipe's whole-numbered timestep of each step."""
    expected = ladder_sample(loaded.model, *inputs)
    assert largest(ladder_sample(compiled.model, *inputs), expected) < 1e-5
    assert max(compiled.graphs) > 100, "the transformer was not compiled"


def test_every_model_has_its_own_gains(loaded, compiled, inputs):
    from tbac_uniimage.nodes.rungs import LadderRungGains

    drawn = []
    for curve in ("1", "0", "1: 3", "1"):
        plain, after = (
            ladder_sample(LadderRungGains.execute(model, "even", 0.0, curve).result[0], *inputs)
            for model in (loaded.model, compiled.model)
        )
        assert largest(after, plain) < 1e-5
        drawn.append(after)
    assert largest(drawn[0], drawn[1]) > 0.01 and largest(drawn[0], drawn[2]) > 0.01
    assert torch.equal(drawn[0], drawn[3])


def test_wrappers_of_other_packs_come_and_go(loaded, compiled, inputs):
    """EasyCache and its kind are options, too."""
    from comfy.patcher_extension import WrappersMP

    def halve(executor, *arguments, **options):
        return executor(*arguments, **options) / 2

    wrapped = compiled.model.clone()
    wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", halve)
    uncompiled = loaded.model.clone()
    uncompiled.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", halve)
    expected = ladder_sample(uncompiled, *inputs)
    assert largest(expected, ladder_sample(loaded.model, *inputs)) > 0.01
    assert largest(ladder_sample(wrapped, *inputs), expected) < 1e-5
    assert largest(ladder_sample(compiled.model, *inputs), ladder_sample(loaded.model, *inputs)) < 1e-5
