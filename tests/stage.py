"""A bridge to look at: a web process on loopback whose database holds one of everything that can happen.

It is made once for each test process, with the made-up platforms and a worker that runs on the spot. Tests that
change something get a copy of their own.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from bridge import config as configuration
from bridge.app import create_app
from bridge.config import Config, Environment
from bridge.database import PostgresDatabase, SqliteDatabase
from bridge.demo.fakes.server import serve
from bridge.model import utc_now
from bridge.store.copying import run as copying
from bridge.store.group_commit import GroupCommit
from bridge.store.looking import Role, User
from bridge.store.protocol import Refusal, Store
from bridge.web.pages.access import hashed, login_path
from bridge.worker import Worker
from tests.databases import url_of
from tests.platforms import (
    PUBLIC_URL,
    Bench,
    OnTheSpot,
    Platforms,
    open_bench,
    person,
    serve_platforms,
    signed,
    webhook,
)
from tests.processes import free_port

SECRET_KEY = "a-secret-key-for-tests"
API_TOKEN = "a-long-token-for-tests-0123456789"
PASSWORD = "correct horse battery"
USERS = {Role.VIEWER: "vera", Role.OPERATOR: "otto", Role.ADMIN: "ada"}

# Who is who: their number (`person`) by what became of them.
SYNCED, EDITED, WAITING, AMBIGUOUS, OPTED_OUT, FAILED, RETRYING, ERASED, DELETED, HOSTILE, PRUNED = range(1, 12)
HOSTILE_NAME = "<script>alert('x')</script> \u202e\u0001 \"quoted\" & " + "long " * 60
HOSTILE_FIELDS: dict[str, Any] = {"<b>field</b>": "x", "nested": {"a": [1, 2, None]}}


@dataclass
class Stage:
    """A running bridge. *config* is what it was told; *ahead* moves its clock."""

    url: str
    config: Config
    store: Store
    platforms: Platforms
    folder: Path
    rings: list[None]
    ahead: list[timedelta]

    def cookies(self, role: Role | str = Role.ADMIN) -> dict[str, str]:
        """Return the cookies of a new session of somebody with *role*."""
        with self.session(role) as session:
            return {cookie.name: cookie.value or "" for cookie in session.cookies}

    def session(self, role: Role | str = Role.ADMIN) -> Session:
        """Return a client that is signed in; to be used with ``with``. A worker was seen just now."""
        self.store.beat("worker", "test", utc_now())
        session = Session(self.url)
        path = login_path(SECRET_KEY, self.store, USERS[Role(role)], utc_now(), timedelta(minutes=5))
        answer = session.submit(path, next="/account")
        assert answer.status_code == 200, answer.text
        return session

    def work(self) -> None:
        """Do all that a worker would do, now and later, on the spot."""
        worker = Worker(self.config, self.store, OnTheSpot(), clock=lambda: utc_now() + self.ahead[0])
        worker.start()
        try:
            Bench(self.config, self.store, worker, self.ahead).settle()
        finally:
            worker.stop(0)


class Session(requests.Session):
    """A browser without a screen: it follows links and sends forms with their CSRF token."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.trust_env = False
        self.url = url

    def page(self, path: str, status: int = 200, **query: Any) -> str:
        """Return the HTML at *path*."""
        answer = self.get(self.url + path, params=query, headers={"Accept": "text/html"}, timeout=10)
        assert answer.status_code == status, (answer.status_code, answer.text)
        return answer.text

    def submit(self, path: str, /, form_at: str = "", **fields: Any) -> requests.Response:
        """Post a form to *path*, with the token of the page at *form_at* (default: the same path)."""
        html = self.page(form_at or path)
        found = re.search(r'name="csrf" value="([^"]+)"', html)
        assert found, "the page has no form"
        return self.post(
            self.url + path, data={"csrf": found[1], **fields}, headers={"Accept": "text/html"}, timeout=10
        )


def text_of(html: str) -> str:
    """Return what a person reads of a page, without its frame."""
    inside = html[html.index("<main") : html.index("</main>")]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", inside)).split())


def source_id(number: int) -> str:
    """Return the id that the shop gives its *number*-th customer (`person`)."""
    return str(84000 + number)


@contextmanager
def open_stage() -> Iterator[Template]:
    """Start the platforms and let everything happen once."""
    with TemporaryDirectory() as folder, serve_platforms() as platforms:
        yield _play(Path(folder), platforms)


