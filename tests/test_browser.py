"""The pack in a real browser: templates from the dialog, Run, pictures; answers; help pages; Chinese.

Twice: with the page that ComfyUI's tree asks for, and with the newest, if comfy_frontend.py fetched it.

Screenshots of every template after its run stay in ``out/screens``.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from template_files import (
    BLUEPRINTS,
    NAMES,
    ROOT,
    api_form,
    inputs_of,
    inside,
    optional_nodes,
    overlaps,
    ui_form,
    unfolded,
)

pytest.importorskip("playwright", reason="python scripts/setup_browser.py installs Playwright")
pytestmark = [pytest.mark.comfy, pytest.mark.slow]

SCREENS = ROOT / "out" / "screens"
BOXES = """() => window.app.graph._nodes.map((n) => {
    const [x, y, width, height] = n.boundingRect
    return [x, y, x + width, y + height]
})"""
# in Nodes 2.0 nodes are elements of the page: what is drawn, in the graph's units
DRAWN = """() => {
    const {graph, canvas} = window.app, {scale, offset} = canvas.ds
    const area = canvas.canvas.getBoundingClientRect()
    return [...document.querySelectorAll('[data-node-id]')].map((element) => {
        const {left, top, right, bottom} = element.getBoundingClientRect()
        const x = (at) => (at - area.left) / scale - offset[0]
        const y = (at) => (at - area.top) / scale - offset[1]
        const node = graph._nodes.find((n) => String(n.id) === element.dataset.nodeId)
        return [node.title, x(left), y(top), x(right), y(bottom)]
    })
}"""
GROUPS = """() => window.app.graph._groups.map((g) => {
    const [x, y, width, height] = g.boundingRect
    return [x, y, x + width, y + height]
})"""
# links that run behind a node that is not theirs: what comes out on its other side looks like its own.
# ComfyUI draws a link as a Bezier curve whose handles are level and a quarter of its length
BEHIND = """() => {
    const graph = window.app.graph, found = []
    for (const link of graph.links.values()) {
        const source = graph.getNodeById(link.origin_id), target = graph.getNodeById(link.target_id)
        const [x0, y0] = source.getOutputPos(link.origin_slot)
        const [x1, y1] = target.getInputPos(link.target_slot)
        const handle = Math.hypot(x1 - x0, y1 - y0) / 4
        const points = Array.from({length: 51}, (_, i) => {
            const t = i / 50, s = 1 - t
            const w = [s ** 3, 3 * s * s * t, 3 * s * t * t, t ** 3]
            const x = w[0] * x0 + w[1] * (x0 + handle) + w[2] * (x1 - handle) + w[3] * x1
            return [x, (w[0] + w[1]) * y0 + (w[2] + w[3]) * y1]
        })
        for (const node of graph._nodes) {
            const [left, top, width, height] = node.boundingRect
            const covers = ([x, y]) => x > left && x < left + width && y > top && y < top + height
            if (node !== source && node !== target && points.some(covers))
                found.push(`${source.title} to ${target.title} behind ${node.title}`)
        }
    }
    return found
}"""
KNOWN = "(type) => type in window.LiteGraph.registered_node_types"
COMPARED = "[data-testid=image-compare-viewport] img"  # the pictures of Compare Images, in Nodes 2.0
# the page's own translations; no name of its interface leads there
MESSAGES = """() => {
    const provided = document.querySelector('#vue-app').__vue_app__._context.provides
    const plugins = Reflect.ownKeys(provided).map((key) => provided[key])
    return plugins.find((p) => p?.global?.mergeLocaleMessage).global
}"""
LABELS = """(type) => {
    window.app.graph.clear()
    const node = LiteGraph.createNode(type)
    window.app.graph.add(node)
    node.pos = [600, 300]
    window.app.canvas.draw(true, true)
    return [node.title, ...node.inputs.map((i) => i.label ?? i.localized_name ?? i.name)]
}"""


@pytest.fixture(
    scope="module", params=["own page", pytest.param("newest page", marks=pytest.mark.newest_page)]
)
def server(request, comfy_tree, tmp_path_factory) -> Iterator:
    """A server whose page has seen its first start."""
    import comfy_browser
    import comfy_frontend
    import comfy_server

    newest = [] if request.param == "own page" else [comfy_frontend.find_frontend()]
    if newest == [None]:
        pytest.skip("python scripts/comfy_frontend.py fetches the newest page")

    if comfy_browser.find_chromium() is None:
        pytest.skip("no Chromium: python scripts/setup_browser.py installs it, CHROMIUM_PATH names another")
    folder = tmp_path_factory.mktemp("comfyui")
    comfy_browser.prepare_user(folder)
    options = [part for path in newest for part in ("--front-end-root", str(path))]
    with comfy_server.running_server(comfy_tree, folder, *options) as running:
        yield running


@pytest.fixture(scope="module")
def page(server) -> Iterator:
    """ComfyUI's page."""
    import comfy_browser

    SCREENS.mkdir(parents=True, exist_ok=True)
    with comfy_browser.open_page(server, (1920, 1000)) as opened:
        yield opened


