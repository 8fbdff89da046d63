"""Files of a checkout: JSON, JSON lines, tables, and strings of Python files, which are never run."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Template = tuple[str | ast.expr, ...]


def text_of(path: Path) -> str:
    """A UTF-8 file. Raises ValueError with the sentence."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error


def parsed(path: Path, what: str, parse: Callable[[str], T]) -> T:
    """What a function makes of a file. Raises ValueError: it is not ``what``."""
    text = text_of(path)
    try:
        return parse(text)
    except (ValueError, KeyError, TypeError, SyntaxError, csv.Error) as error:
        raise ValueError(f"{path} is no {what} ({type(error).__name__}: {error}).") from error


def within(name: str) -> str:
    """A path that stays in the folder it is relative to. Raises ValueError: it leads out of it."""
    if not name or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} would lie outside of its folder; the set's files are not to be trusted.")
    return name


def json_of(path: Path) -> Any:
    """Content of a JSON file. Raises ValueError."""
    return parsed(path, "JSON", json.loads)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Objects of a file with one JSON object a line. Raises ValueError."""
    return parsed(
        path, "JSON lines", lambda text: [json.loads(line) for line in text.split("\n") if line.strip()]
    )


def table_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, as texts. Raises ValueError."""
    with open_table(path) as file:
        try:
            return list(csv.DictReader(file, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no CSV ({error}).") from error


def open_table(path: Path) -> Any:
    """A CSV file opened for reading. Raises ValueError."""
    try:
        return open(path, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error


@cache
def constants(path: Path) -> dict[str, str]:
    """Names and values of the strings that a Python file assigns at its top level. Raises ValueError."""
    found = {}
    for node in parsed(path, "Python", ast.parse).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found


@cache
def messages(path: Path, function: str) -> list[Template]:
    """Texts of the chat messages that a function of a Python file writes out, in order.

    A text is the value of a key ``text`` or ``content`` that is a string or an f-string.

    Raises:
        ValueError: no such function.
    """
    tree = parsed(path, "Python", ast.parse)
    bodies = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    if not bodies:
        raise ValueError(f"{path} has no function {function}; fetch the set again.")
    found = []
    for node in ast.walk(bodies[0]):
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            if not isinstance(key, ast.Constant) or key.value not in ("text", "content"):
                continue
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.append((value.lineno, (value.value,)))
            elif isinstance(value, ast.JoinedStr):
                found.append((value.lineno, template(value)))
    return [parts for _, parts in sorted(found, key=lambda entry: entry[0])]


def template(node: ast.JoinedStr) -> Template:
    """An f-string as its texts and the expressions between them."""
    return tuple(
        part.value if isinstance(part, ast.Constant | ast.FormattedValue) else part for part in node.values
    )


def filled(parts: Template, fields: Mapping[str, Any]) -> str:
    """A text with ``fields[name]`` for every ``…["name"]``. Raises ValueError: it has another expression."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif (
            isinstance(part, ast.Subscript)
            and isinstance(part.slice, ast.Constant)
            and part.slice.value in fields
        ):
            texts.append(str(fields[part.slice.value]))
        else:
            raise ValueError(f"A judge's prompt needs {ast.unparse(part)}, which the data do not have.")
    return "".join(texts)


def arrow_rows(
    root: Path, columns: Sequence[str], picture: str
) -> Iterator[tuple[dict[str, Any], Callable[[], bytes]]]:
    """Rows of the Arrow streams below a folder, as the hub's data sets have them, with a reader of a picture.

    Args:
        root: folder of the files.
        columns: those that are read at once.
        picture: column of structs with the ``bytes`` of a picture file, read when asked for.

    Raises:
        ValueError: a file is no such stream, or lacks a column.
    """
    import pyarrow as pa

    for path in sorted(root.rglob("*.arrow")):
        try:
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            rows = table.select(list(columns)).to_pylist()
            bytes_of = table.column(picture)
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise ValueError(f"{path} is no Arrow stream with the columns of the set ({error}).") from error
        for number, row in enumerate(rows):
            yield row, partial(cell_bytes, bytes_of, number)


def cell_bytes(column: Any, number: int) -> bytes:
    """The picture file in a cell of an Arrow column of structs."""
    return column[number].as_py()["bytes"]
