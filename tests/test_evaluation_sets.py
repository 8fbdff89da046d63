"""Every set on a made-up checkout in the published format: items, requests, answers, official results."""

import csv
import io
import json
import math
from collections.abc import Mapping

import pytest
from data_files import picture, write
from hypothesis import given, settings
from hypothesis import strategies as st
from tbac_uniimage.training.evaluation import scoring, sets
from tbac_uniimage.training.evaluation.benchmark import (
    AS_PUBLISHED,
    CORRECTED,
    Answer,
    Checkout,
    Shown,
    Unreadable,
)
from tbac_uniimage.training.evaluation.reading import filled, messages
from tbac_uniimage.training.evaluation.sets import dpg, gedit, imgedit, tiif


def checked_out(tmp_path, benchmark, files: Mapping[str, Mapping[str, bytes | str]]) -> Checkout:
    """The files of each repository, by its name."""
    roots = {}
    for source in benchmark.sources:
        name = source.repo.rpartition("/")[2]
        roots[source.repo] = write(tmp_path / name, files[name])
    return Checkout(roots, "digest", modified=True)


def lines(*records: Mapping) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def answers(*found: Answer) -> dict[str, Answer]:
    return {answer.request: answer for answer in found}


def values(found: scoring.Score) -> dict[str, float]:
    return {name: figure.value for name, figure in found.figures.items()}


def test_every_set_is_found_by_being_there_and_is_whole():
    found = sets.all_sets()
    wanted = "dpg gedit geneval geneval-rewritten geneval2 imgedit tiif tiif-test wise wise-verified"
    assert set(wanted.split()) <= set(found)
    for name, benchmark in found.items():
        assert benchmark.name == name and benchmark.title and benchmark.unit and benchmark.official
        assert benchmark.modes[0] == AS_PUBLISHED
        for source in benchmark.sources:
            assert source.repo.split(":")[0] in ("github", "hub")
            if source.repo.startswith("github:"):
                assert len(source.commit) == 40 and all(file.digest for file in source.files)
    with pytest.raises(ValueError, match="There is no set 'rise'; there are dpg, gedit, geneval,"):
        sets.find("rise")


# GenEval


COWS = [
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": "a photo of two cows"},
]


@pytest.fixture
def geneval(tmp_path):
    benchmark = sets.find("geneval")
    files = {"prompts/evaluation_metadata.jsonl": lines(*COWS), "evaluation/object_names.txt": "cow\n"}
    return benchmark, checked_out(tmp_path, benchmark, {"geneval": files})


def test_geneval_lies_as_its_scorer_wants_it(geneval):
    benchmark, checkout = geneval
    first, second = benchmark.items(checkout)
    assert [p.path for p in second.pictures] == [f"00001/samples/000{n}.png" for n in range(4)]
    assert [p.samples for p in second.pictures] == [(0,), (1,), (2,), (3,)]
    assert (first.key, first.prompt, first.group, first.source) == (
        "00000",
        COWS[0]["prompt"],
        "single_object",
        None,
    )
    assert json.loads(benchmark.companions(second)["00001/metadata.jsonl"]) == COWS[1]
    assert benchmark.requests(first, checkout) == []


def test_geneval_takes_the_official_results(geneval, tmp_path):
    benchmark, checkout = geneval
    items = benchmark.items(checkout)
    right = {"00000": (1, 1, 0, 1), "00001": (0, 0, 1, 0)}
    results = [
        {
            "filename": f"out/{key}/samples/{n:04}.png",
            "correct": bool(good),
            "reason": "" if good else f"{key} {n}",
        }
        for key, goods in right.items()
        for n, good in enumerate(goods)
    ]
    path = tmp_path / "results.jsonl"
    path.write_text(lines(*results))
    found, rows = scoring.score(
        benchmark, items, checkout, answers(*benchmark.imported(path, items)), benchmark.official
    )
    assert values(found) == {"overall": 0.5, "single_object": 0.75, "counting": 0.25}
    assert found.name == "geneval (modified)"
    assert [row.seen for row in rows] == ["00000 2", "00001 0; 00001 1; 00001 3"]
    path.write_text(lines({"filename": "00007/samples/0000.png", "correct": True, "reason": ""}))
    with pytest.raises(ValueError, match="00007/samples/0000.png, which is no picture of geneval"):
        benchmark.imported(path, items)


# DPG-Bench


