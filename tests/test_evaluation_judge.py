"""Chat models as judges: every kind of answer over real HTTP, kills, resumes, and keys that stay unseen."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import threading
from pathlib import Path

import pytest
from evaluation_sets import DPG, EDITS, fetched
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripted_judge import USAGE, by_part, serving
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.evaluation import fetch, folders, sets
from tbac_uniimage.training.evaluation.judges import answers, asking, chat
from training_runs import finish, free_port, start, wait_until

GOOD = "Reasoning: fine.\nPrompt Following: 4\nVisual Quality: 3\nDetail: 2"
KEY = "sk-very-secret-1234"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    return fetched(tmp_path_factory.mktemp("made-up"), "geneval", "dpg", "tiif", "imgedit", "geneval2")


@pytest.fixture
def out(made_up, tmp_path) -> Path:
    """Pictures of every set, all of one colour each."""
    for name in ("geneval", "dpg", "tiif", "imgedit", "geneval2"):
        benchmark = sets.find(name)
        checkout = fetch.load(benchmark, made_up)
        for number, item in enumerate(benchmark.items(checkout)):
            for shot in item.pictures:
                path = folders.pictures(tmp_path, name) / shot.path
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (10 * number, 100, 200)).save(path)
        manifest = {"settings": {"files": checkout.digest, "seed": 0}}
        folders.write_json(tmp_path / name / folders.MANIFEST, manifest)
    return tmp_path


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nobody waits between two attempts, and the environment holds no key."""
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def command(made_up: Path, out: Path, name: str, url: str, *more: str) -> list[str]:
    options = ["--sets", str(made_up), "--out", str(out), "--url", url, "--judge", "owl"]
    return ["evaluate", "judge", name, *options, *more]


def opened(part: dict) -> Image.Image:
    """A picture as it was sent."""
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))


def lines(out: Path, name: str = "imgedit") -> list[dict]:
    return [json.loads(line) for line in (out / name / "owl" / "answers.jsonl").read_text().splitlines()]


def sentence(capsys, argv: list[str], code: int = 2) -> str:
    capsys.readouterr()
    assert main(argv) == code
    said = capsys.readouterr()
    assert said.out == "", said
    return said.err.splitlines()[-1]


def test_a_call_is_what_the_official_script_sends(made_up, out, capsys):
    with serving(lambda *_: GOOD) as (url, judge):
        assert main(command(made_up, out, "imgedit", url)) == 0
    assert (
        "3 answers, 0 of them unreadable (0.0%); 3 calls, 300 tokens sent, 30 received"
        in capsys.readouterr().out
    )
    assert sorted(judge.texts) == sorted(f"{e['edit_type']}: {e['prompt']}" for e in EDITS.values())
    body = next(body for body in judge.bodies if "remove" in str(body))
    assert body.keys() == {"model", "messages"} and body["model"] == "owl"  # it names no temperature
    text, source, result = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "remove: remove the cat"}
    seen = [(p.size, p.getpixel((0, 0))) for p in map(opened, (source, result))]
    assert seen == [((50, 70), (30, 30, 200)), ((32, 32), (10, 100, 200))]
    assert source["image_url"]["url"].startswith("data:image/png;base64,")
    first = lines(out)[0]
    assert first == {
        "request": "10",
        "item": "10",
        "attempt": 1,
        "text": GOOD,
        "model": "owl-2025-01-01",
        "usage": USAGE,
    }
    about = json.loads((out / "imgedit" / "owl" / "judge.json").read_text())
    assert (about["judge"], about["host"], about["temperature"]) == ("owl", "127.0.0.1", None)
    assert len(about["template"]) == len(about["pictures"]) == 64


