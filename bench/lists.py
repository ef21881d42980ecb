"""How lists, searches and overviews answer as history grows: ``python -m bench lists`` or ``lists10m``.

Databases of 10,000, a million and (lists10m) ten million audit rows are written in a temporary folder (about 6 GB
for a moment) as the first version of bridge would have left them, and then migrated, which is timed as well. Every
question is asked of all of them in turn.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from sqlite_utils import Database

from bridge.model import RecordKey, iso
from bridge.store.codec import cursor_of
from bridge.store.migrations.sqlite import MIGRATIONS
from bridge.store.protocol import Filter, Page, Store
from bridge.store.sqlite import SqliteStore

SIZES = (10_000, 1_000_000, 10_000_000)
LANES = {"sms": 2, "mail": 2, "legacy": 1}
START = datetime(2026, 1, 1, tzinfo=UTC)
STEP_S = 3  # from one entry to the next: ten million are a year
ROWS_A_CONTACT = 10
ROWS_A_WEBHOOK = 4
ROUNDS = 15
LIMIT = 50

Question = Callable[[Store, int], object]  # with the number of rows in its audit log


def run(folder: Path, sizes: Sequence[int] = SIZES) -> None:
    """Print how long every question takes at each of *sizes*, and the ratio of the greatest to the least."""
    print(f"lists: pages of {LIMIT}, the best of {ROUNDS} in ms (aims: ratio 1.3, under 100 ms at a million rows)")
    stores = {}
    try:
        for size in sizes:
            path = folder / f"{size}.db"
            written_s = timed(partial(write, path, size))
            migrated_s = timed(partial(migrate, path))
            print(
                f"  {size:>10,} rows: written in {written_s:.0f} s, migrated in {migrated_s:.0f} s, "
                f"{path.stat().st_size / 1e6:,.0f} MB"
            )
            stores[size] = SqliteStore(path, LANES)
        heading = "".join(f"{size:>12,}" for size in sizes)
        print(f"  {'':44}{heading}       ratio")
        for name, ask in questions().items():
            print_times(name, measure(ask, stores))
    finally:
        for store in stores.values():
            store.close()


def measure(ask: Question, stores: Mapping[int, Store]) -> dict[int, tuple[float, int]]:
    """Return the least time in ms and the rows of the answer at each size.

    The sizes take turns, and the least is what a machine takes that does nothing else meanwhile.
    """
    times: dict[int, list[float]] = {size: [] for size in stores}
    found: dict[int, int] = {}
    for number in range(ROUNDS + 1):
        for size, store in stores.items():
            started = time.perf_counter()
            answer = ask(store, size)
            if number:  # the first time warms up
                times[size].append((time.perf_counter() - started) * 1000)
            found[size] = len(answer.items) if isinstance(answer, Page) else 0
    return {size: (min(taken), found[size]) for size, taken in times.items()}


def print_times(name: str, measured: Mapping[int, tuple[float, int]]) -> None:
    (first_ms, first_rows), *_, (last_ms, last_rows) = measured.values()
    shown = "".join(f"{taken_ms:>12.2f}" for taken_ms, _ in measured.values())
    rows = "" if first_rows == last_rows else f"  (rows: {', '.join(str(rows) for _, rows in measured.values())})"
    print(f"  {name:44}{shown}{last_ms / first_ms:>12.2f}{rows}", flush=True)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- questions -------------------------------------------------------------------------------------------


def questions() -> dict[str, Question]:
    """Return what is asked, by its name."""
    return {
        **{f"audit: {name}": audit(narrowed) for name, narrowed in AUDIT_FILTERS.items()},
        **{f"audit: q {name}": audit(Filter(q=text)) for name, text in SEARCHES.items()},
        "audit: q one person, target sms": audit(Filter(q="ana.ash7@", target="sms")),
        "audit: one contact": audit(Filter(source="crm", source_id="7")),
        "audit: one webhook": lambda store, size: store.audit_page(Filter(inbound_id=size // 8), None, LIMIT),
        "audit: page in the middle": audit(Filter(), deep=True),
        "audit: error, page in the middle": audit(Filter(error="unavailable"), deep=True),
        "audit: six hours of long ago": six_hours,
        **{f"facets: {name}": facets(narrowed) for name, narrowed in FACETS.items()},
        "histogram: last day": lambda store, size: store.histogram(Filter(), at(size) - DAY, at(size), 60),
        "histogram: last month": lambda store, size: store.histogram(Filter(), at(size) - 30 * DAY, at(size), 60),
        "activity: last day": lambda store, size: store.activity(at(size) - DAY, at(size)),
        **{f"contacts: q {name}": contacts(Filter(q=text)) for name, text in SEARCHES.items()},
        "contacts: all": contacts(Filter()),
        "contacts: a small source": contacts(Filter(source="old")),
        "contact page: contact, deliveries, history": contact_page,
        **{f"webhooks: {name}": webhooks(narrowed) for name, narrowed in INBOUND_FILTERS.items()},
        "webhooks: the ones beside one": lambda store, size: store.inbound_neighbours(SHOWN, size // 8),
        **{f"deliveries: {name}": deliveries(narrowed) for name, narrowed in DELIVERY_FILTERS.items()},
        "lookup: a target's id": lambda store, _: store.lookup("M7"),
        "overview: health and queues": lambda store, size: (store.health(at(size)), store.queues(at(size))),
    }


def audit(narrowed: Filter, *, deep: bool = False) -> Question:
    return lambda store, size: store.audit_page(narrowed, place(size // 2) if deep else None, LIMIT)


def contacts(narrowed: Filter) -> Question:
    return lambda store, _: store.contact_page(narrowed, None, LIMIT)


def webhooks(narrowed: Filter) -> Question:
    return lambda store, _: store.inbound_page(narrowed, None, LIMIT)


def deliveries(narrowed: Filter) -> Question:
    return lambda store, _: store.delivery_page(narrowed, None, LIMIT)


def facets(narrowed: Filter) -> Question:
    return lambda store, _: store.facets(narrowed)


def six_hours(store: Store, size: int) -> object:
    since = at(size // 3)
    return store.audit_page(Filter(since=since, until=since + timedelta(hours=6), target="sms"), None, LIMIT)


def contact_page(store: Store, _: int) -> object:
    key = RecordKey("crm", "7")
    history = Filter(source=key.source, source_id=key.source_id)
    return store.contacts([key]), store.deliveries_of(key), store.audit_page(history, None, LIMIT)


def at(row: int) -> datetime:
    return START + timedelta(seconds=row * STEP_S)


def place(row: int) -> str:
    return cursor_of(iso(at(row)), row)


DAY = timedelta(days=1)
SHOWN = Filter(source="crm")
AUDIT_FILTERS = {
    "all": Filter(),
    "source, frequent": Filter(source="crm"),
    "source, 2 %": Filter(source="shop"),
    "source, only long ago": Filter(source="old"),
    "target": Filter(target="sms"),
    "target, only long ago": Filter(target="legacy"),
    "outcome, frequent": Filter(outcome="changed"),
    "outcome, rare": Filter(outcome="invalid"),
    "error": Filter(error="unavailable"),
    "error, rare": Filter(error="invalid"),
    "status, frequent": Filter(status=200),
    "status 503": Filter(status=503),
    "kind, frequent": Filter(kind="delivery"),
    "kind, rare": Filter(kind="target"),
    "field, frequent": Filter(field="email"),
    "field, one in 5,000": Filter(field="vip"),
    "error and target": Filter(error="unavailable", target="sms"),
    "source, target and outcome": Filter(source="shop", target="mail", outcome="updated"),
    "what there never was": Filter(source="shop", target="sms", outcome="invalid"),
}
SEARCHES = {
    "one person": "ana.ash7@",
    "a phone number": "+44 20 7000 0123",
    "the end of a phone number": "0000123",
    "a rare word": "zenith",
    "a frequent first name": "ana",
    "a letter": "b",
    "a word that nobody has": "nobody",
}
FACETS = {
    "all": Filter(),
    "target": Filter(target="sms"),
    "field": Filter(field="email"),
    "q": Filter(q="ana.ash7@"),
}
INBOUND_FILTERS = {
    "all": Filter(),
    "source, 2 %": Filter(source="shop"),
    "outcome, rare": Filter(outcome="unreadable"),
    "source and outcome": Filter(source="crm", outcome="ignored"),
    "that came again": Filter(outcome="duplicate"),
    "one contact's": Filter(source="crm", source_id="7"),
    "q one person": Filter(q="ana.ash7@"),
    "q a frequent first name": Filter(q="ana"),
}
DELIVERY_FILTERS = {
    "all": Filter(),
    "target": Filter(target="mail"),
    "target, only long ago": Filter(target="legacy"),
    "state": Filter(state="failed"),
    "target and state": Filter(target="mail", state="failed"),
    "error": Filter(error="invalid"),
    "q one person": Filter(q="ana.ash7@"),
    "q a frequent first name": Filter(q="ana"),
}


# --- writing ---------------------------------------------------------------------------------------------


def write(path: Path, rows: int) -> None:
    """Write a database with so many *rows* in its audit log, of the first version of its schema."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        db = Database(connection, execute_plugins=False)
        MIGRATIONS.apply(db, stop_before="0002_looking")
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
            " AND tbl_name IN ('audit', 'inbound', 'delivery', 'contact')"
        ).fetchall()
        connection.execute("BEGIN")
        for index in indexes:
            connection.execute(f"DROP INDEX {index['name']}")
        values = {
            "rows": rows,
            "contacts": rows // ROWS_A_CONTACT,
            "webhooks": rows // ROWS_A_WEBHOOK,
            "start": int(START.timestamp()),
            "step": STEP_S,
        }
        for statement in (CONTACTS, DELIVERIES, WEBHOOKS, ENTRIES, SOURCES):
            connection.execute(statement, values)
        for index in indexes:  # at once, from sorted rows
            connection.execute(index["sql"])
        connection.execute("COMMIT")


