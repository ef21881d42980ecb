"""The store of one machine: one SQLite file, written by one transaction at a time.

Every method is one transaction (but for holding, resuming and other rules, which may concern very many deliveries
and can stop half-way without harm); the statements are in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from bridge.model import AuditEntry, Contact, Delivery, RecordKey, iso
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
from bridge.store.sqlite import (
    delivering,
    keeping,
    overviews,
    people,
    processing,
    reading,
    receiving,
    retries,
    ruling,
    totals,
)
from bridge.store.sqlite.file import SqliteFile
from bridge.store.sqlite.rows import add_facts, target_status

SLICE = 5000  # deliveries changed at a time, so that a receipt never waits for a hundred thousand of them


class SqliteStore:
    """A `Store` in the file at *path*.

    *lanes* says how many delivery lanes each target has. *pragmas* are further settings of every connection.
    """

    def __init__(
        self, path: str | Path, lanes: Mapping[str, int], *, pragmas: Mapping[str, str | int] | None = None
    ) -> None:
        self._file = SqliteFile(Path(path), pragmas)
        self._lanes = dict(lanes)
        self._known_salt = b""

    # --- receiving ---

    def receive(self, inbounds: Sequence[NewInbound]) -> list[Received]:
        prepared = [receiving.prepare(inbound, self._salt) for inbound in inbounds]
        with self._file.writing() as db:
            return receiving.receive(db, prepared)

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        with self._file.writing(durable=False) as db:
            receiving.refuse(db, refusals)

    # --- lanes ---

    def acquire(self, lane: str, owner: str, now: datetime) -> Ticket:
        with self._file.writing() as db:
            return processing.acquire(db, lane, owner, self._lanes, now)

    def due_lanes(self, now: datetime) -> dict[str, datetime]:
        with self._file.reading() as db:
            return processing.due_lanes(db, self._lanes, now)

    # --- processing ---

    def work(self, source: str, now: datetime, limit: int) -> Work:
        with self._file.reading() as db:
            return processing.work(db, source, now, limit)

    def contacts(self, keys: Collection[RecordKey]) -> dict[RecordKey, Contact]:
        with self._file.reading() as db:
            return processing.contacts(db, keys)

    def commit(self, ticket: Ticket, decision: Decision, now: datetime) -> dict[str, datetime]:
        salt = self._salt
        with self._file.writing() as db:
            due = processing.commit(db, salt, ticket, decision, self._lanes, now)
        if decision.erased or any(result.forget for result in decision.results):
            self._file.empty_log()  # if somebody reads just now, the next pruning does it
        return due

    # --- delivery ---

    def claim(self, ticket: Ticket, now: datetime) -> Delivery | None:
        # Not durable: a claim that is lost with the machine's power is what `acquire` would undo anyway.
        with self._file.writing(durable=False) as db:
            return delivering.claim(db, ticket, now)

    def link(self, ticket: Ticket, claimed: Delivery, target_id: str) -> None:
        with self._file.writing() as db:
            delivering.link(db, ticket, claimed, target_id)

    def mark_unsure(self, ticket: Ticket, claimed: Delivery, at: datetime) -> None:
        with self._file.writing() as db:
            delivering.mark_unsure(db, ticket, claimed, at)

    def revision(self, claimed: Delivery) -> int:
        with self._file.reading() as db:
            return delivering.revision(db, claimed)

    def finish(self, ticket: Ticket, claimed: Delivery, close: Plan, attempt: Attempt | None) -> Delivery:
        salt = self._salt
        with self._file.writing() as db:
            return delivering.finish(db, salt, ticket, claimed, close, attempt, self._lanes)

    def next_due(self, lane: str) -> datetime | None:
        with self._file.reading() as db:
            return delivering.next_due_of(db, lane)

    def take_turn(self, target: str, rate_per_s: float, burst: int, now: datetime, count: int = 1) -> float:
        with self._file.writing(durable=False) as db:
            return delivering.take_turn(db, target, rate_per_s, burst, now, count)

    def set_backoff(self, target: str, until: datetime) -> None:
        with self._file.writing(durable=False) as db:
            delivering.set_backoff(db, target, until)

    # --- targets ---

    def hold(self, target: str, reason: str, now: datetime, probe_at: datetime) -> None:
        salt = self._salt
        with self._file.writing() as db:
            delivering.hold(db, salt, target, reason, now, probe_at)
        self._hold_deliveries(target, now)

    def pause(self, target: str, reason: str, by: str, now: datetime) -> None:
        salt = self._salt
        with self._file.writing() as db:
            delivering.pause(db, salt, target, reason, by, now)
        self._hold_deliveries(target, now)

    def resume(self, target: str, by: str, now: datetime, *, held_only: bool = False) -> None:
        salt, opened = self._salt, False
        while not opened:
            with self._file.writing() as db:
                opened = delivering.resume_some(db, salt, target, by, now, SLICE, held_only=held_only)

    def _hold_deliveries(self, target: str, now: datetime) -> None:
        all_held = False
        while not all_held:
            with self._file.writing() as db:
                all_held = delivering.hold_some(db, target, now, SLICE)

    def note_refusal(self, target: str, now: datetime) -> int:
        with self._file.writing() as db:
            return delivering.note_refusal(db, target)

    def clear_refusals(self, target: str) -> None:
        with self._file.writing() as db:
            delivering.clear_refusals(db, target)

    def target_status(self, target: str) -> TargetStatus:
        with self._file.reading() as db:
            return target_status(db, target)

    # --- replay ---

    def replay(
        self, now: datetime, by: str, *, keys: Collection[RecordKey] = (), narrowed: Filter | None = None
    ) -> int:
        salt = self._salt
        with self._file.writing() as db:
            return keeping.replay(db, salt, now, by, keys, narrowed)

    def replay_inbound(self, now: datetime, by: str, inbound_ids: Collection[int]) -> int:
        salt = self._salt
        with self._file.writing() as db:
            return keeping.replay_inbound(db, salt, now, by, inbound_ids)

    # --- rules ---

    def rules(self) -> Rules | None:
        with self._file.reading() as db:
            return ruling.rules(db)

    def put_in_force(self, asked: Ruling, now: datetime) -> None:
        salt = self._salt
        with self._file.writing() as db:
            last = ruling.begin(db, asked)
        for start in range(0, last, SLICE):
            with self._file.writing() as db:
                ruling.apply(db, asked, range(start + 1, start + 1 + SLICE), now)
        with self._file.writing() as db:
            ruling.end(db, salt, asked, now)

    # --- reading ---

    def health(self, now: datetime) -> Health:
        with self._file.reading() as db:
            return reading.health(db, self._lanes, now)

    def beat(self, role: str, owner: str, now: datetime) -> None:
        with self._file.writing(durable=False) as db:
            keeping.beat(db, role, owner, now)

    def inbound(self, inbound_id: int) -> Inbound | None:
        with self._file.reading() as db:
            return reading.inbound(db, inbound_id)

    def inbound_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Inbound]:
        with self._file.reading() as db:
            return reading.inbound_page(db, narrowed, cursor, limit)

    def refusals(self, source: str) -> list[Refusal]:
        with self._file.reading() as db:
            return reading.refusals(db, source)

    def contact_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Contact]:
        with self._file.reading() as db:
            return reading.contact_page(db, narrowed, cursor, limit)

    def deliveries_of(self, key: RecordKey) -> list[Delivery]:
        with self._file.reading() as db:
            return reading.deliveries_of(db, key)

    def delivery_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[Delivery]:
        with self._file.reading() as db:
            return reading.delivery_page(db, narrowed, cursor, limit)

    def audit_page(self, narrowed: Filter, cursor: str | None, limit: int) -> Page[AuditEntry]:
        with self._file.reading() as db:
            return reading.audit_page(db, narrowed, cursor, limit)

    # --- overviews ---

    def activity(self, since: datetime, until: datetime) -> Sequence[Activity]:
        with self._file.reading() as db:
            return totals.activity(db, since, until)

    def totals(self) -> Sequence[Activity]:
        with self._file.reading() as db:
            return totals.totals(db)

    def histogram(self, narrowed: Filter, since: datetime, until: datetime, bars: int) -> Histogram:
        with self._file.reading() as db:
            return overviews.histogram(db, narrowed, since, until, bars)

    def heard(self, source: str, since: datetime, until: datetime) -> Sequence[Bar]:
        with self._file.reading() as db:
            return totals.heard(db, source, since, until)

    def facets(self, narrowed: Filter) -> Facets:
        with self._file.reading() as db:
            return overviews.facets(db, narrowed)

    def latencies(self) -> Sequence[Latency]:
        with self._file.reading() as db:
            return totals.latencies(db)

    def lags(self) -> Sequence[Latency]:
        with self._file.reading() as db:
            return totals.lags(db)

    def queues(self, now: datetime) -> Sequence[Queue]:
        with self._file.reading() as db:
            return overviews.queues(db, self._lanes, now)

    def inbound_neighbours(self, narrowed: Filter, inbound_id: int) -> tuple[int | None, int | None]:
        with self._file.reading() as db:
            return overviews.inbound_neighbours(db, narrowed, inbound_id)

    def lookup(self, text: str) -> Sequence[Hit]:
        with self._file.reading() as db:
            return overviews.lookup(db, text)

    def audit_entry(self, entry_id: int) -> AuditEntry | None:
        with self._file.reading() as db:
            return overviews.audit_entry(db, entry_id)

    # --- failures ---

    def failure_groups(self, narrowed: Filter, limit: int = 100) -> Sequence[FailureGroup]:
        with self._file.reading() as db:
            return retries.failure_groups(db, reading.delivery_conditions(narrowed), limit)

    def start_bulk(self, narrowed: Filter, what: str, by: str, now: datetime) -> int:
        salt = self._salt
        with self._file.writing() as db:
            ids = retries.matching_ids(db, reading.delivery_conditions(narrowed))
            bulk_id = retries.begin(db, salt, narrowed, what, len(ids), by, now)
        for start in range(0, len(ids), SLICE):
            with self._file.writing() as db:
                retries.take_some(db, bulk_id, ids[start : start + SLICE], now)
        return bulk_id

    def cancel_bulk(self, bulk_id: int, by: str, now: datetime) -> bool:
        salt, put_back, some = self._salt, 0, SLICE
        current = self.bulk(bulk_id, now)
        if current is None or current.state is not BulkState.RUNNING:
            return False
        while some == SLICE:
            with self._file.writing() as db:
                some = retries.put_back_some(db, bulk_id, self._lanes, now, SLICE)
                put_back += some
                if some < SLICE:
                    retries.end(db, salt, bulk_id, put_back, by, now)
        return True

    def bulk(self, bulk_id: int, now: datetime) -> Bulk | None:
        with self._file.reading() as db:
            return retries.bulk(db, bulk_id)

    def bulks(self, now: datetime, limit: int = 20) -> Sequence[Bulk]:
        with self._file.reading() as db:
            return retries.bulks(db, limit)

    # --- people who sign in ---

    def users(self) -> Sequence[User]:
        with self._file.reading() as db:
            return people.users(db)

    def user(self, name: str) -> User | None:
        with self._file.reading() as db:
            return people.user(db, name)

    def save_user(self, user: User, now: datetime) -> None:
        with self._file.writing() as db:
            people.save(db, user, now)

    def remove_user(self, name: str) -> bool:
        with self._file.writing() as db:
            return people.remove(db, name)

    def end_sessions(self, name: str) -> None:
        with self._file.writing() as db:
            people.end_sessions(db, name)

    def seen(self, name: str, now: datetime) -> None:
        with self._file.reading() as db:
            worth_it = people.unseen(db, name, now)
        if worth_it:
            with self._file.writing(durable=False) as db:
                people.seen(db, name, now)

    def add_login_link(self, link_id: str, user: str, expires_at: datetime) -> None:
        with self._file.writing() as db:
            people.add_login_link(db, link_id, user, expires_at)

    def use_login_link(self, link_id: str, now: datetime) -> str | None:
        with self._file.writing() as db:
            return people.use_login_link(db, link_id, now)

    # --- facts from outside the pipeline ---

    def note(self, entries: Collection[AuditEntry]) -> None:
        salt = self._salt
        with self._file.writing() as db:
            add_facts(db, salt, entries)

    # --- URL tokens ---

    def add_token(self, source: str, token_id: str, now: datetime) -> None:
        with self._file.writing() as db:
            keeping.add_token(db, source, token_id, now)

    def revoke_tokens(self, source: str, now: datetime) -> int:
        with self._file.writing() as db:
            return keeping.revoke_tokens(db, source, now)

    def token_live(self, source: str, token_id: str) -> bool:
        with self._file.reading() as db:
            return keeping.token_live(db, source, token_id)

    # --- keeping house ---

    def prune(self, *, payloads_before: datetime, keys_before: datetime, limit: int = 1000) -> int:
        with self._file.writing() as db:
            removed = keeping.prune(db, iso(payloads_before), iso(keys_before), limit)
            totals.prune_minutes(db)
        if removed < limit:  # not after each of many slices
            self._file.empty_log()
        return removed

    def migrate(self) -> list[str]:
        self._file.create()
        with self._file.writing() as db:
            return keeping.migrate(db)

    def close(self) -> None:
        self._file.close()

    @property
    def _salt(self) -> bytes:
        """The key of all digests, of this database and no other."""
        if not self._known_salt:
            with self._file.reading() as db:
                self._known_salt = keeping.salt(db)
        return self._known_salt
