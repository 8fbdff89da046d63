"""``validation.sets`` of a recipe: a fixed part of a benchmark, drawn and judged as a run goes on.

A step's pictures and answers lie in ``RUN/evaluation/step-…`` as those of ``tbac-uniimage evaluate``. What is
logged is how well the items went on average, 0 to 1: a curve of a run, and no figure of the benchmark.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipe.settings import ValidationSet, ValidationSettings
from . import draw, fetch, folders, judge, sets
from .draw import Job
from .manifest import PARTIALS, versions, write_whole

if TYPE_CHECKING:
    from ...core.pipeline import LadderPipeline
    from .painting import Way


class JudgedSets:
    """The sets of a recipe. Nothing is written before the first step that is validated.

    Args:
        settings: ``validation`` of the recipe.
        size: side in pixels of pictures from text.
        run: folder of the run.

    Raises:
        ValueError: a set is unknown, was not fetched or has changed, or nobody is named who can judge it.
    """

    def __init__(self, settings: ValidationSettings, size: int, run: Path) -> None:
        from .painting import Way

        self.run = run
        self.sets = settings.sets
        self.way: Way = Way(
            steps=settings.steps,
            guidance=settings.guidance,
            image_guidance=settings.image_guidance,
            size=size,
            seed=settings.seed,
        )
        self.options = [options_of(one) for one in settings.sets]
        self.jobs = [job_of(one, options) for one, options in zip(self.sets, self.options, strict=True)]

    def folder(self, step: int) -> Path:
        """Where the pictures of a step lie."""
        return self.run / "evaluation" / f"step-{step:08}"

    def draw(self, pipeline: LadderPipeline, step: int, first: bool) -> None:
        """Draw all items, by all processes alike, as sharded weights want it; the first writes them.

        Raises:
            Stop: they cannot be written.
        """
        from .painting import paint

        for found in self.jobs:
            job = Job(found.benchmark, found.checkout, found.items, self.folder(step) / found.benchmark.name)
            settings = draw.settings_of(job, self.way) | {"step": step, "versions": versions()}
            if first:
                draw.begin(job, settings, self.run)
            for item in job.items:
                for number, picture in enumerate(paint(pipeline, job.benchmark.name, item, self.way)):
                    if first:
                        path = job.pictures / item.pictures[number].path
                        said = draw.chunk_of(job, item, number, settings, self.way)
                        write_whole(path, draw.png(picture, said), job.folder / PARTIALS)
            if first:
                draw.end(job)

    def judge(self, step: int, say: Any) -> dict[str, float | None]:
        """How well every set went, 0 to 1; None, and a sentence for ``say``, where nobody could judge it."""
        figures: dict[str, float | None] = {}
        for job, options in zip(self.jobs, self.options, strict=True):
            name = job.benchmark.name
            options.out = self.folder(step)
            try:
                judge.run(options)
                figures[name] = share(job, options)
            except ValueError as error:  # a run of days does not end because a judge is away
                say(f"{name} was not judged at step {step}: {error}")
                figures[name] = None
        return figures


def options_of(settings: ValidationSet) -> Namespace:
    """What ``evaluate judge`` is told of a set."""
    from argparse import ArgumentParser

    parser = ArgumentParser()
    judge.add_arguments(parser)
    named: dict[str, Any] = {"--url": settings.url, "--judge": settings.judge, "--sets": settings.folder}
    named |= {"--detector": settings.detector, "--clip": settings.clip}
    given = [word for name, value in named.items() if value is not None for word in (name, value)]
    return parser.parse_args([settings.name, "--out", "", "--partial", *given])


def job_of(settings: ValidationSet, options: Namespace) -> Job:
    """The items of a set that are drawn. Raises ValueError."""
    benchmark = sets.find(settings.name)
    judge.check(options, [benchmark])
    checkout = fetch.load(benchmark, options.sets)
    items = draw.spread(benchmark.items(checkout), settings.items)
    if options.url and not any(benchmark.requests(item, checkout) for item in items):
        raise ValueError(
            f"{benchmark.name} asks a chat model nothing; give detector and clip of validation.sets."
        )
    return Job(benchmark, checkout, items, Path())


def share(job: Job, options: Namespace) -> float | None:
    """How well the items went on average; None if no answer could be read."""
    from .scoring import verdicts

    folder = folders.judged(options.out, job.benchmark.name, judge.name_of(options))
    answers = folders.read_answers(folder / folders.ANSWERS)
    said = verdicts(job.benchmark, job.items, job.checkout, answers)
    return mean([row.good for row in job.benchmark.rows(job.items, said.read)])


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None
