"""What is particular to Intercom: its signature, its topics, and its API over real HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config import SourceConnection, load
from bridge.contact import merge
from bridge.errors import BadPayload, BadSignature, SourceUnavailable
from bridge.model import Contact, InboundRequest, Kind, RecordKey, Secret, State, Verified, Version, utc_now
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Genuine, Read, Writer
from bridge.sources.intercom import KINDS, SOURCE, Intercom, Settings
from bridge.sources.recording import read_recording
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_intercom import Intercom as Fake
from tests.sources.kit import (
    BASE_URL,
    FIXTURES,
    NOW,
    connection,
    connection_of,
    one_change,
    only,
    parse_body,
    vectors,
)

CRM = connection("intercom").source
ADA = "5ba682d23d7cf92bef87bfd4"
TOLD_AT = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)


def body(name: str, **more: Any) -> dict[str, Any]:
    found = json.loads(read_recording((FIXTURES / "intercom" / f"{name}.http").read_bytes(), BASE_URL).body)
    return {**found, **more}


def about(topic: str, item: Any, **more: Any) -> dict[str, Any]:
    return body("user_updated", topic=topic, data={"type": "notification_event_data", "item": item}, **more)


# --- the signature ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", vectors("intercom"), ids=lambda one: one["id"])
def test_the_vectors(vector: dict[str, Any]) -> None:
    source = Intercom("crm", Settings((Secret("new"), Secret(vector["client_secret"]))))
    request = InboundRequest(
        "POST", BASE_URL, {"x-hub-signature": vector["x_hub_signature"]}, vector["body"].encode()
    )
    assert source.verify(request, NOW) == Genuine(Verified(request), 1)
    upper = vector["x_hub_signature"].removeprefix("sha1=").upper()
    assert source.verify(replace(request, headers={"x-hub-signature": f"sha1={upper}"}), NOW).secret_index == 1
    for wrong in (*vector["must_fail"].values(), "", "sha1=", f"{vector['x_hub_signature']},sha1=00"):
        with pytest.raises(BadSignature):
            source.verify(replace(request, headers={"x-hub-signature": wrong}), NOW)
    with pytest.raises(BadSignature):
        source.verify(replace(request, headers={"x-hub-signature-256": vector["x_hub_signature"]}), NOW)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=60))
def test_no_header_breaks_the_check(signature: str) -> None:
    for given_ in (signature, f"sha1={signature}"):
        with pytest.raises(BadSignature):
            CRM.verify(InboundRequest("POST", BASE_URL, {"x-hub-signature": given_}, b"{}"), NOW)


@pytest.mark.parametrize("more", [{"secrets": ()}, {"secrets": (Secret(" "),)}, {"token": Secret("")}])
def test_settings_that_prove_nothing_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(secrets|token): "):
        Intercom("crm", Settings(**{"secrets": (Secret("s"),), **more}))


# --- notifications ---------------------------------------------------------------------------------------


def test_an_attempt_is_no_other_event() -> None:
    sent = body("user_updated")
    again = {**sent, "delivery_attempts": 2, "first_sent_at": 1, "delivered_at": 7, "delivery_status": "x"}
    assert only(CRM, sent).key == only(CRM, again, NOW + timedelta(minutes=1)).key
    unnamed = [{name: value for name, value in one.items() if name != "id"} for one in (sent, again)]
    assert only(CRM, unnamed[0]).key == only(CRM, unnamed[1]).key != only(CRM, sent).key
    assert len({only(CRM, {**sent, **more}).key for more in ({}, {"id": "x"}, {"app_id": "other"})}) == 3


def test_only_the_configured_workspace_is_heard() -> None:
    for app_id, heard in (("abc123", True), (" abc123", True), ("", True), ("other", False)):
        source = Intercom("crm", Settings((Secret("s"),), app_id=app_id))
        assert bool(only(source, body("user_updated")).changes) is heard
        assert only(source, body("ping")).ignored


@pytest.mark.parametrize("topic", sorted(KINDS))
@pytest.mark.parametrize("item", [None, [], {}, {"type": ["contact"]}, {"id": 7}, {"id": "a b"}, {"contact": 7}])
def test_a_topic_without_a_contact_says_so(topic: str, item: object) -> None:
    event = only(CRM, about(topic, item))
    assert event.unreadable
    assert event.key != only(CRM, body("user_updated")).key


@pytest.mark.parametrize("topic", sorted(KINDS))
def test_no_topic_clears_what_it_does_not_state(topic: str) -> None:
    for item in ({"type": "contact", "id": ADA}, {"type": "x", "contact": {"id": ADA}, "tag": {"id": "7"}}):
        changes = only(CRM, about(topic, item)).changes
        said = {name: value for change in changes for name, value in change.fields.items()}
        assert set(said) <= {"id", "unsubscribed_from_emails", "unsubscribed_from_sms"}
        assert not any(value in (None, "", []) for value in said.values())


def test_a_subscription_is_not_taken_for_the_contact() -> None:
    assert "hold the contact" in only(CRM, body("without_contact")).unreadable


def test_what_a_topic_states_is_as_new_as_its_notification() -> None:
    """A change of a tag or a subscription need not move the contact's own time."""
    for name, said in (("unsubscribed", {"unsubscribed_from_emails": True}), ("untagged", {"tags": ["4390215"]})):
        stated, contact = only(CRM, body(name)).changes
        assert (stated.fields, stated.version.occurred_at) == (said, TOLD_AT)
        assert contact.version.occurred_at == TOLD_AT - timedelta(seconds=1)
        assert not said.keys() & contact.fields.keys()
    # Life and death, too: a contact that is back has not changed.
    life, contact = only(CRM, body("unarchived")).changes
    assert (life.kind, life.version.occurred_at) == (Kind.CREATED, TOLD_AT)
    assert contact.version < life.version


