"""Keap's API, over real HTTP, under every reading of what is not documented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config import load
from bridge.contact import merge
from bridge.errors import SourceUnavailable
from bridge.model import Change, InboundRequest, Kind, RecordKey, Secret, State, utc_now
from bridge.outbound import Api, new_session
from bridge.pipeline import receive
from bridge.sources import keap
from bridge.sources.base import BatchUnreadable, Listed, Read
from bridge.sources.keap import SOURCE, Settings, account
from bridge.sources.keap.account import Account
from tests.platforms import PUBLIC_URL, open_bench, serve_platforms
from tests.sources.fake_keap import Keap as Fake
from tests.sources.kit import parse_body

TOKEN = "a-secret-token"
URL = f"https://bridge.example.com/hooks/crm/{TOKEN}"
THEN = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
EMAIL = ("email",)


@dataclass
class One:
    """A fake account, and what calls it."""

    fake: Fake
    api: Api
    source: keap.Keap
    account: Account

    def read(self, *ids: int | str, fields: Sequence[str] = EMAIL) -> list[Read]:
        return self.source.read(self.api, [RecordKey("crm", str(one)) for one in ids], fields)

    def said(self, number: int, *fields: str) -> Mapping[str, Any]:
        (read,) = self.read(number, fields=fields)
        assert read.fields is not None, read.problem
        return read.fields

    def pages(self, since: datetime | None = None) -> Iterator[Listed]:
        after: str | None = None
        while True:
            page = self.account.page(self.api, EMAIL, after, since)
            yield page
            if page.after is None:
                return
            after = page.after

    def listed(self, since: datetime | None = None) -> list[int]:
        return [int(read.key.source_id) for page in self.pages(since) for read in page.records]

    def fails(self) -> SourceUnavailable:
        with pytest.raises(SourceUnavailable) as caught:
            self.read(101)
        assert Fake.key not in str(caught.value)
        return caught.value


@contextmanager
def open_account(
    *, access: Any = "api_key", clock: Callable[[], datetime] = utc_now, **switches: Any
) -> Iterator[One]:
    fake = Fake(clock=clock, **switches)
    with fake.serve() as base_url, new_session() as session:
        settings = Settings(access, Secret(Fake.key), base_url)
        api = Api(base_url, session=session, connect_timeout_s=2, read_timeout_s=0.2)
        assert SOURCE.lister is not None
        lister = SOURCE.lister("crm", settings)
        assert isinstance(lister, Account)
        yield One(fake, api, keap.Keap("crm", settings), lister)


def readings(**switches: Sequence[Any]) -> pytest.MarkDecorator:
    """Test under each value of each of *switches*, one after the other."""
    chosen = [{name: value} for name, values in switches.items() for value in values]
    return pytest.mark.parametrize(
        "switches", chosen, ids=lambda one: "-".join(f"{k}={v}" for k, v in one.items())
    )


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "PAGE", 5)
    monkeypatch.setattr(account, "OVERLAP", 2)


# --- reading ---------------------------------------------------------------------------------------------

ADA: Mapping[str, Any] = {
    "given_name": "Ada",
    "family_name": "Lovelace",
    "job_title": "Analyst",
    "notes": "Likes engines",
    "email_addresses": [
        {"email": "other@example.com", "field": "EMAIL2"},
        {"email": "ada@example.com", "field": "EMAIL1"},
    ],
    "phone_numbers": [
        {"number": "+14155550199", "field": "PHONE1", "type": "Work", "extension": None},
        {"number": "+14155550123", "field": "PHONE2", "type": "Mobile", "extension": None},
    ],
    "addresses": [{"field": "BILLING", "line1": "12 St James's Square", "locality": "London", "zip_code": None}],
    "company": {"id": 5, "company_name": "Engines"},
    "tag_ids": [91],
    "custom": {7: "Gold"},
}


@readings(offset_of_times=Fake.SWITCHES["offset_of_times"], custom_fields=Fake.SWITCHES["custom_fields"])
@pytest.mark.parametrize("access", ["api_key", "bearer"])
def test_a_contact_is_read_flat_and_only_what_is_named(switches: Mapping[str, Any], access: str) -> None:
    with open_account(access=access, clock=lambda: THEN, **switches) as one:
        one.fake.bearer = access == "bearer"
        ada = one.fake.create(**ADA)
        expected = {
            "given_name": "Ada",
            "family_name": "Lovelace",
            "job_title": "Analyst",
            "notes": "Likes engines",
            "email": "ada@example.com",
            "email_2": "other@example.com",
            "email_3": "",
            "phone": "+14155550199",
            "phone_2": "+14155550123",
            "phone_5": "",
            "phone_mobile": "+14155550123",
            "phone_work": "+14155550199",
            "phone_home": "",
            "billing_line1": "12 St James's Square",
            "billing_zip_code": None,
            "shipping_line1": "",
            "company_name": "Engines",
            "company_id": 5,
            "custom_7": "Gold",
            "tag_91": True,
            "tag_92": False,
            "email_opted_in": True,
            "email_status": "SingleOptIn",
            "owner_id": 1,
        }
        # An empty custom field is told by some answers only; one that the account does not have by none.
        if one.fake.switches["custom_fields"] == "all":
            expected["custom_9"] = None
        (read,) = one.read(ada, fields=[*expected, "custom_9", "custom_1000", "website"][: len(expected) + 2])
        assert read.fields == expected
        assert read.version is not None
        assert read.version.occurred_at == THEN
        assert read.key == read.asked == RecordKey("crm", str(ada))


def test_only_what_is_not_told_anyway_is_asked_for() -> None:
    with open_account() as one:
        ada = one.fake.create(**ADA)
        one.read(ada, fields=("email", "given_name"))
        assert [call.path for call in one.fake.calls] == [f"/crm/rest/v1/contacts/{ada}"]
        one.read(ada, fields=("custom_7", "job_title", "email"))
        assert one.fake.calls[-1].path.endswith("?optional_properties=custom_fields%2Cjob_title")
        one.read(ada, fields=("custom_7", "notes", "preferred_name"))
        assert one.fake.calls[-1].path.endswith("?optional_properties=custom_fields%2Cnotes")


@readings(model=Fake.SWITCHES["model"])
def test_what_cannot_be_asked_for_is_not_told_and_not_cleared(switches: Mapping[str, Any]) -> None:
    with open_account(**switches) as one:
        ada = one.fake.create(**ADA)
        said = one.said(ada, "job_title", "notes", "prefix")
        assert said["job_title"] == "Analyst"
        assert said.get("notes", "Likes engines") == "Likes engines"
        assert "prefix" not in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"email_addresses": None}, {}),
        ({"email_addresses": "ada@example.com"}, {}),
        ({"email_addresses": [{"email": ["x"], "field": "EMAIL1"}]}, {}),
        ({"email_addresses": [{"email": "x"}]}, {}),
        ({"email_addresses": [7]}, {}),
        ({"email_addresses": [{"email": None, "field": "EMAIL1"}]}, {"email": ""}),
        ({"email_addresses": []}, {"email": ""}),
    ],
)
def test_an_odd_list_of_addresses_is_never_taken_for_none(change: Mapping[str, Any], expected: Any) -> None:
    with open_account() as one:
        ada = one.fake.create(**{**ADA, **change})
        assert one.said(ada, "email") == expected


def test_each_contact_costs_a_call_and_they_come_as_asked() -> None:
    with open_account() as one:
        ids = [
            one.fake.create(email_addresses=[{"email": f"p{n}@x.example", "field": "EMAIL1"}]) for n in range(5)
        ]
        gone = ids.pop(2)
        one.fake.delete(gone)
        reads = one.read(*reversed(ids), gone, ids[0])
        assert [int(read.asked.source_id) for read in reads] == [*reversed(ids), gone, ids[0]]
        assert [read.fields is None for read in reads] == [False] * 4 + [True, False]
        assert [read.problem for read in reads] == [""] * 6
        assert len(one.fake.calls) == 5
        assert one.read() == []
        assert SOURCE.read_limit <= 20


def test_what_was_read_before_the_quota_ended_is_kept() -> None:
    with open_account() as one:
        ids = [one.fake.create() for _ in range(4)]
        one.fake.trouble(path=f"/contacts/{ids[2]}", status=429, headers={"Retry-After": "60"})
        reads = one.read(*ids)
        assert [read.fields is None for read in reads] == [False, False, True, True]
        assert all("fewer calls" in read.problem for read in reads[2:])
        assert len(one.fake.made("GET", "/contacts/")) == 3  # it was not asked for more
        one.fake.trouble(status=429, headers={"Retry-After": "60"})
        assert one.fails().retry_after_s == 60


def test_an_unusable_answer_about_one_contact_says_nothing_against_the_others() -> None:
    with open_account() as one:
        ids = [one.fake.create() for _ in range(4)]
        one.fake.trouble(path=f"/contacts/{ids[0]}", status=200, body={"id": ids[1]})
        one.fake.trouble(path=f"/contacts/{ids[1]}", status=200, body="<html>")
        one.fake.trouble(path=f"/contacts/{ids[2]}", status=200, body={"id": ids[2], "given_name": "x"})
        reads = one.read(*ids)
        assert [read.fields is None for read in reads] == [True, True, True, False]
        said = ["not the contact that was asked for"] * 2 + ["when the contact was last changed"]
        assert all(text in read.problem for text, read in zip(said, reads, strict=False))


def test_an_opt_out_counts_though_it_may_be_no_change_of_the_contact() -> None:
    with open_account(clock=lambda: THEN) as one:
        ada = one.fake.create(**ADA)
        (before,) = one.read(ada, fields=("email_opted_in",))
        one.fake.change(ada, quietly=True, email_opted_in=False)
        (after,) = one.read(ada, fields=("email_opted_in",))
        contact = None
        for read in (before, after, before):
            assert read.version is not None
            assert read.fields is not None
            contact = merge(contact, Change(read.key, Kind.CHANGED, read.version, read.fields))
        assert contact is not None
        assert contact.fields["email_opted_in"].value is False


def test_a_tag_counts_though_it_may_be_no_change_of_the_contact() -> None:
    now = [THEN]
    with open_account(clock=lambda: now[0]) as one:
        ada = one.fake.create()
        (read,) = one.read(ada, fields=("tag_91",))
        now[0] += timedelta(minutes=1)
        one.fake.tag(ada, 91)
        (event,) = parse_body(one.source, one.fake.hook_of_tag(91, ada), now[0])
        assert read.version is not None
        contact = merge(None, event.changes[0])
        contact = merge(contact, Change(read.key, Kind.CHANGED, read.version, read.fields or {}))
        assert contact.fields["tag_91"].value is True


@pytest.mark.parametrize(
    ("trouble", "said", "retry_after_s"),
    [
        ({"status": 401}, "(HTTP 401)", 0),
        ({"status": 403}, "(HTTP 403)", 0),
        ({"status": 429}, "fewer calls", 1),
        ({"status": 503, "headers": {"Retry-After": "9"}}, "(HTTP 503)", 9),
        ({"status": 500, "body": "<html>"}, "(HTTP 500)", 0),
        ({"status": 301, "headers": {"Location": "http://127.0.0.1/"}}, "redirect", 0),
        ({"how": "drop"}, "cannot be called now", 0),
        ({"how": "slow", "seconds": 0.3}, "did not answer in time", 0),
    ],
)
def test_trouble_on_the_way_is_told_and_teaches_nothing(
    trouble: Mapping[str, Any], said: str, retry_after_s: float
) -> None:
    with open_account() as one:
        one.fake.create()
        one.fake.trouble(**trouble)
        error = one.fails()
        assert said in str(error)
        assert str(error).endswith(".")
        assert error.retry_after_s == retry_after_s
        assert not isinstance(error, BatchUnreadable)
        if "how" not in trouble:
            one.fake.trouble(**trouble)
            with pytest.raises(SourceUnavailable, match=str(trouble["status"]) if said[0] == "(" else said):
                one.account.page(one.api, EMAIL, None, None)


# --- listing ---------------------------------------------------------------------------------------------


@readings(page_cap=Fake.SWITCHES["page_cap"], offset_of_times=Fake.SWITCHES["offset_of_times"])
@pytest.mark.usefixtures("small_pages")
def test_all_contacts_are_listed_once(switches: Mapping[str, Any]) -> None:
    with open_account(**switches) as one:
        assert one.listed() == []
        ids = [one.fake.create() for _ in range(13)]
        assert one.listed() == ids
        totals = [page.total for page in one.pages()]
        assert (totals[0], set(totals[1:])) == (13, {None})
        assert "169.254" not in "".join(call.path for call in one.fake.calls)


@readings(page_cap=Fake.SWITCHES["page_cap"])
@given(
    deeds=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["delete", "delete_much", "create"])), max_size=6)
)
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
def test_nobody_is_left_out_whatever_is_done_between_the_pages(
    switches: Mapping[str, Any], deeds: list[tuple[int, str]]
) -> None:
    with pytest.MonkeyPatch.context() as patched, open_account(**switches) as one:
        patched.setattr(account, "PAGE", 5)
        patched.setattr(account, "OVERLAP", 2)
        ids = [one.fake.create() for _ in range(20)]
        seen: list[int] = []
        for number, page in enumerate(one.pages()):
            seen += [int(read.key.source_id) for read in page.records]
            for at, deed in deeds:
                if at == number:
                    _do(one.fake, deed)
        assert {*ids} & one.fake.contacts.keys() <= {*seen}


def _do(fake: Fake, deed: str) -> None:
    there = sorted(fake.contacts)
    if deed == "create":
        fake.create()
    for number in there[: {"delete": 1, "delete_much": 9}.get(deed, 0)]:
        fake.delete(number)


@pytest.mark.usefixtures("small_pages")
def test_a_list_can_be_gone_on_with_after_a_restart() -> None:
    with open_account() as one:
        ids = [one.fake.create() for _ in range(8)]
        first = one.account.page(one.api, EMAIL, None, None)
        again = [one.account.page(one.api, EMAIL, first.after, None) for _ in range(2)]
        listed = [[int(read.key.source_id) for read in page.records] for page in (first, *again)]
        assert listed[0] == ids[:5]
        assert listed[1] == listed[2] == ids[5:8]
        assert all(read.asked == read.key for read in first.records)


@pytest.mark.usefixtures("small_pages")
def test_what_changed_since_is_listed_and_what_changes_meanwhile_moves_nobody_out() -> None:
    now = [THEN - timedelta(days=1)]
    with open_account(clock=lambda: now[0]) as one:
        old = [one.fake.create() for _ in range(10)]
        now[0] = THEN
        fresh = [one.fake.create() for _ in range(12)]
        assert one.listed(THEN) == fresh
        seen: list[int] = []
        for page in one.pages(THEN):
            seen += [int(read.key.source_id) for read in page.records]
            for number in old:  # they come in before those who were seen
                one.fake.change(number, given_name="x")
        assert {*fresh} <= {*seen}


def test_a_list_in_another_order_is_refused_rather_than_half_read() -> None:
    with open_account(order="ignored") as one:
        for _ in range(3):
            one.fake.create()
        with pytest.raises(SourceUnavailable, match="order of their ids"):
            one.listed()


@pytest.mark.parametrize("body", [[], {}, {"contacts": None}, {"contacts": [{"id": None}]}, "<html>"])
def test_a_page_that_makes_no_sense_is_no_end_of_the_list(body: Any) -> None:
    with open_account() as one:
        one.fake.trouble(status=200, body=body)
        with pytest.raises(BatchUnreadable):
            one.account.page(one.api, EMAIL, None, None)


# --- hooks -----------------------------------------------------------------------------------------------


def echoing(url: str, secret: str) -> bool:
    """Answer as bridge does at the URL with the token."""
    request = InboundRequest("POST", url, {"x-hook-secret": secret}, b"")
    answered = keap.handshake(request) if url.endswith(f"/{TOKEN}") else None
    return answered is not None and answered.headers == {"X-Hook-Secret": secret}


def events_of(one: One) -> dict[str, str]:
    return {hook["eventKey"]: hook["status"] for hook in one.fake.hooks.values() if hook["hookUrl"] == URL}


@readings(verifies=Fake.SWITCHES["verifies"], event_keys=Fake.SWITCHES["event_keys"])
def test_registering_twice_makes_one_verified_hook_for_each_event(switches: Mapping[str, Any]) -> None:
    with open_account(**switches) as one:
        one.fake.asks = echoing
        other = {
            "key": "7",
            "eventKey": "contact.edit",
            "hookUrl": "https://elsewhere.example",
            "status": "Inactive",
        }
        one.fake.hooks["7"] = dict(other)
        first = one.account.register(one.api, URL, EMAIL, THEN)
        contacts = dict.fromkeys(("contact.add", "contact.edit", "contact.delete"), "Verified")
        assert events_of(one) == contacts
        made = len(one.fake.calls)
        second = one.account.register(one.api, URL, EMAIL, THEN)
        assert all("already" in said for said in second.done)
        assert {call.method for call in one.fake.calls[made:]} == {"GET"}
        tags = dict.fromkeys(("contactGroup.applied", "contactGroup.removed"), "Verified")
        one.account.register(one.api, URL, ("email", "tag_91"), THEN)
        assert events_of(one) == contacts | tags
        assert one.fake.hooks["7"] == other
        assert TOKEN not in " ".join([*first.done, *second.done])
        assert not first.secrets
        # Nobody is told when Keap makes one inactive, so the worker looks before long.
        assert first.expires_at == THEN + timedelta(hours=2)


def test_a_hook_that_became_inactive_is_verified_anew_and_a_second_one_removed() -> None:
    with open_account() as one:
        one.fake.asks = echoing
        one.account.register(one.api, URL, EMAIL, THEN)
        (key,) = (key for key, hook in one.fake.hooks.items() if hook["eventKey"] == "contact.edit")
        one.fake.hooks[key]["status"] = "Inactive"
        one.fake.hooks["999"] = {**one.fake.hooks[key], "key": "999"}
        done = one.account.register(one.api, URL, EMAIL, THEN).done
        assert "Verified the hook for contact.edit." in done
        assert any("Removed the hook 999" in said for said in done)
        assert set(events_of(one).values()) == {"Verified"}
        assert len(one.fake.hooks) == 3


def test_a_hook_whose_url_does_not_answer_is_told() -> None:
    with open_account() as one:
        one.fake.asks = lambda _url, _secret: False
        done = one.account.register(one.api, URL, EMAIL, THEN).done
        assert len(done) == 3
        assert all("not verified yet" in said for said in done)
        one.fake.asks = echoing
        assert all(said.startswith("Verified") for said in one.account.register(one.api, URL, EMAIL, THEN).done)


@readings(deletes=Fake.SWITCHES["deletes"])
def test_all_hooks_that_lead_here_are_removed_and_no_others(switches: Mapping[str, Any]) -> None:
    with open_account(**switches) as one:
        one.account.register(one.api, URL, EMAIL, THEN)
        other = {"key": "7", "eventKey": "contact.edit", "hookUrl": f"{URL}x", "status": "Verified"}
        one.fake.hooks["7"] = other
        assert len(one.account.remove(one.api, URL)) == 3
        assert one.fake.hooks == {"7": other}
        assert one.account.remove(one.api, URL) == []


def test_trouble_while_registering_is_told() -> None:
    with open_account() as one:
        for status in (401, 403, 429, 500):
            one.fake.trouble(method="POST", status=status)
            with pytest.raises(SourceUnavailable, match=str(status)):
                one.account.register(one.api, URL, EMAIL, THEN)
        one.fake.trouble(path="/hooks", status=200, body={"hooks": []}, times=2)
        with pytest.raises(BatchUnreadable, match="no list of hooks"):
            one.account.remove(one.api, URL)


# --- opting out ------------------------------------------------------------------------------------------


def test_an_opt_out_is_written_into_a_custom_field_or_applied_as_a_tag() -> None:
    with open_account() as one:
        ada = one.fake.create(**ADA)
        for _ in range(2):
            one.account.opt_out(one.api, str(ada), "custom_9")
            one.account.opt_out(one.api, str(ada), "tag_92")
        assert one.fake.contacts[ada]["custom"] == {7: "Gold", 9: "1"}
        assert one.fake.contacts[ada]["tag_ids"] == [91, 92]
        assert one.said(ada, "custom_9", "tag_92", "given_name") == {
            "custom_9": "1",
            "tag_92": True,
            "given_name": "Ada",
        }


@pytest.mark.parametrize("name", ["email_opted_in", "email_status", "custom_", "custom_x", "tag_0", "email"])
def test_an_opt_out_goes_nowhere_that_cannot_be_written(name: str) -> None:
    with open_account() as one:
        ada = one.fake.create()
        with pytest.raises(SourceUnavailable, match="lets nobody write"):
            one.account.opt_out(one.api, str(ada), name)
        assert one.fake.calls == []


def test_an_opt_out_that_is_refused_is_told() -> None:
    with open_account() as one:
        ada = one.fake.create()
        with pytest.raises(SourceUnavailable, match="400"):
            one.account.opt_out(one.api, str(ada), "custom_1000")
        with pytest.raises(SourceUnavailable, match="404"):
            one.account.opt_out(one.api, "5", "tag_1")


# --- the whole way ---------------------------------------------------------------------------------------

TARGETS = "[targets.marketing]"
SECTION = """
[sources.shop]
type = "keap"
access = "api_key"
token = "$KEAP_TOKEN"
api_base = "{base_url}"
"""


def test_a_hook_is_read_and_reaches_all_targets(tmp_path: Path) -> None:
    crm = Fake()
    with crm.serve() as base_url, serve_platforms() as platforms:
        path = platforms.write_config(tmp_path)
        head, _, rest = path.read_text().partition("[sources.shop]")
        text = head + SECTION.format(base_url=base_url) + TARGETS + rest.partition(TARGETS)[2]
        for theirs, ours in (
            ("stop == 'yes'", "not email_opted_in"),
            ('= "name"', '= "given_name"'),
            ('"surname"', '"family_name"'),
            ('= "phone"', '= "phone_mobile"'),
        ):
            text = text.replace(theirs, ours)
        path.write_text(text)
        with open_bench(tmp_path, load(path, {**platforms.environ, "KEAP_TOKEN": Fake.key})) as bench:

            def send(body: bytes) -> None:
                request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop/x", {}, body)
                bench.store.receive([receive(bench.config.sources["shop"], request, utc_now())])
                bench.settle()

            ada = crm.create(**ADA)
            send(crm.hook("contact.add", ada))
            assert platforms.counts() == dict.fromkeys(platforms.counts(), 1)
            assert platforms.marketing.person("ada@example.com")["firstName"] == "Ada"
            crm.change(ada, given_name="Augusta")
            send(crm.hook("contact.edit", ada))
            assert platforms.marketing.person("ada@example.com")["firstName"] == "Augusta"
            crm.change(ada, email_opted_in=False, email_status="ListUnsubscribe")
            send(crm.hook("contact.edit", ada))
            deliveries = bench.store.deliveries_of(RecordKey("shop", str(ada)))
            assert {delivery.state for delivery in deliveries} == {State.OPTED_OUT}
            assert platforms.loosened() == []
            crm.delete(ada)
            send(crm.hook("contact.delete", ada))
            [contact] = bench.store.contacts([RecordKey("shop", str(ada))]).values()
            assert not contact.alive
