"""`evaluate score` and `evaluate table` on files: what stands beside what, and the sheets of failures."""

import json
from argparse import ArgumentParser

import pytest
from data_files import picture, write
from PIL import Image
from tbac_uniimage.training.evaluation import fetch, folders, score, sheet, table
from tbac_uniimage.training.evaluation.benchmark import Answer

EDITS = {str(n): {"id": "a/a.png", "prompt": f"edit {n}", "edit_type": "add"} for n in range(4)}
BASIC = {
    "Benchmark/Basic/basic_edit.json": json.dumps(EDITS),
    "Benchmark/Basic/prompts.json": json.dumps({"add": "<edit_prompt>?"}),
    "Benchmark/singleturn/a/a.png": picture((250, 250, 0), (64, 64)),
}
SAID = "A Quality: {0}\nB Quality: {0}\nC Quality: {0}"


def call(module, *words: object) -> None:
    parser = ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def judged(tmp_path):
    """Four edits, drawn and judged; the first is the best."""
    call(
        fetch,
        "imgedit",
        "--from",
        write(tmp_path / "ImgEdit", BASIC),
        "--modified",
        "--sets",
        tmp_path / "sets",
    )
    out = tmp_path / "model"
    for n in range(4):
        write(out / "imgedit" / "pictures", {f"{n}.png": picture((0, 0, 60 * n), (64, 64))})
    results = tmp_path / "result.json"
    results.write_text(json.dumps({str(n): SAID.format(5 - n) for n in range(4)}))
    call(score, "imgedit", "--out", out, "--sets", tmp_path / "sets", "--results", results)
    return tmp_path


def test_results_are_imported_scored_and_told(judged, capsys):
    folder = judged / "model" / "imgedit" / "gpt-4.1"
    assert json.loads((folder / "judge.json").read_text())["imported"] == "result.json"
    stored = json.loads((folder / folders.SCORE).read_text())
    assert [found["name"] for found in stored["scores"]] == [
        "imgedit (modified)",
        "imgedit (corrected) (modified)",
    ]
    assert stored["scores"][0]["figures"]["overall"]["value"] == 3.5
    assert [row["good"] for row in stored["rows"]] == [1.0, 0.75, 0.5, 0.25] and stored["rows"][1][
        "asked"
    ] == "edit 1"
    call(score, "imgedit", "--out", judged / "model", "--sets", judged / "sets")
    out = capsys.readouterr().out
    assert (
        "judged by gpt-4.1: 4 of 4 items, 0 of 4 answers unreadable" in out and "overall  3.50 ± 0.5" in out
    )


def test_answers_are_read_after_a_kill_and_the_last_one_counts(tmp_path):
    path = write(tmp_path, {"answers.jsonl": ""}) / "answers.jsonl"
    first = '{"request": "a", "item": "a", "text": "1"}\n'
    path.write_text(first + first.replace('"1"', '"2"') + '{"request": "b", "it')
    assert {key: answer.text for key, answer in folders.read_answers(path).items()} == {"a": "2"}
    path.write_text('{"request": "b", "it\n' + first)
    with pytest.raises(ValueError, match="answers.jsonl, line 1, is no answer"):
        folders.read_answers(path)


@pytest.mark.parametrize("name", ["gpt-4.1", "Qwen/Qwen3-VL 8B", "../../x", "..", "Ünïcode:1"])
def test_a_judges_folder_stays_within_the_set(tmp_path, name):
    folder = folders.judged(tmp_path, "imgedit", name)
    assert (
        folder.parent == tmp_path / "imgedit" and folder.resolve().parent == (tmp_path / "imgedit").resolve()
    )


def test_bad_input_of_score_is_one_sentence(judged, tmp_path):
    options = ("--out", judged / "model", "--sets", judged / "sets")
    with pytest.raises(ValueError, match="gpt-5 did not judge imgedit; gpt-4.1 did"):
        call(score, "imgedit", *options, "--judge", "gpt-5")
    with pytest.raises(ValueError, match="does not exist"):
        call(score, "imgedit", *options, "--results", tmp_path / "none.json")
    with pytest.raises(ValueError, match="Nobody judged imgedit in .*; first: tbac-uniimage evaluate judge"):
        call(score, "imgedit", "--out", tmp_path / "other", "--sets", judged / "sets")
    with pytest.raises(ValueError, match="results of one set"):
        call(score, "imgedit", "geneval", *options, "--results", judged / "result.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no results of the official scorer"):
        call(score, "imgedit", *options, "--results", tmp_path / "list.json", "--judge", "other")
    assert not (judged / "model" / "imgedit" / "other").exists()


