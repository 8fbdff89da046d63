"""Make the templates' thumbnails by running them in real ComfyUI, after the model or a template has changed.

Names on the command line limit it to these templates. The seeds are those of the templates.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import comfy_server
import comfy_tree
from PIL import Image, ImageOps
from template_graphs import TEMPLATES

ROOT = comfy_tree.ROOT
GRAPHS = ROOT / "tests" / "data" / "workflows_api"
SIDE = 512
DARK = (24, 24, 28)


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture on a dark square."""
    return ImageOps.pad(picture.convert("RGB"), (side, side), Image.Resampling.BICUBIC, DARK)


def grid(pictures: list[Image.Image]) -> Image.Image:
    """One picture, or up to four in a square."""
    if len(pictures) == 1:
        return fitted(pictures[0], SIDE)
    sheet = Image.new("RGB", (SIDE, SIDE), DARK)
    for i, picture in enumerate(pictures[:4]):
        sheet.paste(fitted(picture, SIDE // 2), (i % 2 * SIDE // 2, i // 2 * SIDE // 2))
    return sheet


def with_sources(result: Image.Image, sources: list[Image.Image]) -> Image.Image:
    """What the picture was made from, small and framed at its foot."""
    for i, source in enumerate(sources):
        small = ImageOps.expand(fitted(source, 128), 3, "white")
        result.paste(small, (12 + i * (small.width + 8), SIDE - small.height - 12))
    return result


def thumbnail(graph: dict, images: dict[str, list[Path]], inputs: Path) -> Image.Image:
    """From what a run left: its saved pictures, and small what they came from."""
    kinds = {key: node["class_type"] for key, node in graph.items()}
    saved = [path for key in images if kinds[key] == "SaveImage" for path in images[key]]
    previews = [path for key in images if kinds[key] == "PreviewImage" for path in images[key]]
    # ComfyUI makes a folder "temp" inside of its temporary folder
    sources = [path if path.exists() else path.parent / "temp" / path.name for path in previews]
    sources += [inputs / n["inputs"]["image"] for n in graph.values() if n["class_type"] == "LoadImage"]
    if "TBACUniImageProbe" in kinds.values():
        saved = saved[:1]  # of the two sheets one is legible at this size
    # numbered by ComfyUI in the order of a folder's listing, which is any
    pictures = [Image.open(path) for path in sorted(saved)]
    return with_sources(grid(pictures), [Image.open(path) for path in sources])


def main() -> None:
    """Run each template and write its thumbnail."""
    comfy_server.end_on_signals()
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    with (
        tempfile.TemporaryDirectory() as scratch,
        comfy_server.running_server(tree, Path(scratch)) as server,
    ):
        for name in sys.argv[1:] or TEMPLATES:
            graph = json.loads((GRAPHS / f"{name}.json").read_text())
            result = asyncio.run(comfy_server.run_graph(server, graph))
            path = ROOT / "workflows" / f"{name}.jpg"
            thumbnail(graph, result.images, server.folder / "input").save(path, quality=85)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
