"""Recipes: strict about what is written, and the same after being saved."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from nano_models import SIDE
from tbac_uniimage.core.rung_kinds import RUNGS
from tbac_uniimage.training.recipe.recipe import (
    Recipe,
    differences,
    lengthened,
    load_recipe,
    recipe_yaml,
    save_recipe,
    total_steps,
)
from tbac_uniimage.training.recipe.recipe_file import dump_yaml, known_keys, nearest_key, parse_yaml
from tbac_uniimage.training.step.monitor import MonitorSettings

RECIPES = Path(__file__).parent.parent / "training" / "recipes"
PUBLISHED = ("1_text_to_image", "2_image_text_to_image", "3_fine_tune")
SMALL = """
stage: captions
data:
  sets:
    - {index: index/a, weight: 2}
    - {index: ~/index/b, exclude: ["*train*"]}
train: {steps: 100, warmup: 10}
"""


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def recipe(**changes) -> Recipe:
    sets = [{"index": "index/a"}, {"index": "index/b"}]
    return Recipe.model_validate({"stage": "s", "data": {"sets": sets}, "train": {"epochs": 3}} | changes)


def test_defaults_are_the_published_settings(small):
    loaded = load_recipe(small)
    train = loaded.train
    assert (train.learning_rate, train.min_learning_rate, train.weight_decay, train.clip) == (
        1e-4,
        1e-5,
        0.05,
        0.5,
    )
    assert train.betas == (0.9, 0.999) and train.ema is None
    assert (loaded.objective.timesteps, loaded.objective.shift) == ("uniform", 1.0)
    assert loaded.data.resolution == 512 and loaded.data.drop.caption == 0.1
    assert loaded.run == "runs/captions"
    assert loaded.data.sets[1].folder == Path.home() / "index" / "b"
    assert loaded.monitor.model_dump() == vars(MonitorSettings())


@pytest.mark.parametrize(
    ("name", "amount", "batch", "micro"),
    [
        ("1_text_to_image", {"steps": 150_000, "epochs": None}, 128, 16),
        ("2_image_text_to_image", {"steps": None, "epochs": 10}, 32, 4),
        ("3_fine_tune", {"steps": None, "epochs": 100}, 32, 4),
    ],
)
def test_recipes_of_the_three_stages(name, amount, batch, micro):
    loaded = load_recipe(RECIPES / f"{name}.yaml")
    train = loaded.train
    assert {"steps": train.steps, "epochs": train.epochs} == amount
    assert (train.batch, train.micro_batch, train.warmup, train.learning_rate) == (batch, micro, 5000, 1e-4)
    assert loaded.data.drop.model_dump() == {"caption": 0.1, "text": 0.2, "image": 0.2, "both": 0.1}
    assert (loaded.data.resolution, train.precision) == (512, "bf16")
    assert loaded.stage == name[2:] and loaded.run == f"runs/stage{name[0]}"
    exclude = {s.folder.name: s.exclude for s in loaded.data.sets}.get("blip3o-60k", ["*geneval_train*"])
    assert exclude == ["*geneval_train*"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_the_nano_model(name):
    loaded = load_recipe(RECIPES / "nano" / f"{name}.yaml")
    number = int(name[0])
    assert loaded.stage == name[2:] and loaded.run == f"runs/nano/stage{number}"
    before = "transformer" if number == 1 else f"stage{number - 1}"
    assert (loaded.init, loaded.init_ema) == (f"runs/nano/{before}/last", True)
    assert (loaded.data.resolution, loaded.train.precision, loaded.objective.shift) == (128, "bf16", 3.0)
    assert loaded.model.source_latents == (True if number == 2 else None)  # which 3 keeps
    assert loaded.train.rates == ({"source_embed": 20.0} if number == 2 else {})
    assert loaded.train.ema == 0.999 and loaded.data.workers == 0
    assert loaded.train.batch % (2 * loaded.train.micro_batch) == 0


def test_rungs_are_those_that_the_connector_knows(small):
    assert load_recipe(small).model.rungs is None
    for rungs in RUNGS:
        assert load_recipe(small, [f"model.rungs={rungs}"]).model.rungs == rungs
    assert load_recipe(small, ["model.rungs=null"]).model.rungs is None
    with pytest.raises(ValueError, match="model.rungs"):
        load_recipe(small, ["model.rungs=sideways"])


def test_recipe_for_own_pictures_is_short_and_starts_from_the_embedded_model():
    loaded = load_recipe(RECIPES / "nano" / "own_pictures.yaml")
    assert (loaded.stage, loaded.init, loaded.run) == ("text_to_image", "assets/nano", "runs/mine")
    assert [str(data.index) for data in loaded.data.sets] == ["index/pictures"]
    assert (loaded.data.resolution, loaded.train.precision) == (SIDE, "fp32")
    assert total_steps(loaded.train, 10) <= 500 and loaded.data.workers == 0


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipes_mean_the_same_to_other_readers(path):
    """Nothing in them depends on where our YAML differs from YAML 1.1, but for 1e-4."""
    text = re.sub(r"\b(\d+)e-", r"\1.0e-", path.read_text(encoding="utf-8"))
    assert yaml.safe_load(text) == parse_yaml(text, "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        ("-.5", -0.5),
        ("150_000", 150_000),
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("[1, {a: 2}]", [1, {"a": 2}]),
    ],
)
def test_yaml_has_no_surprises(text, value):
    parsed = parse_yaml(text, "")
    assert parsed == value and type(parsed) is type(value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN)
def test_what_is_dumped_is_read_back(value):
    assert parse_yaml(dump_yaml(value), "") == value


@given(st.sampled_from(["1e-4", "no", "on", "~", "null", "1_000", "0x1f", "12:30:00", "=", "<<", "", "a: b"]))
def test_text_that_looks_like_something_else_is_quoted(text):
    assert parse_yaml(dump_yaml({"a": text}), "") == {"a": text}
    assert yaml.safe_load(dump_yaml({"a": text})) == {"a": text}


@given(st.text(max_size=40))
def test_any_text_is_data_or_a_value_error(text):
    try:
        parse_yaml(text, "recipe.yaml")
    except ValueError as error:
        assert str(error).startswith("recipe.yaml is not valid YAML")


@given(prompts=st.lists(st.text()), rate=st.floats(1e-8, 1), seed=st.integers(0, 2**63 - 1))
def test_a_saved_recipe_is_read_back_equal(tmp_path_factory, prompts, rate, seed):
    path = tmp_path_factory.mktemp("saved") / "recipe.yaml"
    before = recipe(
        seed=seed,
        train={"steps": 6000, "learning_rate": rate, "min_learning_rate": rate / 3, "compile": True},
        validation={"prompts": prompts},
    )
    save_recipe(before, path)
    assert load_recipe(path) == before
    assert [entry.name for entry in path.parent.iterdir()] == ["recipe.yaml"]


def test_a_recipe_that_cannot_be_saved_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    save_recipe(recipe(), path)
    old = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_recipe(recipe(seed=9), path)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_command_line_wins(small):
    loaded = load_recipe(
        small,
        [
            "train.learning_rate=3e-5",
            "data.sets.1.weight=0.5",
            "data.drop={caption: 0, text: 0.1, image: 0.1, both: 0}",
            "train.lora.targets=[to_q, conv_inverted]",
            "validation.prompts=['a cat = a dog', no]",
            "init=runs/x/last",
            "train.compile=on",
            "seed=1",
            "seed=2",
        ],
    )
    assert loaded.train.learning_rate == 3e-5
    assert [s.weight for s in loaded.data.sets] == [2.0, 0.5]
    assert loaded.data.drop.text == 0.1 and loaded.data.drop.both == 0
    assert loaded.train.lora.targets == ["to_q", "conv_inverted"]
    assert loaded.validation.prompts == ["a cat = a dog", "no"]
    assert (loaded.init, loaded.train.compile, loaded.seed) == ("runs/x/last", True, 2)
    assert loaded.train.warmup == 10  # of the file


def test_epochs_on_the_command_line_replace_steps_of_the_file(small):
    train = load_recipe(small, ["train.epochs=3"]).train
    assert (train.steps, train.epochs) == (None, 3)
    assert total_steps(train, 50) == 150
    with pytest.raises(ValueError, match="both given"):
        load_recipe(small, ["train.epochs=3", "train.steps=40"])
    with pytest.raises(ValueError, match="neither given"):
        load_recipe(small, ["train.steps=null"])
    with pytest.raises(ValueError, match="warmup is 10, more than the run's 6 steps"):
        total_steps(train, 2)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.learning_rat=1", "has the unknown key train.learning_rat; .* is train.learning_rate."),
        ("learning_rate=1", "unknown key learning_rate; the nearest known key is train.learning_rate."),
        ("data.sets.0.wieght=1", "unknown key data.sets.0.wieght; the nearest known key is data.sets.weight"),
        ("trian.steps=1", "unknown key trian; the nearest known key is train."),
        ("train.steps=many", "The command line has train.steps: many; it must be a whole number."),
        ("train.steps=2.5", "train.steps: 2.5; it must be a whole number"),
        ("train.steps=true", "train.steps: true; it must be a whole number"),
        ("train.steps=0", "train.steps: 0; it must be at least 1"),
        ("train.clip=0", "train.clip: 0; it must be above 0"),
        ("train.clip=1e999", "train.clip: .*; it must be a finite number"),
        ("train.precision=fp16", "train.precision: fp16; it must be 'bf16' or 'fp32'"),
        ("train.compile=maybe", "train.compile: maybe; it must be true or false"),
        ("train.micro_batch=3", "train.batch is 128, which train.micro_batch = 3 does not divide"),
        ("train.warmup=101", "train.warmup is 101, more than the run's 100 steps"),
        ("train.betas=[0.9, 1]", "train.betas are .*0.9, 1.0.*; both must be"),
        ("train.min_learning_rate=1", "train.min_learning_rate is 1.0, above"),
        ("train.ema=1", "train.ema: 1; it must be below 1"),
        ("train=null", "train: null; it must be a section"),
        ("data.drop={both: 0.3, text: 0.4}", "data.drop.both is 0.3, more than .* data.drop.image = 0.2"),
        ("data.drop={text: 0.7, image: 0.7}", "are more than all edits"),
        ("data.sets=[]", r"data.sets: \[\]; it must be a list of at least 1"),
        ("data.sets.2.weight=1", "data.sets has 2 entries, counted from 0, and 2 is none"),
        ("data.cache={latents: x}", None),
        ("data={sets: [{index: a}], crop: random, cache: {latents: x}}", "data.cache.latents needs the same"),
        ("init_ema=true", "init_ema is true but init is null"),
        ("stage=a/b", "stage: a/b; it must be letters"),
        ("stage.name=a", "sets stage.name, but stage is a value"),
        ("run=5", "run: 5; it must be text"),
        ("validation.prompts=hello", "validation.prompts: hello; it must be a list"),
        ("seed", "'seed', which is not key=value"),
        ("a..b=1", "'a..b=1', which is not key=value"),
        ("seed=[", "The value of seed on the command line is not valid YAML, line 1"),
        ("train={steps: 1, steps: 2}", "not valid YAML, line 1, column 12: the key steps is there more than"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(small, assignment, message):
    if message is None:
        assert load_recipe(small, [assignment]).data.cache.latents == "x"
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(small, [assignment])
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", ">'."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks the key stage"),
        (b"stage: s\ntrain: {steps: 1}\n", "lacks the key data"),
        (b"- a\n", "holds a list and not a recipe"),
        (b"stage: s\nstage: t\n", "line 2, column 1: the key stage is there more than once"),
        (b"stage: [\n", "is not valid YAML, line 2, column 1"),
        (b"stage: s\n\tdata: 3\n", "is not valid YAML, line 2"),
        (b"stage: &a s\nrun: *a\n", "line 2, column 6: aliases"),
        (b"stage: !!python/object:os.x {}\n", "could not determine a constructor"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b"stage: s\ntrain: {warm_up: 1}\n", "has the unknown key train.warm_up; .* is train.warmup"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no recipe at .*nothing.yaml"):
        load_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)


@given(st.text(st.characters(codec="ascii"), min_size=1).filter(lambda name: "." not in name))
def test_there_is_always_a_nearest_key(name):
    known = list(known_keys(Recipe))
    assert nearest_key(f"train.{name}", known) in known
    assert nearest_key(name, known) in known


def test_every_known_key_is_its_own_nearest():
    known = list(known_keys(Recipe))
    assert len(known) == len(set(known)) > 60
    assert [nearest_key(key, known) for key in known if key.count(".") == 0] == [
        k for k in known if "." not in k
    ]


def test_differences_name_what_changes_the_result():
    before = recipe()
    after = recipe(
        data={"sets": [{"index": "/elsewhere/a"}, {"index": "index/b", "weight": 2.0}], "workers": 0},
        train={"epochs": 3, "batch": 64, "micro_batch": 4, "parallel": "fsdp2", "compile": True},
        validation={"held_out": 8, "prompts": ["x"]},
        checkpoint={"every": 5},
        log={"wandb": "p"},
        run="elsewhere",
    )
    assert differences(before, after) == [
        "data.sets.1.weight: 1.0, now 2.0",
        "train.batch: 128, now 64",
        "validation.held_out: 64, now 8",
    ]
    assert differences(before, before) == []
    short, long = recipe(train={"steps": 6000}), recipe(train={"steps": 6001})
    assert differences(short, long) == [] and lengthened(short, long) == ["train.steps"]
    assert differences(long, short) == ["train.steps: 6001, now 6000"] and lengthened(long, short) == []
    assert lengthened(long, recipe()) == [] and len(differences(long, recipe())) == 2  # steps, now epochs
    fewer = recipe(data={"sets": [{"index": "index/a"}]})
    assert differences(before, fewer)[0] == "data.sets.1.index: b, now absent"


def test_the_resolved_recipe_shows_every_key():
    data = yaml.safe_load(recipe_yaml(recipe()))
    for key in known_keys(Recipe):
        inner = data
        for part in key.split("."):
            if isinstance(inner, list):
                break
            assert part in inner
            inner = inner[part]
