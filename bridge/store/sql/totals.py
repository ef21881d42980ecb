"""Running totals of the audit log: counted along with every entry, so that nobody counts the log itself."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from bridge.model import AuditEntry, Delivery, State, iso
from bridge.store.looking import LAG_BOUNDS_MS, LATENCY_BOUNDS_MS, Activity, Facets, Histogram, Latency
from bridge.store.looking import Bar as HistogramBar
from bridge.store.protocol import Attempt, Filter
from bridge.store.sql.conditions import Conditions
from bridge.store.sql.database import Db, Row, row_of

MINUTE_S, HOUR_S, EVER = 60, 3600, 0  # the lengths of a row's span
MINUTES_FOR = timedelta(days=2)  # longer spans are told in hours
MINUTES_KEPT = timedelta(days=3)
DIMENSIONS = ("kind", "outcome", "source", "target", "error", "status")
CAUGHT_UP = frozenset({State.SYNCED, State.OPTED_OUT, State.REMOVED})
ANNOUNCED, HEARD = "announced", "heard"
NO_ENTRIES = frozenset({ANNOUNCED, HEARD})  # of these kinds there are totals only

# Monday, 1970-01-05: bars begin at multiples of their length from here, so that a week begins with its Monday.
ORIGIN_S = 4 * 86_400
STEPS_S = tuple(
    [60 * n for n in (1, 2, 5, 10, 15, 30)] + [3600 * n for n in (1, 2, 3, 6, 12)] + [86_400 * n for n in (1, 7)]
)

# --- counting --------------------------------------------------------------------------------------------


def of_entry(entry: AuditEntry) -> tuple[datetime, Activity]:
    """Return what *entry* adds to the totals, and when."""
    detail = entry.detail if isinstance(entry.detail, dict) else {}
    counted = Activity(
        kind=entry.kind,
        outcome=entry.outcome,
        count=1,
        source=entry.source,
        target=entry.target,
        error=entry.error,
        status=entry.status,
        calls=len(detail.get("exchanges", ())),
        duration_ms=entry.duration_ms or 0,
    )
    return entry.at, counted


def count(db: Db, happened: Iterable[tuple[datetime, Activity]]) -> None:
    """Add to the totals: one statement for all of a transaction."""
    sums: dict[tuple[object, ...], list[int]] = {}
    for moment, one in happened:
        at = int(moment.timestamp())
        key = (one.kind, one.outcome, one.source or "", one.target or "", one.error or "", one.status or 0)
        for step, bucket in ((MINUTE_S, at - at % MINUTE_S), (HOUR_S, at - at % HOUR_S), (EVER, 0)):
            total = sums.setdefault((step, bucket, *key), [0, 0, 0])
            total[0] += one.count
            total[1] += one.calls
            total[2] += one.duration_ms
    if sums:
        db.add("activity", sums)


def count_push(db: Db, target: str, attempt: Attempt) -> None:
    """Add to how long the target's pushes took, and remember how the last one went."""
    took_ms = attempt.duration_ms
    db.add("latency", {(target, _bound(LATENCY_BOUNDS_MS, took_ms)): (1, took_ms)})
    at = iso(attempt.at)
    if attempt.error is None:
        db.execute(
            "INSERT INTO target_push (target, last_success_at) VALUES (?, ?)"
            " ON CONFLICT (target) DO UPDATE SET last_success_at = excluded.last_success_at"
            # Of two lanes, the one that ended first may be the second to save it.
            " WHERE coalesce(target_push.last_success_at, excluded.last_success_at) <= excluded.last_success_at",
            (target, at),
        )
    else:
        db.execute(
            "INSERT INTO target_push (target, last_error_at, last_error, last_error_reason) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (target) DO UPDATE SET last_error_at = excluded.last_error_at,"
            " last_error = excluded.last_error, last_error_reason = excluded.last_error_reason"
            " WHERE coalesce(target_push.last_error_at, excluded.last_error_at) <= excluded.last_error_at",
            (target, at, attempt.error, attempt.reason),
        )


def count_lag(db: Db, before: Delivery | None, after: Delivery) -> None:
    """Add for how long a contact was behind, where the push that ended made the target hold what it should."""
    if before is None or before.wanted_at is None or after.state not in CAUGHT_UP:
        return
    lag_ms = max(0, round((after.updated_at - before.wanted_at).total_seconds() * 1000))
    db.add("lag", {(after.target, _bound(LAG_BOUNDS_MS, lag_ms)): (1, lag_ms)})


def _bound(bounds_ms: Sequence[int], took_ms: int) -> int:
    return next((one for one in bounds_ms if took_ms <= one), bounds_ms[-1])


def minutes_kept_from(db: Db) -> int:
    """Return from when on totals of minutes are kept, in Unix time: nobody asks for older ones."""
    return (_newest_minute(db) or 0) - int(MINUTES_KEPT.total_seconds())


