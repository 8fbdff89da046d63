"""A plain folder: ``cat.jpg`` beside ``cat.txt``, in sub-folders too; what most people have of their own.

For edits ``cat.input.jpg`` (several: ``cat.input0.jpg`` …) lies beside them, and ``cat.output.jpg`` may take
the place of ``cat.jpg``. A ``.caption`` or ``.json`` file may take that of ``cat.txt``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..paths import join
from ..pictures import SUFFIXES
from ..storage import Ref, Storage
from .findings import Found, Place, Refused, chunked, load_text
from .tars import MEMBER

NAME = "folder"
SUMMARY = "pictures, each with a .txt, .caption or .json file of the same name beside it"
TEXTS = (".txt", ".caption", ".json")


def recognise(place: Place) -> bool:
    """Whether a picture has a text beside it."""
    texts = {name.rpartition(".")[0] for name, _ in place.files if name.lower().endswith(TEXTS)}
    return any(stem_of(name) in texts for name, _ in place.files if name.lower().endswith(SUFFIXES))


def stem_of(name: str) -> str:
    """The name that the text beside a picture has, without its suffix."""
    return MEMBER.fullmatch(name)["key"]


def units(place: Place) -> Iterator[list[dict[str, Any]]]:
    """Some samples each: key, and the paths of target, inputs and text."""
    texts: dict[str, str] = {}
    inputs: dict[str, list[tuple[int, str]]] = {}
    targets: list[tuple[str, str]] = []
    for kind in reversed(TEXTS):  # so that of several texts .txt is the one that stays
        texts |= {name[: -len(kind)]: name for name, _ in place.files if name.lower().endswith(kind)}
    for name, _ in place.files:
        if name.lower().endswith(SUFFIXES):
            match = MEMBER.fullmatch(name)
            if match["role"] in ("input", "source"):
                inputs.setdefault(match["key"], []).append((int(match["number"] or 0), name))
            else:
                targets.append((match["key"], name))
    samples = (
        {
            "key": name,  # with its suffix: cat.jpg and cat.png are two samples that may share a text
            "target": join(place.source, name),
            "inputs": [join(place.source, path) for _, path in sorted(inputs.get(stem, []))],
            "text": join(place.source, texts[stem]) if stem in texts else None,
        }
        for stem, name in targets
    )
    yield from chunked(samples)


def scan(unit: list[dict[str, Any]], storage: Storage) -> Iterator[Found | Refused]:
    """The samples with their texts."""
    for sample in unit:
        key, path, inputs = sample["key"], sample["text"], tuple(Ref(path) for path in sample["inputs"])
        if path is None:
            yield Refused(key, "no text")
            continue
        text = load_text(key, Ref(path), path.lower().endswith(".json"), bool(inputs), storage)
        yield text if isinstance(text, Refused) else Found(key, text, Ref(sample["target"]), inputs)
