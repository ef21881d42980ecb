"""PostgreSQL beside SQLite, in one run, and one, two and four workers: ``python -m bench postgres``.

The server is real, with fsync, on this machine: it takes its share of the processors, as do the platforms and the
sender, which are this process.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench import load
from bench.running import LOOK_S, body_of, bridge, cpu_s, distinct, idle, ready, write_config
from bridge import config as configuration
from bridge import pipeline
from bridge.database import PostgresDatabase
from bridge.model import utc_now
from bridge.store.postgres import PostgresStore
from bridge.store.protocol import Store
from tests.cluster import start_cluster
from tests.platforms import Platforms, signed
from tests.postgres import PostgresServer
from tests.processes import until

ROUNDS = 3
REQUESTS = 3000  # a round
CONNECTIONS = 16
WEBHOOKS, PEOPLE = 2000, 200  # of a burst
TARGET = "inbox"  # of the workers
CALL_S = 0.02
LANES = 32
PUSHES = 400
SLOW_QUOTA, FAST_QUOTA = 60, 1000  # calls a second
CORES = os.cpu_count() or 1
SETTINGS: Mapping[str, str | int] = {"shared_buffers": "256MB"}

_numbers = count(1)


def run(platforms: Platforms, folder: Path) -> None:
    with PostgresServer(fsync=True, settings=SETTINGS) as server:
        ingest(platforms, folder, server)
        burst(platforms, folder, server)
        workers(platforms, folder, server)


@contextmanager
def empty_database(server: PostgresServer) -> Iterator[str]:
    name = f"bench_{next(_numbers)}"
    url = server.create_database(name)
    with closing(PostgresStore(url, {})) as store:
        store.migrate()
    yield url
    server.drop_database(name)


@contextmanager
def databases(server: PostgresServer) -> Iterator[dict[str, str]]:
    """Give an empty database of each kind, as its URL (a file of its own: "")."""
    with empty_database(server) as url:
        yield {"SQLite": "", "PostgreSQL": url}


def spent(roots: Mapping[str, int]) -> dict[str, float]:
    """Return the processor time so far in seconds, by role."""
    return {role: cpu_s(pid) for role, pid in roots.items()} | {"fakes and sender": time.process_time()}


def shown(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    return ", ".join(f"{role} {after[role] - before[role]:.1f}" for role in before)


# --- ingest ----------------------------------------------------------------------------------------------


def ingest(platforms: Platforms, folder: Path, server: PostgresServer) -> None:
    print(f"ingest: 1 KB signed webhooks over {CONNECTIONS} connections, on disk before the 200, one web process")
    runs: dict[str, list[load.Load]] = {"SQLite": [], "PostgreSQL": []}
    costs: dict[str, str] = {}
    for _ in range(ROUNDS):
        with databases(server) as urls:
            for kind, url in urls.items():
                taken, costs[kind] = ingest_once(platforms, folder, server, url)
                runs[kind].append(taken)
    for kind, loads in runs.items():
        per_s = statistics.median(one.per_s for one in loads)
        p50_ms, p99_ms = (statistics.median(one.percentile_ms(percent) for one in loads) for percent in (50, 99))
        print(
            f"  {kind:10} {per_s:7,.0f}/s, p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms; "
            f"processor time in s of {REQUESTS:,}: {costs[kind]}"
        )
    ratios = [of_postgres.per_s / of_sqlite.per_s for of_sqlite, of_postgres in zip(*runs.values(), strict=True)]
    rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"  PostgreSQL to SQLite: {statistics.median(ratios):.2f} (rounds: {rounds})")


def ingest_once(platforms: Platforms, folder: Path, server: PostgresServer, url: str) -> tuple[load.Load, str]:
    """Return what came of it, and whose processor time it took."""
    with bridge(platforms, folder, "web", database_url=url) as (config, processes):
        wires = distinct(config, REQUESTS, processes.port)
        roots = {"web": processes.running["web"].pid} | ({"PostgreSQL": server.pid} if url else {})
        before = spent(roots)
        taken = load.run(processes.port, wires, connections=CONNECTIONS)
        cost = shown(before, spent(roots))
    assert set(taken.statuses) == {200}, taken.statuses
    return taken, cost


# --- a burst ---------------------------------------------------------------------------------------------


def burst(platforms: Platforms, folder: Path, server: PostgresServer) -> None:
    print(f"burst: {WEBHOOKS:,} webhooks over {PEOPLE} contacts into one target, one web and one worker process")
    rates: dict[str, float] = {}
    with databases(server) as urls:
        for kind, url in urls.items():
            rates[kind] = burst_once(platforms, folder, server, kind, url)
    print(f"  PostgreSQL to SQLite: {rates['PostgreSQL'] / rates['SQLite']:.2f}")


def burst_once(platforms: Platforms, folder: Path, server: PostgresServer, kind: str, url: str) -> float:
    """Return how many webhooks converged in a second."""
    roles = ("web", "worker")
    with bridge(platforms, folder, *roles, only="marketing", database_url=url) as (config, processes):
        wires = distinct(config, WEBHOOKS, processes.port, people=PEOPLE)
        until(lambda: ready(processes), what="the worker")
        roots = {role: processes.running[role].pid for role in roles}
        if url:
            roots["PostgreSQL"] = server.pid
        before, started = spent(roots), time.monotonic()
        sent = load.run(processes.port, wires, connections=CONNECTIONS)
        until(lambda: idle(processes), seconds=60, what="convergence", every_s=LOOK_S)
        seconds = time.monotonic() - started
        after = spent(roots)
    assert platforms.counts()["marketing"] == PEOPLE
    calls = len(platforms.marketing.calls)
    print(
        f"  {kind:10} acknowledged in {sent.seconds:.1f} s, converged in {seconds:.1f} s: "
        f"{WEBHOOKS / seconds:,.0f} webhooks/s, {calls / PEOPLE:.1f} calls a contact; "
        f"processor time in s: {shown(before, after)}"
    )
    return WEBHOOKS / seconds


# --- workers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """Which share of each thing that can be a limit was used, from 0 to 1."""

    quota: float
    lanes: float
    machine: float  # by anybody
    worker: float  # of one processor, by the busiest worker: its interpreter uses no more than one

    @property
    def limit(self) -> str:
        if self.quota > 0.9:
            return "the target's quota"
        if self.lanes > 0.85:
            return "the number of lanes"
        if self.machine > 0.85:
            return f"the CPU ({CORES} cores)"
        return "the one core that a worker uses" if self.worker > 0.7 else "none of these alone"


def workers(platforms: Platforms, folder: Path, server: PostgresServer) -> None:
    print(
        f"workers: {PUSHES} due pushes into a target that takes {CALL_S * 1000:.0f} ms for a call and "
        f"{LANES} at a time; {CORES} cores"
    )
    plans = [(1, FAST_QUOTA), (2, FAST_QUOTA), (4, FAST_QUOTA), (1, SLOW_QUOTA), (4, SLOW_QUOTA)]
    for number, rate_per_s in plans:
        with empty_database(server) as url, tempfile.TemporaryDirectory(dir=folder) as own:
            push(platforms, Path(own), server, url, number, rate_per_s)


def push(
    platforms: Platforms, folder: Path, server: PostgresServer, url: str, number: int, rate_per_s: int
) -> None:
    """Have so many workers send what waits at a paused target."""
    platforms.forget()
    with ExitStack() as stack:
        path = write_config(platforms, folder, TARGET, rate_per_s)
        section = f"[targets.{TARGET}]\n"
        path.write_text(path.read_text().replace(section, f"{section}lanes = {LANES}\n"))
        config = configuration.load(path, platforms.environ)
        store = PostgresDatabase(url).open({name: one.lanes for name, one in config.targets.items()}, "web")
        stack.callback(store.close)
        store.pause(TARGET, "Until all workers run.", "bench", utc_now())
        connection = config.sources["shop"]
        for start in range(0, PUSHES, 100):
            requests = [signed(config, body_of(n, PUSHES), f"msg_{n}") for n in range(start, start + 100)]
            store.receive([pipeline.receive(connection, request, utc_now()) for request in requests])
        cluster = stack.enter_context(start_cluster(path, platforms.environ, url, webs=0, workers=number))
        until(lambda: in_state(store, "held") == PUSHES, seconds=60, what="held deliveries", every_s=LOOK_S)

        fake = platforms.inbox
        fake.trouble(how="slow", times=10**9, seconds=CALL_S)
        roots = {f"worker {n}": member.pid for n, member in enumerate(cluster.workers, 1)}
        roots["PostgreSQL"] = server.pid
        before, busy, started = spent(roots), Busy(), time.monotonic()
        store.resume(TARGET, "bench", utc_now())
        until(lambda: in_state(store, "synced") == PUSHES, seconds=60, what="every push", every_s=LOOK_S)
        seconds = fake.calls[-1].at + CALL_S - started
        after, machine = spent(roots), busy.share()
    calls = len(fake.calls)
    use = Use(
        quota=max(0, calls - rate_per_s) / seconds / rate_per_s,  # beyond what may be made at once
        lanes=calls * CALL_S / (LANES * seconds),
        machine=machine,
        worker=max(after[role] - before[role] for role in roots if role.startswith("worker")) / seconds,
    )
    ours = sum(after[role] - before[role] for role in before) / (seconds * CORES)
    print(
        f"  workers: {number}, quota {rate_per_s:4}/s: {PUSHES / seconds:4.0f} pushes/s of "
        f"{calls / PUSHES:.1f} calls; the limit is {use.limit}"
    )
    print(
        f"    used: quota {use.quota:.0%}, lanes {use.lanes:.0%}, machine {use.machine:.0%} (by us {ours:.0%}); "
        f"processor time in s: {shown(before, after)}, of {seconds:.1f} s on {CORES} cores"
    )


def in_state(store: Store, state: str) -> int:
    return store.health(utc_now()).deliveries.get((TARGET, state), 0)


class Busy:
    """How busy the machine is from now on, with whatever."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        before, now = self._before, self._now()
        idle_s, all_s = now[0] - before[0], now[1] - before[1]
        return 1 - idle_s / all_s

    @staticmethod
    def _now() -> tuple[int, int]:
        first, *_ = Path("/proc/stat").read_text().splitlines()
        ticks = [int(number) for number in first.split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)
