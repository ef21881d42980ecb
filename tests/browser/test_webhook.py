"""A webhook in a real browser: read in any light and width, copied, gone through, and processed again."""

from __future__ import annotations

from playwright.sync_api import expect

from bridge.store.protocol import Filter, Inbound
from tests.browser.conftest import Visits
from tests.stage import EDITED, Stage


def about(stage: Stage, number: int) -> Inbound:
    """Return the newest webhook about a person of the stage."""
    return stage.store.inbound_page(Filter(source="shop", source_id=f"84{number:03}"), None, 1).items[0]


def test_one_goes_through_a_list_and_back_and_takes_a_body_along(visit: Visits, stage: Stage) -> None:
    edited = about(stage, EDITED)
    assert edited.body is not None
    page = visit(stage, "/webhooks?q=grace")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{stage.url}/webhooks/{edited.id}?q=grace")
    page.get_by_role("link", name="Raw").click()
    expect(page).to_have_url(f"{stage.url}/webhooks/{edited.id}?view=raw&q=grace#body")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#body [data-copy]").click()
    expect(page.locator("#body [data-copy]")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == edited.body.decode()
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text(f"Webhook {edited.id}")
    page.locator("h1").click()
    page.keyboard.press("Escape")
    expect(page).to_have_url(f"{stage.url}/webhooks?q=grace")


def test_with_keys_alone_a_webhook_is_processed_again(visit: Visits, own_stage: Stage) -> None:
    edited = about(own_stage, EDITED)
    page = visit(own_stage, f"/webhooks/{edited.id}", role="operator")
    page.keyboard.press("r")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Process webhook {edited.id} again?")
    page.keyboard.press("Escape")
    expect(page).to_have_url(f"{own_stage.url}/webhooks/{edited.id}")
    page.keyboard.press("r")
    page.get_by_role("button", name="Process again").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("processed again from its bytes")
    own_stage.work()
    page.reload()
    expect(page.locator(".headline .badge")).to_have_text("processed")
    expect(page.locator("tbody", has_text="otto")).to_have_count(1)
