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
EDITS_IN_A_ROW = 2
TILE = 256


@dataclass
class Drawn:
    """One picture of the demo: what was asked, and the files that show it.

    Of an edit these are its source, where the model changes it, and the result.
    """

    request: str
    files: list[Path]


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


def edit_graph(instruction: str) -> dict:
    """The edit's graph for an instruction, which two of its nodes take."""
    said = {"instruction": instruction}
    return graph_with("edit_without_a_mask", TBACUniImageChangeMap=said, TBACUniImageEditPicture=said)


async def run_demo(server: comfy_server.Server) -> list[Drawn]:
    """Queue every request and gather the pictures into ``out/``."""
    requests = [(graph_with("text_to_image", TBACUniImageEncode={"prompt": text}), text) for text in PROMPTS]
    requests += [(edit_graph(text), text) for text in INSTRUCTIONS]
    drawn = []
    for number, (graph, request) in enumerate(requests, 1):
        result = await comfy_server.run_graph(server, graph, Progress(f"{number}/{len(requests)} {request}"))
        files = [SAMPLE] if request in INSTRUCTIONS else []
        for key, node in graph.items():
            if node["class_type"] == "SaveImage":
                [saved] = result.images[key]
                kind = node["inputs"]["filename_prefix"].removeprefix("tbac_")
                files.append(OUT / f"{number}_{kind}.png")
                shutil.copyfile(saved, files[-1])
        drawn.append(Drawn(request, files))
    return drawn


def contact_sheet(drawn: list[Drawn]) -> Image.Image:
    """All pictures with their requests: text to image in the first row, edits below.

    Of an edit: its source, where the model changes it, and the result.
    """
    edits = [d for d in drawn if len(d.files) > 1]
    rows = [[d for d in drawn if len(d.files) == 1]]
    rows += [edits[i : i + EDITS_IN_A_ROW] for i in range(0, len(edits), EDITS_IN_A_ROW)]
    height, gap = TILE + 28, 12
    width = max(sum(len(d.files) for d in row) for row in rows)
    sheet = Image.new("RGB", (width * (TILE + gap) + gap, len(rows) * (height + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        x = gap
        for item in row:
            top = gap + y * (height + gap)
            pen.text((x, top + TILE + 6), item.request, fill="black")
            for file in item.files:
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
        print(f"{item.files[-1]}: {item.request}")
    print(f"Contact sheet: {sheet} ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"The demo failed: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped.")
