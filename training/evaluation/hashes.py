"""Which files of a folder a set needs, and whether they are those that were published."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from .benchmark import File, Source

BLOCK = 1 << 20


def matches(path: str, pattern: str) -> bool:
    """Whether a path in a repository is meant: ``*`` stands for letters of a name, ``**/`` for folders."""
    parts = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split("**/"))
    return re.fullmatch("(?:.*/)?".join(parts), path) is not None


def found(root: Path, file: File) -> list[str]:
    """Relative paths of the files that are meant, in the order of ``LC_ALL=C ls``."""
    if "*" not in file.path:
        return [file.path] if (root / file.path).is_file() else []
    paths = (path for path in root.glob(file.path) if path.is_file())
    return sorted((path.relative_to(root).as_posix() for path in paths), key=str.encode)


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def blob_id(path: Path) -> str:
    """Git's id of a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def listing(sums: Mapping[str, str]) -> str:
    """SHA-256 of what ``sha256sum`` prints for files, by path."""
    text = "".join(f"{digest}  {path}\n" for path, digest in sums.items())
    return hashlib.sha256(text.encode()).hexdigest()


def verified(root: Path, source: Source, modified: bool = False) -> dict[str, str]:
    """SHA-256 of every file that a set needs of a source, by path.

    Args:
        root: folder with the files of the repository under their own paths.
        source: what is needed.
        modified: take files that differ from the published ones.

    Raises:
        ValueError: some are missing, or differ.
    """
    sums: dict[str, str] = {}
    for file in source.files:
        paths = found(root, file)
        if len(paths) < max(file.count, 1) and not (modified and paths):
            lack = f"{file.path} ({len(paths):,} of {file.count:,} files)" if paths else file.path
            raise ValueError(f"{root} lacks {lack} of {named(source)}; give a whole checkout with --from.")
        own = {path: sha256(root / path) for path in paths}
        if not modified:
            check(root, source, file, own)
        sums |= own
    return sums


def check(root: Path, source: Source, file: File, sums: Mapping[str, str]) -> None:
    """Raise ValueError unless a file, or several, are the published ones."""
    kind, _, wanted = file.digest.partition(":")
    if not kind:
        return
    if "*" in file.path:
        digest = listing(sums)
    else:
        digest = sums[file.path] if kind == "sha256" else blob_id(root / file.path)
    if digest != wanted:
        raise ValueError(
            f"{root / file.path} is not that of {named(source)} ({kind} {digest[:16]}…, not {wanted[:16]}…); "
            "check that commit out, or say --modified to use it as a set of your own."
        )


def named(source: Source) -> str:
    """A source in words."""
    host, _, name = source.repo.partition(":")
    where = "github.com" if host == "github" else "huggingface.co/datasets"
    return f"{where}/{name}" + (f" at {source.commit[:7]}" if source.commit else "")
