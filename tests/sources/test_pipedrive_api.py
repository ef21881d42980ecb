"""What bridge does at Pipedrive: reading, listing, writing an opt-out, setting up the webhook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bridge.contact import merge
from bridge.errors import SourceUnavailable
from bridge.model import Change, Contact, Kind, RecordKey, Secret
from bridge.outbound import Api, new_session
from bridge.sources import pipedrive_api
from bridge.sources.base import BatchUnreadable, Lister, Read, Registrar, Writer
from bridge.sources.pipedrive import SOURCE, Login, Pipedrive, Settings
from tests.sources.fake_pipedrive import OPTIONS, TEXT
from tests.sources.fake_pipedrive import Pipedrive as Fake
from tests.test_hubspot_reading import START, Clock

URL = "https://bridge.example.com/hooks/crm"
PAGE = 4
FIELDS = ("email", "phone_mobile", "first_name")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipedrive_api, "LISTED", PAGE)


@dataclass
class Company:
    """A fake Pipedrive and what bridge calls it with."""

    fake: Fake
    clock: Clock
    api: Api
    settings: Settings

    def read(self, *ids: int | str, fields: tuple[str, ...] = FIELDS) -> list[Read]:
        source = Pipedrive("crm", self.settings)
        assert source.can_read()
        return source.read(self.api, [RecordKey("crm", str(one)) for one in ids], fields)

    @property
    def lister(self) -> Lister:
        assert SOURCE.lister is not None
        made = SOURCE.lister("crm", self.settings)
        assert made is not None
        return made

    @property
    def writer(self) -> Writer:
        assert SOURCE.writer is not None
        made = SOURCE.writer("crm", self.settings)
        assert made is not None
        return made

    @property
    def registrar(self) -> Registrar:
        assert SOURCE.registrar is not None
        made = SOURCE.registrar("crm", self.settings)
        assert made is not None
        return made

    def pages(self, since: datetime | None = None) -> Iterator[list[Read]]:
        after: str | None = None
        for _ in range(50):
            listed = self.lister.page(self.api, FIELDS, after, since)
            yield list(listed.records)
            after = listed.after
            if after is None:
                return
        raise AssertionError("the list has no end")

    def ids(self, since: datetime | None = None) -> list[int]:
        return [int(read.key.source_id) for page in self.pages(since) for read in page]


@contextmanager
def company(token: str = Fake.token, password: str = "k7Jq2vXz9LmN4tRb", **switches: str) -> Iterator[Company]:
    clock = Clock()
    fake = Fake(clock=clock, **switches)
    with fake.serve() as base_url, new_session() as session:
        api = Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        login = Login("bridge", Secret(password))
        yield Company(fake, clock, api, Settings((login,), token=Secret(f"{token}\n"), api_base=base_url))


# --- reading ---------------------------------------------------------------------------------------------


def test_a_person_is_read_as_its_webhook_would_tell_it() -> None:
    with company() as one:
        phones = [
            {"label": "home", "value": "+14155550199", "primary": False},
            {"label": "mobile", "value": "+14155550123", "primary": True},
        ]
        ada = one.fake.add(phones=phones, custom_fields={TEXT: "Gold", OPTIONS: 42})
        fields = ("phone", "phones", "phone_mobile", "phone_work", "email", TEXT, OPTIONS, "no_such_field")
        (read,) = one.read(ada, fields=fields)
        assert read.asked == read.key == RecordKey("crm", "1234")
        assert read.fields == {
            "phone": "+14155550123",
            "phones": ["+14155550199", "+14155550123"],
            "phone_mobile": "+14155550123",
            "phone_work": "",
            "email": "",
            TEXT: "Gold",
            OPTIONS: 42,
        }
        assert read.version is not None
        assert read.version.occurred_at == START.replace(microsecond=0)
        (call,) = one.fake.calls
        assert call.headers["X-Api-Token"] == Fake.token
        assert f"custom_fields={TEXT}%2C{OPTIONS}" in call.path


def test_a_hundred_are_read_at_once_and_answered_in_the_order_asked() -> None:
    with company() as one:
        ids = [one.fake.add() for _ in range(100)]
        one.fake.persons[ids[5]]["is_deleted"] = True
        reads = one.read(*reversed(ids))
        assert [int(read.asked.source_id) for read in reads] == list(reversed(ids))
        assert [read.asked for read in reads if read.fields is None] == [RecordKey("crm", str(ids[5]))]
        assert len(one.fake.calls) == 1
        assert [read.fields is None for read in one.read(ids[0], "999", "a-test", ids[0])] == [
            False,
            True,
            True,
            False,
        ]
        assert one.read() == one.read()[:0]
        assert [read.fields for read in one.read("a-test")] == [None]
        assert len(one.fake.calls) == 2


@pytest.mark.parametrize("campaigns", Fake.SWITCHES["campaigns"])
def test_what_campaigns_knows_is_asked_for_and_missed_by_nobody(campaigns: str) -> None:
    with company(campaigns=campaigns) as one:
        ada = one.fake.add(marketing_status="unsubscribed")
        (read,) = one.read(ada, fields=("name", "marketing_status"))
        expected = {"marketing_status": "unsubscribed"} if campaigns == "yes" else {}
        assert read.fields == {"name": "Ada Lovelace", **expected}
        one.fake.calls.clear()
        one.read(ada, fields=("name",))
        assert "include_fields" not in one.fake.calls[0].path


def test_who_unsubscribes_is_known_to_although_the_time_of_the_last_update_stays() -> None:
    with company() as one:
        ada = one.fake.add()
        read: tuple[str, ...] = ("name", "marketing_status")
        contact = Contact(RecordKey("crm", str(ada)))
        for status, known in (
            ("subscribed", "subscribed"),
            ("unsubscribed", "unsubscribed"),
            ("subscribed", "unsubscribed"),
        ):
            one.fake.persons[ada]["marketing_status"] = status
            (told,) = one.read(ada, fields=read)
            assert told.fields is not None
            assert told.version is not None
            contact = merge(contact, Change(told.key, Kind.CHANGED, told.version, told.fields))
            assert contact.fields["marketing_status"].value == known


def test_more_custom_fields_than_can_be_named_all_come() -> None:
    with company() as one:
        keys = [f"{n:040x}" for n in range(16)]
        ada = one.fake.add(custom_fields=dict.fromkeys(keys, "x"))
        (read,) = one.read(ada, fields=(*keys, f"{keys[0]}_currency"))
        assert read.fields == dict.fromkeys(keys, "x")
        one.read(ada, fields=(*keys[:15], f"{keys[0]}_currency"))
        assert "custom_fields" in one.fake.calls[-1].path


def test_an_unusable_person_says_nothing_against_the_others() -> None:
    with company() as one:
        bad, good = one.fake.add(update_time=None, add_time=None), one.fake.add()
        one.fake.trouble(
            status=200,
            body={"success": True, "data": [one.fake.persons[bad], one.fake.persons[good], 7, {}, {"id": True}]},
        )
        first, second = one.read(bad, good)
        assert (first.fields, first.version) == (None, None)
        assert "when the person was last changed" in first.problem
        assert (
            second.fields == {"email": "", "phone_mobile": ""} | {"first_name": "x"} or second.fields is not None
        )


@pytest.mark.parametrize(
    "body", [[], {}, {"success": False, "data": []}, {"success": True, "data": 7}, {"success": True}, "<html>"]
)
def test_an_answer_of_another_shape_is_no_list_of_persons(body: object) -> None:
    with company() as one:
        one.fake.trouble(status=200, body=body, times=2)
        with pytest.raises(BatchUnreadable):
            one.read(1234)
        with pytest.raises(BatchUnreadable):
            one.ids()


@pytest.mark.parametrize(
    ("status", "said", "retry_after_s"),
    [
        (401, "refuses the credentials of crm", 0),
        (403, "HTTP 403", 0),
        (429, "fewer calls", 7),
        (503, "HTTP 503", 7),
    ],
)
def test_trouble_on_the_way_says_what_it_is(status: int, said: str, retry_after_s: float) -> None:
    with company() as one:
        for _ in range(2):
            one.fake.trouble(status=status, headers={"Retry-After": "7"})
            with pytest.raises(SourceUnavailable, match=said) as caught:
                one.read(1234, fields=("marketing_status",)) if status != 403 else one.read(1234)
            assert Fake.token not in str(caught.value)
            assert not isinstance(caught.value, BatchUnreadable)
            assert caught.value.retry_after_s == retry_after_s
        one.fake.trouble(status=400)
        with pytest.raises(BatchUnreadable):
            one.read(1234)
        one.fake.trouble(how="drop")
        with pytest.raises(SourceUnavailable, match="cannot be called now"):
            one.ids()


def test_a_wrong_token_is_named() -> None:
    with company(token="wrong") as one, pytest.raises(SourceUnavailable, match="credentials of crm"):
        one.ids()


# --- listing ---------------------------------------------------------------------------------------------


def test_all_persons_are_listed_page_by_page() -> None:
    with company() as one:
        assert list(one.pages()) == [[]]
        made = [one.fake.add(emails=[{"value": f"p{n}@example.com"}]) for n in range(2 * PAGE + 1)]
        found = list(one.pages())
        assert [len(page) for page in found] == [PAGE, PAGE, 1]
        reads = [read for page in found for read in page]
        assert [int(read.key.source_id) for read in reads] == made
        assert all(read.asked == read.key for read in reads)
        assert reads[0].fields == {"email": "p0@example.com", "phone_mobile": ""}


def test_what_changed_at_that_moment_or_later_is_listed() -> None:
    with company() as one:
        made = []
        for _ in range(2 * PAGE):
            one.clock.tick(60)
            made.append(one.fake.add())
        assert one.ids(START + timedelta(minutes=3)) == made[2:]
        later = datetime(2026, 9, 21, 18, 0, tzinfo=UTC)
        assert one.ids(later) == []


def test_a_person_that_changes_or_goes_while_it_is_listed_takes_no_other_with_it() -> None:
    """The place of the next page is a person's: were it sorted by time, it would run away with that person."""
    for since in (None, START):
        with company() as one:
            made = [one.fake.add() for _ in range(3 * PAGE)]
            seen = []
            for number, page in enumerate(one.pages(since)):
                seen += [int(read.key.source_id) for read in page]
                one.clock.tick(60)
                one.fake.change(made[(number + 1) * PAGE % len(made)], name="Changed")
                one.fake.change(made[number], is_deleted=True)
            assert set(made[3:]) <= set(seen)
            assert seen == sorted(set(seen))


