"""The schema of the PostgreSQL store, and the steps that lead to it.

It is the SQLite schema in another dialect, with three differences:

- What is kept for a while only (``payload``, ``event_key``) is partitioned by day, so that a day goes whole.
- Running totals (``tally``, ``activity``, ``latency``, ``lag``, ``bulk_tally``) are views of two tables each:
  writers append to ``<name>_delta``, where nobody waits for anybody, and `bridge.store.postgres.folding` adds
  that up in ``<name>_sum``. ``<name>_parts`` gives the rows of both as they are.
- Indexes that a list is read by end with ``id``, which SQLite adds by itself.

**Steps** go forward only, each in a transaction of its own, under one lock. The version before goes on running
while they are taken. So a change of something that it uses takes two releases: the first one's step *expands*
(adds what is new, beside the old), a later one's *contracts* (takes away what nothing uses any more) and says
``breaking``. A version that meets steps it does not know goes on working, unless one of them is breaking.

**Procrastinate**, which does the background work, brings its own schema: the first step takes it whole, from
the version that is installed, and remembers in ``meta`` up to which of its migration files that reaches. A
later version brings further files (``sql/migrations`` in its package). To upgrade to it, each becomes a step
here: it runs the file if its name is behind the remembered one, and remembers it; a file with ``_pre_`` in its
name expands and goes into the release with the new version, one with ``_post_`` contracts and goes, as
breaking, into the release after it. `QUEUE_SCHEMA` names the last file known here, and a test compares it with
what is installed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procrastinate.schema import SchemaManager
from psycopg import Connection
from psycopg.rows import tuple_row

from bridge.errors import StoreUnavailable

OLDEST_SERVER = 13  # with which Procrastinate works, too
QUEUE_SCHEMA = "03.04.00_50_post_add_retry_failed_job_procedure"

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('bridge migrate', 0))"
_STEP_LOCK_TIMEOUT = "10s"  # a step that cannot get a table soon lets those go on who queue behind it


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    take: Callable[[Connection[Any]], None]
    breaking: bool = False  # takes away what an older version uses


@dataclass(frozen=True, slots=True)
class Standing:
    """How the schema of a database compares with the one that this version of bridge knows."""

    missing: Sequence[str]
    newer: Sequence[str]  # steps that are not known here
    broken_by: Sequence[str]  # those of them with which this version cannot work


def migrate(connection: Connection[Any], steps: Sequence[Step] | None = None) -> list[str]:
    """Take the steps that are missing; return their names.

    *connection* is in no transaction. Who comes second waits, and finds nothing to do.

    Raises:
        StoreUnavailable: the server is too old, or the database has steps with which this version cannot work.
    """
    _require_server(connection)
    known = STEPS if steps is None else steps
    taken: list[str] = []
    while (step := _take_next(connection, known)) is not None:
        taken.append(step)
    return taken


def _require_server(connection: Connection[Any]) -> None:
    version = connection.info.server_version // 10_000
    if version < OLDEST_SERVER:
        raise StoreUnavailable(
            f"The server is PostgreSQL {version}; bridge needs {OLDEST_SERVER} or newer. Upgrade the server."
        )


def _take_next(connection: Connection[Any], known: Sequence[Step]) -> str | None:
    with connection.transaction():
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SET LOCAL lock_timeout = 0")
        connection.execute(_LOCK)
        connection.execute(_STEPS_TABLE)
        found = standing(connection, known)
        _refuse_newer(found)
        if not found.missing:
            return None
        step = next(one for one in known if one.name == found.missing[0])
        connection.execute(f"SET LOCAL lock_timeout = '{_STEP_LOCK_TIMEOUT}'")
        step.take(connection)
        connection.execute(
            "INSERT INTO bridge_migrations (name, breaking) VALUES (%s, %s)", (step.name, step.breaking)
        )
        return step.name


def check(connection: Connection[Any], steps: Sequence[Step] | None = None) -> None:
    """Make sure that this version of bridge can work with the schema.

    Raises:
        StoreUnavailable: it cannot; the message says what to do.
    """
    found = standing(connection, STEPS if steps is None else steps)
    _refuse_newer(found)
    if found.missing:
        raise StoreUnavailable(
            f"The database is not up to date (it lacks {', '.join(found.missing)}). Run: bridge migrate"
        )


def standing(connection: Connection[Any], known: Sequence[Step]) -> Standing:
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute("SELECT to_regclass('bridge_migrations') IS NOT NULL")
        applied: dict[str, bool] = {}
        if cursor.fetchall() == [(True,)]:
            applied = dict(cursor.execute("SELECT name, breaking FROM bridge_migrations ORDER BY name").fetchall())
    names = [step.name for step in known]
    newer = [name for name in applied if name not in names]
    return Standing(
        missing=[name for name in names if name not in applied],
        newer=newer,
        broken_by=[name for name in newer if applied[name]],
    )


def _refuse_newer(found: Standing) -> None:
    if found.broken_by:
        raise StoreUnavailable(
            f"The database was changed by a newer version of bridge (it has {', '.join(found.broken_by)}), and "
            "this version cannot work with it. Run the newer version, or restore a backup from before the upgrade "
            "and run: bridge migrate"
        )


def set_sequences(connection: Connection[Any]) -> None:
    """Have new rows numbered behind those that are there, after rows were copied with their ids."""
    for table in _NUMBERED:
        connection.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), coalesce(max(id), 0) + 1, false) FROM {table}"  # noqa: S608
        )


_NUMBERED = ("inbound", "contact", "delivery", "audit", "refusal", "bulk")


# --- steps -----------------------------------------------------------------------------------------------


def _first(connection: Connection[Any]) -> None:
    """Create everything."""
    for script in (_FUNCTIONS, _TABLES, _totals(), _INDEXES, _TRIGGERS):
        _create(connection, script)
    # The key of all digests. Without it nobody can tell from a fact whether a guessed payload was the one.
    _remember(connection, "salt", secrets.token_bytes(32))
    connection.execute(SchemaManager.get_schema())
    connection.execute(_QUEUE_TUNING)
    _remember(connection, "queue_schema", max(queue_files()).encode())


def _create(connection: Connection[Any], script: str) -> None:
    # Texts sort by their bytes, as SQLite's do, whatever the database's locale: order is part of the contract.
    connection.execute(script.replace(" TEXT", ' TEXT COLLATE "C"').encode())


def _remember(connection: Connection[Any], name: str, value: bytes) -> None:
    connection.execute("INSERT INTO meta (name, value) VALUES (%s, %s)", (name, value))


def queue_files() -> Collection[str]:
    """Return the names of the migration files of the installed Procrastinate; they sort in the order to run."""
    return [path.stem for path in Path(SchemaManager.get_migrations_path()).glob("*.sql")]


def _catching_up(connection: Connection[Any]) -> None:
    """Add how far the lists of CRMs were gone through, and what of it may wait for what comes live.

    The index of before stays: an older version, which may still run, claims by it.
    """
    connection.execute("ALTER TABLE delivery ADD COLUMN low BOOLEAN NOT NULL DEFAULT false")
    connection.execute(
        "CREATE INDEX delivery_due_by_rank ON delivery (target, lane, low, due_at)"
        " WHERE state IN ('pending', 'retrying')"
    )
    _create(connection, _CATCH_UP)


_CATCH_UP = """
CREATE TABLE catch_up (
  source TEXT NOT NULL,
  kind TEXT NOT NULL,        -- 'backfill' or 'reconcile'
  run TEXT NOT NULL,         -- which one of that kind: a new one has another
  state TEXT NOT NULL,       -- 'running', 'asking', 'stopped' or 'done'
  reason TEXT NOT NULL,
  since TIMESTAMPTZ,         -- only what was changed from then on; NULL: everybody
  after TEXT,                -- the place in the CRM's list
  due_at TIMESTAMPTZ,        -- when the next page is read
  started_at TIMESTAMPTZ NOT NULL,
  updated_at TIMESTAMPTZ NOT NULL,
  by TEXT NOT NULL,
  share DOUBLE PRECISION NOT NULL,  -- of contacts that may be changed before somebody is asked, from 0 to 1
  seen BIGINT NOT NULL,
  changed BIGINT NOT NULL,
  missed BIGINT NOT NULL,    -- changes that no webhook had announced
  unread BIGINT NOT NULL,    -- of those seen, of whom nothing was learnt
  total BIGINT,
  tries INTEGER NOT NULL,
  effects TEXT NOT NULL,     -- JSON: target -> what would come of it -> how many contacts
  PRIMARY KEY (source, kind)
)
"""


STEPS = (Step("0001_first", _first), Step("0002_catching_up", _catching_up))

# Its rows come and go by the second, and a table of dead ones makes every fetch slow.
_QUEUE_TUNING = """
ALTER TABLE procrastinate_jobs SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE procrastinate_events SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
"""

_STEPS_TABLE = """
CREATE TABLE IF NOT EXISTS bridge_migrations (
  name TEXT COLLATE "C" PRIMARY KEY,
  applied_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  breaking BOOLEAN NOT NULL
)
"""

_FUNCTIONS = """
-- The day of a partition. An expression of it alone, so that the planner sees which partitions come into question.
CREATE FUNCTION utc_day(moment TIMESTAMPTZ) RETURNS DATE LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS 'SELECT (moment AT TIME ZONE ''UTC'')::date';
"""

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BYTEA NOT NULL);

CREATE TABLE inbound (
  id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  source TEXT NOT NULL,
  received_at TIMESTAMPTZ NOT NULL,
  method TEXT NOT NULL,
  url TEXT NOT NULL,                     -- without its query
  headers TEXT NOT NULL,                 -- '{}'
  digest BYTEA NOT NULL,                 -- of its payload, which may be gone
  outcome TEXT NOT NULL,                 -- 'accepted' means: to be processed
  reason TEXT NOT NULL,
  events INTEGER NOT NULL,
  event_types TEXT NOT NULL DEFAULT '[]',  -- JSON: what the CRM calls what happened
  secret_index INTEGER NOT NULL,
  signed_at TIMESTAMPTZ,
  processed_at TIMESTAMPTZ,
  repeats INTEGER NOT NULL DEFAULT 0,
  -- They may name a person, and days of payloads are dropped without a look at this table.
  CONSTRAINT query_and_headers_go_with_the_payload CHECK (headers = '{}' AND strpos(url, '?') = 0)
);

CREATE TABLE event_key (
  hash BYTEA NOT NULL,                   -- 16 bytes, keyed
  day DATE NOT NULL,                     -- of its inbound's receipt, in UTC
  inbound_id BIGINT NOT NULL,
  PRIMARY KEY (hash, day)
) PARTITION BY RANGE (day);
CREATE TABLE event_key_default PARTITION OF event_key DEFAULT;

CREATE TABLE payload (
  digest BYTEA NOT NULL,
  day DATE NOT NULL CHECK (day = utc_day(created_at)),
  created_at TIMESTAMPTZ NOT NULL,
  body BYTEA NOT NULL,                   -- zlib
  url TEXT,                              -- of an inbound: with its query
  headers TEXT,                          -- of an inbound: JSON
  PRIMARY KEY (digest, day)
) PARTITION BY RANGE (day);
ALTER TABLE payload ALTER COLUMN body SET STORAGE EXTERNAL;  -- it is compressed already
CREATE TABLE payload_default PARTITION OF payload DEFAULT;

CREATE TABLE contact (
  id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  source TEXT NOT NULL,
  source_id TEXT NOT NULL,
  data TEXT NOT NULL,                    -- JSON
  search TEXT NOT NULL,
  erased BOOLEAN NOT NULL,
  read_due TIMESTAMPTZ,                  -- when to read it from the CRM
  replay_at TIMESTAMPTZ,                 -- to be decided again: a person asked for it, or the rules changed
  asked INTEGER NOT NULL DEFAULT 0,      -- 1: a person did; 2: of some of its deliveries only (bulk_open)
  updated_at TIMESTAMPTZ NOT NULL,
  UNIQUE (source, source_id)
);

-- Where each word of a contact begins, made from contact.search alone.
CREATE TABLE search_term (
  term TEXT NOT NULL,
  contact_id BIGINT NOT NULL,
  PRIMARY KEY (term, contact_id)
);

CREATE TABLE delivery (
  id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  target TEXT NOT NULL,
  source TEXT NOT NULL,
  source_id TEXT NOT NULL,
  slot INTEGER NOT NULL,
  lane INTEGER NOT NULL,                 -- slot % lanes of the target
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  updated_at TIMESTAMPTZ NOT NULL,
  desired TEXT,                          -- JSON
  revision BIGINT NOT NULL,
  accepted TEXT,                         -- JSON
  accepted_opt_out BOOLEAN NOT NULL,
  target_id TEXT,
  due_at TIMESTAMPTZ,
  attempts INTEGER NOT NULL,
  error TEXT,
  status INTEGER,
  unsure_since TIMESTAMPTZ,
  left_out TEXT NOT NULL,                -- JSON
  wanted_at TIMESTAMPTZ,
  attempted TEXT,                        -- JSON: what a push may have written whose outcome was not heard
  inbound_id BIGINT,
  bulk_id BIGINT,
  bulk_open BOOLEAN NOT NULL DEFAULT false,  -- not decided again yet
  UNIQUE (target, source, source_id)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02,
  autovacuum_vacuum_cost_delay = 0);

CREATE TABLE audit (
  id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  at TIMESTAMPTZ NOT NULL,
  kind TEXT NOT NULL,
  outcome TEXT NOT NULL,
  reason TEXT NOT NULL,
  source TEXT,
  source_id TEXT,
  target TEXT,
  inbound_id BIGINT,
  attempt INTEGER,
  status INTEGER,
  error TEXT,
  duration_ms BIGINT,
  fields TEXT NOT NULL,                  -- JSON
  digest BYTEA                           -- of its detail, which may be gone
);

CREATE TABLE lane (
  name TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  fence BIGINT NOT NULL,
  taken_at TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 50, {busy});

CREATE TABLE lane_count (target TEXT PRIMARY KEY, lanes INTEGER NOT NULL);

CREATE TABLE quota (
  target TEXT PRIMARY KEY,
  tokens DOUBLE PRECISION,               -- null: a full bucket
  filled_at TIMESTAMPTZ,
  closed_until TIMESTAMPTZ,
  rate_per_s DOUBLE PRECISION,
  burst INTEGER
) WITH (fillfactor = 50, {busy});

CREATE TABLE target_status (
  target TEXT PRIMARY KEY,
  mode TEXT NOT NULL DEFAULT 'open',
  reason TEXT NOT NULL DEFAULT '',
  since TIMESTAMPTZ,
  by TEXT NOT NULL DEFAULT '',
  probe_at TIMESTAMPTZ,
  refusals INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE access_token (
  target TEXT PRIMARY KEY,
  sealed BYTEA,                          -- null: the first one was asked for
  use_until TIMESTAMPTZ,
  renewed_by TIMESTAMPTZ                 -- the moment by which whoever asked for another has it
);

CREATE TABLE target_push (
  target TEXT PRIMARY KEY,
  last_success_at TIMESTAMPTZ,
  last_error_at TIMESTAMPTZ,
  last_error TEXT NOT NULL DEFAULT '',
  last_error_reason TEXT NOT NULL DEFAULT ''
) WITH (fillfactor = 50, {busy});

CREATE TABLE source_state (
  source TEXT PRIMARY KEY,
  account TEXT,
  last_inbound_at TIMESTAMPTZ,
  refused BIGINT NOT NULL DEFAULT 0,
  last_refused_at TIMESTAMPTZ
) WITH (fillfactor = 50, {busy});

-- The rules that were last in force, to see when they are others.
CREATE TABLE route_rules (
  source TEXT NOT NULL,
  target TEXT NOT NULL,
  digest TEXT NOT NULL,                  -- '': a change was begun and not ended
  PRIMARY KEY (source, target)
);

CREATE TABLE source_reads (
  source TEXT PRIMARY KEY,
  fields TEXT NOT NULL                   -- JSON: the names that were asked of the CRM
);

CREATE TABLE refusal (
  id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  source TEXT NOT NULL,
  at TIMESTAMPTZ NOT NULL,
  reason TEXT NOT NULL,
  size_bytes BIGINT NOT NULL
);

CREATE TABLE beat (
  role TEXT NOT NULL,
  owner TEXT NOT NULL,
  seen_at TIMESTAMPTZ NOT NULL,
  PRIMARY KEY (role, owner)
) WITH (fillfactor = 50, {busy});

CREATE TABLE url_token (
  source TEXT NOT NULL,
  token_id TEXT NOT NULL,
  created_at TIMESTAMPTZ NOT NULL,
  revoked_at TIMESTAMPTZ,
  PRIMARY KEY (source, token_id)
);

-- Retries of many deliveries. What a live one has in hand is marked in delivery, and was before as told here.
CREATE TABLE bulk (
  id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
  at TIMESTAMPTZ NOT NULL,
  by TEXT NOT NULL,
  what TEXT NOT NULL,
  cancelled BOOLEAN NOT NULL DEFAULT false,
  total BIGINT NOT NULL DEFAULT 0,
  ended_at TIMESTAMPTZ,                  -- when the last of its deliveries so far came to rest
  ended_by TEXT NOT NULL DEFAULT ''
) WITH (fillfactor = 50, {busy});

CREATE TABLE bulk_item (
  delivery_id BIGINT PRIMARY KEY,
  bulk_id BIGINT NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  error TEXT,
  status INTEGER,
  attempts INTEGER NOT NULL,
  revision BIGINT NOT NULL,
  marked BOOLEAN NOT NULL                -- the replay of its contact was asked for by this retry
);

CREATE TABLE person (
  name TEXT PRIMARY KEY,
  role TEXT NOT NULL,
  password_hash TEXT NOT NULL,
  epoch INTEGER NOT NULL DEFAULT 0,
  created_at TIMESTAMPTZ NOT NULL,
  last_seen_at TIMESTAMPTZ
);

CREATE TABLE login_link (
  link_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  expires_at TIMESTAMPTZ NOT NULL
);
"""
# Few rows that change all the time: they are cleaned up by their number, not by their share.
_BUSY = (
    "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = {dead}, autovacuum_vacuum_cost_delay = 0,"
    " autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = {dead}"
)
_TABLES = _TABLES.replace("{busy}", _BUSY.format(dead=1000))


