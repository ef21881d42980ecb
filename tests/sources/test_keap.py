"""Keap: what its hooks say, and the question that it asks before it sends any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config import load
from bridge.errors import BadPayload
from bridge.model import InboundRequest, Kind, Secret
from bridge.sources.base import Answer, Proof
from bridge.sources.keap import SOURCE, Keap, Settings, handshake
from tests import web_site
from tests.sources.kit import BASE_URL, NOW, connection, connection_of, one_change, only, parse_body, vectors
from tests.web_site import Site, open_site, write_config

AT = "2026-09-21T14:13:20Z"
SECRET = "f2a1d3c4b5"
PLAIN = Keap("crm", Settings("none"))
few = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def hook(event: str, *keys: Any) -> dict[str, Any]:
    return {"event_key": event, "object_type": event.partition(".")[0], "object_keys": list(keys)}


def asking(body: bytes = b"", **headers: str) -> InboundRequest:
    given = {"x-hook-secret": SECRET, **{name.replace("_", "-"): text for name, text in headers.items()}}
    return InboundRequest("POST", f"{BASE_URL}/hooks/crm", given, body)


# --- hooks -----------------------------------------------------------------------------------------------


def test_hooks_are_taken_at_the_url_with_a_token_only() -> None:
    one = connection("keap")
    assert one.type.proof is Proof.URL
    assert one.needs_token
    request = InboundRequest("POST", f"{BASE_URL}/hooks/crm", {}, b"x")
    assert one.source.sign(request, NOW) == request
    assert one.source.verify(request, NOW).request == request


def test_a_thousand_contacts_are_a_thousand_events() -> None:
    keys = [{"id": number, "timestamp": AT} for number in range(1, 1001)]
    events = parse_body(PLAIN, hook("contact.edit", *keys))
    assert [event.changes[0].key.source_id for event in events] == [str(number) for number in range(1, 1001)]
    assert all(event.changes[0].thin for event in events)
    assert len(parse_body(PLAIN, [hook("contact.edit", key) for key in keys])) == 1000
    with pytest.raises(BadPayload, match="more than 5,000"):
        parse_body(PLAIN, [hook("contact.edit", *keys)] * 6)


def test_a_contact_is_read_for_what_was_done_to_it_but_not_when_it_is_gone() -> None:
    told = [
        one_change(PLAIN, hook(f"contact.{word}", {"id": 1, "timestamp": AT}))
        for word in ("add", "edit", "delete")
    ]
    assert [(change.kind, change.thin) for change in told] == [
        (Kind.CREATED, True),
        (Kind.CHANGED, True),
        (Kind.DELETED, False),
    ]


def test_a_repeat_is_told_from_another_event() -> None:
    first = hook("contact.edit", {"id": 1, "timestamp": AT, "apiUrl": "https://a.example"})
    key = only(PLAIN, first).key
    assert only(PLAIN, hook("contact.edit", {"id": "1", "timestamp": AT}), NOW + timedelta(hours=1)).key == key
    others = [
        hook("contact.add", {"id": 1, "timestamp": AT}),
        hook("contact.edit", {"id": 2, "timestamp": AT}),
        hook("contact.edit", {"id": 1, "timestamp": "2026-09-21T14:13:21Z"}),
    ]
    assert len({key, *(only(PLAIN, other).key for other in others)}) == 4


@pytest.mark.parametrize("timestamp", [None, "", "2026-09-21T14:13:20", "soon", 7, {}, True])
def test_without_a_usable_time_each_receipt_counts_as_of_then(timestamp: object) -> None:
    body = hook("contact.edit", {"id": 1, "timestamp": timestamp})
    first, later = (only(PLAIN, body, at) for at in (NOW, NOW + timedelta(seconds=1)))
    assert first.changes[0].version.occurred_at == NOW
    assert first.key != later.key


@pytest.mark.parametrize("contact_id", [None, 0, -1, 1.5, True, "x", [], 10**30])
def test_one_entry_that_makes_no_sense_says_so_and_the_others_count(contact_id: object) -> None:
    bad, good = parse_body(
        PLAIN, hook("contact.edit", {"id": contact_id, "timestamp": AT}, {"id": 7, "timestamp": AT})
    )
    assert bad.unreadable == "It has no usable id of a contact."
    assert good.changes[0].key.source_id == "7"


def test_a_tag_is_told_of_each_contact_that_is_named_with_its_own_time() -> None:
    later = "2026-09-21T14:13:21Z"
    tag = {"id": 91, "timestamp": AT, "contact_details": [{"id": 1}, {"id": 2, "timestamp": later}, {"id": "x"}]}
    first, second, odd = parse_body(PLAIN, hook("contactGroup.applied", tag))
    assert [event.changes[0].key.source_id for event in (first, second)] == ["1", "2"]
    assert first.changes[0].fields == {"tag_91": True}
    assert not first.changes[0].thin
    assert second.changes[0].version.occurred_at - first.changes[0].version.occurred_at == timedelta(seconds=1)
    assert odd.unreadable
    for word in ("removed", "delete"):
        assert parse_body(PLAIN, hook(f"contactGroup.{word}", tag))[0].changes[0].fields == {"tag_91": False}
    assert only(PLAIN, hook("contactGroup.applied", {"contact_details": [{"id": 1}]})).unreadable


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[1]", b"7", b"null", b'{"event_key":7}', b'{"event_key":"contact.edit"}', b"\xff", b"a=b"],
)
def test_what_keap_never_sends_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_body(PLAIN, body)


odd: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(AT) | st.just([{}])
)
items = st.dictionaries(st.sampled_from(["id", "timestamp", "apiUrl", "contact_details"]), odd, max_size=4) | odd
hooks = st.fixed_dictionaries(
    {"event_key": st.sampled_from(["contact.edit", "contact.delete", "contactGroup.applied", "x"]) | odd},
    optional={"object_keys": st.lists(items, max_size=4) | odd, "object_type": odd},
)


@given(body=hooks | st.lists(hooks, max_size=2))
@few
def test_any_hook_ends_in_a_bad_payload_or_events_that_can_be_stored(body: object) -> None:
    try:
        events = parse_body(PLAIN, body)
    except BadPayload as error:
        assert str(error).endswith(".")
        return
    assert events
    assert len({event.key for event in events}) == len(events)
    for event in events:
        assert bool(event.changes) + bool(event.ignored) + bool(event.unreadable) == 1
        assert all(change.version.occurred_at <= NOW + timedelta(minutes=5) for change in event.changes)
        json.dumps([[change.key.source_id, dict(change.fields)] for change in event.changes]).encode()


@pytest.mark.parametrize(
    "more",
    [{"access": "api_key"}, {"access": "bearer", "token": Secret(" ")}, {"access": "none", "token": Secret("t")}],
)
def test_access_and_token_go_together(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"token|access"):
        Keap("crm", Settings(**more))


def test_what_calls_the_api_is_there_with_a_token_only() -> None:
    with_token = connection_of('[sources.crm]\ntype = "keap"\naccess = "api_key"\ntoken = "t"\n')
    without = connection("keap")
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(without.settings) == "https://api.infusionsoft.com"
    assert (with_token.source.can_read(), without.source.can_read()) == (True, False)
    for make in (SOURCE.lister, SOURCE.registrar, SOURCE.writer):
        assert make is not None
        assert make("crm", with_token.settings) is not None
        assert make("crm", without.settings) is None


# --- the question ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", vectors("keap"), ids=lambda one: str(one["id"]))
def test_the_vectors(vector: dict[str, Any]) -> None:
    asked = {name.lower(): text for name, text in vector["request"]["headers"].items()}
    request = InboundRequest(vector["request"]["method"], BASE_URL, asked, vector["request"]["body"].encode())
    answer = handshake(request)
    assert answer is not None
    assert answer.headers == vector["response"]["headers"]


@pytest.mark.parametrize(
    "body", [b"", b" ", b"{}", b"[]", b"a=b", b"\xff", json.dumps(hook("contact.edit")).encode()]
)
def test_whatever_stands_in_it_the_question_is_answered(body: bytes) -> None:
    assert handshake(asking(body)) == Answer(b"{}", "application/json", {"X-Hook-Secret": SECRET})


def test_what_holds_events_is_no_question_whatever_its_headers() -> None:
    body = hook("contact.edit", {"id": 1, "timestamp": AT})
    for one in (body, [body]):
        assert handshake(asking(json.dumps(one).encode())) is None
    assert only(PLAIN, body, x_hook_secret=SECRET).changes


@pytest.mark.parametrize("secret", ["", " ", "a b", "a\r\nSet-Cookie: b", "a\x00", "é", "x" * 501])
def test_what_is_no_secret_is_not_echoed(secret: str) -> None:
    assert handshake(asking(x_hook_secret=secret)) is None


def test_who_does_not_ask_is_not_answered() -> None:
    assert handshake(replace(asking(), headers={})) is None


@given(body=st.binary(max_size=40), secret=st.text(max_size=20))
@few
def test_any_request_is_answered_with_what_it_sent_or_not_at_all(body: bytes, secret: str) -> None:
    answer = handshake(asking(body, x_hook_secret=secret))
    assert answer is None or answer.headers == {"X-Hook-Secret": secret}


# --- through the web -------------------------------------------------------------------------------------

TOML = """
[bridge]
public_url = "https://bridge.example.com"

