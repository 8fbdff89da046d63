"""Composed data sets: what the tars hold, that `training/data` reads them, and going on when interrupted."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from nano_drawings import drawings  # noqa: F401  a fixture
from PIL import Image
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.index import Index
from tbac_uniimage.training.nano import compose
from tbac_uniimage.training.nano.domain import art, edits, facts, prompts
from tbac_uniimage.training.nano.domain.render import render
from tbac_uniimage.training.nano.domain.scene import is_held_out, straightened

COUNTS = {"scenes": 25, "words": 7, "edits": 12, "curated-scenes": 8, "curated-edits": 9}


@pytest.fixture
def small(monkeypatch, drawings):  # noqa: F811
    """Tars of ten samples."""
    monkeypatch.setattr(compose, "SHARD", 10)


def contents(folder: Path) -> dict[str, bytes]:
    """Every member of every tar below a folder."""
    found = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {f"{path.parent.name}/{m.name}": tar.extractfile(m).read() for m in tar}
    return found


def picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_tars_hold_what_the_numbers_mean(small, tmp_path):
    compose.compose(tmp_path, COUNTS, seed=3)
    found = contents(tmp_path)
    assert len(found) == 25 * 2 + 7 * 2 + 12 * 3 + 8 * 2 + 9 * 3
    assert sorted(path.name for path in (tmp_path / "scenes").iterdir()) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    for number in (0, 9, 10, 24):
        prompt = prompts.draw(3, "train", number)
        assert found[f"scenes/{number:08}.txt"].decode() == prompt.text
        assert np.array_equal(picture(found[f"scenes/{number:08}.webp"]), render(prompt.scene))
    prompt = prompts.draw(3, "train", 6, "text")
    assert prompt.scene.word and found["words/00000006.txt"].decode() == prompt.text
    assert np.array_equal(picture(found["words/00000006.webp"]), render(prompt.scene))
    edit = edits.draw(3, "train", 11)
    assert found["edits/00000011.txt"].decode() == edit.text
    assert np.array_equal(picture(found["edits/00000011.input.webp"]), render(edit.source))
    assert np.array_equal(picture(found["edits/00000011.output.webp"]), render(edit.target))


def test_pictures_of_twice_the_size(small, tmp_path):
    compose.compose(tmp_path, {"scenes": 3, "edits": 2}, size=128)
    found = contents(tmp_path)
    for number in range(3):
        scene = prompts.draw(0, "train", number).scene
        assert np.array_equal(picture(found[f"scenes/{number:08}.webp"]), render(scene, 128))
    edit = edits.draw(0, "train", 1)
    assert np.array_equal(picture(found["edits/00000001.input.webp"]), render(edit.source, 128))


def test_the_data_command_reads_them(small, tmp_path):
    compose.compose(tmp_path / "data", COUNTS, seed=3)
    for name, count in COUNTS.items():
        build(str(tmp_path / "data" / name), tmp_path / "index", name=name, workers=1)
        index = Index(tmp_path / "index" / name)
        assert len(index) == count
        texts = {index[i].text for i in range(count)}
        if name in ("scenes", "edits"):
            domain = prompts if name == "scenes" else edits
            assert texts == {domain.draw(3, "train", i).text for i in range(count)}
        assert {len(index[i].inputs) for i in range(count)} == {int("edits" in name)}
        assert {(index[i].width, index[i].height) for i in range(count)} == {(64, 64)}


def test_an_interrupted_call_goes_on(small, tmp_path, monkeypatch):
    compose.compose(tmp_path / "whole", COUNTS)
    whole, calls = contents(tmp_path / "whole"), []

    def broken(seed: int, number: int, size: int) -> compose.Files:
        calls.append(number)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return compose.scene_files(seed, number, size)

    monkeypatch.setitem(compose.SETS, "scenes", broken)
    with pytest.raises(KeyboardInterrupt):
        compose.compose(tmp_path / "part", COUNTS)
    assert [path.name for path in (tmp_path / "part" / "scenes").glob("*.tar")] == ["00000.tar"]
    compose.compose(tmp_path / "part", COUNTS)
    assert calls == [*range(15), *range(10, 25)]
    assert contents(tmp_path / "part") == whole
    compose.compose(tmp_path / "part", COUNTS)
    assert len(calls) == 30
    assert not list((tmp_path / "part").rglob("*.partial"))


def test_a_folder_keeps_its_seed_and_grows_by_whole_tars(small, tmp_path):
    counts = dict.fromkeys(compose.SETS, 10)
    compose.compose(tmp_path, counts)
    compose.compose(tmp_path, counts | {"scenes": 25})
    assert json.loads((tmp_path / compose.SETTINGS).read_text())["counts"]["scenes"] == 25
    assert len(list((tmp_path / "scenes").glob("*.tar"))) == 3
    before = contents(tmp_path)
    for wrong in (counts | {"scenes": 26}, counts | {"scenes": 10}):
        with pytest.raises(ValueError, match="was made for 25 samples"):
            compose.compose(tmp_path, wrong)
    with pytest.raises(ValueError, match="was made with seed 0"):
        compose.compose(tmp_path, counts | {"scenes": 25}, seed=1)
    with pytest.raises(ValueError, match="was made with pictures of 64 pixels, not 128"):
        compose.compose(tmp_path, counts | {"scenes": 25}, size=128)
    assert contents(tmp_path) == before


def test_the_curated_set_is_balanced_and_straight():
    chosen = [compose.curated_prompt(0, number) for number in range(80)]
    assert [prompt.kind for prompt in chosen[:8]] == list(prompts.KINDS)
    for prompt in chosen:
        stated = {fact[0] for fact in prompt.facts}
        assert "background" in stated and ("style" in stated or not prompt.scene.items)
        assert all(facts.holds(fact, prompt.scene) for fact in prompt.facts)
        assert all(item == straightened(item) for item in prompt.scene.items)
        assert not is_held_out(prompt.scene)
    changed = [compose.curated_edit(0, number) for number in range(90)]
    assert [edit.kind for edit in changed[:9]] == list(edits.KINDS)
    for edit in changed:
        assert edit.source != edit.target
        assert not is_held_out(edit.source) and not is_held_out(edit.target)
        assert all(item == straightened(item) for item in (*edit.source.items, *edit.target.items))


def test_without_drawings_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="fetch them with"):
        art.load(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
