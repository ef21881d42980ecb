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
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import requests
import urllib3
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    LocationValueError,
    NewConnectionError,
    ReadTimeoutError,
)

from bridge.errors import DeliveryFailed, Permanent, Refused, Retryable
from bridge.model import Exchange, utc_now

READ_CAP_BYTES = 4 * 1024 * 1024  # more than any page of a list that we ask for
KEPT_BYTES = 64 * 1024  # of a body, in the audit log
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0  # without a byte
TOTAL_TIMEOUT_S = 60.0  # until the whole body is there, however steadily it drips
READ_BYTES = 64 * 1024  # of the body at once, decompressed
USER_AGENT = "bridge (contact sync)"

# Nothing compressed: what comes is as large as it looks.
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
ONCE = urllib3.Retry(total=False, redirect=False)  # urllib3 retries nothing and follows nothing
_ENCODER = jsonlib.JSONEncoder(ensure_ascii=False)  # `json.dumps` would make one for every call

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
            return self._read()
        except (ValueError, RecursionError) as error:
            raise Retryable(
                f"The answer (HTTP {self.status}) is not JSON.", code="nonsense", status=self.status
            ) from error

    def json_or_none(self) -> Any:
        """Return the body as JSON, or None: for reading error bodies."""
        try:
            return self._read()
        except (ValueError, RecursionError):
            return None

    def _read(self) -> Any:
        value = jsonlib.loads(self.body)
        return _storable(value) if _SUSPECT.search(self.body) else value


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# Without one of these bytes, no text of a JSON document can hold such a letter: an escape, a NUL (UTF-16 and
# UTF-32 are full of them), or how a surrogate begins in UTF-8.
_SUSPECT = re.compile(rb"\\u|[\x00\xed]")


def _storable(value: Any) -> Any:
    """Return *value* with U+FFFD for lone surrogates and NULs: what is kept of an answer must fit a database."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_storable(name): _storable(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_storable(part) for part in value]
    return value


Fetch = Callable[[], tuple[str, float]]  # asks for an access token; gives it, and how many seconds it may be used


class Access(Protocol):
    """The access token of an account, which all processes that call it have in common."""

    def token(self, fetch: Fetch, *, key: str, refused: str = "") -> tuple[str, float]:
        """Return the token, and for how many seconds it may be used.

        Where there is none, or the one that was *refused*, one process does *fetch* it and the others wait. It is
        kept such that only who has *key*, the secret that it is given out for, can read it.
        """
        ...


class OwnAccess:
    """Of a process that has it with nobody in common."""

    def token(self, fetch: Fetch, *, key: str, refused: str = "") -> tuple[str, float]:
        return fetch()


class Api:
    """Calls to one configured base, for one attempt: it keeps what was said for the audit log.

    *take* is called before every request and waits for, or refuses, a turn within the account's quota.
    Two stand in for it where one request is unlike the others: *turn* before one that completes a write already
    made, which may wait but must not stop for newer state; *before_create* before one that must not be repeated
    blindly, which also notes durably that its fate is unknown until an answer arrives. *create_refused* is called
    when that answer is a plain no. *access* is for adapters whose platform gives out tokens.
    """

    def __init__(
        self,
        base_url: str,
        *,
        session: requests.Session | None = None,
        take: Callable[[], None] = lambda: None,
        turn: Callable[[], None] | None = None,
        before_create: Callable[[], None] | None = None,
        create_refused: Callable[[], None] = lambda: None,
        access: Access | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        total_timeout_s: float = TOTAL_TIMEOUT_S,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.session = session or new_session()
        self.take = take
        self.turn = turn or take
        self.before_create = before_create or take
        self.create_refused = create_refused
        self.access = access or OwnAccess()
        self.timeout = urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s)
        self.total_timeout_s = total_timeout_s
        self.exchanges: list[Exchange] = []

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        creates: bool = False,
        confidential: bool = False,
        finishes: bool = False,
    ) -> Reply:
        """Send one request and return the answer, whatever its status.

        *path* is joined to the base and must be percent-encoded by the caller (`segment`). *query* values are
        encoded by RFC 3986, so that ``+`` survives. *content* is a body that is no JSON; its type is in *headers*.
        *creates*: repeating the call could make a second contact. *confidential*: keep no bodies of it (a token
        call). *finishes*: it completes a write already made (reads it back, undoes harm), so it is not given up
        for newer state.

        Raises:
            Retryable: no answer. `maybe_done` is set unless the request certainly never left.
        """
        url = self.base_url + path
        if query:
            url += "?" + urlencode(query, quote_via=quote)
        sent_headers = {**HEADERS, **(headers or {})}
        if json is not None:
            content = _ENCODER.encode(json).encode("utf-8", "replace")
            sent_headers["Content-Type"] = "application/json"
        (self.before_create if creates else self.turn if finishes else self.take)()
        kept = "(not kept)" if confidential and content else _kept(content or b"")
        started = time.monotonic()
        try:
            reply = self._send(method, url.removeprefix(self.base_url), content, sent_headers)
        except (requests.RequestException, HTTPError) as error:
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

    def _send(self, method: str, path: str, content: bytes | None, headers: dict[str, str]) -> Reply:
        deadline = time.monotonic() + self.total_timeout_s
        with self._answer(method, path, content, headers) as response:
            body = _body(response, deadline)
            if 300 <= response.status < 400:
                # A page for maintenance, an account that moved: nobody's contact is at fault.
                raise Refused(
                    "The platform answers with a redirect, which bridge does not follow. Check the base URL.",
                    code="redirect",
                    status=response.status,
                    tries=2,
                )
            lower = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, lower, body)

    def _answer(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return the answer with its body still to come.

        It goes to urllib3 past `requests`, whose sessions look through settings, cookies and hooks that there are
        none of: half of the work of a call.

        Raises:
            requests.RequestException: there was no answer.
        """
        try:
            line = _line_to(self.session, self.base_url)
            return line.pool.urlopen(
                method,
                line.path + path or "/",
                body=content,
                headers=headers,
                retries=ONCE,
                redirect=False,
                assert_same_host=False,
                timeout=self.timeout,
                preload_content=False,
            )
        except (HTTPError, ValueError) as error:
            raise _as_requests(error) from error

    def _note(
        self, method: str, url: str, status: int | None, started: float, sent: str, got: str, error: str = ""
    ) -> None:
        duration_ms = round((time.monotonic() - started) * 1000)
        self.exchanges.append(Exchange(method, url, status, duration_ms, sent, got, error))


