"""Files are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(write: Callable[[Path], object], target: Path) -> None:
    """Let ``write`` fill a temporary file beside ``target``, of this process alone, then rename it."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, target)
    except BaseException:  # an interrupted write leaves nothing behind
        partial.unlink(missing_ok=True)
        raise
