"""Every template: its files, that both forms are one graph, and what it draws in real ComfyUI."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image
from template_files import (
    BLUEPRINTS,
    NAMES,
    NOTES,
    ROOT,
    WORKFLOWS,
    api_form,
    box,
    every_node,
    inputs_of,
    inside,
    overlaps,
    to_api,
    ui_form,
    unfolded,
)

PACK = "tbac-uniimage"
BACKGROUNDS = {"blue": (52, 112, 222), "white": (250, 250, 250), "pink": (247, 160, 196)}


@dataclass
class Expected:
    """What a template leaves: pictures in all, their size, and the colour that its text asks for."""

    pictures: int
    size: tuple[int, int] | None
    background: str | None
    texts: list[str] = field(default_factory=list)


EXPECTED = {
    "text_to_image": Expected(1, (512, 512), "blue"),
    "edit_by_instruction": Expected(1, (256, 256), "blue"),
    "masked_edit": Expected(1, (256, 256), "blue"),
    "edit_without_a_mask": Expected(1, (256, 256), "blue"),
    "small_thing": Expected(1, (1536, 1024), "blue"),
    "two_image_composition": Expected(1, (512, 512), "pink"),
    "structure_and_style": Expected(1, (512, 512), None),
    "batch_edit_of_a_folder": Expected(4, (256, 256), "pink"),
    "native_ksampler": Expected(1, (512, 512), "white"),
    "four_steps": Expected(1, (512, 512), "blue"),
    "ask_then_edit": Expected(1, (256, 256), "pink", ["cat", "with a rocket"]),
    "ladder_probe": Expected(2, None, None),
    "edit_in_parts": Expected(1, (512, 512), "pink"),
    "stored_conditions": Expected(1, (512, 512), "blue", ["a dog to the left of a rocket"]),
}


def test_every_template_is_known_here():
    assert set(NAMES) == set(EXPECTED)
    assert {path.stem for path in WORKFLOWS.glob("*.jpg")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_the_same_graph(name):
    assert to_api(ui_form(name)) == inputs_of(api_form(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_to_change_and_the_embedded_model_is_the_default(name):
    nodes = ui_form(name)["nodes"]
    [note] = [node for node in nodes if node["type"] in NOTES]
    assert "**Change**" in note["widgets_values"][0] and "**Another model**" in note["widgets_values"][0]
    assert "`" not in note["widgets_values"][0], "Nodes 2.0 draws inline code dark on dark"
    [load] = [node for node in every_node(ui_form(name)) if node["type"] == "TBACUniImageLoadModel"]
    assert load["widgets_values"][0] == "nano (embedded)"


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap_and_lie_in_their_groups(name):
    workflow = ui_form(name)
    for part in (*workflow.get("definitions", {}).get("subgraphs", []), workflow):
        boxes = {node["id"]: box(node) for node in part["nodes"]}
        for (a, first), (b, second) in itertools.combinations(boxes.items(), 2):
            assert not overlaps(first, second), f"nodes {a} and {b}"
    groups = [
        (x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in workflow["groups"])
    ]
    for first, second in itertools.combinations(groups, 2):
        assert not overlaps(first, second)
    for number, place in boxes.items():
        assert any(inside(place, group) for group in groups), f"node {number} is in no group"


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail_is_a_square_and_small(name):
    path = WORKFLOWS / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.size == (512, 512) and np.asarray(picture).std() > 10
    assert path.stat().st_size < 60_000


@pytest.fixture(scope="module")
def server(comfy_tree, tmp_path_factory) -> Iterator:
    """A server with empty folders of its own."""
    import comfy_server

    with comfy_server.running_server(comfy_tree, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


def run(server, graph: dict) -> tuple[list[Path], list[str]]:
    """Pictures that the graph's Save Image nodes saved, and texts that its nodes showed."""
    import comfy_server

    texts = []

    def listen(kind: str, data: dict) -> None:
        if kind == "executed":
            texts.extend((data.get("output") or {}).get("text", []))

    result = asyncio.run(comfy_server.run_graph(server, graph, listen))
    saving = [key for key, node in graph.items() if node["class_type"] == "SaveImage"]
    return [path for key in saving for path in result.images[key]], texts


