"""What the demo shows: a table that moves on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click

from bridge.demo.people import TARGETS, Person

Deliveries = Sequence[Mapping[str, Any]]  # as the API gives them
STYLES = {
    "synced": "green",
    "pending": "yellow",
    "sending": "yellow",
    "retrying": "yellow",
    "held": "yellow",
    "waiting": "cyan",
    "opted_out": "magenta",
    "removed": "dim",
    "ambiguous": "red",
    "failed": "red",
}


class Screen(Protocol):
    def title(self, text: str) -> None:
        """A new part of the story begins."""
        ...

    def tell(self, text: str) -> None: ...

    def checked(self, ok: bool, text: str) -> None:
        """Something was looked at, and is as it should be or not."""
        ...

    def show(self, people: Sequence[Person], deliveries: Deliveries) -> None:
        """Show how things stand at this moment."""
        ...


class Lines:
    """One line after the other."""

    def title(self, text: str) -> None:
        click.echo(f"\n{text}")

    def tell(self, text: str) -> None:
        click.echo(f"     {text}" if text else "")

    def checked(self, ok: bool, text: str) -> None:
        click.echo(f"{'ok  ' if ok else 'FAIL'} {text}")

    def show(self, people: Sequence[Person], deliveries: Deliveries) -> None:
        """Only the end of each part is told; what moves in between would be noise in a log."""


class Moving:
    """Lines, above a table that is always up to date. Used through `open_screen`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self.live = Live(console=self._console, auto_refresh=False, vertical_overflow="visible")

    def title(self, text: str) -> None:
        self._print(f"\n{text}", "bold")

    def tell(self, text: str) -> None:
        self._print(f"     {text}", "dim")

    def checked(self, ok: bool, text: str) -> None:
        self._print(f"{'ok  ' if ok else 'FAIL'} {text}", "green" if ok else "bold red")

    def show(self, people: Sequence[Person], deliveries: Deliveries) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        states = {(one["target"], one["source"], one["source_id"]): one["state"] for one in deliveries}
        table = Table("contact", *TARGETS, box=box.SIMPLE_HEAD, pad_edge=False)
        for person in people:
            if person.id:
                now = [states.get((target, person.source, person.id), "") for target in TARGETS]
                table.add_row(
                    f"{person.name} ({person.source})", *(Text(state, STYLES.get(state, "")) for state in now)
                )
        self.live.update(table, refresh=True)

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style), soft_wrap=True)  # a command with line ends in it cannot be copied


@contextmanager
def open_screen() -> Iterator[Screen]:
    """Give the screen that fits what we write to."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    moving = Moving()
    with moving.live:
        yield moving
