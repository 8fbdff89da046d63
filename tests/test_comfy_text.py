"""Models whose blocks attend to the text's tokens, in ComfyUI: conditions of many lengths, by value."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import (
    INSTRUCTION,
    OTHER,
    PROMPT,
    STEPS,
    as_batch,
    empty,
    encode,
    in_both,
    ladder_sample,
    largest,
    reference,
)
from source_models import attending, pipeline_of

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

LONG = "a red apple, two green pears and a bunch of blue grapes on a wooden table beside a small white jug"


@pytest.fixture(scope="module")
def reader(comfy, tiny, tmp_path_factory) -> SimpleNamespace:
    """The tiny model with the option, as ComfyUI and as Python have it."""
    return in_both(pipeline_of(attending(tiny)), tmp_path_factory.mktemp("attending"))


@pytest.fixture(scope="module")
def x(reader) -> torch.Tensor:
    shape = 1, reader.pipe.transformer.config.in_channels, 8, 8
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def velocity(reader, x, conditioning) -> torch.Tensor:
    """At a timestep of 500, of the first entry."""
    from comfy.model_management import load_models_gpu

    load_models_gpu([reader.model])
    context = conditioning[0][0]
    return reader.model.model.diffusion_model(x, torch.tensor([500.0]), context, transformer_options={})


def told(reader, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Core's states of a prompt: of the queries and of the text."""
    condition = reader.pipe.encoder([prompt])
    queries = condition.states.shape[2] - condition.text_tokens
    used = int(condition.mask.sum())
    return condition.states[:, :, :queries], condition.states[:, :, queries:used]


def predict(reader, x, queries, text, weights=None) -> torch.Tensor:
    """The core transformer's own answer."""
    mask = None if weights is None else torch.cat([torch.ones(queries.shape[2]), torch.tensor(weights)])[None]
    states, tokens = torch.cat([queries, text], dim=2), text.shape[2]
    return reader.pipe.transformer(x, states, torch.tensor([500.0]), mask, text_tokens=tokens).sample


def test_a_conditioning_is_what_core_encodes(reader, x):
    """Whatever its length: padded to a multiple of the queries, so that branches are evaluated together."""
    queries = reader.pipe.connector.config.num_queries
    lengths = []
    for prompt in (PROMPT, "", LONG):
        conditioning = encode(reader, prompt)
        lengths.append(conditioning[0][0].shape[1])
        assert lengths[-1] % queries == 0
        assert largest(velocity(reader, x, conditioning), predict(reader, x, *told(reader, prompt))) < 1e-5
    assert lengths[2] > lengths[0]


@pytest.mark.parametrize("negative", ["", OTHER, LONG])
@pytest.mark.parametrize("prompt", [PROMPT, LONG])
def test_ladder_sampler_equals_the_pipeline_whatever_the_lengths(reader, prompt, negative):
    found = ladder_sample(reader.model, encode(reader, prompt), encode(reader, negative), empty(reader, 2))
    expected = reference(
        reader.pipe, prompt, negative_prompt=negative, num_images_per_prompt=2, guidance_scale=4.5
    )
    assert largest(found, expected) < 1e-3


