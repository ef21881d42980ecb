"""What commands print: for people where a terminal is, plain lines where a script reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click


def as_json(value: Any) -> None:
    """Print *value* as one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print *rows* under *columns*: a drawn table on a terminal, otherwise aligned lines that nothing cuts off."""
    listed = [list(columns), *(list(row) for row in rows)]
    if len(listed) == 1:
        return
    if sys.stdout.isatty():
        _drawn(listed)
        return
    widths = [max(len(row[place]) for row in listed) for place in range(len(columns))]
    for row in listed:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _drawn(listed: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*listed[0], box=box.SIMPLE_HEAD, pad_edge=False)
    for row in listed[1:]:
        drawn.add_row(*(Text(text) for text in row))
    Console().print(drawn)


def age(moment: datetime | None, now: datetime) -> str:
    """Return how long ago *moment* was, roughly: "3 s ago"."""
    if moment is None:
        return "never"
    seconds = max(0, round((now - moment).total_seconds()))
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def count(number: int, what: str) -> str:
    """Return "1 contact", "2 contacts"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
