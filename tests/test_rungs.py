"""Curves, gains, mixing and groups, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tbac_uniimage.core.rung_attention import RungKV, Rungs
from tbac_uniimage.core.rungs import (
    PRESETS,
    check_gains,
    crossover_weights,
    group_rungs,
    mix_rungs,
    parse_curve,
    preset_gains,
    resample,
    scale_rungs,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_presets_by_hand():
    assert preset_gains("layout", 1.0, 6) == pytest.approx([2, 1.75, 1.25, 1, 1, 1])
    assert preset_gains("subject", -1.0, 6) == pytest.approx([1, 0.75, 0.25, 0.25, 0.75, 1])
    assert preset_gains("detail", 0.5, 3) == pytest.approx([1, 1, 1.5])
    assert preset_gains("layout", -1.0, 20)[:3] == pytest.approx([0, 0, 0])
    assert preset_gains("even", 3.0, 4) == [1, 1, 1, 1]


@given(st.integers(1, 40), st.floats(-1, 5))
def test_the_three_presets_together_lift_all_rungs_alike(rungs, amount):
    bands = [preset_gains(preset, amount, rungs) for preset in PRESETS[1:]]
    for together in zip(*bands, strict=True):
        assert sum(gain - 1 for gain in together) == pytest.approx(amount, abs=1e-9)


def test_curves():
    assert parse_curve("", 3) == [1, 1, 1]
    assert parse_curve(" 0.5 ", 3) == [0.5, 0.5, 0.5]
    assert parse_curve("1, 2", 5) == pytest.approx([1, 1.25, 1.5, 1.75, 2])
    assert parse_curve("1; .3\n0", 3) == [1, 0.3, 0]
    assert parse_curve("3: 0, 5-6: 1.3", 6) == [1, 1, 0, 1, 1.3, 1.3]
    assert parse_curve("1 - 2 : 0", 2) == [0, 0]
    assert resample([0, 1, 0], 1) == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1, two", "'two', which is no number"),
        ("9: 1", "names rung 9; this model has 1 to 6"),
        ("0: 1", "names rung 0"),
        ("4-2: 1", "names rung 4-2"),
        ("3: 0, 1.5", "'1.5' among single rungs"),
        ("1, nan", "'nan'; give numbers from 0"),
        ("2: -1", "'-1'; give numbers from 0"),
        ("3: x", "'x', which is no number"),
    ],
)
def test_a_bad_curve_is_one_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        parse_curve(text, 6)


@given(st.text(alphabet="0123456789.:-,; nainfe\n", max_size=30))
def test_any_text_is_a_curve_or_a_sentence(text):
    try:
        gains = parse_curve(text, 6)
    except ValueError as error:
        assert str(error).startswith("The curve ")
    else:
        assert len(gains) == 6 and all(0 <= gain <= 10 for gain in gains)


def test_gains_scale_values_alone():
    rungs = Rungs([RungKV(random(2, 2, 5, 3, seed=i), random(2, 2, 5, 3, seed=9 + i)) for i in range(3)])
    scaled = scale_rungs(rungs, [1, 0, 2.5])
    for before, after, gain in zip(rungs.kv, scaled.kv, [1, 0, 2.5], strict=True):
        assert torch.equal(before.key, after.key) and torch.equal(before.value * gain, after.value)


@pytest.mark.parametrize(
    ("gains", "message"),
    [
        ([1.0], "1 gains were given for 3 rungs"),
        ([1, math.nan, 1], "gain of rung 2 is nan"),
        ([1, 1, math.inf], "gain of rung 3 is inf"),
        ([-0.1, 1, 1], "gain of rung 1 is -0.1"),
    ],
)
def test_bad_gains(gains, message):
    with pytest.raises(ValueError, match=message):
        check_gains(gains, 3)


def test_crossover_by_hand():
    assert crossover_weights(4, 0.5) == [0, 0, 1, 1]
    assert crossover_weights(4, 0.5, 1.0) == pytest.approx([0.125, 0.375, 0.625, 0.875])
    with pytest.raises(ValueError, match="crossover is nan"):
        crossover_weights(4, math.nan)


@given(st.integers(1, 40), st.floats(0, 1))
def test_crossover_at_an_end_is_one_alone(rungs, softness):
    assert set(crossover_weights(rungs, 1.0, softness)) == {0.0}
    assert set(crossover_weights(rungs, 0.0, softness)) == {1.0}


def test_mixed_rungs():
    a, b = random(3, 2, 4, 5), random(3, 1, 4, 5, seed=1)
    mixed = mix_rungs(a, b, [0, 0.25, 1])
    assert torch.equal(mixed[0], a[0]) and torch.equal(mixed[2], b[2].expand(2, -1, -1))
    assert torch.allclose(mixed[1], 0.75 * a[1] + 0.25 * b[1])
    longer = mix_rungs(a[:, :, :2], torch.cat([b, b[:, :, :2]], dim=2), [0, 0, 0])
    assert torch.equal(longer, a[:, :, :2].repeat(1, 1, 3, 1))
    with pytest.raises(ValueError, match="3 rungs of width 5 and 2 of width 5"):
        mix_rungs(a, b[:2], [0, 0, 0])
    with pytest.raises(ValueError, match="2 weights were given for 3 rungs"):
        mix_rungs(a, b, [0, 0])


def test_groups():
    assert group_rungs(6, [1 / 3, 2 / 3]) == [0, 0, 1, 1, 2, 2]
    assert group_rungs(3, [0.0, 1.0]) == [1, 1, 1]
    with pytest.raises(ValueError, match="rising numbers"):
        group_rungs(3, [0.7, 0.2])
    with pytest.raises(ValueError, match="rising numbers"):
        group_rungs(3, [math.nan])
