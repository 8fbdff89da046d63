"""Models by name: what is meant of the hub is passed on, only safetensors is opened, failures are words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tbac_uniimage.core.hub import find_model, is_hub_name
from tbac_uniimage.core.pipeline import LadderPipeline
from tbac_uniimage.shell.main import main

REVISIONS = {"main": ("a" * 40, "MAIN"), "v1": ("b" * 40, "V1")}


def add_repository(cache: Path, name: str, model: Path, revisions=REVISIONS, inner: str = ".") -> None:
    """What the hub's client leaves in its cache: a snapshot for each commit, a file for each name of one."""
    base = cache / f"models--{name.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    for ref, (commit, prompt) in revisions.items():
        folder = base / "snapshots" / commit
        shutil.copytree(model, folder / inner)
        (base / "refs" / ref).write_text(commit)
        index = folder / inner / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"system_prompt": prompt}))


@pytest.fixture
def cache(checkpoint, tmp_path, monkeypatch) -> Path:
    """The hub's cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    add_repository(tmp_path / "hub", "org/tiny", checkpoint)
    return tmp_path / "hub"


def prompt_of(name: str, **options) -> str:
    return LadderPipeline.from_pretrained(name, **options).config.system_prompt


def test_revision_cache_and_subfolder_reach_the_hub(cache, checkpoint, tmp_path, capsys):
    assert prompt_of("org/tiny") == "MAIN"
    assert prompt_of("org/tiny", revision="v1", local_files_only=True, token=False) == "V1"
    assert prompt_of("org/tiny", revision="b" * 40) == "V1"
    with pytest.raises(ValueError, match="org/tiny at revision v9 is not in the hub's cache"):
        prompt_of("org/tiny", revision="v9")
    other = tmp_path / "other"
    add_repository(other, "org/second", checkpoint, {"main": ("c" * 40, "OTHER")}, "deep/model")
    with pytest.raises(ValueError, match="org/second is not in the hub's cache"):
        prompt_of("org/second", subfolder="deep/model")
    assert prompt_of("org/second", subfolder="deep/model", cache_dir=other) == "OTHER"
    with pytest.raises(ValueError, match="org/second has no folder shallow"):
        prompt_of("org/second", subfolder="shallow", cache_dir=other)
    for out in ("../secret", "/etc"):
        with pytest.raises(ValueError, match="leads out of the model"):
            find_model("org/second", subfolder=out, cache_dir=other)
    assert main(["info", "--model", "org/tiny", "--revision", "v1"]) == 0
    assert "b" * 40 in capsys.readouterr().out
    assert main(["info", "--model", "org/tiny", "--revision", "v9"]) == 2
    assert "at revision v9 is not in the hub's cache" in capsys.readouterr().err


def test_what_is_asked_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(name: str, **options) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    given = {"revision": "r", "cache_dir": "c", "token": "t", "local_files_only": True}
    assert find_model("org/x", force_download=True, variant="fp16", **given) == tmp_path
    assert asked.pop("ignore_patterns") == ["*.bf16.*"]
    assert asked == {
        "name": "org/x",
        "allow_patterns": ["*.json", "*.txt", "*.safetensors"],
        "force_download": True,
        **given,
    }
    (tmp_path / "sub").mkdir()
    assert find_model("org/x", subfolder="sub") == tmp_path / "sub"
    assert asked["allow_patterns"][0] == "sub/*.json"


def test_names_that_are_paths_are_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("./a", "../a", "~/a", "a", "a/b/c", "runs/x", "/a", ""):
        assert not is_hub_name(name)
        with pytest.raises(ValueError, match="There is no model at" if name else "is no"):
            find_model(name or ".", subfolder=None if name else "is no")
    assert is_hub_name("org/x")
    with pytest.raises(ValueError, match="longer than the system allows"):
        find_model("x" * 300)


@pytest.mark.parametrize("part", ["mllm/model", "transformer/diffusion_pytorch_model"])
def test_pickles_are_not_opened(checkpoint, tmp_path, part):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    weights = folder / f"{part}.safetensors"
    name = "pytorch_model.bin" if part.startswith("mllm") else f"{weights.stem}.bin"
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    import pickle

    (weights.parent / name).write_bytes(pickle.dumps(Evil()))
    weights.unlink()
    with pytest.raises((OSError, ValueError)):
        LadderPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="only safetensors files are opened"):
        LadderPipeline.from_pretrained(folder, use_safetensors=False)
    assert not marker.exists()


class Hub(BaseHTTPRequestHandler):
    """Refuses every model in the way that its name says."""

    ANSWERS = {
        "gated": (403, "GatedRepo"),
        "missing": (404, "RepoNotFound"),
        "old": (404, "RevisionNotFound"),
    }

    def do_GET(self) -> None:
        name = self.path.split("/org/")[-1].split("/")[0]
        code, kind = self.ANSWERS.get(name, (404, "EntryNotFound"))
        self.send_response(code)
        self.send_header("X-Error-Code", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


SAY = """
import sys
from tbac_uniimage.core.hub import find_model
for name in sys.argv[1:]:
    try:
        find_model(name, revision="v1")
    except ValueError as error:
        print(error)
"""


def test_refusals_of_the_hub_and_no_network_are_sentences(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def say(port: int, *names: str) -> list[str]:
        found = subprocess.run(
            [sys.executable, "-c", SAY, *names],
            env=os.environ
            | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout.splitlines()

    gated, missing, old = say(server.server_port, *(f"org/{name}" for name in Hub.ANSWERS))
    server.shutdown()
    server.server_close()
    assert gated == "org/gated is gated: accept its terms on the hub, then run `hf auth login`."
    assert missing.startswith("There is no folder org/missing, and the hub gives no model of that name")
    assert old == "org/old has no revision v1; look at its branches and tags."
    [offline] = say(9, "org/far")  # nothing listens there
    assert offline.startswith("org/far at revision v1 is not in the hub's cache on this machine")
