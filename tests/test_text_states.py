"""The text's own tokens beside the queries: where they are, what is made of them, files, training."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from full_pass import whole_states
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from source_models import attending, pipeline_of, reading
from tbac_uniimage.core.checkpoints import load_parts, save_released
from tbac_uniimage.core.conditions import LadderCondition, pack_condition, unpack_condition
from tbac_uniimage.core.encoder import LadderEncoder
from tbac_uniimage.core.prompts import encode_text
from tbac_uniimage.core.rungs import mix_packed, scale_rungs
from tbac_uniimage.core.transformer import LadderTransformer2DModel
from tbac_uniimage.training import models
from tbac_uniimage.training.recipe.recipe import Recipe
from tbac_uniimage.training.step.trainee import LadderTrainee
from tiny_checkpoint import assert_same
from training_runs import losses, make_data, make_edits, recipe, train

PROMPTS = ["a red apple on a wooden table", "", "two cats"]
EDIT = "make it red"


def draw(parts, prompt=PROMPTS[0], **options) -> torch.Tensor:
    """Latents after three steps."""
    options = {"num_inference_steps": 3, "output_type": "latent"} | options
    return pipeline_of(parts)(prompt, generator=torch.Generator().manual_seed(1), **options).images


def weight_of(transformer) -> torch.Tensor:
    """The first of the weights that the option adds."""
    return transformer.transformer_blocks[0].attn2.to_v_text.weight


def encoder_of(parts, num_layers: int = 4) -> LadderEncoder:
    found = LadderEncoder(
        parts.mllm, parts.connector, parts.tokenizer, parts.image_processor, num_layers, text_states=True
    )
    return found


@torch.no_grad()
def test_an_extended_model_predicts_the_same_to_the_bit(tiny, picture):
    extended, wide = attending(tiny, trained=False), {"image": picture, "image_guidance_scale": 1.5}
    for options in ({}, {"num_images_per_prompt": 2}, wide):
        assert torch.equal(draw(extended, **options), draw(tiny, **options))
        assert not torch.equal(draw(attending(tiny), **options), draw(tiny, **options))
    assert torch.equal(draw(extended, PROMPTS[::2]), draw(tiny, PROMPTS[::2]))
    added = extended.transformer.state_dict().keys() - tiny.transformer.state_dict().keys()
    assert added == {f"transformer_blocks.{i}.attn2.to_v_text.weight" for i in range(4)}


# where the text is


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["a", " ", "\n", "<|im_end|>", "é", "cat", ".", "<|image_pad|>"]), max_size=9),
    st.booleans(),
)
def test_spans_are_the_users_own_words(tiny, words, sees):
    """What is left of a prompt without them is the beginning and the end that all prompts have."""
    text = "".join(words)
    processor = encoder_of(tiny).processor
    images = [[Image.new("RGB", (30, 30))] if sees else []]
    inputs, empty = processor([text], images), processor([""], images)
    [(begin, end)] = inputs.text_spans.tolist()
    [(nothing, place)] = empty.text_spans.tolist()
    assert nothing == place
    ids, template = inputs.input_ids[0].tolist(), empty.input_ids[0].tolist()
    assert ids[end:] == template[place:] and ids[:begin] == template[:begin]
    if sees or not text[:1].isspace():
        assert ids[begin:end] == encode_text(tiny.tokenizer, text) and begin == place
    else:  # white space that has merged with the newline of the template
        assert place - 1 <= begin <= place


def test_spans_of_padded_and_cut_texts(tiny):
    processor = encoder_of(tiny).processor
    long = "cat " * 400
    inputs = processor([long, "a cat"])
    lengths = (inputs.text_spans[:, 1] - inputs.text_spans[:, 0]).tolist()
    assert lengths[0] in (255, 256) and lengths[1] == len(encode_text(tiny.tokenizer, "a cat"))
    assert inputs.text_spans[0, 1] == inputs.text_spans[1, 1]
    assert replace(processor, text_states=False)(["a cat"]).text_spans is None


@pytest.mark.parametrize("sizes", [[[], [], []], [[(40, 40)], [(40, 60)], [(64, 64), (30, 30)]]])
@pytest.mark.parametrize("rungs", ["ladder", "final"])
def test_states_are_those_of_a_whole_pass_whether_or_not_a_gradient_is_wanted(
    tiny, sizes, rungs, monkeypatch
):
    """Against transformers' own forward, in one pass, with shared pictures, and with a prefix."""
    monkeypatch.setattr("tbac_uniimage.core.encoder.SHARED_FROM", 1)
    parts = copy.copy(tiny)
    parts.connector = copy.deepcopy(tiny.connector)
    parts.connector.choose_rungs(rungs)
    encoder = encoder_of(parts)
    images = [[Image.new("RGB", size, (20 * i, 90, 9)) for i, size in enumerate(group)] for group in sizes]
    inputs = encoder.tokenize(PROMPTS, images)
    parts.connector.requires_grad_(True)
    with_gradient = encoder.hidden_states(inputs)
    with torch.no_grad():
        without = encoder.hidden_states(inputs)
        whole = whole_states(parts, encoder, inputs)
    assert with_gradient.requires_grad
    told = [whole[-1]] * 4 if rungs == "final" else whole[-5:-1]
    queries = encoder.connector.config.num_queries
    for row, (begin, end) in enumerate(inputs.text_spans.tolist()):
        expected = torch.stack(list(told))[:, row, begin:end]
        for found in (with_gradient.detach(), without):
            text = found[:, row, queries : queries + end - begin]
            torch.testing.assert_close(text, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_prompt_does_not_depend_on_what_it_came_with(tiny):
    parts = attending(tiny)
    encoder = pipeline_of(parts).encoder
    together = encoder(PROMPTS)
    queries = parts.connector.config.num_queries
    lengths = [len(encode_text(tiny.tokenizer, prompt)) for prompt in PROMPTS]
    assert together.text_tokens == max(lengths)
    assert together.mask[:, queries:].sum(1).tolist() == lengths
    for i, prompt in enumerate(PROMPTS):
        alone = encoder([prompt])
        assert alone.text_tokens == max(lengths[i], 1)
        length = queries + lengths[i]
        torch.testing.assert_close(
            together.states[:, i, :length], alone.states[:, 0, :length], atol=2e-5, rtol=1e-4
        )
        x = torch.randn(1, parts.transformer.config.in_channels, 6, 6)
        predicted = [
            parts.transformer(
                x, one.states[:, row], torch.tensor([500.0]), one.mask[row], text_tokens=one.text_tokens
            ).sample
            for one, row in ((together, slice(i, i + 1)), (alone, slice(1)))
        ]
        torch.testing.assert_close(*predicted, atol=1e-5, rtol=1e-4)


# what is made of it


def states_of(transformer, tokens: int, batch: int = 2) -> torch.Tensor:
    config = transformer.config
    generator = torch.Generator().manual_seed(2)
    return torch.randn(config.num_layers, batch, tokens, config.caption_channels, generator=generator)


def by_hand(attn, hidden, queries, text) -> torch.Tensor:
    """Cross-attention of one row ``[places, width]``, head by head."""

    def attended(head: int, states: torch.Tensor, project) -> torch.Tensor:
        width = attn.to_q.out_features // attn.heads
        at = slice(head * width, (head + 1) * width)
        key, value = attn.to_k(states)[:, at], project(states)[:, at]
        return (attn.to_q(hidden)[:, at] @ key.T * width**-0.5).softmax(-1) @ value

    heads = [attended(head, queries, attn.to_v) for head in range(attn.heads)]
    if len(text):
        heads = [one + attended(head, text, attn.to_v_text) for head, one in enumerate(heads)]
    return attn.to_out[0](torch.cat(heads, dim=-1))


@torch.no_grad()
def test_it_is_attention_of_its_own_with_values_of_its_own(tiny):
    """By hand, of a row with a short text and of one without; gains scale both."""
    transformer = attending(tiny).transformer
    states, mask = states_of(transformer, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, 7:] = mask[1, 5:] = 0
    rungs = transformer.prepare_rungs(states, mask, text_tokens=4)
    louder = scale_rungs(rungs, [2.0] * len(rungs.kv))
    normed = transformer.caption_norm(transformer.caption_projection(states))
    hidden = torch.randn(2, 12, transformer.transformer_blocks[0].attn2.to_q.in_features)
    for i, block in enumerate(transformer.transformer_blocks):
        attn = block.attn2
        assert attn.norm_q is None
        expected = torch.stack(
            [
                by_hand(attn, hidden[0], normed[i, 0, :5], normed[i, 0, 5:7]),
                by_hand(attn, hidden[1], normed[i, 1, :5], normed[i, 1, 5:5]),
            ]
        )
        torch.testing.assert_close(attn(hidden, rungs.kv[i]), expected, atol=1e-5, rtol=1e-4)
        twice = 2 * (expected - attn.to_out[0].bias) + attn.to_out[0].bias
        torch.testing.assert_close(attn(hidden, louder.kv[i]), twice, atol=1e-5, rtol=1e-4)


def test_conditions_of_models_with_and_without_are_told_apart(tiny):
    parts = attending(tiny)
    with pytest.raises(ValueError, match="holds tokens of its text, to which this model does not attend"):
        draw(tiny, None, condition=pipeline_of(parts).encode_prompt("a cat"))
    with pytest.raises(ValueError, match="holds no tokens of its text, to which this model attends; encode"):
        draw(parts, None, condition=pipeline_of(tiny).encode_prompt("a cat"))
    with pytest.raises(ValueError, match=r"same model, or read_text\(True\)"):
        tiny.transformer.prepare_rungs(states_of(tiny.transformer, 5), text_tokens=1)


@torch.no_grad()
def test_a_condition_is_what_the_call_makes(tiny, picture):
    parts = attending(tiny)
    condition = pipeline_of(parts).encode_prompt([EDIT, "blue and green"], [picture] * 2)
    wanted = draw(parts, [EDIT, "blue and green"], image=[picture] * 2)
    assert torch.equal(draw(parts, None, condition=condition), wanted)
    torch.testing.assert_close(
        draw(parts, EDIT, image=picture),
        draw(parts, None, condition=condition.single(0)),
        atol=1e-4,
        rtol=1e-3,
    )


def test_layers_that_are_brought_one_by_one_compute_the_same(tiny):
    """The hooks of sequential offloading, which bring the new weights, too."""
    from accelerate import cpu_offload

    expected, parts = draw(attending(tiny)), attending(tiny)
    cpu_offload(parts.transformer, torch.device("cpu"), offload_buffers=True)
    assert weight_of(parts.transformer).device.type == "meta"
    assert torch.equal(draw(parts), expected)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_take_texts_of_any_length(tiny):
    transformer, graphs = attending(tiny).transformer, []

    def backend(module: torch.fx.GraphModule, _: list):
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    x = torch.randn(2, transformer.config.in_channels, 6, 6, generator=torch.Generator().manual_seed(0))
    try:
        conditions = [(states_of(transformer, 5 + text), text) for text in (2, 3, 4, 5, 7, 9)]
        levels = torch.tensor([500.0, 900.0])
        expected = [transformer(x, states, levels, text_tokens=text).sample for states, text in conditions]
        transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
        for (states, text), wanted in zip(conditions, expected, strict=True):
            found = transformer(x, states, levels, text_tokens=text).sample
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    finally:
        torch.compiler.reset()
    assert len(graphs) <= 4  # one for the first length, one for all others, and the first block's


# files


@torch.no_grad()
def test_it_lasts_through_a_pipeline_folder_and_not_through_the_released_layout(tiny, tmp_path):
    parts = attending(reading(tiny))
    pipeline_of(parts).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "transformer" / "config.json").read_text())
    assert config["text_states"] is True
    found = load_parts(tmp_path / "model")
    assert_same(found, parts)
    assert torch.equal(draw(found), draw(parts))
    plain = replace(parts, transformer=attending(tiny).transformer)
    with pytest.raises(
        ValueError, match="attends to the text's tokens, .* know nothing; write a pipeline folder"
    ):
        save_released(plain, tmp_path / "released")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    pipeline_of(tiny).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"5 unexpected \(.*source_embed.weight"):
        load_parts(tmp_path / "plain", transformer_file=weights)


