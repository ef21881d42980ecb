"""The words of bridge as frozen values. No input or output happens here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, NewType

# A field's value as the source gave it, or as a target takes it. "" and None both mean: cleared.
Value = str | int | float | bool | list[Any] | dict[str, Any] | None


def utc_now() -> datetime:
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """Return *moment* as text that sorts by time: 2026-03-02T10:11:12.000123Z."""
    at = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return at.isoformat(timespec="microseconds")[:26] + "Z"


def from_iso(text: str) -> datetime:
    """Read what `iso` wrote, or any ISO 8601 moment that names its offset."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that does not print. `reveal` is the only way to it."""

    _value: str = field(repr=False)

    def reveal(self) -> str:
        return self._value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """In settings it is written as a text."""
        from pydantic_core import core_schema  # only where configuration is read

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())

    def __str__(self) -> str:
        return "••••"


# --- what comes in ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InboundRequest:
    """A request as it came. Header names are lower-case; repeated headers are joined with a comma."""

    method: str
    url: str  # the configured public URL with the raw path and query as they were on the wire
    headers: Mapping[str, str]
    body: bytes


Verified = NewType("Verified", InboundRequest)  # only a `Source.verify` makes one; parsers take nothing else


class Outcome(StrEnum):
    """What became of an inbound."""

    ACCEPTED = "accepted"  # stored; not yet processed
    DUPLICATE = "duplicate"  # every event in it was seen before
    IGNORED = "ignored"  # genuine, but not about contacts we handle; the reason says why
    PROCESSED = "processed"
    UNREADABLE = "unreadable"  # genuine but not understood; kept for reprocessing
    REFUSED = "refused"  # failed verification; counted, and only the last 200 per source are kept


# `RecordKey`, `Version` and `FieldState` are made, compared and looked up dozens of times a webhook: tuples do
# that in a fraction of a dataclass's time.


class RecordKey(NamedTuple):
    """A person's record in one source: the connection's name and the CRM's own id."""

    source: str
    source_id: str

    def __str__(self) -> str:
        return f"{self.source}/{self.source_id}"


class Version(NamedTuple):
    """When the source says that something happened. The newer wins; ties go to the greater event id."""

    occurred_at: datetime  # aware, UTC, by the source's clock
    event_id: str


class Kind(StrEnum):
    """What an event says of a contact."""

    CHANGED = "changed"
    CREATED = "created"  # also: restored. The only kind that brings a deleted contact back
    DELETED = "deleted"
    ERASED = "erased"  # under privacy law: everything stored about the person goes, for good
    MERGED = "merged"  # this record lives on as another
    STOPPED = "stopped"  # at a target, the person asked for no further messages
    STARTED = "started"  # at a target, the person asked for messages again


@dataclass(frozen=True, slots=True)
class Change:
    """What a source said about one contact, in the source's own field names."""

    key: RecordKey
    kind: Kind
    version: Version
    fields: Mapping[str, Value] = field(default_factory=dict)  # absent: said nothing; None or "": cleared
    thin: bool = False  # the source says less than it knows: read the record, where it can be read
    survivor: str | None = None  # MERGED: the source id it lives on as
    heir_of: bool = False  # MERGED: the survivor takes over this record's fields and target ids
    account: str | None = None  # the CRM account (tenant) the event is from, where the event says so
    target: str | None = None  # STOPPED and STARTED: where


@dataclass(frozen=True, slots=True)
class Event:
    """One event of an inbound: changes, or one sentence saying why there are none.

    *key* tells repeats of the event, stable over the sender's retries and unique within the connection.
    """

    key: str
    changes: tuple[Change, ...] = ()
    ignored: str = ""  # genuine, but nothing for us
    unreadable: str = ""  # genuine, but it makes no sense to us
    type: str = ""  # what the sender calls such events, as it wrote it: "contact.propertyChange"


# --- what is known ---------------------------------------------------------------------------------------


class FieldState(NamedTuple):
    """What is known of one field.

    *said* is the newest value that was not empty, kept when the field is cleared: clearing is not consent, so
    opt-outs are judged by what was last said in words.
    """

    value: Value
    version: Version
    said: Value = None
    said_version: Version | None = None


