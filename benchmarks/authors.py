"""Whole pictures and edits: the authors' released code against this one, in turns on the same random model.

    python benchmarks/authors.py REPOSITORY PYTHON [--blocks N] [--turns N] [--bfloat16]

REPOSITORY is a folder of https://github.com/DruryXu/TBAC-UniImage; PYTHON an interpreter of an environment
with what that code needs: torch, transformers 4.51.3, diffusers 0.34.0, accelerate. Their code makes a model
of the released widths and 512 pixels, a few blocks deep and with a narrow autoencoder, and draws in a process
of its own; this one reads what they wrote. Pictures of the same noise are compared first. Printed are medians
of the CPU time of one thread, from prompt to pixels, and ratios: 30 guided steps as they draw, here the same,
20 of them, and four without guidance, as a LoRA for few steps does whose weights are taken in.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tbac_uniimage.core import LadderPipeline

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "data" / "parity"
MLLM, SANA = "Qwen2.5-VL-random", "Sana-random"  # their code tells models apart by these words
PROMPT, INSTRUCTION = "a red fox in the snow beside a frozen lake, early light", "make it a summer evening"
GUIDANCE, IMAGE_GUIDANCE = 4.5, 1.5
WAYS = {"30 guided steps": (30, True), "20 guided steps": (20, True), "4 steps without": (4, False)}


def main() -> None:
    """Measure prompts and edits."""
    if sys.argv[1:2] == ["--child"]:
        serve(*map(Path, sys.argv[2:4]), torch.bfloat16 if "--bfloat16" in sys.argv else torch.float32)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("python", type=Path)
    parser.add_argument("--blocks", type=int, default=1, metavar="N", help="of 20 (default %(default)s)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="default %(default)s")
    parser.add_argument("--bfloat16", action="store_true", help="in place of float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_bases(folder, options.blocks)
        Image.effect_noise((512, 512), 64).convert("RGB").save(folder / "source.png")
        command = [options.python, __file__, "--child", options.repository, folder]
        command += ["--bfloat16"] if options.bfloat16 else []
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen([str(part) for part in command], env=alone, **pipes) as theirs:
            try:
                answer(theirs, "ready?")
                print(f"{options.blocks} blocks of 20, {dtype}, one CPU thread, {options.turns} turns")
                for line in measure(ours(folder, dtype), theirs, folder, options.turns):
                    print(line, flush=True)
            finally:
                theirs.stdin.close()


def write_bases(folder: Path, blocks: int) -> None:
    """Folders of base models without weights: released widths, a small vocabulary, few layers."""
    from tbac_uniimage.core.checkpoints.parts import released_configs

    bases, tiny = released_configs(), json.loads((TINY / "Qwen2.5-VL-tiny" / "config.json").read_text())
    bases.mllm |= {name: tiny[name] for name in tiny if name.endswith("_token_id") or name == "vocab_size"}
    bases.mllm["num_hidden_layers"] = bases.mllm["max_window_layers"] = round(1.8 * blocks)  # 36 for 20
    bases.mllm["vision_config"] |= {"depth": 4, "fullatt_block_indexes": [3]}
    bases.transformer["num_layers"] = blocks
    for side in ("encoder", "decoder"):
        bases.vae[f"{side}_block_out_channels"] = [32, 64, 128, 128, 256, 256]
    shutil.copytree(TINY / "Qwen2.5-VL-tiny", folder / MLLM, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(TINY / "Sana_tiny_diffusers" / "scheduler", folder / SANA / "scheduler")
    places = {MLLM: bases.mllm, f"{SANA}/transformer": bases.transformer, f"{SANA}/vae": bases.vae}
    for place, config in places.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / "config.json").write_text(json.dumps(config))


def ours(folder: Path, dtype: torch.dtype) -> LadderPipeline:
    """This code's pipeline of the model that theirs wrote."""
    from tbac_uniimage.core import LadderPipeline

    pipeline = LadderPipeline.from_pretrained(
        folder / "model", mllm_dir=folder / MLLM, sana_dir=folder / SANA, torch_dtype=dtype
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure(pipeline: LadderPipeline, theirs: subprocess.Popen, folder: Path, turns: int) -> Iterator[str]:
    """Lines of medians and ratios."""
    with Image.open(folder / "source.png") as source:
        tasks = {"text to image": (PROMPT, None), "edit": (INSTRUCTION, source.convert("RGB"))}
    for name, (prompt, image) in tasks.items():

        def draw(steps: int, guided: bool, prompt: str = prompt, image: Any = image) -> Image.Image:
            guidance = (GUIDANCE, IMAGE_GUIDANCE) if guided else (1.0, 1.0)
            return pipeline(
                prompt,
                image=image,
                num_inference_steps=steps,
                guidance_scale=guidance[0],
                image_guidance_scale=guidance[1],
                generator=torch.Generator().manual_seed(0),
            ).images[0]

        answer(theirs, f"{name} 1")  # what libraries load once
        with Image.open(folder / "picture.png") as picture:
            theirs_drawn, drawn = (np.asarray(one, float) for one in (picture, draw(1, True)))
        away, spread = np.abs(theirs_drawn - drawn).mean(), drawn.std()
        yield f"{name}: pictures of one step are {away:.3f} grey levels of 255 apart, spread {spread:.1f}"
        times: dict[str, list[float]] = {}
        for _ in range(turns):
            times.setdefault("theirs", []).append(answer(theirs, f"{name} 30"))
            for way, (steps, guided) in WAYS.items():
                began = time.thread_time()
                draw(steps, guided)
                times.setdefault(way, []).append(time.thread_time() - began)
        medians = {way: statistics.median(taken) for way, taken in times.items()}
        yield f"{name}: theirs, 30 guided steps {medians['theirs']:.1f} s"
        for way in WAYS:
            yield f"{name}: {way} {medians[way]:.1f} s, {medians['theirs'] / medians[way]:.2f} times as fast"


def answer(process: subprocess.Popen, request: str) -> float:
    """What the other process says to a request: seconds."""
    process.stdin.write(f"{request}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        sys.exit("The authors' code ended; what it said stands above.")
    return float(line)


def serve(repository: Path, folder: Path, dtype: torch.dtype) -> None:
    """The other process: make the model, then draw what is asked for, a line each: task and steps."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(repository.resolve()))
    told, sys.stdout = sys.stdout, sys.stderr  # whatever their code prints is no answer
    if importlib.util.find_spec("torchvision") is None:  # imported there, used for other MLLMs alone
        sys.modules["torchvision"] = module = types.ModuleType("torchvision")
        module.__spec__, module.transforms = ModuleSpec("torchvision", None), None
    pipeline = their_pipeline(folder, dtype)
    with Image.open(folder / "source.png") as source:
        picture = source.convert("RGB")
    for request in sys.stdin:
        task, _, steps = request.strip().rpartition(" ")
        seconds = 0.0
        if task:
            edit = task == "edit"
            began = time.thread_time()
            result = pipeline(
                caption=INSTRUCTION if edit else PROMPT,
                image=[[picture]] if edit else None,
                guidance_scale=GUIDANCE,
                image_guidance_scale=IMAGE_GUIDANCE,
                num_inference_steps=int(steps),
                generator=torch.Generator().manual_seed(0),
            )
            seconds = time.thread_time() - began
            result.images[0].save(folder / "picture.png")
        told.write(f"{seconds}\n")
        told.flush()


def their_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """Their pipeline of a random model, which is written as they write one."""
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from models.tbacuniimage import TBACUniImageConfig
    from pipeline import TBACUniImagePipeline
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    mllm, sana = str(folder / MLLM), str(folder / SANA)
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(mllm)).save_pretrained(mllm)
    for part, kind in {"transformer": SanaTransformer2DModel, "vae": AutoencoderDC}.items():
        path = folder / SANA / part
        kind.from_config(json.loads((path / "config.json").read_text())).save_pretrained(path)
    bases = dict.fromkeys(("diffusion_model_id", "vae_id", "noise_scheduler_id", "scheduler_id"), sana)
    config = TBACUniImageConfig(mllm_id=mllm, input_size=16, _gradient_checkpointing=False, **bases)
    TBACUniImagePipeline(config).save_pretrained(folder / "model")
    return TBACUniImagePipeline.from_pretrained(folder / "model", torch_dtype=dtype).to(dtype).eval()


if __name__ == "__main__":
    main()
