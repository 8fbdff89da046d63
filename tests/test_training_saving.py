"""The checkpoints of a run that goes on: what is the best, and what if one cannot be written or removed."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from tbac_uniimage.training.recipe.settings import CheckpointSettings
from tbac_uniimage.training.run.checkpoints import folders, shards
from tbac_uniimage.training.run.checkpoints.keeper import Keeper


@pytest.fixture
def keeper(tmp_path, monkeypatch) -> Keeper:
    """Without tensors: ``failing`` holds the steps that a full disk meets, ``said`` what is said."""
    failing, said = set(), []

    def save(run: Path, step: int, tensors, state, *, asynchronous: bool) -> SimpleNamespace:
        def wait() -> None:
            if step in failing:
                raise shards.CheckpointError("The disk is full.")
            (run / f"step-{step:08d}").mkdir()

        return SimpleNamespace(wait=wait)

    def prune(run: Path, keep: int, best: str | None) -> None:
        for path in sorted(run.glob("step-*"))[:-keep]:
            if path.name != best:
                path.rmdir()

    monkeypatch.setattr(shards, "save", save)
    monkeypatch.setattr(folders, "prune", prune)
    made = Keeper(
        tmp_path,
        CheckpointSettings(keep=1),
        SimpleNamespace(is_main_process=True),
        is_calm=lambda: True,
        say=said.append,
    )
    made.failing, made.said = failing, said
    return made


def keep(keeper: Keeper, *losses: float | None) -> list[str]:
    """Save a checkpoint per validation loss; the names of those that stay."""
    for step, loss in enumerate(losses, start=1):
        keeper.consider(step, loss)
        keeper.save(step, {}, {}, final=False)
    keeper.finish()
    return sorted(path.name for path in keeper.run.iterdir())


def test_the_best_and_the_last_stay(keeper):
    assert keep(keeper, 0.3, 0.1, None, 0.2) == ["step-00000002", "step-00000004"]
    assert keeper.best == {"step": 2, "loss": 0.1}


def test_only_a_better_one_is_written_for_its_own_sake(keeper):
    """And none at all where the best is not to be kept."""
    losses = (0.3, None, 0.3, 0.2, math.nan, 0.4)
    assert [step for step, loss in enumerate(losses) if keeper.consider(step, loss)] == [0, 3]
    keeper.settings = CheckpointSettings(keep=1, best=False)
    assert keeper.consider(6, 0.1) is False and keeper.best == {"step": 6, "loss": 0.1}


def test_a_loss_that_is_no_number_is_not_the_best(keeper):
    assert keep(keeper, math.nan, 0.3, math.nan, 0.4) == ["step-00000002", "step-00000004"]


def test_a_best_one_that_could_not_be_written_takes_no_other_ones_place(keeper):
    keeper.failing.add(3)
    assert keep(keeper, 0.3, 0.2, 0.1, None, 0.5) == ["step-00000002", "step-00000005"]
    assert keeper.best == {"step": 2, "loss": 0.2} and "goes on" in keeper.said[0]


def test_one_that_cannot_be_removed_ends_no_run(keeper, monkeypatch):
    def prune(*arguments: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(folders, "prune", prune)
    assert len(keep(keeper, None, None)) == 2
    assert "cannot be removed (not yours)" in keeper.said[0]
