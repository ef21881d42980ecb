"""The store contract on a real PostgreSQL, and what only that store promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
import pytest

from bridge.model import RecordKey
from bridge.store.postgres import PostgresStore
from bridge.store.protocol import Filter
from bridge.store.sql.database import Db
from bridge.store.sql.overviews import FIRST_DUE
from tests.databases import Emptied
from tests.postgres import PostgresServer
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


# --- what frequent questions read ------------------------------------------------------------------------

MANY = 10_000
HOUR = "timestamptz '2026-03-02T10:00:00Z' + n * interval '1 second'"

# Nearly everything is of one kind, so that what is rare has to be found by an index.
FILLED: Sequence[LiteralString] = (
    "INSERT INTO contact (source, source_id, data, search, erased, updated_at)"
    " SELECT 'crm', n::text, '{}', 'person' || n || '@example.com', false, " + HOUR + " FROM {many} n",
    "INSERT INTO search_term (term, contact_id) SELECT 'person' || source_id || '@example.com', id FROM contact",
    "INSERT INTO delivery (target, source, source_id, slot, lane, state, reason, updated_at, desired, revision,"
    " accepted_opt_out, target_id, due_at, attempts, error, left_out)"
    " SELECT 'mail', 'crm', n::text, n % 1024, 0,"
    " CASE WHEN n % 5 = 0 THEN 'pending' WHEN n % 1000 = 1 THEN 'failed' ELSE 'synced' END, '', " + HOUR + ","
    ' \'{"fields": {"email": "a@example.com"}, "modes": {}, "opt_out": false, "create": true, "gone": false}\', 1,'
    " false, CASE WHEN n % 5 <> 0 THEN 'T' || n END, CASE WHEN n % 5 = 0 THEN " + HOUR + " END, 0,"
    " CASE WHEN n % 1000 = 1 THEN 'invalid' END, '{}' FROM {many} n",
    "INSERT INTO inbound (source, received_at, method, url, headers, digest, outcome, reason, events,"
    " secret_index) SELECT CASE WHEN n % 2000 = 0 THEN 'rare' ELSE 'crm' END, "
    + HOUR
    + ", 'POST', '/hooks', '{}',"
    " int8send(n::bigint), CASE WHEN n > 9990 THEN 'accepted' ELSE 'processed' END, '', 1, 0 FROM {many} n",
    "INSERT INTO audit (at, kind, outcome, reason, source, source_id, target, inbound_id, status, error, fields)"
    " SELECT " + HOUR + ", CASE WHEN n % 2000 = 0 THEN 'login' ELSE 'delivery' END, 'updated', '',"
    " CASE WHEN n % 2000 = 1 THEN 'rare' ELSE 'crm' END, (n % 3000)::text, 'mail', n,"
    " CASE WHEN n % 2000 = 2 THEN 404 ELSE 200 END, CASE WHEN n % 2000 = 2 THEN 'invalid' END, '[]' FROM {many} n",
)

PAGE = 20


class Counting(PostgresStore):
    """Says how many rows the last verb read."""

    rows = 0

    def _read(self, look: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        return super()._read(self._counted, look, args, named)

    def _write(self, change: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        return super()._write(self._counted, change, args, named)

    def _write_lazily(self, change: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        return super()._write_lazily(self._counted, change, args, named)

    def _counted(self, db: Db, verb: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        before = rows_read(db)
        result = verb(db, *args, **named)
        self.rows = rows_read(db) - before
        return result


def rows_read(db: Db) -> int:
    """Return how many rows this session read lately."""
    row = db.execute("SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) AS n FROM pg_stat_xact_user_tables")
    found = row.fetchone()
    return int(found["n"] or 0) if found else 0


@pytest.fixture(scope="module")
def filled(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Counting]:
    url = postgres_server.create_database("filled", migrated_template)
    with psycopg.connect(url) as connection:
        for statement in FILLED:
            connection.execute(statement.replace("{many}", f"generate_series(1, {MANY})").encode())
        connection.execute("ANALYZE")
    with closing(Counting(url, {"mail": 1})) as store:
        yield store
    postgres_server.drop_database("filled")


LATER = datetime(2026, 3, 3, tzinfo=UTC)
QUESTIONS: Mapping[str, Callable[[Counting], Any]] = {
    "next due": lambda store: store.next_due("deliver:mail:0"),
    "due lanes": lambda store: store.due_lanes(LATER),
    "work": lambda store: store.work("crm", LATER, PAGE),
    "a contact": lambda store: store.contacts([RecordKey("crm", "777")]),
    "deliveries of a contact": lambda store: store.deliveries_of(RecordKey("crm", "777")),
    "deliveries": lambda store: store.delivery_page(Filter(), None, PAGE),
    "deliveries of a target": lambda store: store.delivery_page(Filter(target="mail"), None, PAGE),
    "deliveries that failed": lambda store: store.delivery_page(Filter(state="failed"), None, PAGE),
    "deliveries with an error": lambda store: store.delivery_page(Filter(error="invalid"), None, PAGE),
    "deliveries of a person": lambda store: store.delivery_page(Filter(q="person777@"), None, PAGE),
    "contacts": lambda store: store.contact_page(Filter(), None, PAGE),
    "a contact by its address": lambda store: store.contact_page(Filter(q="person777@"), None, PAGE),
    "requests": lambda store: store.inbound_page(Filter(), None, PAGE),
    "requests of a source": lambda store: store.inbound_page(Filter(source="rare"), None, PAGE),
    "requests that wait": lambda store: store.inbound_page(Filter(outcome="accepted"), None, PAGE),
    "facts": lambda store: store.audit_page(Filter(), None, PAGE),
    "facts of a contact": lambda store: store.audit_page(Filter(source="crm", source_id="777"), None, PAGE),
    "facts of a source": lambda store: store.audit_page(Filter(source="rare"), None, PAGE),
    "facts of a target": lambda store: store.audit_page(Filter(target="mail"), None, PAGE),
    "facts of a kind": lambda store: store.audit_page(Filter(kind="login"), None, PAGE),
    "facts with an error": lambda store: store.audit_page(Filter(error="invalid"), None, PAGE),
    "facts of a request": lambda store: store.audit_page(Filter(inbound_id=777), None, PAGE),
    "a request": lambda store: store.inbound(777),
    "its neighbours": lambda store: store.inbound_neighbours(Filter(source="crm"), 777),
    "a fact": lambda store: store.audit_entry(777),
    "an id": lambda store: store.lookup("777"),
    "queues": lambda store: store.queues(LATER),
    "health": lambda store: store.health(LATER),
}


@pytest.mark.parametrize("asked", QUESTIONS)
def test_frequent_questions_read_little_more_than_they_answer(
    filled: Counting, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.store.sql.listing.BUDGET", MANY // 2)  # as if there were millions
    # Often enough that the server plans it once for any values.
    for _ in range(8):
        QUESTIONS[asked](filled)
        assert filled.rows <= 5 * PAGE + (FIRST_DUE if asked == "queues" else 0)


def test_claiming_reads_no_more_the_more_are_due(filled: Counting) -> None:
    ticket = filled.acquire("deliver:mail:0", "test", LATER)
    for number in range(12):
        claimed = filled.claim(ticket, LATER)
        assert claimed is not None
        assert claimed.key == RecordKey("crm", str(5 * (number + 1)))
        assert filled.rows <= 5 * PAGE
