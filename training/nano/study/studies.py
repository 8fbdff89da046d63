"""The studies: what the runs of each share, and in what its sides differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....core.rung_kinds import RUNGS
from ..make import ROOT

SIX = ("single", "two", "count", "color", "position", "binding")  # kinds of prompts
RECIPES = ROOT / "training" / "recipes" / "study"


@dataclass(frozen=True)
class Study:
    """A comparison of runs that differ in one option.

    Attributes:
        name: of its recipe, and of its folder below `runs/study`.
        sides: what differs from the recipe, as `key=value`; the others are compared with the first.
        fullest: the side that needs most of a cache.
        counts: samples of every data set that `compose` writes, those of the validation among them.
        seed: of these data sets; that of the nano model's own is 0.
        score: options of the score of a finished run, without the number of prompts.
        samples: prompts of each kind that a finished run is scored on.
        shown: figures of the score that the report's plot shows beside the losses.
        untrained: whether what reads the MLLM begins anew with a seed (`start`), or the model goes on.
    """

    name: str
    sides: dict[str, tuple[str, ...]]
    fullest: str
    counts: dict[str, int]
    score: tuple[str, ...]
    samples: int
    seed: int = 0
    shown: tuple[str, ...] = ()
    untrained: bool = False

    @property
    def recipe(self) -> Path:
        """Its recipe."""
        return RECIPES / f"{self.name}.yaml"

    @property
    def folder(self) -> str:
        """Where its runs are, as the recipe says."""
        return f"runs/study/{self.name}"


STUDIES = {
    study.name: study
    for study in (
        Study(
            "rungs",
            sides={rungs: (f"model.rungs={rungs}",) for rungs in RUNGS},
            fullest="ladder",
            counts={"scenes": 15_000},
            score=("--only", *SIX, "dense", "--pictures", "1", "--steps", "12"),
            samples=40,
            shown=("overall: mean of six",),
            untrained=True,
        ),
        Study(
            "source_latents",
            sides={
                "without": ("model.source_latents=false",),
                "with": ("model.source_latents=true",),
                "faster": ("model.source_latents=true", "train.rates.source_embed=20"),
            },
            fullest="with",
            counts={"edits": 5_000, "scenes": 2_500, "words": 2_500},
            score=("--only", "edit", "two", "binding", "--pictures", "1", "--steps", "12"),
            samples=16,
            seed=1,
        ),
        Study(
            "text_states",
            sides={
                "without": ("model.text_states=false",),
                "with": ("model.text_states=true",),
            },
            fullest="with",
            counts={"scenes": 8_700, "words": 6_000},
            score=("--only", "draw", "--pictures", "1", "--steps", "20"),
            samples=40,
            seed=1,
        ),
    )
}