@dataclass(frozen=True, slots=True)
class _Total:
    """What is counted, by what."""

    name: str
    keys: str
    sums: tuple[str, ...]

    @property
    def ddl(self) -> str:
        names = ", ".join(column.split()[0] for column in self.keys.split(","))
        columns = ", ".join(f"{column.strip()} NOT NULL" for column in self.keys.split(","))
        numbers = ", ".join(f"{number} BIGINT NOT NULL" for number in self.sums)
        every = f"{names}, {', '.join(self.sums)}"
        added = ", ".join(f"sum({number})::bigint AS {number}" for number in self.sums)
        name = self.name
        return f"""
CREATE TABLE {name}_sum ({columns}, {numbers}, PRIMARY KEY ({names})) WITH (fillfactor = 70, {_BUSY_SUM});
CREATE TABLE {name}_delta ({columns}, {numbers}) WITH ({_BUSY_DELTA});
CREATE VIEW {name}_parts AS SELECT {every} FROM {name}_sum UNION ALL SELECT {every} FROM {name}_delta;
CREATE VIEW {name} AS SELECT {names}, {added} FROM {name}_parts GROUP BY {names};
"""  # noqa: S608


_BUSY_SUM = _BUSY.format(dead=5000)
_BUSY_DELTA = _BUSY.format(dead=10_000)


