"""The story of bridge, in order: receive, process, deliver.

Nothing here knows a database or a web framework; each step is a named call, and what it decided is saved whole.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from bridge import contact as contacts
from bridge import log, rules, schedule
from bridge.config import SourceConnection, TargetConnection
from bridge.errors import (
    BadPayload,
    DeliveryFailed,
    LostLane,
    Refused,
    Retryable,
    SourceUnavailable,
    StoreUnavailable,
)
from bridge.model import (
    AuditEntry,
    Change,
    Contact,
    Delivery,
    Desired,
    Event,
    InboundRequest,
    Kind,
    Outcome,
    Receipt,
    RecordKey,
    Verified,
    Want,
    utc_now,
)
from bridge.outbound import Api
from bridge.rules import Route
from bridge.sources.base import Genuine, Read, change_fields
from bridge.store.protocol import (
    Attempt,
    Decision,
    Inbound,
    InboundResult,
    NewInbound,
    Store,
    TargetStatus,
    Ticket,
    Work,
)
from bridge.targets.base import Job

BATCH = 200  # inbounds a round: one transaction
READ_PAUSE_S = 5.0  # before the CRM is read again after a failure, doubled each time
READ_PAUSE_CAP_S = 900.0
PROBE_S = 60.0  # before a held target is tried again, doubled each time
PROBE_CAP_S = 1800.0


# --- receive: in the web process, while the sender waits --------------------------------------------------


def receive(connection: SourceConnection, request: InboundRequest, now: datetime) -> NewInbound:
    """Verify *request* and return what is to be stored. Nothing slow, and nothing decided.

    Raises:
        BadSignature: it is not provably from the source, or stale.
    """
    genuine = connection.source.verify(request, now)
    outcome, reason, keys = Outcome.ACCEPTED, "", ()
    try:
        keys = tuple(event.key for event in connection.source.parse(genuine, now))
    except BadPayload as error:
        outcome, reason = Outcome.UNREADABLE, str(error)
    except Exception as error:  # a bug of ours must not cost the sender's event: keep the bytes
        log.bug("inbound.parser_failed", error, source=connection.name)
        reason = f"Bridge failed to read it ({type(error).__name__}, a bug). It is kept for reprocessing."
        outcome = Outcome.ACCEPTED  # the worker will say the same, and the sender need not retry
    return NewInbound(
        source=connection.name,
        received_at=now,
        method=request.method,
        url=request.url,
        headers=connection.type.keeps(request.headers),
        body=request.body,
        event_keys=keys,
        outcome=outcome,
        reason=reason,
        secret_index=genuine.secret_index,
        signed_at=genuine.signed_at,
    )


# --- process: in a source's lane --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parsed:
    """A stored request with what it says, or why it says nothing."""

    inbound: Inbound
    events: Sequence[Event] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of processing came to."""

    woken: Mapping[str, datetime]  # lanes made due
    more: bool  # there is more to do at once


def process(
    connection: SourceConnection,
    routes: Sequence[Route],
    store: Store,
    ticket: Ticket,
    api: Callable[[], Api] | None,
    now: datetime,
) -> Round:
    """Process one batch of the source's lane: parse, read what events left out, merge, decide, commit.

    *api* makes a client for the CRM, None where records cannot be read.
    """
    work = store.work(connection.name, now, BATCH)
    if not work.inbounds and not work.keys:
        return Round({}, more=False)
    parsed = [parse(connection, inbound) for inbound in work.inbounds]
    account = work.account or _first_account(parsed)
    changes = [
        contacts.clamp(change, one.inbound.received_at)
        for one in parsed
        for event in one.events
        for change in event.changes
        if not _foreign(change, account)
    ]
    known = _load(store, {change.key for change in changes} | set(work.keys), changes)
    before = dict(known)
    touched = _merge_all(known, changes) | set(work.keys)
    reads_due = [key for key in sorted(touched) if _wants_read(known.get(key), now)] if api else []
    if api and reads_due:
        touched |= _read(connection, routes, api(), known, store, reads_due, now)
    touched &= known.keys()
    decision = Decision(
        contacts=[known[key] for key in sorted(touched) if known[key] != before.get(key)],
        wants=_decide(routes, known, touched, work, can_read=api is not None),
        results=[_result(one, account, known) for one in parsed],
        audit=[entry for one in parsed for entry in _facts(one, account, known, now)],
        erased={key for key in touched if known[key].erased},
        decided=work.keys,
        account=account,
    )
    return Round(store.commit(ticket, decision, now), more=work.more)


