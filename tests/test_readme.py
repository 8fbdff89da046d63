"""What ``make newest`` runs of the documents, and that README says of versions only what ran."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import newest
import pytest
import setup_env


def commands():
    """Every command of README and the ten minutes."""
    return [
        command for block in newest.readers_blocks() for command in block.commands() if not block.language
    ]


def test_blocks_of_the_readers_documents():
    """All fenced blocks are found: as many as there are fences, in languages that the lane can run."""
    found = newest.readers_blocks()
    readme = (newest.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(found) == readme.count("```") // 2 + 1
    assert {block.language for block in found} == {"", "python"}
    assert "from_pretrained" in next(block.text for block in found if block.language)


def test_what_is_left_out_or_shortened_stands_in_the_documents():
    """A command that was changed is run again, until someone looks at it and gives a reason."""
    assert set(newest.LEFT_OUT) | set(newest.SHORTENED) <= set(commands())
    assert all(newest.LEFT_OUT.values())


def test_the_commands_that_make_the_point_are_run():
    run = [command for command in commands() if command not in newest.LEFT_OUT]
    for wanted in ('pip install ".[standalone]"', 'pip install -e ".[train]"', "tbac-uniimage train run"):
        assert any(command.startswith(wanted) for command in run), wanted
    assert len(run) >= 14


def test_shortened_training_is_a_run_of_the_same_recipe():
    from tbac_uniimage.training.recipe.recipe import load_recipe

    for command, more in newest.SHORTENED.items():
        path, whole = newest.ROOT / command.split()[-1], {}
        recipe = load_recipe(path, more.split())
        assert recipe.train.steps < load_recipe(path, whole or []).train.steps


def test_commands_of_a_block():
    """Comments go, continued lines are one command, a # within a word stays."""
    text = "# first\nls  # all\n\nrun a \\\n  b\necho a#b\n"
    assert newest.Block("", text).commands() == ["ls", "run a    b", "echo a#b"]


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (newest.Block("", "false  # fails\n"), "`false` ended with 1"),
        (newest.Block("python", "raise SystemExit('no')\n"), "ended with 1"),
        (newest.Block("", "echo 'x is deprecated, use y'\n"), "going away: x is deprecated"),
        (newest.Block("python", "import warnings\nwarnings.warn('x', FutureWarning)\n"), "FutureWarning: x"),
        (newest.Block("perl", "1;\n"), "block of 'perl'"),
    ],
)
def test_a_block_that_fails_is_named(tmp_path, block, problem):
    reader = newest.Reader(tmp_path, sys.executable, {})
    with pytest.raises(newest.Failed, match=problem.replace("(", r"\(")):
        reader.read(block)


def test_a_block_leaves_what_it_made_for_the_next(tmp_path):
    reader = newest.Reader(tmp_path, sys.executable, {"COLOUR": "blue"})
    reader.read(newest.Block("", "echo $COLOUR > said\n"))
    reader.read(newest.Block("python", "assert open('said').read() == 'blue\\n'\n"))


def test_the_copy_is_what_git_would_hand_over(tmp_path):
    copied = newest.copy_checkout(tmp_path)
    assert (copied / "README.md").read_bytes() == (newest.ROOT / "README.md").read_bytes()
    assert (copied / "assets" / "nano" / "model_index.json").exists()
    assert not (copied / ".venv").exists() and not (copied / ".cache").exists()


def test_readme_says_what_ran():
    """The line is written by ``scripts/newest.py --record`` beside its record, never by hand."""
    records = json.loads(newest.RECORD.read_text())
    assert newest.said_in_readme(records) in (newest.ROOT / "README.md").read_text(encoding="utf-8")
    for python, tested in records.items():
        assert set(tested) == {"date", "python", *newest.RECORDED}
        assert tested["python"].startswith(python + ".")


def test_a_record_is_written_into_readme(tmp_path, monkeypatch):
    """Beside those of other Pythons, whose libraries may be older; of the libraries the newest is said."""
    readme = tmp_path / "README.md"
    readme.write_text("needs x 1.2 (tested up to 5.9 and 0.12, with Python 3.9;\nbut 3.1 is)\n")
    monkeypatch.setattr(newest, "ROOT", tmp_path)
    monkeypatch.setattr(newest, "RECORD", tmp_path / "record.json")
    newest.record({"python": "3.12.1", "transformers": "6.10.1", "diffusers": "1.0.0"})
    assert "(tested up to 6.10 and 1.0, with Python 3.12;" in readme.read_text()
    for older, said in (("3.9", "3.9 and 3.12"), ("3.10", "3.9, 3.10 and 3.12")):
        newest.record({"python": f"{older}.18", "transformers": "6.9.3", "diffusers": "1.2"})
        said = f"tested up to 6.10 and 1.2, with Python {said}"
        assert readme.read_text() == f"needs x 1.2 ({said};\nbut 3.1 is)\n"
    assert json.loads((tmp_path / "record.json").read_text())["3.9"]["transformers"] == "6.9.3"


def test_the_oldest_python_that_ran_is_the_one_that_is_asked_for():
    """Of users by pyproject.toml; a developer's pins need the one that setup_env.py names."""
    ran = sorted(map(newest.feature_release, json.loads(newest.RECORD.read_text())))
    text = (newest.ROOT / "pyproject.toml").read_text()
    [asked] = re.findall(r'^requires-python = ">=([\d.]+)"$', text, re.MULTILINE)
    assert newest.feature_release(asked) == ran[0]
    assert setup_env.OLDEST_PYTHON in ran


@pytest.mark.slow
def test_an_environment_with_torch_alone(tmp_path):
    """torch is there and nothing of what the project needs; pip may not replace it."""
    import environments

    python, settings = environments.with_torch_alone(tmp_path / "venv")
    names = ("torch", "numpy", "transformers", "PIL")
    code = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout == "['torch']\n"
    kept = Path(settings["PIP_CONSTRAINT"]).read_text().splitlines()
    assert f"torch=={metadata.version('torch')}" in kept
