"""The commands about sources: their types, backfills and registrations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bridge import process
from bridge.cli import main
from bridge.config import Environment, SourceConnection, load
from bridge.errors import ConfigError, SourceUnavailable
from bridge.model import BACKFILL, REGISTRATION, Progress, RecordKey, Secret, Version, utc_now
from bridge.outbound import Api
from bridge.pipeline import registering
from bridge.sources import SOURCES
from bridge.sources.base import Listed, Read, Registration
from bridge.store.sqlite import SqliteStore
from bridge.targets import TARGETS
from tests.platforms import open_bench, serve_platforms


@dataclass
class Crm:
    """A CRM with a list of contacts and a list of subscriptions."""

    people: int = 0
    hooks: list[str] = field(default_factory=list)
    lasts: timedelta | None = None
    down: bool = False

    def page(self, api: Api, fields: Sequence[str], after: str | None, since: datetime | None) -> Listed:
        first = int(after or 0)
        records = []
        for number in range(first, min(first + 10, self.people)):
            key = RecordKey("shop", str(84000 + number))
            said = {"email": f"person{number}@example.com", "phone": f"+5255123400{number:02d}", "name": "Ana"}
            records.append(Read(key, key, said, Version(datetime(2026, 3, 1, tzinfo=UTC), "list")))
        following = first + 10
        return Listed(records, str(following) if following < self.people else None, self.people)

    def register(self, api: Api, url: str, fields: Sequence[str], now: datetime) -> Registration:
        if self.down:
            raise SourceUnavailable("The CRM is away.")
        done = [] if url in self.hooks else ["Created a webhook."]
        self.hooks = sorted({*self.hooks, url})
        secrets = {"secrets": Secret("made-up")} if done else {}
        return Registration(done, secrets, now + self.lasts if self.lasts else None)

    def remove(self, api: Api, url: str) -> Sequence[str]:
        self.hooks.remove(url)
        return ["Removed a webhook."]


@pytest.fixture
def crm(monkeypatch: pytest.MonkeyPatch) -> Crm:
    """Have the type of the shop list and register at a CRM in this process."""
    made = Crm()
    shop = replace(
        SOURCES["standard_webhooks"],
        lister=lambda name, settings: made,
        registrar=lambda name, settings: made,
        read_base_url=lambda settings: "http://127.0.0.1:9",
    )
    monkeypatch.setitem(SOURCES, "standard_webhooks", shop)
    return made


@pytest.fixture
def folder(crm: Crm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with serve_platforms() as platforms:
        platforms.write_config(tmp_path)
        for name, value in platforms.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/bridge.db")
        monkeypatch.setenv("BRIDGE_CONFIG", str(tmp_path / "bridge.toml"))
        monkeypatch.setenv("SECRET_KEY", "a-secret-key-for-tests")
        with closing(SqliteStore(tmp_path / "bridge.db", {})) as store:
            store.migrate()
        yield tmp_path


def bridge(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def as_json(*arguments: str, code: int = 0) -> Any:
    return json.loads(bridge(*arguments, "--json", code=code))


# --- types -----------------------------------------------------------------------------------------------


def test_every_type_of_source_says_what_it_can_do() -> None:
    told = {one["type"]: one for one in as_json("sources")}
    assert set(told) == set(SOURCES)
    for name, one in told.items():
        kind = SOURCES[name]
        assert (one["title"], one["proof"], one["lists"]) == (
            kind.title,
            kind.proof.value,
            kind.lister is not None,
        )
        assert all(key["help"] for key in one["keys"]), name
    shown = bridge("sources")
    assert all(f"{name} " in shown for name in SOURCES)
    assert "needed" in bridge("sources", "pipedrive")


def test_every_type_of_target_says_what_it_can_do() -> None:
    told = {one["type"]: one for one in as_json("targets")}
    assert set(told) == set(TARGETS)
    assert told["artu"]["can_opt_out"] is TARGETS["artu"].can_opt_out
    assert "mobile" in bridge("targets", "sakari")
    assert all(name in bridge("targets") for name in TARGETS)


# --- backfill --------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_change_and_changes_nothing(folder: Path, crm: Crm) -> None:
    crm.people = 25
    told = as_json("backfill", "shop", "--dry-run")
    assert (told["state"], told["seen"], told["changed"], told["total"]) == ("done", 25, 25, 25)
    assert told["effects"]["marketing"] == {"create": 25}
    shown = bridge("backfill", "shop", "--dry-run")
    assert "done: 25 of 25 contacts read, 25 of them news to bridge." in shown
    assert "this was a dry run" in shown
    with closing(SqliteStore(folder / "bridge.db", {})) as store:
        assert store.catch_up("shop", BACKFILL) is None
        assert store.contact_page(*_all()).items == []


def _all() -> tuple[Any, None, int]:
    from bridge.store.protocol import Filter

    return Filter(), None, 10


def test_a_backfill_begins_asks_goes_on_and_is_stopped(folder: Path, crm: Crm) -> None:
    crm.people = 60
    assert as_json("backfill", "shop", "--no-wait")["state"] == "running"
    with open_bench(folder, load(folder / "bridge.toml")) as bench:
        bench.settle()
        told = as_json("backfill", "shop", code=1)
        assert told["state"] == "asking"
        assert "would be changed at" in told["reason"]
        assert "--yes" in bridge("backfill", "shop", code=1)
        assert as_json("backfill", "shop", "--yes", "--no-wait")["state"] == "running"
        assert as_json("backfill", "shop", "--stop")["state"] == "stopped"
        assert "No backfill of shop is under way." in bridge("backfill", "shop", "--stop", code=1)
        assert as_json("backfill", "shop", "--yes", "--no-wait")["seen"] == 0
        bench.settle()
        done = bench.store.catch_up("shop", BACKFILL)
        assert done is not None
        assert (done.state, done.seen) == (Progress.DONE, 60)


def test_where_there_is_no_list_it_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(SOURCES["standard_webhooks"], lister=lambda name, settings: None)
    monkeypatch.setitem(SOURCES, "standard_webhooks", bare)
    assert "No credential is configured" in bridge("backfill", "shop", code=1)
    monkeypatch.setitem(SOURCES, "standard_webhooks", replace(bare, lister=None, registrar=None))
    assert "has no call that lists contacts" in bridge("backfill", "shop", code=1)
    assert "docs/sources/standard_webhooks.md" in bridge("register", "shop", code=1)
    assert "There is no source crm" in bridge("backfill", "crm", code=2)


# --- register --------------------------------------------------------------------------------------------


def test_registering_twice_makes_one_and_removing_takes_it_away(folder: Path, crm: Crm) -> None:
    made = as_json("register", "shop")
    assert (made["done"], made["secrets"]) == (["Created a webhook."], {"secrets": "made-up"})
    assert crm.hooks == ["https://bridge.example.com/hooks/shop"]
    assert "Nothing was to be done." in bridge("register", "shop")
    assert "Removed a webhook." in bridge("register", "shop", "--remove")
    assert crm.hooks == []


def test_a_secret_url_stays_the_same_until_it_is_revoked(folder: Path, crm: Crm) -> None:
    path = folder / "bridge.toml"
    path.write_text(
        path.read_text().replace('type = "standard_webhooks"', 'type = "standard_webhooks"\nrequire_token = true')
    )
    bridge("register", "shop")
    bridge("register", "shop")
    [first] = crm.hooks
    assert first.startswith("https://bridge.example.com/hooks/shop/")
    bridge("url", "shop", "--revoke")
    bridge("register", "shop")
    assert len(crm.hooks) == 2


def test_what_ends_by_itself_is_renewed_in_time(folder: Path, crm: Crm) -> None:
    crm.lasts = timedelta(days=6)
    assert as_json("register", "shop")["expires_at"] is not None
    with open_bench(folder, load(folder / "bridge.toml")) as bench:
        renew = {chore.name: chore.do for chore in bench.worker._chores()}["renew"]
        bench.worker.address = process.address_of(bench.config, Environment.read(), bench.store)
        crm.hooks.clear()
        assert not renew()
        assert crm.hooks == [], "there is time"
        bench.ahead[0] += timedelta(days=3, minutes=1)
        crm.down = True
        renew()
        failed = bench.store.catch_up("shop", REGISTRATION)
        assert failed is not None
        assert (failed.reason, failed.tries) == ("The CRM is away.", 1)
        crm.down = False
        bench.ahead[0] += timedelta(minutes=1)
        renew()
        assert crm.hooks == ["https://bridge.example.com/hooks/shop"]
        renewed = bench.store.catch_up("shop", REGISTRATION)
        assert renewed is not None
        assert renewed.since is not None
        assert renewed.since > utc_now() + timedelta(days=8)
        assert (renewed.reason, renewed.tries) == ("", 0)
        registering.forget("shop", bench.store, bench.now())
        crm.hooks.clear()
        bench.ahead[0] += timedelta(days=30)
        renew()
        assert crm.hooks == []


def test_what_cannot_be_renewed_keeps_nobody_elses_from_being_renewed(folder: Path, crm: Crm) -> None:
    crm.lasts = timedelta(days=6)
    bridge("register", "shop")
    with open_bench(folder, load(folder / "bridge.toml")) as bench:
        shop = bench.config.sources["shop"]
        bench.worker.config = replace(bench.config, sources={"broken": replace(shop, name="broken"), "shop": shop})
        known = bench.store.catch_up("shop", REGISTRATION)
        assert known is not None
        bench.store.start_catch_up(replace(known, source="broken"))

        def address(connection: SourceConnection) -> str:
            if connection.name == "broken":
                raise ConfigError(process.NO_SECRET_KEY)
            return "https://bridge.example.com/again"

        bench.worker.address = address
        bench.ahead[0] += timedelta(days=4)
        bench.worker._renew()
        assert "https://bridge.example.com/again" in crm.hooks
        broken = bench.store.catch_up("broken", REGISTRATION)
        assert broken is not None
        assert broken.reason == "SECRET_KEY: it is not set, and tokens are signed with it."


def test_only_what_leads_to_the_usual_url_is_renewed(folder: Path, crm: Crm) -> None:
    crm.lasts = timedelta(days=6)
    assert "Register it again before" in bridge("register", "shop", "--url", "https://elsewhere.example.com/x")
    with closing(SqliteStore(folder / "bridge.db", {})) as store:
        assert store.catch_up("shop", REGISTRATION) is None
    assert "The worker renews it in time" in bridge("register", "shop")
