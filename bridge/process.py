"""Putting processes together: what each of them opens, runs and closes. The web process's parts are in `app`."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from bridge import config as configuration
from bridge import log, telemetry
from bridge.config import Config, Environment, SourceConnection
from bridge.database import Database, SqliteDatabase, database_of
from bridge.engine.bell import Ringer
from bridge.errors import BridgeError, ConfigError, Problem
from bridge.store.protocol import Store
from bridge.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

GRACE_S = 6.0  # of the 10 seconds in which all of bridge ends: pushes under way are finished by then, or left
PORT_AGAIN_S = 0.2  # whether the port is free by now


@dataclass(frozen=True, slots=True)
class Host:
    """A platform that gives a program a disk of its own, which goes with the program."""

    title: str
    has_volumes: bool = True  # a disk that stays can be attached


# What such a platform sets in the environment.
EPHEMERAL = {
    "DYNO": Host("Heroku", has_volumes=False),
    "RENDER": Host("Render"),
    "RAILWAY_ENVIRONMENT": Host("Railway"),
    "RAILWAY_PROJECT_ID": Host("Railway"),
    "K_SERVICE": Host("Cloud Run", has_volumes=False),
    "FLY_APP_NAME": Host("Fly.io"),
}


class PortTaken(BridgeError):
    """The web process cannot listen where it should."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a process is told: the file and the environment."""

    config: Config
    environment: Environment


@dataclass(frozen=True, slots=True)
class Opened:
    """A configuration with its open database."""

    config: Config
    environment: Environment
    store: Store

    def ring(self) -> None:
        """Tell the worker, if one runs, that there is something to do."""
        database_of(self.environment).ring()


def load(config_path: Path | None) -> Loaded:
    """Read the environment and the configuration that counts (`config.find`).

    Raises:
        ConfigError: with every problem of both.
    """
    problems: list[Problem] = []
    environment, config = None, None
    try:
        environment = Environment.read()
    except ConfigError as error:
        problems += error.problems
    try:
        config = configuration.load(configuration.find(config_path))
    except ConfigError as error:
        problems += error.problems
    if config is None or environment is None:
        raise ConfigError(*problems)
    return Loaded(config, environment)


def open_store(loaded: Loaded, role: str = "command") -> Store:
    """Return the database, up to date; a file and its folder are made where there are none.

    Raises:
        StoreUnavailable: it cannot be opened, or a server's is not up to date.
    """
    return database_of(loaded.environment).open(_lanes(loaded.config), role)


def migrate(loaded: Loaded) -> list[str]:
    """Bring the database up to date; return the names of the steps that did."""
    with closing(database_of(loaded.environment).store(_lanes(loaded.config), "migrate")) as store:
        return store.migrate()


def _lanes(config: Config) -> dict[str, int]:
    return {name: connection.lanes for name, connection in config.targets.items()}


def ephemeral_host(environ: Mapping[str, str], database: Database) -> Host | None:
    """Return the host whose disk does not keep the file of *database*, None when there is no reason to warn."""
    if not isinstance(database, SqliteDatabase):
        return None
    host = next((host for name, host in EPHEMERAL.items() if environ.get(name)), None)
    return None if host is None or (host.has_volumes and _is_mounted(database.path)) else host


def _is_mounted(database: Path) -> bool:
    """Say whether the file is, or will be, on a disk that was attached to this machine."""
    path = database.absolute()
    mounted = next(parent for parent in path.parents if parent.is_mount())
    emptied = (tempfile.gettempdir(), "/dev", "/run")
    return mounted != Path(path.anchor) and not any(mounted.is_relative_to(place) for place in emptied)