def parse(connection: SourceConnection, inbound: Inbound) -> Parsed:
    """Read a stored request again; what it says is the same as when it came."""
    if inbound.body is None:
        return Parsed(inbound, problem="Its payload was pruned or erased.")
    request = InboundRequest(inbound.method, inbound.url, inbound.headers, inbound.body)
    genuine = Genuine(Verified(request), inbound.secret_index, inbound.signed_at)
    try:
        return Parsed(inbound, connection.source.parse(genuine, inbound.received_at))
    except BadPayload as error:
        return Parsed(inbound, problem=str(error))
    except Exception as error:  # one request that we fail on must not stop the lane
        log.bug("inbound.parser_failed", error, source=connection.name, inbound=inbound.id)
        return Parsed(inbound, problem=f"Bridge failed to read it ({type(error).__name__}, a bug). It is kept.")


def _first_account(parsed: Iterable[Parsed]) -> str | None:
    accounts = (change.account for one in parsed for event in one.events for change in event.changes)
    return next((account for account in accounts if account), None)


def _foreign(change: Change, account: str | None) -> bool:
    """Two CRM accounts behind one URL would mix persons with equal ids: only the first one counts."""
    return bool(account and change.account and change.account != account)


def _load(store: Store, keys: set[RecordKey], changes: Sequence[Change]) -> dict[RecordKey, Contact]:
    """Return the contacts of *keys* and all that they are merged with, as far as they are known."""
    wanted = set(keys)
    wanted |= {RecordKey(change.key.source, change.survivor) for change in changes if change.survivor}
    known: dict[RecordKey, Contact] = {}
    while wanted:
        found = store.contacts(wanted)
        known |= found
        related = {
            RecordKey(contact.key.source, source_id)
            for contact in found.values()
            for source_id in (*contact.absorbed, *([contact.merged_into] if contact.merged_into else []))
        }
        wanted = related - known.keys() - wanted
    return known


def _merge_all(known: dict[RecordKey, Contact], changes: Sequence[Change]) -> set[RecordKey]:
    """Merge *changes* into *known*; return the keys of all contacts that they bear upon."""
    touched: set[RecordKey] = set()
    for change in changes:
        known[change.key] = contacts.merge(known.get(change.key), change)
        touched.add(change.key)
        if change.kind is Kind.MERGED and change.survivor:
            survivor = RecordKey(change.key.source, change.survivor)
            heir = known.get(survivor) or Contact(survivor)
            known[survivor] = contacts.absorb(heir, change.key)
            if change.heir_of:
                known[survivor] = contacts.inherit(known[survivor], known[change.key])
            touched.add(survivor)
    for key in list(touched):
        touched |= _pass_on(known, key)
    return touched


def _pass_on(known: dict[RecordKey, Contact], key: RecordKey) -> set[RecordKey]:
    """Hand what is new of a merged record on to its survivor, and to that one's."""
    passed: set[RecordKey] = set()
    while (loser := known[key]).merged_into:
        survivor = RecordKey(key.source, loser.merged_into)
        if survivor in passed or survivor == key or survivor not in known:
            break
        if key.source_id in known[survivor].inherits:
            known[survivor] = contacts.inherit(known[survivor], loser)
        passed.add(survivor)
        key = survivor
    return passed


def _wants_read(contact: Contact | None, now: datetime) -> bool:
    """Say whether the whole record should be read from the CRM: it is new to us, or was left thin."""
    if contact is None or not contact.alive:
        return False
    if contact.read_due is not None and contact.read_due > now:
        return False
    return contact.thin or contact.read_at is None


def _read(
    connection: SourceConnection,
    routes: Sequence[Route],
    api: Api,
    known: dict[RecordKey, Contact],
    store: Store,
    keys: Sequence[RecordKey],
    now: datetime,
) -> set[RecordKey]:
    """Read *keys* from the CRM and merge the answers; what cannot be read now is due again later."""
    fields = sorted({name for route in routes for name in route.reads})
    touched: set[RecordKey] = set()
    limit = connection.type.read_limit
    for start in range(0, len(keys), limit):
        batch = keys[start : start + limit]
        try:
            answers = connection.source.read(api, batch, fields)
        except SourceUnavailable as error:
            log.event("source.unreadable", level="warning", source=connection.name, records=len(keys) - start)
            for key in keys[start:]:
                known[key] = _read_later(known[key], error, now)
            break
        for answer in answers:
            touched |= _take_answer(known, store, answer, now)
    return touched


def _read_later(contact: Contact, error: SourceUnavailable, now: datetime) -> Contact:
    pause_s = max(min(READ_PAUSE_S * 2**contact.read_tries, READ_PAUSE_CAP_S), error.retry_after_s)
    return replace(
        contact,
        thin=True,
        read_due=now + timedelta(seconds=pause_s),
        read_tries=min(contact.read_tries + 1, 30),
        read_note=str(error),
    )


