"""The PostgreSQL schema by itself: its steps, the days of its partitions, its running totals, and what it refuses.

That the store keeps its contract on it is for `store_contract` to say.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlite_utils import Database

from bridge.errors import StoreUnavailable
from bridge.model import iso
from bridge.store.migrations import postgres, sqlite
from bridge.store.postgres.folding import fold, forget_minutes
from bridge.store.postgres.partitions import DAYS_AHEAD, make_days, prune
from bridge.store.sql.database import TOTALS
from tests.postgres import PostgresServer
from tests.processes import until

Connection = psycopg.Connection[Any]
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def migrated(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database with the schema and nothing else, which nobody is to change."""
    url = postgres_server.create_database("migrated")
    with psycopg.connect(url) as connection:
        postgres.migrate(connection)
    yield url
    postgres_server.drop_database("migrated")


@pytest.fixture
def connection(migrated: str) -> Iterator[Connection]:
    """In a transaction that is rolled back: much quicker than a database of its own."""
    with psycopg.connect(migrated) as connection, connection.transaction(force_rollback=True):
        for name in ("inbound", "bulk"):
            connection.execute(f"ALTER SEQUENCE {name}_id_seq RESTART")
        yield connection


@pytest.fixture
def committing(postgres_url: str) -> Iterator[Connection]:
    """With a database of its own, for tests that look at it from several sides."""
    with psycopg.connect(postgres_url) as connection:
        postgres.migrate(connection)
        yield connection


def rows(connection: Connection, statement: str, *values: object) -> list[Any]:
    with connection.transaction():
        return connection.execute(statement.encode(), values).fetchall()


def run(connection: Connection, statement: str, *values: object) -> None:
    with connection.transaction():
        connection.execute(statement.encode(), values)


# --- steps -----------------------------------------------------------------------------------------------


def nothing(_: Connection) -> None: ...


def test_every_step_is_taken_once(postgres_url: str) -> None:
    names = [step.name for step in postgres.STEPS]
    with psycopg.connect(postgres_url) as connection:
        with pytest.raises(StoreUnavailable, match=re.escape("Run: bridge migrate")):
            postgres.check(connection)
        assert postgres.migrate(connection) == names
        postgres.check(connection)
        assert postgres.migrate(connection) == []
        further = (*postgres.STEPS, postgres.Step("0999_further", nothing))
        with pytest.raises(StoreUnavailable, match="it lacks 0999_further"):
            postgres.check(connection, further)
        assert postgres.migrate(connection, further) == ["0999_further"]


def test_steps_not_known_are_no_matter_unless_they_break(committing: Connection) -> None:
    expand = (*postgres.STEPS, postgres.Step("0998_expand", nothing))
    contract = (*expand, postgres.Step("0999_contract", nothing, breaking=True))
    postgres.migrate(committing, expand)
    postgres.check(committing)
    assert postgres.migrate(committing) == []
    postgres.migrate(committing, contract)
    postgres.check(committing, contract)
    for refused in (postgres.check, postgres.migrate):
        with pytest.raises(StoreUnavailable, match=re.escape("a newer version of bridge (it has 0999_contract)")):
            refused(committing)


def test_a_step_that_fails_leaves_nothing_and_those_before_it(committing: Connection) -> None:
    def half(connection: Connection) -> None:
        connection.execute("CREATE TABLE half (id INTEGER)")
        connection.execute("SELECT 1 / 0")

    good = postgres.Step("0998_good", nothing)
    with pytest.raises(psycopg.errors.DivisionByZero):
        postgres.migrate(committing, (*postgres.STEPS, good, postgres.Step("0999_half", half)))
    postgres.check(committing, (*postgres.STEPS, good))
    assert rows(committing, "SELECT to_regclass('half')") == [(None,)]


