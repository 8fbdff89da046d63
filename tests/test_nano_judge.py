"""The judge of the sprite-scene score: what it refuses, how it reads, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nano_drawings import drawings, needs_art  # noqa: F401  a fixture
from tbac_uniimage.training.nano.base import autoencoder, stage
from tbac_uniimage.training.nano.domain import edits, facts, prompts
from tbac_uniimage.training.nano.domain.letters import WORDS
from tbac_uniimage.training.nano.domain.prompts import Prompt
from tbac_uniimage.training.nano.domain.render import render
from tbac_uniimage.training.nano.domain.scene import Item, Scene, Word
from tbac_uniimage.training.nano.judge import accuracy, changed, detector, train, verdicts
from tbac_uniimage.training.nano.judge.pictures import pixels, see

WEIGHTS = Path(__file__).parents[1] / "assets" / "nano" / "judge" / "model.safetensors"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason="the judge's weights are not there")
numbers = st.integers(0, 2**32)
kinds = st.sampled_from(list(prompts.KINDS))


@given(numbers, kinds)
def test_what_is_told_is_accepted_and_what_is_nearly_told_is_not(number, kind):
    prompt = prompts.draw(0, "held out", number, kind)
    assert verdicts.follows(prompt.scene, prompt) and verdicts.facts_right(prompt.scene, prompt) == 1
    wrong = changed.change_one(Random(number), prompt)
    assert not verdicts.follows(prompt.scene, wrong)
    assert sum(a != b for a, b in zip(prompt.facts, wrong.facts, strict=True)) == 1
    assert verdicts.facts_right(prompt.scene, wrong) == pytest.approx(1 - 1 / len(prompt.facts))
    for what in facts.GENERAL:
        verdict = verdicts.general(prompt.scene, prompt, what)
        assert verdict is (True if any(fact[0] == what for fact in prompt.facts) else None)
        if verdict:
            assert not verdicts.general(prompt.scene, changed.change_general(Random(0), prompt), what)


def test_general_facts_are_judged_apart():
    scene = Scene("flat", "blue", (Item("dog", 32, 32, 42),))
    prompt = Prompt("single", scene, "", (("there", "dog"), ("style", "flat"), ("background", "blue")))
    other = replace(scene, style="3D", background="pink")
    assert verdicts.follows(other, prompt) and verdicts.facts_right(other, prompt) == pytest.approx(1 / 3)
    assert verdicts.general(other, prompt, "style") is False


def test_extra_objects_count_only_where_a_number_is_asked():
    dogs = tuple(Item("dog", x, 32, 27) for x in (17, 47))
    asked = Prompt("count", Scene("3D", "white", dogs), "two dogs", (("count", "dog", "2"),))
    cat = Item("cat", 32, 12, 19)
    assert verdicts.follows(Scene("3D", "white", (*dogs, cat)), asked)
    assert not verdicts.follows(Scene("3D", "white", (*dogs, Item("dog", 32, 12, 19))), asked)


@pytest.mark.parametrize(
    "read, share",
    [("TAXI", 1.0), ("TAX", 0.75), ("TAXIS", 0.8), ("TAZI", 0.75), ("ATXI", 0.5), ("", 0.0), ("BUS", 0.0)],
)
def test_character_accuracy(read, share):
    prompt = Prompt("text", Scene("", "white", (), Word("TAXI", 32)), '"TAXI"', (("word", "TAXI"),))
    seen = Scene("", "white", (), Word(read, 32) if read else None)
    assert verdicts.letters_right(seen, prompt) == pytest.approx(share)
    assert verdicts.follows(seen, prompt) == (share == 1)


def test_distance_of_words():
    assert [verdicts.distance(*pair) for pair in (("", ""), ("KITE", "KIT"), ("ABC", "XYZ"))] == [0, 1, 3]
    for word in WORDS[:40]:
        assert verdicts.distance(word, word) == 0 and verdicts.distance(word, word[::-1] + "Q") >= 1


class Oracle(torch.nn.Module):
    """A detector that knows the scenes: what training wants, as its output."""

    def __init__(self, scenes: list[Scene]) -> None:
        super().__init__()
        self.scenes = scenes

    def forward(self, pictures: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        wanted = [train.targets(scene) for scene in self.scenes]
        parts = {}
        for part, size in detector.PARTS.items():
            stacked = torch.from_numpy(np.stack([each[part] for each in wanted]))
            if size == 1:
                stacked = stacked.clamp(1e-4, 0.99).logit() if part == "heat" else stacked
                parts[part] = stacked[:, None]
            else:
                parts[part] = 9.0 * torch.nn.functional.one_hot(stacked.clamp(min=0), size).movedim(-1, 1)
        grounds = torch.tensor([detector.GROUNDS.index(scene.background) for scene in self.scenes])
        return parts, 9.0 * torch.nn.functional.one_hot(grounds, len(detector.GROUNDS))


@given(numbers)
def test_a_perfect_detector_is_read_without_error(number):
    """What training asks of the network is all that the scene holds, up to a cell's width."""
    scenes = [prompts.draw(0, "held out", number + i, kind).scene for i, kind in enumerate(prompts.KINDS)]
    scenes.append(edits.draw(0, "held out", number).target)
    found = detector.detect(Oracle(scenes), torch.zeros(len(scenes), 3, 64, 64))
    for seen, scene in zip(found, scenes, strict=True):
        assert (seen.style, seen.background) == (scene.style, scene.background)
        assert (seen.word and seen.word.letters) == (scene.word and scene.word.letters)
        left = list(seen.items)
        assert len(left) == len(scene.items)
        for item in scene.items:
            match = next(i for i in left if (i.name, i.paint) == (item.name, item.paint) and near(i, item))
            left.remove(match)


