"""The nano model's scenes: captions, what is kept for the score, words, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nano_drawings import drawings, needs_art  # noqa: F401  a fixture
from tbac_uniimage.training.nano import compose, make
from tbac_uniimage.training.nano.domain import edits, facts, letters, prompts, questions, scene, words
from tbac_uniimage.training.nano.domain.prompts import NEW
from tbac_uniimage.training.nano.domain.render import painted, render, window
from tbac_uniimage.training.nano.domain.scene import SIZE, Item, Scene, Word
from tbac_uniimage.training.nano.judge.pictures import scaled

numbers = st.integers(0, 2**32)
RECORDED = {
    "single": "3D style, a bus on yellow",
    "two": "a purple cat and a house on a gray background",
    "count": "flat style, two penguins on white",
    "color": "a blue star, white background, 3D style",
    "position": "a 3D render of a turtle below a sailboat on a yellow background",
    "binding": "a green banana beside a red butterfly on a white background, 3D style",
    "dense": (
        "A cartoon with four different things on a plain white background. A banana can be seen in the "
        "top left corner. In the top right corner you can see a sunflower. In the bottom left corner you"
        " can see a house. A chick can be seen in the bottom right corner. The sunflower is above the "
        "chick. Everything else is empty."
    ),
    "text": 'a sunflower with the word "ZOO" below it, pink background, flat style',
}


def together(drawn: Scene) -> set[tuple]:
    """Every combination in a scene, found without the function that is tested."""
    found = set()
    for item in drawn.items:
        column, row = (0 if v <= 20 else 1 if v < 44 else 2 for v in (item.x, item.y))
        found |= {("background", item.name, drawn.background), ("paint", item.name, item.paint)}
        found |= {("place", item.name, column, row)}
        found |= {("count", item.name, drawn.names.count(item.name))}
        found |= {("pair", *sorted((item.name, name))) for name in drawn.names if name != item.name}
    return found | ({("word", drawn.word.letters)} if drawn.word else set())


@given(numbers, st.sampled_from(prompts.SPLITS))
def test_a_number_is_a_prompt(number, split):
    prompt = prompts.draw(0, split, number)
    assert prompt == prompts.draw(0, split, number)
    assert prompt != prompts.draw(1, split, number) or prompt != prompts.draw(2, split, number)


def test_recorded_captions():
    """The training stream and the score's prompts stay the same in later versions."""
    assert {kind: prompts.draw(0, "held out", 7, kind).text for kind in prompts.KINDS} == RECORDED


@pytest.fixture
def composed(monkeypatch) -> Callable[[dict[str, int]], Iterator[Scene]]:
    """The scenes of the data sets that `compose` writes, by their numbers; nothing is drawn."""
    monkeypatch.setattr(compose, "prompt_files", lambda prompt, size: [prompt.scene])
    monkeypatch.setattr(compose, "change_files", lambda edit, size: [edit.source, edit.target])

    def scenes(counts: dict[str, int]) -> Iterator[Scene]:
        for name, count in counts.items():
            for number in range(count):
                yield from compose.SETS[name](0, number, 64)

    return scenes


def assert_new_to(seen: set[tuple]) -> None:
    """That every scene of the score holds what its kind says, and training has never seen it."""
    for kind in prompts.KINDS:
        for number in range(200):
            prompt = prompts.draw(0, "held out", number, kind)
            new = {what[0] for what in together(prompt.scene) - seen}
            assert new & set(NEW[kind]), prompt.text
    for kind in edits.KINDS:
        for number in range(200):
            edit = edits.draw(0, "held out", number, kind)
            assert together(edit.target) - seen, edit.text
    for kind in questions.KINDS:
        for number in range(200):
            question = questions.draw(0, "held out", number, kind)
            assert together(question.scene) - seen, question.text


def test_training_and_score_share_no_combination(composed):
    """None of some 20,000 training pictures holds what makes a scene of the score new."""
    counts = {"scenes": 8000, "words": 1000, "edits": 5500, "curated-scenes": 300, "curated-edits": 300}
    assert list(counts) == list(make.FULL.counts)
    drawn = list(composed(counts))
    assert len(drawn) == 20_900
    asked = [questions.draw(0, "train", number).scene for number in range(1000)]
    assert_new_to(set().union(*map(together, [*drawn, *asked])))


