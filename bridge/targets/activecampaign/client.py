"""Speaking with ActiveCampaign: the key on every call, and what each of its answers means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from bridge.errors import Permanent, Refused, Retryable
from bridge.model import Secret
from bridge.outbound import Api, Reply
from bridge.targets.base import quotable

TITLE = "ActiveCampaign"
PAGE = 100  # the most that a list gives at once
PAGES_MAX = 200  # a list that goes on for longer makes no sense
BULK_WAIT_S = 60.0  # the rate limit that comes as a 400 counts by the minute
WAIT_CAP_S = 86_400.0

Json = dict[str, Any]


class NotFound(Permanent):
    """HTTP 404."""


class Taken(Permanent):
    """HTTP 422 with the code ``duplicate``: there is another one with this address or name."""


class Gone(Retryable):
    """The contact was deleted in the platform, before or while it was written."""

    code = "stale"


@dataclass(frozen=True, slots=True)
class Answer:
    """A success. *doing* completes "… while" for a person: "updating the contact"."""

    status: int
    body: Json
    doing: str
    creates: bool = False

    def row(self, key: str) -> Json:
        """Return the object under *key*. Raises Retryable when it is missing: that is a failure in disguise."""
        found = self.body.get(key)
        if not isinstance(found, dict) or number(found.get("id")) is None:
            raise self.nonsense()
        return found

    def rows(self, key: str) -> list[Json]:
        """Return the objects of the list under *key*. Raises Retryable when there is no list."""
        found = self.body.get(key)
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise self.nonsense()
        return found

    def nonsense(self) -> Retryable:
        return _nonsense(self.doing, self.status, self.creates)


class Client:
    """The calls of one attempt."""

    def __init__(self, api: Api, api_key: Secret) -> None:
        self._api = api
        self._headers = {"Api-Token": api_key.reveal()}

    def call(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        json: Any = None,
        query: Mapping[str, str | int] | None = None,
        creates: bool = False,
        finishes: bool = False,
    ) -> Answer:
        """Send one request and return its success. *creates* and *finishes* are as for `Api.call`.

        Raises:
            NotFound, Taken, Permanent, Refused, Retryable: as the platform answered.
        """
        reply = self._api.call(
            method, path, json=json, query=query, headers=self._headers, creates=creates, finishes=finishes
        )
        if not reply.ok:
            _refuse(reply, doing, (json, query), creates=creates)
        if _is_page(reply):
            # The login page. A proxy may have put it there, so it must come twice before the target is held.
            raise Refused(
                f"{TITLE} answered with a web page instead of data while {doing}, so the address or the key is "
                "wrong. Check base_url and api_key.",
                status=reply.status,
                tries=2,
            )
        body = {} if method == "DELETE" and not reply.body.strip() else reply.json_or_none()
        if not isinstance(body, dict):
            raise _nonsense(doing, reply.status, creates)
        if str(body.get("result_code")) == "0":  # the old API says so inside a 200
            _refuse(reply, doing, (json, query), creates=creates)
        return Answer(reply.status, body, doing, creates)

    def pages(
        self, path: str, key: str, *, doing: str, query: Mapping[str, str | int] | None = None
    ) -> Iterator[Answer]:
        """Yield every page of a list: https://developers.activecampaign.com/reference/pagination."""
        seen = 0
        for _ in range(PAGES_MAX):
            page = self.call("GET", path, doing=doing, query={**(query or {}), "limit": PAGE, "offset": seen})
            yield page
            count = len(page.rows(key))
            seen += count
            meta = page.body.get("meta")
            total = number(meta.get("total")) if isinstance(meta, dict) else None
            if count == 0 or (count < PAGE if total is None else seen >= total):
                return
        raise Retryable(f"A list of {TITLE} has no end while {doing}.", code="nonsense")


def _is_page(reply: Reply) -> bool:
    text = reply.body.lstrip()
    return text[:1] == b"<" or (reply.content_type == "text/html" and text[:1] not in {b"", b"{", b"["})


def number(value: Any) -> int | None:
    """Return the whole number that *value* is or spells: ids, counts and statuses come as either."""
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else None


