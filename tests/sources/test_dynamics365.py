"""Dynamics 365: what proves a request, what it says, and the environment's Web API under every reading."""

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
from bridge.sources.dynamics365 import SOURCE, Dynamics365, Key, Settings
from bridge.sources.dynamics365.calls import Environment, environment
from bridge.sources.recording import read_recording
from tests.platforms import open_bench, serve_platforms
from tests.sources.fake_dynamics365 import TENANT
from tests.sources.fake_dynamics365 import Dynamics365 as Fake
from tests.sources.kit import BASE_URL, FIXTURES, NOW, one_change, only, parse_body, vectors

START = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
KEY, OLD = "k7Jq2vXz9LmN4tRb", "the-one-before"
ACME = "https://acme.crm.dynamics.com"
ID, OTHER = "0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7"
ORGANIZATION = "9c1d2e3f-4a5b-4c6d-8e7f-0a1b2c3d4e5f"
VECTORS = {one["id"]: one for one in vectors("dynamics365")}


def with_(*keys: tuple[str, str], **more: Any) -> Dynamics365:
    pairs = keys or (("X-Bridge-Key", KEY), ("X-Bridge-Key", OLD), ("X-Second", "another-key"))
    made = tuple(Key(header, Secret(value)) for header, value in pairs)
    return Dynamics365("crm", Settings(made, **{"api_base": ACME, **more}))


CRM = with_()


def request(body: bytes, url: str = f"{BASE_URL}/hooks/crm", **headers: str) -> InboundRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return InboundRequest("POST", url, named, body)


def recorded(name: str, **more: Any) -> dict[str, Any]:
    """Return the body of a recording, with *more* in it."""
    path = FIXTURES / "dynamics365" / f"{name}.http"
    body: dict[str, Any] = json.loads(read_recording(path.read_bytes(), BASE_URL).body)
    return {**body, **more}


def updated(**columns: Any) -> dict[str, Any]:
    attributes = [{"key": name, "value": value} for name, value in columns.items()]
    return recorded("update", InputParameters=[{"key": "Target", "value": {"Attributes": attributes}}])


# --- verifying -------------------------------------------------------------------------------------------------


def test_the_vector_of_a_header_is_taken() -> None:
    vector = VECTORS["dyn-header"]
    source = with_(*vector["registered"]["pairs"].items())
    headers = {name.lower(): value for name, value in vector["request_headers"].items()}
    assert source.verify(InboundRequest("POST", BASE_URL, headers, b"{}"), NOW).secret_index == 0


def test_the_vector_of_a_query_is_refused() -> None:
    """Whether Dataverse sends it or not: a secret in a URL is in every log on the way."""
    vector = VECTORS["dyn-webhookkey"]
    source = with_(("X-Bridge-Key", vector["registered"]["value"]), ("code", vector["registered"]["value"]))
    with pytest.raises(BadSignature):
        source.verify(request(b"{}", f"{BASE_URL}/hooks/crm?{vector['request_query']}"), NOW)


def test_each_pair_proves_a_request_and_nothing_else_does() -> None:
    for index, headers in enumerate(({"x_bridge_key": KEY}, {"x_bridge_key": OLD}, {"x_second": "another-key"})):
        assert CRM.verify(request(b"no json", **headers), NOW).secret_index == index
    assert CRM.verify(request(b"{}", x_bridge_key="wrong", x_second="another-key"), NOW).secret_index == 2
    for headers in (
        {}, {"x_bridge_key": ""}, {"x_bridge_key": KEY[:-1]}, {"x_bridge_key": f"{KEY},{KEY}"},
        {"x_bridge_key": "another-key"}, {"x_second": KEY}, {"x_bridge_key": "ü"}, {"x_bridge_key": "\ud800"},
        {"x_bridge_key": KEY.upper()}, {"x_ms_dynamics_organization": "acme.crm.dynamics.com"},
    ):  # fmt: skip
        with pytest.raises(BadSignature) as caught:
            CRM.verify(request(b"{}", **headers), NOW)
        assert KEY not in str(caught.value)


def test_the_look_whether_the_url_answers_is_answered_and_nothing_else() -> None:
    assert SOURCE.handshake is not None
    answered = SOURCE.handshake(request(b"", x_ms_dynamics_request_name="URL_VALIDATION"))
    assert answered is not None
    assert answered.body == b""
    for name in ("Update", "", "url_validation"):
        assert SOURCE.handshake(request(b"{}", x_ms_dynamics_request_name=name)) is None
    assert SOURCE.handshake(request(b"{}")) is None


