"""Many threads' receipts in one commit, and what each of them is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest

from bridge.database import Database
from bridge.errors import StoreUnavailable, Unstorable
from bridge.store import group_commit
from bridge.store.group_commit import GroupCommit
from bridge.store.protocol import NewInbound, Received, Refusal
from tests.store_contract import LANES, NOW, in_threads, inbound

PATIENCE_S = 10.0


class Writes:
    """A store's `receive` and `refuse` that can be made to wait or fail, and that keep what they were given."""

    def __init__(self) -> None:
        self.batches: list[list[NewInbound]] = []
        self.refused: list[Refusal] = []
        self.going_on = threading.Event()
        self.going_on.set()
        self.begun = threading.Semaphore(0)
        self.fail: Callable[[Sequence[NewInbound]], None] = lambda batch: None

    def receive(self, batch: Sequence[NewInbound]) -> list[Received]:
        self.begun.release()
        assert self.going_on.wait(PATIENCE_S)
        self.fail(batch)
        self.batches.append(list(batch))
        return [Received(len(self.batches), duplicate=one.event_keys == ("again",)) for one in batch]

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        self.refused += refusals

    def hold_up(self, group: GroupCommit) -> threading.Thread:
        """Have a first commit stand still, so that what comes now gathers behind it."""
        self.going_on.clear()
        first = threading.Thread(target=outcome, args=(group, inbound("first")))
        first.start()
        assert self.begun.acquire(timeout=PATIENCE_S)
        return first

    def go_on_when(self, true: Callable[[], bool]) -> threading.Thread:
        """Have the first commit go on as soon as *true* says so."""

        def watch() -> None:
            until(true)
            self.going_on.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        return watcher


@pytest.fixture
def writes() -> Writes:
    return Writes()


