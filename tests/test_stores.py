"""What every store promises beside its contract: in slices, in any order, and whoever is killed.

The contract itself is in `tests.store_contract`; what only a file promises is in `test_store`, and what only
PostgreSQL does in `test_postgres_store`.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bridge import schedule
from bridge.database import Database
from bridge.errors import LostLane, Permanent, Retryable
from bridge.lanes import deliver_lane, slot_of
from bridge.model import Contact, Delivery, Outcome, Receipt, RecordKey, State, Version, iso
from bridge.store.looking import BulkState
from bridge.store.protocol import Filter, InboundResult, Store, TargetStatus, Ticket
from bridge.store.sql import retries
from bridge.store.sql.database import Db
from tests.databases import Files, Fresh, is_sound, python, readable
from tests.store_contract import (
    JANE,
    LANES,
    MAIL,
    MINUTE,
    NOW,
    SECOND,
    claim,
    commit,
    contact,
    delivery_of,
    fact,
    inbound,
    numbered,
    push,
    want,
)
from tests.store_contract_looking import fail_all


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    with closing(database.open(LANES, "web")) as store:
        yield store


# --- what is forgotten -----------------------------------------------------------------------------------


def test_of_an_erased_person_nothing_can_be_read_while_the_store_is_open(store: Store, database: Database) -> None:
    secret = os.urandom(64)
    [received] = store.receive([inbound("a", body=secret)])
    done = [InboundResult(received.id, Outcome.PROCESSED)]
    jane = contact(JANE, email="jane-of-the-hills@example.com")
    commit(store, contacts=[jane], results=done, audit=[fact(inbound_id=received.id)])
    assert all(one in readable(database) for one in (secret, b"jane-of-the-hills"))
    commit(store, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])
    left = readable(database)
    assert secret not in left
    assert b"jane-of-the-hills" not in left


def test_of_an_erased_person_nothing_can_be_read_however_many_there_are(store: Store, database: Database) -> None:
    keys = list(numbered(400))
    commit(
        store,
        contacts=[contact(key, email=f"person{key.source_id}@hills{key.source_id}.example") for key in keys],
    )
    gone = keys[100:140]
    for key in gone:
        commit(store, contacts=[Contact(key, erased=Version(NOW, "e9"))], erased=[key])
    left = readable(database)
    for key in gone:
        assert f"person{key.source_id}@hills".encode() not in left
        assert f"hills{key.source_id}.example".encode() not in left
    assert b"hills200.example" in left


def test_a_writer_that_is_killed_in_a_transaction_leaves_nothing_of_it(store: Store, database: Database) -> None:
    store.receive([inbound("before")])
    writer = python(
        """
        store.receive([inbound("acknowledged")])

        def half(db):
            db.execute("UPDATE inbound SET reason = 'half done'")
            print("in the middle", flush=True)
            sys.stdin.read()

        store._write(half)
        """,
        database,
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in the middle\n"
        os.kill(writer.pid, signal.SIGKILL)
    # No lock outlives the process.
    store.receive([inbound("after")])
    kept = store.inbound_page(Filter(), None, 10).items
    assert [one.reason for one in kept] == ["", "", ""]
    assert is_sound(database)


def test_what_was_acknowledged_survives_a_kill_at_any_moment(store: Store, database: Database) -> None:
    writer = python(
        """
        for number in range(100_000):
            print(store.receive([inbound(f"{number}", body=os.urandom(2000))])[0].id, flush=True)
        """,
        database,
    )
    with writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(40)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    stored = {one.id for one in store.inbound_page(Filter(), None, 100_000).items}
    assert stored >= set(acknowledged)
    assert all(one.body for one in store.work("crm", NOW, 1000).inbounds)
    assert is_sound(database)


def test_writers_of_several_processes_all_get_their_turn(store: Store, database: Database) -> None:
    script = """
        for number in range(20):
            store.receive([inbound(f"{sys.argv[2]}-{number}"), inbound(f"shared-{number}")])
            store.take_turn("mail", 1.0, 30, NOW)
        """
    writers = [python(script, database, name) for name in "abc"]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert store.health(NOW).inbound == {"accepted": 80, "duplicate": 40}
    assert store.take_turn("mail", 1.0, 30, NOW) == 1.0


# --- lanes and slices ------------------------------------------------------------------------------------


def test_contacts_are_dealt_out_anew_when_the_number_of_lanes_changes(store: Store, database: Database) -> None:
    keys = list(numbered(30))
    commit(store, *(want(key, "sms") for key in keys))
    with closing(database.open({"sms": 3}, "worker")) as wider:
        tickets = [wider.acquire(deliver_lane("sms", number), "b", NOW) for number in range(3)]
        for number, ticket in enumerate(tickets):
            mine = {key for key in keys if slot_of(key) % 3 == number}
            assert {claim(wider, ticket).key for _ in mine} == mine
            assert wider.claim(ticket, NOW) is None


def test_counts_are_exact_after_any_change(store: Store) -> None:
    commit(store, *(want(key) for key in numbered(20)))
    ticket = store.acquire(MAIL, "a", NOW)
    for _ in range(5):
        claimed = claim(store, ticket)
        push(store, ticket, claimed, f"T{claimed.key.source_id}")
    store.pause("mail", "", "ann", NOW)
    store.resume("mail", "ann", NOW)
    counted = Counter((one.target, str(one.state)) for one in store.delivery_page(Filter(), None, 50).items)
    assert store.health(NOW).deliveries == counted


def test_very_many_deliveries_are_held_and_resumed_in_slices(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.sql.store.SLICE", 3)
    commit(store, *(want(key) for key in numbered(10)))
    store.hold("mail", "The key is refused.", NOW, NOW + MINUTE)
    assert store.health(NOW).deliveries == {("mail", "held"): 10}
    store.pause("mail", "moving house", "ann", NOW)
    assert all("moving house" in one.reason for one in store.delivery_page(Filter(), None, 20).items)
    store.resume("mail", "ann", NOW)
    assert store.health(NOW).deliveries == {("mail", "pending"): 10}
    assert store.target_status("mail").mode == "open"


def test_very_many_deliveries_are_retried_and_called_off_in_slices(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.sql.store.SLICE", 3)
    keys = fail_all(store, 10)
    bulk_id = store.start_bulk(Filter(), "all", "ann", NOW)
    commit(store, *(replace(want(key), again=True) for key in keys[:5]), decided=keys[:5])
    assert store.health(NOW).deliveries == {("mail", "failed"): 5, ("mail", "pending"): 5}
    assert store.cancel_bulk(bulk_id, "ann", NOW)
    assert store.health(NOW).deliveries == {("mail", "failed"): 10}
    bulk = store.bulk(bulk_id, NOW)
    assert bulk is not None
    assert (bulk.total, bulk.states, bulk.undecided) == (10, {"failed": 10}, 0)


def test_a_retry_that_was_cut_short_is_of_what_it_came_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.store.sql.store.SLICE", 3)
    fail_all(store, 10)
    take_some, slices = retries.take_some, iter(range(2))

    def take_two(*given: Any) -> None:
        if next(slices, None) is None:
            raise KeyboardInterrupt
        take_some(*given)

    monkeypatch.setattr(retries, "take_some", take_two)
    with pytest.raises(KeyboardInterrupt):
        store.start_bulk(Filter(), "all", "ann", NOW)
    [bulk] = store.bulks(NOW)
    assert (bulk.state, bulk.total, bulk.undecided) == (BulkState.RUNNING, 6, 6)
    assert len(store.work("crm", NOW, 20).replays) == 6
    assert store.cancel_bulk(bulk.id, "ann", NOW)
    assert store.work("crm", NOW, 20).replays == frozenset()


def test_a_retry_that_is_called_off_while_it_begins_takes_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.sql.store.SLICE", 3)
    fail_all(store, 10)
    take_some, slices = retries.take_some, iter(range(4))

    def cancel_after_one(db: Db, bulk_id: int, *given: Any) -> None:
        take_some(db, bulk_id, *given)
        if next(slices) == 0:
            retries.end(db, b"", bulk_id, retries.put_back_some(db, bulk_id, {}, NOW, 3), "bob", NOW)

    monkeypatch.setattr(retries, "take_some", cancel_after_one)
    store.start_bulk(Filter(), "all", "ann", NOW)
    [bulk] = store.bulks(NOW)
    assert (bulk.state, bulk.total, bulk.states, bulk.undecided) == (BulkState.CANCELLED, 3, {"failed": 3}, 0)
    assert store.work("crm", NOW, 20).replays == frozenset()


# --- properties ------------------------------------------------------------------------------------------


_numbers = itertools.count(1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(-80, 2000), st.integers(1, 4)), max_size=60),
)
def test_no_window_of_time_has_more_turns_than_the_rate_allows(
    store: Store, rate: float, burst: int, steps: list[tuple[int, int]]
) -> None:
    target = f"mail {next(_numbers)}"  # nobody took a turn there yet
    now = NOW
    latest = NOW + timedelta(milliseconds=steps[0][0] if steps else 0)
    taken: list[tuple[datetime, int]] = []
    for pause_ms, count in steps:
        now += timedelta(milliseconds=pause_ms)
        latest = max(latest, now)
        count = min(count, burst)
        wait_s = store.take_turn(target, rate, burst, now, count)
        if wait_s == 0:
            taken.append((latest, count))
        else:
            # Whoever waits as long as told gets his turn, if nobody comes before.
            assert 0 < wait_s <= count / rate + (latest - now).total_seconds() + 0.001
    for start in range(len(taken)):
        for end in range(start, len(taken)):
            window_s = (taken[end][0] - taken[start][0]).total_seconds()
            assert sum(count for _, count in taken[start : end + 1]) <= burst + rate * window_s + 1e-6


PEOPLE = [RecordKey("crm", str(number)) for number in range(4)]


class Pushing(RuleBasedStateMachine):
    """Decisions, pushes, pauses and takeovers in any order.

    Whatever happens: one push at a time for each contact, only by the newest runner, and in the end every target
    contact is what was wanted last.
    """

    fresh: Fresh

    def __init__(self) -> None:
        super().__init__()
        self.store = self.fresh().open({"mail": 1}, "worker")
        self.now = NOW
        self.wanted: dict[RecordKey, str] = {}
        self.at_target: dict[RecordKey, str] = {}
        self.under_way: list[tuple[Ticket, Delivery]] = []
        self.ticket: Ticket

    @initialize()
    def begin(self) -> None:
        self.ticket = self.store.acquire(MAIL, "first", self.now)

    def teardown(self) -> None:
        self.settle()
        self.store.close()

    @rule(seconds=st.integers(0, 600))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(key=st.sampled_from(PEOPLE), value=st.sampled_from("abc"))
    def something_is_wanted(self, key: RecordKey, value: str) -> None:
        self.wanted[key] = value
        commit(self.store, want(key, name=value), now=self.now)

    @rule()
    def one_is_claimed(self) -> None:
        claimed = self.store.claim(self.ticket, self.now)
        if claimed is not None:
            assert all(other.key != claimed.key for ticket, other in self.under_way if ticket == self.ticket)
            self.under_way.append((self.ticket, claimed))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), ends=st.sampled_from(["taken", "refused", "later"]))
    def one_ends(self, data: st.DataObject, ends: str) -> None:
        number = data.draw(st.integers(0, len(self.under_way) - 1))
        ticket, claimed = self.under_way.pop(number)
        if ticket != self.ticket:
            with pytest.raises(LostLane):
                self.finish(ticket, claimed, ends)
            return
        finished = self.finish(ticket, claimed, ends)
        assert finished.state is not State.SENDING
        assert finished == delivery_of(self.store, claimed.key)

    def finish(self, ticket: Ticket, claimed: Delivery, ends: str) -> Delivery:
        if ends == "later":
            trouble = Retryable("The platform has trouble.")
            error = Permanent("It does not fit.") if self.now.second % 7 == 0 else trouble
            return self.store.finish(
                ticket,
                claimed,
                lambda row: schedule.failed(
                    row or claimed, claimed, error, held=self.status, now=self.now, draw=0.5
                ),
                None,
            )
        if ends == "refused":
            return self.store.finish(
                ticket,
                claimed,
                lambda row: schedule.superseded(row or claimed, held=self.status, now=self.now),
                None,
            )
        fields = claimed.desired.fields if claimed.desired else {}
        taken = Receipt("updated", f"T{claimed.key.source_id}", fields)
        finished = self.store.finish(
            ticket,
            claimed,
            lambda row: schedule.succeeded(row or claimed, claimed, taken, held=self.status, now=self.now),
            None,
        )
        self.at_target[claimed.key] = str(fields["name"])
        return finished

    @property
    def status(self) -> TargetStatus:
        return self.store.target_status("mail")

    @rule()
    def another_runner_takes_over(self) -> None:
        self.ticket = self.store.acquire(MAIL, "next", self.now)

    @rule(pause=st.booleans())
    def the_target_is_paused_or_resumed(self, pause: bool) -> None:
        if pause:
            self.store.pause("mail", "", "ann", self.now)
        else:
            self.store.resume("mail", "ann", self.now)

    @invariant()
    def sending_is_what_the_newest_runner_has(self) -> None:
        page = self.store.delivery_page(Filter(state="sending"), None, 10)
        assert {one.key for one in page.items} == {
            one.key for ticket, one in self.under_way if ticket == self.ticket
        }

    @invariant()
    def nothing_is_held_by_an_open_target_or_due_at_a_closed_one(self) -> None:
        states = {one.state for one in self.store.delivery_page(Filter(), None, 10).items}
        if self.status.mode == "open":
            assert State.HELD not in states
        else:
            assert not states & {State.PENDING, State.RETRYING}

    def settle(self) -> None:
        """Let everything end well, and look whether the target holds what was wanted last."""
        self.store.resume("mail", "ann", self.now)
        self.ticket = self.store.acquire(MAIL, "last", self.now)
        self.store.replay(self.now, "ann", keys=list(self.wanted))
        for key, value in self.wanted.items():
            commit(self.store, replace(want(key, name=value), again=True), now=self.now)
        while (due := self.store.next_due(MAIL)) is not None:
            self.now = max(self.now, due)
            claimed = self.store.claim(self.ticket, self.now)
            assert claimed is not None
            self.finish(self.ticket, claimed, "taken")
        assert self.at_target == self.wanted
        states = {one.state for one in self.store.delivery_page(Filter(), None, 10).items}
        assert states <= {State.SYNCED}


def test_pushes_in_any_order_keep_to_one_at_a_time(fresh: Fresh) -> None:
    class Here(Pushing):
        pass

    Here.fresh = staticmethod(fresh)
    examples = 15 if isinstance(fresh, Files) else 6
    run_state_machine_as_test(
        Here, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None)
    )


def test_cursors_follow_the_order_of_equal_moments(store: Store) -> None:
    commit(store, audit=[fact(at=NOW + (number // 3) * SECOND) for number in range(10)])
    cursor, moments = None, []
    while True:
        page = store.audit_page(Filter(), cursor, 1)
        moments += [(iso(one.at), one.id or 0) for one in page.items]
        if (cursor := page.next) is None:
            break
    assert len(moments) == 10
    assert all(first > second for first, second in pairwise(moments))
    assert moments[-1][0] == iso(NOW)
