"""``evaluate fetch``: the files of a set, from their repositories or a checkout at hand, checked by hash."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arguments import any_path
from . import sets
from .benchmark import Benchmark, Checkout, Source
from .download import download
from .folders import write_json
from .hashes import found, listing, named, sha256, verified
from .reading import within

RECORD = "fetched.json"


def default_cache() -> Path:
    """Where fetched sets lie unless ``--sets`` says otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tbac-uniimage" / "evaluation"


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The option of every verb that reads sets."""
    parser.add_argument(
        "--sets",
        type=any_path,
        default=default_cache(),
        metavar="DIR",
        help="folder of the fetched sets (default %(default)s)",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``evaluate fetch``."""
    parser.add_argument("names", nargs="+", metavar="SET", help="what to fetch: geneval dpg tiif imgedit …")
    parser.add_argument(
        "--from",
        dest="checkouts",
        type=any_path,
        action="append",
        default=[],
        metavar="DIR",
        help="a checkout that is there, or a folder of some; may be given again. Nothing is downloaded",
    )
    parser.add_argument("--yes", action="store_true", help="fetch even where no licence was found")
    parser.add_argument(
        "--modified",
        action="store_true",
        help="take files that are not the published ones, as a set of your own whose numbers stand alone",
    )
    add_cache(parser)


def run(options: argparse.Namespace) -> None:
    """Fetch sets. Raises ValueError."""
    chosen = [sets.find(name) for name in dict.fromkeys(options.names)]
    if options.modified and not options.checkouts:
        raise ValueError("--modified is about a checkout of yours; give it with --from DIR.")
    for benchmark in chosen:
        if not options.checkouts and is_there(benchmark, options.sets):
            print(f"{benchmark.name}: is there, unchanged, in {options.sets / benchmark.name}")
            continue
        for source in benchmark.sources:
            print(f"{benchmark.name}: {described(source, options.modified)}")
        if not options.checkouts and not options.yes:
            ask(benchmark)
        checkout = fetch(benchmark, options.sets, options.checkouts, options.modified)
        print(f"{benchmark.name}: {cost(benchmark, checkout)}; it lies in {options.sets / benchmark.name}")


def cost(benchmark: Benchmark, checkout: Checkout) -> str:
    """What a full evaluation draws and asks, counted."""
    items = benchmark.items(checkout)
    drawn = sum(len(picture.samples) for item in items for picture in item.pictures)
    calls = sum(len(benchmark.requests(item, checkout)) for item in items)
    asked = f"{calls:,} calls of a chat model" if calls else "no chat model"
    return f"{len(items):,} items, {drawn:,} pictures to draw, {asked}"


def described(source: Source, modified: bool = False) -> str:
    """Address, licence and size of a source, and by what it is pinned."""
    licence = source.licence or "no licence found"
    size = f"{source.size / 1e6:.2f} MB" if source.size else "size not known here"
    pinned = all(file.digest for file in source.files)
    how = "checked by hash" if pinned else "no hash known here: held to what is fetched first"
    how = "your own files in their place" if modified else how
    return f"{named(source)}, {licence}, {size}, {how}"


