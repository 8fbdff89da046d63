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
OPTIONAL = "tbac_uniimage_optional"  # the property of a node that ComfyUIs without it leave out
TITLE = 30  # height of a node's title, which stands above its position
FOLDED = 160  # about as wide as a folded node


def ui_form(name: str) -> dict:
    """The template as ComfyUI's page reads it."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def api_form(name: str) -> dict:
    """The same graph as the HTTP API takes it."""
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


def optional_nodes(name: str) -> dict[str, str]:
    """Id and class of the nodes that ComfyUIs without them leave out. The API form has none of them."""
    return {str(n["id"]): n["type"] for n in ui_form(name)["nodes"] if n["properties"].get(OPTIONAL)}


def inputs_of(graph: dict) -> dict[str, tuple[str, dict]]:
    """Class and inputs of every node of an API graph; titles say nothing about what it does."""
    return {key: (node["class_type"], node["inputs"]) for key, node in graph.items()}


def to_api(workflow: dict) -> dict[str, tuple[str, dict]]:
    """Class and inputs of every node of a graph in UI form, as ComfyUI's page would send them.

    A node of a subgraph has the number of what stands for it before its own: ``8:2``.
    """
    subgraphs = {part["id"]: part for part in workflow.get("definitions", {}).get("subgraphs", [])}
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    found, handed_out = {}, {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node["properties"].get(OPTIONAL):
            continue
        inputs = set_or_linked(node, sources)
        if node["type"] in subgraphs:
            inner, outputs = opened(node, subgraphs[node["type"]], inputs)
            found |= inner
            handed_out |= outputs
        else:
            found[str(node["id"])] = node["type"], inputs
    for _, inputs in found.values():
        for name, value in inputs.items():
            if isinstance(value, list):
                inputs[name] = handed_out.get(tuple(value), value)
    return found


def set_or_linked(node: dict, sources: dict[int, list]) -> dict[str, object]:
    """The inputs of a node in UI form: values, and where links come from."""
    values, inputs = list(node.get("widgets_values", [])), {}
    for slot in node["inputs"]:
        if "widget" in slot:
            inputs[slot["name"]] = values.pop(0)
            if values and values[0] in ("fixed", "increment", "decrement", "randomize"):
                values.pop(0)  # what happens to the seed after a run, which the page does itself
        if slot["link"] is not None:
            inputs[slot["name"]] = sources[slot["link"]]
    inputs.pop("upload", None)  # a button
    return inputs


def opened(node: dict, subgraph: dict, inputs: dict) -> tuple[dict[str, tuple[str, dict]], dict]:
    """The nodes that ``node`` stands for, with what is set on it, and where its outputs come from."""
    names = [slot["name"] for slot in subgraph["inputs"]]
    links = [[link["id"], link["origin_id"], link["origin_slot"]] for link in subgraph["links"]]
    found = {}
    for key, (kind, inner) in to_api({"nodes": subgraph["nodes"], "links": links}).items():
        for name, value in inner.items():
            if isinstance(value, list):
                outside = value[0] == "-10"  # the subgraph's own inputs
                inner[name] = (
                    inputs.get(names[value[1]]) if outside else [f"{node['id']}:{value[0]}", value[1]]
                )
        found[f"{node['id']}:{key}"] = kind, {k: v for k, v in inner.items() if v is not None}
    outputs = {
        (str(node["id"]), link["target_slot"]): [f"{node['id']}:{link['origin_id']}", link["origin_slot"]]
        for link in subgraph["links"]
        if link["target_id"] == -20  # the subgraph's own outputs
    }
    return found, outputs


def unfolded(path: Path, **given: list) -> tuple[dict[str, dict], list]:
    """A blueprint's nodes in API format with the values that it shows, and where its picture comes from.

    ``given``: what is connected to its inputs; an input that shows no value and has none stays open.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    [node], [subgraph] = content["nodes"], content["definitions"]["subgraphs"]
    found, outputs = opened(node, subgraph, set_or_linked(node, {}) | given)
    [picture] = outputs.values()
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in found.items()}, picture


def every_node(workflow: dict) -> list[dict]:
    """Nodes of a graph in UI form, those of its subgraphs, too."""
    parts = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return [node for part in parts for node in part["nodes"]]


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
