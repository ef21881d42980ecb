"""How pages say things: outcomes by word and icon, moments, spans of time and counts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from markupsafe import Markup, escape

# --- outcomes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """How an outcome is shown. *tone*: ``good``, ``bad``, ``warn``, ``busy``, ``idle``; *icon*: a symbol's id."""

    word: str
    tone: str
    icon: str


# Deliveries, attempts, webhooks, targets, contacts and what people did: one word means one thing on every page.
MARKS: Mapping[str, Mark] = {
    # deliveries
    "waiting": Mark("waiting", "idle", "hourglass"),
    "pending": Mark("pending", "busy", "queue"),
    "sending": Mark("sending", "busy", "arrow"),
    "retrying": Mark("retrying", "warn", "repeat"),
    "held": Mark("held", "warn", "pause"),
    "synced": Mark("synced", "good", "check"),
    "failed": Mark("failed", "bad", "cross"),
    "ambiguous": Mark("ambiguous", "bad", "question"),
    "opted_out": Mark("opted out", "idle", "stop"),
    "removed": Mark("removed", "idle", "minus"),
    # attempts
    "created": Mark("created", "good", "plus"),
    "updated": Mark("updated", "good", "check"),
    "unchanged": Mark("unchanged", "idle", "equal"),
    "absent": Mark("not there", "idle", "minus"),
    # webhooks
    "accepted": Mark("queued", "busy", "queue"),
    "processed": Mark("processed", "good", "check"),
    "duplicate": Mark("duplicate", "idle", "equal"),
    "ignored": Mark("ignored", "idle", "minus"),
    "unreadable": Mark("unreadable", "bad", "cross"),
    "refused": Mark("refused", "bad", "stop"),
    # contacts
    "changed": Mark("changed", "good", "pencil"),
    "deleted": Mark("deleted", "idle", "minus"),
    "erased": Mark("erased", "warn", "minus"),
    "merged": Mark("merged", "idle", "arrow"),
    "stopped": Mark("stopped", "idle", "stop"),  # also a backfill
    "started": Mark("started", "idle", "check"),
    "told": Mark("CRM told", "idle", "out"),
    "not_told": Mark("CRM not told", "warn", "repeat"),
    "missed": Mark("missed", "warn", "question"),
    "unread": Mark("unread", "warn", "question"),
    # targets
    "open": Mark("open", "good", "check"),
    "paused": Mark("paused", "warn", "pause"),
    # what people did
    "requested": Mark("asked for", "idle", "person"),
    "cancelled": Mark("cancelled", "idle", "minus"),
    "rules_changed": Mark("rules changed", "idle", "pencil"),
    "signed_in": Mark("signed in", "idle", "person"),
    "signed_out": Mark("signed out", "idle", "person"),
    "exported": Mark("exported", "idle", "out"),
    "bulk_requested": Mark("bulk retry", "idle", "person"),
    "bulk_cancelled": Mark("bulk retry cancelled", "idle", "minus"),
    # bulk retries, backfills
    "asking": Mark("asks", "warn", "person"),
    "running": Mark("running", "busy", "arrow"),
    "done": Mark("done", "good", "check"),
    # attempts that failed, by the class of their error
    "unavailable": Mark("unavailable", "warn", "repeat"),
    "timeout": Mark("timed out", "warn", "repeat"),
    "network": Mark("network", "warn", "repeat"),
    "rate_limited": Mark("rate limited", "warn", "hourglass"),
    "nonsense": Mark("not understood", "warn", "question"),
    "unsure": Mark("unsure", "warn", "question"),
    "quota": Mark("quota spent", "warn", "hourglass"),
}


def mark(outcome: str, error: str | None = None) -> Mark:
    """Return how *outcome* is shown. What is not known by name is an error where there is one."""
    if outcome in MARKS:
        return MARKS[outcome]
    return Mark(outcome.replace("_", " ") or "unknown", "bad" if error else "idle", "cross" if error else "dot")


# --- moments and spans ---------------------------------------------------------------------------------------


def absolute(moment: datetime) -> str:
    """2026-03-02 10:11:12, in UTC; the column or sentence around it says so."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """About how long: 0.4 s, 12 s, 3 min, 5 h, 2 days."""
    seconds = abs(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for limit, unit_s, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def relative(moment: datetime, now: datetime) -> str:
    """3 min ago; in 20 s; just now."""
    age_s = (now - moment).total_seconds()
    if abs(age_s) < 1:
        return "just now"
    return f"{span(age_s)} ago" if age_s > 0 else f"in {span(age_s)}"


def when(moment: datetime | None, now: datetime, missing: str = "never") -> Markup:
    """Return a ``<time>``: relative to read, absolute to point at. A script keeps it true on an open page."""
    if moment is None:
        return escape(missing)
    exact = moment.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC" data-relative>{}</time>').format(
        exact.isoformat(), absolute(exact), relative(moment, now)
    )


def milliseconds(value: int | None) -> str:
    """840 ms; 2.4 s; nothing where there is none."""
    if value is None:
        return ""
    return f"{value} ms" if value < 1000 else span(value / 1000)


# --- counts and values ---------------------------------------------------------------------------------------


def number(value: int) -> str:
    """12,345."""
    return f"{value:,}"


def count(value: int, one: str, many: str = "") -> str:
    """1 contact; 2 contacts; 12,345 deliveries."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def shown(value: Any) -> str:
    """Return a field's value as a person reads it: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def pretty(value: Any, longest: int) -> str:
    """Return *value* as indented JSON; of what is longer than *longest* characters, a part that is longer, too.

    What lies a thousand lists deep is indented by thousands of blanks in every line: it is not written to its end.
    """
    parts, size = [], 0
    for part in _INDENTED.iterencode(value):
        parts.append(part)
        size += len(part)
        if size > longest:
            break
    return "".join(parts)


_INDENTED = json.JSONEncoder(ensure_ascii=False, indent=2)

# Characters that show nothing, or turn the text beside them around. Joiners are part of scripts, and of emoji.
# Half a pair of surrogates is no character at all, and yet JSON can spell it.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Return *text* with what cannot be seen in it spelt out, as JSON spells it."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# --- addresses -----------------------------------------------------------------------------------------------

# What a browser or a server would read as another path than was meant.
_NO_PATH = re.compile(r"^/|(^|/)\.{1,2}(/|$)|[\r\n]")


def contact_url(source: str, source_id: str, **query: Any) -> str:
    """Return the path of a contact's page, whatever its id holds; *query* without those that are None or ""."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    path = f"/contacts/{quote(source, safe='')}"
    if not source_id or _NO_PATH.search(source_id):
        given = {"id": source_id, **given}
    else:
        path += f"/{quote(source_id, safe='')}"
    return path + (f"?{urlencode(given)}" if given else "")


FILTERS: Mapping[str, Callable[..., Any]] = {
    "absolute": absolute,
    "span": span,
    "ms": milliseconds,
    "number": number,
    "shown": shown,
    "visible": visible,
}
GLOBALS: Mapping[str, Any] = {"mark": mark, "when": when, "count": count, "contact_url": contact_url}
