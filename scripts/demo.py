"""Draw and edit headless in real ComfyUI with the embedded model; the pictures land in ``out/``."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import comfy_server
import comfy_tree
from PIL import Image, ImageDraw
from tqdm import tqdm

ROOT = comfy_tree.ROOT
GRAPHS = ROOT / "tests" / "data" / "workflows"
OUT = ROOT / "out"
SAMPLE = ROOT / "assets" / "samples" / "tbac_uniimage_scene.png"
PROMPTS = [
    "a panda to the left of an apple on a yellow background",
    "three sunflowers on a blue background",
    "a blue car and a red star on a gray background",
    "a flat illustration of two butterflies on a white background",
    "a frog above a bus on pink in cartoon style",
    'the word "HELLO" on a green background',
]
INSTRUCTIONS = [
    "remove the cactus",
    "change the background to blue",
    "replace the rocket with a panda",
    "make the rocket purple",
    "turn it into a cartoon",
    "keep only the cactus on a white background",
]
EDITS_IN_A_ROW = 3
TILE = 256


@dataclass
class Drawn:
    """One picture of the demo: what was asked, the file, and what it was made from."""

    request: str
    file: Path
    source: Path | None = None


class Progress:
    """A bar for every node that reports progress."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm | None = None

    def __call__(self, kind: str, data: dict) -> None:
        """Take one websocket message."""
        if kind == "progress":
            if self.bar is None:
                self.bar = tqdm(total=data["max"], desc=self.title, unit="step")
            self.bar.update(data["value"] - self.bar.n)
        elif kind == "executing" and self.bar is not None:
            self.bar.close()
            self.bar = None


def graph_with(name: str, **changes: dict) -> dict:
    """An API-format graph with some inputs of some nodes replaced, by class of node."""
    graph = json.loads((GRAPHS / f"{name}.api.json").read_text())
    for node_class, inputs in changes.items():
        next(node for node in graph.values() if node["class_type"] == node_class)["inputs"].update(inputs)
    return graph


async def run_demo(server: comfy_server.Server) -> list[Drawn]:
    """Queue every request and gather the pictures into ``out/``."""
    requests = [
        (graph_with("text_to_image", TBACUniImageEncode={"prompt": text}), text, None) for text in PROMPTS
    ]
    requests += [
        (graph_with("image_edit", TBACUniImageEdit={"instruction": text}), text, SAMPLE)
        for text in INSTRUCTIONS
    ]
    drawn = []
    for number, (graph, request, source) in enumerate(requests, 1):
        result = await comfy_server.run_graph(server, graph, Progress(f"{number}/{len(requests)} {request}"))
        [[saved]] = result.images.values()
        kind = "text_to_image" if source is None else "image_edit"
        file = OUT / f"{number}_{kind}.png"
        shutil.copyfile(saved, file)
        drawn.append(Drawn(request, file, source))
    return drawn


def contact_sheet(drawn: list[Drawn]) -> Image.Image:
    """All pictures with their requests: text to image in the first row, edits below beside their source."""
    edits = [d for d in drawn if d.source is not None]
    rows = [[d for d in drawn if d.source is None]]
    rows += [edits[i : i + EDITS_IN_A_ROW] for i in range(0, len(edits), EDITS_IN_A_ROW)]
    height, gap = TILE + 28, 12
    width = max(sum(2 if d.source else 1 for d in row) for row in rows)
    sheet = Image.new("RGB", (width * (TILE + gap) + gap, len(rows) * (height + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        x = gap
        for item in row:
            top = gap + y * (height + gap)
            pen.text((x, top + TILE + 6), item.request, fill="black")
            for file in (item.source, item.file) if item.source else (item.file,):
                tile = Image.open(file).convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
                sheet.paste(tile, (x, top))
                x += TILE + gap
    return sheet


def main() -> None:
    """Start ComfyUI, run the requests, end ComfyUI, and say where everything is."""
    comfy_server.end_on_signals()
    start = time.monotonic()
    OUT.mkdir(exist_ok=True)
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    print(f"Starting ComfyUI from {tree} …", flush=True)
    with comfy_server.running_server(tree, comfy_tree.CACHE / "demo") as server:
        print(f"ComfyUI runs at {server.url} (log: {server.log}).", flush=True)
        drawn = asyncio.run(run_demo(server))
    sheet = OUT / "contact_sheet.png"
    contact_sheet(drawn).save(sheet)
    for item in drawn:
        print(f"{item.file}: {item.request}")
    print(f"Contact sheet: {sheet} ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"The demo failed: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped.")
