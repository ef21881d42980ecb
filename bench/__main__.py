"""``make bench``: what bridge does, measured on this machine, as ratios where that is what travels.

Every part prints what it found, whatever it is. Servers are real processes on loopback with real SQLite files; the
platforms are the strict fakes. The order of what is compared alternates, so that a busy machine hits both sides.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import requests

from bench import lists, load
from bridge import config as configuration
from bridge.config import Config
from bridge.model import InboundRequest
from tests.platforms import Platforms, person, serve_platforms, signed, webhook
from tests.processes import Processes, free_port, start_processes, until

ROUNDS = 3
REQUESTS = 6000  # a round, at each number of connections
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def main(named: Sequence[str]) -> None:
    """Run the *named* parts (ingest, idle, burst, lists), or all."""
    parts = {"ingest": ingest, "idle": idle_latency, "burst": burst, "lists": lambda _, folder: lists.run(folder)}
    with serve_platforms() as platforms, tempfile.TemporaryDirectory() as folder:
        for name in named or parts:
            parts[name](platforms, Path(folder))


# --- ingest -------------------------------------------------------------------------------------------------


def ingest(platforms: Platforms, folder: Path) -> None:
    """Durable, signed ingest beside a route that does nothing."""
    print("ingest: 1 KB signed webhooks, stored with fsync before the 200, beside a null Flask route")
    for connections in (16, 64):
        ratios, rates, nulls, tails = [], [], [], []
        for _ in range(ROUNDS):
            with null_server() as port:
                null = load.run(port, [wire(b"{}" + b" " * 1000, {}, port)] * REQUESTS, connections=connections)
            with bridge(platforms, folder, "web") as (config, processes):
                requests_ = distinct(config, REQUESTS, processes.port)
                taken = load.run(processes.port, requests_, connections=connections)
            assert set(taken.statuses) == {200}, taken.statuses
            ratios.append(taken.per_s / null.per_s)
            rates.append(taken.per_s)
            nulls.append(null.per_s)
            tails.append(taken.percentile_ms(99))
        print(
            f"  {connections:3} connections: ratio {statistics.median(ratios):.2f} (aim 0.70; all rounds "
            f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}), {statistics.median(rates):,.0f}/s of "
            f"{statistics.median(nulls):,.0f}/s, p99 of the acknowledgement {statistics.median(tails):.0f} ms"
        )


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


def distinct(config: Config, count: int, port: int, *, people: int = 500) -> list[bytes]:
    """Return *count* signed webhooks over *people* contacts, each newer than the one before."""
    wires = []
    for number in range(count):
        data = {**person_of(number % people), "name": f"Name {number}", "note": "x" * 700}
        body = webhook("changed", data, NOON + timedelta(seconds=number))
        request = signed(config, body, f"msg_{number}")
        wires.append(wire(request.body, dict(request.headers), port))
    return wires


def person_of(number: int) -> dict[str, str]:
    return {**person(number), "phone": f"+52551234{number:04d}"}


def wire(body: bytes, headers: dict[str, str], port: int) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(
        ["POST /hooks/shop HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}", *lines]
    )
    return head.encode("latin-1") + b"\r\n\r\n" + body


@contextmanager
def bridge(platforms: Platforms, folder: Path, *roles: str) -> Iterator[tuple[Config, Processes]]:
    """Run bridge's processes on an empty database."""
    platforms.forget()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path = platforms.write_config(Path(own), settle_s=1)
        config = configuration.load(path, platforms.environ)
        with start_processes(path, {**platforms.environ, "LOG_LEVEL": "warning"}, *roles) as processes:
            yield config, processes


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
        f"(aim 30; the very first {first:.0f} ms), {samples} samples, four targets at once"
    )


def post(session: requests.Session, processes: Processes, request: InboundRequest) -> None:
    answer = session.post(
        f"{processes.url}/hooks/shop", data=request.body, headers=dict(request.headers), timeout=10
    )
    assert answer.status_code == 200, answer.text


def idle(processes: Processes) -> bool:
    """Say whether nothing is unprocessed, due or under way."""
    unprocessed = processes.api("/inbound?outcome=accepted&limit=1")["items"]
    return not unprocessed and not any(
        processes.api(f"/deliveries?state={state}&limit=1")["items"]
        for state in ("pending", "sending", "retrying")
    )


# --- a burst ------------------------------------------------------------------------------------------------


def burst(platforms: Platforms, folder: Path, webhooks: int = 5000, people: int = 500) -> None:
    """An import: ten edits of everybody at once, into four targets whose quotas do not matter."""
    with bridge(platforms, folder, "web", "worker") as (config, processes):
        wires = distinct(config, webhooks, processes.port, people=people)
        started = time.monotonic()
        sent = load.run(processes.port, wires, connections=16)
        until(lambda: idle(processes), seconds=240, what="convergence")
        seconds = time.monotonic() - started
        memory = {role: resident_mb(process.pid) for role, process in processes.running.items()}
        pushes = attempts(processes)
    assert platforms.counts() == dict.fromkeys(platforms.fakes, people), platforms.counts()
    print(
        f"burst: {webhooks:,} webhooks over {people} contacts into four targets: acknowledged in "
        f"{sent.seconds:.1f} s, converged in {seconds:.1f} s"
    )
    for name, count in sorted(pushes.items()):
        calls = len(platforms.fakes[name].calls) / people
        print(f"  {name:10} {count / people:.2f} pushes a contact (aim 1.2), {calls:.1f} HTTP calls a contact")
    total = sum(memory.values())
    parts = ", ".join(f"{role} {mb:.0f}" for role, mb in sorted(memory.items()))
    print(f"memory after the burst: {total:.0f} MB resident in all processes (aim 200): {parts}")


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


def resident_mb(pid: int) -> float:
    """Return the memory of a process and its children; pages that they share count once."""
    return sum(_proportional_kb(one) for one in [pid, *children(pid)]) / 1024


def children(pid: int) -> Sequence[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found


def _proportional_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(json.dumps({"no Pss of": pid}))


if __name__ == "__main__":
    main(sys.argv[1:])
