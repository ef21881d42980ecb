"""What is particular to Shopify: a signature that covers the body alone, and ids that are too long for a float."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import BadPayload, BadSignature, ConfigError
from bridge.model import Change, Event, InboundRequest, Kind, iso
from bridge.sources import SOURCES
from bridge.sources.base import Proof, Source
from bridge.sources.recording import read_recording
from bridge.sources.shopify import TOPICS
from bridge.sources.shopify.customers import KNOWN_FIELDS, Shape
from tests.sources.kit import BASE_URL, FIXTURES, NOW, connection, connection_of, one_change, only, parse, vectors

SHOP = connection("shopify").source
SEES_ALL = connection("shopify", "full_access = true").source
(VECTOR,) = vectors("shopify")
ID = "706405506930370084"
GID = f"gid://shopify/Customer/{ID}"
few = settings(max_examples=60, deadline=None, derandomize=True, database=None)
CUSTOMER: dict[str, Any] = {
    "id": int(ID), "email": "ada@example.com", "phone": "+14155550123", "first_name": "Ada",
    "last_name": "Lovelace", "state": "enabled", "created_at": "2026-07-01T08:00:00Z",
    "updated_at": "2026-09-21T14:13:20Z",
}  # fmt: skip
RECORDED = {
    path.stem: read_recording(path.read_bytes(), BASE_URL)
    for path in sorted((FIXTURES / "shopify").glob("*.http"))
}
ENDING = {Kind.DELETED, Kind.ERASED, Kind.MERGED}


def event(body: object, topic: str = "customers/update", source: Source = SHOP, **headers: Any) -> Event:
    return only(source, body, x_shopify_topic=topic, **headers)


def change(body: object, topic: str = "customers/update", source: Source = SHOP, **headers: Any) -> Change:
    return one_change(source, body, x_shopify_topic=topic, **headers)


# --- the signature ---------------------------------------------------------------------------------------


def signed(signature: str, body: bytes | None = None) -> InboundRequest:
    content = VECTOR["body"].encode() if body is None else body
    return InboundRequest("POST", BASE_URL, {"x-shopify-hmac-sha256": signature}, content)


def test_the_signature_of_the_reference_is_taken_and_wrong_ones_are_not() -> None:
    body, right = VECTOR["body"].encode(), VECTOR["x_shopify_hmac_sha256"]
    assert (len(body), hashlib.sha256(body).hexdigest()) == (VECTOR["body_len"], VECTOR["body_sha256"])
    genuine = SHOP.verify(signed(right), NOW)
    assert (genuine.secret_index, genuine.signed_at) == (0, None)
    assert SHOP.sign(signed(""), NOW).headers["x-shopify-hmac-sha256"] == right
    digest = base64.b64decode(right)
    for wrong in (
        digest.hex(),
        right.lower(),
        right.rstrip("="),
        f"{right},{right}",
        base64.b64encode(hmac.digest(b"hush", body, "sha1")).decode(),
        base64.b64encode(hmac.digest(b"", body, "sha256")).decode(),
        base64.b64encode(hmac.digest(b"hush", json.dumps(json.loads(body)).encode(), "sha256")).decode(),
        "é",
        "",
    ):
        with pytest.raises(BadSignature) as caught:
            SHOP.verify(signed(wrong), NOW)
        assert "hush" not in str(caught.value)
    with pytest.raises(BadSignature):
        SHOP.verify(signed(right, body + b"\n"), NOW)
    assert SOURCES["shopify"].proof is Proof.SIGNED


def test_either_secret_is_good_while_it_is_changed() -> None:
    section = '[sources.crm]\ntype = "shopify"\nshop = "acme.myshopify.com"\nsecrets = ["new", "hush"]\n'
    assert connection_of(section).source.verify(signed(VECTOR["x_shopify_hmac_sha256"]), NOW).secret_index == 1


def test_the_vector_is_a_customer_whose_id_is_exact() -> None:
    found = change(VECTOR["body"].encode())
    assert found.key.source_id == ID != str(int(float(ID)))
    assert found.fields["id"] == ID
    assert json.dumps(dict(found.fields)).count(ID) == 1
    for wrong in (float(ID), True, -5, 0, None, "", "x", [ID], 10**30):
        assert "id" in event({**CUSTOMER, "id": wrong}).unreadable
    assert change({**CUSTOMER, "id": ID}).key.source_id == ID


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('shop = "shop.example.com"\nsecrets = ["s"]', "shop"),
        ('shop = "acme.myshopify.com.evil.example"\nsecrets = ["s"]', "shop"),
        ('shop = "acme.myshopify.com"\nsecrets = []', "secrets"),
        ('shop = "acme.myshopify.com"\nsecrets = [" "]', "secrets"),
        ('shop = "acme.myshopify.com"\nsecrets = ["s"]\ntoken = ""', "token"),
        ('shop = "acme.myshopify.com"\nsecrets = ["s"]\ntoken = "t"\nclient_id = "c"', "token"),
    ],
)
def test_what_cannot_work_is_refused_by_name(lines: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"crm\.{said}"):
        connection_of(f'[sources.crm]\ntype = "shopify"\n{lines}\n')


# --- headers that nobody signed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDED)
def test_a_changed_topic_never_makes_a_body_mean_something_else(name: str) -> None:
    """Whoever copies a request can send its body again under any topic, to any shop, at any time."""
    request = RECORDED[name]
    (was,) = parse(SHOP, request)
    before = {one.kind for one in was.changes}
    for topic in (*TOPICS, "CUSTOMERS/DELETE", " customers/redact ", "orders/create", ""):
        headers = {**request.headers, "x-shopify-topic": topic, "x-shopify-triggered-at": "2020-01-01T00:00:00Z"}
        (found,) = parse(SHOP, replace(request, headers=headers))
        assert bool(found.changes) + bool(found.ignored) + bool(found.unreadable) == 1
        kinds = {one.kind for one in found.changes}
        assert not (kinds & ENDING) - before, f"{topic} ends what it did not"
        for one in found.changes:
            if one.fields and was.changes:
                assert dict(one.fields) == dict(was.changes[0].fields)
                assert one.version.occurred_at == was.changes[0].version.occurred_at
        if topic.strip().lower() != request.headers.get("x-shopify-topic", ""):
            assert found.key != was.key or found.unreadable  # so that the true one is no repeat of it


OF_A_CUSTOMER: list[dict[str, Any]] = [
    {"email": None}, {"updated_at": None}, {"state": ""}, {"created_at": "x"}, {"first_name": "A"},
]  # fmt: skip
OF_NOBODY_GONE: list[dict[str, Any]] = [
    {"note": "a"}, {"phone": "+1"}, {"tags": "a"}, {"addresses": [{}]}, {"orders_count": 1},
]  # fmt: skip
OF_SOMEBODY_GONE: list[dict[str, Any]] = [
    {}, {"phone": None}, {"addresses": []}, {"sms_marketing_consent": None}, {"tax_exempt": False},
]  # fmt: skip


def test_the_bodies_of_topics_are_told_apart_by_what_they_hold() -> None:
    assert {shape for shape in Shape if shape is not Shape.OTHER} == set(TOPICS.values())
    for extra in OF_A_CUSTOMER + OF_NOBODY_GONE:
        assert "not signed" in event({"id": 1, **extra}, "customers/delete").unreadable
    for extra in OF_SOMEBODY_GONE:
        assert change({"id": 1, **extra}, "customers/delete").kind is Kind.DELETED
        assert event({"id": 1, **extra}, "customers/update").unreadable
        assert event({"id": 1, **extra}, "").unreadable


def test_a_disagreement_tells_no_value() -> None:
    said = event(CUSTOMER, "customers/redact").unreadable
    assert "ada" not in said.lower()
    assert said.endswith(".")


@pytest.mark.parametrize("name", ["redact", "customer_updated", "customer_deleted"])
def test_another_shops_webhook_is_ignored_by_header_and_by_body(name: str) -> None:
    request = RECORDED[name]
    headers = {**request.headers, "x-shopify-shop-domain": "other.myshopify.com"}
    (found,) = parse(SHOP, replace(request, headers=headers))
    assert "another shop" in found.ignored
    (found,) = parse(SHOP, replace(request, headers={**headers, "x-shopify-shop-domain": "ACME.myshopify.com"}))
    assert found.changes


def test_a_repeat_is_known_by_the_events_id_but_not_with_another_body() -> None:
    ids: dict[str, Any] = {"x_shopify_event_id": "e1"}
    first = event(CUSTOMER, **ids)
    assert event(CUSTOMER, **ids, x_shopify_webhook_id="another", x_shopify_triggered_at="x").key == first.key
    assert event({**CUSTOMER, "note": "a"}, **ids).key != first.key
    assert event(CUSTOMER, "customers/create", **ids).key != first.key
    assert event(CUSTOMER, x_shopify_event_id="e2").key != first.key
    assert event(CUSTOMER).key == event(CUSTOMER).key  # its time tells it apart
    # Nor do headers that have it ignored make the true one a repeat.
    ignoring: list[dict[str, Any]] = [{"x_shopify_shop_domain": "other.myshopify.com"}, {"x_shopify_test": "true"}]
    for more in ignoring:
        assert event(CUSTOMER, **ids, **more).ignored
        assert event(CUSTOMER, **ids, **more).key != first.key
    later = only(SHOP, {"id": 1}, NOW + timedelta(seconds=1), x_shopify_topic="customers/delete")
    assert later.key != event({"id": 1}, "customers/delete").key


def test_an_old_body_that_is_sent_again_is_as_old_as_it_was() -> None:
    found = change(CUSTOMER, x_shopify_triggered_at="2026-09-21T14:13:29Z", x_shopify_event_id="new")
    assert iso(found.version.occurred_at) == "2026-09-21T14:13:20.000000Z"
    # Of one second, what was sent later counts; what was read counts more.
    sent = [change(CUSTOMER, x_shopify_triggered_at=f"2026-09-21T14:13:2{n}.5Z").version for n in (0, 1)]
    assert sent[0] < sent[1] < sent[1]._replace(event_id="read")
    for odd in ("", "yesterday", "2026-09-21", "é"):
        assert change(CUSTOMER, x_shopify_triggered_at=odd).version < sent[0]


def test_a_deletion_is_never_later_than_its_receipt() -> None:
    def at(text: str) -> str:
        found = change({"id": 1}, "customers/delete", x_shopify_triggered_at=text)
        return iso(found.version.occurred_at)

    assert at("2026-09-21T14:00:00Z") == "2026-09-21T14:00:00.000000Z"
    assert at("2036-09-21T14:00:00Z") == at("") == at("x") == iso(NOW)


# --- customers -------------------------------------------------------------------------------------------

PROTECTED = {"email": None, "phone": None, "first_name": None, "last_name": None, "default_address": None}


def test_null_says_nothing_unless_the_app_is_known_to_see_all() -> None:
    told = change({**CUSTOMER, **PROTECTED}).fields
    assert not told.keys() & {"email", "phone", "first_name", "last_name", "default_address_city"}
    told = change({**CUSTOMER, **PROTECTED}, source=SEES_ALL).fields
    assert {told[name] for name in ("email", "phone", "first_name", "default_address_city")} == {None}
    told = change({**CUSTOMER, "default_address": {"city": "London", "zip": None}}).fields
    assert told["default_address_city"] == "London"
    assert "default_address_zip" not in told
    assert (
        "default_address_province"
        not in change({**CUSTOMER, "default_address": {"city": "x"}}, source=SEES_ALL).fields
    )
    assert change({**CUSTOMER, "note": None}).fields["note"] is None  # which is withheld from nobody


def test_what_is_not_told_or_of_another_shape_is_left_out() -> None:
    found = change({"id": 1, "updated_at": "2026-09-21T14:13:20Z"})
    assert found.fields.keys() == {"id", "updated_at"}
    odd = {**CUSTOMER, "email": ["a"], "phone": {"n": 1}, "tags": 7, "note": [], "default_address": "London"}
    assert not change(odd, source=SEES_ALL).fields.keys() & {
        "email",
        "phone",
        "tags",
        "note",
        "default_address_city",
    }
    assert change({**CUSTOMER, "tags": ""}).fields["tags"] == []
    assert change({**CUSTOMER, "tags": "vip, eu ,"}).fields["tags"] == ["vip", "eu"]


@pytest.mark.parametrize("at", [None, "", "yesterday", "2026-09-21", 7, []])
def test_a_customer_without_a_time_is_unreadable(at: object) -> None:
    assert "updated_at" in event({**CUSTOMER, "updated_at": at}).unreadable


def test_every_field_that_a_customer_has_is_one_that_rules_may_read() -> None:
    known = SOURCES["shopify"].known_field
    assert known is not None
    for request in RECORDED.values():
        for found in parse(SEES_ALL, request):
            for one in found.changes:
                assert all(map(known, one.fields))
    assert "ssn" not in KNOWN_FIELDS
    assert not known("e-mail")


# --- what was agreed to ----------------------------------------------------------------------------------


def agreed(state: object, at: object = "2026-09-21T14:13:20Z", way: str = "email") -> Change:
    said = {"state": state, "opt_in_level": "SINGLE_OPT_IN", "consent_updated_at": at}
    if way == "email":
        body = {"customer_id": int(ID), "email_address": "ada@example.com", "email_marketing_consent": said}
        return change(body, "customers_email_marketing_consent/update")
    return change(
        {"id": int(ID), "phone": None, "sms_marketing_consent": said}, "customers_marketing_consent/update"
    )


@pytest.mark.parametrize("way", ["email", "phone"])
def test_a_consent_is_flat_and_as_old_as_it_says(way: str) -> None:
    channel = "email_marketing" if way == "email" else "sms_marketing"
    found = agreed("unsubscribed", "2026-09-21T10:13:20-04:00", way)
    assert found.fields == {
        f"{channel}_state": "unsubscribed",
        f"{channel}_opt_in_level": "single_opt_in",
        f"{channel}_consent_updated_at": "2026-09-21T14:13:20.000000Z",
        "consent_updated_at": "2026-09-21T14:13:20.000000Z",
    }
    assert (iso(found.version.occurred_at), found.thin) == ("2026-09-21T14:13:20.000000Z", False)


@pytest.mark.parametrize("way", ["email", "phone"])
def test_without_a_time_that_is_signed_consent_is_taken_away_and_never_given(way: str) -> None:
    for at in (None, "", "yesterday"):
        for state in ("subscribed", "not_subscribed", "pending", "redacted", None, 7, ""):
            found = agreed(state, at, way)
            assert (dict(found.fields), found.thin) == ({}, True)
        found = agreed("unsubscribed", at, way)
        assert "unsubscribed" in found.fields.values()
        assert found.thin


def test_a_consent_newer_than_the_rest_makes_the_customer_as_new() -> None:
    consent = {"state": "unsubscribed", "opt_in_level": None, "consent_updated_at": "2026-09-21T14:13:25Z"}
    found = change({**CUSTOMER, "sms_marketing_consent": consent})
    assert iso(found.version.occurred_at) == "2026-09-21T14:13:25.000000Z"
    assert found.fields["consent_updated_at"] == "2026-09-21T14:13:25.000000Z"
    assert "sms_marketing_opt_in_level" not in found.fields
    nothings: list[Any] = [None, {}, [], {"state": None}, {"state": ""}, {"state": ["x"]}]
    for nothing in nothings:
        told = change({**CUSTOMER, "email_marketing_consent": nothing}).fields
        assert not any("marketing" in name for name in told)


# --- erasing and merging ---------------------------------------------------------------------------------


def test_an_erasure_without_a_person_is_unreadable_and_others_are_ignored_with_a_reason() -> None:
    customers: list[dict[str, Any]] = [{}, {"id": None}, {"id": "x"}]
    for customer in customers:
        body: dict[str, Any] = {"shop_domain": "acme.myshopify.com", "customer": customer, "orders_to_redact": []}
        assert event(body, "customers/redact").unreadable
    for name in ("data_request", "shop_redact"):
        (found,) = parse(SHOP, RECORDED[name])
        assert found.ignored.endswith(".")
        assert found.type == name.replace("_", "/", 1).replace("data/request", "customers/data_request")


def merge(status: object, kept: object = GID, gone: object = "gid://shopify/Customer/7") -> Event:
    ids = {"admin_graphql_api_customer_kept_id": kept, "admin_graphql_api_customer_deleted_id": gone}
    body = {**ids, "status": status}
    return event(body, "customers/merge")


def test_only_a_merge_that_is_done_is_one() -> None:
    for status in ("failed", "in_progress", "requested", None, "", 7):
        assert "not come to its end" in merge(status).ignored
    loser, winner = merge("COMPLETED").changes
    assert (loser.kind, loser.key.source_id, loser.survivor) == (Kind.MERGED, "7", ID)
    assert (winner.kind, winner.key.source_id, winner.thin) == (Kind.CHANGED, ID, True)
    assert "with itself" in merge("completed", GID, GID).unreadable
    for odd in (None, "gid://shopify/Order/7", "gid://shopify/Customer/", [GID], 7.5):
        assert merge("completed", GID, odd).unreadable


# --- anything --------------------------------------------------------------------------------------------

words = st.sampled_from(
    ["id", "email", "updated_at", "created_at", "state", "tags", "customer", "orders_to_redact", "customer_id",
     "phone", "email_marketing_consent", "sms_marketing_consent", "consent_updated_at", "customerId", "occurredAt",
     "status", "shop_domain", "default_address", "city", "admin_graphql_api_customer_kept_id", "data_request",
     "admin_graphql_api_customer_deleted_id"]
)  # fmt: skip
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from([ID, GID, int(ID), "2026-09-21T14:13:20Z", "unsubscribed", "completed", "\ud800", "a\x00b"])
)
odd = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5), max_leaves=12
)


@few
@given(body=st.dictionaries(words, odd, max_size=6), topic=st.sampled_from([*TOPICS, "", "x/y"]))
def test_any_body_is_read_or_says_why_not(body: dict[str, Any], topic: str) -> None:
    found = event(body, topic, source=SEES_ALL)
    assert bool(found.changes) + bool(found.ignored) + bool(found.unreadable) == 1
    for one in found.changes:
        json.dumps([dict(one.fields), one.key.source_id, one.version.event_id], ensure_ascii=False).encode()
        assert one.key.source_id.isdigit()
        if one.kind in ENDING:
            assert "updated_at" not in body


def test_what_is_no_object_is_no_webhook() -> None:
    for body in (b"[]", b"7", b"null", b'"x"'):
        with pytest.raises(BadPayload, match="not an object"):
            event(body)
