"""The studies: what their runs share, what is run in which order, and the figures of a report."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tbac_uniimage.core.checkpoints import load_parts
from tbac_uniimage.core.rung_kinds import RUNGS
from tbac_uniimage.training.nano.make import Step, run_steps
from tbac_uniimage.training.nano.study import report, run, start
from tbac_uniimage.training.nano.study.studies import STUDIES, Study
from tbac_uniimage.training.recipe.recipe import load_recipe

NANO = Path(__file__).resolve().parent.parent / "assets" / "nano"


@pytest.fixture(scope="module")
def nano():
    return load_parts(NANO)


def state(parts, part: str) -> dict[str, torch.Tensor]:
    return getattr(parts, part).state_dict()


def same(a, b, part: str) -> bool:
    ours, theirs = state(a, part), state(b, part)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_start_is_new_where_it_is_trained_and_the_models_own_elsewhere(nano):
    first, again, other = (start.untrained(nano, seed) for seed in (0, 0, 1))
    for part in ("mllm", "vae"):
        assert same(first, nano, part)
    for part in ("connector", "transformer"):
        assert same(first, again, part) and not same(first, other, part)
    trained, fresh = state(nano, "transformer"), state(first, "transformer")
    assert {name: t.shape for name, t in trained.items()} == {name: t.shape for name, t in fresh.items()}
    read = {name for name in fresh if "attn2" in name or name.startswith("caption_")}
    weights = {name for name in read if name.endswith(".weight") and "norm" not in name}
    assert len(weights) == 6 * 4 + 2
    assert not any(torch.equal(fresh[name], trained[name].float()) for name in weights)
    assert all(torch.equal(fresh[name], trained[name].float()) for name in fresh.keys() - read)
    assert torch.equal(first.connector.queries, nano.connector.queries.float())
    layers = "layers.0.weight"
    assert not torch.equal(state(first, "connector")[layers], state(nano, "connector")[layers].float())


def test_kinds_have_the_same_number_of_parameters_within_one_per_cent(nano):
    parts = start.untrained(nano, 0)
    counts = {}
    for rungs in RUNGS:
        parts.connector.choose_rungs(rungs, 6)
        trained = [*parts.connector.parameters(), *parts.transformer.parameters()]
        counts[rungs] = sum(parameter.numel() for parameter in trained)
    assert max(counts.values()) - min(counts.values()) == 36 < 0.01 * min(counts.values())


LADDER, SOURCE = STUDIES["rungs"], STUDIES["source_latents"]


def recipes(study: Study, place: run.Place, budget: run.Budget, sides: list[str], seeds: list[int]) -> list:
    """Of every step that trains."""
    steps = run.steps(study, place, budget, sides, seeds)
    commands = (step.command for step in steps if step.name.startswith("train "))
    return [load_recipe(study.recipe, [word for word in command if "=" in word]) for command in commands]


@pytest.mark.parametrize("budget", [run.full, run.trial])
@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_runs_differ_in_side_and_seed_only(tmp_path, study, budget):
    found = recipes(study, run.Place(tmp_path), budget(study), list(study.sides), [0, 4])
    sides = [(side, seed) for seed in (0, 4) for side in study.sides]
    assert [(recipe.run, recipe.seed) for recipe in found] == [(f"{tmp_path}/{a}-{b}", b) for a, b in sides]
    for recipe in found:
        start = tmp_path / f"start-{recipe.seed}" if study is LADDER else NANO
        assert recipe.init == str(start)
        assert recipe.data.cache.latents == str(tmp_path / "cache" / "latents")
        for index in (data.folder for data in recipe.data.sets):
            assert index.parent == tmp_path / "index" and index.name in study.counts
    first, *others = [recipe.model_dump() for recipe in found]
    for other in others:
        assert {key for key in first if first[key] != other[key]} <= {"run", "seed", "init", "model", "train"}
        other["train"]["rates"] = first["train"]["rates"]
        assert other["train"] == first["train"]
    for recipe, (side, _) in zip(found, sides, strict=True):
        own = load_recipe(study.recipe, study.sides[side])
        assert (recipe.model, recipe.train.rates) == (own.model, own.train.rates)
    assert len({str((recipe.model, recipe.train.rates)) for recipe in found}) == len(study.sides)


def test_the_budget_is_what_is_said():
    place = run.Place(run.ROOT / LADDER.folder)
    [recipe] = recipes(LADDER, place, run.full(LADDER), ["last"], [0])
    samples = recipe.train.steps * recipe.train.batch
    assert samples == 14_400
    assert samples + recipe.validation.held_out <= LADDER.counts["scenes"]  # each is seen once
    assert recipe.run == str(run.ROOT / "runs" / "study" / "rungs" / "last-0")
    assert recipe.init == str(run.ROOT / "runs" / "study" / "rungs" / "start-0")


def test_the_order_lets_seeds_be_compared_early_and_what_is_scored_is_skipped(tmp_path):
    place = run.Place(tmp_path)
    steps = run.steps(LADDER, place, run.full(LADDER), ["ladder", "mixed"], [0, 1])
    names = ["drawings", "data", "index", "start-0", "start-1", "caches"]
    for name in ("ladder-0", "mixed-0", "ladder-1", "mixed-1"):
        names += [f"{what} {name}" for what in ("train", "export", "score")]
    assert [step.name for step in steps] == [*names, "report"]
    for made in ("mixed-0/model", "start-1"):
        (tmp_path / made).mkdir(parents=True)
    assert [step.name for step in steps if step.done()] == ["start-1", "export mixed-0"]
    (tmp_path / "mixed-0" / "score.json").touch()
    done = [step.name for step in steps if step.done()]
    assert done == ["start-1", "train mixed-0", "export mixed-0", "score mixed-0"]


def test_what_is_not_new_starts_from_the_model_and_is_cached_for_the_side_that_needs_most(tmp_path):
    steps = run.steps(SOURCE, run.Place(tmp_path), run.full(SOURCE), ["without"], [1])
    names = ["drawings", "data", "index", "caches", "train without-1", "export without-1", "score without-1"]
    assert [step.name for step in steps] == [*names, "report"]
    commands = {step.name: list(map(str, step.command)) for step in steps}
    assert "model.source_latents=true" in commands["caches"]
    assert "model.source_latents=false" in commands["train without-1"]
    told = " ".join(commands["data"])
    assert "--seed 1" in told and "--edits 5000" in told and "--curated-edits 0" in told
    index = next(step for step in steps if step.name == "index")
    (tmp_path / "index" / "edits").mkdir(parents=True)
    assert not index.done()
    for name in ("scenes", "words"):
        (tmp_path / "index" / name).mkdir()
    assert index.done()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["source_latents", "--sides", "ladder"], "source_latents has without, with, faster, not ladder"),
        (["other"], "invalid choice: 'other'"),
    ],
)
def test_what_a_study_has_not_is_refused(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["run", *words])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert said in capsys.readouterr().err


def test_a_model_that_has_what_is_studied_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"source_latents": true, "text_states": false}')
    monkeypatch.setattr(sys, "argv", ["run", "source_latents", "--model", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "has source_latents already; give a model that has not" in capsys.readouterr().err
    assert not any(run.has_option(tmp_path, STUDIES[name]) for name in ("text_states", "rungs"))


def test_steps_stop_at_the_first_that_fails(tmp_path, capfd):
    def step(name: str, code: int, done: bool = False) -> Step:
        source = f"import pathlib, sys; pathlib.Path({str(tmp_path / name)!r}).touch(); sys.exit({code})"
        return Step(name, [sys.executable, "-c", source], lambda: done)

    said = run_steps([step("a", 0), step("b", 1, done=True), step("c", 3), step("d", 0)])
    assert said == "The step c ended with 3; the same command goes on from here."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    assert "b: done before" in capfd.readouterr().out


# --- the report

LOSSES = {"ladder": (0.30, 0.32, 0.31), "last": (0.33, 0.36, 0.33)}


def row(group: str, name: str, value: float | None, kept: float | None = None) -> dict:
    return {
        "group": group,
        "name": name,
        "main": {"value": value},
        "kept": {} if kept is None else {"kept dB": {"value": kept}},
    }


@pytest.fixture
def study(tmp_path) -> Path:
    """Two kinds with three seeds; an unfinished run, and a folder that is none."""
    for rungs, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            folder = tmp_path / f"{rungs}-{seed}"
            folder.mkdir()
            lines = [{"step": 1, "samples": 10, "loss": 1.0}]
            lines += [{"step": 2, "samples": 20, "validation_loss": 2 * loss}]
            lines += [{"step": 4, "samples": 40, "validation_loss": loss}]
            for line in lines[1:]:
                line["validation_losses"] = {"edits": 3 * line["validation_loss"], "words": None}
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            rows = [row("draw", "style", 0.5 if rungs == "last" else 0.75)]
            rows += [row("draw", "counting", None if seed == 1 else 0.1)]
            rows += [row("edit", "style", 0.25, kept=20 + seed)]
            rows += [row("draw", "overall: mean of six", 0.1 * (seed + 1))]
            (folder / "score.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "mixed-0").mkdir()
    (tmp_path / "last-old").mkdir()
    return tmp_path


def test_finished_runs_are_read(study):
    found = report.read_study(LADDER, study)
    assert {rungs: list(runs) for rungs, runs in found.items()} == {"ladder": [0, 1, 2], "last": [0, 1, 2]}
    losses, figures = found["last"][1].losses, found["last"][1].figures
    assert losses[report.LOSS] == [(20, 0.72), (40, 0.36)]
    assert losses.keys() == {report.LOSS, "held-out loss, edits"}
    assert losses["held-out loss, edits"] == [(20, pytest.approx(2.16)), (40, pytest.approx(1.08))]
    assert figures.pop("held-out loss, edits") == pytest.approx(1.08)
    scored = {"style": 0.5, "counting": None, "edit, style": 0.25, "edit, style: kept dB": 21}
    scored |= {"overall: mean of six": pytest.approx(0.2)}
    assert figures == {report.LOSS: 0.36} | scored


def test_intervals_are_students():
    assert report.interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert report.interval([2.0, 2.0]) == 0 and math.isnan(report.interval([1.0]))


def test_sides_are_compared_seed_by_seed(study):
    lines = report.write_tables(LADDER, report.read_study(LADDER, study)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    half = 4.303 * 0.01 / math.sqrt(3)  # 0.30, 0.32, 0.31 and 0.03, 0.04, 0.02 have a deviation of 0.01
    assert cells[0] == ["", "ladder", "last"]
    assert cells[2][:2] == [report.LOSS, f"0.3100 ± {half:.4f}"]
    differences = cells[len(cells) // 2 + 2 :]
    assert differences[0] == [report.LOSS, "–", f"+0.0300 ± {half:.4f}"]
    assert differences[2] == ["style", "–", "-0.2500 ± 0.0000"]
    assert [row[0] for row in differences[3:]] == [
        "edit, style",
        "edit, style: kept dB",
        "overall: mean of six",
    ]
    assert not any("counting" in line for line in lines)  # one run says nothing about it


def test_the_report_is_written_with_its_plot(study, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "rungs", str(study)])
    report.main()
    assert (study / "report.md").read_text() in capsys.readouterr().out
    colours = Image.open(study / "report.png").convert("RGB").getcolors(1 << 24)
    drawn = {colour for _, colour in colours}
    for place, rungs in enumerate(LADDER.sides):
        assert (tuple(bytes.fromhex(report.COLOURS[place][1:])) in drawn) == (rungs in LOSSES)


def test_the_plot_shows_what_the_tables_say(study):
    losses, scores = report.draw(LADDER, report.read_study(LADDER, study)).axes
    assert losses.get_ylabel() == "held-out loss, edits" and scores.get_ylabel() == "overall: mean of six"
    lines = {line.get_label(): line.get_ydata() for line in losses.lines}
    assert list(lines["last"]) == pytest.approx([6 * 0.34, 3 * 0.34])
    assert [text.get_text() for text in scores.get_xticklabels()] == ["ladder", "last"]
    [mean] = scores.containers[1][0].get_ydata()
    ends = scores.containers[1][2][0].get_segments()[0][:, 1]
    assert mean == pytest.approx(0.2) and ends - mean == pytest.approx([-0.2484, 0.2484], abs=1e-3)


def test_without_finished_runs_there_is_no_report(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", "rungs", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no run that is finished and scored; run the study first"):
        report.main()
    assert not list(tmp_path.iterdir())