def test_models_that_say_nothing_do_not_attend_to_it(tiny):
    config = {key: value for key, value in tiny.transformer.config.items() if key != "text_states"}
    transformer = LadderTransformer2DModel.from_config(config)
    assert (
        transformer.config.text_states is False and transformer.transformer_blocks[0].attn2.to_v_text is None
    )
    transformer.read_text(True)
    assert not weight_of(transformer).any()
    transformer.read_text(False)
    assert not any("to_v_text" in name for name in transformer.state_dict())


# packed, as ComfyUI has it


def condition_of(mask: list[list[int]], queries: int, layers: int = 3, dim: int = 4) -> LadderCondition:
    mask = torch.tensor(mask)
    states = torch.randn(layers, *mask.shape, dim, generator=torch.Generator().manual_seed(4))
    return LadderCondition(states, mask, text_tokens=mask.shape[1] - queries)


def test_packed_and_unpacked_again():
    condition = condition_of([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], queries=2)
    packed = pack_condition(condition, multiple=4)
    assert packed.shape == (3, 2, 8, 6) and not packed[:, :, 5:].any() and not packed[:, 1, 3:].any()
    states, weights, text = unpack_condition(packed)
    assert text == 3 and torch.equal(weights, condition.mask.expand(3, -1, -1).float())
    kept = condition.mask.bool()
    assert torch.equal(states[:, kept], condition.states[:, kept])


