"""Checkpoints of a run: whole or not there, and readable by any number of processes.

The tensors go through torch's distributed checkpoint into safetensors shards, so that one process, DDP and
FSDP2 read each other's. Everything else is JSON. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from ....core.checkpoints.naming import check_tensors
from .folders import (
    LAST,
    check,
    flush,
    folder_of,
    hidden,
    is_copy,
    publish,
    remove_stale,
    stored,
    write_complete,
)

SHARD_BYTES = 1 << 30  # of one process: a shard is held in memory once more while it is written
SPARE_BYTES = 16 << 20  # left free on the disk, for logs and file names

# one process without a group is a case of its own for us, and no mistake
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class CheckpointError(OSError):
    """A checkpoint could not be written. Its folder is removed, and older checkpoints are as they were."""


class Saving:
    """A checkpoint that is being written.

    Args:
        folder: where it will lie.
        work: writes it. Runs in a thread of its own, or at once.
        asynchronous: which of the two.
    """

    def __init__(self, folder: Path, work: Callable[[], None], asynchronous: bool) -> None:
        self.folder = folder
        self._future: Future[None] = Future()
        self._work = work
        if asynchronous:
            threading.Thread(target=self._run, name=f"save {folder.name}").start()
        else:
            self._run()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # handed to wait()
            self._future.set_exception(error)
        else:
            self._future.set_result(None)
        finally:
            del self._work  # and with it the copies of the tensors

    def done(self) -> bool:
        """Whether this process is through with it; others may not be."""
        return self._future.done()

    def wait(self) -> Path:
        """Return the folder when it has its name and ``last`` points to it.

        Raises:
            CheckpointError: on every process, if one of them could not write.
        """
        self._future.result()
        return self.folder


def save(
    run: str | Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    *,
    asynchronous: bool,
) -> Saving:
    """Write ``run/checkpoints/step-…`` and point ``run/last`` to it.

    Called by every process, with the same names. Wait for one saving before the next, and before loading.

    Args:
        run: folder of the run, the same one for all processes.
        step: optimizer steps done.
        tensors: of any type and shape, DTensors too. Plain tensors are the same in all processes: each is
            written by one of them.
        state: JSON-able, that of the first process counts.
        asynchronous: copy the tensors to memory and write them in the background. The caller may change
            them, and ``state``, as soon as this returns.

    Returns:
        Saving: to wait for in either case; it raises what went wrong.

    Raises:
        ValueError: ``state`` is not JSON-able.
    """
    try:
        text = json.dumps(state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The state of step {step} cannot be written as JSON: {error}.") from error
    group = _group()
    folder = folder_of(Path(run).absolute(), step)
    part = {name: tensors[name].detach().contiguous() for name in _own_names(tensors, group)}
    if asynchronous:
        part = _copy(part)
    job = _Job(
        folder=folder,
        step=step,
        group=group,
        part=part,
        table={name: (_type_name(t.dtype), list(t.shape)) for name, t in tensors.items()},
        files=_shards(tensors, _world(group)),
        num_bytes=sum(t.numel() * t.itemsize for t in tensors.values()),
        state=text,
    )
    return Saving(folder, lambda: _write(job), asynchronous)


def load(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read a checkpoint into tensors that are there, in place, however they are sharded.

    Called by every process, with the same names.

    Raises:
        ValueError: a checkpoint that is not whole; missing, unexpected or misshapen tensors, or tensors of
            another type, by name. Nothing is changed then.
    """
    path, group = Path(path), _group()
    _together(group, lambda: _check_fit(path, tensors))
    reader = dcp.HuggingFaceStorageReader(str(path))
    dcp.load(dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None)


def read_tensors(path: str | Path, prefix: str) -> dict[str, torch.Tensor]:
    """Whole tensors of a checkpoint on the CPU, read by this process alone.

    Args:
        path: a checkpoint of any number of processes.
        prefix: of the names, ``trained/`` for example.

    Returns:
        Tensors by name without the prefix; none if the checkpoint holds none.

    Raises:
        ValueError: the checkpoint is not whole.
    """
    check(path)
    found = {name: info for name, info in stored(path).items() if name.startswith(prefix)}
    tensors = {
        name: torch.empty(info.shape, dtype=getattr(torch, info.dtype)) for name, info in found.items()
    }
    if tensors:
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _Job:
    folder: Path
    step: int
    group: dist.ProcessGroup | None
    part: dict[str, torch.Tensor]  # what this process writes
    table: dict[str, tuple[str, list[int]]]  # types and shapes of all tensors
    files: dict[str, int]  # number of the shard by name
    num_bytes: int  # of all tensors
    state: str