TABLE = [
    ("alpha", 1, "0", "entity - whole (house)", "Is there a house?"),
    ("alpha", 2, "1", "attribute - color (house, red)", "Is the house red, or not?"),
    ("beta", 1, "0", "entity - whole (boat)", "Is there a boat?"),
    ("beta", 2, "0,0", "global - (calm)", "Is it calm?"),
    ("gamma", 1, "0", "entity - whole (lamp)", "Is there a lamp?"),
    ("gamma", 2, "1", "entity - state (lamp, lit)", "Is it lit?"),
]


@pytest.fixture
def dpg_bench(tmp_path):
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(["item_id", "proposition_id", "dependency", "tuple", "question_natural_language"])
    table.writerows(TABLE)
    prompts = {f"dpg_bench/prompts/{name}.txt": f"A {name}.\n" for name in ("alpha", "beta", "gamma")}
    benchmark = sets.find("dpg")
    files = {"ELLA": {"dpg_bench/dpg_bench.csv": out.getvalue()} | prompts}
    return benchmark, checked_out(tmp_path, benchmark, files)


def test_dpg_draws_four_samples_into_a_grid_and_asks_about_each(dpg_bench):
    benchmark, checkout = dpg_bench
    items = benchmark.items(checkout)
    assert [(i.key, i.prompt, i.pictures[0].path, i.pictures[0].samples) for i in items] == [
        (name, f"A {name}.", f"{name}.png", (0, 1, 2, 3)) for name in ("alpha", "beta", "gamma")
    ]
    asked = benchmark.requests(items[0], checkout)
    assert [r.key for r in asked] == [f"alpha/{tile}/{n}" for tile in range(4) for n in (1, 2)]
    assert asked[3].parts[0] == Shown("alpha.png", tile=1) and asked[3].parts[1].startswith(
        "Is the house red, or not?"
    )
    assert [benchmark.lost(item) for item in items] == [True, False, False]
    assert not any(benchmark.lost(item, CORRECTED) for item in items)


SAID = {  # item -> tile -> answers by question
    "alpha": [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("yes", "yes")],
    "beta": [("yes", "yes"), ("no", "yes"), ("no", "no"), ("yes", "no")],
    "gamma": [("yes", "yes"), ("no", "yes"), ("yes", "no"), ("no", "yes")],
}


def test_dpg_as_published_and_corrected_from_the_same_answers(dpg_bench):
    benchmark, checkout = dpg_bench
    items = benchmark.items(checkout)
    said = answers(
        *(
            Answer(f"{key}/{tile}/{n}", key, text=f"{word.title()}." if tile else word)
            for key, tiles in SAID.items()
            for tile, words in enumerate(tiles)
            for n, word in enumerate(words, 1)
        )
    )
    found, _ = scoring.score(benchmark, items, checkout, said, "some chat model")
    # alpha leaves the mean; beta 1, .5, 0, .5; gamma 1, 0 (lit needs the lamp), .5, 0; last tile's categories
    assert values(found) == {
        "overall": pytest.approx(100 * (0.5 + 0.375) / 2),
        "entity": pytest.approx(100 * 2 / 3),
        "global": 0,
        "entity - state": 100,
        "entity - whole": 50,
        "global -": 0,
    }
    assert (found.rows, found.of, found.name) == (2, 3, "dpg (some chat model) (modified)")
    found, _ = scoring.score(benchmark, items, checkout, said, "some chat model", CORRECTED)
    # alpha 1, .5, 0, 1
    assert values(found) == {
        "overall": pytest.approx(100 * (0.625 + 0.5 + 0.375) / 3),
        "entity": pytest.approx(100 * 8 / 16),
        "attribute": pytest.approx(50),
        "global": pytest.approx(50),
        "attribute - color": pytest.approx(50),
        "entity - state": pytest.approx(25),
        "entity - whole": pytest.approx(100 * 7 / 12),
        "global -": pytest.approx(50),
    }


