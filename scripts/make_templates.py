"""Write the templates: ``workflows/NAME.json`` for the UI and the same graph in API format for the tests.

ComfyUI's own page builds both, so they are what it would save; run it after a node or a template has changed.
``make_thumbnails.py`` then makes the pictures. Names on the command line limit it to these templates.
"""

from __future__ import annotations

import json
import sys
import tempfile
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
PLACE = """async ([graph, nodes, note, groups, drops]) => {
    const TOP = 120, GAP = 80, TITLE = 30, LINE = 56, app = window.app
    await app.loadApiJson(graph, 'template')
    app.graph._groups.slice().forEach((g) => app.graph.remove(g))
    const columns = []
    const put = (node, column, [width, height], collapsed) => {
        const least = node.computeSize()
        node.setSize([Math.max(least[0], width, 240), Math.max(least[1], height)])
        node.flags.collapsed = collapsed || undefined
        ;(columns[column] ??= []).push(node)
    }
    nodes.forEach(({column, size, collapsed}, i) => {
        const node = app.graph.getNodeById(i + 1)
        put(node, column, size, collapsed)
        if (node.type === 'PrimitiveInt') // its random numbers may be negative, which no seed can be
            node.widgets.find((w) => w.name === 'control_after_generate').value = 'increment'
    })
    const about = LiteGraph.createNode('MarkdownNote')
    app.graph.add(about)
    about.title = 'About'
    about.widgets[0].value = note.text
    put(about, note.column, note.size)
    const boxes = []
    let x = 40
    for (const [i, column] of columns.entries()) {
        const width = Math.max(...column.map((n) => n.size[0]))
        const top = TOP + (drops[i] ?? 0)
        let y = top
        for (const node of column) {
            node.pos = [x, y]
            node.setSize([width, node.size[1]])
            y += (node.flags.collapsed ? 14 : node.size[1]) + TITLE + 22
        }
        boxes.push([x, width, y - TITLE - 22, top])
        x += width + GAP
    }
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
}"""


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
    nodes = [{"column": n.column, "size": n.size, "collapsed": n.collapsed} for n in template.nodes]
    note = {
        "text": f"{NOTES[name]}\n\n{OTHER_MODEL}",
        "column": template.note_column,
        "size": template.note_size,
    }
    arguments = [short_graph(template), nodes, note, template.groups, template.drops]
    ui, api = json.loads(page.evaluate(PLACE, arguments))
    ui["id"] = "00000000-0000-0000-0000-000000000000"  # ComfyUI makes a new one for every copy
    ui["extra"] = {}
    for node in ui["nodes"]:
        node["properties"] = {}  # versions of this machine
    for node in api.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # what the page shows, not what it sends
    return ui, api


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
