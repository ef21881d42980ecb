"""What is particular to monday.com: a token that leaves out the body, a question, and columns of many shapes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import BadPayload, BadSignature, ConfigError
from bridge.model import Change, InboundRequest, Kind, iso
from bridge.sources import SOURCES
from bridge.sources.base import Proof, Source
from bridge.sources.monday import handshake
from bridge.sources.sampling import Sampling
from tests.sources.kit import BASE_URL, NOW, connection, connection_of, one_change, only, parse_body, vectors

MONDAY = connection("monday").source
SECRET = "monday-signing-secret-0001"
URL = f"{BASE_URL}/hooks/crm"
CHALLENGE, JWT = vectors("monday")
AT = datetime.fromtimestamp(1_790_000_000, UTC)
few = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def by_url() -> Source:
    return connection_of(
        '[sources.crm]\ntype = "monday"\nboard_id = 1\nproof = "url"\nrequire_token = true\n'
    ).source


def part(value: object) -> str:
    content = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def token(claims: object, head: object = None, *, secret: str = SECRET, digest: str = "sha256") -> str:
    content = f"{part({'alg': 'HS256', 'typ': 'JWT'} if head is None else head)}.{part(claims)}"
    return f"{content}.{part(hmac.digest(secret.encode(), content.encode(), digest))}"


def asking(authorization: str, url: str = URL, body: bytes = b"{}") -> InboundRequest:
    return InboundRequest("POST", url, {"authorization": authorization}, body)


def refused(request: InboundRequest, now: datetime = AT, source: Source = MONDAY) -> str:
    with pytest.raises(BadSignature) as caught:
        source.verify(request, now)
    assert SECRET not in str(caught.value)
    return str(caught.value)


GOOD = {"accountId": 1825529, "userId": 4012689, "aud": URL, "exp": 1_790_000_300, "iat": 1_790_000_000}


# --- the token -------------------------------------------------------------------------------------------


def test_the_token_of_the_reference_is_taken_and_wrong_ones_are_not() -> None:
    url, good = "https://bridge.example.com/webhooks/monday", JWT["authorization"]
    assert token(json.loads(JWT["payload"])) == good
    genuine = MONDAY.verify(asking(good, url), AT)
    assert (genuine.secret_index, genuine.signed_at) == (0, AT)
    assert MONDAY.verify(asking(f"Bearer {good}", url), AT).secret_index == 0
    head, claims, signature = good.split(".")
    for wrong in (
        f"{head}.{claims}.",
        f"{head}.{claims}",
        f"{head}.{claims}.{signature}=",
        f"{head}.{claims}.{signature[:-1]}Z",
        f"{head}.{claims}.{signature.upper()}",
        f"{head}.{claims}A.{signature}",
        f"{good},{good}",
        f"{good} ",
        f"Basic {good}",
        "",
        ".",
        "..",
        "é.é.é",
        "a" * 10_000,
    ):
        if wrong.strip() != good:
            refused(asking(wrong, url))


@pytest.mark.parametrize("algorithm", ["none", "None", "HS512", "hs256", "RS256", "", None, 7])
def test_no_other_algorithm_is_taken_whatever_the_token_says(algorithm: object) -> None:
    assert "HS256" in refused(asking(token(GOOD, {"alg": algorithm, "typ": "JWT"})))
    unsigned = f"{part({'alg': algorithm})}.{part(GOOD)}."
    refused(asking(unsigned))
    refused(asking(token(GOOD, digest="sha512")))
    assert "HS256" in refused(asking(token(GOOD, {"alg": "HS256", "crit": ["b64"]})))


ENDS: tuple[object, ...] = (None, "1790000300", True, -5, 0, 1e300, [], {})
OTHERS: tuple[object, ...] = ("https://elsewhere.example.com", ["x"], 7, {"a": 1}, f"{URL}/other")
OURS: tuple[object, ...] = (None, "", [], URL, f"{URL}/", [URL, "x"])


def test_a_token_without_an_end_is_refused_and_one_that_ended_too() -> None:
    for wrong in ENDS:
        assert "when it ends" in refused(asking(token({**GOOD, "exp": wrong})))
    assert "when it ends" in refused(asking(token({name: GOOD[name] for name in ("aud", "iat")})))
    request = asking(token(GOOD))
    end = AT + timedelta(seconds=300)
    assert MONDAY.verify(request, end + timedelta(seconds=60)).secret_index == 0  # clocks differ
    assert "has ended" in refused(request, end + timedelta(seconds=61))
    starts: tuple[object, ...] = (1_790_000_100, "now", None)
    for start in starts:
        assert "not good yet" in refused(asking(token({**GOOD, "nbf": start})))
    assert MONDAY.verify(asking(token({**GOOD, "nbf": 1_790_000_060})), AT).secret_index == 0


def test_a_token_for_another_url_is_refused_and_one_for_none_is_taken() -> None:
    for audience in OTHERS:
        assert "another URL" in refused(asking(token({**GOOD, "aud": audience})))
    for audience in OURS:
        assert MONDAY.verify(asking(token({**GOOD, "aud": audience})), AT).secret_index == 0
    assert MONDAY.verify(asking(token(GOOD), f"{URL}?a=b"), AT).secret_index == 0
    section = f'[sources.crm]\ntype = "monday"\nboard_id = 1\nsecrets = ["{SECRET}"]\naudience = "my-app"\n'
    source = connection_of(section).source
    assert source.verify(asking(token({**GOOD, "aud": "my-app"})), AT).secret_index == 0
    assert source.verify(source.sign(asking(""), AT), AT).secret_index == 0
    refused(asking(token({**GOOD, "aud": "other-app"})), source=source)


def test_either_secret_is_good_while_it_is_changed() -> None:
    section = f'[sources.crm]\ntype = "monday"\nboard_id = 1\nsecrets = ["new", "{SECRET}"]\n'
    source = connection_of(section).source
    assert source.verify(asking(token(GOOD)), AT).secret_index == 1
    assert source.verify(asking(token(GOOD, secret="new")), AT).secret_index == 0
    assert "does not match" in refused(asking(token(GOOD, secret="old")), source=source)


def test_the_token_says_nothing_of_the_body_and_the_type_does_not_claim_it() -> None:
    """Whoever copies one can send any body with it, until it ends."""
    signed = MONDAY.sign(asking("", body=b'{"event":{}}'), AT)
    assert MONDAY.verify(replace(signed, body=b'{"event":{"type":"delete_pulse"}}'), AT).secret_index == 0
    assert SOURCES["monday"].proof is Proof.SHOWN


@few
@given(head=st.binary(max_size=30), claims=st.binary(max_size=30), tail=st.text(max_size=20))
def test_garbage_in_the_header_is_refused_and_nothing_else(head: bytes, claims: bytes, tail: str) -> None:
    content = f"{part(head)}.{part(claims)}"
    signature = part(hmac.digest(SECRET.encode(), content.encode(), "sha256"))
    for text in (f"{content}.{signature}", f"{content}.{tail}", tail):
        refused(asking(text))
    signed = f"{part({'alg': 'HS256'})}.{part(claims)}"
    refused(asking(f"{signed}.{part(hmac.digest(SECRET.encode(), signed.encode(), 'sha256'))}"))


# --- the configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('proof = "url"', "require_token"),
        ('proof = "url"\nrequire_token = false', "require_token"),
        ('proof = "url"\nrequire_token = true\nsecrets = ["s"]', "secrets"),
        ("", "secrets"),
        ('secrets = [""]', "secrets"),
        ('secrets = ["s"]\ncolumns = { name = "text_1" }', "columns"),
        ('secrets = ["s"]\ncolumns = { a = "text_1", b = "text_1" }', "columns"),
        ('secrets = ["s"]\ncolumns = { a = "" }', "columns"),
        ('secrets = ["s"]\ntoken = " "', "token"),
        ('secrets = ["s"]\nproof = "none"', "proof"),
    ],
)
def test_what_proves_nothing_or_cannot_work_is_refused_by_name(lines: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"crm\.{said}"):
        connection_of(f'[sources.crm]\ntype = "monday"\nboard_id = 1\n{lines}\n')


def test_the_board_is_a_number() -> None:
    for wrong in ('""', '"my board"', '"https://acme.monday.com/boards/1"'):
        with pytest.raises(ConfigError, match=r"crm\.board_id"):
            connection_of(f'[sources.crm]\ntype = "monday"\nboard_id = {wrong}\nsecrets = ["s"]\n')


def test_without_a_token_in_the_header_the_urls_is_needed() -> None:
    source = by_url()
    request = InboundRequest("POST", URL, {}, b'{"event":{}}')
    assert source.sign(request, NOW) == request
    assert source.verify(request, NOW).secret_index == 0
    section = '[sources.crm]\ntype = "monday"\nboard_id = 1\nproof = "url"\nrequire_token = true\n'
    assert connection_of(section).needs_token


# --- the question ----------------------------------------------------------------------------------------


def answer_to(body: object) -> bytes | None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = handshake(InboundRequest("POST", URL, {}, content))
    assert found is None or found.content_type == "application/json"
    return found.body if found else None


def test_the_question_is_answered_with_itself() -> None:
    assert answer_to(CHALLENGE["request_body"].encode()) == CHALLENGE["response_body"].encode()
    assert answer_to({"challenge": "x" * 200}) is not None
    assert json.loads(answer_to({"challenge": "é<script>"}) or b"") == {"challenge": "é<script>"}


@pytest.mark.parametrize(
    "body",
    [{"challenge": "x" * 201}, {"challenge": ""}, {"challenge": 7}, {"challenge": None}, {"challenge": ["x"]},
     {"challenge": "x", "event": {}}, {"Challenge": "x"}, {}, [], ["challenge"], "challenge", b"", b"\xff", b"{",
     b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_question_is_not_answered(body: object) -> None:
    assert answer_to(body) is None


def test_what_is_no_question_is_no_event_either() -> None:
    bodies: list[Any] = [{"challenge": "x" * 201}, {"challenge": "x", "event": None}, [], {"event": []}]
    for body in bodies:
        with pytest.raises(BadPayload, match="'event'"):
            parse_body(MONDAY, body)


# --- events ----------------------------------------------------------------------------------------------

EVENT: dict[str, Any] = {
    "app": "monday", "type": "update_column_value", "triggerTime": "2026-09-21T14:13:20.456Z",
    "subscriptionId": 73759690, "isRetry": False, "userId": 4012689, "originalTriggerUuid": None,
    "boardId": 1771812698, "pulseId": 1771812728, "columnId": "text_mkx9", "columnType": "text",
    "value": {"value": "a"}, "previousValue": None, "changedAt": 1790000000.123, "triggerUuid": "u1",
}  # fmt: skip


def said(**more: Any) -> dict[str, Any]:
    return {"event": {**EVENT, **more}}


def change(**more: Any) -> Change:
    return one_change(MONDAY, said(**more))


def key(received_at: datetime = NOW, **more: Any) -> str:
    return only(MONDAY, said(**more), received_at).key


def test_a_repeat_is_known_whatever_it_calls_itself() -> None:
    first = key()
    assert key(isRetry=True) == first  # it keeps its name
    assert (
        key(isRetry=True, triggerUuid="u2", originalTriggerUuid="u1", triggerTime="2026-09-21T14:14:20Z") == first
    )
    assert key(subscriptionId=8) == first  # told twice, of two webhooks
    # What is no repeat may name an origin all the same.
    assert key(triggerUuid="u2", originalTriggerUuid="u1") != first
    assert key(triggerUuid="u2") != first
    again = change(isRetry=True, triggerUuid="u2", originalTriggerUuid="u1")
    assert again.version == change().version


def test_events_of_one_trigger_are_not_taken_for_each_other() -> None:
    keys = {key(), key(columnId="other"), key(pulseId=5), key(value={"value": "b"}), key(changedAt=1790000001.5)}
    assert len(keys) == 5


def test_a_repeat_does_not_make_an_old_value_new() -> None:
    """The time of a repeat may be its own: only the column's tells when it changed."""
    late = change(isRetry=True, triggerTime="2026-09-21T14:40:00Z")
    assert iso(late.version.occurred_at) == "2026-09-21T14:13:20.123000Z"
    assert not late.thin
    moved = said(type="move_pulse_into_group", destGroupId="g", changedAt=None)
    assert not one_change(MONDAY, moved).thin
    moved["event"]["isRetry"] = True
    assert one_change(MONDAY, moved).thin  # so that it is read


