"""What fewer bits save and change: memory, time, pictures and score of each format, beside float32.

    python benchmarks/quantised.py [--model DIR] [--only NAME...] [--turns N] [--score N]

The model as it is in float32 and bfloat16; torchao's int8 and float8 of transformer and MLLM; nf4 and int8
of bitsandbytes for the MLLM with an int8 transformer; GGUF (Q8_0) of the transformer; the numbers of *Load
Model* with fp8_e4m3fn in ComfyUI, computed in float32, whose time ``benchmarks/comfy_step.py`` measures.
``pip install torchao bitsandbytes gguf`` first, where nothing else lives: torchao slows every process.

Printed are the bytes of both parts' weights, in parentheses what the transformer's would be if its 1 x 1
convolutions stayed as they are; CPU time of encoded prompts and of a denoising step as a multiple of
float32's, in turns in one process, medians; and the mean difference of pictures (0 to 255) from its own.
``--score N`` also draws N held-out prompts of each kind of the nano model's score, two pictures each, and
prints the overall figure with its interval. ``--only`` chooses formats by how their names begin; float32 is
always the other side. One thread.
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
from tbac_uniimage.core.checkpoints import LAYERS
from tbac_uniimage.core.quantised import PointwiseGLU
from tbac_uniimage.shell.commands import EMBEDDED
from tbac_uniimage.training.nano.judge import detector
from tbac_uniimage.training.nano.judge.pictures import see
from tbac_uniimage.training.nano.score.command import add_arguments, complete, score
from tbac_uniimage.training.nano.score.drawing import from_pipeline
from tbac_uniimage.training.nano.score.rows import SHAPED, make_rows
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

COMFYUI = "fp8_e4m3fn of ComfyUI"
THINGS, COLOURS = ("panda", "car", "apple"), ("red", "blue")
PROMPTS = [f"a {thing} on a {colour} background" for thing in THINGS for colour in COLOURS]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="default: the embedded nano model")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="formats, by how they begin")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--score", type=int, default=0, metavar="N", help="prompts of each kind; 0: none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers = formats(options.model)
    strange = [name for name in options.only if not any(known.startswith(name) for known in makers)]
    if strange:
        parser.error(f"there is no {strange[0]} among {', '.join(makers)}")
    wanted = ("float32", *options.only)
    models = {name: make() for name, make in makers.items() if not options.only or name.startswith(wanted)}
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
    own = pictures(models["float32"])
    for name, pipe in models.items():
        ratios = [
            statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(times[name], times["float32"], strict=True)
        ]
        transformer, mllm = pipe.transformer, pipe.mllm
        fp8 = name == COMFYUI
        sizes = kept_bytes(transformer, fp8), convolutions_kept(transformer), kept_bytes(mllm, fp8)
        drawing, less, language = (size / 2**20 for size in sizes)
        speed = "" if fp8 else f" encode {ratios[0]:.2f} x, step {ratios[1]:.2f} x;"
        away = np.abs(pictures(pipe) - own).mean()
        print(
            f"{name:24} transformer {drawing:7.2f} MiB ({less:.2f}), MLLM {language:7.2f} MiB;{speed} "
            f"pictures {away:.2f} of 255 away",
            flush=True,
        )
        if options.score:
            print(f"{'':24} score {score_of(pipe, options.score)}", flush=True)


def formats(model: Path) -> dict[str, Callable[[], LadderPipeline]]:
    """How the pipeline of each format is made, by name."""

    def pipeline(config: PipelineQuantizationConfig | None = None, dtype: str = "float32") -> LadderPipeline:
        return LadderPipeline.from_pretrained(model, dtype=dtype, quantization_config=config)

    def both(mllm: object, kind: object) -> Callable[[], LadderPipeline]:
        mapping = {"mllm": mllm, "transformer": diffusers.TorchAoConfig(kind)}
        return lambda: pipeline(PipelineQuantizationConfig(quant_mapping=mapping))

    int8, float8 = Int8WeightOnlyConfig(), Float8WeightOnlyConfig()
    four = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return {
        "float32": pipeline,
        "bfloat16": lambda: pipeline(dtype="bfloat16"),
        "int8": both(transformers.TorchAoConfig(int8), int8),
        "float8": both(transformers.TorchAoConfig(float8), float8),
        "nf4 MLLM, int8 the rest": both(four, int8),
        "LLM.int8 MLLM, int8 rest": both(transformers.BitsAndBytesConfig(load_in_8bit=True), int8),
        "GGUF Q8_0 transformer": lambda: with_gguf(pipeline()),
        COMFYUI: lambda: rounded(pipeline()),
    }


def with_gguf(pipe: LadderPipeline) -> LadderPipeline:
    """The same with its transformer written as GGUF and read back."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transformer.gguf"
        writer = gguf.GGUFWriter(path, "sana")
        for name, tensor in pipe.transformer.state_dict().items():
            values = tensor.float().numpy()
            if name.endswith("weight") and values.ndim == 2 and values.shape[1] % 32 == 0:
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        pipe.transformer.save_config(folder)
        transformer = type(pipe.transformer).from_single_file(
            str(path),
            config=folder,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
            torch_dtype=torch.float32,
        )
    return LadderPipeline(**{**pipe.components, "transformer": transformer})


def rounded(pipe: LadderPipeline) -> LadderPipeline:
    """The same with the large weights' values as float8 has them."""
    for part in (pipe.mllm, pipe.transformer):
        for layer in part.modules():
            if isinstance(layer, LAYERS):
                layer.weight.data = layer.weight.to(torch.float8_e4m3fn).to(layer.weight.dtype)
    return pipe


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
    complete(options)
    eye = detector.load(options.judge)
    with tempfile.TemporaryDirectory() as folder:
        model = from_pipeline(pipe, options)
        judged = score(
            options.only, options, Path(folder), model, lambda shown: see(eye, shown), with_art=False
        )
    row = next(row for row in make_rows(judged) if row.name.startswith("overall"))
    return f"{row.main.value:.3f} ({row.main.low:.3f} to {row.main.high:.3f}), {row.pictures} pictures"


def kept_bytes(module: nn.Module, fp8: bool = False) -> int:
    """Bytes of a module's weights, of those in fewer bits what they are made of.

    Args:
        fp8: the large ones count one byte a value, as ComfyUI would keep them.
    """
    short = {id(layer.weight) for layer in module.modules() if fp8 and isinstance(layer, LAYERS)}
    total = 0
    for parameter in module.parameters():
        names = getattr(parameter, "tensor_data_names", ()) or ()
        more = getattr(parameter, "optional_tensor_data_names", ()) if names else ()
        tensors = [getattr(parameter, name) for name in (*names, *more)] or [parameter]
        sizes = [(t.numel(), t.element_size()) for t in tensors if t is not None]
        total += sum(count * (1 if id(parameter) in short else size) for count, size in sizes)
    return total


def convolutions_kept(transformer: nn.Module) -> int:
    """Bytes of its weights if convolutions of one pixel were not in fewer bits."""
    forwards = [layer for layer in transformer.modules() if isinstance(layer, PointwiseGLU)]
    layers = [layer for ff in forwards for layer in (ff.conv_inverted, ff.conv_point)]
    full = sum(4 * p.numel() for layer in layers for p in layer.parameters())
    return kept_bytes(transformer) - sum(kept_bytes(layer) for layer in layers) + full


if __name__ == "__main__":
    main()
