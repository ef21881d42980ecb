"""The overview: whether everything is well, what was done, and what needs a person now.

What cannot be known for certain is said to be stale. Nothing here is green because nobody looked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from flask import Blueprint
from flask.typing import ResponseReturnValue

from bridge.model import State
from bridge.store.looking import Activity
from bridge.store.protocol import Filter, Health, SourceStatus
from bridge.web import health
from bridge.web.health import Check
from bridge.web.pages.audit import Chart, chart_of, exact
from bridge.web.pages.filters import Address
from bridge.web.pages.rhythm import Pulse, Rhythm
from bridge.web.pages.site import Site
from bridge.web.pages.sources import rhythm_of, statuses, url_of
from bridge.web.pages.targets import Item as TargetItem
from bridge.web.pages.targets import items_of
from bridge.web.pages.words import count, span

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
BARS = 48
MANY_FAILURES = 0.05  # of attempts; from here on the rate is marked
QUEUED = (State.PENDING, State.SENDING, State.RETRYING, State.HELD)


# --- figures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell of the health strip. *tone* and *icon* as in `words.Mark`. *stale*: nobody worked since."""

    title: str
    value: str
    note: str
    tone: str = "idle"
    icon: str = "dot"
    href: str = ""
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """Something that waits for a person. *icon* and *tone* as in `words.Mark`."""

    sentence: str
    href: str
    link: str  # what the link says
    tone: str = "bad"
    icon: str = "cross"


@dataclass(frozen=True, slots=True)
class Savings:
    """What convergence saved in a day: *changes* were to reach targets, and *pushes* were enough."""

    changes: int
    pushes: int

    @property
    def saved(self) -> int:
        return max(0, self.changes - self.pushes)

    @property
    def percent(self) -> int:
        return round(100 * self.saved / self.changes) if self.changes else 0


@dataclass(frozen=True, slots=True)
class SourceLine:
    status: SourceStatus
    title: str
    rhythm: Rhythm


@dataclass(frozen=True, slots=True)
class Attempts:
    """How pushes went within a span of time."""

    made: int
    failed: int

    @property
    def rate(self) -> float:
        return self.failed / self.made if self.made else 0.0


def attempts(totals: Iterable[Activity]) -> Attempts:
    """Count what was pushed: an entry that took no call was none."""
    made = failed = 0
    for one in totals:
        if one.kind == "delivery":
            pushed = one.count if one.error else min(one.count, one.calls)
            made += pushed
            failed += pushed if one.error else 0
    return Attempts(made, failed)


def savings(totals: Sequence[Activity]) -> Savings:
    changes = sum(one.count for one in totals if one.kind == "announced")
    return Savings(changes, attempts(totals).made)


def figures(seen: Health, checks: Sequence[Check], hour: Attempts, day: Attempts, now: datetime) -> list[Figure]:
    """Return the health strip. What depends on the worker is stale while none runs."""
    stale = not health.worker_alive(seen, now)
    return [
        _database(checks),
        _worker(seen, now),
        _heard(seen, now),
        _oldest(seen, now, stale=stale),
        _backlog(seen, stale=stale),
        _errors(hour, day, now, stale=stale),
    ]


def _database(checks: Sequence[Check]) -> Figure:
    found = next(one for one in checks if one.name == "database")
    if found.ok:
        return Figure("Database", "answers", "and takes what is written", "good", "check")
    return Figure("Database", "in trouble", found.detail, "bad", "cross")


def _worker(seen: Health, now: datetime) -> Figure:
    if seen.worker_seen_at is None:
        return Figure("Worker", "never ran", "webhooks are stored, and nothing is sent", "bad", "cross")
    ago = span((now - seen.worker_seen_at).total_seconds())
    if health.worker_alive(seen, now):
        return Figure("Worker", "runs", f"seen {ago} ago", "good", "check")
    return Figure("Worker", "not running", f"last seen {ago} ago", "bad", "cross")


