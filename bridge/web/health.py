"""Is bridge alive, and is it able to work: for load balancers and alarms. What it does is in `metrics`."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from bridge.errors import StoreUnavailable
from bridge.model import utc_now
from bridge.store.group_commit import Trouble
from bridge.store.protocol import Health, Store
from bridge.web.guard import Guard
from bridge.web.metrics import StoreCollector, seconds_since

WORKER_FRESH_S = 30.0  # it beats every ten seconds
TROUBLE_FRESH_S = 30.0  # a failed write is believed for so long; then it is tried anew
LATE_S = 3600.0  # what is due and still not sent after so long needs a look


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. *detail* is one sentence for a person."""

    name: str
    ok: bool
    detail: str
    age_s: float | None = None


def nothing_known() -> str:
    """Stand for whoever knows why nothing can be written: nobody does."""
    return ""


def blueprint(
    store: Store,
    guard: Guard,
    bound_to: str,
    clock: Callable[[], datetime] = utc_now,
    trouble: Callable[[], str] = nothing_known,
    bursts: Mapping[str, int] | None = None,
) -> Blueprint:
    """Return ``/healthz``, ``/readyz`` and ``/metrics``.

    *bound_to*: the address that the server listens at. *trouble* says why nothing can be written, "" when it can.
    *bursts*: how many calls each target takes at once.
    """
    health = Blueprint("health", __name__)
    registry = CollectorRegistry()
    registry.register(StoreCollector(store, bursts or {}, clock, trouble))
    metrics_are_open = _loopback(bound_to)

    @health.get("/healthz")
    def alive() -> ResponseReturnValue:
        return _json({"status": "ok"}, 200)

    @health.get("/readyz")
    def ready() -> ResponseReturnValue:
        checks = look(store, clock(), trouble())
        ok = all(check.ok for check in checks)
        body = {"status": "ready" if ok else "not ready", "checks": [asdict(check) for check in checks]}
        return _json(body, 200 if ok else 503)

    @health.get("/metrics")
    def metrics() -> ResponseReturnValue:
        if not metrics_are_open:
            guard.check()
        return Response(generate_latest(registry), 200, content_type=CONTENT_TYPE_LATEST)

    return health


def why_unwritable(store: Store, trouble: Trouble | None, now: datetime) -> str:
    """Return why webhooks cannot be stored, "" when they can. *trouble* is what came of the last one.

    It is not believed for ever: a load balancer that did would send nothing more that could prove it wrong.
    """
    if trouble is None:
        return ""
    if time.monotonic() - trouble.at <= TROUBLE_FRESH_S:
        return trouble.why
    return try_to_write(store, "web", now)


def try_to_write(store: Store, role: str, now: datetime) -> str:
    """Write a little, and return why that failed, "" when it did not."""
    try:
        store.beat(role, "try", now)
    except StoreUnavailable as error:
        return str(error)
    return ""


def look(store: Store, now: datetime, trouble: str = "") -> list[Check]:
    """Look at the database, the worker and what is late. *trouble*: why nothing can be written."""
    try:
        seen = store.health(now)
    except StoreUnavailable as error:
        # Webhooks may be stored all the same: what somebody has locked is another table.
        return [Check("database", ok=False, detail=f"The database cannot be looked at now. {error}")]
    return [
        Check("database", ok=not trouble, detail=trouble or "The database answers."),
        _worker(seen, now),
        _late(
            "processing",
            "The oldest webhook that waits to be processed",
            "No webhook waits to be processed.",
            seen.oldest_unprocessed_at,
            now,
        ),
        _late("delivery", "The oldest delivery that may be sent", "No delivery is due.", seen.oldest_due_at, now),
    ]


def worker_alive(seen: Health, now: datetime) -> bool:
    if seen.worker_seen_at is None:
        return False
    # A moment ahead of us is of a clock that was wrong: it tells nothing of whether the worker is alive now.
    return -WORKER_FRESH_S <= (now - seen.worker_seen_at).total_seconds() <= WORKER_FRESH_S


def _worker(seen: Health, now: datetime) -> Check:
    if seen.worker_seen_at is None:
        detail = "No worker ever ran: webhooks are stored, but nothing is sent. Start one with: bridge worker."
        return Check("worker", ok=False, detail=detail)
    age_s = seconds_since(seen.worker_seen_at, now)
    if seen.worker_seen_at > now and not worker_alive(seen, now):
        detail = "The worker was last seen at a moment that is yet to come: a clock was wrong, and no worker runs."
        return Check("worker", ok=False, detail=detail)
    if worker_alive(seen, now):
        return Check("worker", ok=True, detail=f"The worker was seen {age_s:.0f} seconds ago.", age_s=age_s)
    detail = (
        f"The worker was last seen {age_s:.0f} seconds ago: webhooks are stored, but nothing is sent "
        "until it runs again."
    )
    return Check("worker", ok=False, detail=detail, age_s=age_s)


def _late(name: str, what: str, nothing: str, since: datetime | None, now: datetime) -> Check:
    if since is None:
        return Check(name, ok=True, detail=nothing, age_s=0.0)
    age_s = seconds_since(since, now)
    return Check(name, ok=age_s <= LATE_S, detail=f"{what} has waited for {age_s:.0f} seconds.", age_s=age_s)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _json(body: object, status: int) -> Response:
    return Response(json.dumps(body), status, {"Cache-Control": "no-store"}, content_type="application/json")
