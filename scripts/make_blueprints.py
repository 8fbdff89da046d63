"""Write ``subgraphs``: blueprints, each a whole job as one node, which ComfyUI lists among its nodes.

ComfyUI's page puts the nodes into a subgraph and says what it would save, as in ``make_templates.py``.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import comfy_browser
import comfy_server
import comfy_tree
from make_templates import FOLD, short_graph, with_fixed_ids, write_json
from template_graphs import (
    TEXT_TO_PICTURE,
    TEXT_TO_PICTURE_FOLD,
    Fold,
    Node,
    Template,
    edit,
    load,
    picture,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

PLACE = comfy_tree.ROOT / "subgraphs"
# what is not folded was there as a neighbour of the inputs and outputs
FOLD_ALL = """async ([graph, folded]) => {
    const app = window.app
    await app.loadApiJson(graph, 'blueprint')
    app.graph._groups.slice().forEach((g) => app.graph.remove(g))
    const {node} = (FOLD)(app.graph, folded)
    app.graph._nodes.filter((n) => n !== node).forEach((n) => app.graph.remove(n))
    node.pos = [100, 100]
    node.setSize(node.computeSize())
    return JSON.stringify(app.graph.serialize())
}""".replace("FOLD", FOLD)

TEXT_TO_IMAGE = Template(
    [
        *TEXT_TO_PICTURE,
        Node("PreviewImage", 4, {"images": (5, 0)}),
    ],
    [],
    folded=TEXT_TO_PICTURE_FOLD,
)
EDIT_BY_INSTRUCTION = Template(
    [
        load(),
        picture(0, "tbac_uniimage_dog_and_rocket.png"),
        edit(1, (2, 0), "replace the rocket with a mushroom"),
        Node("PreviewImage", 2, {"images": (3, 0)}),
    ],
    [],
    folded=Fold(
        "Edit by Instruction (TBAC-UniImage)",
        [1, 3],
        [
            (3, "mask", "mask"),
            (3, "instruction", "instruction"),
            (1, "checkpoint", "checkpoint"),
            (3, "steps", "steps"),
            (3, "guidance", "guidance"),
            (3, "image_guidance", "image_guidance"),
        ],
        seed=(3, "seed"),
    ),
)


def fold(page: Page, blueprint: Template) -> dict:
    """The blueprint as ComfyUI's page saves it."""
    content = json.loads(page.evaluate(FOLD_ALL, [short_graph(blueprint), asdict(blueprint.folded)]))
    return {**with_fixed_ids(content, blueprint.folded.title), "extra": {}}


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
            for blueprint in (TEXT_TO_IMAGE, EDIT_BY_INSTRUCTION):
                write_json(PLACE / f"{blueprint.folded.title}.json", fold(page, blueprint))
                print(blueprint.folded.title)


if __name__ == "__main__":
    main()
