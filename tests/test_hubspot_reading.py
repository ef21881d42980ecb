"""Reading contacts from HubSpot, over real HTTP, under every reading of what the vendor leaves open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bridge.demo.fakes.hubspot import HubSpot as Fake
from bridge.demo.fakes.hubspot import WebhookEvent
from bridge.errors import SourceUnavailable
from bridge.model import Change, InboundRequest, Kind, RecordKey, Secret, Value, Version
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Read
from bridge.sources.hubspot import SOURCE, HubSpot, Settings

START = datetime(2026, 9, 21, 14, 13, 20, 500_000, tzinfo=UTC)
SWITCHES = [
    {"missing_ids": missing, "merged_answer": merged}
    for missing in Fake.SWITCHES["missing_ids"]
    for merged in Fake.SWITCHES["merged_answer"]
]
every_reading = pytest.mark.parametrize("switches", SWITCHES, ids=lambda one: "-".join(one.values()))


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def tick(self, seconds: float = 1) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


class Account:
    """A fake HubSpot and the source that reads it."""

    def __init__(self, fake: Fake, base_url: str, clock: Clock, api: Api, *, token: str = Fake.bearer) -> None:
        self.fake, self.clock, self.api = fake, clock, api
        self.source = HubSpot("crm", Settings((Secret("client-secret"),), Secret(token), base_url))

    def read(self, *ids: str, fields: tuple[str, ...] = ("email", "phone")) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def fails(self, *ids: str) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            self.read(*(ids or ("1",)))
        assert Fake.bearer not in str(caught.value)
        return caught.value


@contextmanager
def account(token: str = Fake.bearer, **switches: str) -> Iterator[Account]:
    clock = Clock()
    fake = Fake(clock=clock, **switches)
    with fake.serve() as base_url, new_session() as session:
        api = Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        yield Account(fake, base_url, clock, api, token=token)


def id_of(events: list[WebhookEvent]) -> str:
    return str(events[0]["objectId"])


def test_only_the_named_properties_are_read_with_the_time_of_the_records_last_change() -> None:
    with account() as one:
        ada = id_of(one.fake.create(email="ada@example.com", firstname="Ada"))
        one.fake.change(ada, phone="+14155550123")
        changed_at = one.clock.tick(0.25)
        one.fake.change(ada, email="")
        (read,) = one.read(ada, fields=("email", "phone", "mobilephone", "no_such_property"))
    key = RecordKey("crm", ada)
    assert read == Read(
        asked=key,
        key=key,
        # Null in HubSpot: known to be empty. A property that the account does not have is left out.
        fields={"email": "", "phone": "+14155550123", "mobilephone": ""},
        version=Version(changed_at, "read"),
    )


def test_answers_go_by_content_and_come_in_the_order_asked() -> None:
    with account() as one:
        ids = [id_of(one.fake.create(email=f"p{n}@example.com")) for n in range(100)]
        reads = one.read(*ids)
        assert [read.asked.source_id for read in reads] == ids
        assert [(read.fields or {})["email"] for read in reads] == [f"p{n}@example.com" for n in range(100)]
        assert len(one.fake.calls) == 1
        assert [read.asked.source_id for read in one.read(ids[0], ids[1], ids[0])] == [ids[0], ids[1], ids[0]]
        assert one.fake.calls[-1].json["inputs"] == [{"id": ids[0]}, {"id": ids[1]}]
        assert one.read() == []
        assert len(one.fake.calls) == 2


@every_reading
def test_a_contact_that_is_not_there_is_known_to_be_unknown(switches: dict[str, str]) -> None:
    with account(**switches) as one:
        ada = id_of(one.fake.create(email="ada@example.com"))
        gone = id_of(one.fake.create(email="gone@example.com"))
        one.fake.delete(gone)
        reads = one.read(ada, gone, "123")
        assert [read.fields for read in reads] == [{"email": "ada@example.com", "phone": ""}, None, None]
        assert [read.key for read in reads] == [read.asked for read in reads]
        assert [read.version is None for read in reads] == [False, True, True]
        one.fake.restore(gone)
        assert one.read(gone)[0].fields is not None


@every_reading
@pytest.mark.parametrize("merge_result", Fake.SWITCHES["merge_result"])
def test_a_merged_contact_is_read_as_its_survivor(switches: dict[str, str], merge_result: str) -> None:
    with account(**switches, merge_result=merge_result) as one:
        ada = id_of(one.fake.create(email="ada@example.com"))
        twin = id_of(one.fake.create(phone="+14155550123"))
        other = id_of(one.fake.create(email="other@example.com"))
        event = one.fake.merge(ada, twin)[-1]
        survivor = str(event["newObjectId"] or ada)
        asked = [twin, other, ada, "123", survivor]
        reads = dict(zip(asked, one.read(*asked), strict=True))
        for source_id in (ada, twin, survivor):
            assert reads[source_id].asked == RecordKey("crm", source_id)
            assert reads[source_id].key == RecordKey("crm", survivor)
            assert reads[source_id].fields == {"email": "ada@example.com", "phone": "+14155550123"}
        assert reads[other].fields == {"email": "other@example.com", "phone": ""}
        assert reads[other].key.source_id == other
        assert reads["123"].fields is None


def test_a_refused_token_is_named_in_words() -> None:
    with account(token="wrong") as one:
        said = str(one.fails())
        assert "refuses the token of crm" in said
        assert "crm.objects.contacts.read" in said
        one.fake.bearer = "wrong"
        one.fake.trouble(status=403)
        assert "(HTTP 403)" in str(one.fails())
        assert one.read("1")[0].fields is None


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls", 7),
        ({"status": 429}, "fewer calls", 1),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9),
        ({"status": 500, "body": "<html>"}, "(HTTP 500)", 0),
        ({"status": 400, "body": {"category": "VALIDATION_ERROR", "message": "ada"}}, "400, VALIDATION_ERROR)", 0),
        ({"status": 400, "body": {"category": "a person's name"}}, "(HTTP 400).", 0),
        ({"status": 404}, "(HTTP 404)", 0),
        ({"status": 301, "headers": {"Location": "http://127.0.0.1/"}}, "redirect", 0),
        ({"status": 200, "body": "<html>a proxy"}, "not JSON", 0),
        ({"how": "drop"}, "cannot be called now", 0),
        ({"how": "slow", "seconds": 0.7}, "did not answer in time", 0),
    ],
)
def test_trouble_on_the_way_is_told_and_teaches_nothing(
    trouble: Mapping[str, Any], said: str, retry_after_s: float
) -> None:
    with account() as one:
        one.fake.trouble(**trouble)
        error = one.fails()
        assert said in str(error)
        assert str(error).endswith(".")
        assert error.retry_after_s == retry_after_s


def test_trouble_while_looking_for_a_survivor_teaches_nothing() -> None:
    with account(missing_ids="silently_absent") as one:
        ada = id_of(one.fake.create(email="ada@example.com"))
        one.fake.trouble(method="GET", status=502)
        one.fails(ada, "123")
        one.fake.trouble(method="GET", status=200, body={"id": 5})
        good, bad = one.read(ada, "123")
        assert (good.fields is None, good.problem) == (False, "")
        assert (bad.fields, bad.version, bad.problem) == (None, None, "HubSpot's answer is not a contact.")
        assert [read.fields is None for read in one.read(ada, "123")] == [False, True]


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"results": None},
        {"results": [None, 7, {}, {"id": 5, "properties": {}}, {"id": "999"}]},
        {
            "results": [
                {"id": "777", "properties": {"email": "stranger@example.com"}, "updatedAt": "2026-09-21T14:13:20Z"}
            ]
        },
        {"results": [], "errors": [None, {"category": "OTHER", "context": {"ids": ["1246965"]}}]},
    ],
)
def test_an_answer_of_another_shape_is_never_taken_for_the_contact(answer: object) -> None:
    with account() as one:
        ada = id_of(one.fake.create(email="ada@example.com"))
        one.fake.trouble(status=200, body=answer)
        (read,) = one.read(ada)
        assert read.key == RecordKey("crm", ada)
        assert read.fields == {"email": "ada@example.com", "phone": ""}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"properties": {"email": "a@example.com"}}, "when the contact was last changed"),
        ({"properties": {}, "updatedAt": ["2026"]}, "when the contact was last changed"),
        ({"properties": {"email": ["a@example.com"]}, "updatedAt": "2026-09-21T14:13:20Z"}, "not a text"),
    ],
)
def test_an_unusable_answer_about_one_contact_says_nothing_against_the_others(
    bad: Mapping[str, Any], problem: str
) -> None:
    with account() as one:
        good = {"id": "2", "properties": {"email": "b@example.com"}, "updatedAt": "2026-09-21T14:13:20Z"}
        one.fake.trouble(status=200, body={"results": [{"id": "1", **bad}, good]})
        first, second = one.read("1", "2")
        assert (first.fields, first.version) == (None, None)
        assert problem in first.problem
        assert (second.fields, second.problem) == ({"email": "b@example.com"}, "")


@pytest.mark.parametrize("trouble", [{"status": 400}, {"status": 422}, {"status": 200, "body": "<html>"}])
def test_trouble_that_may_be_of_the_records_asked_for_is_told_apart(trouble: Mapping[str, Any]) -> None:
    with account() as one:
        one.fake.trouble(**trouble)
        assert isinstance(one.fails(), BatchUnreadable)
        for status in (401, 403, 404, 429, 500, 503):
            one.fake.trouble(status=status)
            assert not isinstance(one.fails(), BatchUnreadable)


def test_an_archived_contact_is_none() -> None:
    with account() as one:
        record = {"id": "1", "properties": {}, "updatedAt": "2026-09-21T14:13:20Z", "archived": True}
        one.fake.trouble(status=200, body={"results": [record]})
        assert one.read("1")[0].fields is None


def test_reading_is_offered_where_there_is_a_token_only() -> None:
    with account() as one:
        assert one.source.can_read()
        assert SOURCE.read_base_url is not None
        settings = Settings((Secret("s"),))
        assert SOURCE.read_base_url(settings) == "https://api.hubapi.com"
        assert not HubSpot("crm", settings).can_read()
        with pytest.raises(SourceUnavailable, match="No token"):
            HubSpot("crm", settings).read(one.api, [RecordKey("crm", "1")], [])
        assert one.fake.calls == []
        one.read("1", fields=())
        assert "demo" not in json.dumps([exchange.url for exchange in one.api.exchanges])


def test_the_fake_refuses_more_than_hubspot_takes() -> None:
    with account() as one:
        assert "VALIDATION_ERROR" in str(one.fails(*(str(n) for n in range(1, 102))))


def test_what_the_fake_sends_is_what_the_source_reads() -> None:
    """The life of a contact: what HubSpot would send about it, parsed."""
    with account() as one:
        fake = one.fake
        ada, twin = (id_of(fake.create(email=f"{name}@example.com")) for name in ("ada", "twin"))
        sent = [
            *fake.change(ada, phone="+14155550123"),
            *fake.change(ada, phone=""),
            *fake.delete(ada),
            *fake.restore(ada),
            *fake.merge(ada, twin),
        ]
        survivor = str(sent[-1]["newObjectId"])
        sent += fake.erase(survivor)
        changes = parsed(one.source, sent, one.clock.now)
    told = [(change.key.source_id, change.kind, dict(change.fields)) for change in changes]
    phone: dict[str, Value] = {"phone": "+14155550123"}
    assert told == [
        (ada, Kind.CHANGED, phone),
        (ada, Kind.CHANGED, {"phone": ""}),
        (ada, Kind.DELETED, {}),
        (ada, Kind.CREATED, {}),
        (survivor, Kind.CREATED, {}),
        (ada, Kind.MERGED, {}),
        (twin, Kind.MERGED, {}),
        (survivor, Kind.CHANGED, {}),
        (survivor, Kind.DELETED, {}),
        (survivor, Kind.ERASED, {}),
    ]
    assert [change.survivor for change in changes if change.kind is Kind.MERGED] == [survivor, survivor]
    assert {change.account for change in changes} == {str(Fake.portal_id)}
    versions = [change.version for change in changes]
    assert versions == sorted(versions)


def parsed(source: HubSpot, events: list[WebhookEvent], now: datetime) -> list[Change]:
    request = InboundRequest("POST", "https://bridge.example.com/hooks/crm", {}, Fake.webhook(events))
    found = source.parse(source.verify(source.sign(request, now), now), now)
    assert len(found) == len(events)
    return [change for event in found for change in event.changes]
