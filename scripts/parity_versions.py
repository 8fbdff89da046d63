"""Run parity with the authors' code, and the tests of core and shell, at the ends of the supported versions.

    python scripts/parity_versions.py           every pair and the newest, two at a time, ten minutes
    python scripts/parity_versions.py oldest    one of them

A pair is a virtual environment that sees this one's packages and holds only what must differ, made in
``.cache/versions`` and kept. pip resolves it, so the pair is one that users can have. torch stays this one's.
"newest" is what ``newest.py`` made of the documents' own commands on this day. If it passes, its
versions are written into README.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import environments
import newest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "versions"
PAIRS = {
    "oldest": ("4.56.0", "0.35.2"),
    "last of 4": ("4.57.6", "0.38.0"),
    "first of 5": ("5.0.0", "0.36.0"),
    "between": ("5.4.0", "0.37.1"),
    "new beside old": (metadata.version("transformers"), "0.35.2"),
    "pinned": (metadata.version("transformers"), metadata.version("diffusers")),
}
NEWEST = "newest"
TESTS = (
    *("assemble", "checkpoints", "cli", "components", "conditions", "damaged_checkpoints", "folders"),
    *("guidance", "hub", "lora", "lora_names", "pictures", "pipeline", "prompts", "rung_kinds", "rungs"),
    *("stand_ins", "threads", "tokenizers", "transformer", "understanding"),
)
TEST_TOOLS = ["pytest", "pytest-timeout", "hypothesis"]
RUN_LIMIT_S = 1800  # a machine may be busy; what hangs is found all the same
AT_ONCE = 2  # pairs, of one thread each


def make_environment(name: str) -> Path:
    """The interpreter of an environment, a pair's only made if it is not there.

    Raises:
        RuntimeError: pip cannot make it; for the newest, a command of the documents failed.
    """
    if name == NEWEST:
        reader = newest.read_documents()
        reader.run([reader.python, "-m", "pip", "install", *TEST_TOOLS])
        return reader.python
    versions = zip(("transformers", "diffusers"), PAIRS[name], strict=True)
    wanted = [f"{library}=={version}" for library, version in versions]
    return environments.beside_this_one(FOLDER / name.replace(" ", "-"), wanted)


def run(python: Path, *arguments: str | Path) -> tuple[bool, str]:
    """Whether a command went well in an environment, and what it printed."""
    answer = subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=RUN_LIMIT_S,
    )
    return answer.returncode == 0, answer.stdout


def check(name: str) -> bool:
    """Print one line for a pair: its versions, its worst errors, how its tests went."""
    try:
        python = make_environment(name)
    except RuntimeError as error:
        print(f"{name}: {error}")
        return False
    code = "from importlib.metadata import version as v; print(v('transformers'), v('diffusers'), v('torch'))"
    found = run(python, "-c", code)[1].split()[-3:]
    good, told = run(python, "tests/parity.py", "tests/data/parity")
    errors = {
        label: value
        for label in ("conditions", "first predictions", "final latents", "images", "gradients (relative)")
        for value in re.findall(rf"^{re.escape(label)} +(\S+)", told, re.MULTILINE)
    }
    files = [f"tests/test_{test}.py" for test in TESTS]
    chosen = ["-m", "not slow"]
    if name == NEWEST:  # README installs no ComfyUI
        chosen = ["-m", "not slow and not comfy", "-W", "error::FutureWarning"]
    passed, output = run(python, "-m", "pytest", *chosen, "-p", "no:cacheprovider", "--tb=short", *files)
    summary = output.strip().splitlines()[-1]
    cells = [f"{version:11}" for version in found] + [f"{error:9}" for error in errors.values()]
    print(f"{name:15}", *cells, summary, flush=True)
    for text in [told] * (not good) + [output] * (not passed):
        print(text[-3000:], flush=True)
    if name == NEWEST and good and passed:
        newest.record(newest.versions(python))
    return good and passed


def main(names: list[str]) -> int:
    """Check the named pairs, or all of them."""
    print(
        f"{'':15} {'transformers':11} {'diffusers':11} {'torch':11} {'condition':9} {'velocity':9}", end=" "
    )
    print(f"{'latents':9} {'images':9} {'gradients':9} tests of core", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return 0 if all(list(pool.map(check, names or [*PAIRS, NEWEST]))) else 1


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - {*PAIRS, NEWEST}
    if unknown:
        sys.exit(f"There is no pair {', '.join(unknown)}; there are {', '.join([*PAIRS, NEWEST])}.")
    sys.exit(main(sys.argv[1:]))
