"""Two machines, as network namespaces: one of them loses the database, and the other goes on."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from bridge.config import load
from bridge.store.postgres import PostgresStore
from tests.cluster import (
    PATIENCE_S,
    PEOPLE,
    Stream,
    assert_all_arrived,
    assert_only_the_database_failed,
    at_rest,
    events,
)
from tests.platforms import Platforms, person, serve_platforms
from tests.postgres import PostgresServer
from tests.processes import Processes, until

# Of the block for benchmarks of networks, which is nobody's. Each process of tests has its own part of it.
BLOCK = IPv4Network("198.18.0.0/15")
NOTICED_S = 30.0  # that a line is dead: some 10 by TCP, and a busy machine
BACK_S = 15.0  # until a database is used that can be reached again


# --- machines ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A cable from a machine to us, with an address at each end."""

    name: str
    here: str
    there: str


@dataclass(frozen=True)
class Machine:
    """A network namespace with two lines to ours: to the database, and for senders."""

    number: int
    part: IPv4Network

    @property
    def name(self) -> str:
        return f"bridge-{os.getpid()}-{self.number}"

    @property
    def inside(self) -> list[str]:
        """What a command line begins with, to be run on this machine."""
        return ["ip", "netns", "exec", self.name]

    @property
    def database(self) -> Line:
        return self._line(0)

    @property
    def senders(self) -> Line:
        return self._line(1)

    def _line(self, which: int) -> Line:
        net = list(self.part.subnets(new_prefix=30))[2 * self.number + which]
        here, there = net.hosts()
        return Line(f"b{os.getpid()}-{self.number}{which}", str(here), str(there))

    def make(self) -> None:
        ip("netns", "add", self.name)
        self._ip("link", "set", "lo", "up")
        for end, line in (("database", self.database), ("senders", self.senders)):
            ip("link", "add", line.name, "type", "veth", "peer", "name", end, "netns", self.name)
            ip("addr", "add", f"{line.here}/30", "dev", line.name)
            ip("link", "set", line.name, "up")
            self._ip("addr", "add", f"{line.there}/30", "dev", end)
            self._ip("link", "set", end, "up")

    def listen(self, port: int) -> socket.socket:
        """Listen at *port* of the machine's own loopback; who connects there is accepted here."""
        made: list[socket.socket] = []

        def enter() -> None:
            with Path(f"/run/netns/{self.name}").open() as space:
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server(("127.0.0.1", port)))

        thread = threading.Thread(target=enter)  # which is where it went until it ends
        thread.start()
        thread.join()
        return made[0]

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Pull the database's cable at our end: nobody is told, and what is sent is lost without a word."""
        ip("link", "set", self.database.name, "down")
        try:
            yield
        finally:
            ip("link", "set", self.database.name, "up")

    def remove(self) -> None:
        with suppress(Refused):
            ip("netns", "del", self.name)  # and its lines

    def _ip(self, *words: str) -> None:
        ip("-n", self.name, *words)


class Refused(Exception):
    """This process may not do that, or the kernel cannot."""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    if shutil.which("ip") is None:
        pytest.skip("There is no 'ip' here: install iproute2 for tests with network namespaces.")
    parts = BLOCK.num_addresses // 16
    part = IPv4Network((int(BLOCK[0]) + 16 * (os.getpid() % parts), 28))
    made = [Machine(0, part), Machine(1, part)]
    with ExitStack() as stack:
        try:
            # What is for a machine whose line is down shall not leave by another.
            ip("route", "add", "blackhole", str(part), "metric", "4000")
            stack.callback(ip, "route", "del", "blackhole", str(part), "metric", "4000")
            for machine in made:
                stack.callback(machine.remove)
                machine.make()
        except Refused as error:
            pytest.skip(f"Network namespaces are not permitted here: {error}")
        yield made