def test_a_tag_is_told_whether_the_contact_beside_it_is_of_before_or_after() -> None:
    item = body("tagged")["data"]["item"]
    for before in (["1"], ["1", "4399420"]):
        tags = {"data": [{"id": one} for one in before], "total_count": len(before)}
        contact = {**item["contact"], "tags": tags}
        for action, expected in (("created", ["1", "4399420"]), ("deleted", ["1"])):
            stated, _ = only(CRM, about(f"contact.user.tag.{action}", {**item, "contact": contact})).changes
            assert stated.fields == {"tags": expected}


def test_tags_that_are_not_all_there_are_not_stated() -> None:
    assert all("tags" not in change.fields for change in only(CRM, body("tagged_many")).changes)
    for tags in ({"data": [{"id": "1"}], "total_count": 2}, {"tags": [{"id": "1"}]}, [{"id": "1"}], None):
        assert "tags" not in one_change(CRM, about("contact.user.updated", {"id": ADA, "tags": tags})).fields
    none = {"id": ADA, "tags": {"data": [], "total_count": 0}}
    assert one_change(CRM, about("contact.user.updated", none)).fields["tags"] == []


def test_of_a_yes_and_a_no_in_one_second_the_no_counts() -> None:
    few = {"contact": {"type": "contact", "id": ADA}}
    told = [
        *only(CRM, about("contact.unsubscribed", few, id="notif_a")).changes,
        *only(CRM, about("contact.subscribed", few, id="notif_b")).changes,
        *only(CRM, body("user_updated", id="notif_c")).changes,
    ]
    for order in permutations(told):
        contact: Contact | None = None
        for change in order:
            contact = merge(contact, change)
        assert contact is not None
        assert contact.fields["unsubscribed_from_emails"].value is True
    later = only(CRM, about("contact.subscribed", few, created_at=1790000001)).changes[0]
    assert contact is not None
    assert merge(contact, later).fields["unsubscribed_from_emails"].value is False
    # Where the contact beside it is still unsubscribed, nothing is loosened.
    unsure = {"contact": {"type": "contact", "id": ADA, "unsubscribed_from_emails": True}}
    assert {
        value
        for change in only(CRM, about("contact.subscribed", unsure)).changes
        for name, value in change.fields.items()
        if name == "unsubscribed_from_emails"
    } == {True}


def test_with_a_token_each_contact_is_read_as_well() -> None:
    """Times are whole seconds: of two webhooks of one second nobody knows the later."""
    source = Intercom("crm", Settings((Secret("s"),), token=Secret("t")))
    assert [change.thin for change in only(source, body("user_created")).changes] == [False, True]
    assert [change.thin for change in only(source, body("deleted")).changes] == [False]


