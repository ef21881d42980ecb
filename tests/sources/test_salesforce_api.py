"""Salesforce's REST API, over real HTTP, under every reading of what the vendor leaves open; and the whole way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge import pipeline
from bridge.config import load
from bridge.errors import SourceUnavailable
from bridge.model import InboundRequest, RecordKey, Secret, State, Value, Version, utc_now
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Lister, Read, Writer
from bridge.sources.calling import place_of
from bridge.sources.salesforce import SOURCE, Salesforce, records
from bridge.sources.salesforce.records import stop_of
from bridge.sources.salesforce.settings import App, Settings
from tests.platforms import Bench, Platforms, open_bench, serve_platforms
from tests.sources.fake_salesforce import API, id18
from tests.sources.fake_salesforce import Salesforce as Fake
from tests.sources.kit import only

START = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
NAMES = ("Email", "Phone", "LastName")
COLLECTION = f"{API}/composite/sobjects/Contact"
every_offset = pytest.mark.parametrize("offset", Fake.SWITCHES["offset"])
few_rows = pytest.mark.parametrize("rows", [2, 3, 7])


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
    """A fake Salesforce, and the source that is configured for it."""

    def __init__(self, fake: Fake, url: str, clock: Clock, api: Api, **app: Any) -> None:
        self.fake, self.clock, self.api = fake, clock, api
        given: dict[str, Any] = {"client_secret": Secret(Fake.client_secret), **app}
        self.settings = Settings(Fake.organization, app=App(url, Secret(Fake.client_id), **given))
        self.source = Salesforce("crm", self.settings)
        assert SOURCE.lister is not None
        assert SOURCE.writer is not None
        lister, writer = SOURCE.lister("crm", self.settings), SOURCE.writer("crm", self.settings)
        assert lister is not None
        assert writer is not None
        self.lister: Lister = lister
        self.writer: Writer = writer

    def read(self, *ids: str, fields: tuple[str, ...] = NAMES) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def fails(self, *ids: str, fields: tuple[str, ...] = NAMES) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            self.read(*(ids or (id18("0031I0000000001"),)), fields=fields)
        said = str(caught.value)
        assert said.endswith(".")
        for secret in (Fake.client_secret, Fake.refresh_token, "ada@example.com", *self.fake.tokens):
            assert secret not in said
        return caught.value

    def listed(self, since: datetime | None = None, between: Any = None) -> list[Read]:
        """Return the contacts of all pages; *between* is done after each of them."""
        after, found = None, list[Read]()
        for _ in range(100):
            page = self.lister.page(self.api, NAMES, after, since)
            found += page.records
            if page.after is None:
                return found
            after = page.after
            if between is not None:
                between()
        raise AssertionError("the list has no end")


@contextmanager
def account(app: Mapping[str, Any] | None = None, **switches: str) -> Iterator[Account]:
    clock = Clock()
    fake = Fake(clock=clock, **switches)
    with fake.serve() as url, new_session() as session:
        api = Api(url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        yield Account(fake, url, clock, api, **(app or {}))


def said_of(read: Read) -> dict[str, Value] | None:
    return None if read.fields is None else dict(read.fields)


# --- by id -------------------------------------------------------------------------------------------------


@every_offset
def test_only_the_named_fields_are_read_with_the_time_of_the_last_change(offset: str) -> None:
    with account(offset=offset) as one:
        ada = one.fake.create(Email="ada@example.com", LastName="Lovelace", Phone="", Calls__c=3, DoNotCall=True)
        changed_at = one.clock.tick(7)
        one.fake.change(ada, Last_Call__c=START, MailingAddress={"city": "London"})
        fields = ("Email", "Phone", "Calls__c", "DoNotCall", "Last_Call__c", "MailingAddress", "Id", "no name")
        (read,) = one.read(ada, fields=fields)
        key = RecordKey("crm", ada)
        assert (read.asked, read.key, read.problem) == (key, key, "")
        # As messages have it: all of it text, times with a Z. What consists of parts is left out.
        assert said_of(read) == {
            "Email": "ada@example.com",
            "Phone": "",
            "Calls__c": "3",
            "DoNotCall": "true",
            "Last_Call__c": "2026-09-21T14:13:20.000Z",
            "Id": ada,
        }
        assert read.version == Version(changed_at, f"read:{changed_at:%Y-%m-%dT%H:%M:%S}.000000Z")
        (call,) = one.fake.made("POST", COLLECTION)
        assert set(call.json["fields"]) == {"Id", "SystemModstamp", *fields[:6]}


def test_a_read_says_the_same_as_the_message_before_it() -> None:
    with account() as one:
        ada = one.fake.create(Email="ada@example.com", LastName="Lovelace", HasOptedOutOfEmail=True)
        ticked = ("Email", "LastName", "HasOptedOutOfEmail", "LastModifiedDate", "CreatedDate", "SystemModstamp")
        (told,) = only(one.source, one.fake.message(ada, ticked=ticked), START).changes
        (read,) = one.read(ada, fields=(*ticked, "Id"))
        assert said_of(read) == dict(told.fields)
        assert read.version is not None
        assert read.version.occurred_at == told.version.occurred_at


def test_of_two_changes_in_one_second_what_was_read_last_counts() -> None:
    with account() as one:
        ada = one.fake.create(Email="a@example.com", LastName="Lovelace")
        (first,) = one.read(ada)
        (told,) = only(one.source, one.fake.message(ada), START).changes
        one.fake.change(ada, Email="b@example.com")
        changed_at = one.clock.now
        one.clock.tick()
        (second,) = one.read(ada)
        assert first.version is not None
        assert second.version is not None
        assert second.version.occurred_at == changed_at == first.version.occurred_at
        assert told.version < first.version < second.version


def test_names_are_the_same_in_any_case_of_letters() -> None:
    with account() as one:
        ada = one.fake.create(Email="ada@example.com")
        (read,) = one.read(ada, fields=("email", "EMAIL", "id"))
        assert said_of(read) == {"email": "ada@example.com", "EMAIL": "ada@example.com", "id": ada}


def test_a_field_that_an_answer_leaves_out_does_not_read_as_cleared() -> None:
    with account(blank="left_out", said="untold") as one:
        (read,) = one.read(one.fake.create(Email="ada@example.com", Phone=""))
        assert said_of(read) == {"Email": "ada@example.com"}
        assert read.version == Version(START, "read")


def test_what_is_not_there_is_known_to_be_unknown_and_the_rest_is_read() -> None:
    with account() as one:
        ada, gone = one.fake.create(Email="ada@example.com"), one.fake.create(Email="gone@example.com")
        one.fake.delete(gone)
        unknown = id18("0031I000000zzzz")
        asked = ["bridge-sample", gone, ada, unknown, ada[:15], "5", ada]
        reads = one.read(*asked)
        assert [read.asked.source_id for read in reads] == asked
        assert [read.fields is None for read in reads] == [True, True, False, True, False, True, False]
        assert [read.key for read in reads] == [read.asked for read in reads]
        assert not any(read.problem for read in reads)
        (call,) = one.fake.made("POST", COLLECTION)
        assert call.json["ids"] == [gone, ada, unknown]
        assert one.read() == []
        assert [read.fields for read in one.read("bridge-sample")] == [None]
        assert len(one.fake.made("POST", COLLECTION)) == 1


def test_a_merged_contact_is_read_as_the_one_that_it_lives_on_as() -> None:
    with account() as one:
        first, second, third, other = (one.fake.create(Email=f"p{n}@example.com") for n in range(4))
        one.fake.delete(first, master=second)
        one.fake.delete(second, master=third)
        reads = one.read(first, other, third)
        assert [read.key.source_id for read in reads] == [third, other, third]
        assert [read.asked.source_id for read in reads] == [first, other, third]
        assert [(read.fields or {})["Email"] for read in reads] == [f"p{n}@example.com" for n in (2, 3, 2)]
        one.fake.delete(third)  # for good: nobody is left
        lost = one.read(first, other)
        assert [(read.key.source_id, read.fields is None) for read in lost] == [(first, True), (other, False)]


def test_contacts_that_are_merged_in_a_circle_end_nothing() -> None:
    with account() as one:
        first, second = one.fake.create(), one.fake.create()
        one.fake.delete(first, master=second)
        one.fake.delete(second, master=first)
        assert [read.fields for read in one.read(first, second)] == [None, None]
        one.fake.delete(first, master=first)
        assert one.read(first)[0].fields is None


@pytest.mark.parametrize(
    "body",
    [
        {}, [], [None, None], ["x"], [{}], [{"Id": None}], "text", None,
        [{"Id": id18("0031I0000000009"), "SystemModstamp": "2026-09-21T14:13:20Z", "Email": "x@example.com"}],
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_never_taken_for_the_contact(body: object) -> None:
    with account() as one:
        ada = one.fake.create()
        one.fake.trouble(path="composite", status=200, body=body)
        assert isinstance(one.fails(ada), BatchUnreadable)


def test_a_contact_without_its_time_says_nothing_against_the_others() -> None:
    with account() as one:
        ada, bob = one.fake.create(), one.fake.create()
        rows = [{"Id": ada, "Email": "a@example.com"}, {"Id": bob, "SystemModstamp": "2026-09-21T14:13:20Z"}]
        one.fake.trouble(path="composite", status=200, body=rows)
        first, second = one.read(ada, bob)
        assert "last changed" in first.problem
        assert (first.fields, second.problem, said_of(second)) == (None, "", {})


# --- access ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", [{}, {"refresh_token": Secret(f"{Fake.refresh_token}\n")}])
def test_one_token_serves_until_it_is_refused(app: dict[str, Any]) -> None:
    with account(app) as one:
        ada = one.fake.create(Email="ada@example.com")
        for _ in range(3):
            one.read(ada)
        assert len(one.fake.made("POST", "/oauth2/token")) == 1
        one.fake.expire()
        assert one.read(ada)[0].fields is not None
        assert len(one.fake.made("POST", "/oauth2/token")) == 2
        for exchange in one.api.exchanges:
            assert not any(token in str(exchange) for token in one.fake.tokens)


def test_tokens_may_be_given_out_elsewhere() -> None:
    fake = Fake(clock=Clock())
    with fake.serve() as login, account({"login_url": login}) as one:
        # Sessions are the same wherever they were begun.
        fake.tokens = one.fake.tokens
        assert one.read(one.fake.create())[0].fields is not None
        assert len(fake.made("POST", "/oauth2/token")) == 1
        assert not one.fake.made("POST", "/oauth2/token")


def test_credentials_that_are_refused_are_told_in_words() -> None:
    with account({"client_secret": Secret("wrong")}) as one:
        assert "no access token for crm (HTTP 400)" in str(one.fails())
    with account() as one:
        one.fake.trouble(path="composite", status=401, times=2)
        assert "refuses the credentials of crm" in str(one.fails())
        one.fake.trouble(path="composite", status=403, body=[{"errorCode": "INSUFFICIENT_ACCESS"}])
        assert "the OAuth scope api" in str(one.fails())


def test_a_day_whose_calls_are_used_up_is_waited_for() -> None:
    with account() as one:
        one.fake.used_up = True
        error = one.fails()
        assert "REQUEST_LIMIT_EXCEEDED" in str(error)
        assert error.retry_after_s == 900
        assert not isinstance(error, BatchUnreadable)


def test_a_field_that_is_not_there_is_named_and_no_batch_is_halved_for_it() -> None:
    with account() as one:
        ada = one.fake.create()
        error = one.fails(ada, fields=("Email", "Emial"))
        assert "no field 'Emial' of contacts" in str(error)
        assert not isinstance(error, BatchUnreadable)
        odd = [{"errorCode": "INVALID_FIELD", "message": "No such column 'ada@example.com'"}, 7]
        one.fake.trouble(path="composite", status=400, body=odd)
        assert "no field of contacts" in str(one.fails(ada))


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s", "of_the_batch"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls", 7, False),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9, False),
        ({"status": 500, "body": "<html>"}, "(HTTP 500)", 0, False),
        ({"status": 404, "body": [{"errorCode": "NOT_FOUND"}]}, "(HTTP 404)", 0, False),
        ({"status": 400, "body": [{"errorCode": "MALFORMED_ID", "message": "x"}]}, "400, MALFORMED_ID", 0, True),
        ({"status": 400, "body": [{"errorCode": "ada@example.com"}]}, "(HTTP 400)", 0, True),
        ({"status": 400, "body": "<html>"}, "(HTTP 400)", 0, True),
        ({"status": 403, "body": "<html>"}, "(HTTP 403)", 0, False),
        ({"status": 302, "headers": {"Location": "http://127.0.0.1:9/"}}, "redirect", 0, False),
        ({"status": 200, "body": "<html>a proxy"}, "not JSON", 0, True),
        ({"how": "drop"}, "cannot be called now", 0, False),
        ({"how": "slow", "seconds": 0.7}, "did not answer in time", 0, False),
    ],
)  # fmt: skip
def test_trouble_on_the_way_is_told_and_teaches_nothing(
    trouble: Mapping[str, Any], said: str, retry_after_s: float, of_the_batch: bool
) -> None:
    with account() as one:
        one.read(one.fake.create())
        one.fake.trouble(path="composite", **trouble)
        error = one.fails()
        assert said in str(error)
        assert error.retry_after_s == retry_after_s
        assert isinstance(error, BatchUnreadable) is of_the_batch


# --- all of them -------------------------------------------------------------------------------------------


@few_rows
@pytest.mark.parametrize("pages", Fake.SWITCHES["pages"])
def test_every_contact_is_listed_though_all_have_one_time(
    rows: int, pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PAGE", rows)
    with account(pages=pages) as one:
        ids = [one.fake.create(Email=f"p{n}@example.com") for n in range(7)]  # all in one second
        one.clock.tick()
        ids.append(one.fake.create(Email="later@example.com"))
        found = one.listed()
        assert [read.asked.source_id for read in found] == sorted(ids[:7]) + ids[7:]
        assert all(read.asked == read.key and read.version is not None for read in found)
        assert (found[0].fields or {}).keys() == set(NAMES)


def test_no_page_is_asked_for_behind_the_last_one_and_the_first_tells_how_many_there_are() -> None:
    with account() as one:
        assert one.lister.page(one.api, NAMES, None, None).after is None
        for n in range(3):
            one.fake.create(Email=f"p{n}@example.com")
        page = one.lister.page(one.api, NAMES, None, None)
        assert (len(page.records), page.after, page.total) == (3, None, 3)
        one.fake.trouble(path="/query", status=200, body={"done": True, "records": []})
        one.fake.trouble(path="/query", status=500)
        assert one.lister.page(one.api, NAMES, None, None).total is None


@few_rows
def test_what_is_changed_or_deleted_between_two_pages_hides_nobody(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PAGE", rows)
    with account() as one:
        ids = []
        for n in range(12):
            ids.append(one.fake.create(Email=f"p{n}@example.com"))
            if n % 3 == 0:
                one.clock.tick()
        turns = list[int]()

        def between() -> None:
            turn = len(turns)
            if turn < 3:
                turns.append(turn)
                one.clock.tick()
                one.fake.delete(ids[turn])  # listed already: what follows moves up
                one.fake.change(ids[10 - turn], Phone=f"+1415555012{turn}")
                one.fake.change(ids[3], Phone="+14155550199")

        found = one.listed(between=between)
        assert {read.key.source_id for read in found} >= set(ids[3:])
        newest = {read.key.source_id: read for read in found}
        assert turns
        for turn in turns:
            assert (newest[ids[10 - turn]].fields or {})["Phone"] == f"+1415555012{turn}"


def test_the_list_begins_where_something_changed_since() -> None:
    with account() as one:
        old = one.fake.create(Email="old@example.com")
        one.clock.tick(60.7)
        new = one.fake.create(Email="new@example.com")
        gone = one.fake.create(Email="gone@example.com")
        one.fake.delete(gone)
        # Salesforce cuts its times to the second: what happened just after *since* looks older than it.
        for since in (one.clock.now, one.clock.now - timedelta(milliseconds=300)):
            assert [read.key.source_id for read in one.listed(since)] == [new]
        assert [read.key.source_id for read in one.listed(START)] == [old, new]
        assert one.listed(one.clock.now + timedelta(seconds=1)) == []
        assert one.lister.page(one.api, NAMES, None, one.clock.now).total == 1


@pytest.mark.parametrize(
    "body",
    [
        [], {}, {"done": True}, {"records": []}, {"records": {}, "done": True}, {"records": [], "done": False},
        {"records": [None], "done": True}, {"records": [{"Id": id18("0031I0000000001")}], "done": True},
        {"records": [{"Id": "7", "SystemModstamp": "2026-09-21T14:13:20Z"}], "done": True},
    ],
)  # fmt: skip
def test_a_page_that_makes_no_sense_ends_nothing(body: object) -> None:
    with account() as one:
        one.fake.trouble(path="/query", status=200, body=body)
        with pytest.raises(BatchUnreadable):
            one.lister.page(one.api, NAMES, None, None)


def test_a_list_that_does_not_move_on_is_no_list() -> None:
    with account() as one:
        ada = id18("0031I0000000001")
        row = {"Id": ada, "SystemModstamp": "2026-09-21T14:13:20.000+0000"}
        one.fake.trouble(path="/query", status=200, body={"records": [row], "done": False, "nextRecordsUrl": "/x"})
        place = place_of(at="2026-09-21T14:13:20.000Z", id=ada)
        with pytest.raises(BatchUnreadable, match="same page"):
            one.lister.page(one.api, NAMES, place, None)


def test_no_address_in_an_answer_is_called() -> None:
    with account(pages="short") as one:
        for n in range(9):
            one.fake.create(Email=f"p{n}@example.com")
        assert len({read.key for read in one.listed()}) == 9
        assert {exchange.url.split("/services")[0] for exchange in one.api.exchanges} == {one.api.base_url}


# --- opting out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HasOptedOutOfEmail", True),
        ("DoNotCall", True),
        ("SMS_Opt_In__c", False),
        ("SMS_OptOut__c", True),
        ("Unsubscribed__c", True),
    ],
)
def test_an_opt_out_is_written_as_the_fields_name_wants_it(name: str, value: bool) -> None:
    with account() as one:
        one.fake.fields |= {name}
        ada = one.fake.create(LastName="Lovelace", **{name: not value})
        one.writer.opt_out(one.api, ada, name)
        one.writer.opt_out(one.api, ada, name)
        assert (one.fake.records[ada][name], one.fake.records[ada]["LastName"]) == (value, "Lovelace")
        assert [call.json for call in one.fake.made("PATCH", ada)] == [{name: value}] * 2


@pytest.mark.parametrize(
    "name", ["Email", "SMS__c", "Opt_In_or_Opt_Out__c", "Consent__c", "", "OptOut'; --", "a/../b"]
)
def test_a_field_that_does_not_say_what_a_tick_means_is_not_written(name: str) -> None:
    with account() as one:
        ada = one.fake.create()
        with pytest.raises(SourceUnavailable):
            one.writer.opt_out(one.api, ada, name)
        assert one.fake.calls == []
    with pytest.raises(SourceUnavailable):
        stop_of(name)


def test_an_opt_out_of_nobody_is_told() -> None:
    with account() as one:
        gone = one.fake.create()
        one.fake.delete(gone)
        with pytest.raises(SourceUnavailable, match="does not know this contact any more"):
            one.writer.opt_out(one.api, gone, "DoNotCall")
        for nobody in ("bridge-sample", "5", "../003", ""):
            with pytest.raises(SourceUnavailable, match="no id of a contact"):
                one.writer.opt_out(one.api, nobody, "DoNotCall")
        with pytest.raises(SourceUnavailable, match="no field 'No_Opt_Out__c' of contacts"):
            one.writer.opt_out(one.api, one.fake.create(), "No_Opt_Out__c")
        one.fake.trouble(method="PATCH", status=400, body=[{"errorCode": "FIELD_CUSTOM_VALIDATION_EXCEPTION"}])
        with pytest.raises(SourceUnavailable, match="FIELD_CUSTOM_VALIDATION_EXCEPTION"):
            one.writer.opt_out(one.api, one.fake.create(), "DoNotCall")


def test_without_an_app_there_is_nothing_to_read_list_or_write() -> None:
    plain = Settings(Fake.organization)
    assert not Salesforce("crm", plain).can_read()
    assert SOURCE.lister is not None
    assert SOURCE.writer is not None
    assert (SOURCE.lister("crm", plain), SOURCE.writer("crm", plain), SOURCE.registrar) == (None, None, None)
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(plain).startswith("https://")


def test_the_fake_refuses_what_salesforce_would() -> None:
    with account() as one:
        one.read(one.fake.create())
        headers = {"Authorization": f"Bearer {one.fake.tokens[-1]}"}
        for path in ("/query", "/queryAll"):
            reply = one.api.call("GET", API + path, query={"q": "SELECT Id FROM Account"}, headers=headers)
            assert reply.status == 400
        for ids in ([id18(f"0031I0000{n:06}") for n in range(2001)], ["x"], [id18("0031I0000000001")] * 2):
            reply = one.api.call("POST", COLLECTION, json={"ids": ids, "fields": ["Id"]}, headers=headers)
            assert reply.status == 400
        reply = one.api.call(
            "POST", COLLECTION, json={"ids": [id18("0031I0000000001")], "fields": ["Id", "id"]}, headers=headers
        )
        assert reply.status == 400


# --- the whole way -----------------------------------------------------------------------------------------

SECTION = """[sources.shop]
type = "salesforce"
organization_id = "{organization}"
[sources.shop.app]
instance_url = "{crm}"
client_id = "$SALESFORCE_CLIENT_ID"
client_secret = "$SALESFORCE_CLIENT_SECRET"

