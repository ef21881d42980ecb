"""Close's API over real HTTP, under every reading of what is open: reading, listing, subscribing, writing back."""

from __future__ import annotations

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
from bridge.model import InboundRequest, Kind, RecordKey, Secret, State, Version, utc_now
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Read
from bridge.sources.close import SOURCE, Close, Settings
from bridge.sources.close.api import PAGE
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_close import Close as Fake

START = datetime(2026, 9, 21, 14, 13, 20, 500_000, tzinfo=UTC)
URL = "https://bridge.example.com/hooks/crm"
ADA: dict[str, Any] = {
    "name": "Ada Lovelace",
    "emails": [{"type": "office", "email": "ada@example.com", "is_unsubscribed": False}],
    "phones": [{"type": "mobile", "phone": "+14155550123"}],
}
# Each reading of each, and what could bear on one another together.
READINGS: list[dict[str, str]] = [
    {},
    {"times": "zoned"},
    {"unknown_fields": "refused"},
    {"counts": "refused", "last_cursor": "to_nothing"},
    {"counts": "refused", "unknown_fields": "refused", "times": "zoned"},
]
every_reading = pytest.mark.parametrize("switches", READINGS, ids=lambda one: "-".join(one.values()) or "first")


class Account:
    """A fake Close whose clock stands until it is told to go on, and the connection to it."""

    def __init__(self, fake: Fake, api: Api, settings: Settings) -> None:
        self.fake, self.api, self.settings = fake, api, settings
        self.source = Close("crm", settings)
        self.now = START
        fake.clock = lambda: self.now

    def tick(self, seconds: float = 1) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def add(self, **fields: Any) -> str:
        return str(self.fake.create(**{**ADA, **fields})["object_id"])

    def read(self, *ids: str, fields: tuple[str, ...] = ("email", "name")) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def pages(self, fields: tuple[str, ...] = ("email",), since: datetime | None = None) -> Iterator[list[Read]]:
        """Yield the contacts, page by page; each page is asked of a lister made anew."""
        after = None
        while True:
            assert SOURCE.lister is not None
            lister = SOURCE.lister("crm", self.settings)
            assert lister is not None
            listed = lister.page(self.api, fields, after, since)
            assert all(read.asked == read.key for read in listed.records)
            yield list(listed.records)
            after = listed.after
            if after is None:
                return

    def listed(self, fields: tuple[str, ...] = ("email",), since: datetime | None = None) -> list[str]:
        return [read.key.source_id for page in self.pages(fields, since) for read in page]

    def register(self, *fields: str) -> Any:
        assert SOURCE.registrar is not None
        registrar = SOURCE.registrar("crm", self.settings)
        assert registrar is not None
        return registrar.register(self.api, URL, fields, self.now)


@contextmanager
def account(*, key: str = Fake.key, value: bool | str = True, **switches: Any) -> Iterator[Account]:
    fake = Fake(**switches)
    with fake.serve() as base_url, new_session() as session:
        api = Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        settings = Settings((Secret("aa"),), Secret(key), opt_out_value=value, api_base=base_url)
        yield Account(fake, api, settings)


# --- reading -----------------------------------------------------------------------------------------------


@every_reading
def test_only_the_named_fields_are_read_with_the_time_of_the_last_change(switches: dict[str, str]) -> None:
    with account(**switches) as one:
        ada = one.add(**{"custom.cf_tier": "Gold"})
        changed_at = one.tick(0.25)
        one.fake.change(ada, title="Countess")
        names = (
            "email",
            "phone_mobile",
            "email_unsubscribed",
            "custom.cf_tier",
            "custom.cf_stop",
            "no_such, field",
        )
        (read,) = one.read(ada, fields=names)
        key = RecordKey("crm", ada)
        assert read == Read(
            asked=key,
            key=key,
            fields={
                "email": "ada@example.com",
                "phone_mobile": "+14155550123",
                "email_unsubscribed": False,
                "custom.cf_tier": "Gold",
            },
            version=Version(changed_at, "read"),
            account=Fake.organization,
        )
        assert one.fake.made("GET", "/lead/") == []
        assert one.read(ada, fields=("no_such",))[0].fields == {}


