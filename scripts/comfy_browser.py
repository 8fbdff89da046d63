"""A real browser on ComfyUI's page: headless Chromium, driven with Playwright."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_server import Server
    from playwright.sync_api import Page

PACK = "tbac-uniimage"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# a container has no sandbox and little shared memory, and nothing outside this machine is asked
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # otherwise the Templates dialog covers the page at the first start
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
READY = (
    "() => window.app?.extensionManager && window.LiteGraph?.registered_node_types['TBACUniImageLoadModel']"
)
SHOWING = ("SaveImage", "PreviewImage", "TBACUniImageProbe", "TBACUniImageRungGains")
LIMIT_MS = 180_000  # a busy machine
POLL_MS = 100  # asked at every frame, as Playwright would, the page draws all the time
# around the button, on newer pages the button itself
RUN_BUTTON = '[data-testid="queue-button"] button:visible, button[data-testid="queue-button"]:visible'


def find_chromium() -> str | None:
    """The program that ``CHROMIUM_PATH`` names, else the first on the path, else Playwright's own.

    Raises:
        FileNotFoundError: ``CHROMIUM_PATH`` names no program.
    """
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        if shutil.which(named) is None:
            raise FileNotFoundError(f"CHROMIUM_PATH is {named}, which is no program.")
        return named
    found = [path for path in map(shutil.which, CHROMIUM) if path and not is_snap(Path(path))]
    return found[0] if found else playwright_chromium()


def is_snap(program: Path) -> bool:
    """Whether this starts a snap, as Ubuntu's does: a snap sees no profile outside of its own folders."""
    target = program.resolve()
    if program.is_relative_to("/snap") or target.name == "snap":
        return True
    start = target.read_bytes()[:10_000]
    return start.startswith(b"#!") and b"/snap/bin/" in start


def playwright_chromium() -> str | None:
    """What ``python -m playwright install chromium`` fetched."""
    if importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def chromium_version(program: str) -> str:
    """Start it once, as the tests do.

    Raises:
        RuntimeError: it does not start; what it said last.
    """
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        except Error as error:
            said = re.findall(r"^\[pid=\d+\]\[err\] (.*)$", error.message, re.MULTILINE)
            reason = said[-1] if said else error.message.splitlines()[0]
            raise RuntimeError(f"{program} does not start: {reason}") from error
        version = browser.version
        browser.close()
    return version


def prepare_user(folder: Path, locale: str = "en", **settings: object) -> None:
    """Write the UI's settings for a server that will run in ``folder``."""
    place = folder / "user" / "default"
    place.mkdir(parents=True, exist_ok=True)
    content = {**SETTINGS, "Comfy.Locale": locale, **settings}
    (place / "comfy.settings.json").write_text(json.dumps(content))


@contextmanager
def open_page(server: Server, size: tuple[int, int] = (1600, 900), scale: float = 1) -> Iterator[Page]:
    """ComfyUI's page with an empty graph; requests to other machines are dropped.

    Raises:
        FileNotFoundError: ``CHROMIUM_PATH`` names no program.
        RuntimeError: there is no Chromium on this machine.
    """
    from playwright.sync_api import sync_playwright

    program = find_chromium()
    if program is None:
        raise RuntimeError("There is no Chromium: run python scripts/setup_browser.py, or set CHROMIUM_PATH.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            viewport = {"width": size[0], "height": size[1]}
            context = browser.new_context(viewport=viewport, device_scale_factor=scale)
            context.set_default_timeout(LIMIT_MS)
            local = (server.url, "data:", "blob:")
            context.route("**/*", lambda r: r.continue_() if r.request.url.startswith(local) else r.abort())
            context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
            page = context.new_page()
            page.goto(server.url, wait_until="domcontentloaded")
            wait_until_ready(page)
            yield page
        finally:
            browser.close()


def wait_until_ready(page: Page) -> None:
    """Wait until the page knows our nodes, and empty its graph."""
    page.wait_for_function(READY, polling=POLL_MS)
    page.wait_for_selector(".p-blockui-mask", state="hidden")
    page.evaluate("() => window.app.graph.clear()")


def load_graph(page: Page, path: Path) -> None:
    """Open a workflow file, in either form, as if it were dropped on the page."""
    text = path.read_text(encoding="utf-8")
    page.evaluate(
        "async ([text, name]) => await window.app.handleFile("
        "new File([text], name, {type: 'application/json'}))",
        [text, path.name],
    )


def fit_view(page: Page) -> None:
    """Zoom so that the whole graph is seen."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(800)  # the zoom is animated


def press_run(page: Page) -> None:
    """Press Run and wait until the server has finished.

    Raises:
        RuntimeError: a node failed; its sentence.
    """
    page.evaluate(
        """() => {
            window.ended = null;
            for (const name of ['execution_success', 'execution_error', 'execution_interrupted'])
                window.app.api.addEventListener(name, (e) => (window.ended = [name, e.detail]), {once: true});
        }"""
    )
    page.locator(RUN_BUTTON).first.click()
    page.wait_for_function("() => window.ended", polling=POLL_MS)
    name, detail = page.evaluate("() => window.ended")
    if name != "execution_success":
        raise RuntimeError(f"{name}: {detail.get('exception_message', '')}")


def pictures_shown(page: Page) -> dict[str, list[list[int]]]:
    """Width and height of every picture that the nodes of ``SHOWING`` show, by node id.

    Waits until each has its pictures from the server; live previews do not count.
    """
    script = """(kinds) => {
        const nodes = window.app.graph._nodes.filter((n) => kinds.includes(n.type))
        const loaded = (i) => i.src.includes('/view?') && i.complete && i.naturalWidth > 0
        if (!nodes.every((n) => n.imgs?.length && n.imgs.every(loaded))) return null
        return Object.fromEntries(nodes.map(
            (n) => [String(n.id), n.imgs.map((i) => [i.naturalWidth, i.naturalHeight])]))
    }"""
    return page.wait_for_function(script, arg=list(SHOWING), polling=POLL_MS).json_value()


def open_dialog(page: Page) -> None:
    """Open the Templates dialog at this pack's templates."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK, exact=True).first.click()


def open_template(page: Page, name: str) -> None:
    """Choose a template of this pack in the Templates dialog."""
    from playwright.sync_api import TimeoutError

    page.evaluate("() => window.app.graph.clear()")  # newer pages close the dialog before the template is in
    open_dialog(page)
    card, dialog = page.get_by_test_id(f"template-workflow-{name}"), page.locator(".p-dialog")
    card.click()
    try:
        dialog.wait_for(state="hidden", timeout=60_000)
    except TimeoutError:  # once on a busy machine a click came to nothing
        card.click()
        dialog.wait_for(state="hidden")
    page.wait_for_function("() => window.app.graph._nodes.length > 2", polling=POLL_MS)


def show_help(page: Page, node: str) -> None:
    """Put one node on an empty graph and press its info button."""
    page.evaluate(
        """(type) => {
            const app = window.app
            app.graph.clear()
            const node = LiteGraph.createNode(type)
            app.graph.add(node)
            node.pos = [600, 300]
            app.canvas.ds.reset()
            app.canvas.selectNode(node)
        }""",
        node,
    )
    page.get_by_test_id("info-button").click()
    page.wait_for_selector(".node-help-content h1")


def switch_language(page: Page, locale: str) -> None:
    """Set the UI's language and load the page anew."""
    page.evaluate("(locale) => window.app.extensionManager.setting.set('Comfy.Locale', locale)", locale)
    page.reload(wait_until="domcontentloaded")
    wait_until_ready(page)