# --- errors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Complaint:
    """What the platform said of an error: its machine-readable codes, and its words."""

    codes: frozenset[str] = frozenset()
    words: str = ""


def complaint(reply: Reply) -> Complaint:
    """Read an error body of any of the shapes that the platform uses, the most telling first."""
    body = reply.json_or_none()
    if not isinstance(body, dict):
        return Complaint(words=_raw(reply))
    errors = body.get("errors")
    if isinstance(errors, list) and errors:
        rows = [row if isinstance(row, dict) else {"title": row} for row in errors]
        return Complaint(
            _codes(*(row.get("code") for row in rows)),
            "; ".join(_words(row.get("title"), row.get("detail"), _pointer(row)) for row in rows),
        )
    if isinstance(errors, str) and errors:
        return Complaint(words=errors)
    if body.get("error"):
        return Complaint(_codes(body["error"], body.get("code")), _words(body["error"], body.get("message")))
    if body.get("message"):
        reasons = body.get("failureReasons")
        return Complaint(words=_words(body["message"], *(reasons if isinstance(reasons, list) else ())))
    if body.get("result_message"):
        return Complaint(words=_words(body["result_message"]))
    return Complaint(words=_raw(reply) if body else "")


def _codes(*found: Any) -> frozenset[str]:
    return frozenset(code for code in found if isinstance(code, str) and code)


def _words(*parts: Any) -> str:
    return ", ".join(str(part).rstrip(".") for part in parts if part)


def _pointer(row: Json) -> Any:
    source = row.get("source")
    return source.get("pointer") if isinstance(source, dict) else None


def _raw(reply: Reply) -> str:
    text = reply.text[:500].strip()
    return "" if text.startswith("<") else text  # a proxy's page tells a person nothing


def _quoted(said: Complaint, sent: Any) -> str:
    """Return ": " and what the platform said, as far as that may stand in the audit log."""
    options = [option for text in _texts(sent) for option in text.split("||")]  # it may repeat one alone
    words = quotable(said.words, [sent, options]) or quotable(", ".join(sorted(said.codes)), [sent, options])
    return f": {words}" if words else ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _nonsense(doing: str, status: int, creates: bool) -> Retryable:
    message = f"{TITLE} answered something that makes no sense while {doing}."
    return Retryable(message, code="nonsense", status=status, maybe_done=creates)


def _wait_s(reply: Reply) -> float:
    """Return how long the platform, or the proxy before it, asks to be left alone; 0: it does not say."""
    body = reply.json_or_none()
    asked_s = body.get("retry_after") if isinstance(body, dict) else None
    if isinstance(asked_s, str) and asked_s.isascii() and asked_s.isdigit():
        asked_s = int(asked_s)
    if not isinstance(asked_s, int | float):
        asked_s = 0
    return max(reply.retry_after_s, float(min(max(asked_s, 0), WAIT_CAP_S)))


def _refuse(reply: Reply, doing: str, sent: Any, *, creates: bool) -> NoReturn:
    """Raise what an answer that is no success means."""
    said, status = complaint(reply), reply.status
    where = f"(HTTP {status}) while {doing}{_quoted(said, sent)}."
    limited = status < 429 and "rate limit" in said.words.casefold()  # imports report their limit as a 400
    if status == 429 or limited:
        raise Retryable(
            f"{TITLE} asks for fewer calls {where}",
            code="rate_limited",
            status=status,
            retry_after_s=max(_wait_s(reply), BULK_WAIT_S if limited else 0),
        )
    if status in {408, 425} or status >= 500:
        raise Retryable(
            f"{TITLE} has trouble {where}", status=status, retry_after_s=_wait_s(reply), maybe_done=creates
        )
    if status in {401, 402, 403}:
        # Valid keys get a 403 now and then, so one alone does not mean that the key is bad.
        raise Refused(f"{TITLE} refuses our key or plan {where}", status=status, tries=3 if status == 403 else 1)
    if status == 404:
        raise NotFound(f"{TITLE} does not have what it was asked for {where}", code="missing", status=status)
    if status == 422 and "duplicate" in said.codes:
        raise Taken(f"{TITLE} has another one like this {where}", code="duplicate", status=status)
    raise Permanent(f"{TITLE} gave an error {where}", status=status)
