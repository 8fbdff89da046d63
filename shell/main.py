"""The shell command ``tbac-uniimage``: generate, edit, ask, info, data, train, export, evaluate,
score.

Whatever can be checked without torch is checked first, so that help and most mistakes answer at once. Bad
input ends with one sentence and exit code 2; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..training import export as exporter
from ..training import train
from ..training.arguments import add_few, any_path, guidance, positive, seed, share, strength, threshold
from ..training.data import command as data_command
from ..training.data.cache import command as cache
from ..training.evaluation import command as evaluation
from ..training.exits import Parser, parse, run_command
from ..training.report import plot
from . import commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code, see :mod:`..training.exits`."""
    argv = sys.argv[1:] if argv is None else list(argv)

    def command() -> None:
        options = parse(make_parser("score" in argv[:1]), argv)
        options.run(options)

    return run_command(command)


def make_parser(for_score: bool = False) -> Parser:
    """All subcommands. Building it imports nothing heavy, but ``for_score`` the scorer for its arguments."""
    parser = Parser(prog="tbac-uniimage", description="Draw, edit and describe pictures with TBAC-UniImage.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = subparsers.add_parser("generate", help="draw pictures from sentences")
    generate.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help="what to draw; several are drawn in turn"
    )
    add_drawing(generate)
    generate.set_defaults(run=commands.generate)

    edit = subparsers.add_parser("edit", help="change a picture as a sentence says")
    add_pictures(edit)
    edit.add_argument("instruction", metavar="INSTRUCTION", help='what to change: "make the cat blue"')
    edit.add_argument(
        "--image-guidance",
        type=guidance,
        metavar="X",
        help="strength of the input picture, 1 = none (default 1.5)",
    )
    edit.add_argument(
        "--mask",
        type=lambda text: text if text == "auto" else any_path(text),
        metavar="FILE",
        help="picture that is white where something may change and black where every pixel stays; "
        '"auto" = the model finds it',
    )
    edit.add_argument(
        "--context",
        type=share,
        default=None,
        metavar="X",
        help="with a mask: what is cut out around each of its parts and drawn at the model's size, on every "
        "side as a share of the part's longer side; inf = the whole picture (default: 0.5)",
    )
    edit.add_argument("--save-mask", type=any_path, metavar="FILE", help="write the mask here, as a new PNG")
    edit.add_argument(
        "--strength",
        type=strength,
        default=1.0,
        metavar="X",
        help="share of the steps that is drawn, from the picture mixed with noise (default: 1, from noise)",
    )
    add_drawing(edit)
    edit.set_defaults(run=commands.edit)

    ask = subparsers.add_parser("ask", help="answer a question about a picture")
    add_pictures(ask)
    ask.add_argument("question", metavar="QUESTION", help='"what is in the picture?"')
    ask.add_argument("--max-tokens", type=positive, default=128, metavar="N", help="where the answer is cut")
    ask.add_argument(
        "--qwen",
        type=any_path,
        metavar="DIR",
        help="folder of the original Qwen2.5-VL, to read and write with its vocabulary rows",
    )
    add_model(ask)
    ask.set_defaults(run=commands.ask)

    info = subparsers.add_parser("info", help="parts, sizes and ladder of a model")
    info.add_argument("--released", action="store_true", help="of the released 3B, from its configuration")
    add_source(info)
    info.set_defaults(run=commands.info)

    data = subparsers.add_parser("data", help="index data sets for training, and look into an index")
    data_command.add_arguments(data)
    add_training(subparsers)
    export = subparsers.add_parser("export", help="turn a checkpoint of a run into a model")
    exporter.add_arguments(export)
    export.set_defaults(run=exporter.run)

    evaluate = subparsers.add_parser("evaluate", help="benchmarks: fetch, draw, judge, score, table")
    evaluation.add_arguments(evaluate)

    score = subparsers.add_parser("score", help="score a nano model on held-out scenes")
    if for_score:
        from ..training.nano.score import add_arguments

        add_arguments(score)
    score.set_defaults(run=commands.score)
    return parser


def add_training(subparsers: Any) -> None:
    """``train run``, ``train cache`` and ``train plot``."""
    parser = subparsers.add_parser("train", help="run a stage of the recipe, fill its caches, plot a run")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, module, what in (
        ("run", train, "run a stage in one process; `accelerate launch` runs it in several"),
        ("cache", cache, "compute latents and vision features of a recipe's data once"),
        ("plot", plot, "draw loss, gradient norm, skipped steps and speed of a run as one picture"),
    ):
        action = actions.add_parser(name, help=what)
        module.add_arguments(action)
        action.set_defaults(run=module.run)


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """One to four input pictures, before the sentence about them."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture file, up to four")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    parser.add_argument(
        "--model",
        default=str(commands.EMBEDDED),
        help="folder, file or hub name (default: the embedded nano model)",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model of the hub")
    for name, what in (
        ("tokenizer", "tokenizer, if the model comes without"),
        ("mllm", "Qwen2.5-VL that a checkpoint of another size than 3B was made from"),
        ("sana", "SANA that it was made from"),
    ):
        parser.add_argument(f"--{name}", type=any_path, metavar="DIR", help=what)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it runs."""
    add_source(parser)
    parser.add_argument("--device", help="cuda, mps or cpu (default: the first of these that is there)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="type of the weights (default: bfloat16, but on a CPU float32 unless the file has bfloat16 and "
        "this CPU multiplies it)",
    )
    parser.add_argument(
        "--offload",
        action="store_true",
        help="keep the parts in main memory and bring each to the device when it computes",
    )


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """What generate and edit have in common."""
    parser.add_argument("--out", type=any_path, default=Path("out"), metavar="DIR", help="default: out")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to steer away from")
    parser.add_argument("--steps", type=positive, metavar="N", help="default 30")
    parser.add_argument(
        "--guidance", type=guidance, metavar="X", help="strength of the sentence, 1 = none (default 4.5)"
    )
    add_few(parser)
    parser.add_argument(
        "--width", type=positive, metavar="N", help="pixels; default: what the model was trained at"
    )
    parser.add_argument("--height", type=positive, metavar="N")
    parser.add_argument("--num", type=positive, default=1, metavar="N", help="pictures of each sentence")
    parser.add_argument(
        "--seed", type=seed, metavar="N", help="the k-th picture takes seed + k (default: random)"
    )
    parser.add_argument("--scheduler", choices=["recipe", "euler"], help="default recipe")
    parser.add_argument(
        "--cache",
        type=threshold,
        metavar="X",
        help="leave blocks out in steps whose first block changes less than this share: 0.1 hardly shows, "
        "0.2 is faster",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks first, worth it for many pictures"
    )
    add_model(parser)
