"""Two graphs end to end in a real ComfyUI server; their pictures against the Python pipeline's."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch
from nano_models import FACTOR, SIDE
from PIL import Image

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = Path(__file__).parent / "data" / "workflows"
SAMPLE = ROOT / "assets" / "samples" / "tbac_uniimage_scene.png"
PACK = "tbac-uniimage"


@pytest.fixture(scope="module")
def server(comfy_tree, tmp_path_factory) -> Iterator:
    """A server with empty folders of its own; its address and its log."""
    import comfy_server

    with comfy_server.running_server(comfy_tree, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="module")
def nano():
    """The embedded model as a pipeline, in the precision that ComfyUI uses on the CPU."""
    from tbac_uniimage.core.checkpoints import load_parts
    from tbac_uniimage.core.pipeline import LadderPipeline

    pipeline = LadderPipeline(**vars(load_parts(ROOT / "assets" / "nano", dtype="float32")))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def graph(name: str, node_class: str = "", **inputs: object) -> dict:
    """An API-format graph, with some inputs of the first node of a class replaced."""
    content = json.loads((GRAPHS / f"{name}.api.json").read_text())
    for node in content.values():
        if node["class_type"] == node_class:
            node["inputs"].update(inputs)
            break
    return content


def run(server, content: dict, on_event=None):
    import comfy_server

    return asyncio.run(comfy_server.run_graph(server, content, on_event))


def get(server, path: str) -> tuple[int, str]:
    async def fetch() -> tuple[int, str]:
        async with aiohttp.ClientSession(server.url) as session, session.get(path) as reply:
            return reply.status, await reply.text(errors="replace")

    return asyncio.run(fetch())


def saved_picture(result) -> np.ndarray:
    [[file]] = result.images.values()
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def assert_same_picture(found: np.ndarray, expected: Image.Image) -> None:
    """Equal up to rounding to 8 bits, and no blank picture."""
    assert found.std() > 1
    difference = np.abs(found - np.asarray(expected).astype(int))
    print(f"\nlargest difference to the Python pipeline: {difference.max()} of 255")
    assert difference.max() <= 2


@pytest.mark.smoke
def test_text_to_image_equals_the_python_pipeline(server, nano):
    result = run(server, graph("text_to_image"))
    prompt = graph("text_to_image")["2"]["inputs"]["prompt"]
    expected = nano(prompt, generator=torch.Generator().manual_seed(7)).images[0]
    assert_same_picture(saved_picture(result), expected)
    assert result.previews > 0


def test_image_edit_equals_the_python_pipeline(server, nano):
    result = run(server, graph("image_edit"))
    edit, sampler = (graph("image_edit")[number]["inputs"] for number in ("3", "4"))
    picture = Image.open(SAMPLE).convert("RGB")
    expected = nano(
        edit["instruction"],
        picture,
        guidance_scale=sampler["guidance"],
        image_guidance_scale=sampler["image_guidance"],
        num_inference_steps=sampler["steps"],
        generator=torch.Generator().manual_seed(sampler["seed"]),
    ).images[0]
    assert_same_picture(saved_picture(result), expected)


def test_edit_without_a_mask_keeps_what_its_map_leaves(server, nano):
    """The graph of the demo against the pipeline: the same mask, and outside of it the source bit for bit."""
    result = run(server, graph("edit_without_a_mask"))
    source = np.asarray(Image.open(SAMPLE).convert("RGB")).astype(int)
    edited = np.asarray(Image.open(result.images["6"][0]).convert("RGB")).astype(int)
    instruction = graph("edit_without_a_mask")["3"]["inputs"]["instruction"]
    [mask] = nano.change_map(instruction, Image.open(SAMPLE)).masks
    outside = np.asarray(mask) == 0
    assert 0.3 < outside.mean() < 0.9
    assert (edited[outside] == source[outside]).all()
    assert np.abs(edited - source)[~outside].mean() > 5
    assert np.asarray(Image.open(result.images["5"][0])).std() > 10


def test_a_new_seed_reuses_model_and_conditions(server):
    run(server, graph("text_to_image", "TBACUniImageSampler", steps=2))
    cached = []

    def note(kind: str, data: dict) -> None:
        if kind == "execution_cached":
            cached.extend(data["nodes"])

    run(server, graph("text_to_image", "TBACUniImageSampler", steps=2, seed=8), note)
    assert {"1", "2", "3", "4"} <= set(cached) and "5" not in cached


def test_stock_ksampler_runs_on_the_model(server):
    content = graph("text_to_image")
    inputs = content["5"]["inputs"]
    kept = {name: inputs[name] for name in ("model", "positive", "negative", "seed")}
    stock = {"steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    content["5"] = {
        "class_type": "KSampler",
        "inputs": {**kept, **stock, "latent_image": inputs["latent"]},
    }
    assert saved_picture(run(server, content)).std() > 1


@pytest.mark.parametrize(
    ("name", "node_class", "inputs", "message"),
    [
        ("text_to_image", "TBACUniImageSampler", {"steps": 0}, "steps"),
        (
            "text_to_image",
            "TBACUniImageSampler",
            {"guidance": float("nan")},
            "guidance is nan; give a number",
        ),
        (
            "text_to_image",
            "TBACUniImageLoadModel",
            {"checkpoint": "absent"},
            "no model 'absent' in models/uniimage",
        ),
        ("text_to_image", "TBACUniImageEmptyLatent", {"batch_size": 0}, "batch_size"),
        ("image_edit", "LoadImage", {"image": "absent.png"}, "absent.png"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(server, name, node_class, inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(server, graph(name, node_class, **inputs))


def test_a_size_that_does_not_fit_is_one_sentence(server):
    message = f"width {SIDE + 1} is no positive multiple of {FACTOR}; use {SIDE} or {SIDE + FACTOR}"
    with pytest.raises(RuntimeError, match=message):
        run(server, graph("text_to_image", "TBACUniImageEmptyLatent", width=SIDE + 1))


def test_interrupt_stops_sampling_and_the_next_graph_runs(server):
    steps = []

    async def interrupt() -> None:
        async with aiohttp.ClientSession(server.url) as session:
            await session.post("/interrupt")

    def stop_at_first_step(kind: str, data: dict) -> None:
        if kind == "progress":
            steps.append(data["value"])
            if len(steps) == 1:
                asyncio.ensure_future(interrupt())

    result = run(server, graph("text_to_image", "TBACUniImageSampler", steps=1000), stop_at_first_step)
    assert result.interrupted and max(steps) < 1000
    assert not run(server, graph("text_to_image", "TBACUniImageSampler", steps=3)).interrupted


def test_pack_is_listed_documented_and_quick_to_import(server):
    _, body = get(server, "/object_info")
    nodes = {name: node for name, node in json.loads(body).items() if name.startswith("TBACUniImage")}
    assert set(nodes) == {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    for name, node in nodes.items():
        for group in ("required", "optional"):
            for label, (_, options) in node["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{label} has no tooltip"
        assert node["description"] and all(node["output_tooltips"])
        status, text = get(server, f"/extensions/{PACK}/docs/{name}.md")
        assert status == 200 and text.startswith("# ")
    seconds = re.search(rf"([\d.]+) seconds: .*{PACK}$", server.log.read_text(), re.MULTILINE).group(1)
    print(f"\nimport time in ComfyUI's report: {seconds} s")
    assert float(seconds) <= 0.3
