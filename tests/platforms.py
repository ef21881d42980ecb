"""All four platforms on loopback, a configuration that leads to them, and a worker that runs on the spot."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIApplication

from bridge import pipeline
from bridge.config import Config
from bridge.database import Database, SqliteDatabase
from bridge.demo.fakes.activecampaign import API_KEY as ACTIVECAMPAIGN_KEY
from bridge.demo.fakes.activecampaign import ActiveCampaign
from bridge.demo.fakes.artu import Artu
from bridge.demo.fakes.base import Fake
from bridge.demo.fakes.clerk_chat import ClerkChat
from bridge.demo.fakes.sakari import Sakari
from bridge.demo.fakes.server import serve
from bridge.engine.protocol import Chore, Run
from bridge.model import InboundRequest, iso, utc_now
from bridge.store.protocol import Store
from bridge.worker import Worker

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PUBLIC_URL = "https://bridge.example.com"

TOML = """
[bridge]
public_url = "https://bridge.example.com"
settle_s = {settle_s}

[sources.shop]
type = "standard_webhooks"
secrets = ["$SHOP_SECRET"]
[sources.shop.payload]
id = "item.data.id"
kind = "item.type"
fields = "item.data"

[targets.marketing]
type = "activecampaign"
base_url = "{marketing}"
api_key = "$ACTIVECAMPAIGN_KEY"
rate_per_s = {rate_per_s}
burst = {rate_per_s}

[targets.sms]
type = "sakari"
account_id = "{sakari_account}"
client_id = "$SAKARI_ID"
client_secret = "$SAKARI_SECRET"
api_base = "{sms}"
rate_per_s = {rate_per_s}
burst = {rate_per_s}

[targets.inbox]
type = "clerk_chat"
api_key = "$CLERK_CHAT_KEY"
api_base = "{inbox}"
rate_per_s = {rate_per_s}
burst = {rate_per_s}

[targets.register]
type = "artu"
api_key = "$ARTU_KEY"
environment = "test"
create_clients = true
api_base = "{register}"
rate_per_s = {rate_per_s}
burst = {rate_per_s}

[[routes]]
source = "shop"
target = "marketing"
on_delete = "{on_delete}"
opt_out = "stop == 'yes'"
fields = {{ email = "email", firstName = "name", lastName = {{ value = "surname", empty = "clear" }} }}

[[routes]]
source = "shop"
target = "sms"
on_delete = "{on_delete}"
opt_out = "stop == 'yes'"
fields = {{ mobile = "phone", firstName = "name", lastName = {{ value = "surname", empty = "clear" }} }}

[[routes]]
source = "shop"
target = "inbox"
opt_out = "stop == 'yes'"
fields = {{ phone = "phone", name = "name" }}

[[routes]]
source = "shop"
target = "register"
opt_out = "stop == 'yes'"

