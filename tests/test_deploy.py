"""Deployed as docs/deploying.md says: the files for it, and a life behind a proxy that ends with SIGTERM."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
import requests
from requests.adapters import HTTPAdapter

from bridge import pipeline, process
from bridge.app import create_app
from bridge.cli import COMMANDS, main
from bridge.config import Config, Environment, load
from bridge.database import SqliteDatabase, database_of
from bridge.model import InboundRequest, RecordKey, State, utc_now
from bridge.store.group_commit import GroupCommit
from bridge.store.sqlite import SqliteStore
from bridge.supervisor import USAGE
from bridge.web.guard import FAILURES
from bridge.web.proxies import client_address
from tests.platforms import Platforms, person, serve_platforms, signed, webhook
from tests.processes import API_TOKEN, free_port, until
from tests.proxy import AWAY, Proxy, serve_proxy

ROOT = Path(__file__).parents[1]
ENDS_WITHIN_S = 10.0
HUBSPOT_SECRET = "3f6f1f2e-8c1b-4a6e-9d0e-2b7c5a9e4d11"

TOML = """
[bridge]
public_url = "https://bridge.example.com"
trusted_proxies = 1

[sources.shop]
type = "standard_webhooks"
secrets = ["$SHOP_SECRET"]
[sources.shop.payload]
kind = "item.type"

[sources.hubspot]
type = "hubspot"
secrets = ["$HUBSPOT_CLIENT_SECRET"]
signature_versions = ["v3"]

[targets.inbox]
type = "clerk_chat"
api_key = "$CLERK_CHAT_KEY"
api_base = "{inbox}"
rate_per_s = 1000
burst = 1000

[[routes]]
source = "shop"
target = "inbox"
fields = {{ phone = "phone", name = "name" }}
"""


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as running:
        yield running


@dataclass
class Place:
    """A folder with a configuration, its environment and its database."""

    folder: Path
    config: Config
    environ: Mapping[str, str]

    @contextlib.contextmanager
    def store(self) -> Iterator[SqliteStore]:
        lanes = {name: one.lanes for name, one in self.config.targets.items()}
        with contextlib.closing(SqliteStore(self.folder / "bridge.db", lanes)) as store:
            yield store

    @property
    def log(self) -> str:
        return (self.folder / "bridge.log").read_text()


@pytest.fixture
def place(platforms: Platforms, tmp_path: Path) -> Place:
    platforms.forget()
    path = tmp_path / "bridge.toml"
    path.write_text(TOML.format(**platforms.urls))
    secrets = {**platforms.environ, "HUBSPOT_CLIENT_SECRET": HUBSPOT_SECRET}
    environ = {
        **secrets,
        "BRIDGE_CONFIG": str(path),
        "DATABASE_URL": f"sqlite:///{tmp_path / 'bridge.db'}",
        "BRIDGE_API_TOKEN": API_TOKEN,
        "SECRET_KEY": "a-secret-key-for-tests",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return Place(tmp_path, load(path, secrets), environ)


@contextlib.contextmanager
def running(place: Place, *command: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command*; kill it, and its children, if it has not ended with the block."""
    with (place.folder / "bridge.log").open("ab") as log:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**place.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


# --- the Procfile, behind a proxy ---------------------------------------------------------------------------


def test_the_procfile_behind_a_proxy(place: Place) -> None:
    port = free_port()
    env_file = place.folder / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in place.environ.items()))
    honcho = [str(Path(sys.executable).with_name("honcho")), "-f", str(ROOT / "Procfile"), "-e", str(env_file)]
    with serve_proxy(port) as proxy, running(place, *honcho, "start", "-p", str(port), "web", "worker") as manager:
        until(lambda: healthy(proxy), what="bridge behind the proxy")
        children = started(place.log)
        try:
            assert set(children) == {"web", "worker"}
            a_signed_url_is_right_although_the_wire_is_not_tls(place, proxy)
            the_proxy_says_who_it_is_and_the_client_does_not(proxy)
            nothing_is_lost_and_nobody_gets_a_5xx(place, proxy, manager)
        finally:
            for pid in children.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
    assert "Traceback" not in place.log


def healthy(proxy: Proxy) -> bool:
    with from_address("127.0.0.1") as session:
        return session.get(f"{proxy.url}/readyz", timeout=5).status_code == 200


def started(log: str) -> dict[str, int]:
    return {name: int(pid) for name, pid in re.findall(r"(\w+)\.1 started \(pid=(\d+)\)", log)}


