"""What is particular to Zendesk: its signature, its events and triggers, and its API over real HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import signing
from bridge.config import SourceConnection, load
from bridge.errors import BadPayload, BadSignature, SourceUnavailable
from bridge.model import InboundRequest, Kind, RecordKey, Secret, State, Verified, Version, iso, utc_now
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Genuine, Read, Writer
from bridge.sources.payload import Payload
from bridge.sources.recording import read_recording
from bridge.sources.zendesk import SCHEMES, SIGNATURE, SIGNED_AT, SOURCE, TEST_SECRET, Settings, Zendesk
from bridge.sources.zendesk.calls import SUBSCRIPTIONS
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_zendesk import Zendesk as Fake
from tests.sources.kit import (
    BASE_URL,
    FIXTURES,
    NOW,
    connection,
    connection_of,
    one_change,
    only,
    parse_body,
    vectors,
)

CRM = connection("zendesk").source
USER_ID = "6596848315901"
ISO, SECONDS = signing.Unit.ISO, signing.Unit.SECONDS


def body(name: str, **more: Any) -> dict[str, Any]:
    found = json.loads(read_recording((FIXTURES / "zendesk" / f"{name}.http").read_bytes(), BASE_URL).body)
    return {**found, **more}


def with_settings(**more: Any) -> Zendesk:
    return Zendesk("crm", Settings(**{"secrets": (Secret("s"),), "subdomain": "acme", **more}))


# --- the signature ---------------------------------------------------------------------------------------


def signed(vector: Mapping[str, Any], signature: str) -> tuple[InboundRequest, datetime, signing.Unit]:
    text = vector["timestamp"]
    at = datetime.fromtimestamp(int(text), UTC) if text.isdigit() else datetime.fromisoformat(text)
    headers = {SIGNATURE: signature, SIGNED_AT: text}
    request = InboundRequest("POST", BASE_URL, headers, vector["body"].encode())
    return request, at, SECONDS if text.isdigit() else ISO


@pytest.mark.parametrize("vector", vectors("zendesk"), ids=lambda one: one["id"])
def test_the_vectors(vector: dict[str, Any]) -> None:
    request, at, unit = signed(vector, vector["signature"])
    credential = signing.credential(SCHEMES[unit], vector["secret"])
    assert signing.verify(request, [credential], at).signed_at == at
    for wrong in vector["must_fail"].values():
        with pytest.raises(BadSignature):
            signing.verify(signed(vector, wrong)[0], [credential], at)
    # What anybody can sign is taken from nobody.
    with pytest.raises(BadSignature):
        CRM.verify(request, at)


@pytest.mark.parametrize("secrets", [(TEST_SECRET,), (f" {TEST_SECRET}\n",), ("good", TEST_SECRET), (), ("",)])
def test_a_secret_that_proves_nothing_is_refused(secrets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="secrets: ") as caught:
        with_settings(secrets=tuple(map(Secret, secrets)))
    assert TEST_SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"subdomain": "acme.zendesk.com"}, "subdomain: "),
        ({"subdomain": ""}, "subdomain: "),
        ({"subdomain": "acme/x"}, "subdomain: "),
        ({"token": Secret(" ")}, "token: "),
        ({"email": "admin@example.com"}, "email: "),
        ({"payload": Payload(id="item.")}, r"payload\.id: "),
    ],
)
def test_unusable_settings_are_refused_by_name(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_settings(**more)


@pytest.mark.parametrize("unit", [ISO, SECONDS])
def test_the_time_comes_in_two_ways_and_may_be_five_minutes_away(unit: signing.Unit) -> None:
    source = with_settings(secrets=(Secret("new"), Secret("old")))
    request = signing.sign(
        InboundRequest("POST", BASE_URL, {}, b"{}"), signing.credential(SCHEMES[unit], "old"), NOW
    )
    for away_s in (-300, 0, 300):
        genuine = source.verify(request, NOW + timedelta(seconds=away_s))
        assert genuine == Genuine(Verified(request), 1, NOW)
        with pytest.raises(BadSignature):
            source.verify(request, NOW + timedelta(seconds=away_s + (301 if away_s >= 0 else -1)))
    other = replace(request, headers={**request.headers, SIGNED_AT: iso(NOW)})
    with pytest.raises(BadSignature):
        source.verify(other, NOW)  # the same moment, but not the text that was signed


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_breaks_the_check(signature: str, stamp: str) -> None:
    request = InboundRequest("POST", BASE_URL, {SIGNATURE: signature, SIGNED_AT: stamp}, b"{}")
    with pytest.raises(BadSignature):
        CRM.verify(request, NOW)


# --- events ----------------------------------------------------------------------------------------------


def test_an_event_is_told_by_its_id() -> None:
    event = body("name_changed")
    key = only(CRM, event).key
    assert only(CRM, {**event, "zendesk_event_version": "2099-01-01"}, NOW + timedelta(hours=1)).key == key
    assert len({key, only(CRM, {**event, "id": "x"}).key, only(CRM, {**event, "account_id": 1}).key}) == 3
    unnamed = {name: value for name, value in event.items() if name != "id"}
    assert only(CRM, unnamed).key == only(CRM, unnamed).key != key


def test_nonsense_does_not_pass_for_the_event_that_it_resembles() -> None:
    assert only(CRM, body("without_time")).key != only(CRM, body("name_changed")).key
    for odd in (
        {"detail": {"id": "x"}},
        {"detail": {"id": 1.5}},
        {"detail": [], "subject": "zen:user:"},
        {"time": 5},
    ):
        event = only(CRM, body("name_changed", **odd))
        assert event.unreadable
        assert not event.changes


def test_the_subject_names_the_user_where_the_detail_does_not() -> None:
    for detail in ({}, {"id": None}, {"id": ""}):
        assert one_change(CRM, body("name_changed", detail=detail)).key.source_id == USER_ID
    assert one_change(CRM, body("name_changed", detail=None)).fields == {"name": "Ada Lovelace"}


@pytest.mark.parametrize("none", ["", None, "0", 0, [], {}])
def test_what_an_event_leaves_empty_is_not_cleared(none: object) -> None:
    detail = {"id": USER_ID, "email": none, "external_id": none, "organization_id": none, "role": none}
    change = one_change(CRM, body("name_changed", detail=detail, event={"current": none}))
    assert (change.fields, change.thin) == ({}, True)


@pytest.mark.parametrize(
    ("current", "kind"),
    [
        (True, Kind.CREATED),
        (False, Kind.DELETED),
        (None, Kind.CHANGED),
        ("false", Kind.CHANGED),
        ([], Kind.CHANGED),
    ],
)
def test_whether_a_user_is_active_is_said_by_a_yes_or_a_no(current: object, kind: Kind) -> None:
    change = one_change(CRM, body("soft_deleted", event={"current": current}))
    assert (change.kind, change.thin) == (kind, kind is not Kind.DELETED)


def test_a_merge_ends_neither_user_by_itself() -> None:
    """Which of the two ends is not documented, and the wrong one must not be ended."""
    event = only(CRM, body("merged"))
    assert {(change.key.source_id, change.kind, change.thin) for change in event.changes} == {
        ("6596848315777", Kind.CHANGED, True),
        (USER_ID, Kind.CHANGED, True),
    }
    for other in ({}, {"user": None}, {"user": {"id": int(USER_ID)}}):
        assert one_change(CRM, body("merged", event=other)).key.source_id == USER_ID
    assert only(CRM, body("merged", event={"user": {"id": "x"}})).unreadable


def test_only_the_configured_account_is_heard() -> None:
    for account, heard in ((22129848, True), (" 22129848", True), ("1", False)):
        assert bool(only(with_settings(account_id=account), body("created")).changes) is heard


# --- triggers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        ({"user_id": USER_ID, "email": "a@example.com", "id": 35436}, {"email": "a@example.com"}),
        ({"requester_id": int(USER_ID), "phone": "", "name": None, "tier": "gold"}, {"tier": "gold"}),
        ({"user": {"id": USER_ID, "user_fields": {"tier": "gold", "x": ""}}, "a": "b"}, {"tier": "gold"}),
        (
            {"requester": {"id": USER_ID, "custom_fields": {"stop": True}, "name": "Ada"}},
            {"stop": True, "name": "Ada"},
        ),
        ({"user_id": USER_ID, "tags": ["a"], "more": {"a": 1}, "type": "user"}, {}),
    ],
)
def test_the_body_of_a_trigger_is_read_leniently(sent: object, fields: dict[str, Any]) -> None:
    change = one_change(CRM, sent)
    assert (change.key.source_id, change.fields, change.thin) == (USER_ID, fields, True)
    assert change.account is None


@pytest.mark.parametrize("sent", [{"id": USER_ID, "email": "a@example.com"}, {"user_id": ""}, {"user": {}}, {}])
def test_nobody_is_guessed_from_a_trigger(sent: object) -> None:
    assert "which user" in only(CRM, sent).unreadable


def test_a_trigger_without_a_time_may_repeat_itself_and_be_news() -> None:
    sent, later = {"user_id": USER_ID, "stop": "yes"}, NOW + timedelta(seconds=1)
    assert only(CRM, sent).key == only(CRM, sent).key != only(CRM, sent, later).key
    assert one_change(CRM, sent).version.occurred_at == NOW
    timed = {**sent, "updated_at": "2026-09-21T14:13:20Z"}
    assert only(CRM, timed).key == only(CRM, timed, later).key
    assert only(CRM, timed).key != only(CRM, {**timed, "stop": "no"}).key
    # A placeholder in the reader's language is no moment.
    assert one_change(CRM, {**sent, "updated_at": "September 21, 2026"}).version.occurred_at == NOW


def test_an_invocation_tells_repeats_with_what_it_brings() -> None:
    """Should its id be one and the same for all of a webhook's calls, nothing may be lost."""

    def key(sent: object, at: datetime = NOW, invocation: str = "01HAB") -> str:
        return only(CRM, sent, at, x_zendesk_webhook_invocation_id=invocation).key

    sent = {"user_id": USER_ID, "stop": "yes"}
    assert key(sent) == key(sent, NOW + timedelta(seconds=1))
    assert len({key(sent), key({**sent, "stop": "no"}), key(sent, invocation="01HAC")}) == 3


