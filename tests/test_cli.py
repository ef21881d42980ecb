"""The command line, as somebody at a terminal and a script use it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest
import requests
from click.testing import CliRunner, Result

from bridge import process
from bridge.cli import COMMANDS, data, main
from bridge.config import load
from bridge.engine.embedded import WorkerLock, lock_path
from bridge.errors import StoreUnavailable
from bridge.model import InboundRequest, utc_now
from bridge.sources.recording import write_recording
from bridge.store.protocol import Store
from tests import web_site
from tests.platforms import Platforms, open_bench, person, serve_platforms, signed, webhook
from tests.processes import API_TOKEN, free_port, until

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as running:
        yield running


@pytest.fixture
def here(tmp_path: Path, platforms: Platforms, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, and the environment that it needs."""
    platforms.forget()
    platforms.write_config(tmp_path)
    names = {**platforms.environ, "SECRET_KEY": "a-secret-key-for-tests", "BRIDGE_API_TOKEN": API_TOKEN}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'bridge.db'}")
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parents[1]))  # for the processes that are started from here
    for name in ("BRIDGE_CONFIG", "PUBLIC_URL", "LOG_LEVEL", "LOG_FORMAT", *process.EPHEMERAL):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bridge(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="bridge")


@contextlib.contextmanager
def opened() -> Iterator[Store]:
    loaded = process.load(None)
    with contextlib.closing(process.open_store(loaded)) as store:
        yield store