def _heard(seen: Health, now: datetime) -> Figure:
    """Return when anything came in; whether that is soon enough is for each source's rhythm to say."""
    last = max((one.last_inbound_at for one in seen.sources if one.last_inbound_at), default=None)
    if last is None:
        return Figure("Last webhook", "never", "no source was heard yet", href="/sources")
    age_s = max(0.0, (now - last).total_seconds())
    return Figure("Last webhook", f"{span(age_s)} ago", "of any source", icon="in", href="/sources")


def _oldest(seen: Health, now: datetime, *, stale: bool) -> Figure:
    title, href = "Oldest due delivery", "/targets"
    if seen.oldest_due_at is None:
        return Figure(title, "none", "nothing that may be sent waits", *_good(stale), href, stale)
    age_s = max(0.0, (now - seen.oldest_due_at).total_seconds())
    late = age_s > health.LATE_S
    tone = ("bad", "hourglass") if late else ("busy", "queue")
    return Figure(title, span(age_s), "since it could have been sent", *tone, href, stale)


def _backlog(seen: Health, *, stale: bool) -> Figure:
    queued = {state: _in(seen, state) for state in QUEUED}
    webhooks = sum(one.unprocessed for one in seen.sources)
    total = sum(queued.values())
    note = [f"{count(webhooks, 'webhook')} to process"]
    note += [f"{many:,} {state.value}" for state, many in queued.items() if many]
    tone = ("busy", "queue") if total or webhooks else _good(stale)
    return Figure("Backlog", count(total, "delivery", "deliveries"), ", ".join(note), *tone, "/targets", stale)


def _errors(hour: Attempts, day: Attempts, now: datetime, *, stale: bool) -> Figure:
    title = "Attempts that failed"
    href = Address("/audit", {"kind": "delivery", "from": exact(now - DAY)}).url()
    of_day = f"{_percent(day.rate)} of {day.made:,} in 24 h" if day.made else "none in 24 h"
    if not hour.made:
        return Figure(title, "no attempts", f"in the last hour; {of_day}", "idle", "dot", href, stale)
    tone = ("bad", "cross") if hour.rate >= MANY_FAILURES else ("warn", "repeat") if hour.failed else _good(stale)
    return Figure(title, _percent(hour.rate), f"of {hour.made:,} in the last hour; {of_day}", *tone, href, stale)


def _good(stale: bool) -> tuple[str, str]:
    return ("idle", "dot") if stale else ("good", "check")


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %" if 0 < rate < 0.1 else f"{100 * rate:.0f} %"


def _in(seen: Health, state: State) -> int:
    return sum(many for (_, one), many in seen.deliveries.items() if one == state)


# --- what needs a person -------------------------------------------------------------------------------------


def needs_of(
    seen: Health,
    checks: Sequence[Check],
    sources: Sequence[SourceLine],
    targets: Sequence[TargetItem],
    now: datetime,
) -> list[Need]:
    """Return what waits for a person, what stops everything first."""
    return [
        *_broken(checks),
        *_deliveries(seen),
        *_closed(targets),
        *_unreadable(seen),
        *_silent(sources),
        *_refused(sources, now),
    ]


def _broken(checks: Sequence[Check]) -> Iterator[Need]:
    links = {
        "database": ("/", "look again"),
        "worker": ("/targets", "what waits"),
        "processing": ("/webhooks?outcome=accepted&within=all", "what waits"),
        "delivery": ("/targets", "what waits"),
    }
    for one in checks:
        if not one.ok:
            # Machines read the same sentence, in seconds.
            said = re.sub(r"(\d+) seconds", lambda found: span(int(found[1])), one.detail)
            yield Need(said, *links.get(one.name, ("/targets", "what waits")))


def _deliveries(seen: Health) -> Iterator[Need]:
    if failed := _in(seen, State.FAILED):
        said = f"{count(failed, 'delivery', 'deliveries')} failed for good: a person, or a new value, is needed."
        yield Need(said, "/failures?state=failed", "failed deliveries")
    if ambiguous := _in(seen, State.AMBIGUOUS):
        said = f"{count(ambiguous, 'delivery', 'deliveries')} fit more than one contact there: a person decides."
        yield Need(said, "/failures?state=ambiguous", "ambiguous deliveries", icon="question")