"""
RENAMED = {
    "stop == 'yes'": "HasOptedOutOfEmail | boolean",
    '"name"': '"FirstName"',
    '"surname"': '"LastName"',
    '"email"': '"Email"',
    '"phone"': '"MobilePhone"',
    '"id"': '"Id"',
}


def configured(platforms: Platforms, folder: Path, crm: str) -> Path:
    """Write the platforms' configuration with Salesforce as its source."""
    path = platforms.write_config(folder)
    text = path.read_text()
    begin, end = text.index("[sources.shop]"), text.index("[targets.marketing]")
    rules = text[end:]
    for old, new in RENAMED.items():
        rules = rules.replace(old, new)
    path.write_text(text[:begin] + SECTION.format(organization=Fake.organization, crm=crm) + rules)
    return path


def send(bench: Bench, body: bytes) -> None:
    """Have *body* come in, and do all that follows."""
    connection = bench.config.sources["shop"]
    request = InboundRequest("POST", "https://bridge.example.com/hooks/shop/…", {"content-type": "text/xml"}, body)
    signed = connection.source.sign(request, utc_now())
    bench.store.receive([pipeline.receive(connection, signed, utc_now())])
    bench.settle()


def test_a_message_reaches_all_four_platforms_and_an_opt_out_does(tmp_path: Path) -> None:
    fake = Fake(clock=lambda: utc_now() - timedelta(seconds=60))
    with serve_platforms() as platforms, fake.serve() as crm:
        environ = {
            **platforms.environ,
            "SALESFORCE_CLIENT_ID": fake.client_id,
            "SALESFORCE_CLIENT_SECRET": fake.client_secret,
        }
        config = load(configured(platforms, tmp_path, crm), environ)
        with open_bench(tmp_path, config) as bench:
            ada = fake.create(
                Email="ada@example.com", FirstName="Ada", LastName="Lovelace", MobilePhone="+525512340001"
            )
            send(bench, fake.message(ada, ticked=("LastModifiedDate",)))
            key = RecordKey("shop", ada)
            assert {one.state for one in bench.store.deliveries_of(key)} == {State.SYNCED}
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            held = platforms.sms.person("+525512340001")
            assert held is not None
            assert (held["firstName"], held["lastName"]) == ("Ada", "Lovelace")
            fake.clock = lambda: utc_now() - timedelta(seconds=30)
            fake.change(ada, HasOptedOutOfEmail=True, LastName="")
            send(bench, fake.message(ada, ticked=("LastModifiedDate", "LastName")))
            states = {one.target: one.state for one in bench.store.deliveries_of(key)}
            assert State.OPTED_OUT in states.values()
            assert not platforms.loosened()
            assert len(fake.made("POST", COLLECTION)) == 2
