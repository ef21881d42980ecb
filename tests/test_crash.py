"""Kill any process at any moment: every acknowledged webhook has its effect, and nobody is created twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.config import Config, load
from bridge.database import Database
from bridge.model import RecordKey
from tests.cluster import PEOPLE, Stream, at_rest
from tests.databases import sqlite_is_enough, url_of
from tests.platforms import Platforms, person, serve_platforms
from tests.processes import start_processes, until

KILLS = 8


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


@sqlite_is_enough  # on PostgreSQL several of each are killed: tests/test_cluster.py
def test_killed_at_random_moments_nothing_acknowledged_is_lost(
    platforms: Platforms, database: Database, tmp_path: Path
) -> None:
    platforms.forget()
    chance = random.Random(20261122)
    path = platforms.write_config(tmp_path, settle_s=1)
    config = load(path, platforms.environ)
    environ = {**platforms.environ, "DATABASE_URL": url_of(database)}
    with start_processes(path, environ) as processes:
        with Stream(config, [processes.url]) as stream:
            for _ in range(KILLS):
                role = chance.choice(["web", "worker", "worker"])
                # Long enough to come up and do something; the exact moment within that is left to chance.
                stream.stopping.wait(chance.uniform(0.3, 1.5))
                processes.kill(role)
                processes.start(role)
            until(processes.alive, what="the web process")
            stream.wait_for_everybody()
        until(lambda: at_rest(processes.api), seconds=60, what="all deliveries at rest")
    assert platforms.counts() == dict.fromkeys(platforms.fakes, PEOPLE)
    for who in range(PEOPLE):
        for name in (platforms.marketing.person(person(who)["email"])["firstName"], sms_name(platforms, who)):
            number = int(name.removeprefix("Ana "))
            assert stream.taken[who] <= number <= stream.sent[who]
    assert b"Traceback" not in processes.log_path.read_bytes()
    acknowledged(database, config, stream)


def sms_name(platforms: Platforms, who: int) -> str:
    held = platforms.sms.person(person(who)["phone"])
    assert held is not None
    return str(held["firstName"])


def acknowledged(database: Database, config: Config, stream: Stream) -> None:
    """Assert that the database itself holds the newest of what was acknowledged, and is sound."""
    store = database.open({name: one.lanes for name, one in config.targets.items()}, "web")
    try:
        for who in range(PEOPLE):
            key = RecordKey("shop", person(who)["id"])
            name = store.contacts([key])[key].fields["name"].value
            assert isinstance(name, str)
            assert int(name.removeprefix("Ana ")) >= stream.taken[who]
    finally:
        store.close()