def test_edits_equal_the_pipeline(reader, picture):
    """Nodes of an edit, the whole edit in one node, and the map of changes."""
    from tbac_uniimage.nodes.changes import LadderChangeMap
    from tbac_uniimage.nodes.conditioning import LadderImageEdit
    from tbac_uniimage.nodes.editing import LadderEdit

    small = picture.resize((64, 64))
    scales = {"guidance_scale": 4.5, "image_guidance_scale": 1.5}
    positive, image_only, negative, latent = LadderImageEdit.execute(
        reader.mllm, INSTRUCTION, as_batch(small), negative_prompt=LONG
    ).result
    drawn = ladder_sample(reader.model, positive, negative, latent, image_only)
    wanted = reference(reader.pipe, INSTRUCTION, image=small, negative_prompt=LONG, **scales)
    assert largest(drawn, wanted) < 1e-3
    found = LadderEdit.execute(
        reader.model, reader.mllm, reader.vae, as_batch(small), INSTRUCTION, 7, STEPS, 4.5, 1.5
    ).result[0]
    generator = torch.Generator().manual_seed(7)
    options = {"num_inference_steps": STEPS, "output_type": "pt", "generator": generator}
    assert largest(found, reader.pipe(INSTRUCTION, small, **scales, **options).images.movedim(1, -1)) < 1e-3
    change = LadderChangeMap.execute(
        reader.model, reader.mllm, reader.vae, as_batch(small), INSTRUCTION
    ).result[1]
    wanted = reader.pipe.change_map(INSTRUCTION, small).maps[0]
    large = torch.nn.functional.interpolate(wanted[None, None], small.size[::-1], mode="bilinear")
    assert largest(change, large[:, 0]) < 1e-3


def test_concat_attends_to_both_texts(reader, x):
    import nodes as stock

    joined = stock.ConditioningConcat().concat(encode(reader, PROMPT), encode(reader, LONG))[0]
    parts = told(reader, PROMPT), told(reader, LONG)
    both = [torch.cat(kind, dim=2) for kind in zip(*parts, strict=True)]
    assert largest(velocity(reader, x, joined), predict(reader, x, *both)) < 1e-5


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_average_means_token_by_token_and_what_only_one_has_counts_in_part(reader, x, strength):
    """Of the longer text to the shorter, both padded to the same number of tokens, and to an empty one."""
    import nodes as stock

    average = stock.ConditioningAverage().addWeighted
    (queries, text), (others, short) = told(reader, PROMPT), told(reader, "two cats")
    common = short.shape[2]
    assert common < text.shape[2]
    mixed = average(encode(reader, PROMPT), encode(reader, "two cats"), strength)[0]
    means = strength * text[:, :, :common] + (1 - strength) * short
    wanted = torch.cat([means, text[:, :, common:]], dim=2)
    weights = [1.0] * common + [strength] * (text.shape[2] - common)
    expected = predict(reader, x, strength * queries + (1 - strength) * others, wanted, weights)
    assert largest(velocity(reader, x, mixed), expected) < 1e-5
    if strength in (0.0, 1.0):
        one = encode(reader, PROMPT if strength else "two cats")
        assert largest(velocity(reader, x, mixed), velocity(reader, x, one)) < 1e-5

    silent = average(encode(reader, PROMPT), encode(reader, ""), strength)[0]
    mean = strength * queries + (1 - strength) * told(reader, "")[0]
    expected = predict(reader, x, mean, text, [strength] * text.shape[2])
    assert largest(velocity(reader, x, silent), expected) < 1e-5


def test_zero_out_says_nothing(reader, x):
    import nodes as stock

    zeros = stock.ConditioningZeroOut().zero_out(encode(reader, PROMPT))[0]
    states = torch.zeros_like(told(reader, PROMPT)[0])
    expected = reader.pipe.transformer(x, states, torch.tensor([500.0])).sample
    assert largest(velocity(reader, x, zeros), expected) < 1e-5


def ksample(reader, positive, negative, steps=2, cfg=3.0, model=None) -> torch.Tensor:
    import nodes as stock

    sampled = stock.common_ksampler(
        model or reader.model, 7, steps, cfg, "euler", "simple", positive, negative, empty(reader)
    )
    return sampled[0]["samples"]


def test_evaluated_together_and_apart_is_the_same(reader, monkeypatch):
    """ComfyUI repeats conditions to a common length where it evaluates them as one batch."""
    from comfy import conds

    calls = []
    concat = conds.CONDCrossAttn.concat

    def counting(self, others):
        calls.append([self.cond.shape[1], *(other.cond.shape[1] for other in others)])
        return concat(self, others)

    monkeypatch.setattr(conds.CONDCrossAttn, "concat", counting)
    positive, negative = encode(reader, LONG), encode(reader, "")
    together = ksample(reader, positive, negative)
    assert {len(set(lengths)) for lengths in calls} == {2}  # both branches in one batch, lengths differ
    monkeypatch.setattr(conds.CONDCrossAttn, "can_concat", lambda self, other: False)
    calls.clear()
    apart = ksample(reader, positive, negative)
    assert all(len(lengths) == 1 for lengths in calls)
    assert largest(together, apart) < 1e-4


