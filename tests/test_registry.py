"""The pack as the registry publishes it: what a scan would flag, what it needs, and a ComfyUI with it."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from published import ROOT, published_files, write_zip

# by the publishers' reports any of these withholds a version, in comments and help pages too
FLAGGED = re.compile(
    r"subprocess|os\.(system|popen|environ|getenv|exec|spawn)|(?<!\.)\b(eval|exec|__import__)\(|urllib|ctypes"
    r"|marshal|b64decode|zlib\.decompress|\.(bind|connect)\(|import (requests|socket|httpx|aiohttp|pip)\b"
    r"|from (requests|socket|httpx|aiohttp|pip)\b|(pickle|torch|joblib)\.load\(|shell=True"
)
KINDS = {".py", ".js", ".md", ".json", ".toml", ".txt", ".png", ".jpg", ".safetensors", ".jinja", ""}
# what requirements.txt of ComfyUI 0.3.75 names (the tree of the tests comes without it)
COMFYUI_NEEDS = [
    *("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs", "torch", "torchsde"),
    *("torchvision", "torchaudio", "numpy", "einops", "transformers", "tokenizers", "sentencepiece"),
    *("safetensors", "aiohttp", "yarl", "pyyaml", "pillow", "scipy", "tqdm", "psutil", "alembic"),
    *("sqlalchemy", "av", "kornia", "spandrel", "pydantic", "pydantic-settings"),
]
PACK_NEEDS = ["diffusers"]
COMFY_CLI = "comfy-cli==1.23.0"


def test_nothing_published_is_flagged():
    found = []
    for path in published_files():
        if path.suffix in {".py", ".md", ".json", ".toml", ".txt"}:
            text = (ROOT / path).read_text(encoding="utf-8")
            found += [f"{path}: {match.group()}" for match in FLAGGED.finditer(text)]
    assert not found


def test_only_plain_files_are_published():
    files = published_files()
    assert {path.suffix for path in files} <= KINDS
    assert {path.name for path in files if not path.suffix} == {"LICENSE", "NOTICE"}
    assert sum((ROOT / path).stat().st_size for path in files) < 100 * 2**20


def test_metadata_is_what_the_registry_reads():
    text = (ROOT / "pyproject.toml").read_text()
    fields = dict(re.findall(r'^([\w-]+) = "(.*)"$', text, re.MULTILINE))
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["version"])
    assert "comfyui" not in fields["name"].lower() and re.fullmatch(r"[a-z0-9-]+", fields["name"])
    assert fields["Repository"].startswith("https://github.com/")
    assert fields["PublisherId"] and fields["DisplayName"] and fields["requires-comfyui"]
    # one classifier that the registry does not know drops all of them
    known = re.findall(r'"((?:Operating System|Environment) ::[^"]*)"', text)
    assert known == ["Operating System :: OS Independent"]


def ids_in(text: str) -> set[str]:
    """Node ids by the rule of ComfyUI-Manager 2.0.13's scanner.py, which runs nothing.

    A class counts if ``ComfyNode`` is among its bases as written; its id is the literal ``node_id`` of a call
    named ``Schema`` in ``define_schema``, or else the name of the class.
    """

    def named(node: ast.expr, name: str) -> bool:
        return getattr(node, "id", getattr(node, "attr", None)) == name

    found = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ClassDef) or not any(named(base, "ComfyNode") for base in node.bases):
            continue
        literals = [
            keyword.value.value
            for method in node.body
            if isinstance(method, ast.FunctionDef) and method.name == "define_schema"
            for call in ast.walk(method)
            if isinstance(call, ast.Call) and named(call.func, "Schema")
            for keyword in call.keywords
            if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
        ]
        found.add(literals[0] if literals else node.name)
    return found


def test_the_managers_scanner_finds_our_nodes_and_no_others():
    """It reads the whole repository, tests too; "install missing nodes" goes by what it found."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True
    )
    files = [ROOT / name for name in listed.stdout.split()]
    assert len(files) > 100
    texts = [path.read_text(encoding="utf-8") for path in files if path.exists()]
    found = [name for text in texts for name in ids_in(text)]
    assert sorted(found) == sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))
    assert not any(re.search(r"_CLASS_MAPPINGS\s*[\[=:.]", text) for text in texts), "nodes of the old kind"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The published zip, unpacked where the Manager would."""
    folder = tmp_path_factory.mktemp("published")
    write_zip(folder / "node.zip")
    with zipfile.ZipFile(folder / "node.zip") as archive:
        archive.extractall(folder / "tbac-uniimage")
    return folder / "tbac-uniimage"


@pytest.fixture(scope="module")
def comfy_cli(tmp_path_factory) -> list[str]:
    """comfy-cli in an environment of its own, since its pins are not ours; and a home of its own."""
    import environments

    try:
        python = environments.beside_this_one(ROOT / ".cache" / "comfy-cli", [COMFY_CLI])
    except RuntimeError as error:
        pytest.skip(str(error))
    return [str(python.parent / "comfy"), "--skip-prompt"]


def run_cli(command: list[str], folder: Path, home: Path) -> subprocess.CompletedProcess:
    """Run comfy-cli without a terminal and with nothing of this user's settings."""
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "DO_NOT_TRACK": "1"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
    )


