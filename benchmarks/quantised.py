"""What fewer bits save and change: memory, time and pictures of each format, beside the model as it is.

    python benchmarks/quantised.py [--model DIR] [--dtype float32] [--turns N]

A line for torchao's int8 and float8 of transformer and MLLM, and bitsandbytes' nf4 of the MLLM with an int8
transformer; ``pip install torchao bitsandbytes`` first. Printed are the bytes of both parts' weights, in
parentheses what the transformer's would be if its 1 x 1 convolutions stayed as they are; CPU time of encoded
prompts and of a denoising step as a multiple of the model's as it is, in turns in one process, medians; and
the mean difference of pictures (0 to 255) from its own. ``--score N`` also draws N held-out prompts of each
kind of the nano model's score, two pictures each, and prints the overall figure with its interval.

One thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers.quantizers import PipelineQuantizationConfig
from tbac_uniimage.core import LadderPipeline
from tbac_uniimage.core.quantised import PointwiseLinear
from tbac_uniimage.shell.commands import EMBEDDED
from tbac_uniimage.training.nano.judge import detector
from tbac_uniimage.training.nano.judge.pictures import see
from tbac_uniimage.training.nano.score.command import add_arguments, score
from tbac_uniimage.training.nano.score.drawing import from_pipeline
from tbac_uniimage.training.nano.score.rows import SHAPED, make_rows
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

THINGS, COLOURS = ("panda", "car", "apple"), ("red", "blue")
PROMPTS = [f"a {thing} on a {colour} background" for thing in THINGS for colour in COLOURS]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="default: the embedded nano model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--score", type=int, default=0, metavar="N", help="prompts of each kind; 0: none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype)
    models = {
        name: LadderPipeline.from_pretrained(options.model, torch_dtype=dtype, quantization_config=config)
        for name, config in formats(dtype).items()
    }
    times = {name: ([], []) for name in models}
    steps = {name: step_of(pipe) for name, pipe in models.items()}
    with torch.no_grad():
        for turn in range(options.turns + 1):
            for name, pipe in models.items():
                both = (lambda pipe=pipe: pipe.encode_prompt(PROMPTS), steps[name])
                for kept, work in zip(times[name], both, strict=True):
                    started = time.thread_time()
                    work()
                    if turn:  # the first warms up
                        kept.append(time.thread_time() - started)
    own = pictures(models["as it is"])
    for name, pipe in models.items():
        ratios = [
            statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(times[name], times["as it is"], strict=True)
        ]
        transformer, mllm = pipe.transformer, pipe.mllm
        sizes = (kept_bytes(transformer), convolutions_kept(transformer, dtype), kept_bytes(mllm))
        drawing, less, language = (size / 2**20 for size in sizes)
        away = np.abs(pictures(pipe) - own).mean()
        print(
            f"{name:24} transformer {drawing:7.2f} MiB ({less:.2f}), MLLM {language:7.2f} MiB; encode "
            f"{ratios[0]:.2f} x, step {ratios[1]:.2f} x; pictures {away:.2f} of 255 away",
            flush=True,
        )
        if options.score:
            print(f"{'':24} score {score_of(pipe, options.score)}", flush=True)


def formats(dtype: torch.dtype) -> dict[str, PipelineQuantizationConfig | None]:
    """The configurations by name."""
    four = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    found: dict[str, PipelineQuantizationConfig | None] = {"as it is": None}
    for name, kind in (("int8", Int8WeightOnlyConfig), ("float8", Float8WeightOnlyConfig)):
        mapping = {"mllm": transformers.TorchAoConfig(kind()), "transformer": diffusers.TorchAoConfig(kind())}
        found[name] = PipelineQuantizationConfig(quant_mapping=mapping)
    mapping = {"mllm": four, "transformer": diffusers.TorchAoConfig(Int8WeightOnlyConfig())}
    return found | {"nf4 MLLM, int8 the rest": PipelineQuantizationConfig(quant_mapping=mapping)}


def step_of(pipe: LadderPipeline) -> Callable[[], torch.Tensor]:
    """One step of one picture with two branches of guidance."""
    transformer = pipe.transformer
    condition = pipe.encode_prompt(PROMPTS[0])
    side = transformer.config.sample_size
    latents = torch.randn(2, transformer.config.in_channels, side, side, dtype=transformer.dtype)
    timestep = torch.full((2,), 500.0)
    rungs = transformer.prepare_rungs(condition.states, condition.mask)
    return lambda: transformer(latents, rungs, timestep, return_dict=False)[0]


def pictures(pipe: LadderPipeline) -> np.ndarray:
    """What it draws of the prompts, 0 to 255."""
    pipe.set_progress_bar_config(disable=True)
    draw = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    images = pipe(PROMPTS, num_inference_steps=10, guidance_scale=3, generator=draw).images
    return np.stack([np.asarray(image, dtype=np.float32) for image in images])


def score_of(pipe: LadderPipeline, prompts: int) -> str:
    """The overall figure of the nano model's score in text to image, with its interval of 95 %."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(["--samples", str(prompts), "--pictures", "2", "--only", *SHAPED])
    eye = detector.load(options.judge)
    with tempfile.TemporaryDirectory() as folder:
        model = from_pipeline(pipe, options)
        judged = score(
            options.only, options, Path(folder), model, lambda shown: see(eye, shown), with_art=False
        )
    row = next(row for row in make_rows(judged) if row.name == "overall")
    return f"{row.main.value:.3f} ({row.main.low:.3f} to {row.main.high:.3f}), {row.pictures} pictures"


def kept_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights, of those in fewer bits what they are made of."""
    total = 0
    for parameter in module.parameters():
        names = getattr(parameter, "tensor_data_names", ()) or ()
        more = getattr(parameter, "optional_tensor_data_names", ()) if names else ()
        tensors = [getattr(parameter, name) for name in (*names, *more)] or [parameter]
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
    return total


def convolutions_kept(transformer: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of its weights if convolutions of one pixel were not in fewer bits."""
    layers = [layer for layer in transformer.modules() if isinstance(layer, PointwiseLinear)]
    full = sum(p.numel() * dtype.itemsize for layer in layers for p in layer.parameters())
    return kept_bytes(transformer) - sum(kept_bytes(layer) for layer in layers) + full


if __name__ == "__main__":
    main()
