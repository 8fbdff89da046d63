"""Do what README.md and "Ten minutes" of docs/training.md say, as a reader would today: nothing is pinned.

    python scripts/newest.py             every command of both, then parity; three minutes
    python scripts/newest.py --record    and write what ran into README's "tested up to"
    PYTHON scripts/newest.py             the same with another interpreter, 3.10 or newer, that has torch

The commands are read from the documents and run one after the other in a copy of this checkout, in an
environment that holds torch and nothing else when it begins. What cannot run here is in ``LEFT_OUT`` with its
reason; a command that is in neither document any more may not stay there. A FutureWarning is an error, and so
is a word about something deprecated.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import environments

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "versions" / "newest-{}.{}".format(*sys.version_info)
RECORD = ROOT / "tests" / "data" / "tested_versions.json"
RECORDED = ("torch", "transformers", "diffusers", "accelerate", "peft", "numpy", "pillow")
COMMAND_LIMIT_S = 1800  # a machine may be busy; what hangs is found all the same

NEEDS_A_HUB = "needs the base models from a hub, a GPU and days"
LEFT_OUT = {
    "make demo": "sets up a checkout; tests/test_comfy_server.py draws its graphs",
    "make test": "CI runs it",
    "comfy launch -- --cpu": "needs ComfyUI; tests/test_registry.py runs comfy-cli against one",
    "comfy run --workflow tests/data/workflows_api/text_to_image.json --wait": "the same",
    "tbac-uniimage evaluate draw geneval --model DIR --out runs/eval": "needs the benchmark's files from its "
    "repository; tests/test_evaluation_end_to_end.py runs the verbs",
    "tbac-uniimage score": "needs drawings from npm, half an hour; tests/test_nano_score.py runs its parts",
    "accelerate launch -m tbac_uniimage.training.train training/recipes/1_text_to_image.yaml": NEEDS_A_HUB,
    "accelerate launch -m tbac_uniimage.training.train training/recipes/2_image_text_to_image.yaml "
    "init=runs/stage1/last": NEEDS_A_HUB,
    "accelerate launch -m tbac_uniimage.training.train training/recipes/3_fine_tune.yaml "
    "init=runs/stage2/last": NEEDS_A_HUB,
    "accelerate launch -m tbac_uniimage.training.train training/recipes/4_few_steps.yaml "
    "init=runs/stage3/last": NEEDS_A_HUB,
}
# 300 steps are minutes; all else of the recipe stays
SHORTENED = {
    "tbac-uniimage train run training/recipes/nano/own_pictures.yaml": "train.steps=6 train.warmup=2 "
    "checkpoint.every=3 validation.every=6"
}
# the models are too small for threads. What Python compiled is kept though a container may forbid it: each
# command would compile the libraries anew
ALWAYS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::FutureWarning"}
ALWAYS |= {"PYTHONDONTWRITEBYTECODE": ""}
DEPRECATED = re.compile(r"^.*(?:deprecat|FutureWarning).*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document: its language, "" for a shell's, and its text."""

    language: str
    text: str

    def commands(self) -> list[str]:
        """The lines of a shell block, without comments."""
        lines = (re.sub(r"(^|\s+)#.*$", "", line) for line in self.text.replace("\\\n", " ").splitlines())
        return [line for line in lines if line]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document in Markdown, in order."""
    found = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    return [Block(language.strip(), body) for language, body in found]


def readers_blocks() -> list[Block]:
    """What a reader of README and of "Ten minutes" runs."""
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    minutes = re.search(r"^## Ten minutes\n(.*?)^## ", training, re.MULTILINE | re.DOTALL).group(1)
    return blocks((ROOT / "README.md").read_text(encoding="utf-8")) + blocks(minutes)


def copy_checkout(place: Path) -> Path:
    """This checkout as git would hand it over, changes included: its folder."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, answer.stdout.split("\0")):
        if (ROOT / name).is_file():  # a deleted one is listed until that is committed
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place


DRAW_PICTURES = """
from pathlib import Path
from PIL import Image, ImageDraw
folder = Path("pictures")
folder.mkdir()
for i in range(50):
    shape, colour = ("circle", "square")[i % 2], ("red", "blue", "green", "black", "orange")[i % 5]
    image = Image.new("RGB", (96, 80), "white")
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "circle" else draw.rectangle)((10 + i, 10, 40 + i, 40), fill=colour)
    image.save(folder / f"{i:02}.jpg")
    (folder / f"{i:02}.txt").write_text(f"a {colour} {shape}")
"""


class Failed(RuntimeError):
    """A command of a document did not do what the document says."""


