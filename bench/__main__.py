"""``make bench``: what bridge does, measured on this machine, as ratios where that is what travels.

Every part prints what it found, whatever it is. Servers are real processes on loopback with real databases; the
platforms are the strict fakes. The order of what is compared alternates, so that a busy machine hits both sides.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import requests

from bench import backfill, lists, lists_postgres, load, postgres
from bench.running import LOOK_S, NOON, bridge, cpu_s, distinct, idle, ready, resident_mb, wire
from bridge.config import Config
from bridge.model import InboundRequest
from tests.platforms import Platforms, person, serve_platforms, signed, webhook
from tests.processes import Processes, free_port, until

ROUNDS = 3
REQUESTS = 6000  # a round, at each number of connections


def main(named: Sequence[str]) -> None:
    """Run the *named* parts, or all but the largest, which take half an hour each."""
    parts: Mapping[str, Callable[[Platforms, Path], None]] = {
        "ingest": ingest,
        "idle": idle_latency,
        "burst": burst,
        "backfill": backfill.run,
        "backfill100k": partial(backfill.run, many=backfill.VERY_MANY),
        "postgres": postgres.run,
        "lists": up_to_a_million_rows,
        "listspg": lists_postgres.run,
        "lists10m": up_to_ten_million_rows,
        "listspg10m": partial(lists_postgres.run, sizes=lists_postgres.LARGE_SIZES),
    }
    with serve_platforms() as platforms, tempfile.TemporaryDirectory() as folder:
        for name in named or [name for name in parts if not name.endswith(("10m", "100k"))]:
            parts[name](platforms, Path(folder))


def up_to_a_million_rows(_: Platforms, folder: Path) -> None:
    lists.run(folder, lists.SIZES[:-1])


def up_to_ten_million_rows(_: Platforms, folder: Path) -> None:
    lists.run(folder)


# --- ingest -------------------------------------------------------------------------------------------------


def ingest(platforms: Platforms, folder: Path) -> None:
    """Durable, signed ingest beside a route that does nothing, on the same server with the same settings.

    Webhooks have a shorter way through that server than routes have, so they are measured beside that way, too,
    where nothing is verified and nothing stored.
    """
    print("ingest: 1 KB signed webhooks, stored with fsync before the 200, beside a null Flask route")
    for connections in (16, 64):
        runs = [ingest_once(platforms, folder, connections) for _ in range(ROUNDS)]
        ratios = [taken.per_s / null.per_s for null, _, taken in runs]
        by_that_way = statistics.median(taken.per_s / shortest.per_s for _, shortest, taken in runs)
        rate, null_rate = (statistics.median(run[which].per_s for run in runs) for which in (2, 0))
        p99_ms = statistics.median(taken.percentile_ms(99) for _, _, taken in runs)
        print(
            f"  {connections:3} connections: ratio {statistics.median(ratios):.2f} (aim 0.80; all rounds "
            f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}), {rate:,.0f}/s of {null_rate:,.0f}/s, p99 of the "
            f"acknowledgement {p99_ms:.0f} ms{' (aim 50)' if connections == 16 else ''}; "
            f"{by_that_way:.2f} of the same way doing nothing"
        )


def ingest_once(platforms: Platforms, folder: Path, connections: int) -> tuple[load.Load, load.Load, load.Load]:
    """Return what came of a null route, of the shorter way that does nothing, and of webhooks."""
    with null_server() as port:
        wires = {path: [wire(b"{}" + b" " * 1000, {}, port, path)] * REQUESTS for path in ("null", "shop")}
        null = load.run(port, wires["null"], connections=connections)
        shortest = load.run(port, wires["shop"], connections=connections)
    with bridge(platforms, folder, "web") as (config, processes):
        taken = load.run(processes.port, distinct(config, REQUESTS, processes.port), connections=connections)
    for one in (null, shortest, taken):
        assert set(one.statuses) == {200}, one.statuses
    return null, shortest, taken


@contextmanager
def null_server() -> Iterator[int]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "bench.null", str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(port), what="the null server")
            yield port
        finally:
            process.terminate()


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=2).ok
    except requests.RequestException:
        return False


# --- idle ---------------------------------------------------------------------------------------------------


def idle_latency(platforms: Platforms, folder: Path, samples: int = 40) -> None:
    """From the first byte of a webhook to the first call at a platform, with nothing else to do."""
    with bridge(platforms, folder, "web", "worker") as (config, processes), requests.Session() as session:
        session.trust_env = False
        waits_ms = []
        for number in range(samples):
            sms = platforms.sms
            before = len(sms.made(path="/contacts"))
            request = signed(
                config,
                webhook("changed", person(1, name=f"Ana {number}"), NOON + timedelta(number)),
                f"idle_{number}",
            )
            started = time.monotonic()
            post(session, processes, request)
            until(lambda: len(sms.made(path="/contacts")) > before, what="a call")  # noqa: B023
            waits_ms.append((sms.made(path="/contacts")[before].at - started) * 1000)
            until(lambda: idle(processes), what="rest")
    first, rest = waits_ms[0], sorted(waits_ms[1:])
    print(
        f"idle: webhook to call {statistics.median(rest):.1f} ms median, {rest[int(len(rest) * 0.9)]:.1f} ms p90 "
        f"(aim 20; the very first {first:.0f} ms), {samples} samples, four targets at once"
    )


def post(session: requests.Session, processes: Processes, request: InboundRequest) -> None:
    answer = session.post(
        f"{processes.url}/hooks/shop", data=request.body, headers=dict(request.headers), timeout=10
    )
    assert answer.status_code == 200, answer.text


# --- a burst ------------------------------------------------------------------------------------------------


def burst(platforms: Platforms, folder: Path, webhooks: int = 5000, people: int = 500) -> None:
    """An import: ten edits of everybody at once, into one target and into four, whose quotas do not matter.

    The platforms and the sender are one Python process, which takes its share of the machine: processor time says
    whose it is.
    """
    for only in ("marketing", ""):  # ActiveCampaign is the most ordinary: two lanes, and three calls a new contact
        names = [only] if only else list(platforms.fakes)
        with bridge(platforms, folder, "web", "worker", only=only) as (config, processes):
            wires = distinct(config, webhooks, processes.port, people=people)
            until(lambda: ready(processes), what="the worker")
            roots = {"web": processes.running["web"].pid, "worker": processes.running["worker"].pid}
            before = {role: cpu_s(pid) for role, pid in roots.items()} | {"fakes and sender": time.process_time()}
            started = time.monotonic()
            sent = load.run(processes.port, wires, connections=16)
            until(lambda: idle(processes), seconds=240, what="convergence", every_s=LOOK_S)
            seconds = time.monotonic() - started
            after = {role: cpu_s(pid) for role, pid in roots.items()} | {"fakes and sender": time.process_time()}
            memory = {role: resident_mb(pid) for role, pid in roots.items()}
            pushes = attempts(processes)
        assert {name: platforms.counts()[name] for name in names} == dict.fromkeys(names, people)
        print(
            f"burst: {webhooks:,} webhooks over {people} contacts into {described(config, names)}: "
            f"acknowledged in {sent.seconds:.1f} s, converged in {seconds:.1f} s, "
            f"{webhooks / seconds:,.0f} webhooks/s (aim 1,000)"
        )
        spent = (f"{who} {after[who] - before[who]:.1f}" for who in before)
        print(f"  processor time in s: {', '.join(spent)}")
        for name in names:
            each, calls = pushes[name] / people, len(platforms.fakes[name].calls) / people
            print(f"  {name:10} {each:.2f} pushes a contact (aim 1.1), {calls:.1f} HTTP calls a contact")
        parts = ", ".join(f"{role} {mb:.0f}" for role, mb in sorted(memory.items()))
        print(f"  memory: {sum(memory.values()):.0f} MB resident in all processes (aim 150): {parts}")


def described(config: Config, names: Sequence[str]) -> str:
    """Return the targets with what decides how many pushes they take at a time."""
    targets = (config.targets[name] for name in names)
    return ", ".join(f"{one.name} ({one.type.title}, lanes: {one.lanes})" for one in targets)


def attempts(processes: Processes) -> dict[str, int]:
    """Count the pushes to each target, from the audit log."""
    counts: dict[str, int] = {}
    cursor = ""
    while True:
        page = processes.api(f"/audit?kind=delivery&limit=200{cursor}")
        items = page["items"]
        assert isinstance(items, list)
        for item in items:
            if item["attempt"] is not None:
                counts[item["target"]] = counts.get(item["target"], 0) + 1
        if not page["next"]:
            return counts
        cursor = f"&cursor={page['next']}"


if __name__ == "__main__":
    main(sys.argv[1:])