def _totals() -> str:
    return "".join(
        total.ddl
        for total in (
            # How many rows are in each state. kind: 'inbound' or 'delivery'; name: the source or the target.
            _Total("tally", "kind TEXT, name TEXT, state TEXT", ("n",)),
            # Running totals of the audit log. step: seconds, 60 or 3600, or 0 for all time, with bucket 0; bucket:
            # when it begins, in Unix time. The empty text and 0 mean: none.
            _Total(
                "activity",
                "step INTEGER, bucket BIGINT, kind TEXT, outcome TEXT, source TEXT, target TEXT, error TEXT,"
                " status INTEGER",
                ("n", "calls", "duration_ms"),
            ),
            # How long pushes took, and contacts were behind: so many of at most bucket_ms and more than the bound
            # before.
            _Total("latency", "target TEXT, bucket_ms INTEGER", ("n", "total_ms")),
            _Total("lag", "target TEXT, bucket_ms INTEGER", ("n", "total_ms")),
            # In which state the deliveries of a bulk retry came to rest.
            _Total("bulk_tally", "bulk_id BIGINT, state TEXT", ("n",)),
        )
    )


_INDEXES = """
CREATE INDEX inbound_by_time ON inbound (received_at, id);
CREATE INDEX inbound_by_source ON inbound (source, received_at, id);
CREATE INDEX inbound_by_outcome ON inbound (outcome, received_at, id);
CREATE INDEX inbound_queued ON inbound (source, id) WHERE outcome = 'accepted';
CREATE INDEX inbound_repeated ON inbound (received_at, id) WHERE repeats > 0;
-- By their payload only those are looked for that need it still, or (on SQLite) have more that is to go with it.
CREATE INDEX inbound_by_payload ON inbound (digest) WHERE outcome = 'accepted';
CREATE INDEX inbound_to_bare ON inbound (digest) WHERE headers != '{}' OR strpos(url, '?') > 0;

CREATE INDEX payload_by_age ON payload (created_at);
CREATE INDEX event_key_by_age ON event_key (inbound_id);

CREATE INDEX contact_by_time ON contact (updated_at, id);
CREATE INDEX contact_by_source ON contact (source, updated_at, id);
CREATE INDEX contact_replay ON contact (source, replay_at) WHERE replay_at IS NOT NULL;
CREATE INDEX contact_read ON contact (source, read_due) WHERE read_due IS NOT NULL;

CREATE INDEX delivery_due ON delivery (target, lane, due_at) WHERE state IN ('pending', 'retrying');
CREATE INDEX delivery_sending ON delivery (target, lane) WHERE state = 'sending';
CREATE INDEX delivery_held ON delivery (target) WHERE state = 'held';
CREATE INDEX delivery_by_time ON delivery (updated_at, id);
CREATE INDEX delivery_by_state ON delivery (state, updated_at, id);
CREATE INDEX delivery_by_contact ON delivery (source, source_id);
CREATE INDEX delivery_by_error ON delivery (error, updated_at, id) WHERE error IS NOT NULL;
CREATE INDEX delivery_by_target_id ON delivery (target_id) WHERE target_id IS NOT NULL;
CREATE UNIQUE INDEX delivery_link ON delivery (target, source, target_id)
  WHERE target_id IS NOT NULL AND state != 'removed';
-- Not of those that are pending: most pass through that state at once, and would be entered and struck out.
CREATE INDEX delivery_behind ON delivery (target, wanted_at)
  WHERE wanted_at IS NOT NULL AND state IN ('retrying', 'held');
-- Without the reason: a platform's can be longer than an entry of an index may be.
CREATE INDEX delivery_failing ON delivery (target, state, error, status, updated_at)
  WHERE state IN ('failed', 'ambiguous');
CREATE INDEX delivery_bulk ON delivery (bulk_id, bulk_open, state) WHERE bulk_id IS NOT NULL;
CREATE INDEX bulk_item_by_bulk ON bulk_item (bulk_id);

CREATE INDEX audit_by_time ON audit (at, id);
CREATE INDEX audit_by_contact ON audit (source, source_id, at, id);
CREATE INDEX audit_by_inbound ON audit (inbound_id) WHERE inbound_id IS NOT NULL;
CREATE INDEX audit_by_source ON audit (source, at, id);
CREATE INDEX audit_by_target ON audit (target, at, id) WHERE target IS NOT NULL;
CREATE INDEX audit_by_outcome ON audit (outcome, at, id);
CREATE INDEX audit_by_error ON audit (error, at, id) WHERE error IS NOT NULL;
-- Most entries are of these kinds or have these statuses: whoever looks for them need not look far.
CREATE INDEX audit_by_kind ON audit (kind, at, id) WHERE kind NOT IN ('contact', 'delivery');
CREATE INDEX audit_by_status ON audit (status, at, id) WHERE status >= 300;

CREATE INDEX refusal_by_source ON refusal (source, id);
"""

