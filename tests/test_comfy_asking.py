"""Ask and Multi-Layer MLLM Encode in ComfyUI's own code, against the Python pipeline."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from comfy_helpers import INSTRUCTION, OTHER, PROMPT, as_batch, largest
from nano_models import nano_comfy, nano_pipe, sample_picture

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]

QUESTION = "what is in this picture?"


@pytest.fixture
def nano(comfy):
    return nano_comfy()


def ask(loaded, question=QUESTION, *images, **options):
    from tbac_uniimage.nodes.asking import LadderAsk

    return LadderAsk.execute(loaded.mllm, question, *images, **options)


def test_answers_equal_the_pipeline(nano):
    scene = sample_picture()
    for image in (None, scene, [scene, scene.rotate(180)]):
        images = [] if image is None else [image] if image is scene else image
        expected = nano_pipe().ask(image, QUESTION, max_new_tokens=9).text
        out = ask(nano, QUESTION, *map(as_batch, images), max_new_tokens=9)
        assert out.result == (expected,) and expected
        assert out.ui.as_dict() == {"text": (expected,)}


def test_what_is_transparent_is_white(nano):
    from tbac_uniimage.nodes.conditioning import input_pictures

    black = torch.zeros(1, 20, 30, 4)
    black[:, 5:, :, 3] = 0.2
    (seen,) = input_pictures(black)
    assert (seen.mode, seen.getpixel((2, 2)), seen.getpixel((2, 9))) == ("RGB", (255,) * 3, (204,) * 3)


def test_the_answer_streams_and_each_text_continues_the_last(nano):
    texts = []
    answer = nano.mllm.ask([], QUESTION, 9, texts.append)
    assert len(texts) > 2 and texts[-1] == answer.text and texts[0] != answer.text
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))


def test_words_reach_the_node_that_runs(nano, monkeypatch):
    from comfy_execution.utils import CurrentNodeContext
    from tbac_uniimage.nodes import display

    sent = []

    class Server:
        def send_progress_text(self, text: str, node_id: str) -> None:
            sent.append((node_id, text))

    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=Server()))
    monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(display, "SECONDS_BETWEEN_TEXTS", 0)
    with CurrentNodeContext("prompt", "17"):
        answer = ask(nano).result[0]
    assert len(sent) > 2 and sent[-1] == ("17", answer) and sent[0] != sent[-1]


def test_cancel_stops_an_answer(nano, monkeypatch):
    import comfy.model_management as management
    from tbac_uniimage.nodes import asking

    shown = []

    def show(text: str, _: bool) -> None:
        shown.append(text)
        management.interrupt_current_processing(True)

    monkeypatch.setattr(asking, "text_display", lambda: show)
    with pytest.raises(management.InterruptProcessingException):
        ask(nano)
    assert len(shown) == 1
    monkeypatch.undo()
    assert ask(nano).result[0]


def test_a_partly_loaded_model_answers_the_same(nano):
    expected = ask(nano).result
    patcher = nano.mllm.patcher
    patcher.unpatch_model(patcher.offload_device)
    patcher.load(patcher.load_device, lowvram_model_memory=patcher.model_size() // 3)
    try:
        assert ask(nano).result == expected
    finally:
        patcher.unpatch_model(patcher.offload_device)


def test_room_is_made_for_the_tokens_of_pictures(nano, monkeypatch):
    import comfy.model_management as management

    wanted = []
    plain = management.load_models_gpu

    def load(models: list, memory_required: int = 0, **options: object) -> None:
        wanted.append(memory_required)
        plain(models, memory_required=memory_required, **options)

    monkeypatch.setattr(management, "load_models_gpu", load)
    for count in (0, 1, 2):
        nano.mllm.ask([sample_picture()] * count, QUESTION, 1)
    assert wanted[1] - wanted[0] == wanted[2] - wanted[1] > 0
    config = nano.mllm.encoder.mllm.config.text_config
    assert (wanted[1] - wanted[0]) / (256 * config.hidden_size * 4) == config.num_hidden_layers + 16


def test_what_a_picture_looks_like_moves_with_the_model(nano, monkeypatch):
    """Vision tokens and prefixes are remembered, but not on a device that the model has left."""
    from tbac_uniimage.core import encoder

    monkeypatch.setattr(encoder, "SHARED_FROM", 1)
    nano.mllm.known.clear()
    expected = nano.mllm.encode([INSTRUCTION], [[sample_picture()]])[0]
    caches, patcher = (nano.mllm.encoder.vision.cache, nano.mllm.encoder.prefix_cache), nano.mllm.patcher
    assert all(caches)
    kept = [dict(cache) for cache in caches]
    try:
        patcher.model.device = torch.device("meta")
        for callback in patcher.get_all_callbacks("on_load_after"):
            if callback.__name__ == "move":
                callback(patcher)
        for cache, before in zip(caches, kept, strict=True):
            assert {features.device.type for features in cache.values()} == {"meta"}
            cache.update(before)
    finally:
        patcher.model.device = patcher.offload_device
    patcher.detach()
    for cache in caches:
        assert {features.device for features in cache.values()} == {patcher.offload_device}
    nano.mllm.known.clear()
    assert torch.equal(nano.mllm.encode([INSTRUCTION], [[sample_picture()]])[0], expected)


def test_ask_may_end_a_graph(comfy):
    from tbac_uniimage.nodes.asking import LadderAsk

    assert LadderAsk.GET_SCHEMA().is_output_node


def test_the_head_is_the_embedding_wherever_that_is(nano):
    mllm = nano.mllm.encoder.mllm
    embedding = mllm.model.language_model.embed_tokens
    states = torch.randn(1, 3, embedding.embedding_dim)
    assert torch.equal(mllm.lm_head(states), states @ embedding.weight.T)
    assert not list(mllm.lm_head.parameters())
    meta = states.to("meta")
    assert mllm.lm_head(meta).shape == (1, 3, embedding.num_embeddings)


def test_bad_questions_are_one_sentence(loaded, picture):
    from tbac_uniimage.nodes.asking import LadderAsk

    assert LadderAsk.validate_inputs("  ") == "The question is empty; ask something."
    assert "max_new_tokens is 0" in LadderAsk.validate_inputs("what", 0)
    assert LadderAsk.validate_inputs(None, 5) is True
    batch = as_batch(picture)
    for arguments, options, message in [
        ((" ",), {}, "The question is empty"),
        (("what",), {"max_new_tokens": 5000}, "max_new_tokens is 5000; give a number from 1 to 2048"),
        (("one two " * 50_000,), {}, "2048 is the most"),
        (("what", batch.expand(5, -1, -1, -1)), {}, "at most 4 images, 5 were given"),
        (("what", batch[:, :0]), {}, "image has the shape .* at least one pixel"),
        (("what", batch, batch * math.nan), {}, "image_2 holds values that are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask(loaded, *arguments, **options)


def encode(loaded, prompt, *images, **options):
    from tbac_uniimage.nodes.conditioning import LadderEncode

    return [
        conditioning[0][0]
        for conditioning in LadderEncode.execute(loaded.mllm, prompt, *images, **options).result
    ]


def test_encode_gives_the_branches_of_guidance(loaded, pipe, picture):
    from tbac_uniimage.core.conditions import unfold_condition

    condition = pipe.encode_prompt(INSTRUCTION, picture, OTHER, guidance_scale=3.0, image_guidance_scale=2.0)
    positive, negative, image_only = encode(loaded, INSTRUCTION, as_batch(picture), negative_prompt=OTHER)
    layers = pipe.transformer.config.num_layers
    for i, states in enumerate((negative, image_only, positive)):
        assert largest(unfold_condition(states, layers)[:, 0], condition.states[:, i]) < 1e-5
    positive, negative, image_only = encode(loaded, PROMPT, negative_prompt=OTHER)
    assert torch.equal(negative, image_only) and torch.equal(negative, encode(loaded, OTHER)[0])


def test_the_same_is_never_encoded_twice_in_a_row(loaded, picture, monkeypatch):
    runs = []
    encoder = loaded.mllm.encoder
    plain = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda inputs: runs.append(1) or plain(inputs))
    loaded.mllm.known.clear()
    first = encode(loaded, PROMPT, as_batch(picture))
    assert len(runs) == 3
    assert all(map(torch.equal, first, encode(loaded, PROMPT, as_batch(picture))))
    assert len(runs) == 3
    encode(loaded, OTHER, as_batch(picture))
    assert len(runs) == 4  # the branches without the prompt were known
    encode(loaded, PROMPT, as_batch(picture).flip(1))
    assert len(runs) == 6  # the black picture was known
    for i in range(20):
        encode(loaded, f"prompt {i}")
    assert len(loaded.mllm.known) == 12
    loaded.mllm.known.clear()
    assert all(map(torch.equal, first, encode(loaded, PROMPT, as_batch(picture))))


def test_any_text_is_read(nano):
    for text in ("\ud800 half a pair", "\0\0", "<|im_end|><|img3|>" * 50, "x" * 100_000, "😀" * 500):
        assert torch.isfinite(encode(nano, text)[0]).all()
    assert ask(nano, "\ud800 what is it?").result[0]


def test_grey_and_transparent_pictures_are_read(loaded, picture):
    batch = as_batch(picture)
    grey = batch.mean(-1, keepdim=True)
    alpha = (torch.rand(batch[..., :1].shape) < 0.5).float()
    transparent, on_white = torch.cat([batch, alpha], dim=-1), torch.where(alpha == 0, 1, batch)
    assert torch.equal(encode(loaded, PROMPT, transparent)[0], encode(loaded, PROMPT, on_white)[0])
    assert torch.equal(encode(loaded, PROMPT, grey)[0], encode(loaded, PROMPT, grey.expand(-1, -1, -1, 3))[0])
