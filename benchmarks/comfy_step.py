"""A step of the MODEL in ComfyUI on a CPU, by what its weights are kept and computed in.

    python benchmarks/comfy_step.py [--blocks N] [--repeats N]

Released widths, as many blocks as given, random weights, two branches of guidance of 512 pixels. Kept in
fp8_e4m3fn and in bf16, each computed in float32, as ComfyUI does on every CPU, and as here, in bfloat16 where
the CPU multiplies it itself. All run in one process, in turns; medians of the CPU time of one thread. Needs
a ComfyUI tree (``make setup``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))


@torch.inference_mode()
def main() -> None:
    """Print a line for each way, with its share of the time of the slowest way in ComfyUI."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=2, help="of 20; a step costs in proportion")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import comfy_tree

    sys.path.insert(0, str(comfy_tree.find_tree() or comfy_tree.fetch_tree()))
    from comfy.cli_args import args

    args.cpu = True
    print(f"{options.blocks} blocks, 2 x 256 places, one thread, {options.repeats} repeats")
    models = {
        (kept, computed): make(options.blocks, kept, computed)
        for kept in (torch.float8_e4m3fn, torch.bfloat16)
        for computed in (torch.float32, torch.bfloat16)
    }
    took = {way: [] for way in models}
    for turn in range(options.repeats + 1):
        for way, model in models.items():
            dtype = way[1]
            x, context = (
                torch.ones(2, 32, 16, 16, dtype=dtype),
                torch.ones(2, 64, options.blocks * 2304, dtype=dtype),
            )
            started = time.thread_time()
            model(x, torch.full((2,), 500.0, dtype=dtype), context)
            if turn:  # the first warms up
                took[way].append(time.thread_time() - started)
    first = statistics.median(took[torch.float8_e4m3fn, torch.float32])
    for (kept, computed), seconds in took.items():
        median = statistics.median(seconds)
        names = [str(dtype).removeprefix("torch.") for dtype in (kept, computed)]
        print(f"kept in {names[0]:14} computed in {names[1]:9} {median:.3f} s, {median / first:.2f}")


def make(blocks: int, kept: torch.dtype, computed: torch.dtype) -> torch.nn.Module:
    """The diffusion model as Load Model makes it, computing in another type if that is not ours."""
    from tbac_uniimage.core.checkpoints.parts import released_configs, transformer_on_meta
    from tbac_uniimage.nodes import diffusion
    from tbac_uniimage.nodes.mllm import LatentSize

    transformer = transformer_on_meta(released_configs().transformer | {"num_layers": blocks})
    transformer = transformer.to_empty(device="cpu")
    for parameter in transformer.parameters():
        parameter.data.normal_(std=0.02)
    latent_format = diffusion.LadderLatentFormat(
        LatentSize(32, 32, 512), 0.41407, lambda: (torch.zeros(32, 3), torch.zeros(3))
    )
    own = diffusion.computed_in
    diffusion.computed_in = lambda *_: computed
    try:
        model = diffusion.make_model(transformer, latent_format, kept)
    finally:
        diffusion.computed_in = own
    model.load(torch.device("cpu"), full_load=True)
    return model.model.diffusion_model


if __name__ == "__main__":
    main()