@dataclass(frozen=True, slots=True)
class Contact:
    """All that one source has said about one of its records, merged field by field."""

    key: RecordKey
    fields: Mapping[str, FieldState] = field(default_factory=dict)
    created: Version | None = None  # newest creation or restore
    deleted: Version | None = None  # newest deletion: the tombstone
    erased: Version | None = None  # once erased, always erased
    merged_into: str | None = None  # the survivor's source id
    merged: Version | None = None
    inherits: tuple[str, ...] = ()  # losers whose fields and target ids this record took over
    absorbed: tuple[str, ...] = ()  # every record merged into this one; their opt-outs count here
    stops: Mapping[str, Version] = field(default_factory=dict)  # target -> when the person last said stop there
    starts: Mapping[str, Version] = field(default_factory=dict)  # target -> when it was last taken back there
    told: Version | None = None  # the stop that was last written back to the CRM
    account: str | None = None
    thin: bool = False  # something is known to be missing: read it from the source
    read_at: datetime | None = None  # last time the whole record was read from the source
    read_due: datetime | None = None  # when to read it (again); None: not needed
    read_tries: int = 0
    read_note: str = ""  # why the last read gave nothing

    @property
    def stopped(self) -> Version | None:
        """The newest stop that the person said at a target and did not take back there."""
        # Of the same moment, the stop counts: which of two event ids is greater tells nothing.
        standing = [
            stop
            for target, stop in self.stops.items()
            if target not in self.starts or self.starts[target].occurred_at <= stop.occurred_at
        ]
        return max(standing, default=None)

    @property
    def alive(self) -> bool:
        if self.erased or self.merged_into:
            return False
        return self.deleted is None or (self.created is not None and self.created > self.deleted)


# --- what should be --------------------------------------------------------------------------------------


class Mode(StrEnum):
    ALWAYS = "always"
    IF_BLANK = "if_blank"  # never overwrites a value that the target has
    CREATE_ONLY = "create_only"  # only in the call that creates the contact


@dataclass(frozen=True, slots=True)
class Desired:
    """What one target should hold of one contact.

    *fields* are the target's own names, dotted for nested ones. A value of None clears the field; a name that
    is absent is left alone. Values have the shapes that the target's `FieldKind` promises.
    """

    fields: Mapping[str, Value] = field(default_factory=dict)
    modes: Mapping[str, Mode] = field(default_factory=dict)  # only those that are not ALWAYS
    opt_out: bool = False  # the person said stop: tighten whatever the target has, never create
    create: bool = True
    gone: bool = False  # remove the contact from the target

    def mode(self, name: str) -> Mode:
        return self.modes.get(name, Mode.ALWAYS)