def _closed(targets: Sequence[TargetItem]) -> Iterator[Need]:
    for one in targets:
        waiting = count(one.of(State.HELD), "delivery waits", "deliveries wait")
        if one.status.mode == "held":
            yield Need(f"{one.name} is held: {one.status.reason} {waiting}.", f"/targets#{one.name}", one.name)
        elif one.status.mode == "paused":
            by = f" by {one.status.by}" if one.status.by else ""
            said = f"{one.name} is paused{by}; {waiting} until somebody resumes it."
            yield Need(said, f"/targets#{one.name}", one.name, "warn", "pause")


def _unreadable(seen: Health) -> Iterator[Need]:
    if unreadable := seen.inbound.get("unreadable", 0):
        said = f"{count(unreadable, 'webhook is', 'webhooks are')} genuine but could not be read, and kept."
        yield Need(said, "/webhooks?outcome=unreadable&within=all", "unreadable webhooks", icon="question")


def _silent(sources: Sequence[SourceLine]) -> Iterator[Need]:
    for one in sources:
        if one.rhythm.pulse is Pulse.QUIET:
            usually = f", usually every {span(one.rhythm.usually_s)}" if one.rhythm.usually_s else ""
            said = (
                f"{one.status.source} is quiet for {span(one.rhythm.silent_s)}{usually}: does the CRM still send?"
            )
            yield Need(said, f"/sources#{one.status.source}", one.status.source, "warn", "question")


def _refused(sources: Sequence[SourceLine], now: datetime) -> Iterator[Need]:
    for one in sources:
        last = one.status.last_refused_at
        if last is not None and now - last <= DAY:
            ago = span((now - last).total_seconds())
            said = f"A request to {one.status.source} was refused {ago} ago: it did not prove whom it is from."
            yield Need(said, f"/sources#{one.status.source}", "why", "warn", "stop")


# --- the page ------------------------------------------------------------------------------------------------


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("overview", __name__)

    @pages.get("/")
    def overview() -> ResponseReturnValue:
        now = site.clock()
        seen = site.store.health(now)
        checks = health.look(site.store, now, site.trouble())
        lately = site.store.activity(now - DAY, now)
        sources = _sources(site, seen, now)
        targets = items_of(site, seen, now)
        day, hour = attempts(lately), attempts(site.store.activity(now - HOUR, now))
        return site.page(
            "overview.html",
            figures=figures(seen, checks, hour, day, now),
            needs=needs_of(seen, checks, sources, targets, now),
            chart=_chart(site, now),
            day=day,
            savings=savings(lately),
            sources=sources,
            targets=targets,
            worker_alive=health.worker_alive(seen, now),
            worker_seen_at=seen.worker_seen_at,
            began=any(one.status.last_inbound_at for one in sources) or bool(sum(seen.inbound.values())),
            steps=_first_steps(site),
        )

    return pages


def _sources(site: Site, seen: Health, now: datetime) -> list[SourceLine]:
    return [
        SourceLine(status, site.config.sources[name].type.title, rhythm_of(site, status, now))
        for name, status in statuses(site, seen).items()
    ]


def _chart(site: Site, now: datetime) -> Chart:
    narrowed = Filter(kind="delivery", since=now - DAY)
    found = site.store.histogram(narrowed, now - DAY, now, BARS)
    return chart_of(found, Address("/audit", {"kind": "delivery"}), now - DAY, now)


@dataclass(frozen=True, slots=True)
class FirstStep:
    """Where the first webhook of a source is to go."""

    source: str
    title: str
    url: str
    needs_token: bool


def _first_steps(site: Site) -> list[FirstStep]:
    return [
        FirstStep(name, one.type.title, url_of(site, name), one.needs_token)
        for name, one in site.config.sources.items()
    ]
