"""The figures as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from textwrap import fill
from typing import Any

from .cases import EDITED
from .judging import VIEWS
from .rows import KEPT, Figure, Row, is_number

TITLES = {
    "draw": "text to image",
    "edit": "editing",
    "masked": "editing in a mask",
    "auto": "editing, automatic mask",
    "ask": "understanding",
}

NAME, COUNT, VALUE = 22, 8, 9  # widths of columns
WIDTH = 118  # of the notes
NOTES = (
    "model: the mean over pictures with its 95 % interval. Prompts are the unit, as pictures of one prompt "
    "are not independent: it is Wilson's interval of a share with the effective number of pictures that the "
    "variance between prompts gives. Overall figures are plain means; the distances of their parts' limits "
    "add up in squares.",
    "prompts: different texts, of edits and questions texts with their picture. scenes: the different "
    "contents that these tell, each with a combination that training never shows.",
    *(f"{view}: {meaning}." for view, meaning in VIEWS.items()),
    "editing: the whole picture is drawn from noise by a model that sees the source; no pixel of it is laid "
    "in. editing in a mask: the same edits, where all stays wherever the exact result is the source; so the "
    "mask tells where to draw. editing, automatic mask: the model finds the mask itself.",
    "kept: how near to the exact result is what an edit must not touch (60 dB = equal); ceil.: the same of "
    "the exact result rebuilt by the autoencoder, which what a mask keeps does not pass.",
    "text: words, RapidOCR (with --ocr): whole words as a reader of print sees them, who has not seen this "
    "font; truth is how well that reader reads it.",
    "The sprite-scene score speaks of these sprites only; it has the shape of GenEval and ImgEdit and is "
    "neither.",
)


def number(value: float | None, digits: int = 3, width: int = VALUE) -> str:
    """A figure to the right of a column, or a dash."""
    return f"{value:{width}.{digits}f}" if is_number(value) else f"{'–':>{width}}"


def heading(group: str, title: str) -> str:
    """Names of the columns of a group."""
    counts = "".join(
        f"{name:>{COUNT}}" for name in ("prompts", "scenes", "answers" if group == "ask" else "pict.")
    )
    line = f"{title:<{NAME}}{counts}{'model':>{VALUE}}  {'95 % interval':<14}"
    line += "".join(f"{view:>{VALUE}}" for view in VIEWS)
    return line + (f"{'kept dB':>9}{'ceil.':>7}{'SSIM':>7}{'ceil.':>7}" if group in EDITED else "")


def kept(figures: dict[str, Figure]) -> str:
    """Preservation of an edit beside the autoencoder's own."""
    text = ""
    for what, digits, width in zip(KEPT, (1, 3), (9, 7), strict=True):
        one = figures.get(what)
        text += number(one and one.value, digits, width) + number(
            one and one.beside.get("rebuilt"), digits, 7
        )
    return text


def line(row: Row) -> str:
    """One row as text."""
    counts = "".join(f"{count:>{COUNT}}" for count in (row.prompts, row.scenes, row.pictures))
    main = row.main
    between = f"{main.low:.3f} to {main.high:.3f}" if is_number(main.low) else "–"
    text = f"{row.name:<{NAME}}{counts}{number(main.value)}  {between:<14}"
    text += "".join(number(main.beside.get(view)) for view in VIEWS)
    return text + (kept(row.kept) if row.group in EDITED else "")


def text(rows: Sequence[Row], about: Sequence[str], notes: Sequence[str] = ()) -> str:
    """The table.

    Args:
        about: lines above it: which model, drawn how.
        notes: lines below it, before the standing ones.
    """
    lines = ["sprite-scene score", *about]
    for group, title in TITLES.items():
        own = [row for row in rows if row.group == group]
        if own:
            head = heading(group, title)
            lines += ["", head, "-" * len(head), *map(line, own)]
    below = [fill(note, WIDTH, subsequent_indent="  ") for note in (*notes, *NOTES)]
    return "\n".join([*lines, "", *below])


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, with None for what there is not."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(part) for name, part in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return [clean(asdict(row)) for row in rows]
