"""Real training runs on the tiny reference model: processes that are started, killed, and started again.

Processes are forked off a server that has the libraries loaded, so that one starts in a fraction of a second.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from children import end
from conftest import PARITY, QWEN, ROOT, SANA
from data_files import picture, write
from tbac_uniimage.training.data.build import build

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["preload_training"])
if multiprocessing.parent_process() is None and "preload_training" not in sys.modules:
    # at once: a process has one such server, and what starts it, as readers of data do, says what it loads
    with pytest.MonkeyPatch.context() as patch:  # the server is not told our sys.path before Python 3.13
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
LIMIT = 300  # seconds that a test waits before it fails
STARTED: list[BaseProcess] = []


def make_data(folder: Path, number: int = 24) -> Path:
    """An index of captioned pictures of different sizes."""
    random = Random(0)
    files: dict[str, bytes | str] = {}
    for i in range(number):
        color = tuple(random.randrange(256) for _ in range(3))
        files[f"{i:03d}.png"] = picture(color, (random.randrange(64, 90), random.randrange(64, 90)))
        files[f"{i:03d}.txt"] = f"a picture in {color[0]} {'and more ' * random.randrange(4)}"
    build(str(write(folder / "pictures", files)), folder / "index", name="pictures")
    return folder / "index" / "pictures"


def make_edits(folder: Path, number: int = 8) -> Path:
    """An index of edits, one of them with two input pictures."""
    random = Random(1)
    files: dict[str, bytes | str] = {}
    lines = []
    for i in range(number):
        colors = [tuple(random.randrange(256) for _ in range(3)) for _ in range(3)]
        for name, color in zip(("a", "b", "out"), colors, strict=True):
            files[f"{i}-{name}.png"] = picture(color, (64, 64))
        sources = [f"{i}-a.png", f"{i}-b.png"] if i == 0 else [f"{i}-a.png"]
        line = {"input_prompt": f"make it {i}", "input_image": sources, "output_image": f"{i}-out.png"}
        lines.append(line)
    files["text_and_image_to_image.json"] = json.dumps(lines)
    build(str(write(folder / "edits", files)), folder / "index", name="edits")
    return folder / "index" / "edits"


def recipe(run: Path, data: Sequence[Path], **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for the tiny model on a CPU; sections are merged into it."""
    settings: dict[str, Any] = {
        "stage": "tiny",
        "run": str(run),
        "seed": 3,
        "base": {"mllm": str(QWEN), "sana": str(SANA), "num_queries": 8},
        "data": {"sets": [{"index": str(path)} for path in data], "resolution": 64, "workers": 0},
        "train": {
            "steps": 12,
            "batch": 4,
            "micro_batch": 1,
            "learning_rate": 2e-3,
            "warmup": 2,
            "precision": "fp32",
            "gradient_checkpointing": False,
        },
        "checkpoint": {"every": 3},
        "validation": {"every": 0, "held_out": 0},
        "log": {"every": 1, "tensorboard": False},
    }
    for name, section in sections.items():
        if isinstance(section, Mapping):
            settings[name] = settings.get(name, {}) | section
        else:
            settings[name] = section
    return settings


def write_recipe(settings: Mapping[str, Any]) -> Path:
    """The recipe as a file beside its run."""
    path = Path(settings["run"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(dict(settings)))
    return path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def body(
    argv: list[str],
    environment: dict[str, str],
    output: str,
    prepare: str | None,
    module: str = "training.train",
) -> None:
    """What a process of a run does: the command, its output in a file."""
    assert "preload_training" in sys.modules, "the server passes over what it cannot import"
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [module, *argv]
    with open(output, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if prepare:
        import faults

        getattr(faults, prepare)()
    sys.exit(import_module(f"tbac_uniimage.{module}").main())


def start(
    argv: Sequence[str],
    output: Path,
    world: int = 1,
    prepare: str | None = None,
    module: str = "training.train",
    environment: Mapping[str, str] | None = None,
) -> list[BaseProcess]:
    """Start the processes of a run. ``prepare`` names a function of ``faults`` that each calls first."""
    common = {"OMP_NUM_THREADS": "1", **(environment or {})}
    if world > 1:
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
        common |= {"LOCAL_WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    processes = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        arguments = ([str(a) for a in argv], common | own, str(output), prepare, module)
        process = FORKS.Process(target=body, args=arguments)
        process.start()
        processes.append(process)
        STARTED.append(process)
    return processes


def finish(processes: Sequence[BaseProcess]) -> list[int]:
    """Wait for the processes; their exit codes. When one fails the others are ended, as a launcher would."""
    until = time.monotonic() + LIMIT
    while running(processes) and all(process.exitcode in (0, None) for process in processes):
        if time.monotonic() > until:
            end(processes)
            raise AssertionError(f"the run did not end within {LIMIT} s")
        wait([process.sentinel for process in processes if process.exitcode is None], 1)
    before = None
    # on a busy machine the others end late; those that compute nothing wait for ever
    while running(processes) and before != (used := cpu_time(processes)) and time.monotonic() < until:
        before = used
        wait([process.sentinel for process in processes if process.exitcode is None], 5)
    end(processes)
    return [process.exitcode for process in processes]


def cpu_time(processes: Sequence[BaseProcess]) -> list[list[str]]:
    """User and system time of living processes, as the system tells them."""
    stats = [Path(f"/proc/{process.pid}/stat") for process in processes if process.exitcode is None]
    return [stat.read_text().rpartition(")")[2].split()[11:13] for stat in stats if stat.exists()]


def running(processes: Sequence[BaseProcess]) -> bool:
    return any(process.exitcode is None for process in processes)


def wait_until(happened: Callable[[], bool], processes: Sequence[BaseProcess], output: Path) -> None:
    """Wait for something that a run does. Fails when a process ends before, or when it takes too long."""
    until = time.monotonic() + LIMIT
    while not happened():
        wait([process.sentinel for process in processes], 0.01)
        assert all(process.exitcode is None for process in processes), output.read_text()
        assert time.monotonic() < until, f"nothing happened for {LIMIT} s: {output.read_text()}"


@atexit.register
def end_all() -> None:
    """Where a test failed in between; the interpreter would wait for them for ever."""
    end([process for process in STARTED if process.exitcode is None])


def train(settings: Mapping[str, Any], world: int = 1, prepare: str | None = None) -> str:
    """Run a recipe to its end. Returns what it printed."""
    codes, output = run(settings, world, prepare)
    assert codes == [0] * world, output
    return output


def run(settings: Mapping[str, Any], world: int = 1, prepare: str | None = None) -> tuple[list[int], str]:
    """Run a recipe. Returns exit codes and output."""
    output = Path(settings["run"]).with_suffix(".log")
    output.unlink(missing_ok=True)
    codes = finish(start([write_recipe(settings)], output, world, prepare))
    return codes, output.read_text()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """Losses by step; every step is there once."""
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


assert PARITY.is_dir()