def test_dialog_shows_every_template_with_its_picture(page):
    import comfy_browser

    comfy_browser.open_dialog(page)
    for name in NAMES:
        card = page.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        page.wait_for_function(
            "(i) => i.complete && i.naturalWidth === 512", arg=card.locator("img").element_handle()
        )
    page.screenshot(path=SCREENS / "templates.png")
    page.reload(wait_until="domcontentloaded")  # closes it
    comfy_browser.wait_until_ready(page)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.smoke] if n == "text_to_image" else []) for n in NAMES]
)
def test_template_runs_from_the_dialog(page, server, name):
    import comfy_browser

    before = set((server.folder / "output").rglob("*.png"))
    comfy_browser.open_template(page, name)
    sent = json.loads(page.evaluate("async () => JSON.stringify((await window.app.graphToPrompt()).output)"))
    for node in sent.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # what the page shows
    optional = optional_nodes(name)
    known = {key for key, kind in optional.items() if page.evaluate(KNOWN, kind)}
    assert set(sent) & set(optional) == known
    assert inputs_of(sent) == inputs_of(api_form(name)) | inputs_of({key: sent[key] for key in known})
    comfy_browser.press_run(page)
    shown = comfy_browser.pictures_shown(page)
    comfy_browser.fit_view(page)
    page.screenshot(path=SCREENS / f"{name}.png")
    assert shown and all(min(size) >= 256 for sizes in shown.values() for size in sizes), (
        "too small to look at"
    )
    saved = sorted(set((server.folder / "output").rglob("*.png")) - before)
    assert saved and all(np.asarray(Image.open(path)).std() > 10 for path in saved)
    boxes = page.evaluate(BOXES)
    assert not [
        (i, j)
        for i, first in enumerate(boxes)
        for j, second in enumerate(boxes[:i])
        if overlaps(first, second)
    ], "nodes overlap once they show their pictures"
    if name != "structure_and_style":  # there three samplers take from the same five nodes
        assert page.evaluate(BEHIND) == []
    assert page.locator(".p-toast-message-error").count() == 0


def test_a_blueprint_is_one_node_that_sends_its_whole_graph(page):
    import comfy_browser

    for path in BLUEPRINTS:
        page.evaluate("() => window.app.graph.clear()")
        comfy_browser.load_graph(page, path)
        page.wait_for_function("() => window.app.graph._nodes.length === 1")
        sent = page.evaluate("async () => JSON.stringify((await window.app.graphToPrompt()).output)")
        assert inputs_of(json.loads(sent)) == inputs_of(unfolded(path)[0])


ANSWER = """() => window.app.graph._nodes.find((n) => n.type === 'TBACUniImageAsk')
    .widgets.filter((w) => w.name !== 'question').map((w) => [w.name, w.value])"""
SHOWN = "(all) => all.filter((e) => e.checkVisibility() && e.readOnly).map((e) => e.value)"


def test_the_answer_stays_in_sight(page):
    import comfy_browser

    comfy_browser.open_template(page, "ask_then_edit")
    comfy_browser.press_run(page)
    comfy_browser.pictures_shown(page)
    page.wait_for_timeout(500)  # newer pages clear progress text when the job has ended
    assert dict(page.evaluate(ANSWER)) == {"max_new_tokens": 64, "shown_text": "a cat"}
    assert page.locator("textarea").evaluate_all(SHOWN).count("a cat") == 1
    saved = page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
    assert '"a cat"' not in saved


@pytest.fixture
def nodes_2(page, request) -> Iterator[None]:
    """The page in its newer look. Only the newest page: older ones draw Nodes 2.0 as it was then."""
    if "own page" in request.node.name:
        pytest.skip("the newest page has the look that Nodes 2.0 has now")
    switch = "(on) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    page.evaluate(switch, True)
    yield
    page.evaluate(switch, False)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_covered_in_nodes_2(page, nodes_2, name):
    """Nodes are taller there: a badge at their foot, and "Show advanced inputs"."""
    import comfy_browser

    comfy_browser.open_template(page, name)
    comfy_browser.fit_view(page)
    page.wait_for_function(
        "() => document.querySelectorAll('[data-node-id]').length === window.app.graph._nodes.length"
    )
    page.screenshot(path=SCREENS / f"{name}_nodes2.png")
    drawn, groups = page.evaluate(DRAWN), page.evaluate(GROUPS)
    for i, (title, *box) in enumerate(drawn):
        for other, *second in drawn[:i]:
            assert not overlaps(box, second), f"{title} and {other}"
        assert any(inside(box, group) for group in groups), f"{title} sticks out of its group"