def test_dpg_takes_both_official_files(dpg_bench, tmp_path):
    benchmark, checkout = dpg_bench
    items = benchmark.items(checkout)
    results, detail = tmp_path / "x_results.txt", tmp_path / "x_results_detail.txt"
    results.write_text(
        "imgs/gamma.png, 1.0, 0.0, 0.5, 0.0, 0.375\nimgs/beta.png, 1.0, 0.5, 0.0, 0.5, 0.5\n"
        "Model: imgs\nL1 category scores:\n\tentity: 50.0\nDPG-Bench score: 43.75\n"
    )
    found, rows = scoring.score(
        benchmark, items, checkout, answers(*benchmark.imported(results, items)), "mPLUG"
    )
    assert values(found) == {"overall": 43.75} and found.name == "dpg (modified)"
    with pytest.raises(ValueError, match="1 of 3 items lack answers"):  # tiles cannot be corrected
        scoring.score(
            benchmark, items, checkout, answers(*benchmark.imported(results, items)), "mPLUG", CORRECTED
        )
    boxes = [(0, 0, 64, 64), (64, 0, 128, 64), (0, 64, 64, 128), (64, 64, 128, 128)]
    questions = {name: [row[4] for row in TABLE if row[0] == name] for name in ("beta", "gamma")}
    written = [
        f"imgs/{name}.png, {box}, {question}, {word}"
        for name in ("gamma", "beta")
        for box, words in zip(boxes, SAID[name], strict=True)
        for question, word in zip(questions[name], words, strict=True)
    ]
    detail.write_text("\n".join(written) + "\n")
    found, _ = scoring.score(benchmark, items, checkout, answers(*benchmark.imported(detail, items)), "mPLUG")
    assert values(found)["overall"] == 43.75 and values(found)["entity"] == pytest.approx(100 * 2 / 3)
    with pytest.raises(
        ValueError, match=r"1 of 3 items lack answers \(alpha\)"
    ):  # nobody asked its first question
        scoring.score(
            benchmark, items, checkout, answers(*benchmark.imported(detail, items)), "mPLUG", CORRECTED
        )
    detail.write_text(written[0])
    with pytest.raises(ValueError, match="1 answers for gamma, which has 2 questions"):
        benchmark.imported(detail, items)
    results.write_text("imgs/delta.png, 1.0, 1.0\n")
    with pytest.raises(ValueError, match="'imgs/delta.png, 1.0, 1.0', which is no result of an item of dpg"):
        benchmark.imported(results, items)


