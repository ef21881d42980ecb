"""What is particular to Calendly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.contact import merge
from bridge.errors import BadPayload, BadSignature, SourceUnavailable
from bridge.model import Change, Contact, InboundRequest, Secret
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Registrar
from bridge.sources.calendly import SOURCE, Calendly, Settings
from bridge.sources.recording import read_recording
from tests.sources.fake_calendly import ORGANIZATION, USER
from tests.sources.fake_calendly import Calendly as Fake
from tests.sources.kit import BASE_URL, FIXTURES, NOW, connection, only, parse_body, vectors

SOURCE_OF_RECORDINGS = connection("calendly").source
URL = f"{BASE_URL}/hooks/crm"


def recording(name: str) -> dict[str, Any]:
    path = FIXTURES / "calendly" / f"{name}.http"
    body: dict[str, Any] = json.loads(read_recording(path.read_bytes(), BASE_URL).body)
    return body


def changed(name: str, /, **invitee: Any) -> dict[str, Any]:
    body = recording(name)
    body["payload"] |= invitee
    return body


# --- the signature ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", vectors("calendly"), ids=lambda one: one["id"])
def test_the_vector_is_taken_and_what_resembles_it_is_not(vector: dict[str, Any]) -> None:
    body = vector["body"].encode()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (vector["body_len"], vector["body_sha256"])
    source = Calendly("crm", Settings((Secret("new"), Secret(f"{vector['signing_key']}\n"))))
    signature = vector["calendly_webhook_signature"]
    headers = {"calendly-webhook-signature": signature}
    request = InboundRequest("POST", URL, headers, body)
    at = datetime.fromtimestamp(int(vector["t"]), UTC)
    genuine = source.verify(request, at)
    assert (genuine.secret_index, genuine.signed_at) == (1, at)
    # Entries of other versions may stand beside it, and more than one of ours, in any order.
    t, v1 = signature.split(",")
    for fine in (
        f"{v1},{t}",
        f"{t}, {v1}",
        f"{signature},v0=00",
        f"{t},v1=00,{v1}",
        signature.replace("fe4e", "FE4E"),
    ):
        assert source.verify(replace(request, headers={"calendly-webhook-signature": fine}), at).secret_index == 1
    for wrong in (
        "",
        t,
        v1,
        v1[3:],
        f"{t},v0={v1[3:]}",
        f"t=1790000001,{v1}",
        f"t=,{v1}",
        f"{t},{t},{v1}",
        f"t=1e9,{v1}",
    ):
        with pytest.raises(BadSignature):
            source.verify(replace(request, headers={"calendly-webhook-signature": wrong}), at)
    with pytest.raises(BadSignature):
        source.verify(replace(request, body=body + b"\n"), at)


@pytest.mark.parametrize("tolerance_s", [180, 3600])
def test_a_signature_is_good_for_three_minutes_or_as_long_as_configured(tolerance_s: float) -> None:
    source = Calendly("crm", Settings((Secret("k"),), tolerance_s=tolerance_s))
    signed = source.sign(InboundRequest("POST", URL, {}, b"{}"), NOW)
    for away_s in (-tolerance_s, tolerance_s):
        assert source.verify(signed, NOW + timedelta(seconds=away_s)).signed_at == NOW
        with pytest.raises(BadSignature):
            source.verify(signed, NOW + timedelta(seconds=away_s * 1.01))


@pytest.mark.parametrize(
    "more",
    [
        {"secrets": ()},
        {"secrets": (Secret(" "),)},
        {"tolerance_s": 0},
        {"tolerance_s": 86_401},
        {"token": Secret("")},
    ],
)
def test_settings_that_prove_nothing_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"secrets|tolerance|token"):
        Calendly("crm", Settings(**{"secrets": (Secret("k"),), **more}))


# --- who it is -------------------------------------------------------------------------------------------


def ids(*bodies: dict[str, Any]) -> set[str]:
    return {
        change.key.source_id
        for body in bodies
        for event in parse_body(SOURCE_OF_RECORDINGS, body)
        for change in event.changes
    }


def test_one_address_is_one_contact_however_many_bookings_it_makes() -> None:
    again = changed(
        "created", uri="https://api.calendly.com/scheduled_events/F/invitees/B", email=" ADA@example.COM"
    )
    assert len(ids(recording("created"), recording("canceled"), again)) == 1
    assert len(ids(recording("created"), changed("created", email="bob@example.com"))) == 2


def test_no_address_stands_in_an_id_a_key_or_the_order_of_events() -> None:
    for email in ("Ada@Example.com", "ada", None, 7):
        told = parse_body(SOURCE_OF_RECORDINGS, changed("created", email=email))
        shown = repr([(event.key, [(change.key, change.version) for change in event.changes]) for event in told])
        assert "ada" not in shown.lower()
    odd = changed(
        "created", email=None, uri="https://api.calendly.com/scheduled_events/F/invitees/ada@example.com"
    )
    assert only(SOURCE_OF_RECORDINGS, odd).unreadable == "It does not say who the invitee is."


def test_a_retry_is_a_repeat_and_a_cancellation_is_none() -> None:
    key = only(SOURCE_OF_RECORDINGS, recording("created")).key
    assert only(SOURCE_OF_RECORDINGS, {**recording("created"), "created_at": "2026-09-21T15:00:00Z"}).key == key
    assert only(SOURCE_OF_RECORDINGS, recording("canceled")).key != key
    # Nonsense does not pass for the event that it resembles.
    assert only(SOURCE_OF_RECORDINGS, changed("created", created_at="yesterday")).key != key


# --- what it says ----------------------------------------------------------------------------------------


def merged(*bodies: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a contact after *bodies*."""
    contact: Contact | None = None
    for body in bodies:
        for event in parse_body(SOURCE_OF_RECORDINGS, body):
            for change in event.changes:
                contact = merge(contact or Contact(change.key), change)
    assert contact is not None
    return {name: state.value for name, state in contact.fields.items()}


