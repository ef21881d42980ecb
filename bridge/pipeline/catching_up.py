"""Catch up: go through a CRM's list of contacts, a page at a time, behind everything that comes live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from bridge import catch_up, log
from bridge import contact as contacts
from bridge.catch_up import Effect
from bridge.config import SourceConnection
from bridge.errors import SourceUnavailable
from bridge.model import (
    BACKFILL,
    RECONCILE,
    AuditEntry,
    CatchUp,
    Change,
    Contact,
    Kind,
    Progress,
    RecordKey,
    Value,
    Want,
    iso,
)
from bridge.outbound import Api
from bridge.pipeline.merging import load, merge_all
from bridge.pipeline.processing import is_poison, is_text, wants_of
from bridge.pipeline.reading import fields_of
from bridge.rules import Route
from bridge.sources.base import Lister, Read
from bridge.store.protocol import Decision, Store, Ticket, Work


@dataclass(frozen=True, slots=True)
class Looked:
    """What a page of contacts comes to, before anything of it is saved."""

    decision: Decision
    effects: Sequence[tuple[str, Effect]]
    changed: int
    missed: int
    unread: int


def step(
    connection: SourceConnection,
    lister: Lister,
    routes: Sequence[Route],
    store: Store,
    ticket: Ticket,
    api: Api,
    progress: CatchUp,
    now: datetime,
) -> Mapping[str, datetime]:
    """Read the next page and save what it comes to; return the lanes made due.

    What is saved is the page with its place in the list, or nothing of both. A page that cannot be dealt with is
    asked for again later: whatever it is, it must not stop the source's lane, which live changes go through.
    """
    try:
        return _step(connection, lister, routes, store, ticket, api, progress, now)
    except SourceUnavailable as error:
        log.event("catch_up.waits", level="warning", source=connection.name, kind=progress.kind)
        why, retry_after_s = str(error), error.retry_after_s
    except Exception as error:
        if not is_poison(error):
            raise
        log.bug("catch_up.failed", error, source=connection.name, kind=progress.kind)
        why, retry_after_s = f"Bridge failed on a page of the CRM's list ({type(error).__name__}, a bug).", 0.0
    return store.commit(ticket, Decision(catch_up=catch_up.failed(progress, why, retry_after_s, now)), now)


def put_off(store: Store, ticket: Ticket, progress: CatchUp, now: datetime) -> None:
    """Have *progress* wait, for there is nothing any more to list contacts with."""
    why = "No credential is configured any more with which the CRM's contacts can be listed."
    store.commit(ticket, Decision(catch_up=catch_up.failed(progress, why, 0.0, now)), now)


def _step(
    connection: SourceConnection,
    lister: Lister,
    routes: Sequence[Route],
    store: Store,
    ticket: Ticket,
    api: Api,
    progress: CatchUp,
    now: datetime,
) -> Mapping[str, datetime]:
    page = lister.page(api, fields_of(routes), progress.after, progress.since)
    looked = look(routes, store, connection.name, page.records, now, reconcile=progress.since is not None)
    ended = page.after is None
    after = replace(
        progress,
        after=page.after,
        state=Progress.DONE if ended else Progress.RUNNING,
        reason="",
        due_at=None if ended else now,
        updated_at=now,
        tries=0,
        seen=progress.seen + len(page.records),
        changed=progress.changed + looked.changed,
        missed=progress.missed + looked.missed,
        unread=progress.unread + looked.unread,
        total=page.total if page.total is not None else progress.total,
        effects=catch_up.added(progress.effects, looked.effects),
    )
    if progress.kind == BACKFILL and (why := catch_up.why_asked(after)):
        log.event("catch_up.asks", level="warning", source=connection.name, kind=after.kind, seen=after.seen)
        return store.commit(ticket, Decision(catch_up=catch_up.asked(progress, why, now)), now)
    if ended:
        log.event("catch_up.done", source=connection.name, kind=after.kind, seen=after.seen, missed=after.missed)
    return store.commit(ticket, replace(looked.decision, catch_up=after), now)


def look(
    routes: Sequence[Route],
    store: Store,
    source: str,
    records: Sequence[Read],
    now: datetime,
    *,
    reconcile: bool = False,
) -> Looked:
    """Merge a page of *records* into what is known and decide for whoever is not as we know them."""
    account = store.work(source, now, 1).account
    changes, unread = [], []
    for read in records:
        if why := _why_unread(read, account):
            unread.append(
                AuditEntry(now, "contact", "unread", why, source=read.key.source, source_id=read.key.source_id)
            )
        elif read.fields is not None and read.version is not None:
            change = Change(read.key, Kind.CHANGED, read.version, read.fields, account=read.account)
            changes.append(contacts.clamp(change, now))
    known = load(store.contacts, {change.key for change in changes})
    before = dict(known)
    touched = merge_all(known, changes)
    news = {key for key in touched if _is_news(before.get(key), known[key])}
    for change in changes:
        if change.key in news:
            known[change.key] = replace(
                known[change.key], thin=False, read_at=now, read_due=None, read_tries=0, read_note=""
            )
    wants = [replace(want, low=True) for want in wants_of(routes, known, news, Work(), {}, can_read=True)]
    versions = {change.key: change.version.occurred_at for change in changes}
    late = {
        key
        for key in news
        if reconcile
        and key in versions
        and versions[key] < now - catch_up.GRACE
        and not _announced(before.get(key), known[key])
    }
    facts = [_fact(key, before.get(key), known[key], now, missed=key in late) for key in sorted(news)]
    return Looked(
        # Also of whom nothing is news: a webhook that was older than the list, and comes late, is to be so then.
        Decision(
            contacts=[known[key] for key in sorted(touched) if known[key] != before.get(key)],
            wants=wants,
            audit=[*unread, *facts],
        ),
        _effects(store, wants),
        changed=len(news),
        missed=len(late),
        unread=len(unread),
    )


def _why_unread(read: Read, account: str | None) -> str:
    """Return why nothing was learnt of a listed record, "" if something was."""
    if account and read.account and account != read.account:
        return "It is from another CRM account than the one this source was first heard from."
    if not is_text(read.key.source_id):
        return "The id of its contact holds characters that are no text."
    if read.fields is None or read.version is None:
        return read.problem or "The CRM's list told nothing of this contact."
    return ""


def _announced(before: Contact | None, after: Contact) -> bool:
    """Say whether webhooks had told of it: all, or that there is something to be read, which was not read yet."""
    return before is not None and (before.thin or _values(before) == _values(after))


def _values(contact: Contact) -> Mapping[str, Value]:
    return {name: state.value for name, state in contact.fields.items()}


def _is_news(before: Contact | None, after: Contact) -> bool:
    """Say whether the list told something that we did not know, other than when it was."""
    if before is None or before.thin or before.read_at is None:
        return True
    return _values(before) != _values(after) or replace(before, fields={}) != replace(after, fields={})


def _effects(store: Store, wants: Sequence[Want]) -> list[tuple[str, Effect]]:
    present = store.deliveries_for({want.key for want in wants})
    found = ((want, catch_up.effect_of(want, present.get((want.target, want.key)))) for want in wants)
    return [(want.target, effect) for want, effect in found if effect is not None]


def _fact(key: RecordKey, before: Contact | None, after: Contact, now: datetime, *, missed: bool) -> AuditEntry:
    known = before.fields if before else {}
    names = sorted(
        name for name, state in after.fields.items() if name not in known or known[name].value != state.value
    )
    return AuditEntry(
        at=now,
        kind="contact",
        outcome="missed" if missed else Kind.CHANGED.value,
        reason="Found by reconciling: no webhook had told of it."
        if missed
        else "Read from the CRM's list of contacts.",
        source=key.source,
        source_id=key.source_id,
        fields=tuple(names),
    )


def reconcile(connection: SourceConnection, store: Store, now: datetime) -> None:
    """Begin to go through what was changed since the last time, if that is as long ago as it should be.

    The first time only remembers when it was: what was there before is a backfill's.
    """
    last = store.catch_up(connection.name, RECONCILE)
    ahead = last is not None and last.started_at > now  # by a clock that was wrong, then or now
    if last is not None and (
        last.state is not Progress.DONE
        or (not ahead and now - last.started_at < timedelta(seconds=connection.reconcile_s))
    ):
        return
    begun = CatchUp(connection.name, RECONCILE, _run(now), now, now, by="bridge", share=1.0)
    if last is None:
        store.start_catch_up(replace(begun, state=Progress.DONE))
    else:
        since = (last.since or now) if ahead else last.started_at
        store.start_catch_up(replace(begun, since=min(since, now) - catch_up.OVERLAP, due_at=now))


def backfill(source: str, by: str, share: float, now: datetime) -> CatchUp:
    """Return a backfill of *source* that begins at once."""
    return CatchUp(source, BACKFILL, _run(now), now, now, by, share=share, due_at=now)


def _run(now: datetime) -> str:
    return iso(now)
