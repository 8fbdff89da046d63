"""What training on CPUs gains without torch's fused attention, whose backward is slow in bfloat16.

    python benchmarks/cpu_attention.py [--repeats N]

`training/run/engine.py` does without it where a run computes in bfloat16 on CPUs. Both ways take turns in one
process, forward and backward, in the shapes of the nano model's steps (24 samples) and in the released ones
(2 samples); printed are medians of one thread's CPU time, and median and quartiles of the turns' ratios.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

SHAPES = {  # samples, heads, queries, keys, size of a head
    "nano, rungs": (24, 3, 64, 20, 64),
    "nano, language model": (24, 4, 20, 80, 48),
    "released, rungs": (2, 20, 256, 64, 112),
    "released, language model": (2, 16, 64, 400, 128),
}


def attend(shape: tuple[int, ...], dtype: torch.dtype, fused: bool) -> float:
    """CPU seconds of one attention with a mask, forward and backward."""
    batch, heads, queries, keys, size = shape
    torch.backends.cuda.enable_flash_sdp(fused)
    query = torch.randn(batch, heads, queries, size, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(batch, heads, keys, size, dtype=dtype, requires_grad=True) for _ in range(2))
    mask = torch.zeros(batch, 1, 1, keys, dtype=dtype).expand(-1, -1, queries, -1)
    began = time.process_time()
    scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
    return time.process_time() - began


def main() -> None:
    """Print a row for every shape and type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30, help="turns (default: %(default)s)")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"{'':26}{'type':>10}{'fused, ms':>12}{'plain, ms':>12}  fused / plain (quartiles)")
    for name, shape in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32):
            for fused in (True, False):
                attend(shape, dtype, fused)
            turns = []
            for _ in range(repeats):
                order = random.sample((True, False), 2)
                turns.append({fused: attend(shape, dtype, fused) for fused in order})
            fused, plain = (statistics.median(turn[way] for turn in turns) for way in (True, False))
            low, middle, high = statistics.quantiles([turn[True] / turn[False] for turn in turns], n=4)
            kind = str(dtype).removeprefix("torch.")
            ratios = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"{name:26}{kind:>10}{fused * 1e3:12.2f}{plain * 1e3:12.2f}  {ratios}")


if __name__ == "__main__":
    main()
