"""A bridge to send requests to: real sources, a real database, a real server on loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from flask import Flask

from bridge.app import create_app
from bridge.config import Config, Environment, load
from bridge.database import Database, SqliteDatabase
from bridge.demo.fakes.server import serve
from bridge.lanes import process_lane
from bridge.model import InboundRequest, utc_now
from bridge.pipeline import process
from bridge.sources import SOURCES
from bridge.sources.base import SourceType
from bridge.store.group_commit import GroupCommit
from bridge.store.protocol import Store
from bridge.web.tokens import make_token

ChangeType = Callable[[SourceType], SourceType]

PUBLIC_URL = "https://bridge.example.com"
API_TOKEN = "a-long-token-for-tests-0123456789"
SECRET_KEY = "a-secret-key-for-tests"

TOML = """
[bridge]
public_url = "https://bridge.example.com"
default_region = "US"
max_body_bytes = 65536

[sources.shop]
type = "standard_webhooks"
secrets = ["$SHOP_SECRET"]
[sources.shop.payload]
id = "item.data.id"
kind = "'deleted' if item.type == 'contact.deleted' else 'changed'"
fields = "item.data"

[sources.legacy]
type = "hmac"
secrets = ["$LEGACY_SECRET"]
signature = { header = "X-Signature", digest = "sha256", encoding = "hex", prefix = "sha256=", parts = ["body"] }
[sources.legacy.payload]
id = "item.id"
fields = "item"

[sources.guarded]
type = "hmac"
secrets = ["$LEGACY_SECRET"]
require_token = true
signature = { header = "X-Signature", digest = "sha256", encoding = "hex", prefix = "sha256=", parts = ["body"] }
[sources.guarded.payload]
id = "item.id"
fields = "item"

[sources.hubspot]
type = "hubspot"
secrets = ["$HUBSPOT_CLIENT_SECRET"]

[sources.crm]
type = "pipedrive"
credentials = [{ user = "bridge", password = "$PIPEDRIVE_PASSWORD" }]

[targets.sms]
type = "sakari"
account_id = "acc"
client_id = "$SAKARI_CLIENT"
client_secret = "$SAKARI_SECRET"

[targets.marketing]
type = "activecampaign"
base_url = "https://acme.api-us1.com"
api_key = "$ACTIVECAMPAIGN_KEY"

[[routes]]
source = "shop"
target = "sms"
opt_out = "stop == 'yes'"
[routes.fields]
mobile = "phone | e164"
firstName = "name"
email = "email"

[[routes]]
source = "shop"
target = "marketing"
when = "tier == 'gold'"
[routes.fields]
email = "email"
"""

SECRETS = {
    "SHOP_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "LEGACY_SECRET": "a-shared-secret-0123456789",
    "HUBSPOT_CLIENT_SECRET": "3f6f1f2e-8c1b-4a6e-9d0e-2b7c5a9e4d11",
    "PIPEDRIVE_PASSWORD": "k7Jq2vXz9LmN4tRb",
    "SAKARI_CLIENT": "client",
    "SAKARI_SECRET": "client-secret",
    "ACTIVECAMPAIGN_KEY": "key",
}


@dataclass
class Site:
    """A running bridge, without a worker."""

    app: Flask
    config: Config
    store: Store
    commit: GroupCommit
    url: str = ""
    rings: list[datetime] = field(default_factory=list)
    session: requests.Session = field(default_factory=requests.Session)

    def signed(self, source: str, body: bytes, *, path: str = "", **headers: str) -> InboundRequest:
        """Return a genuine request to *source*, as the CRM would send it to the public URL."""
        url = PUBLIC_URL + (path or f"/hooks/{source}")
        given = {"content-type": "application/json", **headers}
        return self.config.sources[source].source.sign(InboundRequest("POST", url, given, body), utc_now())

    def post(self, request: InboundRequest) -> requests.Response:
        path = request.url.removeprefix(PUBLIC_URL)
        return self.session.post(
            self.url + path, data=request.body, headers=dict(request.headers), allow_redirects=False, timeout=10
        )

    def send(self, source: str, body: Any) -> requests.Response:
        """Post *body* as JSON, signed."""
        return self.post(self.signed(source, json.dumps(body).encode()))

    def api(self, method: str, path: str, *, token: str = API_TOKEN, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        return self.session.request(
            method, f"{self.url}/api/v1{path}", headers=headers, timeout=10, allow_redirects=False, **options
        )

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON of a successful call."""
        answer = self.api("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def token(self, source: str, token_id: str = "t1") -> str:
        self.store.add_token(source, token_id, utc_now())
        return make_token(SECRET_KEY, source, token_id)

    def process(self, source: str = "shop") -> None:
        """Do what the worker would do with all that came."""
        ticket = self.store.acquire(process_lane(source), "test", utc_now())
        routes = self.config.routes_of(source)
        for _ in process(self.config.sources[source], routes, self.store, ticket, None, utc_now()):
            pass

    def inbounds(self) -> int:
        """Return how many webhooks are stored."""
        counts = self.store.health(utc_now()).inbound
        return sum(count for outcome, count in counts.items() if outcome not in {"refused", "duplicate"})


def until(true: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for a condition; fail when it does not come."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.01)


def write_config(folder: Path, text: str = TOML) -> Path:
    path = folder / "bridge.toml"
    path.write_text(text)
    return path


def _as_it_is(one: SourceType) -> SourceType:
    return one


def _load(folder: Path, change_type: ChangeType) -> Config:
    types = {name: change_type(one) for name, one in SOURCES.items()}
    return load(write_config(folder), SECRETS, sources=types)


@cache
def _config() -> Config:
    """Return the configuration, read once for all tests: it is frozen."""
    with TemporaryDirectory() as folder:
        return _load(Path(folder), _as_it_is)


@contextmanager
def open_site(
    folder: Path,
    *,
    database: Database | None = None,
    change_type: ChangeType = _as_it_is,
    bound_to: str = "",
    clock: Callable[[], datetime] = utc_now,
    **environment: Any,
) -> Iterator[Site]:
    """Serve in this process, with *database* or else a file in *folder*.

    *change_type* makes other source types of ours; *environment* is bridge's.
    """
    database = database or SqliteDatabase(folder / "bridge.db")
    config = _config() if change_type is _as_it_is else _load(folder, change_type)
    rings: list[datetime] = []
    settings = {"api_token": API_TOKEN, "secret_key": SECRET_KEY, **environment}
    lanes = {name: one.lanes for name, one in config.targets.items()}
    with (
        closing(database.open(lanes, "web")) as store,
        closing(GroupCommit(store.receive, store.refuse)) as commit,
        requests.Session() as session,
    ):
        session.trust_env = False
        app = create_app(
            config,
            store,
            Environment(**settings),
            commit=commit,
            ring=lambda: rings.append(utc_now()),
            bound_to=bound_to,
            clock=clock,
        )
        with serve(app) as url:
            yield Site(app, config, store, commit, url, rings, session)
