"""What the subcommands of ``tbac-uniimage`` do. Every function takes the parsed options."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from ..core.checkpoints import LadderParts
    from ..core.pipeline import LadderPipeline

from .placing import best_device, check_offload, cpu_dtype, speed_up

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "nano"
MAX_PICTURES = 4
RANDOM_SEEDS = 2**32


def read_pictures(paths: Sequence[str], sentence: str) -> list[Image.Image]:
    """The input pictures. Raises ValueError, also if the sentence after them was left out."""
    from ..core.pictures import read_picture

    if os.path.isfile(sentence):  # False of a sentence that is no name of a file, where Path would raise
        raise ValueError(f"{sentence} is a file; end the command with a sentence in quotes.")
    if len(paths) > MAX_PICTURES:
        raise ValueError(f"{len(paths)} pictures were given; at most {MAX_PICTURES} are possible.")
    return [read_picture(path) for path in paths]


def model_path(options: argparse.Namespace) -> Path:
    """The path of the model that the options name; one of the hub is fetched.

    Raises:
        ValueError: neither a path nor in the hub's reach.
    """
    from ..core.hub import find_model

    if Path(options.model) == EMBEDDED and not EMBEDDED.exists():
        raise ValueError("This installation has no embedded model; give one with --model.")
    return find_model(options.model, revision=options.revision)


def load_pipeline(options: argparse.Namespace) -> LadderPipeline:
    """The model that the options name, on its device."""
    path = model_path(options)

    from ..core.pipeline import LadderPipeline
    from ..training.threads import spare_threads

    device = options.device or best_device()
    if options.offload:
        check_offload(device)
    dtype = options.dtype or (cpu_dtype if device == "cpu" else "bfloat16")
    place = "cpu" if options.offload else device
    pipeline = LadderPipeline(**vars(load(path, options, dtype=dtype, device=place)))
    if options.offload:
        pipeline.enable_model_cpu_offload(device=device)
    if device == "cpu":
        spare_threads(pipeline.mllm, pipeline.connector, pipeline.transformer, pipeline.vae)
    pipeline.set_progress_bar_config(disable=None, unit="step")  # None: no bar where stderr is a file
    return pipeline


def load(path: Path, options: argparse.Namespace, **placement: Any) -> LadderParts:
    """The parts of a model, with the folders that the options name beside it."""
    from ..core.checkpoints import load_parts

    folders = {"tokenizer_dir": options.tokenizer, "mllm_dir": options.mllm, "sana_dir": options.sana}
    return load_parts(path, **folders, **placement)


def generate(options: argparse.Namespace) -> None:
    """Draw every prompt."""
    if not all(prompt.strip() for prompt in options.prompts):
        raise ValueError("The prompt is empty and there is no image; say what to draw.")
    draw(options, options.prompts)


def edit(options: argparse.Namespace) -> None:
    """Edit the pictures as one request, the first within its mask if there is one."""
    pictures = read_pictures(options.images, options.instruction)
    masked = read_mask(options)
    if masked:
        from ..core.pictures import read_file
        from ..core.rgb import to_rgba

        # what stays keeps its alpha and its colours
        pictures[0] = read_file(options.images[0], lambda image: to_rgba(image, own_colours=True))
    draw(options, [options.instruction], image=pictures, strength=options.strength, **masked)
    for name in options.images:
        say_depth(name)


def read_mask(options: argparse.Namespace) -> dict[str, Any]:
    """The mask as an argument of the pipeline, none if none is asked for.

    Raises:
        ValueError: no picture at its path, or no place to save it.
    """
    from ..core.pictures import check_folder, read_file

    target = options.save_mask
    if options.mask is None and options.context is not None:
        raise ValueError(
            "--context has no mask to be around; give --mask FILE or --mask auto, or leave it out."
        )
    if target is not None:
        if options.mask is None:
            raise ValueError("--save-mask has no mask to save; give --mask auto, or leave it out.")
        if target.is_dir() or target.suffix.lower() != ".png":
            raise ValueError(f"--save-mask {target} is no name of a PNG file; give one that ends in .png.")
        if target.exists():
            raise ValueError(f"--save-mask {target} is there already, and stays; give another name.")
        check_folder(target.parent)
    if options.mask is None:
        return {}
    context = {} if options.context is None else {"context": options.context}
    if options.mask == "auto":
        return {"mask": "auto"} | context
    return {"mask": read_file(options.mask, lambda image: image.copy())} | context


def say_depth(path: str) -> None:
    """Say on stderr what a picture of more than 8 bits a channel loses."""
    from ..core.pictures import is_deep, read_file

    if read_file(path, is_deep):
        print(f"({Path(path).name} has more than 8 bits a channel, its edit has 8)", file=sys.stderr)


def draw(options: argparse.Namespace, prompts: Sequence[str], **edit: Any) -> None:
    """Run the pipeline prompt by prompt; save and name every picture as soon as it is there."""
    from ..core.pictures import check_folder, save_mask, write_picture
    from ..training.arguments import fill_in

    first_seed = random.randrange(RANDOM_SEEDS) if options.seed is None else options.seed
    check_folder(options.out)
    defaults = {"steps": 30, "guidance": 4.5, "image_guidance": 1.5, "scheduler": "recipe"}
    if not edit:
        del defaults["image_guidance"]
    few = fill_in(options, lambda: model_path(options), **defaults)
    pipeline = load_pipeline(options)
    if few is not None:
        few.apply(pipeline)
    speed_up(pipeline, options)

    import torch

    if options.scheduler == "euler":
        from ..core.schedulers import euler_scheduler

        pipeline.register_modules(scheduler=euler_scheduler())
    if "image" in edit:
        edit["image_guidance_scale"] = options.image_guidance
    keep = ("negative", "steps", "guidance", "image_guidance", "scheduler")
    settings = {name: value for name, value in vars(options).items() if name in keep}
    if few is not None:
        settings["few"] = few.file.name
    if options.cache:
        settings["cache"] = options.cache
    # names without folders: pictures are passed on, and a path tells whose they are
    settings["model"] = Path(options.model).name
    if options.revision is not None:
        settings["revision"] = options.revision
    settings["images"] = [Path(name).name for name in getattr(options, "images", [])]
    if "mask" in edit:
        settings["mask"] = Path(options.mask).name
    if "context" in edit:
        settings["context"] = edit["context"]
    if edit.get("strength", 1) < 1:
        settings["strength"] = edit["strength"]
    for index, prompt in enumerate(prompts):
        # noise is drawn on the CPU and per picture, so that a picture depends on its own seed alone
        seeds = [first_seed + index * options.num + k for k in range(options.num)]
        output = pipeline(
            prompt,
            negative_prompt=options.negative,
            guidance_scale=options.guidance,
            height=options.height,
            width=options.width,
            num_inference_steps=options.steps,
            num_images_per_prompt=options.num,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            **edit,
        )
        for picture, used in zip(output.images, seeds, strict=True):
            size = {"width": picture.width, "height": picture.height}
            path = write_picture(picture, options.out, {"prompt": prompt, "seed": used} | size | settings)
            print(path, flush=True)
        if getattr(options, "save_mask", None) is not None:
            save_mask(output.masks[0], options.save_mask)
    if options.seed is None:
        print(f"(seed {first_seed})", file=sys.stderr)


def ask(options: argparse.Namespace) -> None:
    """Print the answer; say on stderr whose vocabulary rows gave it."""
    if not options.question.strip():
        raise ValueError("The question is empty; ask something.")
    pictures = read_pictures(options.images, options.question)
    pipeline = load_pipeline(options)
    rows = None
    if options.qwen is not None:
        from ..core.understanding import load_vocabulary_rows

        rows = load_vocabulary_rows(options.qwen)
    answer = pipeline.ask(pictures, options.question, options.max_tokens, rows)
    source = f"of {options.qwen}" if answer.rows == "qwen" else "of the model itself"
    print(f"(vocabulary rows {source})", file=sys.stderr)
    print(answer.text)


def info(options: argparse.Namespace) -> None:
    """Print what a model is made of."""
    if options.released:
        from ..core.checkpoints import released_parts_on_meta

        name, parts = "the released 3B model", released_parts_on_meta()
    else:
        name = model_path(options)
        parts = load(name, options)
    print(f"TBAC-UniImage, {name}\n{describe(parts)}")


def describe(parts: LadderParts) -> str:
    """Parts with their parameters, sizes, and which MLLM layer feeds which block."""
    from ..core.checkpoints import count_parameters

    counts = count_parameters(parts)
    lines = [f"  {part:14}{count:15,}" for part, count in counts.items()]
    lines.append(f"  {'total':14}{sum(counts.values()):15,}")

    text, transformer = parts.mllm.config.text_config, parts.transformer.config
    blocks, factor = transformer.num_layers, parts.vae.spatial_compression_ratio
    side, width = transformer.sample_size, transformer.num_attention_heads * transformer.attention_head_dim
    lines += [
        f"MLLM: {text.num_hidden_layers} layers of width {text.hidden_size}, "
        f"{text.vocab_size:,} vocabulary rows",
        f"Queries: {parts.connector.config.num_queries}; connector {text.hidden_size} -> "
        f"{parts.connector.config.caption_dim}, shared by all rungs",
        f"Diffusion transformer: {blocks} blocks of width {width}",
        f"Picture: {side * factor} x {side * factor} pixels; "
        f"latent {parts.vae.config.latent_channels} x {side} x {side} (factor {factor})",
    ]
    options = {
        "source_latents": "the latents of what it edits (source_latents)",
        "text_states": "the text's own tokens (text_states)",
    }
    reads = [what for name, what in options.items() if transformer[name]]
    if reads:
        lines.append(f"Reads besides queries and noise: {', '.join(reads)}")
    lines.append(f"{parts.connector.config.rungs.capitalize()} (input of MLLM layer -> block):")
    sources = rung_sources(parts.connector.config.rungs, text.num_hidden_layers, blocks)
    rungs = [f"{source:>3} -> {block:<3}" for block, source in enumerate(sources)]
    return "\n".join(lines + ["  " + " ".join(rungs[i : i + 6]).rstrip() for i in range(0, blocks, 6)])


def rung_sources(rungs: str, layers: int, blocks: int) -> list[str]:
    """Where what every block is told comes from: the layer whose input it is, or words for it."""
    ladder = [str(layer) for layer in range(layers - blocks, layers)]
    return {
        "ladder": ladder,
        "reversed": ladder[::-1],
        "last": ladder[-1:] * blocks,
        "final": ["final norm"] * blocks,
        "mixed": [f"{ladder[0]} to {ladder[-1]}, weighted"] * blocks,
    }[rungs]


def score(options: argparse.Namespace) -> None:
    """Hand over to the nano model's scorer."""
    from ..training.nano import score as scorer

    scorer.run(options)