def test_a_lead_is_read_once_for_all_its_contacts_and_only_where_a_rule_asks() -> None:
    with account() as one:
        lead = one.fake.lead(name="Engines", status_label="Trial", **{"custom.cf_stop": "no"})
        ada, bob = one.add(lead_id=lead), one.add(lead_id=lead)
        changed_at = one.tick()
        one.fake.change_lead(lead, status_label="Customer")
        names = ("name", "lead_id", "lead_status_label", "lead_custom.cf_stop", "lead_nothing")
        first, second = one.read(ada, bob, fields=names)
        said = {
            "name": "Ada Lovelace",
            "lead_id": lead,
            "lead_status_label": "Customer",
            "lead_custom.cf_stop": "no",
        }
        assert first.fields == second.fields == said
        assert first.version == Version(changed_at, "read"), "what is said of the lead is as new as the lead"
        assert len(one.fake.made("GET", "/lead/")) == 1
        one.fake.leads.clear()
        assert one.read(ada, fields=names)[0].fields == {"name": "Ada Lovelace", "lead_id": lead}
        one.read(ada, fields=("lead_id",))
        assert len(one.fake.made("GET", "/lead/")) == 2


def test_answers_come_in_the_order_asked_and_what_is_gone_is_known_to_be() -> None:
    with account() as one:
        ada, gone = one.add(), one.add()
        one.fake.delete(gone)
        reads = one.read(gone, ada, "cont_never", ada)
        assert [read.asked.source_id for read in reads] == [gone, ada, "cont_never", ada]
        assert [read.fields is None for read in reads] == [True, False, True, False]
        assert not any(read.problem for read in reads)
        assert len(one.fake.calls) == 3
        assert one.read() == []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"id": "cont_1", "date_updated": "yesterday"}, "when the contact was last changed"),
        ({"id": "cont_1"}, "when the contact was last changed"),
        ({"date_updated": "2026-09-21T14:13:20"}, "not a contact"),
        ({"id": 7, "date_updated": "2026-09-21T14:13:20"}, "not a contact"),
        ([], "not a contact"),
        ("<html>", "not a contact"),
    ],
)
def test_an_unusable_answer_about_one_contact_says_nothing_against_the_others(
    answer: object, problem: str
) -> None:
    with account() as one:
        ada, bob = one.add(), one.add()
        one.fake.trouble(path=ada, status=200, body=answer)
        first, second = one.read(ada, bob)
        assert (first.fields, first.version) == (None, None)
        assert problem in first.problem
        assert second.fields is not None


