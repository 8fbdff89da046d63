"""The gradient-norm monitor, on simulated norms."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tbac_uniimage.training.step.monitor import HANDFUL, Decision, GradientMonitor, MonitorSettings

ACCEPT, SKIP, ROLL_BACK, GIVE_UP = Decision
NAN = math.nan


def norms(count: int, seed: int = 0, sigma: float = 0.3, level: float = 1.0) -> list[float]:
    """Lognormal norms of a run where nothing happens."""
    draw = random.Random(seed)
    return [level * draw.lognormvariate(0.0, sigma) for _ in range(count)]


def feed(monitor: GradientMonitor, values: list[float], first: int = 0) -> list[Decision]:
    return [monitor.decide(v, math.isfinite(v), first + i) for i, v in enumerate(values)]


def grown(count: int = 1000, **changes) -> GradientMonitor:
    """A monitor that has seen a quiet run."""
    monitor = GradientMonitor(MonitorSettings(**changes))
    assert set(feed(monitor, norms(count))) == {ACCEPT}
    return monitor


@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.6, 0.8])
def test_quiet_norms_hardly_ever_trip(sigma: float) -> None:
    monitor = GradientMonitor(MonitorSettings())
    decisions = feed(monitor, norms(20_000, sigma=sigma))
    assert decisions.count(ACCEPT) > 20_000 * (1 - 1e-4)
    assert monitor.skips == 20_000 - decisions.count(ACCEPT)


def test_statistics_are_those_of_the_norms() -> None:
    monitor = grown(20_000, memory=0.999)
    assert monitor.statistics.mean == pytest.approx(0.0, abs=0.03)
    assert math.sqrt(monitor.statistics.variance) == pytest.approx(0.3, rel=0.1)
    assert math.log(monitor.threshold) == pytest.approx(6 * 0.3, rel=0.15)


def test_bias_correction_makes_few_values_a_plain_mean() -> None:
    monitor = GradientMonitor(MonitorSettings(young=4, memory=1 - 1e-9))
    feed(monitor, [math.exp(x) for x in (0.1, 0.3, 0.2, 0.4)])
    assert monitor.statistics.mean == pytest.approx(0.25)
    assert monitor.statistics.variance == pytest.approx(0.0125)


def test_spike_is_skipped_once_and_leaves_no_trace() -> None:
    monitor = grown()
    before = json.dumps(monitor.state_dict()["statistics"])
    assert monitor.decide(100.0, True, 1000) is SKIP
    assert monitor.first_trip_step == 1000
    assert json.dumps(monitor.state_dict()["statistics"]) == before
    assert monitor.decide(1.0, True, 1001) is ACCEPT
    assert (monitor.skips, monitor.first_trip_step) == (1, None)


@pytest.mark.parametrize("norm, finite", [(NAN, True), (math.inf, True), (1.0, False), (NAN, False)])
@pytest.mark.parametrize("seen", [0, 3, 50, 1000])
def test_what_is_not_finite_always_trips_and_never_enters(norm: float, finite: bool, seen: int) -> None:
    monitor = GradientMonitor(MonitorSettings())
    feed(monitor, norms(seen))
    threshold = monitor.threshold
    assert monitor.decide(norm, finite, seen) is SKIP
    assert monitor.threshold == threshold and not math.isnan(threshold)
    json.dumps(monitor.state_dict(), allow_nan=False)


@pytest.mark.parametrize("at", range(HANDFUL, 100, 7))
def test_spike_while_young_is_skipped(at: int) -> None:
    monitor = GradientMonitor(MonitorSettings())
    assert set(feed(monitor, norms(at, seed=at))) == {ACCEPT}
    assert monitor.decide(100.0, True, at) is SKIP
    assert set(feed(monitor, norms(500, seed=at + 1), at + 1)) == {ACCEPT}


@pytest.mark.parametrize("at", range(HANDFUL))
@pytest.mark.parametrize("spike", [100.0, 1e30])
def test_spike_among_the_first_steps_is_forgotten(at: int, spike: float) -> None:
    quiet = norms(300)
    spiked = quiet[:at] + [spike] + quiet[at:]
    monitor, reference = GradientMonitor(MonitorSettings()), GradientMonitor(MonitorSettings())
    assert set(feed(monitor, spiked)) == set(feed(reference, quiet)) == {ACCEPT}
    assert monitor.threshold == pytest.approx(reference.threshold, rel=0.05)
    assert monitor.decide(100.0, True, 301) is SKIP


def natural(shape: str) -> list[float]:
    """Norms as they begin: the level by step, with noise."""
    level = {
        "fall": lambda i: 0.01 + 10 * math.exp(-i / 15),
        "rise": lambda i: min(10.0, 1.05**i),
        "zero start": lambda i: 1e-4 if i == 0 else 1.0,
        "warm-up": lambda i: 0.1 * (1 + i / 50) if i < 5000 else 10.0,
        "rise and fall": lambda i: 0.1 + 5 * math.exp(-(((i - 60) / 40) ** 2)),
    }[shape]
    return [level(i) * noise for i, noise in enumerate(norms(6000, sigma=0.2))]


@pytest.mark.parametrize("shape", ["fall", "rise", "zero start", "warm-up", "rise and fall"])
def test_the_natural_beginning_never_trips(shape: str) -> None:
    assert set(feed(GradientMonitor(MonitorSettings()), natural(shape))) == {ACCEPT}


@pytest.fixture(scope="module")
def recorded() -> list[float]:
    """Norms before clipping of a thousand steps that were trained: ``nano/own_pictures.yaml`` on 96 pictures.

    With ``train.batch=4 train.micro_batch=4 train.learning_rate=1e-3 train.steps=1200``, 4 samples a step, so
    that they scatter; they fall from 8 to 0.3. No step of that run was refused.
    """
    return json.loads((Path(__file__).parent / "data" / "gradient_norms.json").read_text())


def test_recorded_norms_never_trip(recorded: list[float]) -> None:
    """Of 30,000 decisions none, where fewer than 3 would be 1e-4; wherever a run begins."""
    assert set(feed(GradientMonitor(MonitorSettings()), recorded)) == {ACCEPT}
    decisions = []
    for first in range(0, 700, 7):
        decisions += feed(GradientMonitor(MonitorSettings()), recorded[first : first + 300])
    assert len(decisions) == 30_000 and set(decisions) == {ACCEPT}


def test_a_hundred_times_a_recorded_norm_is_always_refused(recorded: list[float]) -> None:
    monitor = GradientMonitor(MonitorSettings())
    for step, norm in enumerate(recorded):
        if step >= HANDFUL:
            usual = statistics.median(recorded[step - HANDFUL : step])
            assert monitor.threshold < 100 * usual
        assert monitor.decide(norm, True, step) is ACCEPT
    assert monitor.threshold < 20 * statistics.median(recorded[-HANDFUL:])


def falling(decay: float) -> list[float]:
    """Norms that fall from 1,000 to 0.7, to a ``decay``-th in every step, then stay."""
    return [max(1000.0 * decay**-i, 0.7) for i in range(400)]


@pytest.mark.parametrize("decay", [1.03, 1.1, 1.3, 2.0, 5.0])
def test_after_a_fall_the_threshold_is_that_of_what_is_left(decay: float) -> None:
    values = falling(decay)
    monitor = GradientMonitor(MonitorSettings())
    arrived = max(values.index(0.7) + HANDFUL - 1, HANDFUL)
    for step, norm in enumerate(values):
        assert monitor.decide(norm, True, step) is ACCEPT
        if step >= arrived:
            times = 20 if step >= arrived + 10 else 100  # the latest steps of a steep fall are scatter
            assert monitor.threshold <= times * 0.7 * (1 + 1e-9)
        if step >= HANDFUL:  # two more than the latest may be of a higher level
            assert monitor.threshold <= 100 * norm * decay**2 * (1 + 1e-9)
    assert monitor.decide(1000.0, True, 400) is SKIP
    assert monitor.decide(0.7, True, 401) is ACCEPT


def test_while_young_the_threshold_is_twenty_times_the_median_of_five() -> None:
    monitor = GradientMonitor(MonitorSettings())
    feed(monitor, [9.0, 8.0, 7.0, 6.0])
    assert monitor.threshold == math.inf
    feed(monitor, [5.0])
    assert monitor.threshold == pytest.approx(20 * 7.0)
    feed(monitor, [4.0, 3.0])
    assert monitor.threshold == pytest.approx(20 * 5.0)


@pytest.mark.parametrize("high, times", [(1.5, 20.0), (1.7, 28.155), (2.0, 78.257), (4.0, 100.0)])
def test_scattered_norms_have_more_room(high: float, times: float) -> None:
    monitor = GradientMonitor(MonitorSettings())
    feed(monitor, [1.0, high, 1.0] * 8 + [1.0])
    # two of three neighbours differ by log high: 6 deviations are high ** (6 * 1.4826 / sqrt(2))
    assert monitor.threshold == pytest.approx(times, rel=1e-4)


@settings(max_examples=100)
@given(
    st.lists(st.floats(1e-6, 1e6), min_size=HANDFUL, max_size=150),
    st.sampled_from([2, 10, 100]),
)
def test_a_hundred_times_the_usual_norm_is_refused_from_the_sixth_step_on(
    values: list[float], young: int
) -> None:
    monitor = GradientMonitor(MonitorSettings(young=young, trips=10**6))
    accepted = []
    for step, norm in enumerate(values):
        if monitor.decide(norm, True, step) is ACCEPT:
            accepted.append(norm)
        if len(accepted) >= HANDFUL:
            usual = statistics.median(accepted[-HANDFUL:])
            assert monitor.threshold <= 100 * usual * (1 + 1e-9)
            spike = GradientMonitor(monitor.settings)
            spike.load_state_dict(monitor.state_dict())
            assert spike.decide(101 * usual, True, step + 1) is SKIP


def test_checkpoints_from_before_the_bound_are_gone_on_from() -> None:
    for seen in (50, 300):
        before = GradientMonitor(MonitorSettings())
        feed(before, norms(seen))
        state = before.state_dict()
        del state["statistics"]["recent"]
        monitor = GradientMonitor(MonitorSettings())
        monitor.load_state_dict(state)
        assert set(feed(monitor, norms(200, seed=1), seen)) == {ACCEPT}
        assert monitor.decide(101.0, True, 600) is SKIP


def test_new_level_while_young_is_accepted_after_a_while() -> None:
    monitor = GradientMonitor(MonitorSettings())
    decisions = feed(monitor, norms(30) + norms(300, level=1000.0))
    assert decisions[30:49] == [SKIP] * 19
    assert set(decisions[49:]) == {ACCEPT}
    assert monitor.skips == 19 and not monitor.closed


def test_young_run_with_a_step_that_is_not_finite_rolls_back() -> None:
    monitor = GradientMonitor(MonitorSettings())
    feed(monitor, norms(10))
    assert feed(monitor, [1000.0] * 5 + [NAN] + [1000.0] * 14, 10) == [SKIP] * 19 + [ROLL_BACK]


def test_shift_rolls_back_and_then_gives_up() -> None:
    monitor = grown()
    saved = monitor.state_dict()
    step = 1000
    for expected in [ROLL_BACK] * 3 + [GIVE_UP]:
        assert feed(monitor, norms(20, level=10.0, sigma=0.05), step) == [SKIP] * 19 + [expected]
        assert monitor.first_trip_step == step
        monitor.restore_statistics(saved)
        step += 20
    assert monitor.skips == 80 and len(monitor.closed) == 4
    told = monitor.explain()
    assert "for 20 steps in a row, also after 3 roll-backs (" in told
    assert "steps 1000 to 1019: norms up to 1" in told and "steps 1060 to 1079" in told
    assert "against a threshold of" in told and "init=" in told and "learning_rate" in told


def test_explanation_of_steps_that_are_not_finite() -> None:
    monitor = grown(trips=2, rollbacks=0)
    assert feed(monitor, [NAN, NAN], 1000) == [SKIP, GIVE_UP]
    assert "for 2 steps in a row (steps 1000 to 1001: not finite)" in monitor.explain()
    assert "precision=fp32" in monitor.explain()


def test_roll_back_helps_where_the_shift_is_gone() -> None:
    monitor = grown()
    saved = monitor.state_dict()
    feed(monitor, norms(5, seed=2), 1000)
    assert feed(monitor, [50.0] * 20, 1005)[-1] is ROLL_BACK
    monitor.restore_statistics(saved)
    assert monitor.state_dict()["statistics"] == saved["statistics"]
    assert (monitor.skips, len(monitor.closed), monitor.first_trip_step) == (20, 1, 1005)
    assert set(feed(monitor, norms(500, seed=3), 1025)) == {ACCEPT}
    assert monitor.first_trip_step is None


def test_restored_statistics_are_a_copy() -> None:
    monitor = GradientMonitor(MonitorSettings())
    feed(monitor, norms(10))
    saved = monitor.state_dict()
    monitor.restore_statistics(saved)
    feed(monitor, norms(10))
    assert len(saved["statistics"]["early"]) == 10


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_slow_drift_never_trips(factor: float) -> None:
    drift = [norm * factor ** (i / 4000) for i, norm in enumerate(norms(4000, sigma=0.05))]
    assert set(feed(GradientMonitor(MonitorSettings()), drift)) == {ACCEPT}


def test_fall_to_almost_nothing_does_not_open_the_gate() -> None:
    monitor = grown()
    before = monitor.threshold
    assert monitor.decide(1e-30, True, 1000) is ACCEPT
    assert monitor.threshold < before * 1.5
    assert monitor.decide(100.0, True, 1001) is SKIP


def test_step_without_gradient_counts_for_nothing() -> None:
    monitor = grown()
    monitor.decide(100.0, True, 1000)
    before = monitor.state_dict()
    assert monitor.decide(0.0, True, 1001) is ACCEPT
    assert monitor.state_dict() == before


def test_floor_keeps_steady_norms_from_tripping() -> None:
    monitor = GradientMonitor(MonitorSettings())
    feed(monitor, [1.0] * 1000)
    assert monitor.threshold == pytest.approx(math.exp(0.6))


def test_disabled_decides_nothing() -> None:
    monitor = GradientMonitor(MonitorSettings(enabled=False))
    assert set(feed(monitor, norms(200) + [1e9, NAN, math.inf] * 50)) == {ACCEPT}
    assert monitor.threshold == math.inf and monitor.skips == 0


def test_number_of_young_steps_may_change_between_runs() -> None:
    seen = GradientMonitor(MonitorSettings())
    feed(seen, norms(50))
    state = seen.state_dict()
    monitor = GradientMonitor(MonitorSettings(young=20))
    monitor.load_state_dict(state)
    assert monitor.decide(1.0, True, 50) is ACCEPT and not monitor.young
    assert monitor.threshold == pytest.approx(math.exp(1.8), rel=0.4)


EVENTS = st.one_of(
    st.floats(0.2, 5.0), st.sampled_from([NAN, math.inf, 0.0, 100.0, 1e5, 1e-20]), st.floats(1e-3, 1e3)
)


@settings(max_examples=60)
@given(st.lists(EVENTS, min_size=1, max_size=80), st.data())
def test_resumed_is_uninterrupted(values: list[float], data: st.DataObject) -> None:
    changes = MonitorSettings(young=data.draw(st.sampled_from([2, 10, 30])), trips=3, rollbacks=1)
    cut = data.draw(st.integers(0, len(values)))
    whole = GradientMonitor(changes)
    expected = feed(whole, values)
    first = GradientMonitor(changes)
    decisions = feed(first, values[:cut])
    second = GradientMonitor(changes)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert second.threshold == first.threshold
    decisions += feed(second, values[cut:], cut)
    assert decisions == expected
    assert second.state_dict() == whole.state_dict()
    assert second.first_trip_step == whole.first_trip_step


@pytest.mark.parametrize(
    "name, value",
    [("deviations", 0.5), ("floor", 0), ("young", 1), ("memory", 1.0), ("trips", 0), ("rollbacks", -1)],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"monitor\.{name} is {value}; it must be"):
        MonitorSettings(**{name: value})
