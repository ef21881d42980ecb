"""Copper: its notifications, and its people over real HTTP, under every reading of what is unknown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config import load
from bridge.errors import BadPayload, BadSignature, SourceUnavailable
from bridge.model import InboundRequest, Kind, RecordKey, Secret, State, Value, Version
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Genuine, Listed, Read
from bridge.sources.copper import HIDDEN, MAX_IDS, SOURCE, Copper, Pairs, Settings
from bridge.sources.copper_api import ADDRESS, Account, flat
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_copper import Copper as Fake
from tests.sources.kit import BASE_URL, NOW, connection, one_change, only, parse_body, vectors

START = datetime(2026, 9, 21, 14, 0, 0, tzinfo=UTC)
HOOK = f"{BASE_URL}/hooks/copper"
CRM = connection("copper").source
TOKENS = (Secret("new-token"), Secret("old-token"))
BOTH = Copper("crm", Settings(TOKENS, "ops@example.com"))
READING = Copper("crm", Settings(TOKENS, "ops@example.com", Secret("key")))
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
NOTICE: dict[str, Any] = {
    "ids": [20001],
    "type": "person",
    "event": "update",
    "subscription_id": 17065,
    "timestamp": "2026-09-21T14:13:20.000Z",
    "updated_attributes": {"first_name": ["A", "Ada"]},
}


def verify(source: Copper, body: object, **headers: str) -> Genuine:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return source.verify(InboundRequest("POST", HOOK, named, content), NOW)


# --- what proves a notification --------------------------------------------------------------------------


def test_the_pairs_of_the_reference_prove_a_notification_all_together() -> None:
    (vector,) = vectors("copper")
    body = vector["body"].encode()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (vector["body_len"], vector["body_sha256"])
    pairs = vector["configured_secret"]
    values = tuple(Secret(value) for value in pairs.values())
    source = Copper("crm", Settings(TOKENS, "ops@example.com", pairs=Pairs(tuple(pairs), values)))
    genuine = verify(source, body)
    assert genuine.secret_index == 2
    kept = json.loads(genuine.request.body)
    assert (kept["secret"], kept["key"]) == (HIDDEN, HIDDEN)
    assert source.parse(genuine, NOW)[0].changes[0].fields == {"name": "Ada Lovelace"}
    for wrong in vector["must_fail"]:
        with pytest.raises(BadSignature):
            verify(source, wrong.encode())
    # All together in an object, as another reading has it.
    together = {name: value for name, value in json.loads(body).items() if name not in pairs}
    genuine = verify(source, {**together, "secret": pairs})
    assert json.loads(genuine.request.body)["secret"] == HIDDEN
    with pytest.raises(BadSignature):
        verify(source, {**together, "secret": {**pairs, "key": "x"}})


def test_a_pair_may_have_either_value_while_it_is_changed() -> None:
    pairs = Pairs(("key", "key", "other"), (Secret("new"), Secret("old"), Secret("x")))
    source = Copper("crm", Settings(TOKENS, "ops@example.com", pairs=pairs))
    for value in ("new", "old"):
        assert verify(source, {**NOTICE, "key": value, "other": "x"}).secret_index == 2
    for wrong in ({"key": "new"}, {"key": "x", "other": "x"}, {"key": "new", "other": "old"}):
        with pytest.raises(BadSignature):
            verify(source, {**NOTICE, **wrong})


def test_the_header_counts_and_what_is_found_of_the_pairs_must_be_right_too() -> None:
    assert verify(BOTH, NOTICE, x_bridge_token="new-token").secret_index == 0
    assert verify(BOTH, NOTICE, x_bridge_token="old-token").secret_index == 1
    assert verify(BOTH, b"{", x_bridge_token="new-token").request.body == b"{"
    own = {**NOTICE, "bridge_token": "old-token"}
    assert verify(BOTH, own, x_bridge_token="old-token").secret_index == 1
    assert verify(BOTH, own).secret_index == 1
    assert verify(BOTH, {**NOTICE, "secret": {"bridge_token": "new-token"}}).secret_index == 0
    # A pair of another subscription is none that is configured: it is not looked at, and not kept.
    others = {"secret": "hook_source", "a": {"b": "c"}, "l": ["d"]}
    foreign = verify(BOTH, {**NOTICE, **others, "n": 7}, x_bridge_token="new-token")
    assert json.loads(foreign.request.body) == {**NOTICE, **dict.fromkeys(others, HIDDEN), "n": 7}
    refused: list[tuple[Any, dict[str, str]]] = [
        (NOTICE, {}),
        (NOTICE, {"x_bridge_token": ""}),
        (NOTICE, {"x_bridge_token": "x"}),
        (own, {"x_bridge_token": "x"}),
        (own, {"x_bridge_token": ""}),
        ({**NOTICE, "bridge_token": "x"}, {"x_bridge_token": "new-token"}),
        ({**own, "secret": {"bridge_token": "x"}}, {}),
        ({**NOTICE, "bridge_token": ["new-token"]}, {}),
        ({**NOTICE, "bridge_token": {"bridge_token": "new-token"}}, {}),
        ({**NOTICE, "secret": "new-token"}, {}),
        ([own], {}),
        (b"{", {}),
        (b"\xff", {}),
    ]
    for body, headers in refused:
        with pytest.raises(BadSignature) as caught:
            verify(BOTH, body, **headers)
        assert "token" not in str(caught.value).replace("x-bridge-token", "").replace("tokens", "")


def test_no_secret_is_stored() -> None:
    body = {**NOTICE, "bridge_token": "new-token", "secrets": {"bridge_token": "old-token"}, "other": "new-token"}
    genuine = verify(BOTH, body, x_bridge_token="new-token", user_agent="Copper")
    assert b"-token" not in genuine.request.body
    assert dict(genuine.request.headers) == {"user-agent": "Copper"}
    assert BOTH.parse(genuine, NOW) == BOTH.parse(verify(BOTH, NOTICE, x_bridge_token="new-token"), NOW)
    untouched = json.dumps(NOTICE, indent=3).encode()
    assert verify(BOTH, untouched, x_bridge_token="new-token").request.body == untouched


@few
@given(
    body=st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.dictionaries(st.sampled_from(["bridge_token", "secret", "secrets", "ids"]), inner, max_size=4)
            | st.lists(inner, max_size=2)
        ),
        max_leaves=8,
    )
)
def test_no_body_without_a_secret_passes(body: object) -> None:
    with pytest.raises(BadSignature):
        verify(BOTH, body)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"secrets": ()}, "secrets: at least one"),
        ({"secrets": (Secret(" "),)}, "secrets: one is empty"),
        ({"user_email": " "}, "user_email: it is empty"),
        ({"token": Secret("")}, "token: it is empty"),
        ({"pairs": Pairs((), ())}, "pairs: as many values"),
        ({"pairs": Pairs(("a", "b"), (Secret("x"),))}, "pairs: as many values"),
        ({"pairs": Pairs(("ids",), (Secret("x"),))}, "pairs.names: 'ids' is a name that Copper uses"),
        ({"pairs": Pairs(("a",), (Secret(" "),))}, "pairs.values: one is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Copper("crm", replace(Settings(TOKENS, "ops@example.com"), **more))


# --- what a notification says ----------------------------------------------------------------------------


def test_where_people_are_read_a_notification_is_a_hint_only() -> None:
    change = one_change(READING, NOTICE)
    assert (change.fields, change.thin) == ({}, True)
    assert one_change(BOTH, NOTICE).fields == {"first_name": "Ada"}


def test_what_changed_of_many_is_believed_of_none() -> None:
    events = parse_body(BOTH, {**NOTICE, "ids": [1, 2, 1, "3"]})
    assert [event.changes[0].key.source_id for event in events] == ["1", "2", "3"]
    assert all(event.changes[0].fields == {} and event.changes[0].thin for event in events)


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("emails", [], {"email": "", "emails": [], "email_work": "", "email_personal": "", "email_other": ""}),
        (
            "emails",
            [{"email": "", "category": "work"}, {"email": "a@x.example", "category": "personal"},
             {"email": "b@x.example"}],
            {
                "email": "a@x.example", "emails": ["a@x.example", "b@x.example"], "email_work": "",
                "email_personal": "a@x.example", "email_other": "",
            },
        ),
        # Another shape than Copper's must not read as cleared.
        ("emails", "a@x.example", {}),
        ("emails", [7], {}),
        ("emails", [{"value": "a@x.example"}], {}),
        ("phone_numbers", {}, {}),
        ("address", None, dict.fromkeys(f"address_{part}" for part in ADDRESS)),
        ("address", {"city": "London", "planet": "Earth"}, {"address_city": "London"}),
        ("address", "London", {}),
        ("websites", [{"url": "https://x.example", "category": "work"}], {"websites": ["https://x.example"]}),
        ("websites", None, {}),
        ("socials", [], {"socials": []}),
        ("custom_fields", [{"custom_field_definition_id": 7, "value": None}, {"value": 1}, 7], {"cf_7": None}),
        ("custom_fields", None, {}),
        ("id", 20001, {"id": "20001"}),
        ("title", None, {"title": None}),
        ("tags", ["vip"], {"tags": ["vip"]}),
    ],
)  # fmt: skip
def test_an_attribute_becomes_fields(attribute: str, value: object, expected: dict[str, Value]) -> None:
    assert flat(attribute, value) == expected
    notice = {**NOTICE, "updated_attributes": {attribute: [None, value]}}
    assert one_change(BOTH, notice).fields == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"custom_fields": {"7": [False, True], "x": [1, 2], "8": [1]}},
        {"custom_fields": [[], [{"custom_field_definition_id": 7, "value": True}]]},
    ],
)
def test_custom_fields_are_read_in_either_form(changed: dict[str, Any]) -> None:
    assert one_change(BOTH, {**NOTICE, "updated_attributes": changed}).fields == {"cf_7": True}


@pytest.mark.parametrize("changed", [None, [], 7, {"name": "Ada"}, {"name": ["Ada"]}, {"name": [1, 2, 3]}])
def test_what_is_no_old_and_new_value_says_nothing(changed: object) -> None:
    change = one_change(BOTH, {**NOTICE, "updated_attributes": changed})
    assert (change.fields, change.thin) == ({}, True)


def test_a_repeat_is_no_other_event_and_another_content_is() -> None:
    first = only(BOTH, NOTICE)
    assert only(BOTH, {**NOTICE, "bridge_token": "new-token"}, NOW + timedelta(hours=1)).key == first.key
    others = [
        {**NOTICE, name: value}
        for name, value in (
            ("ids", [2]), ("event", "new"), ("subscription_id", 1), ("timestamp", "2026-09-21T14:13:20.001Z"),
            ("updated_attributes", {}),
        )
    ]  # fmt: skip
    assert len({first.key, *(only(BOTH, one).key for one in others)}) == 6


def test_of_one_moment_a_deletion_is_the_newest() -> None:
    versions = [one_change(BOTH, {**NOTICE, "event": event}).version for event in ("new", "update", "delete")]
    assert versions == sorted(versions)
    assert len({version.occurred_at for version in versions}) == 1


@pytest.mark.parametrize("at", [None, "", "2026-09-21T14:13:20", "yesterday", True, []])
def test_without_a_time_each_receipt_counts(at: object) -> None:
    notice = {**NOTICE, "timestamp": at}
    first, second = (only(BOTH, notice, NOW + timedelta(seconds=n)) for n in range(2))
    assert first.key != second.key
    assert first.changes[0].version.occurred_at == NOW
    assert one_change(BOTH, {**notice, "event": "new"}).kind is Kind.CHANGED
    assert one_change(BOTH, {**notice, "event": "delete"}).kind is Kind.DELETED


@pytest.mark.parametrize("odd", [[], 7, {}, {"ids": 7}, {**NOTICE, "ids": [1] * (MAX_IDS + 1)}])
def test_what_copper_never_sends_is_a_bad_payload(odd: object) -> None:
    with pytest.raises(BadPayload):
        parse_body(BOTH, odd)


def test_what_is_not_for_us_says_why() -> None:
    others: list[dict[str, Any]] = [
        {"type": "company"}, {"type": None}, {"event": "merge"}, {"event": 7}, {"ids": []},
    ]  # fmt: skip
    for more in others:
        assert only(BOTH, {**NOTICE, **more}).ignored.endswith(".")
    odd: list[Any] = [None, "x", 1.5, True, -1, {}]
    for bad in odd:
        assert only(BOTH, {**NOTICE, "ids": [bad]}).unreadable


# --- the account -----------------------------------------------------------------------------------------


@dataclass
class World:
    fake: Fake
    api: Api
    settings: Settings

    @property
    def account(self) -> Account:
        assert SOURCE.lister is not None
        found = SOURCE.lister("crm", self.settings)
        assert isinstance(found, Account)
        return found

    def read(self, *ids: str, fields: tuple[str, ...] = ("email", "cf_100", "cf_999")) -> list[Read]:
        return Copper("crm", self.settings).read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def page(self, after: str | None = None, since: datetime | None = None) -> Listed:
        return self.account.page(self.api, ("email",), after, since)

    def rest(self, after: str | None = None, since: datetime | None = None) -> list[str]:
        """List from *after* to the end."""
        ids: list[str] = []
        for _ in range(100):
            page = self.page(after, since)
            ids += [one.key.source_id for one in page.records]
            if page.after is None:
                return ids
            after = page.after
        raise AssertionError("the list has no end")


@contextmanager
def world(key: str = Fake.key, **switches: Any) -> Iterator[World]:
    fake = Fake(**switches)
    fake.clock = lambda: START
    with fake.serve() as url, new_session() as session:
        api = Api(url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        yield World(fake, api, Settings(TOKENS, "ops@example.com", Secret(key), api_base=url))


def test_only_the_named_fields_are_read() -> None:
    with world() as one:
        ada = one.fake.add(emails=[{"email": "ada@example.com", "category": "work"}], custom={100: True})
        blank, gone = one.fake.add(), one.fake.add()
        one.fake.delete(gone)
        first, second, third, again = one.read(ada, blank, gone, ada)
        assert len(one.fake.calls) == 3
        assert one.read() == []
    assert first.fields == {"email": "ada@example.com", "cf_100": True}
    assert first == again
    assert first.version is not None
    assert first.version.occurred_at == START
    assert first.version > Version(START, "2:" + "f" * 16), (
        "what is read wins over what is told of the same moment"
    )
    assert second.fields == {"email": "", "cf_100": None}
    assert (third.fields, third.version, third.problem) == (None, None, "")


def test_of_two_readings_of_one_second_the_later_counts() -> None:
    with world() as one:
        ada = one.fake.add()
        (first,), (listed,) = one.read(ada), one.page().records
        one.fake.clock = lambda: START + timedelta(seconds=1)
        (second,) = one.read(ada)
        versions = [read.version for read in (listed, first, second)]
        assert all(version and version.occurred_at == START for version in versions)
        assert versions == sorted(versions, key=lambda version: version or Version(START, ""))


@pytest.mark.parametrize(
    ("trouble", "said", "alone"),
    [
        ({"status": 401}, "refuses the credentials of crm (HTTP 401)", False),
        ({"status": 403}, "they do not allow this call", False),
        ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls (HTTP 429)", False),
        ({"status": 503}, "(HTTP 503)", False),
        ({"status": 301, "headers": {"Location": "http://127.0.0.1/"}}, "redirect", False),
        ({"how": "drop"}, "cannot be called now", False),
        ({"status": 200, "body": "<html>a proxy"}, "not JSON", True),
        (
            {"status": 200, "body": '{"id": 20001, "date_modified": 1790000000, "title": Infinity}'},
            "not JSON",
            True,
        ),
        (
            {"status": 200, "body": {"id": 5, "date_modified": 1_790_000_000}},
            "not the person that was asked",
            True,
        ),
        (
            {"status": 200, "body": {"id": 20001, "date_modified": "soon"}},
            "when the person was last changed",
            True,
        ),
        ({"status": 422}, "(HTTP 422)", True),
    ],
)
def test_trouble_on_the_way_teaches_nothing(trouble: dict[str, Any], said: str, alone: bool) -> None:
    with world() as one:
        ada, bob = one.fake.add(), one.fake.add()
        one.fake.trouble(**trouble)
        if alone:
            first, second = one.read(ada, bob)
            assert (first.fields, first.version) == (None, None)
            assert said in first.problem
            assert second.fields is not None
            return
        with pytest.raises(SourceUnavailable) as caught:
            one.read(ada, bob)
        assert said in str(caught.value)
        assert Fake.key not in str(caught.value)
        assert caught.value.retry_after_s == (7 if trouble.get("status") == 429 else 0)


def test_a_spent_quota_keeps_what_was_read_and_calls_no_more() -> None:
    with world() as one:
        ids = [one.fake.add() for _ in range(5)]
        one.fake.calls_left = 2
        reads = one.read(*ids)
        assert [read.fields is not None for read in reads] == [True, True, False, False, False]
        assert all("fewer calls" in read.problem for read in reads[2:])
        assert len(one.fake.calls) == 3


def test_a_wrong_key_is_named_for_every_call() -> None:
    with world(key="wrong") as one:
        calls = (
            lambda: one.read("1"),
            one.page,
            lambda: one.account.register(one.api, HOOK, (), NOW),
            lambda: one.account.remove(one.api, HOOK),
            lambda: one.account.opt_out(one.api, "1", "cf_100"),
        )
        for call in calls:
            with pytest.raises(SourceUnavailable, match="refuses the credentials of crm"):
                call()


# --- lists -----------------------------------------------------------------------------------------------

every_reading = pytest.mark.parametrize(
    "switches",
    [
        {"minimum": minimum, "behind_the_last_page": end}
        for minimum in Fake.SWITCHES["minimum"]
        for end in Fake.SWITCHES["behind_the_last_page"]
    ],
    ids=lambda one: "-".join(one.values()),
)


@every_reading
@pytest.mark.parametrize("apart", [0, 3])
def test_everybody_is_listed_once_however_many_of_one_moment(switches: dict[str, str], apart: int) -> None:
    with world(largest_page=20, **switches) as one:
        ids = [one.fake.add(START + timedelta(seconds=n // apart if apart else 0)) for n in range(90)]
        first = one.page()
        assert first.total == 90
        assert all(read.asked == read.key and read.fields == {"email": ""} for read in first.records)
        assert one.rest() == ids
    with world(**switches) as one:
        assert one.rest() == []


@every_reading
def test_whoever_goes_or_is_changed_between_pages_hides_nobody(switches: dict[str, str]) -> None:
    for apart in (0, 1):
        with world(largest_page=20, **switches) as one:
            ids = [one.fake.add(START + timedelta(seconds=n * apart)) for n in range(100)]
            first = one.page()
            second = one.page(first.after)
            seen = {read.key.source_id for read in (*first.records, *second.records)}
            assert set(ids[:38]) <= seen <= set(ids[:40])
            for gone in ids[:25]:
                one.fake.delete(gone)
            one.fake.change(ids[30], START + timedelta(hours=1))
            rest = one.rest(second.after)
            assert set(rest) >= set(ids[25:]) - seen | {ids[30]}


@pytest.mark.parametrize("minimum", Fake.SWITCHES["minimum"])
@pytest.mark.parametrize("number", [0, 20, 59])
def test_since_takes_in_its_own_moment(minimum: str, number: int) -> None:
    with world(largest_page=20, minimum=minimum) as one:
        ids = [one.fake.add(START + timedelta(seconds=n)) for n in range(60)]
        for more_s in (0, 0.9):  # Copper tells whole seconds: what was changed late in one counts, too
            assert one.rest(since=START + timedelta(seconds=number + more_s)) == ids[number:]
        assert one.rest(since=START + timedelta(days=1)) == []
        assert one.page(since=START).total is None


def test_no_number_of_a_page_grows_with_the_list() -> None:
    """Copper searches the first 100,000 only, whatever the page."""
    with world(largest_page=20, total="untold") as one:
        for n in range(200):
            one.fake.add(START + timedelta(seconds=n // 2))
        assert len(one.rest()) == 200
        assert one.page().total is None
        assert max(call.json["page_number"] for call in one.fake.made("POST", "/people/search")) <= 2


@pytest.mark.parametrize("answer", [{}, 7, [{}], [{"id": "x"}], [7], "<html>"])
def test_an_answer_that_is_no_list_is_none(answer: object) -> None:
    with world() as one:
        one.fake.trouble(status=200, body=answer)
        with pytest.raises(BatchUnreadable):
            one.page()


def test_a_list_in_another_order_is_no_list() -> None:
    with world() as one:
        people = [{"id": 1, "date_modified": 1_790_000_001}, {"id": 2, "date_modified": 1_790_000_000}]
        one.fake.trouble(status=200, body=people)
        with pytest.raises(SourceUnavailable, match="in the order of their last change"):
            one.page()


# --- subscriptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shows", Fake.SWITCHES["subscriptions_show"])
def test_registering_twice_is_registering_once(shows: str) -> None:
    with world(subscriptions_show=shows) as one:
        done = one.account.register(one.api, HOOK, ("email",), NOW)
        assert len(done.done) == 3
        assert not done.secrets
        assert {hook["event"] for hook in one.fake.hooks.values()} == {"new", "update", "delete"}
        for hook in one.fake.hooks.values():
            assert (hook["target"], hook["type"]) == (HOOK, "person")
            assert hook["headers"] == {"X-Bridge-Token": "new-token"}
        before = {number: dict(hook) for number, hook in one.fake.hooks.items()}
        again = one.account.register(one.api, HOOK, (), NOW)
        assert len(again.done) == 3
        assert one.fake.hooks == before
        assert len(one.fake.made("POST")) == 3
        assert bool(one.fake.made("PUT")) is (shows != "all"), "what it does not show is set once more"
        kept = json.dumps([exchange.request_body + exchange.response_body for exchange in one.api.exchanges])
        assert "new-token" not in kept


def test_another_token_is_put_right_and_others_subscriptions_are_left_alone() -> None:
    with world() as one:
        one.account.register(one.api, HOOK, (), NOW)
        foreign = {"target": "https://other.example/hook", "type": "person", "event": "update", "id": 9}
        lead = {"target": HOOK, "type": "lead", "event": "update", "id": 10}
        one.fake.hooks |= {9: dict(foreign), 10: dict(lead)}
        one.settings = replace(one.settings, secrets=(Secret("newer-token"), *TOKENS))
        one.account.register(one.api, HOOK, (), NOW)
        own = [hook for number, hook in one.fake.hooks.items() if number > 100]
        assert [hook["headers"] for hook in own] == [{"X-Bridge-Token": "newer-token"}] * 3
        assert [hook["secret"] for hook in own] == [{"bridge_token": "newer-token"}] * 3
        assert (one.fake.hooks[9], one.fake.hooks[10]) == (foreign, lead)
        removed = one.account.remove(one.api, HOOK)
        assert len(removed) == 4
        assert list(one.fake.hooks) == [9]
        assert one.account.remove(one.api, HOOK) == []


def test_what_a_subscription_shows_proves_its_notifications() -> None:
    with world() as one:
        one.account.register(one.api, HOOK, (), NOW)
        source = Copper("crm", one.settings)
        ada = one.fake.add()
        notice = one.fake.notification("update", ada, at=START, name=["x", "y"])
        hook = next(iter(one.fake.hooks.values()))
        headers = {name.lower(): value for name, value in hook["headers"].items()}
        for body in ({**notice, **hook["secret"]}, {**notice, "secret": hook["secret"]}, notice):
            content = json.dumps(body).encode()
            genuine = source.verify(InboundRequest("POST", HOOK, headers, content), NOW)
            (event,) = source.parse(genuine, NOW)
            assert event.changes[0].key.source_id == ada


@pytest.mark.parametrize("answer", [{}, 7, "<html>"])
def test_a_list_of_subscriptions_that_is_none_changes_nothing(answer: object) -> None:
    with world() as one:
        one.fake.trouble(method="GET", status=200, body=answer)
        with pytest.raises(BatchUnreadable):
            one.account.register(one.api, HOOK, (), NOW)
        one.fake.trouble(method="GET", status=200, body=[{"target": HOOK, "type": "person", "event": "new"}])
        with pytest.raises(BatchUnreadable, match="without its number"):
            one.account.register(one.api, HOOK, (), NOW)
        with pytest.raises(SourceUnavailable, match="HTTP 422"):
            one.account.register(one.api, "http://bridge.example.com/hooks/copper", (), NOW)
        assert one.fake.hooks == {}


# --- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_put", ["whole", "without_custom_fields"])
@pytest.mark.parametrize(("value", "written"), [(True, True), ("4711", 4711), ("stop", "stop")])
def test_an_opt_out_is_written_into_the_named_custom_field(
    after_put: str, value: bool | str, written: object
) -> None:
    with world(after_put=after_put) as one:
        ada = one.fake.add(custom={200: "x"}, title="Countess")
        one.settings = replace(one.settings, opt_out_value=value)
        one.account.opt_out(one.api, ada, "cf_100")
        assert one.fake.custom(ada) == {100: written, 200: "x"}
        assert one.fake.people[int(ada)]["title"] == "Countess"


def test_what_was_not_written_is_told() -> None:
    with world(after_put="not_taken") as one:
        ada = one.fake.add()
        with pytest.raises(SourceUnavailable, match="does not hold it afterwards"):
            one.account.opt_out(one.api, ada, "cf_100")
        for name in ("email", "cf_", "cf_x", "cf_1 ", "custom_fields"):
            with pytest.raises(SourceUnavailable, match="no custom field"):
                one.account.opt_out(one.api, ada, name)
        assert len(one.fake.made("PUT")) == 1
        for person, name in (("1", "cf_100"), (ada, "cf_999")):
            with pytest.raises(SourceUnavailable):
                one.account.opt_out(one.api, person, name)


def test_without_a_key_nothing_is_listed_registered_or_written() -> None:
    bare = Settings(TOKENS, "ops@example.com")
    for make in (SOURCE.lister, SOURCE.registrar, SOURCE.writer):
        assert make is not None
        assert make("crm", bare) is None
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(bare) == "https://api.copper.com/developer_api/v1"
    assert "old-token" not in repr(
        World(Fake(), Api("http://127.0.0.1:9"), replace(bare, token=Secret("k"))).account
    )


# --- all the way -----------------------------------------------------------------------------------------


def test_a_notification_is_read_and_reaches_all_four_platforms(tmp_path: Path) -> None:
    section = """type = "copper"
