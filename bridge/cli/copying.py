"""The command that moves an installation to PostgreSQL."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from bridge.cli import options, output
from bridge.errors import StoreUnavailable

if TYPE_CHECKING:
    from rich.progress import Progress

    from bridge.engine.embedded import WorkerLock
    from bridge.store.copying.run import Copied, Tell

AGAIN = "What was copied so far stays: run the same bridge copy again, and it goes on where it stopped."


def _sqlite_file(ctx: click.Context, parameter: click.Parameter, url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or not parts.path.strip("/"):
        raise click.BadParameter("write sqlite:///path/to/bridge.db; a path with four slashes is absolute")
    path = Path(parts.path[1:])
    if not path.is_file():
        raise click.BadParameter(f"there is no file {path}")
    return path


def _postgres_url(ctx: click.Context, parameter: click.Parameter, url: str) -> str:
    if not url.startswith(("postgres://", "postgresql://")):
        raise click.BadParameter("write postgresql://user:password@host:5432/database")
    return url


@click.command()
@click.argument("sqlite", metavar="SQLITE_URL", callback=_sqlite_file)
@click.argument("postgres", metavar="POSTGRES_URL", callback=_postgres_url)
@options.as_json
def copy(sqlite: Path, postgres: str, json_wanted: bool) -> None:
    """Move an installation from SQLite to an empty PostgreSQL database.

    Stop web and worker first; senders try again later. Every row is copied, then read again from both databases
    and compared. Where it was interrupted, the same command goes on. The SQLite file keeps its rows as they are.

    A password need not be in the URL: PGPASSWORD and ~/.pgpass are heeded.
    """
    from bridge.database import database_of
    from bridge.environment import Environment

    database_of(Environment(database_url=postgres))  # says so where what PostgreSQL needs is not installed
    from bridge.store.copying import run

    began = time.monotonic()
    with _no_worker(sqlite), _progress() as tell:
        try:
            copied = run.copy(sqlite, postgres, tell)
        except StoreUnavailable as error:
            said = str(error).replace("DATABASE_URL", "POSTGRES_URL")
            raise StoreUnavailable(f"{said}\n{AGAIN}") from error
        except KeyboardInterrupt:
            raise click.ClickException(f"Interrupted. {AGAIN}") from None
    _tell_result(copied, time.monotonic() - began, json_wanted=json_wanted)


def _no_worker(path: Path) -> WorkerLock:
    """Keep workers from the SQLite database, until the copy ends.

    Raises:
        CopyError: one runs.
    """
    from bridge.engine.embedded import LockTaken, WorkerLock
    from bridge.store.copying.mark import CopyError

    try:
        return WorkerLock(path)
    except LockTaken as error:
        holder = f"process {error.holder}" if error.holder else "another process"
        raise CopyError(
            f"A worker, or another bridge copy, has {path} ({holder}). Stop it, and the web process as well."
        ) from error


@contextmanager
def _progress() -> Iterator[Tell]:
    """Draw how far it is, at what rate and how long it takes, where somebody looks."""
    if not sys.stderr.isatty():
        yield lambda step, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as drawn:
        yield _drawn_on(drawn)


def _drawn_on(drawn: Progress) -> Callable[[str, int, int], None]:
    from rich.progress import TaskID

    tasks: dict[str, TaskID] = {}

    def tell(step: str, done: int, total: int) -> None:
        if step not in tasks:
            tasks[step] = drawn.add_task(step, total=total, rate="")
        task = tasks[step]
        drawn.update(task, completed=done, total=total)
        speed = next(one.speed for one in drawn.tasks if one.id == task)
        drawn.update(task, rate=f"{speed:,.0f} a second" if speed else "")

    return tell


def _tell_result(copied: Copied, took_s: float, *, json_wanted: bool) -> None:
    if json_wanted:
        tables = [{"table": one.table, "rows": one.rows, "digest": one.digest} for one in copied.proofs]
        output.as_json(
            {
                "finished_at": copied.finished_at,
                "resumed": copied.resumed,
                "rows": copied.rows,
                "seconds": round(took_s, 3),
                "verified": tables,
            }
        )
    elif copied.proofs:
        output.table(
            ("table", "rows", "digest"), [(one.table, f"{one.rows:,}", one.digest) for one in copied.proofs]
        )
        every = sum(one.rows for one in copied.proofs)
        click.echo(
            f"{output.count(copied.rows, 'row')} copied in {took_s:,.1f} s; all {every:,} are the same in both."
        )
        click.echo("Now set DATABASE_URL to the PostgreSQL database, and start web and worker.")
    else:
        click.echo(f"It was copied already, completely, at {copied.finished_at}. Nothing was done.")