@pytest.mark.parametrize(
    ("keys", "more", "said"),
    [
        ([("X-Bridge-Key", " ")], {}, "keys: a value is empty"),
        ([("X-Bridge-Key", "ü")], {}, "keys: a value is empty"),
        ([("X Key", KEY)], {}, "keys: a header"),
        ([("x-ms-dynamics-organization", KEY)], {}, "keys: a header"),
        ([("Content-Type", KEY)], {}, "keys: a header"),
        ([], {"client_id": Secret("a")}, "client_secret: "),
        ([], {name: Secret("a/b") for name in ("tenant_id", "client_id", "client_secret")}, "tenant_id: "),
        ([], {"login_base": "http://login.example.com"}, "login_base: "),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(
    keys: list[tuple[str, str]], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match="^" + said):
        with_(*keys, **more)
    with pytest.raises(ValueError, match=r"^keys: at least one"):
        Dynamics365("crm", Settings((), ACME))


# --- parsing ---------------------------------------------------------------------------------------------------


def test_events_are_told_apart_by_their_operation_and_by_what_it_did() -> None:
    first = only(CRM, recorded("update"))
    assert first.key == only(CRM, recorded("update"), NOW + timedelta(hours=1)).key
    for more in (
        {"OperationId": OTHER}, {"OrganizationId": OTHER}, {"PrimaryEntityId": OTHER}, {"MessageName": "Upsert"},
        {"OperationCreatedOn": "/Date(1790000000001)/"}, {"InputParameters": updated(a=1)["InputParameters"]},
    ):  # fmt: skip
        assert only(CRM, recorded("update", **more)).key != first.key
    assert only(CRM, recorded("update", CorrelationId=OTHER, Depth=2)).key == first.key


def test_only_one_organisation_counts() -> None:
    ours = with_(organization_id="{" + ORGANIZATION.upper() + "}")
    assert one_change(ours, recorded("update")).account == ORGANIZATION
    assert "another organisation" in only(with_(organization_id=OTHER), recorded("update")).ignored
    assert one_change(with_(organization_id=OTHER), recorded("update", OrganizationId=None)).account is None


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("x", "x"), ("", ""), (None, None), (True, True), (7, 7), (1.5, 1.5), ([], []),
        ({"__type": "OptionSetValue:x", "Value": 1}, 1), ({"Value": None}, None), ({"Value": {"Value": 2}}, 2),
        ([{"Value": 3}, {"Value": 4}], [3, 4]), ({"Id": OTHER.upper(), "Name": "Acme"}, OTHER),
        ("/Date(1790000000999+0200)/", "2026-09-21T14:13:20Z"), ("/Date(0)/", "1970-01-01T00:00:00Z"),
        ("/Date(-62135596800000)/", "0001-01-01T00:00:00Z"), ("Date(1)", "Date(1)"),
    ],
)  # fmt: skip
def test_columns_have_plain_values(value: object, plain: object) -> None:
    change = one_change(CRM, updated(column=value))
    assert (dict(change.fields), change.thin) == ({"column": plain}, False)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"Id": "x"},
        {"Id": "00000000-0000-0000-0000-000000000000"},
        {"Blob": 1},
        [{}],
        "/Date(x)/",
        "/Date(999999999999999)/",
    ],
)
def test_a_column_of_an_unknown_shape_is_not_cleared_but_read(value: object) -> None:
    change = one_change(CRM, updated(column=value, firstname="Zoë"))
    assert (dict(change.fields), change.thin) == ({"firstname": "Zoë"}, True)


@pytest.mark.parametrize("inputs", [None, {}, 7, [], [{"key": 1, "value": 2}], [{"key": "Target"}], [[]],
                                    [{"key": "Target", "value": {"Attributes": {"a": 1}}}]])  # fmt: skip
def test_an_update_that_does_not_say_what_changed_is_read(inputs: object) -> None:
    change = one_change(CRM, recorded("update", InputParameters=inputs))
    assert (change.kind, dict(change.fields), change.thin) == (Kind.CHANGED, {}, True)


