"""Whether a source is as busy as it usually is at this time of the week: silence must not be taken for health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from bridge.store.looking import Bar

LOOK_BACK = timedelta(days=14)
HOUR = timedelta(hours=1)
HOURS = int(LOOK_BACK / HOUR)
WEEK = timedelta(days=7)
DAY = timedelta(days=1)
# So many webhooks must be missing before silence is worth a word: of fewer, it may well be chance.
MISSING = 8
LONG = timedelta(days=7)  # after so long without any, no rhythm is needed to wonder


class Pulse(StrEnum):
    NEVER = "never"  # nothing ever came
    UNKNOWN = "unknown"  # too little is known to say what is usual
    USUAL = "usual"
    QUIET = "quiet"  # it should have been heard by now


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How a source is heard. *usually_s*: seconds between two webhooks in a busy hour, None where nobody knows."""

    pulse: Pulse
    silent_s: float = 0.0
    usually_s: float | None = None


def rhythm(hours: Sequence[Bar], last_at: datetime | None, now: datetime) -> Rhythm:
    """Judge the silence since *last_at* by *hours*, the hourly counts of the source's webhooks in `LOOK_BACK`."""
    if last_at is None:
        return Rhythm(Pulse.NEVER)
    silent = max(timedelta(), now - last_at)
    counts = {bar.at: sum(bar.counts.values()) for bar in hours}
    first = min((at for at, count in counts.items() if count), default=now)
    expected = _expected(counts, first, last_at, now)
    usually_s = _gap_s(counts, first, now)
    if silent >= LONG or (expected is not None and expected >= MISSING):
        return Rhythm(Pulse.QUIET, silent.total_seconds(), usually_s)
    known = expected is not None and usually_s is not None
    return Rhythm(Pulse.USUAL if known else Pulse.UNKNOWN, silent.total_seconds(), usually_s)


def _expected(counts: Mapping[datetime, int], first: datetime, since: datetime, until: datetime) -> float | None:
    """Return how many webhooks would have come from *since* to *until*, counted cautiously; None: nobody knows."""
    total, known = 0.0, False
    hour = _hour(max(since, until - LONG))
    while hour < until:
        usual = _usual(counts, first, hour)
        if usual is not None:
            known = True
            share = (min(until, hour + HOUR) - max(since, hour)) / HOUR
            total += usual * share
        hour += HOUR
    return total if known else None


def _usual(counts: Mapping[datetime, int], first: datetime, hour: datetime) -> int | None:
    """Return the least that came in this hour of the week before, of a younger source in this hour of other days.

    The least of several: an office is closed at night and at weekends, and bridge does not cry wolf then.
    """
    weeks = [hour - WEEK * n for n in (1, 2)]
    days = [hour - DAY * n for n in range(1, 8)]
    before = [at for at in weeks if at >= first] if first <= weeks[0] else [at for at in days if at >= first]
    return min((counts.get(at, 0) for at in before), default=None)


def _gap_s(counts: Mapping[datetime, int], first: datetime, now: datetime) -> float | None:
    """Return the usual time between two webhooks, of hours in which there were any; None after less than a day."""
    if now - first < DAY:
        return None
    busy = sorted(count for at, count in counts.items() if count and at + HOUR <= now)
    return HOUR.total_seconds() / busy[len(busy) // 2] if busy else None


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