def a_signed_url_is_right_although_the_wire_is_not_tls(place: Place, proxy: Proxy) -> None:
    body = json.dumps([{"eventId": 1, "portalId": 1, "subscriptionType": "deal.creation", "objectId": 5}]).encode()
    headers = {"content-type": "application/json"}
    public = InboundRequest("POST", "https://bridge.example.com/hooks/hubspot?a=1", headers, body)
    url = f"{proxy.url}/hooks/hubspot?a=1"
    with from_address("127.0.0.1") as session:
        request = place.config.sources["hubspot"].source.sign(public, utc_now())
        assert session.post(url, body, headers=dict(request.headers), timeout=5).json()["status"] == "accepted"
        inside = InboundRequest("POST", url, headers, body)
        request = place.config.sources["hubspot"].source.sign(inside, utc_now())
        assert session.post(url, body, headers=dict(request.headers), timeout=5).status_code == 401


def the_proxy_says_who_it_is_and_the_client_does_not(proxy: Proxy) -> None:
    def guess(session: requests.Session, pretend: str) -> int:
        headers = {"Authorization": "Bearer wrong", "X-Forwarded-For": pretend}
        return session.get(f"{proxy.url}/api/v1/status", headers=headers, timeout=5).status_code

    with from_address("127.0.0.2") as guesser, from_address("127.0.0.3") as other:
        answers = [guess(guesser, f"203.0.113.{number}") for number in range(FAILURES + 2)]
        assert answers[:FAILURES] == [401] * FAILURES
        assert answers[-1] == 429
        assert guess(other, "127.0.0.2") == 401


