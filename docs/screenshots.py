"""Take the pictures in docs/images from the demo: ``make screenshots``.

Every page in both themes and at two widths, as a person meets them after the demo's story.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Browser, sync_playwright

from bridge.demo.screen import Lines
from bridge.demo.stage import Stage, open_stage
from bridge.demo.story import Story

IMAGES = Path(__file__).parent / "images"
WIDTHS = (1280, 390)
HEIGHT = {1280: 900, 390: 844}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def main() -> None:
    """Play the demo's story without a terminal, then walk through the pages."""
    IMAGES.mkdir(exist_ok=True)
    with open_stage() as stage, chromium() as browser:
        with contextlib.redirect_stdout(io.StringIO()):
            Story(stage, Lines()).play()
        for dark in (False, True):
            for width in WIDTHS:
                shoot(browser, stage, width, dark=dark)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


def pages(stage: Stage) -> dict[str, str]:
    """Return the path of each picture's page."""
    failed = stage.api("GET", "/deliveries?state=ambiguous&limit=1")["items"][0]
    newest = stage.api("GET", "/inbound?source=shop&limit=1")["items"][0]
    entry = stage.api("GET", "/audit?kind=delivery&target=sms&limit=1")["items"][0]
    return {
        "overview": "/",
        "audit": "/audit?within=1h&kind=delivery",
        "audit-entry": f"/audit/{entry['id']}",
        "audit-export": "/audit/export?within=1h",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{newest['id']}",
        "contacts": "/contacts",
        "contact": f"/contacts/{failed['source']}/{quote(failed['source_id'], safe='')}",
        "failures": "/failures",
        "retry": "/failures/retry",
        "sources": "/sources",
        "sample": "/sources/shop/sample",
        "targets": "/targets",
        "pause": "/targets/sms/pause",
        "playground": f"/playground?webhook={newest['id']}",
        "account": "/account",
    }


def shoot(browser: Browser, stage: Stage, width: int, *, dark: bool) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHT[width]},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    theme = "dark" if dark else "light"
    page.goto(stage.base_url + "/sign-in")
    page.screenshot(path=IMAGES / f"sign-in-{width}-{theme}.png")
    page.goto(stage.login_url())
    page.click("main button")
    for name, path in pages(stage).items():
        page.goto(stage.base_url + path)
        page.screenshot(path=IMAGES / f"{name}-{width}-{theme}.png")
    context.close()


if __name__ == "__main__":
    main()
