"""What somebody would try who wants one webhook, or one answer of a platform, to hold up everything else.

PostgreSQL refuses some of what SQLite takes, so both databases are tried and must say the same.
"""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from procrastinate import App
from psycopg import RawCursor, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow

from bridge.config import Config, load
from bridge.database import Database, PostgresDatabase
from bridge.engine.patience import CONNECT, PatientConnector, open_pool
from bridge.errors import StoreUnavailable
from bridge.model import Receipt, State, utc_now
from bridge.outbound import Api
from bridge.pipeline.delivering import LONGEST_ID
from bridge.store.postgres import PostgresStore, connections
from bridge.store.postgres import database as statements
from bridge.store.postgres.connections import Connections
from bridge.store.postgres.database import PostgresDb
from bridge.store.protocol import Filter
from bridge.store.sql import processing
from bridge.targets.base import Job
from tests.platforms import Platforms, open_bench, person, serve_platforms, signed, webhook
from tests.postgres import PostgresServer
from tests.store_contract import NOW, inbound
from tests.web_site import open_site

PATIENCE_S = 30.0  # for a condition on a machine that has much else to do
# What repeats itself would be compressed until an index takes it.
TOO_LONG = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=9000))


@pytest.fixture(scope="module")
def platforms() -> Iterator[Platforms]:
    with serve_platforms() as served:
        yield served


@pytest.fixture
def config(platforms: Platforms, tmp_path: Path) -> Config:
    platforms.forget()
    return load(platforms.write_config(tmp_path, settle_s=1), platforms.environ)


# --- answers of a platform -------------------------------------------------------------------------------


class Longwinded:
    """A platform that calls contacts by *target_id*; *links* where it says so before its first write."""

    def __init__(self, target_id: str, *, links: bool) -> None:
        self.target_id = target_id
        self.links = links

    def deliver(self, api: Api, job: Job) -> Receipt:
        if self.links:
            job.link(self.target_id)
        return Receipt("created", self.target_id, dict(job.desired.fields))

    remove = deliver

    def check(self, api: Api) -> str:
        return "It answers."


@pytest.mark.parametrize("links", [True, False])
def test_an_id_that_no_index_takes_fails_its_own_delivery_only(
    config: Config, database: Database, tmp_path: Path, links: bool
) -> None:
    longwinded = replace(config.targets["sms"], target=Longwinded(TOO_LONG, links=links))
    usual = replace(config.targets["inbox"], target=Longwinded(TOO_LONG[:LONGEST_ID], links=links))
    config = replace(config, targets={**config.targets, "sms": longwinded, "inbox": usual})
    with open_bench(tmp_path, config, database) as bench:
        bench.receive(signed(config, webhook("changed", person(1), utc_now()), "m1"))
        bench.settle()
        found = {one.target: one for one in bench.store.delivery_page(Filter(), None, 10).items}
    assert (found["sms"].state, found["sms"].error, found["sms"].target_id) == (State.FAILED, "nonsense", None)
    assert f"more than {LONGEST_ID} characters" in found["sms"].reason
    assert {one.state for name, one in found.items() if name != "sms"} == {State.SYNCED}
    assert found["inbox"].target_id == TOO_LONG[:LONGEST_ID]


# --- a database that only lets itself be read ------------------------------------------------------------


@pytest.fixture
def end_read_only(postgres_server: PostgresServer, postgres_url: str) -> Iterator[Callable[[], None]]:
    """Have sessions only read, as providers do when the disk is full, unless they begin after this was called."""
    name = conninfo_to_dict(postgres_url)["dbname"]
    named = sql.Identifier(str(name))
    postgres_server.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(named))

    def end() -> None:
        postgres_server.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(named))

    yield end


def test_a_session_that_began_read_only_ends_with_its_first_write(
    postgres_url: str, end_read_only: Callable[[], None]
) -> None:
    with closing(Connections(postgres_url, max_size=1)) as few:
        with pytest.raises(StoreUnavailable, match="only lets itself be read"):
            few.write(make_table)
        end_read_only()
        with suppress(StoreUnavailable):  # the pool may have opened the next session before that
            few.write(make_table)
        few.write(make_table)


