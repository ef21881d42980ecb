"""Access tokens of targets, which all workers have in common: one of them asks for it, and the others use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from bridge.errors import StoreUnavailable
from bridge.outbound import Fetch
from bridge.sealing import seal, unseal
from bridge.store.protocol import AccessToken, Store

RENEWAL = timedelta(seconds=15)  # who asked for a token and does not have it by then may be dead or frozen
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class SharedAccess:
    """What `bridge.outbound.Access` promises, for one target. *wait* says early that the process is to end."""

    store: Store
    target: str
    clock: Callable[[], datetime]
    wait: Callable[[float], bool]

    def token(self, fetch: Fetch, *, key: str, refused: str = "") -> tuple[str, float]:
        deadline = self.clock() + RENEWAL
        while True:
            now = self.clock()
            kept = self.store.access_token(self.target)
            if kept is not None and kept.use_until > now:
                token = unseal(kept.sealed, key)
                if token is not None and token != refused:
                    return token, (kept.use_until - now).total_seconds()
            if self.store.renew_access(self.target, kept, now, now + RENEWAL):
                return self._renew(fetch, key)
            # A token too many does no harm; a push that waits for a platform that is slow to give one does.
            if now > deadline or self.wait(LOOK_S):
                return fetch()

    def _renew(self, fetch: Fetch, key: str) -> tuple[str, float]:
        try:
            token, left_s = fetch()
        except BaseException:
            with contextlib.suppress(StoreUnavailable):
                self.store.keep_access(self.target, None)  # so that the next one need not wait
            raise
        use_until = self.clock() + timedelta(seconds=left_s)
        self.store.keep_access(self.target, AccessToken(seal(token, key), use_until))
        return token, left_s
