"""``evaluate table``: our scores beside published ones, as Markdown, JSON and sheets of failures."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..arguments import any_path
from . import fetch, folders
from .benchmark import AS_PUBLISHED
from .reading import json_of

PUBLISHED = Path(__file__).with_name("published.json")
WIDE = 12  # figures above which only those that span the set, or are published, are shown


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        model: its name.
        figures: by name.
        judge, rewriting, source: as stated; empty: not stated.
        errors: standard errors of ours, by name; None: a published row.
        folder: of ours, as it was given.
    """

    model: str
    figures: Mapping[str, float]
    judge: str
    rewriting: str
    source: str
    errors: Mapping[str, float] | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Table:
    """Rows of one set in one mode.

    Attributes:
        name: of the set, and of the mode if it is not "as published".
        columns: names of the figures that are shown, the headline first.
    """

    name: str
    mode: str
    unit: str
    columns: tuple[str, ...]
    ours: tuple[Line, ...]
    published: tuple[Line, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``evaluate table``."""
    parser.add_argument(
        "folders", nargs="+", type=any_path, metavar="DIR", help="folders given as --out before"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not Markdown")
    parser.add_argument(
        "--sheets", type=any_path, metavar="DIR", help="draw the worst pictures of every set into this folder"
    )
    parser.add_argument(
        "--sets",
        type=any_path,
        default=fetch.default_cache(),
        metavar="DIR",
        help="folder of the fetched sets, for the sources of edits (default %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the tables of some folders. Raises ValueError."""
    tables = make(options.folders)
    if options.json:
        print(json.dumps([as_json(table) for table in tables], indent=1, ensure_ascii=False))
    else:
        print("\n\n".join(map(markdown, tables)))
    if options.sheets:
        from . import sheet

        for path in sheet.draw_all(options.folders, options.sets, options.sheets):
            print(f"\nfailures: {path}")


def make(given: Sequence[Path], published: Path = PUBLISHED) -> list[Table]:
    """Tables of all scores below some folders, one for every set and mode.

    Raises:
        ValueError: there are none, or a file is none of ours.
    """
    scores = [score for folder in given for score in scores_of(folder)]
    if not scores:
        raise ValueError(
            f"{', '.join(map(str, given))}: no scores; first: tbac-uniimage evaluate score SET --out DIR"
        )
    known = json_of(published)["rows"]
    tables = []
    for name in dict.fromkeys(found["name"] for found, _ in scores):
        first = next(found for found, _ in scores if found["name"] == name)
        mine = told_apart([line for found, line in scores if found["name"] == name])
        alike = [] if first["modified"] else known
        beside = [r for r in alike if r["set"] == first["benchmark"] and r["mode"] == first["mode"]]
        theirs = tuple(
            Line(row["model"], row["figures"], row["judge"], row["rewriting"], row["source"])
            for row in beside
        )
        tables.append(
            Table(
                name,
                first["mode"],
                first["unit"],
                columns(list(first["figures"]), theirs),
                tuple(mine),
                theirs,
            )
        )
    return tables


def told_apart(lines: Sequence[Line]) -> list[Line]:
    """Rows of which no two have the same model and judge: then their folders are named."""
    seen = Counter((line.model, line.judge) for line in lines)
    return [
        replace(line, model=f"{line.model} in {line.folder}") if seen[line.model, line.judge] > 1 else line
        for line in lines
    ]


def scores_of(folder: Path) -> list[tuple[dict[str, Any], Line]]:
    """Scores below a folder, as they were written and as rows; the manifest names the model."""
    found = []
    for path in sorted(folder.glob(f"*/*/{folders.SCORE}")):
        manifest = path.parent.parent / folders.MANIFEST
        try:
            label = json_of(manifest).get("model", folder.name) if manifest.is_file() else folder.name
            for score in json_of(path)["scores"]:
                values = {name: figure["value"] for name, figure in score["figures"].items()}
                errors = {name: figure["error"] for name, figure in score["figures"].items()}
                rewriting = "BAGEL's file" if score["benchmark"].endswith("-rewritten") else "none"
                line = Line(label, values, score["judge"], rewriting, "here", errors, folder)
                found.append((score, line))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no score of ours; score the set again.") from error
    return found


def columns(names: Sequence[str], published: Sequence[Line]) -> tuple[str, ...]:
    """The figures to show: all of a short list, else those that span the set or stand in a published row."""
    if len(names) <= WIDE:
        return tuple(names)
    there = {name for line in published for name in line.figures}
    return tuple(name for name in names if "overall" in name or name in there)


def difference(ours: Line, theirs: Line, column: str) -> float | None:
    """Ours less theirs, if the same judge saw both and both have the figure."""
    if not theirs.judge or theirs.judge != ours.judge or column not in theirs.figures:
        return None
    return ours.figures[column] - theirs.figures[column]


def markdown(table: Table) -> str:
    """A table as Markdown: ours with standard errors, and how far our headline is above published ones."""
    digits = 3 if table.unit == "share" else 2
    headline = table.columns[0]
    title = f"### {table.name}, as published" if table.mode == AS_PUBLISHED else f"### {table.name}"
    heads = ["model", *table.columns, "judge", "rewriting", "source"]
    heads += [f"{line.model} ({line.judge}) less theirs" for line in table.ours] if table.published else []
    lines = [f"{title} ({table.unit})", "", row(heads), row(["---"] * len(heads))]
    for line in (*table.ours, *table.published):
        cells = [f"**{line.model}**" if line.errors is not None else line.model]
        for name in table.columns:
            value = "–" if name not in line.figures else f"{line.figures[name]:.{digits}f}"
            error = f" ± {line.errors[name]:.{digits}f}" if line.errors and name in line.errors else ""
            cells.append(value + error)
        cells += [line.judge or "not stated", line.rewriting or "not stated", line.source]
        if table.published:
            cells += [told(ours, line, headline, digits) for ours in table.ours]
        lines.append(row(cells))
    return "\n".join(lines)


def told(ours: Line, line: Line, column: str, digits: int) -> str:
    """The difference of a row in a cell."""
    if line.errors is not None:
        return ""
    value = difference(ours, line, column)
    return "–" if value is None else f"{value:+.{digits}f} ± {ours.errors[column]:.{digits}f}"


def row(cells: Sequence[str]) -> str:
    """A row of Markdown."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def as_json(table: Table) -> dict[str, Any]:
    """A table as plain data; differences of every figure of which there is one."""
    published = [
        {
            "model": line.model,
            "figures": dict(line.figures),
            "judge": line.judge,
            "rewriting": line.rewriting,
            "source": line.source,
            "differences": {
                f"{ours.model} ({ours.judge})": found
                for ours in table.ours
                if (found := differences(ours, line, table.columns))
            },
        }
        for line in table.published
    ]
    ours = [
        {
            "model": line.model,
            "figures": dict(line.figures),
            "errors": dict(line.errors or {}),
            "judge": line.judge,
            "rewriting": line.rewriting,
        }
        for line in table.ours
    ]
    return {"set": table.name, "mode": table.mode, "unit": table.unit, "ours": ours, "published": published}


def differences(ours: Line, theirs: Line, names: Sequence[str]) -> dict[str, float]:
    """Ours less theirs, of every figure of which there is a difference."""
    found = {name: difference(ours, theirs, name) for name in names if name in ours.figures}
    return {name: value for name, value in found.items() if value is not None and not math.isnan(value)}