def test_joined_repeated_averaged_and_zeroed():
    """What stock nodes make of the packed tensor, read as what it means."""
    a = pack_condition(condition_of([[1, 1, 1, 1, 1]], queries=2), multiple=2)
    b = pack_condition(condition_of([[1, 1, 1, 0, 0]], queries=2), multiple=2)
    states, weights, text = unpack_condition(torch.cat([a, b], dim=2))
    assert text == 4 and weights.min() == 1
    assert torch.equal(states[:, :, :4], torch.cat([a, b], 2)[:, :, [0, 1, 6, 7], :4])
    assert torch.equal(states[:, :, 4:], torch.cat([a, b], 2)[:, :, [2, 3, 4, 8], :4])
    states, weights, text = unpack_condition(a.repeat(1, 1, 2, 1))
    assert text == 6 and states.shape[2] == 10

    states, weights, text = unpack_condition(0.25 * a + 0.75 * b)
    assert text == 3
    assert torch.equal(weights[0, 0], torch.tensor([1, 1, 1, 0.25, 0.25]))
    mean = 0.25 * a[..., :4] + 0.75 * b[..., :4]
    torch.testing.assert_close(states[:, :, :3], mean[:, :, :3])
    torch.testing.assert_close(states[:, :, 3:], a[:, :, 3:5, :4])  # of one side alone: as it was

    states, weights, text = unpack_condition(torch.zeros_like(a))
    assert text == 0 and states.shape[2] == a.shape[2] and not weights.any() and not states.any()


