"""Failed deliveries by cause, and retries of many: asked for with their cost, watched, and called off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from flask import Blueprint, redirect, request
from flask.typing import ResponseReturnValue
from pydantic import Field

from bridge.model import RecordKey, State
from bridge.store.looking import Bulk, BulkState, FailureGroup, Role
from bridge.store.protocol import Filter
from bridge.web.pages import effort
from bridge.web.pages.access import actor, needs
from bridge.web.pages.filters import Address
from bridge.web.pages.site import Site, say
from bridge.web.pages.words import count, span
from bridge.web.problem import HttpProblem
from bridge.web.queries import GREATEST_ID, Input, Text, read_form

GROUPS = 500  # causes that are told apart
EXAMPLES = 3
RETRIES = 20  # past ones that are listed
ENOUGH = 20  # settled deliveries, to tell a pace from

FAILING = frozenset({State.FAILED, State.AMBIGUOUS})

# What a person can do, by the class of the error. A platform's own words stand in the reason.
ADVICE: Mapping[str, str] = {
    "ambiguous": "Bridge never guesses who is meant. Merge or delete one of the contacts there, then retry.",
    "duplicate": "Another contact there has the same address or number. Merge the two there, then retry.",
    "missing": "What the rules name is not there. Create it in the platform or change the rule, then retry.",
    "unverified": "The platform accepted the write, and does not show it. Look at the contact there, then retry.",
    "tls": "The platform's certificate is not trusted. Check its address in the configuration, then retry.",
    "unsupported": "The platform has no way to do this by itself. Somebody has to do it there by hand.",
    "no_identity": "The CRM gives nothing that the contact could be found by. Add it there: it is sent by itself.",
}
COMMON_ADVICE = (
    "Correct the value in the CRM: the new one is sent by itself. "
    "Retry after something was changed in the platform or in the rules."
)


class FailureQuery(Input):
    """Which failed deliveries are meant."""

    target: Text | None = None
    source: Text | None = None
    error: Text | None = None
    status: Annotated[int | None, Field(ge=100, le=599)] = None
    state: State | None = None

    def narrowed(self) -> Filter:
        return Filter(
            target=self.target,
            source=self.source,
            error=self.error,
            status=self.status,
            state=self.state and self.state.value,
        )

    def words(self) -> str:
        """Say what is meant, without a personal value: this stands in the audit log."""
        what = {None: "failed and ambiguous", State.FAILED: "failed", State.AMBIGUOUS: "ambiguous"}[self.state]
        parts = [f"all {what} deliveries"]
        if self.target:
            parts.append(f"to {self.target}")
        if self.source:
            parts.append(f"of {self.source}")
        if self.error:
            parts.append(f"with the error {self.error}")
        if self.status:
            parts.append(f"after HTTP {self.status}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Cause:
    """Deliveries that failed alike, and that one retry is about. *reasons*: in how many words that was said."""

    target: str
    title: str
    state: State
    error: str | None
    status: int | None
    count: int
    oldest_at: datetime
    newest_at: datetime
    reasons: Sequence[tuple[str, int]]
    examples: Sequence[RecordKey]
    advice: str
    retry: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a retry is. *sentences* say it in words."""

    bulk: Bulk
    states: Sequence[tuple[str, int]]  # most first
    sentences: Sequence[str]
    failing: int  # how many need a person again

    @property
    def running(self) -> bool:
        return self.bulk.state is BulkState.RUNNING


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("failures", __name__)

    @pages.get("/failures")
    def failures() -> ResponseReturnValue:
        query = read_form(FailureQuery, request.args)
        here = Address.of("/failures", request.args)
        groups = site.store.failure_groups(query.narrowed(), GROUPS)
        now = site.clock()
        return site.page(
            "failures.html",
            query=query,
            filters=_filters(query, here),
            causes=_causes(site, groups, query),
            total=sum(group.count for group in groups),
            cut=len(groups) == GROUPS,
            retry_all=here.url("/failures/retry"),
            targets=sorted(site.config.targets),
            sources=sorted(site.config.sources),
            errors=sorted({group.error for group in groups if group.error} | ({query.error} - {None})),
            last_success=_last_success(site, now),
            retries=site.store.bulks(now, RETRIES),
        )

    @pages.get("/failures/retry")
    @needs(Role.OPERATOR)
    def ask() -> ResponseReturnValue:
        query = read_form(FailureQuery, request.args)
        here = Address.of("/failures", request.args)
        groups = site.store.failure_groups(query.narrowed(), GROUPS)
        efforts = _efforts(site, _counts(groups))
        return site.page(
            "failures_retry.html",
            query=query,
            what=query.words(),
            total=sum(group.count for group in groups),
            # A retry can do nothing for these until a person did something.
            ambiguous=sum(group.count for group in groups if group.state is State.AMBIGUOUS),
            running=[one for one in site.store.bulks(site.clock(), RETRIES) if one.state is BulkState.RUNNING],
            efforts=efforts,
            calls=sum(one.calls for one in efforts),
            seconds=effort.seconds_in_all(efforts),
            days=effort.LOOK_BACK.days,
            back=here.url(),
            action=here.url("/failures/retry"),
        )

    @pages.post("/failures/retry")
    @needs(Role.OPERATOR)
    def start() -> ResponseReturnValue:
        query = read_form(FailureQuery, request.args)
        if not site.store.failure_groups(query.narrowed(), 1):
            say("Nothing was started: there is nothing left that failed and matches.")
            return redirect(Address.of("/failures", request.args).url(), 303)
        bulk_id = site.store.start_bulk(query.narrowed(), query.words(), actor(), site.clock())
        site.ring()
        return redirect(f"/retries/{bulk_id}", 303)

    @pages.get("/retries")
    def retries() -> ResponseReturnValue:
        return redirect("/failures#retries")

    @pages.get("/retries/<int:bulk_id>")
    def retry(bulk_id: int) -> ResponseReturnValue:
        bulk = _bulk(site, bulk_id)
        return site.page("retry.html", progress=_progress(site, bulk))

    @pages.get("/retries/<int:bulk_id>/cancel")
    @needs(Role.OPERATOR)
    def ask_cancel(bulk_id: int) -> ResponseReturnValue:
        bulk = _bulk(site, bulk_id)
        if bulk.state is not BulkState.RUNNING:
            return redirect(f"/retries/{bulk_id}")
        unsent = bulk.total - bulk.settled - bulk.states.get(State.SENDING, 0)
        return site.page("retry_cancel.html", bulk=bulk, unsent=unsent)

    @pages.post("/retries/<int:bulk_id>/cancel")
    @needs(Role.OPERATOR)
    def cancel(bulk_id: int) -> ResponseReturnValue:
        _bulk(site, bulk_id)
        if not site.store.cancel_bulk(bulk_id, actor(), site.clock()):
            say("There was nothing left to cancel: the retry was over already.")
        return redirect(f"/retries/{bulk_id}", 303)

    return pages