@pytest.mark.parametrize("sent", [b"[]", b"{}", b'{"topic": 7}', b"7", b"", b"\xff"])
def test_what_intercom_never_sends_is_a_bad_payload(sent: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_body(CRM, sent)


def test_a_merge_of_a_contact_with_itself_is_none() -> None:
    item = {"type": "contact", "id": ADA, "merged_from": {"id": ADA}}
    assert "itself" in only(CRM, about("contact.merged", item)).unreadable
    assert only(CRM, about("contact.merged", {**item, "merged_from": None})).unreadable


# --- the API ---------------------------------------------------------------------------------------------


class Account:
    """A fake Intercom and the connection that calls it."""

    def __init__(self, fake: Fake, base_url: str, api: Api, token: str) -> None:
        self.fake, self.api = fake, api
        given = f'token = "{token}"' if token else ""
        self.connection: SourceConnection = connection_of(
            f'[sources.crm]\ntype = "intercom"\nsecrets = ["client"]\n{given}\napi_base = "{base_url}"\n'
        )

    def read(self, *ids: str, fields: tuple[str, ...] = ("email", "phone")) -> list[Read]:
        return self.connection.source.read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def page(self, after: str | None = None, since: datetime | None = None) -> Any:
        lister = self.connection.lister()
        assert lister is not None
        return lister.page(self.api, ("email",), after, since)

    def listed(self, since: datetime | None = None) -> list[str]:
        ids, page = [], self.page(None, since)
        while True:
            ids += [record.key.source_id for record in page.records]
            if page.after is None:
                return ids
            page = self.page(page.after, since)

    def writer(self) -> Writer:
        assert SOURCE.writer is not None
        writer = SOURCE.writer("crm", self.connection.settings)
        assert writer is not None
        return writer

    def fails(self, call: Any, *arguments: Any) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            call(*arguments)
        assert str(caught.value).endswith(".")
        assert Fake.token not in str(caught.value)
        return caught.value


@contextmanager
def account(token: str = Fake.token, **switches: str) -> Iterator[Account]:
    fake = Fake(**switches)
    with fake.serve() as base_url, new_session() as session:
        yield Account(fake, base_url, Api(base_url, session=session, read_timeout_s=0.5), token)


def test_only_the_named_fields_are_read() -> None:
    with account() as one:
        ada = one.fake.create(
            email="ada@example.com", owner_id=1234, location={"type": "location", "city": "London"}
        )
        one.fake.change(ada, custom_attributes={"plan": "gold", "name": "Augusta"})
        names = (
            "email",
            "phone",
            "owner_id",
            "plan",
            "custom_name",
            "name",
            "location_city",
            "tags",
            "no_such_field",
        )
        (read,) = one.read(ada, fields=names)
        key = RecordKey("crm", ada)
        assert read == Read(
            key,
            key,
            {
                "email": "ada@example.com",
                "phone": None,  # known to be empty
                "owner_id": "1234",
                "plan": "gold",
                "custom_name": "Augusta",
                "name": None,
                "location_city": "London",
                "tags": [],
            },
            Version(one.fake.now, "read"),
        )


@pytest.mark.parametrize("archived", Fake.SWITCHES["archived"])
def test_who_is_not_there_is_known_to_be_unknown(archived: str) -> None:
    with account(archived=archived) as one:
        ada, gone = one.fake.create(email="ada@example.com"), one.fake.create()
        one.fake.archive(gone)
        asked = [gone, "bridge-sample", ada, "../contacts", "", ada]
        reads = one.read(*asked)
        assert [read.asked.source_id for read in reads] == asked
        assert [read.fields is not None for read in reads] == [False, False, True, False, False, True]
        assert not any(read.problem for read in reads)
        assert len(one.fake.calls) == 3


@pytest.mark.parametrize("merged", Fake.SWITCHES["merged"])
def test_a_merged_contact_is_its_survivor_or_unknown(merged: str) -> None:
    with account(merged=merged) as one:
        lead, user = one.fake.create(), one.fake.create(email="ada@example.com")
        one.fake.merge(lead, user)
        (read,) = one.read(lead)
        if merged == "survivor":
            assert (read.key.source_id, read.fields) == (user, {"email": "ada@example.com", "phone": None})
        else:
            assert (read.key.source_id, read.fields) == (lead, None)


def test_a_contact_that_the_search_does_not_find_yet_is_read() -> None:
    with account() as one:
        ada = one.fake.create(email="ada@example.com")
        one.fake.lag.add(ada)
        assert one.read(ada)[0].fields is not None
        assert one.listed() == []


@pytest.mark.parametrize("touched", Fake.SWITCHES["touched"])
def test_of_two_answers_with_one_moment_the_later_counts(touched: str) -> None:
    with account(touched=touched) as one:
        ada = one.fake.create()
        versions = [Version(one.fake.now, "00179:notif")]
        for seconds, tag in ((2, "1"), (3, "2"), (2_000_000, "3")):
            one.fake.tick(seconds)
            one.fake.tag(ada, tag)
            (read,) = one.read(ada, fields=("tags",))
            assert read.fields == {"tags": [tag]}
            assert read.version is not None
            versions.append(read.version)
        assert versions == sorted(set(versions))
        one.fake.tag(ada, *(str(n) for n in range(11)))
        assert one.read(ada, fields=("tags",))[0].fields == {}  # they are not all there


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s"),
    [
        ({"status": 401}, "refuses the credentials of crm (HTTP 401)", 0),
        ({"status": 403}, "'Read and list users and companies'", 0),
        ({"status": 429, "headers": {"Retry-After": "8"}}, "fewer calls", 8),
        ({"status": 429}, "fewer calls", 1),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9),
        ({"how": "drop"}, "cannot be called now", 0),
    ],
)
def test_trouble_on_the_way_is_told_and_teaches_nothing(
    trouble: Mapping[str, Any], said: str, retry_after_s: float
) -> None:
    with account() as one:
        ada = one.fake.create()
        one.fake.trouble(**trouble)
        error = one.fails(one.read, ada)
        assert said in str(error)
        assert error.retry_after_s == retry_after_s
        assert not isinstance(error, BatchUnreadable)


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [
        ({"status": 422, "body": {"errors": [{"message": "ada@example.com"}]}}, "HTTP 422"),
        ({"status": 200, "body": "<html>a proxy"}, "not a contact"),
        ({"status": 200, "body": {"type": "list", "data": []}}, "not a contact"),
        ({"status": 200, "body": {"type": "admin", "id": "7"}}, "not a contact"),
        ({"status": 200, "body": {"type": "contact", "id": ADA}}, "when the contact was last changed"),
    ],
)
def test_an_unusable_answer_about_one_contact_says_nothing_against_the_others(
    trouble: Mapping[str, Any], problem: str
) -> None:
    with account() as one:
        bad, good = one.fake.create(), one.fake.create(email="b@example.com")
        one.fake.trouble(**trouble, path=bad)
        first, second = one.read(bad, good)
        assert (first.fields, first.version) == (None, None)
        assert problem in first.problem
        assert "ada@" not in first.problem
        assert (second.fields, second.problem) == ({"email": "b@example.com", "phone": None}, "")


