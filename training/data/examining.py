"""Looking at the samples of one unit: which can be used, and why the others cannot."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .index import Entry
from .layouts.findings import MAX_INPUTS, Finding, Found, Ignored, Layout, LeftOut, Note, Reading, Refused
from .lengths import is_cut
from .pictures import BadPicture, Facts, aligned, decode_mask, examine
from .pieces import Examined
from .refs import Ref, digest_of
from .storage import Storage
from .texts import choose_captions

STORAGE = Storage()  # one per process
COLLECTED = 50_000  # objects made since the last search for cycles


@contextmanager
def few_collections() -> Iterator[None]:
    """Search for cycles of objects less often: a tar is some 100,000 objects without any, walked each time.

    It takes a sixth of the time of indexing tars.
    """
    usual = gc.get_threshold()
    gc.set_threshold(COLLECTED, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@few_collections()
def examine_unit(layout: Layout, unit: Any, full: bool, reading: Reading) -> Examined:
    """Scan one unit and look at its pictures."""
    examined = Examined()
    for finding in [unit] if isinstance(unit, Finding) else layout.scan(unit, STORAGE, reading):
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
    for _, own in ((target, facts), *inputs):
        examined.converted.update(own.conversions)
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
    """Look at one picture, and note its contents if they are read. Raises BadPicture that names its place."""
    try:
        stamp = STORAGE.stamp(ref) if ref.alone else None
        if not full:
            with STORAGE.open(ref) as file:
                return replace(ref, stamp=stamp) if stamp else ref, examine(file, full)
        data = STORAGE.read(ref)
        digest = digest_of(data)
        if stamp:
            stamp = replace(stamp, digest=digest)
        return replace(ref, digest=digest, stamp=stamp), examine(io.BytesIO(data), full)
    except BadPicture as error:
        raise BadPicture(error.reason, f"{ref.path}: {error.detail}" if error.detail else ref.path) from error
    except FileNotFoundError as error:
        raise BadPicture("picture file is missing", ref.path) from error
    except OSError as error:
        raise BadPicture("cannot be read", error) from error