def make_table(db: PostgresDb) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS made ()")


def test_an_engine_that_began_read_only_goes_on_by_itself(
    postgres_url: str, end_read_only: Callable[[], None]
) -> None:
    told: list[Exception] = []

    def trouble(error: Exception) -> None:
        told.append(error)
        end_read_only()

    async def insist() -> None:
        connector = PatientConnector(trouble)
        async with open_pool(postgres_url, CONNECT) as pool, App(connector=connector).open_async(pool):
            async with asyncio.timeout(PATIENCE_S):
                await connector.execute_query_async("CREATE TABLE made ()")

    with ThreadPoolExecutor(1) as threads:  # in this thread a browser of another test may have a loop of its own
        threads.submit(asyncio.run, insist()).result()
    assert [type(one) for one in told] == [psycopg.errors.ReadOnlySqlTransaction]


# --- requests that are as large as they may be -----------------------------------------------------------


def test_of_large_requests_no_more_are_read_than_fit_in_memory(
    migrated_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "BODIES_MAX_BYTES", 50_000)
    read: list[int] = []

    class Counted(RawCursor[DictRow]):
        def execute(self, query: Any, *values: Any, **how: Any) -> Counted:
            super().execute(query, *values, **how)
            if b"p.body," in query:
                read.append(self.rowcount)
            return self

    monkeypatch.setattr(statements, "RawCursor", Counted)
    with closing(PostgresStore(migrated_postgres_url, {})) as store:
        bodies = [random.Random(n).randbytes(100 if n < 10 else 10_000) for n in range(60)]
        store.receive([inbound(f"key {n}", body=body) for n, body in enumerate(bodies)])
        taken = store.work("crm", NOW, 50)
        assert ([one.body for one in taken.inbounds], taken.more) == (bodies[:15], True)
        assert sum(read) <= len(taken.inbounds) + 1
        monkeypatch.setattr(processing, "BODIES_MAX_BYTES", 10_000_000)
        assert [one.body for one in store.work("crm", NOW, 50).inbounds] == bodies[:50]
        everything = store.work("crm", NOW, 60)
        assert ([one.body for one in everything.inbounds], everything.more) == (bodies, False)
        assert [one.body for one in store.work("crm", NOW, 3).inbounds] == bodies[:3]


# --- a table that somebody keeps to himself --------------------------------------------------------------


def test_whoever_asks_hears_what_keeps_the_database_busy(
    tmp_path: Path, migrated_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = connections._READ.replace("lock_timeout = '10s'", "lock_timeout = '20ms'")
    monkeypatch.setattr(connections, "_READ", soon)
    with (
        open_site(tmp_path, database=PostgresDatabase(migrated_postgres_url)) as site,
        psycopg.connect(migrated_postgres_url) as somebody,
    ):
        somebody.execute("LOCK TABLE delivery IN ACCESS EXCLUSIVE MODE")
        ready = site.session.get(f"{site.url}/readyz", timeout=PATIENCE_S)
        assert ready.status_code == 503
        [check] = ready.json()["checks"]
        assert "Another session keeps the database busy" in check["detail"]
        assert site.send("shop", {"type": "contact.updated", "data": {"id": "1"}}).status_code == 200
        assert site.api("GET", "/deliveries").status_code == 503
        somebody.rollback()
        assert site.api("GET", "/deliveries").status_code == 200


# --- an address that is none -----------------------------------------------------------------------------


def test_a_name_that_no_host_can_have_is_told_without_the_password() -> None:
    with closing(Connections(f"postgresql://app:S3cret@{'a' * 70}.invalid/bridge")) as nowhere:
        with pytest.raises(StoreUnavailable, match="DATABASE_URL cannot be read") as caught:
            nowhere.read(make_table)
        assert "S3cret" not in str(caught.value)
