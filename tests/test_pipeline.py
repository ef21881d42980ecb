"""The whole way, from a signed HubSpot webhook to a platform, with everything that can go wrong on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import abort

from bridge import pipeline
from bridge.config import load
from bridge.database import Database
from bridge.demo.fakes.hubspot import HubSpot, WebhookEvent
from bridge.demo.fakes.sakari import Sakari
from bridge.errors import StoreUnavailable, Unstorable
from bridge.expressions import Expression
from bridge.model import Delivery, InboundRequest, Outcome, RecordKey, State, utc_now
from bridge.outbound import Api
from bridge.rules import Route
from bridge.store.protocol import Filter
from bridge.worker import Worker
from tests.databases import readable, sqlite_is_enough
from tests.platforms import Bench, OnTheSpot, open_bench
from tests.web_site import open_site

SECRET = "3f6f1f2e-8c1b-4a6e-9d0e-2b7c5a9e4d11"
URL = "https://bridge.example.com/hooks/hubspot"

TOML = """
[bridge]
public_url = "https://bridge.example.com"
settle_s = 60

[sources.hubspot]
type = "hubspot"
secrets = ["$HUBSPOT_SECRET"]
{token}
api_base = "{hubspot}"

[targets.sms]
type = "sakari"
account_id = "{account}"
client_id = "$SAKARI_ID"
client_secret = "$SAKARI_SECRET"
api_base = "{sms}"
rate_per_s = 1000
burst = 1000

[[routes]]
source = "hubspot"
target = "sms"
when = "lifecyclestage != 'subscriber'"
on_delete = "{on_delete}"
opt_out = "hs_email_optout == 'true'"
[routes.fields]
mobile = "mobilephone or phone | e164"
firstName = "firstname"
email = "email"
"""

ANA = {
    "email": "ana@example.com",
    "phone": "+525512345678",
    "firstname": "Ana",
    "lifecyclestage": "customer",
    "hs_email_optout": "",
    "mobilephone": "",
}


@dataclass
class World:
    bench: Bench
    crm: HubSpot
    sms: Sakari
    ahead: timedelta = timedelta()

    def clock(self) -> datetime:
        return utc_now() + self.ahead

    def send(self, events: list[WebhookEvent] | bytes, *, settle: bool = True) -> None:
        body = events if isinstance(events, bytes) else self.crm.webhook(events)
        connection = self.bench.config.sources["hubspot"]
        request = connection.source.sign(
            InboundRequest("POST", URL, {"content-type": "application/json"}, body), utc_now()
        )
        self.bench.store.receive([pipeline.receive(connection, request, utc_now())])
        if settle:
            self.bench.settle()

    def create(self, **properties: str) -> str:
        events = self.crm.create(**{**ANA, **properties})
        self.send(events)
        return str(events[0]["objectId"])

    def change(self, source_id: str, **properties: str) -> None:
        self.crm_time_passes()
        self.send(self.crm.change(source_id, **properties))

    def crm_time_passes(self) -> None:
        """Two edits within the same millisecond would be a tie."""
        self.ahead += timedelta(milliseconds=5)

    def delivery(self, source_id: str) -> Delivery:
        [delivery] = self.bench.store.deliveries_of(RecordKey("hubspot", source_id))
        return delivery

    def step(self) -> None:
        """Run every lane once."""
        for lane in self.bench.worker.lanes:
            self.bench.worker.run(lane)

    def at_sakari(self, phone: str = "+525512345678") -> dict[str, Any]:
        """Return what Sakari holds of the person with this number."""
        held = self.sms.person(phone)
        assert held is not None
        return held

    def outcome(self) -> tuple[Outcome, str]:
        """Return what became of the newest inbound."""
        inbound = self.bench.store.inbound_page(Filter(), None, 1).items[0]
        return inbound.outcome, inbound.reason


@pytest.fixture
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what a test asks for by ``@pytest.mark.parametrize("how", …)``."""
    found: dict[str, Any] = getattr(request, "param", {})
    return found


@pytest.fixture
def world(tmp_path: Path, database: Database, how: dict[str, Any]) -> Iterator[World]:
    crm, sms = HubSpot(), Sakari()
    with crm.serve() as crm_url, sms.serve() as sms_url:
        path = tmp_path / "bridge.toml"
        token = 'token = "$HUBSPOT_TOKEN"' if how.get("token", True) else ""
        on_delete = how.get("on_delete", "remove")
        path.write_text(
            TOML.format(token=token, hubspot=crm_url, sms=sms_url, account=sms.account, on_delete=on_delete)
        )
        environ = {
            "HUBSPOT_SECRET": SECRET,
            "HUBSPOT_TOKEN": crm.bearer,
            "SAKARI_ID": sms.client_id,
            "SAKARI_SECRET": sms.client_secret,
        }
        with open_bench(tmp_path, load(path, environ), database) as bench:
            world = World(bench, crm, sms)
            crm.clock = world.clock
            yield world