[sources.keap]
type = "keap"
access = "none"

[targets.inbox]
type = "clerk_chat"
api_key = "$KEY"

[[routes]]
source = "keap"
target = "inbox"
fields = { phone = "phone" }
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(web_site, "_load", lambda folder, _: load(write_config(folder, TOML), {"KEY": "k"}))
    with open_site(tmp_path, change_type=lambda one: one) as opened:
        yield opened


def ask(site: Site, path: str, body: bytes = b"") -> Any:
    headers = {"X-Hook-Secret": SECRET, "Content-Type": "application/json"}
    return site.session.post(f"{site.url}/hooks/keap{path}", data=body, headers=headers, timeout=5)


def test_the_question_is_answered_at_the_url_with_the_token(site: Site) -> None:
    answer = ask(site, f"/{site.token('keap')}")
    assert answer.status_code == 200
    assert answer.headers.get("X-Hook-Secret") == SECRET
    assert site.inbounds() == 0


def test_who_asks_anywhere_else_is_refused_and_hears_nothing_of_what_he_sent(site: Site) -> None:
    token = site.token("keap")
    site.store.revoke_tokens("keap", NOW)
    for path in ("", "/", f"/{token}", f"/{token}x", f"/{token[:-1]}", "/x"):  # all of them: it was revoked
        answer = ask(site, path)
        assert answer.status_code == 401, path
        assert "X-Hook-Secret" not in answer.headers
        assert SECRET not in answer.text
    assert site.inbounds() == 0


def test_events_that_carry_the_secret_are_taken_in(site: Site) -> None:
    body = json.dumps(hook("contact.edit", {"id": 1, "timestamp": AT})).encode()
    answer = ask(site, f"/{site.token('keap')}", body)
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    assert "X-Hook-Secret" not in answer.headers
    stored = site.store.inbound(answer.json()["id"])
    assert stored is not None
    assert "x-hook-secret" not in stored.headers
