"""Decoding a large picture in tiles, as the pipeline does by itself, against decoding it whole.

    python benchmarks/tiles.py [--model DIR | --released] [--side N] [--turns N]

Each way in turn decodes the latents of one picture in a process of its own. Printed are the CPU time of one
thread, by how much the process grows at most (Linux), and how far the tiles' picture is from the whole one.
With ``--released`` the autoencoder has the released size, random weights and bfloat16, so its pictures say
nothing and only its costs are printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from process_costs import memory, reset_peak  # noqa: E402

NANO, SCENE = ROOT / "assets" / "nano", ROOT / "assets" / "samples" / "tbac_uniimage_small_thing.png"
MB = 1000**2


def decode(tiled: bool, model: Path | None, side: int) -> tuple[float, int, np.ndarray]:
    """CPU seconds, bytes by which the process grew at most, and the picture, 0 to 255."""
    import torch
    from PIL import Image
    from tbac_uniimage.core.canvas import canvas_pixels, in_tiles_if_large
    from tbac_uniimage.core.checkpoints import load_parts
    from tbac_uniimage.core.checkpoints.parts import released_configs, vae_on_meta

    torch.set_num_threads(1)
    with torch.inference_mode():
        if model is not None:
            vae = load_parts(model, dtype=torch.float32).vae
            pixels = canvas_pixels([Image.open(SCENE).convert("RGB")], side, side)
            latents = in_tiles_if_large(vae, side, side).encode(pixels).latent
        else:
            vae = vae_on_meta(released_configs().vae).to(torch.bfloat16).to_empty(device="cpu").eval()
            for parameter in vae.parameters():
                parameter.normal_(std=0.02)
            latents = torch.randn(1, 32, side // 32, side // 32, dtype=torch.bfloat16)
        vae.decode(latents[..., :4, :4])  # what libraries load once
        reset_peak()
        before, started = memory("VmRSS"), time.thread_time()
        picture = (in_tiles_if_large(vae, side, side) if tiled else vae).decode(latents).sample[0]
        seconds, grown = time.thread_time() - started, memory("VmHWM") - before
        return seconds, grown, (255 * (picture.float() / 2 + 0.5).clamp(0, 1)).numpy()


def main() -> None:
    """Both ways in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=NANO, metavar="DIR", help="default: the embedded model")
    parser.add_argument("--released", action="store_true", help="the released size in place of a model")
    parser.add_argument("--side", type=int, default=2048, metavar="N", help="pixels (default %(default)s)")
    parser.add_argument("--turns", type=int, default=2, metavar="N", help="default %(default)s")
    options = parser.parse_args()
    model = None if options.released else options.model
    context = multiprocessing.get_context("spawn")
    found = {"whole": [], "tiles": []}
    for _ in range(options.turns):
        for name, runs in found.items():
            with context.Pool(1) as pool:
                runs.append(pool.apply(decode, (name == "tiles", model, options.side)))
    for name, runs in found.items():
        seconds, grown = (statistics.median(run[i] for run in runs) for i in range(2))
        print(f"{name}: {options.side} pixels a side, {seconds:.1f} s, {grown / MB:.0f} MB")
    if model is not None:
        away = np.abs(found["tiles"][0][2] - found["whole"][0][2])
        print(f"tiles are {away.mean():.2f} grey levels of 255 away, at most {away.max():.0f}")


if __name__ == "__main__":
    main()