def test_a_place_that_leads_to_itself_ends_the_list() -> None:
    with company() as one:
        body = {"success": True, "data": [], "additional_data": {"next_cursor": "c1"}}
        one.fake.trouble(status=200, body=body, times=2)
        with pytest.raises(BatchUnreadable, match="once again"):
            one.ids()
        one.fake.trouble(status=200, body={"success": True, "data": [{"id": "x"}]})
        with pytest.raises(BatchUnreadable, match="no person"):
            one.ids()


# --- writing ---------------------------------------------------------------------------------------------


def test_an_opt_out_sets_one_field() -> None:
    with company() as one:
        ada = one.fake.add()
        for _ in range(2):
            one.writer.opt_out(one.api, str(ada), "marketing_status")
            one.writer.opt_out(one.api, str(ada), TEXT)
        person = one.fake.persons[ada]
        assert (person["marketing_status"], person["custom_fields"]) == (
            "unsubscribed",
            {TEXT: "true", OPTIONS: None},
        )
        assert one.fake.calls[-1].json == {"custom_fields": {TEXT: "true"}}


def test_an_opt_out_that_pipedrive_does_not_take_is_told() -> None:
    with company(campaigns="refused_400") as one:
        ada = str(one.fake.add())
        for name in ("name", "opt_out", TEXT[:39], f"{TEXT}_currency"):
            with pytest.raises(SourceUnavailable, match="cannot say that somebody opted out"):
                one.writer.opt_out(one.api, ada, name)
        assert one.fake.calls == []
        with pytest.raises(BatchUnreadable):
            one.writer.opt_out(one.api, ada, "marketing_status")
        with pytest.raises(SourceUnavailable, match="holds something else"):
            one.writer.opt_out(one.api, ada, OPTIONS)
        with pytest.raises(SourceUnavailable, match="does not know"):
            one.writer.opt_out(one.api, "99", TEXT)
        one.fake.trouble(status=200, body="<html>")
        with pytest.raises(SourceUnavailable):
            one.writer.opt_out(one.api, ada, TEXT)


