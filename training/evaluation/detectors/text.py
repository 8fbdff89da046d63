"""``evaluate judge tiif --words FILE``: the words that RapidOCR reads in pictures against those asked for.

No file of TIIF-Bench holds the true words; FILE has a line ``{"item": KEY, "words": […]}`` for each prompt of
its attribute "text". The published figures are PaddleOCR's: these stand alone, under the recogniser's name.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import folders
from ..benchmark import Benchmark, Item
from ..reading import lines_of

if TYPE_CHECKING:
    from ..judge import Drawn

RECOGNISER = "rapidocr"
FILE = "text.json"
Reader = Callable[[Path], list[str]]


def check_options(options: argparse.Namespace, benchmarks: Sequence[Benchmark]) -> None:
    """Raise ValueError unless the sets have texts to read."""
    for benchmark in benchmarks:
        if not benchmark.name.startswith("tiif"):
            raise ValueError(f"{benchmark.name} asks for no words; --words is for tiif.")


def recogniser() -> Reader:
    """Texts in a picture file, as they are read. Raises ValueError: the package is missing."""
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError(
            'The recogniser is missing; install it with: pip install "tbac-uniimage[evaluate]"'
        ) from error
    engine = RapidOCR(params={"Global.log_level": "error"})
    return lambda path: list(engine(str(path)).txts or ())


def judge(found: Drawn, options: argparse.Namespace) -> None:
    """Read every picture of the file's items, write the figures, print them.

    Raises:
        ValueError: an item is unknown, has no words or is missing.
        Stop: they cannot be written.
    """
    from tqdm import tqdm

    from ..manifest import PARTIALS, write_whole
    from ..words import gned, recall

    wanted = true_words(found, options.words, options.partial)
    read = recogniser()
    rows = []
    for item, words in tqdm(wanted, desc=found.benchmark.name, unit="picture"):
        texts = [text.lower() for text in read(found.pictures / item.pictures[0].path)]
        row = {"item": item.key, "words": words, "read": texts}
        rows.append(row | {"GNED": gned(words, texts), "recall": recall(words, texts)})
    name = f"{RECOGNISER} {metadata.version(RECOGNISER)}"
    figures = {figure: mean_of([row[figure] for row in rows]) for figure in ("GNED", "recall")}
    folder = folders.judged(options.out, found.benchmark.name, RECOGNISER)
    content: dict[str, Any] = {"judge": name, "pictures": found.manifest, "figures": figures, "rows": rows}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / FILE, text.encode(), folder / PARTIALS)
    shutil.rmtree(folder / PARTIALS, ignore_errors=True)
    told = ", ".join(f"{figure} {at['value']:.3f} ± {at['error']:.3f}" for figure, at in figures.items())
    print(f"{found.benchmark.name}, text ({name}): {told}; {len(rows):,} pictures, in {folder / FILE}")


def true_words(found: Drawn, path: Path, partial: bool) -> list[tuple[Item, list[str]]]:
    """Items and their words, lowered, in the set's order. Raises ValueError."""
    given = {line["item"]: line["words"] for line in lines_of(path) if {"item", "words"} <= line.keys()}
    items = {item.key: item for item in found.items if item.group.startswith("text ")}
    unknown = [key for key in given if key not in items]
    if unknown:
        raise ValueError(f"{path} has words of {unknown[0]}, which is no drawn item of the attribute text.")
    lacks = [key for key in items if not given.get(key)]
    if lacks and not (partial and given):
        raise ValueError(
            f"{path} has no words of {len(lacks):,} items ({lacks[0]}, …); add them, or say --partial."
        )
    return [(items[key], [word.lower() for word in given[key]]) for key in items if given.get(key)]


def mean_of(values: Sequence[float]) -> dict[str, float]:
    """Mean and its standard error over the items."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return {"value": mean, "error": math.sqrt(spread / len(values))}
