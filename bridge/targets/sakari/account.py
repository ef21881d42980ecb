"""One Sakari account: its access token, its calls, its lists in pages, and what its errors mean."""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from bridge.errors import Ambiguous, Permanent, Refused, Retryable
from bridge.model import Secret
from bridge.outbound import Api, Reply
from bridge.targets.base import fail, quotable

TITLE = "Sakari"
STOPPED = "CONT-010"  # "Contact has requested no further communication"
BAD_MOBILE = "CONT-001"
NO_ADDRESS = "no_address"  # our code for a path that the platform does not have
ACCOUNT_TROUBLE = {
    "ACCT-001": "the free limit is reached",
    "ACCT-006": "the account has not enough credit",
    "ACCT-008": "the account id is wrong",
    "ACCT-010": "this server's IP address is blocked",
    "ACCT-016": "the account has no access to the API",
    "ACCT-017": "the account has to be verified first",
}
PAGE = 100  # the most that a list gives at once
PAGES_MAX = 200  # a list that goes on for longer makes no sense
TOKEN_LIFE_S = 3600.0  # where a token does not say when it ends
TOKEN_EARLY_S = 60.0

Json = dict[str, Any]


class Gone(Retryable):
    """The contact is not there any more."""

    code = "stale"


class SaidStop(Permanent):
    """The platform refuses a write because the person asked for no further communication."""

    code = "opted_out"


# --- access -----------------------------------------------------------------------------------------------------


