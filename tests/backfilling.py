"""A HubSpot account whose contacts are backfilled into ActiveCampaign, by processes that are killed on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from bridge.config import Config, load
from bridge.demo.fakes.hubspot import HubSpot
from bridge.demo.fakes.server import serve
from bridge.model import BACKFILL, CatchUp, InboundRequest, Progress, utc_now
from bridge.pipeline import catching_up
from bridge.store.sqlite import SqliteStore
from tests.platforms import Platforms
from tests.processes import Processes, start_processes, until

SECRET = "3f6f1f2e-8c1b-4a6e-9d0e-2b7c5a9e4d11"
URL = "https://bridge.example.com/hooks/hubspot"
TOML = """
[bridge]
public_url = "https://bridge.example.com"
settle_s = 1

[sources.hubspot]
type = "hubspot"
secrets = ["$HUBSPOT_SECRET"]
token = "$HUBSPOT_TOKEN"
api_base = "{hubspot}"

[targets.marketing]
type = "activecampaign"
base_url = "{marketing}"
api_key = "$ACTIVECAMPAIGN_KEY"
rate_per_s = 1000
burst = 1000

[[routes]]
source = "hubspot"
target = "marketing"
fields = {{ email = "email", firstName = "firstname" }}
"""


@dataclass
class Account:
    """*config_path* leads to bridge's configuration for it; *crm* is the fake."""

    crm: HubSpot
    platforms: Platforms
    config_path: Path

    @property
    def environ(self) -> dict[str, str]:
        return {**self.platforms.environ, "HUBSPOT_SECRET": SECRET, "HUBSPOT_TOKEN": self.crm.bearer}

    @property
    def config(self) -> Config:
        return load(self.config_path, self.environ)

    def fill(self, many: int) -> None:
        for number in range(many):
            self.crm.create(email=f"person{number}@example.com", firstname=f"Ana {number}")

    def open_store(self) -> closing[SqliteStore]:
        lanes = {name: one.lanes for name, one in self.config.targets.items()}
        return closing(SqliteStore(self.config_path.parent / "bridge.db", lanes))

    def begin(self, share: float = 1.0) -> None:
        with self.open_store() as store:
            assert store.start_catch_up(catching_up.backfill("hubspot", "test", share, store.clock()))

    def progress(self) -> CatchUp:
        with self.open_store() as store:
            found = store.catch_up("hubspot", BACKFILL)
        assert found is not None
        return found

    def say_live(self, processes: Processes, number: int) -> float:
        """Have somebody new come to HubSpot; return how many s after the webhook the target has them."""
        email = f"live{number}@example.com"
        body = self.crm.webhook(self.crm.create(email=email, firstname="Live"))
        source = self.config.sources["hubspot"].source
        request = source.sign(InboundRequest("POST", URL, {"content-type": "application/json"}, body), utc_now())
        began = time.monotonic()
        with requests.Session() as session:
            session.trust_env = False
            headers = dict(request.headers)
            answer = session.post(f"{processes.url}/hooks/hubspot", data=body, headers=headers, timeout=20)
        assert answer.status_code == 200
        until(lambda: email in self.emails(), seconds=60, what="the live contact", every_s=0.005)
        return time.monotonic() - began

    def emails(self) -> set[str]:
        return {one["email"] for one in list(self.platforms.marketing.people())}


@contextmanager
def open_account(platforms: Platforms, folder: Path) -> Iterator[Account]:
    platforms.forget()
    crm = HubSpot()
    with serve(crm) as url:
        path = folder / "bridge.toml"
        path.write_text(TOML.format(hubspot=url, marketing=platforms.urls["marketing"]))
        yield Account(crm, platforms, path)


def run_and_kill(
    account: Account, many: int, kills: int, each: Callable[[Processes], None] = lambda processes: None
) -> Processes:
    """Backfill *many* contacts; kill the worker *kills* times on the way, and call *each* after each of them.

    Everybody whom HubSpot has by then is waited for at the target.
    """
    with start_processes(account.config_path, account.environ) as processes:
        account.begin()
        for number in range(1, kills + 1):
            until(lambda n=number: account.progress().seen >= n * many // (kills + 1), seconds=600, what="a part")  # type: ignore[misc]
            processes.kill("worker")
            processes.start("worker")
            each(processes)
        until(lambda: account.progress().state is Progress.DONE, seconds=1800, what="the end of the list")
        until(
            lambda: len(account.emails()) >= len(account.crm.records),
            seconds=1800,
            what="everybody at the target",
            every_s=0.2,
        )
    return processes
