"""What an evaluation of the released model costs: pictures, calls and floating-point operations, all counted.

    python benchmarks/evaluation_cost.py [--sets DIR] [--steps 30]

Operations are those of torch's counter over the released sizes on the meta device: every denoising step with
its branches of guidance, rungs, and the autoencoder; the language model counts two operations a weight and
token. A picture is 512 x 512. Items, pictures and calls come from the sets that were fetched. Hours are
operations over a sustained rate, which you measure on your device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from tbac_uniimage.core.checkpoints import released_parts_on_meta
from tbac_uniimage.training.evaluation import fetch, sets
from torch.utils.flop_counter import FlopCounterMode

LATENT = (32, 16, 16)  # of 512 x 512 pixels
QUERIES = 64
TOKENS = 37 + 120  # of a prompt: what opens and closes turns, and the text
IMAGE_TOKENS = 256
RATES = (50, 100, 300)  # sustained TFLOP/s


def operations(run: Callable[[], object]) -> float:
    """Floating-point operations of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def picture(steps: int, branches: int, edit: bool) -> dict[str, float]:
    """Operations of one picture by part."""
    parts = released_parts_on_meta()
    transformer, vae, mllm = parts.transformer, parts.vae, parts.mllm
    layers, width = len(transformer.transformer_blocks), parts.transformer.config.caption_channels
    states = torch.empty(layers, branches, QUERIES, width, device="meta")
    latents = torch.empty(branches, *LATENT, device="meta")
    rungs = transformer.prepare_rungs(states)
    time = torch.empty(branches, device="meta")
    vision = sum(p.numel() for name, p in mllm.named_parameters() if "visual" in name)
    language = sum(
        p.numel() for name, p in mllm.named_parameters() if ".layers." in name and "visual" not in name
    )
    tokens = branches * (TOKENS + QUERIES + IMAGE_TOKENS * edit)
    return {
        "transformer": steps * operations(lambda: transformer(latents, rungs, time)),
        "rungs": operations(lambda: transformer.prepare_rungs(states)),
        "autoencoder": operations(lambda: vae.decode(latents[:1])),
        "language model": 2.0 * language * tokens + 2.0 * vision * 4 * IMAGE_TOKENS * edit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=Path, default=fetch.default_cache())
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    costs = {}
    for edit, branches in ((False, 2), (True, 3)):
        cost = picture(options.steps, branches, edit)
        costs[edit] = sum(cost.values())
        told = ", ".join(f"{name} {value / 1e12:.2f}" for name, value in cost.items())
        kind = "edit" if edit else "text"
        print(f"{kind}, {branches} branches: {costs[edit] / 1e12:.1f} TFLOP a picture ({told})")
    for name, benchmark in sets.all_sets().items():
        try:
            checkout = fetch.load(benchmark, options.sets)
        except ValueError as error:
            print(f"{name}: {error}")
            continue
        items = benchmark.items(checkout)
        drawn = sum(len(shot.samples) for item in items for shot in item.pictures)
        total = drawn * costs[items[0].source is not None]
        hours = ", ".join(f"{total / rate / 1e12 / 3600:.2f} h at {rate} TFLOP/s" for rate in RATES)
        print(f"{name}: {fetch.cost(benchmark, checkout)}; {total / 1e15:.0f} PFLOP, {hours}")


if __name__ == "__main__":
    main()
