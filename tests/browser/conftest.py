"""A real browser, driven by playwright: the system's Chromium, which talks to loopback only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.stage import Stage

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 5000
REQUIRED = "BRIDGE_TESTS_NEED_BROWSER"  # set where a missing browser is a failure, and no reason to skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get(REQUIRED):
            pytest.fail("There is no Chromium here, and this run needs one.")
        pytest.skip("There is no Chromium here: install the package 'chromium' to run the browser tests.")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        yield launched
        launched.close()


@dataclass
class Visits:
    """Opens pages, and remembers what no page may do."""

    browser: Browser
    opened: ExitStack
    wrong: list[str] = field(default_factory=list)

    def __call__(
        self,
        stage: Stage,
        path: str,
        *,
        width: int = 1280,
        dark: bool = False,
        javascript: bool = True,
        role: str | None = "admin",
        expected: int = 200,
    ) -> Page:
        """Return a new window at *path*, signed in as *role* (None: nobody)."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=javascript,
            reduced_motion="reduce",
        )
        self.opened.callback(context.close)
        context.set_default_timeout(PATIENCE_MS)
        if role is not None:
            context.add_cookies(
                [{"name": n, "value": v, "url": stage.url} for n, v in stage.cookies(role).items()]
            )
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.wrong.append(f"script error: {error}"))
        page.on("request", lambda request: self._asked(request, stage))
        answer = page.goto(stage.url + path)
        assert answer is not None
        assert answer.status == expected, f"{path}: {answer.status}"
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        # A page that is not there is reported there as well; the tests look at the status themselves.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.wrong.append(f"console: {message.text}")

    def _asked(self, request: Request, stage: Stage) -> None:
        if urlsplit(request.url).netloc != urlsplit(stage.url).netloc:
            self.wrong.append(f"a request left the host: {request.url}")


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    """``visit(stage, path, …)`` opens a page; at the end nothing may have been wrong in any of them."""
    with ExitStack() as opened:
        visits = Visits(browser, opened)
        yield visits
    assert visits.wrong == []


@pytest.fixture(scope="session")
def axe() -> Callable[[Page], None]:
    """``axe(page)`` fails with what axe-core finds that keeps people out."""
    checker = Axe()

    def check(page: Page) -> None:
        found: dict[str, Any] = checker.run(page).response
        said = [
            f"{one['id']} ({one['impact']}): {one['help']}: {node['html'][:160]} {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"][:3]
        ]
        assert said == [], "\n".join(said)

    return check
