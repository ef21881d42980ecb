"""Close: what proves its webhooks, and what they say of contacts and of their leads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import BadPayload, BadSignature
from bridge.model import InboundRequest, Kind, Secret, Value
from bridge.sources.close import Close, Settings
from bridge.sources.recording import read_recording
from tests.sources.kit import BASE_URL, FIXTURES, NOW, connection, one_change, only, parse_body, vectors

(VECTOR,) = vectors("close")
CLOSE = connection("close").source
HOUR = timedelta(hours=1)


def close(*keys: str, **more: Any) -> Close:
    return Close("crm", Settings(tuple(Secret(key) for key in keys or ("00ff",)), **more))


def recording(name: str) -> dict[str, Any]:
    path = FIXTURES / "close" / f"{name}.http"
    body: dict[str, Any] = json.loads(read_recording(path.read_bytes(), BASE_URL).body)
    return body


def event(name: str, **changed: Any) -> dict[str, Any]:
    """Return a recorded body with *changed* parts of its event; None leaves one out."""
    body = recording(name)
    said = {**body["event"], **changed}
    return {**body, "event": {key: value for key, value in said.items() if value is not None}}


# --- the signature -----------------------------------------------------------------------------------------


def signed(signature: str) -> InboundRequest:
    headers = {"close-sig-hash": signature, "close-sig-timestamp": VECTOR["timestamp"]}
    return InboundRequest("POST", BASE_URL, headers, VECTOR["body"].encode())


AT = datetime.fromtimestamp(int(VECTOR["timestamp"]), UTC)


def test_the_vector_is_accepted_and_made() -> None:
    body = VECTOR["body"].encode()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (VECTOR["body_len"], VECTOR["body_sha256"])
    source = close(VECTOR["signature_key_hex"])
    request = signed(VECTOR["close_sig_hash"])
    assert source.verify(request, AT).signed_at == AT
    assert source.sign(replace(request, headers={}), AT).headers == request.headers


@pytest.mark.parametrize("wrong", VECTOR["must_fail"].values(), ids=VECTOR["must_fail"])
def test_what_a_wrong_reading_signs_is_refused(wrong: str) -> None:
    with pytest.raises(BadSignature, match="does not match"):
        close(VECTOR["signature_key_hex"]).verify(signed(wrong), AT)


@pytest.mark.parametrize(
    ("age", "taken"),
    [(72 * HOUR, True), (73 * HOUR, True), (73.1 * HOUR, False), (-5 * HOUR / 60, True), (-HOUR / 10, False)],
)
def test_a_repeat_may_carry_the_time_of_the_first_try(age: timedelta, taken: bool) -> None:
    request = CLOSE.sign(InboundRequest("POST", BASE_URL, {}, b"{}"), NOW)
    if taken:
        assert CLOSE.verify(request, NOW + age).signed_at == NOW
    else:
        with pytest.raises(BadSignature):
            CLOSE.verify(request, NOW + age)


def test_each_subscription_has_its_key_and_all_are_tried() -> None:
    both = close("aa", "bb")
    for index, key in enumerate(("aa", "bb")):
        request = close(key).sign(InboundRequest("POST", BASE_URL, {}, b"{}"), NOW)
        assert both.verify(request, NOW).secret_index == index
    with pytest.raises(BadSignature):
        both.verify(close("cc").sign(InboundRequest("POST", BASE_URL, {}, b"{}"), NOW), NOW)


@pytest.mark.parametrize(
    ("keys", "more", "said"),
    [
        ((), {}, "secrets: at least one"),
        (("no hex",), {}, "secrets: .*not written in hex"),
        (("",), {}, "secrets: .*empty"),
        (("aa",), {"api_key": Secret(" ")}, "api_key: it is empty"),
    ],
)
def test_settings_that_prove_nothing_are_refused(keys: tuple[str, ...], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Close("crm", Settings(tuple(Secret(key) for key in keys), **more))


# --- events ------------------------------------------------------------------------------------------------


def test_the_id_of_the_event_tells_repeats_until_more_edits_are_added_to_it() -> None:
    key = only(CLOSE, event("updated")).key
    assert only(CLOSE, {**recording("updated"), "subscription_id": "whsub_other"}, NOW + HOUR).key == key
    others = [
        event("updated", id="ev_other"),
        event("updated", date_updated="2026-09-21T14:13:21.000000"),
        event("updated", id=None),
    ]
    assert len({key, *(only(CLOSE, other).key for other in others)}) == 4


def test_times_without_a_zone_are_utc() -> None:
    for text, expected in (
        ("2026-09-21T14:13:20.5", NOW - timedelta(seconds=9.5)),
        ("2026-09-21T14:13:20", NOW - timedelta(seconds=10)),
        ("2026-09-21T16:13:20+02:00", NOW - timedelta(seconds=10)),
    ):
        assert one_change(CLOSE, event("updated", date_updated=text)).version.occurred_at == expected
    first = one_change(CLOSE, event("updated", date_updated=None, date_created="2026-09-21T14:13:20"))
    assert first.version.occurred_at == NOW - timedelta(seconds=10)
    odds: list[object] = ["2026-09-21", "14:13:20", 7, [1], "2026-13-21T14:13:20"]
    for odd in odds:
        assert "no moment" in only(CLOSE, event("updated", date_updated=odd)).unreadable


def test_it_listens_to_the_configured_organization_only() -> None:
    assert one_change(close(organization_id=" orga_abc "), recording("updated")).account == "orga_abc"
    assert "another Close organization" in only(close(organization_id="orga_x"), recording("updated")).ignored
    assert one_change(close(organization_id="orga_x"), event("updated", organization_id=None)).account is None


def test_a_contact_that_is_left_out_is_to_be_read() -> None:
    odds: list[object] = [None, [], "cont_1"]
    for data in odds:
        change = one_change(CLOSE, event("updated", data=data))
        assert (dict(change.fields), change.thin) == ({}, True)


def test_a_lead_that_moves_or_merges_leaves_the_contacts_under_their_ids() -> None:
    moved = one_change(CLOSE, recording("moved_by_a_merge"))
    assert (moved.kind, moved.key.source_id, moved.thin) == (Kind.CHANGED, "cont_Bbjabc", True)
    merged = one_change(CLOSE, recording("lead_merged"))
    assert (merged.kind, merged.key, merged.fields["lead_id"]) == (Kind.CHANGED, moved.key, "lead_New")


@pytest.mark.parametrize(
    ("lead", "ids"),
    [
        ({"contact_ids": ["cont_1", "cont_2", "cont_1"]}, ["cont_1", "cont_2"]),
        ({"contacts": [{"id": "cont_1"}, "cont_2"]}, ["cont_1", "cont_2"]),
        ({"contact_ids": ["cont_1"], "contacts": [{"id": "cont_2"}]}, ["cont_1"]),
    ],
)
def test_what_a_lead_says_is_said_of_each_contact_that_it_names(lead: dict[str, Any], ids: list[str]) -> None:
    said = only(CLOSE, event("lead_updated", data={"id": "lead_Qyz", "status_label": "Customer", **lead}))
    assert [change.key.source_id for change in said.changes] == ids
    for change in said.changes:
        assert change.fields == {"lead_id": "lead_Qyz", "lead_status_label": "Customer"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"object_id": "../lead/1"},
        {"object_id": None},
        {"object_id": 7},
        {"object_id": "cont_" + "1" * 100},
        {"data": {"id": "cont_another"}},
        {"object_type": "lead", "data": []},
        {"object_type": "lead", "data": {"id": "lead_1", "contact_ids": [7]}},
        {"object_type": "lead", "data": {"id": ["lead_1"], "contact_ids": []}},
    ],
)
def test_events_that_make_no_sense_say_why(wrong: dict[str, Any]) -> None:
    said = only(CLOSE, event("updated", **wrong))
    assert said.unreadable.endswith(".")
    assert said.key != only(CLOSE, event("updated")).key


@pytest.mark.parametrize("body", [{}, [], {"event": []}, {"event": None}, "event", 7])
def test_what_close_never_sends_is_a_bad_payload(body: object) -> None:
    with pytest.raises(BadPayload):
        parse_body(CLOSE, body)


# --- fields ------------------------------------------------------------------------------------------------


def fields_of(**data: Any) -> dict[str, Value]:
    return dict(one_change(CLOSE, event("updated", data={"id": "cont_Bbjabc", **data})).fields)


def phone(number: object, **more: Any) -> dict[str, Any]:
    return {"type": "mobile", "phone": number, **more}


@pytest.mark.parametrize(
    ("phones", "expected"),
    [
        ([], {"phone": "", "phones": [], "phone_mobile": ""}),
        (None, {"phone": "", "phones": [], "phone_mobile": ""}),
        ([phone("1"), phone("2")], {"phone": "1", "phones": ["1", "2"], "phone_mobile": "1"}),
        ([phone(""), phone(None), phone("2")], {"phone": "2", "phones": ["2"], "phone_mobile": "2"}),
        ([{"phone": "1"}], {"phone": "1", "phones": ["1"], "phone_mobile": ""}),
        # Another shape than Close's must not read as cleared.
        ("+14155550123", {}),
        (7, {}),
        (["1"], {}),
        ([phone(7)], {}),
    ],
)
def test_an_odd_phone_is_never_taken_for_none(phones: object, expected: dict[str, Value]) -> None:
    fields = fields_of(phones=phones)
    assert {name: fields[name] for name in ("phone", "phones", "phone_mobile") if name in fields} == expected
    assert not {name for name in fields_of() if name.startswith("phone")}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([True], True),
        ([False, True], True),
        ([None, True], True),
        ([False, False], False),
        ([False, None], None),
        ([None], None),
        (["true"], None),
        ([], None),
    ],
)
def test_an_address_is_barred_or_free_only_where_close_says_so(flags: list[Any], expected: bool | None) -> None:
    emails = [
        {"email": f"{n}@example.com", **({} if flag is None else {"is_unsubscribed": flag})}
        for n, flag in enumerate(flags)
    ]
    assert fields_of(emails=emails).get("email_unsubscribed") is expected
    numbers = [phone(str(n), **({} if f is None else {"outbound_sms_blocked": f})) for n, f in enumerate(flags)]
    assert fields_of(phones=numbers).get("phone_sms_blocked") is expected


@pytest.mark.parametrize(
    ("changed", "before", "cleared"),
    [
        (["custom.cf_a"], {"custom.cf_a": "x"}, {"custom.cf_a": None}),
        (["custom.cf_a"], {}, {}),
        (["custom.cf_a"], {"custom.cf_a": None}, {}),
        ([], {"custom.cf_a": "x"}, {}),
        (None, {"custom.cf_a": "x"}, {}),
        (["custom.cf_a"], None, {}),
        (["title", "phones", 7], {"title": "x", "phones": [1]}, {}),
    ],
)
def test_what_is_left_out_is_cleared_only_where_the_event_says_that_it_changed(
    changed: object, before: object, cleared: dict[str, Value]
) -> None:
    contact = {"id": "cont_Bbjabc"}
    body = event("updated", data=contact, changed_fields=changed, previous_data=before)
    assert one_change(CLOSE, body).fields == {**contact, **cleared}
    lead = {"id": "lead_1", "contact_ids": ["cont_1"]}
    body = event("lead_updated", data=lead, changed_fields=changed, previous_data=before)
    of_lead = {f"lead_{name}": value for name, value in cleared.items()}
    assert one_change(CLOSE, body).fields == {"lead_id": "lead_1", **of_lead}


some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(recording("updated")["event"], some_json)))
def test_any_part_of_an_event_may_be_anything(parts: dict[str, Any]) -> None:
    for thing in ("contact", "lead"):
        for action in ("updated", "deleted"):
            said = only(CLOSE, event("updated", **{**parts, "object_type": thing, "action": action}))
            assert bool(said.changes) + bool(said.ignored) + bool(said.unreadable) == 1
