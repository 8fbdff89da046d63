"""``evaluate judge``: a chat model answers a set's questions, or detectors look at its pictures."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..arguments import any_path, guidance, number, positive
from . import fetch, folders, sets
from .benchmark import Benchmark, Checkout, Item, Judge, Request, Shown
from .manifest import difference, digest_of, read_json

Wanted = list[tuple[Item, Request]]


@dataclass(frozen=True)
class Drawn:
    """A set and the pictures that are there.

    Attributes:
        benchmark: the set.
        checkout: its files.
        items: those whose pictures are there.
        folder: of the set, below ``--out``.
        manifest: digest of what drew the pictures.
    """

    benchmark: Benchmark
    checkout: Checkout
    items: list[Item]
    folder: Path
    manifest: str

    @property
    def pictures(self) -> Path:
        """Folder of the pictures."""
        return self.folder / folders.PICTURES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``evaluate judge``. Imports nothing heavy."""
    parser.description = (
        "Answers that are there are kept. The key of a chat model comes from the environment and is kept "
        "nowhere."
    )
    parser.add_argument("names", nargs="+", metavar="SET", help="geneval, dpg, tiif, imgedit, …")
    parser.add_argument("--out", type=any_path, required=True, metavar="DIR", help="as of `evaluate draw`")
    parser.add_argument("--partial", action="store_true", help="judge what is drawn, though it is not all")
    chat = parser.add_argument_group("by a chat model")
    chat.add_argument("--url", metavar="URL", help="OpenAI-compatible, as http://127.0.0.1:8000/v1")
    chat.add_argument("--judge", metavar="NAME", help="the model, under a dated name where it has one")
    chat.add_argument("--temperature", type=guidance, metavar="X", help="default: as the official script")
    chat.add_argument("--max-tokens", type=positive, metavar="N", help="default: as the official script")
    chat.add_argument("--in-flight", type=positive, default=8, metavar="N", help="calls at once: %(default)s")
    chat.add_argument(
        "--attempts", type=positive, default=5, metavar="N", help="calls a question at most: %(default)s"
    )
    chat.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="S", help="seconds for an answer: %(default)g"
    )
    chat.add_argument(
        "--key", default="OPENAI_API_KEY", metavar="NAME", help="variable that holds the key: %(default)s"
    )
    chat.add_argument("--again", action="store_true", help="repeat the questions without a readable answer")
    chat.add_argument("--dry-run", action="store_true", help="count calls and pictures; ask nothing")
    detectors = parser.add_argument_group("GenEval by transformers' classes")
    detectors.add_argument(
        "--detector", type=any_path, metavar="DIR", help="Mask2Former of COCO's 80 classes"
    )
    detectors.add_argument("--clip", type=any_path, metavar="DIR", help="CLIP ViT-L/14, for the colours")
    detectors.add_argument("--device", help="cuda, mps or cpu (default: the first of these that is there)")
    reader = parser.add_argument_group("TIIF's texts by RapidOCR")
    reader.add_argument(
        "--words",
        type=Path,
        metavar="FILE",
        help='a line {"item": KEY, "words": […]} for each of its prompts',
    )
    fetch.add_cache(parser)


def seconds(text: str) -> float:
    """A time above 0."""
    return number(text, float, lambda value: 0 < value < float("inf"), "a number of seconds above 0")


def run(options: argparse.Namespace) -> None:
    """Judge the pictures of sets.

    Raises:
        ValueError: bad input, or a judge that does not answer; nothing is written then.
        Stop: an answer cannot be written.
    """
    benchmarks = [sets.find(name) for name in dict.fromkeys(options.names)]
    check(options, benchmarks)
    for benchmark in benchmarks:
        found = drawn(benchmark, options)
        if by_detector(options):
            detector_of(options).judge(found, options)
            continue
        wanted = requests_of(found)
        if options.dry_run:
            print(counted(found, wanted, options))
        else:
            chat(found, wanted, options)


def by_detector(options: argparse.Namespace) -> bool:
    """Whether detectors judge, and no chat model."""
    return bool(options.detector or options.clip or options.words)


def detector_of(options: argparse.Namespace) -> Any:
    """The module that looks at pictures."""
    from .detectors import geneval, text

    return text if options.words else geneval


def name_of(options: argparse.Namespace) -> str:
    """Name of the judge."""
    from .detectors import geneval

    return options.judge or geneval.NAME


def check(options: argparse.Namespace, benchmarks: Sequence[Benchmark]) -> None:
    """Raise ValueError unless somebody is named who can judge the sets."""
    if by_detector(options):
        detector_of(options).check_options(options, benchmarks)
    else:
        check_chat(options)


def drawn(benchmark: Benchmark, options: argparse.Namespace) -> Drawn:
    """The pictures of a set. Raises ValueError: there are none, some are missing, or the set has changed."""
    checkout = fetch.load(benchmark, options.sets)
    items = benchmark.items(checkout)
    folder = options.out / benchmark.name
    manifest = read_json(folder / folders.MANIFEST)
    if manifest is None:
        raise ValueError(
            f"Nothing of {benchmark.name} was drawn in {options.out}; first: tbac-uniimage evaluate draw "
            f"{benchmark.name} --out {options.out}"
        )
    if manifest["settings"]["files"] != checkout.digest:
        raise ValueError(f"The pictures in {folder} are of other files of {benchmark.name}; draw them anew.")
    pictures = folder / folders.PICTURES
    there = [item for item in items if all((pictures / shot.path).is_file() for shot in item.pictures)]
    if len(there) < len(items) and not options.partial:
        gone = [item.key for item in items if item not in there]
        raise ValueError(
            f"{len(gone):,} of {len(items):,} items of {benchmark.name} are not drawn ({', '.join(gone[:3])}"
            f"{', …' if len(gone) > 3 else ''}); draw them, or say --partial."
        )
    return Drawn(benchmark, checkout, there, folder, digest_of(manifest["settings"]))


