"""Write ``locales/en/nodeDefs.json`` from the nodes' schemas; the Chinese file beside it is written by hand.

Run it after a name or tooltip has changed, and change ``locales/zh`` with it.
"""

from __future__ import annotations

import asyncio
import json
import sys

import comfy_tree

FILE = comfy_tree.ROOT / "locales" / "en" / "nodeDefs.json"


def definitions() -> dict[str, dict]:
    """Names and tooltips of every node, as ComfyUI's page looks them up."""
    from tbac_uniimage.nodes import LadderExtension

    found = {}
    for node in asyncio.run(LadderExtension().get_node_list()):
        schema = node.GET_SCHEMA()
        found[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {item.id: {"name": item.id, "tooltip": item.tooltip} for item in schema.inputs},
            "outputs": {
                str(number): {"name": item.display_name, "tooltip": item.tooltip}
                for number, item in enumerate(schema.outputs)
            },
        }
    return found


def main() -> None:
    """Ask the nodes and write what they say."""
    sys.path.insert(0, str(comfy_tree.find_tree() or comfy_tree.fetch_tree()))
    from comfy.cli_args import args

    args.cpu = True
    FILE.write_text(json.dumps(definitions(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
