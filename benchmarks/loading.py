"""Memory while a model is loaded: cast tensor by tensor as it is read, against cast afterwards.

    python benchmarks/loading.py [--megabytes N] [--model PATH] [--comfy]

Makes a random checkpoint in the released layout (bfloat16, one file) of about that size, unless one is
given, and loads it in every type, each way in a process of its own and in turns. Prints the bytes that stay,
the peak of the process over what it had before (Linux: VmHWM, mapped pages of files included) and the CPU
time. With ``--comfy`` it is Load Model's way, on the CPU; needs a ComfyUI tree (``make setup``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from process_costs import memory, reset_peak  # noqa: E402

SHELL_TYPES = ("none", "bfloat16", "float32")
COMFY_TYPES = ("default", "bf16", "fp16", "fp32", "fp8_e4m3fn")


def main() -> None:
    """Measure every type both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the random checkpoint")
    parser.add_argument("--model", type=Path, help="a checkpoint to load in place of a random one")
    parser.add_argument("--write", type=Path, metavar="DIR", help="only write the random checkpoint there")
    parser.add_argument("--comfy", action="store_true", help="Load Model instead of Python and shell")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        random_checkpoint(options.write, options.megabytes)
        return
    if options.child:
        print(json.dumps(load(options.model, *options.child, options.comfy)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = options.model or random_checkpoint(Path(scratch) / "model", options.megabytes)
        for dtype in COMFY_TYPES if options.comfy else SHELL_TYPES:
            found = {}
            for way in ("cast afterwards", "as it is read"):
                command = [sys.executable, __file__, "--child", dtype, way, "--model", path]
                command += ["--comfy"] if options.comfy else []
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[way] = json.loads(done.stdout.splitlines()[-1])
            for way, (stay, peak, seconds) in found.items():
                print(
                    f"{dtype:12} {way:16} stay {stay >> 20:6} MiB   peak {peak >> 20:6} MiB, "
                    f"{peak / stay:.2f} x   {seconds:5.1f} s",
                    flush=True,
                )


def random_checkpoint(folder: Path, megabytes: int) -> Path:
    """A model with the released widths and a small vocabulary, as deep as fits, in one file of bfloat16."""
    from random_checkpoint import write_random
    from tbac_uniimage.core.checkpoints import released_parts_on_meta
    from tbac_uniimage.core.checkpoints.parts import released_configs
    from tbac_uniimage.core.checkpoints.tokenizers import read_tokenizer

    bases, tiny = released_configs(), ROOT / "tests" / "data" / "parity" / "Qwen2.5-VL-tiny"
    blocks = max(1, round((megabytes - 430) / 314))  # a block and its language layer are 314 MB
    small = json.loads((tiny / "config.json").read_text())
    bases.mllm |= {name: small[name] for name in small if name.endswith("_token_id") or name == "vocab_size"}
    bases.mllm["num_hidden_layers"] = blocks + 1
    bases.mllm["vision_config"] |= {"depth": 4, "fullatt_block_indexes": [3]}
    bases.transformer["num_layers"] = blocks
    for side in ("encoder", "decoder"):
        bases.vae[f"{side}_block_out_channels"] = [32, 64, 128, 128, 256, 256]
    parts = released_parts_on_meta(bases)
    parts.tokenizer = read_tokenizer(tiny, parts.mllm.config)
    write_random(parts, folder, max_shard_size=f"{2 * megabytes}MB")
    return folder


def load(path: Path, dtype: str, way: str, comfy: bool) -> tuple[int, int, float]:
    """Bytes that stay, bytes at the peak and seconds, of this process."""
    loading = load_in_comfyui(dtype, way) if comfy else load_in_python(dtype, way)
    reset_peak()
    before, started = memory("VmRSS"), time.process_time()
    modules = loading(path)
    seconds, peak = time.process_time() - started, memory("VmHWM") - before
    weights = {p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}
    return sum(weights.values()), peak, seconds


def load_in_python(dtype: str, way: str) -> Callable[[Path], list]:
    """``load_parts`` as the shell and ``from_pretrained`` call it."""
    import torch
    from tbac_uniimage.core.checkpoints import load_parts
    from tbac_uniimage.core.checkpoints.parts import place

    wanted = None if dtype == "none" else getattr(torch, dtype)

    def loading(path: Path) -> list:
        if way == "as it is read":
            return modules_of(load_parts(path, dtype=wanted))
        return [place(module, "cpu", wanted) for module in modules_of(load_parts(path))]

    return loading


def load_in_comfyui(dtype: str, way: str) -> Callable[[Path], list]:
    """Load Model; the other way copies all weights out of the file before it casts them."""
    import comfy_tree

    sys.path.insert(0, str(comfy_tree.find_tree() or comfy_tree.fetch_tree()))
    from comfy.cli_args import args

    args.cpu = True
    from tbac_uniimage.core.checkpoints import LadderParts, load_parts, own_weights
    from tbac_uniimage.nodes import bridge
    from tbac_uniimage.nodes.offload import cast_parameters

    def copied_first(path, dtype, own, **options) -> LadderParts:
        parts = load_parts(path, **options)
        for part in ("vae", "transformer", "mllm", "connector"):
            module = getattr(parts, part)
            stored = next(module.parameters()).dtype
            cast_parameters(own_weights(module, own), *dtype(part, module, stored))
        return parts

    if way != "as it is read":
        bridge.load_parts = copied_first

    def loading(path: Path) -> list:
        model, mllm, vae = bridge.load_for_comfy(path, dtype)
        return [model.model, mllm.patcher.model, vae.first_stage_model]

    return loading


def modules_of(parts) -> list:
    """The parts that have weights."""
    return [parts.mllm, parts.connector, parts.transformer, parts.vae]


if __name__ == "__main__":
    main()