def test_a_declared_payload_is_for_triggers_only() -> None:
    payload = Payload(id="item.who", fields="item.said", occurred_at="item.at")
    for token, thin in ((None, False), (Secret("t"), True)):
        source = with_settings(payload=payload, token=token)
        change = one_change(source, {"who": 7, "said": {"a": "b"}, "at": "2026-09-21T14:13:20Z"})
        assert (change.key.source_id, change.fields, change.thin) == ("7", {"a": "b"}, thin)
        assert one_change(source, body("created")).kind is Kind.CREATED
    with pytest.raises(BadPayload):
        parse_body(CRM, [1])


def test_a_payload_can_be_written_into_the_configuration() -> None:
    section = '[sources.crm]\ntype = "zendesk"\nsecrets = ["s"]\nsubdomain = "acme"\n'
    made = connection_of(f'{section}payload = {{ id = "item.who", fields = "item" }}\n')
    assert one_change(made.source, {"who": "7"}).key.source_id == "7"


# --- the API ---------------------------------------------------------------------------------------------


class Account:
    """A fake Zendesk and the connection that calls it."""

    def __init__(self, fake: Fake, base_url: str, api: Api, login: str) -> None:
        self.fake, self.api = fake, api
        section = f'[sources.crm]\ntype = "zendesk"\nsecrets = ["signing"]\nsubdomain = "acme"\n{login}\n'
        self.connection: SourceConnection = connection_of(f'{section}api_base = "{base_url}"\n')

    def read(self, *ids: str, fields: tuple[str, ...] = ("email", "phone")) -> list[Read]:
        return self.connection.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def page(self, after: str | None = None, since: datetime | None = None, *fields: str) -> Any:
        lister = self.connection.lister()
        assert lister is not None
        return lister.page(self.api, fields or ("email",), after, since)

    def listed(self, since: datetime | None = None) -> list[str]:
        ids, page = [], self.page(None, since)
        while True:
            ids += [record.key.source_id for record in page.records]
            if page.after is None:
                return ids
            page = self.page(page.after, since)

    def writer(self) -> Writer:
        assert SOURCE.writer is not None
        writer = SOURCE.writer("crm", self.connection.settings)
        assert writer is not None
        return writer

    def fails(self, call: Any, *arguments: Any) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            call(*arguments)
        said = str(caught.value)
        assert said.endswith(".")
        assert not any(secret in said for secret in (Fake.token, Fake.oauth, "secret-of"))
        return caught.value


