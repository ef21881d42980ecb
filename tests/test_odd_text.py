"""Text that is no text: U+0000, halves of characters and U+FFFD, wherever a sender or a platform can put it.

SQLite can hold some of it and PostgreSQL none, so both are asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bridge.database import Database
from bridge.model import AuditEntry, Exchange, Outcome, State
from bridge.store.protocol import Filter, Refusal, Store
from tests.store_contract import (
    JANE,
    LANES,
    MAIL,
    NOW,
    claim,
    commit,
    contact,
    delivery_of,
    fact,
    inbound,
    push,
    want,
)
from tests.web_site import Site, open_site

ODD = ["\0", "\ud800", "\udfff", "\ufffd", "\0\ud83d"]
ids = pytest.mark.parametrize("odd", ODD, ids=[one.encode("unicode_escape").decode() for one in ODD])


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with open_site(tmp_path, database=database) as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    with closing(database.open(LANES, "web")) as store:
        yield store


def said(source: str, person: str, event: str) -> Any:
    """Return what *source* sends about a person."""
    if source == "shop":
        return {"type": "contact.updated", "timestamp": "2026-03-01T10:00:00Z", "data": {"id": person, "n": event}}
    return {"id": person, "n": event}


@ids
@pytest.mark.parametrize("source", ["shop", "legacy"])
def test_ids_that_a_database_would_make_one_make_no_two_persons_one(site: Site, source: str, odd: str) -> None:
    for number, person in enumerate((f"a{odd}b", "a\ufffdb", f"a{odd}", "ab")):
        assert site.send(source, said(source, person, f"{number}")).status_code == 200
    site.process(source)
    assert [one.key.source_id for one in site.store.contact_page(Filter(), None, 10).items] == ["ab"]
    entries = site.store.audit_page(Filter(kind="inbound"), None, 10).items
    assert {one.outcome for one in entries} == {"unreadable"}
    assert all("no text" in one.reason for one in entries)
    outcomes = [one.outcome for one in site.store.inbound_page(Filter(), None, 10).items]
    assert sorted(outcomes) == [Outcome.PROCESSED] + [Outcome.UNREADABLE] * 3
    assert {one["outcome"] for one in site.get("/inbound")["items"]} == {"processed", "unreadable"}


@ids
def test_what_is_odd_in_a_webhook_is_kept_byte_for_byte_and_its_person_is_found(site: Site, odd: str) -> None:
    data = {"id": "7", "name": f"A{odd}a", f"na{odd}me": odd, "nested": {odd: [odd]}, "phone": odd, "tier": "gold"}
    event = {"type": f"contact{odd}.updated", "timestamp": "2026-03-01T10:00:00Z", "data": data}
    answer = site.send("shop", event)
    assert answer.status_code == 200
    site.process()
    stored = site.store.inbound(answer.json()["id"])
    assert stored is not None
    assert stored.body == json.dumps(event).encode()
    assert stored.outcome is Outcome.PROCESSED
    assert site.get("/contacts/shop/7")["source_id"] == "7"
    assert len(site.get("/deliveries", source_id="7")["items"]) == 2


@ids
def test_whatever_somebody_asks_for_is_answered(site: Site, odd: str) -> None:
    contacts = {"contacts": [{"source": "shop", "source_id": f"a{odd}"}]}
    assert site.api("POST", "/replay", json=contacts).status_code in {200, 422}
    for paused in (f"because {odd}", odd):
        assert site.api("POST", "/targets/sms/pause", json={"reason": paused}).status_code in {200, 422}
        assert site.get("/status")
    spelled = quote(f"a{odd}b", errors="surrogatepass")
    for asked in (
        f"/contacts?q={spelled}",
        f"/contacts/shop/{spelled}",
        *(f"/{name}?source=shop&source_id={spelled}" for name in ("audit", "deliveries")),
        f"/inbound?source={spelled}",
    ):
        assert site.api("GET", asked).status_code in {200, 400, 404}


@pytest.mark.parametrize("odd", ["\0", "\ufffd"], ids=["U+0000", "U+FFFD"])
def test_texts_of_platforms_and_people_are_stored_whatever_is_in_them(store: Store, odd: str) -> None:
    known = contact(JANE, email=f"j{odd}@example.com", **{f"f{odd}": "x"})
    commit(store, want(name=f"J{odd}"), contacts=[known])
    assert store.contacts([JANE]) == {JANE: known}
    ticket = store.acquire(MAIL, f"runner {odd}", NOW)
    call = Exchange("POST", f"https://mail.example/{odd}", 200, 5, f"sent {odd}", f"got {odd}")
    push(store, ticket, claim(store, ticket), f"T{odd}", exchanges=[call])
    assert delivery_of(store).state is State.SYNCED
    store.pause("mail", f"why {odd}", f"ann {odd}", NOW)
    assert store.target_status("mail").mode == "paused"
    store.note([fact(reason=f"so {odd}", detail=f"more {odd}"), AuditEntry(at=NOW, kind="login", outcome=odd)])
    store.refuse([Refusal("crm", NOW, f"because {odd}", 3)])
    assert len(store.refusals("crm")) == 1
    assert len(store.audit_page(Filter(), None, 50).items) >= 4
    assert store.lookup(f"T{odd}")


@pytest.mark.parametrize("odd", ["\0", "\ufffd"], ids=["U+0000", "U+FFFD"])
def test_a_request_with_odd_headers_is_kept_as_it_came(store: Store, odd: str) -> None:
    request = replace(
        inbound(f"key {odd}", body=odd.encode()),
        url=f"https://bridge.example/hooks/crm?q={odd}",
        headers={f"x-{odd}": odd, "x-plain": "\xe9"},
    )
    [received] = store.receive([request])
    kept = store.inbound(received.id)
    assert kept is not None
    assert (kept.headers, kept.body) == (request.headers, request.body)
    assert kept.url in {request.url, request.url.replace("\0", "\ufffd")}
    assert store.receive([request])[0].duplicate
