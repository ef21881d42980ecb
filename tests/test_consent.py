"""Somebody says stop at a target: bridge holds to it, every target hears it, and the CRM if it is to be told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import contact as contacts
from bridge import pipeline
from bridge.app import create_app
from bridge.config import Environment, load
from bridge.database import Database
from bridge.errors import BadPayload, ConfigError, SourceUnavailable
from bridge.model import Change, Contact, Kind, RecordKey, State, Version
from bridge.outbound import Api, new_session
from bridge.pipeline import consenting
from bridge.store.codec import contact_from, contact_json
from bridge.store.group_commit import GroupCommit
from bridge.store.protocol import Filter
from bridge.targets import TARGETS, feedback
from bridge.web import tokens
from tests.platforms import Bench, Platforms, open_bench, person, serve_platforms, signed, webhook

SECRET_KEY = "a-secret-key-for-tests"
KEY = RecordKey("shop", "84001")
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@dataclass
class Crm:
    """Takes opt-outs, or is away."""

    told: list[tuple[str, str]] = field(default_factory=list)
    down: bool = False
    asked: int = 0
    choke: bool = False

    def opt_out(self, api: Api, source_id: str, name: str) -> None:
        self.asked += 1
        if self.choke:
            raise KeyError("properties")
        if self.down:
            raise SourceUnavailable("The CRM is away.")
        self.told.append((source_id, name))


@pytest.fixture
def crm() -> Crm:
    return Crm()


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


@pytest.fixture
def bench(platforms: Platforms, crm: Crm, database: Database, tmp_path: Path) -> Iterator[Bench]:
    platforms.forget()
    loaded = load(platforms.write_config(tmp_path, settle_s=1), platforms.environ)
    shop = loaded.sources["shop"]
    writes = replace(shop.type, writer=lambda name, made: crm, read_base_url=lambda made: "http://127.0.0.1:9")
    sources = {"shop": replace(shop, type=writes, write_back="sms_opt_out")}
    with open_bench(tmp_path, replace(loaded, sources=sources), database) as opened:
        say(opened, "msg_1", name="Ana")
        opened.settle()
        yield opened


def say(bench: Bench, message: str, **fields: Any) -> None:
    body = webhook("changed", person(1, **fields), bench.now())
    bench.receive(signed(bench.config, body, message))


def post(bench: Bench, name: str, body: bytes, token: str | None = None) -> tuple[int, Any]:
    """Send *body* to the web application as the target *name* does."""
    commit = GroupCommit(bench.store.receive, bench.store.refuse)
    environment = Environment(secret_key=SECRET_KEY)
    with closing(commit):
        app = create_app(bench.config, bench.store, environment, commit=commit, clock=bench.now)
        token = tokens.lasting_token(SECRET_KEY, name, bench.store) if token is None else token
        answer = app.test_client().post(f"/hooks/{name}/{token}".rstrip("/"), data=body)
        return answer.status_code, answer.get_json(silent=True)


def unsubscribed(bench: Bench, **more: str) -> bytes:
    return urlencode(
        {
            "type": "unsubscribe",
            "date_time": bench.now().isoformat(),
            "initiated_from": "public",
            "contact[id]": str(target_id(bench, "marketing")),
            "contact[email]": "person1@example.com",
            **more,
        }
    ).encode()


def target_id(bench: Bench, target: str) -> str | None:
    return next(one.target_id for one in bench.store.deliveries_of(KEY) if one.target == target)


def states(bench: Bench) -> dict[str, State]:
    return {one.target: one.state for one in bench.store.deliveries_of(KEY)}


def test_who_unsubscribes_at_one_target_is_left_alone_at_all(bench: Bench, crm: Crm, platforms: Platforms) -> None:
    assert set(states(bench).values()) == {State.SYNCED}
    assert post(bench, "marketing", unsubscribed(bench)) == (200, {"status": "accepted"})
    bench.settle()
    assert states(bench) == dict.fromkeys(states(bench), State.OPTED_OUT) | {
        name: state for name, state in states(bench).items() if not bench.config.targets[name].type.can_opt_out
    }
    assert crm.told == [("84001", "sms_opt_out")]
    told = [(one.kind, one.outcome) for one in bench.store.audit_page(Filter(source_id="84001"), None, 50).items]
    assert ("contact", "stopped") in told
    [stop] = bench.store.audit_page(Filter(outcome="stopped"), None, 5).items
    assert stop.reason.startswith("The person said stop at marketing: all targets are told")
    assert ("contact", "told") in told
    assert platforms.loosened() == []


def test_no_later_webhook_of_the_crm_brings_them_back(bench: Bench, crm: Crm) -> None:
    post(bench, "marketing", unsubscribed(bench))
    bench.settle()
    for number, fields in enumerate(({"name": "Ana 2"}, {"stop": "no"}, {"name": "Ana 3", "stop": "no"})):
        bench.ahead[0] += timedelta(hours=1)
        say(bench, f"msg_later_{number}", **fields)
        bench.settle()
        assert {one.desired.opt_out for one in bench.store.deliveries_of(KEY) if one.desired} == {True}
    assert crm.told == [("84001", "sms_opt_out")], "it was told once"


def test_who_starts_again_there_is_heard(bench: Bench) -> None:
    post(bench, "sms", opted(bench, "contact-opt-out", "e1"))
    bench.settle()
    assert bench.store.contacts([KEY])[KEY].stopped is not None
    bench.ahead[0] += timedelta(minutes=1)
    assert post(bench, "marketing", unsubscribed(bench, type="subscribe"))[0] == 200, (
        "at another target: too little"
    )
    bench.settle()
    assert bench.store.contacts([KEY])[KEY].stopped is not None
    post(bench, "sms", opted(bench, "contact-opt-in", "e2"))
    bench.settle()
    assert bench.store.contacts([KEY])[KEY].stopped is None


def opted(bench: Bench, kind: str, event_id: str) -> bytes:
    told = {"accountId": "a", "eventId": event_id, "type": kind, "data": {"id": target_id(bench, "sms")}}
    return json.dumps(told).encode()


def test_a_text_that_says_stop_counts_by_its_phone_number(bench: Bench) -> None:
    message = {
        "direction": "inbound",
        "addresses": {"from": "+525512340001", "to": "+14155550100"},
        "body": " Stop. ",
    }
    body = json.dumps({"eventId": "e1", "type": "message.received", "teamId": "t", "data": message}).encode()
    assert post(bench, "inbox", body) == (200, {"status": "accepted"})
    assert post(bench, "inbox", body) == (200, {"status": "accepted"})
    bench.settle()
    assert bench.store.contacts([KEY])[KEY].stopped is not None
    inbounds = bench.store.inbound_page(Filter(source="shop"), None, 10).items
    assert [one.method for one in inbounds].count("CONSENT") == 1, "a repeat is no news"


def test_what_is_said_of_strangers_is_ignored(bench: Bench) -> None:
    assert post(bench, "marketing", unsubscribed(bench, **{"contact[id]": "99999"})) == (
        200,
        {"status": "ignored"},
    )
    assert post(bench, "marketing", unsubscribed(bench, type="open")) == (200, {"status": "ignored"})


def test_without_a_token_of_ours_nothing_is_believed(bench: Bench) -> None:
    for token in ("", "nonsense", tokens.lasting_token(SECRET_KEY, "shop", bench.store)):
        assert post(bench, "marketing", unsubscribed(bench), token)[0] == 401
    assert post(bench, "register", b"{}")[0] == 404, "a target that sends nothing"
    assert len(bench.store.refusals("marketing")) == 3
    bench.settle()
    assert bench.store.contacts([KEY])[KEY].stopped is None


def test_a_crm_that_is_away_is_told_later(bench: Bench, crm: Crm) -> None:
    crm.down = True
    post(bench, "marketing", unsubscribed(bench))
    bench.worker.run("process:shop")
    assert {one.desired.opt_out for one in bench.store.deliveries_of(KEY) if one.desired} == {True}
    assert crm.asked == 0, "first it is saved: it holds at the targets whatever becomes of the CRM"
    assert bench.store.contacts([KEY])[KEY].read_due is not None
    bench.ahead[0] += timedelta(seconds=1)
    bench.worker.run("process:shop")
    contact = bench.store.contacts([KEY])[KEY]
    assert (contact.told, contact.read_note) == (
        None,
        "The CRM could not be told of the opt-out: The CRM is away.",
    )
    assert {one.desired.opt_out for one in bench.store.deliveries_of(KEY) if one.desired} == {True}
    crm.down = False
    bench.settle()
    assert crm.told == [("84001", "sms_opt_out")]
    assert bench.store.contacts([KEY])[KEY].told == contact.stopped


def stop_many(bench: Bench, count: int) -> None:
    for number in range(2, count + 2):
        body = webhook("changed", person(number), bench.now())
        bench.receive(signed(bench.config, body, f"msg_many_{number}"))
    bench.settle()
    for number in range(2, count + 2):
        message = {"direction": "inbound", "from": f"+5255123400{number:02d}", "body": "STOP"}
        told = {"eventId": f"e{number}", "type": "message.received", "data": message}
        assert post(bench, "inbox", json.dumps(told).encode())[1] == {"status": "accepted"}


def test_a_crm_that_hangs_is_asked_once_in_a_round_and_live_changes_are_not_kept_waiting(
    bench: Bench, crm: Crm
) -> None:
    crm.down = True
    stop_many(bench, 8)
    bench.worker.run("process:shop")
    bench.ahead[0] += timedelta(seconds=1)
    crm.asked = 0
    say(bench, "msg_live", name="Live")
    lane = bench.store.acquire("process:shop", "test", bench.now())
    shop = bench.config.sources["shop"]
    api = lambda: Api("http://127.0.0.1:9", session=new_session())  # noqa: E731
    rounds = pipeline.process(shop, bench.config.routes_of("shop"), bench.store, lane, None, bench.now(), api)
    next(rounds)
    assert bench.store.contacts([KEY])[KEY].fields["name"].value == "Live"
    assert crm.asked == 0
    list(rounds)
    assert crm.asked == 1
    crm.down = False
    bench.worker._tickets.clear()
    bench.settle()
    assert len(crm.told) == 8


@pytest.mark.parametrize("trouble", ["down", "choke"])
def test_one_that_cannot_be_told_keeps_no_other_from_being_told(bench: Bench, crm: Crm, trouble: str) -> None:
    setattr(crm, trouble, True)
    stop_many(bench, 3)
    bench.worker.run("process:shop")
    bench.ahead[0] += timedelta(seconds=1)
    bench.worker.run("process:shop")
    setattr(crm, trouble, False)
    bench.settle()
    assert {source_id for source_id, _ in crm.told} == {"84002", "84003", "84004"}
    outcomes = [one.outcome for one in bench.store.audit_page(Filter(kind="contact"), None, 50).items]
    assert (outcomes.count("not_told"), outcomes.count("told")) == (1, 3)
    assert "failed" not in outcomes


def test_a_text_counts_however_the_crm_writes_the_number(bench: Bench) -> None:
    for number, written in ((2, "(415) 555-2671"), (3, "415.555.2671")):
        body = webhook("changed", person(number, phone=written), bench.now())
        bench.receive(signed(bench.config, body, f"msg_us_{number}"))
    bench.settle()
    keys = [RecordKey("shop", "84002"), RecordKey("shop", "84003")]
    found = [key for page in consenting._written_alike("+14155552671", bench.store) for key in page]
    assert sorted(found) == keys


def test_bridges_own_call_is_nobodys_word(bench: Bench, crm: Crm) -> None:
    say(bench, "msg_no", stop="yes")
    bench.settle()
    assert post(bench, "marketing", unsubscribed(bench, initiated_from="api"))[1] == {"status": "ignored"}
    assert post(bench, "marketing", unsubscribed(bench, initiated_from="admin"))[1] == {"status": "accepted"}


def test_a_yes_to_mail_is_no_yes_to_texts(bench: Bench) -> None:
    post(bench, "marketing", unsubscribed(bench, type="sms_unsub"))
    post(bench, "marketing", unsubscribed(bench))
    bench.ahead[0] += timedelta(minutes=1)
    post(bench, "marketing", unsubscribed(bench, type="subscribe"))
    bench.settle()
    contact = bench.store.contacts([KEY])[KEY]
    assert (set(contact.stops), set(contact.starts)) == ({"marketing", "marketing sms"}, {"marketing"})
    assert contact.stopped is not None


def test_of_one_moment_the_stop_counts() -> None:
    at = {"sms": Version(NOON, "a")}
    assert Contact(KEY, stops=at, starts={"sms": Version(NOON, "b")}).stopped == Version(NOON, "a")


def test_a_moment_that_there_is_not_is_none() -> None:
    form = {"type": "unsubscribe", "contact[id]": "7", "date_time": "0001-01-01T00:00:00+14:00"}
    assert feedback.activecampaign(urlencode(form).encode())[0].at is None


def test_a_crm_that_cannot_be_told_is_refused_in_the_configuration(platforms: Platforms, tmp_path: Path) -> None:
    path = platforms.write_config(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("secrets = [", 'write_back = { opt_out = "x" }\nsecrets = [', 1))
    with pytest.raises(ConfigError, match="cannot be told of opt-outs"):
        load(path, platforms.environ)


# --- merging ---------------------------------------------------------------------------------------------

said = st.tuples(
    st.sampled_from([Kind.STOPPED, Kind.STARTED]), st.integers(0, 4), st.sampled_from(["sms", "mail"])
)


@settings(max_examples=60)
@given(st.lists(said, max_size=6), st.randoms())
def test_any_order_of_stops_and_starts_ends_in_the_same_consent(told: list[Any], chance: Any) -> None:
    changes = [
        Change(KEY, kind, Version(NOON + timedelta(minutes=at), f"{kind}{at}"), target=target)
        for kind, at, target in told
    ]

    def merged(order: list[Change]) -> Contact:
        known = Contact(KEY)
        for change in order:
            known = contacts.merge(known, change)
        return known

    expected = merged(changes)
    chance.shuffle(changes)
    assert merged([*changes, *changes[:2]]) == expected
    assert contact_from(KEY, contact_json(expected)) == expected
    for target in ("sms", "mail"):
        stops = [at for kind, at, where in told if where == target and kind is Kind.STOPPED]
        starts = [at for kind, at, where in told if where == target and kind is Kind.STARTED]
        if stops and (not starts or max(stops) > max(starts)):
            assert expected.stopped is not None


# --- what targets send -----------------------------------------------------------------------------------


@settings(max_examples=80)
@given(st.sampled_from([feedback.activecampaign, feedback.sakari, feedback.clerk_chat]), st.binary(max_size=60))
def test_garbage_is_no_feedback(read: Any, body: bytes) -> None:
    try:
        assert read(body) == []
    except BadPayload as error:
        assert str(error).endswith(".")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"data":' * 5000,
        b'{"type":"contact-opt-out","data":{"id":true}}',
        b"\xff",
        b"type=unsubscribe",
    ],
)
def test_hostile_feedback_is_refused(body: bytes) -> None:
    for read in (feedback.activecampaign, feedback.sakari, feedback.clerk_chat):
        try:
            assert read(body) == []
        except BadPayload:
            continue


def test_only_the_persons_own_word_takes_a_stop_back() -> None:
    form = {"type": "subscribe", "contact[id]": "7", "date_time": "2026-03-02T10:30:52-06:00"}
    for by in ("admin", "api", "system", ""):
        assert feedback.activecampaign(urlencode({**form, "initiated_from": by}).encode()) == []
    [consent] = feedback.activecampaign(urlencode({**form, "initiated_from": "public"}).encode())
    assert (consent.stop, consent.target_id) == (False, "7")
    assert consent.at == datetime(2026, 3, 2, 16, 30, 52, tzinfo=UTC)
    [stop] = feedback.activecampaign(urlencode({**form, "type": "sms_unsub"}).encode())
    assert stop.stop


def test_a_message_that_says_more_than_stop_is_no_stop() -> None:
    for text in ("stop by tomorrow", "STOPPED", "", None, 7, "x" * 50):
        message = {"direction": "inbound", "from": "+525512340001", "body": text}
        assert feedback.clerk_chat(json.dumps({"type": "message.received", "data": message}).encode()) == []
    outbound = {"direction": "outbound", "to": "+525512340001", "body": "STOP"}
    assert feedback.clerk_chat(json.dumps({"type": "message.received", "data": outbound}).encode()) == []


def test_the_targets_that_send_webhooks_are_known() -> None:
    assert {name for name, one in TARGETS.items() if one.feedback} == {"activecampaign", "sakari", "clerk_chat"}
