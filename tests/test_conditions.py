"""Conditions equal the MLLM's own full pass, whatever else is in the batch, and cost no more than needed."""

import pytest
import torch
from full_pass import query_states
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.core import encoder as encoding
from tbac_uniimage.core.conditions import fold_condition, unfold_condition
from tbac_uniimage.core.encoder import PREFIX_CACHE_SIZE, LadderEncoder
from tbac_uniimage.core.inputs import prepare_images
from tbac_uniimage.core.prefixes import cut_left, put_in, take_out
from tbac_uniimage.core.prompts import pad_left
from tbac_uniimage.core.rope import rope_positions
from tbac_uniimage.core.versions import MISPLACES_PICTURES, image_arguments
from transformers.cache_utils import DynamicCache


@pytest.fixture
def encoder(tiny):
    return LadderEncoder(tiny.mllm, tiny.connector, tiny.tokenizer, tiny.image_processor, num_layers=4)


def picture(width: int, height: int, shade: int) -> Image.Image:
    return (
        Image.linear_gradient("L").resize((width, height)).point(lambda v: (v + shade) % 256).convert("RGB")
    )


BATCH = [
    ("a cat", []),
    ("swap the two skies, then make the harbour of the first one much darker", [(70, 40), (33, 90)]),
    ("make it blue", [(64, 64)]),
]


def test_equals_the_full_pass_of_transformers(tiny, encoder):
    """Reference: one forward over the whole prompt with transformers' own hidden states, no cache."""
    prompts, images = [p for p, _ in BATCH], [[picture(*s, 9) for s in sizes] for _, sizes in BATCH]
    inputs = encoder.tokenize(prompts, images)
    ours = encoder.hidden_states(inputs)
    expected = torch.stack(query_states(tiny, encoder, inputs)[-5:-1])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(MISPLACES_PICTURES, reason="this transformers computes other positions")
@given(
    rows=st.lists(
        st.lists(st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4))), max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_positions_equal_those_of_transformers(tiny, rows):
    """Any mix of text runs and image sizes, as transformers computes them."""
    image_token, vision_start = tiny.mllm.config.image_token_id, tiny.mllm.config.vision_start_token_id
    sequences, grids = [], []
    for row in rows:
        sequence = [1]
        for piece in row:
            if isinstance(piece, tuple):
                grids.append([1, 2 * piece[0], 2 * piece[1]])
                sequence += [vision_start, *[image_token] * (piece[0] * piece[1]), 3]
            else:
                sequence += [4] * piece
        sequences.append(sequence)
    ids, mask = pad_left(sequences, 0)
    grid = torch.tensor(grids) if grids else None
    expected, _ = tiny.mllm.model.get_rope_index(
        input_ids=ids, image_grid_thw=grid, attention_mask=mask, **image_arguments(ids, image_token)
    )
    tokens = mask.bool()  # padding has position 0 here and 1 in older versions of transformers
    assert torch.equal(rope_positions(ids, mask, image_token, grid, 2)[:, tokens], expected[:, tokens])


def test_a_batch_equals_its_rows_alone(encoder):
    """Left padding, several images and images of other sizes change nothing for a row."""
    images = [[picture(*s, 31) for s in sizes] for _, sizes in BATCH]
    together = encoder([p for p, _ in BATCH], images).states
    for i, (prompt, _) in enumerate(BATCH):
        alone = encoder([prompt], [images[i]]).states
        torch.testing.assert_close(together[:, i : i + 1], alone, atol=2e-5, rtol=1e-4)


def test_gradients_reach_queries_and_connector_only(tiny, encoder):
    tiny.connector.zero_grad()
    encoder(["a cat"], [[picture(40, 40, 3)]]).states.square().sum().backward()
    assert tiny.connector.queries.grad.abs().min() > 0
    assert tiny.connector.layers[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny.mllm.parameters())


def test_the_last_layer_never_runs(tiny, encoder):
    def refuse(*_):
        raise AssertionError("the last MLLM layer ran")

    handle = tiny.mllm.model.language_model.layers[-1].register_forward_pre_hook(refuse)
    try:
        assert encoder(["a cat"]).states.isfinite().all()
    finally:
        handle.remove()


def test_each_distinct_image_passes_the_vision_tower_once(tiny, encoder):
    seen = []
    handle = tiny.mllm.model.visual.register_forward_hook(
        lambda _m, args, kwargs, _o: seen.append(kwargs["grid_thw"].tolist()), with_kwargs=True
    )
    try:
        image, other = picture(60, 40, 5), picture(60, 40, 6)
        first = encoder(["a", "b", ""], [[image], [image], [other]]).states
        assert sum(map(len, seen)) == 2
        again = encoder(["a", "b", ""], [[image.copy()], [image], [other]]).states
        assert sum(map(len, seen)) == 2
    finally:
        handle.remove()
    torch.testing.assert_close(first, again, atol=0, rtol=0)


@pytest.fixture
def shared(monkeypatch):
    """Pictures as short as the tiny model's are shared, too."""
    monkeypatch.setattr(encoding, "SHARED_FROM", 1)