# --- reading ---------------------------------------------------------------------------------------------


def activity(db: Db, since: datetime, until: datetime) -> list[Activity]:
    return _activities(db, _span(db, since, until))


def totals(db: Db) -> list[Activity]:
    conditions = Conditions()
    conditions.equal({"step": EVER})
    return _activities(db, conditions)


def matching(db: Db, narrowed: Filter) -> dict[tuple[str, ...], int]:
    """Return how many entries there are of each combination of `DIMENSIONS`, as far as those narrow them."""
    conditions = _of_dimensions(narrowed)
    if narrowed.since is None and narrowed.until is None:
        conditions.equal({"step": EVER})
    else:
        conditions.extend(_span(db, narrowed.since or datetime.fromtimestamp(0, UTC), narrowed.until))
    return {
        tuple(str(row[name]) for name in DIMENSIONS): int(row["n"])
        for row in db.execute(_SUMMED.format(conditions=conditions.sql), conditions.values)
    }


def told_by_totals(narrowed: Filter) -> bool:
    """Say whether *narrowed* is about nothing but what totals are kept of."""
    return not any(
        (narrowed.source_id, narrowed.inbound_id is not None, narrowed.field, narrowed.q, narrowed.state)
    )


def facets(db: Db, narrowed: Filter) -> dict[str, Counter[str]]:
    """Count each dimension of the entries that *narrowed* finds; totals must be enough to tell them."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in DIMENSIONS}
    for values, n in matching(db, narrowed).items():
        for name, value in zip(DIMENSIONS, values, strict=True):
            if value not in {"", "0"}:
                counts[name][value] += n
    return counts


def as_facets(counts: Mapping[str, Counter[str]], *, complete: bool) -> Facets:
    ranked = {name: sorted(found.items(), key=lambda one: (-one[1], one[0])) for name, found in counts.items()}
    return Facets(ranked, complete)


def histogram(db: Db, narrowed: Filter, since: datetime, until: datetime, bars: int) -> Histogram:
    """Count entries over time; totals must be enough to tell them."""
    step_s = step_of(since, until, bars)
    if step_s < HOUR_S and not _has_minutes(db, since):
        step_s = HOUR_S
    starts = starts_of(since, until, step_s)
    conditions = _of_dimensions(narrowed)
    conditions.equal({"step": MINUTE_S if step_s < HOUR_S else HOUR_S})
    if starts:
        conditions.add("bucket >= ? AND bucket < ?", starts[0], starts[-1] + step_s)
    counts: dict[int, dict[str, int]] = {start: {} for start in starts}
    rows = db.execute(_BARS.format(conditions=conditions.sql), [ORIGIN_S, step_s, *conditions.values])
    for row in rows:
        if row["start"] in counts:
            counts[row["start"]][row["outcome"]] = row["n"]
    return as_histogram(step_s, counts, complete=True)


def as_histogram(step_s: int, counts: Mapping[int, Mapping[str, int]], *, complete: bool) -> Histogram:
    # In an order of their own: what is of the same count must not change places from one look to the next.
    bars = [
        HistogramBar(datetime.fromtimestamp(start, UTC), dict(sorted(counted.items())))
        for start, counted in counts.items()
    ]
    return Histogram(step_s, bars, complete)


def heard(db: Db, source: str, since: datetime, until: datetime) -> list[HistogramBar]:
    """Return how many webhooks of *source* came in each hour from *since* on."""
    start, end = int(since.timestamp()), _ceiling(until)
    rows = db.execute(_HEARD, (HOUR_S, start - start % HOUR_S, end, HEARD, source)).fetchall()
    found = {row["bucket"]: row["n"] for row in rows}
    return [
        HistogramBar(datetime.fromtimestamp(bucket, UTC), {HEARD: found[bucket]} if bucket in found else {})
        for bucket in range(start - start % HOUR_S, end, HOUR_S)
    ]


_HEARD = (
    "SELECT bucket, sum(n) AS n FROM activity_parts WHERE step = ? AND bucket >= ? AND bucket < ? AND kind = ?"
    " AND source = ? GROUP BY bucket"
)


def step_of(since: datetime, until: datetime, bars: int) -> int:
    """Return the shortest round step, in seconds, of which at most *bars* are needed."""
    for step_s in STEPS_S:
        if len(_range(since, until, step_s)) <= bars:
            return step_s
    weeks = 2
    while len(_range(since, until, weeks * STEPS_S[-1])) > max(bars, 2):
        weeks *= 2
    return weeks * STEPS_S[-1]


def starts_of(since: datetime, until: datetime, step_s: int) -> list[int]:
    """Return when each step between *since* and *until* begins, in Unix time."""
    return list(_range(since, until, step_s))


def start_of(moment: datetime, step_s: int) -> int:
    at = int(moment.timestamp())
    return at - (at - ORIGIN_S) % step_s


def _range(since: datetime, until: datetime, step_s: int) -> range:
    return range(start_of(since, step_s), _ceiling(until), step_s)


def _ceiling(moment: datetime) -> int:
    """Return the Unix time of the first full second that is not before *moment*."""
    return -int(-moment.timestamp() // 1)


def latencies(db: Db) -> list[Latency]:
    return _times(db.execute("SELECT * FROM latency ORDER BY target"), LATENCY_BOUNDS_MS)


def lags(db: Db) -> list[Latency]:
    return _times(db.execute("SELECT * FROM lag ORDER BY target"), LAG_BOUNDS_MS)


def _times(rows: Iterable[Row], bounds_ms: Sequence[int]) -> list[Latency]:
    found: dict[str, dict[int, int]] = {}
    sums: Counter[str] = Counter()
    for row in rows:
        found.setdefault(row["target"], dict.fromkeys(bounds_ms, 0))[row["bucket_ms"]] = row["n"]
        sums[row["target"]] += row["total_ms"]
    return [Latency(target, counts, sums[target]) for target, counts in found.items()]


_SUMMED = """
SELECT kind, outcome, source, target, error, status, sum(n) AS n, sum(calls) AS calls,
  sum(duration_ms) AS duration_ms
