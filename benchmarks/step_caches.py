"""ComfyUI's EasyCache and LazyCache on the nano model: what they save, and how far the pictures move.

    python benchmarks/step_caches.py [--seeds N]

Ladder Sampler with and without, in turns in one process; needs a ComfyUI tree (``make setup``). Prints for
every threshold the share of model evaluations that ran, the CPU time of one thread against that without, and
the mean difference of the pictures in grey levels of 255.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts")]
PROMPTS = (
    "a dog to the left of a rocket on a blue background",
    "a panda on a yellow background",
    "three stars on white",
    "a red car on a green background",
    "a cat above a blue car on pink",
    "a flat illustration of a frog on orange",
)
STEPS = 30
WAYS = [
    ("EasyCache", 0.02),
    ("EasyCache", 0.05),
    ("EasyCache", 0.2),
    ("LazyCache", 0.05),
    ("LazyCache", 0.1),
    ("LazyCache", 0.2),
]


def main() -> None:
    """Measure all ways for every prompt and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds

    import comfy_tree

    sys.path.insert(0, str(comfy_tree.find_tree() or comfy_tree.fetch_tree()))
    from comfy.cli_args import args

    args.cpu = True
    import comfy.utils
    import torch
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
    from tbac_uniimage.nodes.bridge import load_for_comfy
    from tbac_uniimage.nodes.conditioning import LadderEncode
    from tbac_uniimage.nodes.diffusion import LadderDiT
    from tbac_uniimage.nodes.sampling import LadderEmptyLatent, LadderSampler

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    rows, predict = [0], LadderDiT.predict

    def counting(self, x, *arguments, **options):
        rows[0] += len(x)
        return predict(self, x, *arguments, **options)

    LadderDiT.predict = counting
    nodes = {"EasyCache": EasyCacheNode, "LazyCache": LazyCacheNode}
    with torch.inference_mode():
        model, mllm, vae = load_for_comfy(ROOT / "assets" / "nano")
        latent = LadderEmptyLatent.execute(model, 0, 0, 1).result[0]
        found = {way: [] for way in WAYS}
        for prompt in PROMPTS:
            positive, negative, _ = LadderEncode.execute(mllm, prompt).result

            def draw(chosen, seed, conditions=(positive, negative)):
                rows[0], started = 0, time.process_time()
                result = LadderSampler.execute(chosen, *conditions, latent, seed, STEPS, 4.5, 1.0).result[0]
                taken = time.process_time() - started
                return vae.decode(result["samples"]), rows[0], taken

            for seed in range(seeds):
                plain, all_rows, all_time = draw(model, seed)
                for name, threshold in WAYS:
                    cached = nodes[name].execute(model, threshold, 0.15, 0.95, False).result[0]
                    picture, some_rows, some_time = draw(cached, seed)
                    moved = (picture - plain).abs().mean().item() * 255
                    found[name, threshold].append((some_rows / all_rows, some_time / all_time, moved))
    print(f"{len(PROMPTS) * seeds} pictures, {STEPS} steps, guidance 4.5: medians, worst difference")
    for (name, threshold), results in found.items():
        ran, took, moved = zip(*results, strict=True)
        print(
            f"{name} {threshold}: {statistics.median(ran):.2f} of the evaluations, "
            f"{statistics.median(took):.2f} of the time, {statistics.median(moved):.1f} grey levels "
            f"(worst {max(moved):.1f})"
        )


if __name__ == "__main__":
    main()
