"""The SQLite store keeps the contract, and what is promised of a file besides."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
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
from sqlite_utils import Database

from bridge import schedule
from bridge.errors import LostLane, Permanent, Retryable, StoreUnavailable
from bridge.lanes import deliver_lane, slot_of
from bridge.model import Contact, Delivery, Outcome, Receipt, RecordKey, State, Version, iso
from bridge.store.looking import Activity, BulkState, Queue
from bridge.store.migrations.sqlite import MIGRATIONS
from bridge.store.protocol import Filter, InboundResult, TargetStatus, Ticket
from bridge.store.sql import retries
from bridge.store.sql.database import Db
from bridge.store.sqlite import SqliteStore
from tests.store_contract import (
    JANE,
    LANES,
    MAIL,
    MINUTE,
    NOW,
    SECOND,
    MakeStore,
    StoreContract,
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
from tests.store_contract_looking import LookingContract, fail_all


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "bridge.db"


@pytest.fixture
def opened(path: Path) -> Iterator[MakeStore]:
    stores: list[SqliteStore] = []

    def make() -> SqliteStore:
        store = SqliteStore(path, LANES)
        stores.append(store)
        store.migrate()
        return store

    yield make
    for store in stores:
        store.close()


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def make_store(self, opened: MakeStore) -> MakeStore:
        return opened


class TestSqliteLooking(LookingContract):
    @pytest.fixture
    def make_store(self, opened: MakeStore) -> MakeStore:
        return opened

    @pytest.fixture
    def small_budget(self, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr("bridge.store.sql.listing.BUDGET", 10)
        monkeypatch.setattr("bridge.store.sql.listing.MOST_HITS", 3)
        monkeypatch.setattr("bridge.store.sql.overviews.NEWEST", 5)
        return 10


# --- the file --------------------------------------------------------------------------------------------


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(path, LANES)) as store:
        assert store.migrate() == ["0001_first", "0002_looking", "0003_lag", "0004_as_on_postgresql"]
        yield store


def limited(path: Path, **pragmas: str | int) -> closing[SqliteStore]:
    return closing(SqliteStore(path, LANES, pragmas=pragmas))


def raw(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(path, isolation_level=None))


def test_only_its_owner_may_read_the_file(store: SqliteStore, path: Path) -> None:
    store.receive([inbound("a")])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_receipt_is_synced_to_disk(store: SqliteStore, path: Path) -> None:
    with store._file.writing() as db:
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET reason = 'another'",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit (id, at, kind, outcome, reason, fields) VALUES (1, '', '', '', '', '[]')",
        "DELETE FROM inbound",
    ],
)
def test_facts_cannot_be_changed_or_deleted(store: SqliteStore, statement: str) -> None:
    store.receive([inbound("a")])
    commit(store, audit=[fact()])
    with pytest.raises(StoreUnavailable) as refused, store._file.writing() as db:
        db.execute(statement)
    assert "append-only" in str(refused.value.__cause__)


def test_an_erased_payload_is_overwritten_in_the_file(store: SqliteStore, path: Path) -> None:
    secret = os.urandom(64)  # zlib cannot make it any smaller, so it stands in the file as it is
    [received] = store.receive([inbound("a", body=secret)])
    with store._file.writing() as db:
        db.execute("DELETE FROM payload")
    store.close()
    assert secret not in path.read_bytes()
    assert received.id == 1


def test_an_erased_person_is_in_no_file_while_the_store_is_open(store: SqliteStore, path: Path) -> None:
    secret = os.urandom(64)
    [received] = store.receive([inbound("a", body=secret)])
    done = [InboundResult(received.id, Outcome.PROCESSED)]
    jane = contact(JANE, email="jane-of-the-hills@example.com")
    commit(store, contacts=[jane], results=done, audit=[fact(inbound_id=received.id)])
    commit(store, contacts=[Contact(JANE, erased=Version(NOW, "e9"))], erased=[JANE])
    assert not found(path, secret)
    assert not found(path, b"jane-of-the-hills")


def test_what_is_forgotten_or_pruned_is_in_no_file_while_the_store_is_open(store: SqliteStore, path: Path) -> None:
    one, other = os.urandom(64), os.urandom(64)
    [first, second] = store.receive([inbound("a", body=one), inbound("b", body=other)])
    assert found(path, one)
    commit(store, results=[InboundResult(first.id, Outcome.PROCESSED, forget=True)])
    assert not found(path, one)
    with store._file.reading():  # the log cannot be emptied while somebody reads what stands in it
        commit(store, results=[InboundResult(second.id, Outcome.PROCESSED)])
        assert store.prune(payloads_before=NOW + SECOND, keys_before=NOW) == 1
    assert store.prune(payloads_before=NOW + SECOND, keys_before=NOW) == 0
    assert not found(path, other)


def found(path: Path, content: bytes) -> bool:
    """Say whether *content* stands in the database or a file beside it."""
    return any(content in file.read_bytes() for file in path.parent.iterdir())


def test_a_full_disk_refuses_and_keeps_what_it_took(store: SqliteStore, path: Path) -> None:
    with limited(path, max_page_count=120) as full:
        taken = []
        with pytest.raises(StoreUnavailable, match="disk is full"):
            for received in (full.receive([inbound(f"{n}", body=os.urandom(3000))]) for n in range(10_000)):
                taken += [one.id for one in received]
        assert taken
        assert full.health(NOW).inbound == {"accepted": len(taken)}
        with pytest.raises(StoreUnavailable, match="disk is full"):
            full.receive([inbound("more", body=os.urandom(30_000))])
    # There is room again.
    assert [one.id for one in store.receive([inbound("more")])] == [taken[-1] + 1]


def test_a_file_that_may_not_be_written(store: SqliteStore, path: Path) -> None:
    with limited(path, query_only="ON") as closed, pytest.raises(StoreUnavailable, match="may not be written"):
        closed.receive([inbound("a")])


def test_a_folder_that_may_not_be_written(path: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file stands where the folder should be")
    with limited(path) as nowhere, pytest.raises(StoreUnavailable):
        nowhere.migrate()


def test_a_file_that_is_missing(path: Path) -> None:
    with limited(path) as missing:
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            missing.receive([inbound("a")])
        assert not path.exists()


def test_a_file_that_vanished_is_no_fresh_start(store: SqliteStore, path: Path) -> None:
    store.receive([inbound("a")])
    path.unlink()
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        store.receive([inbound("b")])
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        store.health(NOW)


def test_a_file_that_was_replaced_is_opened_anew(store: SqliteStore, path: Path) -> None:
    store.receive([inbound("a")])
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).rename(path.with_name("old" + suffix))
    with closing(SqliteStore(path, LANES)) as other:
        other.migrate()
        store.receive([inbound("b"), inbound("c")])
        assert other.health(NOW).inbound == {"accepted": 2}


def test_a_file_that_was_not_set_up(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with limited(path) as empty, pytest.raises(StoreUnavailable, match="bridge migrate"):
        empty.health(NOW)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"This is no database, whatever its name says. " * 100)
    with limited(path) as other, pytest.raises(StoreUnavailable, match="damaged"):
        other.migrate()


def test_a_file_that_is_damaged(store: SqliteStore, path: Path) -> None:
    store.receive([inbound(f"{number}", body=os.urandom(2000)) for number in range(50)])
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with limited(path) as damaged, pytest.raises(StoreUnavailable, match="damaged"):
        damaged.receive([inbound("x")])


def test_a_database_that_another_program_keeps_locked(store: SqliteStore, path: Path) -> None:
    with raw(path) as other, limited(path, busy_timeout=10) as waiting:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="busy"):
            waiting.receive([inbound("a")])
        assert waiting.health(NOW).inbound == {}  # readers do not wait for writers
        other.execute("ROLLBACK")
        assert not waiting.receive([inbound("a")])[0].duplicate


def test_a_database_of_a_newer_version(store: SqliteStore, path: Path) -> None:
    with raw(path) as other:
        other.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('bridge', '9999_new', '')"
        )
    with pytest.raises(StoreUnavailable, match="newer version of bridge"):
        store.migrate()


def test_a_closed_store_says_so(store: SqliteStore) -> None:
    store.close()
    with pytest.raises(StoreUnavailable, match="stopping"):
        store.health(NOW)


def test_a_store_that_was_opened_before_a_fork(store: SqliteStore) -> None:
    store.receive([inbound("parent")])
    child = os.fork()
    if child == 0:
        try:
            store.receive([inbound("child")])
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    store.receive([inbound("parent again")])
    assert store.health(NOW).inbound == {"accepted": 3}


# --- other processes -------------------------------------------------------------------------------------


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start *script* in another process, with the store's modules imported."""
    head = "import os, sys; from tests.store_contract import *; from bridge.store.sqlite import SqliteStore\n"
    command = [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )


