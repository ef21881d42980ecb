"""One contact that bridge stumbles over, or that the database refuses: everybody else's webhooks go their way."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from bridge import config, pipeline, rules
from bridge.config import Config
from bridge.database import Database, PostgresDatabase, SqliteDatabase
from bridge.errors import StoreUnavailable, Unstorable
from bridge.lanes import process_lane
from bridge.model import AuditEntry, Change, Contact, Event, Kind, RecordKey, Version, Want, utc_now
from bridge.rules import Route
from bridge.store.postgres import plain_words
from bridge.store.protocol import Decision, Filter
from bridge.store.sqlite.file import SqliteFile
from tests.databases import sqlite_is_enough
from tests.platforms import Bench, Platforms, open_bench, person, signed, webhook
from tests.store_contract import inbound

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
POISON = 2
KEY = RecordKey("shop", str(84000 + POISON))


@pytest.fixture
def shop(tmp_path: Path) -> Config:
    platforms = Platforms()
    platforms.urls = dict.fromkeys(platforms.fakes, "http://127.0.0.1:9")  # nothing is called here
    return config.load(platforms.write_config(tmp_path), platforms.environ)


@pytest.fixture
def bench(tmp_path: Path, database: Database, shop: Config) -> Iterator[Bench]:
    with open_bench(tmp_path, shop, database) as one:
        yield one


def receive(bench: Bench, *numbers: int, edit: int = 0) -> None:
    """Have the shop tell of each of its customers in a webhook of its own."""
    for number in numbers:
        data = person(number, name=f"Edit {edit} of {number}")
        body = webhook("changed", data, NOON + timedelta(seconds=edit))
        bench.receive(signed(bench.config, body, f"msg_{number}_{edit}"))


def work(bench: Bench) -> bool:
    """Process what is queued once; say whether the lane is due again."""
    connection, routes = bench.config.sources["shop"], bench.config.routes_of("shop")
    lane = process_lane("shop")
    ticket = bench.store.acquire(lane, "test", utc_now())
    for _ in pipeline.process(connection, routes, bench.store, ticket, None, utc_now()):
        pass
    return lane in bench.store.due_lanes(utc_now())


def outcomes(bench: Bench) -> list[str]:
    """Return what became of each webhook, in the order in which they came."""
    return [one.outcome.value for one in reversed(bench.store.inbound_page(Filter(), None, 50).items)]


def reasons(bench: Bench, kind: str) -> list[AuditEntry]:
    page = bench.store.audit_page(Filter(kind=kind), None, 50)
    return [one for one in page.items if one.outcome in {"failed", "unreadable"}]


def deliveries(bench: Bench, number: int) -> int:
    return len(bench.store.deliveries_of(RecordKey("shop", str(84000 + number))))


def stumble_over(
    monkeypatch: pytest.MonkeyPatch, key: RecordKey, what: type[Exception] = ZeroDivisionError
) -> None:
    real = rules.decide

    def decide(route: Route, contact: Contact, absorbed: Any) -> Want:
        if contact.key == key:
            raise what("person2@example.com")
        return real(route, contact, absorbed)

    monkeypatch.setattr(rules, "decide", decide)


@contextmanager
def refused(database: Database, key: RecordKey) -> Iterator[None]:
    """Have the database refuse every row of this contact."""
    if isinstance(database, SqliteDatabase):
        make = "; ".join(
            f"CREATE TRIGGER refuse_{verb} BEFORE {verb} ON contact WHEN NEW.source_id = '{key.source_id}'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
            for verb in ("insert", "update")
        )
        with closing(sqlite3.connect(database.path)) as connection:
            connection.executescript(make)
        yield
        with closing(sqlite3.connect(database.path)) as connection:
            connection.executescript("DROP TRIGGER refuse_insert; DROP TRIGGER refuse_update")
        return
    assert isinstance(database, PostgresDatabase)
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(f"ALTER TABLE contact ADD CONSTRAINT no_poison CHECK (source_id <> '{key.source_id}')")
        try:
            yield
        finally:
            connection.execute("ALTER TABLE contact DROP CONSTRAINT no_poison")


def test_a_contact_that_the_database_refuses_harms_nobody_else(bench: Bench, database: Database) -> None:
    receive(bench, 1, POISON, 3, 4)
    receive(bench, POISON, edit=1)
    with refused(database, KEY):
        assert not work(bench)
    assert outcomes(bench) == ["processed", "unreadable", "processed", "processed", "unreadable"]
    assert [deliveries(bench, number) for number in (1, POISON, 3, 4)] == [4, 0, 4, 4]
    told = [one.reason for one in reasons(bench, "inbound")]
    assert len(told) == 2
    assert all("database refuses" in one and "It is kept." in one and "example.com" not in one for one in told)
    # At the contact too, so that its erasure finds them.
    assert {(one.source_id, one.inbound_id) for one in reasons(bench, "contact")} == {
        (KEY.source_id, 2),
        (KEY.source_id, 5),
    }
    bench.store.replay_inbound(utc_now(), "test", [2, 5])
    assert not work(bench)
    assert outcomes(bench) == ["processed"] * 5
    assert bench.store.contacts([KEY])[KEY].fields["name"].value == f"Edit 1 of {POISON}"
    assert deliveries(bench, POISON) == 4


def test_a_contact_that_bridge_stumbles_over_harms_nobody_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(bench, 1, POISON, 3)
    with monkeypatch.context() as broken, capture_logs() as logged:
        stumble_over(broken, KEY)
        assert not work(bench)
    assert outcomes(bench) == ["processed", "unreadable", "processed"]
    [entry] = reasons(bench, "inbound")
    assert "ZeroDivisionError, a bug" in entry.reason
    assert [one["error"] for one in logged if one["event"] == "contact.failed"] == ["ZeroDivisionError"]
    assert "example.com" not in str(logged)
    bench.store.replay_inbound(utc_now(), "test", [2])
    assert not work(bench)
    assert outcomes(bench) == ["processed"] * 3


def test_a_mark_that_cannot_be_followed_is_taken_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    receive(bench, 1, POISON)
    assert not work(bench)
    bench.store.replay(utc_now(), "test", keys=[RecordKey("shop", "84001"), KEY])
    stumble_over(monkeypatch, KEY)
    assert not work(bench)
    [entry] = reasons(bench, "contact")
    assert (entry.source_id, entry.inbound_id) == (KEY.source_id, None)
    assert outcomes(bench) == ["processed"] * 2


def of_several(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    """Have one webhook speak of three contacts, the poison between the others."""
    event_of = [
        Event(
            str(number),
            (
                Change(
                    RecordKey("shop", str(84000 + number)),
                    Kind.CREATED,
                    Version(NOON, "1"),
                    {"email": f"p{number}@example.com", "phone": f"+5255123400{number:02d}"},
                ),
            ),
        )
        for number in (1, POISON, 3)
    ]
    connection = bench.config.sources["shop"]
    monkeypatch.setattr(type(connection.source), "parse", lambda self, genuine, at: event_of)
    bench.store.receive([inbound("several", source="shop")])


@sqlite_is_enough
def test_the_others_that_a_webhook_speaks_of_are_saved(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    of_several(monkeypatch, bench)
    stumble_over(monkeypatch, KEY)
    assert not work(bench)
    assert outcomes(bench) == ["unreadable"]
    assert [deliveries(bench, number) for number in (1, POISON, 3)] == [4, 0, 4]


@sqlite_is_enough
def test_what_passes_by_itself_is_no_poison(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    receive(bench, 1, POISON)
    for passing in (OSError, MemoryError, StoreUnavailable):
        with monkeypatch.context() as broken:
            stumble_over(broken, KEY, passing)
            with pytest.raises(passing):
                work(bench)
    assert outcomes(bench) == ["accepted"] * 2


def test_an_inbound_whose_end_is_refused_does_not_keep_the_others_queued(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(bench, 1, POISON, 3)
    real = bench.store.commit

    def commit(ticket: Any, decision: Decision, now: datetime) -> dict[str, datetime]:
        if any(one.id == 2 and one.event_types for one in decision.results):
            raise Unstorable("The database refuses the names of its events.")
        return real(ticket, decision, now)

    monkeypatch.setattr(bench.store, "commit", commit)
    assert not work(bench)
    assert outcomes(bench) == ["processed", "unreadable", "processed"]
    assert [deliveries(bench, number) for number in (1, POISON, 3)] == [4, 4, 4]


@sqlite_is_enough
def test_an_erased_contact_beside_a_poison_is_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    receive(bench, 1, POISON)
    bench.receive(signed(bench.config, webhook("erased", person(1), NOON + timedelta(minutes=1)), "msg_erased"))
    stumble_over(monkeypatch, KEY)
    assert not work(bench)
    assert outcomes(bench) == ["processed", "unreadable", "processed"]
    kept = [one is not None and one.body is not None for one in map(bench.store.inbound, (1, 2, 3))]
    assert kept == [False, True, False]


# --- what a database refuses for the data's own sake -------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "of_the_data"),
    [
        (psycopg.errors.CheckViolation, False),  # without the name of a constraint: of a partition
        (psycopg.errors.NotNullViolation, True),
        (psycopg.errors.UniqueViolation, False),
        (psycopg.errors.NumericValueOutOfRange, True),
        (psycopg.errors.ProgramLimitExceeded, True),
        (psycopg.DataError, True),
        (psycopg.errors.DiskFull, False),
        (psycopg.errors.SerializationFailure, False),
    ],
)
def test_what_postgresql_refuses_for_good(error: type[psycopg.Error], of_the_data: bool) -> None:
    with pytest.raises(StoreUnavailable) as raised, plain_words.in_plain_words():
        raise error("Key (email)=(ana@example.com) is odd")
    assert isinstance(raised.value, Unstorable) is of_the_data
    assert "example.com" not in str(raised.value)


@pytest.mark.parametrize(
    ("statement", "value", "name"),
    [
        ("INSERT INTO thing VALUES (zeroblob(?))", 2**31 - 1, "SQLITE_TOOBIG"),
        ("INSERT INTO thing VALUES (?)", None, "SQLITE_CONSTRAINT_NOTNULL"),
    ],
)
def test_what_sqlite_refuses_for_good(tmp_path: Path, statement: str, value: object, name: str) -> None:
    file = SqliteFile(tmp_path / "one.db")
    file.create()
    with file.writing() as db:
        db.execute("CREATE TABLE thing (n INTEGER NOT NULL)")
    with pytest.raises(Unstorable, match=name), file.writing() as db:
        db.execute(statement, (value,))
    file.close()
