"""What data sets of millions of samples cost: time, bytes and memory, and what follows for more.

    python benchmarks/data_scale.py [--rows 3000000] [--loose 100000] [--entries 1000000]
    python benchmarks/data_scale.py --folder DIR --minutes 8     # again and again: it goes on where it was

Makes tars of ``rows`` tiny pictures with their texts, indexes them (``--check header``, one process), again
when nothing has changed, sorts them into buckets and reads them at random. Then loose files, at two sizes, so
that what memory grows by is seen. Then a large tar whose pictures are holes, for the walk from header to
header, and one of pictures of 256 pixels that are all decoded, by one process and by several, in turns.
Then the cache: entries of 2 KB (latents of the nano model) in a few large files, and beside it a file
for each, as earlier versions had it. Every step is measured in a process of its own: CPU time of it and its
children (user and system), and the memory that is its alone. What is said of 30 and 300 million is
multiplied, not measured.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image
from tbac_uniimage.training.data.archives import Archive, members
from tbac_uniimage.training.data.buckets import bucket_rows
from tbac_uniimage.training.data.build import build
from tbac_uniimage.training.data.index import Index
from tbac_uniimage.training.data.layouts import tars
from tbac_uniimage.training.data.pictures import aspect_buckets
from tbac_uniimage.training.data.shards import Shards, ShardWriter, name_of
from tbac_uniimage.training.data.storage import Storage

PER_TAR = 10_000
READS = 20_000
ENTRY = 2048  # bytes
TEXT = "a small picture of a thing, number {:08}"
MILLION = 1_000_000


@dataclass
class Cost:
    """What one step took.

    Attributes:
        result: what it returned.
        cpu: seconds of user and system time.
        wall: seconds.
        peak: bytes of memory that it had at most and did not have before.
    """

    result: Any
    cpu: float
    wall: float
    peak: int


def picture(size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def private() -> int:
    """Bytes of memory that are this process's alone; what it has mapped of files is none.

    Pages of a file that the system has yet to write are dirty whoever maps them, so that is not asked.
    """
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))


def run(work: Callable[..., Any], arguments: tuple) -> Cost:
    """Called in a fresh process."""
    before, wall = used(), time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = work(*arguments)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    return Cost(result, used() - before, time.monotonic() - wall, 1024 * grown)


def used() -> float:
    """Seconds of user and system time of this process and of its children that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, whose))


