"""Signing in with a keyboard, and the frame around every page."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Visits
from tests.stage import PASSWORD, Stage


def test_one_signs_in_with_the_keyboard_alone_and_out_again(stage: Stage, visit: Visits) -> None:
    page = visit(stage, "/targets", role=None)
    expect(page).to_have_title("Sign in · bridge")
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type("wrong password")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("There is nobody of that name with that password.")
    page.keyboard.type(PASSWORD)  # the focus is where the mistake was
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Targets")
    page.get_by_role("button", name="Sign out").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_title("Sign in · bridge")


def test_without_javascript_one_signs_in_just_the_same(stage: Stage, visit: Visits) -> None:
    page = visit(stage, "/account", role=None, javascript=False)
    page.get_by_label("Name").fill("vera")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("vera")
    page.get_by_role("button", name="Sign out everywhere").click()
    expect(page).to_have_title("Sign in · bridge")


def test_keys_are_told_and_help_goes_away(stage: Stage, visit: Visits) -> None:
    page = visit(stage, "/audit")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("input[type=search]")).to_be_focused()


def test_the_menu_folds_on_a_narrow_screen_and_opens_on_demand(stage: Stage, visit: Visits) -> None:
    page = visit(stage, "/account", width=390)
    link = page.get_by_role("link", name="Audit log")
    expect(link).to_be_hidden()
    page.get_by_text("Menu").click()
    link.click()
    expect(page).to_have_title("Audit log · bridge")
