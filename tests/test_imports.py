"""What a process that runs for months imports: what it never uses, it would keep in memory all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

COLOURS = {"rich", "pygments"}  # for people at a terminal
POSTGRES = {"psycopg", "psycopg_pool", "procrastinate"}  # where DATABASE_URL names one
TRACES = {"opentelemetry"}  # where a collector is named
PAGES = {"flask", "werkzeug", "itsdangerous", "prometheus_client"}
WORK = {"pydantic", "jinja2", "requests", "urllib3", "sqlite_utils", "phonenumbers"}
SERVER = {"gunicorn"}
REST = {"click", "structlog", "asyncio", "ssl", "email", "importlib.metadata", "argparse"}

ED25519 = {"cryptography"}  # where a secret is such a key

UNUSED = COLOURS | POSTGRES | TRACES | ED25519
PROCESSES = {
    "supervisor": (["bridge.supervisor"], UNUSED | PAGES | WORK | SERVER | REST),
    # gunicorn's main process, before it forks those that serve.
    "web, watching": (["bridge.web.__main__"], UNUSED | PAGES | WORK | {"click"}),
    "web, serving": (["bridge.web.__main__", "bridge.process", "bridge.app"], UNUSED),
    "worker": (["bridge.__main__", "bridge.cli.run", "bridge.process"], UNUSED | PAGES | SERVER),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_imports_nothing_that_it_never_uses(name: str) -> None:
    modules, unused = PROCESSES[name]
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert unused & set(imported.split()) == set()


def test_what_logs_leaves_rich_to_those_who_want_it() -> None:
    program = "from bridge import log; import rich.console; rich.console.Console().print('here')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"here\n"