def test_one_combination_in_ten_is_kept():
    objects = list(words.OBJECTS)
    groups = {
        "background": [("background", *pair) for pair in product(objects, words.BACKGROUNDS)],
        "paint": [("paint", *pair) for pair in product(objects, words.PAINTS)],
        "place": [("place", *pair) for pair in product(objects, words.PLACES.values())],
        "pair": [("pair", *sorted(pair)) for pair in combinations(objects, 2)],
        "count": [("count", *pair) for pair in product(objects, "234")],
        "word": [("word", word) for word in letters.WORDS],
    }
    for name, group in groups.items():
        kept = [combination for combination in group if scene.is_kept(combination)]
        assert 0.06 < len(kept) / len(group) < 0.16, name
    for number in "234":
        assert any(scene.is_kept(("count", name, number)) for name in objects), number


def test_what_is_kept_does_not_depend_on_the_arrangement():
    dog, cat = Item("dog", 17, 32, 27), Item("cat", 47, 32, 27)
    pairs = [set(scene.combined(Scene("flat", "blue", items))) for items in ((dog, cat), (cat, dog))]
    assert pairs[0] == pairs[1]
    assert ("pair", "cat", "dog") in pairs[0] and ("place", "dog", "on the left") in pairs[0]
    crowd = Scene("3D", "white", (*[Item("dog", x, 17, 27) for x in (17, 47)], cat))
    assert ("count", "dog", "2") in set(scene.combined(crowd))
    middle = Scene("3D", "white", (Item("dog", 33, 31, 42, "red"),))
    assert set(scene.combined(middle)) == {("background", "dog", "white"), ("paint", "dog", "red")}


@given(numbers, st.sampled_from(prompts.SPLITS), st.sampled_from(list(prompts.KINDS)))
def test_a_caption_is_true_and_its_scene_can_be_seen(number, split, kind):
    prompt = prompts.draw(0, split, number, kind)
    drawn = prompt.scene
    assert prompt.kind == kind and prompt.facts and all(facts.holds(fact, drawn) for fact in prompt.facts)
    for item in drawn.items:
        assert words.told_apart(item.name, item.paint, drawn.background)
        assert item.name in prompt.text and item.paint in prompt.text
        for part in window(item):
            assert 0 <= part.start and part.stop <= SIZE
    for first, second in combinations(drawn.items, 2):
        gap = max(abs(first.x - second.x), abs(first.y - second.y)) - (first.size + second.size) / 2
        assert gap >= -2
    if drawn.word:
        assert drawn.word.letters in prompt.text
    assert bool(drawn.style) == bool(drawn.items)


@given(numbers, st.sampled_from(list(prompts.KINDS)))
def test_kinds_are_what_they_are_called(number, kind):
    drawn = prompts.draw(0, "train", number, kind).scene
    names, paints = drawn.names, [item.paint for item in drawn.items]
    expected = {
        "single": len(names) == 1 and paints == [""],
        "two": len(set(names)) == 2,
        "count": 2 <= len(names) <= 4 and len(set(names)) == 1,
        "color": len(names) == 1 and all(paints),
        "position": 1 <= len(names) <= 2,
        "binding": len(set(names)) == 2 and len(set(paints)) == 2 and all(paints),
        "dense": 4 <= len(set(names)) == len(names) <= 6,
        "text": len(names) <= 1 and drawn.word is not None and 2 <= len(drawn.word.letters) <= 5,
    }
    assert expected[kind]


@given(numbers, st.sampled_from(prompts.SPLITS))
def test_dense_captions_are_long_and_place_every_object(number, split):
    prompt = prompts.draw(0, split, number, "dense")
    assert 40 <= len(prompt.text.split()) <= 80
    stated = {fact[0] for fact in prompt.facts}
    assert {"style", "background", "place"} <= stated
    placed = [fact[1:] for fact in prompt.facts if fact[0] == "place"]
    assert placed == [(item.name, item.place) for item in prompt.scene.items]
    lower = prompt.text.lower()
    assert all(place in lower for _, place in placed) and prompt.scene.background in lower


