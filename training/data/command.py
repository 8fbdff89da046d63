"""``tbac-uniimage data``: index data sets, and look at what an index holds."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import any_path

if TYPE_CHECKING:
    from ..recipe.recipe import Recipe

LAYOUTS = ("datasets", "mds", "lance", "lists", "parquet", "tars", "tfrecords", "folder")
BUCKET_STEP = 32  # pixels, of the released model; the nano model has sizes between these
CAPTIONS = ("last", "first", "random", "all")  # as texts.CAPTION_RULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands below ``data``. Imports nothing heavy."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    index = commands.add_parser("index", help="find the samples of data sets and check their pictures")
    index.add_argument(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="folder, list, Parquet file or fsspec URL; each gets an index of its own",
    )
    index.add_argument(
        "-o", "--out", type=any_path, default=Path("index"), metavar="DIR", help="default: %(default)s"
    )
    index.add_argument("--name", help="of the index, if only one is made (default: that of the data set)")
    index.add_argument("--format", choices=LAYOUTS, help="layout of the data (default: as recognised)")
    index.add_argument("--images", metavar="DIR", help="where the pictures of a list lie, if not beside it")
    index.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="ROLE=NAMES",
        help="what is what, where names do not say it: target=NAME input=NAME,NAME text=NAME mask=NAME, by "
        "columns, JSON fields, endings such as .2.jpg, folders such as after/, or items such as images[-1]",
    )
    index.add_argument(
        "--split",
        default="",
        metavar="NAMES",
        help="such as train,validation or all (default: train, if marked)",
    )
    index.add_argument(
        "--captions",
        choices=CAPTIONS,
        default=CAPTIONS[0],
        help="which of several texts of a picture; random = the position in training chooses, all = a sample "
        "each (default: %(default)s)",
    )
    index.add_argument(
        "--encoding", metavar="NAME", help="of texts without a byte order mark, such as gbk (default: utf-8)"
    )
    index.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="folder of the language model, to count the texts that it cuts (default: an estimate)",
    )
    index.add_argument(
        "--check",
        choices=["decode", "header"],
        default="decode",
        help="decode every picture, or read its header only, which misses damage (default: %(default)s)",
    )
    index.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="default: %(default)s"
    )
    index.add_argument(
        "--part",
        type=part_of,
        metavar="N/M",
        help="look at this share only, as on one of M machines; `data join` puts all parts together",
    )

    index.set_defaults(run=run, data_command=index_all)

    join = commands.add_parser("join", help="one index of all its parts")
    join.add_argument("parts", nargs="+", type=any_path, metavar="PART", help="folder of `data index --part`")
    join.add_argument("-o", "--out", type=any_path, metavar="DIR", help="default: where the parts are")
    join.add_argument("--name", help="of the index (default: that of the parts)")
    join.set_defaults(run=run, data_command=join_parts)

    show = commands.add_parser("show", help="summary and a contact sheet of an index")
    show.add_argument("index", type=any_path, metavar="INDEX", help="folder that `data index` wrote")
    show.add_argument("--samples", type=positive, default=24, metavar="N", help="default: %(default)s")
    show.add_argument(
        "--recipe", metavar="FILE", help="draw pictures at its size and crop, as the model sees them"
    )
    show.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder of the language model: cut texts where it does"
    )
    show.add_argument("--seed", type=int, default=0, metavar="N", help="which samples (default: %(default)s)")
    show.add_argument(
        "-o", "--out", type=any_path, metavar="PNG", help="contact sheet (default: sheet.png in INDEX)"
    )
    show.set_defaults(run=run, data_command=show_index)


def positive(text: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not possible; give a whole number of at least 1")
    return int(text)


def part_of(text: str) -> tuple[int, int]:
    """``3/16`` as (3, 16). Raises ArgumentTypeError."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise argparse.ArgumentTypeError(f"{text} is no part; give one such as 3/16, from 1/16 to 16/16")


def run(options: argparse.Namespace) -> None:
    """What the options ask for. Raises ValueError."""
    options.data_command(options)


def index_all(options: argparse.Namespace) -> None:
    """Index every data set, and print a table of each."""
    if options.name and len(options.datasets) > 1:
        raise ValueError(
            f"{len(options.datasets)} data sets cannot share the name {options.name}; leave it out."
        )

    from tqdm import tqdm

    from .build import build, checked_name, name_of
    from .columns import parse_columns
    from .layouts.findings import Reading
    from .lengths import find_tokenizer
    from .texts import check_encoding

    check_encoding(options.encoding)
    splits = tuple(name.strip() for name in options.split.split(",") if name.strip())
    columns, tokenizer = parse_columns(options.columns), find_tokenizer(options.tokenizer)
    reading = Reading(columns, options.encoding, splits, options.captions, tokenizer)
    names = [checked_name(options.name or name_of(source)) for source in options.datasets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two data sets are called {name}; index them one by one, with --name.")
    for source, name in zip(options.datasets, names, strict=True):
        with tqdm(desc=name, unit=" samples", disable=None) as bar:
            report = build(
                source,
                options.out,
                name=name,
                layout=options.format,
                images=options.images,
                reading=reading,
                check=options.check,
                workers=options.workers,
                part=options.part,
                progress=bar.update,
                say=bar.set_postfix_str,
            )
        print(report.table())


def join_parts(options: argparse.Namespace) -> None:
    """Put the parts of an index together, and print its table."""
    from tqdm import tqdm

    from .joining import join

    with tqdm(desc="join", unit=" samples", disable=None) as bar:
        out = options.out or options.parts[0].resolve().parent
        report = join(options.parts, out, options.name, bar.update)
    print(report.table())


def show_index(options: argparse.Namespace) -> None:
    """Print the summary of an index, and draw samples that are spread over it at random."""
    from io import BytesIO
    from random import Random

    from ...core.paths import write_whole
    from ..recipe.recipe import load_recipe
    from .index import Index
    from .lengths import find_tokenizer
    from .report import read_report
    from .sheet import View, contact_sheet

    recipe = load_recipe(options.recipe) if options.recipe else None
    index = Index(options.index, masks=recipe is None or recipe.train.masked_loss)
    path = options.out or options.index / "sheet.png"
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} is no .png; give the contact sheet such a name.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent}; make it first.")
    report = read_report(options.index)
    count = min(options.samples, len(index))
    numbers = sorted(Random(options.seed).sample(range(len(index)), count))
    view = View(seen_sizes(recipe) if recipe else (), find_tokenizer(options.tokenizer))
    picture = BytesIO()
    contact_sheet(index, numbers, view).save(picture, format="PNG")
    write_whole(path, picture.getvalue())
    print(report.table())
    print(f"{count} of them: {path}")


def seen_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """The sizes (width, height) that a recipe trains on. Raises ValueError."""
    from .pictures import aspect_buckets

    data = recipe.data
    side = data.resolution
    return [(side, side)] if data.aspect == "square" else aspect_buckets(side, BUCKET_STEP)
