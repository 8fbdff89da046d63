"""Folders of training checkpoints: their names, what makes one whole, and which may go.

A checkpoint is written into a hidden folder and renamed when everything in it is on the disk, so that a run
killed at any moment leaves whole checkpoints and hidden folders, and never something in between::

    runs/NAME/checkpoints/.step-00002000.partial   being written
    runs/NAME/checkpoints/step-00001000/shard-*.safetensors, complete.json
    runs/NAME/last -> checkpoints/step-00001000
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from ....core.checkpoints.weights import TensorInfo, list_names, read_header

FORMAT = "tbac-uniimage training checkpoint"
VERSION = 1
COMPLETE = "complete.json"
CHECKPOINTS = "checkpoints"
LAST = "last"
CONTENT = {"step", "files", "tensors", "state"}  # of complete.json, beside format and version
FOLDER_NAME = re.compile(r"step-(\d+)|\.step-(\d+)\.replaced")


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(run) / CHECKPOINTS / f"step-{step:08d}"


def hidden(folder: Path, state: str) -> Path:
    """The folder's name while it is ``partial`` (being written), ``replaced`` or ``removed``."""
    return folder.with_name(f".{folder.name}.{state}")


def read_complete(path: str | Path) -> dict[str, Any]:
    """The content of ``complete.json``.

    Raises:
        ValueError: there is no checkpoint, it was never finished, or it is not one of ours.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"There is no checkpoint at {path}; check the path.")
    file = path / COMPLETE
    if not file.is_file():
        raise ValueError(f"{path} has no {COMPLETE}, so it is not a whole checkpoint; take another one.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is torn, so its checkpoint is not whole; take another one.") from error
    kind = content.get("format") if isinstance(content, dict) else None
    if kind != FORMAT:
        raise ValueError(f"{file} is not that of a training checkpoint (format {kind}); take another one.")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {content.get('version')} of the format and this program reads {VERSION}; "
            "use the program that wrote it."
        )
    lacking = CONTENT - content.keys()
    if lacking:
        raise ValueError(f"{file} lacks {list_names(sorted(lacking))}; take another checkpoint.")
    return content


def check(path: str | Path) -> None:
    """Raise ValueError, naming file and reason, unless a checkpoint is whole.

    Read are ``complete.json`` and the headers of the shards, not the tensors: everything was on the disk
    before the folder got its name, so that what is damaged later is lost or cut, and sizes tell.
    """
    path = Path(path)
    content = read_complete(path)
    for name, size in content["files"].items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{path} lacks its file {name}; take another checkpoint.")
        if file.stat().st_size != size:
            raise ValueError(
                f"{file} has {file.stat().st_size} bytes and should have {size}; take another checkpoint."
            )
    strangers = sorted(file.name for file in path.glob("*.safetensors") if file.name not in content["files"])
    if strangers:  # they would be read as shards
        raise ValueError(f"{path} holds shards of something else ({list_names(strangers)}); remove them.")
    elements: Counter[str] = Counter()
    for name in content["files"]:
        try:
            header = read_header(path / name)
        except ValueError as error:
            raise ValueError(f"{path / name} has no readable header; take another checkpoint.") from error
        for info in header.values():
            elements[info.name] += math.prod(info.shape)
    wanted = {name: math.prod(shape) for name, (_, shape) in content["tensors"].items()}
    wrong = sorted(name for name in wanted.keys() | elements if wanted.get(name) != elements.get(name))
    if wrong:
        raise ValueError(
            f"The shards of {path} do not hold the tensors that its {COMPLETE} lists ({list_names(wrong)}); "
            "take another checkpoint."
        )


def stored(path: str | Path) -> dict[str, TensorInfo]:
    """Types (as torch names them) and whole shapes of a checkpoint's tensors, by name."""
    tensors = read_complete(path)["tensors"]
    return {
        name: TensorInfo(Path(path), name, dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()
    }


def read_state(path: str | Path) -> dict[str, Any]:
    """What was given to ``save`` as ``state``. Raises ValueError as :func:`read_complete` does."""
    return read_complete(path)["state"]


def newest(run: str | Path, before: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and one sentence for each newer folder that is not whole.

    Args:
        run: folder of the run.
        before: only those that know nothing of this optimizer step, counted from 0: they are of at most so
            many steps done.

    Returns:
        The folder, or None if there is none, and the sentences, newest first.
    """
    refused = []
    for step, folder in _folders(Path(run)):
        if before is not None and step > before:
            continue
        try:
            check(folder)
        except ValueError as error:
            refused.append(str(error))
        else:
            return folder, refused
    return None, refused


def prune(run: str | Path, keep: int, best: str | None = None) -> None:
    """Remove whole checkpoints but the newest ``keep`` and the best.

    A folder loses its name before its files, so that no part of one is ever seen. Folders that are not whole
    do not count, and stay for people to look at. To be called by one process.

    Args:
        run: folder of the run.
        keep: how many, at least 1.
        best: name of the best one's folder (``step-00001000``).
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep is {keep}; keep at least 1 checkpoint.")
    whole = [folder for _, folder in _folders(Path(run)) if _is_whole(folder)]
    for folder in whole[keep:]:
        if folder.name != best:
            remove(folder)


def remove(folder: Path) -> None:
    """Rename a folder away, then delete it."""
    doomed = hidden(folder, "removed")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_stale(checkpoints: Path) -> None:
    """Delete what processes that are no more left behind. Not to be called while a checkpoint is written."""
    for state in ("partial", "removed"):
        for folder in checkpoints.glob(f".step-*.{state}"):
            shutil.rmtree(folder)


def publish(partial: Path, folder: Path) -> None:
    """Give a finished folder its name and point ``last`` to it, on the disk when this returns.

    A checkpoint of the same step that is there already is replaced; :func:`newest` finds it under its hidden
    name if the process ends between the two renames.
    """
    replaced = hidden(folder, "replaced")
    if folder.exists():
        if replaced.exists():  # only where an earlier replacement was cut off after the new one had its name
            shutil.rmtree(replaced)
        folder.rename(replaced)
    partial.rename(folder)
    flush(folder.parent)
    run = folder.parent.parent
    link = run / f".{LAST}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.relative_to(run))
    if is_copy(run / LAST):
        shutil.rmtree(run / LAST)
    link.replace(run / LAST)
    flush(run)
    for old in folder.parent.glob(".step-*.replaced"):
        shutil.rmtree(old)


def is_copy(last: Path) -> bool:
    """Whether ``last`` is no link but a checkpoint: the run was copied by a program that follows links.

    Raises:
        OSError: it is something else, which must not be replaced.
    """
    if last.is_symlink() or not last.exists():
        return False
    if not (last / COMPLETE).is_file():
        raise OSError(f"{last} is in the way, which is no link to a checkpoint; rename it")
    return True


def write_complete(
    folder: Path, step: int, files: dict[str, int], tensors: dict[str, tuple[str, list[int]]], state: Any
) -> None:
    """Write ``complete.json``, the last file of a checkpoint.

    Args:
        folder: that of the checkpoint.
        step: optimizer steps done.
        files: bytes by file name.
        tensors: type and whole shape by name.
        state: JSON-able.
    """
    content = {"format": FORMAT, "version": VERSION, "step": step, "files": files, "tensors": tensors}
    unfinished = folder / f".{COMPLETE}"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content | {"state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    flush(folder)  # the shards' names, before the name that says they are there
    unfinished.replace(folder / COMPLETE)
    flush(folder)


def flush(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folders(run: Path) -> list[tuple[int, Path]]:
    """Steps and folders named as checkpoints, newest first; replaced ones after their successors."""
    checkpoints = run / CHECKPOINTS
    found = []
    for folder in checkpoints.iterdir() if checkpoints.is_dir() else ():
        match = FOLDER_NAME.fullmatch(folder.name)
        if match:
            found.append((int(match[1] or match[2]), match[1] is not None, folder))
    return [(step, folder) for step, _, folder in sorted(found, reverse=True)]


def _is_whole(folder: Path) -> bool:
    try:
        check(folder)
    except ValueError:
        return False
    return True
