"""From nothing to a table: fetch, draw with the nano model, judge over HTTP, score, table."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT
from evaluation_sets import checkouts
from scripted_judge import serving
from tbac_uniimage.shell.main import main


@pytest.mark.slow
def test_from_nothing_to_a_table(tmp_path, capsys):
    def verb(name: str, *arguments: str) -> str:
        capsys.readouterr()
        assert main(["evaluate", name, *arguments]) == 0
        return capsys.readouterr().out

    sets, out = ["--sets", str(tmp_path / "sets")], ["--out", str(tmp_path / "out")]
    given = checkouts(tmp_path / "checkouts")
    verb("fetch", "imgedit", "--from", str(given), "--modified", "--yes", *sets)
    model = ["--model", str(ROOT / "assets" / "nano"), "--device", "cpu", "--steps", "1"]
    assert "imgedit: 3 pictures in" in verb("draw", "imgedit", *model, *sets, *out)

    def say(text: str, number: int) -> str:
        scores = (5, 5, 2) if "adjust" in text else (2, 3, 1)
        return "Edit Quality: {}\nVisual Quality: {}\nDetail Quality: {}".format(*scores)

    with serving(say) as (url, _):
        said = verb("judge", "imgedit", "--url", url, "--judge", "owl", *sets, *out)
    assert "imgedit, judged by owl: 3 answers, 0 of them unreadable" in said
    score = verb("score", "imgedit", *sets, *out)
    assert "overall  2.67" in score and "overall  2.44" in score  # as published and corrected
    table = json.loads(verb("table", str(tmp_path / "out"), "--json", *sets))
    assert "owl" in json.dumps(table) and "imgedit (modified)" in json.dumps(table)