# tables


def figures(**values: float) -> dict:
    return {name: {"value": v, "error": 0.01, "low": v, "high": v} for name, v in values.items()}


def scored(folder, name="geneval", judge="mmdet Mask2Former", mode="as published", shown=None, **values):
    """A score of a set below a folder."""
    content = {
        "name": shown or name,
        "benchmark": name,
        "mode": mode,
        "unit": "share",
        "judge": judge,
        "modified": bool(shown and "modified" in shown),
        "figures": figures(**values),
    }
    path = folders.judged(folder, name, f"{judge} {mode} {shown}") / folders.SCORE
    folders.write_json(path, {"scores": [content], "rows": []})


def published(tmp_path, **changes) -> dict:
    row = {"set": "geneval", "model": "Theirs", "figures": {"overall": 0.82, "colors": 0.88}}
    row |= {
        "mode": "as published",
        "judge": "mmdet Mask2Former",
        "rewriting": "none",
        "source": "a paper",
    } | changes
    (tmp_path / "published.json").write_text(json.dumps({"rows": [row]}))
    return row


def made(tmp_path, *given):
    return table.make(given or [tmp_path / "ours"], tmp_path / "published.json")


def test_a_difference_is_ours_less_theirs(tmp_path):
    published(tmp_path)
    scored(tmp_path / "ours", overall=0.87, colors=0.85, position=0.5)
    (found,) = made(tmp_path)
    assert table.as_json(found)["published"][0]["differences"] == {
        "ours (mmdet Mask2Former)": {"overall": pytest.approx(0.05), "colors": pytest.approx(-0.03)}
    }
    lines = table.markdown(found).splitlines()
    assert lines[0] == "### geneval, as published (share)"
    assert lines[4] == (
        "| **ours** | 0.870 ± 0.010 | 0.850 ± 0.010 | 0.500 ± 0.010 | mmdet Mask2Former | none | here |  |"
    )
    assert lines[5] == (
        "| Theirs | 0.820 | 0.880 | – | mmdet Mask2Former | none | a paper | +0.050 ± 0.010 |"
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"judge": "transformers", "shown": "geneval (transformers)"}, {}),
        ({}, {"judge": "another"}),
        ({"judge": ""}, {"judge": ""}),  # not stated is not the same
    ],
)
def test_other_judges_have_no_difference(tmp_path, ours, theirs):
    published(tmp_path, **theirs)
    scored(tmp_path / "ours", overall=0.87, **ours)
    (found,) = made(tmp_path)
    assert [line.model for line in found.published] == ["Theirs"]
    assert table.as_json(found)["published"][0]["differences"] == {}
    assert table.markdown(found).splitlines()[5].endswith("| – |")


def test_modes_and_changed_prompts_never_share_a_table(tmp_path):
    published(tmp_path)
    scored(tmp_path / "ours", overall=0.87)
    scored(tmp_path / "ours", overall=0.9, mode="corrected", shown="geneval (corrected)")
    scored(tmp_path / "ours", overall=0.5, shown="geneval (modified)")
    found = {t.name: t for t in made(tmp_path)}
    assert {name: len(t.published) for name, t in found.items()} == {
        "geneval": 1,
        "geneval (corrected)": 0,
        "geneval (modified)": 0,
    }
    assert all(len(t.ours) == 1 for t in found.values())
    assert "less theirs" not in table.markdown(found["geneval (corrected)"])


def test_several_folders_stand_in_one_table(tmp_path):
    published(tmp_path)
    for name, value in (("a/run", 0.8), ("b/run", 0.9), ("other", 0.7)):
        scored(tmp_path / name, overall=value)
    write(tmp_path / "other" / "geneval", {"manifest.json": json.dumps({"model": "nano"})})
    (found,) = made(tmp_path, tmp_path / "a/run", tmp_path / "b/run", tmp_path / "other")
    assert [line.model for line in found.ours] == [
        f"run in {tmp_path / 'a/run'}",
        f"run in {tmp_path / 'b/run'}",
        "nano",
    ]
    assert len(table.as_json(found)["published"][0]["differences"]) == 3


