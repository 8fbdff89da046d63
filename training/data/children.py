"""Worker processes that end when the process that started them does, however that ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess


def follow_parent() -> None:
    """Make this process end with its parent, and with nothing else.

    Ctrl-C and SIGTERM go to all processes of a terminal or job; the parent decides. When it is killed nobody
    tells its children, but the pipe that they hold of it is closed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_with, args=(parent_process(),), daemon=True).start()


def end_with(parent: BaseProcess) -> None:
    """End this process when another one has ended."""
    parent.join()
    os._exit(1)


def kill_all(processes: Iterable[BaseProcess]) -> None:
    """End processes, whatever they do."""
    for process in processes:
        process.kill()
        process.join()
