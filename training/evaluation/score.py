"""``evaluate score``: figures of a set from what its judges said, or from results of the official scorer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import any_path
from . import fetch, folders, sets
from .benchmark import AS_PUBLISHED, Answer, Benchmark, Checkout, Item
from .hashes import sha256
from .manifest import digest_of
from .reading import json_of

if TYPE_CHECKING:
    from .scoring import Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``evaluate score``."""
    parser.add_argument("names", nargs="+", metavar="SET", help="geneval, dpg, tiif, imgedit, …")
    parser.add_argument("--out", type=any_path, required=True, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--judge", metavar="NAME", help="one of those who judged (default: all)")
    parser.add_argument(
        "--results",
        type=any_path,
        metavar="PATH",
        help="results of the official scorer, imported under --judge or the name of the published judge",
    )
    parser.add_argument(
        "--partial", action="store_true", help="take what is there, without an overall figure"
    )
    fetch.add_cache(parser)


def run(options: argparse.Namespace) -> None:
    """Score sets, write the scores beside the answers, print them. Raises ValueError."""
    chosen = [sets.find(name) for name in dict.fromkeys(options.names)]
    if options.results and len(chosen) > 1:
        raise ValueError("--results holds the results of one set; name that one alone.")
    for benchmark in chosen:
        checkout = fetch.load(benchmark, options.sets)
        items = benchmark.items(checkout)
        judge = options.judge or (benchmark.official if options.results else None)
        if options.results:
            imported(benchmark, items, options.results, options.out, judge)
        found = folders.judges(options.out, benchmark.name)
        if judge and judge not in found:
            raise ValueError(f"{judge} did not judge {benchmark.name}; {', '.join(found)} did.")
        for name in [judge] if judge else found:
            check_pictures(found[name])
            scores, unable = scored(benchmark, items, checkout, found[name], name, options.partial)
            print("\n\n".join([*map(told, scores), *unable]), end="\n\n")


def check_pictures(folder: Path) -> None:
    """Raise ValueError if a judge saw other pictures than those that lie there now."""
    seen = json_of(folder / folders.JUDGE).get("pictures")
    manifest = folder.parent / folders.MANIFEST
    if seen and manifest.is_file() and seen != digest_of(json_of(manifest)["settings"]):
        raise ValueError(f"{folder} is about other pictures than those in {folder.parent}; judge them again.")


def scored(
    benchmark: Benchmark,
    items: Sequence[Item],
    checkout: Checkout,
    folder: Path,
    judge: str,
    partial: bool = False,
) -> tuple[list[Score], list[str]]:
    """Score what one judge said in every mode, and write ``score.json``; a partial score is not written.

    Args:
        benchmark, items, checkout: the set.
        folder: of the judge.
        judge: its name.
        partial: as of :func:`~.scoring.score`.

    Returns:
        The scores, and a sentence for each mode that the answers do not suffice for.

    Raises:
        ValueError: as :func:`~.scoring.score`, "as published".
    """
    from .scoring import score

    answers = folders.read_answers(folder / folders.ANSWERS)
    first, *others = benchmark.modes
    results = [score(benchmark, items, checkout, answers, judge, first, partial)]
    unable = []
    for other in others:
        try:
            results.append(score(benchmark, items, checkout, answers, judge, other, partial))
        except ValueError as error:
            unable.append(f"{benchmark.name}, {other}: {error}")
    if not partial:
        said = words_of(answers.values())
        rows = [
            {name: value for name, value in asdict(row).items() if name != "value"}
            | {"said": said.get(row.key, "")}
            for row in results[0][1]
        ]
        content = {"scores": [found.json() for found, _ in results], "rows": rows}
        folders.write_json(folder / folders.SCORE, content)
    return [found for found, _ in results], unable


def words_of(answers: Iterable[Answer]) -> dict[str, str]:
    """What the judge said of each item: an answer or two, not yes or no to many questions."""
    texts: dict[str, list[str]] = {}
    for answer in answers:
        if answer.text:
            texts.setdefault(answer.item, []).append(answer.text)
    return {key: "\n".join(said) for key, said in texts.items() if len(said) <= 2}


def imported(benchmark: Benchmark, items: Sequence[Item], path: Path, out: Path, judge: str) -> Path:
    """Turn results of the official scorer into answers of a judge. Returns its folder. Raises ValueError."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the official scorer's results.")
    try:
        answers = benchmark.imported(path, items)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no results of the official scorer of {benchmark.name} ({error!r})."
        ) from error
    folder = folders.judged(out, benchmark.name, judge)
    record = {"judge": judge, "imported": path.name, "sha256": sha256(path) if path.is_file() else ""}
    folders.write_lines(folder / folders.ANSWERS, map(line, answers))
    folders.write_json(folder / folders.JUDGE, record)
    return folder


def line(answer: Answer) -> str:
    """An answer as it stands in a file."""
    return json.dumps(asdict(answer), ensure_ascii=False)


def titled(found: Score) -> str:
    """Name and mode."""
    return f"{found.name}, as published" if found.mode == AS_PUBLISHED else found.name


def told(found: Score) -> str:
    """A score as text: a line a figure, with its standard error and 95 % interval."""
    lines = [
        f"{titled(found)}, judged by {found.judge}: {found.rows:,} of {found.of:,} items, "
        f"{found.unreadable:,} of {found.asked:,} answers unreadable"
    ]
    if found.partial:
        lines.append("  partial: no overall figure, and nothing to put beside published ones")
    width = max(map(len, found.figures), default=0)
    digits = 4 if found.unit == "share" else 2
    for name, figure in found.figures.items():
        lines.append(
            f"  {name:<{width}}  {figure.value:.{digits}f} ± {figure.error:.{digits}f}"
            f"  [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
        )
    lines.append(f"  ({found.unit}; ± one standard error, [95 % interval], prompts drawn anew 1,000 times)")
    return "\n".join(lines)
