"""Several web and worker processes on one PostgreSQL, and a sender that never stops and forgets no answer."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests

from bridge.config import Config
from bridge.model import RecordKey
from bridge.store.postgres import PostgresStore
from tests.platforms import Platforms, person, signed, webhook
from tests.processes import Processes, until

PEOPLE = 12
PACE_S = 0.06  # between two webhooks: a steady stream that leaves the machine to others as well
PATIENCE_S = 120.0  # for a condition on a machine that has much else to do
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


# --- the processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One process of the cluster. Each has its own port, and all write to one log."""

    role: str
    processes: Processes

    @property
    def pid(self) -> int:
        return self.processes.running[self.role].pid

    @property
    def left(self) -> bool:
        return self.processes.running[self.role].poll() is not None

    def has(self, owner: str) -> bool:
        """Say whether *owner* is the name by which it takes lanes."""
        return owner.endswith(f":{self.pid}")

    def start(self) -> None:
        self.processes.start(self.role)

    def send(self, number: signal.Signals) -> None:
        self.processes.send(self.role, number)

    def kill(self) -> None:
        self.processes.kill(self.role)

    def terminate(self) -> int:
        """Ask it to end as a platform does, and return its exit code once it has."""
        process = self.processes.running.pop(self.role)
        process.terminate()
        return process.wait(PATIENCE_S)


@dataclass
class Cluster:
    """Web and worker processes that share a database. Where one ends by itself, a platform starts it again."""

    config_path: Path
    environ: Mapping[str, str]
    database_url: str
    webs: list[Member] = field(default_factory=list)
    workers: list[Member] = field(default_factory=list)

    @property
    def members(self) -> list[Member]:
        return [*self.webs, *self.workers]

    @property
    def urls(self) -> list[str]:
        return [web.processes.url for web in self.webs]

    def add(self, role: str, config_path: Path | None = None) -> Member:
        member = Member(role, Processes(config_path or self.config_path, self.environ, self.database_url))
        member.start()
        (self.webs if role == "web" else self.workers).append(member)
        return member

    def forget(self, member: Member) -> None:
        """Take out a process that was ended for good."""
        (self.webs if member.role == "web" else self.workers).remove(member)

    def revive(self) -> None:
        for member in self.members:
            if member.role in member.processes.running and member.left:
                member.start()

    def up(self) -> list[Member]:
        """Return those that have begun to work."""
        self.revive()
        owners = [event["owner"] for event in self.events("worker.started")]
        workers = [worker for worker in self.workers if any(worker.has(owner) for owner in owners)]
        return [*(web for web in self.webs if web.processes.alive()), *workers]

    def serves(self) -> bool:
        """Say whether every web process answers."""
        self.revive()
        return all(web.processes.alive() for web in self.webs)

    def api(self, path: str) -> dict[str, object]:
        return self.webs[0].processes.api(path)

    def events(self, name: str = "") -> list[dict[str, Any]]:
        return events(self.config_path.parent / "bridge.log", name)

    def stop(self) -> None:
        for member in self.members:
            member.processes.ask_to_stop()
        for member in self.members:
            member.processes.stop()


@contextmanager
def start_cluster(
    config_path: Path, environ: Mapping[str, str], database_url: str, *, webs: int, workers: int
) -> Iterator[Cluster]:
    cluster = Cluster(config_path, environ, database_url)
    try:
        for role in ["web"] * webs + ["worker"] * workers:
            cluster.add(role)
        until(lambda: len(cluster.up()) == webs + workers, seconds=PATIENCE_S, what="every process")
        yield cluster
    finally:
        cluster.stop()


def events(log_path: Path, name: str = "") -> list[dict[str, Any]]:
    """Return what processes have logged so far: the events of that *name*, or all."""
    found: list[dict[str, Any]] = []
    for line in log_path.read_text("utf-8").splitlines():
        if line.startswith("{"):  # the rest is said to a person
            event: dict[str, Any] = json.loads(line)
            if name in {"", event["event"]}:
                found.append(event)
    return found


# --- the sender ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a web process said to one webhook, and when, by `time.monotonic`. No *status*: nobody answered."""

    url: str
    began: float
    ended: float
    status: int | None