# --- registering -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("passwords", Fake.SWITCHES["passwords"])
@pytest.mark.parametrize("no_webhooks", Fake.SWITCHES["no_webhooks"])
def test_registering_twice_is_registering_once(passwords: str, no_webhooks: str) -> None:
    with company(passwords=passwords, no_webhooks=no_webhooks) as one:
        done = one.registrar.register(one.api, URL, ["email"], START)
        assert done.done == ["Created the webhook: everything about persons, version 2."]
        assert done.expires_at == START + timedelta(days=2), "it is looked after: Pipedrive deletes one that fails"
        (webhook,) = one.fake.webhooks.values()
        wanted = {
            "subscription_url": URL, "event_action": "*", "event_object": "person", "version": "2.0",
            "http_auth_user": "bridge", "http_auth_password": "k7Jq2vXz9LmN4tRb",
        }  # fmt: skip
        assert wanted.items() <= webhook.items()
        before = dict(one.fake.webhooks)
        assert one.registrar.register(one.api, URL, [], START).done == ["The webhook is there already."]
        assert one.fake.webhooks == before


@pytest.mark.parametrize("same_url", Fake.SWITCHES["same_url"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"http_auth_password": "old"},
        {"http_auth_user": None},
        {"version": "1.0"},
        {"is_active": 0},
        {"event_action": "create"},
    ],
)
def test_a_webhook_that_leads_here_otherwise_is_replaced(same_url: str, wrong: dict[str, Any]) -> None:
    with company(same_url=same_url) as one:
        one.registrar.register(one.api, URL, [], START)
        one.fake.webhooks[55501] |= wrong
        one.fake.webhooks[9] = {
            **one.fake.webhooks[55501],
            "id": 9,
            "subscription_url": "https://other.example.com",
        }
        done = one.registrar.register(one.api, URL, [], START)
        assert done.done[0].startswith("Created")
        (right,) = [webhook for webhook in one.fake.webhooks.values() if webhook["subscription_url"] == URL]
        assert (right["http_auth_password"], right["version"], right["is_active"]) == (
            "k7Jq2vXz9LmN4tRb",
            "2.0",
            1,
        )
        assert 9 in one.fake.webhooks
        assert one.registrar.register(one.api, URL, [], START).done == ["The webhook is there already."]


