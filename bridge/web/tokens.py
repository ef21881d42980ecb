"""Secret URLs for senders that cannot sign: ``/hooks/<source>/<token>``.

A token names its source and itself, signed with SECRET_KEY, so that a made-up one is refused without a look into
the database. It holds until it is revoked there.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from itertools import count

from itsdangerous import BadData, URLSafeSerializer

from bridge.store.protocol import Store

LIVE_FOR_S = 5.0  # how long a look into the database is believed, and so how soon a revocation holds everywhere
REMEMBERED = 1024
LONGEST = 512  # characters; ours have about 80


def make_token(secret_key: str, source: str, token_id: str) -> str:
    return _serializer(secret_key).dumps([source, token_id])


def read_token(secret_key: str, source: str, token: str) -> str | None:
    """Return the id of a token that we made for *source*, or None. Takes constant time in what was signed."""
    if not secret_key or not token.isascii() or len(token) > LONGEST:
        return None
    try:
        payload = _serializer(secret_key).loads(token)
    except (BadData, ValueError, RecursionError):
        return None
    match payload:
        case [str(named), str(token_id)] if named == source:
            return token_id
        case _:
            return None


def lasting_token(secret_key: str, source: str, store: Store) -> str:
    """Return a token of *source* that is the same each time, as long as it is not revoked."""
    numbers = count(1)
    while True:
        token_id = f"registered-{next(numbers)}"
        store.add_token(source, token_id, store.clock())  # unless it is there already, revoked perhaps
        if store.token_live(source, token_id):
            return make_token(secret_key, source, token_id)


def new_token_id() -> str:
    """Return an id to hand to `Store.add_token`; it is no secret."""
    return secrets.token_hex(6)


def _serializer(secret_key: str) -> URLSafeSerializer:
    return URLSafeSerializer(secret_key, salt="bridge.hooks")


class Tokens:
    """Says whether a token may be used, asking the store at most once in `LIVE_FOR_S` for each."""

    def __init__(self, secret_key: str, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret_key = secret_key
        self._store = store
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[bool, float]] = {}
        self._lock = threading.Lock()

    def good(self, source: str, token: str) -> bool:
        """Say whether *token* was made for *source* and is not revoked. Raises StoreUnavailable."""
        token_id = read_token(self._secret_key, source, token)
        if token_id is None:
            return False
        key = (source, token_id)
        now = self._clock()
        with self._lock:
            live, until = self._seen.get(key, (False, 0.0))
        if now < until:
            return live
        live = self._store.token_live(source, token_id)
        with self._lock:
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[key] = (live, now + LIVE_FOR_S)
        return live
