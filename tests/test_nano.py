"""Version 0 of the nano model: data, tokenizer, detector."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tbac_uniimage.training.nano import (
    autoencoder,
    checks,
    detector,
    drawing,
    edits,
    ladder,
    loop,
    naming,
    questions,
    scenes,
    sprites,
    tokenizer,
)
from tbac_uniimage.training.nano.scenes import Item, Scene

SAMPLES = Path(__file__).parent / "data" / "nano"
ASSETS = Path(__file__).parents[1] / "assets" / "nano"
needs_sprites = pytest.mark.skipif(
    not (sprites.CACHE / "sprites.npz").exists(), reason="sprites are not in the cache"
)
needs_detector = pytest.mark.skipif(not (ASSETS / detector.WEIGHTS).exists(), reason="no detector weights")
seeds = st.integers(0, 2**32)
RECORDED_CAPTIONS = [
    "a pig, orange background",
    "a mushroom and a turtle on blue",
    "two moons, purple background",
    "an octopus to the left of a dog, pink background",
]
RECORDED_EDITS = [
    "add a penguin on the right",
    "remove the chick",
    "replace the mushroom with a house",
    "change the background to orange",
    "move the fish to the right",
    "make it three cactuses",
]


def sample_scenes() -> dict[str, Scene]:
    stored = json.loads((SAMPLES / "scenes.json").read_text())
    return {
        name: Scene(s["background"], tuple(Item(*item) for item in s["items"]), s["kind"], s["relation"])
        for name, s in stored.items()
    }


def sample_picture(name: str) -> np.ndarray:
    return np.asarray(Image.open(SAMPLES / f"{name}.png").convert("RGB"))


@given(seeds)
def test_a_seed_is_a_scene(seed):
    scene = scenes.draw(Random(seed))
    assert scene == scenes.draw(Random(seed))
    assert scenes.caption(scene, Random(1)) == scenes.caption(scene, Random(1))


def test_recorded_draws():
    """The training stream and the held-out set stay the same in later versions."""
    random = Random("recorded")
    told = [scenes.caption(scenes.draw(random, kind), random) for kind in scenes.KINDS]
    assert told == RECORDED_CAPTIONS
    assert [edits.draw(random, kind).instruction for kind in edits.KINDS] == RECORDED_EDITS


@given(seeds)
def test_training_never_sees_a_held_out_combination(seed):
    random = Random(seed)
    assert not scenes.is_held_out(scenes.draw(random))
    edit = edits.draw(random)
    assert not scenes.is_held_out(edit.source) and not scenes.is_held_out(edit.target)
    for index in (seed % 1000, seed % 1000 + 1):
        assert not scenes.is_held_out(drawing.pool_scene(0, index))
        prompt = ladder.pool_prompt(0, index)
        assert not scenes.is_held_out(prompt.target)
        assert prompt.source is None or not scenes.is_held_out(prompt.source)
    for scene in naming.picture_batch(random, 3) + autoencoder_scenes(random):
        assert not scenes.is_held_out(scene)


def autoencoder_scenes(random: Random) -> list[Scene]:
    return [scenes.draw(random, kind) for kind in scenes.KINDS]


@given(seeds)
def test_the_score_sees_held_out_combinations_only(seed):
    random = Random(seed)
    assert scenes.is_held_out(scenes.draw(random, held_out=True))
    assert scenes.is_held_out(edits.draw(random, held_out=True).target)


def test_held_out_is_about_objects_and_background_whatever_the_arrangement():
    first = Scene("blue", (Item("dog", 17, 32, 27), Item("cat", 47, 32, 27)), "two")
    second = Scene("blue", (Item("cat", 32, 17, 26), Item("dog", 32, 47, 28)), "position", "above")
    assert scenes.is_held_out(first) == scenes.is_held_out(second)
    share = np.mean([scenes.is_held_out(scenes.draw_any(Random(i), "two")) for i in range(2000)])
    assert 0.07 < share < 0.13


@given(seeds, st.sampled_from(edits.KINDS))
def test_an_edit_changes_what_it_says_and_nothing_else(seed, kind):
    edit = edits.draw(Random(seed), kind)
    source, target = edit.source, edit.target
    assert source != target
    kept = set(source.items) & set(target.items)
    numbers = (len(source.items), len(target.items), len(kept))
    if kind == "add":
        assert numbers == (1, 2, 1)
    if kind == "remove":
        assert numbers == (2, 1, 1)
    if kind == "replace":
        changed = set(source.items) ^ set(target.items)
        assert len({(i.x, i.y, i.size) for i in changed}) == 1 and len({i.name for i in changed}) == 2
    if kind == "background":
        assert kept == set(source.items) and source.background != target.background
    else:
        assert source.background == target.background
    if kind == "move":
        assert source.items[0].name == target.items[0].name and source.items[0].size == target.items[0].size


@given(seeds)
def test_every_scene_can_be_described_and_named(seed):
    edit = edits.draw(Random(seed))
    for scene in (edit.source, edit.target):
        text = questions.describe(scene)
        assert scene.background in text
        assert all(item.name in text or scenes.plural(item.name) in text for item in scene.items)
        slots = [naming.NAMES[index] for index in naming.slot_names(scene)]
        assert slots[0] == ("background", scene.background) and slots[1] == ("number", len(scene.items))
        assert [s[1] for s in slots if s[0] == "name"] == [item.name for item in scene.items]
        assert all(index < len(naming.NAMES) for cell in naming.cell_names(scene) for index in cell)


def test_questions_have_the_right_answer():
    scene = sample_scenes()["cat_car"]
    assert questions.describe(scene) == "a cat to the left of a car on a white background"
    answers = {questions.draw(Random(i), scene, "where") for i in range(20)}
    assert answers == {("where is the cat?", "on the left"), ("where is the car?", "on the right")}
    counted = dict(questions.draw(Random(i), scene, "how many") for i in range(40))
    assert counted["how many objects are there?"] == "two" and counted["how many cats are there?"] == "one"
    assert questions.draw(Random(0), scene, "background")[1] == "white"
    assert questions.draw(Random(0), sample_scenes()["dog"], "what")[1] == "a dog"


def test_names_without_jitter():
    item = Item("dog", 18, 46, 28)
    assert naming.without_jitter(item) == Item("dog", 17, 47, 27)
    table = drawing.NameTable()
    exact = torch.tensor([naming.slot_names(Scene("blue", (item,), "single"))])
    plain = torch.tensor([naming.slot_names(Scene("blue", (item,), "single"), exact=False)])
    vague, precise = torch.tensor([True]), torch.tensor([False])
    assert torch.equal(table(exact, vague), table(plain, vague))
    assert not torch.equal(table(exact, precise), table(plain, precise))


@needs_sprites
def test_rendering_matches_the_sample_pictures():
    for name, scene in sample_scenes().items():
        difference = np.abs(scenes.render(scene).astype(int) - sample_picture(name).astype(int))
        assert difference.max() <= 2, name  # Lanczos differs by a rounding between versions of Pillow


@needs_sprites
def test_what_an_edit_must_keep():
    edit = edits.draw(Random(3), "remove")
    source, target = scenes.render(edit.source), scenes.render(edit.target)
    assert checks.preservation(target, edit) == (60.0, 1.0)
    mask = checks.keep_mask(edit)
    assert 0.7 < mask.mean() < 1 and np.array_equal(source[mask], target[mask])
    spoiled = target.copy()
    spoiled[mask] = 255 - spoiled[mask]
    assert checks.preservation(spoiled, edit)[0] < 12


def test_ssim_is_one_for_equal_pictures_only():
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert checks.ssim(picture, picture).mean() == pytest.approx(1)
    assert checks.ssim(picture, 1 - picture).mean() < 0


@pytest.fixture(scope="module")
def nano_tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_words_of_the_domain_are_one_token(nano_tokenizer):
    for name in sprites.OBJECTS:
        assert len(nano_tokenizer.encode(f" {name}")) == 1, name
    assert len(nano_tokenizer.encode("a cat to the left of a dog on a blue background")) == 12


@settings(deadline=None)
@given(st.text(max_size=40))
def test_tokenizer_round_trip(nano_tokenizer, text):
    import unicodedata

    ids = nano_tokenizer.encode(text)
    assert nano_tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_special_tokens_are_those_of_qwen(nano_tokenizer):
    assert nano_tokenizer.eos_token == "<|im_end|>" and nano_tokenizer.pad_token == "<|endoftext|>"
    for token in tokenizer.SPECIAL:
        assert nano_tokenizer.decode(nano_tokenizer.encode(token)) == token
        assert len(nano_tokenizer.encode(token)) == 1


def test_training_again_gives_the_same_tokenizer(nano_tokenizer, tmp_path):
    tokenizer.train(tmp_path)
    again = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert again == json.loads(nano_tokenizer.backend_tokenizer.to_str())["model"]["vocab"]


@torch.no_grad()
def test_normalised_latents_mean_the_same_to_the_decoder():
    torch.manual_seed(0)
    vae = autoencoder.build().eval()
    pictures = autoencoder.pixels([sample_picture(name) for name in sample_scenes()])
    before = vae.decoder.conv_in(vae.encode(pictures).latent)
    autoencoder.normalise_latents(vae, pictures)
    latents = vae.encode(pictures).latent
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(16), atol=1e-5)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(16), atol=1e-5)
    inside = (..., slice(1, -1), slice(1, -1))  # the border's padding stands for another value
    assert torch.allclose(vae.decoder.conv_in(latents)[inside], before[inside], atol=1e-4)


def test_pixels_and_back():
    picture = sample_picture("dog")
    assert np.array_equal(autoencoder.pictures_of(autoencoder.pixels([picture]))[0], picture)


def test_an_interrupted_stage_goes_on_where_it_was(tmp_path):
    def train(minutes: float, steps: list[int]) -> dict:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def step(position: int) -> torch.Tensor:
            steps.append(position)
            if len(steps) == 5:
                done_budget[0] = True
            return model(torch.ones(1, 3)).square().sum()

        stage = loop.Stage("toy", tmp_path, minutes, batch=2, learning_rate=0.1, ema=0.9)
        return loop.train(stage, {"model": model}, step, lambda: "")

    done_budget = [False]
    first: list[int] = []
    counters = train(0.003, first)
    assert counters["steps"] == len(first) and counters["samples"] == 2 * len(first)
    second: list[int] = []
    again = train(0.006, second)
    assert second[0] == len(first) and again["steps"] == len(first) + len(second)
    model = torch.nn.Linear(3, 1)
    assert loop.load_stage(tmp_path, "toy", {"model": model}) == again
    assert model(torch.ones(1, 3)).abs().item() < 0.1
    with pytest.raises(FileNotFoundError, match="train the stage 'other' first"):
        loop.load_stage(tmp_path, "other", {})


def test_learning_rate_warms_up_and_falls():
    stage = loop.Stage("toy", Path("."), 1.0, 1, learning_rate=1.0, warmup=10, decay=0.5)
    assert loop.learning_rate(stage, 0, 0.0) == pytest.approx(0.1)
    assert loop.learning_rate(stage, 100, 0.5) == pytest.approx(1.0)
    assert loop.learning_rate(stage, 100, 0.75) == pytest.approx(0.5)
    assert loop.learning_rate(stage, 100, 1.0) == pytest.approx(0.01)


def found_as(scene: Scene) -> detector.Found:
    return detector.Found(scene.background, tuple((item, 0.9) for item in scene.items))


@given(seeds, st.sampled_from(list(scenes.KINDS)))
def test_a_scene_follows_its_own_caption(seed, kind):
    scene = scenes.draw(Random(seed), kind)
    assert checks.follows_caption(found_as(scene), scene)
    assert checks.objects_right(found_as(scene), scene) == 1
    empty = detector.Found(scene.background, ())
    assert not checks.follows_caption(empty, scene) and checks.objects_right(empty, scene) == 0


def test_the_checks_notice_what_is_wrong():
    cat, car = Item("cat", 17, 32, 27), Item("car", 47, 32, 27)
    wanted = Scene("white", (cat, car), "position", "to the left of")
    swapped = found_as(Scene("white", (Item("cat", 47, 32, 27), Item("car", 17, 32, 27)), ""))
    assert not checks.follows_caption(swapped, wanted)
    stars = Scene("blue", (Item("star", 17, 32, 27), Item("star", 47, 32, 27)), "count")
    assert not checks.follows_caption(found_as(Scene("blue", stars.items[:1], "")), stars)
    moved = Scene("gray", (Item("cat", 17, 32, 27),), "position", "on the right")
    assert not checks.follows_caption(found_as(moved), moved)


@given(seeds, st.sampled_from(edits.KINDS))
def test_the_target_follows_its_edit_and_the_source_does_not(seed, kind):
    edit = edits.draw(Random(seed), kind)
    assert checks.follows_edit(found_as(edit.target), edit)
    assert not checks.follows_edit(found_as(edit.source), edit)


def test_chance_of_a_guess():
    assert checks.guess_chance(sample_scenes()["dog"]) == 1 / 32
    assert checks.guess_chance(sample_scenes()["rose"]) == 1 / 32 / 8
    assert checks.guess_chance(sample_scenes()["apple_banana"]) == 1 / 496
    assert checks.guess_chance(sample_scenes()["cat_car"]) == 1 / 496 / 4


@needs_detector
def test_the_detector_sees_the_sample_pictures():
    eye = detector.load(ASSETS / detector.WEIGHTS)
    wanted = sample_scenes()
    found = detector.detect(eye, autoencoder.pixels([sample_picture(name) for name in wanted]))
    for scene, seen in zip(wanted.values(), found, strict=True):
        assert seen.background == scene.background
        assert sorted(item.name for item, _ in seen.items) == sorted(item.name for item in scene.items)
        assert checks.follows_caption(seen, scene)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    [seen] = detector.detect(eye, autoencoder.pixels([noise]))
    assert not any(checks.follows_caption(seen, scene) for scene in wanted.values())


def test_a_missing_detector_is_one_clear_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="train it with"):
        detector.load(tmp_path / "model.safetensors")


def test_detector_weights_round_trip(tmp_path):
    torch.manual_seed(0)
    eye = detector.Detector().eval()
    detector.save(eye, tmp_path / "model.safetensors")
    again = detector.load(tmp_path / "model.safetensors")
    pictures = autoencoder.pixels([sample_picture("dog")])
    assert torch.allclose(eye(pictures)[0], again(pictures)[0], atol=0.02)
