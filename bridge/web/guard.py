"""Who may use the API: whoever has the token of BRIDGE_API_TOKEN, compared in constant time."""

from __future__ import annotations

import hmac
import ipaddress
import threading
import time
from collections.abc import Callable

from flask import request

from bridge.web.problem import HttpProblem

FAILURES = 20  # wrong tokens from one address at once …
PER_FAILURE_S = 3.0  # … and then one in so many seconds
ADDRESSES = 4096  # remembered
LONG = 24  # characters: a token that nobody guesses, whatever the pace

NOT_CONFIGURED = (
    "The API is switched off because it has no token. Set BRIDGE_API_TOKEN to a long random text "
    "(for example the output of: openssl rand -hex 32) and start bridge again."
)


class Throttle:
    """A bucket of failures for each address (or name): *failures* at once, then one in *per_failure_s*."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        failures: int = FAILURES,
        per_failure_s: float = PER_FAILURE_S,
    ) -> None:
        self._clock = clock
        self._failures = failures
        self._per_failure_s = per_failure_s
        self._lock = threading.Lock()
        self._empty_until: dict[str, float] = {}  # when the address's bucket is full of forgiveness again

    def closed_for_s(self, address: str) -> float:
        """Return for how many seconds *address* has no try left; 0 when it has one."""
        with self._lock:
            debt_s = self._empty_until.get(address, 0.0) - self._clock()
        return max(0.0, debt_s - (self._failures - 1) * self._per_failure_s)

    def failed(self, address: str) -> None:
        now = self._clock()
        with self._lock:
            if len(self._empty_until) >= ADDRESSES:
                self._empty_until = {one: until for one, until in self._empty_until.items() if until > now}
            if len(self._empty_until) >= ADDRESSES:
                self._empty_until.clear()
            until = max(now, self._empty_until.get(address, now)) + self._per_failure_s
            self._empty_until[address] = min(until, now + self._failures * self._per_failure_s)

    def forgive(self, address: str) -> None:
        """Take one `failed` back: it was none."""
        with self._lock:
            if address in self._empty_until:
                self._empty_until[address] -= self._per_failure_s


def neighbourhood(address: str) -> str:
    """Return what to throttle instead of *address*: one subscriber has 2^64 addresses of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4 or parsed.ipv4_mapped:
        return address
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


class Guard:
    """Lets a request pass, or raises the `HttpProblem` that answers it."""

    def __init__(self, token: str, throttle: Throttle | None = None) -> None:
        self._token = token.encode()
        self._throttle = throttle or Throttle()

    def check(self) -> None:
        """Look at the request's ``Authorization`` header.

        Raises:
            HttpProblem: 503 without a configured token, 401 for a wrong one, 429 after too many wrong ones.
        """
        if not self._token:
            raise HttpProblem(503, NOT_CONFIGURED)
        address = neighbourhood(request.remote_addr or "")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
        right = right and scheme.lower() == "bearer"
        closed_s = self._throttle.closed_for_s(address)
        # Behind a proxy everybody has one address, so strangers must not be able to lock the owner out: a long
        # token passes at any time. A short one could be guessed, and waits like everybody else.
        if right and (not closed_s or len(self._token) >= LONG):
            return
        if closed_s:
            wait = {"Retry-After": str(int(closed_s) + 1)}
            raise HttpProblem(429, "Too many wrong API tokens from this address; wait a little.", headers=wait)
        self._throttle.failed(address)
        detail = "Send the API token: Authorization: Bearer <the value of BRIDGE_API_TOKEN>."
        raise HttpProblem(401, detail, headers={"WWW-Authenticate": 'Bearer realm="bridge"'})
