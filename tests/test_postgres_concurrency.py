"""Transactions that meet on PostgreSQL: whichever comes first, nothing is lost and nothing happens twice.

`Meeting` stops one verb before a statement of its own and lets another verb run until it ends or waits for the
first one's locks. So every test is one particular interleaving, each time.
"""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from bridge import schedule
from bridge.errors import Ambiguous, LostLane, Permanent, Superseded
from bridge.lanes import deliver_lane
from bridge.model import Contact, Delivery, Desired, Exchange, Outcome, RecordKey, State, Version, Want
from bridge.store.looking import BulkState
from bridge.store.postgres import PostgresStore
from bridge.store.postgres.database import PostgresDb
from bridge.store.protocol import (
    Attempt,
    Decision,
    Filter,
    InboundResult,
    Refusal,
    Rules,
    Ruling,
    Store,
    Ticket,
    Work,
)
from bridge.store.sql import processing
from bridge.store.sql.database import Db
from tests.postgres import PostgresServer
from tests.processes import until
from tests.store_contract import (
    JANE,
    JOHN,
    LANES,
    MAIL,
    MINUTE,
    NOW,
    OPEN,
    PROCESS,
    SECOND,
    claim,
    commit,
    contact,
    delivery_of,
    fact,
    facts,
    in_threads,
    inbound,
    numbered,
    push,
    retry,
    unsure,
    want,
)
from tests.store_contract_looking import fail_all

T = TypeVar("T")
U = TypeVar("U")

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


# --- two at once -----------------------------------------------------------------------------------------


@dataclass
class Stop:
    """Stops one thread once, before its *nth* statement that holds *fragment*."""

    fragment: str
    nth: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def before(self, statement: str) -> None:
        if self.reached.is_set() or self.fragment not in statement:
            return
        self.nth -= 1
        if self.nth == 0:
            self.reached.set()
            assert self.go_on.wait(20)


class Meeting:
    """Two verbs that meet in the database at *url*, each in a thread and with a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stops: dict[int, Stop] = {}
        self._threads = ThreadPoolExecutor(4)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        execute = PostgresDb.execute

        def stopping(db: PostgresDb, sql: str, values: Sequence[Any] = (), /) -> Any:
            if (stop := self._stops.get(threading.get_ident())) is not None:
                stop.before(sql)
            return execute(db, sql, values)

        monkeypatch.setattr(PostgresDb, "execute", stopping)

    def of(
        self, first: Callable[[], T], before: str, second: Callable[[], U], nth: int = 1
    ) -> tuple[Future[T], Future[U]]:
        """Run *first* up to its *nth* statement with *before* in it, then *second* as far as it gets; end both."""
        stop = Stop(before, nth)

        def stopped() -> T:
            self._stops[threading.get_ident()] = stop
            try:
                return first()
            finally:
                del self._stops[threading.get_ident()]

        one = self._threads.submit(stopped)
        until(lambda: stop.reached.is_set() or one.done(), what=f"a statement with {before!r}")
        assert stop.reached.is_set(), f"no statement with {before!r} was run: {one.exception()}"
        other = self._threads.submit(second)
        with psycopg.connect(self._url, autocommit=True) as watching:
            until(lambda: other.done() or _count(watching, WAITING) > 0, every_s=0.005)
        stop.go_on.set()
        one.exception(20)
        other.exception(20)
        return one, other

    def close(self) -> None:
        self._threads.shutdown()


def _count(connection: psycopg.Connection[Any], statement: Any, *values: object) -> int:
    row = connection.execute(statement, values).fetchone()
    assert row is not None
    return int(row[0])


class Deadlocks:
    """Says whether the server had to end a deadlock since this was made: that takes it a second each time."""

    def __init__(self, server: PostgresServer) -> None:
        self._log = server.log_path
        self._before = self._log.read_text().count("deadlock detected")

    @property
    def none(self) -> bool:
        return self._log.read_text().count("deadlock detected") == self._before


@pytest.fixture
def meeting(migrated_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meeting]:
    with closing(Meeting(migrated_postgres_url)) as meeting:
        meeting.watch(monkeypatch)
        yield meeting


@pytest.fixture
def store(migrated_postgres_url: str) -> Iterator[PostgresStore]:
    with closing(PostgresStore(migrated_postgres_url, LANES)) as store:
        yield store


@pytest.fixture
def other(migrated_postgres_url: str) -> Iterator[PostgresStore]:
    """Another process's store."""
    with closing(PostgresStore(migrated_postgres_url, LANES)) as store:
        yield store


