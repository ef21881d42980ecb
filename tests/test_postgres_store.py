"""The store contract on a real PostgreSQL, and what only that store promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.store.postgres import PostgresStore
from tests.databases import Emptied
from tests.store_contract import LANES, MakeStore, StoreContract
from tests.store_contract_looking import LookingContract


@pytest.fixture
def opened(emptied_postgres: Emptied) -> Iterator[MakeStore]:
    url = emptied_postgres().url
    stores: list[PostgresStore] = []

    def make() -> PostgresStore:
        store = PostgresStore(url, LANES)
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
