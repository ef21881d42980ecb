"""ActiveCampaign's API as a source calls it, over real HTTP, under every reading of what is not documented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load
from bridge.demo.fakes.activecampaign import API_KEY
from bridge.errors import SourceUnavailable
from bridge.model import InboundRequest, RecordKey, Secret, State, utc_now
from bridge.outbound import Api, new_session
from bridge.pipeline import receive
from bridge.sources.activecampaign import SOURCE, ActiveCampaign, Settings
from bridge.sources.activecampaign.account import Account
from bridge.sources.base import BatchUnreadable, Listed, Read
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_activecampaign import Crm

URL = "https://bridge.example.com/hooks/crm/a-secret-token"
THEN = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
EMAIL = ("email",)


@dataclass
class One:
    """A fake account, and what calls it."""

    fake: Crm
    api: Api
    source: ActiveCampaign
    account: Account

    def read(self, *ids: str, fields: Sequence[str] = EMAIL) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def said(self, number: str, *fields: str) -> Mapping[str, Any]:
        (read,) = self.read(number, fields=fields)
        assert read.fields is not None, read.problem
        return read.fields

    def pages(self, fields: Sequence[str] = EMAIL, since: datetime | None = None) -> Iterator[Listed]:
        after: str | None = None
        while True:
            page = self.account.page(self.api, fields, after, since)
            yield page
            if page.after is None:
                return
            after = page.after

    def listed(self, since: datetime | None = None) -> list[str]:
        return [read.key.source_id for page in self.pages(since=since) for read in page.records]

    def fails(self, *ids: str) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            self.read(*(ids or ("101",)))
        assert API_KEY not in str(caught.value)
        return caught.value


@contextmanager
def account(**switches: Any) -> Iterator[One]:
    fake = Crm(**switches)
    with fake.serve() as base_url, new_session() as session:
        settings = Settings(base_url, Secret(API_KEY))
        api = Api(settings.api_base, session=session, connect_timeout_s=2, read_timeout_s=0.2)
        assert SOURCE.lister is not None
        lister = SOURCE.lister("crm", settings)
        assert isinstance(lister, Account)
        yield One(fake, api, ActiveCampaign("crm", settings), lister)


def readings(**switches: Sequence[Any]) -> pytest.MarkDecorator:
    """Test under each value of each of *switches*, one after the other."""
    chosen = [{name: value} for name, values in switches.items() for value in values]
    return pytest.mark.parametrize(
        "switches", chosen, ids=lambda one: "-".join(f"{k}={v}" for k, v in one.items())
    )


# --- reading ---------------------------------------------------------------------------------------------


@readings(**{name: Crm.SWITCHES[name] for name in ("ids", "page_cap", "beside", "empty_field_in_read")})
def test_contacts_are_read_by_their_ids_with_the_fields_that_are_named(switches: Mapping[str, Any]) -> None:
    with account(**switches) as one:
        ids = [one.fake.add(f"p{n}@example.com", updated=THEN, firstName=f"P{n}", phone="+1") for n in range(5)]
        one.fake.set_value(ids[0], "TIER", "gold")
        one.fake.set_value(ids[1], "INTERESTS", "||Bikes||Boats||")
        one.fake.set_status(ids[1], "Newsletter", 2)
        tier = next(field.id for field in one.fake.fields.values() if field.perstag == "TIER")
        fields = (
            "email",
            "first_name",
            f"field_{tier}",
            "field_interests",
            "field_none",
            "status",
            "tags",
            "list_9",
        )
        reads = one.read(*reversed(ids), "9999", ids[0], fields=fields)
        assert [read.asked.source_id for read in reads] == [*reversed(ids), "9999", ids[0]]
        assert all(read.key == read.asked for read in reads)
        assert not [read.problem for read in reads if read.problem]
        by_id = {read.key.source_id: read for read in reads}
        assert by_id["9999"].fields is None
        common = {"first_name": "P0", "email": "p0@example.com", "status": "", "list_9": ""}
        # Neither tags, which the API has no names for, nor a field that the account does not have.
        assert by_id[ids[0]].fields == {**common, f"field_{tier}": "gold", "field_interests": ""}
        assert by_id[ids[1]].fields == {
            **common,
            "first_name": "P1",
            "email": "p1@example.com",
            f"field_{tier}": "",
            "field_interests": ["Bikes", "Boats"],
            "status": "unsubscribed",
        }
        version = by_id[ids[0]].version
        assert version is not None
        assert version.occurred_at == THEN
        assert by_id[ids[1]].version > version  # type: ignore[operator]


def test_a_hundred_contacts_cost_one_call() -> None:
    with account() as one:
        ids = [one.fake.add(f"p{n}@example.com") for n in range(100)]
        assert [(read.fields or {})["email"] for read in one.read(*ids)] == [
            f"p{n}@example.com" for n in range(100)
        ]
        assert len(one.fake.calls) == 1
        assert one.read() == []
        assert len(one.fake.calls) == 1


@readings(deleted_read=Crm.SWITCHES["deleted_read"])
def test_a_deleted_contact_is_none(switches: Mapping[str, Any]) -> None:
    with account(**switches) as one:
        gone, there = one.fake.add("gone@example.com"), one.fake.add("there@example.com")
        one.fake.delete(gone)
        assert [read.fields for read in one.read(gone, there)] == [None, {"email": "there@example.com"}]
        assert [read.problem for read in one.read(gone, there)] == ["", ""]


@pytest.mark.parametrize("mark", [{"deleted": "1"}, {"anonymized": "1"}, {"email": "deleted+7@example.com"}])
def test_a_contact_that_is_a_shadow_is_none(mark: Mapping[str, str]) -> None:
    with account() as one:
        row = {"id": "7", "email": "a@example.com", "udate": "2026-09-21T09:13:20-05:00", **mark}
        one.fake.trouble(status=200, body={"contacts": [row], "fieldValues": [], "contactLists": []})
        assert one.read("7")[0].fields is None


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ({}, ""),
        ({"Newsletter": 1}, "subscribed"),
        ({"Newsletter": 2}, "unsubscribed"),
        ({"Newsletter": 1, "Product news": 2}, "subscribed"),
        ({"Newsletter": 0, "Product news": 2}, "unconfirmed"),
        ({"Newsletter": 3, "Product news": 2}, "unsubscribed"),
        ({"Newsletter": 3}, "bounced"),
    ],
)
def test_who_left_one_list_and_is_on_no_other_is_unsubscribed(statuses: Mapping[str, int], expected: str) -> None:
    with account() as one:
        ada = one.fake.add("ada@example.com")
        for name, status in statuses.items():
            one.fake.set_status(ada, name, status)
        assert one.said(ada, "status") == {"status": expected}


def test_of_two_readings_with_one_time_the_one_with_the_opt_out_counts() -> None:
    with account() as one:
        ada = one.fake.add("ada@example.com", updated=THEN)
        one.fake.set_status(ada, "Newsletter", 1)
        (before,) = one.read(ada, fields=("status",))
        one.fake.set_status(ada, "Newsletter", 2)  # which leaves the contact's own time as it is
        (after,) = one.read(ada, fields=("status",))
        assert before.version is not None
        assert after.version is not None
        assert after.version.occurred_at == before.version.occurred_at
        assert after.version > before.version


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": "7", "email": "a@example.com"}, "when the contact was last changed"),
        ({"id": "7", "udate": "0000-00-00 00:00:00"}, "when the contact was last changed"),
    ],
)
def test_an_unusable_answer_about_one_contact_says_nothing_against_the_others(row: Any, problem: str) -> None:
    with account() as one:
        good = {"id": "8", "email": "b@example.com", "udate": "2026-09-21T09:13:20-05:00"}
        one.fake.trouble(status=200, body={"contacts": [row, good], "fieldValues": [], "contactLists": []})
        one.fake.trouble(path="/contacts/7", status=200, body={"contact": row})
        bad, other = one.read("7", "8")
        assert (bad.fields, other.fields) == (None, {"email": "b@example.com"})
        assert problem in bad.problem
        one.fake.trouble(status=200, body={"contacts": []})
        one.fake.trouble(path="/contacts/7", status=200, body={"contact": {"id": "9"}})
        assert "not the contact that was asked for" in one.read("7")[0].problem
        one.fake.trouble(status=200, body={"contacts": []})
        one.fake.trouble(path="/contacts/7", status=200, body=[])
        assert "makes sense" in one.read("7")[0].problem


TROUBLE: Sequence[tuple[Mapping[str, Any], str, float]] = [
    ({"status": 401}, "(HTTP 401)", 0),
    ({"status": 403, "body": {"message": "Forbidden"}}, "(HTTP 403)", 0),
    ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls", 7),
    ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9),
    ({"status": 500, "body": "<html>"}, "(HTTP 500)", 0),
    ({"status": 400}, "(HTTP 400)", 0),
    ({"status": 301, "headers": {"Location": "http://127.0.0.1/"}}, "redirect", 0),
    ({"status": 200, "body": "<!DOCTYPE html><html>"}, "web page instead of data", 0),
    ({"status": 200, "body": {"contacts": None}}, "no list of contacts", 0),
    ({"status": 200, "body": {"contacts": [{"id": None}]}}, "without an id", 0),
    ({"status": 200, "body": []}, "makes sense", 0),
    ({"how": "drop"}, "cannot be called now", 0),
    ({"how": "slow", "seconds": 0.3}, "did not answer in time", 0),
]


@pytest.mark.parametrize(("trouble", "said", "retry_after_s"), TROUBLE)
def test_trouble_on_the_way_is_told_and_teaches_nothing(
    trouble: Mapping[str, Any], said: str, retry_after_s: float
) -> None:
    with account() as one:
        one.fake.add("ada@example.com")
        one.fake.trouble(**trouble)
        error = one.fails()
        assert said in str(error)
        assert str(error).endswith(".")
        assert error.retry_after_s == retry_after_s
        one.fake.trouble(**trouble)
        with pytest.raises(SourceUnavailable):
            one.account.page(one.api, EMAIL, None, None)


def test_trouble_that_may_be_of_the_records_asked_for_is_told_apart() -> None:
    with account() as one:
        for trouble in ({"status": 400}, {"status": 422}, {"status": 200, "body": {}}):
            one.fake.trouble(**trouble)
            assert isinstance(one.fails(), BatchUnreadable)
        for trouble in ({"status": 401}, {"status": 403}, {"status": 429}, {"status": 500}, {"status": 200}):
            one.fake.trouble(**{"body": "<html>", **trouble})
            assert not isinstance(one.fails(), BatchUnreadable)


@readings(bad_key=Crm.SWITCHES["bad_key"])
def test_a_wrong_key_is_named_in_words(switches: Mapping[str, Any]) -> None:
    with account(**switches) as one:
        one.fake.api_key = "another"
        assert "crm" in str(one.fails())


# --- listing ---------------------------------------------------------------------------------------------


@readings(page_cap=(100, 2), beside=("whole", "cut"))
def test_all_contacts_are_listed_whatever_is_deleted_between_the_pages(switches: Mapping[str, Any]) -> None:
    with account(**{"page_cap": 2, **switches}) as one:
        ids = [one.fake.add(f"p{n}@example.com", updated=THEN) for n in range(9)]
        assert one.listed() == ids
        seen, totals = [], []
        for page in one.pages():
            totals.append(page.total)
            seen += [read.key.source_id for read in page.records]
            if seen[-1:] == ids[1:2]:
                for gone in (*ids[:2], ids[4]):
                    one.fake.delete(gone)
                late = one.fake.add("late@example.com")
        assert totals[0] == 9
        assert not any(totals[1:])
        missed = {*ids, *([] if switches.get("page_cap") == 100 else [late])} - set(seen)
        assert missed <= {ids[4]}


@readings(beside=Crm.SWITCHES["beside"])
def test_nobody_is_left_out_whatever_stands_beside_the_list(switches: Mapping[str, Any]) -> None:
    with account(**switches) as one:
        ids = [one.fake.add(f"p{n}@example.com") for n in range(3)]
        for number in ids[:2]:
            one.fake.set_status(number, "Newsletter", 2)
            one.fake.set_value(number, "TIER", "gold")
        records = [read for page in one.pages(("status", "field_tier")) for read in page.records]
        gold, nothing = {"status": "unsubscribed", "field_tier": "gold"}, {"status": "", "field_tier": ""}
        assert [read.fields for read in records] == [gold, gold, nothing]


def test_a_list_can_be_gone_on_with_after_a_restart() -> None:
    with account(page_cap=2) as one:
        ids = [one.fake.add(f"p{n}@example.com") for n in range(4)]
        first = one.account.page(one.api, EMAIL, None, None)
        again = [one.account.page(one.api, EMAIL, first.after, None) for _ in range(2)]
        assert [[read.key.source_id for read in page.records] for page in (first, *again)] == [
            ids[:2],
            ids[2:],
            ids[2:],
        ]
        assert all(read.asked == read.key for read in first.records)


def test_more_contacts_than_any_search_gives_are_listed_by_keys_and_not_by_counting() -> None:
    with account() as one:
        for n in range(250):
            one.fake.add(f"p{n}@example.com")
        assert len(set(one.listed())) == 250
        assert not [call.path for call in one.fake.made("GET", "/contacts") if "offset" in call.path]


@readings(updated_after=Crm.SWITCHES["updated_after"])
@pytest.mark.parametrize("hours", range(0, 24, 5))
def test_what_changed_since_is_listed_in_whatever_time_zone_it_is_asked_for(
    switches: Mapping[str, Any], hours: int
) -> None:
    since = THEN.replace(hour=0) + timedelta(hours=hours)
    with account(**switches) as one:
        one.fake.add("old@example.com", updated=since - timedelta(days=5))
        fresh = [one.fake.add(f"p{n}@example.com", updated=since + timedelta(seconds=n)) for n in range(3)]
        listed = one.listed(since)
        assert set(fresh) <= set(listed)
        assert len(listed) == 3


@readings(order=("ignored",), id_greater=("ignored",))
def test_a_list_in_another_order_is_refused_rather_than_half_read(switches: Mapping[str, Any]) -> None:
    with account(page_cap=2, **switches) as one:
        for n in range(4):
            one.fake.add(f"p{n}@example.com")
        with pytest.raises(SourceUnavailable, match="growing ids"):
            one.listed()


# --- webhooks --------------------------------------------------------------------------------------------


@readings(event_list=Crm.SWITCHES["event_list"])
def test_registering_twice_makes_one_webhook_and_the_api_is_no_source_of_it(switches: Mapping[str, Any]) -> None:
    with account(**switches) as one:
        other = {"name": "x", "url": "https://elsewhere.example", "events": ["update"], "sources": ["api"]}
        one.fake.webhooks["7"] = other
        first = one.account.register(one.api, URL, EMAIL, THEN)
        assert "Created" in first.done[0]
        made = dict(one.fake.webhooks)
        second = one.account.register(one.api, URL, EMAIL, THEN)
        assert "already" in second.done[0]
        assert one.fake.webhooks == made
        assert len(made) == 2
        assert made["7"] == other
        (ours,) = (row for row in made.values() if row["url"] == URL)
        assert ours["sources"] == ["public", "admin", "system"]
        assert {"subscribe", "update", "unsubscribe"} <= set(ours["events"])
        assert ("sms_unsub" in ours["events"]) == (switches["event_list"] != "no_sms")
        assert "token" not in " ".join([*first.done, *second.done])
        assert not first.secrets


@pytest.mark.parametrize(
    "change", [{"sources": ["public", "admin", "system", "api"]}, {"events": ["update"]}, {"listid": "3"}]
)
def test_a_webhook_that_is_not_as_it_should_be_is_put_right(change: Mapping[str, Any]) -> None:
    with account() as one:
        one.account.register(one.api, URL, EMAIL, THEN)
        (number,) = one.fake.webhooks
        right = dict(one.fake.webhooks[number])
        one.fake.webhooks[number] |= change
        assert "Changed" in one.account.register(one.api, URL, EMAIL, THEN).done[0]
        assert one.fake.webhooks[number] == right


def test_second_webhooks_are_removed_and_all_of_ours_when_asked_to() -> None:
    with account(page_cap=2) as one:
        for number in ("7", "8", "9"):
            url = "https://elsewhere.example" if number == "8" else URL
            events = ["subscribe", "update"]
            one.fake.webhooks[number] = {"name": "x", "url": url, "events": events, "sources": ["admin"]}
        done = one.account.register(one.api, URL, EMAIL, THEN).done
        assert [said.split()[0] for said in done] == ["Changed", "Removed"]
        assert set(one.fake.webhooks) == {"7", "8"}
        assert len(one.account.remove(one.api, URL)) == 1
        assert set(one.fake.webhooks) == {"8"}
        assert one.account.remove(one.api, URL) == []


def test_trouble_while_registering_is_told() -> None:
    with account() as one:
        for status in (401, 403, 429, 500):
            one.fake.trouble(method="POST", status=status)
            with pytest.raises(SourceUnavailable, match=str(status)):
                one.account.register(one.api, URL, EMAIL, THEN)
        assert one.fake.webhooks == {}


# --- opting out ------------------------------------------------------------------------------------------


def test_an_opt_out_leaves_every_list_that_the_person_is_on() -> None:
    with account() as one:
        ada = one.fake.add("ada@example.com")
        one.fake.set_status(ada, "Newsletter", 1)
        one.fake.set_status(ada, "Product news", 0)
        for _ in range(2):
            one.account.opt_out(one.api, ada, "status")
            assert one.fake.opted_out(ada)
        assert one.fake.loosened == []
        assert one.said(ada, "status") == {"status": "unsubscribed"}
        assert len(one.fake.made("POST", "/contactLists")) == 2


def test_an_opt_out_of_one_list_holds_for_who_was_never_on_it() -> None:
    with account() as one:
        ada = one.fake.add("ada@example.com")
        number = next(number for number, name in one.fake.lists.items() if name == "Newsletter")
        one.account.opt_out(one.api, ada, f"list_{number}")
        assert one.said(ada, f"list_{number}") == {f"list_{number}": "unsubscribed"}


@pytest.mark.parametrize(
    ("type_", "options", "stored"),
    [
        ("text", {}, "true"),
        ("dropdown", {"n": "No", "y": "Yes"}, "y"),
        ("radio", {"TRUE": "Stop"}, "TRUE"),
        ("checkbox", {"Yes": "Yes"}, "||Yes||"),
    ],
)
def test_an_opt_out_is_written_as_the_field_takes_it(type_: str, options: Mapping[str, str], stored: str) -> None:
    with account() as one:
        ada = one.fake.add("ada@example.com")
        number = one.fake.add_field("STOP", "Stop", type_, options)
        for name in (f"field_{number}", "field_stop"):
            one.account.opt_out(one.api, ada, name)
            assert one.fake.person("ada@example.com")["fields"] == {"STOP": stored}


@pytest.mark.parametrize(
    "name", ["email", "field_none", "field_renewal", "field_tier", "list_x", "list_", "sms_status"]
)
def test_an_opt_out_goes_nowhere_that_cannot_say_so(name: str) -> None:
    with account() as one:
        ada = one.fake.add("ada@example.com")
        with pytest.raises(SourceUnavailable, match="can say that a person opted out"):
            one.account.opt_out(one.api, ada, name)
        assert {call.method for call in one.fake.calls} <= {"GET"}


def test_an_opt_out_that_is_refused_is_told() -> None:
    with account() as one:
        ada = one.fake.add("ada@example.com")
        one.fake.trouble(method="POST", status=403)
        with pytest.raises(SourceUnavailable, match="403"):
            one.account.opt_out(one.api, ada, "list_3")


# --- the whole way ---------------------------------------------------------------------------------------

TARGETS = "[targets.marketing]"
SECTION = """
[sources.shop]
type = "activecampaign"
base_url = "{base_url}"
api_key = "$CRM_KEY"
"""


def test_a_webhook_is_read_and_reaches_all_targets_and_leaving_a_list_opts_out(tmp_path: Path) -> None:
    crm = Crm()
    with crm.serve() as base_url, serve_platforms() as platforms:
        path = platforms.write_config(tmp_path)
        head, _, rest = path.read_text().partition("[sources.shop]")
        text = head + SECTION.format(base_url=base_url) + TARGETS + rest.partition(TARGETS)[2]
        for theirs, ours in (
            ("stop == 'yes'", "status == 'unsubscribed'"),
            ('"name"', '"first_name"'),
            ('"surname"', '"last_name"'),
        ):
            text = text.replace(theirs, ours)
        path.write_text(text)
        with open_bench(tmp_path, load(path, {**platforms.environ, "CRM_KEY": API_KEY})) as bench:

            def send(body: bytes) -> None:
                request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop/x", {}, body)
                bench.store.receive([receive(bench.config.sources["shop"], request, utc_now())])
                bench.settle()

            ada = crm.add("ada@example.com", firstName="Ada", lastName="King", phone="+525512340001")
            crm.set_status(ada, "Newsletter", 1)
            send(crm.webhook("subscribe", ada))
            assert platforms.counts() == dict.fromkeys(platforms.counts(), 1)
            assert platforms.marketing.person("ada@example.com")["firstName"] == "Ada"
            crm.set_status(ada, "Newsletter", 2)
            # Of the form itself nothing but the address and the list is told: no field is taken for cleared.
            send(crm.webhook("unsubscribe", ada, list="3"))
            deliveries = bench.store.deliveries_of(RecordKey("shop", ada))
            assert {delivery.state for delivery in deliveries} == {State.OPTED_OUT}
            assert platforms.marketing.person("ada@example.com")["lastName"] == "King"
            assert platforms.loosened() == []
