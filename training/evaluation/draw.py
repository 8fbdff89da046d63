"""Draw the pictures of a set, in one process or in several:
``accelerate launch -m tbac_uniimage.training.evaluation.draw geneval --model DIR --out DIR``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import any_path, guidance, positive, seed
from ..exits import LOST_PROCESS, Parser, Stop, parse, run_command
from . import fetch, folders
from .benchmark import Benchmark, Checkout, Item
from .manifest import (
    PARTIALS,
    alone,
    difference,
    model_digest,
    read_json,
    versions,
    write_changed,
    write_whole,
    writing,
)

if TYPE_CHECKING:
    from accelerate import PartialState
    from PIL import Image

    from ...core.pipeline import LadderPipeline
    from .painting import Way

END = b"IEND\xaeB`\x82"  # of a whole PNG


@dataclass(frozen=True)
class Job:
    """A set and what is drawn of it.

    Attributes:
        benchmark: the set.
        checkout: its files.
        items: those to draw, in the set's order.
        folder: of the set, below ``--out``.
    """

    benchmark: Benchmark
    checkout: Checkout
    items: list[Item]
    folder: Path

    @property
    def pictures(self) -> Path:
        """Folder for the official scorer."""
        return self.folder / folders.PICTURES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``evaluate draw``. Imports nothing heavy."""
    parser.description = (
        "Pictures that are there and were drawn in the same way are kept. A picture depends on its item and "
        "on --seed, not on the number of processes or on what was drawn before."
    )
    parser.add_argument("names", nargs="+", metavar="SET", help="geneval, dpg, tiif, imgedit, …")
    parser.add_argument(
        "--model", type=any_path, required=True, metavar="DIR", help="folder or file of a model"
    )
    parser.add_argument("--out", type=any_path, required=True, metavar="DIR", help="gets a folder per set")
    fetch.add_cache(parser)
    parser.add_argument("--steps", type=positive, default=30, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--guidance", type=guidance, default=4.5, metavar="X", help="of the text (default %(default)s)"
    )
    parser.add_argument(
        "--image-guidance",
        type=guidance,
        default=1.5,
        metavar="X",
        help="of an edit's source (default %(default)s)",
    )
    parser.add_argument(
        "--size", type=positive, metavar="N", help="side of pictures from text (default: the model's)"
    )
    parser.add_argument(
        "--edit-size",
        choices=["model", "own"],
        default="model",
        help="edits in the model's size and the proportions of their source, or in its own size to the pixel",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default %(default)s")
    parser.add_argument("--limit", type=positive, metavar="N", help="only N items, spread over the set")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first of these that is there)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the weights (default: float32 on a CPU, else bfloat16)",
    )
    for name, what in (
        ("tokenizer", "tokenizer, if the model comes without"),
        ("mllm", "Qwen2.5-VL that a checkpoint of another size than 3B was made from"),
        ("sana", "SANA that it was made from"),
    ):
        parser.add_argument(f"--{name}", type=any_path, metavar="DIR", help=what)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m tbac_uniimage.training.evaluation.draw`` is ``tbac-uniimage evaluate draw``."""

    def command() -> None:
        parser = Parser(prog="tbac-uniimage evaluate draw")
        add_arguments(parser)
        run(parse(parser, sys.argv[1:] if argv is None else list(map(str, argv))))

    return run_command(command)


def run(options: argparse.Namespace) -> None:
    """Draw what is missing of every set.

    Raises:
        ValueError: bad input, before anything is written.
        Stop: a picture cannot be written.
    """
    from .sets import find

    benchmarks = [find(name) for name in dict.fromkeys(options.names)]
    jobs = [job_of(benchmark, options) for benchmark in benchmarks]
    check_model(options)

    from ...core.pictures import check_folder

    check_folder(options.out)

    import torch
    from accelerate import PartialState

    from ..run import engine

    on_cpu = options.device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=engine.PATIENCE)
    if on_cpu:
        torch.set_num_threads(1)  # sums over another number of threads may round otherwise
    own = options.device in (None, state.device.type)  # of several of a kind, each process has its own
    device = str(state.device) if own else options.device
    dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    way = way_of(options)
    try:
        every = engine.by_first(state, lambda: all_settings(jobs, options, way, device, dtype))
        pipeline = load(options, device, dtype)
        if any(item.source is None for job in jobs for item in job.items):
            check_size(pipeline, way)
        for job, settings in zip(jobs, every, strict=True):
            engine.by_first(state, lambda job=job, settings=settings: begin(job, settings, options.model))
            draw_together(job, settings, way, pipeline, state)
    except RuntimeError as error:
        if engine.as_lost_process(error) is None:
            raise
        raise Stop(
            "Another process has ended; what it said tells why. The same command goes on where it was.",
            LOST_PROCESS,
        ) from error


def job_of(benchmark: Benchmark, options: argparse.Namespace) -> Job:
    """What is to be drawn of a set. Raises ValueError: it was not fetched, or has changed since."""
    checkout = fetch.load(benchmark, options.sets)
    items = benchmark.items(checkout)
    return Job(benchmark, checkout, spread(items, options.limit), options.out / benchmark.name)


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """So many items at equal distances; all where there are no more."""
    number = len(items) if limit is None else min(limit, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def way_of(options: argparse.Namespace) -> Way:
    """How the command draws."""
    from .painting import Way

    names = ("steps", "guidance", "image_guidance", "size", "edit_size", "seed")
    return Way(**{name: getattr(options, name) for name in names})


def beside(options: argparse.Namespace) -> list[Path]:
    """The folders that a model needs beside it."""
    return [path for path in (options.tokenizer, options.mllm, options.sana) if path is not None]


def check_model(options: argparse.Namespace) -> None:
    """Raise ValueError if a folder of the command is not there."""
    for path in [options.model, *beside(options)]:
        if not path.exists():
            raise ValueError(f"There is no model at {path}; check the path.")


def all_settings(
    jobs: Sequence[Job], options: argparse.Namespace, way: Way, device: str, dtype: str
) -> list[dict[str, Any]]:
    """What decides every picture, per set. Raises ValueError: what is there was drawn in another way."""
    common = {"model": model_digest([options.model, *beside(options)]), "dtype": dtype}
    common |= {"device": device.split(":")[0], "versions": versions()}
    every = []
    for job in jobs:
        settings = settings_of(job, way) | common
        check_there(job, settings, way)
        every.append(settings)
    return every


def settings_of(job: Job, way: Way) -> dict[str, Any]:
    """The set and the way of drawing; what has no influence on it is left out."""
    ways = asdict(way)
    edits = {item.source is not None for item in job.items}
    if True not in edits:
        del ways["image_guidance"], ways["edit_size"]
    if False not in edits:
        del ways["size"]
    return {"set": job.benchmark.name, "files": job.checkout.digest} | ways


def check_there(job: Job, settings: dict[str, Any], way: Way) -> None:
    """Raise ValueError if a folder holds pictures of another model, set or way of drawing."""
    path = job.folder / folders.MANIFEST
    manifest = read_json(path)
    there = [(item, n) for item in job.items for n, _ in enumerate(item.pictures)]
    there = [(item, n) for item, n in there if (job.pictures / item.pictures[n].path).exists()]
    if manifest is None and there:
        raise ValueError(
            f"{job.pictures} holds pictures and {path.name} is not there, so nobody knows what drew them; "
            "give another --out."
        )
    other = manifest and difference(manifest.get("settings", {}), settings)
    if other:
        raise ValueError(f"{job.folder} holds pictures drawn with {other}; give another --out.")
    for item, n in there:
        shot = job.pictures / item.pictures[n].path
        other = difference(chunk_in(shot), chunk_of(job, item, n, settings, way))
        if other:
            raise ValueError(f"{shot} was drawn with {other}; remove it, or give another --out.")


def chunk_of(job: Job, item: Item, number: int, settings: dict[str, Any], way: Way) -> dict[str, Any]:
    """What a picture says of itself."""
    from .painting import noise_seed

    samples = item.pictures[number].samples
    noise = [noise_seed(job.benchmark.name, item.key, sample, way.seed) for sample in samples]
    return {"item": item.key, "prompt": item.prompt, "noise": noise} | settings


def chunk_in(path: Path) -> dict[str, Any]:
    """What a picture that is there says of itself. Raises ValueError: it is not whole, or none of ours."""
    from PIL import Image

    from ...core.pictures import CHUNK

    try:
        with Image.open(path) as picture:
            said = json.loads(picture.info[CHUNK])
        with open(path, "rb") as file:
            file.seek(-len(END), os.SEEK_END)
            whole = file.read() == END
    except (OSError, SyntaxError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no picture that was drawn here; remove it.") from error
    if not whole:
        raise ValueError(f"{path} is torn; remove it.")
    return said


def load(options: argparse.Namespace, device: str, dtype: str) -> LadderPipeline:
    """The model on its device. Raises ValueError."""
    from ...core.checkpoints import load_parts
    from ...core.pipeline import LadderPipeline

    parts = load_parts(
        options.model,
        dtype=dtype,
        device=device,
        tokenizer_dir=options.tokenizer,
        mllm_dir=options.mllm,
        sana_dir=options.sana,
    )
    pipeline = LadderPipeline(**vars(parts))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_size(pipeline: LadderPipeline, way: Way) -> None:
    """Raise ValueError if the model cannot draw pictures of the size."""
    from ...core.requests import check_size
    from .painting import size_of

    width, height = size_of(pipeline, None, way)
    check_size(height, width, pipeline.vae_scale_factor)


def begin(job: Job, settings: dict[str, Any], model: Path) -> None:
    """Write the manifest and the files that stand beside the pictures; remove what a kill left half-written.

    Raises:
        Stop: they cannot be written.
    """
    with writing(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(job.folder / PARTIALS, ignore_errors=True)
    manifest = {"title": job.benchmark.title, "model": model.resolve().name, "settings": settings}
    said = (json.dumps(manifest, indent=1) + "\n").encode()
    write_changed(job.folder / folders.MANIFEST, said, job.folder / PARTIALS)
    for item in job.items:
        for name, content in job.benchmark.companions(item).items():
            write_changed(job.pictures / name, content, job.folder / PARTIALS)


def draw_together(
    job: Job, settings: dict[str, Any], way: Way, pipeline: LadderPipeline, state: PartialState
) -> None:
    """Draw what is missing of a set with all processes.

    Raises:
        ValueError: another command draws into the folder.
        Stop: a picture cannot be written.
    """
    try:
        with alone(job.folder / folders.MANIFEST) if state.is_main_process else nullcontext():
            draw(job, settings, way, pipeline, state)
            state.wait_for_everyone()
    except (Stop, ValueError) as error:
        if not state.is_main_process:  # on a line of its own: the first process's bar may stand there
            print(f"\ntbac-uniimage, process {state.process_index}: {error}", file=sys.stderr)
        raise
    if state.is_main_process:
        end(job)
        number = sum(len(item.pictures) for item in job.items)
        print(f"{job.benchmark.name}: {number:,} pictures in {job.pictures}")


def end(job: Job) -> None:
    """Remove the folder of unfinished files."""
    shutil.rmtree(job.folder / PARTIALS, ignore_errors=True)


def draw(job: Job, settings: dict[str, Any], way: Way, pipeline: LadderPipeline, state: PartialState) -> None:
    """Draw this process's share of the items, of which nothing is drawn twice.

    Raises:
        Stop: a picture cannot be written.
    """
    from tqdm import tqdm

    from .painting import paint

    mine = job.items[state.process_index :: state.num_processes]
    missing = {
        item.key: [n for n, shot in enumerate(item.pictures) if not (job.pictures / shot.path).exists()]
        for item in mine
    }
    total = sum(len(item.pictures) for item in mine)
    left = sum(map(len, missing.values()))
    bar = tqdm(
        total=total,
        initial=total - left,
        desc=job.benchmark.name,
        unit="picture",
        disable=not state.is_main_process,
    )
    with bar:
        for item in mine:
            if not missing[item.key]:
                continue
            pictures = paint(pipeline, job.benchmark.name, item, way)
            for n in missing[item.key]:
                content = png(pictures[n], chunk_of(job, item, n, settings, way))
                write_whole(job.pictures / item.pictures[n].path, content, job.folder / PARTIALS)
                bar.update()


def png(picture: Image.Image, said: dict[str, Any]) -> bytes:
    """A PNG file with what it says of itself."""
    from PIL.PngImagePlugin import PngInfo

    from ...core.pictures import CHUNK

    info = PngInfo()
    info.add_text("Software", "TBAC-UniImage")
    info.add_text(CHUNK, json.dumps(said))
    file = BytesIO()
    picture.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
