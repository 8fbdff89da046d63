"""What leaves the repository: a wheel that works alone, and a published pack with nothing that could harm."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from published import ROOT, project_files, published_files


def test_published_pack_is_complete():
    names = {path.as_posix() for path in published_files()}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "NOTICE", "README.md"} <= names
    templates = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert "text_to_image" in templates
    assert {f"workflows/{name}.{kind}" for name in templates for kind in ("json", "jpg")} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "web" / "docs").rglob("*.md")} <= names
    assert "assets/samples/tbac_uniimage_scene.png" in names
    assert {path.parts[0] for path in published_files() if len(path.parts) > 1} <= {
        "assets",
        "core",
        "locales",
        "nodes",
        "subgraphs",
        "web",
        "workflows",
    }


def test_installing_the_pack_changes_nothing():
    """ComfyUI's Manager installs every line of requirements.txt into the user's environment."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(line.startswith("#") for line in lines)
    assert re.search(r"^dependencies = \[\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_extra_and_check_ask_for_the_same_versions():
    from tbac_uniimage.core import MINIMUM

    extra = re.search(r"^standalone = (.*)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    for name, minimum in MINIMUM.items():
        assert f'"{name}>={".".join(map(str, minimum))}"' in extra


@pytest.mark.slow
def test_wheel_works_alone(tmp_path):
    """Built offline, installed by unpacking, imported from there; it holds what the source tree holds."""
    source, target = tmp_path / "source", tmp_path / "site"
    for path in project_files("--others", "--exclude-standard"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, source / path)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", tmp_path, source]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)

    there = {path.relative_to(target / "tbac_uniimage") for path in target.glob("tbac_uniimage/**/*")}
    wanted = [path for path in project_files("--others", "--exclude-standard") if is_packaged(path)]
    assert not set(wanted) - there
    assert not [path for path in there if path.parts[0] in ("tests", "scripts", "benchmarks", "docs")]
    licences = {path.name for path in target.glob("*.dist-info/licenses/*")}
    assert licences == {"LICENSE", "NOTICE"}

    code = (
        "import tbac_uniimage, tbac_uniimage.shell.commands as c; from tbac_uniimage.shell.main import main;"
        "print(tbac_uniimage.__file__, c.EMBEDDED); main(['info', '--released']);"
        "main(['generate', 'a star on blue', '--steps', '1', '--device', 'cpu', '--out', 'drawn'])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        check=True,
        capture_output=True,
        text=True,
    )
    first, *rest = answer.stdout.splitlines()
    package = target / "tbac_uniimage"
    assert first == f"{package / '__init__.py'} {package / 'assets' / 'nano'}"
    assert any("5,681,505,091" in line for line in rest)
    assert (tmp_path / rest[-1]).name == "0001.png" and (tmp_path / rest[-1]).is_file()


def is_packaged(path: Path) -> bool:
    """Whether a file of the source tree belongs into the wheel."""
    if path.suffix == ".py":
        return len(path.parts) == 1 or path.parts[0] in ("core", "nodes", "training")
    return path.parts[0] in ("assets", "workflows", "subgraphs", "web", "locales") or path.parts[:2] == (
        "core",
        "configs",
    )


def test_the_command_for_old_libraries_leaves_the_others_alone(monkeypatch):
    """Free to choose, pip would replace transformers for the newest diffusers."""
    from tbac_uniimage import core

    there = {"torch": "2.9.0+cu128", "transformers": "4.57.3", "diffusers": "0.35.1"}
    monkeypatch.setattr(core.metadata, "version", there.__getitem__)
    with pytest.raises(ImportError) as raised:
        core.check_versions()
    assert str(raised.value) == (
        "TBAC-UniImage cannot run: diffusers 0.35.1 is too old; in this Python run "
        '`pip install "torch==2.9.0+cu128" "transformers==4.57.3" "diffusers>=0.35.2"`.'
    )
