"""How PostgreSQL answers as history grows: ``python -m bench listspg`` (10^6 rows) or ``listspg10m`` (10^7).

Databases of different sizes lie on one server with the settings of a small plan. They are filled inside it, as the
writers would have left them: indexes are made afterwards, and running totals counted from the facts. Then every
question of `bench.lists` is asked of all of them in turn; receipts are taken in; and a day of payloads is dropped,
of as many rows as the audit log has. The greatest takes some 12 GB in the temporary folder for a while.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg.sql import SQL

from bench import load
from bench.lists import (
    LANES,
    LIMIT,
    ROWS_A_CONTACT,
    ROWS_A_WEBHOOK,
    START,
    STEP_S,
    Question,
    at,
    questions,
    timed,
)
from bench.running import bridge, distinct
from bridge.model import Contact, FieldState, RecordKey, Version, iso
from bridge.store.codec import contact_json, search_terms, search_text, to_json
from bridge.store.looking import LATENCY_BOUNDS_MS
from bridge.store.migrations import postgres as schema
from bridge.store.postgres import PostgresStore, partitions
from bridge.store.protocol import NewInbound, Store
from tests.platforms import Platforms
from tests.postgres import PostgresServer

SIZES = (10_000, 1_000_000)
LARGE_SIZES = (10_000, 10_000_000)
ROUNDS = 24  # a plan is settled after some ten: five times as it comes, five times planned for its values
SETTLED = 8  # the last rounds, of which the best counts
BATCH, BATCHES = 50, 60  # receipts stored in one transaction
HTTP_WEBHOOKS, HTTP_TURNS = 1500, 3
PAYLOADS_KEPT, KEYS_KEPT = timedelta(days=30), timedelta(days=14)
PRUNED = date(2025, 11, 1)  # a day before all others
PLAN: Mapping[str, str | int] = {  # a server of 1 GB
    "shared_buffers": "256MB",
    "effective_cache_size": "768MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "1GB",
    "max_parallel_workers_per_gather": 1,
    "random_page_cost": "1.1",
}


def run(platforms: Platforms, folder: Path, sizes: Sequence[int] = SIZES) -> None:
    """Print how long everything takes at each of *sizes*, and the ratio of the greatest to the least."""
    shown = ", ".join(f"{name} {value}" for name, value in PLAN.items())
    print(f"lists on PostgreSQL: pages of {LIMIT}, in ms (aims: ratio 1.5, under 100 ms at a million rows)")
    print(f"  server: {shown}; fsync on")
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer(fsync=True, settings=PLAN))
        urls = write_all(server, sizes)
        sites = [Site(size, stack.enter_context(closing(store_of(size, url))), url) for size, url in urls.items()]
        width = 11 * len(sizes) + 8
        heading = "".join(f"{size:>11,}" for size in sizes) + f"{'ratio':>8}"
        print(f"  {'':44}{'elapsed':>{width}}{'of processors':>{width}}\n  {'':44}{heading * 2}")
        for name, ask in questions().items():
            print_row(name, measure(ask, sites, rounds=ROUNDS, settled=SETTLED))
        numbers = count()
        print_row(
            f"ingest: {BATCH} webhooks in a transaction",
            measure(partial(receive, numbers), sites, rounds=BATCHES, settled=BATCHES),
        )
        print_http_ingest(platforms, folder, sites)
        print_pruning(sites)


@dataclass(frozen=True)
class Site:
    size: int
    store: PostgresStore
    url: str

    def pid(self) -> int:
        """Return the server's process that the store speaks with."""
        with psycopg.connect(self.url) as connection:
            [(pid,)] = connection.execute(_SESSION, [session_name(self.size)]).fetchall()
        return int(pid)


_SESSION = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"


def session_name(size: int) -> str:
    return f"bench of {size}"


def store_of(size: int, url: str) -> PostgresStore:
    return PostgresStore(url, LANES, max_size=1, name=session_name(size))


