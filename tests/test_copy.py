"""`bridge copy`: an installation on SQLite answers the same on PostgreSQL, whatever comes in between."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from bridge import config as configuration
from bridge.cli import copying as command
from bridge.cli import main
from bridge.engine.embedded import WorkerLock
from bridge.errors import StoreUnavailable
from bridge.model import AuditEntry, iso, utc_now
from bridge.pipeline import catching_up
from bridge.store.copying import run
from bridge.store.copying.mark import CopyError
from bridge.store.copying.run import COMPARING, COPYING, Copied
from bridge.store.copying.source import state_of
from bridge.store.copying.tables import LEFT_OUT, PARTS
from bridge.store.copying.target import TABLES
from bridge.store.postgres import PostgresStore
from bridge.store.protocol import Filter, Page, Refusal, Store
from bridge.store.sqlite import SqliteStore
from tests.postgres import PostgresServer
from tests.stage import FAILED, SYNCED, Template, source_id
from tests.store_contract import all_pages, inbound

NOW = utc_now() - timedelta(days=20)
NOT_PLAIN = "a\ttab, a\nline, a \\ and \\N, \b\f\r\v\x01\x7f, \u00e9\u4e2d\U0001f600 and nothing: "
ON_DAYS = [NOW - timedelta(days=days) for days in (3, 2, 0)]


@pytest.fixture(scope="session")
def migrated(postgres_server: PostgresServer) -> str:
    with closing(PostgresStore(postgres_server.create_database("template_copy"), {})) as store:
        store.migrate()
    return "template_copy"


_numbers = count()


@pytest.fixture
def url(postgres_server: PostgresServer, migrated: str) -> Iterator[str]:
    name = f"copy_{next(_numbers)}"
    yield postgres_server.create_database(name, migrated)
    postgres_server.drop_database(name)


@pytest.fixture
def lanes(template: Template) -> Mapping[str, int]:
    config = configuration.load(template.folder / "bridge.toml", template.platforms.environ)
    return {name: one.lanes for name, one in config.targets.items()}


@pytest.fixture
def path(template: Template, lanes: Mapping[str, int], tmp_path: Path) -> Path:
    """A database with one of everything."""
    path = tmp_path / "bridge.db"
    with (
        closing(sqlite3.connect(template.folder / "bridge.db")) as before,
        closing(sqlite3.connect(path)) as after,
    ):
        before.backup(after)
    with closing(SqliteStore(path, lanes)) as store:
        _add_what_is_rare(store)
    with closing(sqlite3.connect(path)) as connection:
        _make_first_receipt_old(connection)
    return path


def _add_what_is_rare(store: SqliteStore) -> None:
    store.refuse([Refusal("shop", NOW, NOT_PLAIN + "\0", 17)])
    store.add_token("shop", "token", NOW)
    store.add_login_link("link", "ada", NOW + timedelta(days=30))
    store.seen("vera", NOW)
    store.take_turn("slow", 3.7, 5, NOW)
    store.take_turn("slow", 3.7, 5, NOW + timedelta(milliseconds=77))
    store.pause("marketing", "It is being moved.", "ada", NOW)
    store.start_bulk(Filter(state="failed"), "all that failed", "ada", NOW)
    store.start_catch_up(catching_up.backfill("shop", "ada", 0.2, NOW))
    # The same detail on several days: SQLite has its payload once.
    for at in ON_DAYS:
        entry = AuditEntry(at, "sample", "sent", "", source="shop", source_id="1", detail={"same": "detail"})
        store.note([entry])


def _make_first_receipt_old(connection: sqlite3.Connection) -> None:
    """Have it as it was before migration 0004: its query and headers are its own."""
    connection.execute(
        "UPDATE payload SET url = NULL, headers = NULL WHERE digest IN (SELECT digest FROM inbound)"
    )
    connection.execute(
        "UPDATE inbound SET url = url || '?who=jane', headers = '{\"x-old\":\"1\"}'"
        " WHERE digest IN (SELECT digest FROM payload)"
    )
    connection.commit()


def _edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


# --- the same answers --------------------------------------------------------------------------------------


def test_both_databases_give_the_same_answers(path: Path, url: str, lanes: Mapping[str, int]) -> None:
    copied = run.copy(path, url)
    assert_same_answers(path, url, lanes)
    assert [proof.rows for proof in copied.proofs if proof.table == "audit"] == [_count(path, "audit")]
    assert {proof.table for proof in copied.proofs if not proof.rows} <= {"bulk_tally", "lane_count"}


def assert_same_answers(path: Path, url: str, lanes: Mapping[str, int]) -> None:
    with closing(SqliteStore(path, lanes)) as before, closing(PostgresStore(url, lanes)) as after:
        after.check()
        now = utc_now() + timedelta(minutes=1)
        expected, found = answers(before, now), answers(after, now)
    assert [name for name, answer in expected.items() if not answer] == [], "of these, nothing is compared"
    # Not one by one: to draw the difference of such large values would take minutes.
    assert [name for name, answer in expected.items() if found[name] != answer] == []


def answers(store: Store, now: datetime) -> dict[str, Any]:
    """Return what *store* says of everything, in an order that does not depend on the database."""
    contacts = pages(store.contact_page)
    since = now - timedelta(days=1)
    keys = [contact.key for contact in contacts]
    inbounds = pages(store.inbound_page)
    health = replace(store.health(now), worker_seen_at=None)
    return {
        "contacts": contacts,
        "contacts by name": pages(store.contact_page, q="Person"),
        "deliveries": pages(store.delivery_page),
        "deliveries of each": [sorted(store.deliveries_of(key), key=lambda one: one.target) for key in keys],
        "contacts by key": store.contacts(keys),
        "audit": pages(store.audit_page),
        "audit of one": pages(store.audit_page, source_id=source_id(SYNCED)),
        "inbounds": inbounds,
        "bodies": [store.inbound(one.id) for one in inbounds],
        # PostgreSQL cannot hold what is nothing.
        "refusals": [replace(one, reason=one.reason.replace("\0", "\ufffd")) for one in store.refusals("shop")],
        "health": health,
        "totals": sorted(map(repr, store.totals())),
        "activity": sorted(map(repr, store.activity(since, now))),
        "old activity": sorted(map(repr, store.activity(NOW - timedelta(days=4), NOW + timedelta(days=1)))),
        "histogram": store.histogram(Filter(), since, now, 40),
        "facets": {name: sorted(found) for name, found in store.facets(Filter()).values.items()},
        "heard": store.heard("shop", since, now),
        "latencies": sorted(store.latencies(), key=lambda one: one.target),
        "lags": sorted(store.lags(), key=lambda one: one.target),
        "queues": sorted(store.queues(now), key=repr),
        "failures": sorted(store.failure_groups(Filter()), key=repr),
        "lookup": store.lookup(source_id(FAILED)),
        "bulks": store.bulks(now),
        "rules": store.rules(),
        "due": store.due_lanes(now),
        "users": store.users(),
        "token": store.token_live("shop", "token"),
        "targets": [store.target_status(target) for target in ("marketing", "register", "sms")],
        # These change something, and come last.
        "quota": round(store.take_turn("slow", 3.7, 5, NOW + timedelta(milliseconds=99), 5), 9),
        "link": store.use_login_link("link", NOW),
    }


def pages(page: Callable[[Filter, str | None, int], Page[Any]], **narrowed: Any) -> list[Any]:
    return all_pages(lambda cursor: page(Filter(**narrowed), cursor, 7))


def test_what_may_be_personal_goes_with_its_day(path: Path, url: str) -> None:
    run.copy(path, url)
    assert _rows(url, "SELECT count(*) FROM inbound WHERE strpos(url, '?') > 0 OR headers != '{}'") == [(0,)]
    # A detail is there on each day on which it was used, and each day in a partition of its own.
    [(digest,)] = _rows(url, "SELECT DISTINCT digest FROM audit WHERE kind = 'sample' AND source_id = '1'")
    found = _rows(
        url,
        "SELECT day::text, created_at, tableoid::regclass::text FROM payload WHERE digest = %s ORDER BY 1",
        digest,
    )
    assert found == [(iso(at)[:10], at, f"payload_{at:%Y%m%d}") for at in ON_DAYS]
    assert _rows(url, "SELECT count(*) FROM payload_default") == [(0,)]
    assert _rows(url, "SELECT count(*) FROM event_key_default") == [(0,)]


def test_it_goes_on_where_the_source_ended(path: Path, url: str, lanes: Mapping[str, int]) -> None:
    event = inbound("an event", received_at=utc_now())
    with closing(SqliteStore(path, lanes)) as before:
        [known] = before.receive([event])
    run.copy(path, url)
    with closing(PostgresStore(url, lanes)) as after:
        [again] = after.receive([event])
        [new] = after.receive([inbound("another", received_at=utc_now())])
    assert (again.id, again.duplicate) == (known.id, True)
    assert not new.duplicate
    assert new.id > known.id


def test_nothing_of_the_schema_is_forgotten(path: Path, url: str) -> None:
    copied = {part.name.partition(" ")[0]: part for part in reversed(PARTS)}
    with closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert {name for name in names if not name.startswith(("sqlite_", "_sqlite"))} - LEFT_OUT == set(copied)
        for name, part in copied.items():
            ours = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
            theirs = {
                row[0]
                for row in _rows(
                    url, "SELECT column_name FROM information_schema.columns WHERE table_name = %s", part.into
                )
            }
            assert theirs - part.made.keys() <= ours, name
            assert ours - theirs <= {"id"}, name
    migrated = {row[0] for row in _rows(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    known = {name for name in migrated if not name.startswith(("procrastinate_", "payload_", "event_key_"))}
    assert known - LEFT_OUT - {"bridge_migrations"} == set(TABLES)


# --- interrupted -------------------------------------------------------------------------------------------

_STOPS = """
import signal, sys
from pathlib import Path
from bridge.store.copying import run