def _take_answer(known: dict[RecordKey, Contact], store: Store, answer: Read, now: datetime) -> set[RecordKey]:
    asked = known[answer.asked]
    done = replace(asked, thin=False, read_at=now, read_due=None, read_tries=0, read_note="")
    if answer.fields is None or answer.version is None:
        note = "The CRM does not know this record: it was deleted, or the event was a test."
        known[answer.asked] = replace(done, read_note=note)
        return set()
    if answer.key == answer.asked:
        change = Change(answer.key, Kind.CHANGED, answer.version, answer.fields, account=answer.account)
        known[answer.asked] = replace(contacts.merge(done, change), thin=False)
        return set()
    # The record lives on under another id: the same as a merge event that has not reached us.
    known[answer.asked] = done
    if answer.key not in known:
        known |= store.contacts([answer.key])
    loser = Change(
        answer.asked,
        Kind.MERGED,
        answer.version,
        survivor=answer.key.source_id,
        heir_of=True,
        account=answer.account,
    )
    survivor = Change(answer.key, Kind.CHANGED, answer.version, answer.fields, account=answer.account)
    touched = _merge_all(known, [loser, survivor])
    known[answer.key] = replace(known[answer.key], thin=False, read_at=now, read_due=None, read_tries=0)
    return touched


def _decide(
    routes: Sequence[Route],
    known: Mapping[RecordKey, Contact],
    touched: set[RecordKey],
    work: Work,
    *,
    can_read: bool,
) -> list[Want]:
    """Return what each target should hold. Survivors come first: they take over their losers' target ids."""
    wants = []
    for key in sorted(touched, key=lambda key: (known[key].merged_into is not None, key)):
        contact = known[key]
        absorbed = _lineage(known, contact, lambda one: one.absorbed)
        heirlooms = tuple(one.key.source_id for one in _lineage(known, contact, lambda one: one.inherits))
        for route in routes:
            want = rules.decide(route, contact, absorbed)
            if can_read:
                want = _after_reading(want, contact)
            wants.append(
                replace(
                    want,
                    inherit_from=heirlooms,
                    again=key in work.replays,
                    forget=contact.erased is not None,
                )
            )
    return wants


def _lineage(
    known: Mapping[RecordKey, Contact], contact: Contact, losers: Callable[[Contact], tuple[str, ...]]
) -> list[Contact]:
    """Return the records merged into *contact*, and into those, and so on."""
    found: dict[RecordKey, Contact] = {}
    queue = [contact]
    while queue:
        for source_id in losers(queue.pop()):
            key = RecordKey(contact.key.source, source_id)
            if key in known and key not in found and key != contact.key:
                found[key] = known[key]
                queue.append(known[key])
    return list(found.values())


def _after_reading(want: Want, contact: Contact) -> Want:
    """Nothing is built on half a record: until it was read once, only an opt-out goes out."""
    if not contact.alive or (want.desired and want.desired.opt_out):
        return want
    if contact.read_at is None:
        reason = f"Waiting to be read from the CRM. {contact.read_note} Bridge tries again by itself."
        return replace(want, desired=None, reason=" ".join(reason.split()))
    if want.desired is None and contact.read_note:
        return replace(want, reason=f"{want.reason} {contact.read_note}")
    return want


def _result(one: Parsed, account: str | None, known: Mapping[RecordKey, Contact]) -> InboundResult:
    """Say what became of an inbound as a whole."""
    changes = [change for event in one.events for change in event.changes]
    ours = [change for change in changes if not _foreign(change, account)]
    forget = any((contact := known.get(change.key)) is not None and contact.erased for change in ours)
    unreadable = one.problem or next((event.unreadable for event in one.events if event.unreadable), "")
    if unreadable:
        return InboundResult(one.inbound.id, Outcome.UNREADABLE, unreadable, forget)
    if ours:
        people = len({change.key for change in ours})
        return InboundResult(
            one.inbound.id, Outcome.PROCESSED, f"Spoke of {people} contact{'s' * (people != 1)}.", forget
        )
    if changes:
        reason = "It is from another CRM account than the one this source was first heard from."
        return InboundResult(one.inbound.id, Outcome.IGNORED, reason)
    reasons = sorted({event.ignored for event in one.events if event.ignored})
    return InboundResult(one.inbound.id, Outcome.IGNORED, " ".join(reasons) or "It holds no events.")