TROUBLE = [
    ({"status": 401}, "refuses the credentials of crm (HTTP 401)", 0),
    ({"status": 403}, "an API key of an administrator", 0),
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
    with account() as one:
        ada = one.add()
        assert SOURCE.writer is not None
        writer = SOURCE.writer("crm", one.settings)
        assert writer is not None
        for call in (
            lambda: one.read(ada),
            one.listed,
            one.register,
            lambda: writer.opt_out(one.api, ada, "custom.cf_stop"),
        ):
            one.fake.trouble(**trouble)
            with pytest.raises(SourceUnavailable) as caught:
                call()
            assert not isinstance(caught.value, BatchUnreadable)
            assert said in str(caught.value)
            assert str(caught.value).endswith(".")
            assert Fake.key not in str(caught.value)
            assert caught.value.retry_after_s == retry_after_s
        assert one.fake.hooks == {}


def test_reading_is_offered_where_there_is_a_key_only() -> None:
    settings = Settings((Secret("aa"),))
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(settings) == "https://api.close.com"
    assert not Close("crm", settings).can_read()
    with pytest.raises(SourceUnavailable, match="No api_key"):
        Close("crm", settings).read(Api("http://127.0.0.1:9"), [], [])
    for make in (SOURCE.lister, SOURCE.registrar, SOURCE.writer):
        assert make is not None
        assert make("crm", settings) is None
        assert make("crm", replace(settings, api_key=Secret("k"))) is not None


# --- listing -----------------------------------------------------------------------------------------------


@every_reading
def test_all_contacts_come_however_many_were_made_in_one_moment(switches: dict[str, str]) -> None:
    with account(**switches) as one:
        made = [one.add() for _ in range(PAGE + 7)]
        one.tick(0.4)
        made += [one.add() for _ in range(PAGE)]
        for _ in range(5):
            one.tick()
            made += [one.add() for _ in range(30)]
        pages = list(one.pages())
        assert set(made) == {read.key.source_id for page in pages for read in page}
        assert all((read.fields or {})["email"] == "ada@example.com" for page in pages for read in page)
        assert sum(map(len, pages)) < len(made) + 40 * len(pages), "few come twice"


def test_no_search_goes_beyond_where_searches_end() -> None:
    with account() as one:
        one.fake.most = 2 * PAGE
        made = []
        for _ in range(11):
            one.tick()
            made += [one.add() for _ in range(60)]
        assert set(one.listed()) == set(made)


def test_a_full_page_without_a_cursor_is_no_end() -> None:
    with account(last_cursor="never") as one:
        made = []
        for _ in range(2 * PAGE + 3):
            one.tick()
            made.append(one.add())
        assert set(one.listed()) == set(made)


def test_a_search_that_is_behind_never_makes_what_it_tells_look_new() -> None:
    with account() as one:
        lead = one.fake.lead(name="Engines", status_label="Trial")
        ada = one.add(lead_id=lead)
        made_at = one.now
        one.fake.indexed[ada] = dict(one.fake.contacts[ada])
        changed_at = one.tick()
        one.fake.change(ada, name="Ada King")
        one.tick()
        one.fake.change_lead(lead, status_label="Customer")
        for fields, name, at in (
            (("name",), "Ada Lovelace", made_at),
            (("name", "lead_status_label"), "Ada King", one.now),
        ):
            ((read,),) = one.pages(fields=fields)
            assert read.version is not None
            assert ((read.fields or {})["name"], read.version.occurred_at) == (name, at)
        assert made_at < changed_at < one.now


def test_what_is_deleted_or_made_meanwhile_pushes_nobody_out() -> None:
    with account() as one:
        made = []
        for _ in range(4 * PAGE):
            one.tick()
            made.append(one.add())
        seen: set[str] = set()
        deleted: set[str] = set()
        for page in one.pages():
            seen |= {read.key.source_id for read in page}
            for gone in made[5 : PAGE // 2 : 5]:
                if gone in one.fake.contacts:
                    one.fake.delete(gone)
                    deleted.add(gone)
            one.tick()
            one.add()
        assert set(made) - deleted <= seen


def test_those_changed_since_a_moment_come_with_a_change_that_is_made_meanwhile() -> None:
    with account() as one:
        old = [one.add() for _ in range(PAGE)]
        since = one.tick(100)
        changed = []
        for contact in old[:30]:
            one.tick(0.1)
            one.fake.change(contact, name="Ada King")
            changed.append(contact)
        assert one.listed(since=since) == changed
        assert one.listed(since=one.tick()) == []
        new = []
        for _ in range(2 * PAGE):
            one.tick()
            new.append(one.add())
        pages = one.pages(fields=("name",), since=since)
        told = {read.key.source_id: read for read in next(pages)}
        one.tick()
        one.fake.change(changed[0], name="Ada")  # it goes to the end
        told |= {read.key.source_id: read for page in pages for read in page}
        assert set(told) == {*changed, *new}
        assert (told[changed[0]].fields or {})["name"] == "Ada"


@pytest.mark.parametrize(("counts", "total"), [("told", 3), ("refused", None)])
def test_the_first_page_says_how_many_there_are_where_close_does(counts: str, total: int | None) -> None:
    with account(counts=counts) as one:
        made = [one.add() for _ in range(3)]
        assert SOURCE.lister is not None
        lister = SOURCE.lister("crm", one.settings)
        assert lister is not None
        listed = lister.page(one.api, ("email",), None, None)
        assert ([read.key.source_id for read in listed.records], listed.after, listed.total) == (made, None, total)


def test_a_name_that_close_refuses_makes_it_read_one_by_one() -> None:
    with account(unknown_fields="refused") as one:
        made = [one.add() for _ in range(3)]
        (page,) = one.pages(fields=("email", "no_such_field"))
        assert [(read.key.source_id, read.fields) for read in page] == [
            (contact, {"email": "ada@example.com"}) for contact in made
        ]


def test_fields_of_the_lead_are_listed_too() -> None:
    with account() as one:
        lead = one.fake.lead(name="Engines", status_label="Customer")
        for _ in range(3):
            one.add(lead_id=lead)
        (page,) = one.pages(fields=("lead_status_label",))
        assert [read.fields for read in page] == [{"lead_status_label": "Customer"}] * 3
        assert len(one.fake.made("GET", "/lead/")) == 1


ROW = {
    "id": "cont_1",
    "lead_id": "lead_1",
    "date_created": "2026-09-21T14:13:20",
    "date_updated": "2026-09-21T14:13:20",
}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{**ROW, "date_created": "2026-09-22T00:00:00"}, ROW], "not in the order"),
        ([{**ROW, "date_created": None}], "does not tell the date_created"),
        ([{**ROW, "id": None}], "not a contact"),
        ([7], "does not tell the date_created"),
    ],
)
def test_a_list_in_which_some_might_be_missing_is_none(data: list[Any], said: str) -> None:
    with account() as one:
        one.fake.trouble(path="/search/", status=200, body={"data": data, "cursor": None})
        with pytest.raises(BatchUnreadable, match=said):
            one.listed()


