"""Open ComfyUI with this pack for a browser; Ctrl-C ends it."""

from __future__ import annotations

import os
import subprocess
import sys

import comfy_server
import comfy_tree


def main() -> int:
    """Run the server in the foreground, on port 8188 or what PORT says, or another if that is taken."""
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    port = comfy_server.free_port(int(os.environ.get("PORT", "8188")))
    options = ["--output-directory", str(comfy_tree.ROOT / "out")] if tree == comfy_tree.OWN_TREE else []
    print(
        f"ComfyUI opens at http://127.0.0.1:{port} ; Templates -> tbac-uniimage has graphs to begin with.",
        flush=True,
    )
    try:
        return subprocess.run(comfy_server.command_line(tree, port, *options), cwd=tree).returncode
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
