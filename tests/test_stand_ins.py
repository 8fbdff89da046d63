"""What stands in for a class of a library derives from it, or takes all that it takes."""

import inspect

import pytest
import torch
from diffusers.models.transformers import sana_transformer
from tbac_uniimage.core.prefixes import PrefixLayer, prefix_of
from tbac_uniimage.core.transformer import RungAttnProcessor
from tbac_uniimage.core.understanding import TextStream
from tbac_uniimage.core.versions import Qwen2_5_VLRMSNorm
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.generation.streamers import BaseStreamer


def assert_takes_what(ours, theirs):
    """Every call that fits the library's method fits ours: by place, by name, with whatever it passes on."""
    mine, wanted = inspect.signature(ours), inspect.signature(theirs)
    kinds = inspect.Parameter
    open_ended = {kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD}
    places = [p.name for p in wanted.parameters.values() if p.kind not in open_ended | {kinds.KEYWORD_ONLY}]
    mine.bind(*places)
    by_name = {p.name: None for p in wanted.parameters.values() if p.kind not in open_ended}
    mine.bind(**by_name)
    assert open_ended & {p.kind for p in wanted.parameters.values()} <= {
        p.kind for p in mine.parameters.values()
    }


def test_text_stream_takes_what_transformers_streamers_take():
    assert issubclass(TextStream, BaseStreamer)
    assert_takes_what(TextStream.put, BaseStreamer.put)
    assert_takes_what(TextStream.end, BaseStreamer.end)


def test_attention_processor_takes_what_sanas_takes():
    assert_takes_what(RungAttnProcessor.__call__, sana_transformer.SanaAttnProcessor2_0.__call__)


def test_layer_of_a_prefix_is_a_layer_of_transformers():
    assert issubclass(PrefixLayer, DynamicLayer)
    assert_takes_what(PrefixLayer.update, DynamicLayer.update)


def test_a_prefix_is_read_and_never_changed():
    """Through the library's own cache, twice, as a layer that runs again for its gradient does."""
    filled = DynamicCache()
    keys, values = torch.randn(2, 1, 2, 3, 4)
    filled.update(keys, values, 0)
    prefix = prefix_of(filled)
    assert isinstance(prefix, Cache) and prefix.get_seq_length() == 3
    new = torch.randn(2, 1, 2, 2, 4)
    for _ in range(2):
        seen = prefix.update(*new, 0)
        for found, old, behind in zip(seen, (keys, values), new, strict=True):
            assert torch.equal(found, torch.cat([old, behind], dim=2))
    assert prefix.get_seq_length() == filled.get_seq_length() == 3


@pytest.mark.comfy
def test_norms_and_head_take_what_the_libraries_take(comfy):
    from diffusers.models.normalization import RMSNorm
    from tbac_uniimage.nodes.mllm import TiedHead
    from tbac_uniimage.nodes.offload import CastQwenRMSNorm, CastRMSNorm

    for ours, theirs in ((CastRMSNorm, RMSNorm), (CastQwenRMSNorm, Qwen2_5_VLRMSNorm)):
        assert issubclass(ours, theirs)
        assert_takes_what(ours.forward, theirs.forward)
    assert_takes_what(TiedHead.forward, torch.nn.Linear.forward)


@pytest.mark.comfy
def test_every_norm_of_the_language_model_is_comfyuis(loaded):
    """None is passed over because its class has another name in this version."""
    norms = [m for m in loaded.mllm.encoder.mllm.model.modules() if isinstance(m, Qwen2_5_VLRMSNorm)]
    assert len(norms) > 10 and all(norm.comfy_cast_weights for norm in norms)
