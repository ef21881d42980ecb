"""Kill, freeze and restart whatever there is: processes that share a PostgreSQL lose and repeat nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import psycopg
import pytest

from bridge.config import load
from bridge.worker import SWEEP_S
from tests.cluster import (
    PATIENCE_S,
    PEOPLE,
    Cluster,
    Member,
    Stream,
    assert_all_arrived,
    assert_only_the_database_failed,
    at_rest,
    burst_of,
    start_cluster,
)
from tests.platforms import Platforms, person, serve_platforms
from tests.postgres import PostgresServer
from tests.processes import until

KILLS = 1  # in each of three rounds
RATE_PER_S, BURST = 10, 5
JITTER_S = 0.3  # between a call's permission and its arrival here, on a busy machine
BACK_S = 4.0  # until a web process uses a database that is back
HANDED_OVER_S = 60.0  # 5 without a heartbeat, 2 between looks, and a very busy machine


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """What it says is stored is on disk, and a database of its own for each test."""
    with PostgresServer(fsync=True) as started:
        yield started


@pytest.fixture
def url(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    server.start()
    name = request.node.name[:60]
    yield server.create_database(name)
    server.start()
    server.drop_database(name)


def write_config(
    platforms: Platforms,
    folder: Path,
    *,
    settle_s: float = 1,
    rate_per_s: int | None = None,
    routed: Collection[str] = ("marketing",),
) -> Path:
    """Write a configuration; *rate_per_s* is the inbox's."""
    platforms.forget()
    path = platforms.write_config(folder, settle_s=settle_s, routed=routed)
    if rate_per_s is not None:
        before, place, after = path.read_text().partition(platforms.urls["inbox"])
        after = after.replace("rate_per_s = 1000\nburst = 1000", f"rate_per_s = {rate_per_s}\nburst = {BURST}", 1)
        path.write_text(before + place + after)
    return path


def migrate(path: Path, platforms: Platforms, url: str) -> None:
    done = bridge("migrate", path, platforms, url)
    assert done.returncode == 0, done.stderr