def test_the_moment_is_that_of_the_operation_whatever_the_zone() -> None:
    for said in ("/Date(1790000000123)/", "/Date(1790000000123+0200)/", "2026-09-21T14:13:20.123Z"):
        change = one_change(CRM, recorded("update", OperationCreatedOn=said))
        assert change.version.occurred_at == START + timedelta(milliseconds=123)
    for unclear in ("/Date(-1)/", "/Date(999999999999999)/", "2026-09-21T14:13:20", None):
        assert only(CRM, recorded("update", OperationCreatedOn=unclear)).unreadable
    earlier = one_change(CRM, recorded("update")).version
    assert earlier < Version(earlier.occurred_at, "read")


@pytest.mark.parametrize("body", [[], {}, {"a": 1}, b"no json", b"\xff", 7, None])
def test_another_body_is_kept_for_a_look(body: object) -> None:
    with pytest.raises(BadPayload):
        parse_body(CRM, body)


NAMES = ("MessageName", "PrimaryEntityName", "PrimaryEntityId", "OperationCreatedOn", "InputParameters", "key",
         "value", "Attributes", "PostEntityImages", "Target", "Id", "Value", "SubordinateId")  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from([ID, OTHER, "Target", "SubordinateId", "/Date(1790000000000)/", "\ud800", "a\x00b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=9),
    max_leaves=12,
)  # fmt: skip
pairs = st.lists(
    st.fixed_dictionaries({"key": st.sampled_from(["Target", "SubordinateId", "a"]), "value": values})
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    message=st.sampled_from(["Create", "Update", "Delete", "Merge", "Restore", "x"]),
    inputs=pairs | values,
    images=pairs | values,
    more=st.dictionaries(st.sampled_from(NAMES[1:4]), values, max_size=2),
)
def test_whatever_a_genuine_request_holds_it_is_read_or_says_why_not(
    message: str, inputs: Any, images: Any, more: dict[str, Any]
) -> None:
    told = {"MessageName": message, "InputParameters": inputs, "PostEntityImages": images}
    body = recorded("update", **{**told, **more})
    event = only(CRM, body)
    assert bool(event.changes) + bool(event.ignored) + bool(event.unreadable) == 1
    for change in event.changes:
        stored = json.dumps([change.key.source_id, dict(change.fields)], allow_nan=False, ensure_ascii=False)
        assert "\\u0000" not in stored
        stored.encode()  # no lone surrogate either


# --- reading ---------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


class World:
    """A fake environment, and what bridge calls it with."""

    def __init__(self, fake: Fake, url: str, clock: Clock, api: Api, **more: Any) -> None:
        self.fake, self.clock, self.api = fake, clock, api
        self.settings = Settings(
            (Key("X-Bridge-Key", Secret(KEY)),),
            **{
                "api_base": url,
                "tenant_id": Secret(TENANT),
                "client_id": Secret(fake.client_id),
                "client_secret": Secret(fake.client_secret),
                "login_base": url,
                **more,
            },
        )
        self.source = Dynamics365("crm", self.settings)
        found = environment("crm", self.settings)
        assert found is not None
        self.environment: Environment = found

    def read(self, *ids: str, fields: tuple[str, ...] = ("emailaddress1", "telephone1")) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def fails(self, *ids: str) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            self.read(*(ids or (ID,)))
        said = str(caught.value)
        assert not [one for one in (self.fake.client_secret, KEY, *self.fake.tokens) if one in said]
        assert said.endswith(".")
        return caught.value

    def listed(self, since: datetime | None = None) -> list[str]:
        ids, after = [], None
        for _ in range(20):
            page = self.environment.page(self.api, ["emailaddress1"], after, since)
            assert all(one.asked == one.key and one.fields is not None for one in page.records)
            ids += [one.key.source_id for one in page.records]
            if page.after is None:
                return ids
            after = page.after
        raise AssertionError("the list does not end")


@contextmanager
def world(changed: Mapping[str, Any] | None = None, **switches: Any) -> Iterator[World]:
    clock = Clock()
    fake = Fake(clock=clock, **switches)
    with fake.serve() as url, new_session() as session:
        fake.base = url
        api = Api(url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        yield World(fake, url, clock, api, **(changed or {}))


READINGS = [{"in_filter": one, "big_letters": big} for one in ("taken", "refused") for big in (False, True)]
every_reading = pytest.mark.parametrize("switches", READINGS, ids=str)


@every_reading
def test_contacts_are_read_with_the_named_columns_only(switches: dict[str, Any]) -> None:
    with world(**switches) as one:
        ada = one.fake.create(
            emailaddress1="ada@example.com", parentcustomerid=OTHER, new_interests="7,9", gendercode=2
        )
        bob = one.fake.create(emailaddress1="bob@example.com", donotbulkemail=True)
        names = ("emailaddress1", "telephone1", "parentcustomerid", "new_interests", "no_such", "new_secret")
        for _ in range(2):
            first, second, gone, made_up, again = one.read(ada, bob, ID, "bridge-sample", ada, fields=names)
            key = RecordKey("crm", ada)
            fields = {
                "emailaddress1": "ada@example.com",
                "telephone1": None,
                "parentcustomerid": OTHER,
                "new_interests": [7, 9],
            }
            assert first == again == Read(key, key, fields, Version(START, "read"))
            assert (second.fields or {})["emailaddress1"] == "bob@example.com"
            assert (gone.fields, made_up.fields, gone.problem) == (None, None, "")
        (single,) = one.read(bob, fields=("donotbulkemail", "contactid"))
        assert single.fields == {
            "donotbulkemail": True,
            "contactid": bob.upper() if switches["big_letters"] else bob,
        }
        asked = one.fake.made("GET")
        assert len([call for call in asked if "EntityDefinitions" in call.path]) == 1
        assert len([call for call in asked if "CRM.In" in call.path]) == (
            2 if switches["in_filter"] == "taken" else 1
        )
        assert "gendercode" not in json.dumps([call.path for call in asked])
        assert one.read() == []


@every_reading
def test_a_merged_contact_is_read_as_its_survivor(switches: dict[str, Any]) -> None:
    with world(**switches) as one:
        ada, bob, twin = (one.fake.create(emailaddress1=f"{name}@example.com") for name in ("ada", "bob", "twin"))
        one.fake.merge(bob, twin)
        one.fake.merge(ada, bob)
        for reads in (one.read(twin, bob, ada), one.read(twin)):
            assert {read.key.source_id for read in reads} == {ada}
            assert {(read.fields or {})["emailaddress1"] for read in reads} == {"ada@example.com"}
        one.fake.merge(twin, ada)  # a circle
        assert "leads nowhere" in one.read(twin)[0].problem
        one.fake.rows[twin] |= {"merged": True, "masterid": ID}  # and it is gone
        assert one.read(twin)[0].fields is None


def test_a_column_that_was_removed_costs_one_try() -> None:
    with world() as one:
        ada, bob = (one.fake.create(emailaddress1=f"{name}@example.com") for name in ("ada", "bob"))
        one.read(ada, bob)
        del one.fake.types["telephone1"]
        assert all("(HTTP 400)" in read.problem for read in one.read(ada, bob))
        assert [read.fields for read in one.read(ada, bob)] == [
            {"emailaddress1": "ada@example.com"},
            {"emailaddress1": "bob@example.com"},
        ]
        assert len(one.fake.made("GET", "CRM.In")) == 3


def test_a_refused_login_is_told_in_words() -> None:
    with world({"client_secret": Secret("another")}) as one:
        error = one.fails()
        assert "Microsoft Entra ID gives no access token for crm (HTTP 401): check the client id" in str(error)
    with world() as one:
        one.read(ID)
        one.fake.tokens.append("the old one was taken back")
        assert one.read(ID)[0].fields is None
        kept = json.dumps([[call.url, call.request_body, call.response_body] for call in one.api.exchanges])
        assert one.fake.client_secret not in kept


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls", 7),
        ({"status": 500}, "(HTTP 500)", 0),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9),
        ({"status": 403}, "security role", 0),
        ({"status": 401, "times": 2}, "(HTTP 401)", 0),
        ({"status": 301, "headers": {"Location": "/"}}, "redirect", 0),
        ({"how": "drop"}, "cannot be called now", 0),
    ],
)
def test_trouble_on_the_way_teaches_nothing(trouble: dict[str, Any], said: str, retry_after_s: float) -> None:
    with world() as one:
        one.read(ID)
        for ids in ((ID,), (ID, OTHER)):
            found = one.fake.trouble(method="GET", **trouble)
            error = one.fails(*ids)
            assert said in str(error)
            assert error.retry_after_s == retry_after_s
            assert not isinstance(error, BatchUnreadable)
            assert found.times == 0


