"""The benchmarks. A module of this folder with ``SETS`` is one; nothing else lists them."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from ..benchmark import Benchmark


@cache
def all_sets() -> dict[str, Benchmark]:
    """Every set by name, modules in alphabetical order."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [found for name in modules for found in import_module(f".{name}", __package__).SETS]
    return {benchmark.name: benchmark for benchmark in found}


def find(name: str) -> Benchmark:
    """The set of a name. Raises ValueError naming those that there are."""
    known = all_sets()
    if name not in known:
        raise ValueError(f"There is no set {name!r}; there are {', '.join(known)}.")
    return known[name]
