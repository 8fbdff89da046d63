"""What indexing a data set found, as a table for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .lengths import LIMIT

FIRST_NAMES = 5
SHOWN_NOTES = 20
SHOWN_ROLES = 6
CAPTIONS_TAKEN = {
    "last": "the last is taken",
    "first": "the first is taken",
    "random": "the position chooses",
    "all": "a sample each",
}
COUNTED = ("inputs", "refused", "converted", "ignored", "left_out", "columns", "sides", "shapes", "no_masks")
SIDES = (256, 512, 768, 1024, 2048)  # limits of the size classes, pixels of the shorter side


@dataclass
class Report:
    """Counts of one indexing.

    Attributes:
        name: of the index.
        source: of the data set.
        layout: as recognised.
        check: ``decode`` or ``header``.
        folder: of the index.
        samples: usable ones.
        inputs: samples by their number of input pictures.
        refused: samples by reason.
        refused_first: first keys by reason.
        converted: pictures by what :func:`~.pictures.decode` changes.
        sides: samples by the size class of the target's shorter side.
        shapes: samples by tall, square and wide (within 5 %).
        ignored: other files by suffix.
        left_out: files or rows of other splits.
        columns: samples by what their fields were taken for.
        several: samples with several captions.
        masks: samples with a mask.
        no_masks: samples with pictures that may be masks and are not taken for any.
        cut: samples whose text is longer than what the model is given of it.
        given: what was said by hand about how to read it.
        notes: torn files and the like.
        seconds: it took.
    """

    name: str
    source: str
    layout: str
    check: str
    folder: str
    given: dict[str, Any] = field(default_factory=dict)
    samples: int = 0
    inputs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refused_first: dict[str, list[str]] = field(default_factory=dict)
    converted: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    several: int = 0
    masks: int = 0
    no_masks: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, facts: dict[str, Any]) -> None:
        """Take in one unit, see :meth:`~.pieces.Examined.facts`."""
        self.samples += facts.get("samples", 0)
        self.several += facts.get("several", 0)
        self.masks += facts.get("masks", 0)
        self.cut += facts.get("cut", 0)
        self.notes += facts.get("notes", [])
        for name in COUNTED:
            getattr(self, name).update(facts.get(name, {}))
        for reason, names in facts.get("refused_first", {}).items():
            first = self.refused_first.setdefault(reason, [])
            first += names[: FIRST_NAMES - len(first)]

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps: nothing that depends on time or place of the index."""
        kept = ("name", "layout", "check", "given", "inputs", "refused", "converted", "ignored", "left_out")
        kept += ("columns", "several", "masks", "cut", "notes")
        return {key: getattr(self, key) for key in kept}

    def write(self, folder: Path) -> None:
        """``report.json``."""
        facts = vars(self) | {"samples_per_second": round(self.rate(), 1)}
        (folder / "report.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def rate(self) -> float:
        """Samples looked at per second."""
        return (self.samples + self.refused.total()) / max(self.seconds, 1e-9)

    def check_usable(self) -> None:
        """Raise ValueError where nothing can be used, or nothing has the mask that was named."""
        if not self.samples:
            raise ValueError(f"Nothing in {self.source} can be used: {self.why_nothing()}.")
        mask = next(
            (word.partition("=")[2] for word in self.given["columns"] if word.startswith("mask=")), ""
        )
        if mask and not self.masks:
            raise ValueError(
                f"No sample of {self.source} has a mask {mask}, which --columns names; check the name."
            )

    def why_nothing(self) -> str:
        """Why there is no usable sample."""
        reasons = [
            f"{reason} ({count:,}, first {self.refused_first[reason][0]})"
            for reason, count in self.refused.most_common(3)
        ]
        if self.left_out:
            names = ", ".join(f"{split} ({count:,})" for split, count in self.left_out.most_common())
            reasons.append(f"left out are the splits {names}, see --split")
        return "; ".join(reasons + self.notes[:3]).rstrip(".") or "there is no sample"

    def table(self) -> str:
        """For people."""
        lines = [f"{self.name}: {self.samples:,} samples ({self.layout}, {self.source})"]
        lines += [
            f"  {'read as':15}{what}  {count:,}" for what, count in self.columns.most_common(SHOWN_ROLES)
        ]
        lines += rows("input pictures", sorted(self.inputs.items()))
        order = [side_class(side) for side in (1, *SIDES)]
        lines += rows("shorter side", [(name, self.sides[name]) for name in order if self.sides[name]])
        masks = [("white counts in the loss", self.masks)] if self.masks else []
        lines += rows("masks", masks, "  see train.masked_loss")
        for name, count in self.no_masks.most_common(SHOWN_ROLES):
            lines += rows("masks", [(f"{name} is not used", count)], f"  --columns mask={name} takes it")
        lines += rows("shape", self.shapes.most_common())
        lines += rows("converted", self.converted.most_common())
        for reason, count in self.refused.most_common():
            names = ", ".join(self.refused_first[reason])
            lines += rows("refused", [(reason, count)], f"  {names}{', …' if count > FIRST_NAMES else ''}")
        if self.several:
            rule = CAPTIONS_TAKEN[self.given["captions"]]
            lines += rows("captions", [(f"several: {rule}", self.several)], "  see --captions")
        how = "" if self.given.get("counted") else "  estimated; --tokenizer DIR counts"
        lines += rows("long texts", [(f"cut at {LIMIT} tokens", self.cut)] if self.cut else [], how)
        lines += rows(
            "left out", [(f"split {name}", n) for name, n in self.left_out.most_common()], "  see --split"
        )
        lines += rows("other files", self.ignored.most_common())
        lines += [f"  note: {note}" for note in self.notes[:SHOWN_NOTES]]
        if len(self.notes) > SHOWN_NOTES:
            lines.append(f"  {len(self.notes) - SHOWN_NOTES:,} more notes: {self.folder}/report.json")
        lines.append(f"  {self.rate():,.0f} samples/s ({self.check}); index: {self.folder}")
        return "\n".join(lines)


def read_report(folder: Path) -> Report:
    """The report that lies in an index. Raises ValueError."""
    path = folder / "report.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts.pop("samples_per_second")
        return Report(**facts | {name: Counter(facts[name]) for name in COUNTED} | {"folder": str(folder)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); index the data set again.") from error


def rows(title: str, counts: list[tuple[str, int]], tail: str = "") -> list[str]:
    """Table lines of one kind."""
    return [f"  {title if i == 0 else '':15}{name:32}{n:>12,}{tail}" for i, (name, n) in enumerate(counts)]


def side_class(side: int) -> str:
    """Name of the size class of a side, pixels."""
    below = [limit for limit in SIDES if limit <= side]
    above = [limit for limit in SIDES if limit > side]
    if not below:
        return f"below {above[0]}"
    return f"{below[-1]} to {above[0] - 1}" if above else f"{below[-1]} and more"


def shape(width: int, height: int) -> str:
    """Tall, square or wide."""
    if max(width, height) <= 1.05 * min(width, height):
        return "square"
    return "wide" if width > height else "tall"
