"""What is fetched for the newest ComfyUI and the newest page, without fetching it."""

from __future__ import annotations

from pathlib import Path

import comfy_frontend
import pytest
import run_on_tree as newest

REQUIREMENTS = """comfyui-frontend-package==1.49.6
torch
torchsde
torchvision
torchaudio
numpy>=1.25.0
av>=16.0.0  # a comment

#non essential dependencies:
kornia>=0.7.1
spandrel
"""


def test_a_trees_packages_but_for_those_that_would_replace_ours(tmp_path):
    (tmp_path / "requirements.txt").write_text(REQUIREMENTS)
    assert newest.wanted_by(tmp_path) == ["comfyui-frontend-package==1.49.6", "av>=16.0.0", "kornia>=0.7.1"]


def test_no_whole_tree_is_one_sentence(tmp_path):
    with pytest.raises(RuntimeError, match="has no requirements.txt; give a whole tree of ComfyUI"):
        newest.wanted_by(tmp_path)


def test_skipped_where_no_tree_is_named(monkeypatch, capsys):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert newest.main() == 0
    assert capsys.readouterr().out.startswith("Skipped: name a tree")


def test_the_newest_page_is_that_of_the_highest_version(tmp_path, monkeypatch):
    monkeypatch.setattr(comfy_frontend, "FETCHED", tmp_path)
    assert comfy_frontend.find_frontend() is None
    for version in ("1.9.30", "1.58.1", "1.49.6"):
        place: Path = tmp_path / version
        place.mkdir()
        (place / "index.html").touch()
    (tmp_path / "2.0.0").mkdir()  # half fetched
    assert comfy_frontend.find_frontend() == tmp_path / "1.58.1"
