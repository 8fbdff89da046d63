"""Child processes of tests: each ends, with an answer or with its exit code.

What runs in a process that is started afresh must lie in a module here, and not in a test: tests are imported
under names like ``tests.test_x``, and a package of that name, as ComfyUI has one, may come first on the path.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from data_files import pixel
from tbac_uniimage.training.data.batch import TrainBatch
from tbac_uniimage.training.data.cache.entries import Cache
from tbac_uniimage.training.data.index import Index
from tbac_uniimage.training.data.loading import read_ahead
from tbac_uniimage.training.data.samples import MicroBatches
from tbac_uniimage.training.data.shards import ShardWriter, name_of
from tbac_uniimage.training.data.storage import Storage
from torch.utils.data import Dataset

LIMIT = 300  # seconds; a machine may be busy


def answer(work: Callable[..., Any], *arguments: Any, method: str = "spawn", limit: float = LIMIT) -> Any:
    """What ``work(*arguments)`` returns in a process of its own. Fails if that dies, or takes too long."""
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=send, args=(sending, work, arguments))
    child.start()
    sending.close()  # the child has its own; when that is closed there is nothing to wait for
    try:
        assert receiving.poll(limit), f"{work.__name__} gave no answer in {limit} s"
        return receiving.recv()
    except EOFError:
        child.join(limit)
        raise AssertionError(f"{work.__name__} ended with {child.exitcode} and no answer") from None
    finally:
        receiving.close()
        end([child])


def send(sending: Connection, work: Callable[..., Any], arguments: tuple) -> None:
    """What the child does."""
    sending.send(work(*arguments))


def end(processes: Sequence[BaseProcess]) -> None:
    """Leave none of them behind."""
    for process in processes:
        process.kill()
        process.join()


def exit_codes(processes: Sequence[BaseProcess], limit: float = LIMIT) -> list[int]:
    """Wait for processes that end by themselves. Fails if one takes too long."""
    try:
        until = time.monotonic() + limit
        for process in processes:
            process.join(max(0, until - time.monotonic()))
        codes = [process.exitcode for process in processes]
        assert None not in codes, f"still running after {limit} s: {codes}"
        return codes
    finally:
        end(processes)


def end_in_time(limit: int = LIMIT) -> None:
    """Called by a forked process: the system ends it when the time is up, wherever it hangs."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limit)


# What tests let them do


def first_pixels(found: Index, store: Storage) -> list[tuple[int, int, int]]:
    """The first pixel of every target."""
    return [pixel(found[i].target, store) for i in range(len(found))]


def write_entries(folder: Path, start: Any) -> None:
    """Write 40 entries of a cache five times; read each back at once, while others write it too."""
    entries = Cache(folder, "model")
    start.wait(LIMIT)
    for i in list(range(40)) * 5:
        name, values = entries.name("data", f"key {i}", "64x64 centre"), torch.full((64, 8, 8), float(i))
        entries.write(name, {"latents": values})
        assert torch.equal(entries.read(name, "x")["latents"], values)


def write_until_killed(folder: Path) -> None:
    """Append entries without end; tell each on stdout when it is there."""
    writer = ShardWriter(folder, limit=100_000)
    for i in count():
        writer.add(name_of(str(i)), bytes([i % 251]) * (1000 + i))
        print(i, flush=True)


class Deadly(MicroBatches):
    """Its process is killed at the third micro-batch, as the kernel does when memory runs out."""

    def __getitem__(self, number: int) -> TrainBatch:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


class Numbers(Dataset):
    """The numbers themselves."""

    def __getitem__(self, number: int) -> int:
        return number


def read_one() -> int:
    """An item of a loader that is still alive when the process ends, as an error would leave it."""
    global LEFT_OPEN
    LEFT_OPEN = read_ahead(Numbers(), range(100), 2)
    return next(LEFT_OPEN)


def read_one_and_die() -> None:
    """Print the ids of the workers, and be killed."""
    read_one()
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
