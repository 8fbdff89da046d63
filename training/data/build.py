"""Indexing: find the samples of a data set, look at every picture, write the index."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ...core.paths import refusal
from .index import Entry, IndexWriter
from .layouts import arrow, folders, lance, lists, mds, parquet, tars, tfrecords
from .layouts.findings import (
    MAX_INPUTS,
    Finding,
    Found,
    Ignored,
    Layout,
    LeftOut,
    Note,
    Place,
    Reading,
    Refused,
)
from .lengths import is_cut
from .paths import absolute, is_url, list_files, parent
from .pictures import BadPicture, Facts, aligned, decode_mask, examine
from .report import Examined, Report
from .storage import Ref, Storage
from .texts import choose_captions

LAYOUTS: dict[str, Layout] = {
    module.NAME: module for module in (arrow, mds, lance, lists, parquet, tars, tfrecords, folders)
}
STORAGE = Storage()  # one per process


def build(
    source: str,
    out: Path,
    *,
    name: str | None = None,
    layout: str | None = None,
    images: str | None = None,
    reading: Reading = Reading(),  # noqa: B008
    check: str = "decode",
    workers: int = 1,
    progress: Callable[[int], Any] = lambda count: None,
    say: Callable[[str], Any] = lambda text: None,
) -> Report:
    """Index one data set into ``out/name``, in place of an index that is there.

    The index does not depend on ``workers``: units are put together in their order.

    Args:
        source: path or URL of a folder or file.
        out: folder of all indexes.
        name: of this one; default: the last part of ``source``.
        layout: a key of :data:`LAYOUTS`; default: what is recognised.
        images: where the pictures lie that a list names; default: beside it.
        reading: columns, encoding, splits and captions.
        check: ``decode`` decodes every picture, ``header`` only reads its head.
        workers: processes; 1 = this one.
        progress: called with the number of samples that were just looked at.
        say: called with what is being read where that may take long.

    Returns:
        Report: counts, and where the index is.

    Raises:
        ValueError: no layout fits, nothing is usable, or ``out`` cannot be written to.
    """
    source = absolute(source)
    name = name or name_of(source)
    target = out / name
    if target.exists() and not (target / "manifest.json").is_file():
        raise ValueError(f"{target} is there and no index; give another name with --name.")
    files = list_files(source)
    started = time.monotonic()
    scratch = make_scratch(out, name)
    try:
        place = Place(source, files, absolute(images) if images else None, scratch, say, reading)
        module = LAYOUTS[layout] if layout else recognise(place)
        writer = IndexWriter(scratch, source if files else parent(source))
        report = Report(
            name=name,
            source=source,
            layout=module.NAME,
            check=check,
            folder=str(target),
            given=as_given(reading),
        )
        with open(scratch / "refused.jsonl", "w", encoding="utf-8") as refused:
            for examined in examine_all(module, place, check == "decode", workers):
                for entry in examined.entries:
                    writer.add(entry)
                report.count(examined, refused)
                progress(len(examined.entries) + len(examined.refused))
        if not report.samples:
            raise ValueError(f"Nothing in {source} can be used: {report.why_nothing()}.")
        if reading.columns.mask and not report.masks:
            raise ValueError(
                f"No sample of {source} has a mask {reading.columns.mask[0]}, which --columns names; check "
                "the name."
            )
        report.seconds = time.monotonic() - started
        report.write(scratch)
        writer.close(report.facts())
        replace_folder(scratch, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of what is read nothing is said so
            raise ValueError(refusal(target, error)) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def as_given(reading: Reading) -> dict[str, Any]:
    """What was said by hand about how to read a data set, for its manifest."""
    return {
        "columns": reading.columns.words(),
        "encoding": reading.encoding,
        "splits": list(reading.splits),
        "captions": reading.captions,
        "counted": reading.tokenizer is not None,
    }


def name_of(source: str) -> str:
    """What the index of a data set is called: the last part of its path, without suffixes."""
    return os.path.basename(absolute(source)).partition(".")[0] or "data"


def recognise(place: Place) -> Layout:
    """The layout of what lies there. Raises ValueError naming what was found."""
    for module in LAYOUTS.values():
        if module.recognise(place):
            return module
    kinds = Counter(os.path.splitext(name)[1].lower() or "without suffix" for name, _ in place.files)
    found = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(6)) or "no files"
    known = "; ".join(f"{module.NAME}: {module.SUMMARY}" for module in LAYOUTS.values())
    seen = "; ".join(lists.columns_seen(place))
    hint = f" {seen}: name the column of pictures with --columns target=… text=…." if seen else ""
    raise ValueError(
        f"{place.source} is no data set of a known layout (found: {found}).{hint} Known are {known}."
    )


def make_scratch(out: Path, name: str) -> Path:
    """A new folder in ``out`` that a finished index is renamed from. Raises ValueError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{name}-", dir=out))
    except OSError as error:
        raise ValueError(refusal(out, error)) from error


def replace_folder(new: Path, target: Path) -> None:
    """Rename a folder onto another one; whoever has mapped the old one's files keeps them."""
    os.chmod(new, 0o777 & ~current_umask())
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.replace(target, old / "index")
        os.replace(new, target)
        shutil.rmtree(old)
    else:
        os.replace(new, target)


