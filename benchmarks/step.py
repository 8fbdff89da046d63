"""A denoising step, and what makes it shorter: lean attention, step caches, compilation, bfloat16.

    python benchmarks/step.py [--model DIR] [--repeats N] [--compile] [--bfloat16] [--pictures N] [--edits]

Both sides of a pair run in one process and in turns; medians of the CPU time of one thread. ``--compile``
also compiles (minutes), ``--bfloat16`` also multiplies at the released widths: a block of the transformer and
a layer of the language model. ``--pictures`` is how many the step cache is measured on, ``--edits`` takes
edits for them.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import statistics
import time
from pathlib import Path

import torch
from diffusers import SanaTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.models.attention_processor import Attention
from ladder import compare
from PIL import Image
from tbac_uniimage.core import LadderPipeline, load_parts
from tbac_uniimage.core.checkpoints.parts import on_meta, released_configs
from tbac_uniimage.core.rung_attention import RungKV, Rungs
from tbac_uniimage.core.transformer import LadderTransformer2DModel
from tbac_uniimage.shell.commands import EMBEDDED
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.models.qwen2_5_vl import Qwen2_5_VLTextConfig

PROMPTS = (
    "a dog to the left of a rocket on a blue background",
    "a panda on a yellow background",
    "three stars on white",
    "a red car on a green background",
    "a cat above a blue car on pink",
    "a flat illustration of a frog on orange",
)
INSTRUCTIONS = (
    "remove the cactus",
    "change the background to blue",
    "replace the rocket with a panda",
    "make the rocket purple",
    "turn it into a cartoon",
    "add a star",
)
SCENE = EMBEDDED.parent / "samples" / "tbac_uniimage_scene.png"
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3)
STEPS = 30
SANA = inspect.signature(SanaTransformer2DModel.__init__).parameters  # what its configuration knows


@torch.no_grad()
def main() -> None:
    """Measure all pairs that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="default: the embedded nano model")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="compiled blocks and model, too")
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 at the released widths, too")
    parser.add_argument("--pictures", type=int, default=6, help="for the step cache; 0 leaves it out")
    parser.add_argument("--edits", action="store_true", help="the step cache on edits, not on prompts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = LadderPipeline(**vars(load_parts(options.model, dtype=torch.float32)))
    pipeline.set_progress_bar_config(disable=True)
    transformer = pipeline.transformer
    condition = pipeline.encode_prompt(PROMPTS[0])
    side = transformer.config.sample_size
    latents = torch.randn(2, transformer.config.in_channels, side, side)
    timestep = torch.full((2,), 500.0)
    rungs = transformer.prepare_rungs(condition.states, condition.mask)
    config = {name: transformer.config[name] for name in SANA if name in transformer.config}
    stock = SanaTransformer2DModel.from_config(config).eval()
    stock.load_state_dict(transformer.state_dict())

    def ours() -> torch.Tensor:
        return transformer(latents, rungs, timestep, return_dict=False)[0]

    def sana() -> torch.Tensor:
        return stock(latents.to(stock.dtype), condition.states[0], timestep, return_dict=False)[0]

    print(f"{options.model}, float32, one CPU thread, {options.repeats} repeats")
    print(compare("a step of diffusers' SANA", sana, "ours", ours, options.repeats))
    stock_attention = copy.deepcopy(transformer)
    for block in stock_attention.transformer_blocks:
        block.attn1.__class__ = block.attn2.__class__ = Attention

    def before() -> torch.Tensor:
        x = latents.to(stock_attention.dtype)
        return stock_attention(x, rungs, timestep, return_dict=False)[0]

    torch.testing.assert_close(before(), ours(), rtol=0, atol=0)
    print(compare("ours with diffusers' attention", before, "as it is", ours, options.repeats))
    if options.compile:
        for name, compiled in compilations(transformer):
            step = lambda model=compiled: model(latents, rungs, timestep, return_dict=False)[0]  # noqa: E731
            started = time.perf_counter()
            torch.testing.assert_close(step(), ours(), rtol=1e-3, atol=1e-4)
            print(f"{name}: compiled in {time.perf_counter() - started:.0f} s")
            print(compare("plain", ours, name, step, options.repeats))
    if options.pictures:
        step_cache(pipeline, options.pictures, edits=options.edits)
    if options.bfloat16:
        for line in widths(options.repeats):
            print(line)


def compilations(transformer: LadderTransformer2DModel):
    """Copies with the blocks, and with the whole compiled."""
    blocks = copy.deepcopy(transformer)
    blocks.compile_repeated_blocks()
    whole = copy.deepcopy(transformer)
    whole.compile()
    return ("blocks compiled", blocks), ("all compiled", whole)


def step_cache(pipeline: LadderPipeline, count: int, edits: bool) -> None:
    """Whole pictures with FirstBlockCache and without, in turns."""
    transformer = pipeline.transformer
    scales = {"guidance_scale": 2.0, "image_guidance_scale": 2.0} if edits else {"guidance_scale": 4.5}
    seen = {"image": Image.open(SCENE).convert("RGB")} if edits else {}
    found = {threshold: [] for threshold in THRESHOLDS}

    def draw(number: int, steps: int = STEPS) -> tuple[torch.Tensor, float]:
        generator = torch.Generator().manual_seed(number)
        condition = conditions[number % len(conditions)]
        started = time.process_time()
        options = {"num_inference_steps": steps, "generator": generator, "output_type": "pt"} | scales
        return pipeline(condition=condition, **options).images, time.process_time() - started

    texts = INSTRUCTIONS if edits else PROMPTS
    conditions = [pipeline.encode_prompt(text, **seen, **scales) for text in texts]
    draw(0)
    fewer = []
    for number in range(count):
        plain, seconds = draw(number)
        for threshold in THRESHOLDS:
            transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
            picture, cached = draw(number)
            transformer.disable_cache()
            found[threshold].append((cached / seconds, 255 * (picture - plain).abs().mean().item()))
        picture, cached = draw(number, STEPS // 3)
        fewer.append((cached / seconds, 255 * (picture - plain).abs().mean().item()))
    what = "edits with guidance 2 of text and image" if edits else "pictures with guidance 4.5"
    print(f"{count} {what} of {STEPS} steps: medians, worst difference, grey levels of 255")
    rows = [*((f"FirstBlockCache {threshold}", found[threshold]) for threshold in THRESHOLDS)]
    for name, results in [*rows, (f"{STEPS // 3} steps for {STEPS}", fewer)]:
        took, moved = zip(*results, strict=True)
        print(
            f"{name}: {statistics.median(took):.2f} of the time, {statistics.median(moved):.2f} grey levels "
            f"(worst {max(moved):.2f})"
        )


def widths(repeats: int) -> list[str]:
    """A block on 2 x 256 places, and the large products of a language layer on 128 tokens."""
    bases = released_configs()
    config = bases.transformer | {"num_layers": 1}
    block = on_meta(LadderTransformer2DModel.from_config, config).to_empty(device="cpu").eval()
    block.load_state_dict({name: 0.02 * torch.randn_like(p) for name, p in block.state_dict().items()})
    text = Qwen2_5_VLTextConfig(hidden_size=2048, intermediate_size=11008)
    layer, tokens = Qwen2MLP(text).eval(), torch.randn(1, 128, 2048)
    half_block, half_layer = (copy.deepcopy(module).to(torch.bfloat16) for module in (block, layer))
    states, latents = torch.randn(1, 2, 64, 2304), torch.randn(2, 32, 16, 16)
    time_of = torch.full((2,), 500.0)
    rungs = block.prepare_rungs(states)
    half_rungs = Rungs([RungKV(kv.key.bfloat16(), kv.value.bfloat16()) for kv in rungs.kv])
    return [
        compare(
            "a block of width 2240, float32",
            lambda: block(latents, rungs, time_of, return_dict=False)[0],
            "bfloat16",
            lambda: half_block(latents.to(torch.bfloat16), half_rungs, time_of, return_dict=False)[0],
            repeats,
        ),
        compare(
            "products of a language layer of width 2048, float32",
            lambda: layer(tokens),
            "bfloat16",
            lambda: half_layer(tokens.to(torch.bfloat16)),
            repeats,
        ),
    ]


if __name__ == "__main__":
    main()
