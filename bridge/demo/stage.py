"""What the demo is played on: five made-up platforms in this process, and the real bridge in its own processes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import requests

import bridge
from bridge import config as configuration
from bridge.config import Config
from bridge.demo.fakes.activecampaign import API_KEY as ACTIVECAMPAIGN_KEY
from bridge.demo.fakes.activecampaign import ActiveCampaign
from bridge.demo.fakes.artu import Artu
from bridge.demo.fakes.clerk_chat import ClerkChat
from bridge.demo.fakes.hubspot import HubSpot
from bridge.demo.fakes.sakari import Sakari
from bridge.engine.embedded import lock_path
from bridge.model import InboundRequest, utc_now
from bridge.outbound import new_session
from bridge.supervisor import PARENT

T = TypeVar("T")

PATIENCE_S = 30.0  # for anything that is waited for; all of it takes a second or two on an idle machine
LOOK_S = 0.05
END_S = 60.0  # for bridge to end; it needs far less, and a killed one loses nothing
LOG_TAIL = 15  # lines


class DemoFailed(Exception):
    """What was waited for did not happen; the message says what."""


@dataclass
class Platforms:
    """The made-up platforms, each with an account for bridge."""

    hubspot: HubSpot = field(default_factory=HubSpot)
    marketing: ActiveCampaign = field(default_factory=ActiveCampaign)
    sms: Sakari = field(default_factory=Sakari)
    inbox: ClerkChat = field(default_factory=ClerkChat)
    register: Artu = field(default_factory=Artu)


@dataclass
class Stage:
    """A running bridge, and everything around it."""

    folder: Path
    platforms: Platforms
    config: Config
    environ: Mapping[str, str]  # of bridge's processes
    base_url: str
    session: requests.Session
    process: subprocess.Popen[bytes] | None = None

    # --- what senders do ---

    def post(self, source: str, body: bytes, *, tamper: bool = False, message_id: str = "") -> requests.Response:
        """Sign *body* as the CRM would, and post it. *tamper*: change it after it was signed."""
        headers = {"content-type": "application/json"}
        if message_id:
            headers["webhook-id"] = message_id
        request = InboundRequest("POST", f"{self.base_url}/hooks/{source}", headers, body)
        signed = self.config.sources[source].source.sign(request, utc_now())
        sent = signed.body.replace(b"example.com", b"example.net") if tamper else signed.body
        return self.session.post(signed.url, data=sent, headers=dict(signed.headers), timeout=PATIENCE_S)

    # --- what somebody who looks on sees ---

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Call bridge's API; return what it answers."""
        reply = self.session.request(
            method,
            f"{self.base_url}/api/v1{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.environ['BRIDGE_API_TOKEN']}"},
            timeout=PATIENCE_S,
        )
        reply.raise_for_status()
        return reply.json()

    def deliveries(self) -> list[dict[str, Any]]:
        """Return every delivery, as the API gives it."""
        found: list[dict[str, Any]] = self.api("GET", "/deliveries?limit=200")["items"]
        return found

    def login_url(self) -> str:
        """Return a link that signs in to the pages once, as ``bridge login-link`` prints it."""
        said = subprocess.run(
            [sys.executable, "-m", "bridge", "login-link", "--minutes", "60"],
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            check=True,
        )
        return said.stdout.strip()

    def worker_pid(self) -> int | None:
        """Return the process id of the worker, which is in its lock file."""
        with contextlib.suppress(OSError, ValueError):
            return int(lock_path(self.folder / "bridge.db").read_text())
        return None

    def wait(self, what: str, look: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
        """Return what *look* gives as soon as it is something.

        Raises:
            DemoFailed: it was nothing for *patience_s*, or bridge ended.
        """
        deadline = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if found := look():
                    return found
            if self.process is not None and self.process.poll() is not None:
                raise DemoFailed(f"Bridge ended by itself while waiting until {what}.\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"This did not happen within {patience_s:.0f} seconds: {what}.\n{self.log_tail()}"
                )
            time.sleep(LOOK_S)

    def log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "bridge.log").read_text("utf-8", "replace").splitlines()
            return "\n".join(["The last lines of bridge's log:", *lines[-LOG_TAIL:]])
        return ""

    # --- the processes ---

    def start(self) -> None:
        """Start bridge, and wait until it can work."""
        with (self.folder / "bridge.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bridge", "serve", "--host", "127.0.0.1"],
                env={**os.environ, **self.environ, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for the demo, which ends bridge in its own time
            )
        self.wait("bridge is ready", self.ready)

    def ready(self) -> bool:
        return self.session.get(f"{self.base_url}/readyz", timeout=PATIENCE_S).ok

    def stop(self) -> None:
        self.session.close()  # or bridge would wait a while for what we still have to say
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def open_stage() -> Iterator[Stage]:
    """Start the platforms and bridge, and take everything away at the end.

    Raises:
        DemoFailed: bridge does not start.
    """
    platforms = Platforms()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bridge-demo-")))
        urls = {
            name: stack.enter_context(fake.serve())
            for name, fake in (
                ("HUBSPOT_API", platforms.hubspot),
                ("ACTIVECAMPAIGN_URL", platforms.marketing),
                ("SAKARI_API", platforms.sms),
                ("CLERK_CHAT_API", platforms.inbox),
                ("ARTU_API", platforms.register),
            )
        }
        base_url = f"http://127.0.0.1:{_free_port()}"
        environ = {**_credentials(platforms), **urls, **_settings(folder, base_url)}
        toml = (resources.files("bridge.demo") / "bridge.toml").read_text(encoding="utf-8")
        (folder / "bridge.toml").write_text(toml, encoding="utf-8")
        config = configuration.load(folder / "bridge.toml", environ)
        _write_helpers(folder, environ)
        session = stack.enter_context(new_session())
        stage = Stage(folder, platforms, config, environ, base_url, session)
        stack.callback(stage.stop)
        stage.start()
        yield stage


