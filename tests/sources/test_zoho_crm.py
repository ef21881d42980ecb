"""Zoho CRM: what proves a request, what it says, and the account's API under every reading of what is open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import pipeline
from bridge.config import load
from bridge.errors import BadPayload, BadSignature, SourceUnavailable
from bridge.model import InboundRequest, Kind, RecordKey, Secret, State, Version, utc_now
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Read
from bridge.sources.reading import event_key
from bridge.sources.zoho_crm import NOT_KEPT, SOURCE, Settings, ZohoCrm
from bridge.sources.zoho_crm.calls import Account
from bridge.sources.zoho_crm.calls import account as account_of
from tests.platforms import open_bench, serve_platforms
from tests.sources.fake_zoho_crm import ZohoCrm as Fake
from tests.sources.kit import BASE_URL, NOW, one_change, only, parse_body, vectors

START = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
KEY, OLD = "c3504777-db15-4332-8286-478a1b5006bc", "an-older-secret-of-ours"
CHANNEL = "1105420521999070702"
ID = "6756839000000575405"
VECTORS = {one["id"]: one for one in vectors("zoho_crm")}
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def with_(**more: Any) -> ZohoCrm:
    given = {"secrets": (Secret(KEY), Secret(OLD)), "channel_id": CHANNEL, **more}
    return ZohoCrm("crm", Settings(**given))


CRM = with_()
READING = with_(client_id=Secret("1000.x"), client_secret=Secret("s"), refresh_token=Secret("r"))


def request(body: bytes | Mapping[str, Any], **headers: str) -> InboundRequest:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return InboundRequest("POST", f"{BASE_URL}/hooks/crm", named, content)


def notification(**more: Any) -> dict[str, Any]:
    return {**json.loads(VECTORS["zoho-token"]["body"]), **more}


# --- verifying -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zoho-token", "zoho-token-wrong"])
def test_the_vectors_of_a_channel(name: str) -> None:
    vector = VECTORS[name]
    told = vector["configured"]
    body = VECTORS[vector.get("same_body_as", name)]["body"].encode()
    source = ZohoCrm("crm", Settings((Secret(told["token"]),), told["channel_id"]))
    if vector["accept"]:
        assert source.verify(request(body), NOW).secret_index == 0
    else:
        with pytest.raises(BadSignature):
            source.verify(request(body), NOW)


def test_the_key_of_an_event_is_the_fingerprint_of_the_vector() -> None:
    vector = VECTORS["fp-zoho"]
    assert event_key(*vector["joined"].split("\x1f")) == vector["sha256_hex"]
    assert only(CRM, notification()).key == vector["sha256_hex"]


@pytest.mark.parametrize(
    "changed",
    [
        {"token": KEY[:-1]}, {"token": ""}, {"token": None}, {"token": 7}, {"token": [KEY]}, {"token": KEY + " "},
        {"token": "\ud800"}, {"channel_id": "1"}, {"channel_id": ""}, {"channel_id": int(CHANNEL)},
        {"channel_id": None}, {"channel_id": {"a": 1}}, {"token": None, "TOKEN": KEY}, {"token": "ü" * 36},
    ],
)  # fmt: skip
def test_a_notification_must_show_the_token_and_the_channel(changed: dict[str, Any]) -> None:
    with pytest.raises(BadSignature) as caught:
        CRM.verify(request(notification(**changed)), NOW)
    assert KEY not in str(caught.value)


def test_the_older_secret_counts_while_it_is_changed() -> None:
    assert CRM.verify(request(notification(token=OLD)), NOW).secret_index == 1
    assert CRM.verify(request({}, x_bridge_token=OLD), NOW).secret_index == 1
    assert CRM.sign(request(notification(token="")), NOW).body.count(KEY.encode()) == 1


def test_a_header_that_is_there_must_be_right_whatever_the_body_shows() -> None:
    for given_ in ("", "wrong", f"{KEY},{KEY}", "ü"):
        with pytest.raises(BadSignature):
            CRM.verify(request(notification(), x_bridge_token=given_), NOW)
    renamed = with_(header="X-Zoho-Secret")
    assert renamed.verify(request(b"no json", x_zoho_secret=KEY), NOW).secret_index == 0
    with pytest.raises(BadSignature):
        renamed.verify(request(b"{}", x_bridge_token=KEY), NOW)


ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


@pytest.mark.parametrize(
    "body",
    [
        VECTORS["zoho-token"]["body"],
        VECTORS["zoho-token"]["body"].replace(f'"{KEY}"', f'"{ESCAPED}"'),
        VECTORS["zoho-token"]["body"].replace('"query_params":{}', f'"query_params":{{"token":"{ESCAPED}"}}'),
        VECTORS["zoho-token"]["body"].replace('"query_params":{}', f'"query_params":{{"url":"x?token={KEY}&b"}}'),
        VECTORS["zoho-token"]["body"].replace("{", f'{{"token":"{OLD}",', 1),
    ],
)
def test_what_is_stored_of_a_notification_holds_no_secret_and_says_the_same(body: str) -> None:
    genuine = CRM.verify(request(body.encode()), NOW)
    stored = genuine.request.body
    assert not [key for key in (KEY, OLD) if key.encode() in stored or key in json.dumps(json.loads(stored))]
    assert json.loads(stored)["token"] == NOT_KEPT
    assert json.loads(stored)["ids"] == [ID]
    assert [one.key for one in CRM.parse(genuine, NOW)] == [VECTORS["fp-zoho"]["sha256_hex"]]


@few
@given(body=st.binary(max_size=60) | st.dictionaries(st.text(max_size=4), st.text(max_size=4)).map(
    lambda one: json.dumps({"channel_id": CHANNEL, "operation": "update", **one}).encode()))  # fmt: skip
def test_garbage_without_a_secret_is_refused_and_nothing_else(body: bytes) -> None:
    with pytest.raises(BadSignature):
        CRM.verify(request(body), NOW)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"secrets": ()}, "secrets: at least one"),
        ({"secrets": (Secret(""),)}, "secrets: 16 to 50"),
        ({"secrets": (Secret("x" * 51),)}, "secrets: 16 to 50"),
        ({"channel_id": "12a"}, "channel_id: "),
        ({"channel_id": 2**63}, "channel_id: "),
        ({"header": "Content-Type"}, "header: "),
        ({"header": "a b"}, "header: "),
        ({"module": "Contacts?x"}, "module: "),
        ({"client_id": Secret("1000.x")}, "refresh_token: "),
        ({"accounts_base": "accounts.zoho.eu"}, "accounts_base: "),
        ({"accounts_base": "http://accounts.zoho.eu"}, "accounts_base: "),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="^" + said):
        with_(**more)


def test_the_channel_has_a_number_of_its_own_unless_one_is_given() -> None:
    numbers = {Settings((Secret(KEY),)).channel(name) for name in ("crm", "zoho", "crm")}
    assert len(numbers) == 2
    assert all(one.isdigit() and int(one) < 2**63 for one in numbers)


# --- parsing ---------------------------------------------------------------------------------------------------


def test_an_id_is_never_read_as_a_float() -> None:
    told = parse_body(CRM, notification(ids=[ID, int(ID) + 1, 6.756839e18]))
    ids = [event.changes[0].key.source_id for event in told if event.changes]
    assert ids == [ID, str(int(ID) + 1)]
    assert told[2].unreadable


def test_values_of_a_notification_are_never_taken_for_the_contacts() -> None:
    values = [{"record_id": ID, "values": {"Email_Opt_Out": False, "Phone": None}}]
    change = one_change(CRM, notification(affected_values=values))
    assert (dict(change.fields), change.thin) == ({}, True)


def test_a_repeat_is_told_from_news_by_its_moment() -> None:
    later = NOW + timedelta(seconds=5)
    assert only(CRM, notification()).key == only(CRM, notification(), later).key
    assert only(CRM, notification()).key != only(CRM, notification(server_time=1790000000124)).key
    timeless = notification(server_time="soon")
    assert only(CRM, timeless).key != only(CRM, timeless, later).key
    assert one_change(CRM, timeless, later).version.occurred_at == later


@pytest.mark.parametrize("ids", [None, {}, ID, 7, [ID] * 5_001])
def test_a_notification_without_a_list_of_ids_is_kept_for_a_look(ids: object) -> None:
    with pytest.raises(BadPayload):
        parse_body(CRM, notification(ids=ids))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"id=%ff", "application/x-www-form-urlencoded"),
        (b"", "application/x-www-form-urlencoded"),
        (b"&".join(b"a=1" for _ in range(1_001)), "application/x-www-form-urlencoded"),
        (b"id=1", "application/json"),
        (b"[]", ""),
    ],
)
def test_a_body_of_another_kind_is_kept_for_a_look(body: bytes, kind: str) -> None:
    with pytest.raises(BadPayload):
        parse_body(CRM, body, content_type=kind)


def test_a_form_is_text_that_every_database_can_store() -> None:
    event = only(CRM, b"id=1&a=%00&b=&c=1%2B1&d=x&d=y", content_type="application/x-www-form-urlencoded")
    assert event.changes[0].fields == {"a": "\ufffd", "b": "", "c": "1+1", "d": "y"}
    assert one_change(CRM, b' {"id": 7}', content_type="application/x-www-form-urlencoded").key.source_id == "7"


def test_what_zoho_did_not_fill_in_is_not_cleared() -> None:
    body = {"id": ID, "A": "${!Contacts.A}", "B": "null", "C": None, "D": "", "E": "x"}
    assert one_change(CRM, body).fields == {"D": "", "E": "x"}


def test_a_workflow_without_a_moment_counts_less_than_what_can_be_read() -> None:
    body = {"id": ID, "Email": "ada@example.com", "Modified_Time": "Sep 21, 2026 04:13 PM"}
    assert one_change(CRM, body).fields["Email"] == "ada@example.com"
    change = one_change(READING, body)
    assert (dict(change.fields), change.thin, change.version.occurred_at) == ({}, True, NOW)
    timed = one_change(READING, {**body, "Modified_Time": "2026-09-21T16:13:20+02:00"})
    assert (timed.fields["Email"], timed.thin) == ("ada@example.com", False)
    assert timed.version < Version(timed.version.occurred_at, "read")


def test_the_words_of_a_workflow_may_be_those_of_a_channel() -> None:
    for word, kind in {"create": Kind.CREATED, "Edit": Kind.CHANGED, "DELETE": Kind.DELETED}.items():
        assert one_change(CRM, {"id": ID, "operation": word, "Email": "x"}).kind is kind
    assert only(CRM, {"id": ID, "operation": "convert"}).ignored
    assert only(with_(module="Leads"), {"id": ID, "module": "Leads", "Email": "x"}).changes


NAMES = ("module", "operation", "ids", "id", "server_time", "channel_id", "token", "Modified_Time", "Email")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["Contacts", "update", "delete", ID, "2026-09-21T14:13:20Z", "\ud800", "a\x00b", KEY]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=9),
    max_leaves=12,
)  # fmt: skip


@few
@given(body=st.dictionaries(st.sampled_from(NAMES), values, max_size=9), form=st.booleans())
def test_whatever_a_genuine_request_holds_it_is_read_or_kept_for_a_look(body: dict[str, Any], form: bool) -> None:
    content = "&".join(f"{name}={value!r}" for name, value in body.items()) if form else json.dumps(body)
    headers = {"content_type": "application/x-www-form-urlencoded"} if form else {}
    genuine = CRM.verify(request(content.encode(errors="replace"), x_bridge_token=KEY, **headers), NOW)
    assert KEY.encode() not in genuine.request.body
    try:
        events = CRM.parse(genuine, NOW)
    except BadPayload:
        return
    for event in events:
        assert bool(event.changes) + bool(event.ignored) + bool(event.unreadable) == 1
        stored = json.dumps([dict(change.fields) for change in event.changes], allow_nan=False, ensure_ascii=False)
        assert "\\u0000" not in stored
        stored.encode()  # no lone surrogate either


# --- the account -----------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


class World:
    """A fake account, and what bridge calls it with."""

    def __init__(self, fake: Fake, url: str, clock: Clock, api: Api, **more: Any) -> None:
        self.fake, self.clock, self.api = fake, clock, api
        self.settings = Settings(
            (Secret(KEY), Secret(OLD)),
            **{
                "channel_id": CHANNEL,
                "client_id": Secret(fake.client_id),
                "client_secret": Secret(fake.client_secret),
                "refresh_token": Secret(fake.refresh_token),
                "accounts_base": url,
                "api_base": url,
                **more,
            },
        )
        self.source = ZohoCrm("crm", self.settings)
        found = account_of("crm", self.settings)
        assert found is not None
        self.account: Account = found

    def read(self, *ids: str, fields: tuple[str, ...] = ("Email", "Phone")) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def fails(self) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            self.read(ID)
        said = str(caught.value)
        secrets = (self.fake.client_secret, self.fake.refresh_token, KEY, *self.fake.tokens)
        assert not [one for one in secrets if one in said]
        assert said.endswith(".")
        return caught.value

    def listed(self, since: datetime | None = None) -> list[str]:
        ids, after = [], None
        for _ in range(20):
            page = self.account.page(self.api, ["Email"], after, since)
            assert all(one.asked == one.key for one in page.records)
            ids += [one.key.source_id for one in page.records]
            if page.after is None:
                return ids
            after = page.after
        raise AssertionError("the list does not end")


@contextmanager
def world(changed: Mapping[str, Any] | None = None, **switches: str) -> Iterator[World]:
    clock = Clock()
    fake = Fake(clock=clock, **switches)
    with fake.serve() as url, new_session() as session:
        api = Api(url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        yield World(fake, url, clock, api, **(changed or {}))


@pytest.mark.parametrize("missing", Fake.SWITCHES["missing_ids"])
def test_contacts_are_read_with_the_named_fields_only(missing: str) -> None:
    with world(missing_ids=missing) as one:
        ada = one.fake.create(Email="ada@example.com", Owner={"name": "Bo", "id": "7"}, Email_Opt_Out=False)
        (read,) = one.read(ada, fields=("Email", "Phone", "Owner", "Email_Opt_Out", "id", "No_Such", "a,b"))
        key = RecordKey("crm", ada)
        owner = {"name": "Bo", "id": "7"}
        fields = {"Email": "ada@example.com", "Phone": None, "Owner": owner, "Email_Opt_Out": False, "id": ada}
        assert read == Read(key, key, fields, Version(START, "read"))
        assert "a%2Cb" not in one.fake.made("GET")[-1].path
        (gone,) = one.read("123")
        assert (gone.fields, gone.version, gone.problem) == (None, None, "")
        if missing == "absent":
            assert [read.fields is None for read in one.read("123", ada, "bridge-sample", ada)] == [
                True, False, True, False,
            ]  # fmt: skip
        else:
            with pytest.raises(BatchUnreadable):
                one.read("123", ada)
        asked = len(one.fake.made("GET"))
        assert one.read("bridge-sample")[0].fields is None
        assert one.read() == []
        assert len(one.fake.made("GET")) == asked


def test_more_fields_than_one_call_takes_come_in_several_and_are_as_old_as_the_oldest() -> None:
    with world() as one:
        ada = one.fake.create(Email="ada@example.com", Phone="+14155550123")
        names = ("Email", *(f"F{n:03d}" for n in range(60)), "Phone")
        (read,) = one.read(ada, fields=names)
        assert read.fields == {"Email": "ada@example.com", "Phone": "+14155550123"}
        assert [call.path.count("%2C") for call in one.fake.made("GET")] == [49, 13]
        row = {"id": ada, "Phone": "+1", "Modified_Time": "2026-09-21T16:00:00+02:00"}
        one.fake.trouble(method="GET", status=200, body={"data": [row]})
        (read,) = one.read(ada, fields=names)
        assert read.version == Version(datetime(2026, 9, 21, 14, 0, tzinfo=UTC), "read")
        one.fake.trouble(method="GET", status=200, body={"data": [{**row, "Modified_Time": None}]})
        assert "when the contact was last changed" in one.read(ada, fields=names)[0].problem


def test_an_access_token_is_asked_for_once_and_again_when_it_is_refused() -> None:
    with world() as one:
        one.read(ID)
        one.read(ID)
        assert len(one.fake.tokens) == 1
        one.fake.tokens.append("another one")
        assert one.read(ID)[0].fields is None
        assert one.fake.tokens[2] == "1000.access.2"
        one.fake.token_life_s = 61
        kept = json.dumps(
            [[exchange.url, exchange.request_body, exchange.response_body] for exchange in one.api.exchanges]
        )
        assert one.fake.client_secret not in kept


def test_what_refuses_the_credentials_is_told_in_words() -> None:
    with world({"refresh_token": Secret("another")}) as one:
        assert "without an access token" in str(one.fails())
    with world() as one:
        one.fake.trouble(path="/oauth", status=400, body={"error": "invalid_client"})
        assert "check the client id" in str(one.fails())
        one.fake.scopes = {"coql"}
        assert "ZohoCRM.modules.ALL" in str(one.fails())
        assert not isinstance(one.fails(), BatchUnreadable)


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls", 7),
        ({"status": 500}, "(HTTP 500)", 0),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9),
        ({"status": 403}, "(HTTP 403)", 0),
        ({"status": 401, "times": 2}, "(HTTP 401)", 0),
        ({"status": 404}, "(HTTP 404)", 0),
        ({"status": 301, "headers": {"Location": "/"}}, "redirect", 0),
        ({"status": 304}, "", 0),
        ({"how": "drop"}, "cannot be called now", 0),
    ],
)
def test_trouble_on_the_way_teaches_nothing(trouble: dict[str, Any], said: str, retry_after_s: float) -> None:
    with world() as one:
        one.read(ID)
        one.fake.trouble(method="GET", **trouble)
        error = one.fails()
        assert said in str(error)
        assert error.retry_after_s == retry_after_s
        assert not isinstance(error, BatchUnreadable)


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 400},
        {"status": 400, "body": {"code": "INVALID_DATA", "details": {"param_name": "fields"}}},
        {"status": 400, "body": {"code": "ada@example.com"}},
        {"status": 200, "body": "<html>"},
        {"status": 200, "body": []},
        {"status": 200, "body": {"data": {}}},
    ],
)
def test_trouble_that_may_be_of_the_records_is_told_apart(trouble: dict[str, Any]) -> None:
    with world() as one:
        one.read(ID)
        one.fake.trouble(method="GET", **trouble)
        error = one.fails()
        assert isinstance(error, BatchUnreadable)
        assert "ada@" not in str(error)


@pytest.mark.parametrize(
    "row", [None, 7, {}, {"id": 5}, {"id": "9", "Email": "x", "Modified_Time": "2026-09-21T00:00:00Z"}]
)
def test_another_record_is_never_taken_for_the_contact(row: object) -> None:
    with world() as one:
        one.read(ID)
        one.fake.trouble(method="GET", status=200, body={"data": [row]})
        assert one.read(ID)[0].fields is None


# --- the list --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", Fake.SWITCHES["more"])
def test_every_contact_is_listed_once_however_many_changed_at_the_same_moment(more: str) -> None:
    with world(more=more) as one:
        assert one.listed() == []
        ids = [one.fake.create(Email=f"p{n}@example.com") for n in range(410)]
        assert one.listed() == ids
        assert one.listed(since=START) == ids
        one.clock.now += timedelta(seconds=1)
        for source_id in ids[::2]:
            one.fake.change(source_id, Phone="+14155550123")
        assert one.listed(since=START + timedelta(seconds=0.5)) == ids  # Zoho counts in whole seconds
        assert one.listed(since=START + timedelta(seconds=1)) == ids[::2]
        assert len({call.json["select_query"] for call in one.fake.made("POST", "/coql")}) > 3


def test_a_list_stands_still_while_rows_are_deleted_and_changed() -> None:
    with world() as one:
        ids = [one.fake.create(Email=f"p{n}@example.com") for n in range(450)]
        first = one.account.page(one.api, ["Email"], None, None)
        for source_id in ids[:150]:
            one.fake.delete(source_id)
        one.clock.now += timedelta(seconds=9)
        one.fake.change(ids[420], Email="new@example.com")
        again = World(one.fake, one.settings.api_base, one.clock, one.api)  # as after a restart
        second = again.account.page(one.api, ["Email"], first.after, None)
        third = again.account.page(one.api, ["Email"], second.after, None)
        listed = [record.key.source_id for page in (first, second, third) for record in page.records]
        assert listed == ids
        assert third.after is None


def test_a_list_that_makes_no_sense_ends_in_a_sentence() -> None:
    with world() as one:
        one.fake.create(Email="ada@example.com")
        bodies: list[Any] = ["<html>", [], {"data": None}, {"data": [7]}, {"data": [{"id": "x"}]}]
        for body in bodies:
            one.fake.trouble(path="/coql", status=200, body=body)
            with pytest.raises(BatchUnreadable):
                one.listed()
        one.fake.trouble(path="/coql", status=200, body={"data": [{"id": "5"}]})
        with pytest.raises(BatchUnreadable, match="does not go on"):
            one.account.page(one.api, ["Email"], '{"id":"7"}', None)
        one.fake.scopes = {"modules"}
        with pytest.raises(SourceUnavailable, match=r"ZohoCRM\.coql\.READ"):
            one.listed()


# --- the channel -----------------------------------------------------------------------------------------------

URL = "https://bridge.example.com/hooks/crm/token"
lapsed = pytest.mark.parametrize("lapsed", Fake.SWITCHES["lapsed"])


def test_the_number_of_the_channel_may_be_made_up() -> None:
    with world({"channel_id": None}) as one:
        one.account.register(one.api, URL, [], START)
        assert set(one.fake.channels) == {one.settings.channel("crm")}


@pytest.mark.parametrize("event_names", Fake.SWITCHES["event_names"])
@lapsed
def test_the_channel_is_created_once_and_renewed_before_it_ends(lapsed: str, event_names: str) -> None:
    with world(lapsed=lapsed, event_names=event_names) as one:
        made = one.account.register(one.api, URL, ["Email"], one.clock())
        assert made.done == [f"The channel {CHANNEL} for Contacts was created."]
        assert made.secrets == {}
        kept = json.dumps([[call.request_body, call.response_body] for call in one.api.exchanges])
        assert not [secret for secret in (KEY, URL, one.fake.tokens[0]) if secret in kept]
        assert made.expires_at is not None
        assert timedelta(days=6, hours=20) < made.expires_at - START <= timedelta(days=7)
        channel = one.fake.channels[CHANNEL]
        assert (channel["notify_url"], channel["token"]) == (URL, KEY)
        assert channel["return_affected_field_values"] is False
        again = one.account.register(one.api, URL, ["Email"], one.clock())
        assert (again.expires_at, again.done) == (made.expires_at, [f"The channel {CHANNEL} is as it should be."])
        one.clock.now += timedelta(days=2)
        renewed = one.account.register(one.api, URL, ["Email"], one.clock())
        assert renewed.expires_at == made.expires_at + timedelta(days=2)
        assert "renewed" in renewed.done[0]
        one.clock.now += timedelta(days=30)  # it lapsed
        assert "created" in one.account.register(one.api, URL, ["Email"], one.clock()).done[0]
        calls = [call.method for call in one.fake.made(path="/actions/watch")]
        assert calls.count("POST") == 2
        assert calls.count("PUT") == (2 if lapsed == "listed" else 1)


def test_a_channel_that_does_not_say_how_long_it_lives_is_looked_at_within_the_hour() -> None:
    with world(grants="untold") as one:
        assert one.account.register(one.api, URL, [], START).expires_at == START + timedelta(hours=1)


@pytest.mark.parametrize("wrong", [{"token": OLD}, {"events": ["Contacts.create"]}, {"token": None}])
def test_what_is_not_right_of_the_channel_is_set_right(wrong: dict[str, Any]) -> None:
    with world() as one:
        one.account.register(one.api, URL, [], START)
        one.fake.channels[CHANNEL] |= wrong
        assert "renewed" in one.account.register(one.api, URL, [], START).done[0]
        assert one.fake.channels[CHANNEL]["token"] == KEY
        assert len(one.fake.channels[CHANNEL]["events"]) == 3


def test_a_channel_that_leads_elsewhere_is_left_alone() -> None:
    with world() as one:
        one.account.register(one.api, "https://other.example.com/secret", [], START)
        with pytest.raises(SourceUnavailable, match="leads to another URL") as caught:
            one.account.register(one.api, URL, [], START)
        assert "other.example" not in str(caught.value)
        assert one.account.remove(one.api, URL) == []
        assert one.fake.channels[CHANNEL]["notify_url"] == "https://other.example.com/secret"


@lapsed
def test_our_own_channel_is_removed(lapsed: str) -> None:
    with world(lapsed=lapsed) as one:
        assert one.account.remove(one.api, URL) == []
        one.account.register(one.api, URL, [], START)
        one.fake.channels["77"] = {**one.fake.channels[CHANNEL], "channel_id": "77"}
        assert one.account.remove(one.api, URL) == [f"The channel {CHANNEL} was removed."]
        assert set(one.fake.channels) == {"77"}
        assert one.account.remove(one.api, URL) == []


def test_a_channel_that_zoho_refuses_is_told_with_zohos_word_for_it() -> None:
    with world() as one:
        one.fake.trouble(method="POST", path="/watch", status=400, body={"watch": [{"code": "LIMIT_EXCEEDED"}]})
        with pytest.raises(SourceUnavailable, match="HTTP 400, LIMIT_EXCEEDED"):
            one.account.register(one.api, URL, [], START)
        for trouble in ({"status": 403}, {"status": 400}, {"status": 200, "body": {"watch": 7}}):
            one.fake.trouble(method="GET", path="/watch", **trouble)
            with pytest.raises(SourceUnavailable):
                one.account.register(one.api, URL, [], START)
        assert one.fake.channels == {}


# --- writing ---------------------------------------------------------------------------------------------------


def test_an_opt_out_is_written_without_starting_a_workflow() -> None:
    with world() as one:
        ada = one.fake.create(Email="ada@example.com", Email_Opt_Out=False)
        one.account.opt_out(one.api, ada, "Email_Opt_Out")
        assert one.fake.records[ada] == {
            **one.fake.records[ada],
            "Email": "ada@example.com",
            "Email_Opt_Out": True,
        }
        assert one.fake.triggered == []
        for source_id, name in (("123", "Email_Opt_Out"), (ada, "No_Such"), (ada, "a b"), ("x", "Email_Opt_Out")):
            with pytest.raises(SourceUnavailable):
                one.account.opt_out(one.api, source_id, name)


def test_without_an_oauth_client_there_is_nothing_to_call_with() -> None:
    plain = Settings((Secret(KEY),))
    assert not ZohoCrm("crm", plain).can_read()
    for make in (SOURCE.lister, SOURCE.registrar, SOURCE.writer):
        assert make is not None
        assert make("crm", plain) is None


# --- the whole way ---------------------------------------------------------------------------------------------


def test_a_notification_becomes_a_contact_on_four_platforms(tmp_path: Path) -> None:
    fake = Fake()
    with serve_platforms() as platforms, fake.serve() as url:
        path = platforms.write_config(tmp_path)
        head, routes = path.read_text().split("[sources.shop]")
        _, targets = routes.split("[targets.marketing]")
        section = f"""[sources.shop]
