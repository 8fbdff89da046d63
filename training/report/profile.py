"""A trace of some optimizer steps by torch's profiler, for Perfetto or ``chrome://tracing``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from .log import full_disk_stops


@contextmanager
def traced_steps(run: Path, done: int, steps: int) -> Iterator[Callable[[], None]]:
    """Trace ``steps`` steps of this process into ``run``, after one that warms up; 0 traces nothing.

    What ends earlier is traced as far as it went.

    Args:
        run: folder of the run, which gets ``profile-step-00000002.json.gz`` of the first traced step.
        done: optimizer steps before these.
        steps: how many.

    Yields:
        To be called after every step.

    Raises:
        Stop: the trace cannot be written.
    """
    if not steps:
        yield lambda: None
        return
    path = run / f"profile-step-{done + 2:08d}.json.gz"
    partial = run / f".partial-{path.name}"  # the profiler compresses where the name ends so

    def write(profiler: profile) -> None:
        with full_disk_stops(path):
            try:
                profiler.export_chrome_trace(str(partial))
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    plan = schedule(wait=0, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
