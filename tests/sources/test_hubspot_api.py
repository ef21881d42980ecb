"""What bridge does at HubSpot beside reading: listing, writing an opt-out, setting up an app's webhooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.demo.fakes import hubspot as fake_hubspot
from bridge.demo.fakes.hubspot import HubSpot as Fake
from bridge.errors import SourceUnavailable
from bridge.model import RecordKey, Secret
from bridge.sources import hubspot_api
from bridge.sources.base import BatchUnreadable, Lister, Read, Registrar, Writer
from bridge.sources.hubspot import SOURCE, HubSpot, Settings
from tests.test_hubspot_reading import START, Account, account, id_of

URL = "https://bridge.example.com/hooks/crm"
PAGE = 4
FIELDS = ("email", "phone")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubspot_api, "LISTED", PAGE)
    # HubSpot's 10,000: whoever asks for the second page of a search is refused.
    monkeypatch.setattr(fake_hubspot, "SEARCH_WINDOW", PAGE)


def configured(base_url: str = "", **more: Any) -> Settings:
    return Settings((Secret("client-secret"),), Secret(Fake.bearer), base_url or "https://api.hubapi.com", **more)


def lister() -> Lister:
    assert SOURCE.lister is not None
    made = SOURCE.lister("crm", configured())
    assert made is not None
    return made


def pages(one: Account, since: datetime | None = None, fields: tuple[str, ...] = FIELDS) -> Iterator[list[Read]]:
    """Yield page after page; each is asked for by a lister of its own, as after a restart."""
    after: str | None = None
    for _ in range(200):
        listed = lister().page(one.api, fields, after, since)
        yield list(listed.records)
        after = listed.after
        if after is None:
            return
    raise AssertionError("the list has no end")


def ids(one: Account, since: datetime | None = None) -> list[str]:
    return [read.key.source_id for page in pages(one, since) for read in page]


def people(one: Account, count: int, apart_s: float = 1) -> list[str]:
    made = []
    for n in range(count):
        one.clock.tick(apart_s)
        made.append(id_of(one.fake.create(email=f"p{n}@example.com", phone="", city="Paris")))
    return made


# --- all -------------------------------------------------------------------------------------------------


def test_all_contacts_are_listed_page_by_page_with_the_named_fields_only() -> None:
    with account() as one:
        made = people(one, 2 * PAGE + 1)
        one.fake.delete(made.pop(1))
        found = list(pages(one))
        assert [len(page) for page in found] == [PAGE, PAGE]
        reads = [read for page in found for read in page]
        assert [read.key.source_id for read in reads] == made
        assert all(read.asked == read.key == RecordKey("crm", read.key.source_id) for read in reads)
        assert reads[0].fields == {"email": "p0@example.com", "phone": ""}
        assert reads[0].version is not None
        assert reads[0].version.occurred_at == START + timedelta(seconds=1)
        assert {call.path.partition("?")[0] for call in one.fake.calls} == {"/crm/v3/objects/contacts"}
        assert "link" not in json.dumps([exchange.url for exchange in one.api.exchanges])


def test_an_account_without_contacts_has_one_empty_page() -> None:
    with account() as one:
        assert list(pages(one)) == [[]]
        assert list(pages(one, START)) == [[]]


def test_contacts_that_vanish_between_two_pages_take_no_other_with_them() -> None:
    with account() as one:
        made = people(one, 3 * PAGE)
        reading = pages(one)
        seen = [read.key.source_id for read in next(reading)]
        for gone in (made[0], made[PAGE]):
            one.fake.delete(gone)
        one.fake.merge(made[1], made[PAGE + 1])
        seen += [read.key.source_id for page in reading for read in page]
        left = [one_id for one_id in made if one_id not in {made[0], made[1], made[PAGE], made[PAGE + 1]}]
        assert set(left) <= set(seen)


# --- what changed ----------------------------------------------------------------------------------------


def test_what_changed_at_that_moment_or_later_is_listed() -> None:
    with account() as one:
        made = people(one, 12, apart_s=60)
        since = START + timedelta(minutes=8)
        assert list(dict.fromkeys(ids(one, since))) == made[7:]
        first = lister().page(one.api, FIELDS, None, since)
        assert first.total == 5
        assert lister().page(one.api, FIELDS, first.after, since).total is None
        assert {call.path for call in one.fake.calls} == {"/crm/v3/objects/contacts/search"}
        assert one.fake.calls[0].json["properties"] == ["email", "lastmodifieddate", "phone"]


@pytest.mark.parametrize("ties", Fake.SWITCHES["search_ties"])
@pytest.mark.parametrize("bunch", [PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 1])
def test_contacts_of_one_millisecond_are_all_listed_however_many(ties: str, bunch: int) -> None:
    with account(search_ties=ties) as one:
        made = people(one, 3) + people(one, bunch, apart_s=0) + people(one, 3)
        assert set(ids(one, START)) == set(made)


def test_a_contact_that_changes_while_it_is_listed_pushes_no_other_out() -> None:
    with account() as one:
        made = people(one, 3 * PAGE)
        seen = []
        for number, page in enumerate(pages(one, START)):
            seen += [read.key.source_id for read in page]
            if number < 6:
                one.clock.tick()
                one.fake.change(made[number], phone="+14155550123")
        assert set(made) == set(seen)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    gaps=st.lists(st.sampled_from([0, 0, 0, 0.001, 1]), min_size=1, max_size=25),
    edits=st.lists(st.integers(0, 24), max_size=8),
)
def test_every_contact_that_is_there_all_along_is_listed(gaps: list[float], edits: list[int]) -> None:
    with account(search_ties="newest_first") as one:
        made = [people(one, 1, gap)[0] for gap in gaps]
        left, seen = list(edits), []
        for page in pages(one, START):
            seen += [read.key.source_id for read in page]
            if left:
                one.clock.tick(0.001)
                one.fake.change(made[left.pop() % len(made)], phone="1")
        assert set(seen) == set(made)


def test_a_page_that_is_not_in_order_is_asked_for_again_later() -> None:
    with account() as one:
        made = people(one, PAGE + 1)
        records = [one.fake._shown(one.fake.records[one_id], ["email"]) for one_id in reversed(made)]
        body = {"total": 9, "results": records, "paging": {"next": {"after": "5"}}}
        one.fake.trouble(status=200, body=body)
        with pytest.raises(SourceUnavailable, match="not in order"):
            ids(one, START)
        assert set(ids(one, START)) == set(made)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"results": 7},
        {"results": [7]},
        {"results": [{"id": "1"}]},
        {"results": [], "paging": {"next": {"after": "7"}}},
        {"results": [{"id": "1", "properties": {"lastmodifieddate": "?"}}], "paging": {"next": {"after": "7"}}},
        "<html>",
    ],
)
def test_a_list_of_another_shape_is_no_list(body: object) -> None:
    with account() as one:
        one.fake.trouble(status=200, body=body, times=2)
        with pytest.raises(BatchUnreadable):
            ids(one, START)
        if "lastmodifieddate" not in str(body):
            with pytest.raises(BatchUnreadable):
                ids(one)


def test_a_contact_whose_answer_makes_no_sense_is_told_by_itself() -> None:
    with account() as one:
        good = {"id": "2", "properties": {"email": "b@example.com"}, "updatedAt": "2026-09-21T14:13:20Z"}
        one.fake.trouble(status=200, body={"results": [{"id": "1", "properties": {}}, good]})
        first, second = next(pages(one))
        assert (first.fields, first.problem) == (
            None,
            "HubSpot's answer does not say when the contact was last changed.",
        )
        assert second.fields == {"email": "b@example.com"}


@pytest.mark.parametrize(
    ("status", "said"), [(401, "refuses the token"), (403, "lacks the scope"), (429, "fewer"), (502, "HTTP 502")]
)
def test_trouble_on_the_way_says_what_it_is(status: int, said: str) -> None:
    with account() as one:
        for since in (None, START):
            one.fake.trouble(status=status, headers={"Retry-After": "7"})
            with pytest.raises(SourceUnavailable, match=said) as caught:
                ids(one, since)
            assert Fake.bearer not in str(caught.value)
            assert caught.value.retry_after_s == (7 if status in {429, 502} else 0)


# --- writing ---------------------------------------------------------------------------------------------


def writer() -> Writer:
    assert SOURCE.writer is not None
    made = SOURCE.writer("crm", configured())
    assert made is not None
    return made


def test_an_opt_out_sets_one_property_and_nothing_else() -> None:
    with account() as one:
        ada = id_of(one.fake.create(email="ada@example.com", sms_opt_out=""))
        for _ in range(2):
            writer().opt_out(one.api, ada, "sms_opt_out")
        assert one.fake.records[ada].properties == {"email": "ada@example.com", "sms_opt_out": "true"}
        assert one.fake.calls[-1].json == {"properties": {"sms_opt_out": "true"}}


def test_an_opt_out_that_hubspot_does_not_take_is_told() -> None:
    with account() as one:
        ada = id_of(one.fake.create(email="ada@example.com"))
        with pytest.raises(SourceUnavailable, match="lets nobody write hs_email_optout"):
            writer().opt_out(one.api, ada, "hs_email_optout")
        assert one.fake.calls == []
        with pytest.raises(SourceUnavailable, match="400, VALIDATION_ERROR"):
            writer().opt_out(one.api, ada, "no_such_property")
        with pytest.raises(SourceUnavailable, match="does not know"):
            writer().opt_out(one.api, "123", "email")
        one.fake.trouble(status=403)
        with pytest.raises(SourceUnavailable, match=r"crm\.objects\.contacts\.write"):
            writer().opt_out(one.api, ada, "email")
        for held in ("false", None, ["true"]):
            body = {"id": ada, "properties": {"email": held}}
            one.fake.trouble(status=200, body=body)
            with pytest.raises(SourceUnavailable, match="holds something else"):
                writer().opt_out(one.api, ada, "email")


# --- registering -----------------------------------------------------------------------------------------


def registrar(key: str = Fake.developer_key) -> Registrar:
    assert SOURCE.registrar is not None
    made = SOURCE.registrar("crm", configured(app_id=Fake.app_id, developer_key=Secret(f"{key}\n")))
    assert made is not None
    return made


def subscribed(one: Account) -> set[tuple[str, str]]:
    return {(s["eventType"], s.get("propertyName", "")) for s in one.fake.subscriptions.values() if s["active"]}


@pytest.mark.parametrize("no_settings", Fake.SWITCHES["no_settings"])
def test_registering_twice_is_registering_once(no_settings: str) -> None:
    with account(no_settings=no_settings) as one:
        done = registrar().register(one.api, URL, ["phone", "email", "lastmodifieddate"], START)
        assert done.done == ["The app 1160452 sends here now.", "Subscribed to 7 more kinds of events."]
        assert (done.secrets, done.expires_at) == ({}, None)
        kinds = {
            (f"contact.{kind}", "") for kind in ("creation", "deletion", "merge", "privacyDeletion", "restore")
        }
        assert subscribed(one) == kinds | {("contact.propertyChange", name) for name in ("email", "phone")}
        assert one.fake.webhook_settings["targetUrl"] == URL
        made = len(one.fake.calls)
        again = registrar().register(one.api, URL, ["phone", "email"], START)
        assert again.done == ["The app 1160452 sends here already.", "All subscriptions are there."]
        assert {call.method for call in one.fake.calls[made:]} == {"GET"}


def test_what_is_there_is_completed_and_woken() -> None:
    with account() as one:
        registrar().register(one.api, URL, ["phone"], START)
        resting = next(s for s in one.fake.subscriptions.values() if s["eventType"] == "contact.deletion")
        resting["active"] = False
        one.fake.webhook_settings["throttling"]["maxConcurrentRequests"] = 42
        done = registrar().register(one.api, f"{URL}/a-token", ["phone", "email", "no_such_property"], START)
        assert done.done == [
            "The app 1160452 sends here now.",
            "HubSpot takes no subscription to the property no_such_property: is it the internal name?",
            "Subscribed to 2 more kinds of events.",
        ]
        assert resting["active"]
        assert one.fake.webhook_settings["throttling"] == {"maxConcurrentRequests": 42}


@pytest.mark.parametrize(
    "elsewhere",
    ["https://other.example.com/hooks/crm", "https://bridge.example.com/hooks/crm2", "https://x.example.com/"],
)
def test_an_app_that_sends_elsewhere_is_left_alone(elsewhere: str) -> None:
    with account() as one:
        one.fake.webhook_settings = {"targetUrl": elsewhere, "throttling": {"maxConcurrentRequests": 10}}
        with pytest.raises(SourceUnavailable, match="sends to another address"):
            registrar().register(one.api, URL, ["phone"], START)
        assert registrar().remove(one.api, URL) == []
        assert one.fake.webhook_settings["targetUrl"] == elsewhere
        assert one.fake.subscriptions == {}


def test_removing_clears_the_address_and_leaves_the_subscriptions() -> None:
    with account() as one:
        registrar().register(one.api, URL, [], START)
        assert registrar().remove(one.api, URL) == ["The app 1160452 sends nowhere now; its subscriptions rest."]
        assert registrar().remove(one.api, URL) == []
        assert (one.fake.webhook_settings, len(one.fake.subscriptions)) == ({}, 5)


def test_the_developer_key_stands_in_no_kept_url_and_in_no_message() -> None:
    with account() as one:
        registrar().register(one.api, URL, ["phone"], START)
        with pytest.raises(SourceUnavailable, match="refuses the developer key of crm") as caught:
            registrar("wrong-key").register(one.api, URL, [], START)
        one.fake.trouble(how="drop")
        with pytest.raises(SourceUnavailable, match="cannot be called now"):
            registrar().register(one.api, URL, [], START)
        kept = repr(one.api.exchanges) + str(caught.value) + repr(registrar())
        assert Fake.developer_key not in kept
        assert "wrong-key" not in kept


def test_trouble_while_registering_is_told() -> None:
    with account() as one:
        for status, said in ((403, "HTTP 403"), (429, "fewer calls"), (500, "HTTP 500")):
            one.fake.trouble(status=status)
            with pytest.raises(SourceUnavailable, match=said):
                registrar().register(one.api, URL, [], START)
        one.fake.trouble(path="subscriptions", status=200, body={"results": 7})
        with pytest.raises(SourceUnavailable, match="not a list of subscriptions"):
            registrar().register(one.api, URL, [], START)
        one.fake.trouble(method="POST", path="subscriptions", status=400)
        with pytest.raises(BatchUnreadable):
            registrar().register(one.api, URL, [], START)


# --- settings --------------------------------------------------------------------------------------------


def test_what_is_not_configured_is_not_offered() -> None:
    plain = Settings((Secret("client-secret"),))
    for made in (SOURCE.lister, SOURCE.writer, SOURCE.registrar):
        assert made is not None
        assert made("crm", plain) is None
    assert SOURCE.registrar is not None
    assert SOURCE.registrar("crm", configured()) is None, "a private app's webhooks are set up by hand"


@pytest.mark.parametrize(
    "more",
    [{"app_id": 7}, {"developer_key": Secret("k")}, {"app_id": 7, "developer_key": Secret(" ")}],
)
def test_an_app_and_its_key_go_together(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"app_id|developer_key"):
        HubSpot("crm", configured(**more))
