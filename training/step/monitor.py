"""The gradient-norm monitor: which optimizer steps are applied, skipped, or undone by a roll-back.

One decision per optimizer step, from the global gradient norm before clipping and a flag that says whether
all processes had finite losses and gradients. Pure arithmetic on numbers that are equal on all processes, so
no two of them decide differently.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any

HANDFUL = 5  # the latest accepted norms: their median is the usual one; with fewer, nothing is unusual
SCATTER = 25  # the latest accepted norms that say how much norms scatter from step to step
NEAREST, FARTHEST = 20.0, 100.0  # times the usual norm: what trips at the latest, by how much norms scatter
NORMAL = 1.4826  # times the median absolute deviation: the standard deviation of a normal distribution


class Decision(Enum):
    """What is to happen with a step."""

    ACCEPT = "accept"
    SKIP = "skip"  # clear the gradients; no weight, moment or average changes
    ROLL_BACK = "roll_back"  # skip, and go back to a checkpoint from before the first trip of this run
    GIVE_UP = "give_up"  # skip, and stop


@dataclass(frozen=True)
class MonitorSettings:
    """When to trip, and how often.

    Attributes:
        enabled: False decides nothing: every step is applied, even one that is not finite.
        deviations: how far above the running mean of log-norm a step trips, in deviations. At least 1.
        floor: smallest deviation of log-norm that is believed. 0.1: norms within 10 %.
        young: accepted steps before running mean and deviation are used. At least 2.
        memory: decay of the running statistics per accepted step, in (0, 1); 0.99 looks back 100 steps.
        trips: this many in a row ask for a roll-back. At least 1.
        rollbacks: roll-backs in the life of a run; the next one gives up.
    """

    enabled: bool = True
    deviations: float = 6.0
    floor: float = 0.1
    young: int = 100
    memory: float = 0.99
    trips: int = 20
    rollbacks: int = 3

    def __post_init__(self) -> None:
        for name, allowed, rule in (
            ("deviations", 1 <= self.deviations < math.inf, "at least 1"),
            ("floor", 0 < self.floor < math.inf, "above 0"),
            ("young", self.young >= 2, "at least 2"),
            ("memory", 0 < self.memory < 1, "between 0 and 1"),
            ("trips", self.trips >= 1, "at least 1"),
            ("rollbacks", self.rollbacks >= 0, "at least 0"),
        ):
            if not allowed:
                raise ValueError(f"monitor.{name} is {getattr(self, name)}; it must be {rule}.")


@dataclass
class Statistics:
    """Of the log-norms of accepted steps.

    Attributes:
        count: values in mean and variance; 0 while young.
        mean: exponentially weighted mean, bias-corrected.
        variance: exponentially weighted variance, bias-corrected.
        early: while young, all values so far; empty afterwards.
        recent: the latest :data:`SCATTER` values; none in what was saved before there was a bound.
    """

    count: int
    mean: float
    variance: float
    early: list[float]
    recent: list[float] = field(default_factory=list)


@dataclass
class Trips:
    """Trips in a row.

    Attributes:
        first: step of the first trip.
        last: step of the last one.
        trips: how many.
        not_finite: how many of them were not finite.
        largest: largest finite norm, 0 if none was finite.
        threshold: at the first trip; None where there was none yet.
    """

    first: int
    last: int
    trips: int = 0
    not_finite: int = 0
    largest: float = 0.0
    threshold: float | None = None

    def describe(self) -> str:
        """``steps 10 to 29: norms up to 95.1 against a threshold of 2.3``."""
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
        if self.not_finite == self.trips:
            return f"{steps}: not finite"
        limit = "" if self.threshold is None else f" against a threshold of {self.threshold:.3g}"
        extra = f", {self.not_finite} of {self.trips} not finite" if self.not_finite else ""
        return f"{steps}: norms up to {self.largest:.3g}{limit}{extra}"


class GradientMonitor:
    """Decides about one optimizer step after another.

    A step trips if it is not finite, or if its norm is above ``exp(mean + deviations * max(sigma, floor))``,
    where mean and sigma are those of the log-norms of accepted steps, or above :meth:`bound`. The test comes
    before the update, and a step that trips leaves no trace in the statistics. The norm may fall freely; a
    fall enters as at most the same distance below the mean, so that one tiny norm does not widen sigma.

    *Bound.* The norms of the first hundreds of steps fall or rise by powers of ten. That widens any deviation
    from a common mean until a spike passes, and as long as such norms are remembered. So at every age a step
    trips above 20 times the median of the latest five norms. Where norms scatter by more than that allows, it
    is ``deviations`` deviations from step to step, and never more than 100 times. A trend widens it by
    nothing: deviations are those of differences of neighbours (von Neumann 1941), robust ones.

    *Young statistics.* Mean and sigma of a few values are worth little, so until ``young`` steps are accepted
    the bound is all there is. The first five steps have nothing to be compared with and pass; learning rate
    (warm-up) and clipping keep their effect small. When the statistics come of age, mean and sigma are
    computed from the young norms without outliers among them, so that a spike which passed is forgotten.

    *Roll-back.* Exclusion alone would lock up after a genuine shift, so ``trips`` trips in a row ask for a
    roll-back: the caller loads the newest checkpoint from before :attr:`first_trip_step`, hands its state to
    :meth:`restore_statistics`, and goes on with the next data. While young there is nothing worth going back
    to: unless a norm was not finite, the new level is then accepted and the statistics start again. When the
    roll-backs are used up, the run must stop, and :meth:`explain` says why.

    Args:
        settings: when to trip.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self.settings = settings
        self.statistics = Statistics(0, 0.0, 0.0, [])
        self.run: Trips | None = None  # the current one, or the one that ended in a roll-back just now
        self.closed: list[Trips] = []  # runs that ended in a roll-back or in giving up
        self.skips = 0  # steps that were not applied

    @property
    def young(self) -> bool:
        """Whether there are no running mean and deviation yet."""
        return self.statistics.count == 0

    @property
    def threshold(self) -> float:
        """Norm above which the next step trips; infinite while there is none."""
        if not self.settings.enabled:
            return math.inf
        limit = self.bound()
        if not self.young:
            limit = min(limit, self.statistics.mean + self.reach())
        return math.exp(min(limit, 700.0)) if limit < math.inf else math.inf  # beyond, float64 ends

    def bound(self) -> float:
        """Log-norm that no accepted step may exceed, whatever was long ago; infinite after too few steps."""
        recent = self.statistics.recent
        if len(recent) < HANDFUL:
            return math.inf
        _, scatter = robust([after - before for before, after in pairwise(recent)])
        reach = self.settings.deviations * scatter / math.sqrt(2)  # a difference has twice the variance
        return statistics.median(recent[-HANDFUL:]) + min(max(reach, math.log(NEAREST)), math.log(FARTHEST))

    @property
    def first_trip_step(self) -> int | None:
        """Where the current run of trips began; after a roll-back, the run that led to it."""
        return self.run.first if self.run else None

    def decide(self, norm: float, finite: bool, step: int) -> Decision:
        """What is to happen with a step. Call it once per optimizer step.

        A norm of 0 (a step without a good sample) is accepted and counts for nothing.

        Args:
            norm: global gradient norm before clipping, the same on all processes.
            finite: whether loss and gradients of all processes were finite.
            step: number of the step, for the record.
        """
        if not self.settings.enabled:
            return Decision.ACCEPT
        finite = finite and math.isfinite(norm)
        if finite and norm == 0:
            return Decision.ACCEPT
        threshold = self.threshold
        if finite and norm <= threshold:
            self.run = None
            self.learn(math.log(norm))
            return Decision.ACCEPT
        decision = self.trip(norm, finite, step, threshold)
        self.skips += decision is not Decision.ACCEPT
        return decision

    def trip(self, norm: float, finite: bool, step: int, threshold: float) -> Decision:
        """Count a trip."""
        if self.run is None or self.run in self.closed:
            self.run = Trips(step, step, threshold=threshold if math.isfinite(threshold) else None)
        run = self.run
        run.last = step
        run.trips += 1
        run.not_finite += not finite
        run.largest = max(run.largest, norm) if finite else run.largest
        if run.trips < self.settings.trips:
            return Decision.SKIP
        if self.young and not run.not_finite:  # a new level
            self.run = None
            self.statistics = Statistics(0, 0.0, 0.0, [])
            self.learn(math.log(norm))
            return Decision.ACCEPT
        self.closed.append(run)
        return Decision.GIVE_UP if len(self.closed) > self.settings.rollbacks else Decision.ROLL_BACK

    def learn(self, value: float) -> None:
        """Enter the log-norm of an accepted step."""
        known = self.statistics
        known.recent = [*known.recent, value][-SCATTER:]
        if not self.young:
            self.average(max(value, known.mean - self.reach()))
            return
        known.early.append(value)
        if len(known.early) >= self.settings.young:
            self.come_of_age()

    def come_of_age(self) -> None:
        """Compute mean and variance from the young norms that are no outliers."""
        early, self.statistics.early = self.statistics.early, []
        middle, deviation = robust(early)
        reach = self.settings.deviations * max(deviation, self.settings.floor)
        for value in early:
            if abs(value - middle) <= reach:
                self.average(value)

    def average(self, value: float) -> None:
        """Enter a value into mean and variance (West 1979, with exponential weights)."""
        memory, known = self.settings.memory, self.statistics
        known.count += 1
        weight = (1 - memory) / (1 - memory**known.count)
        distance = value - known.mean
        known.mean += weight * distance
        known.variance = (1 - weight) * (known.variance + weight * distance**2)

    def reach(self) -> float:
        """Distance of the threshold from the mean, in log-norm."""
        return self.settings.deviations * max(math.sqrt(self.statistics.variance), self.settings.floor)

    def explain(self) -> str:
        """Why the run cannot go on after the latest run of trips, and what to try; for people."""
        what = "; ".join(run.describe() for run in self.closed)
        undone = len(self.closed) - 1
        helped = {0: "", 1: ", also after a roll-back"}.get(undone, f", also after {undone} roll-backs")
        not_finite = sum(run.not_finite for run in self.closed)
        mostly = not_finite * 2 > sum(run.trips for run in self.closed)
        hint = "train.precision=fp32" if mostly else "a longer train.warmup"
        return (
            f"The gradients left their range for {self.settings.trips} steps in a row{helped} ({what}). Look "
            f"at the samples that skips.jsonl names; try a lower train.learning_rate or {hint}; if the new "
            "level is sound, start a new run from the last checkpoint (init=), which learns the range afresh."
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything but the settings, as JSON can hold it without loss."""
        return {
            "statistics": asdict(self.statistics),
            "run": None if self.run is None else asdict(self.run),
            "closed": [asdict(run) for run in self.closed],
            "skips": self.skips,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.restore_statistics(state)
        self.closed = [Trips(**run) for run in state["closed"]]
        self.run = None if state["run"] is None else Trips(**state["run"])
        self.skips = state["skips"]

    def restore_statistics(self, state: Mapping[str, Any]) -> None:
        """Take the statistics of a checkpoint, at a roll-back; what was counted since is kept."""
        kept = state["statistics"]
        recent = kept.get("recent", kept["early"][-SCATTER:])
        self.statistics = Statistics(**{**kept, "early": list(kept["early"]), "recent": list(recent)})


def robust(values: list[float]) -> tuple[float, float]:
    """Median, and standard deviation estimated from the median absolute deviation."""
    middle = statistics.median(values)
    return middle, NORMAL * statistics.median(abs(value - middle) for value in values)
