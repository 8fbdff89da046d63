"""Answers come from the frozen MLLM: greedy decoding checked against a plain loop without a cache."""

import numpy as np
import pytest
import torch
from conftest import PARITY
from PIL import Image
from tbac_uniimage.core.prompts import build_chat
from tbac_uniimage.core.rope import rope_positions
from tbac_uniimage.core.understanding import (
    ANSWER_SYSTEM_PROMPT,
    ask,
    load_vocabulary_rows,
    with_vocabulary_rows,
)
from tbac_uniimage.core.versions import image_arguments
from transformers import Qwen2_5_VLForConditionalGeneration


def arguments(tiny) -> tuple:
    return tiny.mllm, tiny.tokenizer, tiny.image_processor


def test_greedy_answer_equals_a_plain_loop(tiny):
    ids = build_chat(tiny.tokenizer, ANSWER_SYSTEM_PROMPT, "what is this <|im_end|>")
    prompt = len(ids)
    with torch.no_grad():
        for _ in range(6):
            ids.append(tiny.mllm(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    answer = ask(*arguments(tiny), [], "what is this <|im_end|>", max_new_tokens=6)
    stop = [i for i, token in enumerate(ids[prompt:]) if token in (420, 421)]
    kept = ids[prompt:][: stop[0] if stop else None]
    assert answer.text == tiny.tokenizer.decode(kept, skip_special_tokens=True).strip()
    assert answer.rows == "checkpoint"


def test_the_picture_reaches_the_answer(tiny):
    """The first word's logits are those of transformers' forward on the same picture and our positions.

    With positions of its own, transformers 5.3 and 5.4 would give others.
    """
    images = [Image.linear_gradient("L").resize((90, 60)).convert("RGB"), Image.new("RGB", (64, 64), "red")]
    seen = []
    handle = tiny.mllm.lm_head.register_forward_hook(lambda _m, _i, logits: seen.append(logits[:, -1]))
    try:
        for image in images:
            ask(*arguments(tiny), [image], "what is this", 1)
    finally:
        handle.remove()
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    patches = tiny.image_processor(images=images[:1], return_tensors="pt")
    counts = [patches["image_grid_thw"].prod().item() // 4]
    ids = torch.tensor([build_chat(tiny.tokenizer, ANSWER_SYSTEM_PROMPT, "what is this", counts)])
    image_token, ones = tiny.mllm.config.image_token_id, torch.ones_like(ids)
    positions = rope_positions(ids, ones, image_token, patches["image_grid_thw"], 2)
    with torch.no_grad():
        expected = tiny.mllm(
            input_ids=ids, position_ids=positions, **image_arguments(ids, image_token), **patches
        ).logits[:, -1]
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-4)


def test_other_vocabulary_rows_share_every_layer(tiny):
    rows = tiny.mllm.model.language_model.embed_tokens.weight.detach().flip(0)
    other = with_vocabulary_rows(tiny.mllm, rows)
    shared = dict(tiny.mllm.named_parameters())
    for name, parameter in other.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            assert torch.equal(parameter, rows)
        else:
            assert parameter.data_ptr() == shared[name].data_ptr()
    assert not any(p.is_meta for p in other.parameters()) and not any(b.is_meta for b in other.buffers())
    answer = ask(*arguments(tiny), [], "what is this", 4, vocabulary_rows=rows)
    assert answer.rows == "qwen"


def test_vocabulary_rows_of_an_original_folder(tmp_path):
    folder = PARITY / "Qwen2.5-VL-tiny"
    original = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(load_vocabulary_rows(folder), original.model.language_model.embed_tokens.weight)
    with pytest.raises(ValueError, match="no Qwen2.5-VL folder at"):
        load_vocabulary_rows(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no token embeddings"):
        load_vocabulary_rows(PARITY / "Sana_tiny_diffusers" / "transformer")


def test_bad_questions(tiny):
    with pytest.raises(ValueError, match="The question is empty"):
        ask(*arguments(tiny), [], "  ")
    for question, kind in ((None, "NoneType"), (5, "int")):
        with pytest.raises(ValueError, match=f"The question is a {kind}; give text"):
            ask(*arguments(tiny), [], question)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        ask(*arguments(tiny), [], "what", 0)
    with pytest.raises(ValueError, match=r"shape \[3, 5\], this MLLM needs \[vocabulary, 64\]"):
        with_vocabulary_rows(tiny.mllm, torch.zeros(3, 5))


def test_a_picture_means_the_same_in_a_question(pipe):
    """An array and a tensor too; a path is none, though it has letters."""
    scene = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    answers = {
        pipe.ask(image, "what is it?", max_new_tokens=4).text
        for image in (Image.fromarray(scene), scene, torch.tensor(scene).movedim(-1, 0), [scene])
    }
    assert len(answers) == 1
    assert pipe.ask([], "what?", max_new_tokens=1) == pipe.ask(None, "what?", max_new_tokens=1)
    with pytest.raises(ValueError, match="The image is a str; give PIL images"):
        pipe.ask("cat.png", "what is it?")
