"""Files of public repositories: a commit of GitHub as a tar, a data set of the hub through its client."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from .benchmark import Source
from .hashes import matches, named

GITHUB = "https://codeload.github.com/{name}/tar.gz/{commit}"
TIMEOUT = 60  # seconds without a byte


def download(source: Source, root: Path) -> str:
    """Bring the files of a source into a folder, under their own paths. Returns the commit.

    Raises:
        ValueError: the repository cannot be reached or read.
    """
    host, _, name = source.repo.partition(":")
    try:
        if host == "github":
            with urlopen(GITHUB.format(name=name, commit=source.commit), timeout=TIMEOUT) as answer:
                unpack(answer, source, root, strip=1)
            return source.commit
        return from_hub(source, name, root)
    except (URLError, OSError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{named(source)} cannot be fetched ({reason}); fetch it where there is a network and give the "
            "checkout with --from DIR."
        ) from error


def from_hub(source: Source, name: str, root: Path) -> str:
    """Files of a data set, or those in its archive. Returns the commit that was read."""
    from huggingface_hub import hf_hub_download, snapshot_download

    wanted = {"repo_id": name, "repo_type": "dataset", "revision": source.commit or None}
    if source.archive:
        path = Path(hf_hub_download(filename=source.archive, **wanted))
        with open(path, "rb") as archive:
            unpack(archive, source, root)
        return path.parent.name  # the hub's cache has a folder a commit
    snapshot_download(allow_patterns=[file.path for file in source.files], local_dir=root, **wanted)
    return source.commit


def unpack(stream: IO[bytes], source: Source, root: Path, strip: int = 0) -> None:
    """Write those members of a tar that a source needs.

    Args:
        stream: the tar, compressed or not; read once.
        source: what is needed of it.
        root: where it goes.
        strip: folders to leave out at the start of a member's path.
    """
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            parts = [part for part in member.name.split("/")[strip:] if part != "."]
            path = "/".join(parts)
            if member.isfile() and ".." not in parts and wants(source, path):
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                write(archive.extractfile(member), target)


def wants(source: Source, path: str) -> bool:
    """Whether a source needs a file."""
    return any(matches(path, file.path) for file in source.files)


def write(blocks: Iterable[bytes], target: Path) -> None:
    """Write a file block by block."""
    with open(target, "wb") as file:
        for block in blocks:
            file.write(block)