def test_an_event_without_a_time_counts_as_of_its_receipt_and_is_read() -> None:
    bare: dict[str, Any] = {"changedAt": None, "triggerTime": None}
    found = change(**bare)
    assert (found.version.occurred_at, found.thin) == (NOW, True)
    assert key(**bare) != key(NOW + timedelta(seconds=1), **bare)
    assert change(type="delete_pulse", **bare).kind is Kind.DELETED


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("text", {"value": "a"}, {"": "a"}),
        ("text", {"value": ""}, {"": ""}),
        ("long_text", {"text": "a\nb"}, {"": "a\nb"}),
        ("long-text", {"text": "a"}, {"": "a"}),
        ("numeric", {"value": 12.0, "unit": None}, {"": "12"}),
        ("numeric", {"value": 0.1}, {"": "0.1"}),
        ("numbers", {"value": 9_007_199_254_740_993}, {"": "9007199254740993"}),
        ("email", {"email": "a@example.com", "text": "A"}, {"": "a@example.com"}),
        ("phone", {"phone": "14155550123", "countryShortName": "US"}, {"": "14155550123", "_country": "US"}),
        ("phone", {"phone": "+14155550123"}, {"": "+14155550123", "_country": ""}),
        ("color", {"label": {"index": 1, "text": "Done"}}, {"": "Done"}),
        ("status", {"label": {"text": "Done"}}, {"": "Done"}),
        ("dropdown", {"chosenValues": [{"id": 1, "name": "A"}]}, {"": ["A"]}),
        ("dropdown", {"chosenValues": []}, {"": []}),
        ("boolean", {"checked": True}, {"": True}),
        ("checkbox", {"checked": "true"}, {"": True}),
        ("boolean", None, {"": False}),
        ("date", {"date": "2026-01-31", "time": None}, {"": "2026-01-31"}),
        ("date", {"date": "2026-01-31", "time": "10:00:00"}, {"": "2026-01-31T10:00:00Z"}),
        ("date", {"date": None}, {"": ""}),
        ("country", {"countryCode": "GB", "countryName": "United Kingdom"}, {"": "United Kingdom", "_code": "GB"}),
        ("link", {"url": "https://example.com", "text": "x"}, {"": "https://example.com"}),
        ("rating", {"rating": 4}, {"": "4"}),
        ("location", {"lat": 1, "lng": 2, "address": "London"}, {"": "London"}),
        ("phone", None, {"": "", "_country": ""}),
        ("country", None, {"": "", "_code": ""}),
        ("dropdown", None, {"": []}),
        ("color", None, {"": ""}),
    ],
)
def test_the_value_of_a_column_by_its_type(kind: str, value: object, expected: dict[str, object]) -> None:
    found = change(columnId="x", columnType=kind, value=value)
    assert dict(found.fields) == {f"x{part}": one for part, one in expected.items()}
    assert not found.thin


