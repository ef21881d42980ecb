"""Thousands of damaged webhooks at a real server: it refuses or takes them, and never breaks.

The damage is drawn from a fixed seed, so that a failure can be repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bridge.config import Config, load
from bridge.model import InboundRequest, utc_now
from bridge.sources.recording import read_recording
from bridge.store.protocol import Filter, Store
from bridge.web.server import THREADS as THREADS_OF_SERVER
from bridge.web.tokens import make_token
from tests.databases import KINDS, lasting, url_of
from tests.web_site import API_TOKEN, PUBLIC_URL, SECRET_KEY, SECRETS, until, write_config

REQUESTS = {"sqlite": 3000, "postgres": 800}
THREADS = 6
SEED = 20260301
RECORDINGS = Path(__file__).parent / "fixtures" / "sources"
FOLDERS = {
    "shop": "standard_webhooks",
    "legacy": "hmac",
    "guarded": "hmac",
    "hubspot": "hubspot",
    "crm": "pipedrive",
}
sqlite_is_enough = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
RUN = """
import sys
from bridge.web import server
from bridge.web.__main__ import main
server.READ_DEADLINE_S = 1.5  # nobody likes to wait for the real ones
server.SEND_TIMEOUT_S = 0.5
server.LINGER_S = 0.2
main("127.0.0.1", sys.argv[1])
"""


@dataclass
class Server:
    """A bridge of its own process, as it runs for real."""

    port: int
    config: Config
    store: Store
    log: Path
    token: str
    requests: int


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mutated")
    config = load(write_config(folder), SECRETS)
    database = lasting(request, folder)
    store = database.open({name: one.lanes for name, one in config.targets.items()}, "web")
    store.add_token("guarded", "t1", utc_now())
    port = free_port()
    environ = {
        "PATH": os.environ.get("PATH", ""),
        "DATABASE_URL": url_of(database),
        "SECRET_KEY": SECRET_KEY,
        "BRIDGE_API_TOKEN": API_TOKEN,
        "PORT": str(port),
        "LOG_LEVEL": "debug",
        **SECRETS,
    }
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder / "bridge.toml")],
            env=environ,
            stdout=out,
            stderr=out,
            cwd=Path(__file__).parent.parent,
        )
    try:
        until(lambda: process.poll() is not None or alive(port), within_s=20)
        assert process.poll() is None, log.read_text()
        token = make_token(SECRET_KEY, "guarded", "t1")
        yield Server(port, config, store, log, token, REQUESTS[request.param])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
            store.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(port: int) -> bool:
    return talk(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200")


def talk(port: int, content: bytes) -> bytes:
    """Send *content*, say that no more comes, and return all that is answered."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
            peer.sendall(content)
            peer.shutdown(socket.SHUT_WR)
            while chunk := peer.recv(65536):
                answer += chunk
    except TimeoutError:
        raise
    except OSError:
        pass  # it hung up on what it did not want to read
    return answer


# --- whole requests --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """A request in the parts that it is damaged in."""

    method: bytes = b"POST"
    target: bytes = b"/"
    version: bytes = b"HTTP/1.1"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    framed: bool = True  # its length is still to be written
    ending: bytes = b"\r\n"
    cut: int | None = None

    def encode(self) -> bytes:
        headers = list(self.headers)
        if self.framed:
            headers.append((b"Content-Length", b"%d" % len(self.body)))
        lines = [b" ".join([self.method, self.target, self.version])]
        lines += [name + b": " + value for name, value in headers]
        whole = self.ending.join(lines) + self.ending * 2 + self.body
        return whole if self.cut is None else whole[: self.cut]

    def with_header(self, name: bytes, value: bytes) -> Wire:
        return replace(self, headers=(*self.headers, (name, value)))


def recorded(server: Server) -> list[tuple[str, InboundRequest]]:
    """Return requests that the sources really get, each with its source, not yet signed."""
    found = []
    for source, folder in FOLDERS.items():
        for path in sorted((RECORDINGS / folder).glob("*.http")):
            body = read_recording(path.read_bytes(), "").body
            url = f"{PUBLIC_URL}/hooks/{source}" + (f"/{server.token}" if source == "guarded" else "")
            found.append((source, InboundRequest("POST", url, {"content-type": "application/json"}, body)))
    return found