@torch.no_grad()
def test_a_text_that_counts_in_part_adds_in_part(tiny):
    """An average with an empty text, and one whose end the other lacks, both without a jump at either end."""
    transformer = attending(tiny).transformer
    x = torch.randn(1, transformer.config.in_channels, 6, 6, generator=torch.Generator().manual_seed(0))
    states = states_of(transformer, 7, batch=1)

    def predict(*weights: float) -> torch.Tensor:
        mask = torch.tensor([[1.0] * 4 + list(weights)])
        return transformer(x, states, torch.tensor([500.0]), mask, text_tokens=3).sample

    def gap(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a - b).abs().max().item()

    none, short, whole = predict(0, 0, 0), predict(1, 0, 0), predict(1, 1, 1)
    shorter = transformer(x, states[:, :, :5], torch.tensor([500.0]), text_tokens=1).sample
    assert gap(short, shorter) < 1e-5
    assert gap(none, transformer(x, states[:, :, :4], torch.tensor([500.0])).sample) < 1e-5
    assert min(gap(none, short), gap(short, whole)) > 1e-3
    tiny_part = 1e-4
    assert gap(predict(*[tiny_part] * 3), none) < 0.01 * gap(none, whole)
    assert gap(predict(*[1 - tiny_part] * 3), whole) < 0.01 * gap(none, whole)
    assert gap(predict(1, tiny_part, tiny_part), short) < 0.02 * gap(short, whole)
    doubled = torch.cat([states[:, :, :4], states[:, :, 4:], states[:, :, 4:]], dim=2)
    assert gap(transformer(x, doubled, torch.tensor([500.0]), text_tokens=6).sample, whole) < 1e-5


