"""Targets in a real browser: paused and resumed with the keyboard alone."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Visits
from tests.stage import Stage


def test_a_target_is_paused_and_resumed_with_keys_alone(visit: Visits, own_stage: Stage) -> None:
    page = visit(own_stage, "/targets", role="operator")
    sms = page.locator("#sms")
    sms.get_by_role("link", name="Pause").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Pause sms?")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page).to_have_url(f"{own_stage.url}/targets")
    sms.get_by_role("link", name="Pause").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Why?").focus()
    page.keyboard.type("their import runs")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("sms is paused.")
    expect(sms).to_contain_text("Paused by otto")
    sms.get_by_role("link", name="Resume").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Resume it").press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("sms is open again")
    assert own_stage.store.target_status("sms").mode == "open"
