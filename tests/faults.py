"""Faults that a test puts into a process of a run before it starts."""

from __future__ import annotations

import math
import os
import resource
import signal
from io import FileIO

import torch
from tbac_uniimage.training.data import samples
from tbac_uniimage.training.report.log import RunLog
from tbac_uniimage.training.run import loop
from torch.utils.data import get_worker_info


def stop_at(step: int) -> None:
    """SIGTERM to this process at the end of a step."""
    after_step = loop.Trainer.after_step

    def wrapped(self: loop.Trainer, sums: loop.StepSums) -> None:
        after_step(self, sums)
        if self.done == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.Trainer.after_step = wrapped


def stop_at_3() -> None:
    stop_at(3)


def stop_at_6() -> None:
    stop_at(6)


def stop_at_9() -> None:
    stop_at(9)


def stop_at_12() -> None:
    """Not stopped: 12 steps are all."""


def scaled_losses(factors: dict[int, float], rank: int | None = None) -> None:
    """Multiply the losses of steps (from 0), on one rank or on all."""
    losses = loop.Trainer.losses

    def wrapped(self: loop.Trainer, batch: loop.TrainBatch) -> torch.Tensor:
        mine = rank is None or self.accelerator.process_index == rank
        return losses(self, batch) * (factors.get(self.done, 1.0) if mine else 1.0)

    loop.Trainer.losses = wrapped


def nan_on_rank_1() -> None:
    scaled_losses({4: math.nan}, rank=1)


def spike() -> None:
    scaled_losses({20: 100.0})


def young_spike() -> None:
    scaled_losses({6: 100.0})


def shift() -> None:
    """Gradients 1,000 times as large from step 20 on, for 5 steps."""
    scaled_losses(dict.fromkeys(range(20, 25), 1000.0))


def broken_for_good() -> None:
    scaled_losses(dict.fromkeys(range(20, 1000), math.nan))


class DyingBatches(samples.MicroBatches):
    """Ends a worker that is asked for micro-batch 10 or 11, as a system short of memory would."""

    def __getitem__(self, number: int) -> samples.TrainBatch:
        if number in (10, 11) and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


def dying_worker() -> None:
    samples.MicroBatches = DyingBatches


def full_disk() -> None:
    """No file of this process gets larger than 1 MB, which logs need and a checkpoint exceeds."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def nan_at_4() -> None:
    scaled_losses({4: math.nan})


def on_rank(rank: int) -> bool:
    return os.environ.get("RANK", "0") == str(rank)


def full_disk_on_rank_0() -> None:
    if on_rank(0):
        full_disk()


def full_disk_on_rank_1() -> None:
    if on_rank(1):
        full_disk()


def dying_worker_on_rank_1() -> None:
    if on_rank(1):
        dying_worker()


def no_logs() -> None:
    """The fifth line of the log meets a full disk."""
    line = RunLog.line

    def wrapped(self: RunLog, values: dict) -> None:
        if self.enabled and values["step"] == 5:
            self.files["metrics.jsonl"] = FileIO("/dev/full", "a")
        line(self, values)

    RunLog.line = wrapped


def launcher_settings() -> None:
    """What a configuration of accelerate may ask for, and a recipe does not."""
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR"


def launched_for_fsdp2() -> None:
    """What a configuration of accelerate with ``fsdp_version: 2`` sets."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ["FSDP_VERSION"] = "2"


def shift_then_killed() -> None:
    """As :func:`shift`; the process is killed as soon as it has rolled back and done one more step."""
    shift()
    after_step = loop.Trainer.after_step

    def wrapped(self: loop.Trainer, sums: loop.StepSums) -> None:
        after_step(self, sums)
        if self.done == 24:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.Trainer.after_step = wrapped


def small_detection() -> None:
    """Detectors are shown 64 pixels, not 800."""
    from tbac_uniimage.training.evaluation.detectors import mask2former

    prepare = mask2former.prepare
    mask2former.prepare = lambda picture: prepare(picture, 96, 64)


def impatient_judge() -> None:
    """Nobody waits between two attempts to reach a judge."""
    from tbac_uniimage.training.evaluation.judges import asking

    asking.FIRST_WAIT = 0.0
