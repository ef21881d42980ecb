"""Attio: what proves its webhooks, which records they name, and what a record's values come to."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import BadPayload, BadSignature
from bridge.model import InboundRequest, Kind, Secret, Value
from bridge.sources.attio import Attio, Settings
from bridge.sources.attio.shape import fields_of
from bridge.sources.recording import read_recording
from tests.sources.kit import BASE_URL, FIXTURES, NOW, connection, one_change, only, parse, parse_body, vectors

(VECTOR,) = vectors("attio")
ATTIO = connection("attio").source
LATER = NOW + timedelta(hours=1)
RECORD, NEW, OTHER = (f"{n}0000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 3))


def attio(*secrets: str, **more: Any) -> Attio:
    return Attio("crm", Settings(tuple(Secret(secret) for secret in secrets or ("s",)), **more))


def recording(name: str) -> dict[str, Any]:
    path = FIXTURES / "attio" / f"{name}.http"
    body: dict[str, Any] = json.loads(read_recording(path.read_bytes(), BASE_URL).body)
    return body


def event(kind: str = "record.updated", record: object = RECORD, **more: Any) -> dict[str, Any]:
    return {"event_type": kind, "id": {"record_id": record}, **more}


# --- the signature -----------------------------------------------------------------------------------------


def signed(**headers: str) -> InboundRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return InboundRequest("POST", BASE_URL, named, VECTOR["body"].encode())


def test_the_vector_is_accepted_and_made() -> None:
    body = VECTOR["body"].encode()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (VECTOR["body_len"], VECTOR["body_sha256"])
    source, signature = attio(VECTOR["secret"]), VECTOR["attio_signature"]
    for headers in (
        {"attio_signature": signature},
        {"x_attio_signature": signature},
        {"attio_signature": signature.upper(), "x_attio_signature": "?"},
    ):
        genuine = source.verify(signed(**headers), NOW)
        assert (genuine.secret_index, genuine.signed_at) == (0, None)
    assert set(source.sign(signed(), NOW).headers.items()) == {
        ("attio-signature", signature),
        ("x-attio-signature", signature),
    }
    # The secret is its own text. Read as hexadecimal it is another key, and so is one with a time before the body.
    as_hex = bytes.fromhex(VECTOR["secret"])
    for wrong in (
        hmac.digest(as_hex, body, "sha256").hex(),
        hashlib.sha256(body).hexdigest(),
        attio(VECTOR["secret"])
        .sign(replace(signed(), body=b"1790000000." + body), NOW)
        .headers["attio-signature"],
    ):
        with pytest.raises(BadSignature, match="does not match"):
            source.verify(signed(attio_signature=wrong), NOW)


def test_the_copy_counts_for_nothing_beside_the_signature() -> None:
    source, signature = attio(VECTOR["secret"]), VECTOR["attio_signature"]
    for headers in (
        {"attio_signature": "0" * 64, "x_attio_signature": signature},
        {"attio_signature": "", "x_attio_signature": signature},
        {"x_attio_signature": "0" * 64},
        {},
    ):
        with pytest.raises(BadSignature):
            source.verify(signed(**headers), NOW)


def test_all_secrets_are_tried() -> None:
    both = attio("new", "old")
    for index, secret in enumerate(("new", "old")):
        assert both.verify(attio(secret).sign(signed(), NOW), NOW).secret_index == index


@pytest.mark.parametrize(
    ("secrets", "more", "said"),
    [
        ((), {}, "secrets: at least one"),
        (("",), {}, "secrets: .*empty"),
        (("s",), {"token": Secret(" ")}, "token: it is empty"),
        (("s",), {"object": " "}, "object: it is empty"),
    ],
)
def test_settings_that_prove_nothing_are_refused(
    secrets: tuple[str, ...], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Attio("crm", Settings(tuple(Secret(secret) for secret in secrets), **more))


# --- events ------------------------------------------------------------------------------------------------


def test_a_repeat_is_told_by_the_header_and_the_content_together() -> None:
    body = recording("updated")
    first = only(ATTIO, body, idempotency_key="a").key
    assert only(ATTIO, body, LATER, idempotency_key="a").key == first
    # Whoever sends it on can change the header, but not the content that it came with.
    assert only(ATTIO, recording("deleted"), idempotency_key="a").key != first
    assert only(ATTIO, body, idempotency_key="b").key != first
    # The same edit made twice is the same bytes twice: without the header each receipt counts.
    assert only(ATTIO, body).key == only(ATTIO, body).key != only(ATTIO, body, LATER).key


def test_what_tells_repeats_is_still_there_when_the_request_was_stored() -> None:
    request = read_recording((FIXTURES / "attio" / "updated.http").read_bytes(), BASE_URL)
    assert parse(ATTIO, request)[0].key == parse(ATTIO, request, LATER)[0].key


def test_equal_events_of_one_request_are_two() -> None:
    events = parse_body(ATTIO, {"events": [event(), event()]}, idempotency_key="a")
    assert len({one.key for one in events}) == 2


def test_an_event_is_taken_wrapped_and_unwrapped() -> None:
    wrapped, bare = (one_change(ATTIO, body) for body in ({"events": [event()]}, event()))
    assert wrapped.key == bare.key
    assert (bare.kind, bare.thin, dict(bare.fields)) == (Kind.CHANGED, True, {})


def test_a_late_repeat_of_a_creation_brings_nobody_back() -> None:
    assert one_change(ATTIO, recording("created")).kind is Kind.CHANGED
    assert one_change(ATTIO, recording("deleted")).kind is Kind.DELETED


def test_an_event_is_as_old_as_its_receipt() -> None:
    assert one_change(ATTIO, event(), LATER).version.occurred_at == LATER


def test_it_listens_to_what_is_configured_only() -> None:
    ids = recording("updated")["events"][0]["id"]
    for name, word in (("object_id", "another kind of record"), ("workspace_id", "another Attio workspace")):
        assert one_change(attio(**{name: f" {ids[name].upper()} "}), recording("updated")).thin
        assert word in only(attio(**{name: "x"}), recording("updated")).ignored
        assert one_change(attio(**{name: "x"}), event()).thin, "what is not said speaks for nobody else"
    assert one_change(attio(), recording("our_own")).account == ids["workspace_id"]
    assert (
        "another Attio workspace"
        in only(attio(workspace_id=ids["workspace_id"]), recording("other_workspace")).ignored
    )


@pytest.mark.parametrize(
    ("merge", "survivor", "ended"),
    [
        # A new record, and an event for each that ended; or the one of the two that stays.
        ({"record": NEW, "duplicate_record_id": RECORD}, NEW, [RECORD]),
        ({"record": NEW, "duplicate_record_ids": [RECORD, OTHER, RECORD]}, NEW, [RECORD, OTHER]),
        ({"record": NEW, "primary_record_id": RECORD, "secondary_record_id": OTHER}, NEW, [RECORD, OTHER]),
        ({"record": RECORD, "new_record_id": NEW, "duplicate_record_id": OTHER}, NEW, [OTHER, RECORD]),
        ({"record": RECORD, "id": {"record_id": RECORD, "duplicate_record_id": OTHER}}, RECORD, [OTHER]),
        ({"record": RECORD, "duplicate_record_id": OTHER, "primary_record_id": RECORD}, RECORD, [OTHER]),
        # Under names that nobody knows: the record that is named is read, which tells where it leads.
        ({"record": NEW, "loser": RECORD}, NEW, []),
    ],
)
def test_a_merge_under_every_reading_of_its_names(merge: dict[str, Any], survivor: str, ended: list[str]) -> None:
    *merged, stays = only(ATTIO, event("record.merged", **merge)).changes
    assert [(change.key.source_id, change.survivor, change.heir_of) for change in merged] == [
        (one, survivor, True) for one in ended
    ]
    assert {change.kind for change in merged} <= {Kind.MERGED}
    assert (stays.key.source_id, stays.kind, stays.thin) == (survivor, Kind.CHANGED, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"record": None},
        {"record": "../companies"},
        {"record": 7},
        {"id": [RECORD]},
        {"kind": "record.merged", "duplicate_record_id": RECORD},
        {"kind": "record.merged", "duplicate_record_id": ["x y"]},
        {"kind": "record.merged", "new_record_id": 7},
        {"event_type": None},
        {"event_type": 7.5},
    ],
)
def test_events_that_make_no_sense_say_why(wrong: dict[str, Any]) -> None:
    said = parse_body(ATTIO, {"events": [event(**wrong), event(), 7]})
    assert said[0].unreadable.endswith(".")
    assert said[1].changes
    assert said[2].unreadable


@pytest.mark.parametrize("body", [{}, [], {"events": {}}, {"events": None}, "x", 7, {"events": [{}] * 5_001}])
def test_what_attio_never_sends_is_a_bad_payload(body: object) -> None:
    with pytest.raises(BadPayload):
        parse_body(ATTIO, body)


# --- values ------------------------------------------------------------------------------------------------


def value(kind: str, until: str | None = None, **parts: Any) -> dict[str, Any]:
    return {
        "active_from": "2026-01-01T00:00:00.000000000Z",
        "active_until": until,
        "attribute_type": kind,
        **parts,
    }


VALUES = {
    "name": [value("personal-name", first_name="Ada", last_name="Lovelace", full_name="Ada Lovelace")],
    "email_addresses": [
        value("email-address", email_address="ada@example.com", email_domain="example.com"),
        value("email-address", email_address="countess@example.com"),
    ],
    "phone_numbers": [
        value("phone-number", until="2026-02-01T00:00:00Z", phone_number="+14155550100", country_code="US"),
        value("phone-number", phone_number="+14155550123", country_code="US"),
    ],
    "stage": [value("status", status={"title": "Customer", "id": {"status_id": "1"}})],
    "tags": [value("select", option={"title": "VIP"}), value("select", option={"title": "Press"})],
    "company": [value("record-reference", target_object="companies", target_record_id=OTHER)],
    "owner": [value("actor-reference", referenced_actor_type="workspace-member", referenced_actor_id=NEW)],
    "deal": [value("currency", currency_value=12.5, currency_code="EUR")],
    "home": [value("location", line_1="1 St James's Square", locality="London", country_code="GB", region=None)],
    "score": [value("number", value=7)],
    "sms_opt_out": [value("checkbox", value=False)],
    "born": [value("date", value="1815-12-10")],
    "last": [value("interaction", interaction_type="email", interacted_at="2026-01-01T00:00:00Z")],
    "job_title": [],
    "nick_name": [value("personal-name", until="2026-02-01T00:00:00Z", first_name="A", full_name="A")],
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("name", "Ada Lovelace"), ("first_name", "Ada"), ("last_name", "Lovelace"), ("name_all", ["Ada Lovelace"]),
        ("email_addresses", "ada@example.com"),
        ("email_addresses_all", ["ada@example.com", "countess@example.com"]),
        ("phone_numbers", "+14155550123"), ("phone_numbers_all", ["+14155550123"]),
        ("phone_numbers_country_code", "US"),
        ("stage", "Customer"), ("tags", "VIP"), ("tags_all", ["VIP", "Press"]),
        ("company", OTHER), ("company_target_object", "companies"), ("owner", NEW),
        ("deal", 12.5), ("deal_currency_code", "EUR"),
        ("home", "London"), ("home_line_1", "1 St James's Square"), ("home_region", ""),
        ("score", 7), ("sms_opt_out", False), ("born", "1815-12-10"), ("last", "2026-01-01T00:00:00Z"),
        ("job_title", ""), ("job_title_all", []), ("nick_name", ""), ("nick_name_first_name", ""),
    ],
)  # fmt: skip
def test_what_a_value_of_each_type_is_in_rules(name: str, expected: Value) -> None:
    assert fields_of(VALUES, [name]) == {name: expected}


def test_only_what_is_asked_for_is_told() -> None:
    assert fields_of(VALUES, ["name", "no_such_attribute", "score_all"]) == {
        "name": "Ada Lovelace",
        "score_all": [7],
    }
    assert fields_of(VALUES, []) == {}


@pytest.mark.parametrize(
    "values",
    [
        None, {}, "ada@example.com", ["ada@example.com"], [7], [[]], [{"active_until": None}],
        [value("email-address", email="ada@example.com")], [value("email-address", email_address=["a"])],
        [value("email-address", email_address={"a": 1})], [value("of-tomorrow", secret="x")],
        [value("select", option={})], [value("select", option={"title": None})],
        [value("text", value="ada@example.com"), 7],
    ],
)  # fmt: skip
def test_a_value_of_another_shape_is_never_taken_for_none(values: object) -> None:
    assert fields_of({"email_addresses": values}, ["email_addresses", "email_addresses_all"]) == {}


def test_a_type_that_is_not_known_is_known_by_its_plain_value() -> None:
    assert fields_of({"x": [value("of-tomorrow", value="y")]}, ["x"]) == {"x": "y"}


some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.fixed_dictionaries(
        {"event_type": st.sampled_from(["record.updated", "record.merged", "record.deleted"])},
        optional={
            "actor": some_json,
            "duplicate_record_id": some_json,
            "id": st.fixed_dictionaries({}, optional={"record_id": some_json, "workspace_id": some_json})
            | some_json,
        },
    )
)
def test_any_part_of_an_event_may_be_anything(body: dict[str, Any]) -> None:
    said = only(ATTIO, body)
    assert bool(said.changes) + bool(said.ignored) + bool(said.unreadable) == 1


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(
        st.sampled_from(["name", "email_addresses", "x"]),
        some_json
        | st.lists(st.dictionaries(st.sampled_from(["attribute_type", "value", "active_until"]), some_json)),
    )
)
def test_any_value_may_be_anything(values: dict[str, Any]) -> None:
    told = fields_of(values, ["name", "first_name", "email_addresses", "email_addresses_all", "x", "x_all"])
    json.dumps(told, allow_nan=False)
