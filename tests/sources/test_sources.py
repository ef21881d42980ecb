"""What every source promises, over the recordings of all of them; then what is particular to each."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from bridge.errors import BadPayload, BadSignature, ConfigError, SourceUnavailable
from bridge.model import Change, Event, InboundRequest, Kind, RecordKey, Secret, Value, Verified, iso
from bridge.outbound import Api
from bridge.pipeline import receive
from bridge.sources import SOURCES, hmac_scheme, hubspot, pipedrive, standard_webhooks
from bridge.sources.base import Genuine, Proof, Source, event_types
from bridge.sources.payload import MAX_ITEMS, Payload
from bridge.sources.recording import read_recording, write_recording
from bridge.sources.sampling import SAMPLE_ID, Sampling
from tests.sources.kit import BASE_URL, FIXTURES, NOW, VECTORS, connection, one_change, only, parse, parse_body

RECORDINGS = sorted(FIXTURES.glob("*/*.http"))
GITHUB = hmac_scheme.Signature("X-Hub-Signature-256", prefix="sha256=")
CONNECTIONS: Mapping[str, Source] = {kind: connection(kind).source for kind in SOURCES}

recordings = pytest.mark.parametrize(
    "path", [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in RECORDINGS]
)
types = pytest.mark.parametrize("kind", sorted(SOURCES))
few = settings(max_examples=50, deadline=None, derandomize=True, database=None)


def recorded(path: Path) -> tuple[Source, InboundRequest]:
    return CONNECTIONS[path.parent.name], read_recording(path.read_bytes(), BASE_URL)


def shown(event: Event) -> dict[str, Any]:
    """Return an event as the files beside the recordings have it."""
    told: dict[str, Any] = {
        name: text for name in ("type", "ignored", "unreadable") if (text := getattr(event, name))
    }
    if event.ignored or event.unreadable:
        return told
    return {**told, "changes": [shown_change(change) for change in event.changes]}


def shown_change(change: Change) -> dict[str, Any]:
    told: dict[str, Any] = {
        "source_id": change.key.source_id,
        "kind": change.kind.value,
        "occurred_at": iso(change.version.occurred_at),
        "account": change.account,
        "fields": dict(change.fields),
        "thin": change.thin,
        "survivor": change.survivor,
        "heir_of": change.heir_of,
    }
    return {name: value for name, value in told.items() if value or name == "kind"}


# --- every source ----------------------------------------------------------------------------------------


@recordings
def test_a_recording_says_what_the_file_beside_it_says(path: Path) -> None:
    source, request = recorded(path)
    assert [shown(event) for event in parse(source, request)] == json.loads(
        path.with_suffix(".json").read_text("utf-8")
    )


@recordings
def test_a_recording_is_its_own_bytes_again(path: Path) -> None:
    request = read_recording(path.read_bytes(), BASE_URL)
    assert read_recording(write_recording(request), BASE_URL) == request


@recordings
def test_a_stored_receipt_says_the_same_as_the_request_did(path: Path) -> None:
    source, request = recorded(path)
    genuine = source.verify(source.sign(request, NOW), NOW)
    kept = SOURCES[path.parent.name].keeps(genuine.request.headers)
    stored = replace(genuine, request=replace(genuine.request, headers=kept))
    assert source.parse(stored, NOW) == source.parse(genuine, NOW)
    assert not {name for name in kept if "signature" in name and "version" not in name}
    assert "authorization" not in kept


@recordings
def test_what_is_stored_is_what_its_check_leaves_of_it(path: Path) -> None:
    """A credential that stands in the body is not kept."""
    source, request = recorded(path)
    signed = source.sign(request, NOW)
    stored = receive(connection(path.parent.name), signed, NOW)
    assert stored.body == source.verify(signed, NOW).request.body


@recordings
def test_a_repeat_has_the_same_keys_and_no_key_comes_twice(path: Path) -> None:
    source, request = recorded(path)
    keys = [event.key for event in parse(source, request)]
    assert len(set(keys)) == len(keys)
    assert keys == [event.key for event in parse(source, request)]
    assert all(0 < len(key) <= 100 and key.isascii() for key in keys)


@recordings
def test_a_changed_body_is_refused(path: Path) -> None:
    source, request = recorded(path)
    signed = source.sign(request, NOW)
    changed = replace(signed, body=signed.body + b" ")
    if SOURCES[path.parent.name].proof is not Proof.SIGNED:
        assert source.verify(changed, NOW).secret_index == 0
    else:
        with pytest.raises(BadSignature):
            source.verify(changed, NOW)


@types
def test_every_type_has_a_sample_a_recording_a_page_and_settings_that_can_be_read(kind: str) -> None:
    found = SOURCES[kind]
    assert found.sample is not None
    source = CONNECTIONS[kind]
    (event,) = parse_body(source, found.sample(Sampling(NOW)))
    assert event.changes
    assert event.changes[0].version.occurred_at <= NOW
    assert any(path.parent.name == kind for path in RECORDINGS)
    assert (Path(__file__).parents[2] / "docs" / "sources" / f"{kind}.md").is_file()
    TypeAdapter(found.settings)


@types
def test_a_sample_is_of_nobody_and_makes_no_account_the_one_that_counts(kind: str) -> None:
    """The first account that a source hears of is the one that counts from then on."""
    sample = SOURCES[kind].sample
    assert sample is not None
    change = one_change(CONNECTIONS[kind], sample(Sampling(NOW)))
    assert change.account is None
    assert change.key.source_id in {"bridge-sample", "999999999999"}
    told = parse_body(CONNECTIONS[kind], sample(Sampling(NOW, account="77", reads={"email", "email_optout", "x"})))
    assert {change.account for event in told for change in event.changes} <= {None, "77"}
    fields = {name for event in told for change in event.changes for name in change.fields}
    # Some say only who it was, and are read.
    assert "email" in fields or all(change.thin for event in told for change in event.changes)
    assert not fields & {"email_optout", "x"}, "consent and what says nothing are not made up"


@pytest.mark.parametrize(
    "payload",
    [
        Payload(id="item.person.key", fields="item.person.data", occurred_at="body.meta.at", items="body.people"),
        Payload(id="item.id", fields="item", event_id="item.event"),
        Payload(items="body.list", kind="'deleted' if item.gone else 'changed'"),
        Payload(kind="item.type"),
    ],
)
def test_a_sample_is_made_as_the_mapping_wants_it(payload: Payload) -> None:
    settings = standard_webhooks.Settings(secrets=(Secret("whsec_" + "A" * 32),), payload=payload)
    sample = standard_webhooks.SOURCE.sample
    assert sample is not None
    body = sample(Sampling(NOW, settings, reads={"mobile_phone"}))
    change = one_change(standard_webhooks.StandardWebhooks("shop", settings), body)
    assert (change.key.source_id, change.version.occurred_at) == (SAMPLE_ID, NOW)
    assert change.fields["mobile_phone"] == "+14155550123"


@types
def test_the_page_of_a_type_lists_the_steps_that_the_type_declares(kind: str) -> None:
    """Whoever adds a source writes them once, and `/sources` shows them."""
    name = {"standard_webhooks": "shop", "hmac": "legacy"}.get(kind, kind)
    page = " ".join((Path(__file__).parents[2] / "docs" / "sources" / f"{kind}.md").read_text().split())
    assert SOURCES[kind].steps
    for number, step in enumerate(SOURCES[kind].steps, 1):
        assert f"{number}. {step.format(name=name)}" in page


@types
def test_a_request_without_a_signature_is_refused(kind: str) -> None:
    if SOURCES[kind].proof is Proof.URL:
        assert connection(kind).needs_token  # which is checked before
        return
    with pytest.raises(BadSignature):
        CONNECTIONS[kind].verify(InboundRequest("POST", BASE_URL, {}, b"{}"), NOW)


NAMES = (
    "meta", "data", "v", "current", "previous", "entity", "entity_id", "action", "timestamp", "id",
    "version", "custom_fields", "emails", "phones", "email", "value", "values", "objectId", "objectTypeId",
    "portalId", "occurredAt", "eventId", "subscriptionType", "propertyName", "propertyValue", "properties",
    "primaryObjectId", "mergedObjectIds", "newObjectId", "vid", "hs_object_id", "lastmodifieddate",
    "versions",
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(
NAMES
            )
            | st.text(max_size=5),
            children
            | st.sampled_from(
                [
                    "person", "change", "create", "delete", "contact.merge", "contact.propertyChange",
                    "contact.creation", "object.deletion", "0-1", "2.0", 1_790_000_000_000, "2026-09-21T14:13:20Z",
                    "\ud800", "a\x00b",
                ]
            ),
            max_size=8,
        )
    ),
    max_leaves=25,
)  # fmt: skip


@types
@few
@given(body=st.one_of(json_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=50)))
@example(body=b"[" * 100_000)
@example(body=b'{"meta":' * 5_000 + b"1" + b"}" * 5_000)
@example(body=b"[" * 60 + b"]" * 60)
@example(body=b"1" * 5_000)
@example(body=b"[1e999]")
@example(body=b"NaN")
@example(body=b'{"data":{"id":"a\\ud800"}}')
@example(body=b'"\\ud800"')
@example(body=b"\xef\xbb\xbf{}")
@example(body=b"")
@example(body=b"[]")
@example(body=b"{}")
def test_garbage_that_is_signed_ends_in_bad_payload_or_a_reason(kind: str, body: bytes) -> None:
    try:
        events = parse_body(CONNECTIONS[kind], body)
    except BadPayload as error:
        assert str(error).endswith(".")
        return
    assert events
    for event in events:
        assert bool(event.changes) + bool(event.ignored) + bool(event.unreadable) == 1
        assert event.key.isascii()
        for change in event.changes:
            stored = json.dumps(
                [change.key.source_id, change.version.event_id, dict(change.fields)], allow_nan=False
            )
            assert "\\u0000" not in stored
            json.dumps(json.loads(stored), ensure_ascii=False).encode()  # no lone surrogates either
            assert change.version.occurred_at <= NOW + timedelta(minutes=5)


@types
def test_a_moment_far_ahead_counts_as_that_of_receipt(kind: str) -> None:
    sample = SOURCES[kind].sample
    assert sample is not None
    for ahead, expected in ((timedelta(minutes=4), NOW + timedelta(minutes=4)), (timedelta(days=9), NOW)):
        body = sample(Sampling(NOW + ahead))
        if body == sample(Sampling(NOW)):  # it does not say when
            expected = NOW
        assert one_change(CONNECTIONS[kind], body).version.occurred_at == expected


@types
def test_no_source_reads_records_without_a_token(kind: str) -> None:
    source = CONNECTIONS[kind]
    assert not source.can_read()
    with pytest.raises(SourceUnavailable):
        source.read(Api("http://127.0.0.1:9"), [RecordKey("crm", "1")], ["email"])


# --- HubSpot ---------------------------------------------------------------------------------------------

EVENT: dict[str, Any] = {
    "eventId": 7,
    "subscriptionId": 26,
    "portalId": 62515,
    "occurredAt": 1_790_000_000_000,
    "subscriptionType": "contact.propertyChange",
    "attemptNumber": 0,
    "objectId": 1246965,
    "propertyName": "phone",
    "propertyValue": "+14155550123",
}
HUBSPOT = CONNECTIONS["hubspot"]


def hubspot_with(**more: Any) -> hubspot.HubSpot:
    return hubspot.HubSpot("crm", hubspot.Settings((Secret("client-secret"),), **more))


def without(request: InboundRequest, *names: str) -> InboundRequest:
    return replace(request, headers={name: value for name, value in request.headers.items() if name not in names})


def test_hubspot_v3_must_be_right_wherever_it_is_there() -> None:
    request = InboundRequest("POST", f"{BASE_URL}/hooks/crm", {}, b"[]")
    lenient = hubspot_with(signature_versions=("v1", "v2", "v3"))
    signed = HUBSPOT.sign(request, NOW)
    wrong = replace(signed, headers={**signed.headers, "x-hubspot-signature-v3": "AAAA"})
    empty = replace(signed, headers={**signed.headers, "x-hubspot-signature-v3": ""})
    for one in (wrong, empty, without(signed, "x-hubspot-request-timestamp")):
        with pytest.raises(BadSignature):
            lenient.verify(one, NOW)
    only_v1 = without(signed, "x-hubspot-signature-v3", "x-hubspot-request-timestamp")
    assert lenient.verify(only_v1, NOW).signed_at is None
    with pytest.raises(BadSignature, match="signature_versions does not allow"):
        HUBSPOT.verify(only_v1, NOW)
    with pytest.raises(BadSignature, match="no signature"):
        lenient.verify(without(only_v1, "x-hubspot-signature-version"), NOW)
    with pytest.raises(BadSignature, match="signature_versions does not allow"):
        hubspot_with(signature_versions=("v2",)).verify(signed, NOW)


def test_hubspot_v2_proves_a_workflow() -> None:
    (vector,) = (
        one for one in json.loads((VECTORS / "hubspot.json").read_text()) if one["id"] == "hs-v2-workflow"
    )
    source = hubspot.HubSpot("crm", hubspot.Settings((Secret("new"), Secret(vector["secret"]))))
    headers = {"x-hubspot-signature": vector["signature"], "x-hubspot-signature-version": "v2"}
    request = InboundRequest(vector["method"], vector["uri"], headers, vector["body"].encode())
    genuine = source.verify(request, NOW)
    assert genuine == Genuine(Verified(request), secret_index=1, signed_at=None)
    assert source.parse(genuine, NOW)[0].changes[0].fields["email"] == "ada@example.com"
    with pytest.raises(BadSignature):
        source.verify(replace(request, headers={**headers, "x-hubspot-signature-version": "v1"}), NOW)


@pytest.mark.parametrize(
    "more", [{"secrets": ()}, {"secrets": (Secret(" "),)}, {"token": Secret("")}, {"signature_versions": ()}]
)
def test_hubspot_settings_that_prove_nothing_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"secret|token|signature_versions"):
        hubspot.HubSpot("crm", hubspot.Settings(**{"secrets": (Secret("s"),), **more}))


def test_hubspot_counts_no_retry_as_another_event() -> None:
    first = only(HUBSPOT, [EVENT]).key
    assert only(HUBSPOT, [{**EVENT, "attemptNumber": 3}]).key == first
    assert len(parse_body(HUBSPOT, [EVENT, {**EVENT, "attemptNumber": 1}])) == 1
    others = [
        {**EVENT, name: value}
        for name, value in (
            ("portalId", 1), ("subscriptionId", 1), ("eventId", 1), ("objectId", 1), ("propertyName", "x"),
            ("occurredAt", 1_790_000_000_001),
        )
    ]  # fmt: skip
    assert len({first, *(only(HUBSPOT, [other]).key for other in others)}) == 7


def test_hubspot_keeps_the_good_events_of_a_batch_with_bad_ones() -> None:
    bad: list[Any] = [
        7,
        {},
        {**EVENT, "objectId": None},
        {**EVENT, "objectId": True},
        {**EVENT, "objectId": 1.5},
        {**EVENT, "objectId": -1},
        {**EVENT, "objectId": 10**30},
        {**EVENT, "occurredAt": "yesterday"},
        {**EVENT, "occurredAt": True},
        {**EVENT, "propertyName": None},
        {**EVENT, "propertyValue": ["a"]},
        {**EVENT, "subscriptionType": "contact.merge"},
        {**EVENT, "subscriptionType": "contact.merge", "mergedObjectIds": []},
        {**EVENT, "subscriptionType": "contact.merge", "mergedObjectIds": ["x"]},
    ]
    *rest, last = parse_body(HUBSPOT, [*bad, EVENT])
    assert len(rest) == len(bad)
    assert all(event.unreadable.endswith(".") and not event.changes for event in rest)
    assert last.changes[0].fields == {"phone": "+14155550123"}


def test_hubspot_orders_events_of_one_millisecond_by_their_number() -> None:
    ids = [one_change(HUBSPOT, [{**EVENT, "eventId": number}]).version.event_id for number in (9, 10, 3816279340)]
    assert ids == sorted(ids)


def test_hubspot_listens_to_the_configured_portal_only() -> None:
    for portal in (62515, "62515"):
        source = hubspot_with(portal_id=portal)
        assert one_change(source, [EVENT]).account == "62515"
        assert "another HubSpot account" in only(source, [{**EVENT, "portalId": 1}]).ignored
        assert "another HubSpot account" in only(source, {"vid": 1, "portal-id": 1, "properties": {}}).ignored


def test_a_workflow_without_times_may_repeat_itself_and_be_news() -> None:
    stop, start = ({"hs_object_id": 1, "hs_email_optout": value} for value in ("true", "false"))
    events = [
        only(HUBSPOT, body, NOW + timedelta(seconds=second)) for second, body in enumerate([stop, start, stop])
    ]
    assert len({event.key for event in events}) == 3
    assert [event.changes[0].fields["hs_email_optout"] for event in events] == ["true", "false", "true"]
    assert all(event.changes[0].thin for event in events)
    timed = {**stop, "lastmodifieddate": "1790000000000"}
    assert only(HUBSPOT, timed, NOW).key == only(HUBSPOT, timed, NOW + timedelta(hours=1)).key


@pytest.mark.parametrize(
    ("body", "fields", "thin"),
    [
        ({"vid": 1}, {}, True),
        ({"vid": 1, "properties": {}}, {}, True),
        ({"properties": {"hs_object_id": {"value": "1"}}}, {"hs_object_id": "1"}, True),
        ({"objectId": "1", "email": "a@example.com", "list": [1]}, {"email": "a@example.com"}, True),
        ({"vid": 1, "properties": {"age": {"value": 7}, "secret": "REDACTED", "odd": {}}}, {"age": "7"}, True),
        ({"vid": 1, "properties": {"a": {"value": "b", "timestamp": "2026-09-21T14:13:20Z"}}}, {"a": "b"}, False),
        (
            {"vid": 1, "properties": {"a": "b", "lastmodifieddate": "never"}},
            {"a": "b", "lastmodifieddate": "never"},
            True,
        ),
    ],
)
def test_workflow_bodies_of_many_shapes(body: object, fields: dict[str, Value], thin: bool) -> None:
    change = one_change(HUBSPOT, body)
    assert (change.key.source_id, change.fields, change.thin) == ("1", fields, thin)


@pytest.mark.parametrize("body", [{"vid": 1, "is-contact": False}, {"objectId": 1, "objectTypeId": "0-2"}])
def test_a_workflow_of_other_objects_is_ignored(body: object) -> None:
    assert "not about contacts" in only(HUBSPOT, body).ignored


@pytest.mark.parametrize("body", [b"7", b'"text"', b"null", b"[", b"\xff[]", b"[]\x80"])
def test_what_hubspot_never_sends_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_body(HUBSPOT, body)


# --- Pipedrive -------------------------------------------------------------------------------------------

PIPEDRIVE = CONNECTIONS["pipedrive"]


def recording(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(read_recording((FIXTURES / f"{name}.http").read_bytes(), BASE_URL).body)
    return body


def test_pipedrive_takes_the_old_login_while_the_new_one_spreads() -> None:
    old, new = pipedrive.Login("bridge", Secret("old")), pipedrive.Login("bridge", Secret("new"))
    before, now = (pipedrive.Pipedrive("crm", pipedrive.Settings(logins)) for logins in ((old,), (new, old)))
    request = before.sign(InboundRequest("POST", BASE_URL, {}, b"{}"), NOW)
    assert now.verify(request, NOW).secret_index == 1
    with pytest.raises(BadSignature):
        pipedrive.Pipedrive("crm", pipedrive.Settings((new,))).verify(request, NOW)
    for unusable in ((), (pipedrive.Login("a:b", Secret("p")),), (pipedrive.Login("a", Secret("")),)):
        with pytest.raises(ValueError, match=r"user|password|credentials"):
            pipedrive.Pipedrive("crm", pipedrive.Settings(unusable))


def test_pipedrive_counts_no_retry_as_another_event() -> None:
    body = recording("pipedrive/change")
    key = only(PIPEDRIVE, body).key
    body["meta"]["attempt"] = 4
    assert only(PIPEDRIVE, body).key == key
    del body["meta"]["id"]
    unnamed = only(PIPEDRIVE, body).key
    body["meta"]["attempt"] = 2
    assert only(PIPEDRIVE, body).key == unnamed != key
    old = recording("pipedrive/v1_updated")
    assert only(PIPEDRIVE, old).key == only(PIPEDRIVE, {**old, "retry": 3}).key
    old["meta"]["timestamp_micro"] += 1
    assert only(PIPEDRIVE, old).key != only(PIPEDRIVE, recording("pipedrive/v1_updated")).key


def test_pipedrive_listens_to_the_configured_company_only() -> None:
    login = pipedrive.Login("bridge", Secret("p"))
    for company, heard in ((7654321, True), ("7654321", True), ("1", False)):
        source = pipedrive.Pipedrive("crm", pipedrive.Settings((login,), company))
        assert bool(only(source, recording("pipedrive/change")).changes) is heard


@pytest.mark.parametrize(
    ("phones", "expected"),
    [
        ([], {"phone": "", "phones": []}),
        (None, {"phone": "", "phones": []}),
        ("+14155550123", {"phone": "+14155550123", "phones": ["+14155550123"]}),
        (["+14155550123"], {"phone": "+14155550123", "phones": ["+14155550123"]}),
        ([{"value": "", "primary": True}, {"value": "1"}], {"phone": "1", "phones": ["1"]}),
        # Another shape than Pipedrive's must not read as cleared.
        (7, {}),
        ([7], {}),
        ([{"value": 7}], {}),
    ],
)
def test_pipedrive_never_takes_an_odd_phone_for_none(phones: object, expected: dict[str, Value]) -> None:
    body = recording("pipedrive/change")
    body["data"]["phones"] = phones
    fields = one_change(PIPEDRIVE, body).fields
    assert {name: fields[name] for name in ("phone", "phones") if name in fields} == expected


def test_pipedrive_events_that_make_no_sense_say_why() -> None:
    for change in (
        {"entity_id": "x"},
        {"timestamp": "2026-09-21T14:13:20"},
        {"action": "delete", "merged_to_id": "1234"},
    ):
        body = recording("pipedrive/change")
        body["meta"].update(change)
        assert only(PIPEDRIVE, body).unreadable
    assert only(PIPEDRIVE, {**recording("pipedrive/change"), "data": None}).unreadable
    assert "explode" in only(PIPEDRIVE, {"meta": {"entity": "person", "action": "explode"}}).ignored
    odds: list[object] = [{}, {"meta": 7}, []]
    for odd in odds:
        with pytest.raises(BadPayload):
            parse_body(PIPEDRIVE, odd)


# --- declared payloads -----------------------------------------------------------------------------------


def declared(**payload: str) -> hmac_scheme.HmacSource:
    return hmac_scheme.HmacSource("crm", hmac_scheme.Settings((Secret("s"),), GITHUB, payload=Payload(**payload)))


@pytest.mark.parametrize(
    ("payload", "body", "expected"),
    [
        ({}, {"type": "contact.updated"}, "contact.updated"),
        ({"items": "body.events"}, {"events": [{"type": "item.type"}], "type": "body.type"}, "item.type"),
        ({"items": "body.events"}, {"events": [{}], "type": "body.type"}, "body.type"),
        ({"items": "body.events"}, {"events": [], "type": "body.type"}, "body.type"),
        # What is a field of a person is no word of the sender's.
        ({"fields": "item"}, {"type": "patient"}, ""),
        ({"items": "body.people", "fields": "item"}, {"people": [{"type": "patient"}], "type": "sync"}, "sync"),
        ({"event_type": "headers['x-github-event']"}, {"type": "not this"}, "push"),
        ({"event_type": "item.event.type"}, {"event": {"type": "user_change"}}, "user_change"),
        ({"event_type": "item.event.type"}, {"type": "not this"}, ""),
        ({"event_type": "item.event"}, {"event": {"type": "x"}}, ""),
        ({"event_type": "item.at | date"}, {"at": "no date"}, ""),
        ({"kind": "'ignore'"}, {"type": "company.updated"}, "company.updated"),
        ({"kind": "'nonsense'"}, {"type": "contact.updated"}, "contact.updated"),
        ({}, {"type": ["x"]}, ""),
        ({}, [{"type": "x"}], ""),
    ],
)
def test_what_a_declared_sender_calls_an_event(payload: dict[str, str], body: object, expected: str) -> None:
    assert only(declared(**payload), body, x_github_event="push").type == expected


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["a.b", "a.b", "", "c"], ("a.b", "c")),
        (["a", "b", "c", "d", "e", "f"], ("a", "b", "c", "d", "e")),
        (["x" * 5_000, "x" * 101], ("x" * 100,)),
        ([" a\x00\n\u202e\ud800b\t"], ("ab",)),
        (
            ["ada@example.com", "contact.ada@example.com", "+14155550123", "12", "\n", "contact.v2"],
            ("contact.v2",),
        ),
        ([], ()),
    ],
)
def test_names_of_events_are_few_short_and_nobodys(given: list[str], kept: tuple[str, ...]) -> None:
    assert event_types([Event(str(number), type=name) for number, name in enumerate(given)]) == kept


def test_a_batch_is_one_event_for_each_item() -> None:
    source = declared(
        items="body.people",
        id="item.key",
        occurred_at="item.at or body.at",
        kind="'deleted' if item.gone else 'ignore' if item.key == 3 else 'changed'",
        fields="{'email': item.mail | lower}",
    )
    people = [
        {"key": 1, "mail": "ADA@example.com"},
        {"key": 2, "gone": True},
        {"key": 3, "mail": "x"},
        {"mail": "y"},
    ]
    events = parse_body(source, {"at": 1_790_000_000, "people": people})
    assert [shown(event) for event in events] == [
        {
            "changes": [
                {
                    "source_id": "1",
                    "kind": "changed",
                    "occurred_at": "2026-09-21T14:13:20.000000Z",
                    "fields": {"email": "ada@example.com"},
                }
            ]
        },
        {"changes": [{"source_id": "2", "kind": "deleted", "occurred_at": "2026-09-21T14:13:20.000000Z"}]},
        {"ignored": "The payload's kind says to ignore it."},
        {"unreadable": "The expression payload.id gives no usable id for this item."},
    ]
    assert only(source, {"people": []}).ignored
    for body in ({"people": 7}, {}, {"people": {"key": 1}}, {"people": [0] * (MAX_ITEMS + 1)}):
        with pytest.raises(BadPayload):
            parse_body(source, body)


@pytest.mark.parametrize("word", ["changed", "created", "deleted", "erased"])
def test_the_kinds_of_a_declared_payload(word: str) -> None:
    change = one_change(declared(kind="item.kind"), {"kind": word, "data": {"id": 1, "a": "b"}})
    assert change.kind == Kind(word)
    assert bool(change.fields) is (word in {"changed", "created"})


@pytest.mark.parametrize("word", ["merged", "Changed", "", 7, None, "x" * 400])
def test_an_unknown_kind_is_unreadable(word: object) -> None:
    said = only(declared(kind="item.kind"), {"kind": word, "data": {"id": 1}}).unreadable
    assert "no kind of event" in said
    assert len(said) < 120


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("2026-09-21T14:13:20Z", "2026-09-21T14:13:20.000000Z"),
        ("2026-09-21T16:13:20.25+02:00", "2026-09-21T14:13:20.250000Z"),
        (1_790_000_000, "2026-09-21T14:13:20.000000Z"),
        (1_790_000_000.5, "2026-09-21T14:13:20.500000Z"),
        ("1790000000123", "2026-09-21T14:13:20.123000Z"),
        (1_790_000_000_123_456, "2026-09-21T14:13:20.123456Z"),
        (None, iso(NOW)),
        ("", iso(NOW)),
    ],
)
def test_moments_of_a_declared_payload(said: object, expected: str) -> None:
    change = one_change(CONNECTIONS["hmac"], {"timestamp": said, "data": {"id": 1}})
    assert iso(change.version.occurred_at) == expected


@pytest.mark.parametrize(
    "said",
    ["2026-09-21T14:13:20", "21.09.2026", "yesterday", True, 5, -1_790_000_000, [], {}, "0001-01-01T00:00:00Z",
     "9999-12-31T23:59:59Z", "2026-02-30T00:00:00Z", "17900000000000000000", 1e300],
)  # fmt: skip
def test_an_unclear_moment_makes_an_event_unreadable(said: object) -> None:
    assert "payload.occurred_at" in only(CONNECTIONS["hmac"], {"timestamp": said, "data": {"id": 1}}).unreadable


def test_what_tells_neither_time_nor_id_may_repeat_itself_and_be_news() -> None:
    source, later = CONNECTIONS["hmac"], NOW + timedelta(seconds=1)
    body = {"data": {"id": 1, "stop": True}}
    assert only(source, body).key == only(source, body).key != only(source, body, later).key
    timed = {**body, "timestamp": 1_790_000_000}
    assert only(source, timed).key == only(source, timed, later).key
    assert only(source, timed).key != only(source, {**timed, "data": {"id": 1, "stop": False}}).key
    named = declared(event_id="item.event")
    assert only(named, {**body, "event": "e1"}).key == only(named, {**body, "event": "e1"}, later).key
    assert only(named, body).key != only(named, body, later).key


def test_the_later_of_two_items_counts_when_neither_has_a_time() -> None:
    source = declared(items="body", id="item.id", fields="item")
    first, second = parse_body(source, [{"id": 1, "a": "z"}, {"id": 1, "a": "a"}])
    assert first.changes[0].version < second.changes[0].version
    assert len(parse_body(source, [{"id": 1}, {"id": 1}])) == 2


def test_headers_can_be_read_but_those_that_are_secret() -> None:
    source = declared(
        kind="'deleted' if headers['x-event'] == 'gone' else 'changed'",
        fields="{'seen': headers['authorization'] | default('nothing')}",
    )
    assert one_change(source, {"data": {"id": 1}}, x_event="gone").kind is Kind.DELETED
    assert one_change(source, {"data": {"id": 1}}, authorization="Bearer x").fields == {"seen": "nothing"}


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"id": "item."}, "payload.id: "),
        ({"kind": "changed"}, "payload.kind: 'changed' is not known here"),
        ({"items": "item.people"}, "payload.items: 'item' is not known here"),
        ({"fields": ""}, "payload.fields: the expression is empty"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_by_name(payload: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match="^" + said):
        declared(**payload)


def test_an_expression_that_fails_says_so_without_a_value() -> None:
    source = declared(fields="{'age': item.data.age * 2}")
    said = only(source, {"data": {"id": 1, "age": "a private matter"}}).unreadable
    assert said == "The expression payload.fields cannot be computed for this item."
    assert "gives no object" in only(declared(fields="item.name"), {"name": "x", "data": {"id": 1}}).unreadable


# --- Standard Webhooks -----------------------------------------------------------------------------------

SHOP = CONNECTIONS["standard_webhooks"]


def test_the_senders_id_tells_repeats_whatever_the_time_of_the_attempt() -> None:
    body = {"data": {"id": 1}}
    first, retry = (only(SHOP, body, NOW + timedelta(hours=n), webhook_id="msg_1") for n in (0, 1))
    assert first.key == retry.key != only(SHOP, body, webhook_id="msg_2").key
    assert first.changes[0].version.occurred_at == NOW


def test_svix_headers_are_taken_but_never_mixed_with_the_standards() -> None:
    request = InboundRequest("POST", BASE_URL, {"svix-id": "msg_1"}, b'{"data": {"id": 1}}')
    svix = SHOP.sign(request, NOW)
    assert set(svix.headers) == {"svix-id", "svix-timestamp", "svix-signature"}
    (event,) = SHOP.parse(SHOP.verify(svix, NOW), NOW)
    assert event.key == only(SHOP, {"data": {"id": 1}}, webhook_id="msg_1").key
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        with pytest.raises(BadSignature, match="webhook-"):
            SHOP.verify(
                replace(svix, headers={**svix.headers, name: svix.headers[name.replace("webhook", "svix")]}), NOW
            )


def test_a_public_key_verifies_but_cannot_sign() -> None:
    private = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    public = "whpk_A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
    sender, receiver = (
        standard_webhooks.StandardWebhooks("crm", standard_webhooks.Settings((Secret(key),)))
        for key in (private, public)
    )
    request = sender.sign(InboundRequest("POST", BASE_URL, {}, b"{}"), NOW)
    assert receiver.verify(request, NOW).signed_at == NOW
    with pytest.raises(ConfigError, match="public keys"):
        receiver.sign(request, NOW)
    with pytest.raises(ValueError, match="secrets"):
        standard_webhooks.StandardWebhooks("crm", standard_webhooks.Settings(()))


# --- declared signatures ---------------------------------------------------------------------------------

STRIPE = {
    "signature": {"header": "Stripe-Signature", "prefix": "v1=", "between": ",", "separator": ".",
                  "parts": ["timestamp", "body"]},
    "timestamp": {"prefix": "t="},
}  # fmt: skip
SLACK = {
    "signature": {"header": "X-Slack-Signature", "prefix": "v0=", "separator": ":",
                  "parts": ["text:v0", "timestamp", "body"]},
    "timestamp": {"header": "X-Slack-Request-Timestamp"},
}  # fmt: skip
CLOSE: dict[str, Any] = {
    "signature": {"header": "close-sig-hash", "parts": ["timestamp", "body"], "key": "hex"},
    "timestamp": {"header": "close-sig-timestamp", "tolerance_s": 600},
}


def from_toml(section: Mapping[str, Any], secret: str) -> hmac_scheme.HmacSource:
    """Make a source of what a section of bridge.toml holds, as the configuration does."""
    signature = TypeAdapter(hmac_scheme.Signature).validate_python(section["signature"])
    timestamp = TypeAdapter(hmac_scheme.Timestamp | None).validate_python(section["timestamp"])
    return hmac_scheme.HmacSource("crm", hmac_scheme.Settings((Secret(secret),), signature, timestamp))


def test_stripe_and_slack_are_declared() -> None:
    (stripe,) = json.loads((VECTORS / "stripe.json").read_text())
    headers = {"stripe-signature": stripe["stripe_signature"]}
    request = InboundRequest("POST", BASE_URL, headers, stripe["body"].encode())
    at = datetime.fromtimestamp(int(stripe["t"]), UTC)
    assert from_toml(STRIPE, stripe["secret"]).verify(request, at).signed_at == at
    (slack,) = json.loads((VECTORS / "slack.json").read_text())
    headers = {"x-slack-signature": slack["x_slack_signature"], "x-slack-request-timestamp": slack["timestamp"]}
    request = InboundRequest("POST", BASE_URL, headers, slack["body"].encode())
    at = datetime.fromtimestamp(int(slack["timestamp"]), UTC)
    assert from_toml(SLACK, slack["signing_secret"]).verify(request, at).signed_at == at


def test_the_declared_tolerance_counts_both_ways() -> None:
    source = from_toml(CLOSE, "00ff")
    signed = source.sign(InboundRequest("POST", BASE_URL, {}, b"{}"), NOW)
    for away_s in (-600, 600):
        assert source.verify(signed, NOW + timedelta(seconds=away_s)).signed_at == NOW
        with pytest.raises(BadSignature):
            source.verify(signed, NOW + timedelta(seconds=away_s * 1.01))


def test_a_header_that_is_signed_must_be_in_what_is_sent() -> None:
    signature = hmac_scheme.Signature("x-signature", parts=("header:X-Id", "body"))
    source = hmac_scheme.HmacSource("crm", hmac_scheme.Settings((Secret("s"),), signature))
    request = InboundRequest("POST", BASE_URL, {}, b"{}")
    with pytest.raises(ConfigError, match="x-id is missing"):
        source.sign(request, NOW)
    signed = source.sign(replace(request, headers={"x-id": "7"}), NOW)
    assert source.verify(signed, NOW).secret_index == 0
    with pytest.raises(BadSignature):
        source.verify(replace(signed, headers={**signed.headers, "x-id": "8"}), NOW)


def test_without_a_time_of_the_event_the_signed_one_counts() -> None:
    source = from_toml(SLACK, "secret")
    body = {"data": {"id": 1}}
    first = only(source, body)
    assert first.changes[0].version.occurred_at == NOW
    assert only(source, body).key == first.key != only(source, body, NOW + timedelta(seconds=1)).key


@pytest.mark.parametrize(
    ("section", "secret", "said"),
    [
        (CLOSE, "no hex", "not written in hex"),
        (CLOSE, "", "empty"),
        ({**CLOSE, "timestamp": {}}, "00", "signature: the timestamp stands"),
        ({**CLOSE, "signature": {**CLOSE["signature"], "parts": ["secret", "body"]}}, "00", "signature.parts"),
        ({**CLOSE, "signature": {**CLOSE["signature"], "parts": ["body"]}}, "00", "only when it is signed"),
    ],
)
def test_a_declared_scheme_that_proves_nothing_is_refused(
    section: Mapping[str, Any], secret: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        from_toml(section, secret)
    with pytest.raises(ValueError, match="secrets"):
        hmac_scheme.HmacSource("crm", hmac_scheme.Settings((), GITHUB))


# --- recordings ------------------------------------------------------------------------------------------


def test_a_recording_saved_by_an_editor_is_read_too() -> None:
    request = read_recording(b"POST /hooks/crm?a=b HTTP/1.1\nX-Two: 1\nx-two:2\n\n{}\n\n", BASE_URL + "/")
    assert request == InboundRequest("POST", f"{BASE_URL}/hooks/crm?a=b", {"x-two": "1,2"}, b"{}\n\n")


@pytest.mark.parametrize("text", [b"", b"{}", b"{}\n\n{}", b"\n\n{}", b"POST /x HTTP/1.1\nno colon\n\n{}"])
def test_what_is_no_recording_says_what_is_missing(text: bytes) -> None:
    with pytest.raises(BadPayload, match=r"recording"):
        read_recording(text, BASE_URL)


# --- pages -----------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "sources"


@types
def test_the_page_of_a_type_explains_every_setting(kind: str) -> None:
    page = (DOCS / f"{kind}.md").read_text("utf-8")
    for setting in dataclasses.fields(SOURCES[kind].settings):
        assert f"\n| `{setting.name}` |" in page, f"{kind}.md does not explain {setting.name}"
    for word in ("What to click", "What arrives", "```http", "Traps"):
        assert word in page


@types
def test_the_examples_of_a_page_name_settings_that_exist(kind: str) -> None:
    page = (DOCS / f"{kind}.md").read_text("utf-8")
    for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        for section in tomllib.loads(block)["sources"].values():
            assert section.pop("type") == kind
            assert set(section.get("payload", {})) <= {setting.name for setting in dataclasses.fields(Payload)}
            assert set(section) <= {setting.name for setting in dataclasses.fields(SOURCES[kind].settings)}
            if kind == "hmac":
                from_toml({"timestamp": None, **section}, "00")


@types
def test_the_request_on_a_page_is_one_that_the_source_reads(kind: str) -> None:
    page = (DOCS / f"{kind}.md").read_text("utf-8")
    (example,) = re.findall(r"```http\n(.*?)\n```", page, re.DOTALL)
    (event,) = parse(CONNECTIONS[kind], read_recording(example.encode(), BASE_URL))
    assert event.changes