def migrate(path: Path) -> None:
    fast: dict[str, str | int] = {
        "synchronous": "OFF",
        "journal_mode": "OFF",
        "cache_size": -400_000,
        "secure_delete": "OFF",
    }
    with closing(SqliteStore(path, LANES, pragmas=fast)) as store:
        assert "0002_looking" in store.migrate()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


COUNTED = "WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {many})"
MOMENT = "strftime('%Y-%m-%dT%H:%M:%S', :start + {seconds}, 'unixepoch') || '.000000Z'"
NAMES = """
  CASE n % 20 WHEN 7 THEN 'Ana' WHEN 1 THEN 'Boris' WHEN 2 THEN 'Cleo' ELSE 'Dora' || (n % 20) END AS first,
  CASE WHEN n % 50021 = 77 THEN 'Zenith' ELSE 'Ash' || n END AS last
"""
# A version of a field is when it changed, and by which event.
CONTACTS = f"""
INSERT INTO contact (id, source, source_id, data, search, erased, updated_at)
{COUNTED.format(many=":contacts")}
SELECT n, CASE WHEN n <= 5 THEN 'old' WHEN n % 50 = 0 THEN 'shop' ELSE 'crm' END, n,
  json_object('fields', json_object(
    'email', json_object('value', lower(first) || '.' || lower(last) || '@company' || (n % 500) || '.example',
      'version', json_array('2026-01-01T00:00:00.000000Z', 'e1')),
    'phone', json_object('value', printf('+4420%08d', 70000000 + n),
      'version', json_array('2026-01-01T00:00:00.000000Z', 'e1')),
    'name', json_object('value', first || ' ' || last,
      'version', json_array('2026-01-01T00:00:00.000000Z', 'e1'))
  )), '', 0, {MOMENT.format(seconds="n * :step * 10")}
FROM (SELECT n, {NAMES} FROM counted)
"""
DELIVERIES = """
INSERT INTO delivery (target, source, source_id, slot, lane, state, reason, updated_at, desired, revision,
  accepted_opt_out, target_id, attempts, error, status, left_out)
SELECT t.value, c.source, c.source_id, c.id % 997, 0,
  CASE WHEN c.id % 19 = 9 THEN 'failed' WHEN c.id % 300 = 8 THEN 'opted_out' ELSE 'synced' END,
  'The target holds what the CRM says.', c.updated_at, '{"fields":{},"modes":{},"opt_out":false,'
  || '"create":true,"gone":false}', 1, 0, upper(substr(t.value, 1, 1)) || c.id, 0,
  CASE WHEN c.id % 19 = 9 THEN 'invalid' END, CASE WHEN c.id % 19 = 9 THEN 422 END, '{}'
FROM contact c JOIN json_each('["mail", "sms", "legacy"]') t ON t.value != 'legacy' OR c.id <= 5
"""
WEBHOOKS = f"""
INSERT INTO inbound (id, source, received_at, method, url, headers, digest, outcome, reason, events, secret_index,
  processed_at, repeats)
{COUNTED.format(many=":webhooks")}
SELECT n, CASE n % 50 WHEN 0 THEN 'shop' ELSE 'crm' END, {MOMENT.format(seconds=f"n * :step * {ROWS_A_WEBHOOK}")},
  'POST', 'https://bridge.example/hooks/crm', '{{"content-type":"application/json"}}', printf('%016d', n),
  CASE WHEN n % 41 = 5 THEN 'unreadable' WHEN n % 40 = 3 THEN 'ignored' ELSE 'processed' END, '', 1, 0,
  NULL, n % 43 = 1
FROM counted
"""
ENTRIES = f"""
INSERT INTO audit (id, at, kind, outcome, reason, source, source_id, target, inbound_id, attempt, status, error,
  duration_ms, fields)
{COUNTED.format(many=":rows")}
SELECT n, {MOMENT.format(seconds="n * :step")},
  CASE WHEN rare THEN 'target' WHEN pushed THEN 'delivery' ELSE 'contact' END,
  CASE WHEN rare THEN 'paused' WHEN error IS NOT NULL THEN error WHEN NOT pushed THEN 'changed'
    WHEN n % 3 = 0 THEN 'unchanged' ELSE 'updated' END,
  '', CASE WHEN contact <= 5 THEN 'old' WHEN contact % 50 = 0 THEN 'shop' ELSE 'crm' END, contact,
  CASE WHEN rare OR pushed THEN CASE WHEN n <= 100 THEN 'legacy' WHEN n % 2 THEN 'sms' ELSE 'mail' END END,
  n / {ROWS_A_WEBHOOK} + 1, CASE WHEN pushed THEN 1 END,
  CASE WHEN pushed THEN CASE error WHEN 'unavailable' THEN 503 WHEN 'invalid' THEN 422 ELSE 200 END END,
  error, CASE WHEN pushed THEN n % 400 END,
  CASE WHEN n % 5000 = 17 THEN '["vip"]' WHEN n % 3 THEN '["email"]' ELSE '["name","phone"]' END
FROM (
  SELECT n, n % 4 >= 2 AS pushed, n % 151 = 90 AS rare,
    -- The five contacts of the source that is no more have none but the oldest entries.
    CASE WHEN n <= 50 THEN 1 + n % 5 ELSE 6 + (n * 7919) % (:contacts - 5) END AS contact,
    CASE WHEN n % 4 < 2 THEN NULL WHEN n % 100 = 6 THEN 'unavailable' WHEN n % 140 = 2 THEN 'invalid' END AS error
  FROM counted
)
"""
SOURCES = """
INSERT INTO source_state (source, last_inbound_at)
SELECT source, max(updated_at) FROM contact WHERE :rows AND :webhooks AND :start AND :step AND :contacts
GROUP BY source
"""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place_for_files:
        run(Path(place_for_files), [int(size) for size in sys.argv[1:]] or SIZES)