API_TOKEN = f'token = "{Fake.token}"\nemail = "{Fake.email}"'
OAUTH = f'token = "{Fake.oauth}"'


@contextmanager
def account(login: str = API_TOKEN, **switches: str) -> Iterator[Account]:
    fake = Fake(**switches)
    with fake.serve() as base_url, new_session() as session:
        yield Account(fake, base_url, Api(base_url, session=session, read_timeout_s=0.5), login)


@pytest.mark.parametrize("login", [API_TOKEN, OAUTH])
def test_only_the_named_fields_are_read(login: str) -> None:
    with account(login) as one:
        names = ("email", "phone", "organization_id", "sms_opt_out", "custom_phone", "tags", "no_such_field")
        ada = one.fake.create(email="ada@example.com", organization_id=77, tags=["vip"])
        one.fake.change(ada, user_fields={"phone": "internal"})
        at = one.fake.now
        (read,) = one.read(ada, fields=names)
    key = RecordKey("crm", ada)
    assert read.fields == {
        "email": "ada@example.com",
        "phone": None,  # known to be empty
        "organization_id": "77",
        "sms_opt_out": False,
        "custom_phone": "internal",
        "tags": ["vip"],
    }
    assert (read.asked, read.key, read.version) == (key, key, Version(at, "read"))