@dataclass
class Template:
    """The database as it is after everything happened, to be copied."""

    folder: Path
    platforms: Platforms

    @cached_property
    def toml(self) -> str:
        return (self.folder / "bridge.toml").read_text()

    @contextmanager
    def copy(
        self,
        folder: Path,
        postgres: PostgresDatabase | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> Iterator[Stage]:
        """Serve a copy of it: a file, or what `bridge copy-database` makes of it in the empty *postgres*."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        path = folder / "bridge.toml"
        path.write_text(self.toml.replace(PUBLIC_URL, url))
        config = configuration.load(path, self.platforms.environ)
        with (
            closing(sqlite3.connect(self.folder / "bridge.db")) as before,
            closing(sqlite3.connect(folder / "bridge.db")) as after,
        ):
            before.backup(after)
        if postgres is not None:
            copying.copy(folder / "bridge.db", postgres.url)
        database = postgres or SqliteDatabase(folder / "bridge.db")
        store = database.open({name: one.lanes for name, one in config.targets.items()}, "web")
        store.beat("worker", "test", clock())
        commit = GroupCommit(store.receive, store.refuse)
        rings: list[None] = []
        ahead = [timedelta()]
        app = create_app(
            config,
            store,
            Environment(secret_key=SECRET_KEY, api_token=API_TOKEN, database_url=url_of(database)),
            commit=commit,
            ring=lambda: rings.append(None),
            clock=lambda: clock() + ahead[0],
        )
        with serve(app, port):
            try:
                yield Stage(url, config, store, self.platforms, folder, rings, ahead)
            finally:
                commit.close()
                store.close()


# --- what happened -------------------------------------------------------------------------------------------


def _play(folder: Path, platforms: Platforms) -> Template:
    path = platforms.write_config(folder)
    config = configuration.load(path, platforms.environ)
    with open_bench(folder, config) as bench:
        store = bench.store
        _tell(bench, PRUNED)
        bench.settle()
        # Only what is there by now: its payloads are gone, the facts stay.
        moment = utc_now() + timedelta(seconds=1)
        while store.prune(payloads_before=moment, keys_before=moment):
            pass
        platforms.inbox.add(phone="+525512340004", name="First")
        platforms.inbox.add(phone="+525512340004", name="Second")
        for number in (SYNCED, EDITED, AMBIGUOUS, OPTED_OUT, ERASED, DELETED):
            _tell(bench, number)
        _tell(bench, HOSTILE, name=HOSTILE_NAME, **HOSTILE_FIELDS)
        _tell(bench, WAITING, phone="none at all", email="")
        bench.settle()
        _tell(bench, EDITED, name="Grace", note=["a list", 3, None])
        _tell(bench, OPTED_OUT, stop="yes")
        _tell(bench, ERASED, kind="erased")
        _tell(bench, DELETED, kind="deleted")
        bench.settle()
        _refused_by(bench, platforms)
        _odd(bench, config)
        now = utc_now()
        password = hashed(PASSWORD)  # once: it takes its time on purpose
        for role, name in USERS.items():
            store.save_user(User(name, role, password), now)
    return Template(folder, platforms)


def _tell(bench: Bench, number: int, *, kind: str = "changed", **fields: Any) -> None:
    at = utc_now()
    body = webhook(
        kind, person(number, **{"name": f"Person {number}", **fields}) if kind == "changed" else person(number), at
    )
    bench.receive(signed(bench.config, body, f"msg_{number}_{at.timestamp()}"))


def _refused_by(bench: Bench, platforms: Platforms) -> None:
    """Let one push fail for good, one for now, and have bridge's key for the register refused."""
    platforms.sms.trouble(
        status=400, body={"error": {"code": "VALIDATION", "description": "no"}}, times=50, path="/contacts"
    )
    _tell(bench, FAILED)
    _run_once(bench)
    platforms.sms.troubles.clear()
    platforms.marketing.trouble(status=503, times=50)
    platforms.register.trouble(status=401, body={"message": "Unauthorized"}, times=50)
    _tell(bench, RETRYING)
    _run_once(bench)
    platforms.marketing.troubles.clear()
    platforms.register.troubles.clear()


def _run_once(bench: Bench) -> None:
    """Run what is due now, and leave what is to be tried later."""
    for _ in range(20):
        due = [lane for lane, when in bench.store.due_lanes(bench.now()).items() if when <= bench.now()]
        if not due:
            return
        for lane in due:
            bench.worker.run(lane)


def _odd(bench: Bench, config: Config) -> None:
    """A webhook that nobody can read, one about nothing of ours, one that came twice, two that were refused."""
    now = utc_now()
    bench.receive(signed(config, b"not json", "msg_unreadable"))
    bench.receive(signed(config, json.dumps({"type": "ignore", "data": {"id": "1"}}).encode(), "msg_ignored"))
    twice = signed(config, webhook("changed", person(SYNCED, name="Person 1"), now), "msg_twice")
    bench.receive(twice)
    bench.receive(twice)
    _run_once(bench)
    refusals = [
        Refusal("shop", now - timedelta(minutes=5), "The signature does not match.", 412),
        Refusal("shop", now - timedelta(minutes=2), "The request is 20 minutes old.", 380),
    ]
    bench.store.refuse(refusals)
