"""Which Chromium the browser tests take, and what is said where there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import comfy_browser
import pytest
import setup_browser


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """A machine with nothing installed, whose path is one empty folder; commands are only written down."""
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(comfy_browser, "playwright_chromium", lambda: None)
    return tmp_path


@pytest.fixture
def commands(monkeypatch) -> list[str]:
    ran = []
    monkeypatch.setattr(setup_browser, "run", lambda *command: ran.append(" ".join(command)))
    return ran


def test_a_named_program_comes_first_and_must_exist(machine, monkeypatch):
    program(machine / "bin" / "chromium")
    named = program(machine / "mine" / "chrome")
    monkeypatch.setenv("CHROMIUM_PATH", str(named))
    assert comfy_browser.find_chromium() == str(named)
    monkeypatch.setenv("CHROMIUM_PATH", str(machine / "none"))
    with pytest.raises(FileNotFoundError, match="CHROMIUM_PATH is .*none, which is no program"):
        comfy_browser.find_chromium()


def test_a_snap_is_passed_over(machine):
    program(machine / "bin" / "chromium-browser", '#!/bin/sh\nexec /snap/bin/chromium "$@"\n')
    assert comfy_browser.find_chromium() is None
    chrome = program(machine / "bin" / "google-chrome")
    assert comfy_browser.find_chromium() == str(chrome)


@pytest.mark.parametrize(
    ("policy", "user", "expected"),
    [
        ("  Candidate: 156.0\n", 0, ["update", "install"]),
        ("  Candidate: (none)\n", 0, ["update", "playwright install --with-deps chromium"]),
        ("", 0, ["update", "playwright install --with-deps chromium"]),  # Ubuntu has no such package
        ("", 1000, ["playwright install chromium"]),
    ],
)
def test_apt_where_it_offers_one_else_playwright(machine, commands, monkeypatch, policy, user, expected):
    program(machine / "bin" / "apt-get")
    answer = subprocess.CompletedProcess([], 0, policy)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr("os.geteuid", lambda: user)
    setup_browser.install_chromium()
    assert len(commands) == len(expected)
    assert all(wanted in command for wanted, command in zip(expected, commands, strict=True))


def test_others_than_root_are_told_the_command(machine, commands, monkeypatch):
    program(machine / "bin" / "apt-get")
    monkeypatch.setattr(setup_browser, "apt_offers", lambda _: True)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(
        RuntimeError, match="run this as root: apt-get .* install .* chromium fonts-liberation"
    ):
        setup_browser.install_chromium()
    assert commands == []


def test_without_apt_playwright_fetches_it(machine, commands):
    setup_browser.install_chromium()
    [command] = commands
    assert command.endswith("-m playwright install chromium")


def test_a_command_that_fails_is_named():
    with pytest.raises(RuntimeError, match="`false` ended with 1, its reason stands above"):
        setup_browser.run("false")


def test_a_program_that_is_no_browser_does_not_start(tmp_path):
    pytest.importorskip("playwright")
    broken = program(tmp_path / "chromium", "#!/bin/sh\necho libnss3.so is missing >&2\nexit 127\n")
    with pytest.raises(RuntimeError, match="chromium does not start: libnss3.so is missing$"):
        comfy_browser.chromium_version(str(broken))
