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
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy_tree
from process_memory import memory, reset_peak

ROOT = comfy_tree.ROOT
GRAPHS = ROOT / "tests" / "data" / "workflows"
LOADING = ROOT / "benchmarks" / "loading.py"
SCENE = ROOT / "assets" / "samples" / "tbac_uniimage_scene.png"
PROMPT, INSTRUCTION = "a red apple to the left of a yellow banana", "replace the rocket with a banana"
QUESTION = "what is in the picture?"
SHELL_TYPES = ("none", "bfloat16", "float16")  # of `load`; float32 is 22.7 GB
COMFY_TYPES = ("default", "bf16", "fp16", "fp8_e4m3fn")
DRAWN_TYPES = ("default", "bf16", "fp8_e4m3fn")
GRAPH_LIMIT_S = 3600.0
HEADER = "| what | wall, s | CPU, s | peak, GB | read, GB |"
GB = 1e9


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

    def child(self, name: str, *words: str) -> list[str]:
        """This file again, for what is no command."""
        return [sys.executable, __file__, str(self.model), "--child", name, str(self.scratch), *words]


@dataclass(frozen=True)
class Cost:
    """What something took: seconds, seconds of CPU, bytes."""

    wall: float
    cpu: float
    peak: int
    read: int

    def row(self, name: str) -> str:
        """A row of the table."""
        sizes = f"{self.peak / GB:.2f} | {self.read / GB:.2f}"
        return f"| {name} | {self.wall:.0f} | {self.cpu:.0f} | {sizes} |"


def commands(trial: Trial) -> dict[str, list[list[str]]]:
    """The items that are commands: what is done before without being measured, and last what is measured."""
    loading = [
        sys.executable,
        str(ROOT / "benchmarks" / "loading.py"),
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
        "LoRA load": [trial.child("lora", str(lora))],
        "pipeline save": [trial.child("save")],
        "pipeline back": [trial.child("back")],
    }
    for name in SHELL_TYPES:
        items[f"load {name}"] = [[*loading, name, "as it is read"]]
    for name in COMFY_TYPES:
        items[f"ComfyUI load {name}"] = [[*loading, name, "as it is read", "--comfy"]]
    for name in DRAWN_TYPES:
        items[f"ComfyUI {name}"] = [trial.child("comfyui", name, str(trial.steps), trial.device)]
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
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, scratch, *words = options.child
        CHILDREN[name](Trial(options.model, Path(scratch), 0, ""), *words)
        return
    model = options.model.resolve()
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    os.environ["COMFYUI_PATH"] = str(tree)  # whose tokenizer a checkpoint without one gets
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not model.exists():
        subprocess.run([sys.executable, __file__, str(model), "--child", "write", ""], check=True)
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
        print(
            f"|   | stays {stay / GB:.2f} GB, peak while loading {peak / stay:.3f} of it | | | |", flush=True
        )
    if device:
        print(f"| … of the GPU's memory {max(device)} MiB | | | | |", flush=True)


def measure(command: list[str]) -> tuple[str, Cost]:
    """What a command printed, and what it took with all that it started and waited for.

    Raises:
        SystemExit: it failed; the end of what it said.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        out.seek(0), said.seek(0)
        printed = out.read()
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{said.read()[-3000:]}")
    return printed, Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss << 10, used.ru_inblock * 512)


def forget_pages(model: Path) -> None:
    """Take the model's files out of the page cache, as after a start of the machine."""
    for path in model.rglob("*.safetensors") if model.is_dir() else [model]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def gpu_peak() -> Iterator[list[int]]:
    """MiB of a GPU that were in use, twice a second; empty without ``nvidia-smi``."""
    found: list[int] = []
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or shutil.which("nvidia-smi") is None:
        yield found
        return
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
            found.append(max(map(int, lines)))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        ended.set()
        looking.join()


