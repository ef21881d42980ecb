"""The schema of the SQLite store.

Moments are text as `bridge.model.iso` writes it, so that they sort by time. Facts (``audit``) are append-only, and
triggers see to that; what is personal lives in ``payload``, to which a fact holds nothing but a keyed digest.
"""

from __future__ import annotations

import secrets

from sqlite_utils import Database, Migrations

MIGRATIONS = Migrations("bridge")


@MIGRATIONS(name="0001_first")
def first(db: Database) -> None:
    """Create everything."""
    db.executescript(_TABLES)
    db.executescript(_INDEXES)
    db.executescript(_TRIGGERS)
    # The key of all digests. Without it nobody can tell from a fact whether a guessed payload was the one.
    db.execute("INSERT INTO meta (name, value) VALUES ('salt', ?)", [secrets.token_bytes(32)])


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
  asked INTEGER NOT NULL DEFAULT 0,      -- a person did
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
