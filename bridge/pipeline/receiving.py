"""Receive: in the web process, while the sender waits."""

from __future__ import annotations

from datetime import datetime

from bridge import log
from bridge.config import SourceConnection
from bridge.errors import BadPayload
from bridge.model import InboundRequest, Outcome
from bridge.store.protocol import NewInbound


def receive(connection: SourceConnection, request: InboundRequest, now: datetime) -> NewInbound:
    """Verify *request* and return what is to be stored. Nothing slow, and nothing decided.

    Raises:
        BadSignature: it is not provably from the source, or stale.
    """
    genuine = connection.source.verify(request, now)
    outcome, reason = Outcome.ACCEPTED, ""
    keys: tuple[str, ...] = ()
    try:
        keys = tuple(event.key for event in connection.source.parse(genuine, now))
    except BadPayload as error:
        outcome, reason = Outcome.UNREADABLE, str(error)
    except Exception as error:  # a bug of ours must not cost the sender's event: keep the bytes
        log.bug("inbound.parser_failed", error, source=connection.name)
        reason = f"Bridge failed to read it ({type(error).__name__}, a bug). It is kept for reprocessing."
        outcome = Outcome.ACCEPTED  # the worker will say the same, and the sender need not retry
    kept = genuine.request  # without what it proved itself with, where that stands in the body
    return NewInbound(
        source=connection.name,
        received_at=now,
        method=kept.method,
        url=kept.url,
        headers=connection.type.keeps(kept.headers),
        body=kept.body,
        event_keys=keys,
        outcome=outcome,
        reason=reason,
        secret_index=genuine.secret_index,
        signed_at=genuine.signed_at,
    )