def test_every_kind_of_failure_is_repeated_and_leaves_a_line(made_up, out):
    script = {
        "dog blue": [429, 500, "drop", "I like it.", GOOD],
        "the cat": ["junk", "empty", -503, GOOD],
        "in oil": ["slow", GOOD],
    }
    with serving(by_part(script)) as (url, judge):
        argv = command(made_up, out, "imgedit", url, "--timeout", "2", "--in-flight", "2")
        assert main(argv) == 0
        assert main(argv) == 0  # nothing is left to ask
    found = lines(out)
    assert [line["request"] for line in found] == ["10"] * 5 + ["11"] * 4 + ["12"] * 2
    assert [line["attempt"] for line in found] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 1, 2]
    said = [line.get("error", line.get("text")).split(":")[0] for line in found]
    assert said[:2] == ["HTTP 429", "HTTP 500"] and said[7] == "HTTP 503"
    assert "Error" in said[2] and said[3] == "I like it." and said[9] == "APITimeoutError"
    assert [number for number, line in enumerate(found) if line.get("text") == GOOD] == [4, 8, 10]
    assert len(judge.bodies) == 11


def test_what_cannot_be_read_is_counted_and_refused_by_the_score(made_up, out, capsys):
    script = {"dog blue": ["I like it."], "the cat": [400], "in oil": [GOOD]}
    with serving(by_part(script)) as (url, judge):
        assert main(command(made_up, out, "imgedit", url, "--attempts", "3")) == 0
        assert "2 of them unreadable (66.7%); 5 calls" in capsys.readouterr().out
        assert [line["request"] for line in lines(out)] == ["10"] * 3 + ["11"] + ["12"]  # a 400 stays one
        assert main(command(made_up, out, "imgedit", url, "--attempts", "3")) == 0
        assert len(judge.bodies) == 5
        score = ["evaluate", "score", "imgedit", "--out", str(out), "--sets", str(made_up)]
        assert "2 of 3 answers about imgedit cannot be read, more than 1%" in sentence(capsys, score)
        judge.say = lambda *_: GOOD
        assert main(command(made_up, out, "imgedit", url, "--again")) == 0
        assert len(judge.bodies) == 7 and "0 of them unreadable" in capsys.readouterr().out
        assert main(score) == 0


def test_another_count_of_answers_is_asked_again(made_up, out):
    def say(text: str, number: int) -> str:
        return "yes\nno\nyes" if number == 0 else "Yes, it is\nno"

    with serving(say) as (url, judge):
        assert main(command(made_up, out, "tiif", url)) == 0
    found = lines(out, "tiif")
    assert len(found) == 6 + len(set(judge.texts)) > 6  # short and long prompts share their questions
    assert {line["request"]: line["text"][0] for line in found} == {line["request"]: "Y" for line in found}
    assert judge.bodies[0]["temperature"] == 1.0 and judge.bodies[0]["messages"][0]["role"] == "system"


