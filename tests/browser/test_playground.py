"""The playground in a real browser: what is typed is tried at once, and without JavaScript with a button."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visits
from tests.stage import Stage

RULES = """[[routes]]
source = "shop"
target = "sms"
opt_out = "stop == 'yes'"

[routes.fields]
mobile = "phone"
firstName = "name | upper"
email = "'not an address'"
"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_keeps_nobody_out(
    visit: Visits, axe: Callable[[Page], None], stage: Stage, width: int, *, dark: bool
) -> None:
    page = visit(stage, "/playground", width=width, dark=dark, role="viewer")
    page.evaluate("document.querySelectorAll('main details:not(.drop)').forEach((one) => { one.open = true; })")
    axe(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("textbox", name="Rules").fill("[[routes]]\nnonsense = 1")
    expect(page.locator("#result")).to_contain_text("problems in the rules")
    axe(page)


def test_what_is_typed_is_tried_at_once(visit: Visits, stage: Stage) -> None:
    page = visit(stage, "/playground", role="viewer")
    result = page.locator("#result")
    expect(result).to_contain_text("4 targets would be asked for something")
    page.get_by_role("textbox", name="Rules").fill(RULES)
    expect(result).to_contain_text("ADA LOVELACE")
    expect(result).to_contain_text("left out: The value is not one e-mail address.")
    page.get_by_role("textbox", name="Rules").press_sequentially('\nnick = "name"')
    expect(result).to_contain_text("rules:11: routes[1].fields.nick: Sakari has no field 'nick'")
    page.get_by_role("textbox", name="Rules").fill(RULES.replace("upper", "lower"))
    expect(result).to_contain_text("ada lovelace")
    page.get_by_text("Copy as TOML").click()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    result.get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == RULES.replace("upper", "lower").strip()


def test_a_stored_webhook_is_picked_and_tried_without_javascript(visit: Visits, stage: Stage) -> None:
    page = visit(stage, "/playground", javascript=False, role="viewer")
    page.get_by_text("pick a stored webhook").click()
    page.get_by_role("link", name="processed").last.click()
    expect(page.get_by_label("Payload")).to_have_value(re.compile(r"\"id\""))
    page.get_by_role("textbox", name="Rules").fill(RULES)
    page.get_by_role("button", name="Try it").click()
    expect(page.locator("#result")).to_contain_text("1 contact")
    expect(page.get_by_role("textbox", name="Rules")).to_have_value(RULES)