@dataclass(frozen=True, slots=True)
class _Line:
    """The kept-open connections to the host of one base URL, and the base's own path."""

    pool: urllib3.HTTPConnectionPool
    path: str


class _Lines(HTTPAdapter):
    """Remembers what base URLs lead to: one session calls the same few over and over."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str, _Line] = {}

    def line_to(self, base_url: str) -> _Line:
        if base_url not in self._lines:
            base = urllib3.util.parse_url(base_url)
            trust = {"cert_reqs": "CERT_REQUIRED", "ca_certs": DEFAULT_CA_BUNDLE_PATH}
            pool = self.poolmanager.connection_from_host(base.host, base.port, base.scheme or "", trust)
            self._lines[base_url] = _Line(pool, base.path or "")
        return self._lines[base_url]


def new_session() -> requests.Session:
    """Return a session that takes nothing from the environment (no .netrc, no proxies) and retries nothing."""
    session = requests.Session()
    session.trust_env = False
    lines = _Lines()
    session.mount("https://", lines)
    session.mount("http://", lines)
    return session


def _line_to(session: requests.Session, base_url: str) -> _Line:
    adapter = session.get_adapter(base_url)
    if not isinstance(adapter, _Lines):
        raise TypeError("An Api takes a session of new_session.")
    return adapter.line_to(base_url)


def segment(text: str) -> str:
    """Percent-encode *text* as one segment of a path."""
    return quote(text, safe="")


def _kept(body: bytes) -> str:
    text = body[:KEPT_BYTES].decode("utf-8", "replace")
    return text if len(body) <= KEPT_BYTES else text + "…"


def _body(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """Read the whole body, as it comes and in small parts, so that neither its pace nor its size can hold us.

    Raises:
        Retryable: it is larger than the cap once decompressed. requests.ReadTimeout, urllib3's HTTPError: it did
            not come whole, or not in time.
    """
    body = bytearray()
    packed = "content-encoding" in response.headers
    # At most so much is decompressed at once. `read` would wait until so much is there.
    while part := response.read1(READ_BYTES, decode_content=True):
        body += part
        if len(body) > READ_CAP_BYTES:
            raise Retryable(
                f"The answer (HTTP {response.status}) is larger than 4 MiB.",
                code="nonsense",
                status=response.status,
                maybe_done=True,
            )
        if response.length_remaining == 0 and not packed:
            break
        if time.monotonic() > deadline:
            raise requests.ReadTimeout("The body did not come whole in time.")
    return bytes(body)


def _as_requests(error: HTTPError | ValueError) -> requests.RequestException:
    """Return what `requests` calls *error*, which urllib3 raised instead of an answer."""
    if isinstance(error, NewConnectionError):
        return requests.ConnectionError(error)
    if isinstance(error, ConnectTimeoutError):
        return requests.ConnectTimeout(error)
    if isinstance(error, ReadTimeoutError):
        return requests.ReadTimeout(error)
    if isinstance(error, urllib3.exceptions.SSLError):
        return requests.exceptions.SSLError(error)
    if isinstance(error, LocationValueError):
        return requests.exceptions.InvalidURL(error)
    if isinstance(error, InvalidHeader | ValueError):
        return requests.exceptions.InvalidHeader(error)
    return requests.ConnectionError(error)


def _no_answer(error: requests.RequestException | HTTPError, host: str) -> Retryable | Permanent:
    """Say what a failure of `requests`, or of reading the body, means; every class is covered by one of these."""
    if isinstance(error, requests.ConnectTimeout):
        return Retryable(f"{host} could not be reached in time.", code="network")
    if isinstance(error, requests.Timeout | ReadTimeoutError):
        return Retryable(f"{host} did not answer in time.", code="timeout", maybe_done=True)
    if isinstance(error, requests.exceptions.SSLError):
        return Retryable(f"The TLS certificate of {host} cannot be trusted.", code="tls")
    if isinstance(error, requests.ConnectionError):
        # "Connection refused" and a failed name look-up never sent a byte; a reset may have come after.
        never_left = isinstance(error.__cause__, NewConnectionError)
        return Retryable(f"{host} cannot be reached.", code="network", maybe_done=not never_left)
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidHeader | ValueError):
        return Permanent("The request could not be built. Check the base URL and the credentials.", code="invalid")
    return Retryable(f"The answer of {host} broke off.", code="network", maybe_done=True)