def test_reading_is_offered_where_there_is_a_token_only() -> None:
    with account("wrong") as one:
        assert "HTTP 401" in str(one.fails(one.read, ADA))
    with account("") as one:
        assert not one.connection.source.can_read()
        assert (one.connection.lister(), one.connection.registrar(), one.connection.writer()) == (None, None, None)
        assert "No token" in str(one.fails(one.read, ADA))
        assert one.fake.calls == []
    assert SOURCE.registrar is None


# --- listing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_page", Fake.SWITCHES["last_page"])
def test_all_contacts_are_listed_whatever_is_changed_meanwhile(last_page: str) -> None:
    with account(last_page=last_page) as one:
        one.fake.page_cap = 3
        # Five of one and the same second, so that a page ends among equals.
        ids = [one.fake.create(email=f"p{n}@example.com", role=("user", "lead")[n % 2]) for n in range(5)]
        for n in range(4):
            one.fake.tick()
            ids.append(one.fake.create(email=f"q{n}@example.com"))
        first = one.page()
        assert [record.key.source_id for record in first.records] == ids[:3]
        assert (first.total, first.records[0].fields) == (9, {"email": "p0@example.com"})
        assert first.records[0].version == Version(datetime(2026, 9, 21, 14, tzinfo=UTC), "read")
        one.fake.tick()
        one.fake.archive(ids[1])
        one.fake.archive(ids[3])
        one.fake.change(ids[0], name="again")
        one.fake.change(ids[4], name="later")
        seen = [record.key.source_id for record in first.records]
        after = first.after
        while after is not None:
            page = one.page(after)
            seen += [record.key.source_id for record in page.records]
            after = page.after
        assert set(seen) == set(ids) - {ids[3]}
        assert seen.count(ids[0]) == 2
        assert one.page(first.after).records[0].key.source_id == ids[5]  # after a restart


