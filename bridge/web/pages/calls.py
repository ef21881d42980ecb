"""The calls that an attempt made, as the audit log keeps them, for a person to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.model import AuditEntry
from bridge.web.pages.words import pretty

SHORT = 2000  # characters of a body, in a list
MOST_GROWTH = 5  # by indenting it; what people and platforms write doubles at most

ERASED = "The calls were deleted when the person was erased."
PRUNED = "The contents of these calls were pruned after the time that they are kept; the facts stay."
NONE_KEPT = "No call was made, or its contents were pruned since."


@dataclass(frozen=True, slots=True)
class Body:
    """What was sent or answered. *cut*: it goes on."""

    text: str
    cut: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call. *status* None: there was no answer, and *error* says why."""

    method: str
    url: str
    status: int | None
    duration_ms: int | None
    error: str
    request: Body | None
    answer: Body | None

    @property
    def good(self) -> bool:
        return self.status is not None and self.status < 400


def calls_of(entry: AuditEntry, longest: int | None = SHORT) -> Sequence[Call]:
    """Return the calls of an attempt. *longest*: cut bodies to so many characters; None: show all that is kept."""
    detail = entry.detail if isinstance(entry.detail, Mapping) else {}
    return [_call(one, longest) for one in detail.get("exchanges", ())]


def why_none(entry: AuditEntry, *, erased: bool) -> str:
    """Say why an attempt shows no calls; "" for what is none: the rules may have seen that no call was needed."""
    if entry.kind != "delivery" or entry.attempt is None or entry.detail is not None:
        return ""
    if erased:
        return ERASED
    return NONE_KEPT if entry.status is None else PRUNED


def _call(kept: Mapping[str, Any], longest: int | None) -> Call:
    return Call(
        method=kept["method"],
        url=kept["url"],
        status=kept["status"],
        duration_ms=kept["duration_ms"],
        error=kept.get("error", ""),
        request=_body(kept.get("request_body", ""), longest),
        answer=_body(kept.get("response_body", ""), longest),
    )


def _body(kept: str, longest: int | None) -> Body | None:
    if not kept:
        return None
    text = _pretty(kept, longest)
    return Body(text[:longest], cut=longest is not None and len(text) > longest)


def _pretty(text: str, longest: int | None) -> str:
    """Return JSON indented, as far as it is shown, and anything else as it is.

    That is forms, XML, what was cut in the middle, and what would be nearly all blanks.
    """
    most = MOST_GROWTH * len(text) + 1000
    try:
        laid_out = pretty(json.loads(text), most if longest is None else min(longest, most))
    except (ValueError, RecursionError):
        return text
    return laid_out if len(laid_out) <= most else text
