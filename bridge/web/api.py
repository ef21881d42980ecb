"""The JSON API below ``/api/v1``: one table of operations, served and described from the same place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest

from bridge import __version__, log
from bridge.config import Config, SourceConnection
from bridge.model import AuditEntry, InboundRequest, Outcome, RecordKey
from bridge.pipeline.processing import Parsed, parse
from bridge.store.protocol import Filter, Health, SourceStatus, Store, TargetStatus
from bridge.web import health, shapes, trial
from bridge.web.guard import Guard
from bridge.web.problem import Fault, HttpProblem
from bridge.web.queries import (
    GREATEST_ID,
    AuditQuery,
    ContactQuery,
    DeliveryQuery,
    InboundQuery,
    Input,
    Paging,
    PauseBody,
    RefusalQuery,
    ReplayBody,
    ResumeBody,
    TryBody,
    read_body,
    read_query,
)

PREFIX = "/api/v1"
BY = "api"  # who asked, in the audit log
ENTRIES = 50  # of the audit log, beside a single thing
BODY_CAP_BYTES = 6 * 1024 * 1024  # a webhook of the largest size, as text in JSON
COUNT_PAGE = 200  # deliveries looked at in one go when a replay is only counted


@dataclass(frozen=True, slots=True)
class Api:
    """What the operations work on. Each method is one operation; it is handed checked values."""

    config: Config
    store: Store
    ring: Callable[[], None]  # tells the worker that there is something to do
    clock: Callable[[], datetime]
    trouble: Callable[[], str] = health.nothing_known  # why nothing can be written, "" when it can

    # --- looking ---

    def status(self) -> shapes.Status:
        now = self.clock()
        checks = health.look(self.store, now, self.trouble())
        seen = self.store.health(now)
        return shapes.Status(
            version=__version__,
            now=now,
            ready=all(check.ok for check in checks),
            checks=[
                shapes.CheckItem(name=check.name, ok=check.ok, detail=check.detail, age_s=check.age_s)
                for check in checks
            ],
            inbound=dict(seen.inbound),
            sources=[self._source(connection, seen) for connection in self.config.sources.values()],
            targets=[self._target(name, seen) for name in self.config.targets],
            routes=[shapes.RouteItem(source=one.source, target=one.target) for one in self.config.routes],
        )

    def inbounds(self, query: InboundQuery) -> shapes.InboundList:
        if query.outcome is Outcome.REFUSED:
            what = f"refused requests are not stored; their reasons are at {PREFIX}/refusals"
            raise HttpProblem(400, f"outcome: {what}.", faults=[Fault("outcome", what)])
        with _own_cursor(query):
            page = self.store.inbound_page(query.narrowed(), query.cursor, query.limit)
        return shapes.InboundList(items=[shapes.inbound_item(one) for one in page.items], next=page.next)

    def inbound(self, inbound_id: int) -> shapes.InboundDetail:
        stored = self.store.inbound(inbound_id) if inbound_id <= GREATEST_ID else None
        if stored is None:
            raise HttpProblem(404, f"There is no inbound {inbound_id}.")
        connection = self.config.sources.get(stored.source)
        if connection is None:
            parsed = Parsed(stored, problem="Its source is no longer configured.")
        else:
            parsed = parse(connection, stored)
        audit = self._audit(Filter(inbound_id=inbound_id))
        return shapes.inbound_detail(stored, parsed.events, parsed.problem, audit)

    def refusals(self, query: RefusalQuery) -> shapes.RefusalList:
        if query.source is not None:
            self._connection(query.source)
        names = [query.source] if query.source else list(self.config.sources)
        found = [refusal for name in names for refusal in self.store.refusals(name)]
        found.sort(key=lambda refusal: refusal.at, reverse=True)
        return shapes.RefusalList(items=[shapes.refusal_item(one) for one in found])

    def contacts(self, query: ContactQuery) -> shapes.ContactList:
        with _own_cursor(query):
            page = self.store.contact_page(query.narrowed(), query.cursor, query.limit)
        return shapes.ContactList(items=[shapes.contact_item(one) for one in page.items], next=page.next)

    def contact(self, source: str, source_id: str) -> shapes.ContactDetail:
        key = RecordKey(source, source_id)
        found = self.store.contacts([key]).get(key)
        if found is None:
            raise HttpProblem(404, "Bridge knows no such contact: the source has not mentioned it.")
        audit = self._audit(Filter(source=source, source_id=source_id))
        return shapes.contact_detail(found, self.store.deliveries_of(key), audit)

    def deliveries(self, query: DeliveryQuery) -> shapes.DeliveryList:
        with _own_cursor(query):
            page = self.store.delivery_page(query.narrowed(), query.cursor, query.limit)
        return shapes.DeliveryList(items=[shapes.delivery_item(one) for one in page.items], next=page.next)

    def audit(self, query: AuditQuery) -> shapes.AuditList:
        with _own_cursor(query):
            page = self.store.audit_page(query.narrowed(), query.cursor, query.limit)
        return shapes.AuditList(items=[shapes.audit_item(one) for one in page.items], next=page.next)

    # --- doing ---

    def replay(self, body: ReplayBody) -> shapes.Replayed:
        """Evaluate again: what is sent is the present state, never an old request."""
        if body.dry_run:
            return shapes.Replayed(count=self._count(body), dry_run=True)
        now = self.clock()
        if body.inbound is not None:
            count = self.store.replay_inbound(now, BY, body.inbound)
        elif body.contacts is not None:
            keys = [RecordKey(one.source, one.source_id) for one in body.contacts]
            count = self.store.replay(now, BY, keys=keys)
        else:
            narrowed = body.deliveries.narrowed() if body.deliveries else Filter()
            count = self.store.replay(now, BY, narrowed=narrowed)
        self.ring()
        log.event("replay.asked", by=BY, count=count)
        return shapes.Replayed(count=count, dry_run=False)

    def pause(self, name: str, body: PauseBody) -> shapes.TargetItem:
        self._known_target(name)
        now = self.clock()
        self.store.pause(name, body.reason, BY, now)
        log.event("target.paused", target=name, by=BY)
        return self._target(name, self.store.health(now))

    def resume(self, name: str, body: ResumeBody) -> shapes.TargetItem:
        self._known_target(name)
        now = self.clock()
        self.store.resume(name, f"{BY}: {body.reason}" if body.reason else BY, now)
        self.ring()
        log.event("target.resumed", target=name, by=BY)
        return self._target(name, self.store.health(now))

    def try_out(self, body: TryBody) -> shapes.Tried:
        connection = self._connection(body.source)
        now = self.clock()
        url = self._url(connection)
        genuine, refused = None, ""
        if body.request is None:
            given = trial.request_of(url, body.payload)
        else:
            headers = {name.lower(): value for name, value in body.request.headers.items()}
            given = InboundRequest("POST", url, headers, body.request.body.encode())
            refused = trial.why_refused(connection, given, now)
            genuine = not refused
        routes = [route for route in self.config.routes if route.source == connection.name]
        store = self.store if body.stored else None
        tried = trial.run(connection, routes, given, extra=body.fields, store=store, now=now)
        return shapes.tried(tried, genuine, refused)

    # --- parts ---

    def _connection(self, name: str) -> SourceConnection:
        if (connection := self.config.sources.get(name)) is not None:
            return connection
        raise _unknown("source", name, self.config.sources)

    def _known_target(self, name: str) -> None:
        if name not in self.config.targets:
            raise _unknown("target", name, self.config.targets, status=404)

    def _url(self, connection: SourceConnection) -> str:
        return f"{self.config.bridge.public_url.rstrip('/')}/hooks/{connection.name}"

    def _audit(self, narrowed: Filter) -> Sequence[AuditEntry]:
        return self.store.audit_page(narrowed, None, ENTRIES).items

    def _source(self, connection: SourceConnection, seen: Health) -> shapes.SourceItem:
        found = next((one for one in seen.sources if one.source == connection.name), None)
        status = found or SourceStatus(connection.name)
        return shapes.SourceItem(
            name=connection.name,
            type=connection.type.name,
            title=connection.type.title,
            url=self._url(connection),
            needs_token=connection.needs_token,
            account=status.account,
            last_inbound_at=status.last_inbound_at,
            unprocessed=status.unprocessed,
            refused=status.refused,
            last_refused_at=status.last_refused_at,
        )

    def _target(self, name: str, seen: Health) -> shapes.TargetItem:
        connection = self.config.targets[name]
        status = next((one for one in seen.targets if one.target == name), TargetStatus(name))
        return shapes.TargetItem(
            name=name,
            type=connection.type.name,
            title=connection.type.title,
            mode=status.mode,
            reason=status.reason,
            since=status.since,
            by=status.by,
            probe_at=status.probe_at,
            deliveries={
                state: count for (target, state), count in sorted(seen.deliveries.items()) if target == name
            },
        )

    def _count(self, body: ReplayBody) -> int:
        """Say how many a replay would be about; the store is only read."""
        if body.inbound is not None:
            stored = (self.store.inbound(one) for one in set(body.inbound))
            return sum(one is not None and one.body is not None for one in stored)
        if body.contacts is not None:
            return len(self.store.contacts({RecordKey(one.source, one.source_id) for one in body.contacts}))
        narrowed = body.deliveries.narrowed() if body.deliveries else Filter()
        return len(set(self._keys(narrowed)))

    def _keys(self, narrowed: Filter) -> Iterator[RecordKey]:
        cursor: str | None = None
        while True:
            page = self.store.delivery_page(narrowed, cursor, COUNT_PAGE)
            yield from (one.key for one in page.items)
            if (cursor := page.next) is None:
                return


@contextmanager
def _own_cursor(query: Paging) -> Iterator[None]:
    """Tell a client that made a cursor up; the store cannot read it."""
    try:
        yield
    except (ValueError, OverflowError):
        if query.cursor is None:
            raise
        what = "this is no cursor that the list gave out; give the `next` of the page before"
        raise HttpProblem(400, f"cursor: {what}.", faults=[Fault("cursor", what)]) from None


def _unknown(what: str, name: str, known: Iterable[str], status: int = 422) -> HttpProblem:
    listed = ", ".join(sorted(known)) or "none"
    return HttpProblem(
        status,
        f"There is no {what} of that name; configured: {listed}.",
        faults=[Fault(what, f"must be one of: {listed}")] if status == 422 else (),
    )


# --- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """One route of the API. *handle* gets the path's parts by name, and *query* or *body* read and checked."""

    method: str
    path: str  # below PREFIX, as Flask writes it
    handle: Callable[..., shapes.Output]
    summary: str
    answer: type[shapes.Output]
    query: type[Input] | None = None
    body: type[Input] | None = None