@pytest.mark.parametrize(
    "body", ["<html>", [], {}, {"value": {}}, {"contactid": OTHER, "modifiedon": "2026-09-21T14:13:20Z"}]
)
def test_nonsense_is_never_taken_for_the_contact(body: object) -> None:
    with world() as one:
        ada, bob = one.fake.create(emailaddress1="ada@example.com"), one.fake.create()
        one.read(ada)
        one.fake.trouble(method="GET", status=200, body=body)
        (read,) = one.read(ada)
        assert read.fields is None
        assert read.problem
        one.fake.trouble(method="GET", status=200, body=body)
        assert isinstance(one.fails(ada, bob), BatchUnreadable)
        assert (one.read(ada)[0].fields or {})["emailaddress1"] == "ada@example.com"


def test_an_answer_without_a_moment_is_a_problem_of_that_contact_alone() -> None:
    with world() as one:
        ada, bob = one.fake.create(), one.fake.create()
        one.fake.rows[ada]["modifiedon"] = None
        first, second = one.read(ada, bob)
        assert "when the contact was last changed" in first.problem
        assert second.fields is not None


def test_without_columns_nothing_is_asked_for() -> None:
    with world() as one:
        one.fake.trouble(path="EntityDefinitions", status=200, body={"value": []})
        assert isinstance(one.fails(), BatchUnreadable)
        one.fake.trouble(path="EntityDefinitions", status=403)
        assert "(HTTP 403)" in str(one.fails())
        assert one.fake.made("GET", "/contacts") == []


