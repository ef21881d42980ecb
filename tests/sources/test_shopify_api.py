"""Shopify's API over real HTTP: reading, listing, registering, opting out, and all the way to the platforms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load
from bridge.demo.fakes.server import serve
from bridge.errors import SourceUnavailable
from bridge.model import InboundRequest, RecordKey, Secret, State, Value, Version, iso
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Lister, Read, Registrar, Writer
from bridge.sources.shopify import SOURCE, Settings, Shopify
from tests.platforms import PUBLIC_URL, TOML, Bench, open_bench, serve_platforms
from tests.sources.fake_shopify import Shopify as Fake
from tests.sources.fake_shopify import Subscription
from tests.sources.graphql_of_monday_and_shopify import fields_chosen

START = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
HOOK = f"{PUBLIC_URL}/hooks/crm"
MANY = ("email", "phone", "first_name", "tags", "state", "email_marketing_state", "consent_updated_at",
        "default_address_city", "note", "id", "updated_at")  # fmt: skip
every_reading = pytest.mark.parametrize(
    "switches",
    [{"nodes": nodes, "touches": touches} for nodes in Fake.SWITCHES["nodes"] for touches in (True, False)],
    ids=str,
)


class Shop:
    """A fake shop, the source that reads it, and a clock that stands until it is told to go on."""

    def __init__(self, base_url: str, api: Api, settings: Settings, switches: Mapping[str, Any]) -> None:
        self.now = START
        self.fake = Fake(clock=lambda: self.now, **switches)
        self.base_url, self.api, self.settings = base_url, api, settings
        self.source = Shopify("crm", settings)

    @property
    def lister(self) -> Lister:
        assert SOURCE.lister is not None
        found = SOURCE.lister("crm", self.settings)
        assert found is not None
        return found

    @property
    def registrar(self) -> Registrar:
        assert SOURCE.registrar is not None
        found = SOURCE.registrar("crm", self.settings)
        assert found is not None
        return found

    @property
    def writer(self) -> Writer:
        assert SOURCE.writer is not None
        found = SOURCE.writer("crm", self.settings)
        assert found is not None
        return found

    def read(self, *ids: int, fields: tuple[str, ...] = ("email",)) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", str(one)) for one in ids], fields)

    def list_all(self, since: datetime | None = None) -> list[int]:
        found, after = [], None
        for _ in range(50):
            page = self.lister.page(self.api, ["email"], after, since)
            found += [int(read.key.source_id) for read in page.records]
            if (after := page.after) is None:
                return found
        raise AssertionError("the list has no end")

    def fails(self, call: Any = None) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            (call or (lambda: self.read(1)))()
        said = str(caught.value)
        assert said.endswith(".")
        assert not any(word in said for word in (Fake.token, "hush", "Ada", "example.com"))
        return caught.value


@contextmanager
def shop(
    *, token: str | None = Fake.token, client_id: str = "", full_access: bool = True, **switches: Any
) -> Iterator[Shop]:
    made: list[Shop] = []

    def app(environ: Any, start_response: Any) -> Any:
        return made[0].fake(environ, start_response)

    with serve(app) as base_url, new_session() as session:
        settings = Settings(
            shop="acme.myshopify.com",
            secrets=(Secret("hush"),),
            client_id=client_id,
            token=None if token is None else Secret(token),
            full_access=full_access,
            api_base=base_url,
        )
        api = Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        made.append(Shop(base_url, api, settings, switches))
        yield made[0]


# --- reading ---------------------------------------------------------------------------------------------


@every_reading
def test_only_the_fields_that_are_named_are_read(switches: dict[str, Any]) -> None:
    with shop(**switches) as one:
        ada = one.fake.create(phone="+14155550123", tags=["vip", "eu"], city="London")
        one.now += timedelta(minutes=1)
        one.fake.consent(ada, "UNSUBSCRIBED")
        (read,) = one.read(ada, fields=(*MANY, "no_such_field"))
        key = RecordKey("crm", str(ada))
        expected: dict[str, Value] = {
            "email": "ada@example.com", "phone": "+14155550123", "first_name": "Ada", "tags": ["vip", "eu"],
            "state": "enabled", "email_marketing_state": "unsubscribed", "consent_updated_at": iso(one.now),
            "default_address_city": "London", "note": None, "id": str(ada),
            "updated_at": iso(one.now if switches["touches"] else START),
        }  # fmt: skip
        # As new as the newest of what was read: a consent may change without the customer being changed.
        assert read == Read(key, key, expected, Version(one.now, "read"))
        (read,) = one.read(ada, fields=("first_name",))
        assert read.fields == {"first_name": "Ada"}
        assert fields_chosen(one.fake.calls[-1].json["query"]) == {"nodes", "id", "updatedAt", "firstName"}


@every_reading
def test_answers_go_by_their_ids_and_a_hundred_come_at_once(switches: dict[str, Any]) -> None:
    with shop(**switches) as one:
        ids = [one.fake.create(f"p{n}@example.com", city="x") for n in range(100)]
        gone = ids.pop(50)
        one.fake.delete(gone)
        asked = [*ids, gone]
        reads = one.read(*asked, fields=MANY)
        assert len(one.fake.calls) == 1  # with all that can be asked for
        assert [int(read.asked.source_id) for read in reads] == asked
        emails = [(read.fields or {}).get("email") for read in reads]
        assert emails == [*(f"p{n}@example.com" for n in range(100) if n != 50), None]
        assert [(read.fields, read.version, read.problem) for read in reads[-1:]] == [(None, None, "")]
        assert [read.asked for read in one.read(ids[0], ids[1], ids[0])][2] == RecordKey("crm", str(ids[0]))
        assert one.read() == []
        assert SOURCE.read_limit <= 100


def test_what_the_app_may_not_see_does_not_read_as_cleared() -> None:
    with shop(protected="null", full_access=False) as one:
        ada = one.fake.create()
        assert one.read(ada, fields=("email", "first_name", "note"))[0].fields == {"note": None}
        page = one.lister.page(one.api, ["email", "default_address_city"], None, None)
        assert page.records[0].fields == {}
    with shop() as one:  # it sees all, so null is empty
        ada = one.fake.create(None, phone=None)
        read = one.read(ada, fields=("email", "phone", "default_address_city", "email_marketing_state"))[0]
        assert read.fields == {"email": None, "phone": None, "default_address_city": None}
    with shop(protected="denied") as one:
        error = one.fails()
        assert "no access to 'emailAddress'" in str(error)
        assert "protected customer data" in str(error)
        assert not isinstance(error, BatchUnreadable)
        assert one.read(1, fields=("note",))[0].fields is None


def test_a_webhook_and_the_api_say_the_same() -> None:
    with shop() as one:
        ada = one.fake.create(phone="+14155550123")
        one.now += timedelta(minutes=1)
        bodies = [("customers/update", one.fake.change(ada, first_name="Ida", note="x"))]
        bodies += [("customers_email_marketing_consent/update", one.fake.consent(ada, "SUBSCRIBED"))]
        bodies += [("customers_marketing_consent/update", one.fake.consent(ada, "UNSUBSCRIBED", "phone"))]
        for topic, body in bodies:
            request = InboundRequest("POST", HOOK, {"x-shopify-topic": topic}, body)
            genuine = one.source.verify(one.source.sign(request, one.now), one.now)
            ((told,),) = (event.changes for event in one.source.parse(genuine, one.now))
            (read,) = one.read(ada, fields=tuple(told.fields))
            assert told.fields == read.fields
            assert (told.thin, told.version.occurred_at) == (False, read.version and read.version.occurred_at)


# --- access ----------------------------------------------------------------------------------------------


def test_access_is_given_out_once_and_again_when_it_was_taken_back() -> None:
    with shop(token=None, client_id=Fake.client_id) as one:
        ada = one.fake.create()
        assert one.source.can_read()
        for _ in range(3):
            assert one.read(ada)[0].fields is not None
        assert len(one.fake.made(path="access_token")) == 1
        one.fake.tokens.clear()
        assert one.read(ada)[0].fields is not None
        assert len(one.fake.made(path="access_token")) == 2
        said = " ".join(f"{exchange.request_body}{exchange.response_body}" for exchange in one.api.exchanges)
        assert "hush" not in said
        assert "given-" not in said
    with shop(token=None, client_id="wrong") as one:
        assert "no access token" in str(one.fails())


def test_a_token_that_is_refused_and_one_that_is_missing_are_named_in_words() -> None:
    with shop(token="wrong") as one:
        assert "HTTP 401" in str(one.fails())
        assert len(one.fake.calls) == 1  # there is no other to try
    nothing = Settings(shop="acme.myshopify.com", secrets=(Secret("s"),))
    source = Shopify("crm", nothing)
    assert not source.can_read()
    with pytest.raises(SourceUnavailable, match="client_id"):
        source.read(Api("http://127.0.0.1:9"), [RecordKey("crm", "1")], [])
    for make in (SOURCE.lister, SOURCE.registrar, SOURCE.writer):
        assert make is not None
        assert make("crm", nothing) is None
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(nothing) == "https://acme.myshopify.com"


def test_a_bucket_that_is_empty_is_waited_for_as_long_as_it_takes() -> None:
    with shop() as one:
        ids = [one.fake.create() for _ in range(100)]
        one.fake.available = 50
        error = one.fails(lambda: one.read(*ids, fields=MANY))
        assert "fewer calls" in str(error)
        assert error.retry_after_s == (400 - 50) / 100
        for cost in (None, {}, {"requestedQueryCost": "x"}, {"throttleStatus": {"restoreRate": 0}}):
            body = {"errors": [{"extensions": {"code": "THROTTLED"}}], "extensions": {"cost": cost}}
            one.fake.trouble(status=200, body=body)
            assert one.fails().retry_after_s == 5


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls", 7),
        ({"status": 403}, "HTTP 403", 0),
        ({"status": 402}, "HTTP 402", 0),
        ({"status": 423}, "HTTP 423", 0),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "HTTP 503", 9),
        ({"status": 301, "headers": {"Location": "http://127.0.0.1/"}}, "redirect", 0),
        ({"how": "drop"}, "cannot be called now", 0),
        ({"status": 200, "body": {"errors": [{"extensions": {"code": "INTERNAL_SERVER_ERROR"}}]}}, "INTERNAL", 0),
    ],
)
def test_trouble_on_the_way_is_told_and_teaches_nothing(
    trouble: Mapping[str, Any], said: str, retry_after_s: float
) -> None:
    with shop() as one:
        one.fake.trouble(**trouble)
        error = one.fails()
        assert said in str(error)
        assert not isinstance(error, BatchUnreadable)
        assert error.retry_after_s == retry_after_s


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 400},
        {"status": 200, "body": "<html>a proxy"},
        {"status": 200, "body": {}},
        {"status": 200, "body": {"data": {"nodes": None}}},
        {"status": 200, "body": {"errors": "Ada", "data": {"nodes": []}}},
        {"status": 200, "body": {"errors": [{"message": "Ada", "extensions": {"code": "a person's"}}]}},
        {"status": 200, "body": {"errors": [{"extensions": {"code": "MAX_COST_EXCEEDED"}}]}},
    ],
)
def test_trouble_that_may_be_of_the_records_asked_for_is_told_apart(trouble: Mapping[str, Any]) -> None:
    with shop() as one:
        one.fake.trouble(**trouble)
        assert isinstance(one.fails(), BatchUnreadable)
        assert isinstance(one.fails(lambda: one.read(*range(1, 252))), BatchUnreadable)


def test_an_unusable_answer_about_one_customer_says_nothing_against_the_others() -> None:
    with shop() as one:
        good = {"id": "gid://shopify/Customer/2", "updatedAt": "2026-09-21T14:13:20Z"}
        odd = {"id": "gid://shopify/Customer/1", "updatedAt": None, "defaultEmailAddress": ["x"]}
        one.fake.trouble(
            status=200, body={"data": {"nodes": [good, odd, None, 7, {"id": "gid://shopify/Order/3"}]}}
        )
        first, second, third = one.read(1, 2, 3)
        assert "when the customer was last changed" in first.problem
        assert (second.fields, second.problem) == ({}, "")
        assert (third.fields, third.problem) == (None, "")


# --- listing ---------------------------------------------------------------------------------------------


def test_every_customer_that_is_there_all_along_is_listed_though_others_go() -> None:
    with shop() as one:
        one.fake.most = 3
        ids = [one.fake.create() for _ in range(10)]  # all of one moment
        page = one.lister.page(one.api, ["email"], None, None)
        found = [int(read.key.source_id) for read in page.records]
        for gone in (ids[0], ids[2], ids[5]):  # behind us, where the next page begins, and ahead
            one.fake.delete(gone)
        one.now += timedelta(hours=1)
        one.fake.change(ids[1], note="changed")
        one.fake.change(ids[9], note="changed")
        while page.after:
            page = one.lister.page(one.api, ["email"], page.after, None)
            found += [int(read.key.source_id) for read in page.records]
        assert found == [one for one in ids if one != ids[5]]
        assert all(read.asked == read.key and read.fields == {"email": "ada@example.com"} for read in page.records)


def test_a_delta_holds_what_changed_since_and_a_little_more() -> None:
    with shop() as one:
        old, changed = one.fake.create(), one.fake.create()
        one.now += timedelta(hours=1)
        one.fake.change(changed, note="x")
        new = one.fake.create()
        assert one.list_all(one.now) == [changed, new]
        assert one.list_all(one.now + timedelta(minutes=4)) == [changed, new]  # the search may lag behind
        assert one.list_all(one.now + timedelta(minutes=6)) == []
        assert one.list_all() == [old, changed, new]


def test_a_list_that_makes_no_sense_is_none() -> None:
    with shop() as one:
        assert one.list_all() == []
        going_on: Any = {"hasNextPage": True, "endCursor": None}
        for wrong in (None, {}, {"nodes": None}, {"nodes": [{"id": "x"}]}, {"nodes": [], "pageInfo": going_on}):
            one.fake.trouble(status=200, body={"data": {"customers": wrong}})
            assert isinstance(one.fails(lambda: one.list_all()), BatchUnreadable)


# --- registering -----------------------------------------------------------------------------------------


def test_registering_twice_makes_each_subscription_once() -> None:
    with shop() as one:
        one.fake.most = 4  # they come on several pages
        other = Subscription(
            "gid://shopify/WebhookSubscription/1", "CUSTOMERS_UPDATE", "https://elsewhere.example.com"
        )
        one.fake.subscriptions[other.id] = other
        done = one.registrar.register(one.api, HOOK, ["email"], one.now)
        ours = [made for made in one.fake.subscriptions.values() if made.uri == HOOK]
        assert sorted(made.topic for made in ours) == [
            "CUSTOMERS_CREATE", "CUSTOMERS_DELETE", "CUSTOMERS_DISABLE",
            "CUSTOMERS_EMAIL_MARKETING_CONSENT_UPDATE", "CUSTOMERS_ENABLE", "CUSTOMERS_MARKETING_CONSENT_UPDATE",
            "CUSTOMERS_MERGE", "CUSTOMERS_UPDATE",
        ]  # fmt: skip
        assert "customers/redact" in done.done[-1]
        assert (done.secrets, done.expires_at) == ({}, None)
        again = one.registrar.register(one.api, HOOK, ["email"], one.now)
        assert len(one.fake.subscriptions) == 9
        assert all("already" in said for said in again.done[:-1])
        one.registrar.register(one.api, HOOK, ["tags"], one.now)
        assert len(one.fake.subscriptions) == 11
        assert len(one.registrar.remove(one.api, HOOK)) == 10
        assert one.fake.subscriptions == {other.id: other}
        assert list(one.registrar.remove(one.api, HOOK)) == []


def test_a_subscription_that_sends_only_a_part_is_made_whole() -> None:
    with shop() as one:
        part = Subscription("gid://1", "CUSTOMERS_UPDATE", HOOK, fields=["id"])
        one.fake.subscriptions = {part.id: part}
        done = one.registrar.register(one.api, HOOK, [], one.now)
        assert "less than bridge needs" in " ".join(done.done)
        assert (part.fields, part.format, part.filter) == ([], "JSON", "")


def test_what_cannot_be_subscribed_to_is_told() -> None:
    with shop() as one:
        one.fake.may_hear_of_merges = False
        done = one.registrar.register(one.api, HOOK, [], one.now)
        assert "read_customer_merge" in done.done[-2]
        error = one.fails(lambda: one.registrar.register(one.api, "http://bridge.example.com/x", [], one.now))
        assert "CUSTOMERS_CREATE could not be made. Shopify refuses it (uri)." in str(error)
        for wrong in (None, 7):
            one.fake.trouble(status=200, body={"data": {"webhookSubscriptions": wrong}})
            assert isinstance(one.fails(lambda: one.registrar.remove(one.api, HOOK)), BatchUnreadable)


# --- opting out ------------------------------------------------------------------------------------------


def test_an_opt_out_goes_into_one_channel() -> None:
    with shop() as one:
        ada, other = one.fake.create(phone="+14155550123"), one.fake.create(phone="+14155550124")
        for customer in (ada, other):
            for way in ("email", "phone"):
                one.fake.consent(customer, "SUBSCRIBED", way)
        one.writer.opt_out(one.api, str(ada), "email_marketing_state")
        one.writer.opt_out(one.api, str(ada), "email_marketing_state")
        states = [(found.email_consent.state, found.sms_consent.state) for found in one.fake.customers.values()]
        assert states == [("UNSUBSCRIBED", "SUBSCRIBED"), ("SUBSCRIBED", "SUBSCRIBED")]
        one.writer.opt_out(one.api, str(ada), "sms_marketing_state")
        assert one.fake.customers[ada].sms_consent.state == "UNSUBSCRIBED"


def test_an_opt_out_that_cannot_be_written_is_refused_in_words() -> None:
    with shop() as one:
        ada = one.fake.create(phone=None)
        assert "cannot be written" in str(one.fails(lambda: one.writer.opt_out(one.api, str(ada), "note")))
        assert one.fake.calls == []
        said = str(one.fails(lambda: one.writer.opt_out(one.api, str(ada), "sms_marketing_state")))
        assert "(INVALID, smsMarketingConsent)" in said
        answers: list[Any] = [{}, {"userErrors": []}, {"customer": {"id": "gid://shopify/Customer/5"}}]
        for answer in answers:
            one.fake.trouble(status=200, body={"data": {"customerEmailMarketingConsentUpdate": answer}})
            assert "did not say" in str(
                one.fails(lambda: one.writer.opt_out(one.api, "1", "email_marketing_state"))
            )


# --- all the way -----------------------------------------------------------------------------------------

SECTION = """[sources.shop]
type = "shopify"
shop = "acme.myshopify.com"
secrets = ["hush"]
client_id = "demo-client-id"
full_access = true
api_base = "{base}"

