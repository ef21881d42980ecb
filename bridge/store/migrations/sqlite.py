"""The schema of the SQLite store.

Moments are text as `bridge.model.iso` writes it, so that they sort by time. Facts (``audit``) are append-only, and
triggers see to that; what is personal lives in ``payload``, to which a fact holds nothing but a keyed digest.
"""

from __future__ import annotations

import secrets
import sqlite3

from sqlite_utils import Database, Migrations

from bridge.model import RecordKey
from bridge.store.codec import contact_from, search_terms, search_text

MIGRATIONS = Migrations("bridge")


@MIGRATIONS(name="0001_first")
def first(db: Database) -> None:
    """Create everything."""
    _run(db, _TABLES)
    _run(db, _INDEXES)
    _run(db, _TRIGGERS)
    # The key of all digests. Without it nobody can tell from a fact whether a guessed payload was the one.
    db.execute("INSERT INTO meta (name, value) VALUES ('salt', ?)", [secrets.token_bytes(32)])


@MIGRATIONS(name="0002_looking")
def looking(db: Database) -> None:
    """Add what pages look at: running totals, terms to search by, bulk retries, people who sign in."""
    _run(db, _LOOKING_TABLES)
    _run(db, _LOOKING_INDEXES)
    _run(db, _LOOKING_TRIGGERS)
    for statement in _TOTALS_SO_FAR:
        db.execute(statement)
    _index_contacts(db)


@MIGRATIONS(name="0003_lag")
def lag(db: Database) -> None:
    """Add how long contacts were behind, as ``latency`` has it of pushes."""
    db.execute(
        "CREATE TABLE lag (target TEXT NOT NULL, bucket_ms INTEGER NOT NULL, n INTEGER NOT NULL,"
        " total_ms INTEGER NOT NULL, PRIMARY KEY (target, bucket_ms)) WITHOUT ROWID"
    )


@MIGRATIONS(name="0004_as_on_postgresql")
def as_on_postgresql(db: Database) -> None:
    """Keep headers and query of a receipt with its body, so that they go with it. Older ones stay as they are."""
    db.execute("ALTER TABLE payload ADD COLUMN url TEXT")
    db.execute("ALTER TABLE payload ADD COLUMN headers TEXT")
    # What the CRM calls what happened; of what was processed before, nobody noted it.
    db.execute("ALTER TABLE inbound ADD COLUMN event_types TEXT NOT NULL DEFAULT '[]'")
    # Where totals are added up later, this is the quick way to single ones; here they are as they are.
    db.execute("CREATE VIEW activity_parts AS SELECT * FROM activity")


@MIGRATIONS(name="0005_access_token")
def access_token(db: Database) -> None:
    """Add what targets let us in with."""
    db.execute(
        "CREATE TABLE access_token (target TEXT PRIMARY KEY, sealed BLOB, use_until TEXT, renewed_by TEXT)"
        " WITHOUT ROWID"
    )


@MIGRATIONS(name="0006_catching_up")
def catching_up(db: Database) -> None:
    """Add how far the lists of CRMs were gone through, and what of it may wait for what comes live."""
    db.execute("ALTER TABLE delivery ADD COLUMN low INTEGER NOT NULL DEFAULT 0")
    db.execute("DROP INDEX delivery_due")
    db.execute(
        "CREATE INDEX delivery_due ON delivery (target, lane, low, due_at) WHERE state IN ('pending', 'retrying')"
    )
    db.execute(
        "CREATE TABLE catch_up (source TEXT NOT NULL, kind TEXT NOT NULL, run TEXT NOT NULL, state TEXT NOT NULL,"
        " reason TEXT NOT NULL, since TEXT, after TEXT, due_at TEXT, started_at TEXT NOT NULL,"
        " updated_at TEXT NOT NULL, by TEXT NOT NULL, share REAL NOT NULL, seen INTEGER NOT NULL,"
        " changed INTEGER NOT NULL, missed INTEGER NOT NULL, unread INTEGER NOT NULL, total INTEGER,"
        " tries INTEGER NOT NULL, effects TEXT NOT NULL, PRIMARY KEY (source, kind)) WITHOUT ROWID"
    )