def bridge(command: str, path: Path, platforms: Platforms, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bridge", command, "--config", str(path)],
        env={**platforms.environ, "DATABASE_URL": url, "SECRET_KEY": "a-secret-key-for-tests"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# --- everything at once ----------------------------------------------------------------------------------


def test_whatever_is_killed_frozen_or_restarted_nothing_is_lost_or_sent_twice(
    platforms: Platforms, server: PostgresServer, url: str, tmp_path: Path
) -> None:
    chance = random.Random(20261122)
    # A create that is under way in a frozen worker has arrived before another worker believes that it never will.
    path = write_config(platforms, tmp_path, settle_s=12, rate_per_s=RATE_PER_S, routed=platforms.fakes)
    config = load(path, platforms.environ)
    migrate(path, platforms, url)
    away: list[tuple[float, float]] = []
    with start_cluster(path, platforms.environ, url, webs=2, workers=3) as cluster:
        with Stream(config, cluster.urls) as stream:
            kill_some(cluster, stream, chance)
            freeze_and_thaw(cluster, platforms, url)
            for _ in range(2):
                away.append(restart(server))
                kill_some(cluster, stream, chance)
            until(cluster.serves, seconds=PATIENCE_S, what="every web process")
            stream.wait_for_everybody()
        until(lambda: at_rest(cluster.api), seconds=PATIENCE_S, what="all deliveries at rest")
        log = cluster.events()
    assert_all_arrived(platforms, stream, url)
    assert stream.statuses() <= {200, 503, None}
    assert_refused_only_while(away, stream)
    assert_only_the_database_failed(log)
    moments = [call.at for call in platforms.inbox.made()]
    assert BURST / 2 < burst_of(moments, RATE_PER_S) <= BURST + RATE_PER_S * JITTER_S


def kill_some(cluster: Cluster, stream: Stream, chance: random.Random) -> None:
    for _ in range(KILLS):
        until(lambda: len(cluster.up()) > 2, seconds=PATIENCE_S, what="somebody to kill")
        # The exact moment is left to chance.
        stream.stopping.wait(chance.uniform(0.1, 0.8))
        victim = chance.choice(cluster.up())
        victim.kill()
        victim.start()


def freeze_and_thaw(cluster: Cluster, platforms: Platforms, url: str) -> None:
    """Freeze a worker in mid-push and in mid-transaction until others have its lanes; then let it find out."""
    until(lambda: len(cluster.up()) == len(cluster.members), seconds=PATIENCE_S, what="every process")
    slow = platforms.marketing.trouble(how="slow", seconds=0.3, times=10**9)
    with psycopg.connect(url, autocommit=True) as connection:

        def pushing(worker: Member) -> set[str]:
            """Return the lanes of which *worker* has sent something and not said how it ended."""
            rows = connection.execute(_PUSHING, [f"%:{worker.pid}"])
            return {lane for (lane,) in rows}

        def interrupted() -> set[int]:
            """Return the sessions in which a worker began a transaction and says nothing more."""
            return {session for (session,) in connection.execute(_INTERRUPTED)}

        def freeze() -> Member | None:
            worker = next((one for one in cluster.workers if pushing(one)), None)
            if worker is None:
                return None
            worker.send(signal.SIGSTOP)
            connection.execute("SELECT pg_sleep(0.3)")  # what it asked for before is done by then
            if pushing(worker) and interrupted():
                return worker
            worker.send(signal.SIGCONT)
            return None

        worker = until(freeze, seconds=PATIENCE_S, what="a worker in mid-push and in mid-transaction")
        lanes, sessions = pushing(worker), interrupted()
        slow.times = 0
        until(
            lambda: not pushing(worker) and not sessions & interrupted(),
            seconds=HANDED_OVER_S,
            what="others in the lanes of the frozen worker, and the end of its transaction",
        )
        worker.send(signal.SIGCONT)
    until(
        lambda: lanes & {event["lane"] for event in cluster.events("lane.lost") if worker.has(event["owner"])},
        seconds=PATIENCE_S,
        what="the refusal of what the thawed worker writes",
    )


_PUSHING = (
    "SELECT l.name FROM lane l JOIN delivery d ON l.name = 'deliver:' || d.target || ':' || d.lane"
    " WHERE l.owner LIKE %s AND d.state = 'sending'"
)
_INTERRUPTED = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bridge worker'"
    " AND state = 'idle in transaction' AND state_change < clock_timestamp() - interval '0.25 s'"
)


def restart(server: PostgresServer) -> tuple[float, float]:
    """Restart the database as a crash would; return from when until when it was away."""
    began = time.monotonic()
    server.restart_immediate()
    return began, time.monotonic()


def assert_refused_only_while(away: list[tuple[float, float]], stream: Stream) -> None:
    refused = [answer for answer in stream.answers if answer.status == 503]
    assert all(
        any(began <= answer.ended and answer.began <= ended + BACK_S for began, ended in away)
        for answer in refused
    )


# --- starting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["web", "worker"])
def test_nothing_starts_without_the_tables_or_without_the_database(
    platforms: Platforms, server: PostgresServer, url: str, tmp_path: Path, role: str
) -> None:
    path = write_config(platforms, tmp_path)
    refused = bridge(role, path, platforms, url)
    assert refused.returncode == 1
    assert "bridge migrate" in refused.stderr
    server.stop()
    refused = bridge(role, path, platforms, url)  # the service manager tries again
    assert refused.returncode == 1
    assert "The database server cannot be reached." in refused.stderr
    assert "Traceback" not in refused.stderr


# --- several workers ----------------------------------------------------------------------------------------


def test_what_is_done_now_and_then_is_done_once_for_all(platforms: Platforms, url: str, tmp_path: Path) -> None:
    path = write_config(platforms, tmp_path)
    migrate(path, platforms, url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_COUNT_CHORES)
        began = time.monotonic()
        with start_cluster(path, platforms.environ, url, webs=0, workers=3):

            def runs() -> dict[str, int]:
                return dict(connection.execute("SELECT name, count(*) FROM chore_run GROUP BY name").fetchall())

            until(lambda: runs().get("chore:sweep", 0) >= 3, seconds=PATIENCE_S, what="the third sweep")
            done = runs()
        periods = (time.monotonic() - began) / SWEEP_S
    assert done["chore:prune"] == 1
    # Once by whoever started first, and then once a period.
    assert max(done["chore:sweep"], done["chore:tidy"]) <= periods + 2


_COUNT_CHORES = """
CREATE TABLE chore_run (name TEXT);
CREATE FUNCTION count_chore() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chore_run VALUES (NEW.args ->> 'name');
    RETURN NULL;
END $$;
CREATE TRIGGER count_chore AFTER UPDATE OF status ON procrastinate_jobs FOR EACH ROW
    WHEN (NEW.status = 'doing' AND NEW.task_name = 'bridge.chore') EXECUTE FUNCTION count_chore();
"""


def test_the_rules_of_the_worker_that_started_last_count(platforms: Platforms, url: str, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old_path = write_config(platforms, tmp_path / "old")
    new_path = write_config(platforms, tmp_path / "new")
    new_path.write_text(new_path.read_text().replace('firstName = "name"', "firstName = \"'New ' + name\""))
    config = load(old_path, platforms.environ)
    migrate(old_path, platforms, url)

    def named(beginning: str) -> bool:
        return all(
            platforms.marketing.person(person(who)["email"])["firstName"].startswith(beginning)
            for who in range(PEOPLE)
        )

    with start_cluster(old_path, platforms.environ, url, webs=1, workers=1) as cluster:
        with Stream(config, cluster.urls) as stream:
            stream.wait_for_everybody()
            until(
                lambda: platforms.counts()["marketing"] == PEOPLE and named("Ana"),
                seconds=PATIENCE_S,
                what="the old rules",
            )
            new = cluster.add("worker", new_path)
            until(lambda: cluster.events("worker.superseded"), seconds=PATIENCE_S, what="the old worker's insight")
            until(lambda: named("New Ana"), seconds=PATIENCE_S, what="the new rules")
            stream.wait_for_everybody()
        until(lambda: at_rest(cluster.api), seconds=PATIENCE_S, what="all deliveries at rest")
        assert named("New Ana")
        assert new.terminate() == 0
        # What arrives now waits for a worker with the rules in force.
        with psycopg.connect(url, autocommit=True) as connection, stream:

            def engines() -> bool:
                return connection.execute("SELECT 1 FROM procrastinate_workers").fetchone() is not None

            until(lambda: not engines(), seconds=PATIENCE_S, what="the old worker's rest")
            stream.wait_for_everybody()
        assert cluster.api("/inbound?outcome=accepted&limit=1")["items"]
        assert named("New Ana")
        assert len(cluster.events("worker.superseded")) == 1
