"""ActiveCampaign as a source: what its forms say, however they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.contact import merge
from bridge.errors import BadPayload
from bridge.model import Change, Contact, Event, InboundRequest, Kind, Secret, Value
from bridge.sources.activecampaign import SOURCE, ActiveCampaign, Settings
from bridge.sources.base import Proof
from bridge.sources.sampling import Sampling
from tests.sources.kit import BASE_URL, NOW, connection, connection_of, only, parse_body, vectors

BASE = "https://acme.api-us1.com"
AT, LATER = "2026-09-21T09:13:20-05:00", "2026-09-21T09:13:21-05:00"
PLAIN = ActiveCampaign("crm", Settings(BASE))
few = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def event(
    pairs: Mapping[str, str] | None = None, received_at: datetime = NOW, source: ActiveCampaign = PLAIN
) -> Event:
    """Return the event of an update, or of what *pairs* make of it."""
    form = {"type": "update", "date_time": AT, "contact[id]": "42", **(pairs or {})}
    return only(source, urlencode(form).encode(), received_at)


def change(pairs: Mapping[str, str] | None = None, received_at: datetime = NOW) -> Change:
    (found,) = event(pairs, received_at).changes
    return found


def fields(body: str) -> dict[str, Value]:
    """Return what an update says that has *body* behind it, less the id."""
    start = f"type=update&date_time={quote(AT)}&contact[id]=42&"
    (found,) = only(PLAIN, (start + body).encode()).changes
    return {name: value for name, value in found.fields.items() if name != "id"}


@pytest.mark.parametrize("vector", vectors("activecampaign"), ids=lambda one: str(one["id"]))
def test_the_vectors(vector: dict[str, Any]) -> None:
    body = vector["body"].encode()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (vector["body_len"], vector["body_sha256"])
    found = only(PLAIN, body)
    assert found.key == vector["fingerprint"]
    assert found.changes[0].fields == vector["fields"]


def test_requests_are_taken_at_the_url_with_a_token_only() -> None:
    one = connection("activecampaign")
    assert one.type.proof is Proof.URL
    assert one.needs_token
    request = InboundRequest("POST", f"{BASE_URL}/hooks/crm", {}, b"x")
    assert one.source.sign(request, NOW) == request
    assert one.source.verify(request, NOW).request == request


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("contact%5Bphone%5D=%2B14155550123", {"phone": "+14155550123"}),
        ("contact[email]=", {"email": ""}),
        ("contact[email]", {"email": ""}),
        ("contact[email]=a%26b%3Dc@example.com", {"email": "a&b=c@example.com"}),
        ("contact[email]=old@example.com&contact[email]=new@example.com", {"email": "new@example.com"}),
        ("contact[fields][3]=Gold", {"field_3": "Gold"}),
        ("contact[fields][MOBILE_NUMBER]=1", {"field_mobile_number": "1"}),
        ("contact[fields][%25TIER%25]=1", {"field_tier": "1"}),
        ("contact[fields][7]=||a||b||", {"field_7": ["a", "b"]}),
        ("contact[fields][7]=||a||", {"field_7": ["a"]}),
        ("contact[fields][7]=||", {"field_7": ""}),
        ("contact[fields][7]=||||", {"field_7": ""}),
        ("contact[fields][7]=a||b", {"field_7": "a||b"}),
        ("contact[fields][7][]=a&contact[fields][7][]=b", {"field_7": ["a", "b"]}),
        ("contact[fields][7][0]=a", {"field_7": ["a"]}),
        ("contact[tags]=", {"tags": []}),
        ("contact[tags]=a,%20b%20,,", {"tags": ["a", "b"]}),
        # Nobody's business, or nothing that rules could name.
        ("contact[ip]=203.0.113.7&contact[customer_acct_name]=acme&contact[x][y]=1&contact[]=2&tag=x", {}),
        # What is no text is neither written anywhere nor taken for cleared.
        ("contact[first_name]=Ad%E4&contact[last_name]=a%00b&contact[phone]=1", {"phone": "1"}),
        ("contact[fields][%E4]=1&contact[orgname]=%ED%A0%80", {}),
    ],
)
def test_what_a_form_says_of_a_contact(body: str, expected: dict[str, Value]) -> None:
    assert fields(body) == expected


@given(
    person=st.dictionaries(
        st.sampled_from(["email", "first_name", "last_name", "phone", "orgname"]),
        st.text(st.characters(codec="utf-8", exclude_characters="\x00\ufffd"), max_size=20),
    )
)
@few
def test_any_text_comes_out_as_it_went_in(person: dict[str, str]) -> None:
    assert fields(urlencode({f"contact[{name}]": text for name, text in person.items()})) == person


@pytest.mark.parametrize(
    ("word", "pairs", "expected"),
    [
        ("unsubscribe", {"list": "3"}, {"list_3": "unsubscribed", "status": "unsubscribed"}),
        ("unsubscribe", {"list": "0"}, {"status": "unsubscribed"}),
        ("unsubscribe", {}, {"status": "unsubscribed"}),
        ("unsubscribe", {"list[]": "3"}, {"list_3": "unsubscribed", "status": "unsubscribed"}),
        ("unsubscribe", {"list[][id]": "3"}, {"list_3": "unsubscribed", "status": "unsubscribed"}),
        ("unsubscribe", {"list[0][id]": "003"}, {"list_3": "unsubscribed", "status": "unsubscribed"}),
        ("unsubscribe", {"list": "x", "list[0][name]": "5"}, {"status": "unsubscribed"}),
        ("subscribe", {"list": "3", "initiated_from": "public"}, {"list_3": "subscribed", "status": "subscribed"}),
        # Staff and automations join lists for people. That lifts no opt-out.
        ("subscribe", {"list": "3", "initiated_from": "admin"}, {"list_3": "subscribed"}),
        ("subscribe", {"list": "3", "initiated_from": "api"}, {"list_3": "subscribed"}),
        ("subscribe", {"list": "3"}, {"list_3": "subscribed"}),
        ("subscribe", {"list": "0", "initiated_from": "public"}, {}),
        ("sms_unsub", {}, {"sms_status": "unsubscribed"}),
        ("update", {"list": "3"}, {}),
    ],
)
def test_what_is_said_of_lists(word: str, pairs: dict[str, str], expected: dict[str, Value]) -> None:
    form = {"type": word, "date_time": AT, "contact[id]": "42", **pairs}
    (found,) = only(PLAIN, urlencode(form).encode()).changes
    assert {name: value for name, value in found.fields.items() if name != "id"} == expected
    assert found.thin == (word in {"subscribe", "unsubscribe"})


@pytest.mark.parametrize("listed", ["a, b", "a"])
def test_tags_are_those_after_the_event_however_they_are_listed(listed: str) -> None:
    added = change({"type": "contact_tag_added", "contact[tags]": listed, "tag": "b"}).fields["tags"]
    removed = change({"type": "contact_tag_removed", "contact[tags]": listed, "tag": "b"}).fields["tags"]
    assert (added, removed) == (["a", "b"], ["a"])


def test_each_event_has_a_key_of_its_own() -> None:
    first = event().key
    assert event(None, NOW + timedelta(hours=1)).key == first
    others = [event({name: "3"}).key for name in ("contact[id]", "list", "contact[email]")]
    others += [event({"type": "subscribe"}).key, event({"date_time": LATER}).key]
    assert len({first, *others}) == 6


@pytest.mark.parametrize("date_time", ["", "0000-00-00 00:00:00", "2026-09-21 09:13:20", "soon"])
def test_without_a_usable_time_each_receipt_counts_as_of_then(date_time: str) -> None:
    first, later = (event({"date_time": date_time}, at) for at in (NOW, NOW + timedelta(seconds=1)))
    assert first.key != later.key
    assert (first.changes[0].version.occurred_at, first.changes[0].thin) == (NOW, True)
    assert later.changes[0].version > first.changes[0].version


def test_of_two_edits_within_a_second_the_later_to_arrive_counts() -> None:
    one = change({"contact[phone]": "1"})
    other = change({"contact[phone]": "2"}, NOW + timedelta(milliseconds=5))
    assert merged(one, other).fields["phone"].value == "2"
    assert merged(other, one) == merged(one, other)


def test_of_leaving_and_joining_within_a_second_leaving_counts() -> None:
    left = change({"type": "unsubscribe", "list": "3"})
    join = {"type": "subscribe", "list": "3", "initiated_from": "public"}
    joined = change(join, NOW + timedelta(seconds=1))
    for contact in (merged(left, joined), merged(joined, left)):
        assert (contact.fields["status"].value, contact.fields["list_3"].value) == ("unsubscribed",) * 2
    assert merged(change({**join, "date_time": LATER}), left).fields["status"].value == "subscribed"


def merged(*changes: Change) -> Contact:
    contact: Contact | None = None
    for one in changes:
        contact = merge(contact, one)
    assert contact is not None
    return contact


@pytest.mark.parametrize("name", ["contact[customer_acct_name]", "customer_acct_name"])
def test_only_the_configured_account_is_listened_to(name: str) -> None:
    source = ActiveCampaign("crm", Settings(BASE, account="Acme "))
    assert event({name: "acme"}, source=source).changes[0].account == "acme"
    assert "another ActiveCampaign account" in event({name: "other"}, source=source).ignored
    assert event(source=source).changes[0].account is None
    assert event({name: "other"}).changes[0].account == "other"


@pytest.mark.parametrize("contact_id", ["", "0", "-1", "4.2", "x", "4" * 30, "4\x002"])
def test_an_event_of_nobody_says_so(contact_id: str) -> None:
    assert event({"contact[id]": contact_id}).unreadable == "It has no usable contact[id]."


def test_numbers_of_contacts_are_one_however_they_are_written() -> None:
    assert change({"contact[id]": "0042"}).key == change({"contact[id]": "42"}).key
    assert change({"contact[id]": "123456789012345678"}).key.source_id == "123456789012345678"


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"type":"update"}', b"\xff\xfe", b"a=b", b"&".join([b"a"] * 6000)]
)
def test_what_activecampaign_never_sends_is_a_bad_payload(body: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_body(PLAIN, body)


NAMES = (
    "type", "date_time", "contact[id]", "contact[email]", "contact[tags]", "contact[fields][3]", "contact[",
    "contact[fields][7][]", "contact[fields][\x00]", "contact[customer_acct_name]", "tag", "initiated_from",
    "list", "list[][id]",
)  # fmt: skip
texts = st.binary(max_size=8) | st.sampled_from([b"subscribe", b"unsubscribe", b"7", b"0", b"||a||", AT.encode()])


@given(pairs=st.lists(st.tuples(st.sampled_from(NAMES), texts), max_size=10))
@few
def test_any_form_ends_in_a_bad_payload_or_an_event_that_can_be_stored(pairs: list[tuple[str, bytes]]) -> None:
    try:
        found = only(PLAIN, urlencode(pairs).encode())
    except BadPayload:
        return
    assert bool(found.changes) + bool(found.ignored) + bool(found.unreadable) == 1
    for one in found.changes:
        stored = json.dumps(
            [one.key.source_id, dict(one.fields), one.account], allow_nan=False, ensure_ascii=False
        )
        assert "\\u0000" not in stored
        assert "\ufffd" not in json.dumps(dict(one.fields), ensure_ascii=False)
        stored.encode()


def test_there_is_no_event_that_deletes() -> None:
    assert "delete" in event({"type": "delete"}).ignored
    assert {change({"type": word}).kind for word in ("update", "subscribe", "unsubscribe")} == {
        Kind.CHANGED,
        Kind.CREATED,
    }


def test_a_sample_has_the_fields_that_rules_read() -> None:
    assert SOURCE.sample is not None
    body = SOURCE.sample(Sampling(NOW, Settings(BASE, account="acme"), reads={"email", "field_mobile", "status"}))
    (found,) = only(PLAIN, body).changes
    assert found.account == "acme"
    assert set(found.fields) == {"id", "email", "field_mobile"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"base_url": f"{BASE}/admin"}, "base_url"),
        ({"base_url": BASE, "api_key": Secret(" ")}, "api_key"),
    ],
)
def test_settings_that_cannot_work_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ActiveCampaign("crm", Settings(**more))


@pytest.mark.parametrize("written", [BASE, f"{BASE}/", f"{BASE}/api/3", f"{BASE}/api/3/"])
def test_the_url_may_be_written_as_it_is_shown(written: str) -> None:
    section = f'[sources.crm]\ntype = "activecampaign"\nbase_url = "{written}"\n'
    one = connection_of(section)
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(one.settings) == f"{BASE}/api/3"
    for make in (SOURCE.lister, SOURCE.registrar, SOURCE.writer):
        assert make is not None
        assert make("crm", one.settings) is None
        assert make("crm", Settings(written, Secret("k"))) is not None