def current_umask() -> int:
    """The process's mask of file permissions, which mkdtemp ignores."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def examine_all(layout: Layout, place: Place, full: bool, workers: int) -> Iterator[Examined]:
    """Every unit of a data set, examined, in order."""
    jobs = ((layout.NAME, unit, full, place.reading) for unit in layout.units(place))
    if workers <= 1:
        yield from (examine_unit(*job) for job in jobs)
        return
    if is_url(place.source) and place.source.startswith("memory://"):
        raise ValueError("memory:// exists in one process only; index it with --workers 1.")
    # spawned, not forked: file systems and Arrow run threads
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from in_order(pool, jobs, ahead=2 * workers)
        except BrokenProcessPool as error:
            raise ValueError(
                "A worker process died, likely for want of memory; try fewer --workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # when stopped, what was not begun is not done


def in_order(pool: ProcessPoolExecutor, jobs: Iterable[tuple], ahead: int) -> Iterator[Examined]:
    """Results in the order of the jobs; only ``ahead`` jobs are drawn before they are needed."""
    waiting: deque = deque()
    for job in jobs:
        waiting.append(pool.submit(examine_unit, *job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def examine_unit(layout: str, unit: Any, full: bool, reading: Reading) -> Examined:
    """Scan one unit and look at its pictures."""
    examined = Examined()
    for finding in [unit] if isinstance(unit, Finding) else LAYOUTS[layout].scan(unit, STORAGE, reading):
        if isinstance(finding, Note):
            examined.notes.append(finding.text)
        elif isinstance(finding, Ignored):
            examined.ignored.update(finding.counts)
        elif isinstance(finding, LeftOut):
            examined.left_out.update(finding.counts)
        elif isinstance(finding, Refused):
            examined.refused.append(finding)
        else:
            judge(finding, full, reading, examined)
    return examined


def judge(found: Found, full: bool, reading: Reading, examined: Examined) -> None:
    """Put a sample where it belongs; with all captions it is as many samples."""
    try:
        check_sample(found)
        (target, facts), *inputs = [check_picture(ref, full) for ref in (found.target, *found.inputs)]
        mask = check_mask(found.mask, (facts.width, facts.height), full) if found.mask else None
    except BadPicture as error:
        examined.refused.append(Refused(found.key, error.reason, error.detail))
        return
    examined.converted.update(change for _, own in ((target, facts), *inputs) for change in own.conversions)
    examined.roles[found.roles] += 1
    examined.several += len(found.texts) > 1
    texts = tuple(text for text in found.texts if text)
    refs = tuple(ref for ref, _ in inputs)
    for number, chosen in enumerate(choose_captions(texts, reading.captions)):
        examined.cut += any(is_cut(text, reading.tokenizer) for text in chosen)
        key = f"{found.key}~{number + 1}" if number else found.key
        examined.entries.append(Entry(key, chosen, target, refs, facts.width, facts.height, mask))


def check_sample(found: Found) -> None:
    """Look at all of a sample but its pictures. Raises BadPicture."""
    if not any(found.texts):
        raise BadPicture("empty text")
    if len(found.inputs) > MAX_INPUTS:
        raise BadPicture(f"more than {MAX_INPUTS} input pictures", len(found.inputs))
    try:
        f"{found.key}{''.join(found.texts)}{found.target.path}".encode()
    except UnicodeEncodeError as error:
        raise BadPicture("name or text is not Unicode", ascii(error.object[:60])) from error


def check_mask(ref: Ref, size: tuple[int, int], full: bool) -> Ref:
    """Look at the mask of a picture of this size; ``full`` whether it is one. Raises BadPicture."""
    stamped, facts = check_picture(ref, full)
    own = (facts.width, facts.height)
    if not aligned(own, size):
        shapes = "{}x{} for {}x{}".format(*own, *size)
        raise BadPicture("mask has other proportions than its picture", f"{ref.path}: {shapes}")
    if full:
        try:
            decode_mask(STORAGE.read(ref))
        except BadPicture as error:
            raise BadPicture(error.reason, f"{ref.path}: {error.detail}".removesuffix(": ")) from error
    return stamped


def check_picture(ref: Ref, full: bool) -> tuple[Ref, Facts]:
    """Look at one picture; a file of its own gets a stamp. Raises BadPicture that names where it lies."""
    try:
        if ref.size >= 0 or ref.row >= 0:
            with STORAGE.open(ref) as file:
                return ref, examine(file, full)
        data = STORAGE.read(ref) if full else None
        stamped = replace(ref, stamp=STORAGE.stamp(ref.path, data))
        with STORAGE.open(ref) if data is None else io.BytesIO(data) as file:
            return stamped, examine(file, full)
    except BadPicture as error:
        raise BadPicture(error.reason, f"{ref.path}: {error.detail}" if error.detail else ref.path) from error
    except FileNotFoundError as error:
        raise BadPicture("picture file is missing", ref.path) from error
    except OSError as error:
        raise BadPicture("cannot be read", error) from error