def test_two_that_migrate_at_once_take_every_step_once(postgres_url: str) -> None:
    taken: list[list[str]] = []

    def migrate() -> None:
        with psycopg.connect(postgres_url) as connection:
            taken.append(postgres.migrate(connection))

    both = [threading.Thread(target=migrate) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(step for steps in taken for step in steps) == [step.name for step in postgres.STEPS]


def test_every_migration_of_the_installed_procrastinate_is_known(connection: Connection) -> None:
    # If this fails, Procrastinate was upgraded: see the module's docstring for what to do with its new files.
    assert max(postgres.queue_files()) == postgres.QUEUE_SCHEMA
    [(remembered,)] = rows(connection, "SELECT value FROM meta WHERE name = 'queue_schema'")
    assert bytes(remembered).decode() == postgres.QUEUE_SCHEMA
    assert rows(connection, "SELECT to_regclass('procrastinate_jobs') IS NOT NULL") == [(True,)]


def test_what_the_queue_leaves_behind_is_swept_up_soon(connection: Connection) -> None:
    for table in ("procrastinate_jobs", "procrastinate_events"):
        [(options,)] = rows(connection, "SELECT reloptions FROM pg_class WHERE relname = %s", table)
        assert "autovacuum_vacuum_scale_factor=0" in options


# --- the same as SQLite's --------------------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[Database]:
    with Database(memory=True) as db:
        sqlite.MIGRATIONS.apply(db)
        yield db


def test_every_table_has_the_columns_that_it_has_on_sqlite(connection: Connection, other: Database) -> None:
    columns: dict[str, set[str]] = {}
    for table, column in rows(
        connection, "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    ):
        columns.setdefault(table, set()).add(column)
    ours = {table.name: set(table.columns_dict) for table in other.tables if not table.name.startswith("_sqlite")}
    ours.pop("sqlite_sequence")
    for kept in ("payload", "event_key"):
        ours[kept] = (ours[kept] - {"id"}) | {"day"}
    assert {name: columns.get(name) for name in ours} == ours


def test_every_index_and_trigger_of_sqlite_has_its_counterpart(connection: Connection, other: Database) -> None:
    named = "SELECT name FROM sqlite_master WHERE type = ? AND sql IS NOT NULL"
    indexes = {name for (name,) in other.execute(named, ("index",))}
    indexes.discard("idx__sqlite_migrations_migration_set_name")
    here = {name for (name,) in rows(connection, "SELECT indexname FROM pg_indexes")}
    assert indexes - here == set()
    triggers = {name for (name,) in other.execute(named, ("trigger",))}
    here = {name for (name,) in rows(connection, "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")}
    assert triggers - here == {"audit_never_goes"}  # one for both


def test_texts_sort_by_their_bytes_in_any_database(connection: Connection) -> None:
    others = rows(
        connection,
        "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " WHERE a.atttypid = 'text'::regtype AND c.relnamespace = 'public'::regnamespace"
        " AND c.relkind IN ('r', 'p', 'v') AND c.relname NOT LIKE 'procrastinate%%'"
        " AND a.attcollation != '\"C\"'::regcollation",
    )
    assert others == []


def test_new_rows_are_numbered_behind_copied_ones(connection: Connection) -> None:
    for table in ("inbound", "contact", "delivery", "audit", "refusal", "bulk"):
        assert rows(connection, f"SELECT pg_get_serial_sequence('{table}', 'id') IS NOT NULL") == [(True,)]
    receipt(connection, NOON, inbound_id=41)
    with connection.transaction():
        postgres.set_sequences(connection)
    assert receipt(connection, NOON + SECOND) == 42
    taken = rows(connection, "SELECT nextval('inbound_id_seq') FROM generate_series(1, 3)")
    assert taken == [(43,), (44,), (45,)]


# --- facts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET outcome = 'other'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "DELETE FROM inbound",
        "TRUNCATE inbound",
    ],
)
def test_facts_and_receipts_are_append_only(connection: Connection, statement: str) -> None:
    receipt(connection, NOON)
    run(
        connection,
        "INSERT INTO audit (at, kind, outcome, reason, fields) VALUES (now(), 'contact', 'changed', '', '[]')",
    )
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        run(connection, statement)


