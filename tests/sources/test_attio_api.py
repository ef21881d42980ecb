"""Attio's API over real HTTP, under every reading of what is open: reading, listing, subscribing, writing back."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load
from bridge.errors import SourceUnavailable
from bridge.model import InboundRequest, Kind, RecordKey, Secret, State, utc_now
from bridge.outbound import Api, new_session
from bridge.sources.attio import READ_LIMIT, SOURCE, Attio, Settings
from bridge.sources.attio.api import EVENTS, PAGE, Account, AttioLister
from bridge.sources.base import BatchUnreadable, Listed, Read
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_attio import Attio as Fake

START = datetime(2026, 9, 21, 14, 13, 20, 500_000, tzinfo=UTC)
URL = "https://bridge.example.com/hooks/crm"
ADA: dict[str, Any] = {
    "name": "Ada Lovelace",
    "email_addresses": ["ada@example.com", "countess@example.com"],
    "phone_numbers": "+14155550123",
}
READINGS = [
    {"by_ids": by_ids, "merged": merged, "merge": merge, "history": history}
    for by_ids, merged in itertools.product(Fake.SWITCHES["by_ids"], Fake.SWITCHES["merged"])
    for merge, history in zip(Fake.SWITCHES["merge"], Fake.SWITCHES["history"], strict=True)
]
every_reading = pytest.mark.parametrize("switches", READINGS, ids=lambda one: "-".join(one.values()))


class World:
    """A fake Attio whose clock stands until it is told to go on, and the connection to it."""

    def __init__(self, fake: Fake, api: Api, settings: Settings) -> None:
        self.fake, self.api, self.settings = fake, api, settings
        self.source = Attio("crm", settings)
        self.now = START
        fake.clock = lambda: self.now

    def tick(self, seconds: float = 1) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def add(self, of: str = "", **values: Any) -> str:
        return str(self.fake.create(of, **{**ADA, **values})[0]["id"]["record_id"])

    def read(self, *ids: str, fields: tuple[str, ...] = ("email_addresses", "job_title")) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def page(self, after: str | None, since: datetime | None = None) -> Listed:
        assert SOURCE.lister is not None
        lister = SOURCE.lister("crm", self.settings)
        assert lister is not None
        listed = lister.page(self.api, ("email_addresses",), after, since)
        assert all(read.asked == read.key for read in listed.records)
        return listed

    def pages(self, since: datetime | None = None) -> Iterator[list[str]]:
        """Yield the people, page by page; each page is asked of a lister made anew."""
        after = None
        while True:
            listed = self.page(after, since)
            yield [read.key.source_id for read in listed.records]
            after = listed.after
            if after is None:
                return

    def register(self, **more: Any) -> Any:
        assert SOURCE.registrar is not None
        registrar = SOURCE.registrar("crm", replace(self.settings, **more))
        assert registrar is not None
        return registrar.register(self.api, URL, [], self.now)

    def fails(self, *ids: str) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            self.read(*ids)
        return caught.value


@contextmanager
def world(*, token: str = Fake.bearer, value: bool | str = True, **switches: Any) -> Iterator[World]:
    fake = Fake(**switches)
    with fake.serve() as base_url, new_session() as session:
        api = Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        settings = Settings(
            (Secret("s"),), Secret(token), object_id=Fake.people, opt_out_value=value, api_base=base_url
        )
        yield World(fake, api, settings)


# --- reading -----------------------------------------------------------------------------------------------


@every_reading
def test_only_the_named_fields_are_read_and_count_as_of_the_answer(switches: dict[str, str]) -> None:
    with world(**switches) as one:
        ada, bob = one.add(job_title="Countess"), one.add(job_title="Count")
        one.tick(60)
        one.fake.change(ada, job_title=None, email_addresses="new@example.com")
        names = ("first_name", "email_addresses_all", "job_title", "phone_numbers", "no_such", "record_id")
        reads = one.read(bob, ada, bob, fields=names)
        assert [read.asked.source_id for read in reads] == [bob, ada, bob]
        read = reads[1]
        assert (read.key, read.account) == (RecordKey("crm", ada), Fake.workspace_id)
        assert read.fields == {
            "first_name": "Ada",
            "email_addresses_all": ["new@example.com"],
            "job_title": "",
            "phone_numbers": "+14155550123",
            "record_id": ada,
        }
        assert read.version is not None
        assert read.version.occurred_at == one.now.replace(microsecond=0)


@pytest.mark.parametrize("date", Fake.SWITCHES["date"])
def test_what_was_read_later_is_newer_even_within_a_second_and_where_a_value_was_taken_away(date: str) -> None:
    with world(date=date) as one:
        ada = one.add(job_title="Countess")
        (first,) = one.read(ada)
        one.tick(0.1)
        one.fake.change(ada, job_title=None)
        (second,) = one.read(ada)
        assert (second.fields or {})["job_title"] == ""
        assert first.version is not None
        assert second.version is not None
        assert second.version > first.version


def test_as_many_as_may_be_are_read_with_one_call() -> None:
    with world() as one:
        ids = [one.add(email_addresses=f"p{n}@example.com") for n in range(READ_LIMIT)]
        reads = one.read(*ids)
        assert [(read.fields or {})["email_addresses"] for read in reads] == [
            f"p{n}@example.com" for n in range(READ_LIMIT)
        ]
        assert len(one.fake.calls) == 1
        assert one.read() == []


@every_reading
def test_a_person_that_is_not_there_is_known_to_be_unknown(switches: dict[str, str]) -> None:
    with world(**switches) as one:
        ada, gone = one.add(), one.add()
        one.fake.delete(gone)
        reads = one.read(gone, ada, "never")
        assert [read.fields is None for read in reads] == [True, False, True]
        assert [read.version is None for read in reads] == [True, False, True]
        assert not any(read.problem for read in reads)


@every_reading
def test_a_merged_person_is_read_as_the_one_that_stays_where_attio_leads_there(switches: dict[str, str]) -> None:
    with world(**switches) as one:
        ada, twin = one.add(), one.add(job_title="Countess")
        survivor = str(one.fake.merge(ada, twin)[0]["id"]["record_id"])
        reads = {read.asked.source_id: read for read in one.read(ada, twin, survivor)}
        assert reads[survivor].fields == {"email_addresses": "ada@example.com", "job_title": "Countess"}
        if switches["merged"] == "survivor":
            assert {read.key.source_id for read in reads.values()} == {survivor}
        else:
            assert reads[twin].fields is None


def test_a_merge_that_is_not_done_yet_is_no_deletion() -> None:
    with world() as one:
        ada = one.add()
        one.fake.trouble(method="GET", status=404, body={"code": "merge_in_progress"})
        (read,) = one.read(ada)
        assert (read.fields, read.problem) == (None, "Attio is still merging this record with another.")
        assert one.read(ada)[0].fields is not None


@pytest.mark.parametrize("others", Fake.SWITCHES["others"])
@pytest.mark.parametrize("object_id", [Fake.people, None])
def test_a_company_is_nobody_whatever_attio_answers(others: str, object_id: str | None) -> None:
    with world(others=others) as one:
        one.source = Attio("crm", replace(one.settings, object_id=object_id))
        company, ada = one.add(Fake.companies), one.add()
        for _ in range(2):
            first, second = one.read(company, ada)
            assert (first.fields, first.problem) == (None, "")
            assert second.fields is not None
        assert len(one.fake.made("GET", "/v2/objects")) - len(one.fake.made("GET", "/records/")) == (not object_id)


def test_the_object_may_be_another_one() -> None:
    with world() as one:
        company = one.add(Fake.companies)
        for of in ("companies", Fake.companies, Fake.companies.upper()):
            one.source = Attio("crm", replace(one.settings, object=of.lower(), object_id=None))
            assert one.read(company)[0].fields is not None
        one.source = Attio("crm", replace(one.settings, object="deals", object_id=None))
        one.fake.trouble(path="/records/", status=200, body={"data": one.fake._shown(one.fake.records[company])})
        assert "the object that is configured" in str(one.fails(company))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"data": {"id": {"record_id": 7}, "values": {}}}, "not a record"),
        ({"data": {"id": {"record_id": "x"}, "values": []}}, "not a record"),
        ({"data": []}, "not a record"),
        ([], "not a record"),
        ("<html>", "not a record"),
    ],
)
def test_an_unusable_answer_about_one_says_nothing_against_the_others(answer: object, problem: str) -> None:
    with world() as one:
        gone, ada = one.add(), one.add()
        one.fake.delete(gone)
        one.fake.trouble(method="GET", path=gone, status=200, body=answer)
        first, second = one.read(gone, ada)
        assert (first.fields, first.version) == (None, None)
        assert problem in first.problem
        assert second.fields is not None


@pytest.mark.parametrize("answer", [[], {}, {"data": None}, {"data": [7, {}]}, "<html>"])
def test_a_query_of_another_shape_is_never_taken_for_the_people(answer: object) -> None:
    with world() as one:
        ada, bob = one.add(), one.add()
        one.fake.trouble(method="POST", status=200, body=answer)
        assert [read.fields is None for read in one.read(ada, bob)] == [False, False]


TROUBLE = [
    ({"status": 401}, "refuses the credentials of crm (HTTP 401)", 0),
    ({"status": 403}, "record_permission:read and object_configuration:read", 0),
    ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls", 7),
    ({"status": 429}, "fewer calls", 1),
    ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9),
    ({"status": 500, "body": "<html>"}, "(HTTP 500)", 0),
    ({"status": 301, "headers": {"Location": "http://127.0.0.1/"}}, "redirect", 0),
    ({"how": "drop"}, "cannot be called now", 0),
]


@pytest.mark.parametrize(("trouble", "said", "retry_after_s"), TROUBLE)
def test_trouble_on_the_way_is_told_whatever_was_asked(
    trouble: Mapping[str, Any], said: str, retry_after_s: float
) -> None:
    with world() as one:
        ada, bob = one.add(), one.add()
        assert SOURCE.writer is not None
        writer = SOURCE.writer("crm", one.settings)
        assert writer is not None
        for call in (
            lambda: one.read(ada, bob),
            lambda: one.read(ada),
            lambda: one.page(None),
            one.register,
            lambda: writer.opt_out(one.api, ada, "sms_opt_out"),
        ):
            one.fake.trouble(**trouble)
            with pytest.raises(SourceUnavailable) as caught:
                call()
            assert not isinstance(caught.value, BatchUnreadable)
            assert said in str(caught.value)
            assert str(caught.value).endswith(".")
            assert Fake.bearer not in str(caught.value)
            assert caught.value.retry_after_s == retry_after_s
        assert one.fake.hooks == {}


def test_reading_is_offered_where_there_is_a_token_only() -> None:
    settings = Settings((Secret("s"),))
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(settings) == "https://api.attio.com"
    assert not Attio("crm", settings).can_read()
    with pytest.raises(SourceUnavailable, match="No token"):
        Attio("crm", settings).read(Api("http://127.0.0.1:9"), [], [])
    for make in (SOURCE.lister, SOURCE.registrar, SOURCE.writer):
        assert make is not None
        assert make("crm", settings) is None
        assert make("crm", replace(settings, token=Secret("t"))) is not None


# --- listing -----------------------------------------------------------------------------------------------

LISTINGS = [
    {"by_time": by_time, "page": page} for by_time in Fake.SWITCHES["by_time"] for page in Fake.SWITCHES["page"]
]
every_listing = pytest.mark.parametrize("switches", LISTINGS, ids=lambda one: f"{one['by_time']}-{one['page']}")


@every_listing
def test_all_people_come_however_many_were_made_in_one_moment(switches: dict[str, Any]) -> None:
    with world(**switches) as one:
        made = [one.add() for _ in range(3)]
        one.tick()
        made += [one.add() for _ in range(PAGE + 70)]
        for _ in range(30):
            one.tick(0.001)
            made.append(one.add())
        one.add(Fake.companies)
        pages = list(one.pages())
        assert set(made) == {source_id for page in pages for source_id in page}
        assert len(pages) <= 20
        assert one.page(None).total is None


@every_listing
def test_an_empty_account_has_one_page(switches: dict[str, Any]) -> None:
    with world(**switches) as one:
        assert list(one.pages()) == [[]]


@every_listing
def test_what_is_deleted_or_made_meanwhile_pushes_nobody_out(switches: dict[str, Any]) -> None:
    with world(**switches) as one:
        made = []
        for n in range(300):
            one.tick(n % 3)
            made.append(one.add())
        seen: set[str] = set()
        gone = iter(made)
        for number, page in enumerate(one.pages()):
            seen |= set(page)
            one.fake.delete(next(gone))
            one.fake.delete(next(gone))
            if number < 10:
                one.tick()
                one.add()
        deleted = {record.id for record in one.fake.records.values() if record.deleted}
        assert set(made) - deleted <= seen


def test_since_is_not_known_to_attio_so_all_people_come() -> None:
    with world() as one:
        made = [one.add() for _ in range(3)]
        assert set(next(one.pages(since=one.tick(100)))) == set(made)


def test_a_time_that_was_compared_once_is_not_given_up_for_counting() -> None:
    with world(page=40) as one:
        for _ in range(100):
            one.tick()
            one.add()
        after = one.page(one.page(None).after).after
        one.fake.trouble(status=400)
        with pytest.raises(BatchUnreadable):
            one.page(after)
        assert one.page(after).records


ROW = {"id": {"record_id": "x"}, "created_at": "2026-09-21T14:13:20Z", "values": {}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{**ROW, "created_at": "2026-09-22T00:00:00Z"}, ROW], "not in the order"),
        ([{**ROW, "created_at": None}], "does not tell when"),
        ([{**ROW, "id": {}}], "not a record"),
        ([7], "does not tell when"),
        (None, "not a list"),
    ],
)
def test_a_list_in_which_some_might_be_missing_is_none(data: object, said: str) -> None:
    with world() as one:
        one.fake.trouble(path="/query", status=200, body={"data": data})
        with pytest.raises(BatchUnreadable, match=said):
            one.page(None)


def test_a_person_of_the_list_that_cannot_be_understood_says_so_and_ends_nothing() -> None:
    with world() as one:
        body = {"data": [{**ROW, "values": None}, {**ROW, "id": {"record_id": "y"}}]}
        one.fake.trouble(path="/query", status=200, body=body)
        bad, good = one.page(None).records
        assert (bad.fields, bad.problem, good.fields) == (None, "Attio's answer is not a record.", {})


# --- webhooks ----------------------------------------------------------------------------------------------


def only(*parts: tuple[str, str, str]) -> dict[str, Any]:
    return {"$and": [{"field": name, "operator": how, "value": value} for name, how, value in parts]}


def test_registering_twice_is_registering_once() -> None:
    with world() as one:
        one.fake.hooks["x"] = {"id": {"webhook_id": "x"}, "target_url": URL + "/other", "subscriptions": []}
        first = one.register(object_id=None, actor_id="OUR-TOKEN")
        (hook,) = (hook for hook in one.fake.hooks.values() if hook["target_url"] == URL)
        assert {name: secret.reveal() for name, secret in first.secrets.items()} == {"secrets": hook["secret"]}
        assert Fake.people in first.done[1]
        assert not any(hook["secret"] in exchange.response_body for exchange in one.api.exchanges)
        wanted = only(("id.object_id", "equals", Fake.people), ("actor.id", "not_equals", "our-token"))
        assert hook["subscriptions"] == [{"event_type": kind, "filter": wanted} for kind in EVENTS]
        again = one.register(actor_id="our-token")
        assert ("nothing was changed" in again.done[0], dict(again.secrets)) == (True, {})
        assert len(one.fake.made("POST", "/webhooks")) == 1
        assert one.fake.made("PATCH") == []
        assert len(one.fake.hooks) == 2


def test_a_webhook_that_lacks_something_is_brought_up_to_date() -> None:
    with world() as one:
        one.register()
        (hook,) = one.fake.hooks.values()
        told = one.register(actor_id="us")
        assert ("brought up to date" in told.done[0], dict(told.secrets)) == (True, {})
        assert "not_equals" in str(hook["subscriptions"])
        hook["subscriptions"].pop()
        one.register(actor_id="us")
        assert {sub["event_type"] for sub in hook["subscriptions"]} == set(EVENTS)
        hook["subscriptions"] = [{"event_type": kind, "filter": None} for kind in (*EVENTS, "note.created")]
        assert "nothing was changed" in one.register().done[0], "more does no harm"
        hook["status"] = "degraded"
        assert "brought up to date" in one.register().done[0]
        assert len(one.fake.hooks) == 1


def test_a_webhook_is_found_behind_many_others_and_removed_alone() -> None:
    with world() as one:
        for n in range(250):
            one.fake.hooks[str(n)] = {
                "id": {"webhook_id": str(n)},
                "target_url": f"{URL}{n}",
                "status": "active",
                "subscriptions": [],
            }
        one.register()
        one.register()
        assert len(one.fake.hooks) == 251
        assert SOURCE.registrar is not None
        registrar = SOURCE.registrar("crm", one.settings)
        assert registrar is not None
        assert len(registrar.remove(one.api, URL)) == 1
        assert len(one.fake.hooks) == 250
        assert registrar.remove(one.api, URL) == []


@pytest.mark.parametrize("secret", [None, " ", 7])
def test_a_webhook_whose_secret_is_not_told_is_no_success(secret: object) -> None:
    with world() as one:
        one.fake.trouble(method="POST", status=200, body={"data": {"secret": secret}})
        with pytest.raises(SourceUnavailable, match="did not tell its secret"):
            one.register()


# --- writing back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "name"), [(True, "sms_opt_out"), ("Stopped", "stage")])
def test_an_opt_out_is_written_and_looked_at(value: bool | str, name: str) -> None:
    with world(value=value) as one:
        ada = one.add()
        assert SOURCE.writer is not None
        writer = SOURCE.writer("crm", one.settings)
        assert writer is not None
        writer.opt_out(one.api, ada, name)
        assert one.read(ada, fields=(name,))[0].fields == {name: value}
        for source_id, field in ((ada, "no_such"), ("never", name)):
            with pytest.raises(SourceUnavailable):
                writer.opt_out(one.api, source_id, field)
        one.fake.trouble(method="PATCH", status=200, body={"data": {"values": {name: []}}})
        with pytest.raises(SourceUnavailable, match="does not hold it"):
            writer.opt_out(one.api, ada, name)


# --- the whole way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", Fake.SWITCHES["merge"])
def test_what_the_fake_sends_is_what_the_source_reads(merge: str) -> None:
    """The life of a person: what Attio would send about it, parsed."""
    with world(merge=merge) as one:
        fake = one.fake
        made = [fake.create(name="Ada"), fake.create(name="Twin")]
        ada, twin = (str(events[0]["id"]["record_id"]) for events in made)
        sent = [*made[0], *fake.change(ada, job_title="Countess"), *fake.merge(ada, twin)]
        survivor = str(sent[-1]["id"]["record_id"])
        sent += fake.delete(survivor)
        request = one.source.sign(InboundRequest("POST", URL, {}, Fake.webhook(*sent)), one.now)
        told = [
            (change.key.source_id, change.kind, change.survivor)
            for event in one.source.parse(one.source.verify(request, one.now), one.now)
            for change in event.changes
        ]
        ended = [ada, twin] if merge == "new_record" else [twin]
        merged = [
            change for one in ended for change in ((one, Kind.MERGED, survivor), (survivor, Kind.CHANGED, None))
        ]
        assert told == [*[(ada, Kind.CHANGED, None)] * 3, *merged, (survivor, Kind.DELETED, None)]


def test_the_clock_is_the_accounts() -> None:
    """Where Attio does not say when it answered, what was read is true since it was asked."""
    with world(date="left_out") as one:
        one.add()
        made = AttioLister(replace(one.source._reader.account, clock=lambda: one.now))  # type: ignore[union-attr]
        assert isinstance(made.account, Account)
        (read,) = made.page(one.api, (), None, None).records
        assert read.version is not None
        assert read.version.occurred_at == one.now


@pytest.mark.parametrize("merge", Fake.SWITCHES["merge"])
def test_an_event_reaches_all_four_platforms(tmp_path: Path, merge: str) -> None:
    fake = Fake(merge=merge)
    with fake.serve() as base_url, serve_platforms() as platforms:
        path = platforms.write_config(tmp_path, settle_s=1)
        section = (
            '[sources.shop]\ntype = "attio"\nsecrets = ["$SHOP_SECRET"]\ntoken = "$ATTIO_TOKEN"\n'
            f'api_base = "{base_url}"\n\n'
        )
        text = re.sub(r"\[sources\.shop\].*?(?=\[targets)", lambda _: section, path.read_text(), flags=re.DOTALL)
        for old, new in (
            ('= "email"', '= "email_addresses"'), ('= "phone"', '= "phone_numbers"'),
            ('= "name"', '= "first_name"'), ('= "surname"', '= "last_name"'),
            ('= "id"', '= "email_addresses"'), ("stop == 'yes'", "sms_opt_out"),
        ):  # fmt: skip
            text = text.replace(old, new)
        path.write_text(text)
        config = load(path, {**platforms.environ, "ATTIO_TOKEN": fake.bearer})
        with open_bench(tmp_path, config) as bench:

            def send(events: list[dict[str, Any]]) -> None:
                for number, event in enumerate(events):
                    headers = {"idempotency-key": f"{len(fake.calls)}-{number}"}
                    request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", headers, fake.webhook(event))
                    bench.receive(config.sources["shop"].source.sign(request, utc_now()))
                bench.settle()

            def states(record_id: str) -> dict[str, State]:
                return {one.target: one.state for one in bench.store.deliveries_of(RecordKey("shop", record_id))}

            made = fake.create(**{**ADA, "phone_numbers": "+525512340001"})
            ada = str(made[0]["id"]["record_id"])
            send(made)
            everywhere = {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            assert platforms.counts() == everywhere
            held = platforms.sms.person("+525512340001")
            assert held is not None
            assert (held["firstName"], held["lastName"]) == ("Ada", "Lovelace")
            assert len(fake.made("GET", "/records/")) == 1, "an event for each attribute is one read"
            send(fake.create(fake.companies, name="Engines"))
            assert platforms.counts() == everywhere
            twin = str(fake.create(name="Ada King")[0]["id"]["record_id"])
            merged = fake.merge(ada, twin)
            survivor = str(merged[0]["id"]["record_id"])
            send(merged)
            assert platforms.counts() == everywhere, "the one that stays took over the links"
            assert set(states(survivor).values()) == {State.SYNCED}
            send(fake.change(survivor, sms_opt_out=True))
            assert states(survivor)["sms"] is State.OPTED_OUT
            assert platforms.counts() == everywhere
            assert platforms.loosened() == []