def write(trial: Trial) -> None:
    """A random checkpoint where the model should be."""
    from random_checkpoint import write_random
    from tbac_uniimage.core.checkpoints import released_parts_on_meta
    from tbac_uniimage.core.checkpoints.tokenizers import find_tokenizer

    parts = released_parts_on_meta()
    parts.tokenizer = find_tokenizer(parts.mllm.config, [])
    write_random(parts, trial.model, as_published=True)


def save(trial: Trial) -> None:
    """Write the model as a pipeline folder."""
    from tbac_uniimage.core import LadderPipeline

    LadderPipeline.from_pretrained(trial.model).save_pretrained(trial.scratch / "pipeline")


def back(trial: Trial) -> None:
    """Load that folder; all that the checkpoint holds is in it, bit for bit. It is removed then."""
    import torch
    from tbac_uniimage.core import LadderPipeline
    from tbac_uniimage.core.checkpoints.export import released_tensors
    from tbac_uniimage.core.checkpoints.naming import place_of, released_name
    from tbac_uniimage.core.checkpoints.weights import find_weights, read_tensors

    folder = trial.scratch / "pipeline"
    mine = released_tensors(LadderPipeline.from_pretrained(folder))
    infos = {released_name(place_of(name)): info for name, info in find_weights(trial.model).items()}
    same = read_tensors(infos, lambda name, tensor: torch.tensor(torch.equal(tensor, mine[name])))
    other = [name for name, equal in same.items() if not equal]
    if other or same.keys() != mine.keys():
        sys.exit(f"{len(other)} tensors came back as others: {other[:5]}")
    shutil.rmtree(folder)


def lora(trial: Trial, file: str) -> None:
    """Load a LoRA beside the weights."""
    from tbac_uniimage.core import LadderPipeline

    pipe = LadderPipeline.from_pretrained(trial.model)
    pipe.load_lora_weights(file)
    print(pipe.get_list_adapters())


def comfyui(trial: Trial, dtype: str, steps: str, device: str) -> None:
    """Load, draw and edit on one server; prints the costs of each graph as JSON."""
    import comfy_server
    import psutil

    folder = trial.scratch / f"comfyui-{dtype}"
    paths = folder / "models.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    paths.write_text(json.dumps({"full_size": {"uniimage": str(trial.model.parent)}}))  # JSON is YAML
    more = ["--extra-model-paths-config", str(paths), *(["--cpu"] if device == "cpu" else [])]
    with comfy_server.running_server(Path(os.environ["COMFYUI_PATH"]), folder, *more) as server:
        process = psutil.Process(server.pid)
        shutil.copy(SCENE, folder / "input")
        rows = []
        for name, graph in graphs(trial.model.name, dtype, int(steps)):
            reset_peak(server.pid)
            before, start = (process.cpu_times(), process.io_counters()), time.monotonic()
            asyncio.run(comfy_server.run_graph(server, graph, limit_s=GRAPH_LIMIT_S))
            after = process.cpu_times(), process.io_counters()
            cpu = sum(after[0][:2]) - sum(before[0][:2])
            read = after[1].read_bytes - before[1].read_bytes
            rows.append((name, (time.monotonic() - start, cpu, memory("VmHWM", server.pid), read)))
    print(json.dumps(rows))


def graphs(checkpoint: str, dtype: str, steps: int) -> Iterator[tuple[str, dict]]:
    """Those of the demo with another model: ComfyUI keeps what the first loaded for the next."""
    own = {
        "TBACUniImageLoadModel": {"checkpoint": checkpoint, "weight_dtype": dtype},
        "TBACUniImageSampler": {"steps": steps},
    }
    for name in ("text_to_image", "image_edit"):
        graph = json.loads((GRAPHS / f"{name}.api.json").read_text())
        for node in graph.values():
            node["inputs"].update(own.get(node["class_type"], {}))
        if name == "text_to_image":
            latent = {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": "empty"}}
            yield "load", {"1": graph["1"], "4": graph["4"], "8": latent}
        yield name.replace("_", " "), graph


CHILDREN: dict[str, Callable[..., None]] = {
    "write": write,
    "save": save,
    "back": back,
    "lora": lora,
    "comfyui": comfyui,
}


if __name__ == "__main__":
    main()