def booked(at: str, uri: str, **more: Any) -> dict[str, Any]:
    return changed(
        "created",
        created_at=at,
        updated_at=at,
        uri=f"https://api.calendly.com/scheduled_events/E/invitees/{uri}",
        **more,
    )


def cancelled(booking: dict[str, Any], at: str, **more: Any) -> dict[str, Any]:
    cancellation = {"created_at": at, "reason": "Ill"}
    return {
        **booking,
        "event": "invitee.canceled",
        "payload": {**booking["payload"], "status": "canceled", "cancellation": cancellation, **more},
    }


FIRST = booked("2026-09-01T10:00:00Z", "A", text_reminder_number="+14155550100", name="A. King")
SECOND = booked("2026-09-10T10:00:00Z", "B", text_reminder_number="+14155550123", name="Ada Lovelace")


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(order=st.permutations(range(4)))
def test_an_old_booking_that_is_cancelled_brings_no_old_number_back(order: list[int]) -> None:
    sent = [FIRST, SECOND, cancelled(FIRST, "2026-09-12T10:00:00Z"), SECOND]
    known = merged(*(sent[number] for number in order))
    assert (known["text_reminder_number"], known["name"]) == ("+14155550123", "Ada Lovelace")
    assert (known["status"], known["cancel_reason"]) == ("canceled", "Ill")


def test_whoever_only_moves_a_meeting_has_cancelled_none() -> None:
    moved = cancelled(FIRST, "2026-09-11T10:00:00Z", rescheduled=True)
    new = booked(
        "2026-09-10T23:59:59Z", "C", scheduled_event={"name": "Call", "start_time": "2026-10-01T10:00:00Z"}
    )
    for order in ((FIRST, moved, new), (new, moved, FIRST)):
        known = merged(*order)
        assert (known["status"], known["event_name"]) == ("active", "Call")


def test_a_cancellation_of_the_same_moment_is_the_later_one() -> None:
    """Should Calendly not tell when it was cancelled: it cannot have been before it was booked."""
    gone = cancelled(FIRST, "2026-09-01T10:00:00Z")
    del gone["payload"]["cancellation"]
    assert merged(FIRST, gone)["status"] == merged(gone, FIRST)["status"] == "canceled"


def test_what_a_booking_leaves_open_is_not_cleared() -> None:
    left_open = booked(
        "2026-09-20T10:00:00Z",
        "B",
        text_reminder_number=None,
        first_name="",
        questions_and_answers=None,
        tracking=7,
        scheduled_event=[],
        timezone=["x"],
        name={"first": "x"},
    )
    known = merged(booked("2026-09-01T10:00:00Z", "A", text_reminder_number="+14155550100"), left_open)
    assert known["text_reminder_number"] == "+14155550100"
    assert (known["name"], known["Mobile number"]) == ("Ada Lovelace", "+1 415 555 0123")
    assert "first_name" not in known


def test_an_answer_is_never_taken_for_what_calendly_itself_says() -> None:
    body = changed(
        "created",
        questions_and_answers=[{"question": name, "answer": "x"} for name in ("email", "status", " name ")],
    )
    known = merged(body)
    assert (known["email"], known["status"], known["name"]) == ("Ada@Example.com", "active", "Ada Lovelace")


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"event": "invitee.created"}', b'{"event": 7.5, "payload": {}}', b'{"payload": {}}']
)
def test_what_calendly_never_sends_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_body(SOURCE_OF_RECORDINGS, body)


def test_moments_that_make_no_sense_are_told() -> None:
    for bad in ({"created_at": "2026-09-21T14:13:20"}, {"updated_at": 5}, {"cancellation": {"created_at": "?"}}):
        assert "no moment in time" in only(SOURCE_OF_RECORDINGS, changed("canceled", **bad)).unreadable
    bare = changed("created", created_at=None, updated_at=None)
    changes: tuple[Change, ...] = only(SOURCE_OF_RECORDINGS, bare).changes
    assert [change.version.occurred_at for change in changes] == [datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)]


