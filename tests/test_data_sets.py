"""The data sets of a recipe: what they are called, and their rows by size, which all processes map."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from data_files import index, pack, picture, write
from tbac_uniimage.training.data import arrow_files, buckets
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.index import Index
from tbac_uniimage.training.data.pictures import nearest_buckets
from tbac_uniimage.training.data.samples import MicroBatches
from tbac_uniimage.training.data.sets import open_sets, target_sizes
from tbac_uniimage.training.recipe.recipe import Recipe


def shard(first: int) -> bytes:
    """A tar of three samples."""
    names = [f"{i:04}" for i in range(first, first + 3)]
    return pack({f"{n}.{kind}": data for n in names for kind, data in (("png", picture()), ("txt", b"t"))})


def recipe_of(tmp_path: Path, *sets: dict, **data) -> Recipe:
    return Recipe.model_validate(
        {
            "stage": "test",
            "data": {"sets": list(sets), "resolution": 64, "workers": 0, **data},
            "train": {"steps": 10, "warmup": 1, "batch": 4, "micro_batch": 2, "precision": "fp32"},
            "validation": {"held_out": 0},
        }
    )


@pytest.fixture
def shapes(tmp_path) -> Index:
    """Forty pictures of many shapes."""
    files = {}
    for i in range(40):
        files |= {f"{i:02}.png": picture((i, 0, 0), (16 + i * 7 % 50, 16 + i * 5 % 60)), f"{i:02}.txt": "t"}
    return index(write(tmp_path / "d", files), tmp_path / "out")[0]


@pytest.mark.parametrize("exclude", [[], ["0*", "*5.png"]])
def test_buckets_are_mapped_and_made_once(shapes, tmp_path, monkeypatch, exclude):
    monkeypatch.setattr(arrow_files, "BATCH", 8)
    settings = {"index": str(shapes.folder), "exclude": exclude}
    recipe = recipe_of(tmp_path, settings, aspect="buckets")
    sizes = target_sizes(recipe, 16)
    (data,) = open_sets(recipe, sizes)
    kept = shapes.selected(exclude)
    nearest = nearest_buckets(shapes.sizes()[kept], sizes)
    expected = [kept[nearest == bucket].tolist() for bucket in range(len(sizes))]
    assert [list(rows[:]) for rows in data.rows] == expected and [len(rows) for rows in data.rows] == list(
        map(len, expected)
    )
    assert sum(map(bool, expected)) > 3
    largest = max(range(len(sizes)), key=lambda bucket: len(expected[bucket]))
    assert [data.rows[largest][i] for i in range(len(expected[largest]))] == expected[largest]
    assert len(pickle.dumps(data.rows[largest])) < 500
    assert pickle.loads(pickle.dumps(data.rows[largest]))[0] == expected[largest][0]
    monkeypatch.setattr(buckets, "write_rows", lambda *arguments: 1 / 0)
    assert [list(rows[:]) for rows in open_sets(recipe, sizes)[0].rows] == expected


def test_an_index_that_may_only_be_read(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets.os, "access", lambda path, mode: False)
    before = set(os.listdir(shapes.folder))
    recipe = recipe_of(tmp_path, {"index": str(shapes.folder)}, aspect="buckets")
    (data,) = open_sets(recipe, target_sizes(recipe, 16))
    assert sum(map(len, data.rows)) == 40 and set(os.listdir(shapes.folder)) == before


def test_two_folders_of_one_name_in_a_recipe(tmp_path):
    for folder, first in (("a", 0), ("b", 9)):
        build(str(write(tmp_path / folder / "data", {"x.tar": shard(first)})), tmp_path / folder / "index")
    paths = [str(tmp_path / folder / "index/data") for folder in "ab"]
    recipe = recipe_of(tmp_path, *({"index": path} for path in paths))
    batches = MicroBatches(recipe, None, 4, 8)
    assert [data.name for data in batches.sets] == paths
    assert {batches.key(i) for i in range(24)} == {
        f"{path}/x/{i:04}" for path, first in zip(paths, (0, 9), strict=True) for i in range(first, first + 3)
    }
    named = recipe_of(tmp_path, {"index": paths[0], "name": "mine"}, {"index": paths[1]})
    assert [data.name for data in MicroBatches(named, None, 4, 8).sets] == ["mine", "data"]
    with pytest.raises(ValueError, match="Two data sets are called same; rename one of them"):
        MicroBatches(recipe_of(tmp_path, *({"index": path, "name": "same"} for path in paths)), None, 4, 8)