class Tokens:
    """The account's access token: one thread of one process fetches it, and all others wait for it.

    https://developer.sakari.io/api-reference/authentication/get-token-for-accessing-apis
    """

    def __init__(self, client_id: Secret, client_secret: Secret, clock: Callable[[], float]) -> None:
        self._client_id = client_id
        self._client_secret = client_secret
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._use_until = 0.0  # by the clock
        self._refused = ""

    def current(self, api: Api, *, finishes: bool) -> str:
        with self._lock:
            if not self._token or self._clock() >= self._use_until:
                self._token, left_s = api.access.token(
                    lambda: self._fetch(api, finishes=finishes), key=self._key(api), refused=self._refused
                )
                self._use_until = self._clock() + left_s
            return self._token

    def drop(self, token: str) -> None:
        """Forget *token*, which was refused, unless another thread has replaced it by now."""
        with self._lock:
            if self._token == token:
                self._token, self._refused = "", token

    def _key(self, api: Api) -> str:
        """Return a secret that is another one as soon as the token is another account's."""
        return "\n".join((self._client_id.reveal(), self._client_secret.reveal(), api.base_url))

    def _fetch(self, api: Api, *, finishes: bool) -> tuple[str, float]:
        """Return a new token and for how many seconds it may be used."""
        asked = {
            "grant_type": "client_credentials",
            "client_id": self._client_id.reveal(),
            "client_secret": self._client_secret.reveal(),
        }
        reply = api.call("POST", "/oauth2/token", json=asked, confidential=True, finishes=finishes)
        if 400 <= reply.status < 500 and reply.status not in {408, 425, 429}:
            raise Refused(
                f"Sakari gives no access for the client id and client secret (HTTP {reply.status}).",
                status=reply.status,
            )
        if not reply.ok:
            fail(TITLE, reply, doing="asking for access")
        body = reply.json()
        if isinstance(body, dict) and (body.get("error") or body.get("success") is False):
            raise Refused("Sakari gives no access for the client id and client secret.", status=reply.status)
        token = body.get("access_token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise Retryable("Sakari answered without an access token.", code="nonsense", status=reply.status)
        return token, self._life_s(token, body) - TOKEN_EARLY_S

    def _life_s(self, token: str, body: Json) -> float:
        """Return how long the token lives, by the shortest of what is said about it."""
        told = [_seconds(body.get("expires_in"))]
        # In seconds, as the standard has it. The vendor's own client takes it for milliseconds.
        expires_at = _seconds(_claims(token).get("exp"))
        told.append(expires_at - self._clock() if expires_at is not None else None)
        return min((life_s for life_s in told if life_s is not None), default=TOKEN_LIFE_S)


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _claims(token: str) -> Json:
    """Return what a JWT says, unchecked: it is only used to know when to ask for the next one."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


# --- calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Account:
    """Calls to one account, for one push."""

    api: Api
    tokens: Tokens
    path: str  # "/v1/accounts/<id>"

    def call(
        self,
        method: str,
        path: str = "",
        *,
        json: Any = None,
        query: Mapping[str, str | int] | None = None,
        creates: bool = False,
        finishes: bool = False,
    ) -> Reply:
        """Send one request; a token that is refused is replaced once.

        *finishes*: it completes a write that was made, and must not give way to newer state.
        """
        for last in (False, True):
            token = self.tokens.current(self.api, finishes=finishes)
            reply = self.api.call(
                method,
                self.path + path,
                json=json,
                query=query,
                headers={"Authorization": f"Bearer {token}"},
                creates=creates,
                finishes=finishes,
            )
            if reply.status != 401:
                break
            self.tokens.drop(token)
            if last:
                raise Refused("Sakari refuses an access token that it has just given out.", status=401)
        return reply

    def pages(self, path: str, query: Mapping[str, str | int], *, doing: str) -> Iterator[Json]:
        """Yield every row of a list, over all its pages."""
        offset = 0
        previous: list[Any] = []
        for _ in range(PAGES_MAX):
            reply = self.call("GET", path, query={**query, "offset": offset, "limit": PAGE})
            body = body_of(reply, doing=doing)
            rows = body.get("data")
            if not isinstance(rows, list) or (rows and rows == previous):
                raise nonsense(reply, doing)
            yield from (row for row in rows if isinstance(row, dict))
            offset += len(rows) or PAGE  # a page may be thinned out after it was cut
            previous = rows
            if not _more(body.get("pagination"), offset, len(rows)):
                return
        raise nonsense(reply, doing)


def _more(pagination: Any, offset: int, rows: int) -> bool:
    """Say whether there is a next page, in both shapes that the vendor has documented."""
    if isinstance(pagination, dict):
        if isinstance(pagination.get("hasNext"), bool):
            return bool(pagination["hasNext"])
        total = pagination.get("totalCount")
        if isinstance(total, int):
            return offset < total
    return rows >= PAGE


# --- what an answer means ---------------------------------------------------------------------------------------


def body_of(reply: Reply, *, doing: str, sent: Any = None) -> Json:
    """Return the JSON object of a success.

    Raises:
        Retryable, Refused, Permanent: it is none, also when a 2xx says ``"success": false``.
    """
    if not reply.ok:
        _refuse(reply, doing, sent)
    body = reply.json() if reply.body else {}
    if not isinstance(body, dict):
        raise nonsense(reply, doing)
    if body.get("success") is False:
        _refuse(reply, doing, sent)
    return body


def nonsense(reply: Reply, doing: str) -> Retryable:
    return Retryable(
        f"Sakari answered something that bridge does not understand while {doing}.",
        code="nonsense",
        status=reply.status,
    )


def _refuse(reply: Reply, doing: str, sent: Any = None) -> NoReturn:
    """Raise what an error means: https://support.sakari.io, "Error codes"."""
    body = reply.json_or_none()
    error = body.get("error") if isinstance(body, dict) else None
    code = code_of(error)
    if code.startswith("ACCT-"):
        why = ACCOUNT_TROUBLE.get(code, "something is wrong with the account")
        raise Refused(f"Sakari refuses {doing}: {why} ({code}).", status=reply.status)
    if reply.ok or (400 <= reply.status < 500 and reply.status not in {408, 425, 429}):
        if code == STOPPED:
            raise SaidStop(f"The person asked for no further communication ({code}).", status=reply.status)
        if code == BAD_MOBILE:
            message = f"Sakari does not take the mobile number ({code})."
            raise Permanent(message, status=reply.status)
    if reply.status == 404:
        message = f"Sakari does not know the address used for {doing} (HTTP 404). Check account_id and api_base."
        raise Refused(message, code=NO_ADDRESS, status=404)
    said = quotable(error.get("message"), sent) if isinstance(error, dict) else ""
    detail = ", ".join(part for part in (code, said) if part)
    if reply.status == 409:
        message = f"Sakari says that another contact stands in the way (HTTP 409) of {doing}."
        raise Ambiguous(message, status=reply.status)
    if not reply.ok:
        fail(TITLE, reply, doing=doing, detail=detail)
    message = f"Sakari answered that {doing} failed" + (f": {detail}." if detail else ".")
    if code.startswith("CONT-"):
        raise Permanent(message, status=reply.status)
    raise Retryable(message, code="nonsense", status=reply.status)


def code_of(error: Any) -> str:
    """Return the code of an ``error`` object, such as CONT-001, if it looks like one."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and re.fullmatch(r"[A-Z]{2,8}-\d{1,4}", code) else ""