def as_wire(request: InboundRequest) -> Wire:
    headers = tuple((name.encode(), value.encode("latin-1")) for name, value in request.headers.items())
    return Wire(
        target=request.url.removeprefix(PUBLIC_URL).encode(),
        headers=((b"Host", b"x"), *headers),
        body=request.body,
    )


# --- damage ----------------------------------------------------------------------------------------------


def noise(draw: random.Random, most: int) -> bytes:
    return draw.randbytes(draw.randint(0, most))


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Return *content* with some bytes changed, put in, taken away or repeated."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(changed))
        match draw.randint(0, 4):
            case 0:
                changed[at:at] = noise(draw, 6)
            case 1:
                del changed[at : at + draw.randint(1, 12)]
            case 2:
                changed[at:at] = changed[at : at + draw.randint(1, 40)]
            case 3:
                changed[at:at] = draw.choice(
                    [b"\xff", b"\x00", b"\\ud800", b'"', b"{", b"[" * 3000, b"1e999", b"null"]
                )
            case _:
                changed[at : at + 1] = noise(draw, 1)
    return bytes(changed)


def in_body(draw: random.Random, wire: Wire) -> Wire:
    return replace(wire, body=damaged(draw, wire.body))


def in_header(draw: random.Random, wire: Wire) -> Wire:
    headers = list(wire.headers)
    at = draw.randrange(len(headers))
    name, value = headers[at]
    match draw.randint(0, 5):
        case 0:
            del headers[at]
        case 1:
            headers.insert(at, headers[at])
        case 2:
            headers[at] = (name, damaged(draw, value))
        case 3:
            headers[at] = (damaged(draw, name), value)
        case 4:
            headers[at] = (name, value + b"x" * draw.choice([100, 8000, 17_000, 70_000]))
        case _:
            headers += [(b"X-%d" % number, b"y") for number in range(draw.choice([3, 99, 150]))]
    return replace(wire, headers=tuple(headers))


def in_known_header(draw: random.Random, wire: Wire) -> Wire:
    """Name what servers and proxies act upon."""
    name, values = draw.choice(
        [
            (b"SCRIPT_NAME", [b"/x", b""]),
            (b"Script-Name", [b"/x"]),
            (b"X-Forwarded-Proto", [b"https", b"ftp"]),
            (b"X-Forwarded-For", [b"1.2.3.4, \xff"]),
            (b"Expect", [b"100-continue", b"200-ok"]),
            (b"Content-Encoding", [b"gzip", b"identity", b"br, gzip", b"\xff"]),
            (
                b"Content-Type",
                [b"multipart/form-data", b"text/xml; charset=\xff", b"application/x-www-form-urlencoded"],
            ),
            (b"Connection", [b"upgrade", b"keep-alive, close", b"\x00"]),
            (b"Upgrade", [b"h2c", b"websocket"]),
            (b"Host", [b"evil.example", b"[::", b"a b", b"\xff"]),
            (b"Cookie", [b"session=" + b"a" * 3000]),
            (b"Authorization", [b"Basic \xff", b"Basic Og==", b"Bearer x"]),
            (b"Range", [b"bytes=0-"]),
        ]
    )
    return wire.with_header(name, draw.choice(values))


def in_target(draw: random.Random, wire: Wire) -> Wire:
    target = wire.target
    changed = draw.choice(
        [
            target + b"/",
            target + b"//",
            target + b"?" + noise(draw, 20),
            target + b"?x=%2F&y=%zz",
            target + b"/../../etc/passwd",
            target + b"%00",
            target + b"/" + b"a" * draw.choice([10, 2000, 9000]),
            target + b"/%ff%fe",
            target + b"/\xc3\xa9",
            target.upper(),
            target.replace(b"hooks", b"%68ooks"),
            b"http://evil.example" + target,
            b"//evil.example" + target,
            b"*",
            b"",
            b"/hooks/nobody",
            b"/hooks/",
            damaged(draw, target),
        ]
    )
    return replace(wire, target=changed)


def in_method(draw: random.Random, wire: Wire) -> Wire:
    methods = [
        b"GET",
        b"HEAD",
        b"PUT",
        b"DELETE",
        b"OPTIONS",
        b"TRACE",
        b"CONNECT",
        b"PATCH",
        b"post",
        b"",
        b"P@ST",
        b"X" * 99,
    ]
    return replace(wire, method=draw.choice(methods))


