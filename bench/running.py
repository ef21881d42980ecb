"""What parts of the bench share: bridge's processes on an empty database, signed webhooks, and processor time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bridge import config as configuration
from bridge.config import Config
from tests.platforms import Platforms, person, signed, webhook
from tests.processes import Processes, until

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
# While a burst converges: whoever asks more often takes its time, in the web process and in that of the fakes.
LOOK_S = 0.25


@contextmanager
def bridge(
    platforms: Platforms, folder: Path, *roles: str, only: str = "", database_url: str = ""
) -> Iterator[tuple[Config, Processes]]:
    """Run bridge's processes on an empty database, by default a file; *only*: with no other target's routes."""
    platforms.forget()
    with ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        path = write_config(platforms, Path(own), only)
        environ = {**platforms.environ, "LOG_LEVEL": "warning"}
        processes = Processes(path, environ, database_url)
        stack.callback(processes.stop)
        for role in roles:
            processes.start(role)
        until(processes.alive, what="the web process")
        yield configuration.load(path, platforms.environ), processes


def write_config(platforms: Platforms, folder: Path, only: str = "", rate_per_s: int = 1000) -> Path:
    return platforms.write_config(folder, settle_s=1, rate_per_s=rate_per_s, routed=[only] if only else ())


def distinct(config: Config, count: int, port: int, *, people: int = 500, first: int = 0) -> list[bytes]:
    """Return *count* signed webhooks over *people* contacts, each newer than the one before."""
    wires = []
    for number in range(first, first + count):
        body = body_of(number, people)
        request = signed(config, body, f"msg_{number}")
        wires.append(wire(request.body, dict(request.headers), port))
    return wires


def body_of(number: int, people: int) -> bytes:
    data = {**person_of(number % people), "name": f"Name {number}", "note": "x" * 700}
    return webhook("changed", data, NOON + timedelta(seconds=number))


def person_of(number: int) -> dict[str, str]:
    return {**person(number), "phone": f"+52551234{number:04d}"}


def wire(body: bytes, headers: dict[str, str], port: int, name: str = "shop") -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(
        [f"POST /hooks/{name} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}", *lines]
    )
    return head.encode("latin-1") + b"\r\n\r\n" + body


def ready(processes: Processes) -> bool:
    """Say whether the worker has begun: what it takes to start is not what is measured."""
    return processes.session.get(f"{processes.url}/readyz", timeout=2).ok


def idle(processes: Processes) -> bool:
    """Say whether nothing is unprocessed, due or under way."""
    unprocessed = processes.api("/inbound?outcome=accepted&limit=1")["items"]
    return not unprocessed and not any(
        processes.api(f"/deliveries?state={state}&limit=1")["items"]
        for state in ("pending", "sending", "retrying")
    )


def cpu_s(pid: int) -> float:
    """Return the processor time so far of a process and its children, also of those that have ended."""
    ticks = 0
    for one in [pid, *children(pid)]:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(number) for number in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Return the memory of a process and its children; pages that they share count once."""
    return sum(_proportional_kb(one) for one in [pid, *children(pid)]) / 1024


def _proportional_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(f"no Pss of {pid}")


def children(pid: int) -> Sequence[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found