@pytest.mark.parametrize(
    ("kind", "value"),
    [("mirror", None), ("lookup", None), ("multiple-person", None), ("file", {"files": []}), ("text", "a"),
     ("text", {}), ("text", {"value": None}), ("text", {"value": True}), ("text", {"value": ["a"]}),
     ("color", {"label": None}), ("color", {"label": {"text": ["a"]}}), ("phone", ["a"]),
     ("dropdown", {"chosenValues": [{"id": 1}]}), ("dropdown", {"chosenValues": None}),
     ("boolean", {"checked": 1}),
     ("date", {"day": "2026-01-31"}), (None, {"value": "a"}), (7, None)],
)  # fmt: skip
def test_a_value_that_is_not_understood_never_reads_as_cleared(kind: object, value: object) -> None:
    found = change(columnType=kind, value=value)
    assert (dict(found.fields), found.thin) == ({}, True)


def test_a_value_that_is_not_there_says_nothing() -> None:
    body = said()
    del body["event"]["value"]
    found = one_change(MONDAY, body)
    assert (dict(found.fields), found.thin) == ({}, True)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"pulseId": 1771812728.0}, "pulseId"),
        ({"pulseId": None}, "pulseId"),
        ({"boardId": None}, "boardId"),
        ({"boardId": "x"}, "boardId"),
        ({"columnId": None}, "column"),
        ({"changedAt": "yesterday"}, "changedAt"),
        ({"type": ""}, "type"),
    ],
)
def test_what_makes_no_sense_says_why_and_hides_nothing(more: dict[str, Any], reason: str) -> None:
    event = only(MONDAY, said(**more))
    assert reason in event.unreadable
    assert event.key != key()