@pytest.mark.parametrize("deleted", Fake.SWITCHES["deleted"])
def test_who_is_not_there_is_known_to_be_unknown(deleted: str) -> None:
    with account(deleted=deleted) as one:
        ada, gone = one.fake.create(email="ada@example.com"), one.fake.create()
        one.fake.delete(gone)
        asked = [gone, "123", ada, "bridge-sample", ada]
        reads = one.read(*asked)
        assert [read.asked.source_id for read in reads] == asked
        assert [read.fields and read.fields["email"] for read in reads] == [
            None, None, "ada@example.com", None, "ada@example.com",
        ]  # fmt: skip
        assert not any(read.problem for read in reads)
        assert [read.fields for read in one.read("bridge-sample")] == [None]
        assert len(one.fake.calls) == 1


def test_a_hundred_users_are_one_call() -> None:
    with account() as one:
        ids = [one.fake.create() for _ in range(SOURCE.read_limit)]
        assert all(read.fields is not None for read in one.read(*ids))
        assert len(one.fake.calls) == 1
        assert isinstance(one.fails(one.read, *ids, "1"), BatchUnreadable)


@pytest.mark.parametrize("touched", Fake.SWITCHES["touched"])
def test_of_two_answers_with_one_moment_the_later_counts(touched: str) -> None:
    """Moments are whole seconds, and whether a custom field moves them is not documented."""
    with account(touched=touched) as one:
        ada = one.fake.create(email="ada@example.com")
        versions = []
        for seconds, stop in ((2, "no"), (3, "yes"), (60, "no"), (90_000, "yes")):
            one.fake.tick(seconds)
            one.fake.change(ada, user_fields={"stop": stop})
            (read,) = one.read(ada, fields=("stop",))
            assert read.version is not None
            versions.append(read.version)
        assert versions == sorted(set(versions))
        # It knows of all that events said of the second that it names.
        one.fake.change(ada, name="Ada")
        told = json.loads(one.fake.event("name_changed", ada)) | {"time": f"{iso(one.fake.now)[:-7]}899Z"}
        event = one_change(CRM, told, one.fake.now)
        one.fake.tick()
        (read,) = one.read(ada)
        assert read.version is not None
        assert read.version > event.version


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s"),
    [
        ({"status": 401}, "refuses the credentials of crm (HTTP 401)", 0),
        ({"status": 403}, "(needed: the access of an admin)", 0),
        ({"status": 429, "headers": {"Retry-After": "37"}}, "fewer calls", 37),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9),
        ({"status": 422, "body": {"error": "ada@example.com"}}, "(HTTP 422)", 0),
        ({"status": 200, "body": "<html>a proxy"}, "not a list of users", 0),
        ({"status": 200, "body": {"users": None}}, "not a list of users", 0),
        ({"how": "drop"}, "cannot be called now", 0),
    ],
)
def test_trouble_on_the_way_is_told_and_teaches_nothing(
    trouble: Mapping[str, Any], said: str, retry_after_s: float
) -> None:
    with account() as one:
        ada = one.fake.create()
        one.fake.trouble(**trouble)
        error = one.fails(one.read, ada)
        assert said in str(error)
        assert "ada@" not in str(error)
        assert error.retry_after_s == retry_after_s
        of_the_batch = trouble.get("status") in {200, 422}
        assert isinstance(error, BatchUnreadable) is of_the_batch