FROM activity_parts WHERE {conditions} GROUP BY kind, outcome, source, target, error, status
ORDER BY kind, outcome, source, target, error, status
"""
_BARS = """
SELECT bucket - (bucket - ?) % ? AS start, outcome, sum(n) AS n FROM activity_parts
WHERE {conditions} GROUP BY 1, 2
"""


def _activities(db: Db, conditions: Conditions) -> list[Activity]:
    rows = db.execute(_SUMMED.format(conditions=conditions.sql), conditions.values).fetchall()
    return [
        Activity(
            kind=row["kind"],
            outcome=row["outcome"],
            count=row["n"],
            source=row["source"] or None,
            target=row["target"] or None,
            error=row["error"] or None,
            status=row["status"] or None,
            calls=row["calls"],
            duration_ms=row["duration_ms"],
        )
        for row in rows
    ]


def _of_dimensions(narrowed: Filter) -> Conditions:
    conditions = Conditions()
    conditions.equal({f"+{name}": getattr(narrowed, name) for name in DIMENSIONS})
    conditions.add("kind NOT IN (?, ?)", *sorted(NO_ENTRIES))
    return conditions


def _span(db: Db, since: datetime, until: datetime | None) -> Conditions:
    """Narrow to the rows of a span: minutes where they are kept, else hours; its ends are rounded to theirs."""
    conditions = Conditions()
    start, end = int(since.timestamp()), sys.maxsize if until is None else _ceiling(until)
    if until is None or until - since > MINUTES_FOR or not _has_minutes(db, since):
        conditions.add(_WITHIN, HOUR_S, start - start % HOUR_S, end)
        return conditions
    # Hours where they are whole, and minutes before and behind them.
    first_hour, last_hour = start - start % -HOUR_S, end - end % HOUR_S
    if first_hour >= last_hour:
        first_hour = last_hour = end
    conditions.add(
        f"(({_WITHIN}) OR ({_WITHIN}) OR ({_WITHIN}))",
        *(MINUTE_S, start - start % MINUTE_S, first_hour),
        *(HOUR_S, first_hour, last_hour),
        *(MINUTE_S, last_hour, end),
    )
    return conditions


_WITHIN = "step = ? AND bucket >= ? AND bucket < ?"


def _has_minutes(db: Db, since: datetime) -> bool:
    newest = _newest_minute(db)
    return newest is not None and since.timestamp() >= newest - MINUTES_KEPT.total_seconds()


def _newest_minute(db: Db) -> int | None:
    row = row_of(db.execute("SELECT max(bucket) AS newest FROM activity_parts WHERE step = ?", (MINUTE_S,)))
    newest: int | None = row["newest"]
    return newest


def outlook(db: Db, narrowed: Filter, names: Sequence[str]) -> tuple[int | None, str | None]:
    """Return how many entries match at most, and which dimension of *names* the fewest entries have as wanted.

    None: that cannot be told without narrowing any of them.
    """
    wanted = {name: value for name in DIMENSIONS if (value := getattr(narrowed, name)) is not None}
    if not wanted:
        return None, None
    most = 0
    counts = dict.fromkeys((name for name in names if name in wanted), 0)
    for row in db.execute(_ENTRIES_EVER, (EVER, *sorted(NO_ENTRIES))):
        alike = {name for name, value in wanted.items() if row[name] == value}
        most += row["n"] if len(alike) == len(wanted) else 0
        for name in alike & counts.keys():
            counts[name] += row["n"]
    return most, min(counts, key=lambda name: counts[name], default=None)


_ENTRIES_EVER = "SELECT * FROM activity_parts WHERE step = ? AND kind NOT IN (?, ?)"
