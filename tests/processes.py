"""The real web and worker processes, to be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

import requests

T = TypeVar("T")

API_TOKEN = "a-long-token-for-tests-0123456789"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(
    condition: Callable[[], T | None], *, seconds: float = 30, what: str = "the condition", every_s: float = 0.02
) -> T:
    """Wait for *condition*, looking often, and return what it then gives."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(every_s)
    return found


@dataclass
class Processes:
    """``bridge web`` and ``bridge worker`` on one database, and on one machine.

    *database_url*: a SQLite file beside *config* where none is given. *inside* is what begins the command lines,
    to have them run in another namespace; the web process listens at *host*.
    """

    config: Path
    environ: Mapping[str, str]
    database_url: str = ""
    host: str = "127.0.0.1"
    inside: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.config.parent / "bridge.log"

    def start(self, role: str) -> None:
        host = ["--host", self.host] if role == "web" else []
        environ = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": self.database_url or f"sqlite:///{self.config.parent / 'bridge.db'}",
            "BRIDGE_API_TOKEN": API_TOKEN,
            "SECRET_KEY": "a-secret-key-for-tests",
            "PORT": str(self.port),
            "LOG_LEVEL": "info",
            **self.environ,
        }
        out: IO[bytes]
        with self.log_path.open("ab") as out:
            self.running[role] = subprocess.Popen(
                [*self.inside, sys.executable, "-m", "bridge", role, "--config", str(self.config), *host],
                env=environ,
                stdout=out,
                stderr=out,
                start_new_session=True,  # gunicorn's children die with their group
            )

    def send(self, role: str, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        os.killpg(self.running[role].pid, number)

    def kill(self, role: str) -> None:
        """SIGKILL the process and its children: no handler runs, nothing is flushed."""
        self.send(role, signal.SIGKILL)
        self.running.pop(role).wait()

    def ask_to_stop(self) -> None:
        self.session.close()  # or the web process would wait a while for what we still have to say
        for process in self.running.values():
            process.terminate()

    def stop(self) -> None:
        self.ask_to_stop()
        for process in self.running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.running.clear()

    def api(self, path: str) -> dict[str, object]:
        answer = self.session.get(
            f"{self.url}/api/v1{path}", headers={"Authorization": f"Bearer {API_TOKEN}"}, timeout=10
        )
        answer.raise_for_status()
        found: dict[str, object] = answer.json()
        return found

    def alive(self) -> bool:
        try:
            return self.session.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except requests.RequestException:
            return False


@contextmanager
def start_processes(config: Path, environ: Mapping[str, str], *roles: str) -> Iterator[Processes]:
    processes = Processes(config, environ)
    try:
        for role in roles or ("web", "worker"):
            processes.start(role)
        until(processes.alive, what="the web process")
        yield processes
    finally:
        processes.stop()
