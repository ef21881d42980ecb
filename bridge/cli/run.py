"""Commands that run bridge: serve, web, worker, migrate."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge import __version__
from bridge.cli import options, output
from bridge.errors import StoreUnavailable

if TYPE_CHECKING:
    from bridge.process import Loaded

PATIENCE_S = 10.0


@click.command()
@options.config
@click.option("--host", default="0.0.0.0", show_default=True, help="The address to listen at.")  # noqa: S104
@click.pass_context
def serve(ctx: click.Context, config_path: Path | None, host: str) -> None:
    """Run web and worker together.

    Each is a process of its own; one that dies is started again. SIGTERM or Ctrl-C ends both, and what is under
    way is finished before.
    """
    from bridge import process
    from bridge.database import database_of
    from bridge.supervisor import ROLES, end_with_parent

    end_with_parent(os.environ)
    loaded = process.load(config_path)
    process.check_port(host, loaded.environment.port)
    _warn(loaded, ROLES)
    click.echo(f"bridge {__version__} listens at http://{host}:{loaded.environment.port}", err=True)
    click.echo(f"  database: {database_of(loaded.environment).place}", err=True)
    for name in sorted(loaded.config.sources):
        click.echo(f"  webhooks of {name}: {loaded.config.bridge.public_url}/hooks/{name}", err=True)
    click.echo(f"  pages: {_how_to_sign_in(loaded)}", err=True)
    _go_on_as("bridge.supervisor", host, config_path)


@click.command()
@options.config
@click.option("--host", default="0.0.0.0", show_default=True, help="The address to listen at.")  # noqa: S104
def web(config_path: Path | None, host: str) -> None:
    """Run only the web process, which receives webhooks.

    It listens at PORT. Nothing is delivered while no worker runs; what is received waits in the database.
    """
    from bridge import process
    from bridge.supervisor import PARENT, end_with_parent

    end_with_parent(os.environ)
    loaded = process.load(config_path)
    if PARENT not in os.environ:
        _warn(loaded, ("web",))
    # Under `bridge serve`, what a killed one left behind may have it for another moment.
    process.check_port(host, loaded.environment.port, patience_s=PATIENCE_S if PARENT in os.environ else 0)
    process.open_store(loaded, "web").close()  # a file is brought up to date before anybody uses it
    _go_on_as("bridge.web", host, config_path)


@click.command()
@options.config
@click.pass_context
def worker(ctx: click.Context, config_path: Path | None) -> None:
    """Run only the worker process, which delivers contacts.

    A SQLite database has one; on PostgreSQL any number share the work, on any machines.
    """
    from bridge import process
    from bridge.supervisor import PARENT, end_with_parent

    end_with_parent(os.environ)
    loaded = process.load(config_path)
    if PARENT not in os.environ:
        _warn(loaded, ("worker",))
    # Under `bridge serve` it takes over from another, which is to end soon.
    ctx.exit(process.run_worker(loaded, patient=PARENT in os.environ))


@click.command()
@options.config
@options.as_json
def migrate(config_path: Path | None, json_wanted: bool) -> None:
    """Bring the database up to date.

    On PostgreSQL this comes before web and worker of a new version are started; they refuse to start on a
    database that lacks something, and those of the version before go on meanwhile. A SQLite file is brought up to
    date by every command that opens it.
    """
    from bridge import process

    loaded = process.load(config_path)
    steps = process.migrate(loaded)
    if json_wanted:
        output.as_json({"steps": steps})
    else:
        click.echo(f"Done: {', '.join(steps)}." if steps else "The database is up to date.")


def _go_on_as(module: str, host: str, config_path: Path | None) -> None:
    """Replace this program by *module*, which imports little: what was needed to look for problems is let go.

    It is still the same process, and still ends with its parent.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    chosen = [str(config_path)] if config_path else []
    os.execv(sys.executable, [sys.executable, "-m", module, host, *chosen])  # noqa: S606 - it is our own program


def _warn(loaded: Loaded, roles: Sequence[str]) -> None:
    """Say what is allowed but probably not meant. *roles* run here."""
    from bridge import process
    from bridge.database import database_of

    for warning in loaded.config.warnings:
        click.echo(f"warning: {warning}", err=True)
    database = database_of(loaded.environment)
    host = process.ephemeral_host(os.environ, database)
    if host is None:
        return
    lines = [
        f"WARNING: the disk of {host.title} is thrown away with every deploy, and {database.place} is on it.",
        "What was received, what each target holds and every opt-out seen there would then be forgotten.",
    ]
    if host.has_volumes:
        lines.append("Attach a disk that stays, and set DATABASE_URL=sqlite:////<where it is mounted>/bridge.db,")
        lines.append("or attach a PostgreSQL database and set DATABASE_URL to its URL.")
    else:
        lines.append(f"{host.title} has no disk that stays: attach PostgreSQL and set DATABASE_URL to its URL.")
    if len(roles) == 1:
        lines.append("Web and worker must share that file: run both on one machine, with `bridge serve`.")
    for line in lines:
        click.secho(line, fg="red", bold=True, err=True)


def _how_to_sign_in(loaded: Loaded) -> str:
    """Return how to get to the pages: a link that signs in once, where only a person at a terminal sees it."""
    from bridge import process
    from bridge.cli.people import LINK_FOR, OWNER, make_link

    if not loaded.environment.secret_key:
        return "nobody can sign in, because SECRET_KEY is not set"
    url = loaded.config.bridge.public_url
    if not sys.stderr.isatty():  # it may be a log that many read
        return f"{url}; 'bridge login-link' prints a link that signs in"
    try:
        with closing(process.open_store(loaded)) as store:
            link = make_link(process.Opened(loaded.config, loaded.environment, store), OWNER, None, LINK_FOR)
    except StoreUnavailable:  # web and worker say so as well, and try again
        return url
    return f"{link} (signs in once, within {LINK_FOR.seconds // 60} minutes)"
