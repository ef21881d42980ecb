"""The store contract on a real PostgreSQL, and what only that store promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import count

import pytest

from bridge.store.postgres import PostgresStore
from tests.postgres import PostgresServer
from tests.store_contract import LANES, MakeStore, StoreContract
from tests.store_contract_looking import LookingContract


@pytest.fixture(scope="session")
def template(postgres_server: PostgresServer) -> str:
    with closing(PostgresStore(postgres_server.create_database("template_store"), LANES)) as store:
        store.migrate()
    return "template_store"


@pytest.fixture
def migrated_postgres_url(postgres_server: PostgresServer, template: str) -> Iterator[str]:
    name = f"store_{next(_numbers)}"
    yield postgres_server.create_database(name, template)
    postgres_server.drop_database(name)


_numbers = count()


@pytest.fixture
def opened(migrated_postgres_url: str) -> Iterator[MakeStore]:
    stores: list[PostgresStore] = []

    def make() -> PostgresStore:
        store = PostgresStore(migrated_postgres_url, LANES)
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def make_store(self, opened: MakeStore) -> MakeStore:
        return opened


class TestPostgresLooking(LookingContract):
    @pytest.fixture
    def make_store(self, opened: MakeStore) -> MakeStore:
        return opened

    @pytest.fixture
    def small_budget(self, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr("bridge.store.sql.listing.BUDGET", 10)
        monkeypatch.setattr("bridge.store.sql.listing.MOST_HITS", 3)
        monkeypatch.setattr("bridge.store.sql.overviews.NEWEST", 5)
        return 10
