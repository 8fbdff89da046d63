"""What computing once saves: prepared rungs and one pass of the language model when drawing, pictures that
branches and edits share, the prefix without gradient when training.

    python benchmarks/ladder.py [--model DIR] [--repeats N] [--encode]

Both ways of a pair run in one process and in turns, and their results are compared first, so that the times
are those of the same numbers. Prints medians of the CPU time of one thread, which other work on the machine
disturbs least.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from tbac_uniimage.core import LadderCondition, LadderPipeline, load_parts
from tbac_uniimage.core.inputs import LadderInputs
from tbac_uniimage.core.rope import rope_positions
from tbac_uniimage.shell.commands import EMBEDDED
from tbac_uniimage.training.step.objective import flow_matching_loss
from transformers import DynamicCache

TRAIN_BATCH = 8
INSTRUCTION = "replace the cat with a dog and change the background to blue"


def main() -> None:
    """Measure both pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="default: the embedded nano model")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--encode", action="store_true", help="the language model alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = LadderPipeline(**vars(load_parts(options.model, dtype=torch.float32)))
    print(f"{options.model}, float32, one CPU thread, {options.repeats} repeats")
    for line in encoding(pipeline, options.repeats):
        print(line, flush=True)
    if options.encode:
        return
    for branches in (2, 3):
        print(denoising(pipeline, branches, options.repeats))
    for whole in (False, True):
        print(training(pipeline, whole, options.repeats))


@torch.no_grad()
def denoising(pipeline: LadderPipeline, branches: int, repeats: int) -> str:
    """One step of one picture with 2 (text) or 3 (edit) branches of guidance."""
    transformer = pipeline.transformer
    condition = pipeline.encoder([INSTRUCTION] * branches)
    side = transformer.config.sample_size
    latents = torch.randn(branches, transformer.config.in_channels, side, side)
    timestep = torch.full((branches,), 500.0)
    rungs = transformer.prepare_rungs(condition.states, condition.mask)

    def plain() -> torch.Tensor:
        return transformer(latents, condition.states, timestep, condition.mask, return_dict=False)[0]

    def fast() -> torch.Tensor:
        return transformer(latents, rungs, timestep, return_dict=False)[0]

    torch.testing.assert_close(fast(), plain())
    return compare(f"denoising step, {branches} branches: plain", plain, "prepared rungs", fast, repeats)


@torch.no_grad()
def encoding(pipeline: LadderPipeline, repeats: int) -> Iterator[str]:
    """The language model for a picture: both branches of a text, the three of an edit, the next edit.

    Vision tokens are known to both ways. Those of nano are too few to be shared; ``loading.py --write DIR``
    makes a random model of the released widths.
    """
    encoder, pixels = pipeline.encoder, pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    image, black = Image.effect_noise((pixels, pixels), 64).convert("RGB"), Image.new("RGB", (pixels, pixels))
    text = encoder.tokenize(["", INSTRUCTION])
    edit = encoder.tokenize(["", "", INSTRUCTION], [[black], [image], [image]])
    again = encoder.tokenize([INSTRUCTION], [[image]])

    def apart(inputs: LadderInputs) -> torch.Tensor:
        """Every prefix by itself, then its queries, as a step of training does."""
        with torch.enable_grad():
            return encoder.hidden_states(inputs).detach()

    def whole(inputs: LadderInputs) -> torch.Tensor:
        """Every branch in one pass."""
        return encoder.hidden_states(replace(inputs, pixel_values=None, features=encoder.vision.of(inputs)))

    def anew(inputs: LadderInputs) -> torch.Tensor:
        """Its pictures once, then what follows them."""
        encoder.prefix_cache.clear()
        return encoder.hidden_states(inputs)

    pairs = [
        ("text, 2 branches: prefix and queries apart", apart, "one pass", whole, text),
        ("edit, 3 branches: prefix and queries apart", apart, "one pass", whole, edit),
    ]
    anew(edit)
    if encoder.prefix_cache:  # its pictures are long enough
        pairs += [
            ("edit, 3 branches: every branch by itself", whole, "pictures shared", anew, edit),
            ("next edit of a picture: all of it", whole, "its picture known", encoder.hidden_states, again),
        ]
    for name, slow, other, fast, inputs in pairs:
        torch.testing.assert_close(fast(inputs), slow(inputs), rtol=1e-3, atol=1e-4)
        yield compare(name, partial(slow, inputs), other, partial(fast, inputs), repeats)