def schedule_s(pid: int) -> float:
    """Return the processor time so far of a process of one thread, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure(ask: Question, sites: Sequence[Site], *, rounds: int, settled: int) -> list[tuple[float, float]]:
    """Return the least time in ms at each site, elapsed and of processors, in the last *settled* rounds.

    The sites take turns, and the least is what a machine takes that does nothing else meanwhile. Where others keep
    it busy, the time of processors tells more: this process's and that of the server's that answers it.
    """
    times: dict[int, list[tuple[float, float]]] = {site.size: [] for site in sites}
    for site in sites:
        ask(site.store, site.size)  # so that the site has a connection
    pids = {site.size: site.pid() for site in sites}
    for _ in range(rounds):
        for site in sites:
            before_s = schedule_s(pids[site.size]) + time.thread_time()
            started = time.perf_counter()
            ask(site.store, site.size)
            elapsed_s = time.perf_counter() - started
            spent_s = schedule_s(pids[site.size]) + time.thread_time() - before_s
            times[site.size].append((elapsed_s * 1000, spent_s * 1000))
    return [
        (min(elapsed for elapsed, _ in taken[-settled:]), min(spent for _, spent in taken[-settled:]))
        for taken in times.values()
    ]


def print_row(name: str, measured: Sequence[tuple[float, float]]) -> None:
    shown = ""
    for column in zip(*measured, strict=True):
        shown += "".join(f"{taken_ms:>11.2f}" for taken_ms in column) + f"{column[-1] / column[0]:>8.2f}"
    print(f"  {name:44}{shown}", flush=True)


def receive(numbers: Iterator[int], store: Store, size: int) -> object:
    return store.receive(new_receipts(BATCH, at(size), numbers))


def print_http_ingest(platforms: Platforms, folder: Path, sites: Sequence[Site]) -> None:
    """Send signed webhooks to a web process on each database in turn."""
    rates: dict[int, list[float]] = {site.size: [] for site in sites}
    for turn in range(HTTP_TURNS):
        for site in sites:
            with bridge(platforms, folder, "web", database_url=site.url) as (config, processes):
                wires = distinct(config, HTTP_WEBHOOKS, processes.port, first=turn * HTTP_WEBHOOKS)
                taken = load.run(processes.port, wires, connections=16)
            assert set(taken.statuses) == {200}, taken.statuses
            rates[site.size].append(taken.per_s)
    shown = ", ".join(f"{max(per_s):,.0f}/s at {size:,} rows" for size, per_s in rates.items())
    ratios = [first / last for first, last in zip(rates[sites[0].size], rates[sites[-1].size], strict=True)]
    print(
        f"  ingest over HTTP, 16 connections: {shown}; {statistics.median(ratios):.2f} times as long", flush=True
    )


def new_receipts(many: int, moment: datetime, numbers: Iterable[int]) -> list[NewInbound]:
    return [
        NewInbound(
            source="crm",
            received_at=moment + timedelta(milliseconds=number),
            method="POST",
            url="https://bridge.example/hooks/crm?token=1",
            headers={"content-type": "application/json"},
            body=to_json({"id": number, "email": f"person{number}@company.example", "note": "x" * 700}).encode(),
            event_keys=(f"event {number}",),
        )
        for number in islice(numbers, many)
    ]


def print_pruning(sites: Sequence[Site]) -> None:
    """Drop a day of as many payloads as the log has entries, while webhooks come in."""
    end = datetime(PRUNED.year, PRUNED.month, PRUNED.day, tzinfo=UTC) + timedelta(days=1)
    for site in sites:
        size = site.size
        with (
            psycopg.connect(site.url, autocommit=True) as connection,
            closing(PostgresStore(site.url, LANES)) as store,
        ):
            write_day(connection, PRUNED, size)
            before = disk_mb(connection)
            with receiving(site.store, at(size)) as waits_ms:
                started = time.perf_counter()
                pruned = store.prune(payloads_before=end, keys_before=end)
                taken_ms = (time.perf_counter() - started) * 1000
            freed = before - disk_mb(connection)
        print(
            f"  pruning a day of {size:,} payloads: {taken_ms:.0f} ms, {freed:,.0f} MB freed "
            f"(counted {pruned:,}); a webhook meanwhile took at most {max(waits_ms, default=0):.0f} ms"
        )


@contextmanager
def receiving(store: PostgresStore, moment: datetime) -> Iterator[list[float]]:
    """Store webhooks one by one; yield how long each took."""
    waits_ms: list[float] = []
    ended = threading.Event()
    numbers = count(10**9)

    def work() -> None:
        while not ended.is_set():
            waits_ms.append(timed(partial(store.receive, new_receipts(1, moment, numbers))) * 1000)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while len(waits_ms) < 5:
            time.sleep(0.01)
        waits_ms.clear()
        yield waits_ms
    finally:
        ended.set()
        thread.join()


def disk_mb(connection: psycopg.Connection[Any]) -> float:
    [(size,)] = connection.execute("SELECT pg_database_size(current_database()) / 1e6").fetchall()
    return float(size)


# --- writing ---------------------------------------------------------------------------------------------


def write_all(server: PostgresServer, sizes: Sequence[int]) -> dict[int, str]:
    """Write a database of each size; the server logs little meanwhile, and as usual afterwards."""
    server.execute("ALTER SYSTEM SET wal_level = minimal")
    server.execute("ALTER SYSTEM SET max_wal_senders = 0")
    server.stop()
    server.start()
    urls = {}
    for size in sizes:
        urls[size] = server.create_database(f"of_{size}")
        written_s = timed(partial(write, urls[size], size))
        with psycopg.connect(urls[size], autocommit=True) as connection:
            analyzed_s = timed(partial(connection.execute, "VACUUM (ANALYZE)"))
            print(
                f"  {size:>10,} rows: written in {written_s:.0f} s, vacuumed in {analyzed_s:.0f} s, "
                f"{disk_mb(connection):,.0f} MB",
                flush=True,
            )
    server.execute("ALTER SYSTEM RESET ALL")
    server.stop()
    server.start()
    server.execute("CHECKPOINT")
    return urls


def write(url: str, rows: int) -> None:
    """Write a database with so many *rows* in its audit log."""
    with psycopg.connect(url, autocommit=True) as connection:
        schema.migrate(connection)
        last = at(rows)
        partitions.make_days(connection, (last - PAYLOADS_KEPT).date(), last.date() + timedelta(days=1))
    with psycopg.connect(url) as connection:
        # No triggers: what they count is counted at the end. A table that is emptied and filled in one transaction
        # is not logged.
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("SET LOCAL maintenance_work_mem = '600MB'")
        with without_indexes(connection):
            connection.execute(SQL(f"TRUNCATE {', '.join(FILLED)}"))
            write_contacts(connection, rows // ROWS_A_CONTACT)
            values = {
                "rows": rows,
                "contacts": rows // ROWS_A_CONTACT,
                "webhooks": rows // ROWS_A_WEBHOOK,
                "payloads_from": iso(last - PAYLOADS_KEPT),
                "keys_from": iso(last - KEYS_KEPT),
                "minutes_from": iso(last - timedelta(days=3)),
            }
            for statement in (DELIVERIES, WEBHOOKS, ENTRIES, *PAYLOADS, *TOTALS, SOURCES):
                connection.execute(SQL(statement.format(**values)))
    with psycopg.connect(url, autocommit=True) as connection:
        schema.set_sequences(connection)


FILLED = ("contact", "search_term", "delivery", "inbound", "audit")


@contextmanager
def without_indexes(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Drop every index of what is filled, and make them at the end: at once, from sorted rows."""
    keys = connection.execute(_KEYS, [list(FILLED)]).fetchall()
    for table, name, _ in keys:
        connection.execute(SQL(f"ALTER TABLE {table} DROP CONSTRAINT {name}"))
    indexes = connection.execute(_INDEXES, [list(FILLED)]).fetchall()
    for name, _ in indexes:
        connection.execute(SQL(f"DROP INDEX {name}"))
    yield
    for table, name, definition in keys:
        connection.execute(SQL(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}"))
    for _, definition in indexes:
        connection.execute(SQL(definition))


_KEYS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE contype IN ('p', 'u') AND conrelid = ANY (%s::regclass[])
"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = ANY (%s)"


def write_contacts(connection: psycopg.Connection[Any], many: int) -> None:
    with tempfile.TemporaryFile() as terms, connection.cursor() as cursor:
        with cursor.copy(
            "COPY contact (id, source, source_id, data, search, erased, updated_at) FROM STDIN"
        ) as copy:
            lines = (_contact_line(number, terms) for number in range(1, many + 1))
            while part := "".join(islice(lines, 1000)):
                copy.write(part)
        terms.seek(0)
        with cursor.copy("COPY search_term (term, contact_id) FROM STDIN") as copy:
            while chunk := terms.read(1 << 20):
                copy.write(chunk)


def _contact_line(number: int, terms: IO[bytes]) -> str:
    contact = contact_of(number)
    text = search_text(contact)
    terms.write("".join(f"{term}\t{number}\n" for term in search_terms(text)).encode())
    quoted = text.replace("\\", "\\\\").replace("\n", "\\n")
    moment = iso(START + timedelta(seconds=number * STEP_S * ROWS_A_CONTACT))
    columns = (number, contact.key.source, contact.key.source_id, contact_json(contact), quoted, "f", moment)
    return "\t".join(map(str, columns)) + "\n"


def contact_of(number: int) -> Contact:
    """Return the contact that `bench.lists` has under this number."""
    first = {7: "Ana", 1: "Boris", 2: "Cleo"}.get(number % 20, f"Dora{number % 20}")
    last = "Zenith" if number % 50021 == 77 else f"Ash{number}"
    source = "old" if number <= 5 else "shop" if number % 50 == 0 else "crm"
    said = {
        "email": f"{first}.{last}@company{number % 500}.example".lower(),
        "phone": f"+4420{70_000_000 + number:08d}",
        "name": f"{first} {last}",
    }
    return Contact(
        RecordKey(source, str(number)), {name: FieldState(value, VERSION) for name, value in said.items()}
    )


VERSION = Version(datetime(2026, 1, 1, tzinfo=UTC), "e1")


def write_day(connection: psycopg.Connection[Any], day: date, many: int) -> None:
    """Write *many* payloads of one day, as a table that becomes the day's partition."""
    name = f"payload_{day:%Y%m%d}"
    with connection.transaction():
        connection.execute("SET LOCAL maintenance_work_mem = '600MB'")
        connection.execute(SQL(f"CREATE TABLE {name} (LIKE payload INCLUDING ALL EXCLUDING INDEXES)"))
        connection.execute(SQL(_DAY.format(name=name, day=day, many=many, body=hexed(DETAIL))))
        connection.execute(SQL(f"ALTER TABLE {name} ADD PRIMARY KEY (digest, day)"))
        connection.execute(SQL(f"CREATE INDEX ON {name} (created_at)"))
        connection.execute(
            SQL(
                f"ALTER TABLE payload ATTACH PARTITION {name}"
                f" FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}')"
            )
        )
    connection.execute(SQL(f"ANALYZE {name}"))


def hexed(detail: Mapping[str, Any]) -> str:
    """Return how a payload is written in SQL."""
    return rf"'\x{zlib.compress(to_json(detail).encode()).hex()}'::bytea"


BODY: Mapping[str, Any] = {"type": "changed", "data": {"id": "84007", "email": "a@b.example", "note": "x" * 700}}
DETAIL: Mapping[str, Any] = {
    "exchanges": [
        {"method": "POST", "path": "/contacts", "status": 200, "sent": {"name": "Ana"}, "got": {"id": 7}}
    ]
}
_DAY = """
INSERT INTO {name} (digest, day, created_at, body)
SELECT decode(md5('old' || n), 'hex'), '{day}',
  '{day}T00:00:00Z'::timestamptz + n % 86400 * interval '1 second', {body}
FROM generate_series(1, {many}) n
"""

MOMENT = f"'{iso(START)}'::timestamptz + {{seconds}} * interval '1 second'"
DELIVERIES = """
INSERT INTO delivery (target, source, source_id, slot, lane, state, reason, updated_at, desired, revision,
  accepted, accepted_opt_out, target_id, attempts, error, status, left_out, inbound_id)
SELECT t.target, c.source, c.source_id, c.id % 997, c.id % 2,
  CASE WHEN c.id % 19 = 9 THEN 'failed' WHEN c.id % 300 = 8 THEN 'opted_out' ELSE 'synced' END,
  'The target holds what the CRM says.', c.updated_at,
  '{{"create":true,"fields":{{"email":"ana@company.example"}},"gone":false,"modes":{{}},"opt_out":false}}', 1,
  '{{"email":"ana@company.example"}}', false, upper(left(t.target, 1)) || c.id, 0,
  CASE WHEN c.id % 19 = 9 THEN 'invalid' END, CASE WHEN c.id % 19 = 9 THEN 422 END, '{{}}', c.id
FROM contact c JOIN unnest(ARRAY['mail', 'sms', 'legacy']) t(target) ON t.target != 'legacy' OR c.id <= 5
"""
WEBHOOKS = f"""
INSERT INTO inbound (id, source, received_at, method, url, headers, digest, outcome, reason, events, secret_index,
  processed_at, repeats)
SELECT n, CASE n % 50 WHEN 0 THEN 'shop' ELSE 'crm' END, {MOMENT.format(seconds=f"n * {STEP_S * ROWS_A_WEBHOOK}")},
  'POST', 'https://bridge.example/hooks/crm', '{{{{}}}}', decode(md5('inbound' || n), 'hex'),
  CASE WHEN n % 41 = 5 THEN 'unreadable' WHEN n % 40 = 3 THEN 'ignored' ELSE 'processed' END, '', 1, 0,
  NULL, CASE WHEN n % 43 = 1 THEN 1 ELSE 0 END
FROM generate_series(1, {{webhooks}}::bigint) n
"""
ENTRIES = f"""
INSERT INTO audit (id, at, kind, outcome, reason, source, source_id, target, inbound_id, attempt, status, error,
  duration_ms, fields, digest)
SELECT n, {MOMENT.format(seconds=f"n * {STEP_S}")},
  CASE WHEN rare THEN 'target' WHEN pushed THEN 'delivery' ELSE 'contact' END,
  CASE WHEN rare THEN 'paused' WHEN error IS NOT NULL THEN error WHEN NOT pushed THEN 'changed'
    WHEN n % 3 = 0 THEN 'unchanged' ELSE 'updated' END,
  '', CASE WHEN contact <= 5 THEN 'old' WHEN contact % 50 = 0 THEN 'shop' ELSE 'crm' END, contact,
  CASE WHEN rare OR pushed THEN CASE WHEN n <= 100 THEN 'legacy' WHEN n % 2 = 1 THEN 'sms' ELSE 'mail' END END,
  n / {ROWS_A_WEBHOOK} + 1, CASE WHEN pushed THEN 1 END,
  CASE WHEN pushed THEN CASE error WHEN 'unavailable' THEN 503 WHEN 'invalid' THEN 422 ELSE 200 END END,
  error, CASE WHEN pushed THEN n % 400 END,
  CASE WHEN n % 5000 = 17 THEN '["vip"]' WHEN n % 3 > 0 THEN '["email"]' ELSE '["name","phone"]' END,
  CASE WHEN pushed THEN decode(md5('audit' || n), 'hex') END
FROM (
  SELECT n, n % 4 >= 2 AS pushed, n % 151 = 90 AS rare,
    -- The five contacts of the source that is no more have none but the oldest entries.
    CASE WHEN n <= 50 THEN 1 + n % 5 ELSE 6 + (n * 7919) % ({{contacts}} - 5) END AS contact,
    CASE WHEN n % 4 < 2 THEN NULL WHEN n % 100 = 6 THEN 'unavailable' WHEN n % 140 = 2 THEN 'invalid' END AS error
  FROM generate_series(1, {{rows}}::bigint) n
) counted
"""
PAYLOADS = (
    f"INSERT INTO payload SELECT digest, utc_day(received_at), received_at, {hexed(BODY)},"
    " 'https://bridge.example/hooks/crm?token=1', '{{\"content-type\":\"application/json\"}}'"
    " FROM inbound WHERE received_at >= '{payloads_from}'",
    f"INSERT INTO payload SELECT digest, utc_day(at), at, {hexed(DETAIL)}, NULL, NULL"
    " FROM audit WHERE digest IS NOT NULL AND at >= '{payloads_from}'",
    "INSERT INTO event_key SELECT decode(md5('event' || id), 'hex'), utc_day(received_at), id"
    " FROM inbound WHERE received_at >= '{keys_from}'",
)
_NO_NULLS = "coalesce(source, ''), coalesce(target, ''), coalesce(error, ''), coalesce(status, 0)"
_BUCKET = "floor(extract(epoch FROM {}) / {step})::bigint * {step}"
_SUMS = "count(*), count(attempt), coalesce(sum(duration_ms), 0)"
_BOUND = " ".join(f"WHEN duration_ms <= {bound} THEN {bound}" for bound in LATENCY_BOUNDS_MS)
TOTALS = (
    f"INSERT INTO activity_sum SELECT 3600, {_BUCKET.format('at', step=3600)}, kind, outcome, {_NO_NULLS}, {_SUMS}"
    " FROM audit GROUP BY 2, 3, 4, 5, 6, 7, 8",
    f"INSERT INTO activity_sum SELECT 60, {_BUCKET.format('at', step=60)}, kind, outcome, {_NO_NULLS}, {_SUMS}"
    " FROM audit WHERE at >= '{minutes_from}' GROUP BY 2, 3, 4, 5, 6, 7, 8",
    *(
        f"INSERT INTO activity_sum SELECT {step}, {_BUCKET.format('received_at', step=step)}, 'heard', 'heard',"
        f" source, '', '', 0, count(*), 0, 0 FROM inbound WHERE {kept} GROUP BY 2, 5"
        for step, kept in ((3600, "TRUE"), (60, "received_at >= '{minutes_from}'"))
    ),
    "INSERT INTO activity_sum SELECT 0, 0, kind, outcome, source, target, error, status, sum(n), sum(calls),"
    " sum(duration_ms) FROM activity_sum WHERE step = 3600 GROUP BY 3, 4, 5, 6, 7, 8",
    f"INSERT INTO latency_sum SELECT target, CASE {_BOUND} END, count(*), sum(duration_ms) FROM audit"
    " WHERE kind = 'delivery' AND attempt IS NOT NULL GROUP BY 1, 2",
    "INSERT INTO lag_sum SELECT target, 5000, n, n * 1000 FROM latency_sum WHERE bucket_ms = 50",
    "INSERT INTO tally_sum SELECT 'inbound', source, outcome, count(*) FROM inbound GROUP BY 2, 3",
    "INSERT INTO tally_sum SELECT 'delivery', target, state, count(*) FROM delivery GROUP BY 2, 3",
    "INSERT INTO target_push (target, last_success_at) SELECT target, max(at) FROM audit"
    " WHERE kind = 'delivery' AND error IS NULL GROUP BY target",
)
SOURCES = (
    "INSERT INTO source_state (source, last_inbound_at) SELECT source, max(updated_at) FROM contact GROUP BY 1"
)