def test_a_contact_of_the_list_that_cannot_be_understood_says_so_and_ends_nothing() -> None:
    with account() as one:
        body = {"data": [{**ROW, "date_updated": "soon"}, {**ROW, "id": "cont_2"}], "cursor": None}
        one.fake.trouble(path="/search/", status=200, body=body)
        ((bad, good),) = one.pages()
        assert (bad.fields, good.fields) == (None, {})
        assert "last changed" in bad.problem


def test_a_cursor_that_leads_to_itself_is_no_end() -> None:
    with account() as one:
        rows = [{**ROW, "date_created": "1970-01-01T00:00:00"}]
        one.fake.trouble(path="/search/", status=200, body={"data": rows, "cursor": "same"}, times=2)
        with pytest.raises(BatchUnreadable):
            one.listed()


# --- subscriptions -----------------------------------------------------------------------------------------


def subscribed(fake: Fake) -> list[tuple[str, str, set[tuple[str, str]]]]:
    return [
        (hook["url"], hook["status"], {(one["object_type"], one["action"]) for one in hook["events"]})
        for hook in fake.hooks.values()
    ]


OF_CONTACTS = {("contact", action) for action in ("created", "updated", "deleted")}
OF_LEADS = {("lead", action) for action in ("created", "updated", "merged")}


def test_registering_twice_is_registering_once() -> None:
    with account() as one:
        one.fake.hooks["whsub_x"] = {
            "id": "whsub_x",
            "url": "https://other.example.com",
            "status": "paused",
            "events": [],
        }
        first = one.register("email", "lead_id")
        (key,) = (hook["signature_key"] for hook in one.fake.hooks.values() if hook["url"] == URL)
        assert {name: secret.reveal() for name, secret in first.secrets.items()} == {"secrets": key}
        assert not Close("crm", Settings((first.secrets["secrets"],))).can_read()
        assert key not in repr(first)
        assert not any(key in exchange.response_body for exchange in one.api.exchanges)
        again = one.register("email")
        assert ("nothing was changed" in again.done[0], dict(again.secrets)) == (True, {})
        assert subscribed(one.fake) == [
            ("https://other.example.com", "paused", set()),
            (URL, "active", OF_CONTACTS),
        ]
        assert len(one.fake.made("POST", "/webhook/")) == 1
        assert one.fake.made("PUT") == []


def test_a_subscription_that_lacks_something_or_is_paused_is_brought_up_to_date() -> None:
    with account() as one:
        one.register("email")
        (hook,) = one.fake.hooks.values()
        told = one.register("lead_status_label")
        assert (hook["status"], subscribed(one.fake)[0][2]) == ("active", OF_CONTACTS | OF_LEADS)
        assert not told.secrets
        one.register("email")
        assert subscribed(one.fake)[0][2] == OF_CONTACTS | OF_LEADS, "more does no harm"
        hook["status"] = "paused"
        one.register("email")
        assert (hook["status"], len(one.fake.hooks)) == ("active", 1)
        hook["events"][0]["extra_filter"] = {"type": "equals"}  # it sends some only
        one.register("email")
        assert all("extra_filter" not in event for event in hook["events"])


def test_a_subscription_is_found_behind_many_others_and_removed_alone() -> None:
    with account() as one:
        for n in range(250):
            hook: dict[str, Any] = {"id": f"whsub_{n}", "url": f"{URL}{n}", "status": "active", "events": []}
            one.fake.hooks[hook["id"]] = hook
        one.register("email")
        assert len(one.fake.hooks) == 251
        one.register("email")
        assert len(one.fake.hooks) == 251
        assert SOURCE.registrar is not None
        registrar = SOURCE.registrar("crm", one.settings)
        assert registrar is not None
        assert len(registrar.remove(one.api, URL)) == 1
        assert len(one.fake.hooks) == 250
        assert registrar.remove(one.api, URL) == []


@pytest.mark.parametrize("key", [None, "", "no hex", 7])
def test_a_subscription_whose_key_is_not_told_is_no_success(key: object) -> None:
    with account() as one:
        one.fake.trouble(method="POST", status=201, body={"id": "whsub_1", "signature_key": key})
        with pytest.raises(SourceUnavailable, match="did not tell its signature key"):
            one.register("email")