def answer(*arguments: str) -> Any:
    """Return what the command prints as JSON; it must have succeeded."""
    result = bridge(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def settled(here: Path, platforms: Platforms) -> Path:
    """A folder whose database holds two contacts that were delivered, and one that cannot be."""
    with open_bench(here, load(here / "bridge.toml")) as bench:
        for number in (1, 2, 3):
            data = person(number, name="Ana", phone="none" if number == 3 else f"+52551234010{number}")
            body = webhook("changed", data, utc_now())
            bench.receive(signed(bench.config, body, f"msg_cli_{number}"))
        bench.settle()
    return here


# --- what is promised is there, and what is there is documented --------------------------------------------


def commands() -> list[str]:
    return list(COMMANDS)


@pytest.mark.parametrize("name", commands())
def test_a_command_says_what_the_overview_says_of_it(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert COMMANDS[name].help == (command.help or "").split("\n\n")[0]
    assert bridge(name, "--help").exit_code == 0


def test_the_overview_imports_no_command() -> None:
    code = (
        "import sys; from bridge.cli import main; main(['--help'], standalone_mode=False); "
        "assert not {'flask', 'pydantic', 'rich', 'jinja2'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_worker_does_without_a_web_framework() -> None:
    code = "import sys, bridge.process; assert not {'flask', 'gunicorn', 'prometheus_client'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def documented() -> dict[str, set[str]]:
    """Return the options of each command in docs/cli.md."""
    sections = re.split(r"^## bridge ", DOCS.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `-")]
        options = [re.findall(r"(?<![\w-])--?[a-z]+(?:-[a-z]+)*", row) for row in rows]
        found[section.split()[0]] = {option for row in options for option in row}
    return found


def test_every_command_and_option_is_documented_and_nothing_else() -> None:
    real = {}
    for name in commands():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        parts = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        given = [option for part in parts for option in part.params if isinstance(option, click.Option)]
        real[name] = {option for parameter in given for option in parameter.opts}
    assert documented() == real


# --- configuration -----------------------------------------------------------------------------------------


def test_without_a_configuration_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRIDGE_CONFIG", raising=False)
    result = bridge("status")
    assert result.exit_code == 2
    assert "bridge init" in result.stderr
    assert "nothing was started" in result.stderr


def test_every_mistake_is_told_at_once_with_its_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "99999")
    (here / "bridge.toml").write_text('[bridge]\nretention = 5\n[sources.a]\ntype = "hubspott"\n')
    for command in ("check", "serve", "worker", "status"):
        result = bridge(command)
        assert result.exit_code == 2
        assert "bridge.toml:2" in result.stderr
        assert "bridge.toml:4" in result.stderr
        assert "PORT" in result.stderr
        assert result.stdout == ""


def test_check_tells_a_script_of_mistakes_too(here: Path) -> None:
    (here / "bridge.toml").write_text("[bridge]\nretention = 5\n")
    result = bridge("check", "--json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert told["ok"] is False
    assert "bridge.toml:2" in told["problems"][0]["where"]


def test_check_says_what_is_closed_without_its_secret(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BRIDGE_API_TOKEN", "SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    result = bridge("check")
    assert result.exit_code == 0
    assert "BRIDGE_API_TOKEN is not set, so the API is closed" in result.stdout
    assert "SECRET_KEY is not set, so nobody can sign in to the pages" in result.stdout


def test_another_database_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://bridge@localhost/bridge")
    result = bridge("status")
    assert result.exit_code == 2
    assert "it names neither a SQLite file nor a PostgreSQL database" in result.stderr


def test_a_relative_database_url_is_below_this_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///data/here.db")
    assert answer("migrate", "--json")["steps"]
    assert (here / "data" / "here.db").is_file()
    assert answer("migrate", "--json")["steps"] == []


def test_check_live_calls_everything(here: Path, platforms: Platforms) -> None:
    told = answer("check", "--live", "--json")
    assert {one["name"] for one in told["live"]} == {f"targets.{name}" for name in platforms.fakes}
    trouble = platforms.inbox.trouble(status=401, body={}, times=5)
    result = bridge("check", "--live")
    trouble.times = 0
    assert result.exit_code == 1
    assert "FAILED  targets.inbox" in result.stdout
    assert "ok      targets.sms" in result.stdout


def test_init_writes_a_configuration_that_needs_only_its_variables(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here / "new"
    result = bridge("init", str(folder))
    assert result.exit_code == 0, result.output
    written = dict(
        line.split("=", 1) for line in (folder / ".env").read_text().splitlines() if re.match(r"[A-Z]", line)
    )
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert len(written["SECRET_KEY"]) > 32
    assert written["SECRET_KEY"] != written["BRIDGE_API_TOKEN"]
    for name, value in written.items():
        monkeypatch.setenv(name, value or "https://bridge.example.com")
    checked = bridge("check", "--config", str(folder / "bridge.toml"))
    assert checked.exit_code == 0, checked.output


def test_init_does_not_write_where_a_link_leads(here: Path) -> None:
    folder = here / "linked"
    folder.mkdir()
    (folder / ".env").symlink_to(here / "elsewhere")
    result = bridge("init", str(folder))
    assert result.exit_code == 0, result.output
    assert not (here / "elsewhere").exists()
    assert "\nSECRET_KEY=" in result.stdout  # to be added by hand


def test_init_overwrites_nothing(here: Path) -> None:
    before = (here / "bridge.toml").read_text()
    result = bridge("init")
    assert result.exit_code == 1
    assert "Nothing was written" in result.output
    assert (here / "bridge.toml").read_text() == before
    assert not (here / ".env").exists()
    (here / "other").mkdir()
    (here / "other" / ".env").write_text("MINE=1\n")
    result = bridge("init", "other")
    assert result.exit_code == 0
    assert (here / "other" / "bridge.toml").exists()
    assert (here / "other" / ".env").read_text() == "MINE=1\n"
    assert "\nSECRET_KEY=" in result.stdout  # to be added by hand


# --- URLs ---------------------------------------------------------------------------------------------------


def test_url_shows_what_the_crm_is_to_call(here: Path) -> None:
    assert bridge("url", "shop").stdout == "https://bridge.example.com/hooks/shop\n"
    assert "shop" in bridge("url", "shopp").stderr
    assert bridge("url", "shopp").exit_code == 2


def test_a_token_is_made_and_revoked(here: Path) -> None:
    first, second = answer("url", "shop", "--token", "--json"), answer("url", "shop", "--token", "--json")
    assert first["url"].startswith("https://bridge.example.com/hooks/shop/")
    assert first != second
    assert answer("url", "shop", "--revoke", "--json") == {"revoked": 2}


def test_a_token_needs_a_secret_key(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET_KEY")
    result = bridge("url", "shop", "--token")
    assert result.exit_code == 2
    assert "SECRET_KEY" in result.stderr


# --- the database -------------------------------------------------------------------------------------------


def test_status_without_a_worker_needs_a_look(here: Path) -> None:
    result = bridge("status", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert told["ready"] is False
    assert {one["name"]: one["ok"] for one in told["checks"]}["worker"] is False
    assert "LOOK  No worker ever ran" in bridge("status").stdout


def test_status_tells_people_what_waits(settled: Path) -> None:
    result = bridge("status")
    assert re.search(r"sms +yes +2 synced, 1 waiting", result.stdout)
    assert result.exit_code == 0, result.output
    with opened() as store:
        store.pause("sms", "spring cleaning", "a test", utc_now())
    result = bridge("status")
    assert result.exit_code == 1
    assert "The target sms is paused: spring cleaning" in result.stdout


def test_status_names_what_a_person_has_to_see_to(here: Path) -> None:
    with open_bench(here, load(here / "bridge.toml")) as bench:
        bench.receive(signed(bench.config, b"no JSON at all", "msg_bad"))
        bench.settle()
    assert "LOOK  1 webhook was genuine and could not be read" in bridge("status").stdout
    told = SimpleNamespace(
        inbound={"unreadable": 2, "processed": 5},
        targets=[SimpleNamespace(name="sms", mode="open", reason="", deliveries={"failed": 1, "ambiguous": 2})],
    )
    unreadable, failed, ambiguous = data._to_look_at(cast(Any, told))
    assert unreadable.startswith("2 webhooks were genuine")
    assert failed.startswith("The target sms has 1 contact whose delivery failed. ")
    assert failed.endswith("--target sms --state failed")
    assert ambiguous.startswith("The target sms has 2 contacts whose delivery is ambiguous")


def test_status_says_at_once_that_nothing_can_be_written(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr("bridge.store.sqlite.SqliteStore.beat", full)
    result = bridge("status")
    assert result.exit_code == 1
    assert "LOOK  The disk is full." in result.stdout
    assert "ok    No webhook waits to be processed." in result.stdout


def test_export_writes_every_list(settled: Path) -> None:
    contacts = [json.loads(line) for line in bridge("export", "contacts").stdout.splitlines()]
    assert {one["source_id"] for one in contacts} == {"84001", "84002", "84003"}
    waiting = bridge("export", "deliveries", "--state", "waiting", "--target", "sms").stdout.splitlines()
    assert [json.loads(line)["source_id"] for line in waiting] == ["84003"]
    facts = [json.loads(line) for line in bridge("export", "audit", "--target", "inbox").stdout.splitlines()]
    assert {one["target"] for one in facts} == {"inbox"}
    assert all("detail" not in one for one in facts)
    detailed = bridge("export", "audit", "--details", "--target", "inbox").stdout.splitlines()
    assert any(json.loads(line)["detail"] for line in detailed)


def test_export_writes_webhooks_without_their_bodies(settled: Path) -> None:
    webhooks = [
        json.loads(line) for line in bridge("export", "inbound", "--outcome", "processed").stdout.splitlines()
    ]
    assert [one["events"] for one in webhooks] == [1, 1, 1]
    assert not any("body" in one or "headers" in one for one in webhooks)


def test_export_writes_csv_to_a_file(settled: Path) -> None:
    target = settled / "out.csv"
    assert bridge("export", "contacts", "--format", "csv", "-o", str(target)).exit_code == 0
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"source": "shop", "source_id": "84001", "field": "phone", "value": "+525512340101"}.items() <= next(
        row for row in rows if row["source_id"] == "84001" and row["field"] == "phone"
    ).items()


def test_export_pages_through_everything(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.cli.data.PAGE", 2)
    lines = bridge("export", "deliveries", "--since", "1h").stdout.splitlines()
    assert len({(one["target"], one["source_id"]) for one in map(json.loads, lines)}) == len(lines) == 12
    assert bridge("export", "deliveries", "--until", "1h").stdout == ""


def test_a_filter_that_a_list_does_not_know_is_refused(settled: Path) -> None:
    result = bridge("export", "contacts", "--state", "failed")
    assert result.exit_code == 2
    assert "--state" in result.stderr
    assert bridge("export", "deliveries", "--since", "yesterday").exit_code == 2


def test_replay_marks_contacts_for_the_worker(settled: Path) -> None:
    assert answer("replay", "--state", "waiting", "--json") == {"count": 1}
    assert answer("replay", "shop/84001", "shop/84002", "--json") == {"count": 2}
    assert answer("replay", "--all", "--json") == {"count": 3}
    assert answer("replay", "--inbound", "1", "--json") == {"count": 1}


@pytest.mark.parametrize("arguments", [[], ["--all", "shop/1"], ["--inbound", "1", "--state", "failed"], ["shop"]])
def test_replay_wants_to_know_what(here: Path, arguments: list[str]) -> None:
    assert bridge("replay", *arguments).exit_code == 2


def test_prune_deletes_payloads_and_keeps_facts(settled: Path) -> None:
    assert answer("prune", "--json") == {"deleted": 0}
    facts = len(bridge("export", "audit").stdout.splitlines())
    assert answer("prune", "--days", "0", "--json")["deleted"] > 0
    assert len(bridge("export", "audit").stdout.splitlines()) == facts
    assert answer("prune", "--days", "0", "--json") == {"deleted": 0}


# --- dry runs -----------------------------------------------------------------------------------------------


def test_try_says_what_each_target_would_get(here: Path) -> None:
    file = here / "customer.json"
    file.write_bytes(webhook("changed", person(7), utc_now()))
    told = answer("try", "shop", str(file), "--field", "name=Ana", "--json")
    sent = {one["target"]: one for one in told["routes"]}
    assert {one["decision"] for one in sent.values()} == {"send"}
    assert {"field": "firstName", "value": "Ana", "left_out": ""} in sent["sms"]["fields"]
    assert not (here / "bridge.db").exists()


def test_try_says_why_a_target_gets_nothing(here: Path) -> None:
    file = here / "customer.json"
    file.write_bytes(webhook("changed", {"id": "9", "phone": "no number"}, utc_now()))
    result = bridge("try", "shop", str(file))
    assert result.exit_code == 0
    assert "sms: contact 9 gets nothing now" in result.stdout
    assert "left out" in result.stdout
    shown = bridge("try", "shop", str(file), "--field", "name=Ana").stdout
    assert re.search(r"contact 9 gets nothing now\n.*\n(  .*\n)*  firstName +would be Ana\n", shown), shown


def test_try_reads_recorded_requests(here: Path) -> None:
    file = here / "customer.http"
    body = webhook("changed", person(8), utc_now())
    request = InboundRequest(
        "POST", "https://old.example.com/x", {"content-type": "application/json", "host": "old"}, body
    )
    file.write_bytes(write_recording(request))
    assert "marketing: contact 84008 would be sent" in bridge("try", "shop", str(file)).stdout
    file.write_bytes(b"what is this")
    result = bridge("try", "shop", str(file))
    assert result.exit_code == 1
    assert "recording" in result.stderr


# --- processes ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(folder: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``bridge serve`` until the end of the block; its output is in bridge.log."""
    with (folder / "bridge.log").open("ab") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "bridge", "serve", "--host", "127.0.0.1"],
            env={**os.environ, **more},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(60)
        finally:
            running.kill()
            running.wait()


def ready() -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"http://127.0.0.1:{os.environ['PORT']}/readyz", timeout=5).ok
    return False


def worker_pid(folder: Path) -> int:
    text = lock_path(folder / "bridge.db").read_text()
    return int(text) if text else 0


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A dead process that nobody has waited for yet is gone for our purposes.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")


def test_serve_runs_both_starts_a_dead_one_again_and_ends_cleanly(here: Path, platforms: Platforms) -> None:
    with serving(here) as running:
        until(ready, what="bridge")
        file = here / "customer.json"
        file.write_bytes(webhook("changed", person(5, name="Ana"), utc_now()))
        assert answer("send", "shop", str(file), "--json")["status"] == 200

        def arrived() -> bool:
            lines = bridge("export", "deliveries", "--search", "84005").stdout.splitlines()
            return {json.loads(line)["state"] for line in lines} == {"synced"}

        until(arrived, what="the customer")
        assert [one["email"] for one in platforms.marketing.people()] == ["person5@example.com"]
        assert bridge("status").exit_code == 0

        second = subprocess.run([sys.executable, "-m", "bridge", "worker"], capture_output=True, timeout=60)
        assert second.returncode == 1
        assert b"a worker runs on this SQLite database already" in second.stderr

        first = worker_pid(here)
        os.kill(first, signal.SIGKILL)
        until(lambda: worker_pid(here) not in {0, first} and not gone(worker_pid(here)), what="another worker")
        last = worker_pid(here)
        running.terminate()
        assert running.wait(60) == 0, (here / "bridge.log").read_text()
    until(lambda: gone(last), what="the end of the worker")
    log = (here / "bridge.log").read_text()
    assert "child.died" in log
    assert '"clean": true' in log
    assert "example.com/hooks/shop" in log


def test_serve_waits_for_another_worker_and_says_so_once(here: Path) -> None:
    with opened():  # so that the database is there
        pass
    lock = WorkerLock(here / "bridge.db")
    log = here / "bridge.log"
    with serving(here):
        until(lambda: log.exists() and "worker.waits" in log.read_text(), what="the waiting worker")
        assert f"waits for process {os.getpid()} to end" in log.read_text()
        lock.release()
        until(ready, what="bridge")
    assert log.read_text().count("worker.waits") == 1
    assert "child.died" not in log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel ends the children of a killed process")
def test_the_children_of_a_killed_supervisor_end(here: Path) -> None:
    with serving(here) as running:
        until(ready, what="bridge")
        worker = worker_pid(here)
        running.kill()
        running.wait()
        until(lambda: gone(worker) and not ready(), what="the end of the children")


def test_a_configuration_that_breaks_ends_everything(here: Path) -> None:
    (here / "bridge.toml").write_text("[bridge]\nretention = 5\n")
    with serving(here) as running:
        assert running.wait(60) == 2


def test_an_ephemeral_disk_is_warned_of(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    with opened():  # so that there is a folder for the lock
        pass
    with WorkerLock(here / "data" / "bridge.db"):  # it has warned when it is refused
        monkeypatch.setenv("RENDER", "true")
        told = bridge("worker").stderr
        monkeypatch.setenv("DYNO", "worker.1")
        told_on_heroku = bridge("worker").stderr
    assert "the disk of Render is thrown away with every deploy, and data/bridge.db is on it" in told
    assert "DATABASE_URL=sqlite:////" in told
    assert "Heroku has no disk that stays" in told_on_heroku
    assert "Web and worker must share that file" in told_on_heroku


def test_serve_leaves_when_its_port_is_taken(here: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(os.environ["PORT"])))
        other.listen()
        for command in ("serve", "web"):
            result = bridge(command, "--host", "127.0.0.1")
            assert result.exit_code == 1
            assert f"Port {os.environ['PORT']} is taken by another program" in result.stderr
    result = bridge("serve", "--host", "192.0.2.1")
    assert result.exit_code == 1
    assert "cannot listen at 192.0.2.1" in result.stderr


def test_send_brings_the_token_that_a_source_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {**web_site.SECRETS, "SECRET_KEY": web_site.SECRET_KEY}
    for name, value in {**names, "DATABASE_URL": f"sqlite:///{tmp_path / 'bridge.db'}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    web_site.write_config(tmp_path)
    file = tmp_path / "customer.json"
    file.write_text('{"item": {"id": "7"}}')
    with web_site.open_site(tmp_path) as site:
        assert answer("send", "guarded", str(file), "--to", site.url, "--json")["status"] == 200
        assert site.inbounds() == 1


def test_send_says_when_nobody_is_there(here: Path) -> None:
    result = bridge("send", "shop")
    assert result.exit_code == 1
    assert "bridge serve" in result.output