def _credentials(platforms: Platforms) -> dict[str, str]:
    """Return the keys of the made-up accounts; they open nothing else."""
    return {
        "HUBSPOT_CLIENT_SECRET": secrets.token_urlsafe(24),
        "HUBSPOT_TOKEN": platforms.hubspot.bearer,
        "SHOP_SECRET": f"whsec_{secrets.token_hex(24)}",
        "ACTIVECAMPAIGN_KEY": ACTIVECAMPAIGN_KEY,
        "SAKARI_ACCOUNT": platforms.sms.account,
        "SAKARI_CLIENT_ID": platforms.sms.client_id,
        "SAKARI_CLIENT_SECRET": platforms.sms.client_secret,
        "CLERK_CHAT_KEY": platforms.inbox.key,
        "ARTU_KEY": platforms.register.key,
    }


def _settings(folder: Path, base_url: str) -> dict[str, str]:
    return {
        "BRIDGE_CONFIG": str(folder / "bridge.toml"),
        "DATABASE_URL": f"sqlite:///{folder / 'bridge.db'}",
        "PUBLIC_URL": base_url,
        "PORT": base_url.rpartition(":")[2],
        "SECRET_KEY": secrets.token_urlsafe(32),
        "BRIDGE_API_TOKEN": secrets.token_urlsafe(24),
        "WEB_CONCURRENCY": "1",
        "LOG_LEVEL": "info",
        "LOG_FORMAT": "json",
        # The demo runs from a checkout as well as installed, and from any folder.
        "PYTHONPATH": os.pathsep.join(
            [str(Path(bridge.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }


def _write_helpers(folder: Path, environ: Mapping[str, str]) -> None:
    """Write what a person needs to go on by hand: the environment, and a webhook to edit and send."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environ.items()]
    (folder / "env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    customer = {
        "id": "5003",
        "email": "you@example.com",
        "phone": "(415) 555-0199",
        "firstname": "Your",
        "lastname": "Name",
    }
    event = {"type": "contact.updated", "data": customer}
    (folder / "customer.json").write_text(json.dumps(event, indent=2) + "\n", encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does. Only the first counts: after it, all is taken away."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: object) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