def test_events_of_subitems_boards_and_other_kinds_are_ignored() -> None:
    for more in (
        {"parentItemId": "5"},
        {"boardId": 5},
        {"type": "create_update"},
        {"type": "change_subitem_name"},
    ):
        event = only(MONDAY, said(**more))
        assert event.ignored.endswith(".")
        assert event.type == more.get("type", "update_column_value")


def test_a_column_goes_by_the_name_that_is_configured_or_by_its_id() -> None:
    assert dict(change(columnId="boolean_mkv1", columnType="boolean", value={"checked": True}).fields) == {
        "vip": True
    }
    more = 'columns = { phone = "phone_1", phone_country = "text_1" }\n'
    source = connection_of(
        f'[sources.crm]\ntype = "monday"\nboard_id = 1771812698\nsecrets = ["s"]\n{more}'
    ).source
    value = {"phone": "1", "countryShortName": "US"}
    found = one_change(source, said(columnId="phone_1", columnType="phone", value=value))
    assert dict(found.fields) == {"phone": "1"}  # the column of that name tells the other
    found = one_change(source, said(columnId="text_1", columnType="text", value={"value": "GB"}))
    assert dict(found.fields) == {"phone_country": "GB"}
    # The column whose own id is "phone" is another one, and must not pass for it.
    found = one_change(source, said(columnId="phone", columnType="phone", value=value))
    assert dict(found.fields) == {}
    found = one_change(source, said(columnId="phone_2", columnType="phone", value=value))
    assert dict(found.fields) == {"phone_2": "1", "phone_2_country": "US"}


