"""Senders of JSON that show a secret, and what they share with senders of forms."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config import load
from bridge.errors import BadSignature, ConfigError
from bridge.model import InboundRequest, RecordKey, Secret, State
from bridge.sources import json_scheme, shown
from bridge.sources.base import Source
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.kit import BASE_URL, NOW, connection_of, one_change, only, vectors

REQUEST = InboundRequest("POST", f"{BASE_URL}/hooks/crm", {"content-type": "application/json"}, b"{}")
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def source(more: str, kind: str = "json") -> Source:
    return connection_of(f'[sources.crm]\ntype = "{kind}"\n{more}\n').source


def showing(**headers: str) -> InboundRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return InboundRequest("POST", REQUEST.url, named, b"{}")


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def index(of: Source, **headers: str) -> int:
    return of.verify(showing(**headers), NOW).secret_index


# --- what is shown ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "form"])
def test_the_old_token_is_taken_while_the_new_one_spreads(kind: str) -> None:
    both = source('secrets = ["new", "old"]', kind)
    assert index(both, x_bridge_token="new") == 0
    assert index(both, x_bridge_token="old") == 1
    assert both.sign(REQUEST, NOW).headers["x-bridge-token"] == "new"
    for wrong in ("", "ne", "newer", "NEW", "new,old", "new, new", "nëw", "\udcff", " new"):
        with pytest.raises(BadSignature) as caught:
            index(both, x_bridge_token=wrong)
        assert "new" not in str(caught.value)


def test_a_token_may_stand_behind_a_word_in_any_header() -> None:
    bearer = source('secrets = ["t-1"]\nheader = "Authorization"\nprefix = "Bearer "')
    assert index(bearer, authorization="Bearer t-1") == index(bearer, authorization="bearer t-1") == 0
    assert bearer.sign(REQUEST, NOW).headers["authorization"] == "Bearer t-1"
    for wrong in ("t-1", "Bearert-1", "Bearer  t-1", "Bearer T-1", "Bearer ", "Basic t-1"):
        with pytest.raises(BadSignature):
            index(bearer, authorization=wrong)


@pytest.mark.parametrize("vector", vectors("basic"), ids=lambda one: str(one["id"]))
def test_basic_is_written_as_everywhere(vector: dict[str, str]) -> None:
    user, password = vector["http_auth_user"], vector["http_auth_password"]
    one = source(f'secrets = []\nlogin = {{ user = "{user}", passwords = ["{password}"] }}')
    assert index(one, authorization=vector["authorization"]) == 0
    assert one.sign(REQUEST, NOW).headers["authorization"] == vector["authorization"]


def test_basic_takes_several_passwords_and_stands_beside_tokens() -> None:
    alone = source('secrets = []\nlogin = { user = "bridge", passwords = ["nëw:1", "old"] }')
    assert index(alone, authorization=basic("bridge", "nëw:1")) == 0
    assert index(alone, authorization=basic("bridge", "old")) == 1
    assert alone.sign(REQUEST, NOW).headers["authorization"] == basic("bridge", "nëw:1")
    for header in (basic("bridge", "x"), basic("other", "old"), "Basic", "Basic !", ""):
        with pytest.raises(BadSignature):
            index(alone, authorization=header)
    either = source('secrets = ["t"]\nlogin = { user = "bridge", passwords = ["p"] }')
    assert index(either, x_bridge_token="t") == 0
    assert index(either, authorization=basic("bridge", "p")) == 1
    assert index(either, x_bridge_token="wrong", authorization=basic("bridge", "p")) == 1
    with pytest.raises(BadSignature, match="x-bridge-token"):
        index(either, x_bridge_token="wrong", authorization=basic("bridge", "wrong"))


@pytest.mark.parametrize("kind", ["json", "form"])
def test_who_shows_nothing_needs_the_token_of_the_url(kind: str) -> None:
    section = f'[sources.crm]\ntype = "{kind}"\nsecrets = []\n'
    url_only = connection_of(f"{section}require_token = true\n")
    assert url_only.needs_token
    assert url_only.source.verify(showing(), NOW).secret_index == 0
    assert url_only.source.sign(REQUEST, NOW) == REQUEST
    for more in ("", "require_token = false\n"):
        with pytest.raises(ConfigError, match=r"require_token: without secrets and login nothing else proves"):
            connection_of(section + more)
    # What shows something may leave the token out, or want both.
    shows = '[sources.crm]\ntype = "json"\nsecrets = ["t"]\n'
    assert not connection_of(shows).needs_token
    both = connection_of(f"{shows}require_token = true\n")
    assert both.needs_token
    with pytest.raises(BadSignature):
        both.source.verify(showing(), NOW)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('secrets = ["tökén"]', "secrets: one holds letters that no header has"),
        ('secrets = ["a\\nb"]', "secrets: one holds letters that no header has"),
        ('secrets = ["t"]\nheader = "X Token"', "header: this is no name of a header"),
        ('secrets = ["t"]\nheader = ""', "header: this is no name of a header"),
        ('secrets = ["t"]\nprefix = "Bärer "', "prefix: it holds letters that no header has"),
        ('secrets = []\nlogin = { user = "a:b", passwords = ["p"] }', "must not hold a colon"),
        ('secrets = []\nlogin = { user = "a", passwords = [] }', "login: at least one is needed"),
        ('secrets = ["t"]\npayload = { id = "item." }', r"payload.id: "),
    ],
)
def test_what_proves_nothing_is_refused_by_its_key(section: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        source(section)
    assert "tökén" not in str(caught.value)


def test_an_empty_token_is_refused_wherever_it_comes_from() -> None:
    for value in ("", "  \n"):
        with pytest.raises(ValueError, match="secrets: one is empty"):
            shown.in_header([Secret("t"), Secret(value)])


def test_the_header_with_the_secret_is_not_stored_whatever_its_name() -> None:
    odd = source('secrets = ["t"]\nheader = "X-Shop"')
    genuine = odd.verify(showing(x_shop="t", x_event="e"), NOW)
    assert dict(genuine.request.headers) == {"x-event": "e"}
    assert genuine.request.body == b"{}"
    reads = "{'seen': headers['x-shop'] | default('nothing')}"
    reading = source(f'secrets = ["t"]\nheader = "X-Shop"\npayload = {{ fields = "{reads}" }}')
    assert one_change(reading, {"data": {"id": 1}}).fields == {"seen": "nothing"}


@few
@given(text=st.text(max_size=20))
def test_any_other_text_is_refused_and_nothing_else_is_raised(text: str) -> None:
    with pytest.raises(BadSignature):
        index(source_of_one_token(), x_bridge_token=text + "x")


def source_of_one_token() -> Source:
    return json_scheme.SOURCE.make("crm", json_scheme.Settings((Secret("token"),)))


@few
@given(token=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30))
def test_any_token_of_visible_letters_works(token: str) -> None:
    one = json_scheme.SOURCE.make("crm", json_scheme.Settings((Secret(f"{token}\n"),)))
    assert one.verify(one.sign(REQUEST, NOW), NOW).secret_index == 0


# --- the body --------------------------------------------------------------------------------------------


def test_a_repeat_is_told_by_the_senders_id_else_by_time_and_content() -> None:
    named = source('secrets = ["t"]\npayload = { event_id = "item.event" }')
    first = only(named, {"event": "e", "data": {"id": 1, "a": "b"}})
    assert only(named, {"event": "e", "data": {"id": 1, "a": "c"}}).key == first.key
    plain = source('secrets = ["t"]')
    timed: dict[str, Any] = {"timestamp": 1_790_000_000, "data": {"id": 1}}
    assert only(plain, timed).key == only(plain, timed).key != only(plain, {"data": {"id": 1}}).key


def test_a_batch_is_read_item_by_item() -> None:
    batch = source('secrets = ["t"]\npayload = { items = "body.people", id = "item.id", fields = "item" }')
    events = batch.parse(
        batch.verify(
            batch.sign(InboundRequest("POST", REQUEST.url, {}, b'{"people": [{"id": 1}, {"id": 2}, 7]}'), NOW), NOW
        ),
        NOW,
    )
    assert [len(event.changes) for event in events] == [1, 1, 0]
    assert events[2].unreadable


# --- all the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "content_type", "body"),
    [
        (
            'type = "json"\nsecrets = []\nlogin = { user = "shop", passwords = ["$SHOP_SECRET"] }',
            "application/json",
            b'{"type": "changed", "timestamp": 1790000000, "data": {"id": "84001", "email": "ada@example.com", '
            b'"phone": "+525512340001", "name": "Ada"}}',
        ),
        (
            'type = "form"\nsecrets = ["$SHOP_SECRET"]',
            "application/x-www-form-urlencoded",
            b"type=changed&timestamp=1790000000&data[id]=84001&data[email]=ada%40example.com"
            b"&data[phone]=%2B525512340001&data[name]=Ada",
        ),
    ],
    ids=["json", "form"],
)
def test_a_webhook_reaches_all_four_platforms(
    section: str, content_type: str, body: bytes, tmp_path: Path
) -> None:
    with serve_platforms() as platforms:
        path = platforms.write_config(tmp_path)
        path.write_text(
            path.read_text().replace('type = "standard_webhooks"\nsecrets = ["$SHOP_SECRET"]', section, 1)
        )
        config = load(path, platforms.environ)
        with open_bench(tmp_path, config) as bench:
            request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {"content-type": content_type}, body)
            bench.receive(config.sources["shop"].source.sign(request, bench.now()))
            bench.settle()
            states = {one.target: one.state for one in bench.store.deliveries_of(RecordKey("shop", "84001"))}
            assert states == dict.fromkeys(("marketing", "sms", "inbox", "register"), State.SYNCED)
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