type = "zoho_crm"
secrets = ["$SHOP_SECRET"]
client_id = "$ZOHO_CLIENT_ID"
client_secret = "$ZOHO_CLIENT_SECRET"
refresh_token = "$ZOHO_REFRESH_TOKEN"
accounts_base = "{url}"
api_base = "{url}"

"""
        named = {'"stop == \'yes\'"': '"Email_Opt_Out | boolean"', '"email"': '"Email"', '"name"': '"First_Name"',
                 '"surname"': '"Last_Name"', '"phone"': '"Mobile"', '"id"': '"id"'}  # fmt: skip
        for old, new in named.items():
            targets = targets.replace(f"= {old}", f"= {new}")
        path.write_text(f"{head}{section}[targets.marketing]{targets}")
        environ = {
            **platforms.environ,
            "ZOHO_CLIENT_ID": fake.client_id,
            "ZOHO_CLIENT_SECRET": fake.client_secret,
            "ZOHO_REFRESH_TOKEN": fake.refresh_token,
        }
        config = load(path, environ)
        shop = config.sources["shop"]
        ada = fake.create(
            Email="ada@example.com",
            Mobile="+525512345678",
            First_Name="Ada",
            Last_Name="Lovelace",
            Email_Opt_Out=False,
        )
        with open_bench(tmp_path, config) as bench, new_session() as session:
            registrar = account_of("shop", shop.settings)
            assert registrar is not None
            registrar.register(Api(url, session=session), f"{BASE_URL}/hooks/shop", [], utc_now())
            inbound = pipeline.receive(shop, request(fake.notification("insert", ada)), utc_now())
            bench.store.receive([inbound])
            bench.settle()
            deliveries = bench.store.deliveries_of(RecordKey("shop", ada))
            assert {one.state for one in deliveries} == {State.SYNCED}
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            fake.change(ada, Email_Opt_Out=True)
            bench.store.receive([pipeline.receive(shop, request(fake.notification("update", ada)), utc_now())])
            bench.settle()
            states = {one.target: one.state for one in bench.store.deliveries_of(RecordKey("shop", ada))}
            assert states["marketing"] is State.OPTED_OUT