def test_tiles_are_asked_one_by_one_and_calls_are_in_flight_together(made_up, out):
    sheet = Image.new("RGB", (64, 64))
    for tile in range(4):
        sheet.paste(
            (50 * tile, 0, 0), (tile % 2 * 32, tile // 2 * 32, tile % 2 * 32 + 32, tile // 2 * 32 + 32)
        )
    sheet.save(out / "dpg" / "pictures" / "gamma.png")
    together = threading.Barrier(3)

    def say(*_) -> str:
        if 2 <= len(judge.bodies) <= 4:  # the first is asked alone
            together.wait(300)
        return "Yes."

    with serving(say) as (url, judge):
        assert main(command(made_up, out, "dpg", url, "--in-flight", "3")) == 0
    assert len(judge.bodies) == 4 * sum(len(questions) for _, questions in DPG.values())
    assert judge.most == 3 and judge.bodies[0]["temperature"] == 0.0
    seen = set()
    for body in judge.bodies:
        shown, text = body["messages"][0]["content"]
        if text["text"].startswith("Is there a lamp?"):
            seen.add(opened(shown).getpixel((31, 31)))
    assert seen == {(50 * tile, 0, 0) for tile in range(4)}


def test_a_dry_run_counts_and_asks_nothing(made_up, out, capsys):
    options = ["--sets", str(made_up), "--out", str(out), "--judge", "owl", "--dry-run"]
    assert main(["evaluate", "judge", "imgedit", "dpg", *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "imgedit: 3 calls with 6 pictures; 0 of 3 are answered"
    assert said[1] == "dpg: 28 calls with 28 pictures; 0 of 28 are answered"
    assert not (out / "imgedit" / "owl").exists()


def test_the_key_is_sent_and_seen_nowhere_else(made_up, out, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    script = {"dog blue": [429, GOOD], "the cat": [f"your key is {KEY}", GOOD], "in oil": [400]}
    with serving(by_part(script)) as (url, judge):
        assert main(command(made_up, out, "imgedit", url)) == 0
        assert judge.keys == {f"Bearer {KEY}"}
        judge.say = lambda *_: 401
        assert "The judge cannot be asked (HTTP 401" in sentence(capsys, command(made_up, out, "tiif", url))
    assert not (out / "tiif" / "owl").exists()
    written = b"".join(path.read_bytes() for path in out.rglob("*.json*"))
    said = capsys.readouterr()
    assert KEY.encode() not in written and KEY not in said.out + said.err
    assert b"your key is ***" in written


def test_no_key_no_answer_and_no_judge_are_sentences(made_up, out, capsys, monkeypatch):
    port = free_port()
    here = f"http://127.0.0.1:{port}/v1"
    refused = [
        (command(made_up, out, "imgedit", "https://judge.example/v1"), "There is no key for judge.example"),
        (command(made_up, out, "imgedit", here, "--attempts", "2"), f"Nobody answers at {here}"),
        (command(made_up, out, "imgedit", "judge.example"), "judge.example is no URL of a judge"),
        (command(made_up, out, "imgedit", "https://me:pw@judge.example/v1"), "holds a password or a query"),
        (command(made_up, out, "geneval", here), "geneval asks a chat model nothing"),
        (command(made_up, out, "gedit", here), "gedit is not in"),
        (command(made_up, out / "nowhere", "imgedit", here), "Nothing of imgedit was drawn in"),
    ]
    for argv, expected in refused:
        assert expected in sentence(capsys, argv)
    monkeypatch.setenv("OPENAI_API_KEY", "sk one two")
    assert "holds no key" in sentence(capsys, command(made_up, out, "imgedit", here))
    assert not list(out.glob("*/owl")) and not (out / "nowhere").exists()


def test_a_judge_that_falls_silent_is_not_asked_for_ever(made_up, out, capsys):
    with serving(lambda *_: "Yes.") as (url, judge):
        judge.say = lambda *_: "Yes." if len(judge.bodies) < 4 else "drop"
        argv = command(made_up, out, "dpg", url, "--attempts", "2", "--in-flight", "2")
        assert "any more" in sentence(capsys, argv)
        assert len(judge.bodies) < 14
        judge.say = lambda *_: "Yes."
        assert main([*argv, "--again"]) == 0
    assert "0 of them unreadable" in capsys.readouterr().out


def test_another_model_under_the_same_name_is_refused(made_up, out, capsys):
    def say(text: str, number: int) -> str:
        judge.model = "cat" if len(judge.bodies) == 3 else None
        return "yes"

    with serving(say) as (url, judge):
        argv = command(made_up, out, "dpg", url, "--in-flight", "1")
        assert "The judge was owl-2025-01-01 and calls itself cat now" in sentence(capsys, argv)


def test_other_parameters_pictures_and_a_missing_picture_are_refused(made_up, out, capsys):
    with serving(lambda *_: GOOD) as (url, judge):
        assert main(command(made_up, out, "imgedit", url)) == 0
        argv = command(made_up, out, "imgedit", url, "--temperature", "0.5")
        assert "holds answers with temperature null, not 0.5" in sentence(capsys, argv)
        manifest = out / "imgedit" / folders.MANIFEST
        content = json.loads(manifest.read_text())
        content["settings"]["seed"] = 1
        folders.write_json(manifest, content)
        assert "holds answers with pictures " in sentence(capsys, command(made_up, out, "imgedit", url))
        (out / "dpg" / "pictures" / "beta.png").unlink()
        argv = command(made_up, out, "dpg", url)
        assert "1 of 3 items of dpg are not drawn (beta)" in sentence(capsys, argv)
        judge.say = lambda *_: "no"
        assert main([*argv, "--partial"]) == 0
        assert {line["item"] for line in lines(out, "dpg")} == {"alpha", "gamma"}


def test_a_full_disk_leaves_whole_lines(made_up, out, capsys, monkeypatch):
    write = os.write

    def full(file: int, content: bytes) -> int:
        if b'"request": "11"' in content and len(content) > 50:
            return write(file, content[:50])
        if b'"request": "11"' not in content and not content.startswith(b"{"):
            raise OSError(28, "No space left on device")
        return write(file, content)

    with serving(lambda *_: GOOD) as (url, _):
        argv = command(made_up, out, "imgedit", url, "--in-flight", "1")
        monkeypatch.setattr(os, "write", full)
        said = sentence(capsys, argv, code=5)
        assert "answers.jsonl cannot be written (No space left on device); free some space" in said
        assert [line["request"] for line in lines(out)] == ["10"]
        monkeypatch.setattr(os, "write", write)
        assert main(argv) == 0
    assert [line["request"] for line in lines(out)] == ["10", "11", "12"]


@pytest.mark.slow
def test_killed_while_judging_and_resumed_to_the_same_bytes(made_up, out):
    file, log = out / "dpg" / "owl" / "answers.jsonl", out / "log"
    with serving(lambda *_: "Yes.") as (url, judge):
        argv = command(made_up, out, "dpg", url)
        assert main(argv) == 0
        whole = {path.name: path.read_bytes() for path in file.parent.iterdir()}
        for path in file.parent.iterdir():
            path.unlink()
        judge.say = lambda *_: "Yes." if len(judge.bodies) < 28 + 9 else "slow"
        [process] = processes = start(argv, log, module="shell.main")
        wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") >= 8, processes, log)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with file.open("ab") as opened_file:
            opened_file.write(whole[file.name][:40])  # a line that the kill tore
    with serving(lambda *_: "Yes.") as (url, judge):  # another one: requests may still be on their way
        argv = command(made_up, out, "dpg", url)
        assert finish(start(argv, log, module="shell.main")) == [0], log.read_text()
        assert len(judge.bodies) <= 20
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == whole


def test_a_verdict_may_be_a_probability(made_up, out, capsys):
    def say(text: str, number: int) -> dict[str, float]:
        return (
            {"two": 0.5, "2": 0.25, "Two": 0.05, "three": 0.2}
            if "How many" in text
            else {"Yes": 0.9, "no": 0.1}
        )

    with serving(say) as (url, judge):
        assert main(command(made_up, out, "geneval2", url)) == 0
        body = judge.bodies[0]
        assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
        found = {line["request"]: line["verdict"] for line in lines(out, "geneval2")}
        assert found == {"0000/0": pytest.approx(0.9), "0000/1": pytest.approx(0.8)}
        assert main(["evaluate", "score", "geneval2", "--out", str(out), "--sets", str(made_up)]) == 0
        assert "overall (GM)  84.85" in capsys.readouterr().out
        (out / "geneval2" / "owl" / "answers.jsonl").unlink()
        judge.say = lambda *_: "Yes"  # without probabilities
        assert "it gives no probabilities" in sentence(capsys, command(made_up, out, "geneval2", url))


@settings(max_examples=40)
@given(cut=st.integers(0, 1000), texts=st.lists(st.text(), max_size=5))
def test_a_file_cut_anywhere_keeps_its_whole_lines(cut, texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "answers.jsonl"

    def append(first: int) -> None:
        file = answers.AnswerFile(path, {"judge": "owl"})
        for number, text in list(enumerate(texts))[first:]:
            file.append({"request": str(number), "item": str(number), "text": text})
        file.close()

    append(0)
    whole = path.read_bytes() if texts else b""
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert {key: said[0]["text"] for key, said in answers.read_lines(path).items()} == {
        str(number): text for number, text in enumerate(texts[:kept])
    }
    append(kept)
    if kept < len(texts):
        assert path.read_bytes() == whole
        assert {key: answer.text for key, answer in folders.read_answers(path).items()} == {
            str(number): text for number, text in enumerate(texts)
        }


def test_probabilities_of_spellings_are_added_once():
    likeliest = {"Yes": -1.0, " yes": -2.0, "No": -0.1}
    found = chat.probability(likeliest, ("Yes", "yes", " yes", "Yes"))
    assert found == pytest.approx(0.36787944 + 0.13533528)