def test_rungs_are_mixed_kind_by_kind():
    """Of texts of different lengths, and where one condition joins two."""
    a = pack_condition(condition_of([[1, 1, 1, 1, 1]], queries=2), multiple=2)
    b = pack_condition(condition_of([[1, 1, 1]], queries=2), multiple=2)
    mixed = mix_packed(a, b, [0.0, 0.5, 1.0])
    assert mixed.shape[2] % 2 == 0
    states, weights, text = unpack_condition(mixed)
    assert text == 3
    assert torch.equal(weights[:, 0, 2:], torch.tensor([[1, 1, 1], [1, 0.5, 0.5], [1, 0, 0]]))
    assert torch.equal(states[0, 0], a[0, 0, :5, :4]) and torch.equal(states[2, 0, :3], b[2, 0, :3, :4])
    torch.testing.assert_close(states[1, 0, :3], (a + b[:, :, [0, 1, 2, 3, 3, 3]])[1, 0, :3, :4] / 2)
    torch.testing.assert_close(states[1, 0, 3:], a[1, 0, 3:5, :4])
    joined = torch.cat([b, a], dim=2)  # query, query, text, padding, query, query, text, text, text, padding
    states, weights, text = unpack_condition(mix_packed(joined, b, [0.0, 0.0, 1.0]))
    assert text == 4
    assert torch.equal(states[0, 0], joined[0, 0, [0, 1, 4, 5, 2, 6, 7, 8], :4])
    assert torch.equal(states[2, 0, :5], b[2, 0, [0, 1, 0, 1, 2], :4])
    assert torch.equal(weights[2, 0], torch.tensor([1.0] * 5 + [0.0] * 3))


# training


@pytest.mark.parametrize("texts", [["a cat", ""], ["", ""]])
def test_gradients_reach_the_new_weights_and_only_texts_move_them(tiny, texts):
    parts = attending(tiny, trained=False)
    parts.connector = copy.deepcopy(tiny.connector).requires_grad_(True)
    parts.transformer.requires_grad_(True)
    trainee = LadderTrainee(parts)
    shape = (2, parts.vae.config.latent_channels, 4, 4)
    inputs = trainee.encoder.tokenize(texts)
    trainee(inputs, torch.ones(shape), torch.randn(shape), torch.tensor([0.2, 0.8])).sum().backward()
    largest = weight_of(parts.transformer).grad.abs().max().item()  # there in any case, for other processes
    assert largest > 1e-6 if any(texts) else largest == 0


def test_checkpointing_leaves_the_gradients(tiny):
    found = []
    for checkpointing in (False, True):
        parts = attending(tiny)
        parts.connector = copy.deepcopy(tiny.connector).requires_grad_(True)
        parts.transformer.requires_grad_(True).train()
        if checkpointing:
            parts.transformer.enable_gradient_checkpointing()
        trainee = LadderTrainee(parts)
        shape = (2, parts.vae.config.latent_channels, 4, 4)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        inputs = trainee.encoder.tokenize(PROMPTS[::2])
        trainee(inputs, torch.ones(shape), noise, torch.tensor([0.2, 0.8])).sum().backward()
        found.append({name: p.grad for name, p in trainee.named_parameters() if p.grad is not None})
    plain, twice = found
    assert (
        plain["transformer.transformer_blocks.0.attn2.to_v_text.weight"].abs().max() > 1e-4
        and plain.keys() == twice.keys()
    )
    for name, gradient in plain.items():
        torch.testing.assert_close(twice[name], gradient, atol=1e-5, rtol=1e-4)


