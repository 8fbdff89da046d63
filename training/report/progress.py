"""Progress on stderr: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

IN_A_TERMINAL, IN_A_LOG = 0.1, 30.0  # seconds between two updates


def progress_bar(shown: bool = True, **options: Any) -> tqdm:
    """tqdm's bar with its own options; nothing if it is not ``shown``, as by all processes but one."""
    often = IN_A_TERMINAL if sys.stderr.isatty() else IN_A_LOG
    return tqdm(disable=not shown, mininterval=often, maxinterval=max(10.0, often), **options)