"""


def test_a_webhook_is_read_and_reaches_all_four_platforms(tmp_path: Path) -> None:
    with shop() as one, serve_platforms() as platforms:
        one.now = datetime.now(UTC)
        rest = TOML[TOML.index("[targets.marketing]") :]
        rest = rest.replace("stop == 'yes'", "'unsubscribed' in (email_marketing_state, sms_marketing_state)")
        rest = rest.replace('"name"', '"first_name"').replace('"surname"', '"last_name"')
        text = (TOML.split("[sources.shop]")[0] + SECTION + rest).format(
            base=one.base_url,
            **platforms.urls,
            settle_s=0,
            rate_per_s=1000,
            on_delete="keep",
            sakari_account=platforms.sms.account,
        )
        path = tmp_path / "bridge.toml"
        path.write_text(text)
        with open_bench(tmp_path, load(path, platforms.environ)) as bench:
            ana = one.fake.create("ana@example.com", phone="+525512345678", first_name="Ana", last_name="Ruiz")
            send(bench, "customers/create", one.fake.webhook(ana))
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            held = platforms.sms.person("+525512345678")
            assert held is not None
            assert (held["firstName"], held["lastName"]) == ("Ana", "Ruiz")
            assert len(one.fake.made(path="graphql")) == 1  # what was agreed to is in no webhook of a customer
            one.now += timedelta(seconds=5)
            send(bench, "customers_marketing_consent/update", one.fake.consent(ana, "UNSUBSCRIBED", "phone"))
            states = {found.state for found in bench.store.deliveries_of(RecordKey("shop", str(ana)))}
            assert State.OPTED_OUT in states <= {State.OPTED_OUT, State.SYNCED}
            # The same consent, said to be a deletion by whoever copied it, deletes nobody.
            send(bench, "customers/delete", one.fake.webhook(ana))
            contact = bench.store.contacts({RecordKey("shop", str(ana))})[RecordKey("shop", str(ana))]
            assert contact.alive


def send(bench: Bench, topic: str, body: bytes) -> None:
    headers = {"content-type": "application/json", "x-shopify-topic": topic}
    request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", headers, body)
    bench.receive(bench.config.sources["shop"].source.sign(request, datetime.now(UTC)))
    bench.settle()