def test_a_wrong_token_is_refused_in_words() -> None:
    with account('token = "wrong"') as one:
        assert "HTTP 401" in str(one.fails(one.read, "1"))
    with account("") as one:
        assert not one.connection.source.can_read()
        assert (one.connection.lister(), one.connection.registrar(), one.connection.writer()) == (None, None, None)
        assert "No token" in str(one.fails(one.read, "1"))
        assert one.fake.calls == []
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(Settings((Secret("s"),), "acme")) == "https://acme.zendesk.com"


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"updated_at": "yesterday"}, "when the user was last changed"),
        ({"updated_at": None}, "when the user was last changed"),
        ({"id": "x"}, ""),
        ({"id": 7}, ""),
    ],
)
def test_an_odd_answer_about_one_user_says_nothing_against_the_others(bad: dict[str, Any], problem: str) -> None:
    with account() as one:
        good = {"id": 2, "updated_at": "2026-09-21T14:13:20Z", "email": "b@example.com", "phone": {"odd": 1}}
        one.fake.trouble(status=200, body={"users": [{**good, "id": 1, **bad}, good, None, 7]})
        first, second = one.read("1", "2")
        assert (first.fields, first.version) == (None, None)
        assert problem in first.problem
        assert bool(first.problem) is bool(problem)
        assert second.fields == {"email": "b@example.com"}


# --- listing ---------------------------------------------------------------------------------------------


def test_all_users_are_listed_whatever_is_changed_meanwhile() -> None:
    with account() as one:
        one.fake.page_cap = 3
        # Five of one and the same second, so that a page ends among equals.
        ids = [one.fake.create(email=f"p{n}@example.com") for n in range(5)]
        for n in range(4):
            one.fake.tick()
            ids.append(one.fake.create(email=f"q{n}@example.com"))
        one.fake.tick(120)
        first = one.page()
        assert [record.key.source_id for record in first.records] == ids[:3]
        assert first.records[0] == Read(
            RecordKey("crm", ids[0]),
            RecordKey("crm", ids[0]),
            {"email": "p0@example.com"},
            Version(datetime(2026, 9, 21, 14, tzinfo=UTC), "read"),
        )
        one.fake.delete(ids[1])
        one.fake.change(ids[4], name="later")
        one.fake.tick(120)
        seen = [record.key.source_id for record in first.records]
        after = first.after
        while after is not None:
            page = one.page(after)
            seen += [record.key.source_id for record in page.records]
            after = page.after
        assert set(seen) == set(ids)
        assert seen.count(ids[1]) == 1  # as deleted it is listed no more
        again = one.page(first.after)  # after a restart
        assert again.records[0].key.source_id == ids[3]


def test_changes_since_are_listed_with_what_the_last_minute_held_back() -> None:
    with account() as one:
        old = one.fake.create()
        one.fake.tick(3600)
        new = one.fake.create()
        one.fake.tick(30)
        assert one.listed(one.fake.now) == []  # too fresh to be exported
        since = one.fake.now
        one.fake.tick(600)
        assert one.listed(since) == [new]
        assert set(one.listed()) == {old, new}
        assert {call.path.partition("?")[0] for call in one.fake.calls} == {
            "/api/v2/incremental/users/cursor.json"
        }


