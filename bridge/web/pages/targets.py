"""Targets: whether each takes deliveries, what waits for it, and pausing and resuming it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flask import Blueprint, redirect, request
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import MultiDict

from bridge import log
from bridge.config import TargetConnection
from bridge.model import State
from bridge.store.looking import Queue, Role
from bridge.store.protocol import Health, TargetStatus
from bridge.web import health
from bridge.web.pages import effort
from bridge.web.pages.access import actor, needs
from bridge.web.pages.effort import Effort
from bridge.web.pages.site import Site, say
from bridge.web.pages.words import count
from bridge.web.problem import HttpProblem
from bridge.web.queries import PauseBody, ResumeBody, read_form

LONGEST_REASON = 300

# In this order: what moves, what waits for somebody, what is settled.
STATES = (
    State.SENDING,
    State.PENDING,
    State.RETRYING,
    State.HELD,
    State.FAILED,
    State.AMBIGUOUS,
    State.WAITING,
    State.SYNCED,
    State.OPTED_OUT,
    State.REMOVED,
)
MOVING = (State.SENDING, State.PENDING, State.RETRYING, State.HELD)


@dataclass(frozen=True, slots=True)
class Quota:
    """What bridge allows itself at a target. *left*: calls that it may make at once now."""

    rate_per_s: float
    burst: int
    left: int
    closed_until: datetime | None  # the platform asked for no calls until then

    @property
    def used(self) -> int:
        return max(0, self.burst - self.left)


@dataclass(frozen=True, slots=True)
class Item:
    """A target as the page shows it."""

    name: str
    title: str
    host: str
    status: TargetStatus
    queue: Queue
    quota: Quota
    lanes: int
    feedback: bool  # its own webhooks tell of consent
    counts: Mapping[State, int]  # by state; only those that there are

    @property
    def moving(self) -> int:
        """How many deliveries are behind what is desired."""
        return sum(self.counts.get(state, 0) for state in MOVING)

    def of(self, *states: State) -> int:
        return sum(self.counts.get(state, 0) for state in states)


def items_of(site: Site, seen: Health, now: datetime) -> Sequence[Item]:
    """Return every configured target."""
    queues = {one.target: one for one in site.store.queues(now)}
    statuses = {one.target: one for one in seen.targets}
    return [
        _item(one, seen, statuses.get(name, TargetStatus(name)), queues.get(name, Queue(name)), now)
        for name, one in site.config.targets.items()
    ]


def _item(connection: TargetConnection, seen: Health, status: TargetStatus, queue: Queue, now: datetime) -> Item:
    counts = {state: seen.deliveries.get((connection.name, state), 0) for state in STATES}
    return Item(
        name=connection.name,
        title=connection.type.title,
        host=connection.base_url,
        status=status,
        queue=queue,
        quota=_quota(connection, queue, now),
        lanes=connection.lanes,
        feedback=connection.type.feedback is not None,
        counts={state: many for state, many in counts.items() if many},
    )


def _quota(connection: TargetConnection, queue: Queue, now: datetime) -> Quota:
    left = connection.burst if queue.tokens is None else int(min(max(0.0, queue.tokens), connection.burst))
    closed = queue.closed_until if queue.closed_until and queue.closed_until > now else None
    return Quota(connection.rate_per_s, connection.burst, 0 if closed else left, closed)


# --- pages ---------------------------------------------------------------------------------------------------


def blueprint(site: Site) -> Blueprint:
    pages = Blueprint("targets", __name__)

    @pages.get("/targets")
    def targets() -> ResponseReturnValue:
        now = site.clock()
        seen = site.store.health(now)
        return site.page(
            "targets.html",
            targets=items_of(site, seen, now),
            routes=site.config.routes,
            worker_alive=health.worker_alive(seen, now),
            worker_seen_at=seen.worker_seen_at,
        )

    @pages.get("/targets/<name>/pause")
    @needs(Role.OPERATOR)
    def ask_pause(name: str) -> ResponseReturnValue:
        return site.page("target_pause.html", target=_of(site, name), longest=LONGEST_REASON)

    @pages.post("/targets/<name>/pause")
    @needs(Role.OPERATOR)
    def pause(name: str) -> ResponseReturnValue:
        before = _of(site, name)
        reason = _reason(read_form(PauseBody, _form()).reason)
        site.store.pause(name, reason, actor(), site.clock())
        log.event("target.paused", target=name, by=actor())
        waiting = before.of(State.PENDING, State.RETRYING, State.HELD)
        wait = (
            f"{count(waiting, 'delivery waits', 'deliveries wait')} until" if waiting else "Nothing is sent until"
        )
        say(f"{name} is paused. {wait} somebody resumes it; what comes in meanwhile is kept.")
        return redirect("/targets", 303)

    @pages.get("/targets/<name>/resume")
    @needs(Role.OPERATOR)
    def ask_resume(name: str) -> ResponseReturnValue:
        target = _of(site, name)
        return site.page("target_resume.html", target=target, effort=_effort(site, target), longest=LONGEST_REASON)

    @pages.post("/targets/<name>/resume")
    @needs(Role.OPERATOR)
    def resume(name: str) -> ResponseReturnValue:
        before = _of(site, name)
        if before.status.mode == "open":
            say(f"{name} was open already. Nothing was changed.")
            return redirect("/targets", 303)
        given = read_form(ResumeBody, _form()).reason
        by = f"{actor()}: {_reason(given)}" if given else actor()
        site.store.resume(name, by, site.clock())
        site.ring()
        log.event("target.resumed", target=name, by=actor())
        held = before.of(State.HELD)
        sent = f"{count(held, 'delivery goes out', 'deliveries go out')} now, as its quota allows" if held else ""
        say(f"{name} is open again; {sent or 'nothing waited for it'}.")
        return redirect("/targets", 303)

    return pages


def _form() -> MultiDict[str, str]:
    return MultiDict((name, value) for name, value in request.form.items(multi=True) if name != "csrf")


def _reason(given: str) -> str:
    """Return a person's words in one line that fits the audit log."""
    return " ".join(given.split())[:LONGEST_REASON]


def _of(site: Site, name: str) -> Item:
    now = site.clock()
    found = next((one for one in items_of(site, site.store.health(now), now) if one.name == name), None)
    if found is None:
        raise HttpProblem(404, "There is no target of that name in the configuration.")
    return found


def _effort(site: Site, target: Item) -> Effort:
    """Return what it takes to send what is held, were the target open."""
    now = site.clock()
    lately = site.store.activity(now - effort.LOOK_BACK, now)
    (found,) = effort.effort(site.config, {target.name: target.of(State.HELD)}, lately, Health())
    return found
