"""The one place that speaks HTTP outward.

Only the configured base is called: no redirects, TLS verified, a time-out on every call and on its whole answer,
bodies read to a cap, no proxies or credentials taken from the environment.
"""

from __future__ import annotations

import json as jsonlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import requests
import urllib3

from bridge.errors import DeliveryFailed, Permanent, Refused, Retryable
from bridge.model import Exchange, utc_now

READ_CAP_BYTES = 4 * 1024 * 1024  # more than any page of a list that we ask for
KEPT_BYTES = 64 * 1024  # of a body, in the audit log
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0  # without a byte
TOTAL_TIMEOUT_S = 60.0  # until the whole body is there, however steadily it drips
READ_BYTES = 64 * 1024  # of the body at once, decompressed
USER_AGENT = "bridge (contact sync)"

Query = Mapping[str, str | int] | Sequence[tuple[str, str | int]]


@dataclass(frozen=True, slots=True)
class Reply:
    """A platform's answer. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def retry_after_s(self) -> float:
        """What ``Retry-After`` asks for, as seconds or as an HTTP date; 0 where it says nothing usable."""
        text = self.headers.get("retry-after", "").strip()
        if text.isascii() and text.isdigit():
            return float(min(int(text), 86_400))
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return 0
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return min(max(0.0, (moment - utc_now()).total_seconds()), 86_400)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            Retryable: it is none. A proxy's error page in a 200 is trouble on the way, not an answer.
        """
        try:
            return _storable(jsonlib.loads(self.body))
        except (ValueError, RecursionError) as error:
            raise Retryable(
                f"The answer (HTTP {self.status}) is not JSON.", code="nonsense", status=self.status
            ) from error

    def json_or_none(self) -> Any:
        """Return the body as JSON, or None: for reading error bodies."""
        try:
            return _storable(jsonlib.loads(self.body))
        except (ValueError, RecursionError):
            return None


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _storable(value: Any) -> Any:
    """Return *value* with U+FFFD for lone surrogates and NULs: what is kept of an answer must fit a database."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_storable(name): _storable(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_storable(part) for part in value]
    return value


class Api:
    """Calls to one configured base, for one attempt: it keeps what was said for the audit log.

    *take* is called before every request and waits for, or refuses, a turn within the account's quota.
    *before_create* is called before a request that must not be repeated blindly, to note durably that its fate
    is unknown until an answer arrives; *create_refused* when the answer is a plain no. *turn* stands in for *take*
    before a request that completes a write already made: it may wait, but must not stop for newer state.
    """

    def __init__(
        self,
        base_url: str,
        *,
        session: requests.Session | None = None,
        take: Callable[[], None] = lambda: None,
        turn: Callable[[], None] | None = None,
        before_create: Callable[[], None] = lambda: None,
        create_refused: Callable[[], None] = lambda: None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        total_timeout_s: float = TOTAL_TIMEOUT_S,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.session = session or new_session()
        self.take = take
        self.turn = turn or take
        self.before_create = before_create
        self.create_refused = create_refused
        self.timeout_s = (connect_timeout_s, read_timeout_s)
        self.total_timeout_s = total_timeout_s
        self.exchanges: list[Exchange] = []

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        creates: bool = False,
        confidential: bool = False,
        finishes: bool = False,
    ) -> Reply:
        """Send one request and return the answer, whatever its status.

        *path* is joined to the base and must be percent-encoded by the caller (`segment`). *query* values are
        encoded by RFC 3986, so that ``+`` survives. *creates*: repeating the call could make a second contact.
        *confidential*: keep no bodies of it (a token call). *finishes*: it completes a write already made (reads
        it back, undoes harm), so it is not given up for newer state.

        Raises:
            Retryable: no answer. `maybe_done` is set unless the request certainly never left.
        """
        url = self.base_url + path
        if query:
            url += "?" + urlencode(query, quote_via=quote)
        content = None if json is None else jsonlib.dumps(json, ensure_ascii=False).encode("utf-8", "replace")
        # Nothing compressed: what comes is as large as it looks.
        common = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        sent_headers = {**common, **(headers or {})}
        if content is not None:
            sent_headers["Content-Type"] = "application/json"
        (self.turn if finishes else self.take)()
        if creates:
            self.before_create()
        kept = "(not kept)" if confidential and content else _kept(content or b"")
        started = time.monotonic()
        try:
            reply = self._send(method, url, content, sent_headers)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failure = _no_answer(error, urlsplit(url).hostname or "")
            self._note(method, url, None, started, kept, "", type(error).__name__)
            raise failure from error
        except DeliveryFailed as failure:
            self._note(method, url, failure.status, started, kept, "", failure.code)
            raise
        self._note(method, url, reply.status, started, kept, "(not kept)" if confidential else _kept(reply.body))
        if creates and 400 <= reply.status < 500 and reply.status != 408:
            self.create_refused()
        return reply

    def _send(self, method: str, url: str, content: bytes | None, headers: Mapping[str, str]) -> Reply:
        deadline = time.monotonic() + self.total_timeout_s
        # Not `session.request`: looking through the session's own settings and cookies, of which there are none to
        # be sent, is a quarter of the work of a call.
        request = requests.Request(method, url, data=content, headers=dict(headers)).prepare()
        with self.session.send(request, timeout=self.timeout_s, allow_redirects=False, stream=True) as response:
            body = _body(response, deadline)
            lower = {name.lower(): value for name, value in response.headers.items()}
            if 300 <= response.status_code < 400:
                # A page for maintenance, an account that moved: nobody's contact is at fault.
                raise Refused(
                    "The platform answers with a redirect, which bridge does not follow. Check the base URL.",
                    code="redirect",
                    status=response.status_code,
                    tries=2,
                )
            return Reply(response.status_code, lower, body)

    def _note(
        self, method: str, url: str, status: int | None, started: float, sent: str, got: str, error: str = ""
    ) -> None:
        duration_ms = round((time.monotonic() - started) * 1000)
        self.exchanges.append(Exchange(method, url, status, duration_ms, sent, got, error))


def new_session() -> requests.Session:
    """Return a session that takes nothing from the environment (no .netrc, no proxies) and retries nothing."""
    session = requests.Session()
    session.trust_env = False
    return session


def segment(text: str) -> str:
    """Percent-encode *text* as one segment of a path."""
    return quote(text, safe="")


def _kept(body: bytes) -> str:
    text = body[:KEPT_BYTES].decode("utf-8", "replace")
    return text if len(body) <= KEPT_BYTES else text + "…"


def _body(response: requests.Response, deadline: float) -> bytes:
    """Read the whole body, as it comes and in small parts, so that neither its pace nor its size can hold us.

    Raises:
        Retryable: it is larger than the cap once decompressed. requests.ReadTimeout, urllib3's HTTPError: it did
            not come whole, or not in time.
    """
    raw: urllib3.HTTPResponse = response.raw
    body = bytearray()
    # At most so much is decompressed at once. `read` would wait until so much is there.
    while part := raw.read1(READ_BYTES, decode_content=True):
        body += part
        if len(body) > READ_CAP_BYTES:
            raise Retryable(
                f"The answer (HTTP {response.status_code}) is larger than 4 MiB.",
                code="nonsense",
                status=response.status_code,
                maybe_done=True,
            )
        if time.monotonic() > deadline:
            raise requests.ReadTimeout("The body did not come whole in time.")
    return bytes(body)


def _no_answer(
    error: requests.RequestException | urllib3.exceptions.HTTPError, host: str
) -> Retryable | Permanent:
    """Say what a failure of `requests`, or of reading the body, means; every class is covered by one of these."""
    if isinstance(error, requests.ConnectTimeout):
        return Retryable(f"{host} could not be reached in time.", code="network")
    if isinstance(error, requests.Timeout | urllib3.exceptions.ReadTimeoutError):
        return Retryable(f"{host} did not answer in time.", code="timeout", maybe_done=True)
    if isinstance(error, requests.exceptions.SSLError):
        return Retryable(f"The TLS certificate of {host} cannot be trusted.", code="tls")
    if isinstance(error, requests.ConnectionError):
        # "Connection refused" and a failed name look-up never sent a byte; a reset may have come after.
        never_left = "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error)
        return Retryable(f"{host} cannot be reached.", code="network", maybe_done=not never_left)
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidHeader | ValueError):
        return Permanent("The request could not be built. Check the base URL and the credentials.", code="invalid")
    return Retryable(f"The answer of {host} broke off.", code="network", maybe_done=True)
