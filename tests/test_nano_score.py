"""The sprite-scene score: verdicts to the table, what is not drawn twice, perfect models and blind ones."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nano_drawings import drawings, needs_art  # noqa: F401  a fixture
from PIL import Image
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.nano.domain import art
from tbac_uniimage.training.nano.domain.render import render
from tbac_uniimage.training.nano.domain.scene import Scene
from tbac_uniimage.training.nano.judge.pictures import scaled
from tbac_uniimage.training.nano.score import (
    cases,
    command,
    drawing,
    intervals,
    judging,
    reader,
    rows,
    sheet,
    store,
    table,
)
from tbac_uniimage.training.nano.score.drawing import Job, Model

ASSETS = Path(__file__).parents[1] / "assets" / "nano"
NOTHING = Scene("", "white", ())


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parsed = parser.parse_args(argv)
    command.complete(parsed)
    return parsed


def true_eye(kinds, samples):
    """An eye that knows every true picture and sees nothing else."""
    known = {}
    for kind in kinds:
        for case in cases.collect(kind, [0], samples):
            known[render(case.wanted).tobytes()] = case.wanted
            if case.group in cases.EDITED:
                known[render(case.asked.source).tobytes()] = case.asked.source
    return lambda pictures: [known.get(picture.tobytes(), NOTHING) for picture in pictures]


def artist(of=lambda case: case, drawn=None) -> Model:
    """A model that gives the true picture or answer of the case that `of` makes of the one asked for."""
    answers = {
        (render(case.wanted).tobytes(), case.asked.text): of(case).asked.answer
        for kind in cases.GROUPS["ask"]
        for case in cases.collect(kind, [0], 8)
    }

    def draw(jobs):
        if drawn is not None:
            drawn.extend(jobs)
        return [render(of(job.case).wanted) for job in jobs]

    return Model(draw, lambda pictures: pictures, lambda picture, text: answers[picture.tobytes(), text])


def next_case(samples):
    """The case after the one asked for, the first after the last."""
    following = {}
    for kind in cases.KINDS:
        own = cases.collect(kind, [0], samples)
        following |= zip(own, [*own[1:], own[0]], strict=True)
    return following.__getitem__


# --- what is asked


@pytest.mark.parametrize("kind", cases.KINDS)
def test_no_prompt_twice_and_more_samples_only_add(kind):
    many, few = cases.collect(kind, [0, 1], 40), cases.collect(kind, [0], 15)
    assert len(many) == 80 and len({case.unit for case in many}) == 80
    assert many[:15] == few and {case.kind for case in many} == {kind}
    assert len({case.name for case in many}) == 80


def test_texts_repeat_where_there_are_no_others(monkeypatch):
    single = cases.one("single", 0, 0)
    monkeypatch.setitem(cases.DRAW, "draw", lambda seed, split, number, kind: single.asked)
    repeated = cases.collect("single", [0], 4)
    assert [case.number for case in repeated] == [0, 1, 2, 3] and len({case.unit for case in repeated}) == 1


def test_kinds_are_chosen_by_name_and_by_group():
    assert cases.choose([]) == list(cases.KINDS)
    assert cases.choose(["edit-add", "single"]) == ["single", "edit-add"]
    assert cases.choose(["ask", "text"]) == ["text", *cases.GROUPS["ask"]]
    with pytest.raises(
        ValueError, match="--only color-me is no kind of the score: use draw, edit, masked, auto, ask or one"
    ):
        cases.choose(["color-me"])


# --- intervals


def test_wilson():
    assert intervals.wilson(0.5, 64) == pytest.approx((0.3810, 0.6190), abs=1e-4)
    assert intervals.wilson(0.0, 200) == pytest.approx((0, 0.01885), abs=1e-4)
    low, high = intervals.wilson(1.0, 200)
    assert high == 1 and low == pytest.approx(1 - 0.01885, abs=1e-4)


def test_pictures_of_one_prompt_count_as_one_where_they_agree():
    alone = [[1.0]] * 30 + [[0.0]] * 10
    fourfold = [[v] * 4 for [v] in alone]
    assert intervals.mean(fourfold) == 0.75
    assert intervals.variance(fourfold) == pytest.approx(intervals.variance(alone))
    assert intervals.variance(alone) == pytest.approx(0.75 * 0.25 / 39)
    assert intervals.effective(fourfold) == pytest.approx(39)
    assert intervals.of_share(fourfold) == pytest.approx(intervals.wilson(0.75, 39))


def test_pictures_that_differ_within_a_prompt_tell_more_but_never_more_than_they_are():
    halves = [[1.0, 1.0, 0.0, 0.0]] * 40
    assert intervals.effective(halves) == 160
    assert intervals.effective([[1.0] * 4] * 40) == 40 and intervals.effective([[0.0] * 4] * 40) == 40
    mixed = [[1.0, 0.0]] * 10 + [[1.0, 1.0]] * 10
    assert 20 < intervals.effective(mixed) <= 40


def test_variance_of_clusters_of_different_sizes():
    values = [[1.0, 1.0, 0.0], [0.0]]  # mean 0.5; sums less 0.5 per value: 0.5 and -0.5
    assert intervals.mean(values) == 0.5
    assert intervals.variance(values) == pytest.approx((0.25 + 0.25) * 2 / 1 / 16)
    assert math.isnan(intervals.variance([[1.0]]))


def test_intervals_of_means_and_of_averages():
    low, high = intervals.of_mean([[10.0], [14.0], [12.0], [12.0]])
    half = 1.959964 * math.sqrt(8 / 3 / 4)
    assert (low, high) == pytest.approx((12 - half, 12 + half))
    assert intervals.of_average([(0.5, 0.4, 0.6), (0.9, 0.6, 1.0)]) == pytest.approx(
        (0.7 - math.sqrt(0.01 + 0.09) / 2, 0.7 + math.sqrt(0.01 + 0.01) / 2)
    )


# --- from verdicts to figures


def judged(kind, verdicts, **views):
    own = cases.collect(kind, [0], len(verdicts))
    return judging.Judged(own, [[]] * len(own), [], verdicts, views)


def test_a_row_is_the_mean_of_its_verdicts():
    part = judged(
        "single",
        [[{"right": 1.0}, {"right": 0.0}], [{"right": 1.0, "style": 0.0}, {"right": 1.0, "style": 1.0}]],
        truth=[[{"right": 1.0}], [{"right": 0.0}]],
    )
    one = rows.row("draw", "single object", [part], "right")
    assert (one.prompts, one.pictures, one.main.value, one.main.beside) == (2, 4, 0.75, {"truth": 0.5})
    style = rows.row("draw", "style", [part], "style")
    assert (style.prompts, style.scenes, style.pictures, style.main.value) == (1, 1, 2, 0.5)


def test_rows_and_their_overall():
    shares = {"single": 1.0, "two": 0.5, "count": 0.5, "color": 1.0, "position": 0.0, "binding": 0.0}
    parts = {kind: judged(kind, [[{"right": v}], [{"right": v}]]) for kind, v in shares.items()}
    made = {row.name: row for row in rows.make_rows(parts)}
    overall = made["overall: mean of six"]
    assert overall.main.value == 0.5 and (overall.prompts, overall.pictures) == (12, 12)
    limits = [(row.main.value, row.main.low, row.main.high) for row in made.values() if row is not overall]
    assert (overall.main.low, overall.main.high) == intervals.of_average(limits)
    del parts["two"]
    assert "overall: mean of six" not in {row.name for row in rows.make_rows(parts)}


def test_a_spoiled_prompt_is_wrong_in_every_measure():
    for kind in cases.GROUPS["draw"]:
        for case in cases.collect(kind, [0], 20):
            assert set(judging.verdict(case.asked, case.wanted).values()) == {1.0}
            wrong = judging.spoiled_verdict(judging.Random(0), case.asked, case.wanted)
            assert wrong["right"] == 0 and set(wrong.values()) == {0.0}


def test_the_table_has_a_line_per_row_and_edits_twice():
    figure = rows.Figure(0.75, 0.5, 0.875, {"truth": 1.0, "chance": 0.04})
    kept = {"kept dB": rows.Figure(21.26, 20, 22, {"rebuilt": 26.6})}
    made = [
        rows.Row("draw", "counting", 20, 8, 80, figure),
        rows.Row("edit", "add", 20, 19, 20, figure, kept),
        rows.Row("masked", "add", 20, 19, 20, figure, {}),
    ]
    lines = table.text(made, ["model x"], ["a note"]).splitlines()
    assert lines[:2] == ["sprite-scene score", "model x"]
    heads = [line.split("prompts")[0].strip() for line in lines if " prompts " in line and "model" in line]
    assert heads == ["text to image", "editing", "editing in a mask"]
    [counting] = [line.split() for line in lines if line.startswith("counting")]
    assert counting[1:] == ["20", "8", "80", "0.750", "0.500", "to", "0.875", "1.000", "–", "–", "–", "0.040"]
    add, masked = (line.split() for line in lines if line.startswith("add"))
    assert add[-4:] == ["21.3", "26.6", "–", "–"] and masked[-4:] == ["–"] * 4
    assert "a note" in lines and not any("understanding" in line for line in lines)
    assert (
        table.figures([rows.Row("ask", "x", 0, 0, 0, rows.Figure(math.nan, 0, 1))])[0]["main"]["value"]
        is None
    )


# --- whole scores without weights


@pytest.fixture
def small(drawings):  # noqa: F811
    """Scores all kinds of a made-up model on eight prompts each."""
    chosen = options("--samples", "8", "--pictures", "2")
    eye = true_eye([kind for kind, group in cases.KINDS.items() if group != "ask"], 8)
    return lambda folder, model, kinds=tuple(cases.KINDS): command.score(kinds, chosen, folder, model, eye)


@pytest.mark.slow
def test_a_perfect_model_scores_one(small, tmp_path):
    made = rows.make_rows(small(tmp_path, artist()))
    names = {row.name for row in made if row.name.startswith("overall")}
    assert names == {"overall: mean of six", "overall: mean of 9", "overall: mean of 8"}
    for row in made:
        assert row.main.value == 1 and row.main.high == 1 and row.main.beside["chance"] < 0.8, row.name
        if row.group != "ask":
            assert row.main.beside["truth"] == row.main.beside["rebuilt"] == 1
            assert row.main.beside.get("changed", 0) == 0, row.name
        for what, figure in row.kept.items():
            assert figure.value == pytest.approx(60 if what == "kept dB" else 1)
    lines = [json.loads(line) for line in (tmp_path / "verdicts" / "edit-add.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all(line["passed"] and (tmp_path / line["picture"]).exists() for line in lines)
    assert {path.stem for path in (tmp_path / "sheets").iterdir()} == set(cases.KINDS)


@pytest.mark.slow
def test_a_model_that_draws_what_others_were_asked_scores_chance(small, tmp_path):
    made = rows.make_rows(small(tmp_path, artist(next_case(8))))
    for row in made:
        assert row.main.value == pytest.approx(row.main.beside["shuffled"])
    overall, editing, masked, auto, answers = (row.main for row in made if row.name.startswith("overall"))
    assert overall.value < 0.1 and overall.beside["chance"] < 0.1
    assert editing.value == masked.value == auto.value < 0.05 and answers.value < 0.5


def test_nothing_is_drawn_twice(small, tmp_path):
    drawn: list[Job] = []
    model = artist(drawn=drawn)
    small(tmp_path, model, ["single", "edit-add", "ask-what"])
    assert len(drawn) == 8 * 2 + 8
    first = (tmp_path / "verdicts" / "single.jsonl").read_text()
    drawn.clear()
    unasked = replace(model, answer=lambda picture, text: pytest.fail("asked again"))
    small(tmp_path, unasked, ["single", "edit-add", "ask-what"])
    assert not drawn and (tmp_path / "verdicts" / "single.jsonl").read_text() == first
    lost = Job(cases.collect("single", [0], 8)[3], 1)
    store.picture_path(tmp_path, lost).unlink()
    small(tmp_path, unasked, ["single"])
    assert drawn == [lost] and (tmp_path / "verdicts" / "single.jsonl").read_text() == first


def test_a_folder_holds_pictures_of_one_model(tmp_path):
    store.claim(tmp_path, {"weights": "abc", "steps": 20})
    store.claim(tmp_path, {"weights": "abc", "steps": 20})
    with pytest.raises(ValueError, match="holds pictures with steps 20, not 30: give another folder with -o"):
        store.claim(tmp_path, {"weights": "abc", "steps": 30})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; give a folder"):
        store.claim(tmp_path / "file", {})


def test_the_fingerprint_is_of_the_model_and_not_of_its_judge(tmp_path):
    for part in ("vae", "judge"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(b"1")
    first = store.fingerprint(tmp_path)
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"2")
    assert store.fingerprint(tmp_path) == first
    (tmp_path / "vae" / "model.safetensors").write_bytes(b"2")
    assert store.fingerprint(tmp_path) != first


# --- drawing with a pipeline


class Pipeline:
    """Draws flat pictures whose red is the number of the prompt and whose green is the first of its noise."""

    transformer = SimpleNamespace(config=SimpleNamespace(sample_size=8))
    vae = SimpleNamespace(config=SimpleNamespace(latent_channels=2))

    def __init__(self, factor: int = 8) -> None:
        self.vae_scale_factor = factor
        self.calls = []

    def __call__(self, prompt, latents, num_images_per_prompt, **settings):
        self.calls.append((list(prompt), num_images_per_prompt, settings))
        assert latents.shape == (len(prompt) * num_images_per_prompt, 2, 8, 8)
        greens = (latents[:, 0, 0, 0].sigmoid() * 255).int().tolist()
        reds = [len(text) for text in prompt for _ in range(num_images_per_prompt)]
        colours = [(red, green, 0) for red, green in zip(reds, greens, strict=True)]
        size = settings["width"], settings["height"]
        return SimpleNamespace(images=[Image.new("RGB", size, colour) for colour in colours])


def test_a_picture_depends_on_its_own_noise_whatever_the_batch():
    own = cases.collect("single", [0], 3)
    jobs = [Job(case, copy) for case in own for copy in range(2)]
    pipeline = Pipeline()
    together = drawing.draw(pipeline, jobs, options("--guidance", "5"))
    assert pipeline.calls[0][:2] == ([case.asked.text for case in own], 2)
    assert pipeline.calls[0][2]["guidance_scale"] == 5 and "image" not in pipeline.calls[0][2]
    assert [picture[0, 0, 0] for picture in together] == [len(job.case.asked.text) for job in jobs]
    assert len({int(picture[0, 0, 1]) for picture in together}) > 1
    mixed = drawing.draw(pipeline, [jobs[5], jobs[0], jobs[1]], options())  # one copy, and two of another
    assert np.array_equal(mixed, [together[5], together[0], together[1]])


def test_edits_are_given_their_source(drawings):  # noqa: F811
    own = cases.collect("edit-add", [0], 2)
    pipeline = Pipeline()
    drawing.draw(pipeline, [Job(case, 0) for case in own], options("--image-guidance", "1.5"))
    settings = pipeline.calls[0][2]
    assert (settings["guidance_scale"], settings["image_guidance_scale"]) == (2.0, 1.5)
    assert np.array_equal(np.asarray(settings["image"][1][0]), render(own[1].asked.source))
    assert "callback_on_step_end" not in settings


def test_a_model_of_twice_the_size_is_shown_and_shows_its_own(drawings):  # noqa: F811
    [edit] = cases.collect("masked-add", [0], 1)
    pipeline = Pipeline(factor=16)
    pipeline.vae = Vae()
    pipeline.vae.encode = lambda pictures: SimpleNamespace(latent=pictures[:, :2, ::16, ::16])
    model = drawing.from_pipeline(pipeline, options())
    [picture] = model.draw([Job(edit, 0)])
    assert model.size == 128 and picture.shape == (128, 128, 3)
    [[source]] = pipeline.calls[0][2]["image"]
    assert np.array_equal(np.asarray(source), render(edit.asked.source, 128))
    assert drawing.changeable(edit.asked, 128, 8).shape == (1, 8, 8)
    with pytest.raises(ValueError, match="draws pictures of 256 pixels: give a nano model"):
        drawing.from_pipeline(Pipeline(factor=32), options())


def test_pictures_of_twice_the_size_are_judged_at_the_judges(drawings):  # noqa: F811
    """What is truly drawn counts and keeps all, whatever its size; its sheet shows it as it is."""
    kinds = ["single", "edit-add"]
    known = {}
    for case in (case for kind in kinds for case in cases.collect(kind, [0], 4)):
        scenes = [case.wanted, *([case.asked.source] if case.group == "edit" else [])]
        known |= {scaled(render(scene, 128)).tobytes(): scene for scene in scenes}

    def eye(pictures):
        return [known.get(scaled(picture).tobytes(), NOTHING) for picture in pictures]

    for kind in kinds:
        own = cases.collect(kind, [0], 4)
        shown = [[render(case.wanted, 128)] for case in own]
        part = judging.judge_pictures(own, shown, eye, lambda pictures: pictures)
        for verdicts in (part.model, part.views["truth"], part.views["rebuilt"]):
            assert all(verdict["right"] == 1 for [verdict] in verdicts)
            assert all(verdict.get("kept dB", 60) == 60 for [verdict] in verdicts)
        assert not any(verdict["right"] for [verdict] in part.views["changed"])
        sheet.kind_sheet(kind, part)
    [tile, *_] = sheet.tiles("edit-add", part)
    assert tile.picture.shape == (128, 3 * 128 + 2 * sheet.BETWEEN, 3)
    assert sheet.framed(tile) == (3 * 128 + 2 * sheet.BETWEEN) * sheet.TALL // 128 + 2 * sheet.FRAME


def test_what_may_change_is_what_the_edit_touches(drawings):  # noqa: F811
    for number in range(30):
        edit = cases.one("masked-remove", 0, number).asked
        mask = drawing.changeable(edit, 64, 8)
        differs = (render(edit.source) != render(edit.target)).any(-1)
        pixels = mask[0].bool().numpy().repeat(8, 0).repeat(8, 1)
        assert mask.shape == (1, 8, 8) and pixels[differs].all() and 0 < mask.mean() < 0.9
        cells = differs.reshape(8, 8, 8, 8).any((1, 3))
        assert np.array_equal(mask[0].bool().numpy(), cells)


def test_a_masked_edit_is_the_same_edit_with_the_same_noise(drawings):  # noqa: F811
    groups = {group: cases.collect(f"{group}-add", [0], 3) for group in ("edit", "masked", "auto")}
    plain = groups["edit"]
    masks = {}
    for group, own in groups.items():
        assert [case.asked for case in own] == [case.asked for case in plain]
        assert [Job(case, 0).noise_seed for case in own] == [Job(case, 0).noise_seed for case in plain]
        pipeline = Pipeline()
        drawing.draw(pipeline, [Job(case, 0) for case in own], options())
        masks[group] = pipeline.calls[0][2].get("mask")
    assert masks["edit"] is None and masks["auto"] == "auto"
    cells = [drawing.changeable(case.asked, 64, 8)[0] for case in plain]
    expected = torch.stack([one.repeat_interleave(8, 0).repeat_interleave(8, 1) for one in cells])
    assert torch.equal(masks["masked"], expected)


class Vae:
    """Its latents are every eighth pixel of two channels."""

    device, dtype = "cpu", torch.float32
    config = SimpleNamespace(scaling_factor=0.5, latent_channels=2)

    def encode(self, pictures):
        return SimpleNamespace(latent=pictures[:, :2, ::8, ::8])


# --- sheets


def test_sheets_frame_mark_and_name(small, tmp_path):
    part = small(tmp_path, artist(), ["single", "edit-add", "dense"])
    wrong = replace(part["single"], model=[[{"right": 0.0}]] * 8, seen=[[NOTHING]] * 8)
    passes, failures = sheet.kind_sheet("single", part["single"]), sheet.kind_sheet("single", wrong)
    at = (sheet.GAP, sheet.GAP + sheet.TITLE + sheet.GAP)
    assert passes.getpixel(at) == sheet.GREEN and failures.getpixel(at) == sheet.RED
    assert failures.height > passes.height  # what was seen takes lines of its own
    assert {tile.seen for tile in sheet.tiles("single", wrong)} == {"seen: nothing, on white"}
    [edit, *_] = sheet.tiles("edit-add", part["edit-add"])
    assert edit.picture.shape == (64, 3 * 64 + 2 * sheet.BETWEEN, 3) and edit.seen == ""
    assert sheet.missing(part["dense"].cases[0].asked, NOTHING).startswith("1")
    assert sheet.group_sheet(part, "draw").width == sheet.WIDTH


# --- the second reader


def test_a_second_reader_reads_the_models_pictures_and_true_ones(small, tmp_path, monkeypatch):
    """It reads every word but that of the first case; the model draws the next case's."""
    first, *_ = own = cases.collect("text", [0], 8)
    known = {render(case.wanted).tobytes(): case.wanted.word.letters for case in own}
    known[render(first.wanted).tobytes()] = ""
    model = artist(next_case(8))
    part = small(tmp_path, model, ["text"])["text"]
    assert "text: words, RapidOCR" not in {row.name for row in rows.make_rows({"text": part})}
    judging.read_words(part, lambda picture: known[picture.tobytes()], lambda pictures: pictures[::-1])
    [read] = [row for row in rows.make_rows({"text": part}) if row.name == "text: words, RapidOCR"]
    letters = [case.wanted.word.letters for case in own]
    drawn = ["" if i == 7 else letters[i + 1] for i in range(8)]  # the last draws the first one's
    assert read.main.value == sum(a == b for a, b in zip(drawn, letters, strict=True)) / 8
    assert read.main.beside["truth"] == 7 / 8
    backwards = [known[render(case.wanted).tobytes()] for case in own][::-1]
    assert read.main.beside["rebuilt"] == sum(a == b for a, b in zip(backwards, letters, strict=True)) / 8
    assert set(read.main.beside) == {"truth", "rebuilt"}


