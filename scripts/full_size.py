"""The released size, proven: everything that a user does, on a checkpoint of 11.4 GB.

    python scripts/full_size.py MODEL [--only NAME...] [--skip NAME...] [--steps N] [--device cuda]

MODEL is the released checkpoint. If nothing is there, one of random weights is made in the same layout:
bfloat16, three shards, an index. Each item runs in a process of its own, with the checkpoint's files out of
the page cache. Printed is a row of a markdown table for each: wall time; CPU time of all threads; the peak
of resident memory, mapped pages of files included; and bytes that were read from the disk. Rows of ComfyUI
are graphs of one server, which goes on between them; `load` adds what stays, and the peak while loading as
a multiple of it. With a GPU `nvidia-smi` is asked for the peak of its memory. Linux; 24 GB of main memory
and 30 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy_tree
from full_size_work import SCENE
from process_costs import GB, Cost, forget_pages, gpu_peak, measure

ROOT = comfy_tree.ROOT
WORK = ROOT / "scripts" / "full_size_work.py"
LOADING = ROOT / "benchmarks" / "loading.py"
PROMPT, INSTRUCTION = "a red apple to the left of a yellow banana", "replace the rocket with a banana"
QUESTION = "what is in the picture?"
SHELL_TYPES = ("none", "bfloat16", "float16")  # of `load`; float32 is 22.7 GB
COMFY_TYPES = ("default", "bf16", "fp16", "fp8_e4m3fn")
DRAWN_TYPES = ("default", "bf16", "fp8_e4m3fn")
HEADER = "| what | wall, s | CPU, s | peak, GB | read, GB |"


@dataclass(frozen=True)
class Trial:
    """What all items share: the model, where they may write, and how they run."""

    model: Path
    scratch: Path
    steps: int
    device: str

    def shell(self, *words: object) -> list[str]:
        """A command of ``tbac-uniimage``."""
        code = "import sys; from tbac_uniimage.shell.main import main; sys.exit(main())"
        return [sys.executable, "-c", code, *map(str, words)]

    def drawing(self, *words: object) -> list[str]:
        """One that draws."""
        more = ["--model", self.model, "--device", self.device, "--steps", self.steps, "--seed", 1]
        return self.shell(*words, *more, "--out", self.scratch / "out")

    def recipe(self, *words: object) -> list[str]:
        """``train run`` of one step of a LoRA on one edit."""
        values = {
            "init": self.model,
            "run": self.scratch / "run",
            "data.sets": f"[{{index: {self.scratch / 'index' / 'data'}}}]",
            "data.workers": 0,
            "train.parts": "lora",
            "train.epochs": "null",
            "train.steps": 1,
            "train.batch": 1,
            "train.micro_batch": 1,
            "train.warmup": 0,
            "validation.every": 0,
            "validation.held_out": 0,
        }
        stage = ROOT / "training" / "recipes" / "3_fine_tune.yaml"
        return self.shell("train", "run", stage, *(f"{key}={value}" for key, value in values.items()), *words)

    def work(self, name: str, *words: str) -> list[str]:
        """What is no command."""
        return [sys.executable, str(WORK), name, str(self.model), str(self.scratch), *words]


def commands(trial: Trial) -> dict[str, list[list[str]]]:
    """The items that are commands: what is done before without being measured, and last what is measured."""
    loading = [
        sys.executable,
        str(LOADING),
        "--model",
        str(trial.model),
        "--child",
    ]
    lora = trial.scratch / "lora.safetensors"
    index = trial.shell("data", "index", trial.scratch / "data", "-o", trial.scratch / "index")
    items = {
        "info": [trial.shell("info", "--model", trial.model)],
        "generate": [trial.drawing("generate", PROMPT)],
        "edit": [trial.drawing("edit", SCENE, INSTRUCTION)],
        "ask": [
            trial.shell("ask", SCENE, QUESTION, "--model", trial.model, "--max-tokens", 8)
            + ["--device", trial.device]
        ],
        "dry run": [index, trial.recipe("--dry-run")],
        "LoRA step": [trial.recipe()],
        "LoRA export": [trial.shell("export", trial.scratch / "run", "--to", "lora", "-o", lora)],
        "LoRA load": [trial.work("lora", str(lora))],
        "pipeline save": [trial.work("save")],
        "pipeline back": [trial.work("back")],
    }
    for name in SHELL_TYPES:
        items[f"load {name}"] = [[*loading, name, "as it is read"]]
    for name in COMFY_TYPES:
        items[f"ComfyUI load {name}"] = [[*loading, name, "as it is read", "--comfy"]]
    for name in DRAWN_TYPES:
        items[f"ComfyUI {name}"] = [trial.work("comfyui", name, str(trial.steps), trial.device)]
    return items


def main() -> None:
    """Make the checkpoint if there is none, run the items, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the checkpoint's folder, or where to make a random one")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="items, by how they begin")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="items that are left out")
    parser.add_argument("--steps", type=int, default=2, help="of each picture (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument(
        "--scratch", type=Path, help="where to write, kept; default: a folder beside MODEL, removed"
    )
    options = parser.parse_args()
    model = options.model.resolve()
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    os.environ["COMFYUI_PATH"] = str(tree)  # whose tokenizer a checkpoint without one gets
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not model.exists():
        subprocess.run([sys.executable, WORK, "write", model, model.parent], check=True)
    with scratch_folder(options.scratch, model) as scratch:
        items = commands(Trial(model, scratch, options.steps, options.device))
        begin = [name for name in items if not options.only or name.startswith(tuple(options.only))]
        print(f"{HEADER}\n| --- | ---: | ---: | ---: | ---: |", flush=True)
        for name in begin:
            if not (options.skip and name.startswith(tuple(options.skip))):
                run(name, items[name], model)


@contextmanager
def scratch_folder(given: Path | None, model: Path) -> Iterator[Path]:
    """Where items write, with a picture and its instruction to train on."""
    folder = given.resolve() if given else Path(tempfile.mkdtemp(prefix="full_size_", dir=model.parent))
    try:
        prepare_data(folder / "data")
        yield folder
    finally:
        if given is None:
            shutil.rmtree(folder)


def prepare_data(folder: Path) -> None:
    """Two pictures with captions, in the released model's size."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        Image.open(SCENE).convert("RGB").resize((512, 512)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a rocket and a cactus")


def run(name: str, item: list[list[str]], model: Path) -> None:
    """Run the commands of an item and print its rows; what failed says so and ends the whole."""
    *before, measured = item
    for command in before:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    forget_pages(model)
    with gpu_peak() as device:
        printed, cost = measure(measured)
    rows = [(name, cost)]
    if name.startswith("ComfyUI ") and not name.startswith("ComfyUI load"):
        found = json.loads(printed.splitlines()[-1])
        rows = [(f"{name}, {graph}", Cost(*numbers)) for graph, numbers in found]
    for row, spent in rows:
        print(spent.row(row), flush=True)
    if name.startswith(("load", "ComfyUI load")):
        stay, peak, _ = json.loads(printed.splitlines()[-1])
        print(f"| … stays {stay / GB:.2f} GB, peak {peak / stay:.3f} of it | | | | |", flush=True)
    if device:
        print(f"| … of the GPU's memory {max(device)} MiB | | | | |", flush=True)


if __name__ == "__main__":
    main()
