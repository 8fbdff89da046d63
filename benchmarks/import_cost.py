"""What this pack adds to ComfyUI's start, over several starts with and without it.

    python benchmarks/import_cost.py [STARTS]

Prints ComfyUI's own figure for the pack (its start-up report, to a tenth) and the time until the server
listens, medians in seconds. The first start of each kind warms the disk and is not counted.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import comfy_server  # noqa: E402
import comfy_tree  # noqa: E402

LIMIT_S = 0.3


def reported_seconds(log: str) -> float | None:
    """ComfyUI's import time of the pack, None where it was not loaded."""
    found = re.search(rf"([\d.]+) seconds: .*{comfy_tree.PACK_NAME}$", log, re.MULTILINE)
    return None if found is None else float(found.group(1))


def start(tree: Path, mounted: Path) -> tuple[float, float | None]:
    """Seconds until a server listens, and those that it reports for the pack."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with comfy_server.running_server(tree, Path(folder), mounted=mounted) as server:
            seconds = time.perf_counter() - begun
        return seconds, reported_seconds(server.log.read_text())


def main(starts: int) -> int:
    """Print the table; 1 if the pack costs more than :data:`LIMIT_S`."""
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    with tempfile.TemporaryDirectory() as scratch:
        empty = Path(scratch) / "paths.yaml"
        empty.write_text(f"none:\n  custom_nodes: {scratch}/custom_nodes\n")
        (Path(scratch) / "custom_nodes").mkdir()
        kinds = {"without the pack": empty, "with the pack": comfy_tree.mount_pack(tree)}
        timed: dict[str, list[tuple[float, float | None]]] = {kind: [] for kind in kinds}
        for _ in range(starts + 1):  # in turn, so that a busy moment falls on both
            for kind, mounted in kinds.items():
                timed[kind].append(start(tree, mounted))
    print(f"{'median of ' + str(starts):18}{'until it listens':>18}{'reported import':>18}")
    for kind, rows in timed.items():
        ready = statistics.median(seconds for seconds, _ in rows[1:])
        costs = [cost for _, cost in rows[1:] if cost is not None]
        told = f"{statistics.median(costs):18.1f}" if costs else f"{'-':>18}"
        print(f"{kind:18}{ready:18.2f}{told}")
    return 0 if statistics.median(costs) <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
