"""Process: in a source's lane, from stored bytes to what each target should hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from bridge import contact as contacts
from bridge import log, rules
from bridge.config import SourceConnection
from bridge.errors import BadPayload, LostLane, SourceUnavailable, StoreUnavailable, Unstorable
from bridge.model import (
    AuditEntry,
    Change,
    Contact,
    Event,
    InboundRequest,
    Kind,
    Outcome,
    RecordKey,
    Verified,
    Want,
)
from bridge.outbound import Api
from bridge.pipeline import consenting
from bridge.pipeline.merging import lineage, load, merge_all
from bridge.pipeline.reading import after_reading, read, unless_readable, wants_read
from bridge.rules import Route
from bridge.sources.base import Genuine, change_fields, event_types
from bridge.store.protocol import Decision, Inbound, InboundResult, Store, Ticket, Work

# What is queued is sorted by contact before it is dealt with, since a burst goes around: an import that touches
# 500 persons ten times does not touch one of them ten times in a row. Each round then takes some contacts with all
# that was said of them, decides once for each, and is one transaction: short, for webhooks wait to be stored.
BATCH = 1000  # inbounds looked at together
ROUND = 100  # contacts; as many as most CRMs let be read at once
# So many at once are a burst (an import, a bulk edit): more about the same persons is likely to follow at once.
BURST = 10
BURST_QUIET_S = 1.5


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
    more: bool  # there is more to do at once, in this batch or another
    inbounds: Sequence[int] = ()  # ids of what was read


T = TypeVar("T")
Decide = Callable[[Sequence[Parsed], Sequence[RecordKey]], Decision]
Save = Callable[[Decision], Mapping[str, datetime]]  # returns the lanes made due


def process(
    connection: SourceConnection,
    routes: Sequence[Route],
    store: Store,
    ticket: Ticket,
    api: Callable[[], Api] | None,
    now: datetime,
    crm: Callable[[], Api] | None = None,
) -> Iterator[Round]:
    """Process one batch of the source's lane, a round at a time: parse, merge, decide, commit.

    What is in rounds that are not asked for stays queued. Where one contact makes its round fail, the others are
    processed all the same, and what speaks of that one ends as unreadable. *api* makes a client for the CRM, None
    where records cannot be read; *crm* makes one where opt-outs are written back.
    """
    work = store.work(connection.name, now, BATCH)
    parsed = [parse(connection, inbound) for inbound in work.inbounds]
    work = replace(work, account=work.account or _first_account(parsed))
    rounds = _rounds(parsed, work.keys)

    def decide(some: Sequence[Parsed], keys: Sequence[RecordKey]) -> Decision:
        return _decision(connection, routes, store, api, crm, replace(work, keys=keys), some, now)

    def save(decision: Decision) -> Mapping[str, datetime]:
        return store.commit(ticket, decision, now)

    for number, (some, keys) in enumerate(rounds, 1):
        try:
            decision = decide(some, keys)
            woken = save(_ended(decision, some, decision.erased, {}, now))
        except Exception as error:
            if not is_poison(error):
                raise
            woken = _contact_by_contact(decide, save, some, keys, work.account, now)
        yield Round(woken, work.more or number < len(rounds), [one.inbound.id for one in some])


# --- when a contact makes its round fail -----------------------------------------------------------------------


def is_poison(error: Exception) -> bool:
    """Say whether what was to be decided or saved makes it fail, and would again; all else may pass."""
    if isinstance(error, StoreUnavailable):
        return isinstance(error, Unstorable)
    return not isinstance(error, LostLane | SourceUnavailable | OSError | MemoryError)


def _contact_by_contact(
    decide: Decide,
    save: Save,
    parsed: Sequence[Parsed],
    keys: Sequence[RecordKey],
    account: str | None,
    now: datetime,
) -> Mapping[str, datetime]:
    """Decide for each contact of a round, and save it, by itself, so that one that fails harms nobody else.

    Merging asks for no order. The inbounds are ended last, for what speaks of several is only processed if all
    of them were; until then it is processed again after a crash, which changes nothing.
    """
    woken: dict[str, datetime] = {}
    erased: set[RecordKey] = set()
    failed: dict[int, str] = {}  # inbound -> why
    by_id = {one.inbound.id: one for one in parsed}
    told = _told(parsed, account)
    due = set(keys)
    for key in dict.fromkeys([*told, *keys]):
        ids = list(dict.fromkeys(told.get(key, ())))
        marked = [key] if key in due else []
        try:
            decision = decide([_only_of(key, by_id[inbound_id]) for inbound_id in ids], marked)
            for lane, moment in save(decision).items():
                woken[lane] = min(moment, woken.get(lane, moment))
            erased |= set(decision.erased)
        except Exception as error:
            if not is_poison(error):
                raise
            log.bug("contact.failed", error, source=key.source, source_id=key.source_id, count=len(ids))
            why = _trouble(error)
            failed |= dict.fromkeys(ids, why)
            _give_up(save, key, marked, ids, why, now)
    if parsed:
        _end(save, parsed, account, erased, failed, now)
    return woken


def _only_of(key: RecordKey, one: Parsed) -> Parsed:
    """Return what *one* says of *key*, and nothing of what it says of others."""
    told = [
        replace(event, changes=tuple(change for change in event.changes if change.key == key))
        for event in one.events
    ]
    return replace(one, events=[event for event in told if event.changes])


def _trouble(error: Exception) -> str:
    if isinstance(error, Unstorable):
        return str(error)
    return f"Bridge failed to decide what follows from it ({type(error).__name__}, a bug)."


def _give_up(
    save: Save, key: RecordKey, marked: Sequence[RecordKey], inbounds: Sequence[int], why: str, now: datetime
) -> None:
    """Say why at the contact, where its erasure finds the inbounds; its marks go, or it were due again at once."""
    facts = [
        AuditEntry(now, "contact", "failed", why, source=key.source, source_id=key.source_id, inbound_id=one)
        for one in (*inbounds, *([] if inbounds else [None]))
    ]
    try:
        save(Decision(audit=facts, decided=marked))
    except Unstorable:  # of its id, perhaps: the inbounds say why as well
        if marked:
            save(Decision(decided=marked))


def _end(
    save: Save,
    parsed: Sequence[Parsed],
    account: str | None,
    erased: Collection[RecordKey],
    failed: Mapping[int, str],
    now: datetime,
) -> None:
    """Save what became of inbounds, and without the names of its events where those are what is refused."""
    try:
        save(_ended(Decision(account=account), parsed, erased, failed, now))
    except Unstorable as error:
        if len(parsed) > 1:
            for one in parsed:
                _end(save, [one], account, erased, failed, now)
            return
        (one,) = parsed
        log.bug("inbound.unstorable", error, inbound=one.inbound.id)
        save(_ended(Decision(), [replace(one, events=())], erased, {one.inbound.id: str(error)}, now))


# --- deciding --------------------------------------------------------------------------------------------------


def _rounds(parsed: Sequence[Parsed], keys: Sequence[RecordKey]) -> list[tuple[list[Parsed], list[RecordKey]]]:
    """Deal *parsed* and *keys* out to rounds of so many contacts, with all that was said of one side by side.

    What speaks of several counts as said of the first, and what speaks of none is said of nobody in particular.
    """
    said: dict[RecordKey | None, list[Parsed]] = {}
    for one in parsed:
        spoken_of = (change.key for event in one.events for change in event.changes)
        said.setdefault(next(spoken_of, None), []).append(one)
    due = set(keys)
    rounds = [
        ([one for key in some for one in said[key]], [key for key in some if key in due])
        for some in _slices(list(said))
    ]
    # Last, so that what comes in need not wait for the replay of a hundred thousand, nor for what the CRM is told.
    return rounds + [([], some) for some in _slices([key for key in dict.fromkeys(keys) if key not in said])]


def _slices(order: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(order), ROUND):
        yield list(order[start : start + ROUND])


def _decision(
    connection: SourceConnection,
    routes: Sequence[Route],
    store: Store,
    api: Callable[[], Api] | None,
    crm: Callable[[], Api] | None,
    work: Work,
    parsed: Sequence[Parsed],
    now: datetime,
) -> Decision:
    """Merge what *parsed* says and decide anew for everybody concerned. *work* has the keys of this round.

    What became of the inbounds themselves is told by `_ended`.
    """
    account = work.account
    changes = [
        contacts.clamp(change, one.inbound.received_at)
        for one in parsed
        for event in one.events
        for change in event.changes
        if not _foreign(change, account)
    ]
    known = _load(store, {change.key for change in changes} | set(work.keys), changes)
    before = dict(known)
    touched = merge_all(known, changes) | set(work.keys)
    reads_due = [key for key in sorted(touched) if wants_read(known.get(key), now)] if api else []
    if api and reads_due:
        touched |= read(connection, routes, api(), known, store, reads_due, now)
    touched &= known.keys()
    for key in touched:
        # What the CRM is to be told is due like what it is to be asked.
        known[key] = unless_readable(known[key], can_read=api is not None or crm is not None)
    told = []
    if crm is not None and (writer := connection.writer()) is not None:
        due = () if parsed else work.keys  # what came live waits for no CRM
        told = consenting.write_back(connection, writer, crm, known, touched, due, now)
    before_erased = {key for key, contact in before.items() if contact.erased}
    spoken = [entry for one in parsed for entry in _facts(one, account, known, now)]
    return Decision(
        contacts=[known[key] for key in sorted(touched) if known[key] != before.get(key)],
        wants=wants_of(routes, known, touched, work, _told(parsed, account), can_read=api is not None),
        audit=[*spoken, *told, *_erased_along(known, touched - before_erased, spoken, now)],
        erased={key for key in touched if known[key].erased},
        decided=work.keys,
        account=account,
    )


def parse(connection: SourceConnection, inbound: Inbound) -> Parsed:
    """Read a stored request again; what it says is the same as when it came."""
    if inbound.body is None:
        return Parsed(inbound, problem="Its payload was pruned or erased.")
    if inbound.method == consenting.METHOD:
        return _consent(connection, inbound, inbound.body)
    request = InboundRequest(inbound.method, inbound.url, inbound.headers, inbound.body)
    genuine = Genuine(Verified(request), inbound.secret_index, inbound.signed_at)
    try:
        events = connection.source.parse(genuine, inbound.received_at)
        return Parsed(inbound, [event if _storable(event) else _unfit(event) for event in events])
    except BadPayload as error:
        return Parsed(inbound, problem=str(error))
    except Exception as error:  # one request that we fail on must not stop the lane
        log.bug("inbound.parser_failed", error, source=connection.name, inbound=inbound.id)
        return Parsed(inbound, problem=f"Bridge failed to read it ({type(error).__name__}, a bug). It is kept.")


def _consent(connection: SourceConnection, inbound: Inbound, body: bytes) -> Parsed:
    try:
        return Parsed(inbound, consenting.read(connection.name, body, inbound.received_at))
    except BadPayload as error:
        return Parsed(inbound, problem=str(error))


def _storable(event: Event) -> bool:
    """Say whether all ids are text. Where a part of one was none (U+FFFD), two persons might share the rest."""
    ids = [part for change in event.changes for part in (change.key.source_id, change.survivor or "")]
    return all(map(is_text, ids))


def is_text(source_id: str) -> bool:
    return "\0" not in source_id and "\ufffd" not in source_id


def _unfit(event: Event) -> Event:
    why = "The id of its contact holds characters that are no text."
    return Event(event.key, unreadable=why, type=event.type)


def _first_account(parsed: Iterable[Parsed]) -> str | None:
    accounts = (change.account for one in parsed for event in one.events for change in event.changes)
    return next((account for account in accounts if account), None)


def _foreign(change: Change, account: str | None) -> bool:
    """Two CRM accounts behind one URL would mix persons with equal ids: only the first one counts."""
    return bool(account and change.account and change.account != account)


def _load(store: Store, keys: set[RecordKey], changes: Sequence[Change]) -> dict[RecordKey, Contact]:
    """Return the contacts of *keys* and all that they are merged with, as far as they are known."""
    survivors = {RecordKey(change.key.source, change.survivor) for change in changes if change.survivor}
    return load(store.contacts, keys | survivors)


def _told(parsed: Iterable[Parsed], account: str | None) -> dict[RecordKey, list[int]]:
    """Return for each contact that was spoken of the inbound of each change."""
    told: dict[RecordKey, list[int]] = {}
    for one in parsed:
        for event in one.events:
            for change in event.changes:
                if not _foreign(change, account):
                    told.setdefault(change.key, []).append(one.inbound.id)
    return told


def wants_of(
    routes: Sequence[Route],
    known: Mapping[RecordKey, Contact],
    touched: set[RecordKey],
    work: Work,
    told: Mapping[RecordKey, Sequence[int]],
    *,
    can_read: bool,
) -> list[Want]:
    """Return what each target should hold. Survivors come first: they take over their losers' target ids."""
    wants = []
    for key in sorted(touched, key=lambda key: (known[key].merged_into is not None, key)):
        contact = known[key]
        absorbed = lineage(known, contact, lambda one: one.absorbed)
        heirs_of = lineage(known, contact, lambda one: one.inherits)
        # Records of an erased person pass nothing on: each lets go of, or removes, what it is linked to itself.
        again, spoken = key in work.replays, told.get(key, ())
        heirlooms = () if contact.erased else tuple(one.key.source_id for one in heirs_of)
        for route in routes:
            want = rules.decide(route, contact, absorbed)
            if can_read:
                want = after_reading(want, contact)
            wants.append(
                replace(
                    want,
                    inherit_from=heirlooms,
                    again=again,
                    forget=contact.erased is not None,
                    quiet_s=BURST_QUIET_S if len(work.inbounds) > BURST else 0.0,
                    inbound_id=max(spoken, default=None),
                    changes=len(spoken),
                )
            )
    return wants


