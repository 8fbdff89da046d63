"""Store the conditions that the template "stored_conditions" draws from, after the model has changed."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import comfy_server
import comfy_tree
from template_graphs import DOG_AND_ROCKET, NANO

PLACE = comfy_tree.ROOT / "assets" / "samples" / "conditioning"
FILES = {"dog_and_rocket": (DOG_AND_ROCKET, 0), "nothing": ("", 1)}  # note, output of the encoder


def graph() -> dict:
    """One prompt encoded, both its conditions saved."""
    encode = {"mllm": ["1", 1], "prompt": DOG_AND_ROCKET, "negative_prompt": ""}
    nodes = {"1": ("TBACUniImageLoadModel", NANO), "2": ("TBACUniImageEncode", encode)}
    for name, (note, output) in FILES.items():
        save = {"conditioning": ["2", output], "filename_prefix": f"conditioning/{name}", "note": note}
        nodes[name] = ("TBACUniImageSaveConditioning", save)
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def main() -> None:
    """Run the graph in real ComfyUI and keep its files."""
    comfy_server.end_on_signals()
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    PLACE.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        comfy_server.running_server(tree, Path(scratch)) as server,
    ):
        asyncio.run(comfy_server.run_graph(server, graph()))
        for name in FILES:
            path = PLACE / f"tbac_uniimage_{name}.safetensors"
            saved = server.folder / "output" / "conditioning" / f"{name}_00001_.safetensors"
            path.write_bytes(saved.read_bytes())
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
