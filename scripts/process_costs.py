"""What processes take: memory, time and bytes read, as Linux counts them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GB = 1e9


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


def reset_peak(pid: int | str = "self") -> None:
    """Have VmHWM count from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory(name: str, pid: int | str = "self") -> int:
    """Bytes of a line of ``status``: VmRSS now, VmHWM at the peak; mapped pages of files are counted."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


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