ENDLESS = {"collection": [], "pagination": {"next_page_token": "t0"}}

# --- registering -----------------------------------------------------------------------------------------


@dataclass
class Organization:
    """A fake Calendly and what bridge calls it with."""

    fake: Fake
    api: Api

    def registrar(self, key: str = "our-signing-key", token: str = Fake.token, **more: Any) -> Registrar:
        assert SOURCE.registrar is not None
        made = SOURCE.registrar("crm", Settings((Secret(f"{key}\n"), Secret("old")), token=Secret(token), **more))
        assert made is not None
        return made


@contextmanager
def organization(**switches: Any) -> Iterator[Organization]:
    fake = Fake(**switches)
    with fake.serve() as base_url, new_session() as session:
        yield Organization(fake, Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.5))


@pytest.mark.parametrize("pages", Fake.SWITCHES["pages"])
@pytest.mark.parametrize("created", Fake.SWITCHES["created"])
@pytest.mark.parametrize("scope", ["organization", "user"])
def test_registering_twice_is_registering_once(pages: str, created: int, scope: str) -> None:
    with organization(pages=pages, created=created) as one:
        one.registrar(scope=scope).register(one.api, f"{URL}/other", [], NOW)
        done = one.registrar(scope=scope).register(one.api, URL, ["email"], NOW)
        assert done.done == [f"Subscribed to the bookings and cancellations of the {scope}."]
        ours = one.fake.subscriptions["S000000000000001"]
        assert (ours["callback_url"], ours["events"]) == (URL, ["invitee.created", "invitee.canceled"])
        assert (ours["organization"], ours["user"]) == (ORGANIZATION, USER if scope == "user" else None)
        assert set(one.fake.keys.values()) == {"our-signing-key"}
        again = one.registrar(scope=scope).register(one.api, URL, [], NOW)
        assert done.expires_at == again.expires_at == NOW + timedelta(days=1), "it is looked after"
        assert again.done == ["The subscription is there already."]
        assert len(one.fake.keys) == 2


@pytest.mark.parametrize("wrong", [{"state": "disabled"}, {"events": ["invitee.created"]}])
def test_a_subscription_that_was_switched_off_is_made_anew(wrong: dict[str, Any]) -> None:
    with organization() as one:
        for url in (URL, f"{URL}/other"):
            one.registrar().register(one.api, url, [], NOW)
        for subscription in one.fake.subscriptions.values():
            subscription |= wrong
        done = one.registrar("another-key").register(one.api, URL, [], NOW)
        assert [line.partition(" ")[0] for line in done.done] == ["Removed", "Subscribed"]
        assert one.fake.keys["S000000000000002"] == "another-key"
        assert set(one.fake.subscriptions) == {"S000000000000001", "S000000000000002"}


def test_removing_takes_what_leads_here_and_nothing_else() -> None:
    with organization() as one:
        for url in (URL, f"{URL}/other"):
            one.registrar().register(one.api, url, [], NOW)
        assert one.registrar().remove(one.api, URL) == ["Removed a subscription that led here."]
        assert one.registrar().remove(one.api, URL) == []
        assert [s["callback_url"] for s in one.fake.subscriptions.values()] == [f"{URL}/other"]


def test_no_secret_is_kept_or_told() -> None:
    with organization() as one:
        one.registrar().register(one.api, URL, [], NOW)
        kept = repr(one.api.exchanges) + repr(one.registrar())
        assert "our-signing-key" not in kept
        assert Fake.token not in kept
        assert len(one.api.exchanges) == len(one.fake.calls) == 3


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"status": 401}, "refuses the credentials of crm"),
        ({"status": 403, "body": {"message": "Please upgrade"}}, "on a paid plan"),
        ({"status": 429}, "fewer calls"),
        ({"status": 500}, "HTTP 500"),
        ({"status": 200, "body": "<html>"}, "not JSON"),
        ({"path": "users", "status": 200, "body": {"resource": []}}, "whose the access token is"),
        ({"path": "webhook", "status": 200, "body": {"collection": {}}}, "not a list"),
        ({"path": "webhook", "status": 200, "body": ENDLESS, "times": 99}, "not a list"),
        ({"method": "POST", "status": 409}, "HTTP 409"),
        ({"how": "drop"}, "cannot be called now"),
    ],
)
def test_trouble_on_the_way_says_what_it_is(trouble: dict[str, Any], said: str) -> None:
    with organization() as one:
        one.fake.trouble(**trouble)
        with pytest.raises(SourceUnavailable, match=said) as caught:
            one.registrar().register(one.api, URL, [], NOW)
        assert str(caught.value).endswith(".")
        assert isinstance(caught.value, BatchUnreadable) == (said == "not JSON")


def test_registering_is_offered_where_there_is_a_token_only() -> None:
    assert SOURCE.registrar is not None
    assert SOURCE.registrar("crm", Settings((Secret("k"),))) is None
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(Settings((Secret("k"),))) == "https://api.calendly.com"
