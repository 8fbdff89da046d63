"""``evaluate fetch``: the files of a set, from their repositories or a checkout at hand, checked by hash."""

from __future__ import annotations

import os
from pathlib import Path

from .benchmark import Benchmark, Checkout


def default_cache() -> Path:
    """Where fetched sets lie unless ``--sets`` says otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tbac-uniimage" / "evaluation"


def load(benchmark: Benchmark, cache: Path) -> Checkout:
    """The verified files of a set that was fetched before.

    Raises:
        ValueError: it was not fetched, or a file is missing or changed since.
    """
    raise NotImplementedError