def until(true: Callable[[], object]) -> None:
    """Wait until *true* says so, or fail."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.002)):
        if true():
            return
        pause.wait(0.002)
    pytest.fail("It did not come to pass.")


def outcome(group: GroupCommit, one: NewInbound) -> Received | str:
    try:
        return group.receive(one)
    except StoreUnavailable as error:
        return str(error)


def test_what_waits_is_committed_together(writes: Writes) -> None:
    group = GroupCommit(writes.receive, writes.refuse)
    first = writes.hold_up(group)
    started = writes.go_on_when(lambda: len(group._queue) == 20)
    received = in_threads(lambda number: group.receive(inbound(f"{number}")), 20)
    first.join()
    started.join()
    assert [len(batch) for batch in writes.batches] == [1, 20]
    assert {one.id for one in received} == {2}
    assert group.close()


def test_a_database_that_is_away_is_told_to_every_waiter(writes: Writes) -> None:
    def fail(batch: Sequence[NewInbound]) -> None:
        raise StoreUnavailable("The disk is full.")

    writes.fail = fail
    with closing(GroupCommit(writes.receive, writes.refuse)) as group:
        told = in_threads(lambda number: outcome(group, inbound(f"{number}")), 8)
        assert told == ["The disk is full."] * 8
        writes.fail = lambda batch: None
        assert group.receive(inbound("later")) == Received(1, duplicate=False)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (UnicodeError("no text"), "cannot be stored (UnicodeError"),
        (Unstorable("The database refuses it."), "The database refuses it."),
    ],
)
def test_one_unfit_request_does_not_harm_the_others(writes: Writes, error: Exception, why: str) -> None:
    def fail(batch: Sequence[NewInbound]) -> None:
        if any(one.body == b"unfit" for one in batch):
            raise error

    group = GroupCommit(writes.receive, writes.refuse)
    first = writes.hold_up(group)
    writes.fail = fail
    started = writes.go_on_when(lambda: len(group._queue) == 5)
    told = in_threads(
        lambda number: outcome(group, inbound(f"{number}", body=b"unfit" if number == 3 else b"fit")), 5
    )
    first.join()
    started.join()
    assert [isinstance(one, Received) for one in told] == [True, True, True, False, True]
    assert why in str(told[3])
    assert group.close()


def test_a_waiter_is_not_kept_for_ever_and_what_nobody_waits_for_is_not_written(writes: Writes) -> None:
    group = GroupCommit(writes.receive, writes.refuse, wait_s=0.05)
    first = writes.hold_up(group)
    assert "in time" in str(outcome(group, inbound("second")))
    first.join()  # told the same, though what is under way may be stored yet
    writes.going_on.set()
    assert group.close()
    assert [[one.event_keys for one in batch] for batch in writes.batches] == [[("first",)]]


def test_a_queue_that_is_full_refuses_at_once(writes: Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "QUEUE", 2)
    group = GroupCommit(writes.receive, writes.refuse)
    first = writes.hold_up(group)
    waiters = [threading.Thread(target=group.receive, args=(inbound(f"{n}"),)) for n in range(2)]
    for waiter in waiters:
        waiter.start()
    until(lambda: len(group._queue) == 2)
    assert "Too many" in str(outcome(group, inbound("one more")))
    writes.going_on.set()
    for thread in (first, *waiters):
        thread.join()
    assert group.close()
    assert sum(len(batch) for batch in writes.batches) == 3


def test_big_requests_are_bounded_by_their_bytes(writes: Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "QUEUE_BYTES", 10)
    monkeypatch.setattr(group_commit, "BATCH_BYTES", 5)
    group = GroupCommit(writes.receive, writes.refuse)
    first = writes.hold_up(group)
    waiters = [threading.Thread(target=group.receive, args=(inbound(f"{n}", body=b"12345"),)) for n in range(2)]
    for waiter in waiters:
        waiter.start()
    until(lambda: len(group._queue) == 2)
    assert "Too many" in str(outcome(group, inbound("one more")))
    writes.going_on.set()
    for thread in (first, *waiters):
        thread.join()
    assert outcome(group, inbound("there is room again")) == Received(4, duplicate=False)
    assert group.close()
    assert [len(batch) for batch in writes.batches] == [1, 1, 1, 1]


def test_the_bell_rings_after_each_commit_with_something_new(writes: Writes) -> None:
    rung = threading.Semaphore(0)
    with closing(GroupCommit(writes.receive, writes.refuse, committed=rung.release)) as group:
        group.receive(inbound("new"))
        assert rung.acquire(timeout=PATIENCE_S)
        assert group.receive(inbound("again")).duplicate
    assert not rung.acquire(blocking=False)


def test_a_bell_that_breaks_stops_nothing(writes: Writes) -> None:
    def broken() -> None:
        raise OSError("no bell")

    with closing(GroupCommit(writes.receive, writes.refuse, committed=broken)) as group:
        assert [group.receive(inbound(f"{n}")).id for n in range(3)] == [1, 2, 3]


def test_refusals_are_counted_together_and_lost_beyond_a_bound(
    writes: Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "REFUSALS", 3)
    group = GroupCommit(writes.receive, writes.refuse)
    first = writes.hold_up(group)
    refusals = [Refusal("crm", NOW, f"no. {n}") for n in range(5)]
    for refusal in refusals:
        group.refuse(refusal)
    writes.going_on.set()
    first.join()
    assert group.close()
    assert writes.refused == refusals[:3]


def test_a_count_that_fails_does_not_stop_the_writer(writes: Writes) -> None:
    def fail(refusals: Sequence[Refusal]) -> None:
        raise StoreUnavailable("The disk is full.")

    with closing(GroupCommit(writes.receive, fail)) as group:
        group.refuse(Refusal("crm", NOW, "The signature is missing."))
        assert group.receive(inbound("a")).id == 1


def test_closing_writes_what_waits_and_takes_nothing_more(writes: Writes) -> None:
    group = GroupCommit(writes.receive, writes.refuse)
    first = writes.hold_up(group)
    waiter = threading.Thread(target=group.receive, args=(inbound("second"),))
    waiter.start()
    until(lambda: len(group._queue) == 1)
    assert not group.close(timeout_s=0.01)
    assert "stopping" in str(outcome(group, inbound("third")))
    writes.going_on.set()
    assert group.close()
    first.join()
    waiter.join()
    assert [len(batch) for batch in writes.batches] == [1, 1]


def test_closing_what_never_began(writes: Writes) -> None:
    assert GroupCommit(writes.receive, writes.refuse).close()


def test_it_works_in_a_process_that_was_forked(database: Database) -> None:
    with closing(database.open(LANES, "web")) as store:
        with closing(GroupCommit(store.receive, store.refuse)) as group:
            group.receive(inbound("parent"))
            child = os.fork()
            if child == 0:
                try:
                    group.receive(inbound("child"))
                except BaseException:
                    os._exit(1)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            group.receive(inbound("parent again"))
        assert store.health(NOW).inbound == {"accepted": 3}


def test_every_receipt_of_many_threads_is_in_the_store(database: Database) -> None:
    with closing(database.open(LANES, "web")) as store:
        with closing(GroupCommit(store.receive, store.refuse)) as group:
            got = in_threads(lambda number: [group.receive(inbound(f"{number}-{n}")).id for n in range(20)], 16)
        ids = {one for received in got for one in received}
        assert len(ids) == 320
        assert {one.id for one in store.work("crm", NOW, 1000).inbounds} == ids