def stage(run: Path, init: Path | None = None, **changes) -> Recipe:
    settings = recipe(run, ["none"], **changes)
    return Recipe.model_validate(settings | ({"init": str(init)} if init else {}))


def test_one_line_of_a_recipe_extends_a_model(checkpoint, tmp_path):
    plain = models.load_base(stage(tmp_path / "a", checkpoint))
    parts = models.load_base(stage(tmp_path / "b", checkpoint, model={"text_states": True}))
    weight = weight_of(parts.transformer)
    assert not weight.any() and weight.dtype == torch.float32
    assert plain.transformer.config.text_states is False
    parts.transformer.read_text(False)
    for name, tensor in plain.transformer.state_dict().items():
        assert torch.equal(parts.transformer.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="text_states is true .* a LoRA .* set train.parts=all"):
        models.load_base(
            stage(tmp_path / "c", checkpoint, model={"text_states": True}, train={"parts": "lora"})
        )


def test_the_dry_run_counts_it(checkpoint, tmp_path):
    from tbac_uniimage.training.recipe.memory import estimate_memory, parameter_counts

    counts, activations = [], []
    for reads in (False, True):
        settings = stage(tmp_path / "a", checkpoint, model={"text_states": reads})
        parts = models.load_base(settings)
        counts.append(parameter_counts(parts, settings)["diffusion transformer"][0])
        activations.append(estimate_memory(parts, settings)["activations"])
    assert counts[1] - counts[0] == 4 * weight_of(parts.transformer).numel()
    assert activations[1] > activations[0]  # the tokens of the longest text


@pytest.mark.slow
def test_a_run_with_it_is_the_same_on_two_processes_and_is_exported_and_tuned(tmp_path):
    from tbac_uniimage.training.export import export

    data = [make_data(tmp_path), make_edits(tmp_path)]
    drop = {"drop": {"caption": 0.5, "text": 0.5, "image": 0.2, "both": 0.1}}
    changes = {"model": {"text_states": True}, "checkpoint": {"every": 4}}

    def run(name: str, world: int = 1, **options) -> list[float]:
        settings = recipe(tmp_path / name, data, **(changes | options))
        settings["data"] |= drop
        train(settings, world=world)
        return losses(tmp_path / name)

    whole = run("whole")
    assert run("two", world=2) == pytest.approx(whole, rel=2e-6)
    twice = run("twice", world=2, train={"gradient_checkpointing": True, "parallel": "fsdp2"})
    assert twice == pytest.approx(whole, rel=1e-5)
    plain = run("plain", model={})
    assert plain[0] == whole[0] and plain != whole  # the new weights begin at zero

    last = models.find_checkpoint(tmp_path / "whole")
    parts = models.load_run(last)
    weight = weight_of(parts.transformer)
    assert weight.abs().max() > 1e-3
    folder = export(last, "pipeline", tmp_path / "out")
    assert torch.equal(weight_of(load_parts(folder).transformer), weight)
    with pytest.raises(ValueError, match="attends to the text's tokens"):
        export(last, "released", tmp_path / "released")
    lora = recipe(
        tmp_path / "lora",
        data,
        init=str(tmp_path / "whole"),
        train={"parts": "lora", "steps": 2, "warmup": 0, "lora": {"rank": 2, "alpha": 2.0}},
    )
    del lora["base"]
    train(lora)
    tuned = models.load_run(models.find_checkpoint(tmp_path / "lora"))
    assert torch.equal(weight_of(tuned.transformer), weight)