def _facts(
    one: Parsed, account: str | None, known: Mapping[RecordKey, Contact], now: datetime
) -> Iterable[AuditEntry]:
    """Yield an audit entry for each contact that an inbound spoke of."""
    by_key: dict[RecordKey, list[Change]] = {}
    for event in one.events:
        for change in event.changes:
            if not _foreign(change, account):
                by_key.setdefault(change.key, []).append(change)
    for key, changes in by_key.items():
        yield AuditEntry(
            at=now,
            kind="contact",
            outcome=changes[-1].kind.value,
            reason="Erased in the CRM: everything stored about this person was deleted."
            if known[key].erased
            else "",
            source=key.source,
            source_id=key.source_id,
            inbound_id=one.inbound.id,
            fields=change_fields(changes),
        )


# --- deliver: in a target's lane --------------------------------------------------------------------------


class Superseded(Exception):
    """Stop this push before its next write: newer state arrived, and is due at once."""


@dataclass
class Push:
    """One push under way, with what the store must remember before and after each write."""

    store: Store
    ticket: Ticket
    claimed: Delivery
    connection: TargetConnection
    turn: Callable[[], None]
    unsure_since: datetime | None = None

    def before_call(self) -> None:
        """Wait for a turn; the opt-out and the latest state are looked at again right before each call."""
        self.turn()
        if self.store.revision(self.claimed) != self.claimed.revision:
            raise Superseded

    def before_create(self) -> None:
        self.unsure_since = utc_now()
        self.store.mark_unsure(self.ticket, self.claimed, self.unsure_since)

    def create_refused(self) -> None:
        """The platform said no to the create: it certainly did not happen."""
        self.unsure_since = None

    def link(self, target_id: str) -> None:
        self.store.link(self.ticket, self.claimed, target_id)
        self.unsure_since = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one push came to, for the lane that made it."""

    delivery: Delivery
    refused: str = ""  # why the target was held


def deliver(push: Push, api: Api, *, settle: timedelta, now: datetime) -> Delivered:
    """Push one claimed delivery, classify what the platform said, and save it all at once."""
    store, claimed, connection = push.store, push.claimed, push.connection
    push.unsure_since = claimed.unsure_since
    desired = claimed.desired or Desired()
    job = Job(
        key=claimed.key,
        desired=desired,
        accepted=claimed.accepted,
        target_id=claimed.target_id,
        now=now,
        unsure_since=claimed.unsure_since,
        settled=claimed.unsure_since is None or now - claimed.unsure_since >= settle,
        link=push.link,
    )
    fields = schedule.unmet(desired, claimed.accepted)
    started = time.monotonic()
    receipt: Receipt | None = None
    error: DeliveryFailed | None = None
    try:
        target = connection.target
        receipt = target.remove(api, job) if desired.gone else target.deliver(api, job)
    except Superseded:
        return Delivered(
            store.finish(
                push.ticket,
                claimed,
                lambda row: schedule.superseded(_present(row, claimed), held=_held(store, claimed), now=utc_now()),
                None,
            )
        )
    except DeliveryFailed as failure:
        error = failure
    except (LostLane, StoreUnavailable):
        raise
    except Exception as failure:  # an answer that our adapter chokes on is the platform's nonsense
        log.bug("delivery.adapter_failed", failure, target=claimed.target, source_id=claimed.key.source_id)
        name = connection.type.title
        message = f"{name} answered something that bridge does not understand ({type(failure).__name__})."
        error = Retryable(message, code="nonsense", maybe_done=True)
    held = _held(store, claimed)
    if isinstance(error, Refused):
        held = _note_refusal(store, claimed.target, error, held)
    elif held.refusals and error is None:
        store.clear_refusals(claimed.target)
    if isinstance(error, Retryable) and error.code == "rate_limited":
        store.set_backoff(claimed.target, utc_now() + timedelta(seconds=max(error.retry_after_s, 1.0)))
    ended = utc_now()
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

    delivery = store.finish(push.ticket, claimed, close, attempt)
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
    return Delivered(delivery, held.reason if isinstance(error, Refused) and held.mode == "held" else "")


def _present(row: Delivery | None, claimed: Delivery) -> Delivery:
    return row or claimed


def _held(store: Store, claimed: Delivery) -> TargetStatus:
    return store.target_status(claimed.target)


def _note_refusal(store: Store, target: str, error: Refused, held: TargetStatus) -> TargetStatus:
    """Hold the target once it refused us as often as the error asks for."""
    now = utc_now()
    if store.note_refusal(target, now) < error.tries or held.mode != "open":
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
    except DeliveryFailed as error:
        held_for_s = (now - (status.since or now)).total_seconds()
        pause_s = min(max(PROBE_S, held_for_s), PROBE_CAP_S)
        store.hold(connection.name, str(error), now, now + timedelta(seconds=pause_s))
    else:
        log.event("target.resumed", target=connection.name)
        store.resume(connection.name, "bridge: the credentials work again", now)
    return store.target_status(connection.name)