class From(HTTPAdapter):
    """Calls from one of this machine's own addresses."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, source_address=(self.address, 0), **pool)


@contextlib.contextmanager
def from_address(address: str) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", From(address))
        yield session


@dataclass
class Load:
    """Senders that never stop; they remember what was acknowledged, and what else they heard."""

    place: Place
    url: str
    stopping: threading.Event = field(default_factory=threading.Event)
    acknowledged: dict[str, int] = field(default_factory=dict)  # the contact's id -> that of the inbound
    failures: list[str] = field(default_factory=list)

    def send(self, sender: int, *, keep_alive: bool) -> None:
        with from_address(f"127.0.1.{sender}") as session:
            number = 0
            while not self.stopping.is_set():
                number += 1
                who = person(sender, id=f"{sender}-{number}", name="Ana", phone=f"+5255{sender}{number:07d}")
                request = signed(self.place.config, webhook("changed", who, utc_now()), f"msg_{sender}_{number}")
                headers = {**request.headers, **({} if keep_alive else {"Connection": "close"})}
                answer = session.post(f"{self.url}/hooks/shop", request.body, headers=headers, timeout=10)
                if answer.status_code == 200:
                    self.acknowledged[who["id"]] = answer.json()["id"]
                elif answer.headers.get(AWAY) == "turned away":
                    self.stopping.wait(0.05)
                else:
                    self.failures.append(f"{answer.status_code} {answer.text[:200]}")

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self.send, args=(sender,), kwargs={"keep_alive": sender % 2 == 0})
            for sender in range(1, 5)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join()


def nothing_is_lost_and_nobody_gets_a_5xx(place: Place, proxy: Proxy, manager: subprocess.Popen[bytes]) -> None:
    load = Load(place, proxy.url)
    with load.under_way():
        until(lambda: len(load.acknowledged) > 150, what="load")
        began = time.monotonic()
        manager.terminate()
        manager.wait(ENDS_WITHIN_S)
        assert time.monotonic() - began < ENDS_WITHIN_S
        until(lambda: proxy.turned_away > 0, what="the end of the web process")
    assert load.failures == []
    assert proxy.broken_off == []
    with place.store() as store:
        stored = {who: store.inbound(number) for who, number in load.acknowledged.items()}
    assert [who for who, inbound in stored.items() if inbound is None] == []
    assert len({inbound.id for inbound in stored.values() if inbound}) == len(load.acknowledged)
    assert '"clean": true' in place.log
    assert "sending SIGKILL" not in place.log


# --- stopping -----------------------------------------------------------------------------------------------

IMPATIENT = """
import sys
from bridge import process
process.GRACE_S = 0.3
loaded = process.load(None)
sys.exit(process.run_worker(loaded))
"""


def test_a_call_that_hangs_is_left_and_not_repeated_blindly(place: Place, platforms: Platforms) -> None:
    with place.store() as store:
        store.migrate()
        request = signed(place.config, webhook("changed", person(1, name="Ana"), utc_now()), "msg_hang")
        store.receive([pipeline.receive(place.config.sources["shop"], request, utc_now())])
    platforms.inbox.trouble(how="slow", method="POST", path="contact", seconds=2.0)
    with running(place, sys.executable, "-c", IMPATIENT) as worker:
        until(lambda: len(platforms.inbox.contacts) == 1, what="the contact")
        began = time.monotonic()
        worker.terminate()
        assert worker.wait(ENDS_WITHIN_S) == 0
        assert time.monotonic() - began < 1.5
    assert "worker.left" in place.log
    assert state_of(place) == State.SENDING
    with running(place, sys.executable, "-m", "bridge", "worker"):
        until(lambda: state_of(place) == State.SYNCED, what="the delivery")
    assert len(platforms.inbox.contacts) == 1


def state_of(place: Place) -> State:
    with place.store() as store:
        (delivery,) = store.deliveries_of(RecordKey("shop", person(1)["id"]))
        return delivery.state


# --- whom a request comes from ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "203.0.113.1", "10.0.0.1"),
        (1, "203.0.113.1", "203.0.113.1"),
        (1, "198.51.100.7, 203.0.113.1", "203.0.113.1"),
        (2, "198.51.100.7, 203.0.113.1", "198.51.100.7"),
        (3, "198.51.100.7, 203.0.113.1", "10.0.0.1"),
        (1, "203.0.113.1:4711", "203.0.113.1"),
        (1, "[2001:DB8::1]:443", "2001:db8::1"),
        (1, "2001:db8:0::1", "2001:db8::1"),
        (1, "203.0.113.1, unknown", "10.0.0.1"),
        (1, "203.0.113.1,", "10.0.0.1"),
        (1, "", "10.0.0.1"),
    ],
)
def test_entries_of_proxies_count_from_the_right(proxies: int, forwarded: str, address: str) -> None:
    environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": forwarded}
    assert client_address(environ, proxies) == address
    assert client_address({"REMOTE_ADDR": "10.0.0.1"}, proxies) == "10.0.0.1"


def test_metrics_are_open_on_loopback_only_where_no_proxy_passes_strangers_on(place: Place) -> None:
    def answer(trusted_proxies: int) -> int:
        config = replace(place.config, bridge=replace(place.config.bridge, trusted_proxies=trusted_proxies))
        app = create_app(config, store, Environment(api_token=API_TOKEN), commit=commit, bound_to="127.0.0.1")
        return app.test_client().get("/metrics").status_code

    with place.store() as store, contextlib.closing(GroupCommit(store.receive, store.refuse)) as commit:
        store.migrate()
        assert answer(trusted_proxies=0) == 200
        assert answer(trusted_proxies=1) == 401


# --- disks --------------------------------------------------------------------------------------------------


def ephemeral(database: str, **environ: str) -> str:
    found = process.ephemeral_host(environ, SqliteDatabase(Path(database)))
    return found.title if found else ""


def test_only_a_disk_that_was_attached_keeps_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {Path("/"), Path("/data"), Path("/tmp")}
    monkeypatch.setattr(Path, "is_mount", lambda path: path in mounts)
    assert ephemeral("data/bridge.db", FLY_APP_NAME="bridge") == "Fly.io"
    assert ephemeral("/app/data/bridge.db", RENDER="true") == "Render"
    assert ephemeral("/data/new/bridge.db", RENDER="true") == ""
    assert ephemeral("/tmp/bridge.db", RENDER="true") == "Render"
    assert ephemeral("/data/bridge.db", DYNO="web.1") == "Heroku"
    assert ephemeral("data/bridge.db", HOME="/root") == ""


# --- the files that platforms read --------------------------------------------------------------------------


def test_app_json_names_the_environment() -> None:
    told = json.loads((ROOT / "app.json").read_text())["env"]
    known = {one.metadata["name"] for one in fields(Environment)} | {"BRIDGE_CONFIG"}
    assert set(told) == known - {"PORT"}  # which the platform sets
    assert all(len(one["description"]) > 10 for one in told.values())
    made = {name for name, one in told.items() if one.get("generator") == "secret"}
    assert made == {"SECRET_KEY", "BRIDGE_API_TOKEN"}
    values = {name: one["value"] for name, one in told.items() if "value" in one}
    assert Environment.read(values) == Environment(web_concurrency=1)


def test_the_procfile_runs_commands_that_there_are() -> None:
    lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    assert set(lines) == {"web", "worker", "release"}
    for command in lines.values():
        program, name = command.rsplit(" ", 1)
        assert program == "python -m bridge"
        assert name in COMMANDS


def test_the_python_that_is_installed_is_the_one_that_is_tested() -> None:
    version = (ROOT / ".python-version").read_text().strip()
    assert f"--python-version {version} " in (ROOT / "Makefile").read_text()


# --- the examples of docs/deploying.md ----------------------------------------------------------------------

DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "deploying.md").read_text()


def serves(command: str) -> bool:
    """Say whether *command* runs web and worker together, with options that there are."""
    name, *options = shlex.split(command.partition("bridge ")[2])
    entry = main.get_command(click.Context(main), name)
    assert entry is not None
    entry.make_context(name, options).close()  # raises for an option that there is not
    return name == "serve"


def test_the_unit_of_systemd() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string((DEPLOY / "bridge.service").read_text())
    service = unit["Service"]
    assert serves(service["ExecStart"])
    assert Path(service["EnvironmentFile"]).parent == Path(service["WorkingDirectory"])
    assert service["ReadWritePaths"] == service["WorkingDirectory"]
    assert float(service["TimeoutStopSec"]) > ENDS_WITHIN_S
    assert int(service["RestartPreventExitStatus"]) == USAGE
    assert service["KillMode"] == "mixed"
    for path in (service["WorkingDirectory"], service["ExecStart"].split("/bin/")[0]):
        assert path in PAGE


def test_the_caddyfile() -> None:
    text = (DEPLOY / "Caddyfile").read_text()
    assert f"reverse_proxy 127.0.0.1:{Environment().port} " in text
    assert re.search(r"path /metrics\n\trespond @inner 404", text)
    waits = re.search(r"lb_try_duration (\d+)s", text)
    assert waits is not None
    assert int(waits[1]) > ENDS_WITHIN_S
    assert f"up to {waits[1]} seconds" in PAGE


def test_fly_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    told = tomllib.loads((DEPLOY / "fly.toml").read_text())
    read = Environment.read(told["env"])
    assert told["http_service"]["internal_port"] == read.port
    assert told["http_service"]["auto_stop_machines"] == "off"
    assert float(told["kill_timeout"].removesuffix("s")) > ENDS_WITHIN_S
    mount = Path(told["mounts"]["destination"])
    monkeypatch.setattr(Path, "is_mount", lambda path: path in {Path("/"), mount})
    assert process.ephemeral_host({"FLY_APP_NAME": told["app"]}, database_of(read)) is None
    assert f"fly volumes create {told['mounts']['source']} " in PAGE
    lines = (DEPLOY / told["build"]["dockerfile"]).read_text().splitlines()
    command = next(json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD "))
    assert serves(shlex.join(command))
    assert f"ENV DATABASE_URL={read.database_url}" in lines
    version = (ROOT / ".python-version").read_text().strip()
    assert f"FROM python:{version}-slim" in lines
    for copied in (line.split()[1] for line in lines if line.startswith("COPY ")):
        assert copied == "bridge.toml" or (ROOT / copied).exists()


def test_render_with_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    text = re.sub(r" +#.*", "", (DEPLOY / "render-disk.yaml").read_text())
    told = dict(re.findall(r"^ +(?:- )?(\w+): (.+)$", text, re.MULTILINE))
    variables = dict(re.findall(r"- key: (\w+)\n +(\w+: .*)", text))
    assert serves(told["startCommand"])
    assert told["numInstances"] == "1"
    assert float(told["maxShutdownDelaySeconds"]) > ENDS_WITHIN_S
    read = Environment.read({"DATABASE_URL": variables["DATABASE_URL"].removeprefix("value: ")})
    monkeypatch.setattr(Path, "is_mount", lambda path: path in {Path("/"), Path(told["mountPath"])})
    assert process.ephemeral_host({"RENDER": "true"}, database_of(read)) is None
    assert set(variables) <= {one.metadata["name"] for one in fields(Environment)}
    assert {name for name, how in variables.items() if how == "generateValue: true"} == {
        "SECRET_KEY",
        "BRIDGE_API_TOKEN",
    }
