"""`bridge backfill`: have the worker go through a CRM's whole list of contacts, and look on."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge import catch_up
from bridge.cli import options, output
from bridge.errors import BridgeError
from bridge.model import BACKFILL, SHARE, CatchUp, Progress

if TYPE_CHECKING:
    from bridge.config import SourceConnection
    from bridge.process import Opened

LOOK_S = 0.5
DRY = "dry run"
SILENT_S = 30.0  # a worker that lives says so every ten seconds


@click.command()
@click.argument("source")
@options.config
@click.option("--dry-run", is_flag=True, help="Read the list and print what would change; change nothing.")
@click.option(
    "--share",
    type=click.FloatRange(0, 100),
    default=SHARE * 100,
    show_default=True,
    metavar="PERCENT",
    help="Stop and ask when more of the contacts would be changed at a target.",
)
@click.option("--yes", is_flag=True, help="Do not ask, however many would be changed.")
@click.option("--stop", is_flag=True, help="Stop the one that is under way. What was read stays.")
@click.option("--no-wait", is_flag=True, help="Begin it and return; the worker goes on.")
@options.as_json
def backfill(
    source: str,
    config_path: Path | None,
    dry_run: bool,
    share: float,
    yes: bool,
    stop: bool,
    no_wait: bool,
    json_wanted: bool,
) -> None:
    """Read every contact of a source's CRM, and bring all targets up to date.

    The worker does it, behind everything that comes live, and goes on after any interruption. Run it again to look
    on; Ctrl-C ends only the looking.
    """
    with options.opened(config_path) as here:
        connection = _connection(here, source)
        if dry_run:
            ended = _dry_run(here, connection)
        elif stop:
            ended = _stop(here, source)
        else:
            ended = _begin(here, source, 1.0 if yes else share / 100, approve=yes)
            if not no_wait:
                ended = _look_on(here, source, may_ask=sys.stdin.isatty() and not json_wanted)
    if json_wanted:
        output.as_json(as_json(ended))
    else:
        _say(ended)
    if ended.state is Progress.ASKING:
        raise SystemExit(1)


def as_json(progress: CatchUp) -> dict[str, Any]:
    return {
        "source": progress.source,
        "state": progress.state.value,
        "reason": progress.reason,
        "seen": progress.seen,
        "changed": progress.changed,
        "unread": progress.unread,
        "total": progress.total,
        "effects": {target: dict(counts) for target, counts in progress.effects.items()},
    }


def _connection(here: Opened, source: str) -> SourceConnection:
    connection = here.config.sources.get(source)
    if connection is None:
        raise click.UsageError(f"There is no source {source}; there are {', '.join(sorted(here.config.sources))}.")
    if connection.type.lister is None:
        raise BridgeError(
            f"{connection.type.title} has no call that lists contacts, so they cannot be backfilled."
        )
    if connection.lister() is None:
        raise BridgeError(
            f"No credential is configured with which the contacts of {source} can be read; "
            f"'bridge sources {connection.type.name}' shows the keys."
        )
    return connection


def _begin(here: Opened, source: str, share: float, *, approve: bool) -> CatchUp:
    """Begin a backfill, or go on with the one under way."""
    from bridge.pipeline import catching_up

    now = here.store.clock()
    begun = catching_up.backfill(source, f"command line ({getpass.getuser()})", share, now)
    if not here.store.start_catch_up(begun):
        current = _current(here, source)
        if current.state is Progress.ASKING and approve:
            here.store.change_catch_up(catch_up.approved(current, now), now)
    here.ring()
    return _current(here, source)


def _stop(here: Opened, source: str) -> CatchUp:
    current = here.store.catch_up(source, BACKFILL)
    if current is None or current.state not in {Progress.RUNNING, Progress.ASKING}:
        raise BridgeError(f"No backfill of {source} is under way.")
    now = here.store.clock()
    here.store.change_catch_up(catch_up.stopped(current, f"command line ({getpass.getuser()})", now), now)
    return _current(here, source)


def _current(here: Opened, source: str) -> CatchUp:
    found = here.store.catch_up(source, BACKFILL)
    if found is None:
        raise BridgeError(f"There is no backfill of {source}.")
    return found


def _look_on(here: Opened, source: str, *, may_ask: bool) -> CatchUp:
    """Show how far it came, until it is done, stopped or asks."""
    warned = False
    with _bar(source) as show:
        while True:
            current = _current(here, source)
            show(current)
            if current.state is Progress.ASKING and may_ask:
                current = _ask(here, source, current)
            if current.state is not Progress.RUNNING:
                return current
            seen_at = here.store.health(here.store.clock()).worker_seen_at
            silent = seen_at is None or (here.store.clock() - seen_at).total_seconds() > SILENT_S
            if silent and not warned:
                click.echo(
                    "No worker runs. It begins as soon as one does: bridge worker, or bridge serve.", err=True
                )
                warned = True
            time.sleep(LOOK_S)


def _ask(here: Opened, source: str, current: CatchUp) -> CatchUp:
    click.echo(f"\n{current.reason}", err=True)
    if not click.confirm("Go on, however many are changed?", default=False, err=True):
        return current
    now = here.store.clock()
    here.store.change_catch_up(catch_up.approved(current, now), now)
    here.ring()
    return _current(here, source)


@contextmanager
def _bar(source: str) -> Iterator[Any]:
    """Give a function that shows progress: a bar with rate and time left on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(source, total=None, rate="")

        def show(current: CatchUp) -> None:
            passed_s = (current.updated_at - current.started_at).total_seconds()
            rate = f"{current.seen / passed_s:,.0f}/s" if passed_s > 1 else ""
            note = f" ({current.reason})" if current.reason else ""
            bar.update(task, completed=current.seen, total=current.total, rate=rate, description=f"{source}{note}")

        yield show


