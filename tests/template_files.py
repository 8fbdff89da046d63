"""The templates as files: both forms, and what can be said of them without ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
API = Path(__file__).parent / "data" / "workflows_api"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
NOTES = ("MarkdownNote", "Note")
TITLE = 30  # height of a node's title, which stands above its position
FOLDED = 160  # about as wide as a folded node


def ui_form(name: str) -> dict:
    """The template as ComfyUI's page reads it."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def api_form(name: str) -> dict:
    """The same graph as the HTTP API takes it."""
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


def inputs_of(graph: dict) -> dict[str, tuple[str, dict]]:
    """Class and inputs of every node of an API graph; titles say nothing about what it does."""
    return {key: (node["class_type"], node["inputs"]) for key, node in graph.items()}


def to_api(workflow: dict) -> dict[str, tuple[str, dict]]:
    """Class and inputs of every node of a graph in UI form, as ComfyUI's page would send them."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    found = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values, inputs = list(node.get("widgets_values", [])), {}
        for slot in node["inputs"]:
            if "widget" in slot:
                inputs[slot["name"]] = values.pop(0)
                if values and values[0] in ("fixed", "increment", "decrement", "randomize"):
                    values.pop(0)  # what happens to the seed after a run, which the page does itself
            if slot["link"] is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        inputs.pop("upload", None)  # a button
        found[str(node["id"])] = node["type"], inputs
    return found


def unfolded(path: Path, **given: list) -> tuple[dict[str, dict], list]:
    """A blueprint's nodes in API format with the values that it shows, and where its picture comes from.

    ``given``: what is connected to its inputs; an input that shows no value and has none stays open.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    [node], [subgraph] = content["nodes"], content["definitions"]["subgraphs"]
    shown = [slot["name"] for slot in node["inputs"] if slot.get("widget")]
    values = {**dict(zip(shown, node["widgets_values"], strict=True)), **given}
    names = [slot["name"] for slot in subgraph["inputs"]]
    links = [[link["id"], link["origin_id"], link["origin_slot"]] for link in subgraph["links"]]
    graph = {}
    for key, (kind, inputs) in to_api({"nodes": subgraph["nodes"], "links": links}).items():
        for name, value in [*inputs.items()]:
            if isinstance(value, list) and value[0] == "-10":  # the subgraph's own inputs
                inputs[name] = values.get(names[value[1]])
        graph[key] = {"class_type": kind, "inputs": {k: v for k, v in inputs.items() if v is not None}}
    [picture] = [link for link in subgraph["links"] if link["target_id"] == -20]  # its output
    return graph, [str(picture["origin_id"]), picture["origin_slot"]]


def box(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    if node["flags"].get("collapsed"):
        width, height = FOLDED, 0
    return x, y - TITLE, x + width, y + height


def overlaps(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes share a place."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether the first box lies in the second."""
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]