def test_a_receipt_keeps_headers_and_query_with_its_payload(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="query_and_headers_go_with_the_payload"):
        receipt(connection, NOON, url="https://bridge.example/hooks/crm?email=jane")


# --- running totals --------------------------------------------------------------------------------------


def receipt(
    connection: Connection,
    at: datetime,
    *,
    outcome: str = "processed",
    inbound_id: int | None = None,
    url: str = "",
    name: str = "a",
) -> int:
    """Store an inbound with a payload and an event key; return its id."""
    digest = f"{name} {iso(at)}".encode()
    with connection.transaction():
        if inbound_id is None:
            [(inbound_id,)] = rows(connection, "SELECT nextval('inbound_id_seq')")
        connection.execute(
            "INSERT INTO inbound (id, source, received_at, method, url, headers, digest, outcome, reason, events,"
            " secret_index) VALUES (%s, 'crm', %s, 'POST', %s, '{}', %s, %s, '', 1, 0)",
            (inbound_id, iso(at), url, digest, outcome),
        )
        connection.execute(
            "INSERT INTO payload (digest, day, created_at, body, url, headers)"
            " VALUES (%s, utc_day(%s), %s, 'x', 'u', 'h')",
            (digest, iso(at), iso(at)),
        )
        connection.execute(
            "INSERT INTO event_key (hash, day, inbound_id) VALUES (%s, utc_day(%s), %s)",
            (digest, iso(at), inbound_id),
        )
    return int(inbound_id)


_DELIVERY = """
INSERT INTO delivery (target, source, source_id, slot, lane, state, reason, updated_at, revision, accepted_opt_out,
  attempts, left_out) VALUES ('mail', 'crm', %s, 0, 0, %s, '', %s, 1, false, 0, '{}')
ON CONFLICT (target, source, source_id) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at
"""


def deliver(connection: Connection, source_id: str, state: str) -> None:
    run(connection, _DELIVERY, source_id, state, iso(NOON))


def tallied(connection: Connection) -> dict[tuple[str, str, str], int]:
    found = rows(connection, "SELECT kind, name, state, n FROM tally WHERE n != 0")
    return {(kind, name, state): n for kind, name, state, n in found}


def test_rows_are_tallied_whatever_becomes_of_them(connection: Connection) -> None:
    for n in range(3):
        receipt(connection, NOON + n * SECOND, outcome="accepted")
        deliver(connection, f"{n}", "pending")
    run(connection, "UPDATE inbound SET outcome = 'processed' WHERE id = 1")
    run(connection, "UPDATE inbound SET repeats = repeats + 1")
    deliver(connection, "0", "synced")
    deliver(connection, "1", "pending")
    run(connection, "UPDATE delivery SET state = 'held' WHERE state = 'pending'")
    run(connection, "DELETE FROM delivery WHERE source_id = '2'")
    expected = {
        ("inbound", "crm", "accepted"): 2,
        ("inbound", "crm", "processed"): 1,
        ("delivery", "mail", "synced"): 1,
        ("delivery", "mail", "held"): 1,
    }
    assert tallied(connection) == expected
    assert not fold(connection)
    assert tallied(connection) == expected
    assert rows(connection, "SELECT count(*) FROM tally_delta") == [(0,)]
    # What changes no state is not told.
    run(connection, "UPDATE inbound SET repeats = repeats + 1")
    assert rows(connection, "SELECT count(*) FROM tally_delta") == [(0,)]