def test_combine_masks_and_timestep_ranges(reader):
    """Parts of different lengths: the mean of predictions, halves of the picture, one after the other."""
    import nodes as stock

    a, b, none = encode(reader, PROMPT), encode(reader, LONG), encode(reader, "")

    def once(conditioning) -> torch.Tensor:
        return ksample(reader, conditioning, conditioning, steps=1, cfg=1.0)

    both = stock.ConditioningCombine().combine(a, b)[0]
    assert largest(once(both), (once(a) + once(b)) / 2) < 1e-4
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    mask = stock.ConditioningSetMask().append
    halves = mask(a, left, "default", 1.0)[0] + mask(b, 1 - left, "default", 1.0)[0]
    middle = once(a).shape[-1] // 2
    expected = torch.cat([once(a)[..., :middle], once(b)[..., middle:]], dim=-1)
    assert largest(once(halves), expected) < 1e-4

    ranged = stock.ConditioningSetTimestepRange().set_range
    parts = ranged(a, 0.0, 0.5)[0] + ranged(b, 0.5, 1.0)[0]
    drawn = ksample(reader, parts, none, steps=4)
    assert min(largest(drawn, ksample(reader, one, none, steps=4)) for one in (a, b)) > 1e-3
    assert largest(ksample(reader, ranged(b, 0.0, 1.0)[0], none, steps=4), ksample(reader, b, none, 4)) < 1e-5


def test_stored_and_loaded(reader, tmp_path):
    from tbac_uniimage.nodes.conditioning_file import read_conditioning, write_conditioning

    both = encode(reader, PROMPT) + encode(reader, LONG)
    write_conditioning(tmp_path / "c.safetensors", both)
    again, _ = read_conditioning(tmp_path / "c.safetensors")
    assert [len(entry[0][0]) for entry in again] == [len(entry[0][0]) for entry in both]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(again, both, strict=True))


def test_gains_equal_those_of_the_pipeline(reader):
    from tbac_uniimage.nodes.ladders import with_gains

    gains = [1.0, 0.0, 2.0, 0.5]
    model = with_gains(reader.model, gains)
    found = ladder_sample(model, encode(reader, LONG), encode(reader, ""), empty(reader))
    assert largest(found, reference(reader.pipe, LONG, rung_gains=gains, guidance_scale=4.5)) < 1e-3
    assert largest(found, reference(reader.pipe, LONG, guidance_scale=4.5)) > 1e-2


def test_rung_mix_takes_whole_rungs_with_their_texts(reader, x):
    """The text of the structure on the first rungs, that of the style on the others."""
    from tbac_uniimage.nodes.rungs import LadderRungMix

    def mixed(crossover: float) -> list:
        conditions = encode(reader, PROMPT), encode(reader, LONG)
        return LadderRungMix.execute(reader.model, *conditions, crossover).result[0]

    for crossover, prompt in ((1.0, PROMPT), (0.0, LONG)):
        alone = predict(reader, x, *told(reader, prompt))
        assert largest(velocity(reader, x, mixed(crossover)), alone) < 1e-5
    transformer = reader.pipe.transformer
    rungs = [
        transformer.prepare_rungs(torch.cat(parts, dim=2), text_tokens=parts[1].shape[2])
        for parts in (told(reader, PROMPT), told(reader, LONG))
    ]
    halves = type(rungs[0])(rungs[0].kv[:2] + rungs[1].kv[2:])
    expected = transformer(x, halves, torch.tensor([500.0])).sample
    assert largest(velocity(reader, x, mixed(0.5)), expected) < 1e-5