_TRIGGERS = """
CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% are append-only', TG_ARGV[0] USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER audit_never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
  FOR EACH STATEMENT EXECUTE FUNCTION append_only('facts');
CREATE TRIGGER inbound_never_goes BEFORE DELETE OR TRUNCATE ON inbound
  FOR EACH STATEMENT EXECUTE FUNCTION append_only('receipts');

-- Once for each statement, however many rows it is about; what stays as it was comes to naught.
CREATE FUNCTION tally_inbounds() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO tally_delta (kind, name, state, n)
      SELECT 'inbound', source, outcome, count(*) FROM after_it GROUP BY source, outcome;
  ELSE
    INSERT INTO tally_delta (kind, name, state, n)
      SELECT 'inbound', source, outcome, sum(n) FROM (
        SELECT source, outcome, 1 AS n FROM after_it UNION ALL SELECT source, outcome, -1 FROM before_it) moved
      GROUP BY source, outcome HAVING sum(n) != 0;
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER inbound_counted AFTER INSERT ON inbound
  REFERENCING NEW TABLE AS after_it FOR EACH STATEMENT EXECUTE FUNCTION tally_inbounds();
CREATE TRIGGER inbound_recounted AFTER UPDATE ON inbound
  REFERENCING OLD TABLE AS before_it NEW TABLE AS after_it FOR EACH STATEMENT EXECUTE FUNCTION tally_inbounds();

CREATE FUNCTION tally_deliveries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO tally_delta (kind, name, state, n)
      SELECT 'delivery', target, state, count(*) FROM after_it GROUP BY target, state;
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO tally_delta (kind, name, state, n)
      SELECT 'delivery', target, state, -count(*) FROM before_it GROUP BY target, state;
  ELSE
    INSERT INTO tally_delta (kind, name, state, n)
      SELECT 'delivery', target, state, sum(n) FROM (
        SELECT target, state, 1 AS n FROM after_it UNION ALL SELECT target, state, -1 FROM before_it) moved
      GROUP BY target, state HAVING sum(n) != 0;
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER delivery_counted AFTER INSERT ON delivery
  REFERENCING NEW TABLE AS after_it FOR EACH STATEMENT EXECUTE FUNCTION tally_deliveries();
CREATE TRIGGER delivery_recounted AFTER UPDATE ON delivery
  REFERENCING OLD TABLE AS before_it NEW TABLE AS after_it FOR EACH STATEMENT EXECUTE FUNCTION tally_deliveries();
CREATE TRIGGER delivery_uncounted AFTER DELETE ON delivery
  REFERENCING OLD TABLE AS before_it FOR EACH STATEMENT EXECUTE FUNCTION tally_deliveries();

-- A delivery that a bulk retry had in hand comes to rest: what becomes of it later is no longer the retry's.
CREATE FUNCTION settle_bulk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO bulk_tally_delta (bulk_id, state, n) VALUES (new.bulk_id, new.state, 1);
  UPDATE bulk SET ended_at = new.updated_at WHERE id = new.bulk_id;
  DELETE FROM bulk_item WHERE delivery_id = new.id;
  new.bulk_id := NULL;
  RETURN new;
END $$;

CREATE TRIGGER bulk_settled BEFORE UPDATE OF state, bulk_open ON delivery FOR EACH ROW
WHEN (new.bulk_id IS NOT NULL AND NOT new.bulk_open
  AND new.state NOT IN ('pending', 'sending', 'retrying', 'held'))
EXECUTE FUNCTION settle_bulk();
"""