def test_a_word_is_read_from_the_left_in_one_line():
    found = [Item("X", 44, 31, 14), Item("T", 20, 33, 14), Item("A", 32, 32, 14), Item("Q", 32, 8, 14)]
    assert detector.read(found) == Word("TAX", 32)
    assert detector.read([]) is None


def near(first: Item, second: Item) -> bool:
    return max(abs(first.x - second.x), abs(first.y - second.y), abs(first.size - second.size)) <= 3


def test_scenes_to_learn_from_are_varied_and_inside():
    random = Random(0)
    scenes = [train.free_scene(random) for _ in range(400)]
    assert {len(scene.items) for scene in scenes} >= set(range(6))
    assert any(scene.word and scene.items for scene in scenes)
    for scene in scenes:
        for item in scene.items:
            assert item.size // 2 <= min(item.x, item.y)
            assert max(item.x, item.y) - item.size // 2 + item.size <= 64


def test_a_few_steps_lower_the_loss(drawings):  # noqa: F811
    torch.manual_seed(0)
    eye = detector.Detector()
    optimizer = torch.optim.AdamW(eye.parameters(), 2e-3)
    scenes = [prompts.draw(0, "train", i).scene for i in range(8)]
    losses = []
    for _ in range(12):
        loss = train.loss(eye, scenes, Random(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_augmented_pictures_stay_in_range():
    pictures = pixels([np.full((64, 64, 3), value, np.uint8) for value in (0, 255)])
    assert pictures.min() == -1 and pictures.max() == 1
    seen = [train.augment(pictures, Random(i)) for i in range(8)]
    assert all(s.shape == pictures.shape and s.abs().max() <= 1 for s in seen)
    assert any(not torch.equal(s, pictures) for s in seen)


def test_weights_round_trip(tmp_path):
    torch.manual_seed(0)
    eye = detector.Detector().eval()
    detector.save(eye, tmp_path / "model.safetensors")
    again = detector.load(tmp_path / "model.safetensors")
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    before, after = eye(pictures), again(pictures)
    assert torch.allclose(before[0]["thing"], after[0]["thing"], atol=0.02)
    with pytest.raises(FileNotFoundError, match="train it with"):
        detector.load(tmp_path / "none.safetensors")


def test_an_autoencoder_is_measured_at_its_own_size(tmp_path):
    torch.manual_seed(0)
    vae = autoencoder.build(128)
    stage.save_state(tmp_path, {"vae": vae}, torch.optim.AdamW(vae.parameters()), {}, {"steps": 1})
    through, size = accuracy.reconstruction(str(tmp_path))
    [again] = through([render(Scene("", "blue", ()), size)])
    assert size == 128 and again.shape == (128, 128, 3) and again.dtype == np.uint8
    with pytest.raises(ValueError, match="is missing: train that stage first"):
        accuracy.reconstruction(str(tmp_path / "none"))


def test_the_table_has_a_line_per_row():
    rows = [accuracy.Trust("single", 200, 0.99, 0.01, 0.0), accuracy.Trust("facts", 9, 1.0, 0.1, None)]
    lines = [line.split() for line in accuracy.table(rows).splitlines()]
    assert lines[2:] == [["single", "200", "0.990", "0.010", "0.000"], ["facts", "9", "1.000", "0.100", "–"]]


@needs_art
@needs_weights
@pytest.mark.slow
def test_the_judge_can_be_trusted():
    eye = detector.load(WEIGHTS)
    rows = accuracy.measure(eye, samples=100, seed=11)
    assert {row.name for row in rows} >= {
        *prompts.KINDS,
        *facts.GENERAL,
        *(f"edit: {k}" for k in edits.KINDS),
    }
    for row in rows:
        assert row.truth >= 0.97, row
        assert row.changed is None or row.changed <= 0.03, row
        assert row.shuffled <= {"style": 0.4, "background": 0.2}.get(row.name, 0.15), row


@needs_art
@needs_weights
def test_nothing_is_seen_in_noise():
    eye = detector.load(WEIGHTS)
    noise = list(np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8))
    asked = [prompts.draw(0, "held out", i) for i in range(50)]
    assert not any(verdicts.follows(seen, prompt) for seen in see(eye, noise) for prompt in asked)
    seen = see(eye, [render(prompt.scene) for prompt in asked])
    right = [verdicts.follows(s, prompt) for s, prompt in zip(seen, asked, strict=True)]
    assert sum(right) >= 47
