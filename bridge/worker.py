"""The worker process: lanes, heartbeats, chores and a clean stop.

One worker has all lanes to itself, or several share them (`Engine.shared`). Then whoever runs a lane takes it over
first, for that one run, so that a runner who was thought dead cannot write any more.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import requests

from bridge import log, pipeline, telemetry
from bridge.config import Config, SourceConnection, TargetConnection
from bridge.engine.protocol import Chore, Engine
from bridge.errors import LostLane, Retryable, StoreUnavailable
from bridge.lanes import deliver_lane, process_lane
from bridge.model import Delivery, utc_now
from bridge.outbound import READ_TIMEOUT_S, Access, Api, new_session
from bridge.store.protocol import Pair, Store, TargetStatus, Ticket

GATHER_S = 0.3  # for more of a burst
TURN_S = 3.0  # a lane does what is due for about this long, then lets the engine look around
LONGEST_NAP_S = 2.0  # waiting for the quota within a push; longer waits end the push
SWEEP_S = 5.0  # how late what is due can be when its wake was lost
BEAT_S = 10.0
PRUNE_S = 3600.0
RENEW_S = 600.0  # how late a registration can be renewed
RECONCILE_S = 60.0  # how late a reconciliation can begin
TIDY_S = 5.0
FIRST_PAUSE_S = 1.0  # after a beat failed, doubled each time
LONGEST_PAUSE_S = 30.0
ELSEWHERE = timedelta(seconds=1)  # so that another worker takes the lane, or rules are in force by then
ASIDE = timedelta(seconds=0.2)
TOLD_S = 5.0  # that a CRM may take to hear of an opt-out, while its lane waits
KEYS_KEPT = timedelta(days=14)  # longer than any sender retries


@dataclass
class Worker:
    """All lanes of this process: one per source to process, a few per target to deliver."""

    config: Config
    store: Store
    engine: Engine
    owner: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    clock: Callable[[], datetime] = utc_now
    spans: telemetry.Spans = field(default_factory=telemetry.Spans)
    gather_s: float = GATHER_S
    address: pipeline.registering.Address | None = None  # of a source's hook; None: nothing is registered anew

    def __post_init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._routes: Mapping[Pair, str] = {}  # those that were put in force when we started
        self.superseded = False  # by a worker with other rules: this one does nothing any more
        self._sessions = threading.local()
        self._stopping = threading.Event()
        self._sources: Mapping[str, SourceConnection] = {
            process_lane(name): connection for name, connection in self.config.sources.items()
        }
        self._targets: Mapping[str, TargetConnection] = {
            deliver_lane(name, number): connection
            for name, connection in self.config.targets.items()
            for number in range(connection.lanes)
        }

    @property
    def lanes(self) -> list[str]:
        return [*self._sources, *self._targets]

    # --- the process ---

    def start(self) -> None:
        """Put our rules in force and begin. Returns at once; `keep_house` is for the main thread."""
        self.store.beat("worker", self.owner, self.clock())
        if not self.engine.shared:
            self._take_over()
        readable = {name: self._reader(one) is not None for name, one in self.config.sources.items()}
        with self.store.alone("rules"):
            ruling = pipeline.follow(self.config.routes, readable, self.store, self.clock())
        self._routes = ruling.rules.routes
        if ruling.changed or ruling.gone or ruling.unread:
            log.event(
                "rules.changed",
                changed=[f"{source} -> {target}" for source, target in ruling.changed],
                gone=[f"{source} -> {target}" for source, target in ruling.gone],
                read_again=list(ruling.unread),
            )
        if not self.engine.shared:
            self._take_over()  # other rules took the lanes from everybody, us included
        self.engine.start(self.lanes, self.run, self._chores())
        log.event("worker.started", lanes=len(self.lanes), owner=self.owner)

    def _take_over(self) -> None:
        """Take every lane from whoever had it: what was being sent is due again."""
        self._tickets = {lane: self.store.acquire(lane, self.owner, self.clock()) for lane in self.lanes}

    def _chores(self) -> list[Chore]:
        def sweep() -> bool:
            self.wake_due()
            return False

        return [
            Chore("sweep", SWEEP_S, sweep),
            Chore("tidy", TIDY_S, lambda: self.store.tidy(self.clock())),
            Chore("reconcile", RECONCILE_S, self._reconcile),
            Chore("renew", RENEW_S, self._renew),
            Chore("prune", PRUNE_S, lambda: self.prune() > 0),
        ]

    def keep_house(self, wait: Callable[[float], bool]) -> None:
        """Until `stop`: wake what the web process rang for, and say that we are alive.

        *wait* returns when the bell rings (True) or after that many seconds (False).
        """
        next_beat = 0.0
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            rang = wait(max(0.0, next_beat - time.monotonic()))
            now = time.monotonic()
            try:
                if rang:
                    self.wake_due()
                if now >= next_beat:
                    self.store.beat("worker", self.owner, self.clock())
                    next_beat = now + BEAT_S
                    pause_s = FIRST_PAUSE_S
            except Exception as error:  # a full disk or a locked database passes; the worker stays
                log.bug("worker.housekeeping_failed", error, again_in_s=pause_s)
                next_beat = now + pause_s
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def wake_due(self) -> None:
        """Wake every lane that has work: a wake that was lost costs only time."""
        for lane, due in self.store.due_lanes(self.clock()).items():
            self.engine.wake([lane], due)

    def prune(self) -> int:
        """Delete payloads older than the configured days; return how many rows went."""
        # Whole days, for some databases keep a table of each, and drop it at once.
        today = self.clock().replace(hour=0, minute=0, second=0, microsecond=0)
        retention = timedelta(days=self.config.bridge.retention_days)
        return self.store.prune(payloads_before=today - retention, keys_before=today - KEYS_KEPT)

    def stop(self, grace_s: float = 30.0) -> bool:
        """End runs under way within *grace_s*; what is not done by then is taken up by the next start."""
        self._stopping.set()
        ended = self.engine.stop(grace_s)
        log.event("worker.stopped", clean=ended)
        return ended

    # --- a lane ---

    def run(self, lane: str) -> datetime | None:
        """Do what is due in *lane* for a few seconds; return when to be called again."""
        if self.engine.shared:
            return self._run_shared(lane)
        try:
            return self._run(lane, self._ticket(lane))
        except LostLane:
            log.event("lane.lost", level="error", lane=lane, owner=self.owner)
            self._stopping.set()  # another worker took over: this one must not go on
            return None
        except BaseException:
            # What was being sent has no recorded outcome (a full disk, say): take the lane anew, and it is due.
            self._tickets.pop(lane, None)
            raise

    def _run_shared(self, lane: str) -> datetime | None:
        if self.superseded:
            return self.clock() + ELSEWHERE
        ticket = self.store.acquire(lane, self.owner, self.clock())
        # After taking it: rules that are put in force from now on take the lane from us.
        if lane in self._sources and not self._in_force():
            return self.clock() + ELSEWHERE
        try:
            return self._run(lane, ticket)
        except LostLane:
            log.event("lane.lost", level="warning", lane=lane, owner=self.owner)
            return None  # who has it now goes on with it

    def _in_force(self) -> bool:
        """Say whether our rules are in force; if others are, this worker is one of the past."""
        in_force = self.store.rules()
        if in_force is not None and in_force.routes == self._routes:
            return True
        if in_force is not None and "" in in_force.routes.values():
            return False  # somebody is about to put some in force
        self.superseded = True
        log.event(
            "worker.superseded",
            level="error",
            owner=self.owner,
            reason="A worker with other rules was started on this database, and those count. This one does "
            "nothing until it is started again with the same bridge.toml as that one.",
        )
        self.engine.stop(0.0)  # lanes that it would only give back are the others'
        return False

    def _run(self, lane: str, ticket: Ticket) -> datetime | None:
        if lane in self._sources:
            return self._process(lane, self._sources[lane], ticket)
        return self._deliver(lane, self._targets[lane], ticket)

    def _ticket(self, lane: str) -> Ticket:
        if lane not in self._tickets:
            self._tickets[lane] = self.store.acquire(lane, self.owner, self.clock())
        return self._tickets[lane]

    def _process(self, lane: str, connection: SourceConnection, ticket: Ticket) -> datetime | None:
        deadline = time.monotonic() + TURN_S
        api, crm = self._reader(connection), None
        if connection.write_back:
            crm = partial(self._crm, connection, answer_s=TOLD_S)
        routes = self.config.routes_of(connection.name)
        while time.monotonic() < deadline and not self._stopping.is_set():
            more, received = False, 0
            began_ns = time.time_ns()
            for done in pipeline.process(connection, routes, self.store, ticket, api, self.clock(), crm):
                if done.inbounds:
                    where: dict[str, telemetry.Fact] = {"bridge.source": connection.name}
                    self.spans.add("bridge.process", began_ns, {**where, "bridge.inbounds": done.inbounds})
                if not self.engine.shared:  # else the transaction that made it due did so
                    for woken, due in done.woken.items():
                        self.engine.wake([woken], due)
                more = done.more
                received += len(done.inbounds)
                if self._stopping.is_set():  # else what was read is decided, for it would be read again
                    break
                began_ns = time.time_ns()
            if more:
                continue
            if received > pipeline.BURST:
                # More is likely to follow at once, and is cheaper together: each contact is then decided once.
                self._stopping.wait(self.gather_s)
            elif not self._catch_up(connection, ticket):
                return self.store.due_lanes(self.clock()).get(lane)
        return self.clock()

    def _catch_up(self, connection: SourceConnection, ticket: Ticket) -> bool:
        """Read one page of the CRM's list, if one is due; say whether it was."""
        now = self.clock()
        progress = self.store.catch_up_due(connection.name, now)
        if progress is None:
            return False
        if (lister := connection.lister()) is None:
            pipeline.catching_up.put_off(self.store, ticket, progress, now)
            return False
        began_ns = time.time_ns()
        routes, api = self.config.routes_of(connection.name), self._crm(connection)
        woken = pipeline.catching_up.step(connection, lister, routes, self.store, ticket, api, progress, now)
        self.spans.add("bridge.catch_up", began_ns, {"bridge.source": connection.name})
        if not self.engine.shared:
            for lane, due in woken.items():
                self.engine.wake([lane], due)
        return True

    def _reconcile(self) -> bool:
        """Begin to look for what no webhook told of, where it is time."""
        for connection in self.config.sources.values():
            if connection.lister() is not None and connection.reconcile_s:
                pipeline.catching_up.reconcile(connection, self.store, self.clock())
        return False

    def _renew(self) -> bool:
        """Register once more at CRMs whose registrations end, where it is time."""
        for connection in self.config.sources.values():
            if self.address is not None and (registrar := connection.registrar()) is not None:
                routes, api = self.config.routes_of(connection.name), self._crm(connection)
                try:
                    pipeline.registering.renew(
                        connection, registrar, self.store, api, self.address, routes, self.clock()
                    )
                except StoreUnavailable:
                    raise
                except Exception as error:  # a bug with one CRM must not let what others granted end
                    log.bug("source.not_registered", error, source=connection.name)
        return False

    def _reader(self, connection: SourceConnection) -> Callable[[], Api] | None:
        if not connection.source.can_read() or connection.type.read_base_url is None:
            return None
        return lambda: self._crm(connection)

    def _crm(self, connection: SourceConnection, answer_s: float = READ_TIMEOUT_S) -> Api:
        access = pipeline.SharedAccess(self.store, f"source {connection.name}", self.clock, self._stopping.wait)
        return Api(connection.base_url, session=self._session(), access=access, read_timeout_s=answer_s)

    def _deliver(self, lane: str, connection: TargetConnection, ticket: Ticket) -> datetime | None:
        deadline = time.monotonic() + TURN_S
        while not self._stopping.is_set():
            now = self.clock()
            if time.monotonic() > deadline:
                return now
            # Nothing is claimed while the target wants to be left alone: a backlog would churn for nothing.
            pause_s = self.store.take_turn(connection.name, connection.rate_per_s, connection.burst, now, count=0)
            if pause_s > 0:
                return now + timedelta(seconds=pause_s)
            claimed = self.store.claim(ticket, now, connection.type.keys)
            if claimed is None:
                status = self.store.target_status(connection.name)
                if status.mode == "open":
                    return self._next_due(lane, now)
                status = self._probe(lane, connection, status)
                if status.mode != "open":
                    return status.probe_at
            while claimed is not None:
                claimed = self._push(connection, ticket, claimed, deadline)
        return None

    def _push(
        self, connection: TargetConnection, ticket: Ticket, claimed: Delivery, deadline: float
    ) -> Delivery | None:
        """Push what was claimed; return what was claimed with its outcome, if there is time for more."""
        push = pipeline.Push(self.store, ticket, claimed, connection, self.clock)
        api = Api(
            connection.base_url,
            session=self._session(),
            take=self._turn_at(connection, push),
            turn=self._turn_at(connection),
            before_create=self._turn_at(connection, push, unsure=True),
            create_refused=push.create_refused,
            access=self._access(connection),
        )
        began_ns = time.time_ns()
        delivery, following = pipeline.deliver(
            push,
            api,
            settle=timedelta(seconds=self.config.bridge.settle_s),
            now=self.clock(),
            more=lambda: not self._stopping.is_set() and time.monotonic() < deadline,
        )
        self._trace(delivery, began_ns, len(api.exchanges))
        return following

    def _next_due(self, lane: str, now: datetime) -> datetime | None:
        due = self.store.next_due(lane)
        # What is due and was not given waits for a lane that is sending somebody who may be the same.
        return due if due is None or due > now else now + ASIDE

    def _trace(self, delivery: Delivery, began_ns: int, calls: int) -> None:
        facts: dict[str, telemetry.Fact] = {
            "bridge.target": delivery.target,
            "bridge.source": delivery.key.source,
            "bridge.source_id": delivery.key.source_id,
            "bridge.state": delivery.state.value,
            "bridge.calls": calls,
        }
        if delivery.status is not None:
            facts["http.response.status_code"] = delivery.status
        self.spans.add("bridge.deliver", began_ns, facts, failure=delivery.error or "")

    def _probe(self, lane: str, connection: TargetConnection, status: TargetStatus) -> TargetStatus:
        """Let the target's first lane, and no other, try whether a held target can be opened."""
        now = self.clock()
        if status.mode != "held" or lane != deliver_lane(connection.name, 0):
            return status
        if status.probe_at is not None and status.probe_at > now:
            return status
        api = Api(
            connection.base_url,
            session=self._session(),
            take=self._turn_at(connection),
            access=self._access(connection),
        )
        opened = pipeline.probe(connection, api, self.store, status, now)
        if opened.mode == "open":
            self.wake_due()
        return opened

    def _access(self, connection: TargetConnection) -> Access:
        return pipeline.SharedAccess(self.store, connection.name, self.clock, self._stopping.wait)

    def _turn_at(
        self, connection: TargetConnection, push: pipeline.Push | None = None, *, unsure: bool = False
    ) -> Callable[[], None]:
        """Return a function that waits for a turn within the target's quota, which all processes share.

        It raises `Superseded` once there is newer state than *push* sends, and `LostLane` once the lane was taken
        over: the opt-out, the latest state and whose turn it is are looked at again right before each call. With
        *unsure*, it also notes that the fate of the call is unknown.
        """

        def take() -> None:
            while True:
                now = self.clock()
                pause_s = self.store.take_turn(
                    connection.name,
                    connection.rate_per_s,
                    connection.burst,
                    now,
                    ticket=push.ticket if push else None,
                    claimed=push.claimed if push else None,
                    unsure=unsure,
                )
                if pause_s <= 0:
                    if push is not None and unsure:
                        push.unsure_since = now
                    return
                if pause_s > LONGEST_NAP_S or self._stopping.wait(pause_s):
                    raise Retryable(
                        "The target's quota of calls is used up for now.", code="quota", retry_after_s=pause_s
                    )

        return take

    def _session(self) -> requests.Session:
        """Return this thread's session: connections are kept open between pushes of a lane."""
        session: requests.Session | None = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = new_session()
        return session