def _get(
    path: str,
    handle: Callable[..., shapes.Output],
    answer: type[shapes.Output],
    summary: str,
    query: type[Input] | None = None,
) -> Operation:
    return Operation("GET", path, handle, summary, answer, query=query)


def _post(
    path: str,
    handle: Callable[..., shapes.Output],
    body: type[Input],
    answer: type[shapes.Output],
    summary: str,
) -> Operation:
    return Operation("POST", path, handle, summary, answer, body=body)


OPERATIONS = (
    _get("/status", Api.status, shapes.Status, "Whether everything works, and how much there is."),
    _get("/inbound", Api.inbounds, shapes.InboundList, "Stored webhooks, newest first.", InboundQuery),
    _get(
        "/inbound/<int:inbound_id>",
        Api.inbound,
        shapes.InboundDetail,
        "One webhook with its body, what it says and what came of it.",
    ),
    _get("/refusals", Api.refusals, shapes.RefusalList, "Requests that failed verification.", RefusalQuery),
    _get("/contacts", Api.contacts, shapes.ContactList, "What sources said about their records.", ContactQuery),
    _get(
        "/contacts/<source>/<path:source_id>",
        Api.contact,
        shapes.ContactDetail,
        "One contact: every field, and where each target stands.",
    ),
    _get("/deliveries", Api.deliveries, shapes.DeliveryList, "Contacts on their way to targets.", DeliveryQuery),
    _get("/audit", Api.audit, shapes.AuditList, "The audit log, newest first.", AuditQuery),
    _post("/replay", Api.replay, ReplayBody, shapes.Replayed, "Evaluate contacts or webhooks again."),
    _post(
        "/targets/<name>/pause",
        Api.pause,
        PauseBody,
        shapes.TargetItem,
        "Hold a target's deliveries until it is resumed.",
    ),
    _post("/targets/<name>/resume", Api.resume, ResumeBody, shapes.TargetItem, "Let a target's deliveries go."),
    _post("/try", Api.try_out, TryBody, shapes.Tried, "Dry-run a webhook: nothing is stored or sent."),
)