# --- causes --------------------------------------------------------------------------------------------------


def _causes(site: Site, groups: Sequence[FailureGroup], query: FailureQuery) -> Sequence[Cause]:
    """Return the groups that one retry can tell apart, largest first: those that differ in words only are one."""
    alike: dict[tuple[str, State, str | None, int | None], list[FailureGroup]] = {}
    for group in groups:
        alike.setdefault((group.target, group.state, group.error, group.status), []).append(group)
    causes = [_cause(site, same, query) for same in alike.values()]
    return sorted(causes, key=lambda cause: cause.count, reverse=True)


def _cause(site: Site, same: Sequence[FailureGroup], query: FailureQuery) -> Cause:
    first = same[0]
    target = site.config.targets.get(first.target)
    fallback = "" if target else "The target is no longer in the configuration: nothing is sent there."
    narrowed = Address("/failures/retry").url(
        target=first.target, state=first.state.value, error=first.error, status=first.status, source=query.source
    )
    return Cause(
        target=first.target,
        title=target.type.title if target else "no longer configured",
        state=first.state,
        error=first.error,
        status=first.status,
        count=sum(group.count for group in same),
        oldest_at=min(group.oldest_at for group in same),
        newest_at=max(group.newest_at for group in same),
        reasons=[(group.reason, group.count) for group in same],
        examples=[key for group in same for key in group.examples][:EXAMPLES],
        advice=fallback or ADVICE.get(first.error or first.state.value, COMMON_ADVICE),
        retry=narrowed,
    )


def _counts(groups: Sequence[FailureGroup]) -> Mapping[str, int]:
    """Return how many deliveries failed, by target."""
    counts: Counter[str] = Counter()
    for group in groups:
        counts[group.target] += group.count
    return counts


def _efforts(site: Site, counts: Mapping[str, int]) -> Sequence[effort.Effort]:
    now = site.clock()
    lately = site.store.activity(now - effort.LOOK_BACK, now)
    return effort.effort(site.config, counts, lately, site.store.health(now))


def _filters(query: FailureQuery, here: Address) -> Sequence[tuple[str, str, str]]:
    """Return what the list is narrowed to: the filter's name, its value, and the URL without it."""
    said = (
        ("target", query.target, here.url(target=None)),
        ("source", query.source, here.url(source=None)),
        ("error", query.error, here.url(error=None)),
        ("HTTP status", query.status and str(query.status), here.url(status=None)),
        ("state", query.state and query.state.value, here.url(state=None)),
    )
    return [(name, value, without) for name, value, without in said if value]