def _ended(
    decision: Decision,
    parsed: Sequence[Parsed],
    erased: Collection[RecordKey],
    failed: Mapping[int, str],
    now: datetime,
) -> Decision:
    """Return *decision* with what became of *parsed*; those that *failed* are unreadable, for the reason there."""
    results = [_result(one, decision.account, erased, failed.get(one.inbound.id, "")) for one in parsed]
    return replace(decision, results=results, audit=[*_silent(parsed, results, now), *decision.audit])


def _result(one: Parsed, account: str | None, erased: Collection[RecordKey], failed: str) -> InboundResult:
    """Say what became of an inbound as a whole."""
    outcome, reason, forget = _outcome(one, account, erased)
    if failed:
        outcome, reason = Outcome.UNREADABLE, failed if forget else f"{failed} It is kept."
    types = event_types(one.events) or one.inbound.event_types  # without a body, those of before
    return InboundResult(one.inbound.id, outcome, reason, forget, types)


def _outcome(one: Parsed, account: str | None, erased: Collection[RecordKey]) -> tuple[Outcome, str, bool]:
    """Return the outcome of an inbound with its reason, and whether it speaks of somebody erased."""
    changes = [change for event in one.events for change in event.changes]
    ours = [change for change in changes if not _foreign(change, account)]
    forget = any(change.key in erased for change in ours)
    unreadable = one.problem or next((event.unreadable for event in one.events if event.unreadable), "")
    if unreadable:
        return Outcome.UNREADABLE, unreadable, forget
    if ours:
        people = len({change.key for change in ours})
        return Outcome.PROCESSED, f"Spoke of {people} contact{'s' * (people != 1)}.", forget
    if changes:
        reason = "It is from another CRM account than the one this source was first heard from."
        return Outcome.IGNORED, reason, False
    reasons = sorted({event.ignored for event in one.events if event.ignored})
    return Outcome.IGNORED, " ".join(reasons) or "It holds no events.", False


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
            reason=_said(changes[-1], known[key]),
            source=key.source,
            source_id=key.source_id,
            inbound_id=one.inbound.id,
            fields=change_fields(changes),
        )