def test_the_export_is_asked_ten_times_a_minute() -> None:
    with account() as one:
        one.fake.create()
        one.fake.tick(120)
        for _ in range(10):
            one.page()
        assert one.fails(one.page).retry_after_s == 37
        one.fake.tick(61)
        assert len(one.page().records) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"users": []},
        {"users": [], "end_of_stream": False, "after_cursor": None},
        {"users": [], "after_cursor": ["x"]},
    ],
)
def test_a_list_that_does_not_go_on_is_not_taken_for_its_end(answer: object) -> None:
    with account() as one:
        one.fake.trouble(status=200, body=answer)
        one.fails(one.page)
        one.fake.trouble(status=200, body={"users": [], "after_cursor": "x"})
        after = one.page().after
        one.fake.trouble(status=200, body={"users": [], "after_cursor": "x"})
        assert "where it goes on" in str(one.fails(one.page, after))


# --- registering and writing -----------------------------------------------------------------------------

URL = "https://bridge.example.com/hooks/crm"
OURS = {"http_method": "POST", "request_format": "json", "status": "active"}


def test_registering_is_done_once_and_tells_the_secret() -> None:
    with account() as one:
        for n in range(3):  # so that ours is not on the first page
            one.fake.add_webhook(
                name=f"other {n}", endpoint=f"{URL}{n}", subscriptions=list(SUBSCRIPTIONS), **OURS
            )
        triggers = one.fake.add_webhook(
            name="ours", endpoint=URL, subscriptions=["conditional_ticket_events"], **OURS
        )
        others = json.dumps(one.fake.webhooks)
        registrar = one.connection.registrar()
        assert registrar is not None
        first = registrar.register(one.api, URL, ["email"], NOW)
        (made,) = set(one.fake.webhooks) - set(json.loads(others))
        assert set(one.fake.webhooks[made]["subscriptions"]) == set(SUBSCRIPTIONS)
        assert first.secrets["secrets"].reveal() == f"secret-of-{made}=="
        assert "secret-of" not in repr(first)
        assert "secret-of" not in json.dumps([exchange.response_body for exchange in one.api.exchanges])
        again = registrar.register(one.api, URL, ["email"], NOW)
        assert again.secrets == first.secrets
        assert len(one.fake.made("POST")) == 1
        assert one.fake.made("PATCH") == []
        known = Zendesk("crm", Settings((first.secrets["secrets"],), "acme"))  # a secret that can be configured
        assert not known.can_read()
        assert registrar.remove(one.api, URL) == ["Removed the webhook of user events from Zendesk."]
        assert json.dumps(one.fake.webhooks) == others
        assert triggers in one.fake.webhooks
        assert registrar.remove(one.api, URL) == []


def test_what_is_wrong_with_the_webhook_is_put_right() -> None:
    with account() as one:
        mine = ["zen:event-type:user.created", "zen:event-type:organization.created"]
        hook_id = one.fake.add_webhook(
            name="by hand", endpoint=URL, subscriptions=mine, **{**OURS, "status": "inactive"}
        )
        one.fake.webhooks[hook_id]["authentication"] = {"type": "basic_auth"}
        registrar = one.connection.registrar()
        assert registrar is not None
        assert "right" in registrar.register(one.api, URL, [], NOW).done[0]
        hook = one.fake.webhooks[hook_id]
        assert set(hook["subscriptions"]) == {*mine, *SUBSCRIPTIONS}
        assert (hook["status"], hook["name"], hook["authentication"]) == (
            "active",
            "by hand",
            {"type": "basic_auth"},
        )
        assert "already" in registrar.register(one.api, URL, [], NOW).done[0]
        assert len(one.fake.made("PATCH")) == 1