@pytest.mark.slow
def test_comfy_node_validate_is_clean(unpacked, comfy_cli, tmp_path):
    run_cli([*comfy_cli, "tracking", "disable"], unpacked, tmp_path)
    answer = run_cli([*comfy_cli, "node", "validate"], unpacked, tmp_path)
    told = answer.stdout + answer.stderr
    assert answer.returncode == 0 and "All validation checks passed" in told, told
    assert "warning" not in told.lower(), told


# comfy-cli's command on one graph after another, in one process: it takes seconds to load
RUN_EACH = """
import sys
from comfy_cli.__main__ import main

graphs = [word for word in sys.argv[1:] if word.endswith(".json")]
words = sys.argv[1 + len(graphs):]
for graph in graphs:
    sys.argv = ["comfy", *words, "--workflow", graph]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    print(graph, "ran")
"""


@pytest.mark.slow
@pytest.mark.comfy
def test_the_published_zip_runs_with_comfyuis_packages_alone(comfy_tree, unpacked, comfy_cli, tmp_path):
    """No test tool, training library or accelerate is there, nor this checkout; comfy-cli runs a template."""
    import comfy_server
    import comfy_tree as trees
    import environments

    newer = comfy_tree / "requirements.txt"
    more = re.findall(r"^[\w.-]+", newer.read_text(), re.MULTILINE) if newer.is_file() else []
    python = environments.only(tmp_path / "venv", COMFYUI_NEEDS + PACK_NEEDS + more)
    absent = ("accelerate", "peft", "pytest", "tbac_uniimage")
    code = f"import importlib.util as u; print([name for name in {absent} if u.find_spec(name)])"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert answer.stdout == "[]\n"
    mounted = trees.mount_pack(comfy_tree, unpacked, tmp_path / "mounted")
    graphs = sorted((ROOT / "tests" / "data" / "workflows_api").glob("*.json"))
    assert graphs
    folder = tmp_path / "comfyui"
    with comfy_server.running_server(comfy_tree, folder, python=str(python), mounted=mounted) as server:
        [drawn] = [json.loads(graph.read_text()) for graph in graphs if graph.stem == "text_to_image"]
        assert any(asyncio.run(comfy_server.run_graph(server, drawn)).images.values())
        run_cli([*comfy_cli, "tracking", "disable"], tmp_path, tmp_path)
        host, port = server.address.split(":")
        options = ["--host", host, "--port", port, "--wait", "--timeout", "600"]
        program, *words = comfy_cli
        each = [str(Path(program).with_name("python")), "-c", RUN_EACH, *map(str, graphs)]
        answer = run_cli([*each, *words, "run", *options], tmp_path, tmp_path)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert answer.stdout.count(" ran") == len(graphs)
        assert "(IMPORT FAILED)" not in server.log.read_text()


@pytest.mark.slow
def test_installing_replaces_nothing_of_a_users():
    """A ComfyUI of a year ago: pip's plan for the pack is empty, for our command it is what was missing."""
    import parity_versions

    try:
        python = parity_versions.make_environment("oldest")
    except RuntimeError as error:
        pytest.skip(str(error))
    assert planned(python, "-r", str(ROOT / "requirements.txt")) == set()
    transformers, diffusers = parity_versions.PAIRS["oldest"]
    newer = f"diffusers>{diffusers}"  # as if what is there were too old
    plan = planned(python, f"torch=={metadata.version('torch')}", f"transformers=={transformers}", newer)
    assert "diffusers" in plan and not plan & set(COMFYUI_NEEDS) and "huggingface-hub" not in plan


def planned(python: Path, *wanted: str) -> set[str]:
    """What pip would install into an environment for some requirements."""
    command = [
        str(python),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--dry-run",
        "--report",
        "-",
    ]
    answer = subprocess.run(
        [*command, *wanted], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    if answer.returncode:
        pytest.skip(f"no package index: {answer.stderr[-300:]}")
    return {item["metadata"]["name"].lower() for item in json.loads(answer.stdout)["install"]}