@pytest.mark.parametrize("name", TOTALS)
def test_a_total_is_the_same_before_and_after_each_fold(connection: Connection, name: str) -> None:
    keys, numbers = TOTALS[name]
    columns = ", ".join((*keys, *numbers))
    with connection.transaction():
        connection.execute(
            f"INSERT INTO {name}_delta ({columns}) SELECT {', '.join(['n % 3'] * len(keys))},"
            f" {', '.join(['n'] * len(numbers))} FROM generate_series(1, 10) n"
        )
    every = f"SELECT {columns} FROM {name} ORDER BY 1"
    before = rows(connection, every)
    assert [row[-1] for row in before] == [18, 22, 15]
    assert fold(connection, limit=7)
    assert rows(connection, every) == before
    assert not fold(connection, limit=7)
    assert rows(connection, every) == before
    assert rows(connection, f"SELECT count(*) FROM {name}_sum") == [(3,)]
    assert not fold(connection)


def test_folding_waits_for_no_writer_and_loses_nothing(committing: Connection, postgres_url: str) -> None:
    add = "INSERT INTO latency_delta (target, bucket_ms, n, total_ms) VALUES ('mail', 50, 1, 7)"
    running = threading.Event()
    enough = threading.Event()

    def write() -> None:
        with psycopg.connect(postgres_url) as writer:
            for n in range(300):
                run(writer, add)
                if n == 10:
                    running.set()
        enough.set()

    with psycopg.connect(postgres_url) as open_still:
        open_still.execute(add)  # nobody sees it, and it holds nobody up
        writers = [threading.Thread(target=write) for _ in range(2)]
        for one in writers:
            one.start()
        assert running.wait(30)
        while not enough.is_set():
            fold(committing, limit=20)
            [(n, total)] = rows(committing, "SELECT n, total_ms FROM latency")
            assert total == 7 * n
        for one in writers:
            one.join()
        while fold(committing, limit=20):
            pass
        assert rows(committing, "SELECT n FROM latency") == [(600,)]
    fold(committing)
    assert rows(committing, "SELECT n, total_ms FROM latency_sum") == [(601, 601 * 7)]


def test_only_one_folds_at_a_time(committing: Connection, postgres_url: str) -> None:
    run(committing, "INSERT INTO latency_delta (target, bucket_ms, n, total_ms) VALUES ('mail', 50, 1, 7)")
    with psycopg.connect(postgres_url) as first:
        fold(first)
        with first.transaction():
            first.execute("SELECT 1")
            run(first, "INSERT INTO latency_delta (target, bucket_ms, n, total_ms) VALUES ('mail', 50, 1, 7)")
            fold(first)
            assert not fold(committing)
        assert rows(committing, "SELECT n FROM latency") == [(2,)]


def test_old_minutes_are_forgotten_and_hours_stay(connection: Connection) -> None:
    run(
        connection,
        "INSERT INTO activity_delta SELECT step, bucket, 'a', 'b', '', '', '', 0, 1, 0, 0"
        " FROM unnest(ARRAY[0, 60, 3600]) step, unnest(ARRAY[0, 3600, 7200]) bucket",
    )
    fold(connection)
    assert forget_minutes(connection, 7200, limit=1) == 1
    assert forget_minutes(connection, 7200) == 1
    assert forget_minutes(connection, 7200) == 0
    left = rows(connection, "SELECT step, count(*) FROM activity GROUP BY step ORDER BY step")
    assert left == [(0, 3), (60, 1), (3600, 3)]


NARROWED = [
    ("activity", "step = 3600 AND bucket >= 3600000 AND bucket < 7200000"),
    ("activity", "step = 0 AND kind NOT IN ('heard', 'announced')"),
    (
        "activity",
        "((step = 60 AND bucket >= 60 AND bucket < 120) OR (step = 3600 AND bucket >= 0 AND bucket < 3600)"
        " OR (step = 60 AND bucket >= 3600 AND bucket < 3660))",
    ),
    ("tally", "kind = 'delivery' AND name = 'mail'"),
    ("latency", "target = 'mail'"),
    ("bulk_tally", "bulk_id = 7"),
]


