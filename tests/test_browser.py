"""The pack in a real browser: templates from the dialog, Run, pictures; help pages; Chinese.

Screenshots of every template after its run stay in ``out/screens``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from template_files import NAMES, ROOT, api_form, inputs_of, overlaps

pytest.importorskip("playwright", reason="python scripts/setup_browser.py installs Playwright")
pytestmark = [pytest.mark.comfy, pytest.mark.slow]

SCREENS = ROOT / "out" / "screens"
BOXES = """() => window.app.graph._nodes.map((n) => {
    const [x, y, width, height] = n.boundingRect
    return [x, y, x + width, y + height]
})"""


@pytest.fixture(scope="module")
def server(comfy_tree, tmp_path_factory) -> Iterator:
    """A server whose page has seen its first start."""
    import comfy_browser
    import comfy_server

    if comfy_browser.find_chromium() is None:
        pytest.skip("no Chromium: python scripts/setup_browser.py installs it, CHROMIUM_PATH names another")
    folder = tmp_path_factory.mktemp("comfyui")
    comfy_browser.prepare_user(folder)
    with comfy_server.running_server(comfy_tree, folder) as running:
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


@pytest.mark.parametrize("name", NAMES)
def test_template_runs_from_the_dialog(page, server, name):
    import comfy_browser

    before = set((server.folder / "output").rglob("*.png"))
    comfy_browser.open_template(page, name)
    sent = json.loads(page.evaluate("async () => JSON.stringify((await window.app.graphToPrompt()).output)"))
    for node in sent.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview")  # what the page shows
    assert inputs_of(sent) == inputs_of(api_form(name))
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
    assert page.locator(".p-toast-message-error").count() == 0


def open_help(page, node: str) -> str:
    """The help page of a node, as its info button shows it."""
    import comfy_browser

    comfy_browser.show_help(page, node)
    return page.locator(".node-help-content").inner_text()


def test_help_is_shown_in_english(page):
    text = open_help(page, "TBACUniImageRungMix")
    assert "both to the bit" in text
    page.screenshot(path=SCREENS / "help_en.png")


def test_help_is_shown_in_chinese(page):
    # the names of nodes and inputs are served too (test_help.py), but the page of this ComfyUI drops those of
    # all packs when it loads a language other than English; newer ones show them
    import comfy_browser

    comfy_browser.switch_language(page, "zh")
    try:
        assert "前面的梯级取自" in open_help(page, "TBACUniImageRungMix")
        page.screenshot(path=SCREENS / "help_zh.png")
    finally:
        comfy_browser.switch_language(page, "en")
