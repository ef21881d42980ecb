"""The audit log in a real browser: narrowed with keys, by dragging, without scripts; live, unless one reads."""

from __future__ import annotations

import csv
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from bridge.model import AuditEntry, utc_now
from tests.browser.conftest import Visits
from tests.stage import FAILED, Stage

PERSON = f"84{FAILED:03}"
FILTERS = {
    "/audit": ["Kind", "Source", "Target", "Outcome", "Error", "Status", "Field"],
    "/webhooks": ["Source", "Outcome"],
}


def test_with_keys_alone_one_finds_an_entry_and_opens_its_story(visit: Visits, stage: Stage) -> None:
    page = visit(stage, f"/audit?within=all&source_id={PERSON}&kind=delivery")
    page.keyboard.press("j")
    expect(page.locator("tr.current")).to_have_count(1)
    page.keyboard.press("j")
    expect(page.locator("tbody tr").nth(1)).to_have_class("current")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{stage.url}/contacts/shop/{PERSON}")
    page.goto(f"{stage.url}/audit")
    page.locator("summary", has_text="Target").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="sms")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("details.drop[open]")).to_have_count(0)
    page.keyboard.press("/")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{stage.url}/webhooks/3")


def test_dragging_over_the_chart_picks_its_time(visit: Visits, stage: Stage) -> None:
    page = visit(stage, "/audit?outcome=created")
    bars = page.locator(".chart g.bar")
    first, last = bars.nth(bars.count() - 5), bars.nth(bars.count() - 1)
    chart = page.locator(".chart svg").bounding_box()
    assert chart is not None
    middle = chart["y"] + chart["height"] / 2
    step = chart["width"] / bars.count()
    page.mouse.move(chart["x"] + chart["width"] - 4.5 * step, middle)
    page.mouse.down()
    page.mouse.move(chart["x"] + chart["width"] - 2 * step, middle)
    page.mouse.move(chart["x"] + chart["width"] - 0.5 * step, middle)
    wanted = {
        "from": [first.get_attribute("data-from")],
        "to": [last.get_attribute("data-to")],
        "outcome": ["created"],
    }
    page.mouse.up()
    page.wait_for_url("**from=*")
    assert parse_qs(urlsplit(page.url).query) == wanted
    expect(page.locator(".live")).to_have_count(0)  # a time that has ended brings nothing new


def test_what_happens_shows_by_itself_but_not_while_one_reads(visit: Visits, own_stage: Stage) -> None:
    page = visit(own_stage, "/audit")
    sign = page.locator(".live")
    expect(sign).to_have_attribute("data-state", "on")
    own_stage.store.note([AuditEntry(utc_now(), "access", "signed_in", "Somebody came.")])
    page.evaluate("htmx.trigger('#entries', 'refresh')")  # as happens every five seconds
    expect(page.locator("tbody tr").first).to_contain_text("Somebody came.")
    expect(page.locator(".chart")).to_have_count(1)
    page.locator("tbody tr").nth(2).hover()
    expect(sign).to_have_text("Live, paused while you read Stop")
    sign.get_by_role("button").click()
    expect(sign).to_have_text("Not live Go live")


def test_without_scripts_the_log_is_narrowed_searched_and_exported(
    visit: Visits, stage: Stage, tmp_path: Path
) -> None:
    page = visit(stage, "/audit", javascript=False)
    page.locator("summary", has_text="Outcome").click()
    page.get_by_role("link", name="created").first.click()
    page.get_by_label("Search").fill("person 6")
    page.get_by_role("button", name="Search").click()
    query = parse_qs(urlsplit(page.url).query)
    assert (query["outcome"], query["q"]) == (["created"], ["person 6"])
    shown = page.locator("tbody tr").count()
    assert shown == 3
    page.get_by_role("link", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "audit.csv")
    text = (tmp_path / "audit.csv").read_text()
    assert len(list(csv.DictReader(text.splitlines()))) == shown


@pytest.mark.parametrize("path", FILTERS)
def test_every_filter_narrows_to_what_it_counts_and_is_taken_away(visit: Visits, stage: Stage, path: str) -> None:
    page = visit(stage, f"{path}?within=all", javascript=False)
    chips = page.get_by_role("region", name="Filter")
    titles = [text.strip() for text in chips.locator("details.drop > summary").all_text_contents()]
    assert titles[1:] == FILTERS[path]  # the first is the time
    for number, title in enumerate(titles[1:], start=1):
        drop = chips.locator("details.drop").nth(number)
        drop.locator("summary").click()
        # What there is none of can be chosen where nothing is counted.
        choice = drop.locator(
            "li a", has_text="processed" if path == "/webhooks" and title == "Outcome" else ""
        ).first
        word, _, count = (choice.text_content() or "").strip().rpartition(" ")
        choice.click()
        taken_away = chips.get_by_role("link", name=f"Remove the filter {title}")
        expect(taken_away).to_be_visible()
        rows = page.locator("tbody tr").count()
        assert rows > 0, title
        assert not word or rows == min(int(count.replace(",", "")), 50), (title, word)
        taken_away.click()
        expect(taken_away).to_have_count(0)


def test_every_time_is_picked(visit: Visits, stage: Stage) -> None:
    page = visit(stage, "/audit", javascript=False)
    drop = page.get_by_role("region", name="Filter").locator("details.drop").first
    presets = [text.strip() for text in drop.locator("li a").all_text_contents()]
    assert len(presets) >= 5
    for preset in presets:
        drop.locator("summary").click()
        drop.get_by_role("link", name=preset, exact=True).click()
        assert page.locator("tbody tr").count() > 0, preset
    drop.locator("summary").click()
    page.get_by_label("To (UTC)").fill("2020-01-01T00:00:00")
    page.get_by_role("button", name="Show this time").click()
    expect(page.locator("main")).to_contain_text("Nothing")