def test_a_secret_that_is_configured_is_not_told_again() -> None:
    with account() as one:
        hook_id = one.fake.add_webhook(name="x", endpoint=URL, subscriptions=list(SUBSCRIPTIONS), **OURS)
        registrar = SOURCE.registrar
        assert registrar is not None
        configured = replace(one.connection.settings, secrets=(Secret(f"secret-of-{hook_id}==\n"),))
        made = registrar("crm", configured)
        assert made is not None
        assert made.register(one.api, URL, [], NOW).secrets == {}


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 200, "body": {}},
        {"status": 200, "body": {"webhooks": None}},
        {"status": 403},
        {"path": "signing_secret", "status": 404},
        {"path": "signing_secret", "status": 200, "body": {"signing_secret": {}}},
        {"path": "signing_secret", "how": "drop"},
        {"method": "POST", "status": 200, "body": {}},
        {"method": "POST", "status": 400},
    ],
)
def test_a_registration_that_fails_says_so(trouble: Mapping[str, Any]) -> None:
    with account() as one:
        registrar = one.connection.registrar()
        assert registrar is not None
        one.fake.trouble(**trouble)
        one.fails(registrar.register, one.api, URL, [], NOW)
        if not trouble.keys() & {"path", "method"}:
            assert one.fake.webhooks == {}  # nothing is made where it is not known what is there


def test_an_opt_out_ticks_a_checkbox() -> None:
    with account() as one:
        ada = one.fake.create(email="ada@example.com")
        writer = one.writer()
        writer.opt_out(one.api, ada, "sms_opt_out")
        assert one.fake.users[int(ada)]["user_fields"]["sms_opt_out"] is True
        writer.opt_out(one.api, ada, "sms_opt_out")
        calls = len(one.fake.calls)
        assert "Zendesk's own" in str(one.fails(writer.opt_out, one.api, ada, "suspended"))
        assert len(one.fake.calls) == calls
        one.fails(writer.opt_out, one.api, "123", "sms_opt_out")
        one.fails(writer.opt_out, one.api, ada, "stop")  # a text
        one.fake.custom["phone"] = "checkbox"
        writer.opt_out(one.api, ada, "custom_phone")
        assert one.fake.users[int(ada)]["phone"] is None
        assert one.fake.users[int(ada)]["user_fields"]["phone"] is True


@pytest.mark.parametrize("unknown_field", Fake.SWITCHES["unknown_field"])
def test_an_opt_out_that_was_not_taken_is_no_success(unknown_field: str) -> None:
    with account(unknown_field=unknown_field) as one:
        ada = one.fake.create()
        writer = one.writer()
        one.fails(writer.opt_out, one.api, ada, "no_such_field")


# --- the whole way ---------------------------------------------------------------------------------------


def test_an_event_reaches_all_four_platforms(tmp_path: Path) -> None:
    fake = Fake()
    fake.now = utc_now().replace(microsecond=0) - timedelta(minutes=5)
    with fake.serve() as base_url, serve_platforms() as platforms:
        path = platforms.write_config(tmp_path, settle_s=1)
        section = (
            '[sources.shop]\ntype = "zendesk"\nsecrets = ["$SHOP_SECRET"]\nsubdomain = "acme"\n'
            f'email = "{fake.email}"\ntoken = "$ZENDESK_TOKEN"\napi_base = "{base_url}"\n\n'
        )
        text = re.sub(r"\[sources\.shop\].*?(?=\[targets)", lambda _: section, path.read_text(), flags=re.DOTALL)
        path.write_text(text)
        config = load(path, {**platforms.environ, "ZENDESK_TOKEN": fake.token})
        with open_bench(tmp_path, config) as bench:

            def send(sent: bytes) -> None:
                request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {}, sent)
                bench.receive(config.sources["shop"].source.sign(request, utc_now()))
                bench.settle()

            ada = fake.create(email="ada@example.com", phone="+525512340001", name="Ada Lovelace")
            send(fake.event("created", ada))
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            fake.tick(2)
            fake.change(ada, name="Ada King")
            send(fake.event("name_changed", ada, current="Ada King", previous="Ada Lovelace"))
            held = platforms.sms.person("+525512340001")
            assert held is not None
            assert held["firstName"] == "Ada King"
            fake.tick(2)
            fake.change(ada, user_fields={"stop": "yes"})
            send(fake.event("custom_field_changed", ada, current="yes"))
            states = {one.target: one.state for one in bench.store.deliveries_of(RecordKey("shop", ada))}
            assert states["sms"] is State.OPTED_OUT
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            assert platforms.loosened() == []