class State(StrEnum):
    """The state of a delivery, with the exact words of the contract."""

    WAITING = "waiting"
    PENDING = "pending"
    SENDING = "sending"
    RETRYING = "retrying"
    HELD = "held"
    SYNCED = "synced"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"
    OPTED_OUT = "opted_out"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One contact on its way to one target. There is one per (target, contact) for ever, not one per push."""

    target: str
    key: RecordKey
    state: State
    reason: str  # one sentence: why it is in this state and what happens next
    updated_at: datetime
    desired: Desired | None = None  # None: nothing is wanted of the target now
    revision: int = 0  # goes up whenever *desired* changes
    accepted: Mapping[str, Value] | None = None  # what the target last took; None: nothing yet
    accepted_opt_out: bool = False  # the target is known to hold the opt-out
    target_id: str | None = None
    due_at: datetime | None = None  # pending and retrying: when it may be sent
    attempts: int = 0  # tries since the last success or new state
    error: str | None = None  # error class of the last attempt, if it failed
    status: int | None = None  # HTTP status of the last attempt
    unsure_since: datetime | None = None  # a create of unknown fate was sent then: search, do not create
    left_out: Mapping[str, str] = field(default_factory=dict)  # target field -> why the rules left it out
    wanted_at: datetime | None = None  # since when the target is behind what is desired; None: it is not
    # What a push may have written whose outcome was not heard (crash, time-out, newer state): by target field.
    # None: nothing is in doubt. While it is not None, *accepted* is not believed.
    attempted: Mapping[str, Value] | None = None
    inbound_id: int | None = None  # the newest inbound behind what is desired, as far as it is known
    low: bool = False  # while it is due: found by catching up with the CRM, so that what came live goes first


@dataclass(frozen=True, slots=True)
class Want:
    """What processing decided for one (target, contact).

    *desired* None means that nothing is to be sent now, and *reason* says why in one sentence.
    """

    target: str
    key: RecordKey
    desired: Desired | None
    reason: str = ""
    dropped: Mapping[str, str] = field(default_factory=dict)  # target field -> why it was left out
    inherit_from: tuple[str, ...] = ()  # source ids whose target ids this contact may take over
    again: bool = False  # a replay: send a failed or ambiguous one again though nothing changed
    forget: bool = False  # the person was erased: keep nothing of what the target accepted
    unclear: bool = False  # whether the person opted out cannot be told: an opt-out that was told stays
    quiet_s: float = 0.0  # in a burst: wait this long for more before sending
    inbound_id: int | None = None  # the newest inbound that spoke of the contact in this round
    changes: int = 0  # how many changes of this round were to reach the target; none of a replay
    low: bool = False  # found by catching up with the CRM: what came live goes first


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP call to a platform, as the audit log keeps it. Bodies are cut to 64 KiB; secrets are masked."""

    method: str
    url: str
    status: int | None  # None: there was no answer
    duration_ms: int
    request_body: str = ""
    response_body: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a push came to.

    *accepted* is what the target now holds of the desired fields, by the names of the rules. *outcome* is one
    of ``created``, ``updated``, ``unchanged``, ``removed``, ``absent`` (not there, and not to be created).
    """

    outcome: str
    target_id: str | None = None
    accepted: Mapping[str, Value] = field(default_factory=dict)
    opted_out: bool = False  # the target holds an opt-out of this person, whoever said it
    notes: tuple[str, ...] = ()  # what a person should know: a field left out and why; no values


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A fact, append-only. It names no person: ids, field names and reasons only."""

    at: datetime
    kind: str  # "inbound", "contact", "delivery", "target", "replay", or what a person did
    outcome: str  # an Outcome, a State, or what an attempt came to
    reason: str = ""
    source: str | None = None
    source_id: str | None = None
    target: str | None = None
    inbound_id: int | None = None
    attempt: int | None = None
    status: int | None = None
    error: str | None = None
    duration_ms: int | None = None
    fields: tuple[str, ...] = ()  # names of the fields it was about
    detail: Any = None  # personal: JSON kept as a payload, so that it can be pruned and erased
    id: int | None = None  # given by the store
    event_types: tuple[str, ...] = ()  # of the inbound, told by the store: what the CRM calls what happened


# --- catching up with a CRM's list -----------------------------------------------------------------------

BACKFILL, RECONCILE = "backfill", "reconcile"
REGISTRATION = "registration"  # kept beside them: *since* is when it ends, *due_at* when it is renewed
SHARE = 0.2  # of the contacts looked at that may be changed at a target before somebody is asked


class Progress(StrEnum):
    """How it stands with one of them."""

    RUNNING = "running"
    ASKING = "asking"  # more would be changed than somebody allowed: a person decides
    STOPPED = "stopped"
    DONE = "done"


Effects = Mapping[str, Mapping[str, int]]  # target -> what would become of contacts there -> of how many


@dataclass(frozen=True, slots=True)
class CatchUp:
    """How far a list was gone through. There is one of each kind for a source: the newest, by its *run*."""

    source: str
    kind: str  # BACKFILL or RECONCILE; or REGISTRATION
    run: str
    started_at: datetime
    updated_at: datetime
    by: str
    state: Progress = Progress.RUNNING
    reason: str = ""  # a sentence: why it waits or asks, if it does
    share: float = SHARE
    since: datetime | None = None  # only what was changed from then on; None: everybody
    after: str | None = None  # the place in the CRM's list; None: its beginning
    due_at: datetime | None = None  # when the next page is read
    seen: int = 0
    changed: int = 0  # of those seen, how many were news
    missed: int = 0  # news that a webhook should have brought
    unread: int = 0  # of those seen, how many nothing could be learnt of; the audit log says why
    total: int | None = None  # of the whole list, where the CRM says so
    tries: int = 0  # failures in a row
    effects: Effects = field(default_factory=dict)
