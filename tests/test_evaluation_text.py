"""Words in pictures, read by RapidOCR or by a test, against those that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_sets import fetched, lines
from PIL import Image, ImageDraw, ImageFont
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.evaluation import fetch, folders, sets
from tbac_uniimage.training.evaluation.detectors import text

SAID = {"text/short/0": "OPEN late", "text/long/0": "ONLY"}
WANTED = {"text/short/0": ["Open", "late"], "text/long/0": ["Oils"]}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    return fetched(tmp_path_factory.mktemp("made-up"), "tiif", "dpg")


@pytest.fixture
def out(made_up, tmp_path) -> Path:
    """Pictures with words in them."""
    benchmark = sets.find("tiif")
    checkout = fetch.load(benchmark, made_up)
    for item in benchmark.items(checkout):
        path = folders.pictures(tmp_path, "tiif") / item.pictures[0].path
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (320, 120), "white")
        font = ImageFont.load_default(48)
        ImageDraw.Draw(picture).text((20, 30), SAID.get(item.key, ""), font=font, fill="black")
        picture.save(path)
    folders.write_json(tmp_path / "tiif" / folders.MANIFEST, {"settings": {"files": checkout.digest}})
    return tmp_path


def command(made_up: Path, out: Path, words: dict[str, list[str]], *more: str) -> list[str]:
    file = out / "words.jsonl"
    file.write_text(lines([{"item": item, "words": said} for item, said in words.items()]))
    return [
        "evaluate",
        "judge",
        "tiif",
        "--words",
        str(file),
        "--out",
        str(out),
        "--sets",
        str(made_up),
        *more,
    ]


def read(path: Path) -> list[str]:
    """What stands in the picture of a path."""
    return [SAID[f"text/{'short' if 'short' in str(path) else 'long'}/0"]]


def test_words_that_were_read_become_distance_and_recall(made_up, out, monkeypatch, capsys):
    monkeypatch.setattr(text, "recogniser", lambda: read)
    monkeypatch.setattr(text.metadata, "version", lambda name: "3.0")
    assert main(command(made_up, out, WANTED)) == 0
    found = json.loads((out / "tiif" / "rapidocr" / "text.json").read_text())
    assert found["judge"] == "rapidocr 3.0"
    assert [(row["item"], row["read"]) for row in found["rows"]] == [
        ("text/short/0", ["open late"]),
        ("text/long/0", ["only"]),
    ]
    # "only" for "oils" is two letters of four away, more than the 0.3 that a word may be
    assert [(row["GNED"], row["recall"]) for row in found["rows"]] == [(0.0, 1.0), (0.5, 0.0)]
    assert found["figures"]["GNED"] == {"value": 0.25, "error": 0.25}
    assert "text (rapidocr 3.0): GNED 0.250 ± 0.250, recall 0.500 ± 0.500" in capsys.readouterr().out
    assert not (out / "tiif" / "rapidocr" / ".partial").exists()


def test_words_that_are_unknown_or_missing_are_refused(made_up, out, monkeypatch, capsys):
    monkeypatch.setattr(text, "recogniser", lambda: read)
    monkeypatch.setattr(text.metadata, "version", lambda name: "3.0")

    def sentence(argv: list[str]) -> str:
        assert main(argv) == 2
        return capsys.readouterr().err

    half = {"text/short/0": ["open"]}
    assert "has no words of 1 items (text/long/0" in sentence(command(made_up, out, half))
    assert "has words of style/short/0" in sentence(command(made_up, out, half | {"style/short/0": ["x"]}))
    argv = command(made_up, out, half)
    assert "dpg asks for no words" in sentence([*argv[:2], "dpg", *argv[3:]])
    assert not (out / "tiif" / "rapidocr").exists()
    assert main([*argv, "--partial"]) == 0


@pytest.mark.slow
def test_rapidocr_reads_them(made_up, out):
    pytest.importorskip("rapidocr")
    assert main(command(made_up, out, {"text/short/0": ["open", "late"], "text/long/0": ["only"]})) == 0
    found = json.loads((out / "tiif" / "rapidocr" / "text.json").read_text())
    assert found["figures"]["recall"]["value"] == 1 and found["figures"]["GNED"]["value"] == 0