WITH_COMPARE = [name for name in NAMES if "ImageCompare" in optional_nodes(name).values()]


def test_edits_are_compared():
    assert {"edit_by_instruction", "masked_edit"} <= set(WITH_COMPARE)


@pytest.mark.parametrize("name", WITH_COMPARE)
def test_an_older_comfyui_opens_a_template_without_what_it_lacks(page, name):
    import comfy_browser

    if page.evaluate(KNOWN, "ImageCompare"):
        pytest.skip("this ComfyUI has Compare Images")
    comfy_browser.open_template(page, name)
    left = page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
    graph, shipped = json.loads(left), ui_form(name)
    gone = {int(key) for key in optional_nodes(name)}
    assert {n["id"] for n in graph["nodes"]} == {n["id"] for n in shipped["nodes"]} - gone
    assert {tuple(k[:5]) for k in graph["links"]} == {
        tuple(k[:5]) for k in shipped["links"] if not gone & {k[1], k[3]}
    }
    assert [g["title"] for g in graph["groups"]] == [g["title"] for g in shipped["groups"]][:-1]
    assert shipped["groups"][-1]["title"] == "Before and after"
    assert page.locator(".p-dialog").count() == 0, "told of a missing node"


@pytest.mark.parametrize("name", WITH_COMPARE)
def test_source_and_result_lie_one_over_the_other(page, nodes_2, name):
    import comfy_browser

    if not page.evaluate(KNOWN, "ImageCompare"):
        pytest.skip("ComfyUI 0.3.75 has no Compare Images")
    comfy_browser.open_template(page, name)
    comfy_browser.press_run(page)
    pictures = page.locator(COMPARED)
    pictures.nth(1).wait_for()
    sizes = pictures.evaluate_all("(all) => all.map((i) => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[256, 256]] * 2
    before = pictures.evaluate_all("(all) => all.map((i) => new URL(i.src).searchParams.get('filename'))")
    assert len(set(before)) == 2
    comfy_browser.fit_view(page)
    page.screenshot(path=SCREENS / f"{name}_compared.png")


def test_probe_alone_shows_its_two_sheets(page, server):
    """An end of its own, with nothing behind it; no live preview of its sampling takes their place."""
    import comfy_browser

    comfy_browser.open_template(page, "ladder_probe")
    page.evaluate(
        """() => {
            const graph = window.app.graph
            graph._nodes.filter((n) => n.type === 'SaveImage').forEach((n) => graph.remove(n))
            const seed = graph.getNodeById(4).widgets.find((w) => w.name === 'seed')
            seed.value = 8 // not what another test has drawn, which would not be sampled again
        }"""
    )
    comfy_browser.press_run(page)
    shown = comfy_browser.pictures_shown(page)
    comfy_browser.fit_view(page)
    page.screenshot(path=SCREENS / "probe_alone.png")
    assert shown["4"] == [[838, 594]] * 2


def open_help(page, node: str) -> str:
    """The help page of a node, as its info button shows it."""
    import comfy_browser

    comfy_browser.show_help(page, node)
    return page.locator(".node-help-content").inner_text()


def test_help_is_shown_in_english(page):
    text = open_help(page, "TBACUniImageRungMix")
    assert "both to the bit" in text
    page.screenshot(path=SCREENS / "help_en.png")


def test_help_and_names_are_shown_in_chinese(page, server):
    """Up to 1.32 the page forgets the names of all packs when it fetches a language (ComfyUI_frontend#7214).

    So it is handed what the server gives once more, as newer pages do themselves.
    """
    import comfy_browser

    node = "TBACUniImageRungMix"
    with urllib.request.urlopen(f"{server.url}/api/i18n") as reply:
        given = json.load(reply)["zh"]
    comfy_browser.switch_language(page, "zh")
    try:
        assert "前面的梯级取自" in open_help(page, node)
        page.screenshot(path=SCREENS / "help_zh.png")
        page.evaluate(f"(given) => ({MESSAGES})().mergeLocaleMessage('zh', given)", given)
        page.evaluate("() => window.app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
        shown = page.evaluate(LABELS, node)
        page.screenshot(path=SCREENS / "names_zh.png")
    finally:
        comfy_browser.switch_language(page, "en")
    names = given["nodeDefs"][node]
    assert shown == [names["display_name"], *(item["name"] for item in names["inputs"].values())]
    assert all(ord(max(text)) > 0x3000 for text in shown)
