"""Write the templates: ``workflows/NAME.json`` for the UI and the same graph in API format for the tests.

ComfyUI's own page builds both, so they are what it would save; run it after a node or a template has changed.
``make_thumbnails.py`` then makes the pictures. Names on the command line limit it to these templates.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import comfy_browser
import comfy_server
import comfy_tree
from template_graphs import TEMPLATES, Template
from template_notes import NOTES, OTHER_MODEL

if TYPE_CHECKING:
    from playwright.sync_api import Page

WORKFLOWS = comfy_tree.ROOT / "workflows"
GRAPHS = comfy_tree.ROOT / "tests" / "data" / "workflows_api"
# what the newest ComfyUI says of nodes that the pinned one lacks: the page writes them all the same
NEWER = {
    "ImageCompare": {
        "name": "ImageCompare",
        "display_name": "Compare Images",
        "category": "image",
        "description": "",
        "python_module": "nodes",
        "input": {
            "required": {"compare_view": ["IMAGECOMPARE", {}]},
            "optional": {"image_a": ["IMAGE", {}], "image_b": ["IMAGE", {}]},
        },
        "output": [],
        "output_is_list": [],
        "output_name": [],
        "output_node": True,
    }
}
OPTIONAL = "tbac_uniimage_optional"  # web/optional_nodes.js acts on it
# nodes of a graph become one that stands for them
FOLD = """(graph, {title, inside, shown, outputs, seed}) => {
    const {subgraph, node} = graph.convertToSubgraph(new Set(inside.map((id) => graph.getNodeById(id))))
    subgraph.name = node.title = title
    for (const [id, name, label] of shown) {
        const owner = subgraph.getNodeById(id)
        const slot = owner.inputs.find((input) => input.name === name)
        subgraph.addInput(label, slot.type).connect(slot, owner)
    }
    for (const output of subgraph.outputs) {
        const source = subgraph.links.get(output.linkIds[0]).origin_id
        if (source in outputs) subgraph.renameOutput(output, outputs[source])
    }
    // the page adds widgets of its own choice. A seed is the inner widget itself: only so older pages change
    // it after a run; newer ones make an input of it when they read it
    const inputs = node.properties.proxyWidgets.filter(([owner]) => owner === '-1')
    const counted = seed ? [seed[1], 'control_after_generate'].map((name) => [String(seed[0]), name]) : []
    node.properties.proxyWidgets = [...inputs, ...counted]
    return {subgraph, node}
}"""
PLACE = """async ([graph, nodes, note, groups, drops, newer, folded]) => {
    const TOP = 120, GAP = 80, TITLE = 30, LINE = 56, app = window.app
    for (const [type, definition] of Object.entries(newer))
        if (!(type in LiteGraph.registered_node_types)) await app.registerNodeDef(type, definition)
    await app.loadApiJson(graph, 'template')
    app.graph._groups.slice().forEach((g) => app.graph.remove(g))
    const inside = folded?.inside ?? []
    const {subgraph, node: folder} = folded ? (FOLD)(app.graph, folded) : {}
    const put = (columns, node, {column, size: [width, height], collapsed, above}) => {
        const least = node.computeSize()
        node.setSize([Math.max(least[0], width, 240), Math.max(least[1], height)])
        node.flags.collapsed = collapsed || undefined
        columns[column] ??= []
        above ? columns[column].unshift(node) : columns[column].push(node)
    }
    // [left, width, bottom, top] of each column
    const arrange = (columns, drops) => {
        let x = 40
        return columns.map((column, i) => {
            const width = Math.max(...column.map((n) => n.size[0]))
            const left = x, top = TOP + (drops[i] ?? 0)
            let y = top
            for (const node of column) {
                node.pos = [x, y]
                node.setSize([width, node.size[1]])
                y += (node.flags.collapsed ? 14 : node.size[1]) + TITLE + 22
            }
            x += width + GAP
            return [left, width, y - TITLE - 22, top]
        })
    }
    const outer = [], inner = []
    nodes.forEach((place, i) => {
        const within = inside.includes(i + 1)
        const node = (within ? subgraph : app.graph).getNodeById(i + 1)
        put(within ? inner : outer, node, place)
        if (node.type === 'PrimitiveInt') // its random numbers may be negative, which no seed can be
            node.widgets.find((w) => w.name === 'control_after_generate').value = 'increment'
    })
    if (folded) {
        put(outer, folder, folded)
        const boxes = arrange(inner, folded.drops), [right, width] = boxes.at(-1)
        subgraph.inputNode.pos = [-180, boxes[0][2] + GAP / 2] // its links run below the first column
        subgraph.outputNode.pos = [right + width + GAP, TOP]
    }
    const about = LiteGraph.createNode('MarkdownNote')
    app.graph.add(about)
    about.title = 'About'
    about.widgets[0].value = note.text
    put(outer, about, note)
    const boxes = arrange(outer, drops)
    for (const [title, first, last] of groups) {
        const [left] = boxes[first], [right, width] = boxes[last]
        const bottom = Math.max(...boxes.slice(first, last + 1).map((b) => b[2]))
        const top = Math.min(...boxes.slice(first, last + 1).map((b) => b[3])) - TITLE - LINE
        const group = new LiteGraph.LGraphGroup(title)
        group.pos = [left - 16, top]
        group.size = [right + width - left + 32, bottom - top + 16]
        app.graph.add(group)
    }
    const prompt = await app.graphToPrompt()
    return JSON.stringify([app.graph.serialize(), prompt.output])
}""".replace("FOLD", FOLD)


def short_graph(template: Template) -> dict:
    """The graph in API format, with what the definition says and nothing else."""
    return {
        str(number): {
            "class_type": node.kind,
            "_meta": {"title": node.title} if node.title else {},
            "inputs": {
                name: [str(value[0]), value[1]] if isinstance(value, tuple) else value
                for name, value in node.inputs.items()
            },
        }
        for number, node in enumerate(template.nodes, 1)
    }


def build(page: Page, name: str) -> tuple[dict, dict]:
    """UI form and API form, as ComfyUI's page makes them."""
    template = TEMPLATES[name]
    placed = ("column", "size", "collapsed", "above")
    nodes = [{name: getattr(node, name) for name in placed} for node in template.nodes]
    note = {
        "text": f"{NOTES[name]}\n\n{OTHER_MODEL}",
        "column": template.note_column,
        "size": template.note_size,
    }
    folded = template.folded and asdict(template.folded)
    arguments = [short_graph(template), nodes, note, template.groups, template.drops, NEWER, folded]
    ui, api = json.loads(page.evaluate(PLACE, arguments))
    ui = with_fixed_ids(ui, name)
    ui["id"] = "00000000-0000-0000-0000-000000000000"  # ComfyUI makes a new one for every copy
    ui["extra"] = {}
    optional = {str(number) for number, node in enumerate(template.nodes, 1) if node.optional}
    for node in ui["nodes"]:
        if str(node["id"]) in optional:
            node["properties"] = {OPTIONAL: True}
    api = {key: node for key, node in api.items() if key not in optional}  # what any ComfyUI runs
    for node in api.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # what the page shows, not what it sends
    return ui, api