def test_a_writer_that_is_killed_in_a_transaction_leaves_nothing_of_it(store: SqliteStore, path: Path) -> None:
    store.receive([inbound("before")])
    writer = python(
        """
        store = SqliteStore(sys.argv[1], LANES)
        store.receive([inbound("acknowledged")])
        with store._file.writing() as db:
            db.execute("UPDATE inbound SET reason = 'half done'")
            print("in the middle", flush=True)
            sys.stdin.read()
        """,
        path,
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in the middle\n"
        os.kill(writer.pid, signal.SIGKILL)
    # Neither the file lock nor SQLite's own outlives the process.
    store.receive([inbound("after")])
    kept = store.inbound_page(Filter(), None, 10).items
    assert [one.reason for one in kept] == ["", "", ""]
    with raw(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_was_acknowledged_survives_a_kill_at_any_moment(store: SqliteStore, path: Path) -> None:
    writer = python(
        """
        store = SqliteStore(sys.argv[1], LANES)
        for number in range(100_000):
            print(store.receive([inbound(f"{number}", body=os.urandom(2000))])[0].id, flush=True)
        """,
        path,
    )
    with writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(40)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    stored = {one.id for one in store.inbound_page(Filter(), None, 100_000).items}
    assert stored >= set(acknowledged)
    assert all(one.body for one in store.work("crm", NOW, 1000).inbounds)
    with raw(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_cannot_grow_refuses_and_keeps_what_it_took(store: SqliteStore, path: Path) -> None:
    writer = python(
        """
        import resource
        from bridge.errors import StoreUnavailable
        store = SqliteStore(sys.argv[1], LANES)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        try:
            for number in range(10_000):
                print(store.receive([inbound(f"{number}", body=os.urandom(3000))])[0].id, flush=True)
        except StoreUnavailable as error:
            print(error)
        """,
        path,
    )
    printed, _ = writer.communicate(timeout=60)
    *acknowledged, last = printed.splitlines()
    assert "until then nothing is taken in" in last
    stored = {one.id for one in store.inbound_page(Filter(), None, 10_000).items}
    assert stored == {int(one) for one in acknowledged}


def test_writers_of_several_processes_all_get_their_turn(store: SqliteStore, path: Path) -> None:
    script = """
        store = SqliteStore(sys.argv[1], LANES)
        for number in range(50):
            store.receive([inbound(f"{sys.argv[2]}-{number}"), inbound(f"shared-{number}")])
            store.take_turn("mail", 1.0, 30, NOW)
        """
    writers = [python(script, path, name) for name in "abc"]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert store.health(NOW).inbound == {"accepted": 200, "duplicate": 100}
    assert store.take_turn("mail", 1.0, 30, NOW) == 1.0


# --- lanes and plans -------------------------------------------------------------------------------------


def test_contacts_are_dealt_out_anew_when_the_number_of_lanes_changes(store: SqliteStore, path: Path) -> None:
    keys = list(numbered(30))
    commit(store, *(want(key, "sms") for key in keys))
    with closing(SqliteStore(path, {"sms": 3})) as wider:
        tickets = [wider.acquire(deliver_lane("sms", number), "b", NOW) for number in range(3)]
        for number, ticket in enumerate(tickets):
            mine = {key for key in keys if slot_of(key) % 3 == number}
            assert {claim(wider, ticket).key for _ in mine} == mine
            assert wider.claim(ticket, NOW) is None


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (
            "SELECT * FROM delivery WHERE target = ? AND lane = ? AND state IN ('pending', 'retrying')"
            " AND due_at <= ? ORDER BY due_at LIMIT 1",
            "delivery_due",
        ),
        (
            "SELECT min(due_at) FROM delivery WHERE target = ? AND lane = ? AND state IN ('pending', 'retrying')",
            "delivery_due",
        ),
        ("SELECT id FROM inbound WHERE source = ? AND outcome = 'accepted' ORDER BY id", "inbound_queued"),
        (
            "SELECT d.id FROM delivery d WHERE d.error = ? ORDER BY d.updated_at DESC, d.id DESC",
            "delivery_by_error",
        ),
        ("SELECT a.id FROM audit a WHERE a.source = ? ORDER BY a.at DESC, a.id DESC", "audit_by_source"),
        ("SELECT a.id FROM audit a WHERE a.target = ? ORDER BY a.at DESC, a.id DESC", "audit_by_target"),
        ("SELECT a.id FROM audit a WHERE a.error = ? ORDER BY a.at DESC, a.id DESC", "audit_by_error"),
        (
            "SELECT a.id FROM audit a WHERE a.kind = ? AND a.kind NOT IN ('contact', 'delivery')"
            " AND (a.at, a.id) < (?, ?) ORDER BY a.at DESC, a.id DESC",
            "audit_by_kind",
        ),
        (
            "SELECT a.id FROM audit a WHERE a.status = ? AND a.status >= 300 ORDER BY a.at DESC, a.id DESC",
            "audit_by_status",
        ),
        ("SELECT * FROM inbound i WHERE i.source = ? ORDER BY i.received_at DESC, i.id DESC", "inbound_by_source"),
        (
            "SELECT source_id FROM delivery WHERE target = ? AND source = ? AND target_id = ? AND source_id != ?"
            " AND target_id IS NOT NULL AND state != 'removed'",
            "delivery_link",
        ),
    ],
)
def test_frequent_questions_read_no_more_than_they_answer(
    store: SqliteStore, path: Path, statement: str, index: str
) -> None:
    with raw(path) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", ["?"] * statement.count("?"))]
    assert len(plan) == 1  # and nothing is sorted
    assert f"INDEX {index}" in plan[0]


def test_counts_are_exact_after_any_change(store: SqliteStore, path: Path) -> None:
    commit(store, *(want(key) for key in numbered(20)))
    ticket = store.acquire(MAIL, "a", NOW)
    for _ in range(5):
        claimed = claim(store, ticket)
        push(store, ticket, claimed, f"T{claimed.key.source_id}")
    store.pause("mail", "", "ann", NOW)
    store.resume("mail", "ann", NOW)
    with raw(path) as db:
        counted = db.execute("SELECT target, state, count(*) FROM delivery GROUP BY target, state").fetchall()
    assert store.health(NOW).deliveries == {(target, state): n for target, state, n in counted}


def test_very_many_deliveries_are_held_and_resumed_in_slices(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
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
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
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


def test_a_retry_that_was_cut_short_is_of_what_it_came_to(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
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


def test_what_was_there_before_totals_and_terms_were_kept_is_counted_and_found(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        MIGRATIONS.apply(Database(connection, execute_plugins=False), stop_before="0002_looking")
        known = {"fields": {"email": {"value": "J.Smith@acme.com", "version": [iso(NOW), "e1"]}}}
        connection.execute(
            "INSERT INTO contact (source, source_id, data, search, erased, updated_at)"
            " VALUES ('crm', '1', ?, '', 0, ?)",
            (json.dumps(known), iso(NOW)),
        )
        connection.execute(
            "INSERT INTO inbound (source, received_at, method, url, headers, digest, outcome, reason, events,"
            " secret_index) VALUES ('crm', ?, 'POST', '/hooks/crm', '{}', x'00', 'processed', '', 1, 0)",
            (iso(NOW - timedelta(days=9)),),
        )
        entries = [
            ("contact", "changed", None, None, None, None, None, NOW - timedelta(days=9)),
            ("delivery", "updated", "mail", 1, 200, None, 70, NOW),
            ("delivery", "unavailable", "mail", 2, 503, "unavailable", 80, NOW + SECOND),
        ]
        for kind, outcome, target, attempt, status, error, duration_ms, at in entries:
            connection.execute(
                "INSERT INTO audit (at, kind, outcome, reason, source, source_id, target, attempt, status, error,"
                " duration_ms, fields) VALUES (?, ?, ?, 'Why.', 'crm', '1', ?, ?, ?, ?, ?, '[]')",
                (iso(at), kind, outcome, target, attempt, status, error, duration_ms),
            )
    with closing(SqliteStore(path, LANES)) as store:
        assert "0002_looking" in store.migrate()
        assert [one.key for one in store.contact_page(Filter(q="smith@ac"), None, 5).items] == [JANE]
        assert set(store.totals()) == {
            Activity("heard", "heard", 1, "crm"),
            Activity("contact", "changed", 1, "crm"),
            Activity("delivery", "updated", 1, "crm", "mail", None, 200, calls=1, duration_ms=70),
            Activity("delivery", "unavailable", 1, "crm", "mail", "unavailable", 503, calls=1, duration_ms=80),
        }
        assert len(store.activity(NOW - MINUTE, NOW + MINUTE)) == 2
        assert len(store.activity(NOW - timedelta(days=10), NOW + MINUTE)) == 4
        [latency] = store.latencies()
        assert (latency.counts[100], latency.total_ms) == (2, 150)
        assert [one for one in store.queues(NOW) if one.target == "mail"] == [
            Queue(
                "mail",
                last_success_at=NOW,
                last_error_at=NOW + SECOND,
                last_error="unavailable",
                last_error_reason="Why.",
            )
        ]
        # What is changed from now on is told apart from what was found in the migration.
        commit(store, contacts=[contact(JANE, email="new@example.com")])
        assert store.contact_page(Filter(q="smith"), None, 5).items == []


def test_an_erased_person_is_in_no_file_however_many_there_are(store: SqliteStore, path: Path) -> None:
    keys = list(numbered(400))
    commit(
        store,
        contacts=[contact(key, email=f"person{key.source_id}@hills{key.source_id}.example") for key in keys],
    )
    gone = keys[100:140]
    for key in gone:
        commit(store, contacts=[Contact(key, erased=Version(NOW, "e9"))], erased=[key])
    for key in gone:
        assert not found(path, f"person{key.source_id}@hills".encode())
        assert not found(path, f"hills{key.source_id}.example".encode())
    assert found(path, b"hills200.example")


# --- properties ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(-80, 2000), st.integers(1, 4)), max_size=60),
)
def test_no_window_of_time_has_more_turns_than_the_rate_allows(
    store: SqliteStore, rate: float, burst: int, steps: list[tuple[int, int]]
) -> None:
    with store._file.writing() as db:
        db.execute("DELETE FROM quota")
    now = NOW
    latest = NOW + timedelta(milliseconds=steps[0][0] if steps else 0)
    taken: list[tuple[datetime, int]] = []
    for pause_ms, count in steps:
        now += timedelta(milliseconds=pause_ms)
        latest = max(latest, now)
        count = min(count, burst)
        wait_s = store.take_turn("mail", rate, burst, now, count)
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

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / f"{id(self)}.db"
        self.store = SqliteStore(self.path, {"mail": 1}, pragmas={"secure_delete": "OFF"})
        self.store.migrate()
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
        for file in self.path.parent.glob(f"{self.path.name}*"):
            file.unlink()

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


def test_pushes_in_any_order_keep_to_one_at_a_time(tmp_path: Path) -> None:
    class Here(Pushing):
        folder = tmp_path

    run_state_machine_as_test(Here, settings=settings(max_examples=15, stateful_step_count=25, deadline=None))


def test_cursors_follow_the_order_of_equal_moments(store: SqliteStore) -> None:
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
