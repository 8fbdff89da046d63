"""Install what the browser tests need: Playwright into this environment, and Chromium through apt.

Elsewhere than on Debian and Ubuntu install Chromium yourself, or name it in CHROMIUM_PATH. Without both, the
tests that need a browser are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import comfy_browser

PLAYWRIGHT = "playwright==1.65.2"
LIMIT_S = 300


def run(*command: str) -> None:
    """Run a command that may not ask anything."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, check=True, timeout=LIMIT_S, env=environment)


def main() -> None:
    """Install what is missing. Raises RuntimeError if there is no way to Chromium here."""
    if importlib.util.find_spec("playwright") is None:
        run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", PLAYWRIGHT)
    if comfy_browser.find_chromium() is not None:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise RuntimeError("there is no Chromium, and it can be installed only by root and with apt")
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "-qq", "--yes", "--no-install-recommends", "chromium", "fonts-liberation")


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"No browser for the tests: {error}.")
