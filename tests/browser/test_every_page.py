"""What every page keeps to, in both themes, on a wide and a narrow screen: axe-core has nothing to say, nothing is
cut off, and there is one heading to begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page

from bridge.model import utc_now
from bridge.store.protocol import Filter
from tests.browser.conftest import Visits
from tests.stage import AMBIGUOUS, ERASED, FAILED, HOSTILE, PRUNED, Stage, Template, source_id

FAILED_AT = f"/contacts/shop/{source_id(FAILED)}"
GROUPS = {
    "overview": ("/", "/account", "/sources", "/sources/shop/sample", "/nobody-is-here"),
    "audit": (
        "/audit?target=sms&outcome=created",
        "/audit/{entry}",
        "/audit/export?outcome=created",
    ),
    "webhooks": ("/webhooks", "/webhooks/{hostile}", "/webhooks/{pruned}", "/webhooks/{hostile}/replay"),
    "contacts": (
        "/contacts",
        FAILED_AT,
        f"/contacts/shop/{source_id(HOSTILE)}",
        f"/contacts/shop/{source_id(ERASED)}",
        "/contacts/shop/nobody",
        f"/actions/contacts/retry?source=shop&source_id={source_id(AMBIGUOUS)}",
    ),
    "failures": ("/failures", "/failures/retry", "/retries/1", "/retries/1/cancel"),
    "targets": ("/targets", "/targets/marketing/pause", "/targets/register/resume"),
    "playground": ("/playground", "/playground?webhook={hostile}"),
}
SCREENS = [(1280, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def busy(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage with a paused target and a retry that is under way."""
    with template.copy(tmp_path_factory.mktemp("busy")) as stage:
        stage.store.pause("sms", "moving", "ada", utc_now())
        stage.store.start_bulk(Filter(), "all", "ada", utc_now())
        yield stage


@pytest.mark.parametrize("group", GROUPS)
def test_a_page_keeps_nobody_out(visit: Visits, axe: Callable[[Page], None], busy: Stage, group: str) -> None:
    ids = {
        "entry": busy.store.audit_page(Filter(error="invalid", source_id=source_id(FAILED)), None, 1).items[0].id,
        "hostile": newest_webhook(busy, HOSTILE),
        "pruned": newest_webhook(busy, PRUNED),
    }
    page = visit(busy, "/account")
    for path in GROUPS[group]:
        answer = page.goto(busy.url + path.format(**ids))
        assert answer is not None
        assert answer.status == (404 if "nobody" in path else 200), path
        page.evaluate(
            "document.querySelectorAll('main details:not(.drop)').forEach((one) => { one.open = true; })"
        )
        assert page.locator("h1").count() == 1, path
        for width, theme in SCREENS:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} at {width}"
            axe(page)


def test_signing_in_keeps_nobody_out(visit: Visits, axe: Callable[[Page], None], stage: Stage) -> None:
    page = visit(stage, "/sign-in", role=None)
    for path in ("/sign-in", "/sign-in/link/a-token"):
        page.goto(stage.url + path)
        for width, theme in SCREENS:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
            axe(page)


def newest_webhook(stage: Stage, number: int) -> int:
    narrowed = Filter(source="shop", source_id=source_id(number))
    return stage.store.inbound_page(narrowed, None, 1).items[0].id