class Steps:
    """What was made and measured before, so that a run that was ended goes on.

    Args:
        folder: of the data.
        minutes: of CPU after which no further step begins.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self._left = folder, 60 * minutes
        self._path = folder / "costs.json"
        self._costs = json.loads(self._path.read_text()) if self._path.exists() else {}

    def made(self, name: str, make: Callable[..., None], *arguments: Any) -> Path:
        """Data, whole or not there."""
        path, partial = self.folder / name, self.folder / f".{name}"
        if not path.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.unlink(missing_ok=True)
            self.measured(f"make {name}", make, partial, *arguments)
            partial.rename(path)
        return path

    def measured(self, name: str, work: Callable[..., Any], *arguments: Any) -> Cost:
        """What a step took, now or when it was last done. Raises SystemExit if there is no time for it."""
        if name not in self._costs:
            if self._left < 0:
                sys.exit(f"{name} comes next; run the same command again.")
            # none that were forked: such a one could not start processes of its own
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                cost = pool.submit(run, work, arguments).result()
            self._left -= cost.cpu
            self._costs[name] = asdict(cost)
            self._path.write_text(json.dumps(self._costs, indent=1))
            print(f"{name}: {cost.cpu:.1f} s of CPU, {cost.wall:.1f} s", file=sys.stderr)
        return Cost(**self._costs[name])


# --- data sets


def make_tars(folder: Path, rows: int) -> None:
    """Tars of 10,000 samples; headers are patched, not made anew."""
    bodies = ((".png", picture()), (".txt", b" " * len(TEXT.format(0))))
    blocks = [pad(header("0" * 10 + suffix, len(body)) + body) for suffix, body in bodies]
    folder.mkdir()
    for first in range(0, rows, PER_TAR):
        with open(folder / f"{first // PER_TAR:06}.tar", "wb") as file:
            for number in range(first, min(first + PER_TAR, rows)):
                name = f"{number:010}".encode()
                for block, text in zip(blocks, (None, TEXT.format(number).encode()), strict=True):
                    file.write(renamed(block, name, text))
            file.write(bytes(1024))


def header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def pad(block: bytes) -> bytes:
    return block + bytes(-len(block) % 512)


def renamed(block: bytes, name: bytes, body: bytes | None) -> bytes:
    """A member of a tar under another name of the same length, with its checksum."""
    patched = bytearray(block)
    change = sum(name) - sum(patched[: len(name)])
    patched[: len(name)] = name
    patched[148:154] = b"%06o" % (int(patched[148:154], 8) + change)
    if body is not None:
        patched[512 : 512 + len(body)] = body
    return bytes(patched)


def make_loose(folder: Path, rows: int) -> None:
    """Pictures with a text beside each, 10,000 to a folder."""
    data = picture()
    for number in range(rows):
        below = folder / f"{number // PER_TAR:05}"
        if number % PER_TAR == 0:
            below.mkdir(parents=True)
        (below / f"{number:08}.png").write_bytes(data)
        (below / f"{number:08}.txt").write_bytes(TEXT.format(number).encode())


def make_holes(path: Path, members: int, size: int) -> None:
    """A tar whose bodies take no disk."""
    with open(path, "wb") as file:
        for number in range(members):
            file.write(header(f"{number:010}.jpg", size))
            file.seek(size + -size % 512, os.SEEK_CUR)
        file.write(bytes(1024))


def make_large(path: Path, pictures: int) -> None:
    """One tar of pictures of 256 pixels with their texts."""
    file = io.BytesIO()
    noise = Image.effect_noise((256, 256), 60)
    Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)]).save(file, "JPEG")
    block = pad(header("0" * 10 + ".jpg", len(file.getvalue())) + file.getvalue())
    text = pad(header("0" * 10 + ".txt", len(TEXT.format(0))) + TEXT.format(0).encode())
    with open(path, "wb") as tar:
        for number in range(pictures):
            name = f"{number:010}".encode()
            tar.write(renamed(block, name, None))
            tar.write(renamed(text, name, TEXT.format(number).encode()))
        tar.write(bytes(1024))


# --- steps, each in a process of its own


def index_set(source: Path, out: Path) -> int:
    return build(str(source), out, check="header").samples


def decode_set(source: Path, out: Path, workers: int) -> int:
    """As a large tar, however small it is."""
    tars.LARGE = 0
    shutil.rmtree(out / source.name, ignore_errors=True)
    return build(str(source), out, name=source.name, workers=workers).samples


def open_index(folder: Path) -> int:
    return len(Index(folder))


def sort_rows(folder: Path) -> int:
    return sum(map(len, bucket_rows(Index(folder), aspect_buckets(512, 32), [], False)))


def hold_rows(folder: Path) -> int:
    """What a rank or a worker holds that reads at random: bytes that are its alone."""
    index = Index(folder)
    rows = bucket_rows(index, aspect_buckets(512, 32), [], False)
    before = private()
    for number in random.Random(0).sample(range(len(index)), min(READS, len(index))):
        index[number]
    largest = max(rows, key=len)
    for number in random.Random(1).sample(range(len(largest)), min(READS, len(largest))):
        largest[number]
    return private() - before


def read_rows(folder: Path) -> int:
    index = Index(folder)
    for number in random.Random(0).sample(range(len(index)), min(READS, len(index))):
        index[number]
    return READS


def walk_headers(path: Path) -> int:
    archive = Archive(path.name, str(path), ((str(path), path.stat().st_size),))
    return sum(1 for _ in members(archive, Storage(), path))


def entry(number: int) -> bytes:
    return struct.pack("<Q", number) * (ENTRY // 8)


def write_shards(folder: Path, first: int, end: int) -> int:
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder)
    for number in range(first, end):
        writer.add(name_of(str(number)), entry(number))
    writer.close()
    return end - first


def read_shards(folder: Path, entries: int) -> int:
    shards, before = Shards(folder), private()
    for number in random.Random(0).sample(range(entries), min(READS, entries)):
        assert shards.get(name_of(str(number))) == entry(number)
    return private() - before


def look_shards(folder: Path, entries: int) -> int:
    """What a fill that goes on asks first: is it there?"""
    shards = Shards(folder)
    return sum(name_of(str(number)) in shards for number in range(entries))


def file_of(folder: Path, number: int) -> Path:
    name = name_of(str(number)).hex()
    return folder / name[:2] / name[2:4] / name[4:]


def write_files(folder: Path, entries: int) -> int:
    for number in range(entries):
        path = file_of(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_bytes(entry(number))
        partial.replace(path)
    return entries


def read_files(folder: Path, entries: int) -> int:
    for number in random.Random(0).sample(range(entries), min(READS, entries)):
        assert file_of(folder, number).read_bytes() == entry(number)
    return min(READS, entries)


def look_files(folder: Path, entries: int) -> int:
    return sum(file_of(folder, number).exists() for number in range(entries))


# --- the table


def line(what: str, unit: str, each: float, scale: float = 1.0) -> None:
    """A figure for each sample, and what follows for 30 and 300 million."""
    far = [each * count * MILLION * scale for count in (30, 300)]
    print(f"{what:58}{each:10.2f} {unit:8}{far[0]:12,.2f}{far[1]:12,.2f}", flush=True)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def disk_of(folder: Path) -> int:
    """Bytes that the disk gives for a folder: whole blocks for each file."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