run.ROWS_AT_ONCE = 10
left = int(sys.argv[3])

def tell(step, done, total):
    global left
    left -= 1
    if not left:
        print("here", flush=True)
        signal.pause()

run.copy(Path(sys.argv[1]), sys.argv[2], tell)
"""


def _kill_after(path: Path, url: str, slices: int) -> None:
    """Have a process copy so many slices, and kill it there."""
    arguments = [sys.executable, "-c", _STOPS, str(path), url, str(slices)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGKILL)


def test_a_killed_copy_is_gone_on_with(path: Path, url: str, lanes: Mapping[str, int]) -> None:
    _kill_after(path, url, 8)
    [(audited,)] = _rows(url, "SELECT count(*) FROM audit")
    assert 0 < audited < _count(path, "audit"), "it was killed between slices of that table"
    with closing(PostgresStore(url, lanes)) as store:
        with pytest.raises(StoreUnavailable, match="bridge copy"):
            store.check()
        with pytest.raises(StoreUnavailable, match="only lets itself be read"):
            store.receive([inbound("a")])
    copied = run.copy(path, url)
    assert copied.resumed
    assert copied.rows < sum(proof.rows for proof in copied.proofs) - audited
    assert_same_answers(path, url, lanes)


def test_it_begins_anew_where_the_source_was_used_meanwhile(
    path: Path, url: str, lanes: Mapping[str, int]
) -> None:
    _kill_after(path, url, 8)
    with closing(SqliteStore(path, lanes)) as store:
        store.receive([inbound("new", received_at=utc_now())])
        store.pause("sms", "", "ada", NOW)
    copied = run.copy(path, url)
    assert not copied.resumed
    assert_same_answers(path, url, lanes)


def test_a_finished_copy_is_not_begun_again(path: Path, url: str, lanes: Mapping[str, int]) -> None:
    first = run.copy(path, url)
    with closing(PostgresStore(url, lanes)) as store:
        store.receive([inbound("of its own", received_at=utc_now())])
    assert run.copy(path, url) == Copied(first.finished_at, 0)
    with closing(SqliteStore(path, lanes)) as store:
        store.beat("worker", "one that was started by mistake", utc_now())
    with pytest.raises(CopyError, match="written to after that"):
        run.copy(path, url)


def test_looking_at_the_source_does_not_change_it(path: Path, lanes: Mapping[str, int]) -> None:
    with closing(SqliteStore(path, lanes)) as store:
        store.migrate()
        store.health(utc_now())
    state = state_of(path)
    with closing(SqliteStore(path, lanes)) as store:
        store.migrate()
        store.health(utc_now())
        assert state_of(path) == state
    assert state_of(path) == state
    with closing(SqliteStore(path, lanes)) as store:
        store.beat("worker", "a", utc_now())
        assert state_of(path) != state


# --- not the same ------------------------------------------------------------------------------------------


def _after(step: str, do: Callable[[], object]) -> run.Tell:
    """Return what does it once, at the end of *step*."""
    left = [do]

    def tell(now: str, done: int, total: int) -> None:
        if (now, done) == (step, total) and left:
            left.pop()()

    return tell


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE contact SET data = data || ' ' WHERE id = 3", r"contact \(ids 0 to 999\)"),
        ("DELETE FROM delivery WHERE id = 5", r"delivery \(ids 0 to 999\)"),
        ("UPDATE payload SET body = body || '\\x00'", r"payload \(\d+ rows there, \d+ here\)"),
        ("UPDATE activity_sum SET n = n + 1 WHERE step = 0", "activity_sum"),
        ("INSERT INTO tally_delta (kind, name, state, n) VALUES ('inbound', 'shop', 'accepted', 1)", "tally_sum"),
    ],
)
def test_a_row_that_differs_is_found(path: Path, url: str, statement: str, said: str) -> None:
    def damage() -> None:
        with psycopg.connect(url) as connection:
            connection.execute("SET LOCAL bridge.copying = 'on'")
            connection.execute(statement.encode())

    with pytest.raises(CopyError, match=said):
        run.copy(path, url, _after(COPYING, damage))
    assert run.copy(path, url).rows, "it begins anew by itself"


@pytest.mark.parametrize("step", [COPYING, COMPARING])
def test_a_webhook_that_arrives_meanwhile_is_told(
    path: Path, url: str, lanes: Mapping[str, int], step: str
) -> None:
    def arrive() -> None:
        with closing(SqliteStore(path, lanes)) as store:
            store.receive([inbound("late", received_at=utc_now())])

    with pytest.raises(CopyError, match=r"1 webhook arrived\. Stop the web process"):
        run.copy(path, url, _after(step, arrive))
    with closing(PostgresStore(url, lanes)) as store, pytest.raises(StoreUnavailable):
        store.check()
    run.copy(path, url)
    assert _rows(url, "SELECT count(*) FROM inbound") == [(_count(path, "inbound"),)]


def test_a_database_in_use_is_left_alone(path: Path, url: str, lanes: Mapping[str, int], tmp_path: Path) -> None:
    with closing(PostgresStore(url, lanes)) as store:
        store.receive([inbound("a")])
    with pytest.raises(CopyError, match=r"in use by another bridge \(it has rows in inbound, "):
        run.copy(path, url)
    assert _rows(url, "SELECT count(*) FROM inbound") == [(1,)]


@pytest.mark.parametrize("finished", [True, False])
def test_a_second_installation_is_refused(path: Path, url: str, tmp_path: Path, finished: bool) -> None:
    other = tmp_path / "other.db"
    with closing(SqliteStore(other, {})) as store:
        store.migrate()
    if finished:
        run.copy(path, url)
    else:
        _kill_after(path, url, 3)
    with pytest.raises(CopyError, match="the copy of another SQLite database"):
        run.copy(other, url)


def test_two_copies_at_a_time_do_not_mix(path: Path, url: str) -> None:
    other = path.with_name("the same.db")
    other.write_bytes(path.read_bytes())
    with pytest.raises(CopyError, match="Another bridge copy"):
        run.copy(path, url, _after(COPYING, lambda: run.copy(other, url)))


# --- the command -------------------------------------------------------------------------------------------


def bridge_copy(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["copy", *map(str, arguments)], prog_name="bridge")


def test_the_command_tells_what_it_did(path: Path, postgres_url: str) -> None:
    result = bridge_copy(f"sqlite:///{path}", postgres_url)
    assert result.exit_code == 0, result.output
    assert "are the same in both" in result.stdout
    assert "DATABASE_URL" in result.stdout
    assert "copied already" in bridge_copy(f"sqlite:///{path}", postgres_url).stdout
    assert json.loads(bridge_copy(f"sqlite:///{path}", postgres_url, "--json").stdout)["rows"] == 0


def test_it_can_be_read_by_scripts(path: Path, url: str) -> None:
    told = json.loads(bridge_copy(f"sqlite:///{path}", url, "--json").stdout)
    assert told["rows"] == sum(one["rows"] for one in told["verified"]) > 100
    assert all(len(one["digest"]) == 32 for one in told["verified"])
    assert not told["resumed"]


def test_a_running_worker_is_left_alone(path: Path, url: str) -> None:
    with WorkerLock(path):
        result = bridge_copy(f"sqlite:///{path}", url)
    assert result.exit_code == 1
    assert "Stop it, and the web process as well." in result.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("bridge.db", "postgresql:///x"), "write sqlite:///"),
        (("sqlite:///none.db", "postgresql:///x"), "there is no file none.db"),
        (("sqlite:///{path}", "mysql://x"), "write postgresql://"),
        (("sqlite:///{path}",), "Missing argument"),
    ],
)
def test_wrong_usage_is_told(path: Path, given: tuple[str, ...], said: str) -> None:
    result = bridge_copy(*(one.format(path=path) for one in given))
    assert result.exit_code == 2
    assert said in result.stderr


def test_another_file_is_not_touched(url: str, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE meta (a)")
    before = foreign.read_bytes()
    result = bridge_copy(f"sqlite:///{foreign}", url)
    assert result.exit_code == 1
    assert "not a database of bridge" in result.stderr
    assert foreign.read_bytes() == before


def test_a_server_that_is_away_is_told_without_its_password(path: Path) -> None:
    result = bridge_copy(f"sqlite:///{path}", "postgresql://u:sesame@127.0.0.1:1/x")
    assert result.exit_code == 1
    assert "POSTGRES_URL" in result.stderr
    assert "run the same bridge copy again" in result.stderr
    assert "sesame" not in result.output


def test_progress_is_drawn() -> None:
    from rich.console import Console
    from rich.progress import Progress

    drawn = Progress(console=Console(quiet=True))
    tell = command._drawn_on(drawn)
    tell(COPYING, 10, 100)
    tell(COPYING, 60, 100)
    tell(COMPARING, 1, 200)
    assert [(task.description, task.completed, task.total) for task in drawn.tasks] == [
        (COPYING, 60, 100),
        (COMPARING, 1, 200),
    ]


# --- looking -----------------------------------------------------------------------------------------------


def _rows(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        connection.execute("SET timezone = 'UTC'")
        return connection.execute(statement.encode(), values).fetchall()


def _count(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        [(count,)] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(count)
