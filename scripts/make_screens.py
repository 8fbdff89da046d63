"""Pictures for the documents, taken from ComfyUI's page: some templates after their run, and every node.

The nodes are those of one graph that uses them all, run before the pictures are taken.
"""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import comfy_browser
import comfy_server
import comfy_tree
import torch
from PIL import Image
from safetensors.torch import save_file

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = comfy_tree.ROOT / "docs" / "images"
API = comfy_tree.ROOT / "tests" / "data" / "workflows_api"
SHOWN = ("structure_and_style", "masked_edit", "ladder_probe")
LORA = "icons.safetensors"
SAVED = "conditioning/ladder_00001_.safetensors [output]"
MODEL, MLLM, VAE, SCENE = ["1", 0], ["1", 1], ["1", 2], ["2", 0]
CONDITIONS = {"positive": ["3", 0], "negative": ["3", 1]}
# number: class, inputs, size (0: as small as it can be)
NODES = {
    "1": ("LoadModel", {}, (340, 0)),
    "3": ("Encode", {"mllm": MLLM, "prompt": "a panda on a yellow background"}, (360, 280)),
    "4": ("Ask", {"mllm": MLLM, "image": SCENE, "question": "describe the picture"}, (360, 260)),
    "5": (
        "EditPicture",
        {
            "model": MODEL,
            "mllm": MLLM,
            "vae": VAE,
            "image": SCENE,
            "instruction": "replace the rocket with a mushroom",
        },
        (360, 760),
    ),
    "6": (
        "Edit",
        {"mllm": MLLM, "image": SCENE, "instruction": "replace the dog with a cat", "vae": VAE},
        (360, 300),
    ),
    "7": ("EmptyLatent", {"model": MODEL}, (300, 0)),
    "8": ("Sampler", {"model": MODEL, **CONDITIONS, "latent": ["7", 0], "seed": 7}, (320, 660)),
    "9": ("Scheduler", {}, (280, 0)),
    "10": ("Guider", {"model": MODEL, **CONDITIONS, "layout": 6.0, "detail": 3.0}, (320, 0)),
    "11": (
        "RungGains",
        {"model": MODEL, "preset": "detail", "amount": 0.5, "curve": "1.2, 1, 0.8"},
        (380, 420),
    ),
    "12": ("RungMix", {"model": MODEL, "structure": ["3", 0], "style": ["6", 0]}, (300, 0)),
    "13": (
        "Probe",
        {"model": MODEL, "vae": VAE, **CONDITIONS, "latent": ["7", 0], "seed": 7},
        (460, 964),
    ),
    "14": ("SaveConditioning", {"conditioning": ["12", 0], "note": "a panda"}, (360, 220)),
    "15": ("LoadConditioning", {"file": SAVED}, (400, 0)),
    "16": ("LoadLora", {"model": MODEL, "lora": LORA}, (340, 0)),
    "17": (
        "ChangeMap",
        {"model": MODEL, "mllm": MLLM, "vae": VAE, "image": SCENE, "instruction": "remove the rocket"},
        (360, 640),
    ),
}
STOCK = {
    "2": ("LoadImage", {"image": "tbac_uniimage_dog_and_rocket.png"}),
    "20": ("VAEDecode", {"samples": ["8", 0], "vae": VAE}),
    "21": ("RandomNoise", {"noise_seed": 7}),
    "22": (
        "SamplerCustomAdvanced",
        {
            "noise": ["21", 0],
            "guider": ["10", 0],
            "sampler": ["9", 1],
            "sigmas": ["9", 0],
            "latent_image": ["7", 0],
        },
    ),
    "23": ("VAEDecode", {"samples": ["22", 0], "vae": VAE}),
    "24": ("PreviewAny", {"source": ["4", 0]}),
    **{
        str(number): ("PreviewImage", {"images": source})
        for number, source in enumerate((["20", 0], ["23", 0], ["5", 0], ["11", 2], ["13", 0]), 25)
    },
}
ALONE = """async ([number, size]) => {
    // one node at the origin of the view; the others wait far away
    const graph = window.app.graph, canvas = window.app.canvas
    graph._nodes.forEach((n, i) => (n.pos = [5000, 1500 * i]))
    const node = graph.getNodeById(number)
    if (size[0]) node.setSize([size[0], Math.max(size[1], node.computeSize()[1])])
    node.pos = [220, 180]
    canvas.deselectAll()
    canvas.links_render_mode = LiteGraph.HIDDEN_LINK
    canvas.ds.offset = [0, 0]
    canvas.ds.scale = 1
    canvas.setDirty(true, true)
    await new Promise((done) => setTimeout(done, 500))
    const [x, y, width, height] = node.boundingRect
    const area = canvas.canvas.getBoundingClientRect()
    return {x: area.x + x - 12, y: area.y + y - 26, width: width + 24, height: height + 38}
}"""