# --- writing back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, "Yes"])
def test_an_opt_out_is_written_into_a_custom_field_of_the_contact_only(value: bool | str) -> None:
    with account(value=value) as one:
        ada = one.add()
        assert SOURCE.writer is not None
        writer = SOURCE.writer("crm", one.settings)
        assert writer is not None
        writer.opt_out(one.api, ada, "custom.cf_stop")
        assert one.fake.contacts[ada]["custom.cf_stop"] == value
        calls = len(one.fake.calls)
        for name in ("lead_custom.cf_stop", "email", "name"):
            with pytest.raises(SourceUnavailable, match="custom field of the contact only"):
                writer.opt_out(one.api, ada, name)
        assert len(one.fake.calls) == calls
        for source_id, name in ((ada, "custom.cf_unknown"), ("cont_never", "custom.cf_stop")):
            with pytest.raises(SourceUnavailable):
                writer.opt_out(one.api, source_id, name)
        one.fake.trouble(method="PUT", status=200, body={})
        one.fake.contacts[ada].pop("custom.cf_stop")
        with pytest.raises(SourceUnavailable, match="does not hold it"):
            writer.opt_out(one.api, ada, "custom.cf_stop")


# --- the whole way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead_lists", ["ids", "objects"])
def test_what_the_fake_sends_is_what_the_source_reads(lead_lists: str) -> None:
    """The life of a contact: what Close would send about it, parsed."""
    with account(lead_lists=lead_lists) as one:
        made = one.fake.create(**ADA)
        ada, lead = str(made["object_id"]), str(made["lead_id"])
        other = one.fake.lead(name="Other")
        sent = [
            made,
            one.fake.change(ada, title="Countess"),
            one.fake.change_lead(lead, status_label="Customer"),
            *one.fake.merge_leads(lead, other),
            one.fake.delete(ada),
        ]
        told = []
        for event in sent:
            request = InboundRequest("POST", URL, {}, Fake.webhook(event))
            (parsed,) = one.source.parse(one.source.verify(one.source.sign(request, one.now), one.now), one.now)
            told += [(change.kind, change.thin) for change in parsed.changes]
            assert {change.key.source_id for change in parsed.changes} <= {ada}
        assert told == [
            (Kind.CREATED, False), (Kind.CHANGED, False), (Kind.CHANGED, False),
            (Kind.CHANGED, True),  # moved to the other lead
            (Kind.CHANGED, False),  # what that one says
            (Kind.DELETED, False),
        ]  # fmt: skip


def test_an_event_reaches_all_four_platforms(tmp_path: Path) -> None:
    fake = Fake()
    fake.clock = lambda: utc_now() - timedelta(seconds=5)
    with fake.serve() as base_url, serve_platforms() as platforms:
        path = platforms.write_config(tmp_path, settle_s=1)
        section = (
            '[sources.shop]\ntype = "close"\nsecrets = ["$SHOP_SECRET"]\napi_key = "$CLOSE_KEY"\n'
            f'api_base = "{base_url}"\n\n'
        )
        text = re.sub(r"\[sources\.shop\].*?(?=\[targets)", lambda _: section, path.read_text(), flags=re.DOTALL)
        text = text.replace("surname", "lead_name").replace(
            "stop == 'yes'", "lead_status_label == 'Do not contact'"
        )
        path.write_text(text)
        config = load(path, {**platforms.environ, "SHOP_SECRET": "00ff", "CLOSE_KEY": fake.key})
        with open_bench(tmp_path, config) as bench:

            def send(event: Mapping[str, Any]) -> None:
                request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {}, fake.webhook(event))
                bench.receive(config.sources["shop"].source.sign(request, utc_now()))
                bench.settle()

            lead = fake.lead(name="Engines", status_label="Customer")
            made = fake.create(lead, **{**ADA, "phones": [{"type": "mobile", "phone": "+525512340001"}]})
            ada = str(made["object_id"])
            send(made)
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            held = platforms.sms.person("+525512340001")
            assert held is not None
            assert (held["firstName"], held["lastName"]) == ("Ada Lovelace", "Engines")  # the lead's was read
            send(fake.change_lead(lead, status_label="Do not contact"))
            states = {one.target: one.state for one in bench.store.deliveries_of(RecordKey("shop", ada))}
            assert states["sms"] is State.OPTED_OUT
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            assert platforms.loosened() == []