def blueprint(api: Api, guard: Guard) -> Blueprint:
    routes = Blueprint("api", __name__, url_prefix=PREFIX)
    routes.before_request(guard.check)
    for operation in OPERATIONS:
        name = operation.handle.__name__
        routes.add_url_rule(operation.path, name, _view(operation, api), methods=[operation.method])
    return routes


def _view(operation: Operation, api: Api) -> Callable[..., ResponseReturnValue]:
    def view(**parts: Any) -> ResponseReturnValue:
        if operation.query is not None:
            parts["query"] = read_query(operation.query, request.args)
        else:
            read_query(Input, request.args)  # a parameter nobody reads is a mistake somebody made
        if operation.body is not None:
            parts["body"] = read_body(operation.body, _json_body())
        return as_json(operation.handle(api, **parts))

    return view


def as_json(answer: shapes.Output) -> Response:
    headers = {"Cache-Control": "no-store"}  # it is about persons
    return Response(shapes.to_json(answer), 200, headers, content_type="application/json")


def _json_body() -> object:
    request.max_content_length = BODY_CAP_BYTES
    if not request.get_data():
        return {}
    if not request.is_json:
        raise HttpProblem(415, "Send the body as JSON, with Content-Type: application/json.")
    try:
        return request.get_json()
    except (BadRequest, RecursionError):
        raise HttpProblem(400, "The body is not valid JSON.") from None
