"""Virtual environments for tests: some packages in other versions, or fewer of them, than this one has."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

KEPT = ("torch", "numpy", "safetensors", "pillow")
INSTALL_LIMIT_S = 1800  # a machine may be busy


def empty_environment(place: Path) -> tuple[Path, Path]:
    """A new environment without even pip: its interpreter and its folder of packages."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    return place / "bin" / "python", packages_of(place)


def packages_of(place: Path) -> Path:
    """Where an environment keeps its packages."""
    version = "python{}.{}".format(*sys.version_info)
    return place / "lib" / version / "site-packages"


def beside_this_one(place: Path, wanted: list[str]) -> Path:
    """An environment that sees this one's packages and holds ``wanted`` with what they need; its interpreter.

    It is kept and used again. torch and a few others stay this environment's.

    Raises:
        RuntimeError: pip could not install them; the end of what it said.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side
        return made_beside_this_one(place, wanted)


def made_beside_this_one(place: Path, wanted: list[str]) -> Path:
    """:func:`beside_this_one`, for one at a time."""
    done, state = place / "done", "\n".join([sys.prefix, *wanted])
    if done.exists() and done.read_text() == state:
        return place / "bin" / "python"
    python, packages = empty_environment(place)
    parent = sysconfig.get_path("purelib")
    (packages / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
    constraints = place / "constraints.txt"
    constraints.write_text("".join(f"{name}=={metadata.version(name)}\n" for name in KEPT))
    command = [
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-q",
        "--no-compile",  # most of it is never imported
        "-c",
        constraints,
        *wanted,
    ]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, stdin=subprocess.DEVNULL
    )
    if answer.returncode:
        raise RuntimeError(f"pip could not install {' and '.join(wanted)}:\n{answer.stderr[-1500:]}")
    if list(packages.glob("torch-*")):
        raise RuntimeError("A second torch was installed; take it out of what is wanted.")
    done.write_text(state)
    return python


def with_torch_alone(place: Path) -> tuple[Path, dict[str, str]]:
    """A new environment with pip and this one's torch, where everything else is yet to be installed.

    Returns:
        Its interpreter, and the variables with which its commands are found and pip keeps torch.
    """
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    packages = packages_of(place)
    kept = [d for d in metadata.distributions() if re.match(r"(torch|triton|nvidia-.*|cuda-.*)$", d.name)]
    for distribution in kept:
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    constraints = place / "constraints.txt"  # a package behind a link must never be replaced
    constraints.write_text("".join(f"{d.name}=={d.version}\n" for d in kept))
    settings = {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_CONSTRAINT": str(constraints),
        "PIP_NO_COMPILE": "1",  # most of it is never imported
        "PIP_QUIET": "1",
    }
    return place / "bin" / "python", settings


def needed_by(names: list[str]) -> set[str]:
    """Distributions of this environment that ``names`` need, directly or not, without extras."""
    found: set[str] = set()
    open_names = [normalised(name) for name in names]
    while open_names:
        name = open_names.pop()
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system, or not needed here
            continue
        if name not in found:
            found.add(name)
            wanted = [line for line in requires if "extra ==" not in line]
            open_names += [normalised(re.match(r"[\w.-]+", line).group()) for line in wanted]
    return found


def normalised(name: str) -> str:
    """A distribution's name as indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def only(place: Path, names: list[str]) -> Path:
    """The interpreter of an environment with ``names`` and what they need, linked from this one."""
    python, packages = empty_environment(place)
    for name in needed_by(names):
        home = Path(metadata.distribution(name).locate_file(""))  # this one may see another's packages, too
        for top in {file.parts[0] for file in metadata.files(name) or []} - {"..", "__pycache__"}:
            if (home / top).exists() and not (packages / top).exists():
                (packages / top).symlink_to(home / top)
    home = Path(metadata.distribution("torchvision").locate_file(""))
    for shim in home.glob("cpu_torchvision.*"):  # see setup_env.py
        (packages / shim.name).symlink_to(shim)
    return python
