"""Kill any process at any moment: every acknowledged webhook has its effect, and nobody is created twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from bridge.config import Config, load
from bridge.database import Database
from bridge.model import RecordKey
from tests.databases import url_of
from tests.platforms import Platforms, person, serve_platforms, signed, webhook
from tests.processes import Processes, start_processes, until

PEOPLE = 12
KILLS = 8
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@dataclass
class Stream:
    """A sender that never stops: numbered names, each newer than the one before; it remembers what was taken."""

    config: Config
    url: str
    sent: dict[int, int] = field(default_factory=dict)  # person -> highest number sent
    taken: dict[int, int] = field(default_factory=dict)  # person -> highest number acknowledged
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        with requests.Session() as session:
            session.trust_env = False
            while not self.stopping.is_set():
                number += 1
                who = number % PEOPLE
                body = webhook("changed", person(who, name=f"Ana {number}"), NOON + timedelta(seconds=number))
                request = signed(self.config, body, f"msg_{number}")
                self.sent[who] = number
                try:
                    answer = session.post(
                        f"{self.url}/hooks/shop", data=body, headers=dict(request.headers), timeout=10
                    )
                except requests.RequestException:
                    self.stopping.wait(0.05)  # nobody is there: the next one will be newer
                    continue
                if answer.status_code == 200:
                    self.taken[who] = number

    def __enter__(self) -> Stream:
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stopping.set()
        self.thread.join()


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


def test_killed_at_random_moments_nothing_acknowledged_is_lost(
    platforms: Platforms, database: Database, tmp_path: Path
) -> None:
    platforms.forget()
    chance = random.Random(20261122)
    path = platforms.write_config(tmp_path, settle_s=1)
    config = load(path, platforms.environ)
    environ = {**platforms.environ, "DATABASE_URL": url_of(database)}
    with start_processes(path, environ) as processes:
        with Stream(config, processes.url) as stream:
            for _ in range(KILLS):
                role = chance.choice(["web", "worker", "worker"])
                # Long enough to come up and do something; the exact moment within that is left to chance.
                stream.stopping.wait(chance.uniform(0.3, 1.5))
                processes.kill(role)
                processes.start(role)
            until(processes.alive, what="the web process")
            before = dict(stream.taken)
            until(lambda: all(stream.taken.get(who, 0) > before.get(who, 0) for who in range(PEOPLE)))
        until(lambda: at_rest(processes), seconds=60, what="all deliveries at rest")
    assert platforms.counts() == dict.fromkeys(platforms.fakes, PEOPLE)
    for who in range(PEOPLE):
        for name in (platforms.marketing.person(person(who)["email"])["firstName"], sms_name(platforms, who)):
            number = int(name.removeprefix("Ana "))
            assert stream.taken[who] <= number <= stream.sent[who]
    assert b"Traceback" not in processes.log_path.read_bytes()
    acknowledged(database, config, stream)


def at_rest(processes: Processes) -> bool:
    """Say whether every delivery is synced and every inbound processed."""
    waiting = processes.api("/inbound?outcome=accepted&limit=1")["items"]
    states = {
        state: processes.api(f"/deliveries?state={state}&limit=1")["items"]
        for state in ("pending", "sending", "retrying", "held", "failed", "ambiguous", "waiting")
    }
    assert not states["failed"], states["failed"]
    assert not states["ambiguous"], states["ambiguous"]
    return not waiting and not any(states.values())


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
