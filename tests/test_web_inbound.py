"""Webhooks arrive: what is stored, what the sender hears, and what nobody learns."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.database import Database
from bridge.errors import StoreUnavailable
from bridge.model import InboundRequest, Outcome, utc_now
from bridge.sources.base import Answer
from bridge.store.protocol import Filter, NewInbound, Received
from bridge.web.inbound import as_received
from bridge.web.tokens import LIVE_FOR_S, Tokens, make_token, read_token
from tests.databases import sqlite_is_enough
from tests.web_site import PUBLIC_URL, SECRET_KEY, Site, open_site, until

CONTACT = {"type": "contact.updated", "timestamp": "2026-03-01T10:00:00Z", "data": {"id": "7", "name": "Ada"}}


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    with open_site(tmp_path, database=database) as opened:
        yield opened


# --- what is taken in ------------------------------------------------------------------------------------


def test_a_signed_webhook_is_on_disk_when_its_sender_hears_so(site: Site) -> None:
    answer = site.send("shop", CONTACT)
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    stored = site.store.inbound(answer.json()["id"])
    assert stored is not None
    assert json.loads(stored.body or b"") == CONTACT
    assert (stored.source, stored.outcome, stored.events) == ("shop", Outcome.ACCEPTED, 1)
    assert stored.url == f"{PUBLIC_URL}/hooks/shop"


@sqlite_is_enough
def test_a_receipt_has_the_time_of_the_clock_that_all_machines_share(tmp_path: Path, database: Database) -> None:
    late = timedelta(minutes=2)
    with open_site(tmp_path, database=database, clock=lambda: utc_now() + late) as site:
        stored = site.store.inbound(site.send("shop", CONTACT).json()["id"])
        assert site.post(InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {}, b"{}")).status_code == 401
        site.commit.close()
        [refusal] = site.store.refusals("shop")
    assert stored is not None
    for moment in (stored.received_at, refusal.at):
        assert abs(moment - utc_now() - late) < timedelta(minutes=1)


def test_the_same_webhook_again_is_a_duplicate(site: Site) -> None:
    request = site.signed("shop", json.dumps(CONTACT).encode())
    first = site.post(request)
    assert first.json()["status"] == "accepted"
    again = site.post(request)
    assert (again.status_code, again.json()) == (200, {"status": "duplicate"})
    stored = site.store.inbound(first.json()["id"])
    assert stored is not None
    assert stored.repeats == 1


def test_what_is_signed_but_not_what_the_source_sends_is_kept_and_answered_with_400(site: Site) -> None:
    request = site.signed("crm", b"not json")
    answer = site.post(request)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    [stored] = site.store.inbound_page(Filter(outcome="unreadable"), None, 10).items
    assert stored.body == b"not json"
    assert site.post(request).status_code == 400
    assert site.inbounds() <= 2


@sqlite_is_enough
def test_a_bug_in_a_parser_costs_nobody_his_webhook(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[object]:
        raise ZeroDivisionError("ada@example.com")

    monkeypatch.setattr(site.config.sources["shop"].source, "parse", broken)
    answer = site.send("shop", CONTACT)
    assert answer.status_code == 200
    stored = site.store.inbound(answer.json()["id"])
    assert stored is not None
    assert json.loads(stored.body or b"") == CONTACT
    assert "ZeroDivisionError" in stored.reason
    assert "ada@example.com" not in stored.reason


def test_the_bytes_are_kept_as_they_came(site: Site) -> None:
    body = b'\t{"id": "1",\r\n "name": "Yll\xc3\xa4 \xf0\x9f\x8e\x89", "half": "\\ud800"}  '
    answer = site.post(site.signed("legacy", body))
    assert answer.status_code == 200
    stored = site.store.inbound(answer.json()["id"])
    assert stored is not None
    assert stored.body == body


def test_headers_that_are_not_ascii_are_read_as_latin_1(site: Site) -> None:
    request = site.signed("legacy", b'{"id": "1"}')
    with socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2])), timeout=5) as raw:
        head = f"POST /hooks/legacy HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request.body)}\r\n"
        signature = request.headers["x-signature"]
        raw.sendall(head.encode() + f"X-Signature: {signature}\r\nUser-Agent: ".encode() + b"caf\xe9\r\n")
        raw.sendall(b"Connection: close\r\n\r\n" + request.body)
        assert raw.recv(64).startswith(b"HTTP/1.1 200")


@sqlite_is_enough
def test_a_trailing_slash_is_no_redirect_because_senders_follow_none(site: Site) -> None:
    request = site.signed("shop", json.dumps(CONTACT).encode(), path="/hooks/shop/")
    assert site.post(request).status_code == 200


@sqlite_is_enough
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_crm_that_looks_whether_the_url_answers_sees_that_it_does(site: Site, method: str) -> None:
    for path in ("/hooks/shop", "/hooks/shop/", "/hooks/shop/any-token"):
        answer = site.session.request(method, site.url + path, timeout=5)
        assert (answer.status_code, answer.content) == (200, b"")
    assert site.session.request(method, f"{site.url}/hooks/nobody", timeout=5).status_code == 404


@sqlite_is_enough
def test_other_methods_are_told_which_ones_there_are(site: Site) -> None:
    answer = site.session.put(f"{site.url}/hooks/shop", data=b"x", timeout=5)
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]


@sqlite_is_enough
def test_an_unknown_source_is_404(site: Site) -> None:
    assert site.session.post(f"{site.url}/hooks/nobody", data=b"{}", timeout=5).status_code == 404


# --- what is not taken in --------------------------------------------------------------------------------


def test_every_refusal_looks_the_same_and_leaves_only_a_count(site: Site) -> None:
    good = site.signed("shop", json.dumps(CONTACT).encode())
    stale = {**good.headers, "webhook-timestamp": "1700000000"}
    unsigned = {name: value for name, value in good.headers.items() if not name.startswith("webhook-")}
    answers = [
        site.post(replace(good, body=good.body + b" ")),
        site.post(replace(good, headers=stale)),
        site.post(replace(good, headers=unsigned)),
        site.post(replace(good, headers={**good.headers, "webhook-signature": "v1,\xff\xfe"})),
    ]
    heard = {(one.status_code, one.content, one.headers["Content-Type"]) for one in answers}
    assert heard == {(401, b'{"status":"refused"}', "application/json")}
    until(lambda: len(site.store.refusals("shop")) == len(answers))
    assert site.inbounds() == 0
    assert all(one.reason and "whsec" not in one.reason for one in site.store.refusals("shop"))


@sqlite_is_enough
def test_a_bug_in_a_check_proves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(site.config.sources["shop"].source, "verify", broken)
    assert site.send("shop", CONTACT).status_code == 401
    until(lambda: "KeyError" in site.store.refusals("shop")[0].reason if site.store.refusals("shop") else False)


def test_a_flood_of_refusals_keeps_the_last_200_and_counts_all(site: Site) -> None:
    for _ in range(230):
        site.session.post(f"{site.url}/hooks/legacy", data=b"{}", timeout=5)
    until(lambda: site.store.health(utc_now()).inbound.get("refused") == 230)
    assert len(site.store.refusals("legacy")) == 200


@sqlite_is_enough
def test_a_body_over_the_limit_is_413_however_it_is_announced(site: Site) -> None:
    large = b'{"id": "' + b"x" * 70_000 + b'"}'
    assert site.post(site.signed("legacy", large)).status_code == 413
    assert site.inbounds() == 0
    fits = b'{"id": "1", "a": "' + b"x" * 60_000 + b'"}'
    assert site.post(site.signed("legacy", fits)).status_code == 200


@sqlite_is_enough
def test_a_compressed_body_is_415(site: Site) -> None:
    request = site.signed("legacy", gzip.compress(b'{"id": "1"}'))
    for encoding in ("gzip", "GZIP", "identity, gzip", "br"):
        headers = {**request.headers, "content-encoding": encoding}
        assert site.post(replace(request, headers=headers)).status_code == 415
    plain = site.signed("legacy", b'{"id": "1"}', **{"content-encoding": "identity"})
    assert site.post(plain).status_code == 200


@sqlite_is_enough
def test_what_cannot_be_stored_is_503_and_the_sender_keeps_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: NewInbound) -> Received:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr(site.commit, "receive", full)
    answer = site.send("shop", CONTACT)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "disk" not in answer.text
    monkeypatch.undo()
    assert site.send("shop", CONTACT).json()["status"] == "accepted"


# --- the URL that is signed ------------------------------------------------------------------------------


@sqlite_is_enough
def test_the_signed_url_is_the_public_one_whatever_the_host_header_says(site: Site) -> None:
    event = [{"eventId": 1, "portalId": 2, "objectId": 3, "subscriptionType": "contact.creation", "occurredAt": 1}]
    request = site.signed("hubspot", json.dumps(event).encode(), path="/hooks/hubspot?a=%2F&b=%21")
    headers = {**request.headers, "host": "elsewhere.example.net", "x-forwarded-host": "evil.example"}
    assert site.post(replace(request, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("/hooks/shop?a=%2f&b=+", f"{PUBLIC_URL}/hooks/shop?a=%2f&b=+"),
        ("http://evil.example/hooks/shop", f"{PUBLIC_URL}/hooks/shop"),
        ("http://evil.example", f"{PUBLIC_URL}/"),
        ("//evil.example/hooks", f"{PUBLIC_URL}//evil.example/hooks"),
    ],
)
def test_the_raw_target_is_joined_to_the_public_url(target: str, url: str) -> None:
    for name in ("RAW_URI", "REQUEST_URI"):
        environ = {"REQUEST_METHOD": "POST", name: target, "HTTP_HOST": "evil.example", "PATH_INFO": "/x"}
        assert as_received(environ, PUBLIC_URL + "/", b"").url == url


def test_header_names_are_lower_case_with_hyphens() -> None:
    environ = {"REQUEST_METHOD": "POST", "HTTP_X_SIGNATURE": "a", "CONTENT_TYPE": "b", "CONTENT_LENGTH": ""}
    assert as_received(environ, PUBLIC_URL, b"").headers == {"x-signature": "a", "content-type": "b"}


# --- what a sender wants to read -------------------------------------------------------------------------


def test_a_source_may_have_its_own_answer(tmp_path: Path) -> None:
    ack = Answer(b"<Ack>true</Ack>", "text/xml; charset=utf-8")

    def challenge(request: object) -> Answer | None:
        body = getattr(request, "body", b"")
        return Answer(body, "application/json") if b"challenge" in body else None

    with open_site(tmp_path, change_type=lambda one: replace(one, accepted=ack, handshake=challenge)) as site:
        request = site.signed("shop", json.dumps(CONTACT).encode())
        for _ in range(2):
            answer = site.post(request)
            assert (answer.status_code, answer.content) == (200, ack.body)
            assert answer.headers["Content-Type"] == ack.content_type
        asked = site.session.post(f"{site.url}/hooks/shop", data=b'{"challenge":"abc"}', timeout=5)
        assert (asked.status_code, asked.json()) == (200, {"challenge": "abc"})
        assert site.inbounds() == 1


# --- secret URLs -----------------------------------------------------------------------------------------

BODY = b'{"id": "5"}'


def test_a_source_that_needs_a_token_takes_its_secret_url_only(site: Site) -> None:
    token = site.token("guarded")
    assert site.post(site.signed("guarded", BODY)).status_code == 401
    assert site.post(site.signed("guarded", BODY, path=f"/hooks/guarded/{token}x")).status_code == 401
    assert site.post(site.signed("guarded", BODY, path=f"/hooks/guarded/{token}")).status_code == 200


@sqlite_is_enough
def test_a_token_does_not_stand_in_for_the_signature(site: Site) -> None:
    token = site.token("guarded")
    answer = site.session.post(f"{site.url}/hooks/guarded/{token}", data=BODY, timeout=5)
    assert answer.status_code == 401


@sqlite_is_enough
def test_a_token_of_one_source_is_nothing_to_another(site: Site) -> None:
    token = site.token("shop")
    assert site.post(site.signed("legacy", BODY, path=f"/hooks/legacy/{token}")).status_code == 401


def test_the_token_is_never_stored(site: Site) -> None:
    token = site.token("guarded")
    for path in (f"/hooks/guarded/{token}?x=1", f"/hooks/guarded/%{ord(token[0]):02x}{token[1:]}"):
        answer = site.post(site.signed("guarded", BODY + b" " * len(path), path=path))
        assert answer.status_code == 200
        stored = site.store.inbound(answer.json()["id"])
        assert stored is not None
        assert token[1:] not in stored.url
        assert stored.url.startswith(f"{PUBLIC_URL}/hooks/guarded/…")


def test_a_revoked_token_is_refused_within_seconds(site: Site) -> None:
    clock = [100.0]
    tokens = Tokens(SECRET_KEY, site.store, lambda: clock[0])
    token = site.token("guarded")
    assert tokens.good("guarded", token)
    site.store.revoke_tokens("guarded", utc_now())
    assert tokens.good("guarded", token)
    clock[0] += LIVE_FOR_S
    assert not tokens.good("guarded", token)


def test_only_a_token_that_we_signed_is_looked_up() -> None:
    token = make_token(SECRET_KEY, "shop", "t1")
    assert read_token(SECRET_KEY, "shop", token) == "t1"
    assert read_token("another", "shop", token) is None
    assert read_token(SECRET_KEY, "legacy", token) is None
    assert read_token("", "shop", make_token("", "shop", "t1")) is None
    for garbage in ("", "x", "é" * 20, "a.b", token[:-1], "." * 600):
        assert read_token(SECRET_KEY, "shop", garbage) is None
