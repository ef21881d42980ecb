"""What bridge asks of a database: verbs that every store keeps, each one transaction.

A store decides nothing. Where a new state depends on what is in the database, it calls the pure functions of
`bridge.schedule` inside its transaction. Any failure of the database leaves as `StoreUnavailable`;
where it refuses the data itself, for good, as its subclass `Unstorable`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from bridge.model import (
    AuditEntry,
    CatchUp,
    Contact,
    Delivery,
    Exchange,
    Outcome,
    RecordKey,
    Want,
)
from bridge.store.looking import Looking

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewInbound:
    """A genuine request on its way into the store."""

    source: str
    received_at: datetime
    method: str
    url: str
    headers: Mapping[str, str]  # only those that the source keeps
    body: bytes
    event_keys: tuple[str, ...]  # empty when it is unreadable: its bytes are its key then
    outcome: Outcome = Outcome.ACCEPTED  # or UNREADABLE, IGNORED
    reason: str = ""
    secret_index: int = 0
    signed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a `NewInbound`. A duplicate has the id of the inbound that brought its (first) event."""

    id: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Inbound:
    """A stored request. *body* is None once its payload was pruned or erased."""

    id: int
    source: str
    received_at: datetime
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    outcome: Outcome
    reason: str
    events: int
    secret_index: int
    signed_at: datetime | None
    processed_at: datetime | None
    repeats: int = 0  # how many times all of it came again
    event_types: tuple[str, ...] = ()  # what the CRM calls what happened; known once it was processed


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that failed verification: what is kept of the last 200 of a source. No body, no header values."""

    source: str
    at: datetime
    reason: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to run a lane. *fence* goes up with every `Store.acquire`; an old one can no longer write."""

    lane: str
    fence: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a source's lane has to process now."""

    inbounds: Sequence[Inbound] = ()  # oldest first
    keys: Sequence[
        RecordKey
    ] = ()  # contacts to decide again: a replay, other rules, or due to be read from the CRM
    replays: frozenset[RecordKey] = frozenset()  # those of *keys* that a person asked for
    account: str | None = None  # the CRM account this source was first heard from
    more: bool = False  # there is more than *limit*


@dataclass(frozen=True, slots=True)
class InboundResult:
    id: int
    outcome: Outcome
    reason: str = ""
    forget: bool = False  # it speaks of an erased person: delete its payload
    event_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """All that one round of processing came to. It is saved whole or not at all."""

    contacts: Sequence[Contact] = ()
    wants: Sequence[Want] = ()
    results: Sequence[InboundResult] = ()
    audit: Sequence[AuditEntry] = ()
    erased: Collection[RecordKey] = ()  # delete every payload that speaks of these
    # No longer marked for a replay, unless one was asked for that their wants know nothing of (`Want.again`); and
    # no longer due to be read unless saved with a later moment in *contacts*.
    decided: Collection[RecordKey] = ()
    account: str | None = None  # remember it as the source's, if none is remembered yet
    catch_up: CatchUp | None = None  # how far the CRM's list was gone through with this


Pair = tuple[str, str]  # the names of a source and a target


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that were last in force, as far as one must know to tell whether they are others now."""

    routes: Mapping[Pair, str]  # every route's digest; "": what its change asks for was begun and not ended
    reads: Mapping[str, Collection[str]]  # source -> the fields that were asked of its CRM; none: it was never


@dataclass(frozen=True, slots=True)
class Ruling:
    """What it asks for that *rules* are in force from now on."""

    rules: Rules
    changed: Collection[
        Pair
    ] = ()  # routes that are new or others: all contacts of their sources are decided again
    gone: Collection[Pair] = ()  # routes that are no more
    unread: Collection[
        str
    ] = ()  # sources whose contacts are to be read again: more of them is needed than was read


@dataclass(frozen=True, slots=True)
class Attempt:
    """The record of one push, saved with its outcome."""

    at: datetime
    outcome: str  # a Receipt's outcome, or an error's class
    reason: str
    duration_ms: int
    status: int | None = None
    error: str | None = None
    fields: tuple[str, ...] = ()  # names of the fields that were to change
    exchanges: Sequence[Exchange] = ()


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """Whether a target takes deliveries: ``open``, ``held`` (by bridge) or ``paused`` (by a person)."""

    target: str
    mode: str = "open"
    reason: str = ""
    since: datetime | None = None
    by: str = ""  # who paused or resumed it
    probe_at: datetime | None = None  # held: when bridge tries the credentials again
    refusals: int = 0  # in a row


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a target lets us in with, *sealed*: its key is not in the database."""

    sealed: bytes
    use_until: datetime