def ask(benchmark: Benchmark) -> None:
    """Have the user agree where no licence was found. Raises ValueError: not agreed, or nobody to ask."""
    unknown = [source for source in benchmark.sources if source.licence is None]
    if not unknown:
        return
    where = " and ".join(named(source) for source in unknown)
    if not sys.stdin.isatty():
        raise ValueError(
            f"No licence was found at {where}; say --yes if you may use {benchmark.name} nevertheless."
        )
    answer = input(f"No licence was found at {where}. May you use {benchmark.name} nevertheless? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise ValueError(f"{benchmark.name} was not fetched.")


def is_there(benchmark: Benchmark, cache: Path) -> bool:
    """Whether a set was fetched and is unchanged."""
    try:
        load(benchmark, cache)
    except ValueError:
        return False
    return True


def fetch(
    benchmark: Benchmark, cache: Path, checkouts: Sequence[Path] = (), modified: bool = False
) -> Checkout:
    """Bring the files of a set into the cache, all or none, in place of those that are there.

    Args:
        benchmark: the set.
        cache: folder of all sets.
        checkouts: where its repositories lie, or folders of such; empty: download.
        modified: take files that differ from the published ones.

    Raises:
        ValueError: a repository cannot be reached, a file is missing or another one, the disk is full.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{benchmark.name}-", dir=cache))
    except OSError as error:
        raise ValueError(
            f"{cache} cannot be written to ({error}); give another folder with --sets."
        ) from error
    try:
        record: dict[str, Any] = {"set": benchmark.name, "modified": modified, "sources": {}}
        for source in benchmark.sources:
            root = scratch / folder_of(source)
            root.mkdir()
            if checkouts:
                commit = copy(source, checkouts, root, modified)
            else:
                commit = download(source, root)
            files = verified(root, source, modified)
            record["sources"][source.repo] = {"commit": commit, "files": files}
        write_json(scratch / RECORD, record)
        check_form(benchmark, checkout_of(benchmark, scratch, record))
        target = cache / benchmark.name
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except OSError as error:
        raise ValueError(f"{benchmark.name} cannot be kept in {cache} ({error}).") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return load(benchmark, cache)


def check_form(benchmark: Benchmark, checkout: Checkout) -> None:
    """Raise ValueError unless items and requests can be made of the files, each with a place of its own."""
    try:
        items = benchmark.items(checkout)
        requests = [request.key for item in items for request in benchmark.requests(item, checkout)]
        places = [picture.path for item in items for picture in item.pictures]
        for names in ([item.key for item in items], requests, places):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"The files of {benchmark.name} have {twice[0]} twice.")
        for place in [*places, *(name for item in items for name in benchmark.companions(item))]:
            within(place)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"The files of {benchmark.name} are not of the published form ({type(error).__name__}: {error})."
        ) from error


def folder_of(source: Source) -> str:
    """Name of a repository's folder in the cache."""
    return source.repo.replace(":", "+").replace("/", "+")


def copy(source: Source, checkouts: Sequence[Path], root: Path, modified: bool) -> str:
    """Copy what is needed of a checkout. Returns the commit that the hashes show. Raises ValueError."""
    name = source.repo.rpartition("/")[2]
    places = [place for given in checkouts for place in (given, given / name) if place.is_dir()]
    most = max(places, key=lambda place: sum(len(found(place, file)) for file in source.files), default=None)
    if most is None:
        raise ValueError(f"{checkouts[0]} is no folder; give a checkout of {named(source)} with --from.")
    for path in verified(most, source, modified):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(most / path, root / path)
    return "" if modified else source.commit


def load(benchmark: Benchmark, cache: Path) -> Checkout:
    """The verified files of a set that was fetched before.

    Raises:
        ValueError: it was not fetched, or a file is missing or changed since.
    """
    folder = cache / benchmark.name
    again = f"fetch it again: tbac-uniimage evaluate fetch {benchmark.name}"
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recorded = {source.repo: record["sources"][source.repo] for source in benchmark.sources}
    except FileNotFoundError as error:
        raise ValueError(
            f"{benchmark.name} is not in {cache}; first: tbac-uniimage evaluate fetch {benchmark.name}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RECORD} cannot be read; {again}") from error
    for source in benchmark.sources:
        entry, root = recorded[source.repo], folder / folder_of(source)
        if source.commit and not record["modified"] and entry["commit"] != source.commit:
            raise ValueError(f"{folder} is of another commit than {named(source)}; {again}")
        for path, digest in entry["files"].items():
            if not (root / path).is_file():
                raise ValueError(f"{root / path} is missing; {again}")
            if sha256(root / path) != digest:
                raise ValueError(f"{root / path} was changed since it was fetched; {again}")
    return checkout_of(benchmark, folder, record)


def checkout_of(benchmark: Benchmark, folder: Path, record: dict[str, Any]) -> Checkout:
    """The checkout that a record tells of."""
    roots = {source.repo: folder / folder_of(source) for source in benchmark.sources}
    sums = {
        f"{repo}/{path}": digest
        for repo, entry in record["sources"].items()
        for path, digest in entry["files"].items()
    }
    return Checkout(roots, listing(sums), record["modified"])