@pytest.mark.parametrize(("name", "condition"), NARROWED)
def test_what_a_total_is_narrowed_to_reaches_its_index(connection: Connection, name: str, condition: str) -> None:
    keys, numbers = TOTALS[name]
    values = {
        "step": "CASE WHEN n % 100 = 0 THEN 0 WHEN n % 2 = 0 THEN 60 ELSE 3600 END",
        "bucket": "n * 60",
        "kind": "(ARRAY['delivery', 'contact', 'heard', 'announced'])[1 + n % 4]",
        "name": "'name ' || n",
        "target": "'target ' || n",
        "bucket_ms": "n",
        "bulk_id": "n",
        "status": "0",
    }
    with connection.transaction():
        connection.execute(
            f"INSERT INTO {name}_sum SELECT {', '.join(values.get(key, 'n::text') for key in keys)},"
            f" {', '.join(['1'] * len(numbers))} FROM generate_series(1, 30000) n"
        )
        connection.execute(f"ANALYZE {name}_sum")
    plan = "\n".join(row[0] for row in rows(connection, f"EXPLAIN SELECT * FROM {name} WHERE {condition}"))
    assert f"{name}_sum_pkey" in plan, plan


def test_a_delivery_at_rest_is_no_longer_its_bulk_retrys(connection: Connection) -> None:
    for source_id in ("0", "1", "2"):
        deliver(connection, source_id, "failed")
    run(connection, "INSERT INTO bulk (at, by, what) VALUES (now(), 'ann', 'all')")
    run(
        connection,
        "INSERT INTO bulk_item (delivery_id, bulk_id, state, reason, attempts, revision, marked)"
        " SELECT id, 1, state, reason, 0, 1, true FROM delivery",
    )
    run(connection, "UPDATE delivery SET bulk_id = 1, bulk_open = true")
    deliver(connection, "0", "synced")  # still to be decided
    run(connection, "UPDATE delivery SET bulk_open = false WHERE source_id IN ('0', '1')")
    run(connection, "UPDATE delivery SET bulk_open = false, state = 'pending' WHERE source_id = '2'")
    deliver(connection, "2", "sending")
    told = "SELECT state, n FROM bulk_tally WHERE bulk_id = 1 ORDER BY state"
    assert rows(connection, told) == [("failed", 1), ("synced", 1)]
    assert rows(connection, "SELECT source_id FROM delivery WHERE bulk_id = 1") == [("2",)]
    deliver(connection, "2", "synced")
    assert rows(connection, told) == [("failed", 1), ("synced", 2)]
    assert rows(connection, "SELECT count(*) FROM delivery WHERE bulk_id IS NOT NULL") == [(0,)]
    assert rows(connection, "SELECT count(*) FROM bulk_item") == [(0,)]
    assert rows(connection, "SELECT ended_at FROM bulk") == [(NOON,)]
    assert tallied(connection) == {("delivery", "mail", "synced"): 2, ("delivery", "mail", "failed"): 1}


# --- days ------------------------------------------------------------------------------------------------


def partitions(connection: Connection, table: str = "payload") -> list[str]:
    found = rows(
        connection,
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1",
        table,
    )
    return [name for (name,) in found]


def where(connection: Connection, table: str = "payload") -> list[str]:
    found = rows(connection, f"SELECT tableoid::regclass::text FROM {table} ORDER BY 1")
    return [name for (name,) in found]


def test_days_are_made_ahead_and_only_once(connection: Connection) -> None:
    first = date(2026, 2, 27)
    made = make_days(connection, first)
    assert len(made) == 2 * (DAYS_AHEAD + 1)
    assert made[1:3] == ["payload_20260228", "payload_20260301"]
    assert made[-1] == "event_key_20260306"
    assert make_days(connection, first) == []
    assert make_days(connection, first + DAY) == ["payload_20260307", "event_key_20260307"]
    assert make_days(connection, date(2020, 2, 29), date(2020, 2, 29)) == [
        "payload_20200229",
        "event_key_20200229",
    ]


