"""Paths and fsspec URLs alike, and what lies below a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .listing import Files


def is_url(path: str) -> bool:
    """Whether fsspec has to read it: ``s3://…``, ``hf://…``, ``memory://…``."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """``name`` in ``folder``, both local or URL; a ``name`` that stands alone is returned as it is."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    """The folder of a file."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        ValueError: no such protocol, or its package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be opened ({error}); check the protocol of the URL.") from error


def list_files(root: str, database: str | Path = "") -> Files:
    """Every file below a folder, sorted by path.

    Sorted, so that no file system decides the order; hidden files and folders are left out. A ``root`` that
    is a file gives none.

    Args:
        root: folder or URL.
        database: where the list is kept, see :class:`.listing.Files`.

    Raises:
        ValueError: there is nothing at ``root``.
    """
    if is_url(root):
        files, inner = filesystem(root)
        if not files.exists(inner):
            raise ValueError(f"There is nothing at {root}; check the URL.")
        start = inner.rstrip("/") + "/"
        found = (
            (path[len(start) :], int(facts["size"] or 0))
            for path, facts in files.find(inner, detail=True).items()
            if path.startswith(start)
        )
    else:
        if not os.path.exists(root):
            raise ValueError(f"There is nothing at {root}; check the path.")
        found = walk_folder(root)
    seen = ((name, size) for name, size in found if not (name.startswith(".") or "/." in name))
    return Files(seen, database)


def walk_folder(root: str) -> Iterator[tuple[str, int]]:
    """Files below a local folder, in no order; a link to nothing has no bytes, and is found when it is read.

    Raises:
        ValueError: a folder cannot be looked at, or a link leads back to one that it lies in.
    """
    folders = [""] if os.path.isdir(root) else []
    while folders:
        below = folders.pop()
        folder = os.path.join(root, below)
        try:
            with os.scandir(folder) as items:
                for item in items:
                    if not item.is_dir():
                        yield below + item.name, size_of(item)
                    elif item.is_symlink() and is_within(folder, os.path.realpath(item.path)):
                        raise ValueError(
                            f"{item.path} leads back to a folder that it lies in; take the link away."
                        )
                    else:
                        folders.append(f"{below}{item.name}/")
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read ({error.strerror}).") from error


def size_of(item: os.DirEntry) -> int:
    """Bytes of what lies in a folder; none of a link to nothing."""
    try:
        return item.stat().st_size
    except OSError:
        return 0


def is_within(path: str, folder: str) -> bool:
    """Whether a path is ``folder`` or lies in it."""
    path = os.path.realpath(path)
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def check_apart(names: Iterable[str], suffix: re.Pattern[str]) -> None:
    """Raise ValueError if two files would give their samples the same keys, as ``a.tar`` and ``a.tgz`` do."""
    seen: dict[str, str] = {}
    for name in names:
        stem = suffix.sub("", name)
        if stem in seen:
            raise ValueError(
                f"{seen[stem]} and {name} would give their samples the same keys; take one of them away, or "
                "rename it if it holds other samples."
            )
        seen[stem] = name


def absolute(source: str) -> str:
    """A data set's path as it is kept in the index: absolute, so that a run may start anywhere."""
    return source.rstrip("/") if is_url(source) else os.path.abspath(source)
