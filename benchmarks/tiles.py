"""A large picture decoded in tiles against in one piece: CPU time, and memory besides the weights.

    python benchmarks/tiles.py [--side N] [--dtype float32]

The autoencoder has the released sizes and random weights. Each way runs in a process of its own, in turns
(Linux: VmHWM over what was there before the call); all threads that torch takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

WAYS = ("one piece", "tiles")


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=2048, help="pixels, a multiple of 32")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(decode(options.side, options.dtype, options.child)))
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--side", str(options.side), "--dtype", options.dtype]
        done = subprocess.run([*command, "--child", way], check=True, capture_output=True, text=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        seconds, peak = found[way]
        print(f"{options.side} pixels, {options.dtype}, {way}: {seconds:.1f} s, {peak >> 20} MiB", flush=True)
    (whole, most), (tiles, least) = found.values()
    print(f"tiles: {tiles / whole:.2f} of the time, {least / most:.2f} of the memory")


def decode(side: int, dtype: str, way: str) -> tuple[float, int]:
    """Seconds of CPU and bytes at the peak."""
    import torch
    from loading import memory, reset_peak
    from tbac_uniimage.core.checkpoints.parts import released_configs, vae_on_meta

    vae = vae_on_meta(released_configs().vae).to(getattr(torch, dtype)).to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_(std=0.02)
        latents = torch.randn(1, vae.config.latent_channels, side // 32, side // 32, dtype=vae.dtype)
        vae.use_tiling = way == "tiles"
        reset_peak()
        before, started = memory("VmRSS"), time.process_time()
        vae.decode(latents)
        return time.process_time() - started, memory("VmHWM") - before


if __name__ == "__main__":
    main()