def _say(progress: CatchUp) -> None:
    total = f" of {progress.total:,}" if progress.total else ""
    read = f"{progress.seen:,}{total} contacts read, {progress.changed:,} of them news to bridge."
    click.echo(f"{progress.state.value}: {read}")
    if progress.unread:
        said = "" if progress.by == DRY else " The audit log says why, at the outcome 'unread'."
        click.echo(f"Of {progress.unread:,} of them nothing could be learnt.{said}")
    if progress.reason:
        click.echo(progress.reason)
    if progress.state is Progress.ASKING:
        click.echo("To go on: bridge backfill SOURCE --yes. To end it: --stop.")
    _effects(progress)


def _effects(progress: CatchUp) -> None:
    words = list(catch_up.WORDS.items())
    output.table(
        ["TARGET", *(word.upper() for _, word in words)],
        [
            [target, *(f"{counts.get(effect.value, 0):,}" for effect, _ in words)]
            for target, counts in sorted(progress.effects.items())
        ],
    )


# --- without changing anything -------------------------------------------------------------------------------


def _dry_run(here: Opened, connection: SourceConnection) -> CatchUp:
    """Go through the list in this process, and count what would become of it."""
    from bridge.outbound import Api, new_session
    from bridge.pipeline import catching_up, reading

    lister = connection.lister()
    if lister is None:
        raise BridgeError("There is nothing to list contacts with.")
    routes = here.config.routes_of(connection.name)
    api = Api(connection.base_url, session=new_session())
    now = here.store.clock()
    progress = replace(catching_up.backfill(connection.name, DRY, 1.0, now), due_at=None)
    with _bar(f"{connection.name} (dry run)") as show:
        while progress.state is Progress.RUNNING:
            page = lister.page(api, reading.fields_of(routes), progress.after, None)
            looked = catching_up.look(routes, here.store, connection.name, page.records, here.store.clock())
            progress = replace(
                progress,
                after=page.after,
                state=Progress.RUNNING if page.after else Progress.DONE,
                updated_at=here.store.clock(),
                seen=progress.seen + len(page.records),
                changed=progress.changed + looked.changed,
                unread=progress.unread + looked.unread,
                total=page.total if page.total is not None else progress.total,
                effects=catch_up.added(progress.effects, looked.effects),
            )
            show(progress)
    return replace(progress, reason="Nothing was changed: this was a dry run.")