@dataclass(frozen=True, slots=True)
class SourceStatus:
    source: str
    account: str | None = None
    last_inbound_at: datetime | None = None
    refused: int = 0  # ever
    last_refused_at: datetime | None = None
    unprocessed: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """What the health strip, ``/readyz`` and ``/metrics`` show. Times are of the database's rows, not cached."""

    worker_seen_at: datetime | None = None
    oldest_unprocessed_at: datetime | None = None
    oldest_due_at: datetime | None = None  # of deliveries that may be sent now
    inbound: Mapping[str, int] = field(default_factory=dict)  # outcome -> count; duplicates and refused as well
    deliveries: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (target, state) -> count
    sources: Sequence[SourceStatus] = ()
    targets: Sequence[TargetStatus] = ()


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list, newest first. *next* is the cursor of the following page, None on the last.

    A list looks at a bounded number of rows. Where those ended before the page was full, *searched_to* says how
    far back they went, and *next* goes on from there.
    """

    items: Sequence[T]
    next: str | None = None
    searched_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list is narrowed to; each list applies those that it knows.

    *q* is found where a word of an id, e-mail address, phone number, name or other value of a contact begins with
    it, in any case of letters ("smith@ac" finds j.smith@acme.com); digits also inside a phone number. *field* is
    the name of a field that an audit entry is about.

    *since* is included, *until* is not. A repeat is no row of its own: the outcome ``duplicate`` finds the
    inbounds that came again.
    """

    source: str | None = None
    source_id: str | None = None
    target: str | None = None
    state: str | None = None
    outcome: str | None = None
    error: str | None = None
    kind: str | None = None
    inbound_id: int | None = None
    status: int | None = None
    field: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    q: str | None = None


Plan = Callable[[Delivery | None], Delivery]