def _said(change: Change, contact: Contact) -> str:
    """Return what the kind of *change* alone does not tell."""
    if contact.erased:
        return "Erased in the CRM: everything stored about this person was deleted."
    if change.kind is Kind.STOPPED:
        return f"The person said stop at {change.target}: all targets are told, until it is taken back there."
    if change.kind is Kind.STARTED:
        return f"The person asked for messages again at {change.target}; what was said elsewhere still holds."
    return ""


def _silent(parsed: Iterable[Parsed], results: Iterable[InboundResult], now: datetime) -> Iterable[AuditEntry]:
    """Yield an audit entry for each inbound that led to no contact, saying why."""
    for one, result in zip(parsed, results, strict=True):
        if result.outcome is not Outcome.PROCESSED:
            yield AuditEntry(
                at=now,
                kind="inbound",
                outcome=result.outcome.value,
                reason=result.reason,
                source=one.inbound.source,
                inbound_id=one.inbound.id,
            )


def _erased_along(
    known: Mapping[RecordKey, Contact], touched: Iterable[RecordKey], spoken: Iterable[AuditEntry], now: datetime
) -> Iterable[AuditEntry]:
    """Yield an audit entry for each contact erased just now that no inbound of this round spoke of."""
    told = {(entry.source, entry.source_id) for entry in spoken}
    for key in sorted(touched):
        if known[key].erased and (key.source, key.source_id) not in told:
            yield AuditEntry(
                at=now,
                kind="contact",
                outcome=Kind.ERASED.value,
                reason="Merged with a contact that was erased in the CRM, so it is the same person: everything "
                "stored about this person was deleted.",
                source=key.source,
                source_id=key.source_id,
            )
