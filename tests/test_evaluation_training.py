"""Benchmarks within a run: a fixed part drawn and judged every few steps, on any number of processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_sets import fetched
from scripted_judge import serving
from tbac_uniimage.training.train import main
from training_runs import free_port, make_data, metrics, recipe, run, train, write_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    return [make_data(tmp_path_factory.mktemp("data"))]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    return fetched(tmp_path_factory.mktemp("made-up"), "tiif", "geneval")


def settings(folder: Path, data: list[Path], made_up: Path, at: str, **more) -> dict:
    one = {"name": "tiif", "items": 2, "url": at, "judge": "owl", "folder": str(made_up)} | more
    validation = {"every": 1, "held_out": 0, "steps": 1, "sets": [one]}
    return recipe(folder, data, train={"steps": 2}, validation=validation)


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("evaluation/**/*.png")}


@pytest.mark.slow
def test_a_part_of_a_set_is_drawn_and_judged_every_so_many_steps(data, made_up, tmp_path):
    with serving(lambda *_: "yes\nno") as (url, judge):
        train(settings(tmp_path / "one", data, made_up, url))
        assert len(judge.bodies) == 4
        train(settings(tmp_path / "two", data, made_up, url), world=2)
    for name in ("one", "two"):
        lines = metrics(tmp_path / name)
        # of two questions with the answer yes, one is answered so
        assert [line.get("validation_sets") for line in lines] == [{"tiif": 0.5}] * 2
    drawn = {name: pictures(tmp_path / name) for name in ("one", "two")}
    assert len(drawn["one"]) == 4 and drawn["one"].keys() == drawn["two"].keys()
    steps = [p.read_bytes() for p in sorted((tmp_path / "one").rglob("evaluation/**/style/**/0.png"))]
    assert len(steps) == 2 and steps[0] != steps[1]
    folder = tmp_path / "one" / "evaluation" / "step-00000002" / "tiif" / "owl"
    about = json.loads((folder / "judge.json").read_text())
    assert about["judge"] == "owl"


@pytest.mark.slow
def test_a_judge_that_is_away_ends_no_run(data, made_up, tmp_path):
    url = f"http://127.0.0.1:{free_port()}/v1"
    codes, output = run(settings(tmp_path / "run", data, made_up, url), prepare="impatient_judge")
    assert codes == [0] and "tiif was not judged at step 1: Nobody answers at" in output
    assert [line.get("validation_sets") for line in metrics(tmp_path / "run")] == [{"tiif": None}] * 2


@pytest.mark.parametrize(
    "more, expected",
    [
        ({"name": "tif"}, "There is no set 'tif'"),
        ({"name": "imgedit"}, "imgedit is not in"),
        ({"judge": None}, "Nobody is named who judges"),
        ({"url": None}, "A judge needs an address"),
        ({"name": "geneval"}, "geneval asks a chat model nothing"),
        ({"detector": "nowhere", "clip": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_what_cannot_be_judged_is_said_before_a_run_begins(more, expected, data, made_up, tmp_path, capsys):
    written = write_recipe(settings(tmp_path / "run", data, made_up, "http://127.0.0.1:1/v1", **more))
    assert main([str(written)]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1 and not (tmp_path / "run").exists()