def test_a_table_without_commas_and_an_item_without_questions_are_refused():
    rows = [dict(item_id="a", proposition_id=1, dependency="0", tuple="x", question_natural_language="?")] * 2
    with pytest.raises(ValueError, match="no dependency with a comma"):
        dpg.read_table(rows)
    assert list(dpg.read_table(rows, CORRECTED)) == ["a"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_no_passes_on_down_a_chain(said):
    chain = {n: dpg.Question((n - 1,), "k", "q") for n in range(1, len(said) + 1)}
    scores = dpg.with_parents(chain, {n: float(yes) for n, yes in enumerate(said, 1)})
    until = said.index(False) if False in said else len(said)
    assert list(scores.values()) == [1.0] * until + [0.0] * (len(said) - until)


# TIIF-Bench


SCRIPT = '''
raw_prompt = """A\\n##YNQuestions##"""
raw_prompt_1 = """B\\n##YNQuestions##"""
raw_prompt_2 = """C\\n##YNQuestions##"""
raise SystemExit("a fetched file is read, not run")


def generate_with_prompt(prompt, image_path, client):
    messages = [
        {"role": "system", "content": "You look."},
        {"role": "user", "content": [{"type": "text", "text": prompt}]},
    ]
'''


@pytest.fixture
def tiif_bench(tmp_path):
    benchmark = sets.find("tiif")
    files = {"eval/eval_with_vlm.py": SCRIPT}
    for kind in ("text", "style"):
        files[f"data/testmini_prompts/{kind}_prompts.jsonl"] = lines(
            *(
                {"type": kind, "short_description": f"{kind}{n}", "long_description": f"{kind}{n} long"}
                for n in (0, 1)
            )
        )
        files[f"data/testmini_eval_prompts/{kind}_eval_prompts.jsonl"] = lines(
            *(
                {
                    "type": kind,
                    "yn_question_list": [f"{kind} {n}? ", "b?"][: n + 1],
                    "yn_answer_list": ["Yes", "no"][: n + 1],
                }
                for n in (0, 1)
            )
        )
    return benchmark, checked_out(tmp_path, benchmark, {"TIIF-Bench": files})


def test_tiif_draws_short_and_long_and_asks_all_questions_at_once(tiif_bench):
    benchmark, checkout = tiif_bench
    items = benchmark.items(checkout)
    assert len(items) == 8 and len({item.key for item in items}) == 8
    long = next(item for item in items if item.key == "text/long/1")
    assert (
        long.prompt == "text1 long" and long.pictures[0].path == f"text/{tiif.MODEL}/long_description/1.png"
    )
    (request,) = benchmark.requests(long, checkout)
    assert request.system == "You look." and request.expects == 2
    assert request.parts[0][0] in "ABC" and request.parts[0][1:] == "\ntext 1?\nb?"
    assert request.parts[1] == Shown(long.pictures[0].path)
    assert benchmark.requests(long, checkout) == [request]
    drawn = {benchmark.requests(item, checkout)[0].parts[0][0] for item in items}
    assert len(drawn) > 1  # not one template for all


def test_tiif_pools_questions_as_published_and_prompts_when_corrected(tiif_bench, tmp_path):
    benchmark, checkout = tiif_bench
    items = benchmark.items(checkout)
    said = {("text", "short"): ["yes", "no\nno"], ("text", "long"): ["no", "yes\nno"]}
    said |= {("style", length): ["yes", "yes\nno"] for length in ("short", "long")}
    found = answers(
        *(
            Answer(f"{kind}/{length}/{n}", f"{kind}/{length}/{n}", text=text)
            for (kind, length), texts in said.items()
            for n, text in enumerate(texts)
        )
    )
    published, rows = scoring.score(benchmark, items, checkout, found, "gpt-4o")
    assert values(published) == {
        "overall (short)": pytest.approx(100 * (0.6667 + 1) / 2),
        "overall (long)": pytest.approx(100 * (0.6667 + 1) / 2),
        "advanced overall (short)": pytest.approx(100 * (0.6667 + 1) / 2),
        "advanced overall (long)": pytest.approx(100 * (0.6667 + 1) / 2),
        "text (short)": pytest.approx(66.67),
        "text (long)": pytest.approx(66.67),
        "style (short)": 100,
        "style (long)": 100,
    }
    seen = {row.key: row.seen for row in rows}
    assert seen["text/short/1"] == "text 1?  no" and seen["style/short/1"] == ""
    corrected, _ = scoring.score(benchmark, items, checkout, found, "gpt-4o", CORRECTED)
    assert values(corrected)["text (short)"] == 75 and values(corrected)["text (long)"] == 50
    for (kind, length), texts in said.items():
        for n, text in enumerate(texts):
            judged = {"questions": [f"{kind} {n}? ", "b?"][: n + 1], "model_pred": text.split("\n")}
            write(tmp_path / "judged", {f"{kind}/{length}/{n + 5}.json": json.dumps(judged)})
    imported = answers(*benchmark.imported(tmp_path / "judged", items))
    assert values(scoring.score(benchmark, items, checkout, imported, "gpt-4o")[0]) == values(published)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["yes", "no"]), max_size=6), st.sampled_from([str, str.upper, str.title]))
def test_answers_of_a_line_each_are_read_back(words, written):
    text = "\n\n".join(f" {written(word)}, because" for word in words)
    assert tiif.read(f"Here:\n{text}", len(words)) == words
    marked = "\n".join(f"{n}. **{written(word)}**: because" for n, word in enumerate(words, 1))
    assert tiif.read(f"Here:\n{marked}", len(words), CORRECTED) == words
    assert not words or pytest.raises(Unreadable, tiif.read, marked, len(words))
    with pytest.raises(Unreadable, match=f"{len(words)} answers to {len(words) + 1} questions"):
        tiif.read(text, len(words) + 1)


# ImgEdit-Bench


EDITS = {"7": {"id": "animal/a.jpg", "prompt": "make it blue", "edit_type": "adjust"}}
EDITS["8"] = {"id": "animal/a.jpg", "prompt": "remove it", "edit_type": "remove"}


@pytest.fixture
def img_edit(tmp_path):
    benchmark = sets.find("imgedit")
    basic = {
        "Benchmark/Basic/basic_edit.json": json.dumps(EDITS),
        "Benchmark/Basic/prompts.json": json.dumps({"adjust": "Adjust: <edit_prompt>!", "remove": "Remove"}),
        "Benchmark/singleturn/animal/a.jpg": picture(),
    }
    return benchmark, checked_out(tmp_path, benchmark, {"ImgEdit": basic})


