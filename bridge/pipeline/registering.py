"""Have CRMs send their webhooks here, and renew in time what they end by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from bridge import catch_up, log
from bridge.config import SourceConnection
from bridge.errors import ConfigError, SourceUnavailable
from bridge.model import REGISTRATION, CatchUp, Progress, iso
from bridge.outbound import Api
from bridge.pipeline.reading import fields_of
from bridge.rules import Route
from bridge.sources.base import Registrar, Registration
from bridge.store.protocol import Store

Address = Callable[[SourceConnection], str]  # the URL that a CRM is to call

RENEWED_AHEAD = 0.5  # of the time that a registration lasts: the other half is for an outage


def register(
    connection: SourceConnection,
    registrar: Registrar,
    store: Store,
    api: Api,
    url: str,
    routes: tuple[Route, ...],
    now: datetime,
    *,
    usual: bool = True,
) -> Registration:
    """Register *url*, and remember when to do it again, if it does not last.

    A *url* that is not the *usual* one is nobody's to remember: the worker renews what leads to that one.

    Raises:
        SourceUnavailable: the CRM cannot be called now, or refuses.
    """
    made = registrar.register(api, url, fields_of(routes), now)
    if made.expires_at is not None and usual:
        renew_at = now + (made.expires_at - now) * RENEWED_AHEAD
        known = store.catch_up(connection.name, REGISTRATION)
        begun = CatchUp(
            connection.name, REGISTRATION, iso(now), now, now, "bridge", state=Progress.DONE, due_at=renew_at,
            since=made.expires_at, changed=known.changed + 1 if known else 1,
        )  # fmt: skip
        store.start_catch_up(begun)
    return made


def renew(
    connection: SourceConnection,
    registrar: Registrar,
    store: Store,
    api: Api,
    address: Address,
    routes: tuple[Route, ...],
    now: datetime,
) -> None:
    """Register once more what was registered and will end, if it is time."""
    known = store.catch_up(connection.name, REGISTRATION)
    if known is None or known.due_at is None or known.due_at > now:
        return
    try:
        register(connection, registrar, store, api, address(connection), routes, now)
    except (SourceUnavailable, ConfigError) as error:
        log.event("source.not_registered", level="error", source=connection.name, tries=known.tries + 1)
        failed = catch_up.failed(known, _sentence(error), getattr(error, "retry_after_s", 0.0), now)
        store.start_catch_up(replace(failed, run=iso(now)))
    else:
        log.event("source.registered", source=connection.name)


def _sentence(error: SourceUnavailable | ConfigError) -> str:
    if isinstance(error, SourceUnavailable):
        return str(error)
    return " ".join(f"{one.where}: {one.what}." for one in error.problems)


def forget(source: str, store: Store, now: datetime) -> None:
    """Renew no more what was removed."""
    known = store.catch_up(source, REGISTRATION)
    if known is not None:
        store.start_catch_up(replace(known, run=iso(now), due_at=None, since=None, updated_at=now))