@pytest.mark.parametrize("compares", Fake.SWITCHES["compares"])
def test_changes_since_are_listed_though_the_search_compares_days(compares: str) -> None:
    with account(compares=compares) as one:
        one.fake.page_cap = 2
        one.fake.create()
        one.fake.tick(86_400 * 3)
        one.fake.create()
        one.fake.tick(60)
        since = one.fake.now
        new = [one.fake.create() for _ in range(3)]
        one.fake.tick(60)
        new.append(one.fake.create())
        assert one.listed(since) == new
        assert one.listed(since + timedelta(microseconds=5)) == new  # times are whole seconds
        assert one.page(None, since).total is None
        assert len(one.listed()) == 6


def test_an_empty_workspace_is_an_empty_list() -> None:
    with account() as one:
        page = one.page()
        assert (list(page.records), page.after, page.total) == ([], None, 0)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"data": None, "pages": {"type": "pages"}},
        {"data": []},
        {"data": [], "pages": {"next": {"page": 2}}},
        {"data": [], "pages": {"next": "https://api.intercom.io/contacts?page=2"}},
    ],
)
def test_a_list_that_does_not_go_on_is_not_taken_for_its_end(answer: object) -> None:
    with account() as one:
        one.fake.trouble(status=200, body=answer)
        one.fails(one.page)
        same = {"data": [], "pages": {"next": {"starting_after": "x"}}}
        one.fake.trouble(status=200, body=same, times=2)
        after = one.page().after
        assert "where it goes on" in str(one.fails(one.page, after))


# --- writing ---------------------------------------------------------------------------------------------


def test_an_opt_out_is_one_field() -> None:
    with account() as one:
        ada = one.fake.create(email="ada@example.com")
        writer = one.writer()
        for name in ("unsubscribed_from_emails", "no_sms", "custom_name", "no_sms"):
            writer.opt_out(one.api, ada, name)
        held = one.fake.contacts[ada]
        assert held["unsubscribed_from_emails"] is True
        assert held["custom_attributes"] == {"no_sms": True, "name": True}
        assert (held["email"], held["name"]) == ("ada@example.com", None)
        calls = len(one.fake.calls)
        assert "Intercom's own" in str(one.fails(writer.opt_out, one.api, ada, "marked_email_as_spam"))
        assert len(one.fake.calls) == calls
        for source_id, name in ((ada, "plan"), (ada, "no_such_attribute"), ("bridge-sample", "no_sms")):
            one.fails(writer.opt_out, one.api, source_id, name)
        one.fake.trouble(status=200, body={"type": "contact", "id": ada, "custom_attributes": {"no_sms": None}})
        assert "did not take" in str(one.fails(writer.opt_out, one.api, ada, "no_sms"))


# --- the whole way ---------------------------------------------------------------------------------------


def test_a_notification_reaches_all_four_platforms(tmp_path: Path) -> None:
    fake = Fake()
    fake.now = utc_now().replace(microsecond=0) - timedelta(minutes=5)
    with fake.serve() as base_url, serve_platforms() as platforms:
        path = platforms.write_config(tmp_path, settle_s=1)
        section = (
            '[sources.shop]\ntype = "intercom"\nsecrets = ["$SHOP_SECRET"]\n'
            f'token = "$INTERCOM_TOKEN"\napp_id = "abc123"\napi_base = "{base_url}"\n\n'
        )
        text = re.sub(r"\[sources\.shop\].*?(?=\[targets)", lambda _: section, path.read_text(), flags=re.DOTALL)
        path.write_text(text)
        config = load(path, {**platforms.environ, "INTERCOM_TOKEN": fake.token})
        with open_bench(tmp_path, config) as bench:

            def send(*sent: bytes) -> None:
                for one in sent:
                    request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {}, one)
                    bench.receive(config.sources["shop"].source.sign(request, utc_now()))
                bench.settle()

            ada = fake.create(email="ada@example.com", phone="+525512340001", name="Ada")
            send(fake.notify("contact.user.created", ada))
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            fake.tick(2)
            # Two changes within one second, and the later of the two notifications comes first.
            fake.change(ada, name="Augusta")
            early = fake.notify("contact.user.updated", ada)
            fake.change(ada, name="Ada King")
            send(fake.notify("contact.user.updated", ada), early)
            held = platforms.sms.person("+525512340001")
            assert held is not None
            assert held["firstName"] == "Ada King"
            fake.tick(2)
            fake.change(ada, custom_attributes={"stop": "yes"})
            send(fake.notify("contact.user.updated", ada))
            states = {one.target: one.state for one in bench.store.deliveries_of(RecordKey("shop", ada))}
            assert states["sms"] is State.OPTED_OUT
            assert platforms.counts() == {"marketing": 1, "sms": 1, "inbox": 1, "register": 1}
            assert platforms.loosened() == []