secrets = ["$SHOP_SECRET"]
user_email = "ops@example.com"
token = "$COPPER_KEY"
api_base = "{url}"
"""
    with serve_platforms() as platforms, (fake := Fake()).serve() as url:
        path = platforms.write_config(tmp_path)
        text = path.read_text()
        start, end = text.index('type = "standard_webhooks"'), text.index("[targets.marketing]")
        text = text[:start] + section.format(url=url) + "\n" + text[end:]
        path.write_text(text.replace('"surname"', '"last_name"').replace("stop == 'yes'", "cf_100 | boolean"))
        config = load(path, {**platforms.environ, "COPPER_KEY": fake.key})
        ada = fake.add(
            emails=[{"email": "ada@example.com", "category": "work"}],
            phone_numbers=[{"number": "+525512340001", "category": "mobile"}],
        )
        with open_bench(tmp_path, config) as bench:
            content = json.dumps(fake.notification("update", ada)).encode()
            request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {}, content)
            bench.receive(config.sources["shop"].source.sign(request, bench.now()))
            bench.settle()
            deliveries = bench.store.deliveries_of(RecordKey("shop", ada))
            assert {one.target: one.state for one in deliveries} == dict.fromkeys(platforms.fakes, State.SYNCED)
            assert platforms.counts() == dict.fromkeys(platforms.fakes, 1)
            assert len(fake.made("GET", "/people/")) == 1