def test_imgedit_shows_source_and_result(img_edit):
    benchmark, checkout = img_edit
    first, second = benchmark.items(checkout)
    assert (first.key, first.prompt, first.group) == ("7", "make it blue", "adjust")
    assert first.source() == picture() and first.pictures[0].path == "7.png"
    (request,) = benchmark.requests(first, checkout)
    assert request.parts == ("Adjust: make it blue!", Shown(None), Shown("7.png")) and request.system is None
    (checkout.roots["hub:sysuyy/ImgEdit"] / "Benchmark/singleturn/animal/a.jpg").unlink()
    with pytest.raises(ValueError, match="a.jpg is missing, the picture of edit 7; fetch imgedit again"):
        benchmark.items(checkout)


def test_imgedit_imports_and_rounds_as_published(img_edit, tmp_path):
    benchmark, checkout = img_edit
    items = benchmark.items(checkout)
    said = {
        "7": "Brief reasoning: 4\nA Quality: 3\nB Quality: 4\nC Quality: 4",
        "8": "A Quality: 1\nB Quality: 1\nC Quality: 2",
    }
    (tmp_path / "result.json").write_text(json.dumps(said))
    found = answers(*benchmark.imported(tmp_path / "result.json", items))
    assert values(scoring.score(benchmark, items, checkout, found, "gpt-4.1")[0]) == {
        "overall": pytest.approx((3.75 + 1.33) / 2),
        "adjust": 3.75,
        "remove": 1.33,
    }
    assert values(scoring.score(benchmark, items, checkout, found, "gpt-4.1", CORRECTED)[0]) == {
        "overall": pytest.approx(2.0),
        "adjust": 3.0,  # the second and third score at most the first
        "remove": 1.0,
    }
    (tmp_path / "result.json").write_text(json.dumps({"7": said["7"], "8": {"error": "429"}}))
    found = answers(*benchmark.imported(tmp_path / "result.json", items))
    with pytest.raises(ValueError, match=r"1 of 2 answers about imgedit cannot be read, more than 1% \(8\)"):
        scoring.score(benchmark, items, checkout, found, "gpt-4.1")


FORMS = ["{}: {}", "**{}**: {}", "**{}: {}**", "1. {}: {}/5", "- {}: {}.", "{} :{}.0"]


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.sampled_from(FORMS))
def test_three_scores_are_read_however_a_judge_writes_them(scores, form):
    names = ("Prompt Compliance", "Visual Seamlessness", "Physical & Detail Fidelity")
    lines = [form.format(name, score) for name, score in zip(names, scores, strict=True)]
    first, second, third = scores
    expected = (first + min(first, second) + min(first, third)) / 3
    for reasoning in ("Brief reasoning: 2", "**Brief reasoning:** it fits: 3 of 4", "Here you are"):
        assert imgedit.read_corrected("\n\n".join([reasoning, *lines])) == pytest.approx(expected)
    with pytest.raises(Unreadable, match="2 of 3 scores"):
        imgedit.read_corrected("\n".join([*lines[:2], form.format(names[2], 6)]))
    with pytest.raises(Unreadable, match="4 of 3 scores"):
        imgedit.read_corrected("\n".join([*lines, lines[0]]))


# GEdit-Bench