def _last_success(site: Site, now: datetime) -> tuple[str, datetime] | None:
    """Return the target that last took something, and when."""
    seen = [(one.target, one.last_success_at) for one in site.store.queues(now)]
    return max(((target, at) for target, at in seen if at), key=lambda one: one[1], default=None)


# --- a retry -------------------------------------------------------------------------------------------------


def _bulk(site: Site, bulk_id: int) -> Bulk:
    bulk = site.store.bulk(bulk_id, site.clock()) if bulk_id <= GREATEST_ID else None
    if bulk is None:
        raise HttpProblem(404, f"There is no retry {bulk_id}. The page of failed deliveries lists the past ones.")
    return bulk


def _progress(site: Site, bulk: Bulk) -> Progress:
    states = sorted(((state, n) for state, n in bulk.states.items() if n), key=lambda one: -one[1])
    closed = [name for name in sorted(site.config.targets) if site.store.target_status(name).mode != "open"]
    return Progress(
        bulk,
        states,
        list(sentences(bulk, closed, site.clock())),
        sum(bulk.states.get(state, 0) for state in FAILING),
    )


def sentences(bulk: Bulk, closed: Sequence[str], now: datetime) -> Iterator[str]:
    """Yield in words how far *bulk* is, or what came of it. *closed* are the targets that take no deliveries."""
    if not bulk.total:
        yield "Nothing that failed matched any more when it began, so there was nothing to do."
        return
    if bulk.state is BulkState.RUNNING:
        yield from _so_far(bulk, closed, now)
        return
    if bulk.state is BulkState.CANCELLED:
        yield f"{bulk.ended_by or 'Somebody'} cancelled it."
        yield f"Of {count(bulk.total, 'delivery', 'deliveries')}, {_list(_are_now(bulk, LEFT))}."
        yield "What was not tried by then was left as it was."
        return
    said = _list(_are_now(bulk, CAME_TO))
    alone = bulk.total == 1
    yield (
        f"It was tried again and {said.removeprefix('1 ')}."
        if alone
        else f"All {bulk.total:,} were tried again: {said}."
    )
    if any(bulk.states.get(state) for state in FAILING):
        again = "It" if alone else "What failed again"
        yield f"{again} is back in the list of failed deliveries, with its reason."


def _so_far(bulk: Bulk, closed: Sequence[str], now: datetime) -> Iterator[str]:
    yield f"{bulk.settled:,} of {count(bulk.total, 'delivery', 'deliveries')} came to an end so far."
    held, retrying = bulk.states.get(State.HELD, 0), bulk.states.get(State.RETRYING, 0)
    if bulk.undecided:
        yield f"{_number(bulk.undecided)} for the worker to apply the rules again."
    if retrying:
        yield f"{_number(retrying)} for another try, because the target had trouble."
    if held:
        yield f"{_number(held)} until the target takes deliveries again."
    if held and closed:
        yield f"Paused or held now: {_list(closed)}."
    if bulk.settled >= ENOUGH and not held and not retrying:
        left_s = (now - bulk.at).total_seconds() * (bulk.total - bulk.settled) / bulk.settled
        yield f"About {span(left_s)} left at this pace."


def _number(waiting: int) -> str:
    return "1 waits" if waiting == 1 else f"{waiting:,} wait"


# What a delivery of a retry came to, as the end of a sentence: for one, and for many.
CAME_TO: Mapping[str, tuple[str, str]] = {
    State.SYNCED: ("is synced now", "are synced now"),
    State.FAILED: ("failed again", "failed again"),
    State.AMBIGUOUS: ("is ambiguous still", "are ambiguous still"),
    State.OPTED_OUT: ("is opted out", "are opted out"),
    State.REMOVED: ("is removed", "are removed"),
    State.WAITING: ("waits, because the rules ask for nothing now", "wait, because the rules ask for nothing now"),
}
# And of one that was cancelled: nobody can tell who failed before it from who failed in it.
LEFT = {**CAME_TO, State.FAILED: ("is failed", "are failed"), State.AMBIGUOUS: ("is ambiguous", "are ambiguous")}


def _are_now(bulk: Bulk, words: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    for state, (one, many) in words.items():
        if n := bulk.states.get(state, 0):
            yield f"{n:,} {one if n == 1 else many}"
    if moving := bulk.total - sum(bulk.states.get(state, 0) for state in words):
        yield f"{moving:,} {'is' if moving == 1 else 'are'} on the way"


def _list(parts: Iterator[str] | Sequence[str]) -> str:
    """Return *parts* as a sentence lists them: one, two and three."""
    *before, last = [*parts] or [""]
    return f"{', '.join(before)} and {last}" if before else last
