"""Install what the browser tests need: Playwright into this environment, and Chromium.

Chromium comes from apt where that offers it (Debian, as root), else from Playwright's own download, because
Ubuntu's is a snap, which Playwright cannot drive. CHROMIUM_PATH names one that is there already. Without
both, the tests that need a browser are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys

import comfy_browser

PLAYWRIGHT = "playwright==1.65.2"
PACKAGES = ("chromium", "fonts-liberation", "fonts-wqy-zenhei")  # the last for the help pages in Chinese
LIMIT_S = 900
# a fresh machine may just be updating itself, and then holds apt's lock
APT = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120")


def run(*command: str) -> None:
    """Run a command that may not ask anything. Raises RuntimeError if it fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    ended = subprocess.run(command, timeout=LIMIT_S, env=environment, stdin=subprocess.DEVNULL)
    if ended.returncode:
        raise RuntimeError(f"`{shlex.join(command)}` ended with {ended.returncode}, its reason stands above")


def apt_offers(package: str) -> bool:
    """Whether apt knows a package of this name that can be installed."""
    environment = {**os.environ, "LC_ALL": "C"}
    command = ["apt-cache", "policy", package]
    known = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return "Candidate: " in known and "Candidate: (none)" not in known


def install_chromium() -> None:
    """By apt or by Playwright. Raises RuntimeError if neither works, or only root can."""
    has_apt, is_root = shutil.which("apt-get") is not None, os.geteuid() == 0
    if has_apt and is_root:
        run(*APT, "update")  # an image of a container knows no packages before
    if has_apt and apt_offers(PACKAGES[0]):
        install = (*APT, "install", "--yes", "--no-install-recommends", *PACKAGES)
        if not is_root:
            raise RuntimeError(f"there is no Chromium, run this as root: {shlex.join(install)}")
        run(*install)
        return
    more = ["--with-deps"] if has_apt and is_root else []  # the libraries that Chromium needs
    run(sys.executable, "-m", "playwright", "install", *more, "chromium")


def main() -> None:
    """Install what is missing and start Chromium once. Raises RuntimeError if there is no way to it here."""
    if importlib.util.find_spec("playwright") is None:
        run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", PLAYWRIGHT)
        importlib.invalidate_caches()
    if comfy_browser.find_chromium() is None:
        install_chromium()
    program = comfy_browser.find_chromium()
    if program is None:
        raise RuntimeError("Chromium was installed, but is found neither on the path nor with Playwright")
    print(f"{program} {comfy_browser.chromium_version(program)}")


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        sys.exit(
            f"No browser for the tests: {str(error).rstrip('.')}.\n"
            "Any Chromium or Google Chrome does that is not a snap: name it in CHROMIUM_PATH."
        )