@dataclass(frozen=True)
class Reader:
    """A reader at a shell: in a checkout, with a Python, and with variables that lead to its environment."""

    tree: Path
    python: Path
    settings: dict[str, str]

    def run(self, command: list[str | Path]) -> str:
        """Run a command and print how long it took; what it printed.

        Raises:
            Failed: it failed, or something in it is deprecated.
        """
        began = time.monotonic()
        shown = " ".join(map(str, command[2:])) or str(command[1])
        try:
            answer = subprocess.run(
                command,
                cwd=self.tree,
                env={**os.environ, **ALWAYS, **self.settings},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=COMMAND_LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"`{shown}` did not end within {COMMAND_LIMIT_S} s.") from None
        if answer.returncode:
            raise Failed(f"`{shown}` ended with {answer.returncode}:\n{answer.stdout[-3000:]}")
        if told := DEPRECATED.search(answer.stdout):
            raise Failed(f"`{shown}` uses what is going away: {told.group()}")
        print(f"{time.monotonic() - began:6.1f} s  {shown}", flush=True)
        return answer.stdout

    def run_python(self, name: str, text: str) -> None:
        """Run a script that is given as text. Raises Failed."""
        script = self.tree / "out" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(text, encoding="utf-8")
        self.run([self.python, script.relative_to(self.tree)])

    def read(self, block: Block) -> None:
        """Do what a block says. Raises Failed."""
        if block.language == "python":
            self.run_python("block.py", block.text)
        elif block.language == "":
            for command in block.commands():
                if command in LEFT_OUT:
                    print(f"           {command}: {LEFT_OUT[command]}")
                    continue
                if command.startswith("tbac-uniimage data index") and not (self.tree / "pictures").exists():
                    self.run_python("draw_pictures.py", DRAW_PICTURES)  # the reader's own
                self.run(["bash", "-c", f"{command} {SHORTENED.get(command, '')}".strip()])
        else:
            raise Failed(f"Nothing here knows how to run a block of {block.language!r}; teach it to.")


def read_documents() -> Reader:
    """Do all that the documents say; the reader, whose environment is then that of README's last command."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    reader = Reader(copy_checkout(FOLDER / "checkout"), *environments.with_torch_alone(FOLDER / "venv"))
    for block in readers_blocks():
        reader.read(block)
    return reader


def versions(python: Path) -> dict[str, str]:
    """What an environment holds: Python, and the libraries that matter, by name."""
    code = f"""
import json, platform
from importlib.metadata import version
print(json.dumps({{"python": platform.python_version(), **{{name: version(name) for name in {RECORDED}}}}}))
"""
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def feature_release(version: str) -> tuple[int, ...]:
    """3.11.7 as (3, 11)."""
    return tuple(map(int, version.split(".")[:2]))


def said_in_readme(records: Mapping[str, dict[str, str]]) -> str:
    """How README says what ran, from the records by Python's feature release."""
    libraries = (
        max(feature_release(tested[name]) for tested in records.values())
        for name in ("transformers", "diffusers")
    )
    pythons = sorted(map(feature_release, records))  # each that ran: what lies between two may not have
    transformers, diffusers, *ran = (".".join(map(str, version)) for version in (*libraries, *pythons))
    listed = " and ".join(filter(None, (", ".join(ran[:-1]), ran[-1])))
    return f"tested up to {transformers} and {diffusers}, with Python {listed}"


def record(tested: dict[str, str]) -> None:
    """Write what ran into the record of its Python, and into README what all records say together."""
    records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    python = ".".join(map(str, feature_release(tested["python"])))
    records[python] = {"date": date.today().isoformat(), **tested}
    RECORD.write_text(json.dumps(dict(sorted(records.items())), indent=2) + "\n")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    said = r"tested up to [\d.]+ and [\d.]+, with Python [\d.]*\d(?:(?:, | and )[\d.]*\d)*"
    readme.write_text(re.sub(said, said_in_readme(records), text), encoding="utf-8")


def main(options: list[str]) -> int:
    """Read the documents, compare with the authors' numbers, and record what ran if that is wanted."""
    began = os.times().elapsed
    try:
        reader = read_documents()
        print(reader.run([reader.python, "tests/parity.py", "tests/data/parity"]))
    except Failed as error:
        print(error)
        return 1
    tested = versions(reader.python)
    print(", ".join(f"{name} {version}" for name, version in tested.items()))
    used = os.times()
    cpu = used.children_user + used.children_system
    print(f"{used.elapsed - began:.0f} s, {cpu:.0f} s of CPU time")
    if "--record" in options:
        record(tested)
    return 0


if __name__ == "__main__":
    if set(sys.argv[1:]) - {"--record"}:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
