"""What is copied, and how a row is written: as the line of text that PostgreSQL's COPY takes and gives.

Both databases give the same line for the same row, so that lines are what is copied and what is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.store.sql.database import TOTALS


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one SQLite table, in the order of *keys*, and the PostgreSQL table that they go *into*.

    *made* has SQLite's expressions for columns that it does not have, or not like this. *seen_in* is where the
    rows are read again, if that is not the table itself. *first* is run before the first row.
    """

    name: str
    keys: Sequence[str]
    into: str
    made: Mapping[str, str] = field(default_factory=dict)
    rows: str = ""  # SQLite's FROM clause, where it is not the table alone, called t
    seen_in: str = ""
    first: str = ""

    @property
    def origin(self) -> str:
        return self.rows or f"{self.name} t"


def _whole(name: str, *keys: str, **more: Any) -> Part:
    return Part(name, [f"t.{key}" for key in keys], name, **more)


def _total(name: str) -> Part:
    # Of `tally`, triggers have counted the rows that were copied: its totals are SQLite's all the same, which also
    # counts what has no rows.
    keys, _ = TOTALS[name]
    emptied = f"DELETE FROM {name}_delta; DELETE FROM {name}_sum"  # noqa: S608
    return Part(name, [f"t.{key}" for key in keys], f"{name}_sum", seen_in=name, first=emptied)


# A receipt of before SQLite's step 0004 has its query and headers itself. Here they are the payload's alone.
_WHOLE_URL = "coalesce(t.url, (SELECT i.url FROM inbound i WHERE i.digest = t.digest LIMIT 1))"
_HEADERS = "coalesce(t.headers, (SELECT i.headers FROM inbound i WHERE i.digest = t.digest LIMIT 1))"

PARTS: Sequence[Part] = (
    _whole("inbound", "id", made={"url": "substr(t.url, 1, instr(t.url || '?', '?') - 1)", "headers": "'{}'"}),
    _whole("audit", "id"),
    _whole("contact", "id"),
    _whole("search_term", "term", "contact_id"),
    _whole("delivery", "id"),
    _whole(
        "event_key",
        "id",
        made={"day": "substr(i.received_at, 1, 10)"},
        rows="event_key t JOIN inbound i ON i.id = t.inbound_id",
    ),
    _whole(
        "payload",
        "id",
        made={"day": "substr(t.created_at, 1, 10)", "url": _WHOLE_URL, "headers": _HEADERS},
    ),
    # SQLite has a payload once, with the moment of its newest use; by day, it is there on each day that it is of.
    Part(
        "payload of earlier days",
        ("e.payload_id", "e.day"),
        "payload",
        made={"day": "e.day", "created_at": "e.at", "url": _WHOLE_URL, "headers": _HEADERS},
        rows="temp.earlier_use e JOIN payload t ON t.id = e.payload_id",
    ),
    _whole("refusal", "id"),
    _whole("bulk", "id"),
    _whole("bulk_item", "delivery_id"),
    _whole("lane", "name"),
    _whole("lane_count", "target"),
    _whole("quota", "target"),
    _whole("target_status", "target"),
    _whole("target_push", "target"),
    _whole("source_state", "source"),
    _whole("source_reads", "source"),
    _whole("catch_up", "source", "kind"),
    _whole("route_rules", "source", "target"),
    _whole("url_token", "source", "token_id"),
    _whole("person", "name"),
    _whole("login_link", "link_id"),
    *(_total(name) for name in TOTALS),  # behind the rows that they are counted of
)
# The key of all digests is taken over by itself; who is alive is of no use elsewhere, and secrets are not copied.
LEFT_OUT = frozenset({"meta", "beat", "access_token"})

EARLIER_USES = """
CREATE TEMP TABLE earlier_use (payload_id INTEGER NOT NULL, day TEXT NOT NULL, at TEXT NOT NULL,
  PRIMARY KEY (payload_id, day)) WITHOUT ROWID;
INSERT INTO temp.earlier_use
  SELECT p.id, substr(u.at, 1, 10), max(u.at)
  FROM (SELECT digest, at FROM audit WHERE digest IS NOT NULL
        UNION ALL SELECT digest, received_at FROM inbound) u
  JOIN payload p ON p.digest = u.digest
  WHERE substr(u.at, 1, 10) != substr(p.created_at, 1, 10)
  GROUP BY 1, 2;
"""


# --- lines -----------------------------------------------------------------------------------------------

_NULL = "\\N"
_SPECIAL = re.compile("[\\\\\b\f\n\r\t\v\0\ud800-\udfff]")
_ESCAPES: Mapping[str, str] = dict(zip("\\\b\f\n\r\t\v", (rf"\{letter}" for letter in "\\bfnrtv"), strict=True))


def _text(value: str) -> str:
    if _SPECIAL.search(value) is None:
        return value
    # What PostgreSQL cannot hold becomes U+FFFD, as it does in the store.
    return _SPECIAL.sub(lambda found: _ESCAPES.get(found[0], "\ufffd"), value)


def _bytes(value: bytes) -> str:
    return rf"\\x{value.hex()}"


def _boolean(value: int) -> str:
    return "t" if value else "f"


def _real(value: float) -> str:
    return format(value, ".15g")  # as PostgreSQL writes it with extra_float_digits = 0


# By PostgreSQL's type: how SQLite's value is written, and what has PostgreSQL write it in the same way.
_KINDS: Mapping[str, tuple[Callable[[Any], str], str]] = {
    "text": (_text, "{}"),
    "bytea": (_bytes, "{}"),
    "bool": (_boolean, "{}"),
    "int4": (str, "{}"),
    "int8": (str, "{}"),
    "float8": (_real, "{}"),
    "date": (str, "{}"),
    "timestamptz": (str, "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"),
}
# For a transaction that reads lines.
AS_LINES = "SET LOCAL extra_float_digits = 0; SET LOCAL bytea_output = 'hex'; SET LOCAL datestyle = 'ISO'"

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a PostgreSQL table, each with its type."""

    types: Mapping[str, str]

    @property
    def names(self) -> str:
        return ", ".join(self.types)

    @property
    def numbered(self) -> bool:
        """Whether the first one is a number."""
        return next(iter(self.types.values())) in {"int4", "int8"}

    @property
    def as_lines(self) -> str:
        """The list of a SELECT whose COPY gives lines as `writer` does."""
        return ", ".join(_KINDS[kind][1].format(name) for name, kind in self.types.items())

    def read_by(self, part: Part) -> str:
        """Return SQLite's statement for the rows of *part*: their keys, then these columns."""
        values = [part.made.get(name, f"t.{name}") for name in self.types]
        return f"SELECT {', '.join((*part.keys, *values))} FROM {part.origin}"  # noqa: S608 - names of ours

    def writer(self) -> Callable[[Row], str]:
        """Return what writes the values of one row, as `read_by` gives them behind the keys, as its line."""
        kinds = [_KINDS[kind][0] for kind in self.types.values()]

        def line(values: Row) -> str:
            written = [
                _NULL if value is None else write(value) for write, value in zip(kinds, values, strict=True)
            ]
            return "\t".join(written) + "\n"

        return line