@contextmanager
def offered_to(machine: Machine, ports: Sequence[int]) -> Iterator[None]:
    """Offer what listens at *ports* of our loopback at those of the machine's: only there is http allowed."""
    with ExitStack() as stack:
        for port in ports:
            listening = stack.enter_context(machine.listen(port))
            thread = threading.Thread(target=accept, args=(listening, port), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(listening.shutdown, socket.SHUT_RDWR)
        yield


def accept(listening: socket.socket, port: int) -> None:
    with suppress(OSError):  # until nobody listens any more
        while True:
            asking, _ = listening.accept()
            threading.Thread(target=relay, args=(asking, port), daemon=True).start()


def relay(asking: socket.socket, port: int) -> None:
    with asking, suppress(OSError), socket.create_connection(("127.0.0.1", port)) as behind:
        answers = threading.Thread(target=pump, args=(behind, asking), daemon=True)
        answers.start()
        pump(asking, behind)
        answers.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


# --- the test ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(machines: list[Machine]) -> Iterator[PostgresServer]:
    addresses = ["127.0.0.1", *(machine.database.here for machine in machines)]
    with PostgresServer(fsync=True, settings={"listen_addresses": ",".join(addresses)}) as started:
        with (started.folder / "data/pg_hba.conf").open("a") as rights:
            rights.write(f"host all all {BLOCK} trust\n")
        started.execute("SELECT pg_reload_conf()")
        yield started


@pytest.fixture
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


def test_a_machine_that_loses_the_database_harms_nobody_and_recovers(
    machines: list[Machine], server: PostgresServer, platforms: Platforms, tmp_path: Path
) -> None:
    path = platforms.write_config(tmp_path, settle_s=1, routed=["marketing"])
    config = load(path, platforms.environ)
    url = server.create_database("shared")
    with closing(PostgresStore(url, {})) as store:
        store.migrate()
    ports = [urlsplit(one).port or 0 for one in platforms.urls.values()]
    with ExitStack() as stack:
        for machine in machines:
            stack.enter_context(offered_to(machine, ports))
        staying, cut = stack.enter_context(running(machines, server, path, platforms))
        with Stream(config, [staying.url, cut.url]) as stream:
            stream.wait_for_everybody()
            until(lambda: platforms.counts()["marketing"] == PEOPLE, seconds=PATIENCE_S, what="all contacts")
            with machines[1].cut_off():
                cut_at = time.monotonic()
                until(lambda: 503 in statuses(stream, cut, cut_at), seconds=NOTICED_S, what="a refusal")
                stream.urls = [staying.url]
                before = dict(stream.taken)
                stream.wait_for_everybody()
                until(lambda: delivered(platforms, before), seconds=PATIENCE_S, what="what the other delivers")
            joined_at = time.monotonic()
            stream.urls = [staying.url, cut.url]
            until(lambda: 200 in statuses(stream, cut, joined_at), seconds=BACK_S, what="a webhook that is taken")
            until(lambda: works(cut, url), seconds=BACK_S, what="a lane that is run by the machine that was away")
            stream.wait_for_everybody()
        until(lambda: at_rest(staying.api), seconds=PATIENCE_S, what="all deliveries at rest")
        log = events(staying.log_path)
    assert statuses(stream, staying) == {200}
    assert statuses(stream, cut) == {200, 503}
    assert_all_arrived(platforms, stream, url)
    assert_only_the_database_failed(log)


@contextmanager
def running(
    machines: Sequence[Machine], server: PostgresServer, path: Path, platforms: Platforms
) -> Iterator[list[Processes]]:
    """Run web and worker on each machine."""
    started = [
        Processes(
            path,
            platforms.environ,
            url_from(machine, server, "shared"),
            host=machine.senders.there,
            inside=machine.inside,
        )
        for machine in machines
    ]
    try:
        for processes in started:
            processes.start("web")
            processes.start("worker")
        for processes in started:
            until(processes.alive, seconds=PATIENCE_S, what="the web process")
        until(lambda: len(events(started[0].log_path, "worker.started")) == len(started), seconds=PATIENCE_S)
        yield started
    finally:
        for processes in started:
            processes.ask_to_stop()
        for processes in started:
            processes.stop()


def url_from(machine: Machine, server: PostgresServer, database: str) -> str:
    return f"postgresql://postgres@{machine.database.here}:{server.port}/{database}"


def statuses(stream: Stream, processes: Processes, since: float = 0.0) -> set[int | None]:
    """Return what was answered to the webhooks that were sent to *processes* after *since*."""
    return {one.status for one in list(stream.answers) if one.url == processes.url and one.began >= since}


def delivered(platforms: Platforms, taken: dict[int, int]) -> bool:
    """Say whether all that was *taken*, or something newer, is on the platform."""
    return all(
        int(platforms.marketing.person(person(who)["email"])["firstName"].removeprefix("Ana ")) >= number
        for who, number in taken.items()
    )


def works(processes: Processes, url: str) -> bool:
    """Say whether a lane was taken a moment ago by the worker of *processes*."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT 1 FROM lane WHERE owner LIKE %s AND taken_at > clock_timestamp() - interval '2 s'",
            [f"%:{processes.running['worker'].pid}"],
        )
        return found.fetchone() is not None


ALONE = """
import sys
from bridge.store.postgres import PostgresStore
with PostgresStore(sys.argv[1], {}).alone("rules"):
    print("alone", flush=True)
    sys.stdin.read()
"""


def test_a_machine_that_is_gone_keeps_nobody_from_starting(
    machines: list[Machine], server: PostgresServer
) -> None:
    url = server.create_database("locked")
    holder = subprocess.Popen(
        [*machines[1].inside, sys.executable, "-c", ALONE, url_from(machines[1], server, "locked")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder, closing(PostgresStore(url, {})) as store:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"alone\n"
        began = time.monotonic()
        with machines[1].cut_off(), store.alone("rules"):
            assert time.monotonic() - began < NOTICED_S
        holder.kill()