class Store(Looking, Protocol):
    """See the module's docstring. All moments are aware and UTC; *now* is always the caller's.

    Lists are given a cursor that they gave out, or None for the first page; any other is a `ValueError`.
    """

    # --- receiving (web) ---

    def receive(self, inbounds: Sequence[NewInbound]) -> list[Received]:
        """Save all in one transaction, on disk when this returns. A request with no new event is a duplicate."""
        ...

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Count requests that failed verification and keep the last 200 of each source."""
        ...

    def clock(self) -> datetime:
        """Return the time, by the clock that all processes on this database share."""
        ...

    def alone(self, what: str) -> AbstractContextManager[None]:
        """Wait until no other process does *what*, and keep others from it until the block ends."""
        ...

    # --- lanes ---

    def acquire(self, lane: str, owner: str, now: datetime) -> Ticket:
        """Take the lane over from whoever had it. What that one was sending is pending again.

        Where another process dealt the contacts out to another number of lanes, the first lane of a target that
        is acquired deals them out anew, and takes all of the target's lanes from whoever has them.
        """
        ...

    def due_lanes(self, now: datetime) -> dict[str, datetime]:
        """Return each lane that has work, with the moment from which it can be done (past: now)."""
        ...

    # --- processing (a source's lane) ---

    def work(self, source: str, now: datetime, limit: int) -> Work:
        """Return up to *limit* unprocessed inbounds, and contacts to decide again. Marks nothing."""
        ...

    def contacts(self, keys: Collection[RecordKey]) -> dict[RecordKey, Contact]:
        """Return those that are known."""
        ...

    def commit(self, ticket: Ticket, decision: Decision, now: datetime) -> dict[str, datetime]:
        """Save *decision*; each want becomes a delivery by `schedule.plan`. Return the lanes made due.

        Raises:
            LostLane: *ticket* is no longer the newest; nothing was saved.
        """
        ...

    # --- catching up with a CRM's list (in the source's lane, behind all that came live) ---

    def start_catch_up(self, begun: CatchUp) -> bool:
        """Save *begun* in place of the last of its kind; say whether it was, for one that is under way stays."""
        ...

    def change_catch_up(self, progress: CatchUp, now: datetime) -> bool:
        """Save what a person made of a run that is not done; say whether it was still there. It wakes the lane."""
        ...

    def catch_up(self, source: str, kind: str) -> CatchUp | None: ...

    def catch_ups(self) -> list[CatchUp]: ...

    def catch_up_due(self, source: str, now: datetime) -> CatchUp | None:
        """Return the run of the source of which a page is to be read now."""
        ...

    # --- delivery (a target's lane) ---

    def claim(self, ticket: Ticket, now: datetime, apart: Collection[str] = ()) -> Delivery | None:
        """Mark the oldest due delivery of the lane ``sending`` (`schedule.begun`) and return it, or None.

        Its *attempted* is what was in doubt before this claim; None: nothing was.

        *apart* are the fields by which the target tells people apart. A contact that is not linked waits while
        another one that is not, and has one of its values in such a field, is being sent by any lane: both would
        be searched for, and both be created.

        Raises:
            LostLane: *ticket* is no longer the newest.
        """
        ...

    def link(self, ticket: Ticket, claimed: Delivery, target_id: str, *, durable: bool = True) -> None:
        """Remember *target_id* before it is written to. One target contact has one contact of each source.

        Not *durable*: it may be lost with the machine's power, as may what `finish_and_claim` saves.

        Raises:
            Ambiguous: another contact of the same source is linked to it. LostLane.
        """
        ...

    def finish(self, ticket: Ticket, claimed: Delivery, close: Plan, attempt: Attempt | None) -> Delivery:
        """Save what `close(the delivery as it is now)` returns, with *attempt* as an audit entry.

        The refusals counted so far are forgotten if it was no failure.

        Raises:
            LostLane: *ticket* is no longer the newest; nothing was saved.
        """
        ...

    def finish_and_claim(
        self,
        ticket: Ticket,
        claimed: Delivery,
        close: Plan,
        attempt: Attempt | None,
        now: datetime,
        apart: Collection[str] = (),
    ) -> tuple[Delivery, Delivery | None]:
        """`finish`, and `claim` what is next in the same moment.

        The claim waits for nobody: None may also mean that somebody is about to change what is next.
        """
        ...

    def next_due(self, lane: str) -> datetime | None:
        """Return when the lane's next delivery may be sent; None when there is none."""
        ...

    def take_turn(
        self,
        target: str,
        rate_per_s: float,
        burst: int,
        now: datetime,
        count: int = 1,
        *,
        ticket: Ticket | None = None,
        claimed: Delivery | None = None,
        unsure: bool = False,
    ) -> float:
        """Take *count* tokens of the target's bucket, shared by all processes; 0 when they were there.

        Otherwise nothing is taken, and the seconds until they will be are returned. *count* 0 only asks.

        A turn of a push names its *ticket* and what it *claimed*, which are looked at in the same moment. If it is
        a create (*unsure*), it is remembered durably that its fate is unknown from *now* on, so that a crash leads
        to a search.

        Raises:
            Superseded: newer state than *claimed* arrived; nothing was taken.
            LostLane: *ticket* is no longer the newest; nothing was taken.
        """
        ...

    def set_backoff(self, target: str, until: datetime, ticket: Ticket | None = None) -> None:
        """Let nobody take a turn at the target before *until* (it asked for fewer calls).

        Raises:
            LostLane: *ticket* is given, and no longer the newest: what was heard may be long ago.
        """
        ...

    # --- targets ---

    def hold(self, target: str, reason: str, now: datetime, probe_at: datetime) -> None:
        """Close the target: its due deliveries are ``held``. A target that a person paused stays paused.

        This, `pause` and `resume` may change very many deliveries, in several transactions: nothing is claimed
        from the first on, and after a crash half-way the target is closed.
        """
        ...

    def pause(self, target: str, reason: str, by: str, now: datetime) -> None: ...

    def resume(self, target: str, by: str, now: datetime, *, held_only: bool = False) -> None:
        """Open the target: its held deliveries are due at once. *held_only*: unless a person paused it.

        Somebody who pauses it meanwhile has the last word.
        """
        ...

    def note_refusal(self, target: str, now: datetime, ticket: Ticket | None = None) -> int:
        """Count one more refusal in a row and return how many there are; a push that goes well starts anew.

        Raises:
            LostLane: *ticket* is given, and no longer the newest: what was heard may be long ago.
        """
        ...

    def target_status(self, target: str) -> TargetStatus: ...

    # --- access tokens of targets ---

    def access_token(self, target: str) -> AccessToken | None:
        """Return the token that was kept last; it may be of the past."""
        ...

    def renew_access(self, target: str, seen: AccessToken | None, now: datetime, until: datetime) -> bool:
        """Say whether it is the caller who is to ask for a token in place of the one *seen*, and to keep it.

        It is not while somebody else was told so, up to the moment that was *until* then, or has kept another.
        """
        ...

    def keep_access(self, target: str, token: AccessToken | None) -> None:
        """Keep the token, which ends its renewal. None: there is none, and anybody may ask for one."""
        ...

    # --- replay ---

    def replay(
        self, now: datetime, by: str, *, keys: Collection[RecordKey] = (), narrowed: Filter | None = None
    ) -> int:
        """Mark contacts to be decided again (those of *keys*, or all whose deliveries match); return how many."""
        ...

    def replay_inbound(self, now: datetime, by: str, inbound_ids: Collection[int]) -> int:
        """Process stored requests again, from their bytes; those without a payload are left out."""
        ...

    # --- rules ---

    def rules(self) -> Rules | None:
        """Return the rules that were last put in force; None when none ever were."""
        ...

    def put_in_force(self, asked: Ruling, now: datetime) -> None:
        """Mark what is to be decided or read again, let go of what is not to be sent, then remember the rules.

        What is queued for a changed route is not due until its contact was decided again; what is queued for one
        that is gone never is. Links, what targets accepted, and creates of unknown fate are kept.

        Every source's lane is taken from whoever has it. This may change very many rows, in several transactions:
        after a crash half-way `rules` tells other digests than before, so that the next start does all of it
        again.
        """
        ...

    # --- reading ---

    def health(self, now: datetime) -> Health: ...

    def beat(self, role: str, owner: str, now: datetime) -> None:
        """Say that a process is alive."""
        ...

    def inbound(self, inbound_id: int) -> Inbound | None: ...

    def inbound_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Inbound]: ...

    def refusals(self, source: str) -> list[Refusal]: ...

    def contact_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Contact]:
        """Newest first by their last change."""
        ...

    def deliveries_of(self, key: RecordKey) -> list[Delivery]: ...

    def linked_to(self, target: str, target_id: str) -> list[RecordKey]:
        """Return the contacts, of any source, that are linked to *target_id* at *target*."""
        ...

    def deliveries_for(self, keys: Collection[RecordKey]) -> dict[tuple[str, RecordKey], Delivery]:
        """Return the deliveries of all of *keys*, by target and key."""
        ...

    def delivery_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Delivery]: ...

    def audit_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[AuditEntry]:
        """With their `detail`, where it was not pruned or erased."""
        ...

    # --- URL tokens ---

    def add_token(self, source: str, token_id: str, now: datetime) -> None: ...

    def revoke_tokens(self, source: str, now: datetime) -> int: ...

    def token_live(self, source: str, token_id: str) -> bool: ...

    # --- keeping house ---

    def prune(self, *, payloads_before: datetime, keys_before: datetime, limit: int = 1000) -> int:
        """Delete payloads and event keys older than given, up to *limit* of each; facts stay. Return how many."""
        ...

    def tidy(self, now: datetime) -> bool:
        """Do what the database itself needs every few seconds; say whether there is more to do at once."""
        ...

    def migrate(self) -> list[str]:
        """Bring the schema up to date; return the names of the steps taken."""
        ...

    def close(self) -> None: ...