# --- the list --------------------------------------------------------------------------------------------------


def test_every_contact_is_listed_once_in_whatever_order_they_were_made() -> None:
    with world() as one:
        assert one.listed() == []
        ids = [one.fake.create(emailaddress1=f"p{n}@example.com") for n in range(1_020)]
        assert one.listed() == sorted(ids)
        assert [call.headers["Prefer"] for call in one.fake.made("GET", "/contacts")] == [
            "odata.maxpagesize=500"
        ] * 4
        one.clock.now += timedelta(seconds=1)
        for source_id in ids[:600]:
            one.fake.change(source_id, telephone1="+14155550123")
        one.fake.merge(ids[0], ids[1])
        assert one.listed(since=START) == sorted(set(ids) - {ids[1]})
        assert one.listed(since=START + timedelta(seconds=1.5)) == sorted(set(ids[:600]) - {ids[1]})


def test_a_list_stands_still_while_rows_are_deleted_and_changed() -> None:
    with world() as one:
        ids = sorted(one.fake.create(emailaddress1=f"p{n}@example.com") for n in range(1_100))
        first = one.environment.page(one.api, ["emailaddress1"], None, START)
        for source_id in [*ids[:300], ids[499]]:
            one.fake.delete(source_id)
        one.clock.now += timedelta(seconds=9)
        one.fake.change(ids[600], emailaddress1="new@example.com")
        again = World(one.fake, one.settings.api_base, one.clock, one.api)  # as after a restart
        second = again.environment.page(one.api, ["emailaddress1"], first.after, START)
        third = again.environment.page(one.api, ["emailaddress1"], second.after, START)
        assert [read.key.source_id for page in (first, second, third) for read in page.records] == ids
        assert third.after is None


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example.com{path}?$skiptoken=1", "{base}.evil.example.com{path}?$skiptoken=1", 7, "", "http://[",
        "{base}/api/data/v9.2/accounts?$skiptoken=1", "{base}{path}", "{base}{path}/../accounts?$skiptoken=1",
        "//127.0.0.1{path}?$skiptoken=1", "{base}{path}?$skiptoken=1 2", "{base}{path}?a=ü",
    ],
)  # fmt: skip
def test_a_link_that_leads_elsewhere_is_not_followed(link: object) -> None:
    with world() as one:
        path = "/api/data/v9.2/contacts"
        made = link.format(base=one.settings.api_base, path=path) if isinstance(link, str) else link
        one.listed()
        one.fake.trouble(method="GET", path="/contacts", status=200, body={"value": [], "@odata.nextLink": made})
        with pytest.raises(SourceUnavailable, match="Check api_base"):
            one.environment.page(one.api, [], None, None)


