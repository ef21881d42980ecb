"""Freshsales: what workflows send, and its contacts over real HTTP, under every reading of what is unknown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.config import load
from bridge.errors import BadPayload, BadSignature, SourceUnavailable
from bridge.model import InboundRequest, Kind, RecordKey, Secret, State, Version
from bridge.outbound import Api, new_session
from bridge.sources.base import BatchUnreadable, Listed, Lister, Read, Writer
from bridge.sources.freshsales import SOURCE, Freshsales, Settings, base_url
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_freshsales import Freshsales as Fake
from tests.sources.kit import BASE_URL, NOW, connection, one_change, only, parse_body, vectors

START = datetime(2026, 9, 21, 14, 0, 0, tzinfo=UTC)
CRM = connection("freshsales").source
READING = Freshsales("crm", Settings((Secret("t"),), "acme.myfreshworks.com", Secret("key")))
CONTACT: dict[str, Any] = {"id": "7", "updated_at": "2026-09-21T14:13:20Z", "email": "ada@example.com"}


def body(action: str = "updated", **contact: Any) -> dict[str, Any]:
    return {"event": f"contact.{action}", "account": "acme", "contact": {**CONTACT, **contact}}


# --- webhooks --------------------------------------------------------------------------------------------


def test_the_token_is_one_of_those_configured_and_no_other() -> None:
    (vector,) = vectors("freshsales")
    tokens = tuple(Secret(token) for token in vector["secrets"])
    source = Freshsales("crm", Settings(tokens, "acme.myfreshworks.com"))
    request = InboundRequest("POST", BASE_URL, {}, b"{}")
    for number, token in enumerate(vector["accept"]):
        shown = replace(request, headers={vector["header"].lower(): token, "user-agent": "x"})
        genuine = source.verify(shown, NOW)
        assert genuine.secret_index == number
        assert dict(genuine.request.headers) == {"user-agent": "x"}
    for token in vector["must_fail"]:
        with pytest.raises(BadSignature):
            source.verify(replace(request, headers={"x-bridge-token": token}), NOW)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings((), "acme.myfreshworks.com"), "secrets: at least one"),
        (Settings((Secret(" "),), "acme.myfreshworks.com"), "secrets: one is empty"),
        (Settings((Secret("t"),), "acme"), "domain: this is no host"),
        (Settings((Secret("t"),), "evil.example/x?.myfreshworks.com"), "domain: this is no host"),
        (Settings((Secret("t"),), "acme.freshsales.io", Secret(" ")), "token: it is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Freshsales("crm", settings)


def test_the_domain_says_where_the_api_is() -> None:
    tokens = (Secret("t"),)
    assert base_url(Settings(tokens, "Acme.myfreshworks.com")) == "https://acme.myfreshworks.com/crm/sales/api"
    assert base_url(Settings(tokens, "acme.freshsales.io")) == "https://acme.freshsales.io/api"
    assert base_url(Settings(tokens, "x.example", api_base="http://127.0.0.1:1/api/")) == "http://127.0.0.1:1/api"


def test_where_contacts_are_read_a_body_is_a_hint_only() -> None:
    change = one_change(READING, body(email='a "quoted" one', custom_field={"cf_tier": "x"}))
    assert (change.fields, change.thin, change.kind) == ({}, True, Kind.CHANGED)
    assert change.version.occurred_at == datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
    assert one_change(CRM, body()).fields == CONTACT


def test_what_is_empty_in_a_body_never_reads_as_cleared() -> None:
    empty: dict[str, Any] = {
        "email": "",
        "first_name": None,
        "tags": [],
        "custom_field": {"cf_a": "  ", "cf_b": "{{contact.cf_b}}"},
    }
    assert one_change(CRM, body(**empty)).fields == {"id": "7", "updated_at": CONTACT["updated_at"]}
    assert one_change(CRM, body(lead_score=0, keep=False)).fields["lead_score"] == 0
    assert one_change(CRM, body(emails=[7], custom_field="x")).fields == CONTACT


@pytest.mark.parametrize("at", [None, "", "21 Sep, 2026", "2026-09-21 14:13", "{{contact.updated_at}}", 7])
def test_without_a_time_each_receipt_counts(at: object) -> None:
    stop, start = (body(updated_at=at, cf=value) for value in ("yes", "no"))
    events = [only(CRM, one, NOW + timedelta(seconds=n)) for n, one in enumerate([stop, start, stop])]
    assert len({event.key for event in events}) == 3
    assert [event.changes[0].version.occurred_at for event in events] == [
        NOW + timedelta(seconds=n) for n in range(3)
    ]
    # Nothing proves that it is newer than a deletion.
    assert one_change(CRM, body("created", updated_at=at)).kind is Kind.CHANGED


def test_a_repeat_is_no_other_event_and_another_content_is() -> None:
    first = only(CRM, body())
    assert only(CRM, body(), NOW + timedelta(hours=1)).key == first.key
    others = [body("created"), body(email="x"), body(id="8"), {**body(), "account": "other"}]
    assert len({first.key, *(only(CRM, one).key for one in others)}) == 5


def test_a_deletion_is_newer_than_all_that_was_said_before() -> None:
    created, deleted = one_change(CRM, body("created")), one_change(CRM, body("deleted"))
    assert deleted.kind is Kind.DELETED
    assert deleted.version > created.version
    assert deleted.version.occurred_at == NOW


def test_only_the_configured_account_is_listened_to() -> None:
    source = Freshsales("crm", Settings((Secret("t"),), "acme.freshsales.io", account="acme"))
    assert one_change(source, body()).account == "acme"
    assert "another Freshsales account" in only(source, {**body(), "account": "other"}).ignored
    # What does not say where it is from cannot be told apart.
    assert one_change(source, {**body(), "account": "{{account}}"}).account is None


@pytest.mark.parametrize(
    "odd", [b"[]", b"7", b"{}", b'{"event": 7}', b'{"event":"contact.updated","contact":{"a":"b"c"}}']
)
def test_what_is_no_body_of_ours_is_a_bad_payload(odd: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_body(CRM, odd)


def test_events_that_make_no_sense_say_why() -> None:
    for one in (
        body(id=None),
        body(id="x"),
        body(id=1.5),
        {**body(), "contact": "7"},
        {"event": "contact.deleted"},
    ):
        assert only(CRM, one).unreadable.endswith(".")
    for word in ("contact", "contact.", "lead.created", "", "contact.merged"):
        assert only(CRM, {**body(), "event": word}).ignored


# --- the account -----------------------------------------------------------------------------------------


@dataclass
class World:
    fake: Fake
    api: Api
    settings: Settings

    @property
    def lister(self) -> Lister:
        assert SOURCE.lister is not None
        found = SOURCE.lister("crm", self.settings)
        assert found is not None
        return found

    @property
    def writer(self) -> Writer:
        assert SOURCE.writer is not None
        found = SOURCE.writer("crm", self.settings)
        assert found is not None
        return found

    def read(self, *ids: str, fields: tuple[str, ...] = ("email", "cf_tier")) -> list[Read]:
        return Freshsales("crm", self.settings).read(self.api, [RecordKey("crm", one) for one in ids], fields)

    def page(self, after: str | None = None, since: datetime | None = None) -> Listed:
        return self.lister.page(self.api, ("email",), after, since)

    def rest(self, after: str | None = None, since: datetime | None = None) -> list[str]:
        """List from *after* to the end."""
        ids: list[str] = []
        for _ in range(100):
            page = self.page(after, since)
            ids += [one.key.source_id for one in page.records]
            if page.after is None:
                return ids
            after = page.after
        raise AssertionError("the list has no end")


@contextmanager
def world(key: str = Fake.key, **switches: Any) -> Iterator[World]:
    fake = Fake(**switches)
    fake.clock = lambda: START
    with fake.serve() as url, new_session() as session:
        api = Api(url, session=session, connect_timeout_s=2, read_timeout_s=0.5)
        yield World(fake, api, Settings((Secret("t"),), "acme.myfreshworks.com", Secret(key), api_base=url))


@pytest.mark.parametrize("deleted", Fake.SWITCHES["deleted"])
def test_only_the_named_fields_are_read(deleted: str) -> None:
    with world(deleted=deleted) as one:
        ada = one.fake.add(email="ada@example.com", cf_tier="Gold", first_name="Ada")
        blank, gone = one.fake.add(), one.fake.add()
        one.fake.delete(gone)
        first, second, third, fourth = one.read(ada, blank, gone, "999999999999")
    assert first.fields == {"email": "ada@example.com", "cf_tier": "Gold"}
    assert first.version is not None
    assert first.version.occurred_at == START
    assert second.fields == {"email": None}, "null is empty; a field that the account does not show is not known"
    assert (third.fields, third.version, third.problem) == (None, None, "")
    assert (fourth.fields, fourth.problem) == (None, "")


def test_of_two_readings_of_one_second_the_later_counts() -> None:
    with world() as one:
        ada = one.fake.add(email="z@example.com")
        (before,) = one.read(ada)
        (listed,) = one.page().records
        assert before.version is not None
        assert listed.version is not None
        assert listed.version < before.version, "a list may be behind what is read by the id"
        assert Version(START, "f" * 64) < listed.version, "what is read wins over a webhook of the same second"
        one.fake.clock = lambda: START + timedelta(seconds=1)
        (after,) = one.read(ada)
        assert after.version is not None
        assert after.version > before.version
        assert after.version.occurred_at == before.version.occurred_at


def test_the_same_contact_is_read_once_and_answered_in_order() -> None:
    with world() as one:
        ada, bob = one.fake.add(email="a@example.com"), one.fake.add(email="b@example.com")
        reads = one.read(bob, ada, bob)
        assert [read.key.source_id for read in reads] == [bob, ada, bob]
        assert len(one.fake.calls) == 2
        assert one.read() == []


@pytest.mark.parametrize(
    ("trouble", "said", "unreadable"),
    [
        ({"status": 401}, "refuses the credentials of crm (HTTP 401)", False),
        ({"status": 403}, "they do not allow this call (needed: to see and edit contacts)", False),
        ({"status": 429, "headers": {"Retry-After": "7"}}, "fewer calls (HTTP 429)", False),
        ({"status": 500, "body": "<html>"}, "(HTTP 500)", False),
        ({"status": 301, "headers": {"Location": "http://127.0.0.1/"}}, "redirect", False),
        ({"how": "drop"}, "cannot be called now", False),
        ({"status": 200, "body": "<html>a proxy"}, "not JSON", True),
        ({"status": 200, "body": '{"contact": {"lead_score": NaN}}'}, "not JSON", True),
        ({"status": 200, "body": {"contact": {"id": 5}}}, "not the contact that was asked for", True),
        ({"status": 200, "body": []}, "not the contact that was asked for", True),
        ({"status": 422}, "(HTTP 422)", True),
    ],
)
def test_trouble_on_the_way_teaches_nothing(trouble: dict[str, Any], said: str, unreadable: bool) -> None:
    with world() as one:
        ada = one.fake.add(email="a@example.com")
        one.fake.trouble(**trouble)
        if unreadable:
            (read,) = one.read(ada)
            assert (read.fields, read.version) == (None, None)
            assert said in read.problem
            return
        with pytest.raises(SourceUnavailable) as caught:
            one.read(ada)
        assert said in str(caught.value)
        assert Fake.key not in str(caught.value)
        assert caught.value.retry_after_s == (7 if trouble.get("status") == 429 else 0)


def test_a_spent_quota_keeps_what_was_read_and_calls_no_more() -> None:
    with world() as one:
        ids = [one.fake.add(email=f"{n}@example.com") for n in range(5)]
        one.fake.calls_left = 2
        reads = one.read(*ids)
        assert [read.fields is not None for read in reads] == [True, True, False, False, False]
        assert all("fewer calls" in read.problem for read in reads[2:])
        assert len(one.fake.calls) == 3
        with pytest.raises(SourceUnavailable) as caught:
            one.read(*ids)
        assert caught.value.retry_after_s == 30


def test_a_wrong_key_is_named() -> None:
    with world(key="wrong") as one:
        with pytest.raises(SourceUnavailable, match="refuses the credentials of crm"):
            one.read("1")
        with pytest.raises(SourceUnavailable, match="refuses the credentials of crm"):
            one.page()


def test_an_answer_without_a_time_is_a_problem_of_that_contact() -> None:
    with world() as one:
        ada = one.fake.add()
        one.fake.contacts[int(ada)]["updated_at"] = "yesterday"
        assert "when the contact was last changed" in one.read(ada)[0].problem
        assert one.page().records[0].problem


# --- lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", Fake.SWITCHES["largest_page"])
@pytest.mark.parametrize("end", Fake.SWITCHES["behind_the_last_page"])
def test_every_contact_is_listed_once_however_large_a_page_is(size: int, end: str) -> None:
    with world(largest_page=size, behind_the_last_page=end) as one:
        ids = [one.fake.add(START + timedelta(seconds=n // 3)) for n in range(110)]
        one.fake.delete(ids.pop(50))
        first = one.page()
        assert first.total == 109
        assert all(read.asked == read.key and read.fields == {"email": None} for read in first.records)
        assert one.rest() == ids
    with world(largest_page=size, behind_the_last_page=end) as one:
        assert one.rest() == []


def test_contacts_of_one_moment_over_several_pages() -> None:
    with world(largest_page=25, total="untold") as one:
        ids = [one.fake.add(START) for _ in range(90)]
        assert one.page().total is None
        assert one.rest() == ids


@pytest.mark.parametrize("same", [True, False])
def test_rows_that_go_between_pages_hide_nobody(same: bool) -> None:
    with world(largest_page=25) as one:
        ids = [one.fake.add(START + timedelta(seconds=0 if same else n)) for n in range(150)]
        first = one.page()
        second = one.page(first.after)
        seen = {read.key.source_id for read in (*first.records, *second.records)}
        assert seen == set(ids[:50])
        # More than a page of those that were read goes away: what comes behind moves onto the first page.
        for gone in ids[:40]:
            one.fake.delete(gone)
        assert set(one.rest(second.after)) >= set(ids[50:])


def test_whoever_is_changed_meanwhile_comes_again_and_hides_nobody() -> None:
    with world(largest_page=25) as one:
        ids = [one.fake.add(START + timedelta(seconds=n)) for n in range(100)]
        seen: list[str] = []
        after, later = None, START + timedelta(hours=1)
        for number in range(12):
            page = one.page(after)
            seen += [read.key.source_id for read in page.records]
            after = page.after
            if after is None:
                break
            for changed in ids[number * 7 : number * 7 + 7] if number < 5 else ():
                one.fake.change(changed, later + timedelta(seconds=number), email="x")
        assert after is None
        assert set(seen) == set(ids)
        assert seen.count(ids[0]) == 2


@pytest.mark.parametrize("number", [0, 24, 25, 26, 149])
def test_since_begins_at_its_page(number: int) -> None:
    with world(largest_page=25) as one:
        ids = [one.fake.add(START + timedelta(seconds=n)) for n in range(150)]
        since = START + timedelta(seconds=number)
        assert one.rest(since=since) == ids[number:]
        assert len(one.fake.made("GET", "/view/")) <= 8 + 2 * 7
        assert one.rest(since=START + timedelta(days=1)) == []


def test_since_ends_where_a_crm_gives_its_last_page_for_ever() -> None:
    with world(largest_page=25, behind_the_last_page="last_page") as one:
        ids = [one.fake.add(START + timedelta(seconds=n)) for n in range(60)]
        assert one.rest(since=START + timedelta(seconds=58)) == ids[58:]
        assert one.rest(since=START + timedelta(days=1)) == []


def test_a_list_in_another_order_is_no_list() -> None:
    with world(order="newest_first") as one:
        for n in range(3):
            one.fake.add(START + timedelta(seconds=n))
        with pytest.raises(SourceUnavailable, match="in the order of their last change"):
            one.page()


def test_the_view_is_found_by_its_name_or_configured() -> None:
    with world() as one:
        one.fake.add()
        page = one.page()
        assert len(one.fake.made("GET", "/contacts/filters")) == 1
        one.rest(page.after)
        assert len(one.fake.made("GET", "/contacts/filters")) == 1, "it is remembered with the place"
        one.fake.views = [{"id": 1, "name": "Tous les contacts"}, {"name": "All Contacts"}, 7]  # type: ignore[list-item]
        with pytest.raises(SourceUnavailable, match="no view named All Contacts"):
            one.page()
        one.settings = replace(one.settings, view_id=Fake.view)
        assert one.page().records


@pytest.mark.parametrize(
    "answer",
    [[], {}, {"contacts": {}}, {"contacts": [7]}, {"contacts": [{"id": None}]}, {"contacts": [{"id": "x y"}]}],
)
def test_an_answer_that_is_no_list_is_none(answer: object) -> None:
    with world() as one:
        one.settings = replace(one.settings, view_id=1)
        one.fake.trouble(status=200, body=answer)
        with pytest.raises(BatchUnreadable):
            one.page()


# --- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_put", ["whole", "without_custom_fields"])
def test_an_opt_out_is_written_into_the_named_custom_field(after_put: str) -> None:
    with world(after_put=after_put) as one:
        ada = one.fake.add(email="ada@example.com", cf_note="x")
        one.writer.opt_out(one.api, ada, "cf_optout")
        one.writer.opt_out(one.api, ada, "cf_optout")
        held = one.fake.contacts[int(ada)]
        assert held["custom_field"] == {"cf_optout": True, "cf_note": "x"}
        assert held["email"] == "ada@example.com"
        one.settings = replace(one.settings, opt_out_value="stop")
        one.writer.opt_out(one.api, ada, "cf_note")
        assert held["custom_field"]["cf_note"] == "stop"


def test_what_was_not_written_is_told() -> None:
    with world(after_put="not_taken") as one:
        ada = one.fake.add()
        with pytest.raises(SourceUnavailable, match="does not hold it afterwards"):
            one.writer.opt_out(one.api, ada, "cf_optout")
        for name in ("email", "subscription_status", "custom_field"):
            with pytest.raises(SourceUnavailable, match="no custom field"):
                one.writer.opt_out(one.api, ada, name)
        assert len(one.fake.made("PUT")) == 1
        for contact, name in (("1", "cf_optout"), (ada, "cf_none")):
            with pytest.raises(SourceUnavailable):
                one.writer.opt_out(one.api, contact, name)


def test_without_a_key_nothing_is_listed_or_written() -> None:
    settings = Settings((Secret("t"),), "acme.myfreshworks.com")
    assert SOURCE.lister is not None
    assert SOURCE.writer is not None
    assert SOURCE.lister("crm", settings) is None
    assert SOURCE.writer("crm", settings) is None
    assert SOURCE.registrar is None


# --- all the way -----------------------------------------------------------------------------------------


def test_a_webhook_is_read_and_reaches_all_four_platforms(tmp_path: Path) -> None:
    section = '''type = "freshsales"
secrets = ["$SHOP_SECRET"]
domain = "acme.myfreshworks.com"
token = "$FRESHSALES_KEY"
api_base = "{url}"'''
    rules = {'"name"': '"first_name"', '"surname"': '"last_name"', '"phone"': '"mobile_number"'}
    with serve_platforms() as platforms, (fake := Fake()).serve() as url:
        path = platforms.write_config(tmp_path)
        text = path.read_text()
        start, end = text.index('type = "standard_webhooks"'), text.index("[targets.marketing]")
        text = text[:start] + section.format(url=url) + "\n\n" + text[end:]
        for old, new in rules.items():
            text = text.replace(f" = {old}", f" = {new}").replace(f"value = {old}", f"value = {new}")
        path.write_text(text.replace("stop == 'yes'", "cf_optout | boolean"))
        config = load(path, {**platforms.environ, "FRESHSALES_KEY": fake.key})
        ada = fake.add(
            email="ada@example.com", mobile_number="+525512340001", first_name="Ada", last_name="Lovelace"
        )
        sent = {"event": "contact.updated", "contact": {"id": ada, "updated_at": "2026-09-21T14:13:20Z"}}
        with open_bench(tmp_path, config) as bench:
            request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {}, json.dumps(sent).encode())
            bench.receive(config.sources["shop"].source.sign(request, bench.now()))
            bench.settle()
            deliveries = bench.store.deliveries_of(RecordKey("shop", ada))
            assert {one.target: one.state for one in deliveries} == dict.fromkeys(platforms.fakes, State.SYNCED)
            assert platforms.counts() == dict.fromkeys(platforms.fakes, 1)
            assert len(fake.calls) == 1
