"""What one thread saves a small model: a denoising step with torch's default threads and with one, in turns.

    python benchmarks/threads.py [--model DIR] [--repeats N] [--busy N]

``--busy`` starts so many processes that compute all the time, as a shared or small machine has them. Prints
medians and the worst of the wall time, since waiting is what it is about, with a plain matrix product of a
large model's size beside it, which threads do help.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from tbac_uniimage.core import LadderPipeline, load_parts
from tbac_uniimage.shell.commands import EMBEDDED

PROMPT = "a panda to the left of an apple on a yellow background"


def main() -> None:
    """Measure a step of the model and a large product."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="default: the embedded nano model")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside it")
    options = parser.parse_args()
    default = torch.get_num_threads()
    pipeline = LadderPipeline(**vars(load_parts(options.model, dtype=torch.float32)))
    print(f"{options.model}, float32, {os.cpu_count()} cores, {default} threads, {options.busy} busy")
    with busy(options.busy), torch.no_grad():
        for name, work in (("denoising step", step_of(pipeline)), ("product of 2048 x 2048", product())):
            print(compare(name, work, default, options.repeats))


def step_of(pipeline: LadderPipeline) -> Callable[[], torch.Tensor]:
    """One step of one picture with two branches of guidance."""
    transformer = pipeline.transformer
    condition = pipeline.encode_prompt(PROMPT)
    side = transformer.config.sample_size
    latents = torch.randn(2, transformer.config.in_channels, side, side)
    timestep = torch.full((2,), 500.0)
    rungs = transformer.prepare_rungs(condition.states, condition.mask)
    return lambda: transformer(latents, rungs, timestep, return_dict=False)[0]


def product() -> Callable[[], torch.Tensor]:
    """What a layer of a large model computes."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return lambda: left @ right


def compare(name: str, work: Callable[[], torch.Tensor], default: int, repeats: int) -> str:
    """A line of medians and worst times, milliseconds; the results are compared first."""
    results, times = {}, {default: [], 1: []}
    for turn in range(repeats + 1):
        for threads in times:
            torch.set_num_threads(threads)
            started = time.perf_counter()
            results[threads] = work()
            if turn:  # the first warms up
                times[threads].append(1000 * (time.perf_counter() - started))
    torch.testing.assert_close(results[default], results[1], rtol=1e-3, atol=1e-3)
    (many, worst_many), (one, worst_one) = ((statistics.median(t), max(t)) for t in times.values())
    return (
        f"{name:24} {default} threads {many:9.1f} ms (worst {worst_many:9.1f})   "
        f"1 thread {one:9.1f} ms (worst {worst_one:9.1f})   {many / one:7.2f} x"
    )


@contextmanager
def busy(count: int):
    """So many processes that compute all the time."""
    others = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def spin() -> None:
    """Compute for ever."""
    while True:
        sum(range(10_000))


if __name__ == "__main__":
    main()