def whole_graph() -> dict:
    """One graph with every node."""
    ours = {key: (f"TBACUniImage{kind}", inputs) for key, (kind, inputs, _) in NODES.items()}
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in {**ours, **STOCK}.items()}


def keep(picture: bytes, path: Path, width: int = 0) -> None:
    """Write a screenshot as JPEG, no wider than ``width``."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if width and image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=80, optimize=True)
    print(f"{path}: {image.size}, {path.stat().st_size / 1000:.0f} kB")


def place_lora(folder: Path) -> tuple[str, str]:
    """A LoRA of the embedded model that changes nothing, for the node that loads one; ComfyUI's options."""
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    matrices = {f"{name}.lora_A.weight": torch.zeros(1, 192), f"{name}.lora_B.weight": torch.zeros(192, 1)}
    (folder / "loras").mkdir()
    save_file(matrices, folder / "loras" / LORA)
    paths = folder / "paths.yaml"
    paths.write_text(json.dumps({"screens": {"base_path": str(folder), "loras": "loras"}}))
    return "--extra-model-paths-config", str(paths)


def show_templates(page: Page) -> None:
    """The whole graph of some templates, cut at its groups."""
    for name in SHOWN:
        comfy_browser.open_template(page, name)
        comfy_browser.press_run(page)
        comfy_browser.pictures_shown(page)
        comfy_browser.fit_view(page)
        clip = page.evaluate(
            """() => {
                const {scale, offset} = window.app.canvas.ds
                offset[1] += 60 / scale  // out of the way of what stands in the page's corners
                window.app.canvas.draw(true, true)
                const area = window.app.canvas.canvas.getBoundingClientRect()
                const boxes = window.app.graph._groups.map((g) => g.boundingRect)
                const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]))
                const right = Math.max(...boxes.map((b) => b[0] + b[2]))
                const bottom = Math.max(...boxes.map((b) => b[1] + b[3]))
                return {
                    x: area.x + (left + offset[0]) * scale - 8, y: area.y + (top + offset[1]) * scale - 8,
                    width: (right - left) * scale + 16, height: (bottom - top) * scale + 16,
                }
            }"""
        )
        keep(page.screenshot(clip=clip), IMAGES / f"{name}.jpg", 1600)


def show_nodes(page: Page) -> None:
    """Every node by itself, after the run of the whole graph."""
    page.evaluate("async (graph) => await window.app.loadApiJson(graph, 'nodes')", whole_graph())
    comfy_browser.press_run(page)
    comfy_browser.fit_view(page)  # only what is in view loads its pictures
    comfy_browser.pictures_shown(page)
    for number, (kind, _, size) in NODES.items():
        clip = page.evaluate(ALONE, [int(number), size])
        keep(page.screenshot(clip=clip), IMAGES / "nodes" / f"TBACUniImage{kind}.jpg")


def main() -> None:
    """Start ComfyUI, save a conditioning for the node that loads one, then take the pictures."""
    comfy_server.end_on_signals()
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    with tempfile.TemporaryDirectory() as scratch:
        comfy_browser.prepare_user(Path(scratch), **{"Comfy.NodeBadge.NodeSourceBadgeMode": "None"})
        with comfy_server.running_server(tree, Path(scratch), *place_lora(Path(scratch))) as server:
            graph = json.loads((API / "native_ksampler.json").read_text())
            prompt = {key: graph[key] for key in ("1", "2")}
            save = {"conditioning": ["2", 0], "filename_prefix": "conditioning/ladder", "note": "a panda"}
            prompt["3"] = {"class_type": "TBACUniImageSaveConditioning", "inputs": save}
            asyncio.run(comfy_server.run_graph(server, prompt))
            for show in (show_nodes, show_templates):  # each on a page that has shown nothing yet
                with comfy_browser.open_page(server, (1700, 1300), scale=1.5) as page:
                    show(page)


if __name__ == "__main__":
    main()