def without_token(**more: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("how", [{"token": False, **more}], indirect=True)


def keeping() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("how", [{"on_delete": "keep"}], indirect=True)


# --- reading from the CRM ---


def test_a_thin_event_is_read_and_delivered_with_one_push(world: World) -> None:
    source_id = world.create()
    assert world.delivery(source_id).state is State.SYNCED
    held = world.at_sakari()
    assert (held["firstName"], held["email"]) == ("Ana", "ana@example.com")
    [read] = world.crm.made("POST", "/batch/read")
    rules_read = {"email", "firstname", "hs_email_optout", "lifecyclestage", "mobilephone", "phone"}
    assert set(read.json["properties"]) == rules_read
    assert len(world.sms.made("POST", "/contacts")) == 1


@sqlite_is_enough
def test_many_thin_events_share_reads(world: World) -> None:
    events = []
    for n in range(104):
        events += world.crm.create(**{**ANA, "phone": f"+52551234{n:04d}", "email": f"p{n}@example.com"})[:1]
    world.send(events[:100], settle=False)
    world.send(events[100:])
    assert [len(call.json["inputs"]) for call in world.crm.made("POST", "/batch/read")] == [100, 4]
    assert len(world.sms.contacts) == 104


def test_a_property_event_of_a_known_contact_needs_no_read(world: World) -> None:
    source_id = world.create()
    world.change(source_id, firstname="Anita")
    assert world.at_sakari()["firstName"] == "Anita"
    assert len(world.crm.made("POST", "/batch/read")) == 1


def test_while_the_crm_cannot_be_read_it_waits_and_says_so(world: World) -> None:
    trouble = world.crm.trouble(status=503, times=99)
    events = world.crm.create(**ANA)
    world.send(events, settle=False)
    world.bench.worker.run("process:hubspot")
    delivery = world.delivery(str(events[0]["objectId"]))
    assert delivery.state is State.WAITING
    assert "Waiting to be read from the CRM" in delivery.reason
    assert world.sms.contacts == {}
    trouble.times = 0
    world.bench.settle()
    assert world.delivery(str(events[0]["objectId"])).state is State.SYNCED


@sqlite_is_enough
def test_a_contact_that_spoils_the_read_of_a_batch_waits_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    for n in range(20):
        events += world.crm.create(**{**ANA, "phone": f"+52551234{n:04d}", "email": f"p{n}@example.com"})[:1]
    ids = [str(event["objectId"]) for event in events]
    resolve = world.crm._resolve

    def choke(source_id: str) -> Any:
        return abort(400) if source_id in {ids[3], ids[4]} else resolve(source_id)

    with monkeypatch.context() as patched:
        patched.setattr(world.crm, "_resolve", choke)
        world.send(events, settle=False)
        world.bench.worker.run("process:hubspot")
        for source_id in ids:
            stuck = "Waiting to be read from the CRM" in world.delivery(source_id).reason
            assert stuck == (source_id in {ids[3], ids[4]})
        assert "(HTTP 400)" in world.delivery(ids[3]).reason
        assert len(world.crm.made("POST", "/batch/read")) < 20
    world.bench.settle()
    assert {world.delivery(source_id).state for source_id in ids} == {State.SYNCED}


@sqlite_is_enough
def test_an_unusable_answer_lets_its_contact_alone_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    events = world.crm.create(**ANA)[:1]
    events += world.crm.create(**{**ANA, "phone": "+525512340001", "email": "b@example.com"})[:1]
    bad, good = (str(event["objectId"]) for event in events)
    shown = world.crm._shown

    def timeless(record: Any, names: Any) -> dict[str, Any]:
        return {**shown(record, names), **({"updatedAt": "?"} if record.id == bad else {})}

    with monkeypatch.context() as patched:
        patched.setattr(world.crm, "_shown", timeless)
        world.send(events, settle=False)
        world.step()
        assert "when the contact was last changed" in world.delivery(bad).reason
        assert world.delivery(good).state is State.SYNCED
    world.bench.settle()
    assert world.delivery(bad).state is State.SYNCED


@sqlite_is_enough
def test_a_crm_that_answers_every_batch_with_nonsense_is_not_asked_without_end(world: World) -> None:
    events = []
    for n in range(100):
        events += world.crm.create(**{**ANA, "phone": f"+52551234{n:04d}", "email": f"p{n}@example.com"})[:1]
    trouble = world.crm.trouble(status=200, body="<html>", times=10_000)
    world.send(events, settle=False)
    world.bench.worker.run("process:hubspot")
    assert len(world.crm.made("POST", "/batch/read")) == 32
    trouble.times = 0
    world.bench.settle()
    assert len(world.sms.contacts) == 100


def test_a_record_from_the_future_owns_no_field_until_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = world.crm._shown

    def ahead(record: Any, names: Any) -> dict[str, Any]:
        return {**shown(record, names), "updatedAt": "2099-01-01T00:00:00Z"}

    with monkeypatch.context() as patched:
        patched.setattr(world.crm, "_shown", ahead)
        source_id = world.create()
    world.ahead += timedelta(seconds=1)
    world.change(source_id, firstname="Anita")
    assert world.at_sakari()["firstName"] == "Anita"


def test_an_opt_out_does_not_wait_for_the_crm(world: World) -> None:
    source_id = world.create()
    world.crm.trouble(status=503, times=99)
    world.change(source_id, hs_email_optout="true")
    assert world.at_sakari()["opted_out"]
    assert world.delivery(source_id).state is State.OPTED_OUT


def test_the_made_up_id_of_a_test_event_is_no_alarm(world: World) -> None:
    [event] = world.crm.create(**ANA)[:1]
    world.send([{**event, "objectId": 123, "changeFlag": "NEW"}])
    delivery = world.delivery("123")
    assert delivery.state is State.WAITING
    assert "does not know this record" in delivery.reason


@without_token()
def test_without_a_token_it_lives_from_property_events_and_waits_for_an_identity(world: World) -> None:
    events = world.crm.create(**ANA)
    source_id = str(events[0]["objectId"])
    by_name = {event.get("propertyName"): event for event in events}
    world.send([events[0], by_name["firstname"], by_name["lifecyclestage"]])
    delivery = world.delivery(source_id)
    assert delivery.state is State.WAITING
    assert "mobile" in delivery.reason
    world.send([by_name["phone"]])
    assert world.delivery(source_id).state is State.SYNCED
    assert world.at_sakari()["firstName"] == "Ana"
    assert world.crm.calls == []


# --- life and death ---


def test_a_deletion_removes_and_a_restore_brings_back(world: World) -> None:
    source_id = world.create()
    world.crm_time_passes()
    world.send(world.crm.delete(source_id))
    assert world.delivery(source_id).state is State.REMOVED
    assert world.sms.contacts == {}
    world.crm_time_passes()
    world.send(world.crm.restore(source_id))
    assert world.delivery(source_id).state is State.SYNCED
    assert len(world.sms.contacts) == 1


@keeping()
def test_a_deletion_leaves_the_target_alone_where_the_route_keeps(world: World) -> None:
    source_id = world.create()
    world.crm_time_passes()
    world.send(world.crm.delete(source_id))
    assert world.delivery(source_id).state is State.WAITING
    assert "keep" in world.delivery(source_id).reason
    assert len(world.sms.contacts) == 1


def test_an_erased_person_leaves_no_trace(world: World, database: Database) -> None:
    source_id = world.create(firstname="Erasmus")
    world.crm_time_passes()
    world.send(world.crm.erase(source_id))
    world.crm_time_passes()
    late = replace_event(world.crm, source_id, propertyName="firstname", propertyValue="Erasmus")
    world.send([late])
    assert world.sms.contacts == {}
    assert world.delivery(source_id).accepted is None
    key = RecordKey("hubspot", source_id)
    assert world.bench.store.contacts([key])[key].fields == {}
    stored = [
        world.bench.store.inbound(one.id) for one in world.bench.store.inbound_page(Filter(), None, 50).items
    ]
    assert [one.body for one in stored if one] == [None] * 3
    assert all(entry.detail is None for entry in world.bench.store.audit_page(Filter(), None, 200).items)
    world.bench.store.close()
    stored_now = readable(database)
    for trace in (b"Erasmus", b"ana@example.com", b"525512345678"):
        assert trace not in stored_now


MERGED_ERASED = [
    "first second merge survivor erase",
    "first second erase merge survivor",
    "erase survivor merge second first",
    "survivor second first+merge+erase",
]


@pytest.mark.parametrize("erased", ["first", "second", "survivor"])
@pytest.mark.parametrize("order", MERGED_ERASED)
@pytest.mark.parametrize(
    ("fresh", "how"), [("sqlite", {}), ("sqlite", {"token": False}), ("postgres", {})], indirect=True
)
def test_erasing_one_record_of_a_merged_person_leaves_no_trace_of_any(
    world: World, database: Database, order: str, erased: str
) -> None:
    events = {
        "first": world.crm.create(**{**ANA, "firstname": "Erasmus"}),
        "second": world.crm.create(
            email="bea@example.com", phone="+525587654321", firstname="Erasmina", lifecyclestage="customer"
        ),
    }
    ids = {name: str(made[0]["objectId"]) for name, made in events.items()}
    if order.startswith("first second"):  # both are known, and in the target, before anything is merged
        world.send(events["first"])
        world.send(events["second"])
        assert len(world.sms.contacts) == 2
    world.crm_time_passes()
    *made, events["merge"] = [[event] for event in world.crm.merge(ids["first"], ids["second"])]
    ids["survivor"] = str(events["merge"][0]["newObjectId"])
    world.crm_time_passes()
    events["survivor"] = [*made[0], *world.crm.change(ids["survivor"], email="survivor@example.com")]
    world.crm_time_passes()
    events["erase"] = world.crm.erase(ids[erased])
    for body in order.removeprefix("first second ").split():
        world.send([event for name in body.split("+") for event in events[name]])

    keys = {RecordKey("hubspot", one) for one in ids.values()}
    known = world.bench.store.contacts(keys)
    assert known.keys() == keys
    assert len({contact.erased for contact in known.values()} - {None}) == 1
    assert all(not contact.fields for contact in known.values())
    assert world.sms.contacts == {}
    deliveries = [world.delivery(one) for one in ids.values()]
    assert {delivery.state for delivery in deliveries} == {State.REMOVED}
    assert all(delivery.desired and not delivery.desired.fields for delivery in deliveries)
    assert [delivery.accepted for delivery in deliveries] == [None] * 3
    inbounds = world.bench.store.inbound_page(Filter(), None, 50).items
    stored = [world.bench.store.inbound(one.id) for one in inbounds]
    assert {one.body for one in stored if one} == {None}
    audit = world.bench.store.audit_page(Filter(), None, 200).items
    assert all(entry.detail is None for entry in audit)
    told = {one.source_id for one in audit if one.kind == "contact" and "everything stored" in one.reason}
    assert told == set(ids.values())
    world.bench.store.close()
    stored_now = readable(database)
    for trace in (b"Erasm", b"ana@", b"bea@", b"survivor@", b"525512345678", b"525587654321"):
        assert trace not in stored_now


@keeping()
def test_all_records_of_an_erased_person_say_that_the_target_still_holds_them(world: World) -> None:
    first, second = world.create(), world.create(phone="+525587654321", email="ana.other@example.com")
    world.crm_time_passes()
    events = world.crm.merge(first, second)
    world.send(events)
    world.crm_time_passes()
    world.send(world.crm.erase(first))
    for source_id in (first, second, str(events[-1]["newObjectId"])):
        delivery = world.delivery(source_id)
        assert (delivery.state, delivery.desired, delivery.accepted) == (State.WAITING, None, None)
        assert "a person must remove the contact there" in delivery.reason


def replace_event(crm: HubSpot, source_id: str, **more: Any) -> WebhookEvent:
    """Return a property event that HubSpot sent before it knew better."""
    [event] = crm.create(email="other@example.com")[:1]
    return {**event, "subscriptionType": "contact.propertyChange", "objectId": int(source_id), **more}


def test_a_merge_carries_on_with_the_same_target_contact(world: World) -> None:
    first = world.create()
    second = world.create(phone="+525587654321", email="ana.other@example.com")
    before = world.delivery(first).target_id
    world.crm_time_passes()
    events = world.crm.merge(first, second)
    world.send(events)
    survivor = str(events[-1]["newObjectId"])
    assert world.delivery(survivor).target_id == before
    assert world.delivery(survivor).state is State.SYNCED
    assert world.delivery(first).state is State.REMOVED
    # The route removes what is gone from the CRM; the merged-away contact's own target contact goes.
    assert [contact["mobile"]["number"] for contact in world.sms.contacts.values()] == [ANA["phone"]]


def test_a_merge_that_only_the_reading_reveals(world: World) -> None:
    first, second = world.create(), world.create(phone="+525587654321", email="ana.other@example.com")
    world.crm_time_passes()
    world.crm.merge(first, second)
    world.send(
        [replace_event(world.crm, first, propertyName="firstname", propertyValue="REDACTED", isSensitive=True)]
    )
    key = RecordKey("hubspot", first)
    survivor = world.bench.store.contacts([key])[key].merged_into
    assert survivor is not None
    assert world.delivery(survivor).state is State.SYNCED
    assert world.delivery(survivor).target_id is not None


@without_token()
def test_an_opt_out_of_a_merged_record_counts_for_its_survivor(world: World) -> None:
    first, second = world.create(), world.create(phone="+525587654321", hs_email_optout="true")
    world.crm_time_passes()
    events = world.crm.merge(first, second)
    world.send(events)
    survivor = str(events[-1]["newObjectId"])
    desired = world.delivery(survivor).desired
    assert desired is not None
    assert desired.opt_out


# --- what must not happen ---


def test_another_account_behind_the_same_url_is_ignored(world: World) -> None:
    source_id = world.create()
    foreign = [{**event, "portalId": 99} for event in world.crm.change(source_id, firstname="Eve")]
    world.send(foreign)
    assert world.outcome() == (
        Outcome.IGNORED,
        "It is from another CRM account than the one this source was first heard from.",
    )
    assert world.at_sakari()["firstName"] == "Ana"
    [told] = world.bench.store.audit_page(Filter(kind="inbound"), None, 10).items
    assert (told.outcome, told.reason) == world.outcome()


def test_a_condition_that_turns_false_stops_updates_but_not_an_opt_out(world: World) -> None:
    source_id = world.create()
    world.change(source_id, lifecyclestage="subscriber")
    assert world.delivery(source_id).state is State.WAITING
    world.change(source_id, firstname="Anita")
    assert world.at_sakari()["firstName"] == "Ana"
    world.change(source_id, hs_email_optout="true")
    assert world.at_sakari()["opted_out"]


def test_a_yes_of_the_crm_does_not_lift_the_targets_no(world: World) -> None:
    source_id = world.create()
    world.change(source_id, hs_email_optout="true")
    world.change(source_id, hs_email_optout="false")
    assert world.delivery(source_id).state is State.OPTED_OUT
    assert world.at_sakari()["opted_out"]
    assert world.sms.loosened() == []


def test_clearing_the_opt_out_is_no_consent(world: World) -> None:
    source_id = world.create(hs_email_optout="true")
    assert world.delivery(source_id).state is State.OPTED_OUT
    world.change(source_id, hs_email_optout="")
    assert world.delivery(source_id).state is State.OPTED_OUT
    assert world.sms.contacts == {}


def test_two_crm_contacts_with_one_number_are_a_persons_decision(world: World) -> None:
    first = world.create()
    second = world.create(email="bea@example.com", firstname="Bea")
    assert world.delivery(first).state is State.SYNCED
    assert world.delivery(second).state is State.AMBIGUOUS
    assert world.at_sakari()["firstName"] == "Ana"


def test_a_bad_phone_is_left_out_with_the_reason(world: World) -> None:
    source_id = world.create(phone="call me")
    delivery = world.delivery(source_id)
    assert delivery.state is State.WAITING
    assert "mobile" in delivery.left_out
    assert "call me" not in delivery.reason


# --- trouble ---


def test_a_create_without_an_answer_is_settled_by_a_search(world: World) -> None:
    world.sms.trouble(how="drop_after", method="POST", path="/contacts")
    source_id = world.create()
    assert world.delivery(source_id).state is State.SYNCED
    assert len(world.sms.contacts) == 1
    assert len(world.sms.made("POST", "/contacts")) == 1


def test_a_create_in_doubt_is_timed_by_the_clock_that_all_machines_share(world: World) -> None:
    world.bench.ahead[0] = timedelta(hours=1)  # what this machine's own clock is late by
    world.sms.trouble(how="drop_after", method="POST", path="/contacts")
    events = world.crm.create(**ANA)
    world.send(events, settle=False)
    world.step()
    delivery = world.delivery(str(events[0]["objectId"]))
    for moment in (delivery.unsure_since, delivery.updated_at, delivery.due_at):
        assert moment is not None
        assert abs(moment - world.bench.now()) < timedelta(minutes=10)


def test_a_write_whose_answer_was_lost_is_not_believed_when_the_crm_goes_back(world: World) -> None:
    source_id = world.create()
    trouble = world.sms.trouble(how="drop_after", method="PUT", path="/contacts")
    world.crm_time_passes()
    world.send(world.crm.change(source_id, firstname="Beth"), settle=False)
    world.step()
    assert trouble.times == 0
    assert world.at_sakari()["firstName"] == "Beth"
    assert world.delivery(source_id).state is State.RETRYING
    world.change(source_id, firstname="Ana")
    assert world.delivery(source_id).state is State.SYNCED
    assert world.at_sakari()["firstName"] == "Ana"


def test_a_removal_whose_answer_was_lost_is_not_believed_when_the_contact_returns(world: World) -> None:
    source_id = world.create()
    world.sms.trouble(how="drop_after", method="DELETE", path="/contacts")
    world.crm_time_passes()
    world.send(world.crm.delete(source_id), settle=False)
    world.step()
    assert world.sms.contacts == {}
    world.crm_time_passes()
    world.send(world.crm.restore(source_id))
    assert world.delivery(source_id).state is State.SYNCED
    assert world.at_sakari()["firstName"] == "Ana"


def test_a_create_without_an_answer_is_found_by_the_number_it_was_sent_with(world: World) -> None:
    world.sms.trouble(how="drop_after", method="POST", path="/contacts")
    events = world.crm.create(**ANA)
    world.send(events, settle=False)
    world.step()
    source_id = str(events[0]["objectId"])
    assert len(world.sms.contacts) == 1
    world.change(source_id, phone="+525587654321")
    assert world.delivery(source_id).state is State.SYNCED
    assert [contact["mobile"]["number"] for contact in world.sms.contacts.values()] == ["+525587654321"]


def test_a_create_without_an_answer_is_removed_when_the_contact_is_deleted(world: World) -> None:
    world.sms.trouble(how="drop_after", method="POST", path="/contacts")
    events = world.crm.create(**ANA)
    world.send(events, settle=False)
    world.step()
    assert len(world.sms.contacts) == 1
    world.crm_time_passes()
    world.send(world.crm.delete(str(events[0]["objectId"])))
    assert world.sms.contacts == {}
    assert world.delivery(str(events[0]["objectId"])).state is State.REMOVED


def test_an_opt_out_that_can_no_longer_be_read_stays(world: World) -> None:
    source_id = world.create()
    world.bench.store.pause("sms", "maintenance", "ops", utc_now())
    world.change(source_id, hs_email_optout="true")
    unclear = Expression.compile("hs_email_optout | boolean", condition=True)
    config = world.bench.config
    routes = tuple(replace(route, opt_out=unclear) for route in config.routes)
    world.bench.worker.config = replace(config, routes=routes)
    world.change(source_id, hs_email_optout="perhaps")
    world.bench.store.resume("sms", "ops", utc_now())
    world.bench.settle()
    assert world.at_sakari()["opted_out"]
    assert world.delivery(source_id).state is State.OPTED_OUT


def test_an_opt_out_does_not_wait_for_a_back_off(world: World) -> None:
    source_id = world.create()
    trouble = world.sms.trouble(status=503, times=99, headers={"Retry-After": "900"})
    world.crm_time_passes()
    world.send(world.crm.change(source_id, firstname="Anita"), settle=False)
    world.step()
    assert world.delivery(source_id).state is State.RETRYING
    trouble.times = 0
    world.crm_time_passes()
    world.send(world.crm.change(source_id, hs_email_optout="true"), settle=False)
    world.step()
    assert world.at_sakari()["opted_out"]


def test_what_a_person_paused_no_probe_opens(world: World) -> None:
    store = world.bench.store
    store.hold("sms", "The key is refused.", utc_now(), utc_now())
    status = store.target_status("sms")
    store.pause("sms", "maintenance", "ops", utc_now())  # while the probe is under way
    connection = world.bench.config.targets["sms"]
    pipeline.probe(connection, Api(connection.base_url), store, status, utc_now())
    assert store.target_status("sms").mode == "paused"


def test_an_outcome_that_could_not_be_stored_is_found_out_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = world.bench.store
    finish, full = store.finish_and_claim, [True]

    def finish_or_fail(*arguments: Any) -> tuple[Delivery, Delivery | None]:
        if full.pop() if full else False:
            raise StoreUnavailable("The disk is full.")
        return finish(*arguments)

    monkeypatch.setattr(store, "finish_and_claim", finish_or_fail)
    events = world.crm.create(**ANA)
    with pytest.raises(StoreUnavailable):
        world.send(events)
    assert world.delivery(str(events[0]["objectId"])).state is State.SENDING
    world.bench.worker.wake_due()
    for lane in world.bench.worker.lanes:
        world.bench.worker.run(lane)
    assert world.delivery(str(events[0]["objectId"])).state is State.SYNCED
    assert len(world.sms.contacts) == 1


def test_an_outcome_that_the_database_refuses_ends_its_delivery_and_no_lane(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = world.bench.store
    finish = store.finish_and_claim

    def finish_or_refuse(*arguments: Any) -> tuple[Delivery, Delivery | None]:
        if arguments[1].key.source_id == first:
            raise Unstorable("The database refuses what bridge asks for (DATATYPE_MISMATCH): a bug of bridge.")
        return finish(*arguments)

    monkeypatch.setattr(store, "finish_and_claim", finish_or_refuse)
    events = world.crm.create(**ANA)
    first = str(events[0]["objectId"])
    world.send(events, settle=False)
    world.create(email="eva@example.com", phone="+525512345679")
    kept = world.delivery(first)
    assert kept.state is State.FAILED
    assert "cannot be stored" in kept.reason
    assert len(world.sms.contacts) == 2
    [entry] = store.audit_page(Filter(source_id=first, kind="delivery", error="nonsense"), None, 10).items
    assert entry.attempt == 1


def test_refused_credentials_hold_the_target_until_they_work(world: World) -> None:
    trouble = world.sms.trouble(status=403, body={"success": False}, times=99)
    events = world.crm.create(**ANA)
    world.send(events, settle=False)
    world.bench.worker.run("process:hubspot")
    for lane in range(world.bench.config.targets["sms"].lanes):
        world.bench.worker.run(f"deliver:sms:{lane}")
    source_id = str(events[0]["objectId"])
    assert world.delivery(source_id).state is State.HELD
    assert world.bench.store.target_status("sms").mode == "held"
    assert "Bridge tries again by itself" in world.delivery(source_id).reason
    world.change(source_id, firstname="Anita")
    assert world.delivery(source_id).state is State.HELD
    trouble.times = 0
    world.bench.ahead[0] += timedelta(minutes=5)
    world.bench.worker.run("deliver:sms:0")
    world.bench.settle()
    assert world.delivery(source_id).state is State.SYNCED
    assert world.at_sakari()["firstName"] == "Anita"


def test_a_platform_that_is_down_is_retried_and_another_state_replaces_the_old(world: World) -> None:
    trouble = world.sms.trouble(status=500, times=3)
    source_id = world.create()
    assert trouble.times == 0
    assert world.delivery(source_id).state is State.SYNCED


def test_a_platform_that_talks_nonsense_is_given_up_with_the_reason(world: World) -> None:
    trouble = world.sms.trouble(status=200, body="<html>", times=10_000)
    source_id = world.create()
    delivery = world.delivery(source_id)
    assert (delivery.state, delivery.error) == (State.FAILED, "nonsense")
    assert "8 tries" in delivery.reason
    trouble.times = 0
    world.bench.store.replay(utc_now(), "a person", keys=[RecordKey("hubspot", source_id)])
    world.bench.settle()
    assert world.delivery(source_id).state is State.SYNCED


def test_a_paused_target_takes_nothing_until_it_is_resumed(world: World) -> None:
    world.bench.store.pause("sms", "maintenance", "ops", utc_now())
    source_id = world.create()
    assert world.delivery(source_id).state is State.HELD
    assert world.sms.calls == []
    world.bench.store.resume("sms", "ops", utc_now())
    world.bench.settle()
    assert world.delivery(source_id).state is State.SYNCED


def test_what_is_genuine_but_makes_no_sense_is_kept_and_can_be_processed_again(world: World) -> None:
    world.send(b'{"not": "an array of events"}')
    outcome, reason = world.outcome()
    assert outcome is Outcome.UNREADABLE
    assert reason
    [inbound] = world.bench.store.inbound_page(Filter(outcome="unreadable"), None, 10).items
    assert world.bench.store.replay_inbound(utc_now(), "a person", [inbound.id]) == 1
    world.bench.settle()
    assert world.outcome()[0] is Outcome.UNREADABLE


def test_a_repeated_webhook_is_a_duplicate_and_costs_nothing(world: World) -> None:
    events = world.crm.create(**ANA)
    world.send(events)
    calls = len(world.sms.calls)
    world.send([{**event, "attemptNumber": 1} for event in events])
    assert len(world.sms.calls) == calls
    [inbound] = world.bench.store.inbound_page(Filter(), None, 10).items
    assert inbound.repeats == 1


def test_a_push_tells_of_the_webhook_behind_it_and_of_the_changes_it_saved(world: World) -> None:
    source_id = world.create()
    world.crm_time_passes()
    for number in range(3):
        world.send(world.crm.change(source_id, firstname=f"Ana {number}"), settle=False)
        world.crm_time_passes()
    world.bench.settle()
    store = world.bench.store
    newest = store.inbound_page(Filter(), None, 1).items[0]
    [push] = store.audit_page(Filter(kind="delivery", outcome="updated"), None, 10).items
    assert push.inbound_id == newest.id
    assert {one.kind for one in store.audit_page(Filter(inbound_id=newest.id), None, 10).items} == {
        "contact",
        "delivery",
    }
    announced = sum(one.count for one in store.totals() if one.kind == "announced")
    replays = store.replay(utc_now(), "ann", keys=[RecordKey("hubspot", source_id)])
    world.bench.settle()
    assert announced >= 4
    assert replays == 1
    assert sum(one.count for one in store.totals() if one.kind == "announced") == announced


def test_an_unchanged_state_costs_no_call(world: World) -> None:
    source_id = world.create()
    calls = len(world.sms.calls)
    world.change(source_id, company="not in any rule")
    assert len(world.sms.calls) == calls
    assert world.delivery(source_id).state is State.SYNCED
    [fact] = world.bench.store.audit_page(Filter(target="sms", outcome="unchanged"), None, 10).items
    assert fact.source_id == source_id


def test_the_future_does_not_own_a_field(world: World) -> None:
    source_id = world.create()
    ahead = world.crm.change(source_id, firstname="Future")
    in_a_year = int((datetime.now(UTC) + timedelta(days=365)).timestamp() * 1000)
    world.send([{**event, "occurredAt": in_a_year} for event in ahead])
    world.bench.ahead[0] += timedelta(seconds=2)
    world.ahead += timedelta(seconds=2)
    world.change(source_id, firstname="Present")
    assert world.at_sakari()["firstName"] == "Present"


def test_an_id_that_is_no_text_is_unreadable_and_stops_nothing(tmp_path: Path, database: Database) -> None:
    with open_site(tmp_path, database=database) as site:
        assert site.post(site.signed("shop", b'{"type": "x", "data": {"id": "a\\u0000b"}}')).status_code == 200
        [inbound] = site.store.inbound_page(Filter(), None, 10).items
        parsed = pipeline.parse(site.config.sources["shop"], inbound)
    assert [event.changes for event in parsed.events] == [()]
    assert "no text" in parsed.events[0].unreadable


def test_an_opt_out_that_a_call_took_away_pauses_the_target_until_a_person_looks(world: World) -> None:
    source_id = world.create()
    world.sms.stop(ANA["phone"])
    # The platform drops the block in the very call that writes something else.
    world.sms.switches["blocked_writable"] = "no"
    world.sms.hook("PUT", "/contacts", lambda: world.sms.edit(ANA["phone"], blocked=None), after=True)
    world.change(source_id, firstname="Anita")
    status = world.bench.store.target_status("sms")
    assert (status.mode, status.by) == ("paused", "bridge")
    assert world.delivery(source_id).state is State.HELD


# --- a start with other rules ---


def restart(world: World, *routes: Route) -> None:
    """Start bridge again with other *routes*."""
    bench = world.bench
    bench.worker.stop(0)
    bench.config = replace(bench.config, routes=routes)
    bench.worker = Worker(bench.config, bench.store, OnTheSpot(shared=bench.worker.engine.shared), clock=bench.now)
    bench.worker.start()


def route_of(world: World, **changed: Any) -> Route:
    return replace(world.bench.config.routes[0], **changed)


def test_what_is_queued_goes_by_the_rules_of_the_last_start(world: World) -> None:
    restart(world, route_of(world, opt_out=Expression.compile("hs_email_optout == 'yes'", condition=True)))
    world.bench.store.pause("sms", "the rule is wrong", "ops", utc_now())
    source_id = world.create(hs_email_optout="true")
    assert world.delivery(source_id).state is State.HELD
    restart(world, route_of(world, opt_out=Expression.compile("hs_email_optout == 'true'", condition=True)))
    world.bench.store.resume("sms", "ops", utc_now())
    assert world.delivery(source_id).state is State.WAITING
    world.bench.settle()
    assert world.delivery(source_id).state is State.OPTED_OUT
    assert world.sms.contacts == {}


def test_a_start_with_the_same_rules_asks_for_nothing(world: World) -> None:
    source_id = world.create()
    before = world.delivery(source_id)
    restart(world, route_of(world))
    assert world.bench.store.due_lanes(world.bench.now()) == {}
    assert world.delivery(source_id) == before


def test_other_rules_cost_no_call_where_nothing_changes(world: World) -> None:
    source_id = world.create()
    calls, reads = len(world.sms.calls), len(world.crm.calls)
    restart(world, route_of(world, create=False))
    assert world.bench.store.due_lanes(world.bench.now()) != {}
    world.bench.settle()
    desired = world.delivery(source_id).desired
    assert desired is not None
    assert not desired.create
    assert world.delivery(source_id).state is State.SYNCED
    assert (len(world.sms.calls), len(world.crm.calls)) == (calls, reads)


def test_without_its_route_nothing_is_sent_until_there_is_one_again(world: World) -> None:
    route = route_of(world)
    world.bench.store.pause("sms", "maintenance", "ops", utc_now())
    source_id = world.create()
    restart(world)
    world.bench.store.resume("sms", "ops", utc_now())
    world.bench.settle()
    delivery = world.delivery(source_id)
    assert delivery.state is State.WAITING
    assert delivery.reason == "No route leads from hubspot to sms any more; nothing is sent."
    assert world.sms.calls == []
    restart(world, route)
    world.bench.settle()
    assert world.delivery(source_id).state is State.SYNCED


def test_a_field_that_a_new_rule_needs_is_read_by_itself(world: World) -> None:
    source_id = world.create(company="Acme")
    route = route_of(world)
    company = replace(route.fields[1], target="lastName", value=Expression.compile("company"))
    trouble = world.crm.trouble(status=503, times=1)
    restart(world, route_of(world, fields=(*route.fields, company)))
    world.bench.worker.run("process:hubspot")
    assert trouble.times == 0
    assert "Waiting to be read from the CRM" in world.delivery(source_id).reason
    world.bench.settle()
    assert world.at_sakari()["lastName"] == "Acme"
    assert world.delivery(source_id).state is State.SYNCED
    reads = len(world.crm.made("POST", "/batch/read"))
    restart(world, route)
    restart(world, route_of(world, create=False))
    world.bench.settle()
    assert len(world.crm.made("POST", "/batch/read")) == reads


def test_what_a_platform_says_in_half_characters_is_stored_all_the_same(world: World) -> None:
    body = '{"success": false, "error": {"code": "\\ud800", "message": "\\u0000 \\udfff"}}'
    world.sms.trouble(method="POST", path="/contacts", status=400, body=body)
    source_id = world.create()
    assert world.delivery(source_id).state is State.FAILED


def test_a_redirect_holds_the_target_and_is_nobodys_fault(world: World) -> None:
    trouble = world.sms.trouble(status=307, headers={"Location": "http://127.0.0.1:9/"}, times=99)
    events = world.crm.create(**ANA)
    world.send(events, settle=False)
    for _ in range(3):
        world.step()
        world.bench.ahead[0] += timedelta(seconds=5)
    assert world.bench.store.target_status("sms").mode == "held"
    assert world.delivery(str(events[0]["objectId"])).state is State.HELD
    [exchange] = world.bench.store.audit_page(Filter(kind="delivery", error="redirect"), None, 1).items
    assert exchange.status == 307
    trouble.times = 0
    world.bench.ahead[0] += timedelta(minutes=5)
    world.step()
    world.bench.settle()
    assert world.delivery(str(events[0]["objectId"])).state is State.SYNCED