def _run(db: Database, script: str) -> None:
    """Run the statements of *script*, none of which begins where another one's line ends, in the transaction.

    `Database.executescript` looks for an end after each character, and takes ten times as long for all of this.
    """
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    if statement.strip():
        raise ValueError("The script breaks off in the middle of a statement.")


CONTACTS_AT_ONCE = 2000


def _index_contacts(db: Database) -> None:
    last = 0
    while True:
        rows = db.execute(
            "SELECT id, source, source_id, data FROM contact WHERE id > ? ORDER BY id LIMIT ?",
            (last, CONTACTS_AT_ONCE),
        ).fetchall()
        if not rows:
            return
        last = rows[-1]["id"]
        texts = [
            (search_text(contact_from(RecordKey(row["source"], row["source_id"]), row["data"])), row["id"])
            for row in rows
        ]
        db.conn.executemany("UPDATE contact SET search = ? WHERE id = ?", texts)
        terms = sorted((term, contact_id) for text, contact_id in texts for term in search_terms(text))
        db.conn.executemany("INSERT INTO search_term (term, contact_id) VALUES (?, ?)", terms)


_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE inbound (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  source TEXT NOT NULL,
  received_at TEXT NOT NULL,
  method TEXT NOT NULL,
  url TEXT NOT NULL,
  headers TEXT NOT NULL,                 -- JSON
  digest BLOB NOT NULL,                  -- of its payload, which may be gone
  outcome TEXT NOT NULL,                 -- 'accepted' means: to be processed
  reason TEXT NOT NULL,
  events INTEGER NOT NULL,
  secret_index INTEGER NOT NULL,
  signed_at TEXT,
  processed_at TEXT,
  repeats INTEGER NOT NULL DEFAULT 0
);

-- Keys of events seen, in order of arrival so that the oldest are found without an index of their own.
CREATE TABLE event_key (
  id INTEGER PRIMARY KEY,
  hash BLOB NOT NULL UNIQUE,             -- 16 bytes, keyed
  inbound_id INTEGER NOT NULL
);

CREATE TABLE payload (
  id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,
  body BLOB NOT NULL,                    -- zlib
  created_at TEXT NOT NULL
);

CREATE TABLE contact (
  id INTEGER PRIMARY KEY,
  source TEXT NOT NULL,
  source_id TEXT NOT NULL,
  data TEXT NOT NULL,                    -- JSON
  search TEXT NOT NULL,
  erased INTEGER NOT NULL,
  read_due TEXT,                         -- when to read it from the CRM
  replay_at TEXT,                        -- to be decided again: a person asked for it, or the rules changed
  asked INTEGER NOT NULL DEFAULT 0,      -- 1: a person did; 2: of some of its deliveries only (bulk_open)
  updated_at TEXT NOT NULL,
  UNIQUE (source, source_id)
);

CREATE TABLE delivery (
  id INTEGER PRIMARY KEY,
  target TEXT NOT NULL,
  source TEXT NOT NULL,
  source_id TEXT NOT NULL,
  slot INTEGER NOT NULL,
  lane INTEGER NOT NULL,                 -- slot % lanes of the target
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  desired TEXT,                          -- JSON
  revision INTEGER NOT NULL,
  accepted TEXT,                         -- JSON
  accepted_opt_out INTEGER NOT NULL,
  target_id TEXT,
  due_at TEXT,
  attempts INTEGER NOT NULL,
  error TEXT,
  status INTEGER,
  unsure_since TEXT,
  left_out TEXT NOT NULL,                -- JSON
  wanted_at TEXT,
  attempted TEXT,                        -- JSON: what a push may have written whose outcome was not heard
  UNIQUE (target, source, source_id)
);

