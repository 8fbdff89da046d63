"""What a command prints reaches whatever takes it: code pages, closed pipes, full disks, no terminal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tbac_uniimage.training.exits import DISK, PIPE_CLOSED

# Commands of one kind that need no model: the ending is the same for all, and so is tried once each
PRINTS = """
import sys
from tbac_uniimage.training import exits
def command():
    print("\\u56fe \\xe9 \\udcff")
    for number in range({lines}):
        print(number)
    if {fails}:
        raise exits.Stop("Ended: \\u56fe.", 3)
sys.exit(exits.run_command(command))
"""
SHELL = "import sys; from tbac_uniimage.shell.main import main; sys.exit(main())"


def python(code: str, *argv: str, env: dict | None = None, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "PYTHONUNBUFFERED": "", **(env or {})},
        timeout=600,
        **options,
    )


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("cp1252", b"\\u56fe \xe9 \\udcff\n"),
        ("ascii", b"\\u56fe \\xe9 \\udcff\n"),
        ("utf-8", "图 é \\udcff\n".encode()),
    ],
)
def test_letters_that_a_code_page_lacks(encoding, expected):
    code = PRINTS.format(lines=0, fails=True)
    done = python(code, env={"PYTHONIOENCODING": encoding}, capture_output=True)
    assert (done.returncode, done.stdout) == (3, expected)
    assert done.stderr == b"tbac-uniimage: Ended: " + expected.split()[0] + b".\n"


def test_the_c_locale():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = python(PRINTS.format(lines=0, fails=False), env=plain, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"\\u56fe ")


HELP = [["--help"], ["train", "run", "--help"], ["data", "index", "--help"], ["score", "--help"]]


@pytest.mark.parametrize("argv", HELP)
def test_help_in_ascii_and_in_a_narrow_window(argv):
    done = python(
        SHELL, *argv, env={"PYTHONIOENCODING": "ascii", "COLUMNS": "1"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: tbac-uniimage" in done.stdout


@pytest.mark.parametrize("lines", [0, 100_000], ids=["at the end", "in between"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe(lines, fails, unbuffered):
    """The reader has gone before anything is printed, so nothing depends on who is faster."""
    read, write = os.pipe()
    os.close(read)
    try:
        code, env = PRINTS.format(lines=lines, fails=fails), {"PYTHONUNBUFFERED": unbuffered}
        done = python(code, env=env, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, "")


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("tbac_uniimage.shell.main", ["--help"]),
        ("tbac_uniimage.training.train", ["--help"]),
        ("tbac_uniimage.training.train", ["RECIPE", "--dry-run"]),
    ],
)
def test_entries_whose_reader_has_gone(module, argv):
    from test_paths import RECIPE

    code = f"import sys; from {module} import main; sys.exit(main())"
    if "--dry-run" in argv:  # a summary, without a model and data
        code = f"import sys\nfrom {module} import main\nimport {module} as entry\n"
        code += "entry.dry_run = lambda recipe: 'summary\\n' * 9\nsys.exit(main())"
    read, write = os.pipe()
    os.close(read)
    try:
        words = [RECIPE if word == "RECIPE" else word for word in argv]
        done = python(code, *words, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("lines", [0, 100_000])
def test_a_full_disk(lines):
    with open("/dev/full", "w") as full:
        done = python(PRINTS.format(lines=lines, fails=False), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == DISK
    assert done.stderr == "tbac-uniimage: There is no space left for what is printed or written; free some.\n"


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2)])
def test_closed_streams(closed, tmp_path):
    """Files that are opened then must not become the stream."""
    code = PRINTS.replace("def command():", "def command():\n    file = open('new', 'w')").format(
        lines=3, fails=True
    )
    redirect = " ".join(f"{stream}>&-" for stream in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, code],
        capture_output=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert done.returncode == 3
    assert (tmp_path / "new").read_bytes() == b""
    assert (b"\n2\n" in done.stdout) == (1 not in closed)
    assert (b"Ended" in done.stderr) == (2 not in closed) and b"Ended" not in done.stdout


def test_an_output_error_of_something_else_is_a_bug():
    code = """
import os, sys
from tbac_uniimage.training import exits
def command():
    read, write = os.pipe()
    os.close(read)
    where = {"__spec__": None, "__name__": "library", "write": write}
    exec(compile("import os\\nos.write(write, b'x')", "library", "exec"), where)
sys.exit(exits.run_command(command))
"""
    done = python(code, capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


def test_no_terminal_means_no_bar(tmp_path):
    """Case of a log file: paths on stdout, the seed on stderr, and no bar between them."""
    argv = ["generate", "a star", "--steps", "1", "--out", str(tmp_path / "图"), "--device", "cpu"]
    done = python(SHELL, *argv, env={"PYTHONIOENCODING": "cp1252"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\\u56fe/0001.png\n") and (tmp_path / "图" / "0001.png").is_file()
    assert done.stderr.startswith(b"(seed ") and done.stderr.count(b"\n") == 1 and b"%" not in done.stderr


def test_bars_are_rare_in_a_log():
    code = """
import time
from tbac_uniimage.training.report import progress
bar = progress.progress_bar(total=2000, unit="step")
for _ in range(2000):
    bar.update()
bar.close()
progress.progress_bar(False, total=9).close()
"""
    done = python(code, capture_output=True, text=True)
    lines = [line for line in done.stderr.replace("\r", "\n").split("\n") if line]
    assert done.returncode == 0 and len(lines) == 2
    assert "0/2000" in lines[0] and "2000/2000" in lines[1]
