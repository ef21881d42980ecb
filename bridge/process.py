"""Putting processes together: what each of them opens, runs and closes. The web process's parts are in `app`."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from bridge import config as configuration
from bridge import log, telemetry
from bridge.config import Config, Environment
from bridge.engine.bell import Bell, bell_path
from bridge.engine.embedded import EmbeddedEngine, LockTaken, WorkerLock
from bridge.errors import BridgeError, ConfigError, Problem
from bridge.store.protocol import Store
from bridge.store.sqlite import SqliteStore
from bridge.worker import Worker

if TYPE_CHECKING:
    from flask import Flask

LOOK_S = 0.5  # whether another worker has ended
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


class WorkerRunning(BridgeError):
    """Another worker has this database."""


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
        Bell(bell_path(database_path(self.environment))).ring()


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


def database_path(environment: Environment) -> Path:
    """Return the SQLite file that DATABASE_URL names: ``sqlite:///relative`` or ``sqlite:////absolute``."""
    return Path(urlsplit(environment.database_url).path[1:])


def open_store(environment: Environment, config: Config) -> SqliteStore:
    """Return the database, up to date; the file and its folder are made where there are none.

    Raises:
        StoreUnavailable: it cannot be opened.
    """
    store, _ = migrate(environment, config)
    return store


def migrate(environment: Environment, config: Config) -> tuple[SqliteStore, list[str]]:
    """Return the database with the names of the steps that brought it up to date; see `open_store`."""
    store = _store(environment, config)
    try:
        return store, store.migrate()
    except BaseException:
        store.close()
        raise


def _store(environment: Environment, config: Config) -> SqliteStore:
    lanes = {name: connection.lanes for name, connection in config.targets.items()}
    return SqliteStore(database_path(environment), lanes)


def ephemeral_host(environ: Mapping[str, str], database: Path) -> Host | None:
    """Return the host whose disk does not keep the file *database*, None when there is no reason to warn."""
    host = next((host for name, host in EPHEMERAL.items() if environ.get(name)), None)
    return None if host is None or (host.has_volumes and _is_mounted(database)) else host


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
    store = _store(environment, config)
    stack.callback(store.close)
    bell = Bell(bell_path(database_path(environment)))
    commit = GroupCommit(store.receive, store.refuse, committed=bell.ring)
    stack.callback(commit.close)
    return create_app(config, store, environment, commit=commit, ring=bell.ring, bound_to=bound_to)


def run_worker(config: Config, environment: Environment, *, patient: bool = False) -> int:
    """Deliver until SIGTERM or SIGINT; return the exit code. To be called by the main thread.

    *patient*: wait for a worker that runs on this database already.

    Raises:
        WorkerRunning: there is such a worker, and we are not to wait.
    """
    log.configure(environment.log_level, environment.log_format)
    store = open_store(environment, config)
    path = database_path(environment)
    try:
        with _lock(path, patient=patient), closing(telemetry.start()) as spans:
            worker = Worker(config, store, EmbeddedEngine(_lane_failed), spans=spans)
            return _work(worker, Bell(bell_path(path)))
    finally:
        store.close()


def _lock(path: Path, *, patient: bool) -> WorkerLock:
    told = False
    while True:
        try:
            return WorkerLock(path)
        except LockTaken as error:
            if not patient:
                raise WorkerRunning(str(error)) from error
            if not told:
                holder = f"process {error.holder}" if error.holder else "another process"
                log.event("worker.waits", reason=f"The worker waits for {holder} to end, which has this database.")
            told = True
            time.sleep(LOOK_S)  # SIGTERM ends us here at once: nothing was begun
        except ConfigError as error:
            # Nothing is wrong with the configuration: `bridge serve` tries again.
            raise WorkerRunning(str(error)) from error


def _lane_failed(lane: str, error: Exception) -> None:
    log.bug("lane.failed", error, lane=lane)


def _work(worker: Worker, bell: Bell) -> int:
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
        bell.close()
        for number, handler in before.items():
            signal.signal(number, handler)
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
