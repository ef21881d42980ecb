"""Calls to a CRM's API: what its answers mean to whoever reads from it, whichever CRM it is."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from bridge.errors import Permanent, Retryable, SourceUnavailable
from bridge.outbound import Api, Query, Reply
from bridge.sources.base import BatchUnreadable

# Of one call's content, not of the account: fewer records may do better.
OF_THE_BATCH = frozenset({400, 413, 414, 422})


class Tokens(Protocol):
    """Access tokens that run out; see `bridge.sources.oauth`."""

    def current(self, api: Api) -> str: ...

    def drop(self, token: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls one account's API with what gives access to it: *headers*, or *tokens* after the word *scheme*."""

    title: str  # of the CRM, for people
    connection: str  # as in ``[sources.<name>]``
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    scope: str = ""  # what the credential must allow, for people
    tokens: Tokens | None = None
    scheme: str = "Bearer"

    def call(
        self,
        api: Api,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Query | None = None,
        expected: Sequence[int] = (200,),
    ) -> Reply:
        """Send one request; return an answer of an *expected* status.

        Raises:
            BatchUnreadable: this one call is refused, or answered with nonsense.
            SourceUnavailable: the CRM cannot be called now, or refuses whoever calls.
        """
        reply = self._send(api, method, path, json=json, query=query)
        if reply.status not in expected:
            self.refuse(reply)
        return reply

    def _send(self, api: Api, method: str, path: str, *, json: Any, query: Query | None) -> Reply:
        token = self.tokens.current(api) if self.tokens else ""
        reply = self._send_with(token, api, method, path, json=json, query=query)
        if reply.status == 401 and self.tokens:
            # It ran out before its time, or was taken back: another one may be good.
            self.tokens.drop(token)
            reply = self._send_with(self.tokens.current(api), api, method, path, json=json, query=query)
        return reply

    def _send_with(self, token: str, api: Api, method: str, path: str, *, json: Any, query: Query | None) -> Reply:
        access = {"Authorization": f"{self.scheme} {token}"} if token else {}
        try:
            return api.call(method, path, json=json, query=query, headers={**self.headers, **access})
        except Retryable as error:
            unreadable = BatchUnreadable if error.code == "nonsense" else SourceUnavailable
            raise unreadable(
                f"{self.title} cannot be called now: {error}", retry_after_s=error.retry_after_s
            ) from error
        except Permanent as error:
            raise SourceUnavailable(f"{self.title} cannot be called: {error}") from error

    def json(self, api: Api, method: str, path: str, **named: Any) -> Any:
        """Return the JSON of an answer; see `call`."""
        reply = self.call(api, method, path, **named)
        try:
            return reply.json()
        except Retryable as error:
            raise BatchUnreadable(f"{self.title}'s answer is not JSON.") from error

    def refuse(self, reply: Reply) -> NoReturn:
        """Raise what an answer of a status that was not expected means."""
        whose = f"{self.title} refuses the credentials of {self.connection}"
        if reply.status == 401:
            raise SourceUnavailable(
                f"{whose} (HTTP 401): they are wrong, were replaced or have run out. "
                "Bridge tries again by itself; it works once they are good."
            )
        if reply.status == 403:
            needed = f" (needed: {self.scope})" if self.scope else ""
            raise SourceUnavailable(
                f"{whose} (HTTP 403): they do not allow this call{needed}. Bridge tries again by itself."
            )
        if reply.status == 429:
            raise SourceUnavailable(
                f"{self.title} asks for fewer calls (HTTP 429). Bridge calls again later.",
                retry_after_s=max(reply.retry_after_s, 1.0),
            )
        unreadable = BatchUnreadable if reply.status in OF_THE_BATCH else SourceUnavailable
        raise unreadable(
            f"{self.title} did not do what was asked (HTTP {reply.status}). Bridge tries again later.",
            retry_after_s=reply.retry_after_s,
        )


def object_of(value: Any) -> Mapping[str, Any]:
    """Return *value* if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """Return *value* if it is a JSON list, else an empty one."""
    return value if isinstance(value, list) else []


# --- places ----------------------------------------------------------------------------------------------


def place_of(**parts: str | int | None) -> str:
    """Return a place in a list, for `Listed.after`: *parts* that `parts_of` gives back."""
    return jsonlib.dumps(parts, separators=(",", ":"), sort_keys=True)


def parts_of(place: str | None) -> Mapping[str, Any]:
    """Return the parts of a place; none of the beginning."""
    return object_of(jsonlib.loads(place)) if place else {}