def with_fixed_ids(graph: dict, name: str) -> dict:
    """A saved graph without what differs from machine to machine: versions, and ids made anew each time."""
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    made = [graph["id"], *(part["id"] for s in subgraphs for part in (s, *s["inputs"], *s["outputs"]))]
    text = json.dumps(graph)
    for i, old in enumerate(made):
        text = text.replace(old, str(uuid.uuid5(uuid.NAMESPACE_URL, f"tbac-uniimage/{name}/{i}")))
    graph = json.loads(text)
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    for node in (node for part in (graph, *subgraphs) for node in part["nodes"]):
        shown = node["properties"].get("proxyWidgets")
        node["properties"] = {"proxyWidgets": shown} if shown else {}
    return graph


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Build every template on one page."""
    comfy_server.end_on_signals()
    names = sys.argv[1:] or list(TEMPLATES)
    GRAPHS.mkdir(parents=True, exist_ok=True)
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    with tempfile.TemporaryDirectory() as scratch:
        comfy_browser.prepare_user(Path(scratch))
        with (
            comfy_server.running_server(tree, Path(scratch)) as server,
            comfy_browser.open_page(server) as page,
        ):
            for name in names:
                ui, api = build(page, name)
                write_json(WORKFLOWS / f"{name}.json", ui)
                write_json(GRAPHS / f"{name}.json", api)
                print(f"{name}: {len(api)} nodes")


if __name__ == "__main__":
    main()