HOURS, GB = 1e-6 / 3600, 1e-9


def measure_tars(steps: Steps, rows: int) -> None:
    out = steps.folder / "index"
    few_rows = rows // 5
    few = steps.measured("index few", index_set, steps.made("few", make_tars, few_rows), out)
    source, index = steps.made("tars", make_tars, rows), out / "tars"
    first = steps.measured("index", index_set, source, out)
    again = steps.measured("index again", index_set, source, out)
    sort = steps.measured("sort", sort_rows, index)
    held, opened, read = (
        steps.measured(step.__name__, step, index) for step in (hold_rows, open_index, read_rows)
    )
    print(f"\n{f'{rows:,} samples in tars':58}{'each':>10}{'30 M':>21}{'300 M':>12}")
    line("index: CPU µs, hours", "µs", first.cpu / rows * 1e6, HOURS)
    line("index again, nothing changed: CPU µs, hours", "µs", again.cpu / rows * 1e6, HOURS)
    line("index: bytes on disk, GB", "bytes", bytes_of(index) / rows, GB)
    grown = rows - few_rows
    line("index: what its memory grows by, GB", "bytes", (first.peak - few.peak) / grown, GB)
    line("buckets, once for all processes: CPU µs, hours", "µs", sort.cpu / rows * 1e6, HOURS)
    each = read.cpu / min(READS, rows) * 1e6
    print(f"memory of the process: {few.peak / 1e6:.0f} MB of {few_rows:,}, {first.peak / 1e6:.0f} MB of all")
    print(f"a rank or a worker: {held.result / 1e6:.0f} MB of its own after {READS:,} reads")
    print(f"opening: {opened.cpu * 1e3:.1f} ms of CPU; reading a sample at random: {each:.1f} µs")


