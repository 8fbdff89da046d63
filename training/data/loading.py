"""The micro-batches of one process in their order, read ahead by worker processes."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from multiprocessing import active_children, get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..exits import BAD_DATA, Stop
from .children import follow_parent, kill_all

if TYPE_CHECKING:
    from .batch import TrainBatch
    from .samples import MicroBatches

# what an unpickled LadderProcessor imports, which takes seconds; a module that is not there is passed over
PRELOAD = (
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
)
PREFETCH = 4  # micro-batches per worker
# what torch says, which has no exception of its own for it
WORKER_DIED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by (signal: [\w ]+)|exited)"
)


class Answers(Dataset):
    """A dataset that hands a ValueError over as an answer: torch would bury its sentence in a traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except ValueError as error:
            return error


def loader(
    dataset: MicroBatches, rank: int, world: int, first_step: int, end_step: int, workers: int
) -> Generator[TrainBatch, None, None]:
    """This rank's micro-batches of the optimizer steps ``first_step`` … ``end_step - 1``, in order.

    Micro-batch k of a step goes to rank k mod ``world``.

    Args:
        dataset: the micro-batches.
        rank: of this process.
        world: number of processes.
        first_step: to begin with.
        end_step: behind the last one.
        workers: processes that read; 0 reads in this one.

    Raises:
        ValueError: the micro-batches of a step cannot be shared evenly; or, when iterated, a cache entry is
            missing or damaged.
        Stop: when iterated: a worker died.
    """
    per_step = dataset.batch // dataset.micro_batch
    if per_step % world:
        raise ValueError(
            f"A step has {per_step} micro-batches, which {world} processes cannot share evenly; change "
            "train.batch or train.micro_batch."
        )
    return read_ahead(dataset, range(first_step * per_step + rank, end_step * per_step, world), workers)


def read_ahead(dataset: Dataset, numbers: Sequence[int], workers: int) -> Generator[Any, None, None]:
    """The items of these numbers, in this order; ``workers`` processes work ahead.

    Workers are started afresh, since a fork would copy a CUDA context that it must not use; each computes
    with one thread. Raises what reading an item raised, and Stop if a worker died. Close it when no more
    items are wanted; the workers end with it.
    """
    parallel = {}
    if workers:
        parallel = {
            "multiprocessing_context": fresh_processes(),
            "prefetch_factor": PREFETCH,
            "worker_init_fn": prepare_worker,
        }
    items = DataLoader(
        Answers(dataset),
        batch_size=None,
        sampler=numbers,
        collate_fn=unchanged,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        **parallel,
    )
    others = set(active_children())
    reading = iter(items)
    # when this process ends it asks its children to end too and waits, and ours do not listen
    kill = Finalize(None, kill_all, [set(active_children()) - others], exitpriority=10)
    try:
        for item in reading:
            if isinstance(item, ValueError):
                raise item
            yield item
    except (RuntimeError, ConnectionError, EOFError) as error:
        stop = as_stop(error)
        if stop is None:
            raise
        raise stop from error
    finally:
        del reading  # tells the workers to end, and waits a little
        kill()


def as_stop(error: Exception) -> Stop | None:
    """The sentence for a loader whose worker died, None for any other error.

    torch raises its RuntimeError from a signal handler, so it may come up anywhere in the main thread, not
    only where the loader is asked. A worker that dies while it hands over a batch shows as a lost connection.
    """
    found = WORKER_DIED.search(str(error))
    lost = isinstance(error, (ConnectionError, EOFError)) and not str(error).startswith("Caught ")
    if found is None and not lost:
        return None
    process = f" (process {found[1]})" if found else ""
    cause = f" by {found[2]}" if found and found[2] else ""
    memory, remedy = "memory", "give the machine more"
    if "Bus error" in cause:
        memory, remedy = "shared memory", "give /dev/shm more (docker run --shm-size)"
    return Stop(
        f"A data worker{process} was ended{cause} from outside, most often for lack of {memory}; {remedy}, "
        "or lower data.workers. The same command goes on from the last checkpoint.",
        BAD_DATA,
        alone=True,
    )


def fresh_processes() -> BaseContext:
    """How workers start: never by a fork of this process.

    A server that has imported what they need forks them off, where the system can; otherwise each imports it.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.samples", *PRELOAD])
    return context


def prepare_worker(worker: int) -> None:
    """Make a worker live exactly as long as the training process wants it to."""
    follow_parent()


def unchanged(batch: Any) -> Any:
    """Collated already."""
    return batch
