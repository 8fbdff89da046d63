"""Data sets of composed scenes, in the layout that `training/data` reads.

`python -m tbac_uniimage.training.nano.compose FOLDER --scenes N …` writes below FOLDER

- `scenes`: captions with their picture, for stage 1,
- `words`: those that ask for a word, which take longest to learn,
- `edits`: source, instruction and result, for stage 2,
- `curated-scenes`, `curated-edits`: for stage 3: every kind equally often, nothing moved by the jitter,
  style and background always named.

Each is a folder of tars with `<number>.webp` or `<number>.input.webp` and `<number>.output.webp`, all
lossless, and `<number>.txt`. What a number holds follows from the seed. A tar that is there is not written
again, so an interrupted call goes on, and a later one may ask for more.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from tqdm import tqdm

from .domain import art, edits, prompts
from .domain.edits import Edit
from .domain.prompts import Prompt
from .domain.render import render
from .domain.scene import SIZE, SIZES, Scene, straightened
from .files import replace_file

SHARD = 5000  # samples of one tar
SETTINGS = "compose.json"
Files = dict[str, bytes]  # suffix of the member -> content


def scene_files(seed: int, number: int, size: int) -> Files:
    """A caption with its picture."""
    return prompt_files(prompts.draw(seed, "train", number), size)


def word_files(seed: int, number: int, size: int) -> Files:
    """A caption that asks for a word, with its picture."""
    return prompt_files(prompts.draw(seed, "train", number, "text"), size)


def edit_files(seed: int, number: int, size: int) -> Files:
    """An instruction with source and result."""
    return change_files(edits.draw(seed, "train", number), size)


def curated_scene_files(seed: int, number: int, size: int) -> Files:
    """A caption of the curated set."""
    return prompt_files(curated_prompt(seed, number), size)


def curated_edit_files(seed: int, number: int, size: int) -> Files:
    """An edit of the curated set."""
    return change_files(curated_edit(seed, number), size)


SETS: dict[str, Callable[[int, int, int], Files]] = {  # by seed, number and size of the pictures
    "scenes": scene_files,
    "words": word_files,
    "edits": edit_files,
    "curated-scenes": curated_scene_files,
    "curated-edits": curated_edit_files,
}


COUNTS = {
    "scenes": 200_000,
    "words": 50_000,
    "edits": 100_000,
    "curated-scenes": 5_000,
    "curated-edits": 5_000,
}


def curated_prompt(seed: int, number: int) -> Prompt:
    """A training prompt without jitter, of the number's kind, that names style and background."""
    random, kinds = Random(f"{seed}/curated/{number}"), list(prompts.KINDS)
    while True:
        prompt = prompts.sample(random, kinds[number % len(kinds)])
        told = {fact[0] for fact in prompt.facts}
        if "background" in told and ("style" in told or not prompt.scene.items):
            return replace(prompt, scene=straight(prompt.scene))


def curated_edit(seed: int, number: int) -> Edit:
    """A training edit whose kind follows from the number, without jitter."""
    kinds = list(edits.KINDS)
    edit = edits.sample(Random(f"{seed}/curated/edit/{number}"), kinds[number % len(kinds)])
    return replace(edit, source=straight(edit.source), target=straight(edit.target))


def straight(scene: Scene) -> Scene:
    """The scene without jitter."""
    return replace(scene, items=tuple(map(straightened, scene.items)))


def prompt_files(prompt: Prompt, size: int) -> Files:
    """Members of a caption's sample."""
    return {"webp": webp(render(prompt.scene, size)), "txt": prompt.text.encode()}


def change_files(edit: Edit, size: int) -> Files:
    """Members of an edit's sample."""
    return {
        "input.webp": webp(render(edit.source, size)),
        "output.webp": webp(render(edit.target, size)),
        "txt": edit.text.encode(),
    }


def webp(picture: np.ndarray) -> bytes:
    """A picture [height, width, 3] uint8 as lossless WebP."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", lossless=True, quality=20, method=0)  # exact; little effort
    return file.getvalue()


def shards(count: int) -> Iterator[tuple[str, range]]:
    """Name and numbers of every tar of a set."""
    for start in range(0, count, SHARD):
        yield f"{start // SHARD:05}.tar", range(start, min(start + SHARD, count))


def write_shard(path: Path, numbers: range, make: Callable[[int], Files], tick: Callable[[], object]) -> None:
    """Write a tar under a temporary name, then rename it."""

    def write(target: Path) -> None:
        with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                for suffix, content in make(number).items():
                    member = tarfile.TarInfo(f"{number:08}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                tick()

    replace_file(write, path)


def check(folder: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """Compare with what the folder was begun with, and note it there.

    Raises:
        ValueError: another seed or size, fewer samples, or more where the last tar is not full.
    """
    path = folder / SETTINGS
    if path.exists():
        begun = json.loads(path.read_text())
        if begun["seed"] != seed:
            raise ValueError(f"{folder} was made with seed {begun['seed']}: keep it or take another folder")
        if (drawn := begun.get("size", SIZE)) != size:
            raise ValueError(
                f"{folder} was made with pictures of {drawn} pixels, not {size}: keep the size or take "
                "another folder"
            )
        for name, count in begun["counts"].items():
            if counts[name] < count or (counts[name] > count and count % SHARD):
                raise ValueError(
                    f"{folder / name} was made for {count} samples, not {counts[name]}: keep the number "
                    f"(only multiples of {SHARD} can grow) or take another folder"
                )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"seed": seed, "size": size, "counts": counts}, indent=1)
    replace_file(lambda target: target.write_text(text), path)


def compose(folder: Path, counts: dict[str, int], seed: int = 0, size: int = SIZE) -> None:
    """Write every set of `counts` below the folder, tars that are there excepted.

    Raises:
        FileNotFoundError: the drawings have not been fetched.
        ValueError: the folder was begun with other settings.
    """
    art.load()
    check(folder, seed, size, counts)
    for name, count in counts.items():
        (folder / name).mkdir(exist_ok=True)
        with tqdm(desc=name, total=count, unit=" samples", disable=None) as bar:
            for file, numbers in shards(count):
                path = folder / name / file
                if path.exists():
                    bar.update(len(numbers))
                else:
                    write_shard(path, numbers, partial(SETS[name], seed, size=size), bar.update)


def main() -> None:
    parser = argparse.ArgumentParser(description="Data sets of composed scenes for the nano model's recipes.")
    parser.add_argument("folder", type=Path)
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help="samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=max(SIZES), choices=SIZES, help="of pictures, in pixels")
    options = parser.parse_args()
    counts = {name: getattr(options, name.replace("-", "_")) for name in SETS}
    art.build()
    try:
        compose(options.folder, counts, options.seed, options.size)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