def check_chat(options: argparse.Namespace) -> None:
    """Raise ValueError unless a chat model and its address are named."""
    from .judges.chat import check_url

    if not options.judge:
        raise ValueError("Nobody is named who judges: give --url and --judge, or --detector and --clip.")
    if options.url:
        check_url(options.url)
    elif not options.dry_run:
        raise ValueError("A judge needs an address; give --url, as http://127.0.0.1:8000/v1")


def requests_of(found: Drawn) -> Wanted:
    """Every request about the pictures that are there. Raises ValueError: the set has none."""
    wanted = [
        (item, request) for item in found.items for request in found.benchmark.requests(item, found.checkout)
    ]
    if not wanted:
        raise ValueError(
            f"{found.benchmark.name} asks a chat model nothing; give --detector and --clip, or import the "
            "official results with `evaluate score --results`."
        )
    return wanted


def judge_of(benchmark: Benchmark, options: argparse.Namespace) -> Judge:
    """The named model with the official parameters, those of the command in their place."""
    judge = replace(benchmark.judge or Judge("", temperature=0.0), model=options.judge)
    if options.temperature is not None:
        judge = replace(judge, temperature=options.temperature)
    if options.max_tokens is not None:
        judge = replace(judge, max_tokens=options.max_tokens)
    return judge


def about(found: Drawn, wanted: Wanted, judge: Judge, url: str | None) -> dict[str, Any]:
    """Who judges what and how; ``judge.json``."""
    asked = [
        [request.key, request.system, request.choices, [p for p in request.parts if isinstance(p, str)]]
        for _, request in wanted
    ]
    return {
        "judge": judge.model,
        "host": urlsplit(url or "").hostname,
        "temperature": judge.temperature,
        "max_tokens": judge.max_tokens,
        "extra": dict(judge.extra),
        "template": digest_of(asked),
        "pictures": found.manifest,
    }


def check_about(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise ValueError if a folder holds answers of another judge or about other pictures."""
    held = read_json(folder / folders.JUDGE)
    if held is None:
        return
    partial = {"host", "template"}  # the host may move; of a part of the set there are fewer questions
    other = difference(held, {name: value for name, value in wanted.items() if name not in partial})
    if other:
        raise ValueError(
            f"{folder} holds answers with {other}; give another --judge or --out, or remove the folder."
        )


def counted(found: Drawn, wanted: Wanted, options: argparse.Namespace) -> str:
    """What would be asked, as a line."""
    from .judges.answers import read_lines
    from .judges.asking import Asking

    asking = Asking(found.benchmark, judge_of(found.benchmark, options), found.pictures, options.attempts, 1)
    lines = read_lines(folders.judged(options.out, found.benchmark.name, options.judge) / folders.ANSWERS)
    left = [request for _, request in wanted if not asking.is_settled(request, lines.get(request.key, []))]
    pictures = sum(isinstance(part, Shown) for request in left for part in request.parts)
    return (
        f"{found.benchmark.name}: {len(left):,} calls with {pictures:,} pictures; "
        f"{len(wanted) - len(left):,} of {len(wanted):,} are answered"
    )


def chat(found: Drawn, wanted: Wanted, options: argparse.Namespace) -> None:
    """Ask a chat model. Raises ValueError and Stop as :func:`run`."""
    from tqdm import tqdm

    from .judges.answers import AnswerFile, put_in_order, read_lines
    from .judges.asking import Asking, ask_all
    from .judges.chat import connect, key_from

    judge = judge_of(found.benchmark, options)
    key = key_from(options.key, options.url)
    folder = folders.judged(options.out, found.benchmark.name, options.judge)
    record = about(found, wanted, judge, options.url)
    check_about(folder, record)
    path = folder / folders.ANSWERS
    lines = read_lines(path)
    asking = Asking(found.benchmark, judge, found.pictures, options.attempts, options.in_flight)
    if options.again:
        for _, request in wanted:
            if request.key in lines and not asking.is_readable(request, lines[request.key][-1]):
                del lines[request.key]
    done = sum(asking.is_settled(request, lines.get(request.key, [])) for _, request in wanted)
    file = AnswerFile(path, record)

    async def ask() -> None:
        async with connect(options.url, key, options.timeout) as client:
            with tqdm(total=len(wanted), initial=done, desc=found.benchmark.name, unit="answer") as bar:
                await ask_all(client, asking, wanted, lines, file, bar)

    try:
        asyncio.run(ask())
    finally:
        file.close()
    put_in_order(path, [request.key for _, request in wanted])
    print(told(found, wanted, asking, read_lines(path)))


def told(found: Drawn, wanted: Wanted, asking: Any, lines: dict[str, list[dict[str, Any]]]) -> str:
    """What came of it, as a line: answers, those that cannot be read, calls and tokens."""
    last = {request.key: lines[request.key][-1] for _, request in wanted}
    unreadable = sum(not asking.is_readable(request, last[request.key]) for _, request in wanted)
    calls = [line for said in lines.values() for line in said]
    used = [line["usage"] for line in calls if "usage" in line]
    sent, got = (sum(use.get(name, 0) for use in used) for name in ("prompt_tokens", "completion_tokens"))
    return (
        f"{found.benchmark.name}, judged by {asking.judge.model}: {len(wanted):,} answers, {unreadable:,} of "
        f"them unreadable ({unreadable / len(wanted):.1%}); {len(calls):,} calls, {sent:,} tokens sent, "
        f"{got:,} received"
    )
