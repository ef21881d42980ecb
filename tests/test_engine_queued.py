"""The engine on PostgreSQL keeps the contract, and hands lanes over between processes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from procrastinate.schema import SchemaManager

from bridge.engine.deferring import defer, queue_of
from bridge.engine.protocol import Chore
from bridge.engine.queued import QueuedEngine
from bridge.model import utc_now
from tests.engine_contract import LATE, PATIENCE_S, SOON, Done, EngineContract, Lanes, MakeEngine, wait_for
from tests.postgres import PostgresServer
from tests.processes import until

FAST_S = (0.01, 0.04)
QUICK: dict[str, Any] = {"beat_s": 0.1, "stalled_s": 1.0, "recover_s": 1}


@pytest.fixture
def url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    postgres_server.start()
    yield postgres_server.create_database("engine", migrated_template)
    postgres_server.start()
    postgres_server.drop_database("engine")


MakeQueued = Callable[..., QueuedEngine]


@pytest.fixture
def make_queued(url: str) -> Iterator[MakeQueued]:
    made: list[QueuedEngine] = []

    def make(**settings: Any) -> QueuedEngine:
        told: dict[str, Any] = {"failed": lambda lane, error: None, "backoff_s": FAST_S, "chore_backoff_s": FAST_S}
        made.append(QueuedEngine(url, **{**told, **settings}))
        return made[-1]

    yield make
    for engine in made:
        assert engine.stop(PATIENCE_S)


class TestQueuedEngine(EngineContract):
    @pytest.fixture
    def make_engine(self, make_queued: MakeQueued) -> MakeEngine:
        return make_queued


def test_the_schema_is_the_one_that_the_first_migration_made() -> None:
    digest = hashlib.sha256(SchemaManager.get_schema().encode()).hexdigest()
    # Another version of Procrastinate: what it changed (its folder sql/migrations has it) needs a step of our own,
    # and the first step must go on making what it made.
    assert digest == "c70ec4b400a60ad9592787653aae5ae77ae41bf801d56b5bd2712751a07f2009"


# --- wakes in the caller's transaction -------------------------------------------------------------------


def jobs(connection: psycopg.Connection[Any]) -> list[tuple[str, datetime | None]]:
    rows = connection.execute("SELECT queueing_lock, scheduled_at FROM procrastinate_jobs ORDER BY 1").fetchall()
    return [(lock, at) for lock, at in rows]


def test_a_wake_belongs_to_the_callers_transaction(url: str) -> None:
    with psycopg.connect(url) as connection, psycopg.connect(url, autocommit=True) as other:
        defer(connection, {"a": utc_now()})
        assert jobs(other) == []
        connection.rollback()
        assert jobs(other) == []
        defer(connection, {"a": utc_now()})
        connection.commit()
        assert jobs(other) == [("a", None)]


def test_a_wake_that_is_there_already_leaves_the_transaction_alone(url: str) -> None:
    later = utc_now() + LATE
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE fact (n INTEGER)")
        for number in range(12):  # more often than it takes psycopg to prepare a statement
            connection.execute("INSERT INTO fact VALUES (%s)", [number])
            defer(connection, {"a": utc_now(), "b": later, "c": later + LATE * number})
            connection.commit()
        assert connection.execute("SELECT count(*) FROM fact").fetchone() == (12,)
        assert jobs(connection) == [("a", None), ("b@later", later), ("c@later", later)]


def test_many_new_wakes_on_one_connection(url: str) -> None:
    with psycopg.connect(url) as connection:
        for number in range(12):
            defer(connection, {f"lane:{number}": utc_now()})
        connection.commit()
        assert len(jobs(connection)) == 12


def test_the_earlier_of_two_moments_wins(url: str) -> None:
    moment = utc_now() + LATE
    with psycopg.connect(url) as connection:
        for hours in (3, 2, 5, 1, 4):
            defer(connection, {"a": moment + LATE * hours})
            connection.commit()
        assert jobs(connection) == [("a@later", moment + LATE)]
        # One for now neither takes its place nor is held back by it.
        defer(connection, {"a": utc_now() - LATE})
        assert jobs(connection) == [("a", None), ("a@later", moment + LATE)]


def test_two_transactions_that_wake_the_same_lanes_wait_and_do_not_fail(url: str) -> None:
    wakes = {"a": utc_now(), "b": utc_now(), "c": utc_now()}
    with psycopg.connect(url) as first, psycopg.connect(url) as second:
        defer(first, {"b": utc_now()})

        def wake() -> None:
            defer(second, wakes)
            second.commit()

        other = threading.Thread(target=wake)
        other.start()
        until(lambda: _waits_for_lock(url), seconds=PATIENCE_S, what="the second transaction")
        first.commit()
        other.join(PATIENCE_S)
        assert [lock for lock, _ in jobs(first)] == ["a", "b", "c"]


def test_nobody_waits_long_for_a_transaction_that_is_frozen(url: str) -> None:
    with psycopg.connect(url) as frozen, psycopg.connect(url) as connection:
        defer(frozen, {"a": utc_now()})
        connection.execute("CREATE TABLE fact (n INTEGER)")
        began = time.monotonic()
        defer(connection, {"a": utc_now()})
        assert time.monotonic() - began < 5
        connection.execute("INSERT INTO fact VALUES (1)")
        connection.commit()


def _waiting(connection: psycopg.Connection[Any], lock: str) -> bool:
    with connection.transaction():
        return lock in dict(jobs(connection))


def _waits_for_lock(url: str) -> bool:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return found.fetchone() is not None


def test_queues_of_lanes_with_long_names_have_names_that_fit() -> None:
    long = ["deliver:" + "x" * 60 + f":{number}" for number in range(2)]
    assert queue_of("deliver:sms:0") == "deliver:sms:0"
    assert len({queue_of(lane) for lane in long}) == 2
    assert all(len(queue_of(lane)) == 40 for lane in long)


def test_a_lane_with_a_long_name_runs(make_queued: MakeQueued, url: str) -> None:
    lane = "deliver:" + "x" * 100 + ":0"
    lanes = Lanes()
    make_queued().start([lane], lanes.run)
    lanes.wait_for(lane, 1)
    with psycopg.connect(url) as connection:
        defer(connection, {lane: utc_now()})
    lanes.wait_for(lane, 2)


def test_a_committed_wake_runs_the_lane_and_one_that_was_rolled_back_does_not(
    make_queued: MakeQueued, url: str
) -> None:
    lanes = Lanes()
    make_queued().start(["a", "b"], lanes.run)
    lanes.wait_for("a", 1)
    lanes.wait_for("b", 1)
    lanes.wait_until_idle()
    with psycopg.connect(url) as connection:
        defer(connection, {"a": utc_now()})
        connection.rollback()
        defer(connection, {"b": utc_now()})
        connection.commit()
        lanes.wait_for("b", 2)
        when = utc_now() + SOON
        defer(connection, {"b": when})
        connection.commit()
    assert lanes.wait_for("b", 3) >= when
    assert lanes.runs("a") == 1


# --- several engines -------------------------------------------------------------------------------------


def test_two_engines_never_run_one_lane_at_once(make_queued: MakeQueued) -> None:
    lanes = Lanes()
    names = ["a", "b", "c"]
    told: list[Exception] = []
    engines = [make_queued(troubled=told.append), make_queued(troubled=told.append)]
    for engine in engines:
        engine.start(names, lanes.run)
    for _ in range(15):
        before = {name: lanes.runs(name) for name in names}
        engines[0].wake(names)
        engines[1].wake(names, utc_now() + timedelta(milliseconds=2))
        for name in names:
            lanes.wait_for(name, before[name] + 1)
    for engine in engines:
        assert engine.stop(PATIENCE_S)
    assert set(lanes.most.values()) == {1}
    assert told == []


def test_two_jobs_of_a_lane_that_are_fetched_in_the_same_moment(make_queued: MakeQueued, url: str) -> None:
    lanes = Lanes()
    told: list[Exception] = []
    make_queued(troubled=told.append, **QUICK).start(["a"], lanes.run)
    lanes.wait_for("a", 1)
    with psycopg.connect(url) as other, psycopg.connect(url) as connection:
        until(lambda: not _waiting(connection, "a"), seconds=PATIENCE_S, what="the end of the job")
        other.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, lock, queueing_lock, args, status)"
            " VALUES ('a', 'bridge.lane', 'a', 'a@later', '{\"lane\": \"a\"}', 'doing')"
        )
        defer(connection, {"a": utc_now()})
        connection.commit()
        until(lambda: _waits_for_lock(url), seconds=PATIENCE_S, what="the engine")
    lanes.wait_for("a", 2)
    assert told == []


def test_a_wake_for_a_lane_that_this_engine_does_not_know_is_left_for_another(
    make_queued: MakeQueued, url: str
) -> None:
    old, new = Lanes(), Lanes()
    make_queued().start(["a"], old.run)
    old.wait_for("a", 1)
    with psycopg.connect(url) as connection:
        defer(connection, {"a": utc_now(), "b": utc_now()})
    old.wait_for("a", 2)
    make_queued().start(["b"], new.run)
    new.wait_for("b", 1)
    assert {name for name, _ in old.began} == {"a"}


def test_chores_are_done_once_for_all_engines(make_queued: MakeQueued) -> None:
    lanes = Lanes()
    seldom, often = Done(), Done()
    chores = [Chore("seldom", 3600, seldom), Chore("often", 1, often)]
    engines = [make_queued(), make_queued()]
    for engine in engines:
        engine.start(["a"], lanes.run, chores)
    began = time.monotonic()
    often.wait_for(3)
    assert often.times <= time.monotonic() - began + 2
    for engine in engines:
        assert engine.stop(PATIENCE_S)
    assert (seldom.times, seldom.most, often.most) == (1, 1, 1)


def test_more_lanes_than_may_run_at_a_time(make_queued: MakeQueued) -> None:
    lanes = Lanes()
    names = [f"lane:{number}" for number in range(8)]
    make_queued(most_runs=2).start(names, lanes.run)
    for name in names:
        lanes.wait_for(name, 1)


# --- workers that die, freeze and thaw -------------------------------------------------------------------

WORKER = """
    import sys, time
    from bridge.engine.queued import QueuedEngine

    def run(lane):
        print("began", flush=True)
        time.sleep(float(sys.argv[2]))
        print("ended", flush=True)

    engine = QueuedEngine(sys.argv[1], lambda lane, error: None, **eval(sys.argv[3]))
    engine.start(["a"], run)
    sys.stdin.read()
    """


class OtherProcess:
    """A worker of another process, whose run of the lane "a" takes *run_s*."""

    def __init__(self, url: str, run_s: float, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), url, str(run_s), repr(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    def wait_for(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{word}\n"

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP])
def test_lanes_of_a_worker_that_died_or_froze_are_handed_over(
    make_queued: MakeQueued, url: str, ending: signal.Signals
) -> None:
    lanes = Lanes()
    with OtherProcess(url, 3600, QUICK) as other:
        other.wait_for("began")
        make_queued(**QUICK).start(["a"], lanes.run)
        other.send(ending)
        lanes.wait_for("a", 1)


def test_with_the_usual_settings_a_dead_workers_lane_is_handed_over_within_eight_seconds(
    make_queued: MakeQueued, url: str
) -> None:
    lanes = Lanes()
    with OtherProcess(url, 3600, {}) as other:
        other.wait_for("began")
        make_queued().start(["a", "b"], lanes.run)
        lanes.wait_for("b", 1)
        other.send(signal.SIGKILL)
        began = time.monotonic()
        lanes.wait_for("a", 1)
        assert time.monotonic() - began < 9


def test_a_thawed_worker_neither_ends_the_run_of_the_other_nor_dies(make_queued: MakeQueued, url: str) -> None:
    lanes = Lanes()
    going_on = threading.Event()
    lanes.does = wait_for(going_on)
    with OtherProcess(url, 0.2, QUICK) as other:
        other.wait_for("began")
        other.send(signal.SIGSTOP)
        time.sleep(1.2)  # the other's registration is gone, too, when an engine starts now
        engine = make_queued(**QUICK)
        engine.start(["a"], lanes.run)
        lanes.wait_for("a", 1)
        other.send(signal.SIGCONT)
        other.wait_for("ended")
        engine.wake(["a"])
        # The thawed one looks for work, and must not be given the lane that runs here.
        time.sleep(1.0)
        with psycopg.connect(url) as connection:
            assert [lock for lock, _ in jobs(connection) if lock == "a"] == ["a", "a"]
        going_on.set()
        lanes.wait_for("a", 2)
        lanes.wait_until_idle()
        assert engine.stop(PATIENCE_S)
        with psycopg.connect(url) as connection:
            defer(connection, {"a": utc_now()})
        other.wait_for("began")


def test_a_run_that_takes_longer_than_the_stop_is_not_handed_over(make_queued: MakeQueued) -> None:
    lanes, heirs = Lanes(), Lanes()
    going_on = threading.Event()
    lanes.does = wait_for(going_on)
    stopping, other = make_queued(**QUICK), make_queued(**QUICK)
    stopping.start(["a"], lanes.run)
    lanes.wait_for("a", 1)
    other.start(["a", "b"], heirs.run)
    heirs.wait_for("b", 1)
    assert not stopping.stop(2.5)
    assert heirs.runs("a") == 0
    going_on.set()
    heirs.wait_for("a", 1)


# --- a database that is away -----------------------------------------------------------------------------


def test_the_engine_survives_restarts_of_the_database(
    make_queued: MakeQueued, postgres_server: PostgresServer, url: str
) -> None:
    lanes = Lanes()
    told: list[Exception] = []
    lanes.does = lambda lane: utc_now() + timedelta(milliseconds=1)
    for engine in (make_queued(troubled=told.append, **QUICK), make_queued(**QUICK)):
        engine.start(["a", "b"], lanes.run)
    for _ in range(3):
        postgres_server.restart_immediate()
        for lane in ("a", "b"):
            lanes.wait_for(lane, lanes.runs(lane) + 10)
    assert lanes.most == {"a": 1, "b": 1}
    assert 1 <= len(told) <= 6
    assert all(isinstance(error, psycopg.Error) for error in told)


def test_a_run_during_which_the_database_was_away_is_not_the_last(
    make_queued: MakeQueued, postgres_server: PostgresServer, url: str
) -> None:
    lanes = Lanes()
    going_on = threading.Event()
    lanes.does = wait_for(going_on)
    engine = make_queued(**QUICK)
    engine.start(["a"], lanes.run, [Chore("often", 1, Done())])
    lanes.wait_for("a", 1)
    postgres_server.stop(immediate=True)
    engine.wake(["a"])
    going_on.set()
    time.sleep(1.5)
    postgres_server.start()
    lanes.wait_for("a", 2)


def test_an_engine_that_starts_before_its_database(
    make_queued: MakeQueued, postgres_server: PostgresServer, url: str
) -> None:
    lanes = Lanes()
    told = threading.Event()
    postgres_server.stop()
    make_queued(troubled=lambda error: told.set()).start(["a"], lanes.run)
    assert told.wait(PATIENCE_S)
    postgres_server.start()
    lanes.wait_for("a", 1)


def test_stopping_does_not_wait_for_a_database_that_is_away(
    make_queued: MakeQueued, postgres_server: PostgresServer, url: str
) -> None:
    lanes = Lanes()
    engine = make_queued()
    engine.start(["a"], lanes.run)
    lanes.wait_for("a", 1)
    postgres_server.stop()
    assert engine.stop(PATIENCE_S)


def test_jobs_whose_end_the_database_never_learnt_of_do_not_hold_their_lanes(
    make_queued: MakeQueued, url: str
) -> None:
    lanes = Lanes()
    engine = make_queued(**QUICK)
    with ExitStack() as later, psycopg.connect(url, autocommit=True) as connection:
        later.callback(engine.stop, PATIENCE_S)
        engine.start(["a"], lanes.run)
        lanes.wait_for("a", 1)
        until(lambda: not _waiting(connection, "a"), seconds=PATIENCE_S, what="the end of the job")
        # As a fetch whose answer was lost leaves it.
        connection.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, lock, queueing_lock, args, status, worker_id)"
            " SELECT 'a', 'bridge.lane', 'a', 'a', '{\"lane\": \"a\"}', 'doing', id FROM procrastinate_workers"
        )
        lanes.wait_for("a", 2)