def border(picture: np.ndarray) -> np.ndarray:
    """The colour at the edges of a picture: the background of a scene."""
    edges = [picture[:4], picture[-4:], picture[:, :4].swapaxes(0, 1), picture[:, -4:].swapaxes(0, 1)]
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)


@pytest.mark.comfy
@pytest.mark.slow
def test_server_lists_and_serves_every_template(server):
    async def ask() -> list[str]:
        async with aiohttp.ClientSession(server.url) as session:
            async with session.get("/workflow_templates") as reply:
                listed = (await reply.json())[PACK]
            for name in listed:
                for kind in ("json", "jpg"):
                    async with session.get(f"/api/workflow_templates/{PACK}/{name}.{kind}") as reply:
                        assert reply.status == 200
        return listed

    assert sorted(asyncio.run(ask())) == NAMES


@pytest.mark.comfy
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_template_draws_what_it_says(server, name):
    expected = EXPECTED[name]
    paths, texts = run(server, api_form(name))
    pictures = [np.asarray(Image.open(path).convert("RGB")).astype(int) for path in paths]
    assert len(pictures) == expected.pictures
    for picture in pictures:
        assert picture.std() > 10, "blank"
        if expected.size is not None:
            assert picture.shape == (*expected.size[::-1], 3)
        if expected.background is not None:
            assert np.abs(border(picture) - BACKGROUNDS[expected.background]).max() < 40
    for wanted in expected.texts:
        assert any(wanted in text for text in texts), texts


@pytest.mark.comfy
@pytest.mark.slow
def test_blueprints_are_listed_and_draw(server):
    async def ask() -> list[str]:
        async with aiohttp.ClientSession(server.url) as session:
            async with session.get("/global_subgraphs") as reply:
                return [entry["name"] for entry in (await reply.json()).values()]

    assert set(asyncio.run(ask())) >= {path.stem for path in BLUEPRINTS} and len(BLUEPRINTS) == 2
    source = {"class_type": "LoadImage", "inputs": {"image": "tbac_uniimage_dog_and_rocket.png"}}
    for path in BLUEPRINTS:
        graph, picture = unfolded(path, image=["source", 0])
        save = {"class_type": "SaveImage", "inputs": {"images": picture, "filename_prefix": "blueprint"}}
        [saved], _ = run(server, {**graph, "source": source, "save": save})
        drawn = np.asarray(Image.open(saved).convert("RGB")).astype(int)
        assert drawn.std() > 10 and np.abs(border(drawn) - BACKGROUNDS["blue"]).max() < 40


@pytest.mark.comfy
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sample", "least", "most"),
    [
        ("masked_edit", "masked", 0.5, 0.95),
        ("edit_without_a_mask", "dog_and_rocket", 0.5, 0.95),
        ("small_thing", "small_thing", 0.98, 0.99),
    ],
)
def test_masked_edits_keep_the_rest_to_the_bit(server, name, sample, least, most):
    [path], _ = run(server, api_form(name))
    source = Image.open(ROOT / "assets" / "samples" / f"tbac_uniimage_{sample}.png")
    source, edited = (np.asarray(picture.convert("RGBA")) for picture in (source, Image.open(path)))
    kept = source[..., 3] == 255
    if kept.all():  # where the model found it
        kept = (edited[..., :3] == source[..., :3]).all(-1)
    assert least < kept.mean() < most
    assert (edited[kept] == source[kept])[:, :3].all()
    assert np.abs(edited[~kept].astype(int) - source[~kept])[:, :3].mean() > 5


@pytest.mark.comfy
@pytest.mark.slow
def test_mix_is_neither_of_its_prompts(server):
    graph = api_form("structure_and_style")
    drawn = {}
    [mixer] = [node for node in graph.values() if node["class_type"] == "TBACUniImageRungMix"]
    for crossover in (0.0, mixer["inputs"]["crossover"], 1.0):
        mixer["inputs"]["crossover"] = crossover
        [path], _ = run(server, graph)
        drawn[crossover] = np.asarray(Image.open(path).convert("RGB")).astype(int)
    style, mix, structure = drawn.values()
    for one, other in itertools.combinations((style, mix, structure), 2):
        assert np.abs(one - other).mean() > 3