[routes.fields]
client_external_id = "id"
client_name = {{ value = "'A customer'", mode = "create_only" }}
email = "email"
mobile = "phone"
"""


@dataclass
class Platforms:
    """The fakes and where they listen."""

    marketing: ActiveCampaign = field(default_factory=ActiveCampaign)
    sms: Sakari = field(default_factory=Sakari)
    inbox: ClerkChat = field(default_factory=ClerkChat)
    register: Artu = field(default_factory=Artu)
    urls: dict[str, str] = field(default_factory=dict)

    @property
    def fakes(self) -> dict[str, Fake]:
        return {"marketing": self.marketing, "sms": self.sms, "inbox": self.inbox, "register": self.register}

    @property
    def environ(self) -> dict[str, str]:
        return {
            "SHOP_SECRET": SECRET,
            "ACTIVECAMPAIGN_KEY": ACTIVECAMPAIGN_KEY,
            "SAKARI_ID": self.sms.client_id,
            "SAKARI_SECRET": self.sms.client_secret,
            "CLERK_CHAT_KEY": self.inbox.key,
            "ARTU_KEY": self.register.key,
        }

    def write_config(
        self,
        folder: Path,
        *,
        settle_s: float = 60,
        rate_per_s: int = 1000,
        on_delete: str = "keep",
        routed: Collection[str] = (),
    ) -> Path:
        """Write a configuration with a route to each platform, or to those that are *routed*."""
        path = folder / "bridge.toml"
        text = TOML.format(
            **self.urls,
            settle_s=settle_s,
            rate_per_s=rate_per_s,
            on_delete=on_delete,
            sakari_account=self.sms.account,
        )
        head, *routes = text.split("[[routes]]")
        kept = [one for one in routes if not routed or any(f'target = "{name}"' in one for name in routed)]
        path.write_text("[[routes]]".join([head, *kept]))
        return path

    def counts(self) -> dict[str, int]:
        """Return how many contacts each platform has."""
        return {
            "marketing": len(self.marketing.people()),
            "sms": len(self.sms.contacts),
            "inbox": len(self.inbox.contacts),
            "register": len(self.register.registers["test"].clients),
        }

    def loosened(self) -> list[Any]:
        """Return every opt-out that a call, and not a person, took away."""
        return [*self.marketing.loosened, *self.sms.loosened()]

    def forget(self) -> None:
        """Begin anew with empty accounts, at the same addresses."""
        self.marketing, self.sms, self.inbox, self.register = ActiveCampaign(), Sakari(), ClerkChat(), Artu()


@contextmanager
def serve_platforms() -> Iterator[Platforms]:
    platforms = Platforms()

    def account(name: str) -> WSGIApplication:
        return lambda environ, start_response: platforms.fakes[name](environ, start_response)

    with ExitStack() as stack:
        for name in platforms.fakes:
            platforms.urls[name] = stack.enter_context(serve(account(name)))
        yield platforms


def person(n: int, **fields: Any) -> dict[str, Any]:
    """Return what the shop says of its *n*-th customer."""
    return {"id": str(84000 + n), "email": f"person{n}@example.com", "phone": f"+5255123400{n:02d}", **fields}


def webhook(kind: str, data: dict[str, Any], at: datetime) -> bytes:
    """Return the body of one event of the shop."""
    return json.dumps({"type": kind, "timestamp": iso(at), "data": data}).encode()


def signed(config: Config, body: bytes, message_id: str, now: datetime | None = None) -> InboundRequest:
    """Return a request as the shop sends it."""
    headers = {"content-type": "application/json", "webhook-id": message_id}
    request = InboundRequest("POST", f"{PUBLIC_URL}/hooks/shop", headers, body)
    return config.sources["shop"].source.sign(request, now or utc_now())


class OnTheSpot:
    """An engine that runs nothing by itself: `Bench.settle` runs the lanes that are due, in this thread."""

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared

    def start(self, lanes: Sequence[str], run: Run, chores: Sequence[Chore] = ()) -> None:
        pass

    def wake(self, lanes: Iterable[str], when: datetime | None = None) -> None:
        pass

    def stop(self, grace_s: float) -> bool:
        return True


@dataclass
class Bench:
    """A store and a real worker, whose clock the test moves."""

    config: Config
    store: Store
    worker: Worker
    ahead: list[timedelta]

    def now(self) -> datetime:
        return utc_now() + self.ahead[0]

    def receive(self, *requests: InboundRequest) -> None:
        """Verify and store *requests*, as the web process does."""
        connection = self.config.sources["shop"]
        self.store.receive([pipeline.receive(connection, request, utc_now()) for request in requests])

    def settle(self, rounds: int = 200) -> None:
        """Run every lane that has work, now or later, until none has."""
        for _ in range(rounds):
            due = self.store.due_lanes(self.now())
            if not due:
                return
            soonest = min(due.values())
            if soonest > self.now():
                self.ahead[0] += soonest - self.now() + timedelta(milliseconds=1)
            for lane, when in sorted(due.items()):
                if when <= self.now():
                    self.worker.run(lane)
        raise AssertionError(f"still due after {rounds} rounds: {due}")


@contextmanager
def open_bench(folder: Path, config: Config, database: Database | None = None) -> Iterator[Bench]:
    """Begin with *database*, by default a file in *folder*."""
    database = database or SqliteDatabase(folder / "bridge.db")
    store = database.open({name: one.lanes for name, one in config.targets.items()}, "worker")
    ahead = [timedelta()]
    worker = Worker(
        config, store, OnTheSpot(shared=database.shared), clock=lambda: utc_now() + ahead[0], gather_s=0
    )
    worker.start()
    try:
        yield Bench(config, store, worker, ahead)
    finally:
        worker.stop(0)
        store.close()