def test_the_guider_guides_groups_of_rungs(reader):
    """Equal numbers are plain guidance; others are the formula of its class, here with two groups."""
    from tbac_uniimage.nodes.guidance import LadderGuidance, choose_sampler, sample_latent

    positive, negative = encode(reader, PROMPT), encode(reader, LONG)
    sigmas = torch.tensor([1.0, 0.0])

    def drawn(text) -> torch.Tensor:
        guider = LadderGuidance(reader.model)
        guider.set_ladder(positive, negative, None, text)
        return sample_latent(guider, empty(reader), 7, choose_sampler("euler"), sigmas)["samples"]

    def once(conditioning) -> torch.Tensor:
        guider = LadderGuidance(reader.model)
        guider.set_ladder(conditioning, conditioning, None, [1.0] * 4)
        return sample_latent(guider, empty(reader), 7, choose_sampler("euler"), sigmas)["samples"]

    from tbac_uniimage.nodes.ladders import ladder_of, mix_conditioning

    none, all_four = once(negative), once(positive)
    two = once(mix_conditioning(ladder_of(reader.model), negative, positive, [1.0, 1.0, 0.0, 0.0]))
    assert largest(drawn([3.0] * 4), none + 3 * (all_four - none)) < 1e-4
    expected = none + 2 * (two - none) + 5 * (all_four - two)
    assert largest(drawn([2.0, 2.0, 5.0, 5.0]), expected) < 1e-4
    assert largest(two, none) > 1e-3 and largest(two, all_four) > 1e-3


def test_the_probe_shows_the_queries(reader, tmp_path, monkeypatch):
    import folder_paths
    from tbac_uniimage.nodes.probe import LadderProbe
    from tbac_uniimage.nodes.probing import read_attention

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    queries = reader.pipe.connector.config.num_queries
    positive, negative = encode(reader, LONG), encode(reader, "")
    arguments = reader.model, reader.vae, positive, negative, empty(reader), 7, 2, 4.5, 1.5
    sheets = LadderProbe.execute(*arguments, query=queries).result
    assert all(sheet.isfinite().all() for sheet in sheets)
    with pytest.raises(ValueError, match=f"query is {queries + 1}, this conditioning has 1 to {queries}"):
        LadderProbe.execute(*arguments, query=queries + 1)
    maps = read_attention(reader.model, positive, empty(reader), 7, [0.5])
    assert maps.shape[:2] == (4, queries)
    assert (maps.sum(1) - 1).abs().max() < 1e-5


def test_conditions_of_models_with_and_without_are_told_apart(reader, loaded):
    plain, packed = encode(loaded, PROMPT), encode(reader, PROMPT)
    for model, conditioning in ((loaded.model, packed), (reader.model, plain)):
        with pytest.raises(
            ValueError, match="this model needs 4 rungs of .* values; make it with Multi-Layer"
        ):
            ladder_sample(model, conditioning, conditioning, empty(loaded))


def test_the_new_weights_move_and_are_cast_as_others(reader, x, tmp_path):
    """In a partial load, and where weights are kept in fewer bits."""
    from tbac_uniimage.nodes.bridge import load_for_comfy

    reader.pipe.save_pretrained(tmp_path)
    conditioning = encode(reader, PROMPT)
    expected = velocity(reader, x, conditioning)
    model, mllm, _ = load_for_comfy(tmp_path)
    model.load(torch.device("cpu"), lowvram_model_memory=model.model_size() // 2)
    assert model.model.model_lowvram
    assert largest(velocity(SimpleNamespace(model=model), x, conditioning), expected) < 1e-5
    assert torch.equal(encode(SimpleNamespace(mllm=mllm), PROMPT)[0][0], conditioning[0][0])
    model, _, _ = load_for_comfy(tmp_path, "fp8_e4m3fn")
    block = model.model.diffusion_model.transformer_blocks[0]
    assert block.attn2.to_v_text.weight.dtype == torch.float8_e4m3fn
    rough = velocity(SimpleNamespace(model=model), x, conditioning)
    assert (rough - expected).norm() / expected.norm() < 0.1
