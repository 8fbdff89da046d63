"""What the system says about a path that somebody gave, as one sentence; files written whole."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

FORBIDDEN = ("may not be used by this account", "change its permissions, or give another")
REFUSALS = {  # what is wrong, what to do
    errno.ENAMETOOLONG: ("is longer than the system allows", "shorten it"),
    errno.ELOOP: ("leads in a circle of links", "mend the link, or give another"),
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.ENOTDIR: ("leads through a file as if it were a folder", "check the path"),
    errno.EISDIR: ("is a folder", "give a file"),
    errno.EROFS: ("lies where nothing can be written", "give another place"),
    errno.ENOSPC: ("does not fit, the disk is full", "free some space"),
    errno.EDQUOT: ("does not fit, the quota is used up", "free some space"),
    errno.EIO: ("cannot be read or written, its disk reports an error", "see to the disk"),
    errno.ESTALE: ("is gone from its network disk", "mount it again"),
}
SHOWN = 200  # letters of a path


def user_path(path: str | Path) -> Path:
    """A path as somebody gave it, ``~`` expanded; that there is something at it, nobody says.

    Asking for what lies there does not raise afterwards.

    Raises:
        ValueError: the system refuses to look, or there is a link to nothing.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:  # of ~nobody
        raise ValueError(f"{shown(path)} begins with the home of nobody; check the path.") from error
    try:
        os.stat(expanded)
    except FileNotFoundError as error:
        if os.path.islink(expanded):
            target = shown(os.readlink(expanded))
            raise ValueError(f"{shown(path)} is a link to {target}, which is not there.") from error
    except (OSError, ValueError) as error:
        raise ValueError(refusal(path, error)) from error
    return expanded


def refusal(path: str | Path, error: OSError | ValueError) -> str:
    """One sentence about a path from what the system raised: what is wrong with it, and what to do."""
    if not isinstance(error, OSError):  # a zero byte
        return f"{shown(path)} holds a letter that no path may hold; check the path."
    known = (f"cannot be used ({error.strerror or error})", "check the path")
    reason, advice = REFUSALS.get(error.errno or 0, known)
    return f"{shown(path)} {reason}; {advice}."


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, in place of one that is there.

    Raises:
        ValueError: the system refuses, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(refusal(path, error)) from error
    finally:
        with suppress(OSError):  # of a place where nothing can be written nothing can be removed
            partial.unlink(missing_ok=True)


def shown(path: str | Path) -> str:
    """A path on one line that can be read."""
    text = os.fspath(path)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} letters)"
