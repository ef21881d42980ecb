"""Overview and sources in a real browser: fresh by themselves, and honest when nobody answers."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from bridge.model import utc_now
from tests.browser.conftest import Visits
from tests.stage import Stage


def test_the_overview_renews_itself_and_says_when_it_cannot(visit: Visits, own_stage: Stage) -> None:
    page = visit(own_stage, "/")
    page.clock.install()
    page.reload()
    sign = page.locator("[data-live-sign]")
    expect(sign).to_contain_text("Live")
    own_stage.store.pause("sms", "lunch", "vera", utc_now())
    page.clock.fast_forward(10_500)
    expect(page.get_by_role("region", name="Targets").get_by_text("paused")).to_be_visible()
    expect(page.locator("#state .badge.good").first).to_be_visible()

    # Nothing comes any more that could be shown. (A connection that fails is an error in the console as well.)
    page.route(re.compile(r"/$"), lambda route: route.fulfill(status=204))
    for _ in range(3):
        page.clock.fast_forward(10_500)
    expect(sign).to_contain_text("Bridge does not answer: this is old")
    good, idle = (
        page.locator(selector).first.evaluate("(one) => getComputedStyle(one).color")
        for selector in ("#state .badge.good", "#state .badge:not(.good, .bad, .warn, .busy)")
    )
    assert good == idle, "nothing looks well that is old"


def test_the_url_of_a_source_is_copied_with_one_press(visit: Visits, stage: Stage) -> None:
    page = visit(stage, "/sources")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied").first).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == f"{stage.url}/hooks/shop"


def test_a_sample_is_sent_without_javascript(visit: Visits, own_stage: Stage) -> None:
    page = visit(own_stage, "/sources", javascript=False, role="operator")
    page.get_by_role("link", name="Send a sample").click()
    expect(page.get_by_text("This is no dry run.")).to_be_visible()
    page.get_by_role("button", name="Send it").click()
    expect(page).to_have_url(re.compile(r"/webhooks/\d+$"))
    expect(page.get_by_role("status")).to_contain_text("The sample is stored.")
