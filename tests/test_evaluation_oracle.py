"""What the official scorers answered, and that the comparison with it can fail."""

import json
from pathlib import Path

import evaluation_oracle as oracle
import pytest

DATA = Path(__file__).parent / "data" / "evaluation"


@pytest.mark.parametrize("name", oracle.FILES)
def test_every_record_is_computed(name):
    checks, failures = oracle.failures_of(DATA / name)
    assert checks and not failures, failures[:3]


def altered(value):
    """The value with its last number or text changed."""
    if isinstance(value, dict) and value:
        *others, last = value
        return {key: value[key] for key in others} | {last: altered(value[last])}
    if isinstance(value, list) and value:
        return [*value[:-1], altered(value[-1])]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}!"


ANSWERS = {
    "geneval_position.json": ("cases", "relations"),
    "geneval_iou.json": ("cases", "iou"),
    "geneval_crops.json": ("cases", "crop"),
    "geneval_detector_postprocess.json": ("cases", "official"),
    "geneval_evaluate.json": ("cases", "official"),
    "geneval_summary.json": ("cases", "official"),
    "dpg.json": ("cases", "official"),
    "tiif_text.json": ("words", "official"),
    "imgedit.json": ("suites", "official"),
    "gedit.json": ("statistics", "official"),
    "wise.json": ("cases", "official"),
    "geneval2.json": ("cases", "official"),
    "risebench.json": ("rows", "official"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_changed_record_is_a_failure(name, tmp_path, capsys):
    data = json.loads((DATA / name).read_text(encoding="utf-8"))
    part, field = ANSWERS[name]
    data[part][0][field] = altered(data[part][0][field])
    (tmp_path / name).write_text(json.dumps(data), encoding="utf-8")
    assert oracle.main(tmp_path) == 1
    assert ", 1 failures" in capsys.readouterr().out


def test_a_file_that_nothing_computes_and_an_empty_folder_fail(tmp_path, capsys):
    assert oracle.main(tmp_path) == 1
    (tmp_path / "later.json").write_text("{}", encoding="utf-8")
    assert oracle.main(tmp_path) == 1
    assert "later.json: nothing here computes it" in capsys.readouterr().out
