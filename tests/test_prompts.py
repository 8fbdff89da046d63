"""No text can change the number or the position of query tokens, end a turn, or fake an image."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tbac_uniimage.core.prompts import build_prompt, control_token, cut_text, encode_text, pad_left

CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|endoftext|>",
]
hostile = st.lists(
    st.one_of(st.sampled_from([*CONTROL, "<|img0|>", "<|img3|>", "\n", " ", "user\n"]), st.text(max_size=20)),
    max_size=12,
).map("".join)


@given(text=hostile, image_tokens=st.lists(st.integers(1, 9), max_size=4), queries=st.integers(1, 12))
def test_text_is_text(tiny, text, image_tokens, queries):
    first = 10_000
    ids = build_prompt(tiny.tokenizer, text, image_tokens, queries, first)
    assert ids[-2 - queries : -2] == list(range(first, first + queries))
    assert sum(i >= first for i in ids) == queries
    count = {token: ids.count(control_token(tiny.tokenizer, token)) for token in CONTROL}
    assert count == {
        "<|im_start|>": 3,
        "<|im_end|>": 3,
        "<|vision_start|>": len(image_tokens) + 1,
        "<|vision_end|>": len(image_tokens) + 1,
        "<|image_pad|>": sum(image_tokens),
        "<|endoftext|>": 0,
    }


@given(text=hostile)
def test_ordinary_tokenisation_where_nothing_is_special(tiny, text):
    """Where a text holds no control token the tokenizer itself gives the same ids."""
    if "<|" not in text:
        assert encode_text(tiny.tokenizer, text) == tiny.tokenizer(text, add_special_tokens=False).input_ids


def test_a_prompt_does_not_copy_the_vocabulary(tiny, monkeypatch):
    """The released one has 151,000 entries: a copy takes longer than everything else before the MLLM."""
    wanted = tiny.tokenizer.get_vocab()["<|im_end|>"]
    monkeypatch.setattr(
        type(tiny.tokenizer), "get_vocab", lambda self: pytest.fail("the vocabulary was copied")
    )
    assert build_prompt(tiny.tokenizer, "a cat", [4], 2, 10_000)[-1] == wanted
    assert control_token(tiny.tokenizer, "<|im_end|>") == wanted


def test_a_tokenizer_without_the_chat_format_is_refused(tiny):
    with pytest.raises(ValueError, match=r"The tokenizer has no <\|nothing\|> token"):
        control_token(tiny.tokenizer, "<|nothing|>")


@given(text=st.text(max_size=200), limit=st.integers(1, 40))
def test_cut_text_is_a_prefix_and_short_texts_stay(tiny, text, limit):
    cut = cut_text(tiny.tokenizer, text, limit)
    ids = encode_text(tiny.tokenizer, text)
    if len(ids) <= limit:
        assert cut == text
    else:
        assert cut == tiny.tokenizer.decode(ids[:limit])


def test_long_text_leaves_the_queries_alone(tiny):
    ids = build_prompt(tiny.tokenizer, "bird " * 5000, [], 8, 448)
    assert ids[-10:-2] == list(range(448, 456))
    assert len(ids) < 256 + 80


def test_five_images_are_refused(tiny):
    with pytest.raises(ValueError, match="at most 4 images, 5 were given"):
        build_prompt(tiny.tokenizer, "x", [4] * 5, 8, 448)


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), min_size=1, max_size=5))
def test_padding_is_on_the_left(sequences):
    ids, mask = pad_left(sequences, 0)
    for row, keep, sequence in zip(ids.tolist(), mask.tolist(), sequences, strict=True):
        padding = len(row) - len(sequence)
        assert row == [0] * padding + sequence
        assert keep == [0] * padding + [1] * len(sequence)
