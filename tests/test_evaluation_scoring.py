"""Answers to figures: what is refused, what is left out, and how sure a figure is."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tbac_uniimage.training.evaluation import scoring
from tbac_uniimage.training.evaluation.benchmark import (
    AS_PUBLISHED,
    CORRECTED,
    Answer,
    Benchmark,
    Checkout,
    Item,
    Judge,
    Picture,
    Request,
    Row,
    Unreadable,
)


@dataclass(frozen=True)
class Digits(Benchmark):
    """Items whose answers are a digit; corrected, the digit is halved; items "lost…" are dropped."""

    name: str = "digits"
    unit: str = "of 9"
    judge: Judge | None = Judge("j-1")
    official: str = "j-1"
    modes: tuple[str, ...] = (AS_PUBLISHED, CORRECTED)

    def requests(self, item, checkout):
        return [Request(item.key, item.key, ("?",))] if self.judge else []

    def read(self, request, text, mode=AS_PUBLISHED):
        if not text.isdigit():
            raise Unreadable("no digit")
        return int(text) / (1 if mode == AS_PUBLISHED else 2)

    def lost(self, item, mode=AS_PUBLISHED):
        return item.key.startswith("lost")

    def rows(self, items, verdicts, mode=AS_PUBLISHED):
        return [Row(i.key, i.group, verdicts[i.key], verdicts[i.key] / 9) for i in items if i.key in verdicts]

    def figures(self, rows, mode=AS_PUBLISHED):
        groups = {}
        for row in rows:
            groups.setdefault(row.group, []).append(row.value)
        means = {name: sum(v) / len(v) for name, v in groups.items()}
        return {"overall": sum(means.values()) / len(means)} | means


CHECKOUT = Checkout({}, "digest")


def item(key: str, group: str = "a") -> Item:
    return Item(key, f"draw {key}", (Picture(f"{key}.png", (0,)),), group)


def said(**texts) -> dict[str, Answer]:
    return {key: Answer(key, key, text=text) for key, text in texts.items()}


ITEMS = [item("x"), item("y"), item("z", "b")]


def test_a_full_set_has_figures_by_value():
    found, rows = scoring.score(Digits(), ITEMS, CHECKOUT, said(x="2", y="4", z="9"), "j-1")
    assert {name: figure.value for name, figure in found.figures.items()} == {
        "overall": 6.0,
        "a": 3.0,
        "b": 9.0,
    }
    assert (found.rows, found.of, found.asked, found.unreadable) == (3, 3, 3, 0)
    assert found.counts == {"a": 2, "b": 1} and [row.key for row in rows] == ["x", "y", "z"]
    # two values a prompt apart: a mean of two draws has the error 1/sqrt(2); one prompt alone has none
    assert found.figures["a"].error == pytest.approx(1 / math.sqrt(2), rel=0.05)
    assert (found.figures["a"].low, found.figures["a"].high) == (2.0, 4.0)
    assert found.figures["b"].error == 0 and found.figures["overall"].error == pytest.approx(
        found.figures["a"].error / 2
    )


def test_corrected_figures_have_a_name_of_their_own():
    found, _ = scoring.score(Digits(), ITEMS, CHECKOUT, said(x="2", y="4", z="9"), "j-1", CORRECTED)
    assert found.figures["overall"].value == 3.0 and found.name == "digits (corrected)"
    with pytest.raises(ValueError, match="no mode 'best'; it has as published, corrected"):
        scoring.score(Digits(), ITEMS, CHECKOUT, {}, "j-1", "best")


@pytest.mark.parametrize(
    ("judge", "mode", "modified", "own", "name"),
    [
        ("j-1", AS_PUBLISHED, False, Judge("j-1"), "digits"),
        ("j-2", AS_PUBLISHED, False, Judge("j-1"), "digits"),
        ("j-1", AS_PUBLISHED, False, None, "digits"),
        ("transformers", AS_PUBLISHED, False, None, "digits (transformers)"),
        ("transformers", CORRECTED, True, None, "digits (transformers) (corrected) (modified)"),
        ("j-1", AS_PUBLISHED, True, Judge("j-1"), "digits (modified)"),
    ],
)
def test_no_score_is_taken_for_another(judge, mode, modified, own, name):
    assert scoring.named(Digits(judge=own), judge, mode, modified) == name


def test_anything_but_the_full_set_is_refused_with_what_is_missing():
    with pytest.raises(ValueError, match=r"not whole: 2 of 3 items lack answers \(y, z\).*--partial"):
        scoring.score(Digits(), ITEMS, CHECKOUT, said(x="2"), "j-1")


def test_a_partial_score_has_no_figure_that_spans_the_set():
    found, rows = scoring.score(Digits(), ITEMS, CHECKOUT, said(x="2", z="9"), "j-1", partial=True)
    assert {name: figure.value for name, figure in found.figures.items()} == {"a": 2.0, "b": 9.0}
    assert found.partial and (found.rows, found.of) == (2, 3)
    with pytest.raises(ValueError, match="No item of digits was judged"):
        scoring.score(Digits(), ITEMS, CHECKOUT, {}, "j-1", partial=True)


def test_an_item_that_the_official_script_drops_is_not_missed():
    found, _ = scoring.score(Digits(), [*ITEMS, item("lost1")], CHECKOUT, said(x="1", y="1", z="1"), "j-1")
    assert (found.rows, found.of) == (3, 4)


@pytest.mark.parametrize("broken", [1, 2])
def test_unreadable_answers_are_counted_and_refused_above_one_percent(broken):
    items = [item(f"i{n:03}") for n in range(100)]
    texts = {i.key: "5" for i in items} | {f"i{n:03}": ("no idea", None)[n % 2] for n in range(broken)}
    if broken == 1:
        found, _ = scoring.score(Digits(), items, CHECKOUT, said(**texts), "j-1")
        assert (found.unreadable, found.asked, found.rows) == (1, 100, 99)
    else:
        with pytest.raises(ValueError, match=r"2 of 100 answers .* more than 1% \(i000, i001\)"):
            scoring.score(Digits(), items, CHECKOUT, said(**texts), "j-1")


def test_verdicts_of_a_detector_are_about_pictures():
    answers = {
        f"{key}.png": Answer(f"{key}.png", key, verdict=value) for key, value in dict(x=1, y=2, z=0).items()
    }
    read = scoring.verdicts(Digits(judge=None), ITEMS, CHECKOUT, answers)
    assert read.read == {"x.png": 1, "y.png": 2, "z.png": 0} and not read.missing and not read.unreadable
    del answers["y.png"]
    assert scoring.verdicts(Digits(judge=None), ITEMS, CHECKOUT, answers).missing == ["y"]


def test_errors_are_those_of_statistics_and_do_not_change():
    random = np.random.default_rng(1)
    values = random.integers(0, 2, 400)
    rows = [Row(str(n), "a", int(value)) for n, value in enumerate(values)]
    figure = scoring.bootstrapped(Digits(), rows)["overall"]
    p = values.mean()
    assert figure.error == pytest.approx(math.sqrt(p * (1 - p) / 400), rel=0.08)
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * figure.error, rel=0.08)
    assert scoring.bootstrapped(Digits(), rows)["overall"] == figure


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=15)
@given(ROWS)
def test_intervals_lie_within_what_was_seen(drawn):
    rows = [Row(str(n), group, value) for n, (group, value) in enumerate(drawn)]
    for name, figure in scoring.bootstrapped(Digits(), rows).items():
        values = [value for group, value in drawn if name in ("overall", group)]
        assert min(values) <= figure.low <= figure.high <= max(values)
        assert figure.error == 0 or len(set(values)) > 1


def test_a_constant_has_no_error():
    rows = [Row(str(n), "ab"[n % 2], 7) for n in range(10)]
    assert scoring.bootstrapped(Digits(), rows)["overall"] == scoring.Figure(7.0, 0.0, 7.0, 7.0)


def test_the_package_holds_nothing_of_any_benchmark():
    """Prompts, tables and judge prompts are read from the user's checkout; none lies beside the code."""
    folder = Path(scoring.__file__).parent
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds == {".py", ".json"}
    assert [path.name for path in folder.rglob("*.json")] == ["published.json"]