@pytest.fixture
def database(migrated_postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(migrated_postgres_url, autocommit=True) as connection:
        yield connection


# --- receiving -------------------------------------------------------------------------------------------

MIDNIGHT = NOW.replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.mark.parametrize(
    ("first_at", "second_at"),
    [(NOW, NOW), (MIDNIGHT - SECOND, MIDNIGHT + SECOND), (MIDNIGHT + SECOND, MIDNIGHT - SECOND)],
)
@pytest.mark.parametrize("before", ["INSERT INTO payload", "INSERT INTO source_state", "FROM event_key"])
def test_of_one_event_that_two_processes_receive_one_is_new(
    meeting: Meeting, store: Store, other: Store, before: str, first_at: datetime, second_at: datetime
) -> None:
    one, two = meeting.of(
        lambda: store.receive([inbound("e", received_at=first_at)])[0],
        before,
        lambda: other.receive([inbound("e", received_at=second_at)])[0],
    )
    assert sorted(received.result().duplicate for received in (one, two)) == [False, True]
    assert one.result().id == two.result().id
    [kept] = store.inbound_page(Filter(), None, 10).items
    assert (kept.id, kept.repeats) == (one.result().id, 1)
    assert store.health(NOW).inbound == {"accepted": 1, "duplicate": 1}


def test_batches_with_the_same_events_in_another_order_do_not_wait_crosswise(
    postgres_server: PostgresServer, store: Store, other: Store, database: psycopg.Connection[Any]
) -> None:
    events = [f"e{number}" for number in range(30)]
    store.receive([inbound("known 1"), inbound("known 2")])
    deadlocks = Deadlocks(postgres_server)

    def receive(number: int) -> list[bool]:
        mixed = [*events, "known 1", "known 2"]
        random.Random(number).shuffle(mixed)
        return [one.duplicate for one in (store, other)[number % 2].receive([inbound(key) for key in mixed])]

    results = in_threads(receive, 6)
    assert Counter(len(events) + 2 - sum(one) for one in results) == {len(events): 1, 0: 5}
    assert _count(database, "SELECT sum(repeats) FROM inbound") == 5 * len(events) + 6 * 2
    assert deadlocks.none


def test_refusals_of_two_processes_are_all_counted(store: Store, other: Store) -> None:
    def refuse(number: int) -> None:
        sources = ("crm", "shop") if number % 2 else ("shop", "crm")
        for _ in range(10):
            (store, other)[number % 2].refuse([Refusal(source, NOW, "bad") for source in sources])

    in_threads(refuse, 4)
    assert [(one.source, one.refused) for one in store.health(NOW).sources] == [("crm", 40), ("shop", 40)]
    assert len(store.refusals("crm")) == 40


def test_a_receipt_whose_day_gets_its_table_while_it_is_looked_for_has_its_payload(
    meeting: Meeting, store: PostgresStore, other: PostgresStore, database: psycopg.Connection[Any]
) -> None:
    store.receive([inbound("a")])
    assert _count(database, "SELECT count(*) FROM payload_default") == 1

    def look(db: Db) -> Work:
        db.execute("SELECT 1")  # what is seen later is as it is now
        return processing.work(db, "crm", NOW, 10)

    found, _ = meeting.of(lambda: store._read(look), "LEFT JOIN payload", lambda: other.tidy(NOW))
    assert _count(database, "SELECT count(*) FROM payload_default") == 0
    assert [one.body for one in found.result().inbounds] == [b"{}"]


def test_a_receipt_that_arrives_while_its_day_gets_its_table_is_kept(
    store: Store, database: psycopg.Connection[Any], migrated_postgres_url: str
) -> None:
    """It is told to go to the default partition, waits for that, and may no longer go there."""
    with ThreadPoolExecutor(1) as threads, psycopg.connect(migrated_postgres_url) as making:
        making.execute("CREATE TABLE payload_20260302 (LIKE payload INCLUDING ALL)")
        making.execute(
            "ALTER TABLE payload ATTACH PARTITION payload_20260302"
            " FOR VALUES FROM ('2026-03-02') TO ('2026-03-03')"
        )
        received = threads.submit(store.receive, [inbound("a")])
        until(lambda: _count(database, WAITING) == 1, every_s=0.005)
        making.commit()
        assert not received.result()[0].duplicate
    assert [one.body for one in store.work("crm", NOW, 10).inbounds] == [b"{}"]


def test_many_processes_receive_the_same_events(store: Store, migrated_postgres_url: str) -> None:
    script = """
        import random, sys
        from contextlib import closing
        from bridge.store.postgres import PostgresStore
        from tests.store_contract import LANES, inbound

        keys = [f"e{number}" for number in range(60)]
        random.Random(sys.argv[2]).shuffle(keys)
        with closing(PostgresStore(sys.argv[1], LANES)) as store:
            for start in range(0, len(keys), 6):
                store.receive([inbound(key) for key in keys[start : start + 6]])
        """
    command = [sys.executable, "-c", textwrap.dedent(script), migrated_postgres_url]
    folder = Path(__file__).parent.parent
    processes = [subprocess.Popen([*command, name], cwd=folder) for name in "abc"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert store.health(NOW).inbound == {"accepted": 60, "duplicate": 120}


# --- processing beside delivering ------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["FROM delivery", "INSERT INTO delivery", "INSERT INTO source_state"])
def test_newer_state_that_is_committed_while_a_push_ends_is_sent(
    meeting: Meeting, store: Store, other: Store, before: str
) -> None:
    commit(store)  # the source is known, so that the last statement is one of each commit that tells an account
    commit(store, want(email="old@example.com"))
    ticket = other.acquire(MAIL, "b", NOW)
    claimed = claim(other, ticket)
    meeting.of(
        lambda: commit(store, want(email="new@example.com"), account="1"),
        before,
        lambda: push(other, ticket, claimed, "t1"),
    )
    kept = delivery_of(store)
    assert (kept.state, kept.revision, kept.target_id) == (State.PENDING, claimed.revision + 1, "t1")
    assert kept.accepted == {"email": "old@example.com"}
    assert kept.desired is not None
    assert kept.desired.fields == {"email": "new@example.com"}


@pytest.mark.parametrize("before", ["FROM lane", "FROM delivery", "SELECT erased", "INSERT INTO delivery"])
def test_a_push_that_ends_while_newer_state_is_committed(
    meeting: Meeting, store: Store, other: Store, before: str
) -> None:
    commit(store, want(email="old@example.com"))
    ticket = other.acquire(MAIL, "b", NOW)
    claimed = claim(other, ticket)
    meeting.of(
        lambda: push(other, ticket, claimed, "t1"), before, lambda: commit(store, want(email="new@example.com"))
    )
    kept = delivery_of(store)
    assert (kept.state, kept.revision, kept.target_id) == (State.PENDING, claimed.revision + 1, "t1")


def test_newer_state_that_is_committed_while_a_delivery_is_claimed(
    meeting: Meeting, store: Store, other: Store
) -> None:
    commit(store, want(email="old@example.com"))
    ticket = other.acquire(MAIL, "b", NOW)
    claimed, _ = meeting.of(
        lambda: claim(other, ticket), "SET state = 'sending'", lambda: commit(store, want(email="new@example.com"))
    )
    kept = delivery_of(store)
    assert (kept.state, kept.revision) == (State.SENDING, claimed.result().revision + 1)
    assert push(other, ticket, claimed.result(), "t1").state is State.PENDING


def test_a_delivery_that_is_claimed_while_newer_state_is_committed(
    meeting: Meeting, store: Store, other: Store
) -> None:
    commit(store, want(email="old@example.com"))
    ticket = other.acquire(MAIL, "b", NOW)
    _, claimed = meeting.of(
        lambda: commit(store, want(email="new@example.com")), "INSERT INTO delivery", lambda: claim(other, ticket)
    )
    desired = claimed.result().desired
    assert desired is not None
    assert desired.fields == {"email": "new@example.com"}
    assert delivery_of(store).revision == claimed.result().revision


@pytest.mark.parametrize("mark", ["link", "unsure"])
def test_what_a_push_remembers_while_newer_state_is_committed_stays(
    meeting: Meeting, store: Store, other: Store, mark: str
) -> None:
    commit(store, want(email="old@example.com"))
    ticket = other.acquire(MAIL, "b", NOW)
    claimed = claim(other, ticket)

    def remember() -> None:
        if mark == "link":
            other.link(ticket, claimed, "t1")
        else:
            with pytest.raises(Superseded):  # the call is not made
                unsure(other, ticket, claimed, NOW)

    meeting.of(lambda: commit(store, want(email="new@example.com")), "INSERT INTO delivery", remember)
    kept = delivery_of(store)
    assert (kept.target_id, kept.unsure_since) == ("t1" if mark == "link" else None, None)
    assert kept.revision == claimed.revision + 1


def test_a_link_that_a_merge_hands_on_while_its_push_ends_has_one_owner(
    meeting: Meeting, store: Store, other: Store
) -> None:
    commit(store, want(JOHN))
    ticket = other.acquire(MAIL, "b", NOW)
    push(other, ticket, claim(other, ticket), "t1")
    commit(store, want(JOHN, email="newer@example.com"))
    claimed = claim(other, ticket)
    merged = [replace(want(JANE), inherit_from=(JOHN.source_id,)), Want("mail", JOHN, None, "Merged.")]
    meeting.of(lambda: commit(store, *merged), "INSERT INTO delivery", lambda: push(other, ticket, claimed, "t1"))
    assert (delivery_of(store, JANE).target_id, delivery_of(store, JOHN).target_id) == ("t1", None)
    assert delivery_of(store, JOHN).state is State.WAITING


@pytest.mark.parametrize("verb", ["link", "push"])
def test_of_two_lanes_that_find_the_same_contact_one_has_it(
    meeting: Meeting, store: Store, other: Store, verb: str
) -> None:
    [(mine, my_lane), (theirs, their_lane)] = _two_lanes(store)

    def run(store: Store, claimed: Delivery, lane: Ticket) -> None:
        if verb == "link":
            store.link(lane, claimed, "t1")
        else:
            push(store, lane, claimed, "t1")

    one, two = meeting.of(
        lambda: run(store, mine, my_lane),
        "UPDATE delivery SET target_id" if verb == "link" else "INSERT INTO delivery",
        lambda: run(other, theirs, their_lane),
    )
    holders = [key for key in numbered(20) if _target_id(store, key) == "t1"]
    assert len(holders) == 1
    if verb == "link":
        assert {type(future.exception()) for future in (one, two)} == {Ambiguous, type(None)}
    else:
        states = {delivery_of(store, claimed.key, "sms").state for claimed in (mine, theirs)}
        assert states == {State.SYNCED, State.AMBIGUOUS}


def _two_lanes(store: Store) -> list[tuple[Delivery, Ticket]]:
    """Claim one delivery in each of two lanes."""
    commit(store, *(want(key, "sms") for key in numbered(20)))
    tickets = [store.acquire(deliver_lane("sms", number), "a", NOW) for number in range(2)]
    return [(claim(store, ticket), ticket) for ticket in tickets]


def _target_id(store: Store, key: RecordKey) -> str | None:
    return next((one.target_id for one in store.deliveries_of(key)), None)


def test_who_may_be_the_same_is_claimed_by_one_of_two_lanes(meeting: Meeting, store: Store, other: Store) -> None:
    commit(store, *(want(key, "sms", phone="+44", email=f"{key}@x") for key in numbered(6)))
    lanes = [store.acquire(deliver_lane("sms", number), "a", NOW) for number in range(2)]
    one, two = meeting.of(
        lambda: store.claim(lanes[0], NOW, ["phone"]),
        "SET state = 'sending'",
        lambda: other.claim(lanes[1], NOW, ["phone"]),
    )
    assert one.result() is not None
    assert two.result() is None


def test_claiming_aside_waits_for_nobody_crosswise(
    postgres_server: PostgresServer, meeting: Meeting, store: Store, other: Store
) -> None:
    """A commit of many has the first one's neighbour while the claim has the first."""
    keys = list(numbered(12))
    commit(store, *(want(key, "sms", phone="+44", email=f"{key}@x") for key in keys))
    lanes = [store.acquire(deliver_lane("sms", number), "a", NOW) for number in range(2)]
    assert store.claim(lanes[0], NOW, ["phone"]) is not None
    deadlocks = Deadlocks(postgres_server)
    meeting.of(
        lambda: other.claim(lanes[1], NOW, ["phone"]),
        "state = 'sending' AND target_id IS NULL",
        lambda: commit(store, *(want(key, "sms", phone="+45") for key in reversed(keys))),
    )
    assert deadlocks.none
    assert all(delivery_of(store, key, "sms").revision > 1 for key in keys)


# --- taking lanes over -----------------------------------------------------------------------------------


def test_a_lane_that_is_taken_over_in_the_middle_of_a_claim(meeting: Meeting, store: Store, other: Store) -> None:
    commit(store, want())
    mine = store.acquire(MAIL, "a", NOW)
    claimed, theirs = meeting.of(
        lambda: claim(store, mine), "SET state = 'sending'", lambda: other.acquire(MAIL, "b", NOW)
    )
    assert delivery_of(store).state is State.PENDING
    assert claim(other, theirs.result()).key == JANE
    with pytest.raises(LostLane):
        push(store, mine, claimed.result(), "t1")


def test_a_lane_is_taken_by_many_one_after_the_other(store: Store, other: Store) -> None:
    fences = in_threads(lambda number: (store, other)[number % 2].acquire(PROCESS, str(number), NOW).fence, 8)
    assert sorted(fences) == list(range(1, 9))


def test_what_is_sent_when_contacts_are_dealt_out_to_other_lanes_is_not_sent_twice(
    store: Store, migrated_postgres_url: str
) -> None:
    keys = list(numbered(12))
    commit(store, *(want(key, "sms") for key in keys))
    mine = [store.acquire(deliver_lane("sms", number), "a", NOW) for number in range(2)]
    claimed = claim(store, mine[1])
    with closing(PostgresStore(migrated_postgres_url, {"sms": 1})) as narrower:
        theirs = narrower.acquire(deliver_lane("sms", 0), "b", NOW)
        for ticket in mine:
            with pytest.raises(LostLane):
                store.claim(ticket, NOW)
        with pytest.raises(LostLane):
            push(store, mine[1], claimed, "t1")
        # Who has the old number goes by the new one, however often it takes its lanes.
        again = [store.acquire(deliver_lane("sms", number), "a", NOW) for number in range(2)]
        assert store.claim(again[1], NOW) is None
        commit(store, *(want(RecordKey("crm", f"new {key.source_id}"), "sms") for key in keys))
        assert store.due_lanes(NOW).keys() == {deliver_lane("sms", 0)}
        theirs = narrower.acquire(deliver_lane("sms", 0), "b", NOW)
        assert len({claim(narrower, theirs).key for _ in range(24)}) == 24


def test_processes_of_one_number_of_lanes_deal_once(store: Store, other: Store) -> None:
    commit(store, *(want(key, "sms") for key in numbered(12)))
    lanes = [deliver_lane("sms", number) for number in range(2)]
    tickets = in_threads(lambda number: (store, other)[number].acquire(lanes[number], "a", NOW), 2)
    assert [store.claim(ticket, NOW) is not None for ticket in tickets] == [True, True]


def test_a_lane_that_was_never_taken_yet_sees_that_rules_are_about_to_change(
    meeting: Meeting, store: Store, other: Store
) -> None:
    store.put_in_force(Ruling(Rules({("crm", "mail"): "one"}, {}), changed=[("crm", "mail")]), NOW)
    changed = Ruling(Rules({("crm", "mail"): "two"}, {}), changed=[("crm", "mail")])

    def take() -> str:
        other.acquire(PROCESS, "b", NOW)
        rules = other.rules()
        assert rules is not None
        return rules.routes["crm", "mail"]

    _, seen = meeting.of(lambda: store.put_in_force(changed, NOW), "UPDATE lane", take)
    assert seen.result() != "one"


def test_a_contact_that_is_to_be_read_again_is_not_saved_as_one_that_was(
    meeting: Meeting, store: Store, other: Store
) -> None:
    read = replace(contact(JANE, email="jane@example.com"), read_at=NOW)
    commit(store, contacts=[read])
    ticket = other.acquire(PROCESS, "b", NOW)
    unread = Ruling(Rules({}, {"crm": ["email", "phone"]}), unread=["crm"])
    one, two = meeting.of(
        lambda: store.put_in_force(unread, NOW),
        "UPDATE contact SET data",
        lambda: other.commit(ticket, Decision(contacts=[read]), NOW),
    )
    assert one.exception() is None
    assert isinstance(two.exception(), LostLane)
    assert store.contacts([JANE])[JANE].read_at is None
    assert store.work("crm", NOW, 10).keys == [JANE]


# --- open and closed targets -----------------------------------------------------------------------------


def test_nothing_is_claimed_after_a_pause_returned(meeting: Meeting, store: Store, other: Store) -> None:
    commit(store, want(JANE), want(JOHN))
    ticket = other.acquire(MAIL, "b", NOW)
    claimed, paused = meeting.of(
        lambda: claim(other, ticket), "SET state = 'sending'", lambda: store.pause("mail", "why", "ann", NOW)
    )
    assert paused.exception() is None
    assert other.claim(ticket, NOW) is None
    assert {delivery_of(store, key).state for key in (JANE, JOHN)} == {State.SENDING, State.HELD}
    assert push(other, ticket, claimed.result(), "t1").state is State.SYNCED


@pytest.mark.parametrize("verb", ["finish", "acquire", "commit"])
def test_whatever_becomes_due_while_a_target_is_paused_is_held(
    meeting: Meeting, store: Store, other: Store, verb: str
) -> None:
    commit(store, want())
    ticket = other.acquire(MAIL, "b", NOW)
    claimed = claim(other, ticket)
    verbs: dict[str, Callable[[], object]] = {
        "finish": lambda: retry(other, ticket, claimed),
        "acquire": lambda: other.acquire(MAIL, "b", NOW),
        "commit": lambda: commit(store, want(JOHN)),
    }
    one, two = meeting.of(
        verbs[verb], "INSERT INTO delivery", lambda: store.pause("mail", "why", "ann", NOW + SECOND)
    )
    assert (one.exception(), two.exception()) == (None, None)
    kept = delivery_of(store, JOHN if verb == "commit" else JANE)
    assert kept.state is State.HELD
    assert store.health(NOW).deliveries.get(("mail", "pending"), 0) == 0


@pytest.mark.parametrize("verb", ["finish", "acquire", "commit"])
def test_whatever_is_held_while_a_target_is_opened_is_due(
    meeting: Meeting, store: Store, other: Store, verb: str
) -> None:
    commit(store, want())
    ticket = other.acquire(MAIL, "b", NOW)
    claimed = claim(other, ticket)
    store.pause("mail", "why", "ann", NOW)
    verbs: dict[str, Callable[[], object]] = {
        "finish": lambda: retry(other, ticket, claimed),
        "acquire": lambda: other.acquire(MAIL, "b", NOW),
        "commit": lambda: commit(store, want(JOHN)),
    }
    meeting.of(verbs[verb], "INSERT INTO delivery", lambda: store.resume("mail", "ann", NOW + SECOND))
    kept = delivery_of(store, JOHN if verb == "commit" else JANE)
    assert kept.state in {State.PENDING, State.RETRYING}


def test_what_is_let_go_of_while_a_target_is_paused_is_not_held_again(
    meeting: Meeting, store: Store, other: Store
) -> None:
    commit(store, want(JANE), want(JOHN))
    meeting.of(
        lambda: store.pause("mail", "why", "ann", NOW),
        "UPDATE delivery SET state = 'held'",
        lambda: commit(other, Want("mail", JANE, None, "No longer wanted."), erased=[JOHN]),
    )
    assert delivery_of(store, JANE).state is State.WAITING
    assert delivery_of(store, JOHN).state is State.WAITING


def test_what_is_let_go_of_while_a_target_is_opened_is_not_due_again(
    meeting: Meeting, store: Store, other: Store
) -> None:
    commit(store, want(JANE), want(JOHN))
    store.pause("mail", "why", "ann", NOW)
    gone = Ruling(Rules({}, {}), gone=[("crm", "mail")])
    meeting.of(
        lambda: other.put_in_force(gone, NOW),
        "UPDATE delivery SET bulk_open",
        lambda: store.resume("mail", "ann", NOW),
    )
    assert {delivery_of(store, key).state for key in (JANE, JOHN)} == {State.WAITING}
    assert store.target_status("mail").mode == "open"


def test_who_pauses_a_target_while_it_is_opened_has_the_last_word(
    meeting: Meeting, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.sql.store.SLICE", 3)
    commit(store, *(want(key) for key in numbered(10)))
    store.pause("mail", "first", "ann", NOW)
    meeting.of(
        lambda: store.resume("mail", "ann", NOW),
        "UPDATE delivery SET state = 'pending'",
        lambda: other.pause("mail", "second", "bob", NOW + SECOND),
        nth=2,
    )
    status = store.target_status("mail")
    assert (status.mode, status.reason, status.by) == ("paused", "second", "bob")
    assert store.health(NOW).deliveries == {("mail", "held"): 10}


def test_holding_and_deciding_many_wait_for_nobody_crosswise(
    postgres_server: PostgresServer, store: Store, other: Store
) -> None:
    keys = list(numbered(40))
    commit(store, *(want(key) for key in keys))
    deadlocks = Deadlocks(postgres_server)

    def work(number: int) -> None:
        for turn in range(6):
            if number == 0:
                store.pause("mail", str(turn), "ann", NOW)
                store.resume("mail", "ann", NOW)
            elif number == 1:
                shuffled = random.Random(turn).sample(keys, len(keys))
                commit(other, *(want(key, email=f"{turn}@x") for key in shuffled), decided=shuffled)
            elif number == 2:
                other.replay(NOW, "ann", keys=random.Random(-turn).sample(keys, len(keys)))
            else:
                store.replay(NOW, "ann", narrowed=Filter(target="mail"))

    in_threads(work, 4)
    assert deadlocks.none
    assert store.health(NOW).deliveries == {("mail", "pending"): 40}


def test_refusals_in_a_row_are_all_counted(store: Store, other: Store) -> None:
    counted = in_threads(lambda number: (store, other)[number % 2].note_refusal("mail", NOW), 8)
    assert sorted(counted) == list(range(1, 9))


def test_a_refusal_that_is_counted_while_a_target_is_paused_stays(
    meeting: Meeting, store: Store, other: Store
) -> None:
    meeting.of(
        lambda: store.pause("mail", "why", "ann", NOW),
        "INSERT INTO target_status",
        lambda: other.note_refusal("mail", NOW),
    )
    status = store.target_status("mail")
    assert (status.mode, status.refusals) == ("paused", 1)


# --- replays and retries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["FROM contact", "INSERT INTO delivery", "UPDATE contact SET read_due"])
def test_a_replay_that_is_asked_for_while_a_contact_is_decided_is_not_lost(
    meeting: Meeting, store: Store, other: Store, before: str
) -> None:
    commit(store, want())
    meeting.of(
        lambda: commit(store, want(email="new@example.com"), decided=[JANE]),
        before,
        lambda: other.replay(NOW, "ann", keys=[JANE]),
    )
    assert store.work("crm", NOW, 10).replays == {JANE}


def test_a_retry_that_begins_while_its_delivery_is_decided_has_only_what_failed(
    meeting: Meeting, store: Store, other: Store
) -> None:
    [key] = fail_all(store, 1)
    _, started = meeting.of(
        lambda: commit(store, want(key, email="new@example.com"), decided=[key]),
        "INSERT INTO delivery",
        lambda: other.start_bulk(Filter(), "all", "ann", NOW),
    )
    bulk = store.bulk(started.result(), NOW)
    assert bulk is not None
    assert (bulk.total, bulk.state) == (0, BulkState.DONE)
    assert delivery_of(store, key).state is State.PENDING


def test_a_delivery_that_is_decided_while_a_retry_takes_it(meeting: Meeting, store: Store, other: Store) -> None:
    [key] = fail_all(store, 1)
    started, _ = meeting.of(
        lambda: store.start_bulk(Filter(), "all", "ann", NOW),
        "UPDATE delivery SET bulk_id",
        lambda: commit(other, want(key, email="new@example.com"), decided=[key]),
    )
    bulk = store.bulk(started.result(), NOW)
    assert bulk is not None
    # It was decided without knowing of the retry, so it is decided once more.
    assert (bulk.total, bulk.state, bulk.undecided) == (1, BulkState.RUNNING, 1)
    assert store.work("crm", NOW, 10).replays == {key}


def test_two_retries_share_nothing(meeting: Meeting, store: Store, other: Store) -> None:
    fail_all(store, 5)
    one, two = meeting.of(
        lambda: store.start_bulk(Filter(), "all", "ann", NOW),
        "UPDATE delivery SET bulk_id",
        lambda: other.start_bulk(Filter(), "all", "bob", NOW),
    )
    totals = [bulk.total for future in (one, two) if (bulk := store.bulk(future.result(), NOW)) is not None]
    assert sorted(totals) == [0, 5]


def test_a_retry_that_is_called_off_while_it_begins_keeps_nothing_in_hand(
    meeting: Meeting, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.sql.store.SLICE", 3)
    fail_all(store, 10)

    def cancel() -> bool:
        [bulk] = other.bulks(NOW)
        return other.cancel_bulk(bulk.id, "bob", NOW)

    started, cancelled = meeting.of(
        lambda: store.start_bulk(Filter(), "all", "ann", NOW), "UPDATE delivery SET bulk_id", cancel, nth=2
    )
    assert cancelled.result()
    bulk = store.bulk(started.result(), NOW)
    assert bulk is not None
    assert (bulk.state, bulk.undecided, bulk.states) == (BulkState.CANCELLED, 0, {"failed": bulk.total})
    assert store.health(NOW).deliveries == {("mail", "failed"): 10}
    assert store.work("crm", NOW, 20).replays == frozenset()


def test_of_two_who_call_a_retry_off_one_is_named(meeting: Meeting, store: Store, other: Store) -> None:
    fail_all(store, 3)
    bulk_id = store.start_bulk(Filter(), "all", "ann", NOW)
    meeting.of(
        lambda: store.cancel_bulk(bulk_id, "ann", NOW),
        "UPDATE bulk SET cancelled",
        lambda: other.cancel_bulk(bulk_id, "bob", NOW),
    )
    bulk = store.bulk(bulk_id, NOW)
    assert bulk is not None
    assert (bulk.ended_by, bulk.states) == ("ann", {"failed": 3})
    assert len(facts(store, outcome="bulk_cancelled")) == 1


def test_what_a_worker_ends_while_a_retry_is_called_off_is_counted_once(
    meeting: Meeting, store: Store, other: Store
) -> None:
    keys = fail_all(store, 3)
    bulk_id = store.start_bulk(Filter(), "all", "ann", NOW)
    commit(store, *(replace(want(key), again=True) for key in keys), decided=keys)
    ticket = other.acquire(MAIL, "b", NOW)
    claimed = claim(other, ticket)
    meeting.of(
        lambda: store.cancel_bulk(bulk_id, "ann", NOW),
        "UPDATE delivery SET bulk_id",
        lambda: push(other, ticket, claimed, "t1"),
    )
    bulk = store.bulk(bulk_id, NOW)
    assert bulk is not None
    assert (bulk.state, bulk.total, bulk.states) == (BulkState.CANCELLED, 3, {"failed": 2, "synced": 1})


# --- erasing ---------------------------------------------------------------------------------------------

SAID = Exchange("POST", "https://mail.example/contacts", 200, 5, request_body="jane@example.com")


@pytest.mark.parametrize("erasing_first", [True, False])
def test_what_is_sent_when_a_person_is_erased_leaves_nothing_personal(
    meeting: Meeting, store: Store, other: Store, database: psycopg.Connection[Any], erasing_first: bool
) -> None:
    commit(store, want(), contacts=[contact(JANE, email="jane@example.com")], audit=[fact(detail={"to": "jane"})])
    ticket = other.acquire(MAIL, "b", NOW)
    claimed = claim(other, ticket)

    def erase() -> object:
        return commit(store, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])

    def end() -> object:
        return push(other, ticket, claimed, "t1", exchanges=[SAID])

    if erasing_first:
        meeting.of(erase, "SELECT digest FROM audit", end)
    else:
        meeting.of(end, "INSERT INTO payload", erase)
    assert _count(database, "SELECT count(*) FROM payload") == 0
    kept = delivery_of(store)
    assert (kept.desired, kept.accepted, kept.attempted or {}) == (None, None, {})
    assert kept.state is State.WAITING


@pytest.mark.parametrize("replay_first", [True, False])
def test_a_request_that_is_replayed_while_its_payload_is_erased_is_not_left_queued(
    meeting: Meeting, store: Store, other: Store, replay_first: bool
) -> None:
    [received] = store.receive([inbound("a")])
    done = InboundResult(received.id, Outcome.PROCESSED)
    commit(store, results=[done], audit=[fact(inbound_id=received.id)], contacts=[Contact(JANE)])

    def erase() -> object:
        return commit(store, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])

    def replay() -> object:
        return other.replay_inbound(NOW, "ann", [received.id])

    if replay_first:
        meeting.of(replay, "UPDATE inbound SET outcome = 'accepted'", erase)
    else:
        meeting.of(erase, "UPDATE inbound SET outcome = 'processed'", replay)
    kept = store.inbound(received.id)
    assert kept is not None
    assert (kept.body, kept.outcome) == (None, Outcome.PROCESSED)


def test_a_request_that_is_replayed_while_payloads_are_pruned_keeps_its_own(
    meeting: Meeting, store: Store, other: PostgresStore
) -> None:
    [received] = store.receive([inbound("a")])
    commit(store, results=[InboundResult(received.id, Outcome.PROCESSED)])
    late = NOW + timedelta(days=9)
    meeting.of(
        lambda: store.replay_inbound(NOW, "ann", [received.id]),
        "UPDATE inbound SET outcome = 'accepted'",
        lambda: other.prune(payloads_before=late, keys_before=late),
    )
    [queued] = store.work("crm", NOW, 10).inbounds
    assert queued.body == b"{}"


# --- the quota -------------------------------------------------------------------------------------------


def test_of_two_who_take_the_first_turn_ever_one_has_it(meeting: Meeting, store: Store, other: Store) -> None:
    one, two = meeting.of(
        lambda: store.take_turn("mail", 1.0, 1, NOW),
        "SET tokens",
        lambda: other.take_turn("mail", 1.0, 1, NOW),
    )
    assert sorted((one.result(), two.result())) == [0.0, 1.0]


def test_the_quota_is_never_exceeded_whoever_asks_and_by_whatever_clock(store: Store, other: Store) -> None:
    def take(number: int) -> int:
        taken = 0
        draw = random.Random(number)
        for _ in range(30):
            now = NOW + timedelta(seconds=draw.uniform(-2, 2))
            taken += (store, other)[number % 2].take_turn("mail", 1.0, 10, now) == 0
        return taken

    # What the bucket holds, and what came in between the earliest and the latest moment.
    assert 10 <= sum(in_threads(take, 4)) <= 10 + 4


def test_newer_state_that_arrives_while_a_turn_is_waited_for_stops_the_push(
    store: Store, other: Store, migrated_postgres_url: str, database: psycopg.Connection[Any]
) -> None:
    commit(store, want())
    ticket = other.acquire(MAIL, "b", NOW)
    claimed = claim(other, ticket)
    assert other.take_turn("mail", 1.0, 10, NOW, ticket=ticket, claimed=claimed) == 0
    with ThreadPoolExecutor(1) as threads, psycopg.connect(migrated_postgres_url) as taking:
        taking.execute("SELECT * FROM quota FOR UPDATE")
        turn = threads.submit(other.take_turn, "mail", 1.0, 10, NOW, ticket=ticket, claimed=claimed)
        until(lambda: _count(database, WAITING) == 1, every_s=0.005)
        commit(store, Want("mail", JANE, Desired(opt_out=True)))
        taking.commit()
        with pytest.raises(Superseded):
            turn.result()


# --- people ----------------------------------------------------------------------------------------------


def test_a_link_to_sign_in_is_used_once(store: Store, other: Store) -> None:
    store.add_login_link("l", "ann", NOW + MINUTE)
    used = in_threads(lambda number: (store, other)[number % 2].use_login_link("l", NOW), 6)
    assert sorted(used, key=str) == [None] * 5 + ["ann"]


# --- everything at once ----------------------------------------------------------------------------------

STRESS_LANES = [MAIL, deliver_lane("sms", 0), deliver_lane("sms", 1)]
LATER = NOW + timedelta(days=1)
TURNS = 1000


class Worker:
    """One of several processes that do everything, each in its own order; what each saw is kept in common."""

    def __init__(self, store: PostgresStore, seed: int, seen: Seen) -> None:
        self._store = store
        self._draw = random.Random(seed)
        self._seen = seen
        self._verbs: Sequence[tuple[Callable[[], object], int]] = (
            (self.receive, 6),
            (self.process, 6),
            (lambda: self.deliver(self._draw.choice(STRESS_LANES), NOW, 3), 10),
            (self.take_turn, 3),
            (lambda: store.pause(self._draw.choice(["mail", "sms"]), "why", "ann", NOW), 1),
            (lambda: store.resume(self._draw.choice(["mail", "sms"]), "ann", NOW), 2),
            (lambda: store.replay(NOW, "ann", keys=self._draw.sample(list(numbered(12)), 4)), 1),
            (lambda: store.replay(NOW, "ann", narrowed=Filter(target="sms")), 1),
            (lambda: store.start_bulk(Filter(), "all", "ann", NOW), 1),
            (self.cancel, 1),
            (lambda: store.tidy(NOW), 1),
            (lambda: store.prune(payloads_before=LATER, keys_before=NOW), 1),
            (self.change_rules, 1),
        )

    def run(self, steps: int) -> None:
        verbs, weights = zip(*self._verbs, strict=True)
        for verb in self._draw.choices(verbs, weights, k=steps):
            verb()
            self._seen.look(self._store)

    def receive(self) -> None:
        numbers = [self._draw.randrange(12) for _ in range(3)]
        events = [f"e{self._draw.randrange(400)}" for _ in range(3)]
        batch = [inbound(event, body=b"%d" % number) for event, number in zip(events, numbers, strict=True)]
        for number, received in zip(numbers, self._store.receive(batch), strict=True):
            if not received.duplicate:
                self._seen.receipt(RecordKey("crm", str(number)), received.id)

    def process(self) -> bool:
        ticket = self._store.acquire(PROCESS, "p", NOW)
        rules = self._store.rules()
        if rules is not None and "" in rules.routes.values():
            return True
        work = self._store.work("crm", NOW, 8)
        assert all(one.body for one in work.inbounds)
        newest = {RecordKey("crm", (one.body or b"").decode()): one.id for one in work.inbounds}
        keys = newest.keys() | set(work.keys)
        known = self._store.contacts(keys)
        contacts, wants = [], []
        for key in keys:
            value = max(_value(known.get(key)), newest.get(key, 0))
            contacts.append(contact(key, email=str(value)))
            again = key in work.replays
            wants += [replace(want(key, target, email=str(value)), again=again) for target in ("mail", "sms")]
        results = [InboundResult(one.id, Outcome.PROCESSED) for one in work.inbounds]
        with suppress(LostLane):
            self._store.commit(ticket, Decision(contacts, wants, results, decided=work.keys), NOW)
        return bool(keys)

    def deliver(self, lane: str, now: datetime, count: int, *, well: bool = False) -> bool:
        ticket = self._store.acquire(lane, "d", now)
        with suppress(LostLane):
            for _ in range(count):
                claimed = self._store.claim(ticket, now, ["phone"])
                if claimed is None:
                    return False
                self._seen.claim(ticket, claimed)
                fate = 0.0 if well else self._draw.random()
                doomed = self._seen.taken_up(ticket, claimed)
                if fate < 0.6:
                    push(self._store, ticket, claimed, f"t{claimed.key.source_id}", now)
                elif fate < 0.8:
                    self.fail(ticket, claimed, now)
                elif fate < 0.9:
                    retry(self._store, ticket, claimed, now)
                else:
                    return True  # the process died
                assert not doomed, "it was sent by two, and both saved it"
        return True

    def fail(self, ticket: Ticket, claimed: Delivery, now: datetime) -> None:
        error = Permanent("The platform refused it.", status=422)

        def close(row: Delivery | None) -> Delivery:
            return schedule.failed(row or claimed, claimed, error, held=OPEN, now=now, draw=0.5)

        self._store.finish(ticket, claimed, close, Attempt(now, error.code, str(error), 3, 422, error.code))

    def change_rules(self) -> None:
        pair = ("crm", self._draw.choice(["mail", "sms"]))
        with self._store.alone("rules"):
            rules = self._store.rules()
            routes = {**(rules.routes if rules else {}), pair: str(self._draw.random())}
            self._store.put_in_force(Ruling(Rules(routes, {}), changed=[pair]), NOW)

    def take_turn(self) -> None:
        if self._store.take_turn("mail", 1.0, TURNS, NOW) == 0:
            self._seen.turn()

    def cancel(self) -> None:
        for bulk in self._store.bulks(NOW, 3):
            self._store.cancel_bulk(bulk.id, "bob", NOW)


def _value(known: Contact | None) -> int:
    return 0 if known is None else int(str(known.fields["email"].value))


class Seen:
    """What any of the processes saw; it must never be contradicted by what another one sees later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._revisions: dict[tuple[str, RecordKey], int] = {}
        self._fences: dict[tuple[str, RecordKey], int] = {}  # of the newest ticket that claimed it
        self.turns = 0
        self.newest: dict[RecordKey, int] = {}  # receipt of each contact

    def turn(self) -> None:
        with self._lock:
            self.turns += 1

    def receipt(self, key: RecordKey, inbound_id: int) -> None:
        with self._lock:
            self.newest[key] = max(inbound_id, self.newest.get(key, 0))

    def look(self, store: Store) -> None:
        with self._lock:
            before = dict(self._revisions)
        for one in store.delivery_page(Filter(), None, 100).items:
            assert one.revision >= before.get((one.target, one.key), 0)
            with self._lock:
                known = self._revisions.get((one.target, one.key), 0)
                self._revisions[one.target, one.key] = max(known, one.revision)

    def claim(self, ticket: Ticket, claimed: Delivery) -> None:
        pair = (claimed.target, claimed.key)
        with self._lock:
            self._fences[pair] = max(ticket.fence, self._fences.get(pair, 0))

    def taken_up(self, ticket: Ticket, claimed: Delivery) -> bool:
        """Say whether somebody else is known to send the same delivery by now."""
        with self._lock:
            return self._fences[claimed.target, claimed.key] > ticket.fence


def test_whatever_happens_at_once_nothing_is_lost(
    migrated_postgres_url: str, database: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.sql.store.SLICE", 5)
    seen = Seen()
    stores = [PostgresStore(migrated_postgres_url, LANES) for _ in range(2)]
    workers = [Worker(stores[number % 2], number, seen) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(worker.run, 70) for worker in workers]
        for process in running:
            process.result()
    _assert_consistent(database, stores[0])

    last = workers[0]
    for target in ("mail", "sms"):
        stores[1].resume(target, "ann", NOW)
    for _ in range(20):
        busy = [last.process(), *(last.deliver(lane, LATER, 1000, well=True) for lane in STRESS_LANES)]
        if not any(busy):
            break
    _assert_consistent(database, stores[0])
    assert {one.state for one in stores[0].delivery_page(Filter(), None, 100).items} <= {
        State.SYNCED,
        State.FAILED,
    }
    assert {one.outcome for one in stores[0].inbound_page(Filter(), None, 5000).items} == {Outcome.PROCESSED}
    for delivery in stores[0].delivery_page(Filter(), None, 100).items:
        assert delivery.desired is not None
        assert delivery.desired.fields == {"email": str(seen.newest[delivery.key])}
        if delivery.state is State.SYNCED:
            assert delivery.accepted == delivery.desired.fields
    assert len(stores[0].delivery_page(Filter(), None, 100).items) == 2 * len(seen.newest)
    assert stores[0].take_turn("mail", 1.0, TURNS, NOW, count=TURNS - seen.turns) == 0
    assert stores[0].take_turn("mail", 1.0, TURNS, NOW) > 0
    for store in stores:
        store.close()


def _assert_consistent(database: psycopg.Connection[Any], store: Store) -> None:
    """What is counted along is what is there, and nobody waits for what does not come."""
    counted = {(row[0], row[1], row[2]): row[3] for row in database.execute(COUNTED).fetchall()}
    assert {key: n for key, n in counted.items() if n} == {
        (row[0], row[1], row[2]): row[3] for row in database.execute(THERE).fetchall()
    }
    for target in ("mail", "sms"):
        closed = store.target_status(target).mode != "open"
        wrong = ("pending", "retrying") if closed else ("held",)
        states = store.health(NOW).deliveries
        assert [states.get((target, state), 0) for state in wrong] == [0] * len(wrong)
    for bulk in store.bulks(NOW, 1000):
        assert sum(bulk.states.values()) + bulk.undecided == bulk.total
    assert _count(database, "SELECT count(*) FROM bulk_item") == _count(
        database, "SELECT count(*) FROM delivery WHERE bulk_id IS NOT NULL"
    )


COUNTED = "SELECT kind, name, state, n FROM tally WHERE state NOT IN ('duplicate', 'refused')"
THERE = """
SELECT 'inbound', source, outcome, count(*) FROM inbound GROUP BY source, outcome
UNION ALL SELECT 'delivery', target, state, count(*) FROM delivery GROUP BY target, state
"""