def test_letters_are_read_from_the_left_and_signs_left_out():
    assert reader.in_order([(40.0, "l-o!"), (3.0, "HE L"), (90.5, "十")]) == "HELLO"
    assert reader.in_order([]) == ""


def test_without_rapidocr_the_score_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    assert main(["score", "--ocr", "--only", "single"]) == 2
    said = "--ocr needs RapidOCR; install it with `pip install rapidocr-onnxruntime`"
    assert said in capsys.readouterr().err


@needs_art
def test_rapidocr_reads_most_words_at_either_size():
    pytest.importorskip("rapidocr_onnxruntime")
    read = reader.load()
    own = cases.collect("text", [0], 8)
    for size in (64, 128):
        right = [read(render(case.wanted, size)) == case.wanted.word.letters for case in own]
        assert sum(right) >= 6


# --- the command


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--samples", "1"], "--samples is 1: give at least 2"),
        (["--edit-pictures", "0"], "--edit-pictures is 0: give at least 1"),
        (["--guidance", "nan"], "--guidance is nan: give a finite number of at least 0"),
        (["--seeds", "1", "1"], "--seeds names a seed twice"),
        (["--json", "."], "--json . is a folder: give a file"),
        (["--model", "nowhere"], "there is no model folder at nowhere: give one with --model"),
        (["--only", "cats"], "--only cats is no kind of the score"),
        (["--judge", "nowhere", "--only", "single"], "the score's detector is not at nowhere: train it with"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_loaded(argv, expected, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "load", lambda *_: pytest.fail("the model was loaded"))
    assert main(["score", *argv]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def no_drawings():
    raise FileNotFoundError("the drawings are not at nowhere: fetch them")


def test_without_the_drawings_only_prompts_are_scored(monkeypatch):
    monkeypatch.setattr(art, "load", no_drawings)
    assert command.choose_kinds(options()) == (list(cases.GROUPS["draw"]), False)
    assert command.choose_kinds(options("--only", "two")) == (["two"], False)
    with pytest.raises(FileNotFoundError, match="fetch them"):
        command.choose_kinds(options("--only", "edit-add"))


@pytest.mark.slow
@pytest.mark.skipif(not (ASSETS / "judge").exists(), reason="the judge's weights are not there")
def test_the_embedded_model_is_scored(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(art, "load", no_drawings)
    argv = ["score", "--samples", "3", "--pictures", "1", "--steps", "4", "--only", "single", "two"]
    assert (
        main([*argv, "-o", str(tmp_path / "s"), "--json", str(tmp_path / "f.json"), "--device", "cpu"]) == 0
    )
    printed = capsys.readouterr().out
    assert "single object" in printed and "Edits, questions and every column but chance" in printed
    stored = json.loads((tmp_path / "f.json").read_text())
    assert [row["name"] for row in stored["rows"]] == ["single object", "two objects", "background", "style"]
    assert all(0 <= row["main"]["value"] <= 1 for row in stored["rows"])
    assert len(list((tmp_path / "s").rglob("pictures/*/*.png"))) == 6
    assert (tmp_path / "s" / "sheets" / "draw.png").exists()