def test_folders_without_scores_are_refused(tmp_path):
    published(tmp_path)
    with pytest.raises(ValueError, match="no scores; first: tbac-uniimage evaluate score"):
        made(tmp_path, tmp_path / "ours")


def test_published_figures_bear_names_that_the_sets_give():
    """A misspelt figure or judge would never find its counterpart."""
    from tbac_uniimage.training.evaluation import sets

    known = sets.all_sets()
    names = {
        "geneval": "single_object two_object counting colors position color_attr",
        "imgedit": "add adjust extract replace remove background style compose action",
        "wise-verified": "CULTURE TIME SPACE BIOLOGY PHYSICS CHEMISTRY",
    }
    rows = json.loads(table.PUBLISHED.read_text(encoding="utf-8"))["rows"]
    assert {"TBAC-UniImage-3B", "BAGEL", "DeepGen 1.0 SFT"} <= {row["model"] for row in rows}
    for row in rows:
        assert set(row) == {"set", "model", "figures", "mode", "judge", "rewriting", "source"}
        assert row["set"] in known and row["mode"] == "as published" and row["source"]
        allowed = {"overall", *names.get(row["set"].removesuffix("-rewritten"), "").split()}
        assert all(name in allowed or "overall (" in name for name in row["figures"])
        if known[row["set"]].judge is None and row["judge"]:
            assert row["judge"] == known[row["set"]].official


# sheets


def test_the_worst_are_shown_with_their_source(judged, tmp_path):
    (path,) = sheet.draw_all([judged / "model"], judged / "sets", tmp_path / "sheets")
    with Image.open(path) as canvas:
        canvas = canvas.convert("RGB")
    width = 2 * sheet.CELL + sheet.GAP
    assert canvas.width == 2 * width + sheet.GAP
    rows = canvas.height // 2
    for place, n in enumerate((3, 2, 1)):  # the best has nothing wrong and is not shown
        x, y = sheet.GAP + place % 2 * width, sheet.GAP + place // 2 * rows
        assert canvas.getpixel((x + 20, y + 20)) == (250, 250, 0)
        assert canvas.getpixel((x + sheet.CELL + 20, y + 20)) == (0, 0, 60 * n)
    text = canvas.crop((0, sheet.GAP + sheet.CELL, canvas.width, rows)).getcolors(1 << 24)
    assert {sheet.BLACK, sheet.RED} <= {colour for _, colour in text}


def test_what_the_judge_said_stands_with_the_row(judged):
    rows = json.loads((judged / "model" / "imgedit" / "gpt-4.1" / folders.SCORE).read_text())["rows"]
    assert rows[1]["said"] == SAID.format(4)
    many = [Answer(f"a/{n}", "a", text="yes") for n in range(3)] + [
        Answer("b/0", "b", text="fine"),
        Answer("c", "c"),
    ]
    assert score.words_of(many) == {"b": "fine"}


def test_failures_are_the_worst_first_and_no_more_than_fit():
    rows = [{"key": f"{n:03}", "good": (n % 10) / 9} for n in range(100)]
    found = sheet.failures(rows)
    assert len(found) == sheet.MOST and [row["good"] for row in found] == sorted(row["good"] for row in found)
    assert found[0]["key"] == "000" and all(row["good"] < 1 for row in found)


def test_pictures_that_were_drawn_anew_have_no_score(judged):
    from tbac_uniimage.training.evaluation.manifest import digest_of

    folder = judged / "model" / "imgedit"
    settings = {"seed": 0}
    folders.write_json(folder / "manifest.json", {"model": "nano", "settings": settings})
    about = json.loads((folder / "gpt-4.1" / "judge.json").read_text()) | {"pictures": digest_of(settings)}
    folders.write_json(folder / "gpt-4.1" / "judge.json", about)
    call(score, "imgedit", "--out", judged / "model", "--sets", judged / "sets")
    folders.write_json(folder / "manifest.json", {"model": "nano", "settings": {"seed": 1}})
    with pytest.raises(ValueError, match="is about other pictures than those in .*; judge them again"):
        call(score, "imgedit", "--out", judged / "model", "--sets", judged / "sets")
