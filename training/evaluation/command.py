"""``tbac-uniimage evaluate``: a verb is a module with ``add_arguments`` and ``run``."""

from __future__ import annotations

import argparse

from . import draw, fetch, judge, score, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs. Imports nothing heavy."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, module, what in (
        ("fetch", fetch, "bring the files of benchmarks here, checked by hash"),
        ("draw", draw, "draw their pictures as the official scorers want them"),
        ("judge", judge, "have a chat model answer their questions, or detectors look at them"),
        ("score", score, "make figures of what was said"),
        ("table", table, "put the figures beside published ones"),
    ):
        action = actions.add_parser(name, help=what)
        module.add_arguments(action)
        action.set_defaults(run=module.run)
