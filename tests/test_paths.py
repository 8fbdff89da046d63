"""What the system says about a path is one sentence, for every argument of every command."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tbac_uniimage.core.paths import REFUSALS, refusal, user_path, write_whole
from tbac_uniimage.shell.main import main
from tbac_uniimage.training.exits import run_command
from tbac_uniimage.training.recipe.recipe import load_recipe

LONG, DEEP = "n" * 300, "/".join(["d" * 200] * 25)
SAYS = {
    LONG: "(300 letters) is longer than the system allows; shorten it.",
    DEEP: "is longer than the system allows; shorten it.",
    "loop": "loop leads in a circle of links; mend the link",
    "loop/below": "loop/below leads in a circle of links",
    "broken": "broken is a link to nowhere, which is not there.",
    "file.txt/below": "file.txt/below leads through a file as if it were a folder; check the path.",
    "~nobody-of-this-name/x": "begins with the home of nobody; check the path.",
    "zero\0byte": "'zero\\x00byte' holds a letter that no path may hold; check the path.",
}
RECIPE = str(Path(__file__).parents[1] / "training" / "recipes" / "nano" / "own_pictures.yaml")
COMMANDS = {  # PATH is what is tried
    "generate --out": ["generate", "x", "--out", "PATH"],
    "generate --model": ["generate", "x", "--model", "PATH"],
    "generate --tokenizer": ["generate", "x", "--tokenizer", "PATH"],
    "edit": ["edit", "PATH", "x"],
    "edit --out": ["edit", "scene.png", "x", "--out", "PATH"],
    "ask": ["ask", "PATH", "x"],
    "ask --qwen": ["ask", "scene.png", "x", "--qwen", "PATH"],
    "info": ["info", "--model", "PATH"],
    "info --mllm": ["info", "--mllm", "PATH"],
    "info --sana": ["info", "--sana", "PATH"],
    "data index -o": ["data", "index", "pictures", "-o", "PATH"],
    "data show": ["data", "show", "PATH"],
    "data show -o": ["data", "show", "index", "-o", "PATH"],
    "train run": ["train", "run", "PATH"],
    "train run run=": ["train", "run", RECIPE, "--dry-run", "run=PATH"],
    "train run init=": ["train", "run", RECIPE, "--dry-run", "init=PATH"],
    "train run index=": ["train", "run", RECIPE, "--dry-run", "data.sets.0.index=PATH"],
    "train cache": ["train", "cache", "PATH"],
    "train cache latents=": ["train", "cache", RECIPE, "data.cache.latents=PATH"],
    "train plot": ["train", "plot", "PATH"],
    "train plot -o": ["train", "plot", "run", "-o", "PATH"],
    "export": ["export", "PATH", "--to", "lora"],
    "export -o": ["export", "run", "--to", "lora", "-o", "PATH"],
    "score --model": ["score", "--model", "PATH"],
    "score --json": ["score", "--json", "PATH"],
    "evaluate draw --model": ["evaluate", "draw", "geneval", "--model", "PATH", "--out", "out"],
    "evaluate draw --out": ["evaluate", "draw", "geneval", "--model", "model", "--out", "PATH"],
    "evaluate judge": ["evaluate", "judge", "geneval", "--out", "PATH"],
    "evaluate score": ["evaluate", "score", "geneval", "--out", "PATH"],
    "evaluate table": ["evaluate", "table", "PATH"],
    "evaluate fetch": ["evaluate", "fetch", "geneval", "--from", "PATH"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "file.txt").write_text("a file")
    Image.new("RGB", (64, 64)).save("scene.png")
    return tmp_path


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_of_every_command(command, name, folder, capsys):
    argv = [word.replace("PATH", name) for word in COMMANDS[command]]
    if "=PATH" in COMMANDS[command][-1]:
        argv[-1] = argv[-1].replace(name, '"' + name.replace("\0", "\\0") + '"')  # a value in YAML
    before = sorted(os.listdir("."))
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert SAYS[name] in captured.err and len(captured.err) < 400
    assert sorted(os.listdir(".")) == before


@pytest.mark.parametrize("name", [name for name in SAYS if "~" not in name])
def test_paths_of_recipes(name, folder):
    quoted = '"' + name.replace("\0", "\\0") + '"'
    from tbac_uniimage.training.run.validation import read_requests

    edit = f"validation.edits=[{{image: {quoted}, instruction: x}}]"
    with pytest.raises(ValueError) as caught:
        read_requests(load_recipe(RECIPE, [edit]).validation)
    assert SAYS[name] in str(caught.value)


def test_a_path_that_is_fine_comes_back(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/not/yet") == tmp_path / "not" / "yet"
    assert user_path(tmp_path) == tmp_path
    (tmp_path / "link").symlink_to(tmp_path)
    assert user_path(tmp_path / "link") == tmp_path / "link"


@pytest.mark.parametrize("number", sorted(REFUSALS))
def test_what_only_a_library_ran_into(number, capsys):
    def command():
        raise OSError(number, os.strerror(number), "some/path")

    def below():
        exec(compile("import os\nos.stat(path)", "library", "exec"), {"path": LONG})  # noqa: S102

    assert run_command(command) == 2
    reason, advice = REFUSALS[number]
    assert capsys.readouterr().err == f"tbac-uniimage: some/path {reason}; {advice}.\n"
    assert run_command(below) == 2
    assert "is longer than the system allows" in capsys.readouterr().err


def test_what_a_program_could_have_known_is_a_bug():
    def command():
        exec(compile("open('not/there')", "library", "exec"), {"__name__": "library", "__spec__": None})  # noqa: S102

    with pytest.raises(FileNotFoundError):
        run_command(command)


def test_a_file_on_a_full_disk(tmp_path):
    (tmp_path / ".plot.png.partial").symlink_to("/dev/full")
    (tmp_path / "plot.png").write_bytes(b"before")
    with pytest.raises(ValueError, match=r"plot\.png does not fit, the disk is full; free some space\.$"):
        write_whole(tmp_path / "plot.png", b"after")
    assert (tmp_path / "plot.png").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
    write_whole(tmp_path / "plot.png", b"after")
    assert (tmp_path / "plot.png").read_bytes() == b"after"


@pytest.mark.parametrize("command", ["data show", "train plot"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_pictures_where_nothing_can_be_written(command, number, folder, monkeypatch, capsys):
    """Nothing can be removed there either, which must not be what is said."""
    if command == "data show":
        Path("d").mkdir()
        Path("scene.png").rename("d/scene.png")
        Path("d/scene.txt").write_text("a scene")
        assert main(["data", "index", "d", "--workers", "1"]) == 0
        argv, name = ["data", "show", "index/d"], "index/d/sheet.png"
    else:
        Path("run").mkdir()
        Path("run/metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        argv, name = ["train", "plot", "run"], "run/plot.png"
    capsys.readouterr()

    def refuse(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert main(argv) == 2
    captured = capsys.readouterr()
    reason, advice = REFUSALS[number]
    assert captured.err == f"tbac-uniimage: {name} {reason}; {advice}.\n" and captured.out == ""


def test_a_reason_without_a_sentence_of_its_own():
    error = OSError(errno.EMFILE, "Too many open files")
    assert refusal("x", error) == "x cannot be used (Too many open files); check the path."


@pytest.mark.parametrize(
    "text", ["x " * 400, "把背景改成蓝色，其余不变。" * 30, "a/b/c " * 900, "two\nlines", "\0"]
)
def test_a_sentence_is_no_path(text, folder):
    from tbac_uniimage.shell.commands import read_pictures

    assert [image.size for image in read_pictures(["scene.png"], text)] == [(64, 64)]
