"""Write ``subgraphs``: blueprints, each a whole job as one node, which ComfyUI lists among its nodes.

ComfyUI's page puts the nodes into a subgraph and says what it would save, as in ``make_templates.py``.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import comfy_browser
import comfy_server
import comfy_tree
from make_templates import short_graph, write_json
from template_graphs import (
    DOG_AND_ROCKET,
    Node,
    Template,
    decode,
    edit,
    empty,
    encode,
    load,
    picture,
    sampler,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

PLACE = comfy_tree.ROOT / "subgraphs"
FOLD = """async ([graph, title, outside, shown]) => {
    const app = window.app
    await app.loadApiJson(graph, 'blueprint')
    app.graph._groups.slice().forEach((g) => app.graph.remove(g))
    const inner = app.graph._nodes.filter((n) => !outside.includes(Number(n.id)))
    const {subgraph, node} = app.graph.convertToSubgraph(new Set(inner))
    app.graph._nodes.filter((n) => n !== node).forEach((n) => app.graph.remove(n))
    subgraph.name = node.title = title
    for (const [id, name] of shown) {
        const owner = subgraph.getNodeById(id)
        const slot = owner.inputs.find((input) => input.name === name)
        subgraph.addInput(name, slot.type).connect(slot, owner)
    }
    node.pos = [100, 100]
    node.setSize(node.computeSize())
    return JSON.stringify(app.graph.serialize())
}"""


@dataclass
class Blueprint:
    """Nodes, by number from 1 those that stay outside as its neighbours, and the inputs that it shows."""

    nodes: list[Node]
    outside: list[int]
    shown: list[tuple[int, str]]


BLUEPRINTS = {
    "Text to Image (TBAC-UniImage)": Blueprint(
        [
            load(),
            encode(1, DOG_AND_ROCKET),
            empty(1),
            sampler(2, ((2, 0), (2, 1)), (3, 0)),
            decode(3, (4, 0)),
            Node("PreviewImage", 4, {"images": (5, 0)}),
        ],
        outside=[6],
        shown=[
            (2, "prompt"),
            (1, "checkpoint"),
            (3, "width"),
            (3, "height"),
            (4, "seed"),
            (4, "steps"),
            (4, "guidance"),
        ],
    ),
    "Edit by Instruction (TBAC-UniImage)": Blueprint(
        [
            load(),
            picture(0, "tbac_uniimage_dog_and_rocket.png"),
            edit(1, (2, 0), "replace the rocket with a mushroom"),
            Node("PreviewImage", 2, {"images": (3, 0)}),
        ],
        outside=[2, 4],
        shown=[
            (3, "mask"),
            (3, "instruction"),
            (1, "checkpoint"),
            (3, "seed"),
            (3, "steps"),
            (3, "guidance"),
            (3, "image_guidance"),
        ],
    ),
}


def fold(page: Page, title: str, blueprint: Blueprint) -> dict:
    """The blueprint as ComfyUI's page saves it, with ids that stay the same."""
    graph = short_graph(Template(blueprint.nodes, []))
    text = page.evaluate(FOLD, [graph, title, blueprint.outside, blueprint.shown])
    content = json.loads(text)
    [subgraph] = content["definitions"]["subgraphs"]
    number = list(BLUEPRINTS).index(title) + 1
    names = [content["id"], subgraph["id"]]
    for i, name in enumerate(names):
        text = text.replace(name, f"00000000-0000-0000-{i:04}-{number:012}")
    slots = [slot["id"] for part in ("inputs", "outputs") for slot in subgraph[part]]
    for i, name in enumerate(slots):
        text = text.replace(name, f"00000000-0000-0001-{i:04}-{number:012}")
    content = json.loads(text)
    content["extra"] = {}
    [node] = content["nodes"]
    # the page adds the widgets of seeds a second time
    node["properties"]["proxyWidgets"] = [w for w in node["properties"]["proxyWidgets"] if w[0] == "-1"]
    [subgraph] = content["definitions"]["subgraphs"]
    for node in subgraph["nodes"]:
        node["properties"] = {}  # versions of this machine
    return content


def main() -> None:
    """Fold every blueprint on one page."""
    comfy_server.end_on_signals()
    PLACE.mkdir(exist_ok=True)
    tree = comfy_tree.find_tree() or comfy_tree.fetch_tree()
    with tempfile.TemporaryDirectory() as scratch:
        comfy_browser.prepare_user(Path(scratch))
        with (
            comfy_server.running_server(tree, Path(scratch)) as server,
            comfy_browser.open_page(server) as page,
        ):
            for title, blueprint in BLUEPRINTS.items():
                write_json(PLACE / f"{title}.json", fold(page, title, blueprint))
                print(title)


if __name__ == "__main__":
    main()