CREATE TABLE audit (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at TEXT NOT NULL,
  kind TEXT NOT NULL,
  outcome TEXT NOT NULL,
  reason TEXT NOT NULL,
  source TEXT,
  source_id TEXT,
  target TEXT,
  inbound_id INTEGER,
  attempt INTEGER,
  status INTEGER,
  error TEXT,
  duration_ms INTEGER,
  fields TEXT NOT NULL,                  -- JSON
  digest BLOB                            -- of its detail, which may be gone
);

CREATE TABLE lane (
  name TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  fence INTEGER NOT NULL,
  taken_at TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE lane_count (target TEXT PRIMARY KEY, lanes INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE quota (
  target TEXT PRIMARY KEY,
  tokens REAL,                           -- null: a full bucket
  filled_at TEXT,
  closed_until TEXT
) WITHOUT ROWID;

CREATE TABLE target_status (
  target TEXT PRIMARY KEY,
  mode TEXT NOT NULL DEFAULT 'open',
  reason TEXT NOT NULL DEFAULT '',
  since TEXT,
  by TEXT NOT NULL DEFAULT '',
  probe_at TEXT,
  refusals INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE source_state (
  source TEXT PRIMARY KEY,
  account TEXT,
  last_inbound_at TEXT,
  refused INTEGER NOT NULL DEFAULT 0,
  last_refused_at TEXT
) WITHOUT ROWID;

-- The rules that were last in force, to see when they are others.
CREATE TABLE route_rules (
  source TEXT NOT NULL,
  target TEXT NOT NULL,
  digest TEXT NOT NULL,                  -- '': a change was begun and not ended
  PRIMARY KEY (source, target)
) WITHOUT ROWID;

CREATE TABLE source_reads (
  source TEXT PRIMARY KEY,
  fields TEXT NOT NULL                   -- JSON: the names that were asked of the CRM
) WITHOUT ROWID;

CREATE TABLE refusal (
  id INTEGER PRIMARY KEY,
  source TEXT NOT NULL,
  at TEXT NOT NULL,
  reason TEXT NOT NULL,
  size_bytes INTEGER NOT NULL
);

CREATE TABLE beat (
  role TEXT NOT NULL,
  owner TEXT NOT NULL,
  seen_at TEXT NOT NULL,
  PRIMARY KEY (role, owner)
) WITHOUT ROWID;

CREATE TABLE url_token (
  source TEXT NOT NULL,
  token_id TEXT NOT NULL,
  created_at TEXT NOT NULL,
  revoked_at TEXT,
  PRIMARY KEY (source, token_id)
) WITHOUT ROWID;

-- How many rows are in each state, so that nobody has to count them.
CREATE TABLE tally (
  kind TEXT NOT NULL,                    -- 'inbound' or 'delivery'
  name TEXT NOT NULL,                    -- the source or the target
  state TEXT NOT NULL,
  n INTEGER NOT NULL,
  PRIMARY KEY (kind, name, state)
) WITHOUT ROWID;
"""

_INDEXES = """
CREATE INDEX inbound_by_time ON inbound (received_at);
CREATE INDEX inbound_by_source ON inbound (source, received_at);
CREATE INDEX inbound_by_outcome ON inbound (outcome, received_at);
CREATE INDEX inbound_queued ON inbound (source, id) WHERE outcome = 'accepted';
CREATE INDEX inbound_by_payload ON inbound (digest);

CREATE INDEX payload_by_age ON payload (created_at);

CREATE INDEX contact_by_time ON contact (updated_at);
CREATE INDEX contact_replay ON contact (source, replay_at) WHERE replay_at IS NOT NULL;
CREATE INDEX contact_read ON contact (source, read_due) WHERE read_due IS NOT NULL;

CREATE INDEX delivery_due ON delivery (target, lane, due_at) WHERE state IN ('pending', 'retrying');
CREATE INDEX delivery_sending ON delivery (target, lane) WHERE state = 'sending';
CREATE INDEX delivery_held ON delivery (target) WHERE state = 'held';
CREATE INDEX delivery_by_time ON delivery (updated_at);
CREATE INDEX delivery_by_state ON delivery (state, updated_at);
CREATE INDEX delivery_by_contact ON delivery (source, source_id);
CREATE UNIQUE INDEX delivery_link ON delivery (target, source, target_id)
  WHERE target_id IS NOT NULL AND state != 'removed';

CREATE INDEX audit_by_time ON audit (at);
CREATE INDEX audit_by_contact ON audit (source, source_id, at);
CREATE INDEX audit_by_inbound ON audit (inbound_id) WHERE inbound_id IS NOT NULL;

CREATE INDEX refusal_by_source ON refusal (source, id);
"""

_TRIGGERS = """
CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'facts are append-only'); END;

CREATE TRIGGER audit_never_goes BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'facts are append-only'); END;

CREATE TRIGGER inbound_never_goes BEFORE DELETE ON inbound
BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END;

CREATE TRIGGER inbound_counted AFTER INSERT ON inbound BEGIN
  INSERT INTO tally VALUES ('inbound', new.source, new.outcome, 1)
    ON CONFLICT (kind, name, state) DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER inbound_recounted AFTER UPDATE OF outcome ON inbound WHEN old.outcome != new.outcome BEGIN
  UPDATE tally SET n = n - 1 WHERE kind = 'inbound' AND name = old.source AND state = old.outcome;
  INSERT INTO tally VALUES ('inbound', new.source, new.outcome, 1)
    ON CONFLICT (kind, name, state) DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER delivery_counted AFTER INSERT ON delivery BEGIN
  INSERT INTO tally VALUES ('delivery', new.target, new.state, 1)
    ON CONFLICT (kind, name, state) DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER delivery_recounted AFTER UPDATE OF state ON delivery WHEN old.state != new.state BEGIN
  UPDATE tally SET n = n - 1 WHERE kind = 'delivery' AND name = old.target AND state = old.state;
  INSERT INTO tally VALUES ('delivery', new.target, new.state, 1)
    ON CONFLICT (kind, name, state) DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER delivery_uncounted AFTER DELETE ON delivery BEGIN
  UPDATE tally SET n = n - 1 WHERE kind = 'delivery' AND name = old.target AND state = old.state;
END;
"""

_LOOKING_TABLES = """
-- Running totals of the audit log, so that nobody has to count it. The empty text and 0 mean: none.
CREATE TABLE activity (
  step INTEGER NOT NULL,                 -- seconds: 60, 3600; 0: of all time, with bucket 0
  bucket INTEGER NOT NULL,               -- when it begins, in Unix time
  kind TEXT NOT NULL,
  outcome TEXT NOT NULL,
  source TEXT NOT NULL,
  target TEXT NOT NULL,
  error TEXT NOT NULL,
  status INTEGER NOT NULL,
  n INTEGER NOT NULL,
  calls INTEGER NOT NULL,
  duration_ms INTEGER NOT NULL,
  PRIMARY KEY (step, bucket, kind, outcome, source, target, error, status)
) WITHOUT ROWID;

-- How long pushes took: so many of at most bucket_ms and more than the bound before.
CREATE TABLE latency (
  target TEXT NOT NULL,
  bucket_ms INTEGER NOT NULL,
  n INTEGER NOT NULL,
  total_ms INTEGER NOT NULL,
  PRIMARY KEY (target, bucket_ms)
) WITHOUT ROWID;

CREATE TABLE target_push (
  target TEXT PRIMARY KEY,
  last_success_at TEXT,
  last_error_at TEXT,
  last_error TEXT NOT NULL DEFAULT '',
  last_error_reason TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;

-- Where each word of a contact begins, made from contact.search alone.
CREATE TABLE search_term (
  term TEXT NOT NULL,
  contact_id INTEGER NOT NULL,
  PRIMARY KEY (term, contact_id)
) WITHOUT ROWID;

-- Retries of many deliveries. What a live one has in hand is marked in delivery, and was before as told here.
CREATE TABLE bulk (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at TEXT NOT NULL,
  by TEXT NOT NULL,
  what TEXT NOT NULL,
  cancelled INTEGER NOT NULL DEFAULT 0,
  total INTEGER NOT NULL DEFAULT 0,
  ended_at TEXT,                         -- when the last of its deliveries so far came to rest
  ended_by TEXT NOT NULL DEFAULT ''
);

CREATE TABLE bulk_item (
  delivery_id INTEGER PRIMARY KEY,
  bulk_id INTEGER NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  error TEXT,
  status INTEGER,
  attempts INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  marked INTEGER NOT NULL                -- the replay of its contact was asked for by this retry
);

CREATE TABLE bulk_tally (
  bulk_id INTEGER NOT NULL,
  state TEXT NOT NULL,                   -- in which a delivery came to rest
  n INTEGER NOT NULL,
  PRIMARY KEY (bulk_id, state)
) WITHOUT ROWID;

CREATE TABLE person (
  name TEXT PRIMARY KEY,
  role TEXT NOT NULL,
  password_hash TEXT NOT NULL,
  epoch INTEGER NOT NULL DEFAULT 0,
  created_at TEXT NOT NULL,
  last_seen_at TEXT
) WITHOUT ROWID;

CREATE TABLE login_link (
  link_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  expires_at TEXT NOT NULL
) WITHOUT ROWID;

ALTER TABLE delivery ADD COLUMN inbound_id INTEGER;
ALTER TABLE delivery ADD COLUMN bulk_id INTEGER;
ALTER TABLE delivery ADD COLUMN bulk_open INTEGER NOT NULL DEFAULT 0;  -- not decided again yet
ALTER TABLE quota ADD COLUMN rate_per_s REAL;
ALTER TABLE quota ADD COLUMN burst INTEGER;
"""

_LOOKING_INDEXES = """
CREATE INDEX audit_by_source ON audit (source, at);
CREATE INDEX audit_by_target ON audit (target, at) WHERE target IS NOT NULL;
CREATE INDEX audit_by_outcome ON audit (outcome, at);
CREATE INDEX audit_by_error ON audit (error, at) WHERE error IS NOT NULL;
-- Most entries are of these kinds or have these statuses: whoever looks for them need not look far.
CREATE INDEX audit_by_kind ON audit (kind, at) WHERE kind NOT IN ('contact', 'delivery');
CREATE INDEX audit_by_status ON audit (status, at) WHERE status >= 300;

CREATE INDEX inbound_repeated ON inbound (received_at) WHERE repeats > 0;
CREATE INDEX contact_by_source ON contact (source, updated_at);

CREATE INDEX delivery_by_error ON delivery (error, updated_at) WHERE error IS NOT NULL;
CREATE INDEX delivery_by_target_id ON delivery (target_id) WHERE target_id IS NOT NULL;
-- Not of those that are pending: most pass through that state at once, and would be entered and struck out.
CREATE INDEX delivery_behind ON delivery (target, wanted_at)
  WHERE wanted_at IS NOT NULL AND state IN ('retrying', 'held');
CREATE INDEX delivery_failing ON delivery (target, state, error, status, reason, updated_at)
  WHERE state IN ('failed', 'ambiguous');
CREATE INDEX delivery_bulk ON delivery (bulk_id, bulk_open, state) WHERE bulk_id IS NOT NULL;
CREATE INDEX bulk_item_by_bulk ON bulk_item (bulk_id);
"""

_LOOKING_TRIGGERS = """
-- A delivery that a bulk retry had in hand comes to rest: what becomes of it later is no longer the retry's.
CREATE TRIGGER bulk_settled AFTER UPDATE OF state, bulk_open ON delivery
WHEN new.bulk_id IS NOT NULL AND NOT new.bulk_open
  AND new.state NOT IN ('pending', 'sending', 'retrying', 'held') BEGIN
  INSERT INTO bulk_tally VALUES (new.bulk_id, new.state, 1)
    ON CONFLICT (bulk_id, state) DO UPDATE SET n = n + 1;
  UPDATE bulk SET ended_at = new.updated_at WHERE id = new.bulk_id;
  DELETE FROM bulk_item WHERE delivery_id = new.id;
  UPDATE delivery SET bulk_id = NULL WHERE id = new.id;
END;
"""

_NO_NULLS = "coalesce(source, ''), coalesce(target, ''), coalesce(error, ''), coalesce(status, 0)"
_BUCKET = "CAST(strftime('%s', {}) AS INTEGER) / {step} * {step}"
# How many calls an attempt of the past made is not known any more: one is counted for each.
_SUMS = "count(*), count(attempt), coalesce(sum(duration_ms), 0)"

_TOTALS_SO_FAR = (
    f"INSERT INTO activity SELECT 3600, {_BUCKET.format('at', step=3600)}, kind, outcome, {_NO_NULLS}, {_SUMS}"  # noqa: S608
    " FROM audit GROUP BY 2, 3, 4, 5, 6, 7, 8",
    f"INSERT INTO activity SELECT 60, {_BUCKET.format('at', step=60)}, kind, outcome, {_NO_NULLS}, {_SUMS}"  # noqa: S608
    " FROM audit WHERE at >= (SELECT strftime('%Y-%m-%dT%H:%M:00', max(at), '-3 days') FROM audit)"
    " GROUP BY 2, 3, 4, 5, 6, 7, 8",
    f"INSERT INTO activity SELECT 3600, {_BUCKET.format('received_at', step=3600)}, 'heard', 'heard', source, '',"  # noqa: S608
    " '', 0, count(*), 0, 0 FROM inbound GROUP BY 2, 5",
    "INSERT INTO activity SELECT 0, 0, kind, outcome, source, target, error, status, sum(n), sum(calls),"
    " sum(duration_ms) FROM activity WHERE step = 3600 GROUP BY 3, 4, 5, 6, 7, 8",
    "INSERT INTO latency SELECT target, CASE WHEN duration_ms <= 50 THEN 50 WHEN duration_ms <= 100 THEN 100"
    " WHEN duration_ms <= 250 THEN 250 WHEN duration_ms <= 500 THEN 500 WHEN duration_ms <= 1000 THEN 1000"
    " WHEN duration_ms <= 2500 THEN 2500 WHEN duration_ms <= 5000 THEN 5000 WHEN duration_ms <= 10000 THEN 10000"
    " WHEN duration_ms <= 30000 THEN 30000 ELSE 60000 END, count(*), sum(duration_ms) FROM audit"
    " WHERE kind = 'delivery' AND attempt IS NOT NULL AND duration_ms IS NOT NULL AND target IS NOT NULL"
    " GROUP BY 1, 2",
    "INSERT INTO target_push (target, last_success_at) SELECT target, max(at) FROM audit"
    " WHERE kind = 'delivery' AND attempt IS NOT NULL AND error IS NULL AND target IS NOT NULL GROUP BY target",
    # Beside max() the other columns are those of its row: https://sqlite.org/quirks.html
    "INSERT INTO target_push (target, last_error_at, last_error, last_error_reason)"
    " SELECT target, max(at), error, reason FROM audit WHERE kind = 'delivery' AND attempt IS NOT NULL"
    " AND error IS NOT NULL AND target IS NOT NULL GROUP BY target ON CONFLICT (target) DO UPDATE SET"
    " last_error_at = excluded.last_error_at, last_error = excluded.last_error,"
    " last_error_reason = excluded.last_error_reason",
)
