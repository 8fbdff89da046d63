"""Start a real ComfyUI server on this machine and run graphs on it over HTTP and its websocket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import comfy_tree

READY_LINE = "To see the GUI go to"
START_LIMIT_S = 180.0
RUN_LIMIT_S = 540.0


@dataclass
class Result:
    """What one graph left behind.

    Attributes:
        images: node id -> files that the node saved, in order.
        previews: number of preview pictures that arrived while sampling.
        interrupted: True if the run was stopped by an interrupt.
    """

    images: dict[str, list[Path]] = field(default_factory=dict)
    previews: int = 0
    interrupted: bool = False


@dataclass
class Server:
    """A running ComfyUI: where it listens, where it puts its files, and its process."""

    address: str
    folder: Path
    log: Path
    pid: int = 0

    @property
    def url(self) -> str:
        """The page to open in a browser."""
        return f"http://{self.address}"


def python_for(tree: Path) -> str:
    """The interpreter of a tree that has an environment of its own, else the one that runs this."""
    for name in (".venv", "venv"):
        for inside in ("bin/python", "Scripts/python.exe"):
            if (tree / name / inside).exists():
                return str(tree / name / inside)
    return sys.executable


def free_port(wanted: int = 0) -> int:
    """The wanted port on the loopback address, or any free one if it is taken or 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command_line(
    tree: Path, port: int, *options: str, python: str | None = None, mounted: Path | None = None
) -> list[str]:
    """The command that starts ``tree``'s server with this pack, or another, mounted (see ``mount_pack``)."""
    import torch

    paths = mounted or comfy_tree.mount_pack(tree)
    command = [python or python_for(tree), str(tree / "main.py"), "--listen", "127.0.0.1"]
    command += ["--port", str(port), "--extra-model-paths-config", str(paths), "--preview-method", "auto"]
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        command.append("--cpu")
    return [*command, *options]


@contextmanager
def running_server(
    tree: Path, folder: Path, *more: str, python: str | None = None, mounted: Path | None = None
) -> Iterator[Server]:
    """Run a headless server whose files all lie under ``folder``; it is ended however the block is left.

    Args:
        more: further options of ComfyUI's command line.
        python: another interpreter than :func:`python_for`.
        mounted: what :func:`comfy_tree.mount_pack` wrote for another pack than this repository.

    Raises:
        RuntimeError: the server ended, or was not ready in time; the message holds the end of its log.
    """
    mounted = mounted or comfy_tree.mount_pack(tree, mounted=folder / "mounted")  # servers run side by side
    places = {name: folder / name for name in ("input", "output", "temp", "user")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    port = free_port()
    options = [part for name, place in places.items() for part in (f"--{name}-directory", str(place))]
    options += [
        *more,
        "--disable-auto-launch",
        "--database-url",
        f"sqlite:///{places['user'] / 'comfyui.db'}",
    ]
    server = Server(f"127.0.0.1:{port}", folder, folder / "server.log")
    process = subprocess.Popen(
        command_line(tree, port, *options, python=python, mounted=mounted),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={"OMP_NUM_THREADS": "1", **os.environ},  # small model: more threads only get in each other's way
        start_new_session=True,
    )
    server.pid = process.pid
    try:
        with log_until_ready(process, server.log) as ready:
            if not ready.wait(START_LIMIT_S) or process.poll() is not None:
                tail = "\n".join(server.log.read_text().splitlines()[-15:])
                raise RuntimeError(f"ComfyUI did not start; the end of {server.log}:\n{tail}")
            yield server
            end(process)
    finally:
        end(process)


@contextmanager
def log_until_ready(process: subprocess.Popen, path: Path) -> Iterator[threading.Event]:
    """Copy the process's output to ``path``; the event is set when it listens, or has ended."""
    ready = threading.Event()

    def pump() -> None:
        with path.open("w", buffering=1) as log:
            for line in process.stdout:
                log.write(line)
                if READY_LINE in line:
                    ready.set()
        ready.set()

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    yield ready
    thread.join()


def end(process: subprocess.Popen) -> None:
    """Ask the process to end, and insist after ten seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP leave through ``finally`` blocks, as Ctrl-C does."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)


async def run_graph(
    server: Server,
    graph: dict,
    on_event: Callable[[str, dict], None] | None = None,
    limit_s: float = RUN_LIMIT_S,
) -> Result:
    """Queue an API-format graph and follow it to its end.

    Args:
        on_event: called with the type and data of every websocket message, for progress bars.
        limit_s: how long it may take, in seconds.

    Raises:
        ValueError: the server refused the graph; one line per refused input.
        RuntimeError: a node failed while running; ComfyUI's sentence.
    """
    client = str(uuid.uuid4())
    timeout = aiohttp.ClientTimeout(total=limit_s)
    async with aiohttp.ClientSession(server.url, timeout=timeout) as session:
        async with session.ws_connect(f"/ws?clientId={client}") as socket_:
            async with session.post("/prompt", json={"prompt": graph, "client_id": client}) as reply:
                answer = await reply.json()
            if reply.status != 200:
                raise ValueError(refusal(answer))
            result = await follow(socket_, answer["prompt_id"], on_event)
        async with session.get(f"/history/{answer['prompt_id']}") as reply:
            outputs = (await reply.json()).get(answer["prompt_id"], {}).get("outputs", {})
    for node, output in outputs.items():
        result.images[node] = [
            server.folder / image["type"] / image["subfolder"] / image["filename"]
            for image in output.get("images", [])
        ]
    return result


async def follow(
    socket_: aiohttp.ClientWebSocketResponse, prompt_id: str, on_event: Callable[[str, dict], None] | None
) -> Result:
    """Read websocket messages until the prompt's history is written (``executing`` with no node)."""
    result = Result()
    async for message in socket_:
        if message.type == aiohttp.WSMsgType.BINARY:
            result.previews += 1
            continue
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data", {})
        if on_event is not None:
            on_event(kind, data)
        if kind == "execution_error" and data["prompt_id"] == prompt_id:
            raise RuntimeError(f"{data['node_type']}: {data['exception_message'].strip()}")
        if kind == "execution_interrupted" and data["prompt_id"] == prompt_id:
            result.interrupted = True
            return result
        if kind == "executing" and data["node"] is None and data.get("prompt_id") == prompt_id:
            return result
    raise RuntimeError("ComfyUI closed the connection before the graph ended.")


def refusal(answer: dict) -> str:
    """ComfyUI's reasons for refusing a graph, one line each."""
    lines = [
        f"{node['class_type']}: {error['details'] or error['message']}"
        for node in answer.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    return "\n".join(lines) or answer["error"]["message"]