def test_a_caption_that_names_no_style_or_background_means_the_default():
    for number in range(300):
        prompt = prompts.draw(0, "train", number)
        stated = {fact[0] for fact in prompt.facts}
        assert "background" in stated or prompt.scene.background == words.DEFAULT_BACKGROUND
        assert "style" in stated or prompt.scene.style in (words.DEFAULT_STYLE, "")


@pytest.mark.parametrize("domain", (prompts, edits))
def test_unknown_splits_and_kinds_are_refused(domain):
    with pytest.raises(ValueError, match="no such split: 'test'"):
        domain.draw(0, "test", 0)
    with pytest.raises(ValueError, match="unknown kind of .* 'many'"):
        domain.draw(0, "train", 0, "many")


@pytest.mark.parametrize(
    "fact, true",
    [
        (("there", "dog"), True),
        (("there", "pig"), False),
        (("count", "dog", "1"), True),
        (("count", "dog", "2"), False),
        (("paint", "car", "red"), True),
        (("paint", "dog", "red"), False),
        (("place", "dog", "on the left"), True),
        (("place", "dog", "in the top left corner"), False),
        (("relation", "dog", "to the left of", "car"), True),
        (("relation", "car", "to the left of", "dog"), False),
        (("relation", "dog", "above", "car"), False),
        (("style", "flat"), True),
        (("background", "pink"), False),
        (("word", "OK"), False),
    ],
)
def test_facts(fact, true):
    drawn = Scene("flat", "white", (Item("dog", 17, 32, 27), Item("car", 47, 32, 27, "red")))
    assert facts.holds(fact, drawn) is true


def test_an_unknown_fact_is_an_error():
    with pytest.raises(ValueError, match="no such fact"):
        facts.holds(("size", "dog", "large"), Scene("3D", "white", (Item("dog", 32, 32, 42),)))


def test_training_spells_letters_in_any_order_and_the_score_asks_for_words():
    drawn = {
        split: [prompts.draw(0, split, number, "text").scene.word.letters for number in range(600)]
        for split in prompts.SPLITS
    }
    known = [word in letters.WORDS for word in drawn["train"]]
    assert 0.25 < np.mean(known) < 0.35
    assert {len(word) for word in drawn["train"]} == {2, 3, 4, 5}
    first = {word[0] for word, is_known in zip(drawn["train"], known, strict=True) if not is_known}
    assert first == set(letters.LETTERS)
    assert not any(scene.is_kept(("word", word)) for word in drawn["train"])
    assert all(word in letters.WORDS and scene.is_kept(("word", word)) for word in drawn["held out"])


def test_words_fit_and_letters_differ():
    assert len(letters.WORDS) == len(set(letters.WORDS)) >= 300
    for word in letters.WORDS:
        assert 2 <= len(word) <= letters.LONGEST and set(word) <= set(letters.LETTERS)
        first, last = letters.centres(word, 32)[0], letters.centres(word, 32)[-1]
        assert first - letters.WIDTH // 2 >= 1 and last + letters.WIDTH // 2 <= SIZE - 1
    assert {letter for word in letters.WORDS for letter in word} == set(letters.LETTERS)
    for first, second in combinations(letters.LETTERS, 2):
        dots = (letters.mask(first) != letters.mask(second)).sum() / letters.DOT**2
        assert dots >= 2, (first, second)


def test_nouns():
    assert words.plural("bus") == "buses" and words.plural("butterfly") == "butterflies"
    assert words.plural("cactus") == "cactuses" and words.plural("dog") == "dogs"
    assert words.a("apple") == "an apple" and words.a("blue apple") == "a blue apple"


def test_rendering(drawings):  # noqa: F811
    empty = render(Scene("", "blue", ()))
    assert empty.shape == (64, 64, 3) and np.array_equal(
        np.unique(empty), np.unique(words.BACKGROUNDS["blue"])
    )
    item = Item("dog", 20, 40, 28)
    drawn = render(Scene("flat", "blue", (item,)))
    inside = np.zeros((64, 64), bool)
    inside[window(item)] = True
    assert window(item) == (slice(26, 54), slice(6, 34))
    changed = (drawn != empty).any(-1)
    assert not (changed & ~inside).any() and changed.mean() > 0.05
    centre = drawings["flat", "dog"][48, 48, :3].astype(int)
    assert np.abs(drawn[40, 20].astype(int) - centre).max() < 25


