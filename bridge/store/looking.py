"""What the pages and ``/metrics`` ask of a database beside `bridge.store.protocol`.

Overviews, groups, and people who sign in. Nothing here may take longer because there is more history: counts come
from running totals, and a search looks at a bounded number of rows and says how far it came.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from bridge.model import AuditEntry, RecordKey, State

if TYPE_CHECKING:
    from bridge.store.protocol import Filter

# --- activity over time --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Activity:
    """How often something happened within a span of time: one row of the running totals.

    *kind* and *outcome* are those of audit entries. Of two kinds there are no entries: ``announced`` counts the
    changes that were to reach a target, so that ``announced`` less the attempts are the pushes that were saved;
    ``heard`` counts the webhooks of a source.
    """

    kind: str
    outcome: str
    count: int
    source: str | None = None
    target: str | None = None
    error: str | None = None
    status: int | None = None
    calls: int = 0  # HTTP calls made
    duration_ms: int = 0  # of all of them together


@dataclass(frozen=True, slots=True)
class Bar:
    """One step of a histogram."""

    at: datetime  # its beginning
    counts: Mapping[str, int]  # outcome -> entries


@dataclass(frozen=True, slots=True)
class Histogram:
    """Entries over time, oldest bar first; every step between the ends has a bar, also an empty one."""

    step_s: int
    bars: Sequence[Bar]
    complete: bool = True  # False: only the newest matching entries were counted


@dataclass(frozen=True, slots=True)
class Facets:
    """For each dimension its values with their counts, most frequent first.

    They are ``source``, ``target``, ``outcome``, ``error``, ``status``, ``kind`` and ``field``: a changed field is
    always counted in the newest thousand of the entries that match.
    """

    values: Mapping[str, Sequence[tuple[str, int]]]
    complete: bool = True  # False: only the newest matching entries were counted


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took at a target, ever: how often at most so many milliseconds, and all together."""

    target: str
    counts: Mapping[int, int]  # upper bound in ms -> times above the bound before it; the last bound has no end
    total_ms: int


