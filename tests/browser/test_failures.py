"""Failed deliveries in a real browser: asked about, retried, watched while it runs, and called off."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Visits
from tests.stage import Stage


def test_a_retry_is_watched_live_to_its_result(visit: Visits, own_stage: Stage) -> None:
    page = visit(own_stage, "/failures", role="operator")
    page.get_by_label("Target").select_option("sms")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("list", name="Filters")).to_contain_text("target sms")
    page.keyboard.press("r")
    page.get_by_role("button", name="Retry 1 delivery").click()
    expect(page.locator("#progress")).to_contain_text("0 of 1 delivery came to an end so far.")
    own_stage.work()
    expect(page.locator("#progress")).to_contain_text("It was tried again and is synced now.")  # without a reload
    page.keyboard.press("Escape")
    expect(page).to_have_url(own_stage.url + "/failures")
    expect(page.get_by_role("region", name="Past retries")).to_contain_text("done")


def test_without_a_script_a_retry_is_watched_and_called_off(visit: Visits, own_stage: Stage) -> None:
    page = visit(own_stage, "/failures", role="operator", javascript=False)
    page.get_by_role("link", name="Retry all 3…").click()
    page.get_by_role("button", name="Retry 3 deliveries").click()
    page.get_by_role("link", name="Look again").click()
    page.get_by_role("link", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the retry").click()
    expect(page.locator("#progress")).to_contain_text("otto cancelled it. Of 3 deliveries, 2 are failed")
    page.get_by_role("link", name="Look at what failed").click()
    expect(page.get_by_role("region", name="Causes of failures").locator("tbody tr")).to_have_count(3)
