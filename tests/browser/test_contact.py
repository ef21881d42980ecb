"""Contacts in a real browser: read in any light and width, found while typing, tried again with keys alone."""

from __future__ import annotations

from playwright.sync_api import expect

from bridge.lanes import process_lane
from bridge.model import Contact, RecordKey, Version, utc_now
from bridge.store.protocol import Decision
from tests.browser.conftest import Visits
from tests.stage import FAILED, Stage, source_id

FAILED_AT = f"/contacts/shop/{source_id(FAILED)}"


def test_a_contact_is_found_while_typing_and_its_exact_id_opens_it(visit: Visits, stage: Stage) -> None:
    page = visit(stage, "/contacts")
    page.keyboard.press("/")
    page.keyboard.type("person 6")
    expect(page.locator("#list tbody tr")).to_have_count(1)
    expect(page).to_have_url(f"{stage.url}/contacts?q=person%206&source=")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(stage.url + FAILED_AT)
    page.keyboard.press("Escape")
    expect(page).to_have_url(stage.url + "/contacts")
    page.get_by_label("Search").fill(source_id(FAILED))
    page.keyboard.press("Enter")
    expect(page).to_have_url(stage.url + FAILED_AT)


def test_with_keys_alone_a_contact_is_tried_again_and_the_page_shows_what_came_of_it(
    visit: Visits, own_stage: Stage
) -> None:
    page = visit(own_stage, FAILED_AT, role="operator")
    sms = page.locator("#at-sms")
    expect(sms).to_contain_text("failed")
    page.keyboard.press("r")
    expect(page.get_by_role("heading", level=1)).to_have_text("Try this contact again?")
    page.get_by_role("button", name="Try again").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("decides about this contact again")
    own_stage.work()
    expect(sms).to_contain_text("The target holds what the CRM says.")  # without a reload


def test_without_a_script_a_contact_is_read_and_tried_again(visit: Visits, own_stage: Stage) -> None:
    ticket = own_stage.store.acquire(process_lane("shop"), "test", utc_now())
    merged = Contact(RecordKey("shop", "a/b"), merged_into=source_id(FAILED), merged=Version(utc_now(), "m"))
    own_stage.store.commit(ticket, Decision(contacts=[merged]), utc_now())
    page = visit(own_stage, "/contacts/shop/a%2Fb", role="operator", javascript=False)
    page.get_by_role("link", name=f"shop/{source_id(FAILED)}").click()
    page.get_by_text("1 call: request and response").click()
    expect(page.get_by_role("region", name="Response 1 of entry")).to_contain_text("VALIDATION")
    page.get_by_role("link", name="Try again…").click()
    page.get_by_role("button", name="Try again").click()
    own_stage.work()
    page.reload()
    expect(page.locator("#at-sms")).to_contain_text("The target holds what the CRM says.")