def in_length(draw: random.Random, wire: Wire) -> Wire:
    right = len(wire.body)
    lengths = [
        b"-1", b"+5", b"0", b"1e3", b"", b"abc", b"99999999999999999999", b"0x10", b" 5 5", b"\xb2",
        b"%d" % (right + 7), b"%d" % max(0, right - 7), b"%d, %d" % (right, right), b"5000000",
    ]  # fmt: skip
    wire = replace(wire, framed=False).with_header(b"Content-Length", draw.choice(lengths))
    return wire.with_header(b"Content-Length", b"3") if draw.random() < 0.2 else wire


def chunks(draw: random.Random, body: bytes) -> bytes:
    coded = b""
    while body:
        size = draw.randint(1, max(1, len(body)))
        coded += b"%x\r\n" % size + body[:size] + b"\r\n"
        body = body[size:]
    return coded + b"0\r\n\r\n"


def in_chunks(draw: random.Random, wire: Wire) -> Wire:
    coded = chunks(draw, wire.body)
    match draw.randint(0, 5):
        case 0:
            coded = damaged(draw, coded)
        case 1:
            coded = b"fffffffffffffffff\r\n" + coded
        case 2:
            coded = chunks(draw, wire.body + b" " * 70_000)
        case _:
            pass
    codings = [b"chunked"] * 8 + [b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked", b"Chunked"]
    wire = replace(wire, body=coded, framed=draw.random() < 0.1)
    return wire.with_header(b"Transfer-Encoding", draw.choice(codings))


def in_everything(draw: random.Random, wire: Wire) -> Wire:
    return replace(
        wire,
        version=draw.choice([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"http/1.1", b"", b"\xff"]),
        ending=draw.choice([b"\r\n", b"\n", b"\r"]),
        cut=draw.choice([None, draw.randint(0, 400)]),
    )


def large(draw: random.Random, wire: Wire) -> Wire:
    return replace(wire, body=wire.body + b" " * draw.choice([65_000, 66_000, 200_000]))


Damage = Callable[[random.Random, Wire], Wire]
DAMAGES: tuple[Damage, ...] = (
    in_body,
    in_header,
    in_known_header,
    in_target,
    in_method,
    in_length,
    in_chunks,
    in_everything,
    large,
)


@dataclass
class Tally:
    """What came of a thread's share."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[bytes] = field(default_factory=list)  # requests that made the server fail
    signed: set[bytes] = field(default_factory=set)  # bodies that we signed


def bombard(server: Server, share: int, count: int, tally: Tally) -> None:
    draw = random.Random(SEED + share)
    whole = recorded(server)
    for _ in range(count):
        source, request = draw.choice(whole)
        if draw.random() < 0.25:  # genuine nonsense
            request = replace(request, body=damaged(draw, request.body))
        tally.signed.add(request.body)
        wire = as_wire(server.config.sources[source].source.sign(request, utc_now()))
        for _ in range(draw.randint(1, 2)):
            wire = draw.choice(DAMAGES)(draw, wire)
        content = wire.encode() if draw.random() < 0.97 else noise(draw, 600)
        statuses = [int(one) for one in re.findall(rb"HTTP/1\.[01] (\d{3}) ", talk(server.port, content))]
        tally.statuses.update(statuses or [0])
        if any(status >= 500 for status in statuses):
            tally.failures.append(b"%d " % max(statuses) + content[:600])


def test_thousands_of_damaged_requests_break_nothing(server: Server) -> None:
    tallies = [Tally() for _ in range(THREADS)]
    threads = [
        threading.Thread(target=bombard, args=(server, share, server.requests // THREADS + 1, tally))
        for share, tally in enumerate(tallies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [failure for tally in tallies for failure in tally.failures] == []
    statuses = sum((tally.statuses for tally in tallies), Counter[int]())
    assert statuses.total() >= server.requests
    # The damage is of all kinds, and it is not all of one outcome.
    assert {200, 400, 401, 404, 405, 413, 415, 431} <= statuses.keys()

    assert alive(server.port)
    log = server.log.read_text()
    assert "Traceback" not in log
    assert [line for line in log.splitlines() if '"level": "error"' in line] == []

    signed = set().union(*(tally.signed for tally in tallies))
    for name in server.config.sources:
        stored = inbounds(server.store, name)
        assert stored
        if name != "crm":  # its password is shown with any body
            assert [body for body in stored if body not in signed] == []
    refusals = {name: len(server.store.refusals(name)) for name in server.config.sources}
    assert all(0 < count <= 200 for count in refusals.values())
    refused = server.store.health(utc_now()).inbound["refused"]
    assert (refused > sum(refusals.values())) is (200 in refusals.values())


def inbounds(store: Store, source: str) -> list[bytes]:
    """Return the body of every stored webhook of *source*."""
    bodies: list[bytes] = []
    cursor: str | None = None
    while True:
        page = store.inbound_page(Filter(source=source), cursor, 200)
        bodies += [one.body or b"" for one in page.items]
        if (cursor := page.next) is None:
            return bodies


def test_a_genuine_webhook_still_gets_through(server: Server) -> None:
    body = json.dumps({"type": "contact.updated", "data": {"id": "after the storm"}}).encode()
    request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", {"content-type": "application/json"}, body)
    wire = as_wire(server.config.sources["shop"].source.sign(request, utc_now()))
    answer = talk(server.port, wire.encode())
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b'"status":"accepted"' in answer
    assert b"gunicorn" not in answer
    in_pieces = replace(wire, body=chunks(random.Random(1), body), framed=False)
    answer = talk(server.port, in_pieces.with_header(b"Transfer-Encoding", b"chunked").encode())
    assert b'"status":"duplicate"' in answer


@sqlite_is_enough
def test_a_genuine_webhook_in_chunks_over_the_limit_is_413(server: Server) -> None:
    for size, status in ((65_000, b"200"), (70_000, b"413"), (300_000, b"413")):
        item = {"type": "contact.updated", "data": {"id": str(size), "note": "x" * size}}
        request = InboundRequest(
            "POST", f"{PUBLIC_URL}/hooks/shop", {"content-type": "application/json"}, json.dumps(item).encode()
        )
        wire = as_wire(server.config.sources["shop"].source.sign(request, utc_now()))
        in_chunks = replace(wire, body=chunks(random.Random(1), wire.body), framed=False)
        answer = talk(server.port, in_chunks.with_header(b"Transfer-Encoding", b"chunked").encode())
        assert answer.startswith(b"HTTP/1.1 " + status), answer


@sqlite_is_enough
def test_senders_that_never_finish_keep_nobody_waiting_for_long(server: Server) -> None:
    beginnings = [b"POST /hooks/shop HTTP/1.1\r\nHo", b"POST /hooks/shop HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"]
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=15) for _ in range(THREADS_OF_SERVER + 8)]
    try:
        for number, peer in enumerate(slow):
            peer.sendall(beginnings[number % 2])
        # They hold every thread; others are served as soon as the patience with them is over.
        assert alive(server.port)
        for peer in slow:
            answer = peer.recv(64)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    finally:
        for peer in slow:
            peer.close()


@sqlite_is_enough
def test_peers_that_read_no_answer_keep_nobody_waiting_for_long(server: Server) -> None:
    asked = b"GET /api/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 150
    deaf = [deaf_peer(server.port) for _ in range(THREADS_OF_SERVER + 4)]
    try:
        for peer in deaf:
            with contextlib.suppress(BlockingIOError):
                peer.send(asked)
        until(lambda: all(hung_up_on(peer) for peer in deaf), within_s=15)
        assert alive(server.port)
    finally:
        for peer in deaf:
            peer.close()
    assert "web.request_failed" not in server.log.read_text()  # or strangers could fill the log


def deaf_peer(port: int) -> socket.socket:
    """Return a connection with room for nearly no answer."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    peer.connect(("127.0.0.1", port))
    peer.setblocking(False)
    return peer


def hung_up_on(peer: socket.socket) -> bool:
    try:
        peer.send(b"x")
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


@sqlite_is_enough
def test_connections_that_say_nothing_hold_no_thread(server: Server) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3 * THREADS_OF_SERVER)]
    try:
        began = time.monotonic()
        assert alive(server.port)
        assert time.monotonic() - began < 4  # each would hold a thread for five seconds
    finally:
        for peer in silent:
            peer.close()
