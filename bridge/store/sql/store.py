"""The verbs of a store that speaks SQL; what they do is in the modules beside this one.

Every method is one transaction (but for holding, resuming and other rules, which may concern very many deliveries
and can stop half-way without harm).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Concatenate, ParamSpec, TypeVar

from bridge.model import AuditEntry, CatchUp, Contact, Delivery, RecordKey
from bridge.store.looking import (
    Activity,
    Bar,
    Bulk,
    BulkState,
    Facets,
    FailureGroup,
    Histogram,
    Hit,
    Latency,
    Queue,
    User,
)
from bridge.store.protocol import (
    AccessToken,
    Attempt,
    Decision,
    Filter,
    Health,
    Inbound,
    NewInbound,
    Page,
    Plan,
    Received,
    Refusal,
    Rules,
    Ruling,
    TargetStatus,
    Ticket,
    Work,
)
from bridge.store.sql import (
    access,
    catching_up,
    delivering,
    keeping,
    lanes,
    overviews,
    people,
    processing,
    reading,
    receiving,
    retries,
    ruling,
    totals,
)
from bridge.store.sql.database import Db
from bridge.store.sql.facts import add_facts
from bridge.store.sql.rows import target_status, written

P = ParamSpec("P")
T = TypeVar("T")

SLICE = 5000  # deliveries changed at a time, so that a receipt never waits for a hundred thousand of them


class SqlStore(ABC):
    """A `Store`, but for its database.

    *lanes* says how many delivery lanes each target has.
    """

    def __init__(self, lanes: Mapping[str, int]) -> None:
        self._lanes = dict(lanes)
        self._known_salt = b""
        self._dealt: set[str] = set()  # the targets whose contacts were given their lanes

    # --- the database ---

    @abstractmethod
    def _read(self, look: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        """Return what *look* finds in one consistent view of the database."""

    @abstractmethod
    def _write(self, change: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        """Return what *change* does, in one transaction that is on disk then.

        It may be called several times, each time after all that it did was undone.
        """

    @abstractmethod
    def _write_lazily(self, change: Callable[Concatenate[Db, P], T], /, *args: P.args, **named: P.kwargs) -> T:
        """Do the same, but not on disk: it may be lost when the machine loses power."""

    def _forgotten(self) -> None:  # noqa: B027 - not every database has something to do
        """Payloads were deleted; what else is left of them is to go as well."""

    @abstractmethod
    def clock(self) -> datetime: ...

    @abstractmethod
    def tidy(self, now: datetime) -> bool: ...

    @abstractmethod
    def alone(self, what: str) -> AbstractContextManager[None]: ...

    # --- receiving ---

    def receive(self, inbounds: Sequence[NewInbound]) -> list[Received]:
        prepared = [receiving.prepare(inbound, self._salt) for inbound in inbounds]
        return self._write(receiving.receive, prepared)

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        self._write_lazily(receiving.refuse, refusals)

    # --- lanes ---

    def acquire(self, lane: str, owner: str, now: datetime) -> Ticket:
        if (delivers := lanes.read_lane(lane)) is not None and delivers[0] not in self._dealt:
            # Once, at the start: of processes that differ in it, the one that was started last counts.
            target, _ = delivers
            self._write(lanes.deal_out, target, self._lanes.get(target, 1))
            self._dealt.add(target)
        return self._write(lanes.acquire, lane, owner, self._lanes, now)

    def due_lanes(self, now: datetime) -> dict[str, datetime]:
        return self._read(lanes.due_lanes, self._lanes, now)

    # --- processing ---

    def work(self, source: str, now: datetime, limit: int) -> Work:
        return self._read(processing.work, source, now, limit)

    def contacts(self, keys: Collection[RecordKey]) -> dict[RecordKey, Contact]:
        return self._read(processing.contacts, keys)

    def commit(self, ticket: Ticket, decision: Decision, now: datetime) -> dict[str, datetime]:
        salt = self._salt
        contacts = [written(contact) for contact in decision.contacts]
        due = self._write(processing.commit, salt, ticket, decision, contacts, self._lanes, now)
        if decision.erased or any(result.forget for result in decision.results):
            self._forgotten()
        return due

    # --- catching up ---

    def start_catch_up(self, begun: CatchUp) -> bool:
        return self._write(catching_up.start, begun)

    def change_catch_up(self, progress: CatchUp, now: datetime) -> bool:
        return self._write(catching_up.change, progress, now)

    def catch_up(self, source: str, kind: str) -> CatchUp | None:
        return self._read(catching_up.read, source, kind)

    def catch_ups(self) -> list[CatchUp]:
        return self._read(catching_up.read_all)

    def catch_up_due(self, source: str, now: datetime) -> CatchUp | None:
        return self._read(catching_up.due, source, now)

    # --- delivery ---

    def claim(self, ticket: Ticket, now: datetime, apart: Collection[str] = ()) -> Delivery | None:
        # Not durable: a claim that is lost with the machine's power is what `acquire` would undo anyway.
        return self._write_lazily(delivering.claim, ticket, now, apart)

    def link(self, ticket: Ticket, claimed: Delivery, target_id: str, *, durable: bool = True) -> None:
        write = self._write if durable else self._write_lazily
        write(delivering.link, ticket, claimed, target_id)

    def finish(self, ticket: Ticket, claimed: Delivery, close: Plan, attempt: Attempt | None) -> Delivery:
        salt = self._salt
        delivery, _ = self._write(delivering.finish, salt, ticket, claimed, close, attempt, self._lanes)
        return delivery

    def finish_and_claim(
        self,
        ticket: Ticket,
        claimed: Delivery,
        close: Plan,
        attempt: Attempt | None,
        now: datetime,
        apart: Collection[str] = (),
    ) -> tuple[Delivery, Delivery | None]:
        salt, then = self._salt, delivering.Next(now, apart)
        # Not durable: an outcome that is lost with the machine's power is found out by sending it again.
        return self._write_lazily(delivering.finish, salt, ticket, claimed, close, attempt, self._lanes, then)

    def next_due(self, lane: str) -> datetime | None:
        return self._read(delivering.next_due_of, lane)

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
        quota = delivering.Quota(target, rate_per_s, burst)
        if count == 0:
            return self._read(delivering.closed_for, quota, now)
        if unsure and ticket is not None and claimed is not None:
            return self._write(delivering.take_turn_to_create, quota, now, count, ticket, claimed)
        return self._write_lazily(delivering.take_turn, quota, now, count, ticket, claimed)

    def set_backoff(self, target: str, until: datetime, ticket: Ticket | None = None) -> None:
        self._write_lazily(delivering.set_backoff, target, until, ticket)

    # --- targets ---

    def hold(self, target: str, reason: str, now: datetime, probe_at: datetime) -> None:
        salt = self._salt
        self._write(delivering.hold, salt, target, reason, now, probe_at)
        self._hold_deliveries(target, now)

    def pause(self, target: str, reason: str, by: str, now: datetime) -> None:
        salt = self._salt
        self._write(delivering.pause, salt, target, reason, by, now)
        self._hold_deliveries(target, now)

    def resume(self, target: str, by: str, now: datetime, *, held_only: bool = False) -> None:
        salt, done = self._salt, False
        before = self.target_status(target)
        while not done:
            done = self._write(
                delivering.resume_some,
                salt,
                target,
                by,
                now,
                SLICE,
                self._lanes,
                held_only=held_only,
                before=before,
            )

    def _hold_deliveries(self, target: str, now: datetime) -> None:
        all_held = False
        while not all_held:
            all_held = self._write(delivering.hold_some, target, now, SLICE)

    def note_refusal(self, target: str, now: datetime, ticket: Ticket | None = None) -> int:
        return self._write(delivering.note_refusal, target, ticket)

    def target_status(self, target: str) -> TargetStatus:
        return self._read(target_status, target)

    # --- access tokens of targets ---

    def access_token(self, target: str) -> AccessToken | None:
        return self._read(access.token, target)

    def renew_access(self, target: str, seen: AccessToken | None, now: datetime, until: datetime) -> bool:
        return self._write_lazily(access.renew, target, seen, now, until)

    def keep_access(self, target: str, token: AccessToken | None) -> None:
        self._write_lazily(access.keep, target, token)

    # --- replay ---

    def replay(
        self, now: datetime, by: str, *, keys: Collection[RecordKey] = (), narrowed: Filter | None = None
    ) -> int:
        salt = self._salt
        return self._write(keeping.replay, salt, now, by, keys, narrowed)

    def replay_inbound(self, now: datetime, by: str, inbound_ids: Collection[int]) -> int:
        salt = self._salt
        return self._write(keeping.replay_inbound, salt, now, by, inbound_ids)

    # --- rules ---

    def rules(self) -> Rules | None:
        return self._read(ruling.rules)

    def put_in_force(self, asked: Ruling, now: datetime) -> None:
        salt = self._salt
        self._write(ruling.void, asked)
        last = self._write(ruling.begin, asked)
        for start in range(0, last, SLICE):
            self._write(ruling.apply, asked, range(start + 1, start + 1 + SLICE), now)
        self._write(ruling.end, salt, asked, now)

    # --- reading ---

    def health(self, now: datetime) -> Health:
        return self._read(reading.health, self._lanes, now)

    def beat(self, role: str, owner: str, now: datetime) -> None:
        self._write_lazily(keeping.beat, role, owner, now)

    def inbound(self, inbound_id: int) -> Inbound | None:
        return self._read(reading.inbound, inbound_id)

    def inbound_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Inbound]:
        return self._read(reading.inbound_page, narrowed, cursor, limit)

    def refusals(self, source: str) -> list[Refusal]:
        return self._read(reading.refusals, source)

    def contact_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Contact]:
        return self._read(reading.contact_page, narrowed, cursor, limit)

    def deliveries_of(self, key: RecordKey) -> list[Delivery]:
        return self._read(reading.deliveries_of, key)

    def linked_to(self, target: str, target_id: str) -> list[RecordKey]:
        return self._read(reading.linked_to, target, target_id)

    def deliveries_for(self, keys: Collection[RecordKey]) -> dict[tuple[str, RecordKey], Delivery]:
        return self._read(reading.deliveries_for, keys)

    def delivery_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Delivery]:
        return self._read(reading.delivery_page, narrowed, cursor, limit)

    def audit_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[AuditEntry]:
        return self._read(reading.audit_page, narrowed, cursor, limit)

    # --- overviews ---

    def activity(self, since: datetime, until: datetime) -> Sequence[Activity]:
        return self._read(totals.activity, since, until)

    def totals(self) -> Sequence[Activity]:
        return self._read(totals.totals)

    def histogram(self, narrowed: Filter, since: datetime, until: datetime, bars: int) -> Histogram:
        return self._read(overviews.histogram, narrowed, since, until, bars)

    def heard(self, source: str, since: datetime, until: datetime) -> Sequence[Bar]:
        return self._read(totals.heard, source, since, until)

    def facets(self, narrowed: Filter) -> Facets:
        return self._read(overviews.facets, narrowed)

    def latencies(self) -> Sequence[Latency]:
        return self._read(totals.latencies)

    def lags(self) -> Sequence[Latency]:
        return self._read(totals.lags)

    def queues(self, now: datetime) -> Sequence[Queue]:
        return self._read(overviews.queues, self._lanes, now)

    def inbound_neighbours(self, narrowed: Filter, inbound_id: int) -> tuple[int | None, int | None]:
        return self._read(overviews.inbound_neighbours, narrowed, inbound_id)

    def lookup(self, text: str) -> Sequence[Hit]:
        return self._read(overviews.lookup, text)

    def audit_entry(self, entry_id: int) -> AuditEntry | None:
        return self._read(overviews.audit_entry, entry_id)

    # --- failures ---

    def failure_groups(self, narrowed: Filter, limit: int = 100) -> Sequence[FailureGroup]:
        return self._read(retries.failure_groups, reading.delivery_conditions(narrowed), limit)

    def start_bulk(self, narrowed: Filter, what: str, by: str, now: datetime) -> int:
        salt = self._salt
        matching = reading.delivery_conditions(narrowed)
        bulk_id, ids = self._write(retries.begin, salt, narrowed, matching, what, by, now)
        for start in range(0, len(ids), SLICE):
            self._write(retries.take_some, bulk_id, ids[start : start + SLICE], now)
        return bulk_id

    def cancel_bulk(self, bulk_id: int, by: str, now: datetime) -> bool:
        salt, put_back, ended = self._salt, 0, False
        current = self.bulk(bulk_id, now)
        if current is None or current.state is not BulkState.RUNNING:
            return False
        while not ended:
            some, ended = self._write(
                retries.call_off_some, salt, bulk_id, self._lanes, by, now, limit=SLICE, before=put_back
            )
            put_back += some
        return True

    def bulk(self, bulk_id: int, now: datetime) -> Bulk | None:
        return self._read(retries.bulk, bulk_id)

    def bulks(self, now: datetime, limit: int = 20) -> Sequence[Bulk]:
        return self._read(retries.bulks, limit)

    # --- people who sign in ---

    def users(self) -> Sequence[User]:
        return self._read(people.users)

    def user(self, name: str) -> User | None:
        return self._read(people.user, name)

    def save_user(self, user: User, now: datetime) -> None:
        self._write(people.save, user, now)

    def remove_user(self, name: str) -> bool:
        return self._write(people.remove, name)

    def end_sessions(self, name: str) -> None:
        self._write(people.end_sessions, name)

    def seen(self, name: str, now: datetime) -> None:
        worth_it = self._read(people.unseen, name, now)
        if worth_it:
            self._write_lazily(people.seen, name, now)

    def add_login_link(self, link_id: str, user: str, expires_at: datetime) -> None:
        self._write(people.add_login_link, link_id, user, expires_at)

    def use_login_link(self, link_id: str, now: datetime) -> str | None:
        return self._write(people.use_login_link, link_id, now)

    # --- facts from outside the pipeline ---

    def note(self, entries: Collection[AuditEntry]) -> None:
        salt = self._salt
        self._write(add_facts, salt, entries)

    # --- URL tokens ---

    def add_token(self, source: str, token_id: str, now: datetime) -> None:
        self._write(keeping.add_token, source, token_id, now)

    def revoke_tokens(self, source: str, now: datetime) -> int:
        return self._write(keeping.revoke_tokens, source, now)

    def token_live(self, source: str, token_id: str) -> bool:
        return self._read(keeping.token_live, source, token_id)

    @property
    def _salt(self) -> bytes:
        """The key of all digests, of this database and no other."""
        if not self._known_salt:
            self._known_salt = self._read(keeping.salt)
        return self._known_salt