def test_gedit_reads_arrow_asks_twice_and_imports(tmp_path):
    pa = pytest.importorskip("pyarrow")
    benchmark = sets.find("gedit")
    rows = [
        {
            "key": f"k{n}",
            "task_type": group,
            "instruction": f"edit {n}",
            "instruction_language": language,
            "Intersection_exist": n != 1,
            "input_image": {"bytes": picture(size=(8, 6 + n)), "path": None},
        }
        for n, (group, language) in enumerate(
            [("color_alter", "en"), ("color_alter", "en"), ("ps_human", "cn"), ("ps_human", "en")]
        )
    ]
    table = pa.Table.from_pylist(rows)
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    prompts = "\n".join(
        f'{name} = """{name} <instruction>"""' for name in dict.fromkeys(gedit.SEMANTICS + gedit.QUALITY)
    )
    files = {
        "Step1X-Edit": {gedit.PROMPTS: prompts},
        "GEdit-Bench": {"train/data-00000-of-00001.arrow": out.getvalue()},
    }
    checkout = checked_out(tmp_path, benchmark, files)
    items = benchmark.items(checkout)
    assert [item.key for item in items] == ["k0", "k1", "k3"]
    path = f"{gedit.MODEL}/fullset/ps_human/en/k3"
    assert items[2].pictures[0].path == f"{path}.png"
    assert benchmark.companions(items[2]) == {f"{path}_SRCIMG.png": picture(size=(8, 9))}
    semantics, quality = benchmark.requests(items[2], checkout)
    result = Shown(f"{path}.png", source_size=True, format="JPEG")
    assert semantics.parts[1:] == (Shown(None, format="JPEG"), result) and quality.parts[1:] == (result,)
    assert (
        semantics.parts[0].endswith("\n_prompts_0shot_tie_rule_SC edit 3") and semantics.key == "k3/semantics"
    )
    with pytest.raises(ValueError, match="has 3 English edits here, not 606"):
        benchmark.items(Checkout(checkout.roots, "digest"))
    scores = {"k0": (9, 4), "k1": (0, 8), "k3": (4, 4)}
    found = tmp_path / "m_combined_gpt_score.csv"
    with open(found, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(
            [
                "source_image",
                "edited_image",
                "instruction",
                "sementics_score",
                "quality_score",
                "intersection_exist",
                "instruction_language",
            ]
        )
        out.writerows([["s", f"x/{key}.png", "i", *pair, True, "en"] for key, pair in scores.items()])
        out.writerow(["s", "x/k2.png", "i", 1, 1, True, "cn"])
    score, _ = scoring.score(
        benchmark, items, checkout, answers(*benchmark.imported(found, items)), "gpt-4.1"
    )
    # nine of the eleven groups have no edit here, so that no average is a number
    assert values(score) == {"color_alter": 3.0, "ps_human": 4.0}


# WISE


GPT = '''
def build_evaluation_messages(prompt_data, image_base64):
    return [
        {"role": "system", "content": [{"type": "text", "text": "Be strict."}]},
        {"role": "user", "content": [
            {"type": "text", "text": f"""P: "{prompt_data['Prompt']}" {{}} E:{prompt_data['Explanation']}"""},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image_base64}"}},
        ]},
    ]
'''


def wise_checkout(tmp_path, benchmark, numbers):
    *data, script = [file.path for file in benchmark.sources[0].files]
    records = [{"Prompt": f"p{n}", "Explanation": f"e{n}", "prompt_id": n} for n in numbers]
    files = {path: json.dumps(records[part::3]) for part, path in enumerate(data)} | {script: GPT}
    return checked_out(tmp_path, benchmark, {"WISE": files})


def test_wise_fills_the_judges_prompt_and_weighs_categories(tmp_path):
    benchmark = sets.find("wise")
    numbers = [1, 400, 401, 568, 701, 801, 901]
    checkout = wise_checkout(tmp_path, benchmark, numbers)
    items = benchmark.items(checkout)
    assert [(item.key, item.group) for item in items][:4] == [
        ("1", "CULTURE"),
        ("400", "CULTURE"),
        ("401", "TIME"),
        ("568", "SPACE"),
    ]
    (request,) = benchmark.requests(items[0], checkout)
    assert request.system == "Be strict."
    assert request.parts == ('P: "p1" {} E:e1', Shown("1.png"))
    with pytest.raises(Unreadable, match="no realism and no aesthetic_quality"):
        benchmark.read(request, "Consistency: 2")
    texts = {
        1: (2, 2, 2),
        400: (0, 0, 0),
        401: (2, 0, 0),
        568: (0, 2, 0),
        701: (0, 0, 2),
        801: (1, 1, 1),
        901: (2, 2, 2),
    }
    found = answers(
        *(
            Answer(str(n), str(n), text=f"Consistency: {c}\nRealism: {r}\nAesthetic Quality: {a}")
            for n, (c, r, a) in texts.items()
        )
    )
    score, rows = scoring.score(benchmark, items, checkout, found, "gpt-4o-2024-05-13")
    means = {"CULTURE": 0.5, "TIME": 0.7, "SPACE": 0.2, "BIOLOGY": 0.1, "PHYSICS": 0.5, "CHEMISTRY": 1.0}
    overall = 0.4 * 0.5 + 0.167 * 0.7 + 0.133 * 0.2 + 0.1 * (0.1 + 0.5 + 1)
    assert values(score) == pytest.approx({"overall": overall} | means)
    assert rows[3].seen == "consistency 0, realism 2, aesthetic quality 0"


def test_wise_verified_has_other_limits_and_imports(tmp_path):
    benchmark = sets.find("wise-verified")
    numbers = [1, 401, 521, 641, 761, 881]
    checkout = wise_checkout(tmp_path, benchmark, numbers)
    items = benchmark.items(checkout)
    assert [item.group for item in items] == ["CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY"]
    (request,) = benchmark.requests(items[0], checkout)
    assert benchmark.read(request, "<think>Score: 0</think>\nScore: 1") == {"score": 1.0}
    records = [{"prompt_id": n, "Subcategory": "x", "score": float(n != 401)} for n in numbers]
    write(
        tmp_path / "Results", {"a_scores.jsonl": lines(*records[:2]), "b_scores.jsonl": lines(*records[2:])}
    )
    found = answers(*benchmark.imported(tmp_path / "Results", items))
    score, _ = scoring.score(benchmark, items, checkout, found, "Qwen3.5-35B-A3B")
    assert values(score)["overall"] == pytest.approx(0.88) and values(score)["TIME"] == 0
    with pytest.raises(ValueError, match="judges prompt 2, which is none of wise-verified"):
        write(tmp_path, {"c_scores.jsonl": lines({"prompt_id": 2, "score": 1})})
        benchmark.imported(tmp_path / "c_scores.jsonl", items)


# GenEval 2


def test_geneval2_asks_for_probabilities(tmp_path):
    benchmark = sets.find("geneval2")
    records = [
        {
            "prompt": "two cats",
            "atom_count": 3,
            "vqa_list": [
                ["How many cats are in the image?", "two"],
                ["Are there any cats in the image?", "Yes"],
            ],
            "skills": ["count", "object"],
        },
        {
            "prompt": "a red box",
            "atom_count": 4,
            "vqa_list": [["Is the box red?", "Yes"]],
            "skills": ["attribute"],
        },
    ]
    checkout = checked_out(tmp_path, benchmark, {"GenEval2": {"geneval2_data.jsonl": lines(*records)}})
    items = benchmark.items(checkout)
    first, second = benchmark.requests(items[0], checkout)
    assert first.parts == (Shown("0000.png"), "How many cats are in the image? Answer in one word.")
    assert first.choices == ("two", "Two", " two", " Two", "2", " 2") and second.key == "0000/1"
    (tmp_path / "score_lists.json").write_text("[[0.25, 1.0], [0.5]]")
    found = answers(*benchmark.imported(tmp_path / "score_lists.json", items))
    score, rows = scoring.score(benchmark, items, checkout, found, benchmark.official)
    assert values(score) == pytest.approx(
        {
            "overall (GM)": 50,
            "overall (AM)": 56.25,
            "object": 100,
            "attribute": 50,
            "count": 25,
            "3 atoms": 50,
            "4 atoms": 50,
        }
    )
    assert rows[0].seen == "How many cats are in the image?" and math.isclose(rows[0].good, 0.5)
    (tmp_path / "score_lists.json").write_text("[[0.25, 1.0]]")
    with pytest.raises(ValueError, match="has 1 prompts; geneval2 has 2"):
        benchmark.imported(tmp_path / "score_lists.json", items)


# Python files that are read, not run


def test_messages_of_a_script_are_read_without_running_it(tmp_path):
    script = write(tmp_path, {"script.py": "import os; os.abort()\n" + GPT}) / "script.py"
    system, user = messages(script, "build_evaluation_messages")
    assert filled(system, {}) == "Be strict."
    with pytest.raises(ValueError, match=r"needs prompt_data\['Explanation'\], which the data do not have"):
        filled(user, {"Prompt": "x"})
    with pytest.raises(ValueError, match="has no function other; fetch the set again"):
        messages(script, "other")
    torn = write(tmp_path, {"torn.py": "def build("}) / "torn.py"
    with pytest.raises(ValueError, match="torn.py is no Python"):
        messages(torn, "build")


@pytest.mark.parametrize(
    ("truth", "answers", "share"),
    [
        (["yes", "No "], [" YES", "no"], 1.0),
        (["yes", "no"], ["yes", None], 0.5),  # the fault counts as wrong
        (["yes", "no", "no"], [None, "no", "no"], 0.0),  # and ends the file
        ({"yes": 1}, ["yes"], 1.0),  # what zip takes
        (None, ["yes"], None),
        (["yes"], [], None),
    ],
)
def test_a_file_that_breaks_off_counts_up_to_its_fault(truth, answers, share):
    assert tiif.of_files({"0.json": {"gt_answers": truth, "model_pred": answers}, "1.json": "{torn"}) == share