def measure_loose(steps: Steps, rows: int) -> None:
    few, many = (
        steps.measured(
            f"index {name}", index_set, steps.made(name, make_loose, count), steps.folder / "index"
        )
        for name, count in (("loose-few", rows // 2), ("loose", rows))
    )
    print(f"\n{rows // 2:,} and {rows:,} loose pictures")
    line("index: CPU µs, hours", "µs", many.cpu / rows * 1e6, HOURS)
    line("index: what its memory grows by, GB", "bytes", (many.peak - few.peak) / (rows - rows // 2), GB)
    print(f"memory of the process: {few.peak / 1e6:.0f} MB, {many.peak / 1e6:.0f} MB")


def measure_walk(steps: Steps, members: int, size: int) -> None:
    path = steps.made("holes.tar", make_holes, members, size)
    cost = steps.measured("walk", walk_headers, path)
    total = path.stat().st_size
    print(f"\na tar of {total / 1e9:.0f} GB, {cost.result:,} members: its headers in {cost.cpu:.1f} s of CPU")


def measure_shared(steps: Steps, pictures: int, workers: int, turns: int) -> None:
    """One tar by one process and by several, in turns: wall time, best of each."""
    path = steps.made("large.tar", make_large, pictures)
    one, several = (
        [
            steps.measured(f"large {count} {turn}", decode_set, path, steps.folder / "index", count)
            for turn in range(turns)
        ]
        for count in (1, workers)
    )
    print(f"\none tar of {pictures:,} pictures of 256 pixels, decoded; {turns} turns")
    walls, cpus = (
        [min(getattr(c, what) for c in side) for side in (one, several)] for what in ("wall", "cpu")
    )
    print(f"one process: {walls[0]:.1f} s, {cpus[0]:.1f} s of CPU")
    print(
        f"{workers} processes: {walls[1]:.1f} s, {cpus[1]:.1f} s of CPU: {walls[0] / walls[1]:.2f} x as fast"
    )


def measure_cache(steps: Steps, entries: int) -> None:
    files = entries // 10
    print(f"\n{entries:,} cache entries of {ENTRY} bytes; {files:,} as a file each")
    shards, spread = steps.folder / "shards", steps.folder / "files"
    half = entries // 2
    wrote = [
        steps.measured(f"write_shards {part}", write_shards, shards, *part)
        for part in ((0, half), (half, entries))
    ]
    table = steps.measured("open_shards", look_shards, shards, 1)
    read, look = (steps.measured(step.__name__, step, shards, entries) for step in (read_shards, look_shards))
    old = [
        steps.measured(step.__name__, step, spread, files) for step in (write_files, read_files, look_files)
    ]
    rows = [
        ("write one, CPU µs", sum(cost.cpu for cost in wrote) / entries, old[0].cpu / files),
        ("read one at random, CPU µs", read.cpu / min(READS, entries), old[1].cpu / min(READS, files)),
        ("look whether one is there, as a fill that goes on, CPU µs", look.cpu / entries, old[2].cpu / files),
    ]
    for what, new, earlier in rows:
        print(f"{what:58}{new * 1e6:10.2f}{earlier * 1e6:12.2f}{earlier / new:9.1f} x")
    kept, each = disk_of(shards) / entries, disk_of(spread) / files
    print(f"{'bytes of disk for one':58}{kept:10.0f}{each:12.0f}{each / kept:9.1f} x")
    print(f"files of all: {len(list(shards.iterdir()))} beside {entries:,}, and folders")
    print(f"the table of {entries:,} rows: {table.cpu:.2f} s of CPU and {table.peak / 1e6:.0f} MB, once")
    print(f"a reader: {read.result / 1e6:.1f} MB of its own after {READS:,} reads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3 * MILLION, help="samples in tars; 0 leaves them out")
    parser.add_argument("--loose", type=int, default=100_000, help="loose pictures")
    parser.add_argument("--entries", type=int, default=MILLION, help="entries of a cache")
    parser.add_argument("--members", type=int, default=200_000, help="members of the large tar, 100 KB each")
    parser.add_argument(
        "--pictures", type=int, default=16_384, help="of the tar that several processes share"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that share it")
    parser.add_argument("--folder", type=Path, help="where the data are made and kept (default: not kept)")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="of CPU after which no further step begins, see --folder"
    )
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    steps = Steps(folder, options.minutes)
    try:
        if options.rows:
            measure_tars(steps, options.rows)
        if options.loose:
            measure_loose(steps, options.loose)
        if options.members:
            measure_walk(steps, options.members, 100_000)
        if options.pictures:
            measure_shared(steps, options.pictures, options.workers, turns=2)
        if options.entries:
            measure_cache(steps, options.entries)
    finally:
        if not options.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