@dataclass
class Stream:
    """Numbered names for the same people, each newer than the one before, to all *urls* in turn.

    It runs within each `with` block, and goes on in the next where it ended in the last.
    """

    config: Config
    urls: Sequence[str]
    sent: dict[int, int] = field(default_factory=dict)  # person -> highest number sent
    taken: dict[int, int] = field(default_factory=dict)  # person -> highest number acknowledged
    answers: list[Answer] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    last: int = 0

    def run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self.stopping.wait(PACE_S):
                self.last += 1
                # One person's webhooks come through all web processes.
                turn = self.last + self.last // PEOPLE
                self._send(session, self.urls[turn % len(self.urls)], self.last)

    def _send(self, session: requests.Session, url: str, number: int) -> None:
        who = number % PEOPLE
        body = webhook("changed", person(who, name=f"Ana {number}"), NOON + timedelta(seconds=number))
        headers = dict(signed(self.config, body, f"msg_{number}").headers)
        self.sent[who] = number
        began = time.monotonic()
        status: int | None = None
        with contextlib.suppress(requests.RequestException):  # nobody is there: the next one will be newer
            status = session.post(f"{url}/hooks/shop", data=body, headers=headers, timeout=20).status_code
        self.answers.append(Answer(url, began, time.monotonic(), status))
        if status == 200:
            self.taken[who] = number

    def statuses(self) -> set[int | None]:
        return {answer.status for answer in list(self.answers)}

    def wait_for_everybody(self) -> None:
        """Wait until something newer was taken for every person."""
        before = dict(self.taken)
        until(
            lambda: all(self.taken.get(who, 0) > before.get(who, 0) for who in range(PEOPLE)),
            seconds=PATIENCE_S,
            what="a webhook for every person",
        )

    def __enter__(self) -> Stream:
        self.stopping.clear()
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stopping.set()
        self._thread.join()


# --- what must be true -----------------------------------------------------------------------------------


def at_rest(api: Callable[[str], dict[str, object]]) -> bool:
    """Say whether every inbound is processed and every delivery synced."""
    waiting = api("/inbound?outcome=accepted&limit=1")["items"]
    states = {
        state: api(f"/deliveries?state={state}&limit=1")["items"]
        for state in ("pending", "sending", "retrying", "held", "failed", "ambiguous", "waiting")
    }
    assert not states["failed"], states["failed"]
    assert not states["ambiguous"], states["ambiguous"]
    return not waiting and not any(states.values())


def assert_all_arrived(platforms: Platforms, stream: Stream, database_url: str) -> None:
    """Assert that everybody exists once on each platform, in the newest state that was acknowledged or a newer."""
    routed = {route.target for route in stream.config.routes}
    assert platforms.counts() == {name: PEOPLE if name in routed else 0 for name in platforms.fakes}
    lanes = {name: one.lanes for name, one in stream.config.targets.items()}
    with closing(PostgresStore(database_url, lanes)) as store:
        for who in range(PEOPLE):
            key = RecordKey("shop", person(who)["id"])
            names = {"database": store.contacts([key])[key].fields["name"].value}
            if "marketing" in routed:
                names["marketing"] = platforms.marketing.person(person(who)["email"])["firstName"]
            if "sms" in routed:
                names["sms"] = (platforms.sms.person(person(who)["phone"]) or {})["firstName"]
            for where, name in names.items():
                number = int(str(name).removeprefix("Ana "))
                assert stream.taken[who] <= number <= stream.sent[who], where
            assert len(set(names.values())) == 1, names


def assert_only_the_database_failed(log: Sequence[Mapping[str, Any]]) -> None:
    """Assert that no process complained of anything but that it could not reach the database."""
    away = {"StoreUnavailable", "OperationalError", "AdminShutdown", "CrashShutdown", "CannotConnectNow"}
    strange = [
        event
        for event in log
        if event["level"] == "error" and event["event"] != "web.store_unavailable" and event["error"] not in away
    ]
    assert not strange, strange


def burst_of(moments: Sequence[float], rate_per_s: float) -> float:
    """Return the size of the bucket from which calls at these *moments* were granted, at the least.

    In any window of t seconds there were at most that many calls, and *rate_per_s* x t.
    """
    largest, lowest = 0.0, float("inf")
    for number, moment in enumerate(sorted(moments)):
        level = number - rate_per_s * moment
        lowest = min(lowest, level)
        largest = max(largest, level - lowest + 1)
    return largest