def counted_tokens(tiny, run) -> int:
    """Tokens that the first language layer computes while ``run`` runs."""
    seen = []
    layer = tiny.mllm.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[:2].numel()))
    try:
        run()
    finally:
        handle.remove()
    return sum(seen)


@pytest.mark.parametrize("rows", [[0, 0], [1, 2], [2, 1, 2], [0, 1, 2]])
def test_without_gradient_the_states_are_those_with(encoder, shared, rows):
    """One pass, and pictures that run once for all rows, against the prefix of every row by itself."""
    sizes = [BATCH[row][1] for row in rows]
    prompts = [BATCH[row][0] + " now" * at for at, row in enumerate(rows)]
    inputs = encoder.tokenize(prompts, [[picture(*s, 31) for s in group] for group in sizes])
    expected = encoder.hidden_states(inputs)
    assert expected.requires_grad and not encoder.prefix_cache
    with torch.no_grad():
        found = encoder.hidden_states(inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert len(encoder.prefix_cache) == (len({*rows}) if all(sizes) else 0)


@torch.no_grad()
def test_what_prompts_begin_with_is_computed_once(tiny, encoder, shared):
    """Both branches with a picture, and the next edit of it, run their own texts alone."""
    image = picture(64, 64, 3)
    prompts = ["", "make it blue", "make it green, and larger"]
    inputs = [encoder.tokenize([text], [[image]]) for text in prompts]
    together = encoder.tokenize(prompts[:2], [[image]] * 2)
    states = []

    def run(given) -> int:
        return counted_tokens(tiny, lambda: states.append(encoder.hidden_states(given)))

    whole = [rows.input_ids.shape[1] - 2 for rows in inputs]
    head = int((inputs[0].input_ids[0] == tiny.mllm.config.image_token_id).nonzero()[-1]) + 1
    assert run(together) == head + 2 * (max(whole[:2]) - head)
    assert run(inputs[2]) == whole[2] - head
    for text, found in zip(prompts, (states[0][:, :1], states[0][:, 1:], states[1]), strict=True):
        fresh = LadderEncoder(tiny.mllm, tiny.connector, tiny.tokenizer, tiny.image_processor, num_layers=4)
        fresh.vision.keeps = False  # everything in one pass
        expected = fresh.hidden_states(fresh.tokenize([text], [[image]]))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_few_prefixes_are_kept_those_used_last(encoder, shared):
    shades = range(PREFIX_CACHE_SIZE + 2)
    encoder(["a"] * len(shades), [[picture(40, 40, 9 * shade)] for shade in shades])
    assert len(encoder.prefix_cache) == PREFIX_CACHE_SIZE
    oldest = next(iter(encoder.prefix_cache))
    encoder(["b"], [[picture(40, 40, 18)]])
    assert next(reversed(encoder.prefix_cache)) == oldest


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=4), st.data())
def test_prefixes_go_in_as_they_came_out(rows, data):
    """Ragged rows: cut out of a padded batch; filled in at the right end, and taken out again."""
    spans = [(start, start + length) for start, length in rows]
    table = torch.arange(2 * len(rows) * 9).reshape(2, len(rows), 9) + 1
    cut = cut_left(table, spans)
    longest = max(length for _, length in rows)
    for row, (start, end) in enumerate(spans):
        assert torch.equal(cut[:, row, longest - (end - start) :], table[:, row, start:end])
        assert not cut[:, row, : longest - (end - start)].any()
    prefixes = [torch.randn(3, 2, 2, length, 4) for _, length in rows]
    cache = DynamicCache()
    mask = put_in(cache, prefixes)
    assert mask.sum(1).tolist() == [length for _, length in rows]
    row = data.draw(st.integers(0, len(rows) - 1))
    assert torch.equal(take_out(cache, row, rows[row][1]), prefixes[row])


@given(st.tuples(*[st.integers(1, 5)] * 4))
def test_fold_and_unfold(shape):
    states = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    folded = fold_condition(states)
    layers, batch, queries, dim = shape
    assert folded.shape == (batch, queries, layers * dim)
    assert torch.equal(folded[-1, -1, -dim:], states[-1, -1, -1])
    assert torch.equal(unfold_condition(folded, layers), states)


def test_unfold_refuses_another_model():
    with pytest.raises(ValueError, match=r"shape \[1, 77, 768\], which does not unfold into 20 layers"):
        unfold_condition(torch.zeros(1, 77, 768), 20)


@pytest.mark.parametrize(
    ("images", "prompts", "words"),
    [
        ([[]], ["a", "b"], "2 prompts but 1 lists of images"),
        ([[Image.new("RGB", (8, 8))] * 5], ["a"], "at most 4 images, 5 were given"),
        ([["cat.png"]], ["a"], "An input image is a str; give PIL images"),
        ([[Image.new("RGB", (1000, 2))]], ["a"], "1000x2 is more than 200 times"),
    ],
)
def test_bad_images(images, prompts, words):
    with pytest.raises(ValueError, match=words):
        prepare_images(images, prompts)
