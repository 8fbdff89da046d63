"""Help pages and names in both languages: complete, without leftovers, served, and seen by the page."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import aiohttp
import pytest
from template_files import ROOT

DOCS = ROOT / "web" / "docs"
LOCALES = ROOT / "locales"
LANGUAGES = ("en", "zh")
PACK = "tbac-uniimage"
PLAIN = {
    "model",
    "mllm",
    "vae",
    "image",
    "image_2",
    "image_3",
    "image_4",
    "positive",
    "negative",
    "seed",
    "steps",
}


@pytest.fixture(scope="module")
def schemas(comfy) -> dict:
    """The nodes' real schemas."""
    from tbac_uniimage.nodes import LadderExtension

    return {
        node.GET_SCHEMA().node_id: node.GET_SCHEMA()
        for node in asyncio.run(LadderExtension().get_node_list())
    }


def names(language: str) -> dict:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def page(node: str, language: str) -> str:
    path = DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"
    return path.read_text(encoding="utf-8")


@pytest.mark.comfy
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_and_tooltip_is_there_and_no_other(schemas, language):
    found = names(language)
    assert set(found) == set(schemas)
    for node, schema in schemas.items():
        assert set(found[node]) == {"display_name", "description", "inputs", "outputs"}
        assert set(found[node]["inputs"]) == {item.id for item in schema.inputs}
        assert set(found[node]["outputs"]) == {str(number) for number in range(len(schema.outputs))}
        for item in [*found[node]["inputs"].values(), *found[node]["outputs"].values()]:
            assert set(item) == {"name", "tooltip"} and all(item.values()), node


@pytest.mark.comfy
def test_english_names_are_those_of_the_schemas(comfy):
    import make_locales

    assert names("en") == make_locales.definitions(), "run scripts/make_locales.py and adapt locales/zh"


def test_chinese_is_chinese():
    for node, content in names("zh").items():
        texts = [content["description"], *(i["tooltip"] for i in content["inputs"].values())]
        texts += [o["tooltip"] for o in content["outputs"].values()]
        for text in texts:
            assert re.search("[\u4e00-\u9fff]", text), (node, text)


@pytest.mark.comfy
@pytest.mark.parametrize("language", LANGUAGES)
def test_own_types_have_names(schemas, language):
    types = {item.get_io_type() for s in schemas.values() for item in [*s.inputs, *s.outputs]}
    own = {name for name in types if name.startswith("TBAC_UNIIMAGE_")}
    main = json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))
    assert set(main["dataTypes"]) == own
    assert set(main["nodeCategories"]) == {s.category for s in schemas.values()}


@pytest.mark.comfy
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_page_that_names_what_it_takes(schemas, language):
    files = DOCS.glob("*.md") if language == "en" else DOCS.glob(f"*/{language}.md")
    assert {path.stem if language == "en" else path.parent.name for path in files} == set(schemas)
    for node, schema in schemas.items():
        text = page(node, language)
        assert text.startswith(f"# {names(language)[node]['display_name']}\n")
        wanted = {item.id for item in schema.inputs} | {item.display_name for item in schema.outputs}
        labels = names(language)[node]["inputs"]
        missing = [
            n for n in wanted - PLAIN if n not in text and labels.get(n, {}).get("name", n) not in text
        ]
        assert not missing, f"{node} ({language})"


@pytest.fixture(scope="module")
def server(comfy_tree, tmp_path_factory) -> Iterator:
    """A server with empty folders of its own."""
    import comfy_server

    with comfy_server.running_server(comfy_tree, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.mark.comfy
@pytest.mark.slow
def test_server_hands_out_pages_and_names(server):
    async def ask() -> dict:
        async with aiohttp.ClientSession(server.url) as session:
            for node in names("en"):
                for path, language in ((f"{node}.md", "en"), (f"{node}/zh.md", "zh")):
                    async with session.get(f"/extensions/{PACK}/docs/{path}") as reply:
                        assert reply.status == 200
                        assert await reply.text(encoding="utf-8") == page(node, language)
            async with session.get("/i18n") as reply:
                return await reply.json()

    served = asyncio.run(ask())
    for language in LANGUAGES:
        own = {node: text for node, text in served[language]["nodeDefs"].items() if node in names(language)}
        assert own == names(language)
        assert "TBAC_UNIIMAGE_MLLM" in served[language]["dataTypes"]


@pytest.mark.comfy
def test_the_document_of_nodes_shows_every_node_with_what_it_takes_and_gives(schemas):
    document = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in document.split("\n## ")[1:])
    assert set(sections) - {"Recipes to try first", "With ComfyUI's own nodes"} == {
        s.display_name for s in schemas.values()
    }
    for node, schema in schemas.items():
        section = sections[schema.display_name]
        assert f"images/nodes/{node}.jpg" in section
        took, gave = section.split("- In:")[1].split("- Out:")
        wanted = {item.id for item in schema.inputs} & {
            "model",
            "mllm",
            "vae",
            "positive",
            "negative",
            "latent",
        }
        assert all(f"**{name}**" in took for name in wanted), node
        assert all(f"**{item.display_name}**" in gave for item in schema.outputs), node
    for target in re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', document):
        path = ROOT / "docs" / "".join(target)
        assert path.is_file() and path.stat().st_size < 200_000, path