def test_removing_takes_what_leads_here_and_nothing_else() -> None:
    with company() as one:
        one.registrar.register(one.api, URL, [], START)
        one.fake.webhooks[9] = {**one.fake.webhooks[55501], "id": 9, "subscription_url": f"{URL}/token"}
        assert one.registrar.remove(one.api, URL) == ["Removed the webhook 55501."]
        assert one.registrar.remove(one.api, URL) == []
        assert list(one.fake.webhooks) == [9]


def test_of_setting_up_no_password_is_kept_or_told() -> None:
    with company(password="a-password-of-ours") as one:
        one.registrar.register(one.api, URL, [], START)
        one.registrar.register(one.api, URL, [], START)
        one.fake.trouble(method="GET", status=200, body={"success": True, "data": "a-password-of-ours"})
        with pytest.raises(SourceUnavailable, match="not a list of webhooks"):
            one.registrar.register(one.api, URL, [], START)
        one.fake.trouble(method="POST", status=400)
        with pytest.raises(BatchUnreadable):
            one.registrar.register(one.api, f"{URL}2", [], START)
        assert "a-password-of-ours" not in repr(one.api.exchanges) + repr(one.registrar)
        assert len(one.api.exchanges) == len(one.fake.calls)


def test_what_is_not_configured_is_not_offered() -> None:
    plain = Settings((Login("bridge", Secret("p")),))
    for made in (SOURCE.lister, SOURCE.writer, SOURCE.registrar):
        assert made is not None
        assert made("crm", plain) is None
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(plain) == "https://api.pipedrive.com"
    with pytest.raises(SourceUnavailable, match="No token"):
        Pipedrive("crm", plain).read(Api("http://127.0.0.1:9"), [], [])
    with pytest.raises(ValueError, match="token: it is empty"):
        Pipedrive("crm", Settings((Login("bridge", Secret("p")),), token=Secret(" ")))
