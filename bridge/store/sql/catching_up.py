"""How far the lists of CRMs were gone through."""

from __future__ import annotations

import json
from datetime import datetime

from bridge.lanes import process_lane
from bridge.model import CatchUp, Progress, from_iso, iso
from bridge.store.codec import maybe_iso, maybe_moment, to_json
from bridge.store.sql.database import Db, Row

_COLUMNS = (
    *("source", "kind", "run", "state", "reason", "since", "after", "due_at", "started_at", "updated_at", "by"),
    *("share", "seen", "changed", "missed", "unread", "total", "tries", "effects"),
)


def start(db: Db, begun: CatchUp) -> bool:
    """Save *begun*, unless one of its kind is under way."""
    db.lock(f"catch up {begun.source} {begun.kind}")
    current = read(db, begun.source, begun.kind)
    if current is not None and current.state in {Progress.RUNNING, Progress.ASKING}:
        return False
    _save(db, begun)
    if begun.state is Progress.RUNNING and begun.due_at is not None:
        db.execute("INSERT INTO source_state (source) VALUES (?) ON CONFLICT DO NOTHING", (begun.source,))
        db.make_due(process_lane(begun.source), begun.due_at)
    return True


def change(db: Db, progress: CatchUp, now: datetime) -> bool:
    """Save *progress* in place of the same run, in whatever state that is; say whether it was there."""
    db.lock(f"catch up {progress.source} {progress.kind}")
    current = read(db, progress.source, progress.kind)
    if current is None or current.run != progress.run or current.state is Progress.DONE:
        return False
    _save(db, progress)
    if progress.due_at is not None:
        db.make_due(process_lane(progress.source), max(progress.due_at, now))
    return True


def advance(db: Db, progress: CatchUp) -> None:
    """Save *progress*, unless somebody stopped this run meanwhile: then its place stays where it was."""
    db.lock(f"catch up {progress.source} {progress.kind}")
    current = read(db, progress.source, progress.kind)
    if current is not None and current.run == progress.run and current.state is Progress.RUNNING:
        _save(db, progress)


def read(db: Db, source: str, kind: str) -> CatchUp | None:
    row = db.execute("SELECT * FROM catch_up WHERE source = ? AND kind = ?", (source, kind)).fetchone()
    return None if row is None else _of(row)


def read_all(db: Db) -> list[CatchUp]:
    return [_of(row) for row in db.execute("SELECT * FROM catch_up ORDER BY source, kind").fetchall()]


def due(db: Db, source: str, now: datetime) -> CatchUp | None:
    row = db.execute(f"SELECT * {DUE} AND due_at <= ? ORDER BY due_at LIMIT 1", (source, iso(now))).fetchone()
    return None if row is None else _of(row)


DUE = "FROM catch_up WHERE source = ? AND state = 'running' AND due_at IS NOT NULL"


def _save(db: Db, progress: CatchUp) -> None:
    db.execute(
        _SAVE,
        (
            progress.source,
            progress.kind,
            progress.run,
            progress.state.value,
            progress.reason,
            maybe_iso(progress.since),
            progress.after,
            maybe_iso(progress.due_at),
            iso(progress.started_at),
            iso(progress.updated_at),
            progress.by,
            progress.share,
            progress.seen,
            progress.changed,
            progress.missed,
            progress.unread,
            progress.total,
            progress.tries,
            to_json({target: dict(counts) for target, counts in progress.effects.items()}),
        ),
    )


_SAVE = (
    f"INSERT INTO catch_up ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
    " ON CONFLICT (source, kind) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])
)


def _of(row: Row) -> CatchUp:
    return CatchUp(
        source=row["source"],
        kind=row["kind"],
        run=row["run"],
        state=Progress(row["state"]),
        reason=row["reason"],
        since=maybe_moment(row["since"]),
        after=row["after"],
        due_at=maybe_moment(row["due_at"]),
        started_at=from_iso(row["started_at"]),
        updated_at=from_iso(row["updated_at"]),
        by=row["by"],
        share=row["share"],
        seen=row["seen"],
        changed=row["changed"],
        missed=row["missed"],
        unread=row["unread"],
        total=row["total"],
        tries=row["tries"],
        effects=json.loads(row["effects"]),
    )