def _write(job: _Job) -> None:
    """Write a checkpoint together with the other processes; all of them succeed, or all of them raise."""
    first = _rank(job.group) == 0
    partial = hidden(job.folder, "partial")
    try:
        _together(job.group, lambda: _prepare(job, partial) if first else None)
        writer = dcp.HuggingFaceStorageWriter(
            str(partial), fqn_to_index_mapping=job.files, save_distributed=True
        )
        dcp.save(job.part, storage_writer=writer, process_group=job.group, no_dist=job.group is None)
        own = f"shard-{_rank(job.group) + 1:05d}-*"
        sizes = _together(job.group, lambda: {file.name: file.stat().st_size for file in partial.glob(own)})
        files = {name: size for part in sizes for name, size in sorted(part.items())}
        _together(job.group, lambda: _finish(job, partial, files) if first else None)
    except (OSError, ValueError, CheckpointException) as error:
        if first:
            shutil.rmtree(partial, ignore_errors=True)  # what stays is removed by the next saving
        raise _explain(job, error) from error


def _prepare(job: _Job, partial: Path) -> None:
    """Make room for the checkpoint, or refuse."""
    checkpoints = job.folder.parent
    checkpoints.mkdir(parents=True, exist_ok=True)
    is_copy(checkpoints.parent / LAST)
    remove_stale(checkpoints)
    free = shutil.disk_usage(checkpoints).free
    needed = job.num_bytes + job.num_bytes // 100 + SPARE_BYTES
    if free < needed:
        raise OSError(f"the disk has {_size(free)} free")
    partial.mkdir()
    flush(checkpoints.parent)


def _finish(job: _Job, partial: Path, files: dict[str, int]) -> None:
    """Mark a folder as complete, after a look at what the processes wrote, and give it its name."""
    write_complete(partial, job.step, files, job.table, json.loads(job.state))
    check(partial)  # a folder that the processes do not share would lack shards
    publish(partial, job.folder)


def _explain(job: _Job, error: BaseException) -> Exception:
    """A sentence about a checkpoint that was not written; other faults than the disk's keep their type."""
    where = ""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        where = f" on process {rank}"
        error = cause
    reason = f"{str(error).removesuffix('.')}{where}"
    if isinstance(error, OSError):
        return CheckpointError(
            f"Step {job.step} was not saved to {job.folder}, which needs {_size(job.num_bytes)}: {reason}; "
            "free some space or keep fewer checkpoints (checkpoint.keep). Older ones are as they were."
        )
    return RuntimeError(f"Step {job.step} was not saved to {job.folder}: {reason}.")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_fit(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    check(path)
    found = stored(path)
    remedy = "give a checkpoint of a run that trains the same parts with the same optimizer"
    check_tensors(path, found, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, remedy)
    for name, tensor in tensors.items():
        if found[name].dtype != _type_name(tensor.dtype):
            raise ValueError(
                f"The tensor {name} of {path} is {found[name].dtype} and should be "
                f"{_type_name(tensor.dtype)}; {remedy}."
            )


def _own_names(tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup | None) -> list[str]:
    """Tensors that this process writes: its part of every DTensor, and an even share of the plain ones.

    torch would leave out repeated tensors by itself, but only after every process has copied all of them.
    """
    loads = [0] * _world(group)
    owner = {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].numel() * tensors[name].itemsize, name)):
        if not isinstance(tensors[name], DTensor):
            owner[name] = loads.index(min(loads))
            loads[owner[name]] += tensors[name].numel() * tensors[name].itemsize
    return [name for name in tensors if owner.get(name, _rank(group)) == _rank(group)]


def _shards(tensors: Mapping[str, torch.Tensor], world: int) -> dict[str, int]:
    """Number of the shard of each tensor, from 1, so that no shard of a process is much too large."""
    shards, passed = {}, 0
    for name in sorted(tensors):
        shards[name] = 1 + passed // (SHARD_BYTES * world)
        passed += tensors[name].numel() * tensors[name].itemsize
    return shards


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in main memory."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    copies = stager.stage(tensors)
    stager.close()
    return copies


def _group() -> dist.ProcessGroup | None:
    """Processes that save and load together, over the CPU; None for one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return _cpu_group(dist.group.WORLD)


@cache
def _cpu_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group of its own: a saving in the background must not mix its messages with those of the training."""
    return dist.new_group(backend="gloo")


def _rank(group: dist.ProcessGroup | None) -> int:
    return 0 if group is None else dist.get_rank(group)


def _world(group: dist.ProcessGroup | None) -> int:
    return 1 if group is None else dist.get_world_size(group)


def _together(group: dist.ProcessGroup | None, work: Callable[[], Any]) -> list[Any]:
    """Results of all processes; what one of them raises, all of them raise."""
    try:
        outcome = (work(), None)
    except (OSError, ValueError) as error:
        outcome = (None, error)
    outcomes = [outcome]
    if group is not None:
        outcomes = [None] * _world(group)
        dist.all_gather_object(outcomes, outcome, group=group)
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]