def test_the_sample_is_made_for_the_columns_that_are_configured() -> None:
    found = connection("monday")
    sample = SOURCES["monday"].sample
    assert sample is not None
    reads = {"email", "phone", "name", "stop", "color_mks7"}
    body = sample(Sampling(NOW, found.settings, reads=reads))
    told = one_change(found.source, body)
    assert dict(told.fields) == {
        "email": "ada@example.com", "phone": "+14155550123", "phone_country": "US", "name": "Ada Lovelace",
        "group": "topics",
    }  # fmt: skip


words = st.sampled_from(
    ["event", "type", "pulseId", "itemId", "boardId", "columnId", "columnType", "value", "changedAt", "label",
     "triggerTime", "columnValues", "text", "phone", "checked", "date", "isRetry", "originalTriggerUuid",
     "chosenValues"]
)  # fmt: skip
KNOWN = (
    "update_column_value", "create_pulse", "delete_pulse", "update_name", "phone", "color", "\ud800", "a\x00b",
    1771812698, 1790000000.5,
)  # fmt: skip
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(KNOWN)
odd = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=6), max_leaves=15
)


@few
@given(more=st.dictionaries(words, odd, max_size=6))
def test_any_event_is_read_or_says_why_not(more: dict[str, Any]) -> None:
    event = only(MONDAY, said(**more))
    assert bool(event.changes) + bool(event.ignored) + bool(event.unreadable) == 1
    for found in event.changes:
        json.dumps([dict(found.fields), found.key.source_id, found.version.event_id]).encode()
        assert found.key.source_id.isdigit()
    assert hashlib.sha256(event.key.encode()).digest()