def test_paint_gives_shades_of_itself(drawings):  # noqa: F811
    for paint, colour in words.PAINTS.items():
        sprite = painted("3D", "dog", paint)
        visible = sprite[sprite[..., 3] > 128][:, :3]
        median = np.median(visible, 0)
        assert np.abs(median - colour).max() < 40, paint
        assert visible.sum(1).min() < 0.8 * sum(colour) or paint == "blue"
    assert np.array_equal(painted("3D", "dog", ""), drawings["3D", "dog"])
    plain = drawings["flat", "star"].copy()
    plain[..., :3] = (200, 180, 40)
    drawings["flat", "star"] = plain
    assert {tuple(pixel) for pixel in painted("flat", "star", "red")[..., :3].reshape(-1, 3)} == {
        words.PAINTS["red"]
    }


def test_letters_are_drawn_where_they_are_said_to_be():
    drawn = render(Scene("", "yellow", (), Word("HI", 12)))
    ink = (drawn == letters.INK["yellow"]).all(-1)
    assert ink.sum() == letters.mask("H").sum() + letters.mask("I").sum()
    rows, columns = np.nonzero(ink)
    assert (rows.min(), rows.max()) == (5, 18)
    assert columns.min() + columns.max() == 63
    left, right = letters.centres("HI", 32)
    assert np.array_equal(ink[5:19, left - 5 : left + 5], letters.mask("H"))
    assert np.array_equal(ink[5:19, right - 5 : right + 5], letters.mask("I"))


def test_a_larger_picture_shows_the_same_in_the_same_places(drawings):  # noqa: F811
    item = Item("dog", 20, 41, 27)
    assert window(item, 2) == (slice(56, 110), slice(14, 68))
    scene = Scene("flat", "blue", (item, Item("car", 47, 20, 19, "red")), Word("HI", 52))
    small, large = render(scene), render(scene, 128)
    assert large.shape == (128, 128, 3)
    assert np.array_equal(large, render(scene, 128)) and not np.array_equal(scaled(large), small)
    assert np.abs(scaled(large).astype(int) - small).mean() < 1
    outside = np.ones((64, 64), bool)
    for part in map(window, scene.items):
        outside[part] = False
    assert np.array_equal(scaled(large)[outside], small[outside])  # background and letters, dot by dot
    assert np.array_equal(letters.mask("H", 2), letters.mask("H").repeat(2, 0).repeat(2, 1))


@needs_art
def test_every_drawing_can_be_told_from_the_backgrounds_it_is_put_on():
    for style, name, background in product(words.STYLES, words.OBJECTS, words.BACKGROUNDS):
        if words.told_apart(name, "", background):
            drawn = render(Scene(style, background, (Item(name, 32, 32, 42),))).astype(int)
            away = np.abs(drawn - words.BACKGROUNDS[background]).max(-1)
            assert (away > 40).mean() > 0.06, (style, name, background)


@needs_art
def test_every_paint_is_nearer_to_itself_than_to_another():
    paints = np.array(list(words.PAINTS.values()))
    for style, name, (i, paint) in product(words.STYLES, words.OBJECTS, enumerate(words.PAINTS)):
        sprite = painted(style, name, paint)
        mean = sprite[sprite[..., 3] > 128][:, :3].mean(0)
        assert np.abs(paints - mean).sum(-1).argmin() == i, (style, name, paint)


def test_the_order_of_reading():
    items = [Item("dog", 47, 18, 27), Item("cat", 17, 47, 27), Item("pig", 16, 16, 27)]
    assert [item.name for item in scene.in_reading_order(items)] == ["pig", "dog", "cat"]
    assert scene.straightened(Item("dog", 18, 46, 28, "red")) == Item("dog", 17, 47, 27, "red")
    assert scene.without(Scene("3D", "white", tuple(items)), items[0]).names == ["cat", "pig"]
