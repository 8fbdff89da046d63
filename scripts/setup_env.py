"""Make ``.venv``: the pinned packages, then this project, editable. Quick when nothing changed.

Run with any Python 3.11 or newer; needs nothing but the standard library. The project itself runs with 3.10,
on older libraries: what is pinned, the newest of them, has no builds for it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "setup-state"
REQUIREMENTS = ROOT / "requirements-dev.txt"
TORCHVISION = "torchvision==0.28.0"
INSTALLING = "installing"
OLDEST_PYTHON = (3, 11)  # that all pinned packages have a build for


def wanted_state() -> str:
    """What the stamp must say: a digest of everything that decides the environment's content."""
    inputs = [
        REQUIREMENTS.read_text(),
        TORCHVISION,
        (ROOT / "pyproject.toml").read_text(),
        str(ROOT),
        sys.version,
    ]
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()


def venv_python() -> Path:
    """The environment's interpreter."""
    return VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def write_stamp(text: str) -> None:
    """Write the stamp through a temporary name, so that it is never half there."""
    partial = STAMP.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(STAMP)


def pip_install(*arguments: str) -> None:
    """Run pip inside the environment; its output is the progress report."""
    command = [venv_python(), "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
    subprocess.run([*command, *arguments], check=True)


def torch_pin() -> str:
    """The torch requirement, taken from the requirements file."""
    return re.search(r"^torch==\S+$", REQUIREMENTS.read_text(), re.MULTILINE).group()


def packages() -> Path:
    """The environment's folder of packages."""
    command = [venv_python(), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def compile_packages() -> None:
    """What pip would do on one core; a few files of packages are templates that no Python reads."""
    subprocess.run([venv_python(), "-m", "compileall", "-qq", "-j", "0", packages()])


def add_torchvision_shim() -> None:
    """Where torch and torchvision are builds for different devices, make the latter importable all the same.

    PyPI's torchvision for Linux is a CUDA build; beside a CPU build of torch its import fails, and with it
    that of ComfyUI and of image processors. Nothing here uses torchvision's compiled operators.
    """
    versions = [(packages() / name / "version.py").read_text() for name in ("torch", "torchvision")]
    builds = {re.search(r"__version__ = '[^'+]*\+?([^']*)'", text).group(1) for text in versions}
    if len(builds) > 1:
        shutil.copy(ROOT / "scripts" / "torchvision_shim.py", packages() / "cpu_torchvision.py")
        (packages() / "cpu_torchvision.pth").write_text("import cpu_torchvision\n")


def main() -> None:
    """Bring ``.venv`` to the wanted state. An interrupted installation is thrown away, not trusted."""
    if sys.version_info < OLDEST_PYTHON:
        found = sys.version.split()[0]
        sys.exit(f"Python 3.11 or newer is needed, this is {found}: name one with make PYTHON=python3.12")
    wanted = wanted_state()
    state = STAMP.read_text() if STAMP.exists() else None
    if state == wanted:
        return
    if state == INSTALLING:
        print("The last installation into .venv was interrupted; starting it over.", flush=True)
        shutil.rmtree(VENV)
    is_new = not venv_python().exists()
    VENV.mkdir(exist_ok=True)
    write_stamp(INSTALLING)
    if is_new:
        print("Making .venv and installing the pinned packages (about 1.6 GB on disk) …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    else:
        print("Bringing .venv up to date …", flush=True)
    volume = [] if is_new else ["--quiet"]
    pip_install(*volume, torch_pin())
    pip_install(*volume, "-r", str(REQUIREMENTS))
    pip_install(*volume, "--no-deps", TORCHVISION)
    add_torchvision_shim()
    compile_packages()
    pip_install("--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    write_stamp(wanted)
    print("The environment is ready.", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        sys.exit(f"Set-up failed: `{command}` ended with {error.returncode}; run it again.")
    except KeyboardInterrupt:
        sys.exit("Set-up was stopped; the next run starts it over.")
