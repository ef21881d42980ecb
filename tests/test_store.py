"""The SQLite store keeps the contract, and what is promised of a file besides; see `test_stores` for the rest."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlite_utils import Database

from bridge.database import SqliteDatabase
from bridge.errors import StoreUnavailable
from bridge.model import Outcome, iso
from bridge.store.looking import Activity, Queue
from bridge.store.migrations.sqlite import MIGRATIONS
from bridge.store.protocol import Filter, InboundResult
from bridge.store.sqlite import SqliteStore
from tests.databases import python
from tests.store_contract import (
    JANE,
    LANES,
    MINUTE,
    NOW,
    SECOND,
    MakeStore,
    StoreContract,
    commit,
    contact,
    fact,
    inbound,
)
from tests.store_contract_looking import LookingContract


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
        assert store.migrate() == [
            "0001_first",
            "0002_looking",
            "0003_lag",
            "0004_as_on_postgresql",
            "0005_access_token",
            "0006_catching_up",
        ]
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


# --- lanes and plans -------------------------------------------------------------------------------------


# --- other processes -------------------------------------------------------------------------------------


def test_a_file_that_cannot_grow_refuses_and_keeps_what_it_took(store: SqliteStore, path: Path) -> None:
    writer = python(
        """
        import resource
        from bridge.errors import StoreUnavailable
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        try:
            for number in range(10_000):
                print(store.receive([inbound(f"{number}", body=os.urandom(3000))])[0].id, flush=True)
        except StoreUnavailable as error:
            print(error)
        """,
        SqliteDatabase(path),
    )
    printed, _ = writer.communicate(timeout=60)
    *acknowledged, last = printed.splitlines()
    assert "until then nothing is taken in" in last
    stored = {one.id for one in store.inbound_page(Filter(), None, 10_000).items}
    assert stored == {int(one) for one in acknowledged}


# --- questions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (
            "SELECT * FROM delivery WHERE target = ? AND lane = ? AND low = ? AND state IN ('pending', 'retrying')"
            " AND due_at <= ? ORDER BY due_at LIMIT 1",
            "delivery_due",
        ),
        (
            "SELECT min(due_at) FROM delivery WHERE target = ? AND lane = ? AND low = ?"
            " AND state IN ('pending', 'retrying')",
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