def training(pipeline: LadderPipeline, whole: bool, repeats: int) -> str:
    """Forward and backward of a batch of edits: of the conditions alone, or of the ``whole`` training step.

    Queries, connector and transformer are trained; the vision tower's features are kept by both ways.
    """
    encoder, transformer = pipeline.encoder, pipeline.transformer
    side = transformer.config.sample_size
    pixels = side * pipeline.vae_scale_factor
    images = [[Image.new("RGB", (pixels, pixels), (16 * i, 64, 128))] for i in range(TRAIN_BATCH)]
    inputs = encoder.tokenize([INSTRUCTION] * TRAIN_BATCH, images)
    latents = torch.randn(TRAIN_BATCH, transformer.config.in_channels, side, side)
    noise, u = torch.randn_like(latents), torch.rand(TRAIN_BATCH)
    queries = encoder.connector.queries

    def step(states: Callable[[LadderInputs], torch.Tensor]) -> torch.Tensor:
        pipeline.connector.zero_grad()
        transformer.zero_grad()
        condition = LadderCondition(encoder.connector(states(inputs)), torch.ones(TRAIN_BATCH, len(queries)))
        if whole:
            flow_matching_loss(transformer, condition, latents, noise, u).backward()
        else:
            condition.states.square().mean().backward()
        return queries.grad.clone()

    def full() -> torch.Tensor:
        return step(lambda batch: full_pass(encoder, batch))

    def split() -> torch.Tensor:
        return step(encoder.hidden_states)

    torch.testing.assert_close(split(), full(), rtol=1e-3, atol=1e-6)
    subject = "training step" if whole else "conditions, forward and backward"
    title = f"{subject}, {TRAIN_BATCH} edits of {inputs.input_ids.shape[1]} tokens: full pass"
    return compare(title, full, "prefix without gradient", split, repeats)


def full_pass(encoder, inputs: LadderInputs) -> torch.Tensor:
    """Query states as ``LadderEncoder.hidden_states`` gives them, from one pass over the whole prompt."""
    ids, mask = inputs.input_ids[:, :-2], inputs.attention_mask[:, :-2]
    config = encoder.mllm.config
    positions = rope_positions(
        ids, mask, config.image_token_id, inputs.image_grid_thw, config.vision_config.spatial_merge_size
    )
    num_queries = len(encoder.connector.queries)
    with torch.no_grad():
        prefix = encoder.mllm.model.language_model.embed_tokens(ids[:, :-num_queries])
        features = encoder.vision(inputs.pixel_values, inputs.image_grid_thw)
        prefix[ids[:, :-num_queries] == config.image_token_id] = features
    queries = encoder.connector.queries.expand(len(ids), -1, -1)
    cache = DynamicCache(config=config.get_text_config())
    hidden = encoder.run_layers(torch.cat([prefix, queries], dim=1), mask, positions, cache)
    return hidden[:, :, -num_queries:]


def compare(name: str, slow: Callable, other_name: str, fast: Callable, repeats: int) -> str:
    """Time both in turns, in an order drawn anew each time. Returns a line with medians and their ratio."""
    times: dict[Callable, list[float]] = {slow: [], fast: []}
    order = [slow, fast]
    for _ in range(repeats):
        random.shuffle(order)
        for way in order:
            start = time.thread_time()
            way()
            times[way].append(time.thread_time() - start)
    first, second = (1000 * statistics.median(times[way]) for way in (slow, fast))
    return f"{name} {first:.1f} ms, {other_name} {second:.1f} ms: {first / second:.2f} times as fast"


if __name__ == "__main__":
    main()
