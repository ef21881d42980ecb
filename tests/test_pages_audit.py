"""The audit log in a browser: each filter, its place in the URL, the chart, one entry, and the export."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import requests
from werkzeug.datastructures import MultiDict

from bridge.model import AuditEntry, RecordKey
from bridge.store.looking import Bar, Facets, Histogram, Hit, Role
from bridge.store.protocol import Filter, Page
from bridge.web.cells import cell
from bridge.web.pages import audit, exporting
from bridge.web.pages.filters import Address, Within
from bridge.web.queries import read_form
from tests.stage import ERASED, FAILED, HOSTILE, USERS, Session, Stage, text_of

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
AN_EMPTY_PAGE: Page[AuditEntry] = Page([], "17", NOON)
PERSON = f"84{FAILED:03}"


@pytest.fixture(scope="module")
def ada(stage: Stage) -> Iterator[Session]:
    with stage.session() as session:
        yield session


def rows(html: str) -> list[int]:
    """Return the ids of the entries that a page shows."""
    return [int(found) for found in re.findall(r'<tr id="entry-(\d+)"', html)]


def at(**query: Any) -> str:
    """Return the path of the log with *query*; ``from_`` stands for ``from``."""
    return f"/audit?{urlencode({name.rstrip('_'): value for name, value in query.items()})}"


def link(html: str, word: str) -> str:
    """Return where the link that begins with *word* leads."""
    found = re.search(rf'<a[^>]* href="([^"]+)"[^>]*>\s*{re.escape(word)}', html) or re.search(
        rf'<a href="([^"]+)"[^>]*>\s*{re.escape(word)}', html
    )
    assert found, word
    return unescape(found[1])


# --- the list ------------------------------------------------------------------------------------------------


def test_the_log_tells_what_came_in_what_was_done_and_why(stage: Stage, ada: Session) -> None:
    html = ada.page("/audit", within="all", source_id=PERSON)
    said = text_of(html)
    assert "Person 6 shop" in said
    assert "The CRM told email, id, name, phone." in said
    assert "Sakari refused searching for the contact (HTTP 400)." in said
    assert "Created there with email, firstName." in said
    assert f'data-href="/contacts/shop/{PERSON}"' in html
    entries = stage.store.audit_page(Filter(source_id=PERSON), None, 50).items
    assert rows(html) == [one.id for one in entries]
    heard = next(one for one in entries if one.kind == "contact")
    assert re.search(rf'<tr id="entry-{heard.id}" data-href="/webhooks/{heard.inbound_id}"', html)
    assert f"shop #{heard.inbound_id} changed" in said  # what the shop calls it
    assert f"Webhook #{heard.inbound_id} Event type changed" in text_of(ada.page(f"/audit/{heard.id}"))


FILTERS: dict[str, dict[str, Any]] = {
    "kind": {"kind": "delivery"},
    "source": {"source": "shop"},
    "target": {"target": "sms"},
    "outcome": {"outcome": "created"},
    "error": {"error": "invalid"},
    "status": {"status": 503},
    "field": {"field": "firstName"},
    "contact": {"source": "shop", "source_id": PERSON},
    "text": {"q": "person 6"},
    "several": {"outcome": "created", "target": "sms", "field": "mobile", "status": 200},
}


@pytest.mark.parametrize("query", FILTERS.values(), ids=FILTERS)
def test_each_filter_narrows_the_list_and_stands_as_a_chip(
    stage: Stage, ada: Session, query: dict[str, Any]
) -> None:
    html = ada.page(at(within="all", **query))
    found = stage.store.audit_page(Filter(**query), None, 50)
    everything = stage.store.audit_page(Filter(), None, 200)
    assert rows(html) == [one.id for one in found.items]
    assert 0 < len(found.items) < len(everything.items)
    removals = re.findall(r'<a class="chip" href="([^"]+)" aria-label="Remove the filter', html)
    without = [dict(parse_qsl(urlsplit(unescape(one)).query)) for one in removals]
    asked = {"within": "all", **{name: str(value) for name, value in query.items()}}
    assert sorted(map(str, without)) == sorted(
        str({name: value for name, value in asked.items() if name != left_out}) for left_out in query
    )


def test_the_filter_of_a_webhook_comes_from_its_page(stage: Stage, ada: Session) -> None:
    newest = stage.store.inbound_page(Filter(source_id=PERSON), None, 1).items[0]
    html = ada.page("/audit", within="all", inbound=newest.id)
    found = stage.store.audit_page(Filter(inbound_id=newest.id), None, 50)
    assert rows(html) == [one.id for one in found.items]


def test_facets_count_what_their_links_show(stage: Stage, ada: Session) -> None:
    html = ada.page("/audit", within="all", target="sms")
    found = re.findall(r'<li><a href="([^"]+)">([^<]+)<span class="n">([\d,]+)</span>', html)
    counted = {word.strip(): (unescape(url), int(many)) for url, word, many in found}
    assert {"created", "invalid", "200", "firstName", "deliveries"} <= counted.keys()
    for word in ("created", "invalid", "firstName"):
        url, many = counted[word]
        assert len(rows(ada.page(url))) == many, word


def test_facets_of_only_the_newest_entries_say_so() -> None:
    some = Facets({"kind": [("delivery", 9000), ("contact", 500)], "field": [("email", 700)]}, complete=False)

    def notes(facets: Facets) -> list[str]:
        return [one.note for one in audit.dimensions(Address("/audit"), facets)]

    assert notes(some) == ["Counted in the newest 9,500 entries that match."] * 2
    assert notes(replace(some, complete=True)) == ["", "Counted in the newest 1,000 entries that match."]
    assert notes(Facets({"kind": [("contact", 5)], "field": [("email", 5)]})) == ["", ""]


def test_a_list_is_paged_without_gap_or_repeat(stage: Stage, ada: Session) -> None:
    html, seen = ada.page("/audit", within="all"), []
    while True:
        seen += rows(html)
        if "Older" not in html:
            break
        html = ada.page(link(html, "Older"))
        assert link(html, "Newest") == "/audit?within=all"
    everything = stage.store.audit_page(Filter(), None, 500).items
    assert seen == [one.id for one in everything]
    assert len(seen) > 50


def test_a_made_up_place_in_the_list_is_told_apart_from_a_bug(ada: Session) -> None:
    assert "leads to no place in the list" in ada.page("/audit", status=400, cursor="made-up")


def test_a_search_that_ended_early_says_how_far_it_looked(
    stage: Stage, ada: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.store, "audit_page", lambda *_: AN_EMPTY_PAGE)
    html = ada.page("/audit", q="rare", within="all")
    assert "There are none since 2026-03-02 12:00:00 UTC: bridge looked back as far as that." in text_of(html)
    assert link(html, "Look further back") == "/audit?cursor=17&q=rare&within=all"
    assert "Nothing of this kind" not in html


# --- the time ------------------------------------------------------------------------------------------------


def test_the_last_24_hours_are_shown_until_another_time_is_chosen(own_stage: Stage) -> None:
    with own_stage.session() as session:
        assert rows(session.page("/audit"))
        own_stage.ahead[0] = timedelta(days=2)
        html = session.page("/audit", outcome="created")
        assert rows(html) == []
        assert "Time last 24 hours" in text_of(html)
        assert "Nothing of this kind happened in this time." in html
        assert rows(session.page(link(html, "last 7 days"))) == rows(
            session.page(link(html, "Look through all time"))
        )


def test_a_fixed_time_is_kept_in_the_form_and_ends_the_live_list(stage: Stage, ada: Session) -> None:
    moment = stage.store.audit_page(Filter(outcome="unreadable"), None, 1).items[0].at
    html = ada.page(at(outcome="unreadable", from_=moment, to=moment + timedelta(microseconds=1)))
    assert len(rows(html)) == 1
    assert f'name="from" value="{moment.strftime("%Y-%m-%dT%H:%M:%S")}"' in html
    assert "data-live" not in html
    assert "data-live" in ada.page("/audit")


@pytest.mark.parametrize(
    "query",
    [
        {"within": "2h"},
        {"within": "1h", "from": "2026-03-02"},
        {"from": "2026-03-02", "to": "2026-03-01"},
        {"status": "ok"},
        {"outcom": "failed"},
        {"q": "\x00"},
    ],
    ids=str,
)
def test_a_filter_with_a_slip_is_refused_and_never_shows_everything(ada: Session, query: dict[str, str]) -> None:
    assert "That cannot be read" in ada.page(at(**query), status=400)


def test_an_address_changes_one_thing_and_keeps_the_rest() -> None:
    given = MultiDict({"within": "7d", "q": " a&b ", "target": "", "cursor": "5", "limit": "10"})
    address = Address.of("/audit", given)
    assert address.url() == "/audit?within=7d&q=+a%26b+&limit=10"
    assert address.url(q="") == "/audit?within=7d&limit=10"
    assert address.url("", **{"from": "2026-03-02"}) == "/audit?from=2026-03-02&q=+a%26b+&limit=10"
    assert address.url("/audit/export", q=None, target="sms") == "/audit/export?target=sms&within=7d&limit=10"
    assert address.fields("q", "limit") == [("within", "7d")]


@pytest.mark.parametrize(
    ("given", "since", "words"),
    [
        ({}, NOON - timedelta(hours=24), "last 24 hours"),
        ({"within": "all"}, None, "all time"),
        ({"from": "2026-03-01"}, NOON - timedelta(hours=36), "since 2026-03-01 00:00:00 UTC"),
        ({"to": "2026-03-02T12:00"}, None, "before 2026-03-02 12:00:00 UTC"),
        (
            {"from": "2026-03-01T13:00:00+01:00", "to": "2026-03-02"},
            NOON - timedelta(hours=24),
            "2026-03-01 12:00:00 to 2026-03-02 00:00:00 UTC",
        ),
    ],
)
def test_a_time_is_said_in_words(given: dict[str, str], since: datetime | None, words: str) -> None:
    period = read_form(Within, MultiDict(given)).period(NOON, "24h")
    assert (period.since, period.words) == (since, words)


# --- finding -------------------------------------------------------------------------------------------------


def test_an_exact_id_opens_its_record(ada: Session) -> None:
    def leads_to(**query: str) -> str:
        answer = ada.get(f"{ada.url}/audit", params=query, allow_redirects=False, timeout=5)
        return answer.headers.get("Location", "")

    assert leads_to(q=PERSON, jump="1") == f"/contacts/shop/{PERSON}"
    assert leads_to(q="3", jump="1") == "/webhooks/3"
    assert leads_to(q="person 6", jump="1") == ""
    assert leads_to(q=PERSON) == ""  # a chip or a link that was sent: the list, and the record above it
    assert f'Exactly this id: <a href="/contacts/shop/{PERSON}">' in ada.page("/audit", q=PERSON)


def test_what_has_an_id_is_named() -> None:
    assert audit.place_of(Hit("contact", RecordKey("crm", "a/b"))) == ("/contacts/crm/a%2Fb", "contact crm/a/b")
    assert audit.place_of(Hit("webhook", inbound_id=7)) == ("/webhooks/7", "webhook 7")


# --- the chart -----------------------------------------------------------------------------------------------


def test_the_chart_has_a_link_for_each_step_and_adds_up() -> None:
    steps = [
        Bar(NOON + timedelta(hours=n), counts)
        for n, counts in enumerate(({}, {"created": 98, "failed": 1}, {"updated": 1}))
    ]
    address = Address.of("/audit", MultiDict({"within": "24h", "outcome": "x"}))
    chart = audit.chart_of(Histogram(3600, steps), address, NOON, NOON + timedelta(hours=3))
    assert chart.total == 100
    assert [one.href for one in chart.bars][1] == (
        "/audit?from=2026-03-02T13%3A00%3A00Z&to=2026-03-02T14%3A00%3A00Z&outcome=x"
    )
    assert chart.pick == "/audit?from=FROM&to=TO&outcome=x"
    assert chart.bars[1].label == "2026-03-02 13:00:00 to 2026-03-02 14:00:00 UTC: 98 created, 1 failed"
    assert [one.tone for one in chart.bars[1].parts] == ["good", "bad"]
    assert chart.bars[0].parts == []
    assert all(0 <= part.y <= 100 and part.y + part.height <= 101 for one in chart.bars for part in one.parts)
    assert all(right.x >= left.x + left.width for left, right in pairwise(chart.bars))
    assert dict(chart.legend).keys() == {"good", "bad"}


def test_a_bar_of_the_chart_narrows_the_list_to_its_time(stage: Stage, ada: Session) -> None:
    html = ada.page("/audit", within="24h", outcome="created")
    urls = re.findall(r'<a href="([^"]+)" aria-label="[^"]+: (\d+) created"', html)
    assert sum(int(many) for _, many in urls) == len(rows(html))
    for url, many in urls:
        assert len(rows(ada.page(unescape(url)))) == int(many)


def test_the_part_that_is_loaded_again_leaves_out_what_costs_most(stage: Stage, ada: Session) -> None:
    answer = ada.get(f"{ada.url}/audit", headers={"HX-Request": "true", "HX-Target": audit.LIVE}, timeout=5)
    assert rows(answer.text)
    assert '<span class="n">' not in answer.text


# --- one entry -----------------------------------------------------------------------------------------------


def test_an_entry_shows_all_its_facts_and_what_went_over_the_wire(stage: Stage, ada: Session) -> None:
    failed = stage.store.audit_page(Filter(error="invalid", source_id=PERSON), None, 1).items[0]
    in_the_list = f"/audit/{failed.id}?within=all&error=invalid"
    assert in_the_list in unescape(ada.page(at(within="all", error="invalid")))
    html = ada.page(in_the_list)
    assert '<a href="/audit?within=all&amp;error=invalid" data-back>' in html
    said = text_of(html)
    for fact in ("Kind delivery", "Target sms", "Attempt 1", "Status 400", "Error invalid", "Answered 400"):
        assert fact in said
    assert "VALIDATION" in said
    assert "no entry 999999" in ada.page("/audit/999999", status=404)
    assert "no entry" in ada.page(f"/audit/{2**70}", status=404)


def test_an_entry_of_an_erased_person_says_that_its_calls_are_gone(stage: Stage, ada: Session) -> None:
    entry = stage.store.audit_page(Filter(source_id=f"84{ERASED:03}", kind="delivery"), None, 1).items[0]
    assert "deleted when the person was erased" in ada.page(f"/audit/{entry.id}")


def test_a_hostile_name_is_shown_and_does_nothing(ada: Session) -> None:
    html = ada.page("/audit", within="all", source_id=f"84{HOSTILE:03}")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "\u202e" not in html


SAID = [
    (("contact", "changed", ("a", "b")), "The CRM told a, b."),
    (("contact", "created", tuple("abcdef")), "New in the CRM, with a, b, c, d and 2 more."),
    (("delivery", "updated", ()), "Updated there; none of the fields was to change."),
    (("contact", "deleted", ("a",)), "Deleted in the CRM."),
    (("delivery", "updated", ("{x}" * 30,)), "Wrote " + ("{x}" * 14)[:40] + "…."),
    (("unheard of", "odd", ()), ""),
]


@pytest.mark.parametrize(("entry", "expected"), SAID)
def test_an_entry_without_a_reason_says_what_it_is_about(
    entry: tuple[str, str, tuple[str, ...]], expected: str
) -> None:
    kind, outcome, fields = entry
    assert audit.sentence(AuditEntry(NOON, kind, outcome, fields=fields)) == expected
    assert audit.sentence(AuditEntry(NOON, kind, outcome, "Because.", fields=fields)) == "Because."


# --- the export ----------------------------------------------------------------------------------------------


def export(session: Session, query: str, **form: str) -> requests.Response:
    return session.submit(f"/audit/export?{query}", **form)


def test_the_question_before_an_export_says_what_and_how_many(stage: Stage, ada: Session) -> None:
    said = text_of(ada.page("/audit/export?within=24h&outcome=created&q=person"))
    many = len(stage.store.audit_page(Filter(outcome="created", q="person"), None, 500).items)
    assert "Time last 24 hours" in said
    assert "Outcome created" in said
    assert f"about {many};" in said


def test_a_file_holds_what_the_filter_finds(stage: Stage, ada: Session) -> None:
    entries = stage.store.audit_page(Filter(outcome="created"), None, 500).items
    answer = export(ada, "within=24h&outcome=created", format="csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(r'attachment; filename="audit-\d{8}-\d{6}\.csv"', answer.headers["Content-Disposition"])
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert [int(one["id"]) for one in table] == [one.id for one in entries]
    assert table[0]["fields"] == " ".join(entries[0].fields)
    assert {one["event_types"] for one in table} == {" ".join(one.event_types) for one in entries} >= {"changed"}
    lines = export(ada, "within=24h&outcome=created", format="ndjson").text.splitlines()
    told = [json.loads(line) for line in lines]
    assert [one["id"] for one in told] == [one.id for one in entries]
    assert all(one["detail"] is None for one in told)
    assert [one["event_types"] for one in told] == [list(one.event_types) for one in entries]


def test_what_went_over_the_wire_is_for_admins(stage: Stage, ada: Session) -> None:
    with stage.session(Role.OPERATOR) as otto:
        assert 'name="detail"' not in otto.page("/audit/export")
        refused = export(otto, "within=24h", format="csv", detail="1")
        assert refused.status_code == 403
        assert "@example.com" not in export(otto, "within=24h&kind=delivery", format="ndjson").text
    assert "person6@example.com" in export(ada, f"source_id={PERSON}", format="ndjson", detail="1").text
    table = csv.DictReader(io.StringIO(export(ada, f"source_id={PERSON}", format="csv", detail="1").text))
    assert any("person6@example.com" in one["detail"] for one in table)


def test_an_export_is_an_entry_itself_and_names_nobody(own_stage: Stage) -> None:
    with own_stage.session() as session:
        text = export(session, "within=7d&target=sms&q=person6", format="ndjson").text
        assert export(session, "within=7d", form_at="/audit/export", format="xml").status_code == 400
        assert session.post(f"{session.url}/audit/export", data={"format": "csv"}, timeout=5).status_code == 400
    notes = own_stage.store.audit_page(Filter(kind="export"), None, 10).items
    assert [one.reason for one in notes] == [
        f"{USERS[Role.ADMIN]} exported as ndjson: last 7 days, target sms, and a search."
    ]
    assert "exported" not in text


@pytest.mark.parametrize("seconds", [0, exporting.LONGEST_S])
def test_a_file_that_would_be_too_long_says_how_to_get_the_rest(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(exporting, "PAGE", 7)
    monkeypatch.setattr(exporting, "MOST", 10**6 if seconds else 20)
    now = [0.0]

    def clock() -> float:
        now[0] += seconds / 3
        return now[0]

    found: list[int | None] = []
    narrowed, files = Filter(source="shop"), 0
    while True:
        now[0] = 0.0
        *entries, last = exporting.entries_of(stage.store, narrowed, clock)
        files += 1
        found += [one.id for one in entries]
        if last.outcome != "cut":
            found.append(last.id)
            break
        assert "export again with the time before 2" in last.reason
        narrowed = replace(narrowed, until=last.at)
    assert files > 1
    assert found == [one.id for one in stage.store.audit_page(Filter(source="shop"), None, 500).items]


def test_a_search_that_never_ends_is_cut_where_it_came_to(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MOST", 0)
    monkeypatch.setattr(stage.store, "audit_page", lambda *_: AN_EMPTY_PAGE)
    (only,) = exporting.entries_of(stage.store, Filter(q="rare"))
    assert only.at == NOON + timedelta(microseconds=1)


CELLS = [
    ("=1+1", "'=1+1"),
    ("+1+1", "'+1+1"),
    ("-2+3", "'-2+3"),
    ("+525512340101", "+525512340101"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("\t=1", "'\t=1"),
    ("\uff1d1", "'\uff1d1"),
    ("a=b", "a=b"),
    (-2, -2),
    (None, ""),
    (NOON, "2026-03-02T12:00:00.000000Z"),
    (["a", "b"], "a b"),
    (["=a", "b"], "'=a b"),
    ([], ""),
    ({"a": [1]}, '{"a": [1]}'),
]


@pytest.mark.parametrize(("value", "expected"), CELLS, ids=str)
def test_a_spreadsheet_computes_nothing_that_a_stranger_wrote(value: object, expected: object) -> None:
    assert cell(value) == expected