def check_port(host: str, port: int, *, patience_s: float = 0) -> None:
    """Look whether the web process can listen at *host* and *port*; wait so long for another one to leave it.

    Raises:
        PortTaken: it cannot; the message says why and what to do.
    """
    deadline = time.monotonic() + patience_s
    while (error := _why_closed(host, port)) is not None:
        if error.errno != errno.EADDRINUSE:
            raise PortTaken(
                f"Bridge cannot listen at {host}:{port} ({error.strerror}). Choose another PORT or --host."
            )
        if time.monotonic() > deadline:
            raise PortTaken(
                f"Port {port} is taken by another program, perhaps by another bridge. "
                "End that one, or set PORT to a free port."
            )
        time.sleep(PORT_AGAIN_S)


def _why_closed(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the web process does
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error
    return None


def open_web(config_path: Path | None, bound_to: str, stack: ExitStack) -> Flask:
    """Return the web application with all that it needs, which *stack* closes. Each process that serves calls it.

    The database is not looked at: while it is away, senders hear so. `migrate` comes before the first of them.
    """
    # The worker process does without all of this.
    from bridge.app import create_app
    from bridge.store.group_commit import GroupCommit

    loaded = load(config_path)
    config, environment = loaded.config, loaded.environment
    database = database_of(environment)
    store = database.store(_lanes(config), "web")
    stack.callback(store.close)
    commit = GroupCommit(store.receive, store.refuse, committed=database.ring)
    stack.callback(commit.close)
    return create_app(
        config, store, environment, commit=commit, ring=database.ring, bound_to=bound_to, clock=store.clock
    )


def run_worker(loaded: Loaded, *, patient: bool = False) -> int:
    """Deliver until SIGTERM or SIGINT; return the exit code. To be called by the main thread.

    *patient*: where there can be one worker only, wait for one that runs already.

    Raises:
        WorkerRunning: there is such a worker, and we are not to wait.
        StoreUnavailable: the database is not up to date, or cannot be reached.
    """
    log.configure(loaded.environment.log_level, loaded.environment.log_format)
    database = database_of(loaded.environment)
    with (
        closing(database.open(_lanes(loaded.config), "worker")) as store,
        closing(telemetry.start()) as spans,
        database.working(store, patient=patient) as engine,
    ):
        address = address_of(loaded.config, loaded.environment, store)
        worker = Worker(loaded.config, store, engine, clock=store.clock, spans=spans, address=address)
        return _work(worker, database.bell())


def address_of(config: Config, environment: Environment, store: Store) -> Callable[[SourceConnection], str]:
    """Return a function that gives the URL which a source's CRM is to call, with its token where it needs one.

    It raises `ConfigError` where a token is needed and nothing to sign it with is set.
    """

    def address(connection: SourceConnection) -> str:
        from bridge.web import tokens  # the worker process does without it as long as nothing is registered anew

        url = f"{config.bridge.public_url.rstrip('/')}/hooks/{connection.name}"
        if not connection.needs_token:
            return url
        if not environment.secret_key:
            raise ConfigError(NO_SECRET_KEY)
        return f"{url}/{tokens.lasting_token(environment.secret_key, connection.name, store)}"

    return address


NO_SECRET_KEY = Problem(
    "SECRET_KEY",
    "it is not set, and tokens are signed with it",
    "set it to a long random text, such as the output of: openssl rand -hex 32",
)


def _work(worker: Worker, bell: Ringer) -> int:
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        bell.ring()  # ends the wait below at once; nothing that takes a lock may be called here

    clean = True

    def end() -> None:
        nonlocal clean
        clean = worker.stop(GRACE_S)

    def wait(seconds: float) -> bool:
        rang = not asked and bell.wait(seconds)
        if asked:
            end()
        return rang

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        worker.start()
        worker.keep_house(wait)
        if not asked:  # a lane was lost: somebody else is the worker now
            end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        bell.close()
    code = 0 if asked else 1
    if not clean:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """End the process with the threads that are still in a call, which nothing else can end.

    The lock on the database ends in the same moment as they do: the next worker must not push what they still
    push. What they did not finish is as after a kill: claims are due again, and creates are searched for first.
    """
    log.event(
        "worker.left",
        level="warning",
        reason="A call took longer than bridge may take to stop. What it was for is settled at the next start.",
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
