"""What newer versions of ComfyUI have: used where it is there, done without where it is not."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace

import comfy_helpers
import pytest
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]


def all_nodes() -> list:
    from tbac_uniimage.nodes import LadderExtension

    return asyncio.run(LadderExtension().get_node_list())


def test_every_node_has_search_terms_where_comfyui_takes_them(comfy, monkeypatch):
    from comfy_api.latest import io
    from tbac_uniimage.nodes import compat

    @dataclass
    class NewerSchema(io.Schema):
        search_aliases: list[str] = field(default_factory=list)

    monkeypatch.setattr(compat, "io", SimpleNamespace(Schema=NewerSchema))
    found = {node.define_schema().node_id: node.define_schema().search_aliases for node in all_nodes()}
    assert len(found) == 16
    for node, terms in found.items():
        assert len(terms) >= 3 and len(set(terms)) == len(terms), node
    assert "image edit" in found["TBACUniImageEdit"] and "image edit" in found["TBACUniImageEditPicture"]


def test_what_few_need_is_folded_away_where_comfyui_can(comfy):
    from comfy_api.latest import io
    from tbac_uniimage.nodes.compat import ADVANCED

    known = "advanced" in inspect.signature(io.Float.Input.__init__).parameters
    assert ADVANCED == ({"advanced": True} if known else {})
    folded = [
        f"{node.define_schema().node_id}.{item.id}"
        for node in all_nodes()
        for item in node.define_schema().inputs
        if getattr(item, "advanced", None)
    ]
    assert ("TBACUniImageSampler.guidance_start" in folded) is known
    assert not any(name.endswith((".guidance", ".steps", ".prompt", ".mask")) for name in folded)


def test_an_empty_latent_that_says_what_it_assumed_is_put_right(loaded, monkeypatch):
    """Newer Empty Latent Image adds the factor it divided by; KSampler, and so our sampler, hands it on."""
    import comfy.sample

    asked = []
    plain = comfy.sample.fix_empty_latent_channels

    def newer(model, samples, downscale_ratio_spacial=None):
        asked.append(downscale_ratio_spacial)
        if downscale_ratio_spacial is not None:
            samples = samples[..., ::2, ::2]
        return plain(model, samples)

    monkeypatch.setattr(comfy.sample, "fix_empty_latent_channels", newer)
    from tbac_uniimage.nodes.sampling import LadderSampler

    states = comfy_helpers.encode(loaded, comfy_helpers.PROMPT)

    def sample(latent: dict) -> dict:
        return LadderSampler.execute(loaded.model, states, states, latent, 7, 2, 1.0, 1.0).result[0]

    told = sample({"samples": torch.zeros(1, 4, 16, 16), "downscale_ratio_spacial": 4, "batch_index": [0]})
    assert told["samples"].shape == (1, 8, 8, 8) and set(told) == {"samples", "batch_index"}
    assert asked == [4]
    assert torch.equal(told["samples"], sample({"samples": torch.zeros(1, 8, 8, 8)})["samples"])
    assert asked == [4, None]
