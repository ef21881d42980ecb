"""Deliver: in a target's lane, push one desired state, classify what the platform said, and save it at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from bridge import log, schedule
from bridge.config import TargetConnection
from bridge.errors import (
    DeliveryFailed,
    LostLane,
    Permanent,
    Refused,
    Retryable,
    StoreUnavailable,
    Superseded,
    Unstorable,
)
from bridge.model import Delivery, Desired, Receipt
from bridge.outbound import Api
from bridge.store.protocol import Attempt, Plan, Store, TargetStatus, Ticket
from bridge.targets.base import Job

PROBE_S = 60.0  # before a held target is tried again, doubled each time
PROBE_CAP_S = 1800.0
LONGEST_ID = 255  # characters of a target's own id: more than any platform's, and not more than an index takes


@dataclass
class Push:
    """One push under way, with what the store must remember before and after each write."""

    store: Store
    ticket: Ticket
    claimed: Delivery
    connection: TargetConnection
    clock: Callable[[], datetime]
    unsure_since: datetime | None = None

    def finish(
        self, close: Plan, attempt: Attempt | None, *, more: bool = False
    ) -> tuple[Delivery, Delivery | None]:
        """Save how it ended; return that, and with *more* what was claimed in the same transaction."""
        if not more:
            return self.store.finish(self.ticket, self.claimed, close, attempt), None
        keys = self.connection.type.keys
        return self.store.finish_and_claim(self.ticket, self.claimed, close, attempt, self.clock(), keys)

    def create_refused(self) -> None:
        """The platform said no to the create: it certainly did not happen."""
        self.unsure_since = None

    def link(self, target_id: str) -> None:
        _check_id(target_id)
        # A create that was noted durably is searched for when this is lost.
        self.store.link(self.ticket, self.claimed, target_id, durable=self.unsure_since is None)
        self.unsure_since = None


def deliver(
    push: Push, api: Api, *, settle: timedelta, now: datetime, more: Callable[[], bool] = lambda: False
) -> tuple[Delivery, Delivery | None]:
    """Push one claimed delivery, classify what the platform said, and save it all at once.

    Returns the delivery as it was saved, and what was claimed with it: something if the push went well, the lane
    has more that is due, and the caller wants *more*.
    """
    store, claimed, connection = push.store, push.claimed, push.connection
    push.unsure_since = claimed.unsure_since
    desired = claimed.desired or Desired()
    job = Job(
        key=claimed.key,
        desired=desired,
        accepted=schedule.believed(claimed),
        target_id=claimed.target_id,
        now=now,
        unsure_since=claimed.unsure_since,
        settled=claimed.unsure_since is None or now - claimed.unsure_since >= settle,
        before=claimed.accepted or {},
        tried=claimed.attempted or {},
        opted_out=claimed.accepted_opt_out,
        link=push.link,
    )
    fields = schedule.unmet(desired, claimed.accepted)
    started = time.monotonic()
    receipt: Receipt | None = None
    error: DeliveryFailed | None = None
    try:
        target = connection.target
        if (elder := _elder(connection, job)) is not None:
            # The create of unknown fate was sent with another key than the one wanted now.
            found = target.deliver(api, elder)
            job = replace(job, target_id=found.target_id, unsure_since=None, settled=True)
        said = target.remove(api, job) if desired.gone else target.deliver(api, job)
        _check_id(said.target_id)
        receipt = said
    except Superseded:
        held = _held(store, claimed)
        return push.finish(
            lambda row: schedule.superseded(
                replace(_present(row, claimed), unsure_since=push.unsure_since), held=held, now=push.clock()
            ),
            None,
        )
    except DeliveryFailed as failure:
        error = failure
    except (LostLane, StoreUnavailable):
        raise
    except Exception as failure:  # an answer that our adapter chokes on is the platform's nonsense
        key = claimed.key
        log.bug(
            "delivery.adapter_failed",
            failure,
            target=claimed.target,
            source=key.source,
            source_id=key.source_id,
        )
        name = connection.type.title
        message = f"{name} answered something that bridge does not understand ({type(failure).__name__})."
        error = Retryable(message, code="nonsense", maybe_done=True)
    ended = push.clock()
    # Whether the target is open is looked at again with the outcome; only a failure needs it before.
    held = _held(store, claimed) if error else TargetStatus(claimed.target)
    if isinstance(error, Refused):
        held = _note_refusal(push, error, held, ended)
    if isinstance(error, Retryable) and error.code == "rate_limited":
        until = ended + timedelta(seconds=max(error.retry_after_s, 1.0))
        store.set_backoff(claimed.target, until, push.ticket)
    attempt = Attempt(
        at=ended,
        outcome=receipt.outcome if receipt else (error.code if error else ""),
        reason=" ".join(receipt.notes) if receipt else str(error),
        duration_ms=round((time.monotonic() - started) * 1000),
        status=error.status if error else next((e.status for e in reversed(api.exchanges) if e.status), None),
        error=error.code if error else None,
        fields=fields,
        exchanges=tuple(api.exchanges),
    )

    def close(row: Delivery | None) -> Delivery:
        present = _present(row, claimed)
        if receipt is not None:
            return schedule.succeeded(present, claimed, receipt, held=held, now=ended)
        failure = error or Retryable("The push ended without an outcome.", code="nonsense")
        present = replace(present, unsure_since=push.unsure_since)
        return schedule.failed(present, claimed, failure, held=held, now=ended, draw=random.random())  # noqa: S311

    try:
        delivery, following = push.finish(close, attempt, more=error is None and more())
    except Unstorable as refusal:
        delivery, following = _give_up(push, attempt, refusal, held, ended), None
    log.event(
        "delivery.attempted",
        target=claimed.target,
        source=claimed.key.source,
        source_id=claimed.key.source_id,
        outcome=attempt.outcome,
        state=delivery.state.value,
        status=attempt.status,
        duration_ms=attempt.duration_ms,
        calls=len(api.exchanges),
    )
    return delivery, following


def _give_up(push: Push, attempt: Attempt, refusal: Unstorable, held: TargetStatus, now: datetime) -> Delivery:
    """End a push whose outcome the database refuses for good: tried again and again, it would stop its lane."""
    claimed = push.claimed
    log.bug(
        "delivery.unstorable",
        refusal,
        target=claimed.target,
        source=claimed.key.source,
        source_id=claimed.key.source_id,
    )
    error = Permanent(f"What came of the push cannot be stored. {refusal}", code="nonsense")

    def close(row: Delivery | None) -> Delivery:
        present = replace(_present(row, claimed), unsure_since=push.unsure_since)
        return schedule.failed(present, claimed, error, held=held, now=now, draw=0.0)

    bare = replace(attempt, outcome=error.code, reason=str(error), error=error.code, exchanges=())
    return push.finish(close, bare)[0]


def _elder(connection: TargetConnection, job: Job) -> Job | None:
    """Return a search for the contact that an unheard create may have made, where its key has changed since.

    It creates nothing; as long as the create is not settled, it raises as any push in doubt does.
    """
    if job.unsure_since is None or job.target_id is not None:
        return None
    names = connection.type.keys
    key = {name: value for name, value in job.tried.items() if name in names and value is not None}
    if not key or all(job.desired.fields.get(name) == value for name, value in key.items()):
        return None
    return replace(job, desired=Desired(fields=key, create=False), accepted=None)


def _check_id(target_id: str | None) -> None:
    """Refuse what no database can look up: the lane would try to store it again and again.

    Raises:
        Retryable: it is too long.
    """
    if target_id is not None and len(target_id) > LONGEST_ID:
        raise Retryable(
            f"The target calls the contact by an id of more than {LONGEST_ID} characters, which makes no sense.",
            code="nonsense",
            maybe_done=True,
        )


def _present(row: Delivery | None, claimed: Delivery) -> Delivery:
    return row or claimed


def _held(store: Store, claimed: Delivery) -> TargetStatus:
    return store.target_status(claimed.target)


def _note_refusal(push: Push, error: Refused, held: TargetStatus, now: datetime) -> TargetStatus:
    """Hold the target once it refused us as often as the error asks for."""
    store, target = push.store, push.claimed.target
    if error.code == "loosened":
        # A call of ours took an opt-out away, whoever has the lane by now. No probe can tell that this is safe
        # again; only a person can.
        log.event("target.paused", level="error", target=target, error=error.code)
        store.pause(target, str(error), "bridge", now)
        return store.target_status(target)
    if store.note_refusal(target, now, push.ticket) < error.tries or held.mode != "open":
        return store.target_status(target)
    log.event("target.held", level="error", target=target, error=error.code, status=error.status)
    store.hold(target, str(error), now, now + timedelta(seconds=PROBE_S))
    return store.target_status(target)


def probe(
    connection: TargetConnection, api: Api, store: Store, status: TargetStatus, now: datetime
) -> TargetStatus:
    """Try a held target's credentials with one harmless call: open it, or hold it for twice as long."""
    try:
        connection.target.check(api)
    except Exception as error:
        if not isinstance(error, DeliveryFailed):
            log.bug("target.probe_failed", error, target=connection.name)
        # What it was held for stays the reason, unless the platform itself says it anew.
        reason = str(error) if isinstance(error, Refused) else status.reason
        held_for_s = (now - (status.since or now)).total_seconds()
        pause_s = min(max(PROBE_S, held_for_s), PROBE_CAP_S)
        store.hold(connection.name, reason, now, now + timedelta(seconds=pause_s))
    else:
        log.event("target.resumed", target=connection.name)
        store.resume(connection.name, "bridge: the credentials work again", now, held_only=True)
    return store.target_status(connection.name)