# The keys of `Latency.counts`, for pushes and for lags.
LATENCY_BOUNDS_MS = (50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
LAG_BOUNDS_MS = (100, 250, 500, 1000, 2500, 5000, 15_000, 60_000, 300_000, 1_800_000, 7_200_000, 86_400_000)


# --- targets -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits for one target, and how its quota and its last pushes stand."""

    target: str
    oldest_wanted_at: datetime | None = None  # since when it is behind, of whatever is queued, held or throttled
    next_due_at: datetime | None = None
    tokens: float | None = None  # calls it may make at once; None: as many as the burst allows
    closed_until: datetime | None = None  # it asked for fewer calls
    last_success_at: datetime | None = None
    last_error_at: datetime | None = None
    last_error: str = ""  # class
    last_error_reason: str = ""


# --- failures and bulk retries -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Deliveries that need a person, and look alike."""

    target: str
    state: State  # FAILED or AMBIGUOUS
    error: str | None
    status: int | None
    reason: str
    count: int
    oldest_at: datetime
    newest_at: datetime
    examples: Sequence[RecordKey] = ()  # up to three, newest first


class BulkState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Bulk:
    """A retry of many deliveries that somebody asked for. Counted anew whenever it is looked at."""

    id: int
    at: datetime
    by: str
    what: str  # the filter in words
    state: BulkState
    total: int
    states: Mapping[str, int] = field(default_factory=dict)  # where those are now that were decided
    undecided: int = 0  # the others: not yet looked at again by the rules
    ended_at: datetime | None = None
    ended_by: str = ""  # who cancelled it

    @property
    def settled(self) -> int:
        """How many are neither waiting for the rules nor on their way."""
        moving = sum(self.states.get(one, 0) for one in (State.PENDING, State.SENDING, State.RETRYING, State.HELD))
        return max(0, self.total - self.undecided - moving)


# --- finding -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that has exactly the id that was looked for."""

    what: str  # "contact" or "webhook"
    key: RecordKey | None = None
    inbound_id: int | None = None


# --- people who sign in --------------------------------------------------------------------------------------


class Role(StrEnum):
    """What somebody may do; each may do all that those before may."""

    VIEWER = "viewer"  # look
    OPERATOR = "operator"  # pause, resume, retry, send samples
    ADMIN = "admin"  # export what went over the wire, which is personal


@dataclass(frozen=True, slots=True)
class User:
    name: str
    role: Role
    password_hash: str = field(default="", repr=False)  # "": signs in by links only
    epoch: int = 0  # goes up with "sign out everywhere"; a session of another epoch is over
    created_at: datetime | None = None
    last_seen_at: datetime | None = None


class Looking(Protocol):
    """See the module's docstring. All moments are aware and UTC; spans include *since* and exclude *until*."""

    def activity(self, since: datetime, until: datetime) -> Sequence[Activity]:
        """Return the totals of a span. Its ends are rounded to minutes, beyond two days to hours."""
        ...

    def totals(self) -> Sequence[Activity]:
        """Return the totals of all time, for counters that only go up."""
        ...

    def histogram(self, narrowed: Filter, since: datetime, until: datetime, bars: int) -> Histogram:
        """Return audit entries over time, in at most *bars* steps that begin at round moments (UTC).

        Minutes are known of the last two days; of what is older, hours.
        """
        ...

    def heard(self, source: str, since: datetime, until: datetime) -> Sequence[Bar]:
        """Return how many webhooks of *source* came in each hour (``heard``), whatever became of them."""
        ...

    def facets(self, narrowed: Filter) -> Facets:
        """Return what the entries that match have in common."""
        ...

    def latencies(self) -> Sequence[Latency]:
        """Return how long pushes took."""
        ...

    def lags(self) -> Sequence[Latency]:
        """Return for how long contacts were behind: from processing a change until the target held it."""
        ...

    def queues(self, now: datetime) -> Sequence[Queue]:
        """Return one for each target that has lanes."""
        ...

    def inbound_neighbours(self, narrowed: Filter, inbound_id: int) -> tuple[int | None, int | None]:
        """Return the inbounds just newer and just older than *inbound_id* among those that match."""
        ...

    def lookup(self, text: str) -> Sequence[Hit]:
        """Return records with exactly this id: a source id, a target's id, or an inbound's; at most ten."""
        ...

    def audit_entry(self, entry_id: int) -> AuditEntry | None: ...

    # --- failures ---

    def failure_groups(self, narrowed: Filter, limit: int = 100) -> Sequence[FailureGroup]:
        """Return failed and ambiguous deliveries by cause, largest group first."""
        ...

    def start_bulk(self, narrowed: Filter, what: str, by: str, now: datetime) -> int:
        """Have all failed and ambiguous deliveries that match tried again; return the id of the bulk retry.

        *what* is the filter in words. Also an audit entry. What another bulk retry has in hand is left to it.
        This may concern very many deliveries, in several transactions: after a crash half-way the bulk retry is of
        those that it came to.
        """
        ...

    def cancel_bulk(self, bulk_id: int, by: str, now: datetime) -> bool:
        """Leave what was not sent yet as it was before; False when there was nothing to cancel.

        What is being sent right now ends as it does, and what newer state made due stays due. Also an audit entry.
        """
        ...

    def bulk(self, bulk_id: int, now: datetime) -> Bulk | None: ...

    def bulks(self, now: datetime, limit: int = 20) -> Sequence[Bulk]:
        """Return the newest first."""
        ...

    # --- people who sign in ---

    def users(self) -> Sequence[User]: ...

    def user(self, name: str) -> User | None: ...

    def save_user(self, user: User, now: datetime) -> None:
        """Add or change somebody. `User.epoch` is not taken from here: see `end_sessions`."""
        ...

    def remove_user(self, name: str) -> bool: ...

    def end_sessions(self, name: str) -> None:
        """Sign *name* out everywhere; links that were made and not used are void, too."""
        ...

    def seen(self, name: str, now: datetime) -> None: ...

    def add_login_link(self, link_id: str, user: str, expires_at: datetime) -> None: ...

    def use_login_link(self, link_id: str, now: datetime) -> str | None:
        """Return whose link it is, once; None when it was used, is too old or was never made."""
        ...

    # --- facts from outside the pipeline ---

    def note(self, entries: Collection[AuditEntry]) -> None:
        """Append facts: that somebody signed in, was added, exported, sent a sample."""
        ...