def test_a_list_that_makes_no_sense_ends_in_a_sentence() -> None:
    with world() as one:
        one.listed()
        for body in ("<html>", "[]", '{"value": 7}'):
            one.fake.trouble(method="GET", path="/contacts", status=200, body=body)
            with pytest.raises(BatchUnreadable):
                one.listed()
        link = f"{one.settings.api_base}/api/data/v9.2/contacts?$skiptoken=1"
        one.fake.trouble(path="/contacts", status=200, body={"value": [], "@odata.nextLink": link}, times=2)
        first = one.environment.page(one.api, [], None, None)
        with pytest.raises(BatchUnreadable, match="does not go on"):
            one.environment.page(one.api, [], first.after, None)


# --- writing ---------------------------------------------------------------------------------------------------


def test_an_opt_out_is_written_and_nobody_is_created_by_it() -> None:
    with world() as one:
        ada = one.fake.create(emailaddress1="ada@example.com", donotbulkemail=False)
        one.environment.opt_out(one.api, ada, "donotbulkemail")
        assert one.fake.rows[ada]["donotbulkemail"] is True
        assert one.fake.rows[ada]["emailaddress1"] == "ada@example.com"
        for source_id, name in ((ID, "donotbulkemail"), (ada, "no_such"), ("bridge-sample", "donotbulkemail")):
            with pytest.raises(SourceUnavailable):
                one.environment.opt_out(one.api, source_id, name)
        assert set(one.fake.rows) == {ada}


def test_without_an_application_there_is_nothing_to_call_with() -> None:
    assert not CRM.can_read()
    settings = Settings((Key("X-Bridge-Key", Secret(KEY)),), f"{ACME}/")
    assert SOURCE.registrar is None
    assert SOURCE.read_base_url is not None
    assert SOURCE.read_base_url(settings) == ACME
    for make in (SOURCE.lister, SOURCE.writer):
        assert make is not None
        assert make("crm", settings) is None


# --- the whole way ---------------------------------------------------------------------------------------------


def test_a_webhook_becomes_a_contact_on_four_platforms(tmp_path: Path) -> None:
    fake = Fake()
    with serve_platforms() as platforms, fake.serve() as url:
        fake.base = url
        path = platforms.write_config(tmp_path)
        head, rest = path.read_text().split("[sources.shop]")
        _, targets = rest.split("[targets.marketing]")
        section = f"""[sources.shop]
type = "dynamics365"
keys = [{{ header = "X-Bridge-Key", value = "$SHOP_SECRET" }}]
api_base = "{url}"
login_base = "{url}"
tenant_id = "$TENANT"
client_id = "$CLIENT_ID"
client_secret = "$CLIENT_SECRET"

"""
        named = {
            "\"stop == 'yes'\"": '"donotbulkemail | boolean"',
            '"email"': '"emailaddress1"',
            '"name"': '"firstname"',
            '"surname"': '"lastname"',
            '"phone"': '"mobilephone"',
            '"id"': '"contactid"',
        }
        for old, new in named.items():
            targets = targets.replace(f"= {old}", f"= {new}")
        path.write_text(f"{head}{section}[targets.marketing]{targets}")
        environ = {
            **platforms.environ,
            "TENANT": TENANT,
            "CLIENT_ID": fake.client_id,
            "CLIENT_SECRET": fake.client_secret,
        }
        config = load(path, environ)
        shop = config.sources["shop"]
        ada = fake.create(
            emailaddress1="ada@example.com", mobilephone="+525512345678", firstname="Ada", lastname="Lovelace"
        )
        with open_bench(tmp_path, config) as bench:

            def send(message: str, **columns: Any) -> None:
                body = fake.webhook(message, ada, **columns)
                signed = shop.source.sign(request(body, f"{BASE_URL}/hooks/shop"), utc_now())
                bench.store.receive([pipeline.receive(shop, signed, utc_now())])
                bench.settle()

            send("Update", firstname="Ada")
            deliveries = bench.store.deliveries_of(RecordKey("shop", ada))
            assert {one.state for one in deliveries} == {State.SYNCED}
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            send("Update", donotbulkemail=True)  # not read again: the webhook says it
            states = {one.target: one.state for one in bench.store.deliveries_of(RecordKey("shop", ada))}
            assert states["marketing"] is State.OPTED_OUT
            assert len(fake.made("GET", "/contacts")) == 1