def test_rows_go_to_their_day_or_else_to_the_default(connection: Connection) -> None:
    make_days(connection, NOON.date(), NOON.date())
    receipt(connection, MIDNIGHT)
    receipt(connection, MIDNIGHT + DAY - timedelta(microseconds=1))
    receipt(connection, MIDNIGHT + DAY)
    for table in ("payload", "event_key"):
        assert sorted(where(connection, table)) == [f"{table}_20260302"] * 2 + [f"{table}_default"]


def test_what_came_before_its_day_was_made_moves_there_unless_it_is_very_much(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.postgres.partitions.MOVED_MAX", 2)
    for n in range(5):
        receipt(connection, NOON + (n > 1) * DAY + n * SECOND)
    made = make_days(connection, NOON.date(), NOON.date() + 2 * DAY)
    assert made == ["payload_20260302", "payload_20260304", "event_key_20260302", "event_key_20260304"]
    assert sorted(where(connection)) == ["payload_20260302"] * 2 + ["payload_default"] * 3
    assert make_days(connection, NOON.date(), NOON.date() + 2 * DAY) == []


def test_days_are_made_later_where_somebody_reads(committing: Connection, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as reading:
        reading.execute("SELECT * FROM payload").fetchall()
        assert make_days(committing, NOON.date(), NOON.date()) == ["event_key_20260302"]
        receipt(committing, NOON)
    assert make_days(committing, NOON.date(), NOON.date()) == ["payload_20260302"]
    assert where(committing) == ["payload_20260302"]


def test_a_payload_that_gives_a_wrong_day_is_refused(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        run(
            connection,
            "INSERT INTO payload (digest, day, created_at, body) VALUES ('a', '2026-03-03', %s, 'x')",
            iso(NOON),
        )


def test_a_days_partition_is_like_its_parent(connection: Connection) -> None:
    make_days(connection, NOON.date(), NOON.date())
    indexes = "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass"
    for table in ("payload", "event_key"):
        day = f"{table}_20260302"
        assert rows(connection, indexes, day) == rows(connection, indexes, table)
    storage = "SELECT attstorage::text FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'body'"
    assert rows(connection, storage, "payload_20260302") == [("e",)]


def test_old_days_go_whole_and_rows_of_the_boundary_one_by_one(connection: Connection) -> None:
    make_days(connection, NOON.date(), NOON.date() + 2 * DAY)
    for n in range(3):
        receipt(connection, NOON + n * DAY)
        receipt(connection, NOON + n * DAY + SECOND)
    before = NOON + 2 * DAY + SECOND
    assert prune(connection, before, LONG_AGO, 1000) == 4
    assert [name for name in partitions(connection) if "2026030" in name] == ["payload_20260304"]
    assert prune(connection, before, LONG_AGO, 1000) == 1
    assert prune(connection, before, LONG_AGO, 1000) == 0
    assert where(connection) == ["payload_20260304"]
    assert len(where(connection, "event_key")) == 6
    assert prune(connection, LONG_AGO, before, 1000) == 4
    assert prune(connection, LONG_AGO, before, 1000) == 1
    assert prune(connection, LONG_AGO, before, 1000) == 0
    assert where(connection, "event_key") == ["event_key_20260304"]
    assert rows(connection, "SELECT count(*) FROM inbound") == [(6,)]


def test_a_day_goes_when_all_of_it_is_too_old(connection: Connection) -> None:
    make_days(connection, NOON.date(), NOON.date())
    receipt(connection, NOON)
    assert prune(connection, MIDNIGHT + DAY - SECOND, LONG_AGO, 0) == 0
    assert "payload_20260302" in partitions(connection)
    assert prune(connection, MIDNIGHT + DAY, LONG_AGO, 0) == 1
    assert "payload_20260302" not in partitions(connection)


def test_no_more_rows_go_at_once_than_asked_for(connection: Connection) -> None:
    for n in range(5):
        receipt(connection, NOON + n * SECOND)
    before = NOON + 4 * SECOND
    removed = [prune(connection, before, before, 3) for _ in range(3)]
    assert removed == [6, 2, 0]
    assert rows(connection, "SELECT created_at FROM payload") == [(before,)]


def test_what_is_to_be_processed_keeps_its_payload_and_its_day(connection: Connection) -> None:
    make_days(connection, NOON.date(), NOON.date() + DAY)
    waiting = receipt(connection, NOON, outcome="accepted")
    receipt(connection, NOON + SECOND)
    receipt(connection, NOON + DAY)
    default = receipt(connection, NOON - DAY, outcome="accepted")
    before = NOON + 10 * DAY
    removed = 0
    while more := prune(connection, before, LONG_AGO, 1000):
        removed += more
    assert removed == 2
    assert sorted(where(connection)) == ["payload_20260302", "payload_default"]
    run(connection, "UPDATE inbound SET outcome = 'processed' WHERE id = ANY (%s)", [waiting, default])
    while more := prune(connection, before, LONG_AGO, 1000):
        removed += more
    assert removed == 4
    assert "payload_20260302" not in partitions(connection)


def test_a_payload_that_somebody_begins_to_need_is_not_dropped(
    committing: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.postgres.partitions._PATIENCE", "SET LOCAL lock_timeout = '30s'")
    make_days(committing, NOON.date(), NOON.date())
    receipt(committing, NOON)
    removed: list[int] = []
    with psycopg.connect(postgres_url) as replaying, psycopg.connect(postgres_url) as pruning:
        replaying.execute("SELECT 1 FROM payload FOR UPDATE")
        replaying.execute("UPDATE inbound SET outcome = 'accepted'")
        thread = threading.Thread(target=lambda: removed.append(prune(pruning, NOON + 9 * DAY, LONG_AGO, 1000)))
        thread.start()
        until(lambda: waiting_for_locks(committing) == 1, seconds=10, what="somebody who waits")
        replaying.commit()
        thread.join()
    assert removed == [0]
    assert where(committing) == ["payload_20260302"]


def waiting_for_locks(connection: Connection) -> int:
    [(n,)] = rows(connection, "SELECT count(*) FROM pg_locks WHERE NOT granted")
    return int(n)


def test_a_day_that_somebody_reads_goes_later_and_ingest_goes_on(
    committing: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.postgres.partitions._PATIENCE", "SET LOCAL lock_timeout = '20ms'")
    make_days(committing, NOON.date(), NOON.date() + 9 * DAY)
    receipt(committing, NOON)
    receipt(committing, NOON + SECOND)
    with psycopg.connect(postgres_url) as reading:
        reading.execute("SELECT * FROM payload").fetchall()
        assert prune(committing, NOON + 9 * DAY, LONG_AGO, 1000) == 0
        receipt(committing, NOON + 9 * DAY)
    assert prune(committing, NOON + 9 * DAY, LONG_AGO, 1000) == 2


def test_a_payload_is_looked_for_in_the_partition_of_its_day_only(connection: Connection) -> None:
    make_days(connection, NOON.date(), NOON.date() + 20 * DAY)
    for n in range(20):
        receipt(connection, NOON + n * DAY)
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SET LOCAL enable_hashjoin = off")
        cursor.execute("SET LOCAL enable_mergejoin = off")
        plan = cursor.execute(
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT i.*, p.body FROM inbound i LEFT JOIN payload p"
            " ON p.digest = i.digest AND p.day = utc_day(i.received_at) WHERE i.id = 3"
        ).fetchall()
    scans = [line for row in plan if "payload_2026" in (line := row["QUERY PLAN"]) and "Scan" in line]
    looked_in = [line for line in scans if "never executed" not in line]
    assert len(looked_in) == 1, "\n".join(row["QUERY PLAN"] for row in plan)
