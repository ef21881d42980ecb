"""Putting processes together: what each of them opens, runs and closes. The web process's parts are in `app`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
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

LOOK_S = 0.5  # whether another worker has ended
GRACE_S = 25.0  # platforms kill a process some 30 seconds after they asked it to stop

# What a host sets in the environment whose disk is thrown away with every deploy.
EPHEMERAL = {
    "DYNO": "Heroku",
    "RENDER": "Render",
    "RAILWAY_ENVIRONMENT": "Railway",
    "RAILWAY_PROJECT_ID": "Railway",
    "K_SERVICE": "Cloud Run",
    "FLY_APP_NAME": "Fly.io",
}


class WorkerRunning(BridgeError):
    """Another worker has this database."""


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
    lanes = {name: connection.lanes for name, connection in config.targets.items()}
    store = SqliteStore(database_path(environment), lanes)
    try:
        return store, store.migrate()
    except BaseException:
        store.close()
        raise


def ephemeral_host(environ: Mapping[str, str]) -> str:
    """Return the name of the host whose disk does not stay, "" when there is no reason to warn."""
    if environ.get("DATABASE_URL", "").strip():
        return ""
    return next((host for name, host in EPHEMERAL.items() if environ.get(name)), "")


def run_web(config: Config, environment: Environment, host: str) -> None:
    """Receive webhooks and serve the API at *host* and PORT until SIGTERM or SIGINT; leaves by `SystemExit`."""
    # The worker process does without all of this.
    from bridge.app import create_app
    from bridge.store.group_commit import GroupCommit
    from bridge.web.server import THREADS, Server

    log.configure(environment.log_level, environment.log_format)
    store = open_store(environment, config)
    bell = Bell(bell_path(database_path(environment)))
    commit = GroupCommit(store.receive, store.refuse, committed=bell.ring)

    def stop() -> None:
        commit.close()
        store.close()

    run: Callable[[], None] = Server(
        lambda: create_app(config, store, environment, commit=commit, ring=bell.ring, bound_to=host),
        stop,
        bind=f"{host}:{environment.port}",
        processes=environment.web_concurrency or 1,
        threads=THREADS,
    ).run
    run()


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

    def wait(seconds: float) -> bool:
        nonlocal clean
        rang = not asked and bell.wait(seconds)
        if asked:
            clean = worker.stop(GRACE_S)
        return rang

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        worker.start()
        worker.keep_house(wait)
        if not asked:  # a lane was lost: somebody else is the worker now
            worker.stop(GRACE_S)
    finally:
        bell.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if asked and clean else 1
