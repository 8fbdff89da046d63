"""The ladder study: what its runs share, what is run in which order, and the figures of its report."""

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
    weights = [name for name in fresh if name.endswith("to_q.weight")]
    assert weights and not any(torch.equal(fresh[name], trained[name].float()) for name in weights)
    rows = nano.mllm.get_input_embeddings().weight[: len(nano.tokenizer)].float()
    queries = first.connector.queries
    assert queries.shape == (20, 192)
    assert queries.std().item() == pytest.approx(rows.std().item(), rel=0.2)  # they look like tokens
    kept = start.untrained(nano, 0, keep_queries=True)
    assert torch.equal(kept.connector.queries, nano.connector.queries.float())
    assert same(kept, first, "transformer")


def test_kinds_have_the_same_number_of_parameters_within_one_per_cent(nano):
    parts = start.untrained(nano, 0)
    counts = {}
    for rungs in RUNGS:
        parts.connector.choose_rungs(rungs, 6)
        trained = [*parts.connector.parameters(), *parts.transformer.parameters()]
        counts[rungs] = sum(parameter.numel() for parameter in trained)
    assert max(counts.values()) - min(counts.values()) == 36 < 0.01 * min(counts.values())


def recipes(steps: list[Step]) -> list:
    """Of every step that trains."""
    commands = (step.command for step in steps if step.name.startswith("train "))
    return [load_recipe(run.RECIPE, [word for word in command if "=" in word]) for command in commands]


@pytest.mark.parametrize("budget", [run.FULL, run.TRIAL])
def test_runs_differ_in_kind_and_seed_only(tmp_path, budget):
    found = recipes(run.steps(tmp_path, budget, list(RUNGS), [0, 4], NANO, keep_queries=False))
    assert [(recipe.model.rungs, recipe.seed) for recipe in found] == [(k, s) for s in (0, 4) for k in RUNGS]
    for recipe in found:
        assert recipe.run == str(tmp_path / f"{recipe.model.rungs}-{recipe.seed}")
        assert recipe.init == str(tmp_path / f"start-{recipe.seed}")
        assert recipe.data.cache.latents == str(tmp_path / "cache" / "latents")
    first, *others = [recipe.model_dump() for recipe in found]
    for other in others:
        assert {key for key in first if first[key] != other[key]} <= {"run", "seed", "init", "model"}


def test_the_budget_is_what_is_said():
    [recipe] = recipes(run.steps(run.ROOT / run.RUNS, run.FULL, ["last"], [0], NANO, keep_queries=False))
    samples = recipe.train.steps * recipe.train.batch
    assert 100_000 <= samples <= 101_000
    assert samples + recipe.validation.held_out <= run.FULL.scenes  # each is seen once
    assert recipe.run == str(run.ROOT / run.RUNS / "last-0")
    assert recipe.init == str(run.ROOT / run.RUNS / "start-0")


def test_the_order_lets_seeds_be_compared_early_and_what_is_scored_is_skipped(tmp_path):
    steps = run.steps(tmp_path, run.FULL, ["ladder", "mixed"], [0, 1], NANO, keep_queries=True)
    names = ["drawings", "data", "index", "start-0", "start-1", "latents"]
    for name in ("ladder-0", "mixed-0", "ladder-1", "mixed-1"):
        names += [f"{what} {name}" for what in ("train", "export", "score")]
    assert [step.name for step in steps] == [*names, "report"]
    assert all("--keep-queries" in step.command for step in steps if step.name.startswith("start-"))
    for made in ("mixed-0/model", "start-1"):
        (tmp_path / made).mkdir(parents=True)
    assert [step.name for step in steps if step.done()] == ["start-1", "export mixed-0"]
    (tmp_path / "mixed-0" / "score.json").touch()
    done = [step.name for step in steps if step.done()]
    assert done == ["start-1", "train mixed-0", "export mixed-0", "score mixed-0"]


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
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            rows = [{"name": "two objects", "main": {"value": 0.5 if rungs == "last" else 0.75}}]
            rows += [{"name": "counting", "main": {"value": None if seed == 1 else 0.1}}]
            (folder / "score.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "mixed-0").mkdir()
    (tmp_path / "last-old").mkdir()
    return tmp_path


def test_finished_runs_are_read(study):
    found = report.read_study(study)
    assert {rungs: list(runs) for rungs, runs in found.items()} == {"ladder": [0, 1, 2], "last": [0, 1, 2]}
    assert found["last"][1].losses == [(20, 0.72), (40, 0.36)]
    assert found["last"][1].figures == {report.LOSS: 0.36, "two objects": 0.5, "counting": None}


def test_intervals_are_students():
    assert report.interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert report.interval([2.0, 2.0]) == 0 and math.isnan(report.interval([1.0]))


def test_kinds_are_compared_seed_by_seed(study):
    lines = report.write_tables(report.read_study(study)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    half = 4.303 * 0.01 / math.sqrt(3)  # 0.30, 0.32, 0.31 and 0.03, 0.04, 0.02 have a deviation of 0.01
    assert cells[0] == ["", "ladder", "last"]
    assert cells[2][:2] == [report.LOSS, f"0.3100 ± {half:.4f}"]
    differences = cells[len(cells) // 2 + 2 :]
    assert differences[0] == [report.LOSS, "–", f"+0.0300 ± {half:.4f}"]
    assert differences[1] == ["two objects", "–", "-0.2500 ± 0.0000"]
    assert not any("counting" in line for line in lines)  # one run says nothing about it


def test_the_report_is_written_with_its_plot(study, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(study)])
    report.main()
    assert (study / "report.md").read_text() in capsys.readouterr().out
    colours = Image.open(study / "report.png").convert("RGB").getcolors(1 << 24)
    drawn = {colour for _, colour in colours}
    for rungs in LOSSES:
        assert tuple(bytes.fromhex(report.COLOURS[rungs][1:])) in drawn


def test_without_finished_runs_there_is_no_report(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no run that is finished and scored; run the study first"):
        report.main()
    assert not list(tmp_path.iterdir())
