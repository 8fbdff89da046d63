"""What the registry would publish: tracked files less those of .comfyignore, as a zip of them."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def project_files(*options: str) -> list[Path]:
    """Files of the repository relative to its root: tracked, with git's ``options`` others too."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", *options], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def published_files() -> list[Path]:
    """What is left for the registry's zip; every line of .comfyignore is a path from the root."""
    lines = (ROOT / ".comfyignore").read_text().split()
    assert all(re.fullmatch(r"/[\w.-]+/?", line) for line in lines)
    ignored = {line.strip("/") for line in lines}
    assert not [name for name in ignored if not (ROOT / name).exists()]
    return [path for path in project_files() if path.parts[0] not in ignored]


def write_zip(path: Path) -> None:
    """The published zip: paths from the repository's root, no folder around them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in published_files():
            archive.write(ROOT / file, file.as_posix())
